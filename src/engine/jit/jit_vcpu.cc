#include "engine/jit/jit_vcpu.h"

#include <asm/prctl.h>
#include <cpuid.h>
#include <immintrin.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <optional>

#include "base/check.h"
#include "engine/dirty_flags.h"
#include "engine/jit/lockstep.h"

namespace nacre::engine::jit {

using x86::CpuState;

namespace {

constexpr unsigned kMnemonics = ZYDIS_MNEMONIC_MAX_VALUE + 1;
constexpr uint64_t kScattered = x86::rflags::kArithmetic | x86::rflags::kIf;

int64_t NowNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1000000000 + now.tv_nsec;
}

bool HostHasBmi2() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & (1u << 8));
}

bool HostHasAvx() { return __builtin_cpu_supports("avx") != 0; }

bool HostHasFsGsBase() { return (getauxval(AT_HWCAP2) & 2) != 0; }  // HWCAP2_FSGSBASE

}  // namespace

JitVcpu::JitVcpu(const VcpuConfig& config, const JitOptions& options, JitShared& shared)
    : group_(shared.group),
      member_(shared.group, *this, this),
      config_(config),
      options_(options),
      memory_(*config.memory),
      code_page_table_(shared.code_pages),
      page_ids_(kPageIds),
      interpreted_by_mnemonic_(kMnemonics) {}

JitVcpu::~JitVcpu() = default;

Result<std::unique_ptr<JitVcpu>> JitVcpu::Create(const VcpuConfig& config, const JitOptions& options,
                                                 JitShared& shared) {
  if (!HostHasBmi2())
    return Fail(
        "the translator needs a host CPU with BMI2 (Intel Haswell, AMD Excavator or newer); use --engine interp");
  std::unique_ptr<JitVcpu> vcpu(new JitVcpu(config, options, shared));
  NACRE_TRY_STATUS(vcpu->Prepare());
  return vcpu;
}

Status JitVcpu::Prepare() {
  config_.exclusive = &member_;
  if (const uint64_t cache_mib = options_.debug.stress.cache_mib; cache_mib != 0)
    options_.code_cache_bytes = std::min(options_.code_cache_bytes, cache_mib * kMiB);
  // A block takes about as much room for its records as for its code.
  const uint64_t code_bytes = AlignDown(options_.code_cache_bytes / 64 * 33, kPageSize);
  using Backing = codegen::CodeBuffer::Backing;
  buffer_ = NACRE_TRY(
      codegen::CodeBuffer::Create(code_bytes, options_.debug.perf_map ? Backing::kAnonymous : Backing::kFile));
  const int64_t to_exec = buffer_.exec_base() - buffer_.write_base();
  uint8_t* code_start = EmitStubs(buffer_.write_base(), to_exec, stubs_);
  store_ = std::make_unique<BlockStore>(
      memory_.page_count(), buffer_.write_base(), static_cast<uint32_t>(code_start - buffer_.write_base()),
      static_cast<uint32_t>(buffer_.size_bytes()), options_.code_cache_bytes - code_bytes);
  store_->WatchJumpCaches(jump_caches_, buffer_.exec_base(), stubs_.miss_target);
  translator_ = std::make_unique<Translator>(*config_.model, buffer_, *store_, stubs_);
  start_ns_ = NowNs();
  start_ticks_ = __rdtsc();
  interp::StateListener* listener = this;
  interpreter_ = std::make_unique<interp::Interpreter>(config_, listener);
  fault_range_ = NACRE_TRY(HostFaultRange::Register(buffer_.exec_base(), buffer_.size_bytes(), *this));
  has_avx_ = HostHasAvx();
  has_avx512_ = (config_.model->xcr0_mask() & x86::kAvx512Components) != 0;
  has_fsgsbase_ = HostHasFsGsBase();
  pages_1gib_ = config_.model->has_1gib_pages();
  physical_address_bits_ = static_cast<uint8_t>(config_.model->physical_address_bits());
  spaces_ = NACRE_TRY(AddressSpaces::Create());
  home_ = context_ = &spaces_.view(0).context;
  return_stacks_ = NACRE_TRY(ReturnStacks::Create(stubs_));
  PrepareAddressSpaces();
  context_->self = reinterpret_cast<uint64_t>(this);
  context_->slow_handler = reinterpret_cast<uint64_t>(&SlowMemoryEntry);
  context_->check_handler = reinterpret_cast<uint64_t>(&SlowCheckEntry);
  context_->string_handler = reinterpret_cast<uint64_t>(&SlowStringEntry);
  context_->jump_mask = kJumpBits;
  x86::ResetCpuState(context_->state);
  tools_ = NACRE_TRY(TranslationTools::Create(options_.debug, config_.index, buffer_,
                                              static_cast<uint32_t>(code_start - buffer_.write_base())));
  stressed_ = options_.debug.stress.at_entries();
  reuse_in_translate_ = options_.lockstep || options_.debug.check_reuse || tools_;
  if (options_.lockstep) lockstep_ = NACRE_TRY(Lockstep::Create(config_));
  return {};
}

