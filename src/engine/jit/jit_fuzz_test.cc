// Random instruction streams in every mode, with random registers, odd page tables and handlers that are random code
// too, on both engines. The engine must come back whenever it is asked to, and never with an error. What the code
// computes is the differential test's business (engine/difftest).
//
// Longer runs: base/fuzz_testing.h; a case is a stream in each mode.

#include <gtest/gtest.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "base/fuzz_testing.h"
#include "engine/difftest/generator.h"
#include "engine/interp/interp_engine.h"
#include "engine/jit/hostile_testing.h"
#include "engine/jit/jit_engine.h"

namespace nacre::engine::jit::hostile {
namespace {

/// Asks a CPU to stop every millisecond. A run that does not end within half a minute ends the process, with its seed.
class Stopper {
 public:
  explicit Stopper(Vcpu& vcpu) : vcpu_(vcpu), thread_([this] { Loop(); }) {}
  ~Stopper() {
    end_ = true;
    thread_.join();
  }
  void Begin(uint64_t seed) {
    seed_ = seed;
    ++run_;
  }

 private:
  void Loop() {
    uint64_t seen = 0;
    unsigned waited_ms = 0;
    while (!end_) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      const uint64_t run = run_;
      waited_ms = run == seen ? waited_ms + 1 : 0;
      seen = run;
      if (waited_ms > 30000) {
        std::fprintf(stderr, "the engine does not stop: seed %llu\n", static_cast<unsigned long long>(seed_.load()));
        std::abort();
      }
      vcpu_.Request(kRequestStop);
    }
  }

  Vcpu& vcpu_;
  std::atomic<bool> end_ = false;
  std::atomic<uint64_t> seed_ = 0, run_ = 0;
  std::thread thread_;
};

class StreamMaker {
 public:
  void Seed(uint64_t seed) { random_.Seed(seed); }
  uint64_t Below(uint64_t n) { return random_() % n; }
  uint64_t Next() { return random_(); }

  /// Addresses and numbers where things go wrong.
  uint64_t Value() {
    static constexpr uint64_t kBases[] = {
        0,        0x1000,   0x4000,   kIdt, kCode,      0x182000,    0x1b1000,       0x1c0000,          0x1d2000,
        0x1e2000, kNothing, 2 * kMiB, kRam, 0x80000000, 0x100000000, 0x800000000000, 0xffff800000000000};
    switch (Below(8)) {
      case 0:
        return random_();
      case 1:
        return random_() >> Below(64);
      case 2:
        return 0 - Below(300);
      case 3:
        return uint64_t{1} << Below(64);
      default:
        return kBases[Below(std::size(kBases))] + Below(160) - 80;
    }
  }

  /// Something like an instruction: prefixes, an opcode of some map, ModRM, displacement and immediate.
  void Append(std::vector<uint8_t>& code) {
    static constexpr uint8_t kPrefixes[] = {0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x64, 0x65, 0x2e, 0x36};
    const auto byte = [&](uint64_t value) { code.push_back(static_cast<uint8_t>(value)); };
    while (Below(4) == 0) byte(kPrefixes[Below(std::size(kPrefixes))]);
    const uint64_t kind = Below(16);
    if (kind == 0) {  // VEX
      byte(0xc4);
      byte((Below(8) << 5) | (1 + Below(3)));
      byte(Below(256));
      byte(Below(256));
    } else {
      if (Below(3) == 0) byte(0x40 | Below(16));
      if (kind < 6) {
        byte(0x0f);
        if (kind == 1) byte(0x38);
        if (kind == 2) byte(0x3a);
      }
      uint64_t opcode = Below(256);
      if (opcode == 0xf4 && kind >= 6 && Below(8)) opcode = 0x90;  // seldom HLT
      byte(opcode);
    }
    byte(Below(2) ? Below(256) : 0xc0 | Below(64));
    const uint64_t tail = Below(3);
    if (tail == 0) return;
    const uint64_t value = Below(3) ? Value() : Below(256);
    for (unsigned i = 0; i < (tail == 1 ? 1 : 4); ++i) byte(value >> 8 * i);
  }

  std::vector<uint8_t> Stream(size_t bytes) {
    std::vector<uint8_t> code;
    while (code.size() < bytes) {
      if (Below(64) == 0)
        for (int i = 0; i < 16; ++i) code.push_back(static_cast<uint8_t>(random_()));
      else
        Append(code);
    }
    code.resize(bytes);
    return code;
  }

