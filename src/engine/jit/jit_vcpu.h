#pragma once
// One virtual CPU of the translator. Run alternates between Dispatch, which is compiled without vector registers and
// keeps running translated code with the guest's vector state live in the host's registers, and the heavy rest (the
// translator, the interpreter, devices), before which that state is saved. One thread, but for Request and its like.

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "codegen/code_buffer.h"
#include "engine/host_faults.h"
#include "engine/interp/interpreter.h"
#include "engine/jit/address_space.h"
#include "engine/jit/block.h"
#include "engine/jit/code_page_table.h"
#include "engine/jit/context.h"
#include "engine/jit/hot_code.h"
#include "engine/jit/jit_engine.h"
#include "engine/jit/prediction.h"
#include "engine/jit/return_stacks.h"
#include "engine/jit/stubs.h"
#include "engine/jit/translation_tools.h"
#include "engine/jit/translator.h"
#include "engine/vcpu_group.h"
#include "x86/page_walk.h"

namespace nacre::engine::jit {

/// Counters that tell where time went; see JitVcpu::Statistics.
struct JitCounters {
  uint64_t dispatches = 0, links = 0, lookups = 0, polls = 0;
  uint64_t tlb_fills = 0, slow_interpreted = 0, ungrouped = 0, tlb_flushes = 0, page_flushes = 0;
  uint64_t space_switches = 0, space_evictions = 0;
  uint64_t translations = 0, invalidations = 0, cache_resets = 0;
  uint64_t interpreted = 0, interpreted_in_mode = 0, interrupts = 0, host_faults = 0;
  uint64_t wild_accesses = 0;                  ///< of translated code, to addresses of the host that are not mapped
  uint64_t page_faults = 0;                    ///< delivered without the interpreter
  uint64_t across_pages = 0, beside_code = 0;  ///< reads and writes that the slow path has made possible
  uint64_t mispredicted = 0, unpredicted = 0;  ///< TLB entries; sites that were given up
  uint64_t promoted = 0;                       ///< blocks that were found to be hot
  uint64_t entries_added = 0;                  ///< blocks made again because an indirect branch led to them
  uint64_t fast = 0;                           ///< done by FastInstruction and SlowString
  uint64_t reuse_checked = 0, reuse_incomparable = 0;
  uint64_t translate_ticks = 0, reuse_ticks = 0;  ///< of the time stamp counter
};

/// What the vCPUs of one machine share. Code caches are their own (ADR 0005).
struct JitShared {
  explicit JitShared(memory::GuestMemory& memory) : code_pages(memory) {}
  VcpuGroup group;
  CodePageTable code_pages;
};

class JitVcpu : public Vcpu, private interp::StateListener, private HostFaultHandler, private SafepointWork {
 public:
  static Result<std::unique_ptr<JitVcpu>> Create(const VcpuConfig& config, const JitOptions& options,
                                                 JitShared& shared);
  ~JitVcpu() override;

  void Import(const x86::CpuState& state) override;
  void Export(x86::CpuState& state) const override;
  ExitReason Run(uint64_t instruction_budget) override;
  void Request(uint32_t bits) override;
  void ClearRequest(uint32_t bits) override { requests_.fetch_and(~bits); }
  uint32_t pending_requests() const override { return requests_.load(); }
  std::string error() const override { return error_; }
  std::vector<Statistic> Statistics() const override;

  /// Any thread: guest bytes that were translated have been written.
  void NoteCodeWrite(GuestPhys address, uint64_t size_bytes);

 private:
  enum class Need : uint8_t { kTranslate, kInterpret, kRequests };
  struct PageId {
    uint64_t linear_page = 0, phys_page = 0;
    uint32_t id = 0;
  };
  static constexpr unsigned kPageIds = 1 << 16;
  static constexpr int64_t kSamplePeriod = 4096;         ///< checks out of line
  static constexpr unsigned kPromotedTogether = 12;      ///< blocks
  static constexpr int64_t kCrowdedNs = 20'000'000'000;  ///< for all of the code memory

  JitVcpu(const VcpuConfig& config, const JitOptions& options, JitShared& shared);
  Status Prepare();

