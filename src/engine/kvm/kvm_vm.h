#pragma once
// A VM of the host's KVM: memory slots, the split interrupt chip, the filter of MSRs. Any thread, but for creation.

#include "engine/kvm/kvm_api.h"

#include <atomic>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>

#include "base/fd.h"
#include "engine/engine.h"
#include "engine/kvm/kvm_device.h"
#include "memory/guest_memory.h"

namespace nacre::engine::kvm {

class KvmVm final : public MessageSink {
 public:
  static constexpr unsigned kIoApicPins = 24;

  static Result<std::unique_ptr<KvmVm>> Create(memory::GuestMemory& memory);

  const KvmDevice& device() const { return device_; }
  int fd() const { return fd_.get(); }
  Result<Fd> CreateVcpu(unsigned index) const;

  void Send(const MessageWrite& message) override;
  Status SetPinRoutes(std::span<const std::optional<MessageWrite>> pins) override;
  uint64_t messages() const { return messages_.load(std::memory_order_relaxed); }

 private:
  explicit KvmVm(KvmDevice device) : device_(std::move(device)) {}
  Status SetUp(memory::GuestMemory& memory);
  Status FilterMsrs();
  Status Enable(uint32_t capability, uint64_t argument, const char* name) const;

  KvmDevice device_;
  Fd fd_;
  std::atomic<uint64_t> messages_ = 0;
};

/// The signal that gets a thread out of KVM_RUN. Its handler does nothing; installed once per process.
int KickSignal();

}  // namespace nacre::engine::kvm
