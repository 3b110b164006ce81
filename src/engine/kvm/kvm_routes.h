#pragma once
// The table of interrupt routes of a VM (KVM_SET_GSI_ROUTING): the IO-APIC's pins, which are the first 24 numbers, and
// behind them the messages that have an eventfd of their own (KVM_IRQFD). The kernel knows the table as a whole only.
// Any thread.

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "base/fd.h"
#include "engine/engine.h"

namespace nacre::engine::kvm {

class KvmRoutes {
 public:
  static constexpr unsigned kPins = 24;
  /// A hundred devices have so many; the kernel's limit is higher, and a line is a descriptor.
  static constexpr unsigned kMaxLines = 256;

  /// `vm` (KVM's descriptor) must outlive it. `most`: KVM_CAP_IRQ_ROUTING, entries that the table can have.
  KvmRoutes(int vm, int most);

  Status SetPins(std::span<const std::optional<MessageWrite>> pins);
  /// Null: there is no number left, or the host has no descriptor.
  std::unique_ptr<MessageLine> Open(const MessageWrite& message);
  uint64_t sent() const { return sent_.load(std::memory_order_relaxed); }

 private:
  class Line;
  Status Change(unsigned line, const std::optional<MessageWrite>& message);
  /// Under the mutex.
  Status Commit();

  const int vm_;
  std::mutex mutex_;
  std::array<std::optional<MessageWrite>, kPins> pins_;
  std::vector<std::optional<MessageWrite>> lines_;  ///< number kPins and up
  std::atomic<uint64_t> sent_ = 0;
};

}  // namespace nacre::engine::kvm
