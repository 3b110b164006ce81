// Random programs of every instruction form of 16-bit and 32-bit code in real-address mode, with big segments ("unreal"
// mode), in virtual-8086 mode and in protected mode with segments of random bases and limits: the translator against
// the interpreter. Registers, segments and all of memory must be the same when a program, or the handler of its fault,
// halts.
//
// NACRE_MODES_CASES=N in the environment: that many programs a mode. NACRE_MODES_SEED=N: another series.
// NACRE_MODES_FORM=TEXT: only programs with a form whose name contains it.

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "engine/difftest/generator.h"
#include "engine/interp/interpreter.h"
#include "engine/jit/code_segments.h"
#include "engine/jit/hostile_testing.h"
#include "engine/jit/jit_engine.h"
#include "x86/decoder.h"

namespace nacre::engine::jit {
namespace {

using x86::CodeSize;
using x86::CpuState;
using x86::Instruction;
using x86::Segment;

enum class Mode { kReal, kUnreal, kVirtual, kProtected16, kProtected32 };

constexpr uint64_t kRam = 2 * kMiB;
constexpr uint64_t kIdt = 0x180000, kGdt = 0x181000, kTss = 0x182000, kHandlers = 0x184000, kFaultStack = 0x18f000;
constexpr uint64_t kDirectory = 0x190000, kTable = 0x191000;
constexpr uint8_t kHlt = 0xf4;
constexpr unsigned kMaxSteps = 400;

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text ? std::strtoull(text, nullptr, 0) : otherwise;
}

/// What both sides may do differently, or what ends a program's sense.
bool Excluded(const Instruction& insn) {
  switch (insn.mnemonic) {
    case ZYDIS_MNEMONIC_CPUID:
    case ZYDIS_MNEMONIC_RDTSC:
    case ZYDIS_MNEMONIC_RDTSCP:
    case ZYDIS_MNEMONIC_RDRAND:
    case ZYDIS_MNEMONIC_RDSEED:
    case ZYDIS_MNEMONIC_RDPID:
    case ZYDIS_MNEMONIC_RDPMC:
    case ZYDIS_MNEMONIC_XSAVE:
    case ZYDIS_MNEMONIC_XSAVEOPT:
    case ZYDIS_MNEMONIC_XSAVEC:
    case ZYDIS_MNEMONIC_XRSTOR:
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXRSTOR:
    case ZYDIS_MNEMONIC_FNSAVE:
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FRSTOR:
    case ZYDIS_MNEMONIC_FLDENV:
    case ZYDIS_MNEMONIC_SYSENTER:
    case ZYDIS_MNEMONIC_SYSEXIT:
    case ZYDIS_MNEMONIC_SYSCALL:
    case ZYDIS_MNEMONIC_SYSRET:
    case ZYDIS_MNEMONIC_LMSW:
    case ZYDIS_MNEMONIC_VMCALL:
    case ZYDIS_MNEMONIC_VMMCALL:
      return true;
    case ZYDIS_MNEMONIC_CLI:
    case ZYDIS_MNEMONIC_STI:
    case ZYDIS_MNEMONIC_HLT:
      return false;
    default:
      // BSF and BSR leave a register alone, or undefined; so do BSWAP of 16 bits and SHLD by more than there is.
      return insn.has(x86::kInsnPrivileged) || insn.mnemonic == ZYDIS_MNEMONIC_BSF ||
             insn.mnemonic == ZYDIS_MNEMONIC_BSR || (insn.mnemonic == ZYDIS_MNEMONIC_BSWAP && insn.operand_size == 2) ||
             ((insn.mnemonic == ZYDIS_MNEMONIC_SHLD || insn.mnemonic == ZYDIS_MNEMONIC_SHRD) && insn.operand_size == 2);
  }
}

/// Flags that the decoder, or only the manual in some cases, calls undefined.
bool LeavesFlagsOpen(const Instruction& insn, const CpuState& state) {
  return insn.flags_undefined != 0 || difftest::UndefinedFlags(insn, state) != 0;
}

struct ProgramCase {
  CpuState state;
  std::vector<uint8_t> code;
  std::vector<unsigned> starts;
  uint64_t at = 0;  ///< linear
  uint64_t seed = 0;
  bool paging = false;
  std::string text;  ///< forms
};

/// Memory with its first contents beside it.
class Side {
 public:
  Side() : memory_(std::move(*memory::GuestMemory::Create(kRam))) {}
  memory::GuestMemory& memory() { return *memory_; }
  uint8_t* base() { return memory_->host_base(); }
  void Put(uint64_t at, std::span<const uint8_t> bytes) { ASSERT_TRUE(memory_->Write(GuestPhys(at), bytes)); }
  /// Back to `first` where a page was written.
  void Restore(const std::vector<uint8_t>& first) {
    for (uint64_t page = 0; page < kRam / kPageSize; ++page) {
      std::atomic<uint8_t>& flags = memory_->PageFlags(page);
      if (!(flags.load() & memory::GuestMemory::kDirty)) continue;
      const uint64_t at = page * kPageSize;
      if (std::memcmp(base() + at, first.data() + at, kPageSize) != 0) Put(at, std::span(first).subspan(at, kPageSize));
      flags.fetch_and(static_cast<uint8_t>(~memory::GuestMemory::kDirty));
    }
  }