void JitVcpu::Import(const CpuState& state) {
  member_.Enter();
  context_->state = state;
  mode_known_ = false;
  pending_link_ = kNone;
  OnTlbFlush(true);
  interpreter_->FlushTlb();
  member_.Leave();
}

void JitVcpu::Export(CpuState& state) const { state = context_->state; }

void JitVcpu::Request(uint32_t bits) {
  requests_.fetch_or(bits);
  home_->no_request.store(0);
  home_->jump_mask.store(0);
  home_->go.store(0);
}

void JitVcpu::ScatterFlags() {
  CpuState& state = context_->state;
  context_->flags = (state.rflags & x86::rflags::kArithmetic) | x86::rflags::kFixed1;
  context_->interrupt_flag = (state.rflags & x86::rflags::kIf) ? 1 : 0;
  state.rflags &= ~kScattered;
}

void JitVcpu::GatherFlags() {
  CpuState& state = context_->state;
  state.rflags |= (context_->flags & x86::rflags::kArithmetic) | (context_->interrupt_flag ? x86::rflags::kIf : 0);
}

/// The interpreter's own TLB follows the flushes that were not its doing.
void JitVcpu::FreshenInterpreter() {
  if (interpreter_stale_) interpreter_->FlushTlb();
  interpreter_stale_ = false;
}

interp::StepResult JitVcpu::InterpretOne() {
  ++counters_.interpreted;
  if (mode_flags_ == kNone) ++counters_.interpreted_in_mode;
  if (interpret_site_ != kNone) ++interpreted_by_mnemonic_[store_->site(interpret_site_).mnemonic];
  interpret_site_ = kNone;
  pending_link_ = kNone;  // RIP is about to move away from the link's target
  GatherFlags();
  FreshenInterpreter();
  const interp::StepResult result = interpreter_->Step(context_->state);
  ScatterFlags();
  mode_known_ = false;
  return result;
}

/// True: leave Run.
bool JitVcpu::AfterStep(interp::StepResult result, ExitReason& reason) {
  if (result == interp::StepResult::kShutdown) {
    reason = ExitReason::kShutdown;
    return true;
  }
  if (result == interp::StepResult::kHalted && !DeliverableRequest()) {
    reason = ExitReason::kHalted;
    return true;
  }
  return false;
}

/// True: leave Run for `reason`.
bool JitVcpu::ServeRequests(ExitReason& reason) {
  JitContext& context = *context_;
  CpuState& state = context.state;
  pending_link_ = kNone;
  const uint32_t bits = requests_.load();
  if (bits & (kRequestEngine | kRequestNoInterrupt)) {
    requests_.fetch_and(~uint32_t{kRequestEngine});
    member_.Safepoint();
    ApplyCodeWrites();
  }
  if (bits & kRequestTlbFlush) {
    requests_.fetch_and(~uint32_t{kRequestTlbFlush});
    OnTlbFlush(true);
    interpreter_->FlushTlb();
  }
  if (bits & kRequestUnhalt) {
    requests_.fetch_and(~uint32_t{kRequestUnhalt});
    state.halted = false;
  }
  if (bits & kRequestStop) {
    requests_.fetch_and(~uint32_t{kRequestStop});
    reason = ExitReason::kStop;
    return true;
  }
  if (bits & kRequestInit) {
    requests_.fetch_and(~uint32_t{kRequestInit});
    reason = ExitReason::kInit;
    return true;
  }
  interp::StepResult result = interp::StepResult::kOk;
  if ((bits & kRequestNmi) && !state.nmi_masked) {
    requests_.fetch_and(~uint32_t{kRequestNmi});
    GatherFlags();
    FreshenInterpreter();
    result = interpreter_->InjectNmi(state);
    ScatterFlags();
    mode_known_ = false;
  } else if ((bits & (kRequestInterrupt | kRequestNoInterrupt)) && context.interrupt_flag) {
    requests_.fetch_and(~kRequestNoInterrupt);
    const int vector = config_.host->AcknowledgeInterrupt();
    // Spurious: the host has taken its request back, or made a new one since.
    if (vector >= 0) {
      ++counters_.interrupts;
      GatherFlags();
      FreshenInterpreter();
      result = interpreter_->InjectInterrupt(state, static_cast<uint8_t>(vector));
      ScatterFlags();
      mode_known_ = false;
    }
  }
  OpenPolls();
  return result == interp::StepResult::kShutdown && AfterStep(result, reason);
}

