#include "machine/kernel_apics.h"

#include <array>

namespace nacre::machine {

using devices::ApicMessage;
using devices::DeliveryMode;
using devices::IoApic;

namespace {

bool ToEveryCpu(const ApicMessage& message) {
  return !message.logical && message.destination == ApicMessage::kBroadcast;
}

}  // namespace

/// SDM 3A 11.11; destinations above 255 as KVM_X2APIC_API_USE_32BIT_IDS has them, in the address' upper half.
engine::MessageWrite KernelApics::WriteOf(const ApicMessage& message) {
  constexpr uint64_t kMessages = 0xfee00000, kRedirectionHint = 1 << 3, kLogical = 1 << 2;
  constexpr uint32_t kAssert = 1 << 14, kLevel = 1 << 15;
  const uint64_t destination = message.destination;
  uint64_t address = kMessages | (destination & 0xff) << 12 | (destination & 0xffffff00) << 32;
  if (message.logical) address |= kLogical;
  if (message.mode == DeliveryMode::kLowestPriority) address |= kRedirectionHint;
  const uint32_t data =
      message.vector | static_cast<uint32_t>(message.mode) << 8 | kAssert | (message.level ? kLevel : 0);
  return {address, data};
}

void KernelApics::Deliver(const ApicMessage& message) {
  if (!ToEveryCpu(message)) return sink_.Send(WriteOf(message));
  ApicMessage one = message;
  for (one.destination = 0; one.destination < cpu_count_; ++one.destination) sink_.Send(WriteOf(one));
}

/// One write each: not for those to every CPU, which Deliver takes apart.
class KernelApics::Line final : public devices::RemoteLine {
 public:
  explicit Line(std::unique_ptr<engine::MessageLine> line) : line_(std::move(line)) {}
  void Send() override { line_->Send(); }
  bool Change(const ApicMessage& message) override {
    return !ToEveryCpu(message) && line_->Change(WriteOf(message)).has_value();
  }

 private:
  std::unique_ptr<engine::MessageLine> line_;
};

std::unique_ptr<devices::RemoteLine> KernelApics::NewLine(const ApicMessage& message) {
  if (ToEveryCpu(message)) return nullptr;
  auto line = sink_.OpenLine(WriteOf(message));
  return line ? std::make_unique<Line>(std::move(line)) : nullptr;
}

Status KernelApics::UpdateRoutes() {
  std::array<std::optional<engine::MessageWrite>, IoApic::kPins> pins;
  for (unsigned pin = 0; pin < IoApic::kPins; ++pin)
    if (const IoApic::Route route = io_apic_.RouteOf(pin); !route.masked) pins[pin] = WriteOf(route.message);
  return sink_.SetPinRoutes(pins);
}

}  // namespace nacre::machine
