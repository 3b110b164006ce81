#include "devices/pci/pci_host.h"

#include <algorithm>
#include <utility>

#include "base/bits.h"

namespace nacre::devices {

class PciHost::Bridge final : public PciDevice {
 public:
  Bridge(const PciIdentity& identity, const PciWiring& wiring) : PciDevice("pci-bridge", identity, wiring) {
    DefineConfig(0x58, 1, 0, 0xff);  // DRAM timing
    for (unsigned i = 0; i < ShadowMemory::kPamCount; ++i) DefineConfig(kPam + i, 1, 0, 0xff);
    DefineConfig(kSmram, 1, 0x02, 0xff);
  }
  void SetShadowMemory(ShadowMemory* shadow) {
    shadow_ = shadow;
    Apply();
  }

 protected:
  void ResetFunction() override { Apply(); }
  void SerializeFunction(state::Archive& archive) override {
    if (archive.loading()) Apply();
  }
  void AfterConfigWrite(unsigned offset, unsigned size) override {
    const auto touches = [&](unsigned start, unsigned length) {
      return offset < start + length && start < offset + size;
    };
    if (touches(kPam, ShadowMemory::kPamCount) || touches(kSmram, 1)) Apply();
  }

 private:
  static constexpr unsigned kPam = 0x59, kSmram = 0x72;
  void Apply() {
    if (shadow_)
      shadow_->Apply(std::span<const uint8_t, ShadowMemory::kPamCount>(config() + kPam, ShadowMemory::kPamCount),
                     config()[kSmram]);
  }

