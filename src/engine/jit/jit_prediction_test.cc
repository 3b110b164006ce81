// Predicted TLB entries (prediction.h): that they are used, corrected and given up. What hostile guests can do with
// them is in jit_hostile_test.cc.

#include <gtest/gtest.h>

#include "engine/jit/hostile_testing.h"
#include "engine/jit/jit_engine.h"
#include "engine/jit/prediction.h"

// RDI rounds: RAX += the word at RBX + 8 * (a number made from RCX & RSI); RCX += 1. Ends with HLT.
asm(R"(
    .pushsection .rodata
    .intel_syntax noprefix
    .globl nacre_prediction_rounds
nacre_prediction_rounds:
    imul rdx, rcx, 0x5e3779b1
    shr rdx, 7
    and rdx, rsi
    add rax, [rbx+rdx*8]
    inc rcx
    dec rdi
    jnz nacre_prediction_rounds
    hlt
    .globl nacre_prediction_rounds_end
nacre_prediction_rounds_end:
    .att_syntax
    .popsection
)");
extern "C" const uint8_t nacre_prediction_rounds[], nacre_prediction_rounds_end[];

namespace nacre::engine::jit::hostile {
namespace {

constexpr uint64_t kTable = 0x182000;

class Rounds {
 public:
  Rounds() : machine_(std::move(*CreateJitEngine({.code_cache_bytes = 4 * kMiB}))) {
    machine_.Reset(1);
    for (const uint64_t at : {kCode, kCode + kPageSize})
      machine_.Put(at, {nacre_prediction_rounds, nacre_prediction_rounds_end});
  }

  /// Looks words up in the `bytes` bytes, a power of two, from `table` on; whether the sum is right.
  bool Run(uint64_t table, uint64_t bytes, unsigned rounds, Mode mode = Mode::kKernel64, uint64_t code = kCode) {
    const uint64_t mask = bytes / 8 - 1;
    uint64_t sum = 0;
    for (uint64_t i = 0; i < rounds; ++i) {
      uint64_t word = 0;
      machine_.memory().ReadValue(GuestPhys(table + 8 * (i * 0x5e3779b1 >> 7 & mask)), word);
      sum += word;
    }
    x86::CpuState state = StartState(mode);
    state.rip = code;
    state.gpr[x86::kRax] = state.gpr[x86::kRcx] = 0;
    state.gpr[x86::kRbx] = table;
    state.gpr[x86::kRsi] = mask;
    state.gpr[x86::kRdi] = rounds;
    machine_.vcpu().Import(state);
    machine_.vcpu().Run();
    machine_.vcpu().Export(state);
    EXPECT_EQ(machine_.Statistic(kWildAccesses), 0u);
    return state.gpr[x86::kRax] == sum && state.gpr[x86::kRcx] == rounds;
  }
  uint64_t failures() const { return machine_.Statistic("TLB entries predicted wrongly"); }
  uint64_t given_up() const { return machine_.Statistic("predictions given up"); }
  uint64_t host_faults() const { return machine_.Statistic("host faults"); }

 private:
  Machine machine_;
};

TEST(JitPrediction, ATableOfOnePageFailsNeverAgain) {
  Rounds rounds;
  EXPECT_TRUE(rounds.Run(kTable, kPageSize, 100000));
  EXPECT_LE(rounds.failures(), 1u);
  EXPECT_TRUE(rounds.Run(kTable + 2 * kPageSize, kPageSize, 100000));
  EXPECT_LE(rounds.failures(), 2u);
  EXPECT_TRUE(rounds.Run(kTable, kPageSize, 100000));
  EXPECT_LE(rounds.failures(), 3u);
  EXPECT_EQ(rounds.given_up(), 0u);
}

TEST(JitPrediction, ATableOfManyPagesIsGivenUp) {
  Rounds rounds;
  EXPECT_TRUE(rounds.Run(kTable, 16 * kPageSize, 100000));
  EXPECT_EQ(rounds.given_up(), 1u);
  EXPECT_GE(rounds.failures(), Site::kMostWrong);
  EXPECT_LT(rounds.failures(), 10000u);  // more than the limit where the host takes the CPU away meanwhile
}

// The entry that is predicted from a larger TLB holds nothing in a smaller one, even for page 0.
TEST(JitPrediction, AnEntryThatOnlyAnotherTlbHasMatchesNothing) {
  Rounds rounds;
  EXPECT_TRUE(rounds.Run(8 * kMiB, 8 * kMiB, 100000));  // the TLB grows
  EXPECT_EQ(rounds.given_up(), 1u);
  constexpr uint64_t kCopy = kCode + kPageSize;  // the same predictions
  EXPECT_TRUE(rounds.Run(0xff0000, kPageSize, 1000, Mode::kKernel64, kCopy));
  EXPECT_TRUE(rounds.Run(0, kPageSize, 1000, Mode::kUser64, kCopy));
  EXPECT_EQ(rounds.host_faults(), 0u);
  EXPECT_EQ(rounds.given_up(), 1u);
}

TEST(PredictionFailures, OnlyHasteCounts) {
  PredictionFailures failures;
  Site rare, frequent, seldom;
  uint64_t now = 1'000'000'000;
  for (unsigned i = 0; i < 1000; ++i) EXPECT_FALSE(failures.Note(rare, now += 100'000));
  unsigned given_up_at = 0;
  for (unsigned i = 1; i <= 100 && given_up_at == 0; ++i)
    if (failures.Note(frequent, now += 1000)) given_up_at = i;
  EXPECT_EQ(given_up_at, Site::kMostWrong);
  for (unsigned i = 0; i < 1000; ++i) {  // in company, but rare itself
    Site other;
    failures.Note(other, now += 10'000'000);
    EXPECT_FALSE(failures.Note(seldom, now += 100));
  }
}

}  // namespace
}  // namespace nacre::engine::jit::hostile
