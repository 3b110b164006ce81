// `nacre console` and `nacre logs`.

#include <fcntl.h>
#include <fmt/core.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "base/fd.h"
#include "base/write_all.h"
#include "cli/commands.h"
#include "cli/terminal.h"
#include "cli/vm_commands_parts.h"
#include "control/unix_socket.h"
#include "lifecycle/vm_lock.h"
#include "lifecycle/vm_log.h"
#include "lifecycle/vm_status.h"
#include "machine/fd_console.h"

namespace nacre::cli {

namespace {

using lifecycle::VmPaths;

/// This terminal, or pipes, at one end; the VM's console at the other.
class Attachment {
 public:
  Attachment(Fd console, bool terminal) : console_(std::move(console)), terminal_(terminal) {}

  Status Run() {
    sigset_t set;
    sigemptyset(&set);
    for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGCONT}) sigaddset(&set, number);
    pthread_sigmask(SIG_BLOCK, &set, nullptr);
    signal(SIGPIPE, SIG_IGN);
    const Fd signals(signalfd(-1, &set, SFD_CLOEXEC));
    if (!signals.valid()) return FailErrno("signals");
    while (!left_) {
      pollfd fds[] = {
          {signals.get(), POLLIN, 0}, {console_.get(), POLLIN, 0}, {input_ended_ ? -1 : STDIN_FILENO, POLLIN, 0}};
      if (poll(fds, 3, -1) < 0) continue;
      if (fds[0].revents) TakeSignal(signals.get());
      if (fds[1].revents && !ShowOutput()) return {};
      if (fds[2].revents) SendInput();
    }
    return {};
  }
  bool left() const { return left_; }

 private:
  void TakeSignal(int signals) {
    signalfd_siginfo info{};
    if (read(signals, &info, sizeof(info)) != sizeof(info)) return;
    if (info.ssi_signo == SIGCONT)
      RawTerminal::Reenter();
    else
      left_ = true;
  }
  /// False: the VM's end is closed.
  bool ShowOutput() {
    char bytes[16 * 1024];
    const ssize_t got = recv(console_.get(), bytes, sizeof(bytes), 0);
    if (got < 0 && errno == EINTR) return true;
    if (got <= 0) return false;
    if (!WriteAll(STDOUT_FILENO, {bytes, static_cast<size_t>(got)})) left_ = true;
    return true;
  }
  void SendInput() {
    char bytes[4096];
    const ssize_t got = read(STDIN_FILENO, bytes, sizeof(bytes));
    if (got < 0 && errno == EINTR) return;
    if (got <= 0) {
      input_ended_ = true;
      shutdown(console_.get(), SHUT_WR);
      return;
    }
    std::string_view text(bytes, static_cast<size_t>(got));
    if (terminal_) {
      if (const size_t key = text.find(static_cast<char>(machine::FdConsole::kLeaveKey)); key != text.npos) {
        left_ = true;
        text = text.substr(0, key);
      }
    }
    // The VM's end takes what it can; a guest that reads nothing must not keep the user from leaving.
    while (!text.empty()) {
      const ssize_t sent = send(console_.get(), text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent >= 0) {
        text.remove_prefix(static_cast<size_t>(sent));
      } else if (errno == EAGAIN && !terminal_) {
        pollfd fds[] = {{console_.get(), POLLIN | POLLOUT, 0}};
        poll(fds, 1, -1);
        if ((fds[0].revents & POLLIN) && !ShowOutput()) return;
      } else if (errno != EINTR) {
        return;
      }
    }
  }

  Fd console_;
  const bool terminal_;
  bool input_ended_ = false, left_ = false;
};

/// Copies a file from `at` on to standard output; where it ends.
Result<off_t> Print(const Fd& file, off_t at) {
  char bytes[64 * 1024];
  for (;;) {
    const ssize_t got = pread(file.get(), bytes, sizeof(bytes), at);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return FailErrno("the log");
    if (got == 0) return at;
    if (!WriteAll(STDOUT_FILENO, {bytes, static_cast<size_t>(got)})) return FailErrno("standard output");
    at += got;
  }
}

ino_t InodeOf(const std::filesystem::path& path) {
  struct stat info {};
  return stat(path.c_str(), &info) == 0 ? info.st_ino : 0;
}

Status PrintLog(const VmPaths& vm, const std::filesystem::path& path, bool follow) {
  constexpr int kLookAgainMs = 200;
  if (const Fd older(open(lifecycle::OlderLog(path).c_str(), O_RDONLY | O_CLOEXEC)); older.valid())
    NACRE_TRY(Print(older, 0));
  for (;;) {
    Fd file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    struct stat info {};
    if (file.valid() && fstat(file.get(), &info) != 0) return FailErrno("{}", path.string());
    off_t at = 0;
    for (bool same = true; same;) {
      // Asked before the last look, so that nothing is missed.
      const bool runs = lifecycle::HolderOf(vm.lock()).has_value();
      same = !file.valid() || InodeOf(path) == info.st_ino;
      if (file.valid()) at = NACRE_TRY(Print(file, at));
      if (same && (!follow || !runs)) return {};
      if (same) poll(nullptr, 0, kLookAgainMs);
      if (!file.valid()) break;
    }
  }
}

}  // namespace

int AttachConsole(const VmPaths& vm) {
  auto socket = control::ConnectSocket(vm.console().string());
  if (!socket) {
    const auto holder = lifecycle::HolderOf(vm.lock());
    if (!holder) return VmFailed({fmt::format("{} does not run; `nacre start {}`", vm.name(), vm.name()), 0});
    return VmFailed(
        {fmt::format("{}: its console is where it was started by `nacre run` (process {})", vm.name(), holder->pid),
         0});
  }
  RawTerminal::InstallHandlers();
  auto terminal = RawTerminal::Enter();
  if (!terminal) return VmFailed(terminal.error());
  const bool is_terminal = *terminal != nullptr;
  if (is_terminal) fmt::print(stderr, "The console of {}. Ctrl-] leaves.\r\n", vm.name());
  Attachment attachment(std::move(*socket), is_terminal);
  const Status status = attachment.Run();
  terminal->reset();
  if (!status) return VmFailed(status.error());
  if (!is_terminal) return kExitDone;
  if (attachment.left())
    fmt::print(stderr, "\n{} goes on.\n", vm.name());
  else
    fmt::print(stderr, "\n{} has ended.\n", vm.name());
  return kExitDone;
}

int ConsoleCommand(const VmWords& words) {
  const auto home = lifecycle::Home::Find();
  if (!home) return VmFailed(home.error());
  const auto vm = home->FindVm(words.plain[0]);
  return vm ? AttachConsole(*vm) : VmFailed(vm.error());
}

int LogsCommand(const VmWords& words) {
  const auto home = lifecycle::Home::Find();
  if (!home) return VmFailed(home.error());
  const auto vm = home->FindVm(words.plain[0]);
  if (!vm) return VmFailed(vm.error());
  const Status printed =
      PrintLog(*vm, words.has("--messages") ? vm->log() : vm->console_log(), words.has("-f") || words.has("--follow"));
  return printed ? kExitDone : VmFailed(printed.error());
}

}  // namespace nacre::cli
