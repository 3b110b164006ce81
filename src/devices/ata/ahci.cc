#include "devices/ata/ahci.h"

#include "base/bits.h"

namespace nacre::devices {

namespace {

constexpr PciIdentity kIdentity = {0x8086, 0x2922, 0x1af4, 0x1100, 0x010601, 2, 1};
constexpr unsigned kMap = 0x90;  // 0x40: the ports are AHCI's
constexpr unsigned kCapabilities = 0x00, kControl = 0x04, kInterruptStatus = 0x08, kPortsImplemented = 0x0c,
                   kVersion = 0x10;
/// 64-bit addresses, NCQ, command list override, generation 2, AHCI only, 32 slots, 6 ports.
constexpr uint32_t kCapabilityBits = 1u << 31 | 1 << 30 | 1 << 24 | 2 << 20 | 1 << 18 | 31 << 8 | (Ahci::kPorts - 1);
constexpr uint32_t kReset = 1 << 0, kInterruptEnable = 1 << 1, kAhciEnable = 1u << 31;

}  // namespace

Ahci::Ahci(std::string name, const PciWiring& wiring, memory::GuestMemory& memory)
    : PciDevice(std::move(name), kIdentity, wiring) {
  for (auto& port : ports_) port = std::make_unique<AhciPort>(*this, memory);
  DefineConfig(kMap, 1, 0x40, 0);
  AddBar(kBar, BarKind::kMemory32, kBarSize);
  AddBarBlock(kBar, 0, kBarSize, registers_);
  AddMsi(1);
}

Ahci::~Ahci() = default;

void Ahci::Quiesce() {
  for (auto& port : ports_) port->Quiesce();
}

uint32_t Ahci::ReadWord(unsigned offset) const {
  if (offset >= kPortsOffset) {
    const unsigned port = (offset - kPortsOffset) / AhciPort::kRegistersSize;
    return port < kPorts ? ports_[port]->Read((offset - kPortsOffset) % AhciPort::kRegistersSize) : 0;
  }
  switch (offset) {
    case kCapabilities:
      return kCapabilityBits;
    case kControl:
      return control_ | kAhciEnable;
    case kInterruptStatus:
      return interrupt_status_;
    case kPortsImplemented:
      return (1u << kPorts) - 1;
    case kVersion:
      return 0x00010300;
    default:
      return 0;
  }
}

void Ahci::WriteWord(unsigned offset, uint32_t value) {
  if (offset >= kPortsOffset) {
    const unsigned port = (offset - kPortsOffset) / AhciPort::kRegistersSize;
    if (port < kPorts) ports_[port]->Write((offset - kPortsOffset) % AhciPort::kRegistersSize, value);
    return;
  }
  switch (offset) {
    case kControl:
      if ((value & kReset) != 0) return ResetController();
      control_ = value & kInterruptEnable;
      return UpdateInterrupt();
    case kInterruptStatus:
      interrupt_status_ &= ~value;
      return UpdateInterrupt();
    default:
      return;
  }
}

/// Registers are dwords (3): parts of one can be read, writes of parts are ignored.
uint64_t Ahci::Registers::Read(uint64_t offset, unsigned size) {
  uint64_t value = device.ReadWord(static_cast<unsigned>(offset & ~uint64_t{3})) >> (8 * (offset & 3));
  const auto first = static_cast<unsigned>(4 - (offset & 3));
  if (size > first) {
    value |= uint64_t{device.ReadWord(static_cast<unsigned>((offset & ~uint64_t{3}) + 4))} << (8 * first);
  }
  return MaskToSize(value, size);
}

void Ahci::Registers::Write(uint64_t offset, unsigned size, uint64_t value) {
  if (size < 4 || (offset & 3) != 0) return;
  device.WriteWord(static_cast<unsigned>(offset), static_cast<uint32_t>(value));
  if (size == 8) device.WriteWord(static_cast<unsigned>(offset + 4), static_cast<uint32_t>(value >> 32));
}

void Ahci::UpdateInterrupt() {
  uint32_t raised = 0;
  for (unsigned i = 0; i < kPorts; ++i)
    if (ports_[i]->pending()) raised |= 1u << i;
  const uint32_t added = raised & ~interrupt_status_;
  interrupt_status_ |= raised;
  const bool level = interrupt_status_ != 0 && (control_ & kInterruptEnable) != 0;
  const bool rises = level && (added != 0 || !level_);
  level_ = level;
  SetIntx(level && !msi_enabled());
  if (rises && msi_enabled()) NotifyVector(0);
}

void Ahci::ResetController() {
  for (auto& port : ports_) port->Reset();
  control_ = 0;
  interrupt_status_ = 0;
  UpdateInterrupt();
}

void Ahci::ResetFunction() { ResetController(); }

void Ahci::AfterConfigWrite(unsigned, unsigned) { SetIntx(level_ && !msi_enabled()); }

void Ahci::SerializeFunction(state::Archive& archive) {
  archive.Field(1, control_);
  archive.Field(2, interrupt_status_);
  for (unsigned i = 0; i < kPorts; ++i) {
    archive.Section(static_cast<uint16_t>(3 + i), 1,
                    [&](state::Archive& inner, uint16_t) { ports_[i]->Serialize(inner); });
  }
  if (!archive.loading()) return;
  control_ &= kInterruptEnable;
  interrupt_status_ &= (1u << kPorts) - 1;
  level_ = interrupt_status_ != 0 && control_ != 0;
  SetIntx(level_ && !msi_enabled());
}

}  // namespace nacre::devices
