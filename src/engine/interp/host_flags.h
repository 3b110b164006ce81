#pragma once
// The guest's arithmetic flags in the host's EFLAGS around one host instruction: results and flags, undefined ones
// included, are then the host CPU's own. By LAHF/SAHF for SF ZF AF PF CF, and SETO / an overflowing add for OF. No
// stack is touched (red zone). Any thread.

#include <cstdint>

#include "x86/cpu_state.h"

namespace nacre::engine::interp {

/// AH: SF ZF AF PF CF as LAHF; AL: OF.
inline uint32_t PackFlags(uint64_t rflags) {
  return static_cast<uint32_t>(((rflags & 0xff) << 8) | ((rflags >> 11) & 1));
}
inline void UnpackFlags(uint64_t& rflags, uint32_t ax) {
  rflags = (rflags & ~x86::rflags::kArithmetic) | ((ax >> 8) & 0xd5) | (static_cast<uint64_t>(ax & 1) << 11);
}

#define INTERP_FLAGS_IN "addb $0x7f, %%al\n\tsahf\n\t"
#define INTERP_FLAGS_OUT "\n\tlahf\n\tseto %%al"

/// NAME(rflags, a, b): a = a INSN b.
#define INTERP_BINARY(NAME, INSN)                                                                           \
  template <typename T>                                                                                     \
  inline void NAME(uint64_t& rflags, T& a, T b) {                                                           \
    uint32_t ax = PackFlags(rflags);                                                                        \
    asm(INTERP_FLAGS_IN INSN " %[b], %[a]" INTERP_FLAGS_OUT : "+&a"(ax), [a] "+&q"(a) : [b] "q"(b) : "cc"); \
    UnpackFlags(rflags, ax);                                                                                \
  }
/// NAME(rflags, a): a = INSN a.
#define INTERP_UNARY(NAME, INSN)                                                           \
  template <typename T>                                                                    \
  inline void NAME(uint64_t& rflags, T& a) {                                               \
    uint32_t ax = PackFlags(rflags);                                                       \
    asm(INTERP_FLAGS_IN INSN " %[a]" INTERP_FLAGS_OUT : "+&a"(ax), [a] "+&q"(a) : : "cc"); \
    UnpackFlags(rflags, ax);                                                               \
  }
/// NAME(rflags, a, count): a = a INSN CL.
#define INTERP_SHIFT(NAME, INSN)                                                                            \
  template <typename T>                                                                                     \
  inline void NAME(uint64_t& rflags, T& a, uint8_t count) {                                                 \
    uint32_t ax = PackFlags(rflags);                                                                        \
    asm(INTERP_FLAGS_IN INSN " %%cl, %[a]" INTERP_FLAGS_OUT : "+&a"(ax), [a] "+&q"(a) : "c"(count) : "cc"); \
    UnpackFlags(rflags, ax);                                                                                \
  }
/// NAME(rflags, a, b): a = INSN b, with a as it was where the instruction leaves it.
#define INTERP_FROM_SOURCE(NAME, INSN) INTERP_BINARY(NAME, INSN)

}  // namespace nacre::engine::interp
