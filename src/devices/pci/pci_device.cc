#include "devices/pci/pci_device.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "base/bits.h"
#include "base/check.h"

namespace nacre::devices {

using namespace pci;

namespace {

constexpr uint32_t kRomEnable = 1;

bool IsIo(BarKind kind) { return kind == BarKind::kIo; }
bool Is64(BarKind kind) { return kind == BarKind::kMemory64 || kind == BarKind::kMemory64Prefetchable; }

uint32_t BarFlags(BarKind kind) {
  switch (kind) {
    case BarKind::kIo:
      return 1;
    case BarKind::kMemory32:
      return 0;
    case BarKind::kMemory64:
      return 4;
    case BarKind::kMemory64Prefetchable:
      return 0xc;
  }
  return 0;
}

}  // namespace

PciDevice::PciDevice(std::string name, const PciIdentity& identity, const PciWiring& wiring)
    : name_(std::move(name)), identity_(identity), wiring_(wiring) {
  NACRE_CHECK(wiring.ports && wiring.memory && wiring.msi);
  uint8_t* reset = reset_value_.data();
  StoreLe(reset + kVendorId, identity.vendor);
  StoreLe(reset + kDeviceId, identity.device);
  reset[kRevision] = identity.revision;
  reset[kClass] = static_cast<uint8_t>(identity.class_code);
  reset[kClass + 1] = static_cast<uint8_t>(identity.class_code >> 8);
  reset[kClass + 2] = static_cast<uint8_t>(identity.class_code >> 16);
  StoreLe(reset + kSubsystemVendor, identity.subsystem_vendor);
  StoreLe(reset + kSubsystemId, identity.subsystem);
  reset[kInterruptPin] = identity.interrupt_pin;
  const uint16_t command = kCommandIo | kCommandMemory | kCommandMaster | 1 << 6 | 1 << 8 | kCommandIntxDisable;
  StoreLe(write_mask_.data() + kCommand, command);
  write_mask_[kCacheLine] = 0xff;
  write_mask_[kLatency] = 0xff;
  write_mask_[kInterruptLine] = 0xff;
  config_ = reset_value_;
}

PciDevice::~PciDevice() = default;

class PciDevice::Vector final : public bus::MsiVector {
 public:
  Vector(PciDevice& device, std::unique_ptr<bus::MsiVector> way) : device_(device), way_(std::move(way)) {}
  void Set(const std::optional<bus::MsiMessage>& message) override { way_->Set(message); }
  void Send() override {
    if (device_.bus_master()) way_->Send();
  }