  ShadowMemory* shadow_ = nullptr;
};

PciHost::PciHost(const PciWiring& wiring, const std::array<bus::IrqLine*, 4>& pirq,
                 const std::array<uint8_t, 4>& pirq_number, const PciIdentity& bridge)
    : pirq_number_(pirq_number), bridge_(std::make_unique<Bridge>(bridge, wiring)) {
  for (size_t i = 0; i < pirq.size(); ++i) pirq_[i].SetTarget(pirq[i]);
  functions_[0] = bridge_.get();
}

PciHost::~PciHost() = default;

void PciHost::SetShadowMemory(ShadowMemory* shadow) { bridge_->SetShadowMemory(shadow); }

Status PciHost::Attach(PciDevice& device, unsigned slot, unsigned function) {
  if (slot >= 32 || function >= 8) return Fail("{}: no PCI slot {}.{}", device.name(), slot, function);
  PciDevice*& place = functions_[slot * 8 + function];
  if (place) return Fail("{}: PCI slot {}.{} is taken by {}", device.name(), slot, function, place->name());
  place = &device;
  const unsigned pin = device.ConfigRead(pci::kInterruptPin, 1);
  if (pin >= 1 && pin <= 4) {
    lines_.push_back(pirq_[PirqOf(slot, pin)].NewSource());
    device.SetIntxLine(lines_.back().get());
  }
  return {};
}

Result<unsigned> PciHost::AttachAnywhere(PciDevice& device) {
  for (unsigned slot = 1; slot < 32; ++slot) {
    if (functions_[slot * 8]) continue;
    NACRE_TRY_STATUS(Attach(device, slot));
    return slot;
  }
  return Fail("{}: all 31 PCI slots are taken", device.name());
}

Status PciHost::AssignResources(const PciWindows& windows) {
  struct Request {
    PciDevice* device;
    unsigned bar;
    uint64_t size;
  };
  std::vector<Request> requests;
  for (PciDevice* device : functions_) {
    for (unsigned bar = 0; device && bar < pci::kBarCount; ++bar) {
      if (device->HasBar(bar)) requests.push_back({device, bar, device->bar_size(bar)});
    }
  }
  // Falling sizes need no gaps.
  std::ranges::stable_sort(requests, std::greater(), &Request::size);
  uint64_t io = windows.io_start;
  uint64_t memory32 = windows.memory32_start;
  uint64_t memory64 = windows.memory64_start;
  for (const Request& request : requests) {
    const BarKind kind = request.device->bar_kind(request.bar);
    const bool wide = kind == BarKind::kMemory64 || kind == BarKind::kMemory64Prefetchable;
    const bool high = wide && windows.memory64_end > windows.memory64_start;
    uint64_t& next = kind == BarKind::kIo ? io : high ? memory64 : memory32;
    const uint64_t end = kind == BarKind::kIo ? windows.io_end : high ? windows.memory64_end : windows.memory32_end;
    const uint64_t address = AlignUp(next, request.size);
    if (address < next || address > end || request.size > end - address)
      return Fail("{}: no room for a PCI region of {} bytes", request.device->name(), request.size);
    next = address + request.size;
    const unsigned offset = pci::kBar0 + 4 * request.bar;
    request.device->ConfigWrite(offset, 4, static_cast<uint32_t>(address));
    if (wide) request.device->ConfigWrite(offset + 4, 4, static_cast<uint32_t>(address >> 32));
  }
  for (unsigned i = 0; i < functions_.size(); ++i) {
    PciDevice* device = functions_[i];
    if (!device || device == bridge_.get()) continue;
    const unsigned pin = device->ConfigRead(pci::kInterruptPin, 1);
    if (pin >= 1 && pin <= 4) device->ConfigWrite(pci::kInterruptLine, 1, pirq_number_[PirqOf(i / 8, pin)]);
    device->ConfigWrite(pci::kCommand, 2, pci::kCommandIo | pci::kCommandMemory);
  }
  return {};
}

PciHost::Span PciHost::BarsAbove4G() const {
  Span span{~uint64_t{0}, 0};
  for (const PciDevice* device : functions_) {
    for (unsigned bar = 0; device && bar < pci::kBarCount; ++bar) {
      const std::optional<uint64_t> address = device->BarAddress(bar);
      if (!address || *address < 4 * kGiB) continue;
      span.first = std::min(span.first, *address);
      span.last = std::max(span.last, *address + (device->bar_size(bar) - 1));
    }
  }
  return span.last == 0 ? Span{} : span;
}

PciDevice* PciHost::Selected() const {
  if (!TestBit(address_, 31)) return nullptr;
  return Find(static_cast<unsigned>(Bits(address_, 16, 8)), static_cast<unsigned>(Bits(address_, 8, 8)));
}

uint64_t PciHost::Io::Read(uint64_t offset, unsigned size) {
  if (offset < 4) {
    if (offset == 0 && size == 4) return host.address_;
    if (offset == 1 && size == 1 && host.reset_control_) return host.reset_control_->Read(0, 1);
    return MaskToSize(~uint64_t{0}, size);
  }
  PciDevice* device = host.Selected();
  if (!device || offset + size > 8) return MaskToSize(~uint64_t{0}, size);
  return device->ConfigRead((host.address_ & 0xfc) + static_cast<unsigned>(offset - 4), size);
}

void PciHost::Io::Write(uint64_t offset, unsigned size, uint64_t value) {
  if (offset < 4) {
    // Only a dword access reaches the address register; others are I/O of their own (3.2.2.3.2).
    if (offset == 0 && size == 4) host.address_ = static_cast<uint32_t>(value) & 0x80fffffc;
    if (offset == 1 && size == 1 && host.reset_control_) host.reset_control_->Write(0, 1, value);
    return;
  }
  PciDevice* device = host.Selected();
  if (!device || offset + size > 8) return;
  device->ConfigWrite((host.address_ & 0xfc) + static_cast<unsigned>(offset - 4), size, static_cast<uint32_t>(value));
}

uint64_t PciHost::Ecam::Read(uint64_t offset, unsigned size) {
  PciDevice* device = host.Find(static_cast<unsigned>(offset >> 20), static_cast<unsigned>(Bits(offset, 12, 8)));
  const auto reg = static_cast<unsigned>(offset & 0xfff);
  if (!device || size > 4 || offset % size != 0) return MaskToSize(~uint64_t{0}, size);
  if (reg >= pci::kConfigSize) return 0;  // no extended capabilities
  return device->ConfigRead(reg, size);
}

void PciHost::Ecam::Write(uint64_t offset, unsigned size, uint64_t value) {
  PciDevice* device = host.Find(static_cast<unsigned>(offset >> 20), static_cast<unsigned>(Bits(offset, 12, 8)));
  if (!device || size > 4 || offset % size != 0) return;
  device->ConfigWrite(static_cast<unsigned>(offset & 0xfff), size, static_cast<uint32_t>(value));
}

void PciHost::Reset() {
  address_ = 0;
  bridge_->Reset();
}

void PciHost::Serialize(state::Archive& archive) {
  archive.Field(1, address_);
  archive.Section(2, 1, [&](state::Archive& inner, uint16_t) { bridge_->Serialize(inner); });
  if (archive.loading()) address_ &= 0x80fffffc;
}

}  // namespace nacre::devices
