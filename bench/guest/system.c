// Benchmarks of what a kernel does for a program: system calls, faults, processes, switches, signals,
// threads, files.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

static void WaitFor(pid_t child, int expected) {
  int status;
  if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != expected) Die("waitpid");
}

static uint64_t RunSyscall(uint64_t iterations) {
  uint64_t wrong = 0;
  for (uint64_t i = 0; i < iterations; ++i) wrong += syscall(SYS_umask, 022) != 022 && i > 0;
  return wrong;
}

static uint64_t RunPageFault(uint64_t iterations) {
  enum { kPages = 256 };
  uint64_t sum = 0;
  for (uint64_t i = 0; i < iterations; i += kPages) {
    uint8_t* memory = mmap(NULL, kPages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) Die("mmap");
    madvise(memory, kPages * 4096, MADV_NOHUGEPAGE);
    for (int page = 0; page < kPages; ++page) memory[page * 4096] = (uint8_t)page;
    for (int page = 0; page < kPages; ++page) sum += memory[page * 4096];
    munmap(memory, kPages * 4096);
  }
  return sum;
}

static uint64_t RunMmap(uint64_t iterations) {
  for (uint64_t i = 0; i < iterations; ++i) {
    uint8_t* memory = mmap(NULL, 16 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) Die("mmap");
    memory[0] = 1;
    if (mprotect(memory, 4096, PROT_READ)) Die("mprotect");
    munmap(memory, 16 * 4096);
  }
  return iterations;
}

static uint64_t RunFork(uint64_t iterations) {
  for (uint64_t i = 0; i < iterations; ++i) {
    const pid_t child = fork();
    if (child < 0) Die("fork");
    if (child == 0) _exit(3);
    WaitFor(child, 3);
  }
  return iterations;
}

static void ExecOnce(void) {
  const pid_t child = vfork();
  if (child < 0) Die("vfork");
  if (child == 0) {
    execl("/proc/self/exe", "guest-bench", "--nothing", (char*)NULL);
    _exit(1);
  }
  WaitFor(child, 7);
}

static uint64_t RunExec(uint64_t iterations) {
  for (uint64_t i = 0; i < iterations; ++i) ExecOnce();
  return iterations;
}

static uint64_t RunPipe(uint64_t iterations) {
  int there[2], back[2];
  if (pipe(there) || pipe(back)) Die("pipe");
  const pid_t child = fork();
  if (child < 0) Die("fork");
  if (child == 0) {
    uint64_t value;
    close(there[1]);
    while (read(there[0], &value, sizeof value) == sizeof value) {
      value = value * 3 + 1;
      if (write(back[1], &value, sizeof value) != sizeof value) _exit(1);
    }
    _exit(0);
  }
  close(there[0]);
  close(back[1]);
  uint64_t value = 1;
  for (uint64_t i = 0; i < iterations; ++i) {
    if (write(there[1], &value, sizeof value) != sizeof value) Die("write");
    if (read(back[0], &value, sizeof value) != sizeof value) Die("read");
  }
  close(there[1]);
  close(back[0]);
  WaitFor(child, 0);
  return value;
}

// A token goes round a ring of processes: each switch is to a process whose code and data were not the last to run.
static uint64_t RunContextSwitch(uint64_t iterations) {
  enum { kProcesses = 8 };
  int ends[kProcesses][2];
  pid_t children[kProcesses];
  for (int i = 0; i < kProcesses; ++i) {
    if (pipe(ends[i])) Die("pipe");
  }
  for (int i = 1; i < kProcesses; ++i) {
    children[i] = fork();
    if (children[i] < 0) Die("fork");
    if (children[i] > 0) continue;
    for (uint64_t n = 0, token; n < iterations; ++n) {
      if (read(ends[i - 1][0], &token, sizeof token) != sizeof token) _exit(1);
      token = token * 3 + (uint64_t)i;
      if (write(ends[i][1], &token, sizeof token) != sizeof token) _exit(1);
    }
    _exit(0);
  }
  uint64_t token = 1;
  for (uint64_t n = 0; n < iterations; ++n) {
    if (write(ends[0][1], &token, sizeof token) != sizeof token) Die("write");
    if (read(ends[kProcesses - 1][0], &token, sizeof token) != sizeof token) Die("read");
  }
  for (int i = 0; i < kProcesses; ++i) {
    if (i) WaitFor(children[i], 0);
    close(ends[i][0]);
    close(ends[i][1]);
  }
  return token;
}