 private:
  std::unique_ptr<memory::GuestMemory> memory_;
};

class Maker {
 public:
  Maker(Mode mode, const x86::CpuModel& model)
      : mode_(mode), size_(mode == Mode::kProtected32 ? CodeSize::k32 : CodeSize::k16) {
    for (difftest::Form& form : difftest::EnumerateForms(model, size_))
      if (!(form.reason && std::string_view(form.reason) == "not in the CPU model") && !Excluded(form.insn))
        forms_.push_back(std::move(form));
  }

  uint64_t Below(uint64_t n) { return random_() % n; }
  bool Chance(unsigned percent) { return Below(100) < percent; }

  /// RAM as every case finds it, the same for all cases.
  std::vector<uint8_t> FirstMemory() {
    random_.Seed(7);
    std::vector<uint8_t> ram(kRam);
    for (size_t i = 0; i < kRam; ++i) ram[i] = static_cast<uint8_t>(Chance(30) ? kHlt : random_());
    std::fill(ram.begin() + kHandlers, ram.begin() + kHandlers + 0x400, kHlt);
    const auto put = [&](uint64_t at, auto value) { std::memcpy(ram.data() + at, &value, sizeof value); };
    for (unsigned vector = 0; vector < 256; ++vector) {
      const uint64_t handler = kHandlers + vector;
      // Real-address mode reaches this only above 64 KiB; its vectors lead to HLT in low memory.
      put(vector * 4, static_cast<uint32_t>(0x0050 << 16 | vector));
      ram[0x500 + vector] = kHlt;
      put(kIdt + vector * 8, (handler & 0xffff) | 8ull << 16 | 0xeeull << 40 | (handler >> 16) << 48);
    }
    put(kGdt, uint64_t{0});
    put(kGdt + 8, uint64_t{0x00cf9b000000ffff});
    put(kGdt + 16, uint64_t{0x00cf93000000ffff});
    for (unsigned i = 3; i < 32; ++i) {  // what random selectors may name
      uint64_t descriptor = random_();
      if (Chance(70)) descriptor = (descriptor & 0x00cf'00ff'ffff'ffff) | uint64_t{i & 1 ? 0x93u : 0x9bu} << 40;
      put(kGdt + 8 * i, descriptor & ~(uint64_t{0xf0} << 24 | uint64_t{0xe0} << 32));
    }
    std::memset(ram.data() + kTss, 0, 0x68);
    put(kTss + 4, static_cast<uint32_t>(kFaultStack));
    put(kTss + 8, uint16_t{16});
    put(kTss + 0x66, uint16_t{0xffff});
    for (unsigned i = 0; i < 1024; ++i) put(kDirectory + 4 * i, i == 0 ? static_cast<uint32_t>(kTable | 7) : 0u);
    for (uint32_t i = 0; i < 1024; ++i) {
      // Pages below 1 MiB out of order in groups of four, some read-only or absent; tables where they are.
      uint32_t page = i < 0x100 ? (i ^ 3) : i;
      if (i < 1) page = i;
      if (i < 4) page = i;
      put(kTable + 4 * i, i < kRam / kPageSize ? page << 12 | (i < 0x100 && i % 32 == 31 ? 0u
                                                               : i % 32 == 30            ? 5u
                                                                                         : 7u)
                                               : 0u);
    }
    return ram;
  }

  bool Make(uint64_t seed, ProgramCase& made, const std::vector<uint8_t>& ram) {
    random_.Seed(seed);
    made = {};
    made.seed = seed;
    MakeState(made);
    return MakeCode(made, ram);
  }

 private:
  uint64_t Value() {
    switch (Below(8)) {
      case 0:
        return random_() & 0xffffffff;
      case 1:
        return 0 - Below(40);
      case 2:
        return Below(64);
      case 3:
        return 0xffff - Below(40);
      case 4:
        return limit_ + Below(24) - 12;
      case 5:
        return 1u << Below(32);
      default:
        return Below(0x10000);
    }
  }

  void MakeState(ProgramCase& made) {
    CpuState& state = made.state;
    state = hostile::StartState(mode_ == Mode::kReal || mode_ == Mode::kUnreal ? hostile::Mode::kReal
                                                                               : hostile::Mode::kKernel32);
    const bool real = mode_ == Mode::kReal || mode_ == Mode::kUnreal;
    if (real) {
      state.idtr = {.base = 0, .limit = 0x3ff};
      for (Segment& segment : state.segment) {
        segment.selector = static_cast<uint16_t>(Chance(10) ? 0xffff - Below(16) : 0x60 + Below(0x9000));
        segment.base = segment.selector * 16u;
        segment.limit = 0xffff;
        segment.attributes = Segment::kS | Segment::kP | 3;
      }
      if (mode_ == Mode::kUnreal)
        for (const unsigned index : {x86::kEs, x86::kSs, x86::kDs, x86::kFs, x86::kGs})
          if (Chance(60)) {
            state.segment[index].limit = Chance(70) ? 0xffffffff : static_cast<uint32_t>(0xfff + (Below(0x40) << 12));
            if (Chance(50)) state.segment[index].attributes |= Segment::kG | Segment::kDb;
          }
      state.segment[x86::kCs].attributes = Segment::kS | Segment::kP | 0xb;
      state.cr4 = x86::cr4::kOsFxsr | x86::cr4::kOsXmmExcpt;
    } else {
      state.idtr = {.base = kIdt, .limit = 0x7ff};
      state.gdtr = {.base = kGdt, .limit = 0xff};
      state.cr0 &= ~x86::cr0::kPg;
      state.cr4 = x86::cr4::kOsFxsr | x86::cr4::kOsXmmExcpt;
      if (Chance(40)) {
        made.paging = true;
        state.cr0 |= x86::cr0::kPg;
        state.cr3 = kDirectory;
      }
      state.msr.efer = 0;
      state.tr = {.base = kTss, .limit = 0x67, .attributes = Segment::kP | 0xb, .selector = 0x28};
    }
    state.rflags = (random_() & (x86::rflags::kArithmetic | x86::rflags::kDf | x86::rflags::kIf)) | 2;
    if (mode_ == Mode::kVirtual) {
      state.rflags |= x86::rflags::kVm | (Chance(60) ? x86::rflags::kIoplMask : 0);
      for (Segment& segment : state.segment) {
        segment.selector = static_cast<uint16_t>(Chance(10) ? 0xffff - Below(16) : 0x60 + Below(0x9000));
        segment.base = segment.selector * 16u;
        segment.limit = 0xffff;
        segment.attributes = Segment::kS | Segment::kP | 3 | Segment::kDplMask;
      }
    }
    if (mode_ == Mode::kProtected16 || mode_ == Mode::kProtected32) {
      for (unsigned index = 0; index < x86::kSegmentCount; ++index) {
        Segment& segment = state.segment[index];
        segment.selector = 0x10;
        segment.base = Chance(20) ? 0 : Below(0xa0000);
        static constexpr uint32_t kLimits[] = {0xffff, 0xffffffff, 0xffff, 0xffffffff, 0x2fff, 0x87654, 0x800, 0x10fff};
        segment.limit = Chance(90) ? kLimits[Below(8)] : static_cast<uint32_t>(Below(0x20000));
        const uint32_t type = index == x86::kCs ? 0xb : Chance(92) ? 3 : Below(16);
        segment.attributes = Segment::kS | Segment::kP | type | (Chance(50) ? Segment::kDb : 0);
        if (index != x86::kCs && index != x86::kSs && Chance(4)) segment.attributes = Segment::kUnusable;
      }
      Segment& cs = state.segment[x86::kCs];
      cs.selector = 8;
      cs.attributes = Segment::kS | Segment::kP | (Chance(90) ? 0xb : 9) | (size_ == CodeSize::k32 ? Segment::kDb : 0);
      if (mode_ == Mode::kProtected32 && Chance(15))
        for (Segment& segment : state.segment)
          segment.base = 0, segment.limit = 0xffffffff, segment.attributes |= Segment::kDb;
    }
    limit_ = state.segment[Chance(50) ? x86::kDs : x86::kSs].limit;
    for (unsigned i = 0; i < 8; ++i) state.gpr[i] = (Value() | (Chance(30) ? random_() << 16 : 0)) & 0xffffffff;
    if (Chance(85)) state.gpr[x86::kRcx] = (state.gpr[x86::kRcx] & (Chance(50) ? 0xffff0000 : 0)) | Below(24);
    if (Chance(75)) state.gpr[x86::kRsp] = 0x100 + Below(0x600);
    for (unsigned i = 8; i < 16; ++i) state.gpr[i] = 0;
    for (unsigned i = 0; i < 8; ++i)
      for (unsigned byte = 0; byte < 16; ++byte) state.xsave.xmm(i)[byte] = static_cast<uint8_t>(random_());
    state.xsave.mxcsr() = 0x1f80;
    state.xsave.fcw() = 0x37f;
    state.xcr0 = 1;
  }

  /// One instruction of a form with random registers, displacement and immediate; its length, or 0.
  unsigned Encode(const difftest::Form& form, uint8_t* to) {
    const Instruction& model = form.insn;
    for (int attempt = 0; attempt < 8; ++attempt) {
      uint8_t bytes[24];
      for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(Chance(40) ? Below(16) - 8 : random_());
      unsigned n = 0;
      const bool memory = model.has_memory() || model.base < 16;
      if (memory && Chance(25)) bytes[n++] = 0x67;
      if (memory && Chance(25)) {
        static constexpr uint8_t kSegments[] = {0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65};
        bytes[n++] = kSegments[Below(6)];
      }
      std::memcpy(bytes + n, model.bytes, model.length);
      const unsigned at = n;
      if (model.has(x86::kInsnModrm) && Chance(85)) {
        uint8_t& modrm = bytes[at + model.modrm_at];
        modrm =
            static_cast<uint8_t>((modrm & 0x38) | (model.modrm >= 0xc0 ? 0xc0 | Below(8) : Below(3) << 6 | Below(8)));
        if (Chance(60)) modrm = static_cast<uint8_t>((modrm & 0xc7) | Below(8) << 3);
        for (unsigned i = at + model.modrm_at + 1u; i < sizeof bytes; ++i)
          bytes[i] = static_cast<uint8_t>(Chance(40) ? Below(16) - 8 : random_());
      } else if (model.immediate_size != 0) {
        for (unsigned i = at + model.immediate_at; i < at + model.length; ++i)
          bytes[i] = static_cast<uint8_t>(Chance(50) ? Below(16) - 8 : random_());
      }
      Instruction insn;
      if (x86::Decode({bytes, 15}, size_, insn) != x86::DecodeStatus::kOk || Excluded(insn)) continue;
      std::memcpy(to, bytes, insn.length);
      return insn.length;
    }
    return 0;
  }

  bool MakeCode(ProgramCase& made, const std::vector<uint8_t>& ram) {
    (void)ram;
    static const char* const only = std::getenv("NACRE_MODES_FORM");
    bool wanted = only == nullptr;
    const unsigned count = 1 + static_cast<unsigned>(Below(12));
    for (unsigned i = 0; i < count; ++i) {
      const difftest::Form* form = &forms_[Below(forms_.size())];
      // Mostly what programs are made of, and not vectors.
      for (int again = 0; again < 6 && form->insn.has(x86::kInsnVector) | form->insn.has(x86::kInsnX87); ++again)
        form = &forms_[Below(forms_.size())];
      uint8_t bytes[15];
      const unsigned length = Encode(*form, bytes);
      if (length == 0) continue;
      if (only && form->name.find(only) != std::string::npos) wanted = true;
      Instruction insn;
      EXPECT_EQ(x86::Decode({bytes, length}, size_, insn), x86::DecodeStatus::kOk);
      made.text += " " + form->name;
      made.starts.push_back(static_cast<unsigned>(made.code.size()));
      made.code.insert(made.code.end(), bytes, bytes + length);
      if (LeavesFlagsOpen(insn, made.state) || insn.map == 0) {
        // CMP BP, imm: all flags are known again. Not after everything, or liveness is never tested.
        if (!LeavesFlagsOpen(insn, made.state) && !Chance(20)) continue;
        const uint8_t compare[] = {0x81, 0xfd, static_cast<uint8_t>(random_()), static_cast<uint8_t>(random_())};
        made.starts.push_back(static_cast<unsigned>(made.code.size()));
        if (size_ == CodeSize::k32) made.code.push_back(0x66);
        made.code.insert(made.code.end(), std::begin(compare), std::end(compare));
      }
    }
    if (!wanted || made.code.empty()) return false;
    made.code.insert(made.code.end(), 16, kHlt);
    // Jumps within the program mostly stay there.
    const Segment& cs = made.state.segment[x86::kCs];
    const uint64_t room = std::min<uint64_t>(cs.limit, 0xffff) + 1;
    if (room < made.code.size() + 0x40) return false;
    uint64_t offset = 0x20 + Below(room - made.code.size() - 0x20);
    if (Chance(15)) {  // across pages
      const uint64_t page = AlignDown(cs.base + offset, kPageSize);
      if (page > cs.base + 0x40) offset = page - Below(made.code.size()) - cs.base;
    }
    if (Chance(8)) offset = room - Below(made.code.size());  // to the segment's end and beyond
    if (offset > 0xffff) return false;
    made.state.rip = offset;
    made.at = cs.base + offset;
    // Tables and handlers stay as they are, and code lies in RAM whose pages are there.
    if (made.at < 0x700 || made.at + made.code.size() > kIdt) return false;
    return true;
  }

  Mode mode_;
  CodeSize size_;
  difftest::Random random_;
  std::vector<difftest::Form> forms_;
  uint64_t limit_ = 0;
};

struct Target {
  const char* name;
  Mode mode;
  JitStress stress = {};
};

/// Asks a CPU to stop now and then, until it is gone: a program that goes astray must end.
class Watchdog {
 public:
  explicit Watchdog(Vcpu& vcpu)
      : thread_([this, &vcpu] {
          while (!end_) {
            std::this_thread::sleep_for(std::chrono::milliseconds(100));
            vcpu.Request(kRequestStop);
          }
        }) {}
  ~Watchdog() {
    end_ = true;
    thread_.join();
  }

