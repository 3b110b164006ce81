#include <cstring>

#include "base/bits.h"
#include "base/check.h"
#include "engine/difftest/guest.h"
#include "engine/interp/interpreter.h"

namespace nacre::engine::difftest {
namespace {

using x86::Segment;

// Guest-physical pages, and the kernel's linear addresses for them (kKernel + physical).
constexpr uint64_t kKernel = 0xffffffff80000000;
constexpr uint64_t kPml4 = 0x1000, kLowPdpt = 0x2000, kLowDirectory = 0x3000, kLowTable = 0x4000, kHighPdpt = 0x5000,
                   kHighDirectory = 0x6000;
constexpr uint64_t kGdt = 0x10000, kIdt = 0x11000, kTss = 0x12000, kStackTop = 0x15000, kHandlers = 0x16000;
constexpr uint64_t kCodePhys = 0x100000, kDataPhys = 0x110000, kReadOnlyPhys = 0x120000;
constexpr unsigned kHandlerSpacing = 16;
constexpr uint64_t kPresent = 1, kWritable = 2, kUser = 4, kAccessedDirty = 0x60, kLarge = 0x80;

constexpr uint16_t kKernelCs = 0x10, kTssSelector = 0x40;

uint64_t CodeDescriptor(bool long_mode, unsigned dpl) {
  return 0x00cf9b000000ffff ^ (long_mode ? Bit(53) | Bit(54) : 0) ^ (uint64_t{dpl} << 45);
}

}  // namespace

/// The guest touches no devices: whatever asks for one is a finding of its own, seen as a difference.
class Guest::Host : public VcpuHost {
 public:
  uint32_t PortRead(uint16_t, unsigned) override { return ~0u; }
  void PortWrite(uint16_t, unsigned, uint32_t) override {}
  uint64_t MmioRead(GuestPhys, unsigned) override { return ~uint64_t{0}; }
  void MmioWrite(GuestPhys, unsigned, uint64_t) override {}
  bool ReadMsr(uint32_t, uint64_t&) override { return false; }
  bool WriteMsr(uint32_t, uint64_t) override { return false; }
  uint64_t ReadCr8() override { return 0; }
  void WriteCr8(uint64_t) override {}
  int AcknowledgeInterrupt() override { return -1; }
  uint64_t Hypercall(uint64_t, const uint64_t (&)[4], bool) override { return ~uint64_t{0}; }
};

Guest::Guest() = default;
Guest::~Guest() = default;

Result<std::unique_ptr<Guest>> Guest::Create(const x86::CpuModel& model) {
  std::unique_ptr<Guest> guest(new Guest);
  guest->memory_ = NACRE_TRY(memory::GuestMemory::Create(4 * kMiB));
  guest->host_ = std::make_unique<Host>();
  guest->model_ = &model;
  guest->config_ = {.index = 0, .model = &model, .memory = guest->memory_.get(), .host = guest->host_.get()};
  guest->BuildTables();
  return guest;
}

void Guest::BuildTables() {
  const auto put = [this](uint64_t address, uint64_t value) {
    NACRE_CHECK(memory_->WriteValue(GuestPhys(address), value));
  };
  const uint64_t table = kPresent | kWritable | kUser | kAccessedDirty;
  put(kPml4, kLowPdpt | table);
  put(kPml4 + 511 * 8, kHighPdpt | (table & ~kUser));
  put(kLowPdpt, kLowDirectory | table);
  put(kLowDirectory + (NACRE_DIFF_TRAMPOLINE >> 21) * 8, kLowTable | table);
  const auto map = [&](uint64_t linear, uint64_t phys, uint64_t bytes, uint64_t rights) {
    for (uint64_t at = 0; at < bytes; at += kPageSize)
      put(kLowTable + Bits(linear + at, 12, 9) * 8, (phys + at) | rights);
  };
  map(NACRE_DIFF_CODE, kCodePhys, NACRE_DIFF_CODE_BYTES, table);
  map(NACRE_DIFF_DATA, kDataPhys, NACRE_DIFF_DATA_BYTES, table);
  map(NACRE_DIFF_READONLY, kReadOnlyPhys, kPageSize, table & ~kWritable);
  put(kHighPdpt + 510 * 8, kHighDirectory | kPresent | kWritable | kAccessedDirty);
  put(kHighDirectory, kPresent | kWritable | kAccessedDirty | kLarge);
  // Linux' layout for what user code can name: 0x23 32-bit code, 0x2b data, 0x33 64-bit code.
  put(kGdt + kKernelCs, CodeDescriptor(true, 0));
  put(kGdt + 0x18, 0x00cf93000000ffff);
  put(kGdt + 0x20, CodeDescriptor(false, 3));
  put(kGdt + 0x28, 0x00cff3000000ffff);
  put(kGdt + 0x30, CodeDescriptor(true, 3));
  const uint64_t tss = kKernel + kTss;
  put(kGdt + kTssSelector, 0x67 | Bits(tss, 0, 24) << 16 | uint64_t{0x8b} << 40 | Bits(tss, 24, 8) << 56);
  put(kGdt + kTssSelector + 8, tss >> 32);
  put(kTss + 4, kKernel + kStackTop);      // RSP0
  put(kTss + 0x60, uint64_t{0x68} << 48);  // no I/O bitmap
  for (unsigned vector = 0; vector < 32; ++vector) {
    const uint64_t handler = kKernel + kHandlers + vector * kHandlerSpacing;
    put(kIdt + vector * 16,
        Bits(handler, 0, 16) | uint64_t{kKernelCs} << 16 | uint64_t{0x8e} << 40 | Bits(handler, 16, 16) << 48);
    put(kIdt + vector * 16 + 8, handler >> 32);
  }
  // An engine may run on after the case's instruction: into HLT, whose #GP ends in a handler that halts.
  const std::vector<uint8_t> halts(32 * kHandlerSpacing, 0xf4);
  NACRE_CHECK(memory_->Write(GuestPhys(kHandlers), halts));
  const std::vector<uint8_t> stops(NACRE_DIFF_CODE_BYTES, 0xf4);
  NACRE_CHECK(memory_->Write(GuestPhys(kCodePhys), stops));
}

void Guest::SetUp(x86::CpuState& state, x86::CodeSize size) const {
  x86::ResetCpuState(state);
  state.cr0 =
      x86::cr0::kPe | x86::cr0::kMp | x86::cr0::kEt | x86::cr0::kNe | x86::cr0::kWp | x86::cr0::kAm | x86::cr0::kPg;
  state.cr3 = kPml4;
  state.cr4 = (x86::cr4::kPae | x86::cr4::kPge | x86::cr4::kOsFxsr | x86::cr4::kOsXmmExcpt | x86::cr4::kFsGsBase |
               x86::cr4::kOsXsave) &
              model_->cr4_mask();
  state.xcr0 = model_->xcr0_mask() & 0xe7;
  state.msr.efer = x86::efer::kSce | x86::efer::kLme | x86::efer::kLma | x86::efer::kNxe;
  state.gdtr = {kKernel + kGdt, 0x4f};
  state.idtr = {kKernel + kIdt, 0x1ff};
  state.tr = {kKernel + kTss, 0x67, Segment::kP | 11, kTssSelector};
  state.ldtr = {0, 0, Segment::kUnusable, 0};
  const bool compat = size == x86::CodeSize::k32;
  const uint32_t user = Segment::kP | Segment::kS | Segment::kDplMask | Segment::kG;
  const Segment data{0, 0xffffffff, user | 3 | Segment::kDb, NACRE_DIFF_SS};
  const Segment null{0, 0, Segment::kUnusable, 0};
  state.segment[x86::kCs] = compat ? Segment{0, 0xffffffff, user | 11 | Segment::kDb, NACRE_DIFF_CS32}
                                   : Segment{0, 0xffffffff, user | 11 | Segment::kL, NACRE_DIFF_CS64};
  state.segment[x86::kSs] = data;
  state.segment[x86::kDs] = state.segment[x86::kEs] = compat ? data : null;
  state.segment[x86::kFs] = state.segment[x86::kGs] = null;
  state.rflags = x86::rflags::kFixed1 | x86::rflags::kIf;
}

void Guest::TakeException(const x86::CpuState& state, Outcome& outcome) {
  outcome.vector = static_cast<int>((state.rip - kKernel - kHandlers) / kHandlerSpacing);
  // [error code,] RIP, CS, RFLAGS, RSP, SS from the top of the kernel's stack (SDM 3A 6.14.2).
  uint64_t frame[6];
  NACRE_CHECK(memory_->Read(GuestPhys(kStackTop - sizeof frame), {reinterpret_cast<uint8_t*>(frame), sizeof frame}));
  const bool has_error = state.gpr[x86::kRsp] == kKernel + kStackTop - sizeof frame;
  outcome.error_code = has_error ? static_cast<uint32_t>(frame[0]) : 0;
  outcome.cr2 = outcome.vector == x86::kPageFault ? state.cr2 : 0;
  outcome.rip = frame[1];
  outcome.cs = static_cast<uint16_t>(frame[2]);
  outcome.rflags = frame[3];
  outcome.ss = static_cast<uint16_t>(frame[5]);
  outcome.gpr[x86::kRsp] = frame[4];
}

void Guest::Run(const TestCase& test, Subject& subject, Outcome& outcome) {
  NACRE_CHECK(memory_->Write(GuestPhys(kDataPhys), test.data));
  const uint64_t code = kCodePhys + (test.state.rip - NACRE_DIFF_CODE);
  NACRE_CHECK(memory_->Write(GuestPhys(code), {test.insn.bytes, test.insn.length}));
  x86::CpuState state = test.state;
  // A REP may stop between iterations (RIP stays): 64 calls are more than any case needs.
  for (int i = 0; i < 64; ++i) {
    subject.Step(state);
    if (state.rip != test.state.rip || !(test.insn.has(x86::kInsnRep) || test.insn.has(x86::kInsnRepne))) break;
  }
  outcome.vector = -1;
  outcome.error_code = 0;
  outcome.cr2 = 0;
  std::memcpy(outcome.gpr, state.gpr, sizeof outcome.gpr);
  outcome.rip = state.rip;
  outcome.rflags = state.rflags;
  outcome.gs_base = state.segment[x86::kGs].base;
  outcome.es = state.segment[x86::kEs].selector;
  outcome.cs = state.segment[x86::kCs].selector;
  outcome.ss = state.segment[x86::kSs].selector;
  outcome.ds = state.segment[x86::kDs].selector;
  if (state.cpl() == 0) {
    TakeException(state, outcome);
    const bool next = outcome.vector == x86::kGeneralProtection && outcome.rip != test.state.rip;
    if (next) outcome.vector = -1, outcome.error_code = 0;  // the HLT behind the instruction
  }
  outcome.xsave = state.xsave;
  NACRE_CHECK(memory_->Read(GuestPhys(kDataPhys), outcome.data));
  uint8_t stops[16];
  std::memset(stops, 0xf4, sizeof stops);
  NACRE_CHECK(memory_->Write(GuestPhys(code), {stops, test.insn.length}));
}

namespace {

class InterpreterSubject : public Subject {
 public:
  explicit InterpreterSubject(const VcpuConfig& config) : interpreter_(config, nullptr) {}
  std::string_view name() const override { return "interp"; }
  void Step(x86::CpuState& state) override { interpreter_.Step(state); }

