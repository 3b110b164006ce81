// The translations that a vCPU has cached: filling and flushing the data TLBs, the pages that code was fetched from,
// the ids of links across pages and the jump caches; address spaces by PCID (address_space.h; SDM 3A 4.10). Called with
// guest vectors live.

#include <asm/prctl.h>
#include <sys/syscall.h>

#include <algorithm>

#include "engine/jit/jit_vcpu.h"

namespace nacre::engine::jit {

using x86::CpuState;

namespace {

uint16_t PcidOf(const CpuState& state) {
  return static_cast<uint16_t>(state.cr4 & x86::cr4::kPcide ? state.cr3 & 0xfff : 0);
}

void EmptyEntry(DataTlb& tlb, unsigned entry) {
  const uint64_t nothing = NoTag(entry);
  tlb.read_tag[entry] = nothing;
  tlb.write_tag[entry] = nothing;
}

constexpr uint32_t kFewestTlbEntries = 256;

void Fill(uint64_t* to, uint64_t count, uint64_t value) {
  asm volatile("rep stosq" : "+D"(to), "+c"(count) : "a"(value) : "memory");
}

uint64_t CodePageKey(uint64_t linear_page, bool user) { return linear_page * 2 + (user ? 1 : 0) + 1; }

}  // namespace

DataNotes& JitVcpu::Data(unsigned context) {
  return context == kContextSupervisor ? supervisor_data_
                                       : spaces_.view(present_space_).space.data[context - kContextUser];
}

CodeNotes& JitVcpu::Code(unsigned context) {
  if (context == kContextUser) return spaces_.view(present_space_).space.code;
  return supervisor_code_[context == kContextSupervisorAc ? 1 : 0];
}

void JitVcpu::SetGsBase() {
  const auto base = reinterpret_cast<unsigned long>(context_);
  if (has_fsgsbase_) {
    asm volatile("wrgsbase %0" : : "r"(base));
    return;
  }
  long result = SYS_arch_prctl;
  asm volatile("syscall" : "+a"(result) : "D"(long{ARCH_SET_GS}), "S"(base) : "rcx", "r11", "memory");
}

// ---- Filling.

/// Enters the page of `address` into a context's TLB; its host address, or nullptr when translated code must not touch
/// it directly (a fault, MMIO, a write to translated code).
const uint8_t* JitVcpu::FillTlb(unsigned which, uint64_t address, bool write) {
  JitContext& context = *context_;
  walk_fault_ = kNoFault;
  code_host_ = nullptr;
  if (context.state.code64() && !IsCanonical(address)) return nullptr;
  const x86::Translation translation = x86::WalkPages(memory_, context.state, GuestVirt(address),
                                                      {.access = write ? x86::Access::kWrite : x86::Access::kRead,
                                                       .user = which == kContextUser,
                                                       .smap_override = which == kContextSupervisorAc,
                                                       .pages_1gib = pages_1gib_,
                                                       .physical_address_bits = physical_address_bits_});
  if (!translation.ok) {
    walk_fault_ = translation.error_code;
    return nullptr;
  }
  const memory::CpuPage found = memory_.FindPage(GuestPhys(AlignDown(translation.address.value, kPageSize)));
  const uint8_t* host = found.host;
  if (!host || (write && !found.writable)) return nullptr;
  const bool writable = translation.writable && found.writable;
  const uint64_t page_index = memory_.PageIndex(host);
  std::atomic<uint8_t>& page_flags = memory_.PageFlags(page_index);
  constexpr uint8_t kDirty = memory::GuestMemory::kDirty;
  if (write && !(page_flags.load(std::memory_order_relaxed) & kDirty)) page_flags.fetch_or(kDirty);
  if (writable)  // before kCode is looked at
    code_page_table_.NoteWriter(page_index, config_.index, which == kContextSupervisor);
  const uint8_t seen = page_flags.load();
  const bool code = (seen & memory::GuestMemory::kCode) != 0;
  if (write && code) {
    code_host_ = host;
    return nullptr;
  }
  const uint64_t page = AlignDown(address, kPageSize);
  DataTlb& tlb = context.tlb[which];
  DataNotes& notes = Data(which);
  unsigned entry = TlbEntry(which, address);
  ++notes.fills;
  if (tlb.read_tag[entry] != NoTag(entry) && tlb.read_tag[entry] != 0 - page && ++notes.conflicts > notes.entries &&
      notes.entries < most_tlb_entries_) {
    ResizeTlb(which, notes, notes.entries * 2);
    entry = TlbEntry(which, address);
  }
  notes.NoteFill(entry);
  tlb.read_tag[entry] = 0 - page;
  tlb.write_tag[entry] = writable && !code && (seen & kDirty) ? 0 - page : NoTag(entry);
  tlb.addend[entry] = reinterpret_cast<uint64_t>(host) - page;
  const bool large = translation.page_bytes > kPageSize;
  notes.entry[entry] =
      static_cast<uint8_t>((translation.global ? DataNotes::kGlobal : 0) | (large ? DataNotes::kLarge : 0));
  if (large) notes.large.Add(page);
  if (!translation.global)
    notes.non_global = true;
  else if (which != kContextSupervisor)
    spaces_.view(present_space_).space.global.Add(page);
  ++counters_.tlb_fills;
  return host;
}

/// Host address of `size` bytes at a linear address as `context` may access it, through the TLB; nullptr as FillTlb, or
/// when the bytes cross a page.
uint8_t* JitVcpu::HostFor(unsigned which, uint64_t address, unsigned size, bool write) {
  const DataTlb& tlb = context_->tlb[which];
  const unsigned entry = TlbEntry(which, address);
  const uint64_t offset = address + (write ? tlb.write_tag[entry] : tlb.read_tag[entry]);
  if (offset <= kPageSize - size) return reinterpret_cast<uint8_t*>(tlb.addend[entry] + address);
  if ((address & kPageMask) + size > kPageSize) return nullptr;
  const uint8_t* host = FillTlb(which, address, write);
  return host ? const_cast<uint8_t*>(host) + (address & kPageMask) : nullptr;
}

/// Bytes across the end of a page into JitContext::crossing. False: not all of them are RAM that may be read.
bool JitVcpu::ReadAcrossPages(unsigned of_context, uint64_t address, unsigned size) {
  JitContext& context = *context_;
  const auto first = static_cast<unsigned>(kPageSize - (address & kPageMask));
  const uint64_t second = address + first;
  if (size > 64 || (!context.state.code64() && second > 0xffffffff)) return false;
  const uint8_t* low = HostFor(of_context, address, first, false);
  const uint8_t* high = low ? HostFor(of_context, second, size - first, false) : nullptr;
  if (!high) return false;
  uint8_t* to = context.crossing + (address & 63);
  context.slow_addend = reinterpret_cast<uint64_t>(to) - address;
  for (unsigned i = 0; i < size; ++i) *to++ = i < first ? low[i] : high[i - first];
  ++counters_.across_pages;
  return true;
}

/// Whether a write to a page with translations, which FillTlb has refused, may be done all the same: by this CPU, once,
/// before its next safepoint. No translation depends on these bytes, and no other CPU has any of the page; one that
/// wants to waits for the safepoint, because FillTlb has noted the writer.
bool JitVcpu::MayWriteBesideCode(const uint8_t* host_page, unsigned first, unsigned size) {
  const uint64_t page_index = memory_.PageIndex(host_page);
  if (code_page_table_.holders(page_index) & ~CodePageTable::Bit(config_.index)) return false;
  if (store_->HoldsCode(page_index, first, first + size - 1)) return false;
  ++counters_.beside_code;
  return true;
}

/// The page of a code address.
CodePage* JitVcpu::FetchPage(uint64_t code_address) {
  const CpuState& state = context_->state;
  const uint64_t rip = LinearOfCode(code_address);
  const bool user = state.cpl() == 3;
  const uint64_t linear_page = rip >> 12;
  const uint64_t key = CodePageKey(linear_page, user);
  AddressSpace& space = spaces_.view(present_space_).space;
  CodePage& page = space.pages[linear_page % kCodePages];
  if (page.key == key && page.generation == space.generation[page.global]) return &page;
  if (state.code64() && !IsCanonical(rip)) return nullptr;
  const x86::Translation translation = x86::WalkPages(memory_, state, GuestVirt(rip),
                                                      {.access = x86::Access::kExecute,
                                                       .user = user,
                                                       .pages_1gib = pages_1gib_,
                                                       .physical_address_bits = physical_address_bits_});
  if (!translation.ok) return nullptr;
  const uint8_t* host = memory_.FindPage(GuestPhys(AlignDown(translation.address.value, kPageSize))).host;
  if (!host || !memory_.MayHoldCode(host)) return nullptr;
  const uint64_t phys_page = memory_.AddressOf(host).page();  // what a window shows keeps its own address
  page.key = key;
  page.generation = space.generation[translation.global];
  page.phys_page = phys_page;
  page.host = host;
  page.id = 0;
  page.global = translation.global;
  page.large = translation.page_bytes > kPageSize;
  if (page.large) space.large_code.Add(rip);
  if (page.global) space.global.Add(rip);
  return &page;
}

/// Translated code of `context` may rely on the page of `rip` being mapped so, until a flush.
void JitVcpu::NoteCodePage(uint64_t code_address, const CodePage& page, unsigned context, uint32_t page_id) {
  const uint64_t rip = LinearOfCode(code_address);
  const unsigned slot = (rip >> 12) % kPageSlots;
  context_->code_pages[context].page_id[slot] = page_id;
  CodeNotes& notes = Code(context);
  notes.NotePage(rip >> 12);
  if (!page.global) notes.non_global = true;
  if (page.large) notes.large.Add(rip);
}

// ---- Sizes: a TLB grows when pages keep taking each other's places.

void JitVcpu::LoadTlbMasks() {
  for (unsigned context = 0; context < kContexts; ++context) {
    context_->tlb_index_mask[context] = Data(context).entries - 1;
    context_->tlb_mask[context] = uint64_t{Data(context).entries - 1} << 12;
  }
}

/// Entries may be predicted that a TLB does not have, because another has them: there they hold nothing.
void JitVcpu::EmptyUpTo(uint32_t entries) {
  for (unsigned i = predictable_entries_; i < entries; ++i) {
    EmptyEntry(home_->tlb[kContextSupervisor], i);
    for (unsigned space = 0; space < kSpaces; ++space)
      if (!space_void_[space]) EmptyEntry(spaces_.view(space).context.tlb[kContextUser], i);
  }
  predictable_entries_ = std::max(predictable_entries_, entries);
}

void JitVcpu::ResizeTlb(unsigned context, DataNotes& notes, uint32_t entries) {
  if (context != kContextSupervisorAc) EmptyUpTo(entries);
  notes.entries = entries;
  notes.fills = entries;  // not to shrink at once
  for (unsigned i = 0; i < entries; ++i) EmptyEntry(context_->tlb[context], i);
  notes.conflicts = 0;
  notes.filled_left = DataNotes::kFilled;
  LoadTlbMasks();
}

// ---- Flushing one context of one view.

void JitVcpu::FlushData(JitContext& view, unsigned context, DataNotes& notes, bool whole) {
  DataTlb& tlb = view.tlb[context];
  // One that was hardly used is smaller from now on: large ones cost time here.
  if (context != kContextSupervisor && notes.fills < notes.entries / 8 && notes.entries > kFewestTlbEntries) {
    notes.entries /= 2;
    for (unsigned i = notes.entries; i < notes.entries * 2; ++i) EmptyEntry(tlb, i);  // may be predicted
    whole = true;
    if (&notes == &Data(context)) LoadTlbMasks();
  }
  if (notes.filled_left != 0) {
    for (unsigned i = notes.filled_left; i < DataNotes::kFilled; ++i)
      if (whole || !(notes.entry[notes.filled[i]] & DataNotes::kGlobal)) EmptyEntry(tlb, notes.filled[i]);
  } else if (whole) {
    for (unsigned i = 0; i < notes.entries; ++i) EmptyEntry(tlb, i);
  } else if (notes.non_global) {
    for (unsigned i = 0; i < notes.entries; ++i)
      if (!(notes.entry[i] & DataNotes::kGlobal)) EmptyEntry(tlb, i);
  }
  if (whole) {
    notes.large = {};
    notes.filled_left = DataNotes::kFilled;
  }
  notes.non_global = false;
  notes.fills = notes.conflicts = 0;
}

void JitVcpu::EmptyJumpCache(JumpCache& cache) {
  Fill(cache.negated_rip, kJumpCacheEntries, 0);
  Fill(cache.target, kJumpCacheEntries, reinterpret_cast<uint64_t>(stubs_.miss_target));
}

/// Returns of `context` look their target up from now on: what was pushed may be code of other bytes, or of pages that
/// are mapped otherwise.
void JitVcpu::EmptyReturnStack(unsigned context) {
  if (context == kContextSupervisorAc) return;  // has none
  (context == return_stack_ ? context_->return_rsp : saved_return_rsp_[context]) = return_stacks_.bottom(context);
}

void JitVcpu::EmptyReturnStacks() {
  EmptyReturnStack(kContextSupervisor);
  EmptyReturnStack(kContextUser);
}

/// The stack of the privilege level that runs next. The supervisor's begins anew when it is entered from user mode: the
/// way out pops nothing.
void JitVcpu::UseReturnStack(unsigned context) {
  if (context == return_stack_) return;
  saved_return_rsp_[return_stack_] = context_->return_rsp;
  context_->return_rsp =
      context == kContextSupervisor ? return_stacks_.bottom(context) : saved_return_rsp_[kContextUser];
  return_stack_ = context;
}

/// All of it: entries of global pages are not told apart from others.
void JitVcpu::FlushCode(JitContext& view, unsigned context, CodeNotes& notes) {
  JumpCache& cache = view.jump_cache[context];
  if (notes.jump_count <= CodeNotes::kJumps) {
    for (unsigned i = 0; i < notes.jump_count; ++i) {
      cache.negated_rip[notes.jump[i]] = 0;
      cache.target[notes.jump[i]] = reinterpret_cast<uint64_t>(stubs_.miss_target);
    }
  } else {
    EmptyJumpCache(cache);
  }
  EmptyReturnStack(context);
  notes.jump_count = 0;
  uint32_t* const page_id = view.code_pages[context].page_id;
  if (notes.slot_count <= CodeNotes::kSlots) {
    for (unsigned i = 0; i < notes.slot_count; ++i) page_id[notes.slot[i]] = notes.page_seen[notes.slot[i]] = 0;
  } else {
    Fill(reinterpret_cast<uint64_t*>(page_id), kPageSlots * sizeof(uint32_t) / 8, 0);
    Fill(reinterpret_cast<uint64_t*>(notes.page_seen), sizeof notes.page_seen / 8, 0);
  }
  notes.slot_count = 0;
  notes.pages = {};
  notes.non_global = false;
  notes.large = {};
}

void JitVcpu::FlushDataPage(JitContext& view, unsigned context, DataNotes& notes, uint64_t page) {
  DataTlb& tlb = view.tlb[context];
  const auto entry = static_cast<unsigned>(page >> 12) & (notes.entries - 1);
  if (tlb.read_tag[entry] == 0 - page) EmptyEntry(tlb, entry);
  if (!notes.large.Contains(page)) return;
  for (unsigned i = 0; i < notes.entries; ++i)  // a large page stands there as many small ones; 1 GiB is the largest
    if ((notes.entry[i] & DataNotes::kLarge) && (((0 - tlb.read_tag[i]) ^ page) >> 30) == 0) EmptyEntry(tlb, i);
}

void JitVcpu::FlushCodePage(JitContext& view, unsigned context, CodeNotes& notes, uint64_t page) {
  if (notes.large.Contains(page)) {
    FlushCode(view, context, notes);
    return;
  }
  if (!notes.MayHold(page >> 12)) return;
  EmptyReturnStack(context);
  view.code_pages[context].page_id[(page >> 12) % kPageSlots] = 0;
  JumpCache& cache = view.jump_cache[context];
  const auto drop = [&](unsigned i) {
    // Above 32 bits may stand a number (code_segments.h): pages 4 GiB apart go together.
    if (static_cast<uint32_t>((0 - cache.negated_rip[i]) ^ page) >> 12 != 0) return;
    cache.negated_rip[i] = ~uint64_t{0};  // not 0, which is an entry that `notes` does not list
    cache.target[i] = reinterpret_cast<uint64_t>(stubs_.miss_target);
  };
  if (notes.jump_count <= CodeNotes::kJumps) {
    for (unsigned i = 0; i < notes.jump_count; ++i) drop(notes.jump[i]);
  } else {
    for (unsigned i = 1; i < kJumpCacheEntries; ++i) drop(i);
  }
}

// ---- Flushing address spaces.

void JitVcpu::FlushShared(bool whole) {
  FlushData(*context_, kContextSupervisor, supervisor_data_, whole);
  for (const unsigned context : {kContextSupervisor, kContextSupervisorAc})
    if (whole || Code(context).non_global) FlushCode(*context_, context, Code(context));
}

/// What the space has for itself. `whole` false: entries of global pages stay.
void JitVcpu::FlushSpace(unsigned index, bool whole) {
  JitContext& view = spaces_.view(index).context;
  AddressSpace& space = spaces_.view(index).space;
  if (whole) {
    space.global = {};
    space.large_code = {};
  }
  for (const unsigned context : {kContextUser, kContextSupervisorAc})
    FlushData(view, context, space.data[context - kContextUser], whole);
  if (whole || space.code.non_global) FlushCode(view, kContextUser, space.code);
  ++space.generation[0];
  if (whole) ++space.generation[1];
}

void JitVcpu::OnTlbFlush(bool include_global) {
  ++counters_.tlb_flushes;
  FlushShared(include_global);
  FlushSpace(present_space_, include_global);
  for (unsigned i = 0; i < kSpaces; ++i) {
    if (i == present_space_) continue;
    space_pcid_[i] = kNoPcid;
    if (include_global) space_void_[i] = true;
  }
  space_pcid_[present_space_] = PcidOf(context_->state);  // CR4.PCIDE may have changed
}

void JitVcpu::FlushPcid(uint16_t pcid) {
  const unsigned index = FindSpace(pcid);
  if (index == kSpaces) return;
  if (index != present_space_) {
    space_pcid_[index] = kNoPcid;
    return;
  }
  ++counters_.tlb_flushes;
  FlushShared(false);
  FlushSpace(index, false);
}

void JitVcpu::FlushPage(unsigned index, uint64_t address, bool shared_too) {
  const uint64_t page = AlignDown(address, kPageSize);
  JitContext& view = spaces_.view(index).context;
  AddressSpace& space = spaces_.view(index).space;
  for (const unsigned context : {kContextUser, kContextSupervisorAc})
    FlushDataPage(view, context, space.data[context - kContextUser], page);
  FlushCodePage(view, kContextUser, space.code, page);
  if (space.large_code.Contains(page)) {
    for (CodePage& code_page : space.pages)
      if (code_page.large && (((code_page.key - 1) >> 1 << 12 ^ page) >> 30) == 0) code_page.key = 0;
  }
  CodePage& code_page = space.pages[(page >> 12) % kCodePages];
  if (code_page.key == CodePageKey(page >> 12, false) || code_page.key == CodePageKey(page >> 12, true))
    code_page.key = 0;
  if (!shared_too) return;
  FlushDataPage(view, kContextSupervisor, supervisor_data_, page);
  for (const unsigned context : {kContextSupervisor, kContextSupervisorAc})
    FlushCodePage(view, context, Code(context), page);
}

/// INVLPG: the present address space, and global pages in all of them.
void JitVcpu::OnTlbFlushPage(GuestVirt address) {
  ++counters_.page_flushes;
  FlushPage(present_space_, address.value, true);
  for (unsigned i = 0; i < kSpaces; ++i)
    if (i != present_space_ && !space_void_[i] && spaces_.view(i).space.global.Contains(address.value))
      FlushPage(i, address.value, false);
}

void JitVcpu::OnTlbFlushPcidPage(uint16_t pcid, GuestVirt address) {
  ++counters_.page_flushes;
  const unsigned index = FindSpace(pcid);
  if (index != kSpaces) FlushPage(index, address.value, index == present_space_);
}

void JitVcpu::FlushAllCode() {
  for (unsigned i = 0; i < kSpaces; ++i) {
    if (space_void_[i]) continue;
    FlushCode(spaces_.view(i).context, kContextUser, spaces_.view(i).space.code);
    for (uint64_t& generation : spaces_.view(i).space.generation) ++generation;  // for the ids
  }
  for (const unsigned context : {kContextSupervisor, kContextSupervisorAc})
    FlushCode(*context_, context, Code(context));
}

// ---- Switching address spaces.

/// The space of a PCID, or kSpaces.
unsigned JitVcpu::FindSpace(uint16_t pcid) const {
  unsigned index = 0;
  while (index < kSpaces && space_pcid_[index] != pcid) ++index;
  return index;
}

/// A space for a PCID that has none: a free one, or the one that was left longest ago.
unsigned JitVcpu::ClaimSpace(uint16_t pcid) {
  unsigned index = kSpaces;
  for (unsigned i = 0; i < kSpaces; ++i) {
    if (i == present_space_) continue;
    const bool is_free = space_pcid_[i] == kNoPcid;
    if (is_free && !space_void_[i]) {
      index = i;
      break;
    }
    const auto rank = [&](unsigned of) { return space_pcid_[of] == kNoPcid ? 0 : space_used_[of]; };
    if (index == kSpaces || rank(i) < rank(index)) index = i;
  }
  if (space_pcid_[index] != kNoPcid) ++counters_.space_evictions;
  if (space_void_[index]) {
    for (DataNotes& notes : spaces_.view(index).space.data)
      if (notes.entries == 0) notes.entries = first_tlb_entries_;
    FlushSpace(index, true);
    DataTlb& user = spaces_.view(index).context.tlb[kContextUser];
    for (unsigned i = spaces_.view(index).space.data[0].entries; i < predictable_entries_; ++i) EmptyEntry(user, i);
    space_void_[index] = false;
    JumpCache* const cache = &spaces_.view(index).context.jump_cache[kContextUser];
    bool known = false;
    for (unsigned i = 0; i < jump_cache_count_; ++i) known = known || jump_caches_[i] == cache;
    if (!known) {
      EmptyJumpCache(*cache);
      jump_caches_[jump_cache_count_++] = cache;
    }
  } else {
    FlushSpace(index, false);
  }
  space_pcid_[index] = pcid;
  return index;
}

void JitVcpu::PrepareAddressSpaces() {
  for (uint32_t& pcid : space_pcid_) pcid = kNoPcid;
  for (bool& is_void : space_void_) is_void = true;
  space_void_[0] = false;
  const uint32_t tiny = options_.debug.stress.tiny_tlb ? JitStress::kTinyTlbEntries : 0;
  first_tlb_entries_ = tiny ? tiny : kFewestTlbEntries;
  most_tlb_entries_ = tiny ? tiny : kTlbEntries;
  for (unsigned context = 0; context < kContexts; ++context) Data(context).entries = first_tlb_entries_;
  predictable_entries_ = first_tlb_entries_;
  LoadTlbMasks();
  for (JumpCache& cache : home_->jump_cache) {
    EmptyJumpCache(cache);
    jump_caches_[jump_cache_count_++] = &cache;
  }
  OnTlbFlush(true);
}

/// A load of CR3. `keep`: what the space has cached stays.
void JitVcpu::SwitchAddressSpace(uint16_t pcid, bool keep) {
  ++counters_.space_switches;
  if (space_pcid_[present_space_] == pcid) {
    if (!keep) FlushPcid(pcid);
    return;
  }
  FlushShared(false);
  space_used_[present_space_] = ++space_clock_;
  unsigned index = FindSpace(pcid);
  if (index == kSpaces) {
    index = ClaimSpace(pcid);
  } else if (!keep) {
    ++counters_.tlb_flushes;
    FlushSpace(index, false);
  }
  EmptyReturnStack(kContextUser);
  present_space_ = index;
  context_ = &spaces_.view(index).context;
  LoadTlbMasks();
  SetGsBase();
}

/// A page has got its first translation: writes to it must be seen from now on. Called with GuestMemory::kCode set, so
/// that no new write tag comes; by the vCPU's thread, or by another under its gate.
void JitVcpu::ForgetWriteRights(const uint8_t* host_page) {
  const uint64_t page_index = memory_.PageIndex(host_page);
  const auto host = reinterpret_cast<uint64_t>(host_page);
  const auto forget = [&](DataTlb& tlb, const DataNotes& notes) {
    for (unsigned i = 0; i < notes.entries; ++i)
      if (tlb.addend[i] - tlb.read_tag[i] == host) tlb.write_tag[i] = NoTag(i);
  };
  if (code_page_table_.SupervisorWrites(page_index, config_.index))
    forget(home_->tlb[kContextSupervisor], supervisor_data_);
  if (!code_page_table_.OtherWrites(page_index, config_.index)) return;
  for (unsigned i = 0; i < kSpaces; ++i)
    if (!space_void_[i])
      for (const unsigned context : {kContextUser, kContextSupervisorAc})
        forget(spaces_.view(i).context.tlb[context], spaces_.view(i).space.data[context - kContextUser]);
}

}  // namespace nacre::engine::jit
