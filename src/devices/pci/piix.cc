#include "devices/pci/piix.h"

#include "base/bits.h"

namespace nacre::devices {

IsaBridge::IsaBridge(const PciWiring& wiring, const Lines& lines)
    : PciDevice("isa-bridge", {0x8086, 0x7000, 0x1af4, 0x1100, 0x060100, 0, 0}, wiring) {
  DefineConfig(pci::kHeaderType, 1, 0x80, 0);  // several functions
  DefineConfig(kRoute, 4, 0x80808080, 0x8f8f8f8f);
  for (unsigned i = 0; i < pirqs_.size(); ++i) {
    pirqs_[i].own = lines.own[i];
    for (unsigned irq = 0; irq < 16; ++irq)
      if (TestBit(kRoutable, irq)) pirqs_[i].isa[irq] = lines.isa[i][irq];
  }
}

void IsaBridge::Pirq::Set(bool level) {
  asserted = level;
  if (own) own->Set(level);
  if (isa[route]) isa[route]->Set(level);
}

void IsaBridge::ApplyRoutes() {
  for (unsigned i = 0; i < pirqs_.size(); ++i) {
    Pirq& pirq = pirqs_[i];
    const uint8_t value = config()[kRoute + i];
    const auto route = static_cast<uint8_t>((value & kNotRouted) != 0 ? 0 : value & 15);
    if (route == pirq.route) continue;
    if (pirq.isa[pirq.route]) pirq.isa[pirq.route]->Set(false);
    pirq.route = route;
    pirq.Set(pirq.asserted);
  }
}

void IsaBridge::AfterConfigWrite(unsigned offset, unsigned size) {
  if (offset < kRoute + 4 && kRoute < offset + size) ApplyRoutes();
}

void IsaBridge::SerializeFunction(state::Archive& archive) {
  if (archive.loading()) ApplyRoutes();  // levels come from the devices
}

PowerManagement::PowerManagement(const PciWiring& wiring, bus::IoHandler& registers, uint16_t size_ports)
    : PciDevice("power-management", {0x8086, 0x7113, 0x1af4, 0x1100, 0x068000, 3, 1}, wiring),
      ports_(*wiring.ports),
      registers_(registers),
      size_ports_(size_ports) {
  DefineConfig(kPmBase, 4, 1, 0xffc0);
  // There is no system management mode. Firmware takes the bit as "set up already" and leaves SMRAM alone.
  DefineConfig(kDeviceActivityB, 4, kApmcEnable, 0);
  DefineConfig(kPmRegMisc, 1, 0, kIoEnable);
}

void PowerManagement::Map() {
  const bool on = (config()[kPmRegMisc] & kIoEnable) != 0;
  const auto base = static_cast<uint16_t>(on ? LoadLe<uint16_t>(config() + kPmBase) & 0xffc0 : 0);
  if (base == base_) return;
  base_ = base;
  mapping_.Remove();
  if (base != 0) mapping_ = ports_.Add(base, size_ports_, registers_, "acpi-pm");
}

void PowerManagement::Place(uint16_t base) {
  ConfigWrite(kPmBase, 4, base);
  ConfigWrite(kPmRegMisc, 1, kIoEnable);
}

void PowerManagement::AfterConfigWrite(unsigned offset, unsigned size) {
  if ((offset < kPmBase + 4 && kPmBase < offset + size) || (offset <= kPmRegMisc && kPmRegMisc < offset + size)) Map();
}

void PowerManagement::SerializeFunction(state::Archive& archive) {
  if (archive.loading()) Map();
}

}  // namespace nacre::devices
