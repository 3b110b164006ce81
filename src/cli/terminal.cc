#include "cli/terminal.h"

#include <signal.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>

namespace nacre::cli {

namespace {

// Read by signal handlers: written before `active` is set.
termios saved_mode;
termios raw_mode;
std::atomic<bool> active = false;

void Restore() {
  if (active.exchange(false)) tcsetattr(STDIN_FILENO, TCSANOW, &saved_mode);
}

/// Resets the terminal and dies of the same signal, so that status and core are what they would have been.
void OnFatalSignal(int signal) {
  Restore();
  struct sigaction action {};
  action.sa_handler = SIG_DFL;
  sigaction(signal, &action, nullptr);
  raise(signal);
}

}  // namespace

void RawTerminal::InstallHandlers() {
  std::atexit(Restore);
  struct sigaction action {};
  action.sa_handler = OnFatalSignal;
  action.sa_flags = SA_ONSTACK | SA_NODEFER;
  sigemptyset(&action.sa_mask);
  for (const int signal : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGSYS, SIGTRAP, SIGQUIT, SIGXCPU})
    sigaction(signal, &action, nullptr);
}

bool RawTerminal::IsTerminal() { return isatty(STDIN_FILENO) == 1; }

bool RawTerminal::IsForeground() { return tcgetpgrp(STDIN_FILENO) == getpgrp(); }

std::optional<RawTerminal::Size> RawTerminal::CurrentSize() {
  winsize size{};
  if (ioctl(STDIN_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0 || size.ws_row == 0) return std::nullopt;
  return Size{size.ws_col, size.ws_row};
}

Result<std::unique_ptr<RawTerminal>> RawTerminal::Enter() {
  if (!IsTerminal() || !IsForeground()) return nullptr;
  if (tcgetattr(STDIN_FILENO, &saved_mode) != 0) return FailErrno("the terminal's mode");
  raw_mode = saved_mode;
  cfmakeraw(&raw_mode);
  raw_mode.c_cc[VMIN] = 1;
  raw_mode.c_cc[VTIME] = 0;
  active = true;
  if (tcsetattr(STDIN_FILENO, TCSANOW, &raw_mode) != 0) {
    active = false;
    return FailErrno("the terminal's raw mode");
  }
  return std::unique_ptr<RawTerminal>(new RawTerminal);
}

RawTerminal::~RawTerminal() { Restore(); }

void RawTerminal::Reenter() {
  if (active) tcsetattr(STDIN_FILENO, TCSANOW, &raw_mode);
}

}  // namespace nacre::cli