  // dispatch_nosimd.cc: guest vectors may be live
  Need Dispatch();
  bool ComputeMode();
  bool FindCodeAddress(uint64_t& address);
  uint64_t RipOfCode(uint64_t address) const;
  uint64_t LinearOfCode(uint64_t address) const {
    return mode_flags_ & kFlagCode64 ? address : address & ~kCodeSegmentMask;
  }
  CodeSegment CodeSegmentOf(uint32_t flags) const {
    const x86::Segment& cs = context_->state.segment[x86::kCs];
    return flags & kFlagCode64 ? CodeSegment{} : CodeSegment{static_cast<uint32_t>(cs.base), cs.limit};
  }
  void LeaveGroup(const Site& site);
  uint32_t CurrentFlags() const;
  bool DeliverableRequest();
  void OpenPolls();
  uint32_t PageIdOf(uint64_t rip, CodePage& page);
  uint32_t NewPageId(uint64_t linear_page, uint64_t phys_page);
  uint32_t FindBlock(uint64_t rip, uint32_t flags, uint32_t& page_id);
  void NoteJumpTarget(const Block& block);
  const uint8_t* CachedTarget(uint64_t rip, uint32_t flags) const;
  void TakeExit();
  void Stress();
  bool TakeBackNoInterrupt();  ///< stress_nosimd.cc
  bool Avx512Enabled() const;
  void LoadVectors(uint64_t in_memory);
  void StoreVectors();
  void SaveVectors();
  static uint64_t SlowMemoryEntry(JitVcpu* self) { return self->SlowMemory(); }
  uint64_t SlowMemory();
  /// FSW.ES, of the host's registers: the next x87 or MMX instruction that waits raises #MF, whatever its operand.
  static bool X87ExceptionIsPending() {
    uint16_t status;
    asm volatile("fnstsw %0" : "=a"(status));
    return (status & 0x80) != 0;
  }
  bool ReadAcrossPages(unsigned context, uint64_t address, unsigned size);
  bool MayWriteBesideCode(const uint8_t* host_page, unsigned first, unsigned size);
  bool CorrectPrediction(Site& site, uint64_t address);
  static uint64_t SlowStringEntry(JitVcpu* self) { return self->SlowString(); }
  uint64_t SlowString();
  /// A translation made now has an entry for indirect branches: no link will lead to it.
  bool WantsIndirectEntry() const {
    return pending_link_ == kNone && !single_ && !ungrouped_ && !options_.debug.stress.unlinked();
  }
  bool WantsCompact(uint64_t phys) const {
    return (crowded_ || options_.debug.stress.compact) && !ungrouped_ && !hot_.Has(phys);
  }
  // tiers_nosimd.cc
  static uint64_t SlowCheckEntry(JitVcpu* self) { return self->SlowCheck(); }
  uint64_t SlowCheck();
  void TakeSample(uint32_t id);

  // tlb_nosimd.cc
  unsigned TlbEntry(unsigned context, uint64_t address) const {
    return static_cast<unsigned>((address & context_->tlb_mask[context]) >> 12);
  }
  const uint8_t* FillTlb(unsigned context, uint64_t address, bool write);
  uint8_t* HostFor(unsigned context, uint64_t address, unsigned size, bool write);
  void NoteCodePage(uint64_t rip, const CodePage& page, unsigned context, uint32_t page_id);
  CodePage* FetchPage(uint64_t rip);
  void EmptyUpTo(uint32_t entries);
  void ResizeTlb(unsigned context, DataNotes& notes, uint32_t entries);
  void LoadTlbMasks();
  void FlushData(JitContext& view, unsigned context, DataNotes& notes, bool whole);
  void FlushCode(JitContext& view, unsigned context, CodeNotes& notes);
  void FlushAllCode();
  void FlushSpace(unsigned index, bool whole);
  void FlushShared(bool whole);
  void FlushPage(unsigned space, uint64_t address, bool shared_too);
  void FlushDataPage(JitContext& view, unsigned context, DataNotes& notes, uint64_t page);
  void FlushCodePage(JitContext& view, unsigned context, CodeNotes& notes, uint64_t page);
  void FlushPcid(uint16_t pcid);
  unsigned FindSpace(uint16_t pcid) const;
  unsigned ClaimSpace(uint16_t pcid);
  void PrepareAddressSpaces();
  void SwitchAddressSpace(uint16_t pcid, bool keep);
  void ForgetWriteRights(const uint8_t* host_page);
  void EmptyJumpCache(JumpCache& cache);
  void EmptyReturnStack(unsigned context);
  void EmptyReturnStacks();
  void UseReturnStack(unsigned context);
  void SetGsBase();
  DataNotes& Data(unsigned context);
  CodeNotes& Code(unsigned context);
  const CodeNotes& Code(unsigned context) const { return const_cast<JitVcpu*>(this)->Code(context); }

