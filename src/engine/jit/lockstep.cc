#include "engine/jit/lockstep.h"

#include <algorithm>
#include <cstring>

namespace nacre::engine::jit {

using x86::CpuState;

Result<std::unique_ptr<JitVcpu::Lockstep>> JitVcpu::Lockstep::Create(const VcpuConfig& config) {
  auto lockstep = std::make_unique<Lockstep>();
  lockstep->memory_ = NACRE_TRY(memory::GuestMemory::CreatePrivateView(*config.memory));
  VcpuConfig shadow = config;
  shadow.memory = lockstep->memory_.get();
  shadow.host = &lockstep->devices_;
  shadow.exclusive = nullptr;
  lockstep->shadow_ = std::make_unique<interp::Interpreter>(shadow, nullptr);
  lockstep->states_.resize(kMaxInstructions + 1);
  return lockstep;
}

/// As many instructions as the block has, or up to where it is left by a branch.
void JitVcpu::Lockstep::RunShadow(const CpuState& start, const Block& block, std::span<const InstructionPlace> places) {
  const unsigned instructions = block.instruction_count;
  shadow_->FlushTlb();
  devices_.touched = false;
  states_[0] = start;
  steps_ = 0;
  while (steps_ < instructions) {
    CpuState& next = states_[steps_ + 1];
    next = states_[steps_];
    interp::StepResult result = shadow_->Step(next);
    while (result == interp::StepResult::kOk && !devices_.touched && next.rip == states_[steps_].rip &&
           (next.rflags & x86::rflags::kRf))  // a REP in the middle
      result = shadow_->Step(next);
    if (devices_.touched || result != interp::StepResult::kOk) break;
    ++steps_;
    if (steps_ < instructions && next.rip != start.rip + places[steps_].guest_offset) break;
  }
}

std::string JitVcpu::Lockstep::Compare(const CpuState& expected, const CpuState& got, uint64_t flags_mask) {
  std::string text;
  const auto field = [&](std::string_view name, uint64_t want, uint64_t have) {
    if (want != have) text += fmt::format("  {}: interp {:#x}, jit {:#x}\n", name, want, have);
  };
  static constexpr const char* kNames[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                             "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
  for (unsigned i = 0; i < 16; ++i) field(kNames[i], expected.gpr[i], got.gpr[i]);
  field("rip", expected.rip, got.rip);
  const uint64_t mask = (~x86::rflags::kArithmetic & ~x86::rflags::kRf) | flags_mask;
  field("rflags", expected.rflags & mask, got.rflags & mask);
  field("cr0", expected.cr0, got.cr0);
  field("cr2", expected.cr2, got.cr2);
  field("cr3", expected.cr3, got.cr3);
  field("gs base", expected.segment[x86::kGs].base, got.segment[x86::kGs].base);
  field("kernel gs base", expected.msr.kernel_gs_base, got.msr.kernel_gs_base);
  const auto bytes = [&](std::string_view name, size_t at, size_t count) {
    if (std::memcmp(expected.xsave.bytes + at, got.xsave.bytes + at, count) == 0) return;
    text += fmt::format("  {}: interp", name);
    for (size_t i = count; i-- > 0;)
      text += fmt::format("{}{:02x}", i + 1 == count ? " " : "", expected.xsave.bytes[at + i]);
    text += ", jit ";
    for (size_t i = count; i-- > 0;) text += fmt::format("{:02x}", got.xsave.bytes[at + i]);
    text += "\n";
  };
  bytes("fcw", 0, 2);
  bytes("fsw", 2, 2);
  bytes("ftw", 4, 1);
  bytes("mxcsr", 24, 4);
  for (unsigned i = 0; i < 8; ++i) bytes(fmt::format("st{}", i), 32 + 16 * i, 10);
  for (unsigned i = 0; i < 16; ++i) {
    bytes(fmt::format("xmm{}", i), 160 + 16 * i, 16);
    bytes(fmt::format("ymm{} high", i), x86::XsaveArea::kAvxOffset + 16 * i, 16);
    bytes(fmt::format("zmm{} high", i), x86::XsaveArea::kZmmHi256Offset + 32 * i, 32);
    bytes(fmt::format("zmm{}", i + 16), x86::XsaveArea::kHi16ZmmOffset + 64 * i, 64);
  }
  for (unsigned i = 0; i < 8; ++i) bytes(fmt::format("k{}", i), x86::XsaveArea::kOpmaskOffset + 8 * i, 8);
  return text;
}

/// Pages that the shadow wrote must be the same in the guest now. Accessed and dirty bits of page tables may differ:
/// the two cache translations at different times.
std::string JitVcpu::Lockstep::CompareMemory(const memory::GuestMemory& real) {
  constexpr uint64_t kAccessedDirty = 0x60;
  std::string text;
  for (uint64_t page : written_pages_) {
    for (unsigned at = 0; at < kPageSize; at += 8) {
      const auto want = LoadLe<uint64_t>(memory_->host_base() + page * kPageSize + at);
      const auto have = LoadLe<uint64_t>(real.host_base() + page * kPageSize + at);
      if (((want ^ have) & ~kAccessedDirty) != 0)
        text += fmt::format("  memory {:#x}: interp {:#018x}, jit {:#018x}\n", page * kPageSize + at, want, have);
    }
  }
  return text;
}

std::string JitVcpu::Lockstep::Describe(const JitVcpu& vcpu, const Block& block, const CpuState& start) const {
  std::string text = fmt::format("block at rip {:#x} (physical {:#x}, flags {:#x}), after {} equal blocks:\n",
                                 block.rip, block.phys, block.flags, compared_);
  uint64_t at = block.phys;
  for (unsigned i = 0; i < block.instruction_count; ++i) {
    uint8_t bytes[15];
    const size_t room = std::min<uint64_t>(15, kPageSize - (at & kPageMask));
    x86::Instruction insn;
    if (!vcpu.memory_.Read(GuestPhys(at), {bytes, room}) ||
        x86::Decode({bytes, room}, CodeSizeOf(block.flags), insn) != x86::DecodeStatus::kOk)
      break;
    char line[128];
    x86::Format(insn, block.rip + (at - block.phys), line);
    text += fmt::format("  {:#x}  {}\n", block.rip + (at - block.phys), line);
    at += insn.length;
  }
  for (unsigned i = 0; i < 16; ++i) text += fmt::format("  before: r{} {:#x}\n", i, start.gpr[i]);
  return text + fmt::format("  before: rflags {:#x}\n", start.rflags);
}

/// The pages that the shadow has written, eight flags at a time.
void JitVcpu::Lockstep::FindWrittenPages() {
  written_pages_.clear();
  const uint64_t pages = memory_->size_bytes() / kPageSize;
  const auto* flags = reinterpret_cast<const uint8_t*>(&memory_->PageFlags(0));
  for (uint64_t page = 0; page < pages; page += 8) {
    if (LoadLe<uint64_t>(flags + page) == 0) continue;
    for (uint64_t one = page; one < page + 8; ++one)
      if (flags[one]) written_pages_.push_back(one);
  }
}

ExitReason JitVcpu::Lockstep::Run(JitVcpu& vcpu, uint64_t instruction_budget) {
  JitContext& context = *vcpu.context_;
  vcpu.single_ = true;
  vcpu.mode_known_ = false;
  vcpu.ScatterFlags();
  ExitReason reason = ExitReason::kBudget;
  uint64_t left = instruction_budget;
  while (true) {
    // What Dispatch is about to run, if anything.
    uint32_t index = kNone;
    active_ = active_ || context.state.rip >= vcpu.options_.lockstep_from;
    const bool plain =
        active_ && !context.state.interrupt_shadow && !context.state.pending_debug && !context.state.halted;
    if (plain && !vcpu.DeliverableRequest() && (vcpu.mode_known_ || vcpu.ComputeMode()) && vcpu.mode_flags_ != kNone) {
      uint32_t page_id = 0;
      uint64_t address = 0;
      if (vcpu.FindCodeAddress(address))
        index =
            vcpu.FindBlock(address, vcpu.CurrentFlags() | (vcpu.ungrouped_ ? uint32_t{kFlagUngrouped} : 0), page_id);
      if (index != kNone && vcpu.store_->block(index).instruction_count == 0) index = kNone;
    }
    if (index != kNone) {
      vcpu.GatherFlags();
      const Block& block = vcpu.store_->block(index);
      RunShadow(context.state, block, vcpu.store_->PlacesOf(block));
      FindWrittenPages();
      vcpu.ScatterFlags();
    }
    const uint64_t dispatched = vcpu.counters_.dispatches;
    const Need need = vcpu.Dispatch();
    vcpu.SaveVectors();
    if (index != kNone && vcpu.counters_.dispatches == dispatched + 1) {
      vcpu.GatherFlags();
      const Block& block = vcpu.store_->block(index);
      const bool linked = context.exit_code == kExitLink || context.exit_code == kExitPoll;
      size_t retired = block.instruction_count;
      if (linked) {  // the instruction that the link belongs to was the last
        const uint32_t at = vcpu.store_->link(context.exit_id).displacement;
        const std::vector<InstructionPlace> places = BlockStore::PlacesOf(block);
        retired =
            static_cast<size_t>(std::ranges::count_if(places, [&](const auto& p) { return p.host_offset <= at; }));
      }
      if (context.exit_code == kExitInterpret || context.exit_code == kExitUngrouped)
        for (size_t i = 0; i < retired && i <= steps_; ++i)
          if (states_[i].rip == context.state.rip) retired = i;
      if (retired <= steps_) {
        // Flags may be wrong where nobody reads them: mid-block, and as the link says.
        uint64_t flags_mask = linked                             ? vcpu.store_->link(context.exit_id).live_flags
                              : context.exit_code == kExitLookup ? x86::rflags::kArithmetic
                                                                 : 0;
        flags_mask &= ~uint64_t{block.undefined_flags};
        const bool whole = (linked || context.exit_code == kExitLookup) && retired == steps_;
        std::string difference = Compare(states_[retired], context.state, flags_mask);
        if (whole && difference.empty()) difference = CompareMemory(vcpu.memory_);
        if (!difference.empty()) {
          vcpu.error_ = "lockstep: " + Describe(vcpu, block, states_[0]) + difference;
          return ExitReason::kError;
        }
        ++compared_;
      }
      vcpu.ScatterFlags();
    }
    if (index != kNone)
      for (uint64_t page : written_pages_) memory_->DropPrivatePage(page);

    if (need == Need::kTranslate) {
      vcpu.Translate();
      continue;
    }
    if (need == Need::kRequests) {
      if (vcpu.DeliverableRequest() && vcpu.ServeRequests(reason)) break;
      if (context.state.halted && vcpu.AfterStep(interp::StepResult::kHalted, reason)) break;
    } else if (vcpu.AfterStep(vcpu.InterpretOne(), reason)) {
      break;
    }
    if (left && --left == 0) {
      reason = ExitReason::kBudget;
      break;
    }
  }
  vcpu.GatherFlags();
  return reason;
}

}  // namespace nacre::engine::jit