 private:
  std::atomic<bool> end_ = false;
  std::thread thread_;
};

class ModesEqualInterpreter : public testing::TestWithParam<Target> {
 protected:
  void SetUp() override {
    auto model = x86::CpuModel::Create("x86-64-v3", {});
    ASSERT_TRUE(model.has_value()) << model.error().message;
    model_ = std::make_unique<x86::CpuModel>(std::move(*model));
    engine_ = std::move(*CreateJitEngine({.code_cache_bytes = 16 * kMiB, .debug = {.stress = GetParam().stress}}));
    auto vcpu =
        engine_->CreateVcpu({.index = 0, .model = model_.get(), .memory = &translated_.memory(), .host = &host_});
    ASSERT_TRUE(vcpu.has_value()) << vcpu.error().message;
    vcpu_ = std::move(*vcpu);
    interpreter_ = std::make_unique<interp::Interpreter>(
        VcpuConfig{.index = 0, .model = model_.get(), .memory = &interpreted_.memory(), .host = &host_}, nullptr);
  }

  uint8_t* At(Side& side, const CpuState& state, uint64_t linear) {
    linear &= 0xffffffff;
    if (state.paging()) {
      uint32_t entry = 0;
      if (linear >= kRam) return nullptr;
      std::memcpy(&entry, side.base() + kTable + linear / kPageSize * 4, 4);
      if (!(entry & 1)) return nullptr;
      linear = (entry & ~0xfffu) + (linear & kPageMask);
    }
    return linear < kRam ? side.base() + linear : nullptr;
  }