/// Pages keep their holder until the next write to them.
void JitVcpu::ResetCode() {
  ++counters_.cache_resets;
  store_->Clear();
  FlushAllCode();
  pending_link_ = kNone;
  interpret_site_ = kNone;
}

/// Empties the full table of page ids. Ids are not given twice, so links and slots that hold old ones stay right.
void JitVcpu::RenewPageIds() {
  std::fill(page_ids_.begin(), page_ids_.end(), PageId{});
  store_->InvalidateCrossing();
  if (next_page_id_ > uint32_t{1} << 30) {
    ResetCode();
    next_page_id_ = 1;
  }
  first_page_id_ = next_page_id_;
}

/// Asks the host for pages of the code buffer in batches, in both views: a fault for each would cost several times
/// more.
void JitVcpu::PopulateCode() {
  constexpr uint64_t kBatch = 512 * kKiB;
  const uint64_t at = store_->code_at();
  if (at + kBatch / 4 < populated_ || populated_ >= buffer_.size_bytes()) return;
  populated_ = std::max(populated_, AlignDown(at, kPageSize));
  const uint64_t bytes = std::min(kBatch, buffer_.size_bytes() - populated_);
  // Failure costs speed only: the pages then come one by one.
  (void)madvise(buffer_.write_base() + populated_, bytes, MADV_POPULATE_WRITE);
  (void)madvise(const_cast<uint8_t*>(buffer_.exec_base()) + populated_, bytes, MADV_POPULATE_READ);
  populated_ += bytes;
}

/// Before a page's bytes are read for translation: from now on every write to it must be seen. The own gate is open
/// meanwhile.
void JitVcpu::HoldCodePage(const uint8_t* host_page) {
  const uint64_t page_index = memory_.PageIndex(host_page);
  const uint64_t own = CodePageTable::Bit(config_.index);
  if (code_page_table_.holders(page_index) & own) return;
  code_page_table_.Hold(page_index, config_.index);
  const uint64_t writers = code_page_table_.writers(page_index);
  if (writers & own) OnSafepointWork(reinterpret_cast<uint64_t>(host_page));
  member_.AskOthers(writers, reinterpret_cast<uint64_t>(host_page));
}

void JitVcpu::OnSafepointWork(uint64_t host_page) {
  const auto* host = reinterpret_cast<const uint8_t*>(host_page);
  ForgetWriteRights(host);
  code_page_table_.DropWriter(memory_.PageIndex(host), config_.index);
}

void JitVcpu::TakeNextSegment() {
  if (store_->NextSegment() != 0) {
    const int64_t now = NowNs();
    // At this rate all code memory is used up within seconds: it is better filled with smaller code.
    crowded_ = full_ns_ != 0 && now - full_ns_ < kCrowdedNs / store_->segment_count();
    full_ns_ = now;
  }
  EmptyReturnStacks();
  pending_link_ = kNone;
  PopulateCode();
}

/// Gives the translator the page after that of the block, if it is mapped.
void JitVcpu::AddNextPage(TranslateRequest& request) {
  request.next_page_asked = true;
  const uint64_t next_rip = AlignDown(request.rip, kPageSize) + kPageSize;
  if (next_rip == 0 || (!(request.flags & kFlagCode64) && (next_rip ^ request.rip) > 0xffffffff)) return;
  CodePage* next = FetchPage(next_rip);
  const uint32_t next_id = next ? PageIdOf(next_rip, *next) : 0;
  if (next_id == 0) return;  // also when the table of ids is full: a check against it would pass for any page
  request.next_page = next->host;
  request.next_phys_page = next->phys_page;
  request.next_page_index = memory_.PageIndex(next->host);
  request.next_page_id = next_id;
  HoldCodePage(next->host);
}

