// Fetching and caching of decoded instructions. A cached decode is keyed by physical address and code size and is used
// only while its bytes equal those in memory, which is compared at every execution: self-modifying code needs no flags.

#include <sys/mman.h>

#include <algorithm>

#include "base/check.h"
#include "engine/interp/core.h"
#include "engine/interp/handlers.h"
#include "x86/decoder.h"
#include "x86/string_segment.h"

namespace nacre::engine::interp {

using x86::Access;
using x86::CodeSize;

namespace {

bool TooLong(Core& c, const Decoded&) { return c.Gp(); }

void Resolve(const x86::CpuModel& model, Decoded& d) {
  const x86::Instruction& insn = d.insn;
  const bool prefixed = insn.has(x86::kInsnOperandSizePrefix);
  d.length = insn.length;
  if (insn.code_size == CodeSize::k64) {
    const bool wide = (insn.rex & 8) != 0;
    d.operand_size = wide ? 8 : prefixed ? 2 : 4;
    d.stack_size = !wide && prefixed ? 2 : 8;
  } else {
    d.operand_size = d.stack_size = (insn.code_size == CodeSize::k32) != prefixed ? 4 : 2;
  }
  d.string_segment = x86::StringSegment(insn);
  for (unsigned i = 0; i < 4 && i < insn.operand_count; ++i) {
    const x86::Operand& operand = insn.operand[i];
    d.reg[i] = static_cast<uint8_t>(operand.register_class == x86::RegisterClass::kGprHigh ? operand.index * 8 + 1
                                                                                           : operand.index * 8);
  }
  if (insn.has(x86::kInsnBadLock) || !model.Has(insn)) {
    d.handler = InvalidOpcode;
    return;
  }
  if (VectorUnit::Handles(insn)) {
    d.handler = ExecuteVector;
    return;
  }
  d.handler = HandlerTable::Get().Find(insn);
  if (!d.handler) d.handler = InvalidOpcode;
}

/// Up to 16 bytes of code at a physical place, zero beyond `size`.
struct CodeBytes {
  uint8_t data[16] = {};
  unsigned size = 0;
};

void Gather(Core& c, const uint8_t* host, GuestPhys phys, unsigned want, CodeBytes& bytes) {
  const auto in_page = static_cast<unsigned>(kPageSize - phys.page_offset());
  const unsigned take = std::min({want, in_page, 16 - bytes.size});
  if (host) {
    std::memcpy(bytes.data + bytes.size, host, take);
  } else {
    for (unsigned i = 0; i < take; ++i)
      bytes.data[bytes.size + i] = static_cast<uint8_t>(c.config.host->MmioRead(phys + i, 1));
  }
  bytes.size += take;
}

bool Matches(const Decoded& d, const uint8_t* bytes) {
  uint64_t words[2];
  std::memcpy(words, bytes, 16);
  return (((words[0] & d.mask[0]) ^ d.bytes[0]) | ((words[1] & d.mask[1]) ^ d.bytes[1])) == 0;
}

}  // namespace

DecodeCache::DecodeCache() {
  // Zero pages are empty entries: Decoded is an implicit-lifetime type whose key 0 means nothing.
  void* pages = mmap(nullptr, kSize * sizeof(Decoded), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  NACRE_CHECK(pages != MAP_FAILED);
  entries_ = static_cast<Decoded*>(pages);
}

DecodeCache::~DecodeCache() { munmap(entries_, kSize * sizeof(Decoded)); }

void DecodeCache::Clear() { NACRE_CHECK(madvise(entries_, kSize * sizeof(Decoded), MADV_DONTNEED) == 0); }

void Core::FlushDecoded() { decode_cache.Clear(); }

/// Whether `cached` may be this very instruction, as far as its bytes up to the page's end tell.
static bool BeginsAs(const Decoded& cached, const CodeBytes& bytes) {
  return std::memcmp(cached.bytes, bytes.data, bytes.size) == 0;
}

const Decoded* Core::FetchInstruction() {
  const x86::Segment& cs = state->segment[x86::kCs];
  uint64_t linear = state->rip;
  uint64_t remaining = 16;  // bytes up to the segment's limit
  CodeSize code_size = CodeSize::k64;
  if (code64) {
    if (!Canonical(linear)) return Gp(), nullptr;
  } else {
    if (linear > cs.limit) return Gp(), nullptr;
    remaining = std::min<uint64_t>(16, uint64_t{cs.limit} - linear + 1);
    linear = (cs.base + linear) & 0xffffffff;
    code_size = cs.big() ? CodeSize::k32 : CodeSize::k16;
  }
  const AccessMode as = state->cpl() == 3 ? AccessMode::kUser : AccessMode::kSupervisor;
  uint8_t* host;
  GuestPhys phys;
  {
    const TlbEntry& entry =
        tlb[static_cast<unsigned>(Access::kExecute)][static_cast<unsigned>(as)][(linear >> 12) % kTlbSize];
    if (entry.tag == ((linear & ~kPageMask) | tlb_generation) && entry.host) [[likely]] {
      host = entry.host + (linear & kPageMask);
      phys = GuestPhys(entry.phys + (linear & kPageMask));
    } else if (!TranslatePage(linear, Access::kExecute, as, host, phys)) {
      return nullptr;
    }
  }
  const uint64_t key = (phys.value << 2 | static_cast<uint64_t>(code_size)) + 1;
  Decoded& cached = decode_cache.At(phys.value);
  if (host && phys.page_offset() <= kPageSize - 16 && cached.key == key && Matches(cached, host) &&
      cached.length <= remaining) [[likely]]
    return &cached;

  // The slow way: across a page's end, from MMIO, near the segment's limit, or not decoded yet.
  CodeBytes bytes;
  Gather(*this, host, phys, static_cast<unsigned>(remaining), bytes);
  const bool known = cached.key == key && cached.length != 0;
  if (known && cached.length <= bytes.size && Matches(cached, bytes.data)) return &cached;
  x86::Instruction insn;
  x86::DecodeStatus status = x86::DecodeStatus::kTruncated;
  const bool known_to_cross = known && cached.length > bytes.size && BeginsAs(cached, bytes);
  if (!known_to_cross) status = x86::Decode({bytes.data, bytes.size}, code_size, insn);
  if (status == x86::DecodeStatus::kTruncated && bytes.size < remaining && bytes.size < 15) {
    uint64_t second = linear + bytes.size;
    if (!code64) second &= 0xffffffff;
    if (code64 && !Canonical(second)) return Gp(), nullptr;
    GuestPhys second_phys;
    if (!TranslatePage(second, Access::kExecute, as, host, second_phys)) return nullptr;
    Gather(*this, host, second_phys, static_cast<unsigned>(remaining) - bytes.size, bytes);
    if (known_to_cross && cached.length <= bytes.size && Matches(cached, bytes.data)) return &cached;
    status = x86::Decode({bytes.data, bytes.size}, code_size, insn);
  }
  // What lies beyond the segment's limit cannot be fetched; over 15 bytes is no instruction: both #GP(0).
  if (status != x86::DecodeStatus::kOk) {
    spare.length = 0;
    spare.handler = status == x86::DecodeStatus::kInvalid ? InvalidOpcode : TooLong;
    return &spare;
  }
  cached.key = key;
  cached.insn = insn;
  config.model->Adapt(cached.insn);
  Resolve(*config.model, cached);
  for (unsigned i = 0; i < 2; ++i) {
    const unsigned covered = std::min(8u, cached.length > i * 8 ? cached.length - i * 8 : 0u);
    cached.mask[i] = covered == 8 ? ~uint64_t{0} : Bit(covered * 8) - 1;
    std::memcpy(&cached.bytes[i], bytes.data + i * 8, 8);
    cached.bytes[i] &= cached.mask[i];
  }
  return &cached;
}

}  // namespace nacre::engine::interp
