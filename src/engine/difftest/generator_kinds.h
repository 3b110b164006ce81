#pragma once
// What the parts of the case generator ask of an instruction. Inside of difftest.

#include "engine/difftest/generator.h"
#include "engine/difftest/layout.h"
#include "x86/instruction.h"

namespace nacre::engine::difftest {

inline constexpr uint64_t kDataEnd = NACRE_DIFF_DATA + NACRE_DIFF_DATA_BYTES;
inline constexpr uint64_t kDataMiddle = NACRE_DIFF_DATA + NACRE_DIFF_DATA_BYTES / 2;

bool IsString(const x86::Instruction& insn);
bool IsXrstor(const x86::Instruction& insn);
bool IsFxrstor(const x86::Instruction& insn);
bool IsBigState(const x86::Instruction& insn);
bool IsBitTest(const x86::Instruction& insn);
/// Atomic accesses stay within a cache line: some kernels punish split locks.
bool IsLocked(const x86::Instruction& insn);
bool IsX87State(const x86::Instruction& insn);
/// Outside 64-bit code VEX.W means nothing to these for Intel, but something or #UD for AMD.
bool WidthDisputed(const x86::Instruction& insn);
/// Intel requires their operand to be aligned, AMD does not.
bool IsSha(const x86::Instruction& insn);
bool TouchesNothing(const x86::Instruction& insn);
unsigned OperandBytes(const x86::Instruction& insn);

}  // namespace nacre::engine::difftest
