#pragma once
// What the parts of the differential test hand to each other: instruction forms, cases (one instruction with everything
// it works on) and outcomes. Compiled into the tests only. One thread.

#include <cstdint>
#include <string>
#include <vector>

#include "engine/difftest/layout.h"
#include "x86/cpu_model.h"
#include "x86/cpu_state.h"
#include "x86/instruction.h"

namespace nacre::engine::difftest {

/// A distinct way to encode an instruction: mnemonic, opcode, operand kinds and sizes.
struct Form {
  x86::Instruction insn;         ///< a representative
  std::string key;               ///< what makes it distinct
  std::string name;              ///< for people
  const char* reason = nullptr;  ///< why it is not tested; nullptr: it is
};

struct TestCase {
  x86::Instruction insn;
  x86::CpuState state;  ///< registers before; rip is the instruction's address
  alignas(64) uint8_t data[NACRE_DIFF_DATA_BYTES] = {};
};

/// What one side made of a case.
struct Outcome {
  int vector = -1;  ///< of the exception, -1 without
  uint32_t error_code = 0;
  uint64_t cr2 = 0;
  uint64_t gpr[16] = {};
  uint64_t rip = 0;
  uint64_t rflags = 0;
  uint64_t gs_base = 0;
  uint16_t es = 0, cs = 0, ss = 0, ds = 0;
  x86::XsaveArea xsave;
  alignas(64) uint8_t data[NACRE_DIFF_DATA_BYTES] = {};
};

/// The key of Form: equal keys, same form.
std::string FormKey(const x86::Instruction& insn);

/// Every form that decodes in `size` code, whether the model has it or not (those get a reason).
std::vector<Form> EnumerateForms(const x86::CpuModel& model, x86::CodeSize size);

/// Arithmetic flags that the manual leaves undefined for this instruction with these register values.
uint64_t UndefinedFlags(const x86::Instruction& insn, const x86::CpuState& before);

struct Tolerance {
  /// At a fault, flags that the instruction would have overwritten may have been lost: who runs it again cannot tell.
  bool fault_flags = false;
};

/// Differences of `got` from `expected`, one per line; empty: none. What the manual leaves open is not compared.
std::string Differences(const TestCase& test, const Outcome& expected, const Outcome& got, const Tolerance& tolerance);

/// Everything needed to look into a case by hand.
std::string Describe(const TestCase& test);

}  // namespace nacre::engine::difftest