 private:
  interp::Interpreter interpreter_;
};

class EngineSubject : public Subject {
 public:
  EngineSubject(std::string name, std::unique_ptr<Vcpu> vcpu, const Tolerance& tolerance, bool single)
      : name_(std::move(name)), vcpu_(std::move(vcpu)), tolerance_(tolerance), single_(single) {}
  Tolerance tolerance() const override { return tolerance_; }
  std::string_view name() const override { return name_; }
  void Step(x86::CpuState& state) override {
    const uint64_t start = state.rip;
    vcpu_->Import(state);
    if (!single_) {
      NACRE_CHECK(vcpu_->Run() == ExitReason::kHalted);
      vcpu_->Export(state);
      state.halted = false;
      return;
    }
    // The first call may do no more than to drop translations of the code that was replaced.
    for (int i = 0; i < 4 && state.rip == start; ++i) {
      vcpu_->Run(1);
      vcpu_->Export(state);
    }
  }

 private:
  std::string name_;
  std::unique_ptr<Vcpu> vcpu_;
  Tolerance tolerance_;
  bool single_;
};

}  // namespace

Result<std::unique_ptr<Subject>> MakeEngineSubject(Engine& engine, const Guest& guest, const Tolerance& tolerance,
                                                   bool single) {
  VcpuConfig config = guest.config();
  config.index = single ? 0 : 1;  // both may be of one engine
  std::string name = fmt::format("{}, {}", engine.name(), single ? "one instruction" : "until it halts");
  return std::make_unique<EngineSubject>(std::move(name), NACRE_TRY(engine.CreateVcpu(config)), tolerance, single);
}

std::unique_ptr<Subject> MakeInterpreterSubject(const Guest& guest) {
  return std::make_unique<InterpreterSubject>(guest.config());
}

}  // namespace nacre::engine::difftest
