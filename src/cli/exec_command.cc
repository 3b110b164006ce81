#include "cli/exec_command.h"

#include <fmt/core.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>

#include "base/write_all.h"
#include "cli/commands.h"
#include "cli/guest_session.h"
#include "cli/run_options.h"

namespace nacre::cli {

namespace {

/// As env(1) and others have it, so that it is not the program's.
constexpr int kExitNotRun = 125;
constexpr std::string_view kHelp =
    "Usage: nacre exec [--timeout TIME] [--wait TIME] [--env NAME=VALUE] VM [--] COMMAND [ARGUMENT...]\n\n"
    "Runs a program in a running VM by its guest agent (Debian's package qemu-guest-agent). What it writes is shown "
    "when\n"
    "it has ended, 16 MiB of each output at most. Standard input is passed on where it is a file or a pipe.\n\n"
    "  --timeout TIME    end it after this time (30, 500ms, 2m), with status 124\n"
    "  --wait TIME       wait so long for the VM and its agent (0)\n"
    "  --env NAME=VALUE  in the program's environment, which is then nothing else (repeatable)\n\n"
    "Exit status: the program's, 128 + N where signal N ended it, 124 the time is over, 125 it was not run.\n"
    "VM is a VM's name, or the path of the socket of `nacre run --control PATH` (with a '/').\n";

std::atomic<bool> interrupted = false;

struct ExecOptions {
  std::string vm;
  GuestSession::Program program;
  std::chrono::milliseconds wait{0};
  bool help = false;
};

Result<ExecOptions> Parse(std::span<const std::string_view> words) {
  ExecOptions options;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string_view word = words[i];
    if (word == "--help" || word == "-h") {
      options.help = true;
      return options;
    }
    if (word == "--timeout" || word == "--wait" || word == "--env") {
      if (++i == words.size()) return Fail("{} needs a value", word);
      if (word == "--env") {
        if (words[i].find('=') == std::string_view::npos) return Fail("--env {}: give NAME=VALUE", words[i]);
        options.program.environment.emplace_back(words[i]);
        continue;
      }
      const auto time = ParseDurationMs(words[i]);
      if (!time) return Fail("{} {}: {}", word, words[i], time.error().message);
      if (word == "--wait")
        options.wait = std::chrono::milliseconds(*time);
      else
        options.program.deadline = GuestSession::Clock::now() + std::chrono::milliseconds(*time);
      continue;
    }
    const bool ends = word == "--";
    if (word.starts_with("-") && !ends) return Fail("unknown option {}; the program's come behind --", word);
    if (options.vm.empty() && !ends) {
      options.vm = word;
      continue;
    }
    for (const std::string_view rest : words.subspan(i + (ends ? 1 : 0))) options.program.words.emplace_back(rest);
    break;
  }
  if (options.vm.empty() || options.program.words.empty()) return Fail("give VM -- COMMAND [ARGUMENT...]");
  return options;
}

bool HasInput() {
  struct stat status {};
  if (fstat(STDIN_FILENO, &status) != 0) return false;
  return S_ISREG(status.st_mode) || S_ISFIFO(status.st_mode) || S_ISSOCK(status.st_mode);
}

Result<std::string> ReadInput() {
  std::string piece(64 * 1024, '\0');
  for (;;) {
    const ssize_t got = read(STDIN_FILENO, piece.data(), piece.size());
    if (got < 0 && errno == EINTR && !interrupted) continue;
    if (got < 0) return FailErrno("standard input");
    piece.resize(static_cast<size_t>(got));
    return piece;
  }
}

int NotRun(const Error& error) {
  fmt::print(stderr, "nacre: {}\n", error.message);
  return kExitNotRun;
}

void CatchSignals() {
  struct sigaction action {};
  action.sa_handler = [](int) { interrupted = true; };
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) sigaction(number, &action, nullptr);
  signal(SIGPIPE, SIG_IGN);
}

}  // namespace

int ExecCommand(std::span<const std::string_view> words) {
  auto options = Parse(words);
  if (!options) {
    fmt::print(stderr, "nacre: `nacre exec`: {}\nTry `nacre exec --help`.\n", options.error().message);
    return kExitUsage;
  }
  if (options->help) {
    fmt::print("{}", kHelp);
    return kExitDone;
  }
  CatchSignals();
  auto session = GuestSession::Open(options->vm, options->wait);
  if (!session) return NotRun(session.error());
  if (HasInput()) options->program.input = ReadInput;
  const std::function<bool()> stopped = [] { return interrupted.load(); };
  options->program.interrupted = &stopped;
  const auto ended = session->Run(options->program);
  if (!ended) return NotRun(ended.error());
  const Status written = WriteAll(STDOUT_FILENO, ended->out);
  static_cast<void>(WriteAll(STDERR_FILENO, ended->err));
  if (!written) return NotRun(Context(written.error(), "standard output").error());
  if (ended->truncated) fmt::print(stderr, "nacre: the guest agent kept only the first 16 MiB of an output\n");
  switch (ended->how) {
    case GuestSession::Ended::How::kExited:
      return ended->number & 0xff;
    case GuestSession::Ended::How::kSignalled:
      return 128 + (ended->number & 0x7f);
    case GuestSession::Ended::How::kTimedOut:
      fmt::print(stderr, "nacre: the time given by --timeout is over\n");
      return kExitTimeout;
    case GuestSession::Ended::How::kInterrupted:
      break;
  }
  return 128 + SIGINT;
}

}  // namespace nacre::cli