  // fast_system_nosimd.cc: instructions that the interpreter would do, without saving the vectors. False: not this
  // case.
  bool FastInstruction(const Site& site);
  bool FastString(const Site& site);
  bool FastStringElement(const Site& site, bool load, bool store);
  bool FastSegmentString(const Site& site);  ///< fast_string_nosimd.cc
  uint64_t StringRun(unsigned index, uint64_t offset, uint64_t count, const Site& site, bool write, uint8_t*& host);
  bool FastGather(const Site& site);  ///< fast_gather_nosimd.cc
  bool FastSyscall(const Site& site);
  bool FastSysret();
  bool FastIretq();
  bool FastLoadCr3(const Site& site);
  bool FastInvalidate(const Site& site);
  bool FastMsr(const Site& site, bool write);
  bool ReadDescriptor(uint16_t selector, uint64_t& descriptor);
  // fast_vector_nosimd.cc
  bool FastXsave(const Site& site, bool restore, bool optimized);
  template <typename Memory>
  bool StoreXsaveArea(const Memory& area, uint64_t features, bool optimized);
  template <typename Memory>
  bool LoadXsaveArea(const Memory& area, uint64_t features);
  uint64_t LiveComponents() const;
  // fast_exception_nosimd.cc
  bool HandlerStack(unsigned ist, uint64_t& rsp);
  bool DeliverPageFault(uint64_t address, uint32_t error_code);
  uint64_t WholeFlags() const;
  void SetFlags(uint64_t rflags);

  // block_reuse_nosimd.cc
  uint32_t Reuse(uint64_t rip, uint32_t flags);

  // jit_vcpu.cc: guest vectors are saved
  ExitReason RunEntered(uint64_t instruction_budget);
  void Translate();
  void AddNextPage(TranslateRequest& request);
  void ShowTools(const TranslateRequest& request, uint32_t block);
  void CheckReuse(TranslateRequest request, uint32_t reused);  // reuse_check.cc
  void HoldCodePage(const uint8_t* host_page);
  void OnSafepointWork(uint64_t host_page) override;
  bool ServeRequests(ExitReason& reason);
  interp::StepResult InterpretOne();
  bool AfterStep(interp::StepResult result, ExitReason& reason);
  void ApplyCodeWrites();
  void ResetCode();
  void RenewPageIds();
  bool PageIdsFull() const { return next_page_id_ - first_page_id_ >= kPageIds / 2 - 2; }
  void PopulateCode();
  void TakeNextSegment();
  void GatherFlags();   ///< state.rflags becomes whole
  void ScatterFlags();  ///< ... and is taken apart again: see JitContext
  void FreshenInterpreter();

  // lockstep.cc
  class Lockstep;

  void OnAddressSpace(uint16_t pcid, bool keep) override { SwitchAddressSpace(pcid, keep); }
  void OnTlbFlush(bool include_global) override;
  void OnTlbFlushPcid(uint16_t pcid) override { FlushPcid(pcid); }
  void OnTlbFlushPage(GuestVirt address) override;
  void OnTlbFlushPcidPage(uint16_t pcid, GuestVirt address) override;
  bool OnHostFault(int signal, const siginfo_t& info, ucontext_t& context) override;

