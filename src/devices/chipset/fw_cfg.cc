#include "devices/chipset/fw_cfg.h"

#include <algorithm>

#include "base/bits.h"
#include "base/check.h"

namespace nacre::devices {
namespace {

constexpr uint32_t kDmaError = 1, kDmaRead = 2, kDmaSkip = 4, kDmaSelect = 8, kDmaWrite = 16;
constexpr uint64_t kDmaSignature = 0x51454d5520434647;  // "QEMU CFG"
constexpr uint32_t kIdPorts = 1, kIdDma = 2;
constexpr size_t kNameField = 56;
/// Beyond an item's end zeros are read: so many at once, a guest's request of 4 GiB must not hold up the machine.
constexpr uint64_t kMaxZeros = 1 * kMiB;

void PutBig32(FwCfg::Bytes& to, uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) to.push_back(static_cast<uint8_t>(value >> shift));
}

uint64_t LoadBig(const uint8_t* bytes, unsigned count) {
  uint64_t value = 0;
  for (unsigned i = 0; i < count; ++i) value = value << 8 | bytes[i];
  return value;
}

uint64_t SwapBytes(uint64_t value, unsigned size) { return __builtin_bswap64(value) >> (64 - 8 * size); }

}  // namespace

FwCfg::FwCfg(memory::GuestMemory& memory) : memory_(memory) {
  Add(kSignature, {'Q', 'E', 'M', 'U'});
  AddValue<uint32_t>(kId, kIdPorts | kIdDma);
  RebuildDirectory();
}

void FwCfg::Add(uint16_t key, Bytes bytes) {
  NACRE_CHECK(bytes.size() <= kMaxItem);
  const bool added = items_.try_emplace(key, Item{std::move(bytes), nullptr, nullptr}).second;
  NACRE_CHECK(added);
}

void FwCfg::AddFile(std::string_view name, Bytes bytes) { AddFile(name, std::move(bytes), nullptr); }

void FwCfg::AddFile(std::string_view name, Bytes bytes, std::function<Bytes()> make) {
  NACRE_CHECK(!name.empty() && name.size() <= kMaxFileName && files_.size() < kMaxFiles);
  const auto key = static_cast<uint16_t>(kFirstFile + files_.size());
  if (make) std::ranges::fill(bytes, uint8_t{0});
  const bool added = files_.emplace(std::string(name), key).second;
  NACRE_CHECK(added && bytes.size() <= kMaxItem);
  items_[key] = Item{std::move(bytes), std::move(make), nullptr};
  RebuildDirectory();
}

void FwCfg::AddWritableFile(std::string_view name, size_t size_bytes, std::function<void(const Bytes&)> written) {
  AddFile(name, Bytes(size_bytes));
  items_.at(files_.find(name)->second).written = std::move(written);
}

const FwCfg::Bytes* FwCfg::File(std::string_view name) const {
  const auto file = files_.find(name);
  return file == files_.end() ? nullptr : &items_.at(file->second).bytes;
}

/// Sorted by name, as firmware may rely on.
void FwCfg::RebuildDirectory() {
  Bytes directory;
  PutBig32(directory, static_cast<uint32_t>(files_.size()));
  for (const auto& [name, key] : files_) {
    PutBig32(directory, static_cast<uint32_t>(items_.at(key).bytes.size()));
    PutBig32(directory, uint32_t{key} << 16);
    directory.insert(directory.end(), name.begin(), name.end());
    directory.resize(directory.size() + kNameField - name.size());
  }
  items_[kFileDirectory].bytes = std::move(directory);
}

void FwCfg::Reset() {
  for (auto& [key, item] : items_)
    if (item.changes()) std::ranges::fill(item.bytes, uint8_t{0});
  key_ = 0;
  offset_ = 0;
  dma_high_ = 0;
}

FwCfg::Item* FwCfg::Selected() {
  const auto item = items_.find(key_);
  return item == items_.end() ? nullptr : &item->second;
}

void FwCfg::Select(uint16_t key) {
  key_ = key;
  offset_ = 0;
  Item* item = Selected();
  if (!item || !item->make) return;
  Bytes fresh = item->make();
  fresh.resize(item->bytes.size());
  item->bytes = std::move(fresh);
}