  void PutCode(Side& side, const ProgramCase& made) {
    for (uint64_t i = 0; i < made.code.size(); ++i) {
      const uint8_t* at = At(side, made.state, made.at + i);
      if (at) side.Put(static_cast<uint64_t>(at - side.base()), {&made.code[i], 1});
    }
  }

  /// Whether the instruction is one that may differ, after a jump into another. Or an access may wrap at 4 GiB: with a
  /// limit of 4 GiB CPUs may or may not fault there (SDM 3A 5.3).
  bool MayDiffer(const CpuState& state, const uint8_t* code) {
    constexpr uint32_t kTop = 0xfffffe00;
    Instruction insn;
    const CodeSize size = state.segment[x86::kCs].big() ? CodeSize::k32 : CodeSize::k16;
    if (x86::Decode({code, 15}, size, insn) != x86::DecodeStatus::kOk) return false;
    if (Excluded(insn)) return true;
    const auto high = [&](uint64_t offset) { return static_cast<uint32_t>(offset) >= kTop; };
    if (state.segment[x86::kSs].big())
      for (const unsigned gpr : {x86::kRsp, x86::kRbp})
        if (high(state.gpr[gpr]) || high(state.gpr[gpr] - 0x200)) return true;
    if (insn.address_size != 4) return false;
    if (insn.has_memory() || insn.base < 16) {
      uint64_t offset = static_cast<uint64_t>(insn.displacement);
      if (insn.base < 16) offset += state.gpr[insn.base];
      if (insn.index < 16) offset += state.gpr[insn.index] * insn.scale;
      if (high(offset)) return true;
      // The bit offset moves the address.
      if (difftest::UndefinedFlags(insn, state) != 0 && (insn.opcode & 0xe7) == 0xa3 && high(offset - 0x10000000))
        return true;
    }
    return high(state.gpr[x86::kRsi]) || high(state.gpr[x86::kRdi]);
  }

