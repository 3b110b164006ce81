#include "cli/stop_signals.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "cli/terminal.h"

namespace nacre::cli {

namespace {

sigset_t SetOf(std::initializer_list<int> numbers) {
  sigset_t set;
  sigemptyset(&set);
  for (const int number : numbers) sigaddset(&set, number);
  return set;
}

sigset_t AllSignals() { return SetOf({SIGINT, SIGTERM, SIGHUP, SIGCONT, SIGWINCH}); }

}  // namespace

void PassTerminalSize(machine::Machine& machine) {
  if (const auto size = RawTerminal::CurrentSize()) machine.ResizeConsole(size->columns, size->rows);
}

void StopSignals::Block() {
  const sigset_t set = AllSignals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  signal(SIGPIPE, SIG_IGN);
}

Result<std::unique_ptr<StopSignals>> StopSignals::Watch(machine::Machine& machine) {
  std::unique_ptr<StopSignals> watch(new StopSignals(machine));
  const sigset_t set = AllSignals();
  watch->signals_ = Fd(signalfd(-1, &set, SFD_CLOEXEC));
  watch->end_ = Fd(eventfd(0, EFD_CLOEXEC));
  if (!watch->signals_.valid() || !watch->end_.valid()) return FailErrno("signals");
  watch->thread_ = std::thread([self = watch.get()] { self->Loop(); });
  return watch;
}

StopSignals::~StopSignals() {
  if (!thread_.joinable()) return;
  eventfd_write(end_.get(), 1);
  thread_.join();
}

void StopSignals::Loop() {
  for (;;) {
    pollfd fds[] = {{signals_.get(), POLLIN, 0}, {end_.get(), POLLIN, 0}};
    if (poll(fds, 2, -1) < 0) continue;
    if (fds[1].revents) return;
    signalfd_siginfo info{};
    if (read(signals_.get(), &info, sizeof(info)) != sizeof(info)) continue;
    if (info.ssi_signo == SIGCONT) {
      RawTerminal::Reenter();
      continue;
    }
    if (info.ssi_signo == SIGWINCH) {
      PassTerminalSize(machine_);
      continue;
    }
    received_ = static_cast<int>(info.ssi_signo);
    machine_.Stop();
  }
}

bool StopSignalWithin(int64_t timeout_ms) {
  const sigset_t set = SetOf({SIGINT, SIGTERM, SIGHUP});
  const timespec time{timeout_ms / 1000, timeout_ms % 1000 * 1'000'000};
  return sigtimedwait(&set, nullptr, &time) > 0;
}

}  // namespace nacre::cli
