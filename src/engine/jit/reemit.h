#pragma once
// Re-emission: a guest instruction as the same host instruction, its registers renamed and its memory operand replaced.
// Which instructions may be run that way is decided by a list of opcodes, not by exclusion: the guest is hostile. Any
// thread.

#include <cstdint>

#include "engine/jit/assembler.h"
#include "x86/instruction.h"

namespace nacre::engine::jit {

/// Whether the instruction does the same on the bare host in user mode as the manual says of the guest, once its memory
/// operand points to checked memory. Branches, stack and system instructions are not among them.
bool CanReEmit(const x86::Instruction& instruction);

/// EVEX and opmask instructions: those that exist only where XCR0 enables AVX-512.
bool UsesAvx512(const x86::Instruction& instruction);

/// The mask that selects which elements of an instruction's operand in memory are accessed (EVEX, VMASKMOV, VPMASKMOV).
struct ElementMask {
  static constexpr uint8_t kDwords = 0x10, kQwords = 0x20;
  uint8_t which = 0;  ///< 1 to 7: k1 to k7; kDwords or kQwords + n: sign bits of the elements of YMMn; 0: no mask
  uint8_t bits = 0;   ///< how many elements there are
};
ElementMask MemoryMask(const x86::Instruction& instruction);

/// Moves YMMn, or with `evex` ZMM0 to ZMM31, to or from [GS:displacement]; `bytes`: 16, 32 or 64.
uint8_t* EmitVectorMove(uint8_t* at, unsigned reg, unsigned bytes, bool evex, bool store, int32_t displacement);
/// Moves a whole opmask register to or from [GS:displacement].
uint8_t* EmitOpmaskMove(uint8_t* at, unsigned reg, bool store, int32_t displacement);

/// Whether it does nothing that a guest could see (NOPs, prefetches, PAUSE).
bool IsNop(const x86::Instruction& instruction);

struct RegisterMap {
  uint8_t host[16];
};

/// Writes the instruction at `at` and returns the end (at most 20 bytes). `memory`: its memory operand on the host,
/// with a base register; null when it has none.
uint8_t* ReEmit(uint8_t* at, const x86::Instruction& instruction, const RegisterMap& map, const Mem* memory);

}  // namespace nacre::engine::jit
