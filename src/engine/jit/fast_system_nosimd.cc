// Frequent instructions that are neither re-emitted nor worth the way to the interpreter, for which the vector state
// would have to be saved: REP MOVS and STOS, SYSCALL, SYSRET and IRETQ in their usual forms. Each returns false, with
// nothing changed but registers that a restart expects, where the case is not its own; the interpreter then does it.

#include "engine/jit/jit_vcpu.h"

namespace nacre::engine::jit {

using x86::CpuState;
using x86::Segment;

namespace {

constexpr uint64_t kScattered = x86::rflags::kArithmetic | x86::rflags::kIf;
constexpr uint32_t kCode64 = Segment::kS | Segment::kP | Segment::kL | Segment::kG | 0xb;
constexpr uint32_t kData = Segment::kS | Segment::kP | Segment::kDb | Segment::kG | 3;

Segment FlatSegment(uint16_t selector, uint32_t attributes, unsigned dpl) {
  return {.base = 0, .limit = 0xffffffff, .attributes = attributes | dpl << 5, .selector = selector};
}

}  // namespace

uint64_t JitVcpu::WholeFlags() const {
  return context_->state.rflags | (context_->flags & x86::rflags::kArithmetic) |
         (context_->interrupt_flag ? x86::rflags::kIf : 0);
}

void JitVcpu::SetFlags(uint64_t rflags) {
  context_->flags = (rflags & x86::rflags::kArithmetic) | x86::rflags::kFixed1;
  context_->interrupt_flag = (rflags & x86::rflags::kIf) ? 1 : 0;
  context_->state.rflags = (rflags & ~kScattered) | x86::rflags::kFixed1;
}

bool JitVcpu::FastInstruction(const Site& site) {
  if (site.next_page) {  // make the page known, so that the next time does not come here
    const uint64_t next_rip = AlignDown(BlockStore::RipOf(site), kPageSize) + kPageSize;
    if (CodePage* page = FetchPage(next_rip))
      NoteCodePage(next_rip, *page, CurrentFlags() & kFlagContextMask, PageIdOf(next_rip, *page));
    return false;
  }
  switch (site.mnemonic) {
    case ZYDIS_MNEMONIC_SYSCALL:
      return FastSyscall(site);
    case ZYDIS_MNEMONIC_SYSRET:
      return FastSysret();
    case ZYDIS_MNEMONIC_IRETQ:
      return FastIretq();
    case ZYDIS_MNEMONIC_MOV:
      return FastLoadCr3(site);
    case ZYDIS_MNEMONIC_INVLPG:
    case ZYDIS_MNEMONIC_INVPCID:
      return FastInvalidate(site);
    case ZYDIS_MNEMONIC_RDMSR:
      return FastMsr(site, false);
    case ZYDIS_MNEMONIC_WRMSR:
      return FastMsr(site, true);
    case ZYDIS_MNEMONIC_XSAVE:
    case ZYDIS_MNEMONIC_XSAVE64:
      return FastXsave(site, false, false);
    case ZYDIS_MNEMONIC_XSAVEOPT:
    case ZYDIS_MNEMONIC_XSAVEOPT64:
      return FastXsave(site, false, true);
    case ZYDIS_MNEMONIC_XRSTOR:
    case ZYDIS_MNEMONIC_XRSTOR64:
      return FastXsave(site, true, false);
    case ZYDIS_MNEMONIC_MOVSB:
    case ZYDIS_MNEMONIC_MOVSW:
    case ZYDIS_MNEMONIC_MOVSD:
    case ZYDIS_MNEMONIC_MOVSQ:
      return FastStringElement(site, true, true);
    case ZYDIS_MNEMONIC_STOSB:
    case ZYDIS_MNEMONIC_STOSW:
    case ZYDIS_MNEMONIC_STOSD:
    case ZYDIS_MNEMONIC_STOSQ:
      return FastStringElement(site, false, true);
    case ZYDIS_MNEMONIC_LODSB:
    case ZYDIS_MNEMONIC_LODSW:
    case ZYDIS_MNEMONIC_LODSD:
    case ZYDIS_MNEMONIC_LODSQ:
      return FastStringElement(site, true, false);
    default:
      return false;
  }
}

/// MOVS, STOS or LODS without REP, which boot loaders loop over.
bool JitVcpu::FastStringElement(const Site& site, bool load, bool store) {
  // Of another form, MOVSD of SSE2, or a REP that FastString did not take.
  if (site.size == 0 || site.string != StringKind::kOther) return false;
  CpuState& state = context_->state;
  const uint64_t step = (state.rflags & x86::rflags::kDf) != 0 ? 0 - uint64_t{site.size} : site.size;
  uint64_t& to = state.gpr[x86::kRdi];
  uint64_t& from = state.gpr[x86::kRsi];
  uint64_t& accumulator = state.gpr[x86::kRax];
  uint64_t value = accumulator;
  if (load) {
    const uint8_t* source = HostFor(site.context, from, site.size, false);
    if (!source) return false;
    value = 0;
    __builtin_memcpy(&value, source, site.size);
  }
  if (store) {
    uint8_t* target = HostFor(site.context, to, site.size, true);
    if (!target) return false;
    __builtin_memcpy(target, &value, site.size);
    to += step;
  } else if (site.size >= 4) {
    accumulator = value;
  } else {
    const uint64_t low = site.size == 1 ? 0xff : 0xffff;
    accumulator = (accumulator & ~low) | value;
  }
  if (load) from += step;
  state.rip += site.length;
  return true;
}

/// Runs within pages by the host's own REP MOVS and STOS. Stops between them for requests, RIP unchanged.
bool JitVcpu::FastString(const Site& site) {
  CpuState& state = context_->state;
  if (state.rflags & x86::rflags::kDf) return false;
  uint64_t& count = state.gpr[x86::kRcx];
  uint64_t& to = state.gpr[x86::kRdi];
  uint64_t& from = state.gpr[x86::kRsi];
  const unsigned size = site.size;
  const bool move = site.string == StringKind::kMove;
  while (count != 0) {
    uint64_t run = (kPageSize - (to & kPageMask)) / size;
    if (move && run > (kPageSize - (from & kPageMask)) / size) run = (kPageSize - (from & kPageMask)) / size;
    if (run > count) run = count;
    if (run == 0) return false;  // an element crosses a page
    const uint8_t* source = move ? HostFor(site.context, from, size, false) : nullptr;
    if (move && !source) return false;
    uint8_t* target = HostFor(site.context, to, size, true);
    if (!target) return false;
    uint64_t left = run;
    uint8_t* target_end = target;
    if (move) {
      if (size == 8)
        asm volatile("rep movsq" : "+c"(left), "+D"(target_end), "+S"(source) : : "memory");
      else if (size == 4)
        asm volatile("rep movsl" : "+c"(left), "+D"(target_end), "+S"(source) : : "memory");
      else if (size == 2)
        asm volatile("rep movsw" : "+c"(left), "+D"(target_end), "+S"(source) : : "memory");
      else
        asm volatile("rep movsb" : "+c"(left), "+D"(target_end), "+S"(source) : : "memory");
      from += run * size;
    } else {
      const uint64_t value = state.gpr[x86::kRax];
      if (size == 8)
        asm volatile("rep stosq" : "+c"(left), "+D"(target_end) : "a"(value) : "memory");
      else if (size == 4)
        asm volatile("rep stosl" : "+c"(left), "+D"(target_end) : "a"(value) : "memory");
      else if (size == 2)
        asm volatile("rep stosw" : "+c"(left), "+D"(target_end) : "a"(value) : "memory");
      else
        asm volatile("rep stosb" : "+c"(left), "+D"(target_end) : "a"(value) : "memory");
    }
    to += run * size;
    count -= run;
    // In lockstep it ends as the interpreter's does.
    if (count != 0 && !lockstep_ && context_->go.load(std::memory_order_relaxed) == 0) return true;
  }
  state.rip += site.length;
  return true;
}

/// SDM 2B SYSCALL.
bool JitVcpu::FastSyscall(const Site& site) {
  CpuState& state = context_->state;
  if (!state.code64() || !(state.msr.efer & x86::efer::kSce)) return false;
  const uint64_t rflags = WholeFlags();
  state.gpr[x86::kRcx] = BlockStore::RipOf(site) + site.length;
  state.gpr[x86::kR11] = rflags & ~x86::rflags::kRf;
  state.rip = state.msr.lstar;
  SetFlags(rflags & ~state.msr.sfmask & ~x86::rflags::kRf);
  const auto selector = static_cast<uint16_t>(state.msr.star >> 32);
  state.segment[x86::kCs] = FlatSegment(selector & 0xfffc, kCode64, 0);
  state.segment[x86::kSs] = FlatSegment(static_cast<uint16_t>((selector & 0xfffc) + 8), kData, 0);
  mode_known_ = false;
  return true;
}

/// SDM 2B SYSRET with a 64-bit operand, to 64-bit code.
bool JitVcpu::FastSysret() {
  CpuState& state = context_->state;
  // The operand size is REX.W of the instruction before RIP moves; only its byte tells.
  const uint8_t* rex = HostFor(CurrentFlags() & kFlagContextMask, state.rip, 1, false);
  if (!rex || (*rex & 0xf8) != 0x48) return false;
  const uint64_t target = state.gpr[x86::kRcx];
  if (!state.code64() || state.cpl() != 0 || !(state.msr.efer & x86::efer::kSce) || !IsCanonical(target)) return false;
  state.rip = target;
  SetFlags((state.gpr[x86::kR11] & 0x3c7fd7) | x86::rflags::kFixed1);
  const auto base = static_cast<uint16_t>(state.msr.star >> 48);
  state.segment[x86::kCs] = FlatSegment(static_cast<uint16_t>((base + 16) | 3), kCode64, 3);
  state.segment[x86::kSs] = FlatSegment(static_cast<uint16_t>((base + 8) | 3), kData, 3);
  mode_known_ = false;
  return true;
}

/// MOV to CR3 in 64-bit code (SDM 3A 4.10.4.1).
bool JitVcpu::FastLoadCr3(const Site& site) {
  CpuState& state = context_->state;
  if (!site.control || site.to != 3 || !state.code64() || state.cpl() != 0) return false;
  uint64_t value = state.gpr[site.from];
  const bool keep = (state.cr4 & x86::cr4::kPcide) && (value >> 63);
  if (keep) value &= ~Bit(63);
  if (value >> physical_address_bits_) return false;
  state.cr3 = value;
  state.rip = BlockStore::RipOf(site) + site.length;
  interpreter_stale_ = true;
  SwitchAddressSpace(static_cast<uint16_t>(state.cr4 & x86::cr4::kPcide ? value & 0xfff : 0), keep);
  return true;
}

/// INVLPG and INVPCID in 64-bit code.
bool JitVcpu::FastInvalidate(const Site& site) {
  CpuState& state = context_->state;
  if (!site.has_address || !state.code64() || state.cpl() != 0) return false;
  uint64_t address = context_->slow_address;
  if (site.mnemonic == ZYDIS_MNEMONIC_INVLPG) {
    if (IsCanonical(address)) OnTlbFlushPage(GuestVirt(address));
  } else {
    const uint8_t* descriptor = HostFor(site.context, address, 16, false);
    if (!descriptor) return false;
    const uint64_t type = state.gpr[site.to];
    const auto pcid = LoadLe<uint64_t>(descriptor);
    address = LoadLe<uint64_t>(descriptor + 8);
    if (type > 3 || (type < 2 && (pcid >> 12 || (pcid && !(state.cr4 & x86::cr4::kPcide)))) ||
        (type == 0 && !IsCanonical(address)))
      return false;
    if (type == 0)
      OnTlbFlushPcidPage(static_cast<uint16_t>(pcid), GuestVirt(address));
    else if (type == 1)
      FlushPcid(static_cast<uint16_t>(pcid));
    else
      OnTlbFlush(type == 2);
  }
  interpreter_stale_ = true;
  state.rip = BlockStore::RipOf(site) + site.length;
  return true;
}

/// The MSRs that context switches use.
bool JitVcpu::FastMsr(const Site& site, bool write) {
  constexpr uint32_t kFsBase = 0xc0000100, kGsBase = 0xc0000101, kKernelGsBase = 0xc0000102;
  CpuState& state = context_->state;
  if (!state.code64() || state.cpl() != 0) return false;
  const auto index = static_cast<uint32_t>(state.gpr[x86::kRcx]);
  uint64_t* const msr = index == kFsBase         ? &state.segment[x86::kFs].base
                        : index == kGsBase       ? &state.segment[x86::kGs].base
                        : index == kKernelGsBase ? &state.msr.kernel_gs_base
                                                 : nullptr;
  if (!msr) return false;
  if (write) {
    const uint64_t value = state.gpr[x86::kRdx] << 32 | (state.gpr[x86::kRax] & 0xffffffff);
    if (!IsCanonical(value)) return false;
    *msr = value;
  } else {
    state.gpr[x86::kRax] = *msr & 0xffffffff;
    state.gpr[x86::kRdx] = *msr >> 32;
  }
  state.rip = BlockStore::RipOf(site) + site.length;
  return true;
}

/// The raw GDT entry of a selector.
bool JitVcpu::ReadDescriptor(uint16_t selector, uint64_t& descriptor) {
  const CpuState& state = context_->state;
  const unsigned offset = selector & 0xfff8;
  if ((selector & 4) || offset == 0 || offset + 7 > state.gdtr.limit) return false;
  const uint8_t* host = HostFor(kContextSupervisor, state.gdtr.base + offset, 8, false);
  if (!host) return false;
  descriptor = LoadLe<uint64_t>(host);
  return true;
}

/// SDM 2A IRET in 64-bit mode at CPL 0, returning to 64-bit code of the same level or of level 3 with flat segments.
bool JitVcpu::FastIretq() {
  CpuState& state = context_->state;
  constexpr uint64_t kCodeDescriptor = 0x00af'fb00'0000'ffff, kDataDescriptor = 0x00cf'f300'0000'ffff;
  constexpr uint64_t kIgnored = 0x0000'0100'0000'0000;  // accessed
  constexpr uint64_t kAvl = uint64_t{1} << 52;
  if (!state.code64() || state.cpl() != 0 || (state.rflags & x86::rflags::kNt)) return false;
  const uint64_t rsp = state.gpr[x86::kRsp];
  const uint8_t* frame = HostFor(CurrentFlags() & kFlagContextMask, rsp, 40, false);
  if (!frame) return false;
  const auto rip = LoadLe<uint64_t>(frame), cs = LoadLe<uint64_t>(frame + 8), rflags = LoadLe<uint64_t>(frame + 16);
  const auto new_rsp = LoadLe<uint64_t>(frame + 24), ss = LoadLe<uint64_t>(frame + 32);
  if (!IsCanonical(rip) || (rflags & x86::rflags::kVm) || (cs >> 16) || (ss >> 16)) return false;
  if ((cs & 3) == 0) {
    if (cs != state.segment[x86::kCs].selector || ss != state.segment[x86::kSs].selector) return false;
  } else {
    uint64_t code = 0, data = 0;
    if ((cs & 3) != 3 || (ss & 3) != 3 || !ReadDescriptor(static_cast<uint16_t>(cs), code) ||
        !ReadDescriptor(static_cast<uint16_t>(ss), data))
      return false;
    if (((code | kIgnored) & ~kAvl) != kCodeDescriptor || ((data | kIgnored) & ~kAvl) != kDataDescriptor) return false;
    if (!(code & kIgnored) || !(data & kIgnored)) return false;  // the interpreter sets the accessed bit
    // Data segments that the new level may not use are cleared (SDM 3A 5.8.4): left to the interpreter.
    for (const unsigned index : {x86::kEs, x86::kDs, x86::kFs, x86::kGs}) {
      const Segment& segment = state.segment[index];
      if (!segment.unusable() && segment.dpl() < 3) return false;
    }
    state.segment[x86::kCs] = FlatSegment(static_cast<uint16_t>(cs), kCode64 | ((code & kAvl) ? Segment::kAvl : 0), 3);
    state.segment[x86::kSs] = FlatSegment(static_cast<uint16_t>(ss), kData | ((data & kAvl) ? Segment::kAvl : 0), 3);
  }
  constexpr uint64_t kSettable = x86::rflags::kArithmetic | x86::rflags::kTf | x86::rflags::kIf | x86::rflags::kDf |
                                 x86::rflags::kIoplMask | x86::rflags::kNt | x86::rflags::kRf | x86::rflags::kAc |
                                 x86::rflags::kVif | x86::rflags::kVip | x86::rflags::kId;
  SetFlags((rflags & kSettable) | x86::rflags::kFixed1);
  state.rip = rip;
  state.gpr[x86::kRsp] = new_rsp;
  state.nmi_masked = false;
  mode_known_ = false;
  return true;
}

}  // namespace nacre::engine::jit