void JitVcpu::ShowTools(const TranslateRequest& request, uint32_t block) {
  if (tools_) tools_->OnTranslated({*store_, stubs_, buffer_}, request, block, store_->block(block).hot_size);
}

void JitVcpu::Translate() {
  const uint64_t start = __rdtsc();
  if (PageIdsFull()) RenewPageIds();
  uint64_t rip = 0;
  if (!FindCodeAddress(rip)) {
    ResetCode();
    code_segments_.Clear();
    return;
  }
  const CodePage* page = FetchPage(rip);
  if (!page) return;  // the next dispatch finds out why
  const uint32_t flags = CurrentFlags() | (ungrouped_ ? uint32_t{kFlagUngrouped} : 0);
  const uint64_t page_index = memory_.PageIndex(page->host);
  TranslateRequest request{.rip = rip,
                           .segment = CodeSegmentOf(flags),
                           .phys = page->phys_page << 12 | (rip & kPageMask),
                           .page = page->host,
                           .page_index = page_index,
                           .flags = flags,
                           .max_instructions = single_ && !lockstep_ ? 1u : kMaxInstructions,
                           .indirect = WantsIndirectEntry(),
                           .compact = WantsCompact(page->phys_page << 12 | (rip & kPageMask))};
  const bool held = (code_page_table_.holders(page_index) & CodePageTable::Bit(config_.index)) != 0;
  HoldCodePage(page->host);
  PopulateCode();
  if (!held || reuse_in_translate_) {  // Dispatch has not tried
    const uint32_t reused = Reuse(rip, flags);
    if (reused != kNone && options_.debug.check_reuse) CheckReuse(request, reused);
    if (reused != kNone) return ShowTools(request, reused);
  }
  if (group_.size() > 1) {  // others write to the page meanwhile
    std::memcpy(page_copy_.data(), page->host, kPageSize);
    request.page = page_copy_.data();
  }
  uint32_t made = kNone;
  while ((made = translator_->Translate(request)) == kNone || made == kWantsNextPage) {
    if (made == kWantsNextPage) {
      AddNextPage(request);
    } else {
      TakeNextSegment();
    }
  }
  ++counters_.translations;
  counters_.translate_ticks += __rdtsc() - start;
  ShowTools(request, made);
}

void JitVcpu::NoteCodeWrite(GuestPhys address, uint64_t size_bytes) {
  {
    std::lock_guard lock(code_writes_mutex_);
    code_writes_.emplace_back(address, size_bytes);
  }
  Request(kRequestEngine);
}

void JitVcpu::ApplyCodeWrites() {
  std::vector<std::pair<GuestPhys, uint64_t>> writes;
  {
    std::lock_guard lock(code_writes_mutex_);
    writes.swap(code_writes_);
  }
  for (const auto& [address, size_bytes] : writes) {
    for (uint64_t at = address.value; at < address.value + size_bytes;) {
      const uint64_t end = std::min(AlignDown(at, kPageSize) + kPageSize, address.value + size_bytes);
      const uint8_t* host = memory_.BackingPointer(GuestPhys(at), end - at);
      if (!host) break;
      const uint64_t page_index = memory_.PageIndex(host);
      const auto first = static_cast<unsigned>(at & kPageMask);
      const auto last = static_cast<unsigned>((end - 1) & kPageMask);
      const unsigned removed = store_->InvalidateRange(page_index, first, last);
      counters_.invalidations += removed;
      if (removed != 0) EmptyReturnStacks();
      if (!store_->PageHasBlocks(page_index)) code_page_table_.Release(page_index, config_.index);
      at = end;
    }
  }
  pending_link_ = kNone;
}

