// The first process of the guest that bench/measure/programs.py boots (init=/run/overlay/bench/runner): runs the
// programs of a list, each some times, and powers the machine off. It prints, one line each:
//   program NAME CHECKSUM WALL_NS USER_NS SYSTEM_NS STATUS     CHECKSUM: of the program's standard output
//   warm NAME                                                  after the run that is not measured
//   programs: end STATUS NANOSECONDS                           since `programs: start`, by the guest's clock
// From the kernel's command line: bench_list= (a file beside the runner), bench_repeat= (measured runs of each, after
// one that warms up), bench_only= (names with commas between them). A list holds lines `NAME COMMAND`; NAME `-` is a
// preparation, run once and not timed; NAME `-OTHER` is one for the program OTHER. `#` begins a comment line.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static uint64_t start_ns;

struct Result {
  uint64_t checksum, wall_ns, user_ns, system_ns;
  int status;  // exit status; 128 + signal
};

static uint64_t Now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static void __attribute__((noreturn)) Leave(int status) {
  printf("programs: end %d %" PRIu64 "\n", status, Now() - start_ns);
  fflush(stdout);
  sync();
  reboot(RB_POWER_OFF);
  _exit(1);
}

static void __attribute__((noreturn)) Die(const char* what) {
  printf("programs: %s: %s\n", what, strerror(errno));
  Leave(1);
}

static void Mount(const char* type, const char* where) {
  mkdir(where, 0755);
  if (mount(type, where, type, 0, NULL) && errno != EBUSY) Die(where);
}

static uint64_t Nanoseconds(struct timeval time) {
  return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_usec * 1000;
}

static int Open(const char* path, int flags) {
  const int file = open(path, flags | O_CLOEXEC, 0644);
  if (file < 0) Die(path);
  return file;
}

static struct Result RunShell(const char* command) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC)) Die("pipe");
  const int errors = Open("/tmp/errors", O_WRONLY | O_CREAT | O_TRUNC), nothing = Open("/dev/null", O_RDONLY);
  const uint64_t start = Now();
  const pid_t child = vfork();
  if (child < 0) Die("vfork");
  if (child == 0) {
    dup2(nothing, 0);
    dup2(ends[1], 1);
    dup2(errors, 2);
    execl("/bin/sh", "sh", "-e", "-c", command, (char*)NULL);
    _exit(127);
  }
  close(ends[1]);
  struct Result result = {.checksum = 14695981039346656037ULL};  // FNV-1a
  uint8_t buffer[65536];
  for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;) {
    for (ssize_t i = 0; i < n; ++i) result.checksum = (result.checksum ^ buffer[i]) * 1099511628211ULL;
  }
  int status;
  struct rusage usage;
  while (wait4(child, &status, 0, &usage) != child) {
  }
  result.wall_ns = Now() - start;
  result.user_ns = Nanoseconds(usage.ru_utime);
  result.system_ns = Nanoseconds(usage.ru_stime);
  result.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  close(ends[0]);
  close(errors);
  close(nothing);
  while (waitpid(-1, NULL, WNOHANG) > 0) {  // orphans that came to this process
  }
  return result;
}

static void ShowErrors(void) {
  char text[4000];
  const int file = Open("/tmp/errors", O_RDONLY);
  const ssize_t n = read(file, text, sizeof text);
  if (n > 0) printf("%.*s\n", (int)n, text);
  close(file);
}

static void RunProgram(const char* name, const char* command, int repeats) {
  for (int i = 0; i <= repeats; ++i) {
    const struct Result r = RunShell(command);
    const int bad = r.status != 0;
    if (bad) ShowErrors();
    if (i > 0 || bad || repeats == 0) {
      printf("program %s %016" PRIx64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %d\n", name, r.checksum, r.wall_ns,
             r.user_ns, r.system_ns, r.status);
      fflush(stdout);
    }
    if (i == 0 && repeats > 0) {
      printf("warm %s\n", name);
      fflush(stdout);
    }
    if (bad) return;  // the others still tell something
  }
}

static int Wanted(const char* names, const char* name) {
  const size_t length = strlen(name);
  for (const char* at = names; at && *at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) {
    if (strncmp(at, name, length) == 0 && (at[length] == ',' || at[length] == 0)) return 1;
  }
  return !names || !*names;
}

static void RunList(FILE* list, const char* only, int repeats) {
  char line[4096];
  while (fgets(line, sizeof line, list)) {
    line[strcspn(line, "\n")] = 0;
    char* command = strchr(line, ' ');
    if (line[0] == '#' || !command) continue;
    *command++ = 0;
    const char* name = line[0] == '-' ? line + 1 : line;
    if (*name && !Wanted(only, name)) continue;
    if (line[0] != '-') {
      RunProgram(name, command, repeats);
      continue;
    }
    const struct Result r = RunShell(command);
    if (r.status == 0) continue;
    ShowErrors();
    printf("programs: a preparation ended with status %d: %s\n", r.status, command);
    Leave(1);
  }
}

int main(void) {
  Mount("proc", "/proc");
  Mount("sysfs", "/sys");
  Mount("tmpfs", "/tmp");
  mkdir("/dev/pts", 0755);
  mount("devpts", "/dev/pts", "devpts", 0, NULL);
  mkdir("/dev/shm", 0755);
  mount("tmpfs", "/dev/shm", "tmpfs", 0, NULL);
  setenv("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", 1);
  setenv("HOME", "/root", 1);
  setenv("LC_ALL", "C", 1);
  setenv("B", "/run/overlay/bench", 1);
  mkdir("/var/tmp/bench", 0755);
  if (chdir("/var/tmp/bench")) Die("/var/tmp/bench");
  char path[256];
  snprintf(path, sizeof path, "/run/overlay/bench/%s", getenv("bench_list") ? getenv("bench_list") : "programs.list");
  FILE* list = fopen(path, "re");
  if (!list) Die(path);
  start_ns = Now();
  printf("programs: start, %ld CPUs\n", sysconf(_SC_NPROCESSORS_ONLN));
  fflush(stdout);
  RunList(list, getenv("bench_only"), getenv("bench_repeat") ? atoi(getenv("bench_repeat")) : 2);
  Leave(0);
}
