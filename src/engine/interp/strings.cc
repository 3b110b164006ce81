// String instructions. A REP goes on for at most Core::kMaxRepeat iterations in one Step; registers are right after
// every iteration, so that faults and interrupts in the middle can be returned from (SDM 2B "REP").

#include <algorithm>

#include "engine/interp/handlers.h"
#include "engine/interp/host_flags.h"

namespace nacre::engine::interp {

using x86::Access;
using x86::Instruction;
namespace rf = x86::rflags;

namespace {

INTERP_BINARY(HostCmp, "cmp")

/// What all string instructions share: index registers as wide as addresses, stepping by DF.
struct StringContext {
  StringContext(Core& core, const Decoded& decoded, unsigned element)
      : c(core),
        d(decoded),
        address_size(decoded.insn.address_size),
        source_segment(static_cast<x86::SegmentIndex>(decoded.string_segment)),
        element_size(element),
        backward((core.state->rflags & rf::kDf) != 0) {}

  uint64_t rsi() const { return c.ReadGpr(x86::kRsi, address_size); }
  uint64_t rdi() const { return c.ReadGpr(x86::kRdi, address_size); }
  void Advance(unsigned index, uint64_t count = 1) {
    const uint64_t distance = count * element_size;
    const uint64_t now = c.state->gpr[index];
    c.WriteGpr(index, address_size, backward ? now - distance : now + distance);
  }
  /// Host memory of up to `count` elements going up from `offset` inside one page, or nullptr; lowers `count`.
  uint8_t* Run(x86::SegmentIndex segment, uint64_t offset, Access access, uint64_t& count, GuestPhys* phys) const {
    uint64_t linear;
    if (!c.Linear(segment, offset, element_size, access, linear)) return nullptr;
    const TlbEntry* entry = c.Lookup(access, linear);
    if (!entry) return nullptr;
    count = std::min(count, (kPageSize - (linear & kPageMask)) / element_size);
    if (count < 2 || !c.Linear(segment, offset, count * element_size, access, linear)) return nullptr;
    if (MaskToSize(offset + count * element_size - 1, address_size) < offset) return nullptr;
    if (phys) *phys = GuestPhys(entry->phys + (linear & kPageMask));
    return entry->host + (linear & kPageMask);
  }