  bool Overwritten(const ProgramCase& made) {
    for (uint64_t i = 0; i < made.code.size(); ++i) {
      const uint8_t* at = At(interpreted_, made.state, made.at + i);
      if (at && *at != made.code[i]) return true;
    }
    return false;
  }

  /// False: it does not end, or leaves the program for anything but HLT.
  bool Interpret(const ProgramCase& made, CpuState& state) {
    interpreter_->FlushTlb();
    interpreter_->FlushDecoded();
    for (unsigned step = 0; step < kMaxSteps; ++step) {
      const uint64_t linear = state.segment[x86::kCs].base + state.rip;
      const bool inside = state.rip < 0x100000000 && linear - made.at < made.code.size();
      const uint8_t* at = At(interpreted_, state, linear);
      if (!inside && !(at && *at == kHlt)) return false;
      // In the middle of an instruction flags may be undefined.
      if (inside && at && *at != kHlt && std::ranges::find(made.starts, linear - made.at) == made.starts.end())
        return false;
      if (at && MayDiffer(state, at)) return false;
      const bool unfinished = (state.rflags & x86::rflags::kRf) != 0;
      const interp::StepResult result = interpreter_->Step(state);
      // A REP that has overwritten itself goes on as what stands there when it is next interrupted.
      if ((unfinished || (state.rflags & x86::rflags::kRf)) && Overwritten(made)) return false;
      if (result == interp::StepResult::kHalted) return true;
      if (result == interp::StepResult::kShutdown) return false;
      if ((state.rflags & x86::rflags::kTf) || state.nmi_masked) return false;
    }
    return false;
  }

