#include "devices/virtio/virtio_device.h"

#include "base/check.h"

namespace nacre::devices {

using namespace virtio_status;

VirtioDevice::VirtioDevice(Setup setup, memory::GuestMemory& memory, Scheduler& scheduler)
    : name_(std::move(setup.name)),
      type_(setup.type),
      offered_(setup.features | Bit(virtio_feature::kIndirectDesc) | Bit(virtio_feature::kEventIndex) |
               Bit(virtio_feature::kVersion1) | Bit(virtio_feature::kRingPacked)),
      memory_(memory),
      scheduler_(scheduler) {
  NACRE_CHECK(setup.queue_sizes.size() <= 64);
  for (uint16_t size : setup.queue_sizes)
    queues_.push_back(std::make_unique<VirtQueue>(memory, size, [this](const char* reason) { NeedsReset(reason); }));
  pending_timer_ = scheduler.CreateTimer([this] { RunPending(); });
}

void VirtioDevice::Reset() {
  status_ = 0;
  OnReset();
  for (auto& ring : queues_) ring->Reset();
  accepted_ = 0;
  config_generation_ = 0;
  broken_reason_.clear();
  pending_queues_ = 0;
  pending_interrupts_ = false;
  pending_timer_->Cancel();
}

void VirtioDevice::SetDriverFeatures(uint32_t select, uint32_t bits) {
  if (select > 1 || (status_ & kFeaturesOk) != 0) return;
  const unsigned shift = select * 32;
  accepted_ = (accepted_ & ~(uint64_t{0xffffffff} << shift)) | (uint64_t{bits} << shift);
}

void VirtioDevice::SetStatus(uint8_t value) {
  if (value == 0) {
    Reset();
    return;
  }
  uint8_t added = value & static_cast<uint8_t>(~status_);
  added &= kAcknowledge | kDriver | kDriverOk | kFeaturesOk | kFailed;
  // 2.2.2, 6.2: refuse features that were not offered, and drivers from before version 1.
  const bool acceptable = (accepted_ & ~offered_) == 0 && has_feature(virtio_feature::kVersion1);
  if ((added & kFeaturesOk) != 0 && !acceptable) added &= static_cast<uint8_t>(~kFeaturesOk);
  if ((added & kDriverOk) != 0 && ((status_ | added) & kFeaturesOk) == 0) added &= static_cast<uint8_t>(~kDriverOk);
  status_ |= added;
  if ((added & kDriverOk) == 0 || needs_reset()) return;
  OnDriverOk();
  for (unsigned i = 0; i < queue_count(); ++i) Notify(i);  // buffers may have come before DRIVER_OK
}

void VirtioDevice::EnableQueue(unsigned index) {
  VirtQueue& ring = queue(index);
  if (ring.enabled() || ring.broken()) return;
  const bool enabled = ring.Enable({.packed = has_feature(virtio_feature::kRingPacked),
                                    .event_index = has_feature(virtio_feature::kEventIndex),
                                    .indirect = has_feature(virtio_feature::kIndirectDesc)});
  if (enabled && driver_ok()) Notify(index);
}

void VirtioDevice::Notify(unsigned index) {
  if (index >= queues_.size() || !driver_ok() || !queues_[index]->enabled()) return;
  OnQueue(index);
}

void VirtioDevice::WriteConfig(uint32_t, std::span<const uint8_t>) {}

void VirtioDevice::Signal(unsigned index) {
  if (driver_ok() && queue(index).TakeInterrupt() && transport_) transport_->InterruptQueue(index);
}

void VirtioDevice::ConfigChanged() {
  ++config_generation_;
  if ((status_ & kDriverOk) != 0 && transport_) transport_->InterruptConfig();
}

void VirtioDevice::LookAgain(unsigned index) {
  pending_queues_ |= Bit(index);
  if (!pending_timer_->armed()) pending_timer_->Arm(scheduler_.NowNs());
}

void VirtioDevice::RunPending() {
  if (std::exchange(pending_interrupts_, false) && driver_ok() && transport_) {
    for (unsigned i = 0; i < queue_count(); ++i)
      if (queue(i).enabled()) transport_->InterruptQueue(i);
  }
  const uint64_t pending = std::exchange(pending_queues_, 0);
  for (unsigned i = 0; i < queue_count(); ++i)
    if (TestBit(pending, i)) Notify(i);
}

void VirtioDevice::NeedsReset(const char* reason) {
  if (needs_reset()) return;
  broken_reason_ = reason;
  status_ |= kNeedsReset;
  ConfigChanged();  // 2.1.2
}

void VirtioDevice::Serialize(state::Archive& archive) {
  if (archive.loading())
    Reset();
  else
    Quiesce();
  archive.Field(1, status_);
  archive.Field(2, accepted_);
  archive.Field(3, config_generation_);
  archive.List(
      4, queues_.size(), queues_.size(),
      [&](size_t count) {
        if (count != queues_.size()) archive.Reject(name_ + ": the number of queues differs");
      },
      [&](state::Archive& element, size_t index) { queues_[index]->Serialize(element); });
  if (archive.loading() && (accepted_ & ~offered_) != 0)
    archive.Reject(name_ + ": features in use that this version does not offer");
  archive.Section(5, 1, [&](state::Archive& fields, uint16_t) { SerializeState(fields); });
  if (!archive.loading()) return;
  if (!archive.ok()) {
    Reset();
    return;
  }
  OnLoaded();
  pending_interrupts_ = true;
  pending_queues_ = queue_count() == 64 ? ~uint64_t{0} : Bit(queue_count()) - 1;
  pending_timer_->Arm(scheduler_.NowNs());
}

}  // namespace nacre::devices
