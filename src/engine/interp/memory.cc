// Guest memory as the interpreter's instructions see it: segmentation (SDM 3A ch. 5), the software TLB over the page
// walk, RAM and MMIO, data breakpoints (SDM 3B 17.2.4) and alignment checks (SDM 3A 6.15 "#AC").

#include <algorithm>
#include <bit>

#include "engine/interp/core.h"

namespace nacre::engine::interp {

using memory::GuestMemory;
using x86::Access;

namespace {

/// Largest access of a power-of-two size that `size` bytes at `address` can start with.
unsigned Piece(uint64_t address, uint32_t size) {
  unsigned piece = 8;
  while (piece > size || (address & (piece - 1)) != 0) piece /= 2;
  return piece;
}

/// Naturally aligned pieces, unless the whole is a size that devices know.
unsigned MmioPiece(uint64_t address, uint32_t size) {
  return size <= 8 && std::has_single_bit(size) ? size : Piece(address, size);
}

}  // namespace

void Core::FlushTlb() {
  // 12 bits of generation live in the tags; when they run out the tags are cleared for real.
  if (++tlb_generation == kPageSize) {
    tlb_generation = 1;
    for (auto& by_mode : tlb)
      for (auto& entries : by_mode) entries.fill({});
  }
  large_first = ~uint64_t{0};
  large_last = 0;
}

void Core::FlushTlbPage(uint64_t linear) {
  // One INVLPG drops the whole of a large page (SDM 3A 4.10.4.1), which lies here in 4 KiB pieces.
  if (linear >= large_first && linear <= large_last) {
    FlushTlb();
    return;
  }
  for (auto& by_mode : tlb)
    for (auto& entries : by_mode) entries[(linear >> 12) % kTlbSize].tag = 0;
}

void Core::NotifyFlush(bool include_global) {
  FlushTlb();
  if (listener) listener->OnTlbFlush(include_global);
}

bool Core::TranslatePage(uint64_t linear, Access access, AccessMode as, uint8_t*& host, GuestPhys& phys) {
  TlbEntry& entry = tlb[static_cast<unsigned>(access)][static_cast<unsigned>(as)][(linear >> 12) % kTlbSize];
  const uint64_t tag = (linear & ~kPageMask) | tlb_generation;
  if (entry.tag != tag) {
    x86::WalkOptions options;
    options.access = access;
    options.user = as == AccessMode::kUser;
    options.smap_override = as == AccessMode::kSupervisorAc;
    options.pages_1gib = config.model->has_1gib_pages();
    options.physical_address_bits = static_cast<uint8_t>(config.model->physical_address_bits());
    const x86::Translation t = x86::WalkPages(*config.memory, *state, GuestVirt(linear), options);
    if (!t.ok) return PageFault(linear, t.error_code);
    if (t.page_bytes > kPageSize) {
      large_first = std::min(large_first, linear & ~(t.page_bytes - 1));
      large_last = std::max(large_last, linear | (t.page_bytes - 1));
    }
    const uint64_t page = config.memory->OnBus(t.address).value & ~kPageMask;
    entry.tag = tag;
    entry.phys = page;
    const memory::CpuPage found = config.memory->FindPage(GuestPhys(page));
    entry.host = access == Access::kWrite && !found.writable ? nullptr : found.host;
  }
  host = entry.host ? entry.host + (linear & kPageMask) : nullptr;
  phys = GuestPhys(entry.phys + (linear & kPageMask));
  return true;
}

bool Core::TranslateSlow(uint64_t linear, uint32_t size, Access access, MemRef& ref) {
  const AccessMode as = implicit ? AccessMode::kSupervisor : mode;
  if (tlb_mode == AccessMode::kSlow && !implicit) {
    const bool checked =
        as == AccessMode::kUser && (state->cr0 & x86::cr0::kAm) && (state->rflags & x86::rflags::kAc) && size > 1;
    // Operands of 10 bytes and more ask for 8-byte alignment, 6- and 10-byte pointers for that of their parts.
    const uint64_t alignment = std::has_single_bit(size) ? std::min(size, 8u) : 2;
    if (checked && (linear & (alignment - 1)) != 0) return FaultCode(x86::kAlignmentCheck, 0);
  }
  const auto in_first = static_cast<uint32_t>(kPageSize - (linear & kPageMask));
  ref.size = size;
  ref.first = std::min(size, in_first);
  INTERP_TRY(TranslatePage(linear, access, as, ref.host[0], ref.phys[0]));
  if (ref.first < size) {
    uint64_t second = linear + ref.first;
    if (!state->long_mode_active()) second &= 0xffffffff;
    INTERP_TRY(TranslatePage(second, access, as, ref.host[1], ref.phys[1]));
  }
  if (tlb_mode == AccessMode::kSlow && !implicit && access != Access::kExecute)
    CheckDataBreakpoints(linear, size, access == Access::kWrite);
  return true;
}

void Core::CheckDataBreakpoints(uint64_t linear, uint32_t size, bool write) {
  for (unsigned i = 0; i < 4; ++i) {
    if (!Bits(state->dr7, i * 2, 2)) continue;
    const uint64_t kind = Bits(state->dr7, 16 + i * 4, 2);
    if (kind != 3 && !(kind == 1 && write)) continue;
    constexpr uint64_t kLength[4] = {1, 2, 8, 4};
    const uint64_t length = kLength[Bits(state->dr7, 18 + i * 4, 2)];
    const uint64_t start = state->dr[i] & ~(length - 1);
    if (linear < start + length && start < linear + size) debug_hits |= static_cast<uint32_t>(Bit(i));
  }
}

void Core::Written(const uint8_t* host, GuestPhys phys, uint32_t size) {
  // With a translator beside us another vCPU may be marking this page as code right now: GuestMemory::MarkWritten's
  // order (data, fence, flag) must hold. Alone, nobody caches code by flags.
  if (listener) std::atomic_thread_fence(std::memory_order_seq_cst);
  const uint8_t flags = config.memory->PageFlags(config.memory->PageIndex(host)).load(std::memory_order_relaxed);
  if ((flags & (GuestMemory::kDirty | GuestMemory::kCode)) != GuestMemory::kDirty) [[unlikely]]
    config.memory->MarkWritten(phys, size);
}

void Core::LoadRef(const MemRef& ref, void* to) {
  auto* out = static_cast<uint8_t*>(to);
  for (unsigned part = 0; part < 2; ++part) {
    const uint32_t size = part == 0 ? ref.first : ref.size - ref.first;
    if (size == 0) break;
    if (ref.host[part]) {
      switch (size) {
        case 1:
          *out = *ref.host[part];
          break;
        case 2:
          std::memcpy(out, ref.host[part], 2);
          break;
        case 4:
          std::memcpy(out, ref.host[part], 4);
          break;
        case 8:
          std::memcpy(out, ref.host[part], 8);
          break;
        default:
          std::memcpy(out, ref.host[part], size);
          break;
      }
    } else {
      for (uint32_t at = 0; at < size;) {
        const GuestPhys address = ref.phys[part] + at;
        const unsigned piece = MmioPiece(address.value, size - at);
        const uint64_t value = config.host->MmioRead(address, piece);
        std::memcpy(out + at, &value, piece);
        at += piece;
      }
    }
    out += size;
  }
}

void Core::StoreRef(const MemRef& ref, const void* from) {
  const auto* in = static_cast<const uint8_t*>(from);
  for (unsigned part = 0; part < 2; ++part) {
    const uint32_t size = part == 0 ? ref.first : ref.size - ref.first;
    if (size == 0) break;
    if (ref.host[part]) {
      switch (size) {
        case 1:
          *ref.host[part] = *in;
          break;
        case 2:
          std::memcpy(ref.host[part], in, 2);
          break;
        case 4:
          std::memcpy(ref.host[part], in, 4);
          break;
        case 8:
          std::memcpy(ref.host[part], in, 8);
          break;
        default:
          std::memcpy(ref.host[part], in, size);
          break;
      }
      Written(ref.host[part], ref.phys[part], size);
    } else {
      for (uint32_t at = 0; at < size;) {
        const GuestPhys address = ref.phys[part] + at;
        const unsigned piece = MmioPiece(address.value, size - at);
        uint64_t value = 0;
        std::memcpy(&value, in + at, piece);
        config.host->MmioWrite(address, piece, value);
        at += piece;
      }
    }
    in += size;
  }
}

bool Core::ReadSlow(uint64_t linear, void* to, uint32_t size) {
  MemRef ref;
  INTERP_TRY(TranslateSlow(linear, size, Access::kRead, ref));
  LoadRef(ref, to);
  return true;
}

bool Core::WriteSlow(uint64_t linear, const void* from, uint32_t size) {
  MemRef ref;
  INTERP_TRY(TranslateSlow(linear, size, Access::kWrite, ref));
  StoreRef(ref, from);
  return true;
}

bool Core::SystemRead(uint64_t linear, void* to, uint32_t size) {
  if (!state->long_mode_active()) linear &= 0xffffffff;
  implicit = true;
  const bool ok = ReadSlow(linear, to, size);
  implicit = false;
  return ok;
}

bool Core::SystemWrite(uint64_t linear, const void* from, uint32_t size) {
  if (!state->long_mode_active()) linear &= 0xffffffff;
  implicit = true;
  const bool ok = WriteSlow(linear, from, size);
  implicit = false;
  return ok;
}

bool Core::LinearSlow(x86::SegmentIndex index, uint64_t offset, uint64_t size, Access access, uint64_t& linear) {
  const x86::Segment& segment = state->segment[index];
  linear = (segment.base + offset) & 0xffffffff;
  if (state->protected_mode() && !state->virtual8086()) {
    if (segment.unusable()) return SegmentFault(index);
    const unsigned type = segment.type();
    const bool code = (type & 8) != 0;
    if (access == Access::kWrite ? code || !(type & 2) : access == Access::kRead && code && !(type & 2))
      return SegmentFault(index);
    if (!code && (type & 4)) {  // expand-down: valid offsets lie above the limit
      const uint64_t top = segment.big() ? 0xffffffff : 0xffff;
      if (offset <= segment.limit || offset > top || size - 1 > top - offset) return SegmentFault(index);
      return true;
    }
  }
  if (offset > segment.limit || size - 1 > segment.limit - offset) return SegmentFault(index);
  return true;
}

bool Core::Read(x86::SegmentIndex segment, uint64_t offset, void* to, unsigned size) {
  uint64_t linear;
  MemRef ref;
  INTERP_TRY(Linear(segment, offset, size, Access::kRead, linear));
  INTERP_TRY(Translate(linear, size, Access::kRead, ref));
  LoadRef(ref, to);
  return true;
}

bool Core::Write(x86::SegmentIndex segment, uint64_t offset, const void* from, unsigned size) {
  uint64_t linear;
  MemRef ref;
  INTERP_TRY(Linear(segment, offset, size, Access::kWrite, linear));
  INTERP_TRY(Translate(linear, size, Access::kWrite, ref));
  StoreRef(ref, from);
  return true;
}

bool Core::ProbeWrite(x86::SegmentIndex segment, uint64_t offset, unsigned size) {
  MemRef ref;
  return TranslateSegment(segment, offset, size, Access::kWrite, ref);
}

bool Core::ReadSized(x86::SegmentIndex segment, uint64_t offset, unsigned size, uint64_t& value) {
  return WithSize(size, [&](auto typed) {
    INTERP_TRY(ReadSegment(segment, offset, typed));
    value = typed;
    return true;
  });
}

bool Core::WriteSized(x86::SegmentIndex segment, uint64_t offset, unsigned size, uint64_t value) {
  return WithSize(size, [&](auto typed) { return WriteSegment(segment, offset, static_cast<decltype(typed)>(value)); });
}

void Core::WriteGpr(unsigned index, unsigned size, uint64_t value) {
  uint64_t& reg = state->gpr[index];
  switch (size) {
    case 1:
      reg = (reg & ~uint64_t{0xff}) | (value & 0xff);
      break;
    case 2:
      reg = (reg & ~uint64_t{0xffff}) | (value & 0xffff);
      break;
    case 4:
      reg = value & 0xffffffff;
      break;
    default:
      reg = value;
      break;
  }
}

}  // namespace nacre::engine::interp