  /// A fault shows flags that nobody would have read: the register, and the image that its handler finds.
  void MaskFaultFlags(Side& side, CpuState& state, const ProgramCase& made) {
    const uint64_t code = state.segment[x86::kCs].base + state.rip - 1;
    const bool real = !state.protected_mode();
    const bool handler = real ? code >= 0x500 && code < 0x600 : code >= kHandlers && code < kHandlers + 0x400;
    if (!handler) return;
    state.rflags &= ~x86::rflags::kArithmetic;
    const uint64_t vector = (code - (real ? 0x500 : kHandlers));
    const bool error = vector == 8 || (vector >= 10 && vector <= 14) || vector == 17;
    const uint64_t mask = state.segment[x86::kSs].big() ? 0xffffffff : 0xffff;
    const uint64_t offset = real ? 4 : 8 + (error ? 4 : 0);
    const uint64_t image = state.segment[x86::kSs].base + ((state.gpr[x86::kRsp] + offset) & mask);
    if (uint8_t* low = At(side, state, image)) *low &= static_cast<uint8_t>(~x86::rflags::kArithmetic);
    if (uint8_t* high = At(side, state, image + 1)) *high &= static_cast<uint8_t>(~(x86::rflags::kArithmetic >> 8));
    (void)made;
  }

