// What a guest gets from its disk: `disk-bench DEVICE` reads and writes it past the guest's cache and prints a line for
// each kind of access. The disk's content is lost.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { kPage = 4096, kMiB = 1 << 20 };
static const uint64_t kArea = 192ull * kMiB;  // of the disk that is used
static const double kSeconds = 4;

static double Now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static uint64_t random_state = 88172645463325252ull;
static uint64_t Random(void) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

static void Fail(const char* what) {
  perror(what);
  printf("disk-bench: failed\n");
  exit(1);
}

struct Work {
  const char* name;
  int writes, random, size, sync_every;
};

static void Run(int fd, const struct Work* work, uint8_t* buffer) {
  const uint64_t places = kArea / (uint64_t)work->size;
  uint64_t done = 0;
  const double start = Now();
  double end = start;
  while (end - start < kSeconds) {
    if (!work->random && done == places) break;  // once over the area: the first writes are to new places
    const uint64_t place = work->random ? Random() % places : done;
    const off_t at = (off_t)(place * (uint64_t)work->size);
    if (work->writes) {
      memcpy(buffer, &done, sizeof(done));
      if (pwrite(fd, buffer, (size_t)work->size, at) != work->size) Fail("write");
    } else if (pread(fd, buffer, (size_t)work->size, at) != work->size) {
      Fail("read");
    }
    ++done;
    if (work->sync_every && done % (uint64_t)work->sync_every == 0 && fdatasync(fd) != 0) Fail("sync");
    end = Now();
  }
  if (work->writes && fdatasync(fd) != 0) Fail("sync");
  end = Now();
  printf("disk-bench: %s %.1f\n", work->name, (double)done * work->size / (end - start) / 1e6);
  fflush(stdout);
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const int fd = open(argv[1], O_RDWR | O_DIRECT);
  if (fd < 0) Fail(argv[1]);
  void* buffer = NULL;
  if (posix_memalign(&buffer, kPage, kMiB) != 0) return 1;
  memset(buffer, 0x5a, kMiB);
  static const struct Work kWork[] = {
      {"write-4k-random-new", 1, 1, kPage, 0},
      {"write-1m-sequential-new", 1, 0, kMiB, 0},
      {"write-4k-sequential", 1, 0, kPage, 0},
      {"read-1m-sequential", 0, 0, kMiB, 0},
      {"read-4k-sequential", 0, 0, kPage, 0},
      {"write-4k-random", 1, 1, kPage, 0},
      {"read-4k-random", 0, 1, kPage, 0},
      {"write-4k-random-synced", 1, 1, kPage, 1},
  };
  for (size_t i = 0; i < sizeof(kWork) / sizeof(kWork[0]); ++i) Run(fd, &kWork[i], buffer);
  printf("disk-bench: end\n");
  return 0;
}