bool JitVcpu::OnHostFault(int, const siginfo_t& info, ucontext_t& context) {
  auto& rip = context.uc_mcontext.gregs[REG_RIP];
  if (info.si_signo == SIGSEGV && return_stacks_.InGuard(reinterpret_cast<uint64_t>(info.si_addr))) {
    context.uc_mcontext.gregs[REG_RSP] = static_cast<greg_t>(return_stacks_.bottom(return_stack_));
    return true;
  }
  const auto* host = reinterpret_cast<const uint8_t*>(rip);
  const auto offset = static_cast<uint32_t>(host - buffer_.exec_base());
  const uint32_t index = store_->FindByCode(offset);
  if (index == kNone) return false;
  const Block& block = store_->block(index);
  context_->state.rip = block.rip + store_->GuestOffset(block, offset);
  ++counters_.host_faults;
  // Faults of guest instructions come from the CPU's checks, which tell no address (SI_KERNEL), but for SIGFPE's.
  if (info.si_signo == SIGSEGV && (info.si_code == SEGV_MAPERR || info.si_code == SEGV_ACCERR))
    ++counters_.wild_accesses;
  rip = reinterpret_cast<greg_t>(stubs_.fault_exit);
  return true;
}

ExitReason JitVcpu::Run(uint64_t instruction_budget) {
  member_.Enter();
  const ExitReason reason = RunEntered(instruction_budget);
  member_.Leave();
  return reason;
}

ExitReason JitVcpu::RunEntered(uint64_t instruction_budget) {
  thread_local std::optional<SignalStack> signal_stack;
  if (!signal_stack) {
    auto created = SignalStack::Create();
    if (!created) {
      error_ = created.error().message;
      return ExitReason::kError;
    }
    signal_stack = std::move(*created);
  }
  SetGsBase();
  if (single_ != (instruction_budget != 0)) {
    single_ = instruction_budget != 0;
    mode_known_ = false;
  }
  if (lockstep_) return lockstep_->Run(*this, instruction_budget);
  ScatterFlags();
  ExitReason reason = ExitReason::kBudget;
  uint64_t left = instruction_budget;
  if (context_->state.halted && !DeliverableRequest()) {
    GatherFlags();
    return ExitReason::kHalted;
  }
  while (true) {
    const Need need = Dispatch();
    SaveVectors();
    if (need == Need::kTranslate) {
      Translate();
      continue;
    }
    if (need == Need::kRequests) {
      if (DeliverableRequest() && ServeRequests(reason)) break;
      if (context_->state.halted) {
        if (AfterStep(interp::StepResult::kHalted, reason)) break;
        continue;
      }
    } else if (AfterStep(InterpretOne(), reason)) {
      break;
    }
    if (single_ && --left == 0) {
      reason = ExitReason::kBudget;
      break;
    }
  }
  GatherFlags();
  pending_link_ = kNone;
  return reason;
}

std::vector<Statistic> JitVcpu::Statistics() const {
  const JitCounters& c = counters_;
  const BlockStore::Counters& reuse = store_->counters();
  const uint64_t translated = translator_->translated_instructions();
  const double ns_per_tick = static_cast<double>(NowNs() - start_ns_) / static_cast<double>(__rdtsc() - start_ticks_);
  const auto translate_ns = static_cast<uint64_t>(static_cast<double>(c.translate_ticks) * ns_per_tick);
  const auto reuse_ns = static_cast<uint64_t>(static_cast<double>(c.reuse_ticks) * ns_per_tick);
  std::vector<Statistic> out = {
      {"translated blocks", c.translations},
      {"translated instructions", translated},
      {"translation time, ns", translate_ns},
      {"translation time per guest instruction, ns", translate_ns / std::max<uint64_t>(translated, 1)},
      {"blocks reused: in their old place", reuse.revived},
      {"blocks reused: moved", reuse.moved},
      {"blocks reused: copied", reuse.copied},
      {"reused instructions", reuse.reused_instructions},
      {"reuse time, ns", reuse_ns},
      {"translation and reuse time per guest instruction, ns",
       (translate_ns + reuse_ns) / std::max<uint64_t>(translated + reuse.reused_instructions, 1)},
      {"reused blocks checked", c.reuse_checked},
      {"host code, bytes", store_->code_bytes()},
      {"records of blocks, bytes", store_->record_bytes()},
      {"code segments dropped", reuse.segments_dropped},
      {"blocks dropped with them", reuse.blocks_dropped},
      {"blocks found hot", c.promoted},
      {"blocks made again with an indirect entry", c.entries_added},
      {"dispatches", c.dispatches},
      {"unlinked exits", c.links},
      {"lookup exits", c.lookups},
      {"poll exits", c.polls},
      {"TLB fills", c.tlb_fills},
      {"shared checks that failed", c.ungrouped},
      {"TLB entries predicted wrongly", c.mispredicted},
      {"predictions given up", c.unpredicted},
      {"TLB flushes", c.tlb_flushes},
      {"TLB page flushes", c.page_flushes},
      {"address space switches", c.space_switches},
      {"address spaces taken from others", c.space_evictions},
      {"blocks invalidated", c.invalidations},
      {"code cache resets", c.cache_resets},
      {"interrupts", c.interrupts},
      {"host faults", c.host_faults},
      {"host faults: wild accesses (a bug of Nacre)", c.wild_accesses},
      {"done without the interpreter", c.fast},
      {"page faults delivered", c.page_faults},
      {"reads across pages", c.across_pages},
      {"writes beside translated code", c.beside_code},
      {"interpreted instructions", c.interpreted},
      {"interpreted: untranslated mode", c.interpreted_in_mode},
      {"interpreted: memory slow path", c.slow_interpreted},
  };
  std::vector<std::pair<uint64_t, unsigned>> top;
  for (unsigned i = 0; i < kMnemonics; ++i)
    if (interpreted_by_mnemonic_[i]) top.emplace_back(interpreted_by_mnemonic_[i], i);
  std::sort(top.rbegin(), top.rend());
  if (top.size() > 20) top.resize(20);
  for (const auto& [count, mnemonic] : top)
    out.push_back({fmt::format("interpreted: {}", mnemonic ? x86::MnemonicName(static_cast<uint16_t>(mnemonic))
                                                           : "undecodable or across pages"),
                   count});
  return out;
}

