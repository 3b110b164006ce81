// `nacre clone`.

#include <fmt/core.h>

#include <charconv>
#include <chrono>
#include <deque>
#include <mutex>
#include <thread>

#include "cli/commands.h"
#include "cli/guest_session.h"
#include "cli/vm_commands_parts.h"
#include "cli/vm_process.h"
#include "control/client.h"
#include "lifecycle/vm_clone.h"
#include "lifecycle/vm_create.h"
#include "lifecycle/vm_lock.h"
#include "lifecycle/vm_toml.h"

namespace nacre::cli {

namespace {

using lifecycle::Home;
using lifecycle::VmPaths;
using Clock = std::chrono::steady_clock;

/// Large memories are written to slow disks.
constexpr std::chrono::minutes kForkPatience{10};
/// Its agent goes on from where it was.
constexpr std::chrono::seconds kAgentPatience{20};
/// More at a time only wait for each other.
constexpr size_t kStarters = 4;

/// What a guest is told of being a clone: its name, then its cards' addresses, before and now.
constexpr std::string_view kHook = R"hook(
if [ -x /etc/nacre/clone-hook ]; then exec /etc/nacre/clone-hook "$@"; fi
echo "$1" >/proc/sys/kernel/hostname
[ ! -e /etc/hostname ] || echo "$1" >/etc/hostname
shift
while [ $# -ge 2 ]; do
  for card in /sys/class/net/*; do
    [ "$(cat "$card/address")" = "$1" ] || continue
    name=${card##*/}
    ip link set dev "$name" address "$2" 2>/dev/null && continue
    ip link set dev "$name" down
    ip link set dev "$name" address "$2"
    ip link set dev "$name" up
  done
  shift 2
done
)hook";

std::string Text(const network::MacAddress& mac) {
  std::string text;
  for (const uint8_t byte : mac) text += fmt::format("{}{:02x}", text.empty() ? "" : ":", byte);
  return text;
}

/// Clones that are being started, by some threads.
class Starters {
 public:
  /// An agent that answers in the first VM does so in its clones.
  Starters(const Home& home, const VmPaths& source)
      : home_(home),
        source_(source),
        has_agent_(GuestSession::Open(source.control().string(), std::chrono::milliseconds(0)).has_value()) {}
  Starters(const Starters&) = delete;
  Starters& operator=(const Starters&) = delete;
  ~Starters() { static_cast<void>(Wait()); }

  void Add(const VmPaths& vm, const std::filesystem::path& seed) {
    const std::lock_guard lock(mutex_);
    waiting_.emplace_back(vm, seed.string());
    if (threads_.size() < kStarters) threads_.emplace_back([this] { Work(); });
  }
  /// All that were added run, or are removed again. The first error.
  Status Wait() {
    // A thread ends when nothing waits, so the last ones may leave something for nobody but this one.
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
    Work();
    return status_;
  }

 private:
  void Work() {
    for (;;) {
      std::unique_lock lock(mutex_);
      if (waiting_.empty()) return;
      const auto [vm, seed] = std::move(waiting_.front());
      waiting_.pop_front();
      lock.unlock();
      Status started = StartVm(home_, vm, seed);
      if (started) {
        if (has_agent_) TellGuest(vm);
      } else if (const Status removed = lifecycle::RemoveVm(home_, vm); !removed) {
        started = Context(started.error(), "{}", removed.error().message);
      }
      lock.lock();
      if (started) fmt::print("{}\n", vm.name());
      if (status_ && !started) status_ = std::move(started);
    }
  }

  /// By its guest agent. A guest without one keeps its host name.
  void TellGuest(const VmPaths& vm) const {
    const auto then = lifecycle::ReadVmToml(source_.toml().string()), now = lifecycle::ReadVmToml(vm.toml().string());
    if (!then || !now || !now->machine.guest_agent) return;
    GuestSession::Program program{.words = {"/bin/sh", "-c", std::string(kHook), "clone-hook", vm.name()}};
    for (size_t i = 0; i < now->machine.networks.size() && i < then->machine.networks.size(); ++i)
      if (then->machine.networks[i].mac && now->machine.networks[i].mac)
        for (const auto* network : {&then->machine.networks[i], &now->machine.networks[i]})
          program.words.push_back(Text(*network->mac));
    program.deadline = Clock::now() + std::chrono::minutes(1);
    auto session = GuestSession::Open(vm.control().string(), kAgentPatience);
    const auto ended = session ? session->Run(program) : std::unexpected(session.error());
    if (!ended)
      fmt::print(stderr, "nacre: {}: its guest was not told its name: {}\n", vm.name(), ended.error().message);
    else if (ended->how != GuestSession::Ended::How::kExited || ended->number != 0)
      fmt::print(stderr, "nacre: {}: what its guest was to run failed: {}\n", vm.name(), ended->err);
  }

  const Home& home_;
  const VmPaths& source_;
  const bool has_agent_;
  std::mutex mutex_;
  std::deque<std::pair<VmPaths, std::string>> waiting_;
  std::vector<std::thread> threads_;
  Status status_;
};

Status CloneLive(const Home& home, const VmPaths& vm, const std::vector<std::string>& names) {
  if (!lifecycle::HolderOf(vm.lock())) return Fail("{} does not run: clone it without --live", vm.name());
  Starters starters(home, vm);
  const auto fork = [&](const std::filesystem::path& seed) -> Status {
    auto client = NACRE_TRY(control::Client::Connect(vm.control()));
    const auto done = client.Call("vm.fork", {{"path", seed.string()}}, kForkPatience);
    if (!done) return std::unexpected(done.error());
    fmt::print(stderr, "{}: the guest stood still for {:.1f} ms\n", vm.name(), done->value("pause_us", 0.0) / 1000);
    return {};
  };
  return lifecycle::CloneRunningVm(
      home, vm, names,
      {.fork = fork,
       .start = [&](const VmPaths& clone, const std::filesystem::path& seed) { starters.Add(clone, seed); },
       .wait = [&] { return starters.Wait(); }});
}

}  // namespace

int CloneCommand(const VmWords& words) {
  constexpr unsigned kMost = 1000;
  std::vector<std::string> names{words.plain[1]};
  if (words.has("--count")) {
    const std::string value = words.Value("--count");
    unsigned count = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), count);
    if (error != std::errc() || end != value.data() + value.size() || count == 0 || count > kMost)
      return VmWrongUsage("clone", fmt::format("--count {}: give a number from 1 to {}", value, kMost));
    names.clear();
    for (unsigned i = 1; i <= count; ++i) names.push_back(fmt::format("{}-{}", words.plain[1], i));
  }
  const auto home = lifecycle::Home::Find();
  if (!home) return VmFailed(home.error());
  const auto vm = home->FindVm(words.plain[0]);
  if (!vm) return VmFailed(vm.error());
  const Status cloned =
      words.has("--live")
          ? CloneLive(*home, *vm, names)
          : lifecycle::CloneVm(*home, *vm, names, [](const std::string& name) { fmt::print("{}\n", name); });
  return cloned ? kExitDone : VmFailed(cloned.error());
}

}  // namespace nacre::cli