  x86::CpuState State(Mode mode) {
    x86::CpuState state = StartState(mode);
    for (uint64_t& gpr : state.gpr) gpr = Value();
    if (Below(2)) state.gpr[x86::kRsp] = (mode == Mode::kReal ? 0x7000 : kStack) + Below(64);
    if (Below(4) == 0) state.gpr[x86::kRcx] = Below(40);
    state.rflags =
        (random_() & (x86::rflags::kArithmetic | x86::rflags::kDf | x86::rflags::kAc | x86::rflags::kIf)) | 2;
    if (mode == Mode::kUser64 || mode == Mode::kKernel64) {
      state.segment[x86::kFs].base = Value();
      state.segment[x86::kGs].base = Value();
      if (Below(2)) state.cr4 |= x86::cr4::kFsGsBase;
    } else if (mode != Mode::kReal && Below(2)) {
      x86::Segment& segment = state.segment[Below(x86::kSegmentCount)];
      if (&segment != &state.segment[x86::kCs]) {
        segment.base = static_cast<uint32_t>(Value());
        if (Below(2)) segment.limit = static_cast<uint32_t>(Value());
      }
    }
    if (Below(4) == 0) state.cr4 |= x86::cr4::kSmap;
    if (Below(8) == 0) state.cr0 &= ~x86::cr0::kWp;
    if (Below(16) == 0) state.cr0 |= x86::cr0::kTs;
    if (Below(16) == 0) state.cr0 |= x86::cr0::kAm;
    state.msr.lstar = Value();
    state.msr.star = random_();
    state.msr.kernel_gs_base = Value();
    if (mode == Mode::kReal)
      state.rip = 0x8000;
    else
      state.rip = Below(4) ? kCode + Below(2 * kPageSize) : kCode + kPageSize - Below(16);
    return state;
  }

 private:
  difftest::Random random_;
};

/// Page table entries of the first 2 MiB that point anywhere.
void DisturbTables(Machine& machine, StreamMaker& maker) {
  for (unsigned i = 0; i < 64; ++i) {
    const uint64_t entry = (maker.Below(kRam / kPageSize + 64) << 12) | maker.Below(0x200) | (maker.Below(4) ? 7 : 0);
    machine.Put64(kPageTable + 8 * maker.Below(512), entry);
  }
  if (maker.Below(4) == 0) machine.Put64(kPageTables + maker.Below(0x9000) / 8 * 8, maker.Next());
}

struct Target {
  const char* name;
  bool jit;
  Mode mode;
  JitStress stress = {};
};

class RandomCode : public testing::TestWithParam<Target> {};

TEST_P(RandomCode, ComesBack) {
  const bool jit = GetParam().jit;
  const uint64_t first_seed = FuzzSeed(1);
  Machine machine(
      jit ? std::move(*CreateJitEngine({.code_cache_bytes = 4 * kMiB, .debug = {.stress = GetParam().stress}}))
          : interp::CreateInterpEngine());
  Stopper stopper(machine.vcpu());
  StreamMaker maker;
  for (FuzzRun streams(300); streams.Next();) {
    const uint64_t seed = first_seed * 1000003 + streams.index();
    stopper.Begin(seed);
    maker.Seed(seed);
    if (streams.index() % 64 == 0) machine.Reset(seed);
    const uint64_t at = GetParam().mode == Mode::kReal ? 0x8000 : kCode;
    machine.Put(at, maker.Stream(4 * kPageSize));
    if (maker.Below(2)) machine.Put(kHandlers, maker.Stream(0x400));
    if (maker.Below(4) == 0) DisturbTables(machine, maker);
    x86::CpuState state = maker.State(GetParam().mode);
    // Each stream from several places: it has changed itself and its tables in the meantime.
    for (unsigned run = 0; run < 24; ++run) {
      machine.vcpu().Import(state);
      const ExitReason reason = machine.vcpu().Run();
      ASSERT_NE(reason, ExitReason::kError) << "seed " << seed << ": " << machine.vcpu().error();
      if (jit) {
        ASSERT_EQ(machine.Statistic(kWildAccesses), 0u) << "seed " << seed;
      }
      x86::CpuState ended;
      machine.vcpu().Export(ended);
      if (maker.Below(2)) {
        state = maker.State(GetParam().mode);
      } else if (!ended.halted && reason != ExitReason::kShutdown) {
        state = ended;
        state.rip += maker.Below(4);
      } else {
        state.rip += 1 + maker.Below(8);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Engines, RandomCode,
    testing::Values(Target{"jit_kernel64", true, Mode::kKernel64}, Target{"jit_user64", true, Mode::kUser64},
                    Target{"jit_kernel32", true, Mode::kKernel32}, Target{"jit_user32", true, Mode::kUser32},
                    Target{"jit_compact_kernel64", true, Mode::kKernel64, {.compact = true, .sample = 50}},
                    Target{"jit_compact_user64", true, Mode::kUser64, {.compact = true, .sample = 50}},
                    Target{"jit_compact_kernel32", true, Mode::kKernel32, {.compact = true, .sample = 50}},
                    Target{"jit_real", true, Mode::kReal}, Target{"interp_kernel64", false, Mode::kKernel64},
                    Target{"interp_user64", false, Mode::kUser64}, Target{"interp_kernel32", false, Mode::kKernel32},
                    Target{"interp_user32", false, Mode::kUser32}, Target{"interp_real", false, Mode::kReal}),
    [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace nacre::engine::jit::hostile
