#pragma once
// The host stacks that translated code runs on: a guest CALL is also a host CALL, and a guest RET a host RET, so that
// the host predicts returns. They hold nothing but host return addresses of the present translations; the guest's
// return address is compared where a RET arrives. User and supervisor have one each. When a stack is full its guard
// page faults and it begins anew; below its bottom stands the way to a lookup. Owned by a vCPU, for its thread.

#include <cstdint>

#include "base/result.h"
#include "engine/jit/stubs.h"

namespace nacre::engine::jit {

class ReturnStacks {
 public:
  static Result<ReturnStacks> Create(const Stubs& stubs);
  ReturnStacks() = default;
  ReturnStacks(ReturnStacks&& other) noexcept;
  ReturnStacks& operator=(ReturnStacks&& other) noexcept;
  ReturnStacks(const ReturnStacks&) = delete;
  ReturnStacks& operator=(const ReturnStacks&) = delete;
  ~ReturnStacks();

  /// RSP of an empty stack; `context` is kContextSupervisor or kContextUser.
  uint64_t bottom(unsigned context) const { return base_ + (context + 1) * (kGuardBytes + kStackBytes) - kSpareBytes; }
  bool InGuard(uint64_t address) const {
    const uint64_t offset = address - base_;
    return offset < 2 * (kGuardBytes + kStackBytes) && offset % (kGuardBytes + kStackBytes) < kGuardBytes;
  }

 private:
  static constexpr uint64_t kGuardBytes = 64 << 10, kStackBytes = 64 << 10;
  static constexpr uint64_t kSpareBytes = 64;  ///< above the bottom
  uint64_t base_ = 0;
};

}  // namespace nacre::engine::jit
