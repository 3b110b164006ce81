#pragma once
// Makes random cases of a form: encodings, registers, flags, memory and control words, with a liking for the values
// where things go wrong. Every memory operand of a case lies in the test's own pages or in addresses known to be
// unmapped, so that running it on the bare host is safe. The same seed gives the same case. One thread.

#include <array>
#include <bit>

#include "engine/difftest/guest.h"
#include "engine/difftest/test_case.h"

namespace nacre::engine::difftest {

/// xoshiro256**: small and fast; a case needs hundreds of numbers.
class Random {
 public:
  void Seed(uint64_t seed) {
    for (uint64_t& word : s_) {  // splitmix64
      uint64_t z = seed += 0x9e3779b97f4a7c15;
      z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
      z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
      word = z ^ (z >> 31);
    }
  }
  uint64_t operator()() {
    const uint64_t result = std::rotl(s_[1] * 5, 7) * 9;
    const uint64_t t = s_[1] << 17;
    s_[2] ^= s_[0];
    s_[3] ^= s_[1];
    s_[1] ^= s_[2];
    s_[0] ^= s_[3];
    s_[2] ^= t;
    s_[3] = std::rotl(s_[3], 45);
    return result;
  }

 private:
  std::array<uint64_t, 4> s_ = {1, 2, 3, 4};
};

class Generator {
 public:
  struct Options {
    bool gs = false;  ///< GS-relative operands
    bool avx = false;
    bool avx512 = false;
  };
  Generator(const Guest& guest, const Options& options);

  /// False where this seed makes no valid case of the form (rare).
  bool Make(const Form& form, uint64_t seed, TestCase& test);

 private:
  uint64_t Below(uint64_t n) { return random_() % n; }
  bool Chance(unsigned percent) { return Below(100) < percent; }
  uint64_t InterestingInteger();
  void InterestingBytes(uint8_t* to, size_t bytes);
  void InterestingFloat(uint8_t* to, unsigned width);
  void InterestingExtended(uint8_t* to);

  bool Encode(const Form& form, TestCase& test);
  void EncodeModrm(const x86::Instruction& model, uint8_t* bytes, unsigned& n);
  void FillRegisters(TestCase& test);
  void FillX87(TestCase& test);
  void FillVectors(TestCase& test);
  void EncodeEvex(const x86::Instruction& model, uint8_t* evex);
  void FillMxcsr(TestCase& test);
  void PlaceCode(TestCase& test);

  uint64_t PickAddress(const TestCase& test, unsigned size);
  bool PlaceOperand(TestCase& test, uint64_t target);
  bool PlaceImplicitMemory(TestCase& test);
  bool PlaceGather(TestCase& test);
  bool OperandSafe(const TestCase& test) const;
  void FillMemory(TestCase& test, uint64_t address);
  void ShapeMemory(TestCase& test, uint64_t address);
  void ShapeXrstor(TestCase& test, uint8_t* at);
  void ShapeRegisters(TestCase& test);
  bool ShapeBranch(TestCase& test);
  uint64_t BranchTarget(const TestCase& test);
  uint16_t Selector(bool code);
  bool ShapeFar(TestCase& test);
  void ShapeSelectors(TestCase& test);
  uint8_t* Data(TestCase& test, uint64_t address, unsigned size);

  const Guest& guest_;
  Options options_;
  Random random_;
  std::array<uint8_t, NACRE_DIFF_DATA_BYTES> base_data_;  ///< every case's memory before its own changes
};

/// The linear address of the case's memory operand (with the index register's element 0 for gathers: none).
uint64_t OperandAddress(const x86::Instruction& insn, const x86::CpuState& state);

}  // namespace nacre::engine::difftest