  std::string Compare(CpuState& expected, CpuState& got, const ProgramCase& made) {
    MaskFaultFlags(interpreted_, expected, made);
    MaskFaultFlags(translated_, got, made);
    std::string text;
    const auto field = [&](std::string_view name, uint64_t want, uint64_t have) {
      if (want != have) text += fmt::format("  {}: interp {:#x}, jit {:#x}\n", name, want, have);
    };
    for (unsigned i = 0; i < 16; ++i) field(fmt::format("gpr {}", i), expected.gpr[i], got.gpr[i]);
    field("rip", expected.rip, got.rip);
    field("rflags", expected.rflags, got.rflags);
    field("cr0", expected.cr0, got.cr0);
    field("cr2", expected.cr2, got.cr2);
    for (unsigned i = 0; i < x86::kSegmentCount; ++i) {
      field(fmt::format("segment {} selector", i), expected.segment[i].selector, got.segment[i].selector);
      field(fmt::format("segment {} base", i), expected.segment[i].base, got.segment[i].base);
      field(fmt::format("segment {} limit", i), expected.segment[i].limit, got.segment[i].limit);
      field(fmt::format("segment {} attributes", i), expected.segment[i].attributes, got.segment[i].attributes);
    }
    for (unsigned i = 0; i < 8; ++i) {
      if (std::memcmp(expected.xsave.xmm(i), got.xsave.xmm(i), 16) != 0) text += fmt::format("  xmm{}\n", i);
      if (std::memcmp(expected.xsave.st(i), got.xsave.st(i), 10) != 0) text += fmt::format("  st{}\n", i);
    }
    for (uint64_t page = 0; page < kRam / kPageSize; ++page) {
      const auto dirty = [&](Side& side) { return side.memory().PageFlags(page).load() & memory::GuestMemory::kDirty; };
      if (!dirty(interpreted_) && !dirty(translated_)) continue;
      if (page == kTable / kPageSize || page == kDirectory / kPageSize) continue;  // accessed and dirty bits
      const uint8_t *want = interpreted_.base() + page * kPageSize, *have = translated_.base() + page * kPageSize;
      for (unsigned i = 0; i < kPageSize && text.size() < 2000; ++i)
        if (want[i] != have[i])
          text += fmt::format("  memory {:#x}: interp {:#x}, jit {:#x}\n", page * kPageSize + i, want[i], have[i]);
    }
    return text;
  }

  static std::string Describe(const ProgramCase& made) {
    std::string text = fmt::format("seed {}:{}\n  at {:#x}:", made.seed, made.text, made.at);
    const CodeSize size = made.state.segment[x86::kCs].big() ? CodeSize::k32 : CodeSize::k16;
    for (unsigned start : made.starts) {
      Instruction insn;
      if (x86::Decode(std::span(made.code).subspan(start), size, insn) != x86::DecodeStatus::kOk) continue;
      char line[128];
      x86::Format(insn, made.state.rip + start, line);
      text += fmt::format("\n  {:#x}  {}", made.state.rip + start, line);
    }
    for (unsigned i = 0; i < 8; ++i) text += fmt::format("\n  gpr {} {:#x}", i, made.state.gpr[i]);
    for (const Segment& segment : made.state.segment)
      text += fmt::format("\n  segment {:#x} base {:#x} limit {:#x} attributes {:#x}", segment.selector, segment.base,
                          segment.limit, segment.attributes);
    return text + fmt::format("\n  rflags {:#x} paging {}\n", made.state.rflags, made.paging);
  }