namespace {

class JitEngine : public Engine, public memory::CodeWriteListener {
 public:
  explicit JitEngine(const JitOptions& options) : options_(options) {}
  ~JitEngine() override { Retire(); }
  void Begin() override {
    memory_->SetCodeWriteListener(this);
    begun_ = true;
  }
  void Retire() override {
    if (!begun_) return;
    memory_->SetCodeWriteListener(nullptr);
    memory_->ForgetCodePages();
    begun_ = false;
  }

  std::string_view name() const override { return "jit"; }

  Result<std::unique_ptr<Vcpu>> CreateVcpu(const VcpuConfig& config) override {
    if (options_.lockstep && config.index > 0)
      return Fail("lockstep compares one virtual CPU with the interpreter; use --cpus 1");
    if (config.index >= VcpuGroup::kMaxMembers)
      return Fail("an engine runs at most {} virtual CPUs", VcpuGroup::kMaxMembers);
    if (!shared_) {
      shared_ = std::make_unique<JitShared>(*config.memory);
      memory_ = config.memory;
      if (!options_.prepared) Begin();
    }
    auto vcpu = NACRE_TRY(JitVcpu::Create(config, options_, *shared_));
    vcpus_.push_back(vcpu.get());
    return vcpu;
  }

  std::vector<Statistic> Statistics() const override { return {}; }
  Result<std::unique_ptr<DirtyLog>> StartDirtyLog() override {
    return StartDirtyFlags(*memory_, {vcpus_.begin(), vcpus_.end()});
  }

  void OnCodeWrite(GuestPhys address, uint64_t size_bytes) override {
    const uint8_t* host = memory_->BackingPointer(address, size_bytes);
    uint64_t holders = 0;
    for (uint64_t page = memory_->PageIndex(host); page <= memory_->PageIndex(host + size_bytes - 1); ++page)
      holders |= shared_->code_pages.holders(page);
    for (unsigned i = 0; i < vcpus_.size(); ++i)
      if (holders & CodePageTable::Bit(i)) vcpus_[i]->NoteCodeWrite(address, size_bytes);
  }

 private:
  JitOptions options_;
  memory::GuestMemory* memory_ = nullptr;
  bool begun_ = false;
  std::unique_ptr<JitShared> shared_;
  std::vector<JitVcpu*> vcpus_;  ///< by index
};

}  // namespace

Result<std::unique_ptr<Engine>> CreateJitEngine(const JitOptions& options) {
  if (options.code_cache_bytes < kMinCodeCache || options.code_cache_bytes > kMaxCodeCache)
    return Fail("code cache of {} bytes: give between 4M and 1G", options.code_cache_bytes);
  return std::make_unique<JitEngine>(options);
}

}  // namespace nacre::engine::jit