static uint64_t RunPipeBulk(uint64_t iterations) {
  int ends[2];
  static uint8_t buffer[65536];
  if (pipe(ends)) Die("pipe");
  const pid_t child = fork();
  if (child < 0) Die("fork");
  if (child == 0) {
    close(ends[1]);
    while (read(ends[0], buffer, sizeof buffer) > 0) {
    }
    _exit(0);
  }
  close(ends[0]);
  memset(buffer, 'x', sizeof buffer);
  for (uint64_t i = 0; i < iterations; ++i) {
    for (size_t done = 0; done < sizeof buffer;) {
      const ssize_t n = write(ends[1], buffer + done, sizeof buffer - done);
      if (n <= 0) Die("write");
      done += (size_t)n;
    }
  }
  close(ends[1]);
  WaitFor(child, 0);
  return iterations;
}

static uint64_t RunYield(uint64_t iterations) {
  const pid_t child = fork();
  if (child < 0) Die("fork");
  if (child == 0) {
    for (uint64_t i = 0; i < iterations; ++i) sched_yield();
    _exit(0);
  }
  for (uint64_t i = 0; i < iterations; ++i) sched_yield();
  WaitFor(child, 0);
  return iterations;
}

static volatile uint64_t signals_seen;

static void OnSignal(int number) { signals_seen += (uint64_t)number; }

static uint64_t RunSignal(uint64_t iterations) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = OnSignal;
  if (sigaction(SIGUSR1, &action, NULL)) Die("sigaction");
  signals_seen = 0;
  const pid_t self = getpid();
  for (uint64_t i = 0; i < iterations; ++i) kill(self, SIGUSR1);
  return signals_seen;
}

static void* ThreadBody(void* argument) { return (void*)((uintptr_t)argument * 2 + 1); }

static uint64_t RunThread(uint64_t iterations) {
  uint64_t sum = 0;
  for (uint64_t i = 0; i < iterations; ++i) {
    pthread_t thread;
    void* result;
    if (pthread_create(&thread, NULL, ThreadBody, (void*)(uintptr_t)i)) Die("pthread_create");
    if (pthread_join(thread, &result)) Die("pthread_join");
    sum += (uintptr_t)result;
  }
  return sum;
}

struct PingPong {
  pthread_mutex_t mutex;
  pthread_cond_t changed;
  uint64_t turn, end;
};

static void* Ponger(void* argument) {
  struct PingPong* game = argument;
  pthread_mutex_lock(&game->mutex);
  while (game->turn < game->end) {
    while (!(game->turn & 1)) pthread_cond_wait(&game->changed, &game->mutex);
    ++game->turn;
    pthread_cond_signal(&game->changed);
  }
  pthread_mutex_unlock(&game->mutex);
  return NULL;
}

static uint64_t RunFutex(uint64_t iterations) {
  struct PingPong game = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, iterations * 2};
  pthread_t thread;
  if (pthread_create(&thread, NULL, Ponger, &game)) Die("pthread_create");
  pthread_mutex_lock(&game.mutex);
  while (game.turn < game.end) {
    while (game.turn & 1) pthread_cond_wait(&game.changed, &game.mutex);
    if (game.turn >= game.end) break;
    ++game.turn;
    pthread_cond_signal(&game.changed);
  }
  pthread_mutex_unlock(&game.mutex);
  pthread_join(thread, NULL);
  return game.turn;
}

static uint64_t RunFile(uint64_t iterations) {
  static uint8_t buffer[4096];
  char name[] = "/tmp/guest-bench-XXXXXX";
  const int file = mkstemp(name);
  if (file < 0) Die(name);
  unlink(name);
  uint64_t sum = 0;
  for (uint64_t i = 0; i < iterations; ++i) {
    memset(buffer, (int)i, sizeof buffer);
    if (pwrite(file, buffer, sizeof buffer, (off_t)(i % 64) * 4096) != sizeof buffer) Die("pwrite");
    if (pread(file, buffer, sizeof buffer, (off_t)((i * 7) % (i % 64 + 1)) * 4096) != sizeof buffer) Die("pread");
    sum += buffer[17];
  }
  close(file);
  return sum;
}

const struct Bench kSystemBenches[] = {
    {"syscall", RunSyscall, 1500000},
    {"page-fault", RunPageFault, 50000},
    {"mmap-munmap", RunMmap, 6000},
    {"fork", RunFork, 500},
    {"exec", RunExec, 300},
    {"pipe-round-trip", RunPipe, 8000},
    {"context-switch-8", RunContextSwitch, 1500},
    {"pipe-bulk", RunPipeBulk, 1000},
    {"yield", RunYield, 20000},
    {"signal", RunSignal, 25000},
    {"thread-create", RunThread, 3000},
    {"futex", RunFutex, 25000},
    {"file", RunFile, 30000},
    {0, 0, 0},
};