 private:
  PciDevice& device_;
  std::unique_ptr<bus::MsiVector> way_;
};

std::unique_ptr<bus::MsiVector> PciDevice::NewVector() {
  return std::make_unique<Vector>(*this, wiring_.msi->NewVector());
}

void PciDevice::AddBar(unsigned index, BarKind kind, uint64_t size_bytes) {
  NACRE_CHECK(index < kBarCount && !HasBar(index) && std::has_single_bit(size_bytes));
  NACRE_CHECK(IsIo(kind) ? size_bytes >= 4 && size_bytes <= 256 : size_bytes >= 16);
  NACRE_CHECK(Is64(kind) ? index + 1 < kBarCount && !HasBar(index + 1) : size_bytes <= 2 * kGiB);
  bars_[index].kind = kind;
  bars_[index].size = size_bytes;
  const unsigned offset = kBar0 + 4 * index;
  // Sizing (6.2.5.1) falls out of the mask: bits below the size stay zero when all ones are written.
  const uint64_t mask = ~(size_bytes - 1);
  StoreLe(&reset_value_[offset], BarFlags(kind));
  StoreLe(&write_mask_[offset], static_cast<uint32_t>(mask));
  if (Is64(kind)) StoreLe(&write_mask_[offset + 4], static_cast<uint32_t>(mask >> 32));
  config_ = reset_value_;
}

void PciDevice::AddBarBlock(unsigned index, uint64_t offset, uint64_t size_bytes, bus::IoHandler& handler) {
  NACRE_CHECK(HasBar(index) && size_bytes != 0 && offset < bars_[index].size &&
              size_bytes <= bars_[index].size - offset);
  bars_[index].blocks.push_back({offset, size_bytes, &handler, {}});
}

void PciDevice::AddRom(std::vector<uint8_t> image) {
  NACRE_CHECK(!rom_ && !image.empty() && image.size() <= 16 * kMiB);
  rom_ = std::make_unique<Rom>();
  rom_->size = std::bit_ceil(std::max<uint64_t>(image.size(), 2 * kKiB));
  rom_->image = std::move(image);
  StoreLe(&write_mask_[kRom], static_cast<uint32_t>(~(rom_->size - 1) | kRomEnable));
}

uint64_t PciDevice::Rom::Read(uint64_t offset, unsigned access) {
  uint64_t value = 0;
  for (unsigned i = 0; i < access; ++i)
    value |= uint64_t{offset + i < image.size() ? image[offset + i] : uint8_t{0xff}} << (8 * i);
  return value;
}

unsigned PciDevice::AddBarDoorbell(unsigned index, uint64_t offset, bus::Doorbell& doorbell) {
  NACRE_CHECK(HasBar(index) && !IsIo(bars_[index].kind) && offset < bars_[index].size);
  doorbells_.push_back({.bar = index, .offset = offset, .doorbell = &doorbell, .on = false, .mapping = {}});
  return static_cast<unsigned>(doorbells_.size() - 1);
}

void PciDevice::SetDoorbell(unsigned number, bool on) {
  if (doorbells_[number].on == on) return;
  doorbells_[number].on = on;
  UpdateDoorbell(doorbells_[number], false);
}

void PciDevice::UpdateDoorbell(BarDoorbell& doorbell, bool moved) {
  const std::optional<uint64_t> base = doorbell.on ? bars_[doorbell.bar].mapped_at : std::nullopt;
  if (doorbell.mapping && (moved || !base)) {
    doorbell.mapping->Stop();
    doorbell.mapping.reset();
  }
  if (base && !doorbell.mapping)
    doorbell.mapping =
        std::make_unique<bus::DoorbellMapping>(*wiring_.memory, *base + doorbell.offset, *doorbell.doorbell);
}

uint8_t PciDevice::AllocateCapability(uint8_t id, unsigned size_bytes) {
  const unsigned offset = next_capability_;
  NACRE_CHECK(offset + size_bytes <= kConfigSize);
  next_capability_ = static_cast<unsigned>(AlignUp(offset + size_bytes, 4));
  reset_value_[offset] = id;
  reset_value_[last_capability_ ? last_capability_ + 1u : kCapabilities] = static_cast<uint8_t>(offset);
  reset_value_[kStatus] |= kStatusCapabilities;
  last_capability_ = static_cast<uint8_t>(offset);
  return last_capability_;
}

uint8_t PciDevice::AddCapability(uint8_t id, std::span<const uint8_t> body, std::span<const uint8_t> write_mask) {
  NACRE_CHECK(write_mask.empty() || write_mask.size() == body.size());
  const uint8_t offset = AllocateCapability(id, static_cast<unsigned>(2 + body.size()));
  std::ranges::copy(body, reset_value_.begin() + offset + 2);
  std::ranges::copy(write_mask, write_mask_.begin() + offset + 2);
  config_ = reset_value_;
  return offset;
}

void PciDevice::AddMsix(unsigned bar, uint64_t offset, unsigned vectors) {
  NACRE_CHECK(!msix_ && HasBar(bar) && !IsIo(bars_[bar].kind) && offset % kPageSize == 0);
  msix_.emplace(vectors, static_cast<bus::MsiSink&>(*this));
  uint8_t body[10];
  uint8_t mask[10] = {};
  StoreLe(&body[0], static_cast<uint16_t>(vectors - 1));
  StoreLe(&body[2], static_cast<uint32_t>(offset | bar));
  StoreLe(&body[6], static_cast<uint32_t>((offset + Msix::PbaOffset(vectors)) | bar));
  StoreLe(&mask[0], static_cast<uint16_t>(Msix::kEnable | Msix::kFunctionMask));
  msix_offset_ = AddCapability(kCapMsix, body, mask);
  AddBarBlock(bar, offset, Msix::BlockSize(vectors), *msix_);
}

void PciDevice::AddMsi(unsigned vectors) {
  NACRE_CHECK(!msi_ && std::has_single_bit(vectors) && vectors <= 32);
  uint8_t body[Msi::kBodySize];
  uint8_t mask[Msi::kBodySize];
  Msi::Describe(vectors, body, mask);
  msi_offset_ = AddCapability(kCapMsi, body, mask);
  msi_.emplace(vectors, &config_[msi_offset_], static_cast<bus::MsiSink&>(*this));
}

void PciDevice::DefineConfig(unsigned offset, unsigned size, uint32_t value, uint32_t write_mask) {
  NACRE_CHECK(offset + size <= kConfigSize && (size == 1 || size == 2 || size == 4));
  for (unsigned i = 0; i < size; ++i) {
    reset_value_[offset + i] = static_cast<uint8_t>(value >> (8 * i));
    write_mask_[offset + i] = static_cast<uint8_t>(write_mask >> (8 * i));
  }
  config_ = reset_value_;
}

uint32_t PciDevice::ConfigRead(unsigned offset, unsigned size) {
  if (offset >= kConfigSize || size > kConfigSize - offset)
    return static_cast<uint32_t>(MaskToSize(~uint64_t{0}, size));
  BeforeConfigRead(offset, size);
  uint32_t value = 0;
  for (unsigned i = 0; i < size; ++i) value |= uint32_t{config_[offset + i]} << (8 * i);
  return value;
}

void PciDevice::ConfigWrite(unsigned offset, unsigned size, uint32_t value) {
  if (offset >= kConfigSize || size > kConfigSize - offset) return;
  for (unsigned i = 0; i < size; ++i) {
    const uint8_t mask = write_mask_[offset + i];
    config_[offset + i] = static_cast<uint8_t>((config_[offset + i] & ~mask) | ((value >> (8 * i)) & mask));
  }
  const auto touches = [&](unsigned start, unsigned length) {
    return offset < start + length && start < offset + size;
  };
  if (touches(kCommand, 2)) {
    UpdateBars();
    UpdateRom();
    UpdateIntx();
  } else if (touches(kBar0, 4 * kBarCount)) {
    UpdateBars();
  } else if (touches(kRom, 4)) {
    UpdateRom();
  }
  if (msix_ && touches(msix_offset_ + 2u, 2)) UpdateMessageControl();
  if (msi_ && touches(msi_offset_ + 2u, Msi::kBodySize)) msi_->Update();
  AfterConfigWrite(offset, size);
}

std::optional<uint64_t> PciDevice::BarAddress(unsigned index) const {
  if (!HasBar(index)) return std::nullopt;
  const Bar& bar = bars_[index];
  if ((command() & (IsIo(bar.kind) ? kCommandIo : kCommandMemory)) == 0) return std::nullopt;
  const uint8_t* registers = &config_[kBar0 + 4 * index];
  uint64_t address = Is64(bar.kind) ? LoadLe<uint64_t>(registers) : LoadLe<uint32_t>(registers);
  address &= ~(bar.size - 1);
  const uint64_t limit = IsIo(bar.kind) ? 0xffff : Is64(bar.kind) ? ~uint64_t{0} : 0xffffffff;
  // 0 and the top are what firmware leaves or sizing writes: not an address.
  if (address == 0 || address > limit || bar.size - 1 >= limit - address) return std::nullopt;
  return address;
}

void PciDevice::UpdateBars() {
  for (unsigned i = 0; i < kBarCount; ++i) {
    Bar& bar = bars_[i];
    if (bar.size == 0) continue;
    const std::optional<uint64_t> address = BarAddress(i);
    if (address == bar.mapped_at) continue;
    bar.mapped_at = address;
    for (BarBlock& block : bar.blocks) {
      block.mapping.Remove();
      if (!address) continue;
      if (IsIo(bar.kind)) {
        block.mapping = wiring_.ports->Add(*address + block.offset, block.size, *block.handler, name_);
      } else {
        block.mapping = wiring_.memory->Add(*address + block.offset, block.size, *block.handler, name_);
      }
    }
    for (BarDoorbell& doorbell : doorbells_)
      if (doorbell.bar == i) UpdateDoorbell(doorbell, true);
    BarMoved(i);
  }
}

void PciDevice::UpdateRom() {
  if (!rom_) return;
  const auto value = LoadLe<uint32_t>(&config_[kRom]);
  const uint64_t base = value & ~(rom_->size - 1);
  const bool enabled =
      (value & kRomEnable) && (command() & kCommandMemory) && base != 0 && base + rom_->size < 4 * kGiB;
  const std::optional<uint64_t> address = enabled ? std::optional(base) : std::nullopt;
  if (address == rom_->mapped_at) return;
  rom_->mapped_at = address;
  rom_->mapping.Remove();
  if (address) rom_->mapping = wiring_.memory->Add(*address, rom_->size, *rom_, name_);
}

void PciDevice::SetIntx(bool level) {
  if (level == intx_level_) return;
  intx_level_ = level;
  UpdateIntx();
}

void PciDevice::UpdateIntx() {
  config_[kStatus] =
      static_cast<uint8_t>((config_[kStatus] & ~kStatusInterrupt) | (intx_level_ ? kStatusInterrupt : 0));
  if (intx_line_) intx_line_->Set(intx_level_ && (command() & kCommandIntxDisable) == 0);
}

void PciDevice::UpdateMessageControl() {
  if (msix_) msix_->SetControl(LoadLe<uint16_t>(&config_[msix_offset_ + 2u]));
}

void PciDevice::NotifyVector(unsigned vector) {
  if (msix_enabled()) {
    msix_->Notify(vector);
  } else if (msi_enabled()) {
    msi_->Notify(vector);
  }
}

void PciDevice::Reset() {
  config_ = reset_value_;
  intx_level_ = false;
  if (msix_) msix_->Reset();
  ApplyConfig();
  ResetFunction();
}

void PciDevice::ApplyConfig() {
  UpdateBars();
  UpdateRom();
  UpdateIntx();
  UpdateMessageControl();
  if (msi_) msi_->Update();
}

void PciDevice::Serialize(state::Archive& archive) {
  Quiesce();
  archive.Section(1, 1, [&](state::Archive& pci, uint16_t) {
    std::array<uint8_t, kConfigSize> loaded = config_;
    pci.Bytes(1, std::span<uint8_t>(loaded));
    bool level = intx_level_;
    pci.Field(2, level);
    if (msix_) pci.Section(3, 1, [&](state::Archive& inner, uint16_t) { msix_->Serialize(inner); });
    if (!pci.loading() || !pci.ok()) return;
    intx_level_ = level;
    // Only what a guest can write and what the function itself changes is taken from the file.
    for (unsigned i = 0; i < kConfigSize; ++i)
      config_[i] = static_cast<uint8_t>((reset_value_[i] & ~write_mask_[i]) | (loaded[i] & write_mask_[i]));
    if (msi_) std::copy_n(&loaded[msi_offset_ + 20u], 4, &config_[msi_offset_ + 20u]);
    ApplyConfig();
  });
  archive.Section(2, 1, [&](state::Archive& own, uint16_t) { SerializeFunction(own); });
}

}  // namespace nacre::devices
