// A load that checks itself in a Linux guest, for tests that change the engine meanwhile: checksums over memory, a timer
// of 1000 Hz, clocks read in a tight loop, blocks written to a disk and read back, a stream to an echo server and back.
//   load DISK ADDRESS PORT    until SIGTERM; then a report of "name value" lines, in which every bad_... must be 0
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { kMemory = 64 << 20, kBlock = 64 << 10, kBlocks = 256, kPiece = 32 << 10, kClocks = 4, kTickNs = 1000000 };

static atomic_bool stop;
static const char* disk_path;
static struct sockaddr_in server;

static _Atomic uint64_t sums, bad_sums, ticks, timer_wakeups, bad_ticks, longest_wait_us, clock_reads, bad_clocks, blocks,
    bad_blocks, bytes_echoed, bad_bytes, bad_calls;

static void failed(const char* what) {
  fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
  ++bad_calls;
}

static int64_t now_ns(clockid_t clock) {
  struct timespec time;
  clock_gettime(clock, &time);
  return time.tv_sec * 1000000000ll + time.tv_nsec;
}

static uint64_t mixed(uint64_t i, uint64_t round) {
  uint64_t x = i * 0x9e3779b97f4a7c15 + round * 0xd6e8feb86659fd93;
  x ^= x >> 32;
  return x * 0xd6e8feb86659fd93;
}

// The same sums again and again, in integers and in floating point, a MiB each.
static void* check_memory(void* unused) {
  enum { kWords = (1 << 20) / 8, kParts = kMemory >> 20 };
  uint64_t* const words = malloc(kMemory);
  static uint64_t wanted[kParts];
  static double wanted_real[kParts];
  for (int checking = 0; !stop; checking = 1) {
    for (uint64_t part = 0; part < kParts && !stop; ++part) {
      uint64_t* const at = words + part * kWords;
      uint64_t sum = 0;
      double real = 0;
      for (uint64_t i = 0; i < kWords; ++i) {
        if (!checking) at[i] = mixed(part * kWords + i, 0);
        sum += at[i];
        real += (double)(at[i] >> 40) * 0.5;
      }
      if (checking) {
        bad_sums += sum != wanted[part] || real != wanted_real[part];
        ++sums;
      }
      wanted[part] = sum;
      wanted_real[part] = real;
    }
  }
  return unused;
}

// Ticks that were asked for, by the clock, against those that came.
static void* check_timer(void* unused) {
  const int timer = timerfd_create(CLOCK_MONOTONIC, 0);
  const int64_t start = now_ns(CLOCK_MONOTONIC) + kTickNs;
  const struct itimerspec every = {{0, kTickNs}, {start / 1000000000, start % 1000000000}};
  if (timerfd_settime(timer, TFD_TIMER_ABSTIME, &every, NULL) != 0) failed("timerfd_settime");
  int64_t last = start - kTickNs;
  while (!stop) {
    uint64_t came = 0;
    const int64_t before = now_ns(CLOCK_MONOTONIC);
    if (read(timer, &came, sizeof(came)) != sizeof(came)) failed("read of the timer");
    const int64_t after = now_ns(CLOCK_MONOTONIC);
    ticks += came;
    ++timer_wakeups;
    // Never more than have passed, and none left out that had passed before it was asked.
    const int64_t most = (after - start) / kTickNs + 1, least = before < start ? 0 : (before - start) / kTickNs + 1;
    bad_ticks += (int64_t)ticks > most || (int64_t)ticks < least;
    if ((uint64_t)(after - last) / 1000 > longest_wait_us) longest_wait_us = (uint64_t)(after - last) / 1000;
    last = after;
  }
  return unused;
}

static void* check_clocks(void* unused) {
  static const clockid_t kWhich[kClocks] = {CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_MONOTONIC_RAW, CLOCK_BOOTTIME};
  int64_t last[kClocks] = {0};
  while (!stop) {
    for (int n = 0; n < 1000; ++n) {
      for (int i = 0; i < kClocks; ++i) {
        const int64_t now = now_ns(kWhich[i]);
        bad_clocks += now < last[i];
        last[i] = now;
      }
    }
    clock_reads += 1000 * kClocks;
  }
  return unused;
}

static void* check_disk(void* unused) {
  const int disk = open(disk_path, O_RDWR | O_DIRECT);
  uint64_t* const block = aligned_alloc(4096, kBlock);
  if (disk < 0) return failed(disk_path), unused;
  for (uint64_t round = 0; !stop; ++round) {
    for (uint64_t i = 0; i < kBlock / 8; ++i) block[i] = mixed(i, round);
    if (pwrite(disk, block, kBlock, (off_t)(round % kBlocks) * kBlock) != kBlock) failed("write to the disk");
    if (round % 16 == 0 && fdatasync(disk) != 0) failed("fdatasync");
    // What was written some rounds ago.
    const uint64_t earlier = round < 16 ? round : round - 16;
    memset(block, 0, kBlock);
    if (pread(disk, block, kBlock, (off_t)(earlier % kBlocks) * kBlock) != kBlock) failed("read of the disk");
    uint64_t wrong = 0;
    for (uint64_t i = 0; i < kBlock / 8; ++i) wrong += block[i] != mixed(i, earlier);
    bad_blocks += wrong != 0;
    ++blocks;
  }
  return unused;
}

static void* check_network(void* unused) {
  const int link = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(link, (struct sockaddr*)&server, sizeof(server)) != 0) return failed("connect"), unused;
  static uint64_t out[kPiece / 8], in[kPiece / 8];
  for (uint64_t round = 0; !stop; ++round) {
    for (uint64_t i = 0; i < kPiece / 8; ++i) out[i] = mixed(i, ~round);
    for (size_t sent = 0; sent < kPiece;) {
      const ssize_t done = send(link, (char*)out + sent, kPiece - sent, 0);
      if (done <= 0) return failed("send"), unused;
      sent += (size_t)done;
    }
    for (size_t got = 0; got < kPiece;) {
      const ssize_t done = recv(link, (char*)in + got, kPiece - got, 0);
      if (done <= 0) return failed("recv"), unused;
      got += (size_t)done;
    }
    bad_bytes += memcmp(in, out, kPiece) != 0;
    bytes_echoed += kPiece;
  }
  close(link);
  return unused;
}

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  disk_path = argv[1];
  server.sin_family = AF_INET;
  server.sin_port = htons((uint16_t)atoi(argv[3]));
  inet_pton(AF_INET, argv[2], &server.sin_addr);
  sigset_t ends;
  sigemptyset(&ends);
  sigaddset(&ends, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &ends, NULL);
  void* (*const kWork[])(void*) = {check_memory, check_timer, check_clocks, check_disk, check_network};
  enum { kThreads = sizeof(kWork) / sizeof(*kWork) };
  pthread_t threads[kThreads];
  for (int i = 0; i < kThreads; ++i) pthread_create(&threads[i], NULL, kWork[i], NULL);
  int signal;
  sigwait(&ends, &signal);
  stop = true;
  for (int i = 0; i < kThreads; ++i) pthread_join(threads[i], NULL);
#define SHOW(name) printf(#name " %llu\n", (unsigned long long)name)
  SHOW(sums), SHOW(bad_sums), SHOW(ticks), SHOW(timer_wakeups), SHOW(bad_ticks), SHOW(longest_wait_us);
  SHOW(clock_reads), SHOW(bad_clocks), SHOW(blocks), SHOW(bad_blocks), SHOW(bytes_echoed), SHOW(bad_bytes);
  SHOW(bad_calls);
  return 0;
}
