#pragma once
// A VM of the host's KVM: memory slots, the split interrupt chip, the filter of MSRs. Any thread, but for creation.

#include "engine/kvm/kvm_api.h"

#include <atomic>
#include <cstddef>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "base/bits.h"
#include "base/fd.h"
#include "engine/engine.h"
#include "engine/kvm/kvm_device.h"
#include "engine/kvm/kvm_dirty_pages.h"
#include "engine/kvm/kvm_options.h"
#include "engine/kvm/kvm_routes.h"
#include "memory/guest_memory.h"

namespace nacre::engine::kvm {

class KvmVm final : public MessageSink, public WriteEvents {
 public:
  /// `kernel_apics`: with local APICs in the kernel; else there are none, and ForgetTranslations can be called.
  static Result<std::unique_ptr<KvmVm>> Create(memory::GuestMemory& memory, const KvmOptions& options,
                                               bool kernel_apics);

  const KvmDevice& device() const { return device_; }
  int fd() const { return fd_.get(); }
  Result<Fd> CreateVcpu(unsigned index) const;
  /// From the next KVM_RUN on, page tables are read anew, on all vCPUs. Milliseconds.
  Status ForgetTranslations();

  void Send(const MessageWrite& message) override;
  Status SetPinRoutes(std::span<const std::optional<MessageWrite>> pins) override { return routes_->SetPins(pins); }
  std::unique_ptr<MessageLine> OpenLine(const MessageWrite& message) override { return routes_->Open(message); }
  Status AddWriteEvent(GuestPhys address, int event_fd) override;
  void RemoveWriteEvent(GuestPhys address, int event_fd) override;
  KvmDirtyPages& dirty_pages() { return *dirty_pages_; }
  std::vector<Statistic> Statistics() const;

 private:
  explicit KvmVm(KvmDevice device) : device_(std::move(device)) {}
  Status SetUp(memory::GuestMemory& memory, const KvmOptions& options);
  Status SetUpApics();
  Status SetUpForgetting();
  Status FilterMsrs();
  kvm_ioeventfd EventAt(GuestPhys address, int event_fd) const;
  Status Enable(uint32_t capability, uint64_t argument, const char* name) const;

  KvmDevice device_;
  Fd fd_;
  std::optional<KvmRoutes> routes_;
  std::optional<KvmDirtyPages> dirty_pages_;
  std::atomic<uint64_t> messages_ = 0;
  std::mutex moving_;
  kvm_userspace_memory_region moving_slot_{};  ///< under moving_
  alignas(kPageSize) uint8_t moving_page_[kPageSize] = {};
};

/// The signal that gets a thread out of KVM_RUN. Its handler does nothing; installed once per process.
int KickSignal();

}  // namespace nacre::engine::kvm
