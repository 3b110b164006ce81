// Runs the benchmarks and prints one line each: bench NAME CHECKSUM NANOSECONDS_PER_ITERATION ITERATIONS
//   guest-bench [PERCENT [NAMES]]   PERCENT of the usual number of iterations; NAMES: only these, with commas between
//   them (as /init: bench_percent= and bench_only= on the kernel's command line)
//   guest-bench --list              names and kinds (cpu, system), one a line
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"

static int is_init;

static uint64_t Now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static void Leave(int status) {
  printf("guest-bench: end %d\n", status);
  fflush(stdout);
  if (is_init) {
    sync();
    reboot(RB_POWER_OFF);
  }
  exit(status);
}

void Die(const char* what) {
  printf("guest-bench: %s: %s\n", what, strerror(errno));
  Leave(1);
}

void* Allocate(size_t size) {
  void* memory = malloc(size);
  if (!memory) Die("malloc");
  return memory;
}

static int Wanted(const char* names, const char* name) {
  const size_t length = strlen(name);
  for (const char* at = names; at && *at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) {
    if (strncmp(at, name, length) == 0 && (at[length] == ',' || at[length] == 0)) return 1;
  }
  return !names || !*names;
}

static void RunAll(const struct Bench* bench, uint64_t percent, const char* names) {
  for (; bench->name; ++bench) {
    if (!Wanted(names, bench->name)) continue;
    uint64_t iterations = bench->iterations * percent / 100;
    if (iterations == 0) iterations = 1;
    const uint64_t start = Now();
    const uint64_t checksum = bench->run(iterations);
    const uint64_t elapsed = Now() - start;
    printf("bench %s %016" PRIx64 " %.3f %" PRIu64 "\n", bench->name, checksum, (double)elapsed / (double)iterations,
           iterations);
    fflush(stdout);
  }
}

static void ListAll(const struct Bench* bench, const char* kind) {
  for (; bench->name; ++bench) printf("%s %s\n", bench->name, kind);
}

int main(int argc, char** argv) {
  if (argc > 1 && strcmp(argv[1], "--nothing") == 0) return 7;  // what the exec benchmark runs
  if (argc > 1 && strcmp(argv[1], "--list") == 0) {
    ListAll(kCpuBenches, "cpu");
    ListAll(kSystemBenches, "system");
    return 0;
  }
  is_init = getpid() == 1;
  uint64_t percent = 100;
  const char* names = NULL;
  if (is_init) {
    mkdir("/proc", 0755);
    mkdir("/tmp", 0755);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("tmp", "/tmp", "tmpfs", 0, NULL);
    if (getenv("bench_percent")) percent = strtoull(getenv("bench_percent"), NULL, 10);
    names = getenv("bench_only");
  } else if (argc > 1) {
    percent = strtoull(argv[1], NULL, 10);
    if (argc > 2) names = argv[2];
  }
  printf("guest-bench: start\n");
  fflush(stdout);
  RunAll(kCpuBenches, percent, names);
  RunAll(kSystemBenches, percent, names);
  Leave(0);
}
