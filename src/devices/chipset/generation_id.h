#pragma once
// The VM generation ID (Microsoft, "Virtual Machine Generation ID"; Linux's drivers/virt/vmgenid.c): 16 bytes in guest
// memory that are others after a restore or in a clone, and a notification of that. Guests then seed their random
// numbers anew. Under the device lock.

#include <array>
#include <cstdint>
#include <functional>

#include "base/result.h"
#include "bus/device.h"
#include "memory/guest_memory.h"

namespace nacre::devices {

class GenerationId final : public bus::Device {
 public:
  using Guid = std::array<uint8_t, 16>;
  /// The general-purpose event by which the guest is told.
  static constexpr unsigned kGpe = 5;

  static Result<Guid> Random();

  /// `notify` raises the event.
  GenerationId(memory::GuestMemory& memory, const Guid& guid, std::function<void()> notify)
      : memory_(memory), guid_(guid), notify_(std::move(notify)) {}

  /// The ID stands there from now on; false where that is no guest memory or not 8-byte aligned.
  bool Place(GuestPhys address);
  /// Another ID; the guest is told.
  void Change(const Guid& guid);
  const Guid& guid() const { return guid_; }
  /// 0: nowhere yet.
  uint64_t address() const { return address_; }

  std::string_view name() const override { return "generation-id"; }
  /// The ID stays, its place is to be set again.
  void Reset() override { address_ = 0; }
  void Serialize(state::Archive& archive) override;

 private:
  bool Write();

  memory::GuestMemory& memory_;
  Guid guid_;
  const std::function<void()> notify_;
  uint64_t address_ = 0;
};

}  // namespace nacre::devices
