#include "devices/pci/msix.h"

#include <algorithm>

#include "base/bits.h"
#include "base/check.h"

namespace nacre::devices {
namespace {

constexpr uint64_t kEntrySize = 16;

}  // namespace

Msix::Msix(unsigned vectors, bus::MsiSink& sink) : table_(vectors), pending_((vectors + 31) / 32) {
  NACRE_CHECK(vectors >= 1 && vectors <= kMaxVectors);
  for (Entry& entry : table_) entry.way = sink.NewVector();
  // Quadwords are the unit of the pending bits.
  if (pending_.size() % 2 != 0) pending_.push_back(0);
}

uint64_t Msix::PbaOffset(unsigned vectors) {
  return std::max<uint64_t>(AlignUp(vectors * kEntrySize, kPageSize / 2), kPageSize / 2);
}

uint64_t Msix::BlockSize(unsigned vectors) { return AlignUp(PbaOffset(vectors) + AlignUp(vectors, 64) / 8, kPageSize); }

uint32_t Msix::ReadWord(uint64_t offset) const {
  if (const uint64_t vector = offset / kEntrySize; vector < table_.size()) {
    const Entry& entry = table_[vector];
    switch (offset % kEntrySize) {
      case 0:
        return static_cast<uint32_t>(entry.address);
      case 4:
        return static_cast<uint32_t>(entry.address >> 32);
      case 8:
        return entry.data;
      default:
        return entry.control;
    }
  }
  const uint64_t pba = PbaOffset(vectors());
  if (offset >= pba && (offset - pba) / 4 < pending_.size()) return pending_[(offset - pba) / 4];
  return 0;
}

void Msix::WriteWord(uint64_t offset, uint32_t value, uint32_t mask) {
  const uint64_t vector = offset / kEntrySize;
  if (vector >= table_.size()) return;  // the pending bits are read-only
  Entry& entry = table_[vector];
  const auto merge = [&](uint32_t old) { return (old & ~mask) | (value & mask); };
  switch (offset % kEntrySize) {
    case 0:
      entry.address = (entry.address & ~uint64_t{0xffffffff}) | (merge(static_cast<uint32_t>(entry.address)) & ~3u);
      break;
    case 4:
      entry.address = Bits(entry.address, 0, 32) | uint64_t{merge(static_cast<uint32_t>(entry.address >> 32))} << 32;
      break;
    case 8:
      entry.data = merge(entry.data);
      break;
    default:
      entry.control = merge(entry.control) & 1;
  }
  Announce(static_cast<unsigned>(vector));
  SendIfPending(static_cast<unsigned>(vector));
}

uint64_t Msix::Read(uint64_t offset, unsigned size) {
  const uint64_t first = AlignDown(offset, 4);
  uint64_t low = ReadWord(first);
  const unsigned shift = static_cast<unsigned>(offset - first) * 8;
  uint64_t value = low >> shift;
  if (shift + size * 8 > 32) value |= uint64_t{ReadWord(first + 4)} << (32 - shift);
  if (shift + size * 8 > 64) value |= uint64_t{ReadWord(first + 8)} << (64 - shift);
  return MaskToSize(value, size);
}

void Msix::Write(uint64_t offset, unsigned size, uint64_t value) {
  // Words in rising order, so that a quadword write of data and control uses the new data.
  for (unsigned done = 0; done < size;) {
    const uint64_t word = AlignDown(offset + done, 4);
    const unsigned shift = static_cast<unsigned>(offset + done - word);
    const unsigned count = std::min(4 - shift, size - done);
    const auto part = static_cast<uint32_t>(MaskToSize(value >> (8 * done), count) << (8 * shift));
    const auto mask = static_cast<uint32_t>((Bit(8 * count) - 1) << (8 * shift));
    WriteWord(word, part, mask);
    done += count;
  }
}

void Msix::SendIfPending(unsigned vector) {
  uint32_t& word = pending_[vector / 32];
  if (!TestBit(word, vector % 32) || !enabled() || Masked(vector)) return;
  word &= ~(1u << (vector % 32));
  table_[vector].way->Send();
}

void Msix::Announce(unsigned vector) {
  const Entry& entry = table_[vector];
  if (!enabled())
    entry.way->Set(std::nullopt);
  else if (!Masked(vector))
    entry.way->Set(bus::MsiMessage{entry.address, entry.data});
}

void Msix::AnnounceAll() {
  for (unsigned vector = 0; vector < table_.size(); ++vector) Announce(vector);
}

void Msix::Notify(unsigned vector) {
  if (vector >= table_.size() || !enabled()) return;
  if (Masked(vector)) {
    pending_[vector / 32] |= 1u << (vector % 32);
  } else {
    table_[vector].way->Send();
  }
}

void Msix::SetControl(uint16_t control) {
  control_ = control & (kEnable | kFunctionMask);
  AnnounceAll();
  if (!enabled() || (control_ & kFunctionMask)) return;
  for (unsigned vector = 0; vector < table_.size(); ++vector) SendIfPending(vector);
}

void Msix::Reset() {
  control_ = 0;
  for (Entry& entry : table_) {
    entry.address = entry.data = 0;
    entry.control = 1;
    entry.way->Set(std::nullopt);
  }
  std::ranges::fill(pending_, 0u);
}

void Msix::Serialize(state::Archive& archive) {
  std::vector<uint8_t> table(table_.size() * kEntrySize);
  std::vector<uint8_t> pending(pending_.size() * 4);
  for (size_t i = 0; i < table_.size(); ++i) {
    StoreLe(&table[i * kEntrySize], table_[i].address);
    StoreLe(&table[i * kEntrySize + 8], table_[i].data);
    StoreLe(&table[i * kEntrySize + 12], table_[i].control);
  }
  for (size_t i = 0; i < pending_.size(); ++i) StoreLe(&pending[i * 4], pending_[i]);
  archive.Bytes(1, std::span<uint8_t>(table));
  archive.Bytes(2, std::span<uint8_t>(pending));
  if (!archive.loading() || !archive.ok()) return;
  for (size_t i = 0; i < table_.size(); ++i) {
    table_[i].address = LoadLe<uint64_t>(&table[i * kEntrySize]) & ~uint64_t{3};
    table_[i].data = LoadLe<uint32_t>(&table[i * kEntrySize + 8]);
    table_[i].control = LoadLe<uint32_t>(&table[i * kEntrySize + 12]) & 1;
  }
  for (size_t i = 0; i < pending_.size(); ++i) pending_[i] = LoadLe<uint32_t>(&pending[i * 4]);
  // Bits beyond the last vector do not exist.
  for (size_t bit = table_.size(); bit < pending_.size() * 32; ++bit) pending_[bit / 32] &= ~(1u << (bit % 32));
  AnnounceAll();
}

}  // namespace nacre::devices