  hostile::NullHost host_;
  Side interpreted_, translated_;
  std::unique_ptr<x86::CpuModel> model_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Vcpu> vcpu_;
  std::unique_ptr<interp::Interpreter> interpreter_;
};

TEST_P(ModesEqualInterpreter, RandomPrograms) {
  const uint64_t cases = FromEnvironment("NACRE_MODES_CASES", 4000);
  const uint64_t first_seed = FromEnvironment("NACRE_MODES_SEED", 1);
  Maker maker(GetParam().mode, *model_);
  const std::vector<uint8_t> ram = maker.FirstMemory();
  interpreted_.Put(0, ram);
  translated_.Put(0, ram);
  interpreted_.Restore(ram);
  translated_.Restore(ram);
  uint64_t compared = 0, failures = 0;
  Watchdog watchdog(*vcpu_);
  auto made = std::make_unique<ProgramCase>();
  for (uint64_t i = 0; i < cases && failures < 5; ++i) {
    if (!maker.Make(first_seed * 1000003 + i, *made, ram)) continue;
    PutCode(interpreted_, *made);
    PutCode(translated_, *made);
    auto expected = std::make_unique<CpuState>(made->state), got = std::make_unique<CpuState>(made->state);
    if (Interpret(*made, *expected)) {
      vcpu_->Import(made->state);
      ExitReason reason = vcpu_->Run();
      for (unsigned stops = 0; reason == ExitReason::kStop && stops < 300; ++stops) reason = vcpu_->Run();
      vcpu_->Export(*got);
      ++compared;
      std::string text = Compare(*expected, *got, *made);
      if (reason != ExitReason::kHalted) text += fmt::format("  ended for reason {}\n", static_cast<unsigned>(reason));
      if (!text.empty()) {
        ++failures;
        ADD_FAILURE() << Describe(*made) << text;
      }
    }
    interpreted_.Restore(ram);
    translated_.Restore(ram);
  }
  if (cases >= 1000 && !std::getenv("NACRE_MODES_FORM")) {
    EXPECT_GT(compared, cases / 4);
  }
  uint64_t untranslated = 0, interpreted = 0;
  for (const Statistic& statistic : vcpu_->Statistics()) {
    if (statistic.name == "interpreted: untranslated mode") untranslated = statistic.value;
    if (statistic.name == "interpreted instructions") interpreted = statistic.value;
    if (std::getenv("NACRE_MODES_STATISTICS"))
      std::printf("%s: %lu\n", statistic.name.c_str(), static_cast<unsigned long>(statistic.value));
  }
  std::printf("%lu of %lu programs compared, %lu instructions interpreted, %lu for their mode\n", compared, cases,
              interpreted, untranslated);
}

/// The same bytes at the same linear address in more code segments than have numbers at a time: CALL pushes IP.
TEST(JitModes, MoreCodeSegmentsThanNumbers) {
  hostile::Machine machine(std::move(*CreateJitEngine({})));
  machine.Reset(1);
  const uint8_t code[] = {0xe8, 0x00, 0x00, 0x58, kHlt};  // CALL next; POP AX
  machine.Put(hostile::kCode, code);
  for (uint32_t i = 0; i < 3 * CodeSegments::kMost; ++i) {
    CpuState state = hostile::StartState(hostile::Mode::kKernel32);
    Segment& cs = state.segment[x86::kCs];
    cs.attributes &= ~Segment::kDb;
    state.rip = 0x100 + i;
    cs.base = hostile::kCode - state.rip;
    cs.limit = 0xfffe;
    machine.vcpu().Import(state);
    ASSERT_EQ(machine.vcpu().Run(), ExitReason::kHalted);
    machine.vcpu().Export(state);
    ASSERT_EQ(state.gpr[x86::kRax] & 0xffff, 0x103 + i);
    ASSERT_EQ(state.rip, 0x105 + i);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Jit, ModesEqualInterpreter,
    testing::Values(Target{"real", Mode::kReal}, Target{"unreal", Mode::kUnreal},
                    Target{"virtual_8086", Mode::kVirtual}, Target{"protected16", Mode::kProtected16},
                    Target{"protected32", Mode::kProtected32},
                    Target{"compact_real", Mode::kReal, {.compact = true, .sample = 50}},
                    Target{"compact_protected16", Mode::kProtected16, {.compact = true, .sample = 50}},
                    Target{"compact_protected32", Mode::kProtected32, {.compact = true, .sample = 50}}),
    [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace nacre::engine::jit
