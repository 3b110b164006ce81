// The part of the vCPU that runs between translated blocks with the guest's vector registers live in the host's:
// compiled with general registers only, calls nothing that is not.

#include <immintrin.h>

#include "engine/jit/jit_vcpu.h"

extern "C" {
void NacreLoadAvx512(const uint8_t* area);
void NacreSaveAvx512(uint8_t* area);
uint64_t NacreReadElementMask(unsigned which);
}

namespace nacre::engine::jit {

using x86::CpuState;
using x86::Segment;

namespace {

bool IsFlatData(const Segment& segment) {
  // Writable data (type 0x2 without expand-down), base 0, limit 4 GiB.
  return segment.base == 0 && segment.limit == 0xffffffff &&
         (segment.attributes & (Segment::kS | Segment::kP)) == (Segment::kS | Segment::kP) &&
         (segment.type() & 0xe) == 0x2 && !segment.unusable();
}

SegmentKind KindByLimit(const Segment& segment) {
  return segment.limit == 0xffffffff ? SegmentKind::kWhole
         : segment.limit == 0xffff   ? SegmentKind::kSmall
                                     : SegmentKind::kLimited;
}

/// The attributes that a load leaves in real-address or virtual-8086 mode (see Core::LoadRealSegment).
bool IsPlain(const Segment& segment, bool v86, bool code) {
  constexpr uint32_t kUsable = Segment::kP | Segment::kS | 3, kKept = Segment::kDb | Segment::kG | Segment::kAvl;
  if (v86) return segment.attributes == (kUsable | Segment::kDplMask) && segment.limit == 0xffff;
  if (code) return segment.attributes == (Segment::kP | Segment::kS | 0xb) && segment.limit == 0xffff;
  return (segment.attributes & ~kKept) == kUsable;
}

/// What BlockFlags say of the segments, outside 64-bit code.
uint32_t SegmentFlags(const CpuState& state) {
  uint32_t flags = 0;
  const Segment &cs = state.segment[x86::kCs], &ss = state.segment[x86::kSs];
  const bool v86 = state.virtual8086();
  const bool real = v86 || !state.protected_mode();
  if (!cs.big()) flags |= kFlagCode16;
  if (!ss.big()) flags |= kFlagStack16;
  if (real || (cs.type() & 2)) flags |= kFlagCsReadable;
  const auto kind = [&](unsigned index) {
    const Segment& segment = state.segment[index];
    constexpr uint32_t kUsable = Segment::kS | Segment::kP;
    // Rights count in protected mode only; writable data, not expand-down.
    if (!real && ((segment.attributes & kUsable) != kUsable || (segment.type() & 0xe) != 2 || segment.unusable()))
      return 0u;
    return static_cast<uint32_t>(KindByLimit(segment));
  };
  if (real) {
    flags |= kFlagReal;
    bool plain = true;
    for (unsigned i = 0; i < x86::kSegmentCount; ++i) plain &= IsPlain(state.segment[i], v86, i == x86::kCs);
    if (plain) flags |= kFlagPlainSegments;
  } else if (IsFlatData(state.segment[x86::kDs]) && IsFlatData(state.segment[x86::kEs]) && IsFlatData(ss)) {
    flags |= kFlagFlat;
  }
  if (!(flags & kFlagFlat))
    flags |= kind(x86::kEs) * kFlagEsKind | kind(x86::kSs) * kFlagSsKind | kind(x86::kDs) * kFlagDsKind;
  const uint32_t fs = kind(x86::kFs), gs = kind(x86::kGs);
  flags |= (fs & 1 ? kFlagFs : 0u) | (fs & 2 ? kFlagFsLimited : 0u);
  flags |= (gs & 1 ? kFlagGs : 0u) | (gs & 2 ? kFlagGsLimited : 0u);
  const unsigned iopl = (state.rflags & x86::rflags::kIoplMask) >> x86::rflags::kIoplShift;
  if (state.protected_mode() && state.cpl() != 0 && state.cpl() <= iopl) flags |= kFlagIopl;
  return flags;
}

}  // namespace

/// Whether the guest has AVX-512 switched on. Its components are in the host's registers only then.
bool JitVcpu::Avx512Enabled() const {
  return has_avx512_ && (context_->state.xcr0 & x86::kAvx512Enabled) == x86::kAvx512Enabled;
}

/// The mode flags of the present state; false when it is one that is not translated at all.
bool JitVcpu::ComputeMode() {
  const CpuState& state = context_->state;
  mode_known_ = true;
  mode_flags_ = kNone;
  if ((state.rflags & x86::rflags::kTf) || (state.dr7 & 0xff)) return false;
  uint32_t flags = state.code64() ? kFlagCode64 | kFlagFlat | kFlagFs | kFlagGs : SegmentFlags(state);
  const unsigned cpl = state.cpl();
  if (cpl == 3 && (state.cr0 & x86::cr0::kAm) && (state.rflags & x86::rflags::kAc)) return false;  // alignment checks
  if (cpl == 0) flags |= kFlagCpl0;
  if (state.cr4 & x86::cr4::kSmap) flags |= kFlagSmap;
  if (!(state.cr0 & (x86::cr0::kEm | x86::cr0::kTs))) {
    flags |= kFlagX87;
    if (state.cr4 & x86::cr4::kOsFxsr) flags |= kFlagSse;
    const bool vex = (state.cr4 & x86::cr4::kOsXsave) && !(flags & kFlagReal);
    if (vex && (state.xcr0 & 6) == 6 && has_avx_) flags |= kFlagAvx;
    if ((flags & kFlagAvx) && Avx512Enabled()) flags |= kFlagAvx512;
  }
  // In lockstep the two would read different times.
  if (!lockstep_ && (cpl == 0 || !(state.cr4 & x86::cr4::kTsd))) flags |= kFlagTsc;
  if (state.cr4 & x86::cr4::kFsGsBase) flags |= kFlagFsGsBase;
  if (single_) flags |= kFlagSingle;
  mode_flags_ = flags;
  return true;
}

uint32_t JitVcpu::CurrentFlags() const {
  const CpuState& state = context_->state;
  if (state.cpl() == 3) return mode_flags_ | kContextUser;
  const bool ac = (mode_flags_ & kFlagSmap) && (state.rflags & x86::rflags::kAc);
  return mode_flags_ | (ac ? kContextSupervisorAc : kContextSupervisor);
}

/// The code address of state.rip. False: there are no more numbers for segments, until Translate has taken all back.
bool JitVcpu::FindCodeAddress(uint64_t& address) {
  const CpuState& state = context_->state;
  address = state.rip;
  if (mode_flags_ & kFlagCode64) return true;
  const Segment& cs = state.segment[x86::kCs];
  const uint32_t number = code_segments_.NumberOf({static_cast<uint32_t>(cs.base), cs.limit});
  address = uint64_t{number} << kCodeSegmentShift | static_cast<uint32_t>(cs.base + state.rip);
  return number != kNone;
}

/// A code address back to RIP.
uint64_t JitVcpu::RipOfCode(uint64_t address) const {
  if (mode_flags_ & kFlagCode64) return address;
  return static_cast<uint32_t>(address - context_->state.segment[x86::kCs].base);
}

bool JitVcpu::DeliverableRequest() {
  const uint32_t bits = requests_.load(std::memory_order_acquire);
  if (bits == 0) return false;
  if (bits & ~(kRequestInterrupt | kRequestNoInterrupt | kRequestNmi)) return true;
  if ((bits & (kRequestInterrupt | kRequestNoInterrupt)) && context_->interrupt_flag) return true;
  return (bits & kRequestNmi) && !context_->state.nmi_masked;
}

/// Translated code runs on until the next request. What waits now, for interrupts to be enabled, STI still finds; a
/// request that comes meanwhile is either seen here or stores after this.
void JitVcpu::OpenPolls() {
  context_->go.store(1);
  context_->jump_mask.store(kJumpBits);
  context_->no_request.store(1);
  if (requests_.load() != 0) context_->no_request.store(0);
}

/// The id of the pair of `page`, which is that of `rip`; 0 when there are no more ids.
uint32_t JitVcpu::PageIdOf(uint64_t rip, CodePage& page) {
  if (page.id == 0) page.id = NewPageId(LinearOfCode(rip) >> 12, page.phys_page);
  return page.id;
}

uint32_t JitVcpu::NewPageId(uint64_t linear_page, uint64_t phys_page) {
  uint64_t at = ((linear_page ^ phys_page * 0x9e3779b97f4a7c15) * 0x9e3779b97f4a7c15) >> 48;
  while (true) {
    PageId& entry = page_ids_[at % kPageIds];
    if (entry.id == 0) {
      if (next_page_id_ - first_page_id_ >= kPageIds / 2) return 0;  // the table is full until RenewPageIds
      entry = {linear_page, phys_page, next_page_id_++};
      return entry.id;
    }
    if (entry.linear_page == linear_page && entry.phys_page == phys_page) return entry.id;
    ++at;
  }
}

/// The block at `rip`, or kNone: no translation, or (page_id 0) no executable RAM there.
uint32_t JitVcpu::FindBlock(uint64_t rip, uint32_t flags, uint32_t& page_id) {
  page_id = 0;
  CodePage* page = FetchPage(rip);
  if (!page) return kNone;
  const unsigned context = flags & kFlagContextMask;
  const uint32_t mode = flags & ~uint32_t{kFlagUngrouped};
  uint32_t& filled_under = Code(context).mode_flags;
  if (filled_under != mode) {
    FlushCode(*context_, context, Code(context));
    filled_under = mode;
  }
  page_id = PageIdOf(rip, *page);
  NoteCodePage(rip, *page, context, page_id);
  return store_->Find(page->phys_page << 12 | (rip & kPageMask), rip, flags);
}

void JitVcpu::NoteJumpTarget(const Block& block) {
  const uint64_t entry = JumpIndex(block.rip);
  if (entry == 0 || block.body == 0) return;  // without an entry of its own it would run for any RIP
  const unsigned context = block.flags & kFlagContextMask;
  JumpCache& cache = context_->jump_cache[context];
  CodeNotes& notes = Code(context);
  if (cache.negated_rip[entry] == 0 && notes.jump_count <= CodeNotes::kJumps) {
    if (notes.jump_count < CodeNotes::kJumps) notes.jump[notes.jump_count] = static_cast<uint16_t>(entry);
    ++notes.jump_count;
  }
  cache.negated_rip[entry] = uint64_t{0} - block.rip;
  cache.target[entry] = reinterpret_cast<uint64_t>(buffer_.exec_base() + block.code);
}

/// What the jump cache has for `rip`: the way back from a system call or an interpreted instruction is usually there.
const uint8_t* JitVcpu::CachedTarget(uint64_t rip, uint32_t flags) const {
  const unsigned context = flags & kFlagContextMask;
  if (single_ || pending_link_ != kNone || Code(context).mode_flags != flags) return nullptr;
  const uint64_t entry = JumpIndex(rip);
  const JumpCache& cache = context_->jump_cache[context];
  if (entry == 0 || cache.negated_rip[entry] + rip != 0) return nullptr;
  const auto* code = reinterpret_cast<const uint8_t*>(cache.target[entry]);
  return code == stubs_.miss_target ? nullptr : code;
}

/// Sets state.rip from how translated code was left; while it runs that is a code address.
void JitVcpu::TakeExit() {
  JitContext& context = *context_;
  pending_link_ = kNone;
  interpret_site_ = kNone;
  switch (context.exit_code) {
    case kExitLink:
    case kExitPoll:
      ++(context.exit_code == kExitLink ? counters_.links : counters_.polls);
      pending_link_ = context.exit_id;
      context.state.rip = store_->link(context.exit_id).target_rip;
      break;
    case kExitInterpret:
      if (context.exit_id != kNone) context.state.rip = BlockStore::RipOf(store_->site(context.exit_id));
      interpret_site_ = context.exit_id;
      break;
    default:
      ++counters_.lookups;
      break;
  }
  context.state.rip = RipOfCode(context.state.rip);
}

JitVcpu::Need JitVcpu::Dispatch() {
  JitContext& context = *context_;
  while (true) {
    if (context.state.interrupt_shadow || context.state.pending_debug) return Need::kInterpret;
    if (DeliverableRequest()) {
      if (!TakeBackNoInterrupt()) return Need::kRequests;
      continue;
    }
    if (context.go.load(std::memory_order_relaxed) == 0) {  // a request that cannot be delivered yet, or a stale poll
      OpenPolls();
      continue;
    }
    if (!mode_known_ && !ComputeMode()) return Need::kInterpret;
    if (mode_flags_ == kNone) return Need::kInterpret;
    if (stressed_) [[unlikely]]
      Stress();
    const uint32_t flags = CurrentFlags() | (ungrouped_ ? uint32_t{kFlagUngrouped} : 0);
    uint64_t address = 0;
    if (!FindCodeAddress(address)) return Need::kTranslate;
    const uint8_t* code = CachedTarget(address, flags);
    if (!code) {
      uint32_t page_id = 0;
      uint32_t index = FindBlock(address, flags, page_id);
      // A full table of page ids is emptied by Translate; until then nothing may be linked under id 0, which every
      // unknown page has.
      if (index != kNone && WantsIndirectEntry() && store_->block(index).body == 0 &&
          store_->block(index).instruction_count != 0) {
        store_->Forget(index);
        ++counters_.entries_added;
        index = kNone;
      }
      if (index == kNone && page_id && !reuse_in_translate_) index = Reuse(address, flags);
      if (index == kNone) return page_id || PageIdsFull() ? Need::kTranslate : Need::kInterpret;
      const Block& block = store_->block(index);
      const bool linked = !single_ && !options_.debug.stress.unlinked();
      if (linked && pending_link_ != kNone && page_id != 0) store_->Connect(pending_link_, index, page_id);
      if (block.instruction_count == 0) {
        interpret_site_ = kNone;
        return Need::kInterpret;
      }
      if (linked && pending_link_ == kNone && !ungrouped_) NoteJumpTarget(block);
      code = buffer_.exec_base() + block.entry();
    }
    if (!vectors_live_) LoadVectors(has_avx_ ? 7 : 3);
    UseReturnStack(context.state.cpl() == 3 ? kContextUser : kContextSupervisor);
    ++counters_.dispatches;
    ungrouped_ = false;
    context.state.rflags &= ~x86::rflags::kRf;  // matters to instruction breakpoints only, which are not translated
    context.state.rip = address;
    stubs_.enter(code);
    TakeExit();
    if (context.exit_code == kExitInterpret) {
      const uint32_t fault = pending_fault_;
      pending_fault_ = kNoFault;
      if (fault != kNoFault && !single_ && DeliverPageFault(context.slow_address, fault)) {
        ++counters_.page_faults;
        continue;
      }
      if (interpret_site_ != kNone && store_->site(interpret_site_).group) {  // one of several limits
        LeaveGroup(store_->site(interpret_site_));
        ungrouped_ = true;
        interpret_site_ = kNone;
        continue;
      }
      if (context.exit_id == kNone) ++counters_.slow_interpreted;
      if (interpret_site_ == kNone || single_ || !FastInstruction(store_->site(interpret_site_)))
        return Need::kInterpret;
      ++counters_.fast;
      interpret_site_ = kNone;
    }
    if (single_) return Need::kRequests;
  }
}

/// CpuState::xsave to the host's registers. `in_memory`: the components that the area holds; others become initial.
void JitVcpu::LoadVectors(uint64_t in_memory) {
  uint8_t* area = context_->state.xsave.bytes;
  StoreLe<uint64_t>(area + 512, in_memory);  // XSTATE_BV
  StoreLe<uint64_t>(area + 520, 0);
  StoreLe<uint32_t>(area + 24, LoadLe<uint32_t>(area + 24) & 0xffff);  // reserved bits would fault here
  const uint32_t mask = has_avx_ ? 7 : 3;
  asm volatile("xrstor64 (%0)" : : "r"(area), "a"(mask), "d"(0) : "memory");
  avx512_live_ = Avx512Enabled();
  if (avx512_live_) NacreLoadAvx512(area);
  vectors_live_ = true;
}

/// The host's registers to CpuState::xsave, and which components are not in their initial configuration to its header.
void JitVcpu::StoreVectors() {
  uint8_t* area = context_->state.xsave.bytes;
  const uint32_t mask = has_avx_ ? 7 : 3;
  asm volatile("xsave64 (%0)" : : "r"(area), "a"(mask), "d"(0) : "memory");
  if (avx512_live_) NacreSaveAvx512(area);
  // The host's own instruction and data pointers are not the guest's business.
  StoreLe<uint16_t>(area + 6, 0);
  StoreLe<uint64_t>(area + 8, 0);
  StoreLe<uint64_t>(area + 16, 0);
  StoreLe<uint32_t>(area + 28, 0);  // MXCSR_MASK is not state
}

void JitVcpu::SaveVectors() {
  if (!vectors_live_) return;
  StoreVectors();
  const uint8_t* area = context_->state.xsave.bytes;
  constexpr uint32_t default_mxcsr = 0x1f80;
  if (LoadLe<uint16_t>(area) != 0x37f || area[4] != 0 || LoadLe<uint16_t>(area + 2) != 0) asm volatile("fninit");
  asm volatile("ldmxcsr %0" : : "m"(default_mxcsr));
  if (has_avx_) asm volatile("vzeroupper");
  vectors_live_ = false;
}

/// A check that tries a predicted entry has failed. True: because it was the wrong one, and with the right one, which
/// is predicted now, it will pass.
bool JitVcpu::CorrectPrediction(Site& site, uint64_t address) {
  uint16_t& predicted = Prediction(*context_, BlockStore::RipOf(site));
  const unsigned entry = TlbEntry(site.context, address);
  if (predicted == entry) return false;
  predicted = static_cast<uint16_t>(entry);
  const DataTlb& tlb = context_->tlb[site.context];
  if (address + (site.write ? tlb.write_tag[entry] : tlb.read_tag[entry]) > kPageSize - site.size) return false;
  ++counters_.mispredicted;
  if (prediction_failures_.Note(site, __rdtsc())) {
    ++counters_.unpredicted;
    Assembler code(buffer_.write_base() + BlockStore::RetryOf(site));
    EmitIndex(code, site.context);
  }
  return true;
}

/// A shared check has failed.
void JitVcpu::LeaveGroup(const Site& site) {
  ++counters_.ungrouped;
  const uint64_t rip = BlockStore::RipOf(site);
  if (!translator_->group_failures().Note(rip)) return;
  const auto at = static_cast<unsigned>(rip & kPageMask);
  store_->InvalidateRange(BlockStore::OwnerOf(site).page, at, at, true);
}

/// A TLB miss in translated code: returns where to try again, or 0 with the exit prepared when the interpreter must do
/// the instruction.
uint64_t JitVcpu::SlowMemory() {
  JitContext& context = *context_;
  Site& site = store_->site(context.exit_id);
  const uint64_t address = context.slow_address;
  const bool crosses = (address & kPageMask) + site.size > kPageSize;
  // With nothing selected the page is not accessed: its accessed and dirty bits stay.
  const bool selected = site.opmask == 0 || NacreReadElementMask(site.opmask) << (64 - site.opmask_bits) != 0;
  const uint8_t* const retry = buffer_.exec_base() + BlockStore::RetryOf(site);
  if (site.predicted && !site.given_up() && CorrectPrediction(site, address)) return reinterpret_cast<uint64_t>(retry);
  if (!crosses && selected) {
    if (FillTlb(site.context, address, site.write)) return reinterpret_cast<uint64_t>(retry);
    if (code_host_ && MayWriteBesideCode(code_host_, address & kPageMask, site.size)) {
      context.slow_addend = reinterpret_cast<uint64_t>(code_host_) - AlignDown(address, kPageSize);
      return reinterpret_cast<uint64_t>(retry + site.check_bytes);
    }
  }
  if (crosses && !site.write && !site.group && site.opmask == 0 && ReadAcrossPages(site.context, address, site.size))
    return reinterpret_cast<uint64_t>(retry + site.check_bytes);
  const uint64_t rip = BlockStore::RipOf(site);
  context.state.rip = rip;
  if (site.group) {
    LeaveGroup(site);
    ungrouped_ = true;
    context.exit_code = kExitUngrouped;
    return 0;
  }
  // A misaligned vector operand may have to fault for that instead; whether a masked one faults, the interpreter says;
  // a pending x87 exception comes first (SDM 3A 6.9).
  if (!crosses && !X87ExceptionIsPending() && site.opmask == 0 && (site.size <= 8 || address % site.size == 0))
    pending_fault_ = walk_fault_;
  context.exit_id = kNone;
  context.exit_code = kExitInterpret;
  return 0;
}

/// A string instruction in translated code: returns where to go on, or 0 with the exit prepared.
uint64_t JitVcpu::SlowString() {
  JitContext& context = *context_;
  const uint32_t id = context.exit_id;
  const Site& site = store_->site(id);
  const uint64_t rip = BlockStore::RipOf(site);
  context.state.rip = rip;
  const bool done = site.string == StringKind::kGather     ? FastGather(site)
                    : site.string == StringKind::kSegments ? FastSegmentString(site)
                                                           : FastString(site);
  if (done) {
    ++counters_.fast;
    if (context.state.rip != rip) return reinterpret_cast<uint64_t>(buffer_.exec_base() + BlockStore::RetryOf(site));
    context.exit_code = kExitLookup;  // a request waits; the rest of the string afterwards
    return 0;
  }
  context.exit_code = kExitInterpret;
  return 0;
}

}  // namespace nacre::engine::jit
