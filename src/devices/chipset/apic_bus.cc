#include "devices/chipset/apic_bus.h"

#include <algorithm>

#include "base/bits.h"
#include "base/check.h"
#include "devices/chipset/local_apic.h"

namespace nacre::devices {

void ApicBus::Add(LocalApic* apic) {
  NACRE_CHECK(apic->id() == apics_.size() && apics_.size() < 255);
  apics_.push_back(apic);
}

void ApicBus::Remove(LocalApic* apic) { std::erase(apics_, apic); }

void ApicBus::SetRemote(RemoteApics* remote) {
  // What was offered to the guest is taken back first: it can end an interrupt that our model has in service.
  for (LocalApic* apic : apics_) apic->WithdrawEoiOffer();
  remote_ = remote;
  for (LocalApic* apic : apics_) apic->RemoteChanged();
  if (remote_) remote_->SetExtInt(lint_[0].level);
}

void ApicBus::LintLine::Set(bool value) {
  const bool changed = value != level;
  level = value;
  for (LocalApic* apic : apic_bus.apics_) apic->SetLint(pin, level);
  if (!apic_bus.remote_ || !changed) return;
  if (pin == 0) {
    apic_bus.remote_->SetExtInt(level);
  } else if (level) {
    apic_bus.remote_->Nmi();
  }
}

void ApicBus::Route(const ApicMessage& message) {
  if (remote_) return remote_->Deliver(message);
  const bool one = message.mode == DeliveryMode::kLowestPriority;
  if (!message.logical && !one && message.destination < apics_.size())
    return apics_[message.destination]->Deliver(message.mode, message.vector, message.level);
  LocalApic* best = nullptr;
  size_t best_index = 0;
  for (size_t step = 1; step <= apics_.size(); ++step) {
    const size_t index = (last_chosen_ + step) % apics_.size();
    LocalApic* apic = apics_[index];
    if (!apic->Matches(message.destination, message.logical)) continue;
    if (one) apic->SyncEoi();  // its priority counts
    if (!one) {
      apic->Deliver(message.mode, message.vector, message.level);
    } else if (apic->accepts_interrupts() && (!best || apic->processor_priority() < best->processor_priority())) {
      best = apic;
      best_index = index;
    }
  }
  if (!best) return;
  last_chosen_ = best_index;
  best->Deliver(DeliveryMode::kFixed, message.vector, message.level);
}

void ApicBus::RouteToOthers(const ApicMessage& message, const LocalApic* source) {
  for (LocalApic* apic : apics_) {
    if (apic != source) apic->Deliver(message.mode, message.vector, message.level);
  }
}

void ApicBus::Send(uint64_t address, uint32_t data) {
  if ((address & ~uint64_t{0xfffff}) != 0xfee00000) return;
  ApicMessage message;
  message.destination = static_cast<uint32_t>(Bits(address, 12, 8));
  message.logical = TestBit(address, 2);
  if (message.destination == 0xff && !message.logical) message.destination = ApicMessage::kBroadcast;
  message.mode = static_cast<DeliveryMode>(Bits(data, 8, 3));
  // With the redirection hint one of the processors that match is chosen.
  if (TestBit(address, 3) && message.logical && message.mode == DeliveryMode::kFixed)
    message.mode = DeliveryMode::kLowestPriority;
  message.level = TestBit(data, 15);
  message.vector = static_cast<uint8_t>(data);
  Route(message);
}

}  // namespace nacre::devices
