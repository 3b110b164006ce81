#include "engine/jit/return_stacks.h"

#include <sys/mman.h>

#include <utility>

namespace nacre::engine::jit {

Result<ReturnStacks> ReturnStacks::Create(const Stubs& stubs) {
  constexpr uint64_t kBytes = 2 * (kGuardBytes + kStackBytes);
  void* mapping = mmap(nullptr, kBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) return FailErrno("cannot map {} bytes for return stacks", kBytes);
  ReturnStacks stacks;
  stacks.base_ = reinterpret_cast<uint64_t>(mapping);
  for (const unsigned context : {kContextSupervisor, kContextUser}) {
    const uint64_t begin = stacks.bottom(context) + kSpareBytes - kStackBytes;
    if (mprotect(reinterpret_cast<void*>(begin), kStackBytes, PROT_READ | PROT_WRITE) != 0)
      return FailErrno("cannot make a return stack accessible");
    *reinterpret_cast<uint64_t*>(stacks.bottom(context)) = reinterpret_cast<uint64_t>(stubs.return_empty[context]);
  }
  return stacks;
}

ReturnStacks::ReturnStacks(ReturnStacks&& other) noexcept : base_(std::exchange(other.base_, 0)) {}

ReturnStacks& ReturnStacks::operator=(ReturnStacks&& other) noexcept {
  std::swap(base_, other.base_);
  return *this;
}

ReturnStacks::~ReturnStacks() {
  if (base_ != 0) munmap(reinterpret_cast<void*>(base_), 2 * (kGuardBytes + kStackBytes));
}

}  // namespace nacre::engine::jit
