// The part of the vCPU that runs between translated blocks with the guest's vector registers live in the host's:
// compiled with general registers only, calls nothing that is not.

#include <immintrin.h>

#include "engine/jit/jit_vcpu.h"

namespace nacre::engine::jit {

using x86::CpuState;
using x86::Segment;

namespace {

constexpr uint8_t kEntryGlobal = 1, kEntryLarge = 2;

bool IsFlatData(const Segment& segment) {
  // Writable data (type 0x2 without expand-down), base 0, limit 4 GiB.
  return segment.base == 0 && segment.limit == 0xffffffff &&
         (segment.attributes & (Segment::kS | Segment::kP)) == (Segment::kS | Segment::kP) &&
         (segment.type() & 0xe) == 0x2 && !segment.unusable();
}

bool IsWholeSegment(const Segment& segment) {
  return segment.limit == 0xffffffff &&
         (segment.attributes & (Segment::kS | Segment::kP)) == (Segment::kS | Segment::kP) &&
         (segment.type() & 0xe) == 0x2 && !segment.unusable();
}

bool IsCanonical(uint64_t address) { return SignExtend(address, 48) == address; }

}  // namespace

/// The mode flags of the present state; false when it is one that is not translated at all.
bool JitVcpu::ComputeMode() {
  const CpuState& state = context_->state;
  mode_known_ = true;
  mode_flags_ = kNone;
  const Segment& cs = state.segment[x86::kCs];
  if (!state.protected_mode() || state.virtual8086() || (state.rflags & x86::rflags::kTf) || (state.dr7 & 0xff))
    return false;
  uint32_t flags = 0;
  if (state.code64()) {
    flags |= kFlagCode64 | kFlagFlat | kFlagFs | kFlagGs;
  } else {
    if (!cs.big() || cs.base != 0 || cs.limit != 0xffffffff) return false;
    const Segment& ss = state.segment[x86::kSs];
    if (IsFlatData(state.segment[x86::kDs]) && IsFlatData(state.segment[x86::kEs]) && IsFlatData(ss) && ss.big())
      flags |= kFlagFlat;
    if (IsWholeSegment(state.segment[x86::kFs])) flags |= kFlagFs;
    if (IsWholeSegment(state.segment[x86::kGs])) flags |= kFlagGs;
  }
  const unsigned cpl = state.cpl();
  if (cpl == 3 && (state.cr0 & x86::cr0::kAm) && (state.rflags & x86::rflags::kAc)) return false;  // alignment checks
  if (cpl == 0) flags |= kFlagCpl0;
  if (state.cr4 & x86::cr4::kSmap) flags |= kFlagSmap;
  if (!(state.cr0 & (x86::cr0::kEm | x86::cr0::kTs))) {
    flags |= kFlagX87;
    if (state.cr4 & x86::cr4::kOsFxsr) flags |= kFlagSse;
    if ((state.cr4 & x86::cr4::kOsXsave) && (state.xcr0 & 6) == 6 && has_avx_) flags |= kFlagAvx;
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

bool JitVcpu::DeliverableRequest() {
  const uint32_t bits = requests_.load(std::memory_order_acquire);
  if (bits == 0) return false;
  if (bits & ~(kRequestInterrupt | kRequestNmi)) return true;
  if ((bits & kRequestInterrupt) && context_->interrupt_flag) return true;
  return (bits & kRequestNmi) && !context_->state.nmi_masked;
}

const JitVcpu::CodePage* JitVcpu::FetchPage(uint64_t rip) {
  const CpuState& state = context_->state;
  const bool user = state.cpl() == 3;
  const uint64_t linear_page = rip >> 12;
  const uint64_t key = linear_page * 2 + (user ? 1 : 0);
  CodePage& page = code_pages_[linear_page % kCodePages];
  if (page.key == key) return &page;
  if (state.code64() && !IsCanonical(rip)) return nullptr;
  const x86::Translation translation =
      x86::WalkPages(memory_, state, GuestVirt(rip), {.access = x86::Access::kExecute, .user = user});
  if (!translation.ok) return nullptr;
  const uint64_t phys_page = translation.address.value >> 12;
  const uint8_t* host = memory_.HostPointer(GuestPhys(phys_page << 12), kPageSize);
  if (!host) return nullptr;
  page.key = key;
  page.phys_page = phys_page;
  page.host = host;
  page.global = translation.global;
  page.large = translation.page_bytes > kPageSize;
  return &page;
}

uint32_t JitVcpu::PageIdOf(uint64_t linear_page, uint64_t phys_page) {
  uint64_t at = ((linear_page ^ phys_page * 0x9e3779b97f4a7c15) * 0x9e3779b97f4a7c15) >> 48;
  while (true) {
    PageId& entry = page_ids_[at % kPageIds];
    if (entry.id == 0) {
      if (next_page_id_ >= kPageIds / 2) return 0;  // the table is full until the next reset of the code
      entry = {linear_page, phys_page, next_page_id_++};
      return entry.id;
    }
    if (entry.linear_page == linear_page && entry.phys_page == phys_page) return entry.id;
    ++at;
  }
}

/// Translated code of `context` may rely on the page of `rip` being mapped so, until a flush.
void JitVcpu::NoteCodePage(uint64_t rip, const CodePage& page, unsigned context, uint32_t page_id) {
  const unsigned slot = (rip >> 12) % kPageSlots;
  context_->code_pages[context].page_id[slot] = page_id;
  code_page_seen_[context * kPageSlots + slot] = 1;
  if (!page.global) code_non_global_[context] = true;
  if (page.large) {
    LargeCode& large = large_code_[context];
    large.first = large.first < rip ? large.first : AlignDown(rip, kGiB);
    large.last = large.last > rip ? large.last : rip | (kGiB - 1);
  }
}

/// The block at `rip`, or kNone: no translation, or (page_id 0) no executable RAM there.
uint32_t JitVcpu::FindBlock(uint64_t rip, uint32_t flags, uint32_t& page_id) {
  page_id = 0;
  const CodePage* page = FetchPage(rip);
  if (!page) return kNone;
  const unsigned context = flags & kFlagContextMask;
  const uint32_t mode = flags & ~uint32_t{kFlagUngrouped};
  if (context_flags_[context] != mode) {
    FlushContextCode(context);
    context_flags_[context] = mode;
  }
  page_id = PageIdOf(rip >> 12, page->phys_page);
  NoteCodePage(rip, *page, context, page_id);
  return store_->Find(page->phys_page << 12 | (rip & kPageMask), rip, flags);
}

void JitVcpu::NoteJumpTarget(const Block& block) {
  const uint64_t entry = block.rip & kJumpMask;
  if (entry == 0) return;
  JumpCache& cache = context_->jump_cache[block.flags & kFlagContextMask];
  cache.negated_rip[entry] = uint64_t{0} - block.rip;
  cache.target[entry] = reinterpret_cast<uint64_t>(buffer_.exec_base() + block.code);
}

/// What the jump cache has for `rip`: the way back from a system call or an interpreted instruction is usually there.
const uint8_t* JitVcpu::CachedTarget(uint64_t rip, uint32_t flags) const {
  const unsigned context = flags & kFlagContextMask;
  if (single_ || pending_link_ != kNone || context_flags_[context] != flags) return nullptr;
  const uint64_t entry = rip & kJumpMask;
  const JumpCache& cache = context_->jump_cache[context];
  if (entry == 0 || cache.negated_rip[entry] + rip != 0) return nullptr;
  const auto* code = reinterpret_cast<const uint8_t*>(cache.target[entry]);
  return code == stubs_.miss_target ? nullptr : code;
}

/// Sets state.rip from how translated code was left.
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
      if (context.exit_id != kNone) context.state.rip = store_->site(context.exit_id).rip;
      interpret_site_ = context.exit_id;
      break;
    default:
      ++counters_.lookups;
      break;
  }
}

JitVcpu::Need JitVcpu::Dispatch() {
  JitContext& context = *context_;
  while (true) {
    if (context.state.interrupt_shadow || context.state.pending_debug) return Need::kInterpret;
    if (DeliverableRequest()) return Need::kRequests;
    if (context.go.load(std::memory_order_relaxed) == 0) {  // a request that cannot be delivered yet, or a stale poll
      context.go.store(1);
      context.jump_mask.store(kJumpMask);
      if (requests_.load() == 0) context.no_request.store(1);
      continue;
    }
    if (!mode_known_ && !ComputeMode()) return Need::kInterpret;
    if (mode_flags_ == kNone) return Need::kInterpret;
    const uint32_t flags = CurrentFlags() | (ungrouped_ ? uint32_t{kFlagUngrouped} : 0);
    const uint8_t* code = CachedTarget(context.state.rip, flags);
    if (!code) {
      uint32_t page_id = 0;
      const uint32_t index = FindBlock(context.state.rip, flags, page_id);
      // A full table of page ids is emptied by Translate; until then nothing may be linked under id 0, which every
      // unknown page has.
      const bool ids_full = next_page_id_ >= kPageIds / 2 - 2;
      if (index == kNone) return page_id || ids_full ? Need::kTranslate : Need::kInterpret;
      const Block& block = store_->block(index);
      if (!single_ && pending_link_ != kNone && page_id != 0) store_->Connect(pending_link_, index, page_id);
      if (block.instruction_count == 0) {
        interpret_site_ = kNone;
        return Need::kInterpret;
      }
      if (!single_ && pending_link_ == kNone && !ungrouped_) NoteJumpTarget(block);
      code = buffer_.exec_base() + block.code;
    }
    if (!vectors_live_) RestoreVectors();
    ++counters_.dispatches;
    ungrouped_ = false;
    context.state.rflags &= ~x86::rflags::kRf;  // matters to instruction breakpoints only, which are not translated
    stubs_.enter(code);
    TakeExit();
    if (context.exit_code == kExitInterpret) {
      if (interpret_site_ == kNone || single_ || !FastInstruction(store_->site(interpret_site_)))
        return Need::kInterpret;
      ++counters_.fast;
      interpret_site_ = kNone;
    }
    if (single_) return Need::kRequests;
  }
}

void JitVcpu::RestoreVectors() {
  uint8_t* area = context_->state.xsave.bytes;
  StoreLe<uint64_t>(area + 512, has_avx_ ? 7 : 3);  // XSTATE_BV: everything is in memory
  StoreLe<uint64_t>(area + 520, 0);
  StoreLe<uint32_t>(area + 24, LoadLe<uint32_t>(area + 24) & 0xffff);  // reserved bits would fault here
  const uint32_t mask = has_avx_ ? 7 : 3;
  asm volatile("xrstor64 (%0)" : : "r"(area), "a"(mask), "d"(0) : "memory");
  vectors_live_ = true;
}

void JitVcpu::SaveVectors() {
  if (!vectors_live_) return;
  uint8_t* area = context_->state.xsave.bytes;
  const uint32_t mask = has_avx_ ? 7 : 3;
  asm volatile("xsave64 (%0)" : : "r"(area), "a"(mask), "d"(0) : "memory");
  // The host's own instruction and data pointers are not the guest's business.
  StoreLe<uint16_t>(area + 6, 0);
  StoreLe<uint64_t>(area + 8, 0);
  StoreLe<uint64_t>(area + 16, 0);
  constexpr uint32_t default_mxcsr = 0x1f80;
  StoreLe<uint32_t>(area + 28, 0);  // MXCSR_MASK is not state
  if (LoadLe<uint16_t>(area) != 0x37f || area[4] != 0 || LoadLe<uint16_t>(area + 2) != 0) asm volatile("fninit");
  asm volatile("ldmxcsr %0" : : "m"(default_mxcsr));
  if (has_avx_) asm volatile("vzeroupper");
  vectors_live_ = false;
}

/// Enters the page of `address` into a context's TLB; its host address, or nullptr when translated code must not touch
/// it directly (a fault, MMIO, a write to translated code).
const uint8_t* JitVcpu::FillTlb(unsigned which, uint64_t address, bool write) {
  JitContext& context = *context_;
  if (context.state.code64() && !IsCanonical(address)) return nullptr;
  const x86::Translation translation = x86::WalkPages(memory_, context.state, GuestVirt(address),
                                                      {.access = write ? x86::Access::kWrite : x86::Access::kRead,
                                                       .user = which == kContextUser,
                                                       .smap_override = which == kContextSupervisorAc});
  if (!translation.ok) return nullptr;
  const uint8_t* host = memory_.HostPointer(GuestPhys(AlignDown(translation.address.value, kPageSize)), kPageSize);
  if (!host) return nullptr;
  const uint64_t page_index = memory_.PageIndex(host);
  std::atomic<uint8_t>& page_flags = memory_.PageFlags(page_index);
  if (write) page_flags.fetch_or(memory::GuestMemory::kDirty);
  if (translation.writable) code_page_table_.NoteWriter(page_index, config_.index);  // before kCode is looked at
  const uint8_t seen = page_flags.load();
  const bool code = (seen & memory::GuestMemory::kCode) != 0;
  if (write && code) return nullptr;
  const uint64_t page = AlignDown(address, kPageSize);
  const unsigned entry = (address >> 12) % kTlbEntries;
  DataTlb& tlb = context.tlb[which];
  const bool writable = translation.writable && !code && (seen & memory::GuestMemory::kDirty);
  tlb.read_tag[entry] = 0 - page;
  tlb.write_tag[entry] = writable ? 0 - page : NoTag(entry);
  tlb.host[entry] = reinterpret_cast<uint64_t>(host);
  const bool large = translation.page_bytes > kPageSize;
  tlb_entry_flags_[which * kTlbEntries + entry] =
      static_cast<uint8_t>((translation.global ? kEntryGlobal : 0) | (large ? kEntryLarge : 0));
  if (!translation.global) tlb_non_global_[which] = true;
  if (large) ++tlb_large_[which];
  ++counters_.tlb_fills;
  return host;
}

/// Host address of `size` bytes at a linear address as `context` may access it, through the TLB; nullptr as FillTlb, or
/// when the bytes cross a page.
uint8_t* JitVcpu::HostFor(unsigned which, uint64_t address, unsigned size, bool write) {
  const DataTlb& tlb = context_->tlb[which];
  const unsigned entry = (address >> 12) % kTlbEntries;
  const uint64_t offset = address + (write ? tlb.write_tag[entry] : tlb.read_tag[entry]);
  if (offset <= kPageSize - size) return reinterpret_cast<uint8_t*>(tlb.host[entry] + offset);
  if ((address & kPageMask) + size > kPageSize) return nullptr;
  const uint8_t* host = FillTlb(which, address, write);
  return host ? const_cast<uint8_t*>(host) + (address & kPageMask) : nullptr;
}

/// A TLB miss in translated code: returns where to try again, or 0 with the exit prepared when the interpreter must do
/// the instruction.
uint64_t JitVcpu::SlowMemory() {
  JitContext& context = *context_;
  const Site& site = store_->site(context.exit_id);
  const uint64_t address = context.slow_address;
  const bool crosses = (address & kPageMask) + site.size > kPageSize;
  if (!crosses && FillTlb(site.context, address, site.write))
    return reinterpret_cast<uint64_t>(buffer_.exec_base() + site.retry);
  context.state.rip = site.rip;
  if (site.group) {
    ++counters_.ungrouped;
    ungrouped_ = true;
    if (translator_->group_failures().Note(site.rip)) {
      const uint32_t index = store_->FindByCode(site.retry);
      const auto at = static_cast<unsigned>(site.rip & kPageMask);
      if (index != kNone) store_->InvalidateRange(store_->block(index).page, at, at, context, stubs_.miss_target);
    }
    context.exit_code = kExitUngrouped;
    return 0;
  }
  ++counters_.slow_interpreted;
  context.exit_id = kNone;
  context.exit_code = kExitInterpret;
  return 0;
}

/// A string instruction in translated code: returns where to go on, or 0 with the exit prepared.
uint64_t JitVcpu::SlowString() {
  JitContext& context = *context_;
  const uint32_t id = context.exit_id;
  const Site& site = store_->site(id);
  context.state.rip = site.rip;
  if (FastString(site)) {
    ++counters_.fast;
    if (context.state.rip != site.rip) return reinterpret_cast<uint64_t>(buffer_.exec_base() + site.retry);
    context.exit_code = kExitLookup;  // a request waits; the rest of the string afterwards
    return 0;
  }
  context.exit_code = kExitInterpret;
  return 0;
}

void JitVcpu::FlushContextTlb(unsigned context) {
  DataTlb& tlb = context_->tlb[context];
  for (unsigned i = 0; i < kTlbEntries; ++i) {
    const uint64_t nothing = NoTag(i);
    tlb.read_tag[i] = nothing;
    tlb.write_tag[i] = nothing;
  }
  tlb_non_global_[context] = false;
  tlb_large_[context] = 0;
}

void JitVcpu::FlushContextCode(unsigned context) {
  JumpCache& cache = context_->jump_cache[context];
  for (unsigned i = 0; i < kJumpCacheEntries; ++i) {
    cache.negated_rip[i] = ~uint64_t{0};
    cache.target[i] = reinterpret_cast<uint64_t>(stubs_.miss_target);
  }
  for (unsigned i = 0; i < kPageSlots; ++i) {
    context_->code_pages[context].page_id[i] = 0;
    code_page_seen_[context * kPageSlots + i] = 0;
  }
  code_non_global_[context] = false;
  large_code_[context] = {};
}

void JitVcpu::FlushTranslations(bool include_global) {
  ++counters_.tlb_flushes;
  for (unsigned context = 0; context < kContexts; ++context) {
    if (include_global) {
      FlushContextTlb(context);
    } else if (tlb_non_global_[context]) {
      DataTlb& tlb = context_->tlb[context];
      const uint8_t* flags = &tlb_entry_flags_[context * kTlbEntries];
      for (unsigned i = 0; i < kTlbEntries; ++i) {
        if (flags[i] & kEntryGlobal) continue;
        const uint64_t nothing = NoTag(i);
        tlb.read_tag[i] = nothing;
        tlb.write_tag[i] = nothing;
      }
      tlb_non_global_[context] = false;
    }
    if (include_global || code_non_global_[context]) FlushContextCode(context);
  }
  for (CodePage& page : code_pages_)
    if (include_global || !page.global) page.key = ~uint64_t{0};
}

/// INVLPG. A large page may stand in the TLB as many small ones.
void JitVcpu::FlushPage(uint64_t address) {
  ++counters_.page_flushes;
  const uint64_t page = AlignDown(address, kPageSize);
  for (unsigned context = 0; context < kContexts; ++context) {
    DataTlb& tlb = context_->tlb[context];
    const auto drop = [&](unsigned i) {
      const uint64_t nothing = NoTag(i);
      tlb.read_tag[i] = nothing;
      tlb.write_tag[i] = nothing;
    };
    const unsigned entry = (page >> 12) % kTlbEntries;
    if (tlb.read_tag[entry] == 0 - page) drop(entry);
    if (tlb_large_[context] > 0) {
      const uint8_t* flags = &tlb_entry_flags_[context * kTlbEntries];
      for (unsigned i = 0; i < kTlbEntries; ++i)  // one gigabyte: the largest page
        if ((flags[i] & kEntryLarge) && (((0 - tlb.read_tag[i]) ^ page) >> 30) == 0) drop(i);
    }
  }
  for (CodePage& code_page : code_pages_) {
    const bool same =
        code_page.large ? (((code_page.key >> 1) << 12 ^ page) >> 30) == 0 : code_page.key >> 1 == page >> 12;
    if (same) code_page.key = ~uint64_t{0};
  }
  for (unsigned context = 0; context < kContexts; ++context) {
    const unsigned slot = (page >> 12) % kPageSlots;
    if (page >= large_code_[context].first && page <= large_code_[context].last) {
      FlushContextCode(context);
      continue;
    }
    if (!code_page_seen_[context * kPageSlots + slot]) continue;
    context_->code_pages[context].page_id[slot] = 0;
    JumpCache& cache = context_->jump_cache[context];
    for (unsigned i = 0; i < kJumpCacheEntries; ++i) {
      if (((0 - cache.negated_rip[i]) ^ page) >> 12 != 0) continue;
      cache.negated_rip[i] = ~uint64_t{0};
      cache.target[i] = reinterpret_cast<uint64_t>(stubs_.miss_target);
    }
  }
}

/// A page has got its first translation: writes to it must be seen from now on.
void JitVcpu::ForgetWriteRights(const uint8_t* host_page) {
  const auto host = reinterpret_cast<uint64_t>(host_page);
  for (DataTlb& tlb : context_->tlb)
    for (unsigned i = 0; i < kTlbEntries; ++i)
      if (tlb.host[i] == host) tlb.write_tag[i] = NoTag(i);
}

}  // namespace nacre::engine::jit
