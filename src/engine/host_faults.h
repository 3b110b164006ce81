#pragma once
// Host signals raised by generated code (SIGFPE, SIGSEGV, SIGBUS, SIGILL) become calls of the code's owner. Whoever
// generates code registers the range of its executable view with a handler; a fault whose program counter lies in no
// range, or that its handler does not take, goes on to whatever was installed before (default: the process dies with
// the right registers in its core). The process-wide handlers are installed once, at the first registration.
//
// Threads: registration on any thread; a range must stay registered while any thread may run in it. Handlers run on the
// faulting thread as a signal handler: async-signal-safe code only, on the thread's SignalStack if it has one.

#include <ucontext.h>
#include <csignal>
#include <cstddef>

#include "base/result.h"

namespace nacre::engine {

class HostFaultHandler {
 public:
  virtual ~HostFaultHandler() = default;
  /// Changes `context` (usually its program counter) and returns true, or returns false to pass the fault on.
  virtual bool OnHostFault(int signal, const siginfo_t& info, ucontext_t& context) = 0;
};

/// The registration of one code range; ends with the object.
class HostFaultRange {
 public:
  /// Fails when too many ranges are registered (kMaxRanges) or the signal handlers cannot be installed.
  static Result<HostFaultRange> Register(const void* begin, size_t size_bytes, HostFaultHandler& handler);
  static constexpr size_t kMaxRanges = 1024;

  HostFaultRange() = default;
  HostFaultRange(HostFaultRange&& other) noexcept;
  HostFaultRange& operator=(HostFaultRange&& other) noexcept;
  HostFaultRange(const HostFaultRange&) = delete;
  HostFaultRange& operator=(const HostFaultRange&) = delete;
  ~HostFaultRange();

 private:
  int slot_ = -1;
};

/// Gives the calling thread an alternate signal stack with a guard page, needed where generated code runs with the
/// guest's RSP in the host's. Restores the previous one when destroyed, which must happen on the same thread.
class SignalStack {
 public:
  static Result<SignalStack> Create();

  SignalStack() = default;
  SignalStack(SignalStack&& other) noexcept;
  SignalStack& operator=(SignalStack&& other) noexcept;
  SignalStack(const SignalStack&) = delete;
  SignalStack& operator=(const SignalStack&) = delete;
  ~SignalStack();

 private:
  void* mapping_ = nullptr;
  size_t mapping_bytes_ = 0;
  stack_t previous_ = {};
};

}  // namespace nacre::engine
