#include "engine/host_faults.h"

#include <sys/auxv.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <utility>

#include "base/bits.h"

#ifndef AT_MINSIGSTKSZ
#define AT_MINSIGSTKSZ 51
#endif

namespace nacre::engine {
namespace {

constexpr std::array kSignals = {SIGFPE, SIGSEGV, SIGBUS, SIGILL};

// A slot is free while end is 0. It is published by storing `end` last and withdrawn by clearing it first, so that a
// handler on another thread never sees half of one.
struct Slot {
  std::atomic<uintptr_t> end = 0;
  std::atomic<uintptr_t> begin = 0;
  std::atomic<HostFaultHandler*> handler = nullptr;
};

// Process-wide because signal dispositions are.
struct Registry {
  std::mutex mutex;
  bool installed = false;
  std::array<struct sigaction, kSignals.size()> previous = {};
  std::atomic<int> high_water = 0;
  std::array<Slot, HostFaultRange::kMaxRanges> slots;
};

constinit Registry registry;

HostFaultHandler* FindHandler(uintptr_t pc) {
  const int count = registry.high_water.load(std::memory_order_acquire);
  for (int i = 0; i < count; ++i) {
    const Slot& slot = registry.slots[static_cast<size_t>(i)];
    const uintptr_t end = slot.end.load(std::memory_order_acquire);
    if (pc >= end || pc < slot.begin.load(std::memory_order_acquire)) continue;
    HostFaultHandler* handler = slot.handler.load(std::memory_order_acquire);
    if (slot.end.load(std::memory_order_acquire) == end) return handler;
  }
  return nullptr;
}

void PassOn(int signal, siginfo_t* info, void* context) {
  const auto index = static_cast<size_t>(std::ranges::find(kSignals, signal) - kSignals.begin());
  const struct sigaction& previous = registry.previous[index];
  if ((previous.sa_flags & SA_SIGINFO) != 0) {
    previous.sa_sigaction(signal, info, context);
  } else if (previous.sa_handler == SIG_DFL || previous.sa_handler == SIG_IGN) {
    // The instruction runs again under the default action. A fault cannot be ignored.
    struct sigaction action = {};
    action.sa_handler = SIG_DFL;
    sigaction(signal, &action, nullptr);
    if (info->si_code <= 0) raise(signal);  // sent, not faulted: nothing would raise it again
  } else {
    previous.sa_handler(signal);
  }
}

void OnSignal(int signal, siginfo_t* info, void* raw_context) {
  const int saved_errno = errno;
  auto* context = static_cast<ucontext_t*>(raw_context);
  bool handled = false;
  if (info->si_code > 0) {  // by the kernel, for a fault; not by kill()
    const auto pc = static_cast<uintptr_t>(context->uc_mcontext.gregs[REG_RIP]);
    HostFaultHandler* handler = FindHandler(pc);
    handled = handler != nullptr && handler->OnHostFault(signal, *info, *context);
  }
  if (!handled) PassOn(signal, info, raw_context);
  errno = saved_errno;
}

Status InstallHandlers() {
  if (registry.installed) return {};
  for (size_t i = 0; i < kSignals.size(); ++i) {
    struct sigaction action = {};
    action.sa_sigaction = OnSignal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    sigemptyset(&action.sa_mask);
    if (sigaction(kSignals[i], &action, &registry.previous[i]) != 0)
      return FailErrno("cannot install the handler of signal {}", kSignals[i]);
  }
  registry.installed = true;
  return {};
}

}  // namespace

Result<HostFaultRange> HostFaultRange::Register(const void* begin, size_t size_bytes, HostFaultHandler& handler) {
  const std::scoped_lock lock(registry.mutex);
  NACRE_TRY_STATUS(InstallHandlers());
  for (size_t i = 0; i < kMaxRanges; ++i) {
    Slot& slot = registry.slots[i];
    if (slot.end.load(std::memory_order_relaxed) != 0) continue;
    const auto start = reinterpret_cast<uintptr_t>(begin);
    slot.begin.store(start, std::memory_order_relaxed);
    slot.handler.store(&handler, std::memory_order_relaxed);
    slot.end.store(start + size_bytes, std::memory_order_release);
    const int count = static_cast<int>(i) + 1;
    if (registry.high_water.load(std::memory_order_relaxed) < count)
      registry.high_water.store(count, std::memory_order_release);
    HostFaultRange range;
    range.slot_ = static_cast<int>(i);
    return range;
  }
  return Fail("more than {} ranges of generated code in one process", kMaxRanges);
}

HostFaultRange::HostFaultRange(HostFaultRange&& other) noexcept : slot_(std::exchange(other.slot_, -1)) {}

HostFaultRange& HostFaultRange::operator=(HostFaultRange&& other) noexcept {
  std::swap(slot_, other.slot_);
  return *this;
}

HostFaultRange::~HostFaultRange() {
  if (slot_ < 0) return;
  const std::scoped_lock lock(registry.mutex);
  registry.slots[static_cast<size_t>(slot_)].end.store(0, std::memory_order_release);
}

Result<SignalStack> SignalStack::Create() {
  // The frame holds the whole extended state, whose size the kernel tells (2 KiB without AVX, 11 KiB with AMX).
  const size_t frame = std::max<size_t>(getauxval(AT_MINSIGSTKSZ), 2048);
  const size_t usable = AlignUp(frame + 64 * kKiB, kPageSize);
  SignalStack stack;
  stack.mapping_bytes_ = usable + kPageSize;
  void* mapping = mmap(nullptr, stack.mapping_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) return FailErrno("cannot map a signal stack");
  auto* usable_start = static_cast<uint8_t*>(mapping) + kPageSize;
  stack_t wanted = {};
  wanted.ss_sp = usable_start;
  wanted.ss_size = usable;
  if (mprotect(usable_start, usable, PROT_READ | PROT_WRITE) != 0 || sigaltstack(&wanted, &stack.previous_) != 0) {
    auto failure = FailErrno("cannot set up a signal stack of {} bytes", usable);
    munmap(mapping, stack.mapping_bytes_);
    return failure;
  }
  stack.mapping_ = mapping;
  return stack;
}

SignalStack::SignalStack(SignalStack&& other) noexcept
    : mapping_(std::exchange(other.mapping_, nullptr)),
      mapping_bytes_(other.mapping_bytes_),
      previous_(other.previous_) {}

SignalStack& SignalStack::operator=(SignalStack&& other) noexcept {
  std::swap(mapping_, other.mapping_);
  std::swap(mapping_bytes_, other.mapping_bytes_);
  std::swap(previous_, other.previous_);
  return *this;
}

SignalStack::~SignalStack() {
  if (mapping_ == nullptr) return;
  sigaltstack(&previous_, nullptr);
  munmap(mapping_, mapping_bytes_);
}

}  // namespace nacre::engine