  const VcpuGroup& group_;
  VcpuGroupMember member_;
  VcpuConfig config_;
  JitOptions options_;
  memory::GuestMemory& memory_;
  CodePageTable& code_page_table_;
  AddressSpaces spaces_;
  JitContext* context_ = nullptr;  ///< the present address space's view
  JitContext* home_ = nullptr;     ///< one view for all time: what other threads use
  codegen::CodeBuffer buffer_;
  HostFaultRange fault_range_;
  Stubs stubs_;
  ReturnStacks return_stacks_;
  unsigned return_stack_ = kContextSupervisor;  ///< the one whose top is JitContext::return_rsp
  uint64_t saved_return_rsp_[2] = {};           ///< by context: the top of the other one
  std::unique_ptr<BlockStore> store_;
  std::unique_ptr<Translator> translator_;
  std::unique_ptr<interp::Interpreter> interpreter_;
  std::unique_ptr<Lockstep> lockstep_;
  bool reuse_in_translate_ = false;          ///< Dispatch leaves the search for earlier translations to Translate
  std::unique_ptr<TranslationTools> tools_;  ///< null: nobody asked
  std::string error_;

  std::atomic<uint32_t> requests_ = 0;
  std::mutex code_writes_mutex_;
  std::vector<std::pair<GuestPhys, uint64_t>> code_writes_;

  bool vectors_live_ = false;
  bool has_avx_ = false, has_fsgsbase_ = false;
  uint8_t physical_address_bits_ = 52;  ///< of the CPU model
  bool pages_1gib_ = true;              ///< of the CPU model
  bool interpreter_stale_ = false;      ///< translations were flushed without the interpreter
  bool has_avx512_ = false;             ///< the model has it, and so has the host
  bool avx512_live_ = false;            ///< with vectors_live_: AVX-512's components are live, too
  bool mode_known_ = false;
  /// Why the last FillTlb failed, where a page fault it was; and that fault, when the instruction is to raise it.
  static constexpr uint32_t kNoFault = 0xffffffff;
  uint32_t walk_fault_ = kNoFault, pending_fault_ = kNoFault;
  const uint8_t* code_host_ = nullptr;  ///< the page that the last FillTlb refused for the translations on it
  bool ungrouped_ = false;              ///< the next block is one without access groups
  HotCode warm_, hot_;                  ///< sampled once; to be translated for speed
  bool crowded_ = false;                ///< code memory has been filled in a short time: new code is made compact
  int64_t full_ns_ = 0;                 ///< when NextSegment last dropped blocks
  bool stressed_ = false;               ///< Stress has something to do
  bool stress_invalidated_ = false;
  uint32_t stress_flush_ = 0, stress_invalidate_ = 0, stress_interrupt_ = 0;  ///< entries since the last time
  uint32_t stress_taken_back_ = 0;
  bool single_ = false;      ///< a budget is in force: one instruction a block
  uint32_t mode_flags_ = 0;  ///< BlockFlags without the context
  CodeSegments code_segments_;
  int64_t start_ns_ = 0;  ///< when the counter stood at start_ticks_
  uint64_t start_ticks_ = 0;
  uint64_t populated_ = 0;  ///< bytes at the start of the code buffer that the host has given pages for
  uint32_t pending_link_ = kNone;
  uint32_t interpret_site_ = kNone;
  std::array<uint8_t, kPageSize> page_copy_{};
  std::vector<PageId> page_ids_;
  uint32_t first_page_id_ = 1, next_page_id_ = 1;  ///< those in page_ids_, and the next to be given
  uint32_t first_tlb_entries_ = 0, most_tlb_entries_ = 0;
  uint32_t predictable_entries_ = 0;  ///< see JitContext::predicted
  PredictionFailures prediction_failures_;
  unsigned present_space_ = 0;
  std::array<uint32_t, kSpaces> space_pcid_{};  ///< kNoPcid: what it holds, if anything, is nobody's
  std::array<bool, kSpaces> space_void_{};      ///< never used, or not even global entries are right: empty it first
  std::array<uint64_t, kSpaces> space_used_{};
  uint64_t space_clock_ = 0;
  DataNotes supervisor_data_;
  CodeNotes supervisor_code_[2];                       ///< without and with AC
  std::array<JumpCache*, kSpaces + 2> jump_caches_{};  ///< null: none
  unsigned jump_cache_count_ = 0;
  JitCounters counters_;
  std::vector<uint64_t> interpreted_by_mnemonic_;
};

}  // namespace nacre::engine::jit