uint8_t FwCfg::NextByte() {
  const Item* item = Selected();
  return item && offset_ < item->bytes.size() ? item->bytes[offset_++] : 0;
}

/// The selector is written with 16 bits; the data port is read by bytes, and string instructions read it byte by byte.
uint64_t FwCfg::Io::Read(uint64_t offset, unsigned size) {
  if (offset == 1) return (MaskToSize(~uint64_t{0}, size) & ~uint64_t{0xff}) | device.NextByte();
  return MaskToSize(~uint64_t{0}, size);
}

void FwCfg::Io::Write(uint64_t offset, unsigned size, uint64_t value) {
  if (offset == 0 && size == 2) device.Select(static_cast<uint16_t>(value));
}

uint64_t FwCfg::DmaIo::Read(uint64_t offset, unsigned size) {
  if (offset + size > 8) return MaskToSize(~uint64_t{0}, size);
  // Big-endian: the first byte of the signature at the lowest port.
  return MaskToSize(SwapBytes(kDmaSignature, 8) >> (8 * offset), size);
}

/// The high half waits for the low one, which starts.
void FwCfg::DmaIo::Write(uint64_t offset, unsigned size, uint64_t value) {
  if (size != 4) return;
  const auto half = static_cast<uint32_t>(SwapBytes(value, 4));
  if (offset == 0) device.dma_high_ = half;
  if (offset != 4) return;
  const uint64_t address = uint64_t{device.dma_high_} << 32 | half;
  device.dma_high_ = 0;
  device.RunDma(address);
}

/// FWCfgDmaAccess: control, length (32 bits each), address (64 bits), big-endian.
void FwCfg::RunDma(uint64_t at) {
  uint8_t access[16];
  if (!memory_.Read(GuestPhys(at), access)) return;
  const auto control = static_cast<uint32_t>(LoadBig(access, 4));
  const auto length = static_cast<uint32_t>(LoadBig(access + 4, 4));
  const uint64_t address = LoadBig(access + 8, 8);
  if ((control & kDmaSelect) != 0) Select(static_cast<uint16_t>(control >> 16));
  const bool done = Transfer(control, length, address);
  const uint8_t result[4] = {0, 0, 0, static_cast<uint8_t>(done ? 0 : kDmaError)};
  memory_.Write(GuestPhys(at), result);
}

bool FwCfg::Transfer(uint32_t control, uint32_t length, uint64_t address) {
  if ((control & (kDmaRead | kDmaSkip | kDmaWrite)) == 0) return true;
  if ((control & (kDmaRead | kDmaWrite)) == kDmaWrite) return WriteItem(length, address);
  const Item* item = Selected();
  const uint64_t left = item && offset_ < item->bytes.size() ? item->bytes.size() - offset_ : 0;
  const uint64_t count = std::min<uint64_t>(length, left);
  if ((control & kDmaRead) != 0) {
    if (count != 0 && !memory_.Write(GuestPhys(address), {item->bytes.data() + offset_, count})) return false;
    if (length - count > kMaxZeros) return false;
    const Bytes zeros(length - count);
    if (!zeros.empty() && !memory_.Write(GuestPhys(address + count), zeros)) return false;
  }
  offset_ += count;
  return true;
}

/// All of it, or nothing.
bool FwCfg::WriteItem(uint32_t length, uint64_t address) {
  Item* item = Selected();
  if (!item || !item->written || offset_ > item->bytes.size() || length > item->bytes.size() - offset_) return false;
  if (length != 0 && !memory_.Read(GuestPhys(address), std::span(item->bytes).subspan(offset_, length))) return false;
  offset_ += length;
  item->written(item->bytes);
  return true;
}

void FwCfg::Serialize(state::Archive& archive) {
  archive.Field(1, key_);
  archive.Field(2, offset_);
  archive.Field(3, dma_high_);
  // The items are the machine's configuration; what was made for the guest may be half read, and it may have written.
  for (auto& [key, item] : items_) {
    if (!item.changes()) continue;
    Bytes bytes = item.bytes;
    archive.Bytes(static_cast<uint16_t>(0x100 + key), bytes, item.bytes.size());
    bytes.resize(item.bytes.size());
    if (archive.loading() && archive.ok()) item.bytes = std::move(bytes);
  }
  if (archive.loading()) offset_ = std::min(offset_, kMaxItem);
}

}  // namespace nacre::devices
