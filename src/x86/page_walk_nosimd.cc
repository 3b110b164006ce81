#include <atomic>

#include "x86/page_walk.h"

namespace nacre::x86 {
namespace {

constexpr uint64_t kPresent = Bit(0), kWritable = Bit(1), kUser = Bit(2), kAccessed = Bit(5), kDirty = Bit(6),
                   kLarge = Bit(7), kGlobal = Bit(8), kNoExecute = Bit(63);
constexpr unsigned kMaxLevels = 4;

/// One paging-structure entry seen by a walk, and where it lies in host memory.
struct Entry {
  uint8_t* host = nullptr;  ///< null: in ROM
  uint64_t value = 0;
};

struct Walk {
  Entry entries[kMaxLevels];
  unsigned count = 0;
  bool entry_is_32_bit = false;
  bool writable = true, user = true, no_execute = false;  // combined over the levels
  uint64_t page_bytes = 0;
  uint64_t frame = 0;
};

enum class WalkStatus { kOk, kNotPresent, kReserved };

template <typename T>
uint64_t LoadEntry(const uint8_t* host) {
  return __atomic_load_n(reinterpret_cast<const T*>(host), __ATOMIC_ACQUIRE);
}

/// Adds the entry at `address` to the walk and combines its rights.
template <typename T>
WalkStatus Fetch(memory::GuestMemory& memory, GuestPhys address, Walk& walk, uint64_t& value) {
  const memory::CpuPage page = memory.FindPage(GuestPhys(AlignDown(address.value, kPageSize)));
  if (!page.host) return WalkStatus::kReserved;
  uint8_t* host = page.host + address.page_offset();
  value = LoadEntry<T>(host);
  if (!(value & kPresent)) return WalkStatus::kNotPresent;
  walk.entries[walk.count++] = {page.writable ? host : nullptr, value};
  walk.writable = walk.writable && (value & kWritable);
  walk.user = walk.user && (value & kUser);
  return WalkStatus::kOk;
}

/// 32-bit paging (SDM 3A 4.3).
WalkStatus Walk32(memory::GuestMemory& memory, const CpuState& state, uint32_t linear, unsigned address_bits,
                  Walk& walk) {
  walk.entry_is_32_bit = true;
  uint64_t pde = 0, pte = 0;
  const GuestPhys pde_address((state.cr3 & 0xfffff000) + (linear >> 22) * 4);
  if (WalkStatus status = Fetch<uint32_t>(memory, pde_address, walk, pde); status != WalkStatus::kOk) return status;
  if ((pde & kLarge) && (state.cr4 & cr4::kPse)) {
    // PSE-36: bits 20:13 are address bits 39:32; bit 21 and those beyond the physical width are reserved.
    const unsigned high_bits = address_bits >= 40 ? 8 : address_bits > 32 ? address_bits - 32 : 0;
    if (Bits(pde, 13 + high_bits, 9 - high_bits) != 0) return WalkStatus::kReserved;
    walk.page_bytes = 4 * kMiB;
    walk.frame = (pde & 0xffc00000) | (Bits(pde, 13, 8) << 32);
    return WalkStatus::kOk;
  }
  const GuestPhys pte_address((pde & 0xfffff000) + ((linear >> 12) & 0x3ff) * 4);
  if (WalkStatus status = Fetch<uint32_t>(memory, pte_address, walk, pte); status != WalkStatus::kOk) return status;
  walk.page_bytes = kPageSize;
  walk.frame = pte & 0xfffff000;
  return WalkStatus::kOk;
}

/// PAE (SDM 3A 4.4) and 4-level (4.5) paging share their entries; they differ in the top and in bits 62:52.
WalkStatus Walk64(memory::GuestMemory& memory, const CpuState& state, uint64_t linear, const WalkOptions& options,
                  Walk& walk) {
  const unsigned address_bits = options.physical_address_bits;
  const bool four_level = state.long_mode_active();
  const uint64_t address_mask = Bit(address_bits) - 1;
  uint64_t reserved = Bits(~uint64_t{0}, 0, four_level ? 52 : 63) & ~address_mask;
  if (!(state.msr.efer & efer::kNxe)) reserved |= kNoExecute;
  uint64_t table;
  unsigned shift;
  if (four_level) {
    table = state.cr3 & address_mask & ~kPageMask;
    shift = 39;
  } else {
    const uint64_t pdpte = state.pdpte[Bits(linear, 30, 2)];
    if (!(pdpte & kPresent)) return WalkStatus::kNotPresent;
    table = pdpte & address_mask & ~kPageMask;
    shift = 21;
  }
  for (;; shift -= 9) {
    uint64_t entry = 0;
    const GuestPhys at(table + Bits(linear, shift, 9) * 8);
    if (WalkStatus status = Fetch<uint64_t>(memory, at, walk, entry); status != WalkStatus::kOk) return status;
    walk.no_execute = walk.no_execute || (entry & kNoExecute);
    const bool leaf = shift == 12 || ((entry & kLarge) && shift != 39);
    uint64_t entry_reserved = reserved;
    if (shift == 39 || (shift == 30 && !options.pages_1gib)) entry_reserved |= kLarge;
    if (leaf && shift != 12) entry_reserved |= Bits(~uint64_t{0}, 0, shift) & ~Bits(~uint64_t{0}, 0, 13);
    if (entry & entry_reserved) return WalkStatus::kReserved;
    table = entry & address_mask & ~kPageMask;
    if (!leaf) continue;
    walk.page_bytes = Bit(shift);
    walk.frame = entry & address_mask & ~(walk.page_bytes - 1);
    return WalkStatus::kOk;
  }
}

/// Sets `bits` in an entry unless another CPU changed it since the walk read it.
template <typename T>
bool SetEntryBits(memory::GuestMemory& memory, Entry& entry, uint64_t bits) {
  T expected = static_cast<T>(entry.value);
  const T desired = static_cast<T>(entry.value | bits);
  if (expected == desired || !entry.host) return true;
  if (!__atomic_compare_exchange_n(reinterpret_cast<T*>(entry.host), &expected, desired, false, __ATOMIC_SEQ_CST,
                                   __ATOMIC_RELAXED))
    return false;
  entry.value = desired;
  std::atomic<uint8_t>& flags = memory.PageFlags(memory.PageIndex(entry.host));
  if (!(flags.load(std::memory_order_relaxed) & memory::GuestMemory::kDirty))
    flags.fetch_or(memory::GuestMemory::kDirty, std::memory_order_relaxed);
  return true;
}

bool UpdateAccessedDirty(memory::GuestMemory& memory, Walk& walk, bool write) {
  for (unsigned i = 0; i < walk.count; ++i) {
    const uint64_t bits = kAccessed | (write && i + 1 == walk.count ? kDirty : 0);
    const bool done = walk.entry_is_32_bit ? SetEntryBits<uint32_t>(memory, walk.entries[i], bits)
                                           : SetEntryBits<uint64_t>(memory, walk.entries[i], bits);
    if (!done) return false;
  }
  return true;
}

uint32_t ErrorCode(const CpuState& state, const WalkOptions& options, uint32_t cause) {
  uint32_t code = cause;
  if (options.access == Access::kWrite) code |= pf::kWrite;
  if (options.user) code |= pf::kUser;
  const bool nx = (state.cr4 & cr4::kPae) && (state.msr.efer & efer::kNxe);
  if (options.access == Access::kExecute && (nx || (state.cr4 & cr4::kSmep))) code |= pf::kFetch;
  return code;
}

/// SDM 3A 4.6.
void FillRights(const CpuState& state, const WalkOptions& options, const Walk& walk, Translation& result) {
  result.user = walk.user;
  if (options.user) {
    result.readable = walk.user;
    result.writable = walk.user && walk.writable;
    result.executable = walk.user && !walk.no_execute;
    return;
  }
  const bool smap_blocks = walk.user && (state.cr4 & cr4::kSmap) && !options.smap_override;
  result.readable = !smap_blocks;
  result.writable = !smap_blocks && (walk.writable || !(state.cr0 & cr0::kWp));
  result.executable = !walk.no_execute && !(walk.user && (state.cr4 & cr4::kSmep));
}

}  // namespace

Translation WalkPages(memory::GuestMemory& memory, const CpuState& state, GuestVirt address,
                      const WalkOptions& options) {
  const uint64_t linear = state.long_mode_active() ? address.value : address.value & 0xffffffff;
  Translation result;
  if (!state.paging()) {
    result.ok = result.readable = result.writable = result.executable = result.user = true;
    result.address = GuestPhys(linear);
    return result;
  }
  for (;;) {
    Walk walk;
    const WalkStatus status = state.cr4 & cr4::kPae ? Walk64(memory, state, linear, options, walk)
                                                    : Walk32(memory, state, static_cast<uint32_t>(linear),
                                                             options.physical_address_bits, walk);
    if (status != WalkStatus::kOk) {
      result.error_code = ErrorCode(state, options, status == WalkStatus::kReserved ? pf::kPresent | pf::kReserved : 0);
      return result;
    }
    FillRights(state, options, walk, result);
    const bool write = options.access == Access::kWrite;
    const bool permitted = write                                ? result.writable
                           : options.access == Access::kExecute ? result.executable
                                                                : result.readable;
    if (!permitted) {
      result = Translation{};
      result.error_code = ErrorCode(state, options, pf::kPresent);
      return result;
    }
    if (options.set_bits && !UpdateAccessedDirty(memory, walk, write)) continue;
    const uint64_t leaf = walk.entries[walk.count - 1].value;
    if (!(leaf & kDirty)) result.writable = false;
    result.ok = true;
    result.page_bytes = walk.page_bytes;
    result.address = GuestPhys(walk.frame + (linear & (walk.page_bytes - 1)));
    result.global = (leaf & kGlobal) && (state.cr4 & cr4::kPge);
    return result;
  }
}

bool LoadPdptes(memory::GuestMemory& memory, CpuState& state, uint64_t cr3, unsigned physical_address_bits) {
  // Bits 2:1, 8:5 and those from the physical width up are reserved in a present entry (SDM 3A 4.4.1).
  const uint64_t reserved = 0x1e6 | ~(Bit(physical_address_bits) - 1);
  uint64_t entries[4];
  for (unsigned i = 0; i < 4; ++i) {
    const GuestPhys address((cr3 & 0xffffffe0) + i * 8);
    const memory::CpuPage page = memory.FindPage(GuestPhys(AlignDown(address.value, kPageSize)));
    entries[i] = page.host ? LoadEntry<uint64_t>(page.host + address.page_offset()) : ~uint64_t{0};
    if ((entries[i] & kPresent) && (entries[i] & reserved)) return false;
  }
  for (unsigned i = 0; i < 4; ++i) state.pdpte[i] = entries[i];
  return true;
}

}  // namespace nacre::x86
