#include "devices/chipset/apic_bus.h"

#include <algorithm>

#include "base/bits.h"
#include "base/check.h"
#include "devices/chipset/local_apic.h"

namespace nacre::devices {
namespace {

/// None: a write to somewhere else.
std::optional<ApicMessage> Decode(const bus::MsiMessage& write) {
  if ((write.address & ~uint64_t{0xfffff}) != 0xfee00000) return std::nullopt;
  ApicMessage message;
  message.destination = static_cast<uint32_t>(Bits(write.address, 12, 8));
  message.logical = TestBit(write.address, 2);
  if (message.destination == 0xff && !message.logical) message.destination = ApicMessage::kBroadcast;
  message.mode = static_cast<DeliveryMode>(Bits(write.data, 8, 3));
  // With the redirection hint one of the processors that match is chosen.
  if (TestBit(write.address, 3) && message.logical && message.mode == DeliveryMode::kFixed)
    message.mode = DeliveryMode::kLowestPriority;
  message.level = TestBit(write.data, 15);
  message.vector = static_cast<uint8_t>(write.data);
  return message;
}

}  // namespace

/// A vector of a device: its line, where there is one, is its message as it is now.
class ApicBus::Vector final : public bus::MsiVector {
 public:
  explicit Vector(ApicBus& apic_bus) : bus_(apic_bus) { bus_.vectors_.push_back(this); }
  ~Vector() override { std::erase(bus_.vectors_, this); }
  void Set(const std::optional<bus::MsiMessage>& message) override {
    if (message == message_) return;
    message_ = message;
    Connect();
  }
  void Send() override {
    if (line_)
      line_->Send();
    else if (message_)
      bus_.Send(message_->address, message_->data);
  }
  void Connect() {
    const std::optional<ApicMessage> message = bus_.remote_ && message_ ? Decode(*message_) : std::nullopt;
    if (message && line_ && line_->Change(*message)) return;
    line_.reset();
    if (message) line_ = bus_.remote_->NewLine(*message);
  }
  void Disconnect() { line_.reset(); }

 private:
  ApicBus& bus_;
  std::optional<bus::MsiMessage> message_;
  std::unique_ptr<RemoteLine> line_;
};

void ApicBus::Add(LocalApic* apic) {
  NACRE_CHECK(apic->id() == apics_.size() && apics_.size() < 255);
  apics_.push_back(apic);
}

void ApicBus::Remove(LocalApic* apic) { std::erase(apics_, apic); }

void ApicBus::SetRemote(RemoteApics* remote) {
  // What was offered to the guest is taken back first: it can end an interrupt that our model has in service.
  for (LocalApic* apic : apics_) apic->WithdrawEoiOffer();
  for (Vector* vector : vectors_) vector->Disconnect();
  remote_ = remote;
  for (LocalApic* apic : apics_) apic->RemoteChanged();
  if (!remote_) return;
  for (Vector* vector : vectors_) vector->Connect();
  remote_->SetExtInt(lint_[0].level);
}

std::unique_ptr<bus::MsiVector> ApicBus::NewVector() { return std::make_unique<Vector>(*this); }

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

void ApicBus::PulseLint1(unsigned id) {
  for (const bool level : {false, true, lint_[1].level}) apics_[id]->SetLint(1, level);
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
  if (const std::optional<ApicMessage> message = Decode({address, data})) Route(*message);
}

}  // namespace nacre::devices