  Core& c;
  const Decoded& d;
  const unsigned address_size;
  const x86::SegmentIndex source_segment;
  const unsigned element_size;
  const bool backward;
};

enum class Go { kOn, kDone, kFault };

/// `iterate(left, done)` does one iteration or, where it can, more (at most `left`), and sets `done` to how many.
template <typename F>
bool Repeat(Core& c, const Decoded& d, F&& iterate) {
  uint64_t done = 1;
  if (!d.insn.has(x86::kInsnRep) && !d.insn.has(x86::kInsnRepne)) return iterate(uint64_t{1}, done) != Go::kFault;
  const unsigned size = d.insn.address_size;
  uint64_t count = c.ReadGpr(x86::kRcx, size);
  // Single-stepping and data breakpoints stop between iterations.
  const bool stepping = (c.state->rflags & rf::kTf) || c.tlb_mode == AccessMode::kSlow;
  uint64_t budget = stepping ? 1 : Core::kMaxRepeat;
  if (count == 0) return true;
  while (true) {
    done = 1;
    const Go go = iterate(std::min(count, budget), done);
    if (go == Go::kFault) return false;
    count -= done;
    budget -= done;
    c.WriteGpr(x86::kRcx, size, count);
    if (go == Go::kDone || count == 0) return true;
    if (budget == 0) {
      c.unfinished = true;
      return true;
    }
  }
}

template <typename T>
bool Movs(Core& c, const Decoded& d) {
  StringContext s(c, d, sizeof(T));
  return Repeat(c, d, [&](uint64_t left, uint64_t& done) {
    if (left > 1 && !s.backward) {
      uint64_t count = left;
      GuestPhys phys;
      const uint8_t* from = s.Run(s.source_segment, s.rsi(), Access::kRead, count, nullptr);
      uint8_t* to = from ? s.Run(x86::kEs, s.rdi(), Access::kWrite, count, &phys) : nullptr;
      // Overlap with the destination ahead repeats a pattern: element by element then.
      if (to && (to + count * sizeof(T) <= from || from + count * sizeof(T) <= to)) {
        std::memcpy(to, from, count * sizeof(T));
        c.Written(to, phys, static_cast<uint32_t>(count * sizeof(T)));
        s.Advance(x86::kRsi, count);
        s.Advance(x86::kRdi, count);
        done = count;
        return Go::kOn;
      }
    }
    T value;
    if (!c.ReadSegment(s.source_segment, s.rsi(), value) || !c.WriteSegment(x86::kEs, s.rdi(), value))
      return Go::kFault;
    s.Advance(x86::kRsi);
    s.Advance(x86::kRdi);
    return Go::kOn;
  });
}

template <typename T>
bool Stos(Core& c, const Decoded& d) {
  StringContext s(c, d, sizeof(T));
  const T value = c.ReadReg<T>(0);
  return Repeat(c, d, [&](uint64_t left, uint64_t& done) {
    if (left > 1 && !s.backward) {
      uint64_t count = left;
      GuestPhys phys;
      if (uint8_t* to = s.Run(x86::kEs, s.rdi(), Access::kWrite, count, &phys)) {
        for (uint64_t i = 0; i < count; ++i) std::memcpy(to + i * sizeof(T), &value, sizeof(T));
        c.Written(to, phys, static_cast<uint32_t>(count * sizeof(T)));
        s.Advance(x86::kRdi, count);
        done = count;
        return Go::kOn;
      }
    }
    if (!c.WriteSegment(x86::kEs, s.rdi(), value)) return Go::kFault;
    s.Advance(x86::kRdi);
    return Go::kOn;
  });
}

template <typename T>
bool Lods(Core& c, const Decoded& d) {
  StringContext s(c, d, sizeof(T));
  return Repeat(c, d, [&](uint64_t, uint64_t&) {
    T value;
    if (!c.ReadSegment(s.source_segment, s.rsi(), value)) return Go::kFault;
    c.WriteReg<T>(0, value);
    s.Advance(x86::kRsi);
    return Go::kOn;
  });
}

Go AfterCompare(const Decoded& d, uint64_t flags) {
  if (d.insn.has(x86::kInsnRep) && !(flags & rf::kZf)) return Go::kDone;
  if (d.insn.has(x86::kInsnRepne) && (flags & rf::kZf)) return Go::kDone;
  return Go::kOn;
}

/// A fault leaves the flags as they were before the instruction (SDM 2A "CMPS"): they are written at the end.
template <typename T>
bool Cmps(Core& c, const Decoded& d) {
  StringContext s(c, d, sizeof(T));
  uint64_t flags = c.state->rflags;
  INTERP_TRY(Repeat(c, d, [&](uint64_t, uint64_t&) {
    T first, second;
    if (!c.ReadSegment(s.source_segment, s.rsi(), first) || !c.ReadSegment(x86::kEs, s.rdi(), second))
      return Go::kFault;
    HostCmp(flags, first, second);
    s.Advance(x86::kRsi);
    s.Advance(x86::kRdi);
    return AfterCompare(d, flags);
  }));
  c.state->rflags = flags;
  return true;
}

template <typename T>
bool Scas(Core& c, const Decoded& d) {
  StringContext s(c, d, sizeof(T));
  uint64_t flags = c.state->rflags;
  INTERP_TRY(Repeat(c, d, [&](uint64_t, uint64_t&) {
    T value, accumulator = c.ReadReg<T>(0);
    if (!c.ReadSegment(x86::kEs, s.rdi(), value)) return Go::kFault;
    HostCmp(flags, accumulator, value);
    s.Advance(x86::kRdi);
    return AfterCompare(d, flags);
  }));
  c.state->rflags = flags;
  return true;
}

template <typename T>
bool Ins(Core& c, const Decoded& d) {
  const auto port = static_cast<uint16_t>(c.state->gpr[x86::kRdx]);
  INTERP_TRY(c.CheckPort(port, sizeof(T)));
  StringContext s(c, d, sizeof(T));
  return Repeat(c, d, [&](uint64_t, uint64_t&) {
    // The port is read only when its value can be stored.
    MemRef ref;
    if (!c.TranslateSegment(x86::kEs, s.rdi(), sizeof(T), Access::kWrite, ref)) return Go::kFault;
    const auto value = static_cast<T>(c.config.host->PortRead(port, sizeof(T)));
    c.CheckIoBreakpoints(port, sizeof(T));
    c.StoreRef(ref, &value);
    s.Advance(x86::kRdi);
    return Go::kOn;
  });
}

template <typename T>
bool Outs(Core& c, const Decoded& d) {
  const auto port = static_cast<uint16_t>(c.state->gpr[x86::kRdx]);
  INTERP_TRY(c.CheckPort(port, sizeof(T)));
  StringContext s(c, d, sizeof(T));
  return Repeat(c, d, [&](uint64_t, uint64_t&) {
    T value;
    if (!c.ReadSegment(s.source_segment, s.rsi(), value)) return Go::kFault;
    c.config.host->PortWrite(port, sizeof(T), value);
    c.CheckIoBreakpoints(port, sizeof(T));
    s.Advance(x86::kRsi);
    return Go::kOn;
  });
}

bool Xlat(Core& c, const Decoded& d) {
  uint8_t value;
  const uint64_t offset = MaskToSize(c.state->gpr[x86::kRbx] + c.ReadReg<uint8_t>(0), d.insn.address_size);
  INTERP_TRY(c.ReadSegment(static_cast<x86::SegmentIndex>(d.string_segment), offset, value));
  c.WriteReg<uint8_t>(0, value);
  return true;
}

}  // namespace

void RegisterStrings(HandlerTable& t) {
  t.Set(ZYDIS_MNEMONIC_MOVSB, Movs<uint8_t>);
  t.Set(ZYDIS_MNEMONIC_MOVSW, Movs<uint16_t>);
  t.Set(ZYDIS_MNEMONIC_MOVSD, Movs<uint32_t>);
  t.Set(ZYDIS_MNEMONIC_MOVSQ, Movs<uint64_t>);
  t.Set(ZYDIS_MNEMONIC_STOSB, Stos<uint8_t>);
  t.Set(ZYDIS_MNEMONIC_STOSW, Stos<uint16_t>);
  t.Set(ZYDIS_MNEMONIC_STOSD, Stos<uint32_t>);
  t.Set(ZYDIS_MNEMONIC_STOSQ, Stos<uint64_t>);
  t.Set(ZYDIS_MNEMONIC_LODSB, Lods<uint8_t>);
  t.Set(ZYDIS_MNEMONIC_LODSW, Lods<uint16_t>);
  t.Set(ZYDIS_MNEMONIC_LODSD, Lods<uint32_t>);
  t.Set(ZYDIS_MNEMONIC_LODSQ, Lods<uint64_t>);
  t.Set(ZYDIS_MNEMONIC_CMPSB, Cmps<uint8_t>);
  t.Set(ZYDIS_MNEMONIC_CMPSW, Cmps<uint16_t>);
  t.Set(ZYDIS_MNEMONIC_CMPSD, Cmps<uint32_t>);
  t.Set(ZYDIS_MNEMONIC_CMPSQ, Cmps<uint64_t>);
  t.Set(ZYDIS_MNEMONIC_SCASB, Scas<uint8_t>);
  t.Set(ZYDIS_MNEMONIC_SCASW, Scas<uint16_t>);
  t.Set(ZYDIS_MNEMONIC_SCASD, Scas<uint32_t>);
  t.Set(ZYDIS_MNEMONIC_SCASQ, Scas<uint64_t>);
  t.Set(ZYDIS_MNEMONIC_INSB, Ins<uint8_t>);
  t.Set(ZYDIS_MNEMONIC_INSW, Ins<uint16_t>);
  t.Set(ZYDIS_MNEMONIC_INSD, Ins<uint32_t>);
  t.Set(ZYDIS_MNEMONIC_OUTSB, Outs<uint8_t>);
  t.Set(ZYDIS_MNEMONIC_OUTSW, Outs<uint16_t>);
  t.Set(ZYDIS_MNEMONIC_OUTSD, Outs<uint32_t>);
  t.Set(ZYDIS_MNEMONIC_XLAT, Xlat);
}

}  // namespace nacre::engine::interp
