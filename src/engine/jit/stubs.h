#pragma once
// The fixed pieces of generated code that every block leans on: the way in, the ways out, the TLB miss path. Emitted
// once at the start of the code buffer. While translated code runs, guest registers live in the host registers of the
// same name, except: guest RSP in host R15; guest R10, R11, R15 in the context; host R10, R11 are scratch; host RSP is
// the return stack's (return_stacks.h).

#include <cstdint>

#include "engine/jit/assembler.h"
#include "engine/jit/context.h"

namespace nacre::engine::jit {

inline constexpr uint8_t kScratch1 = kHostR10;  ///< TLB index, then host less linear address
inline constexpr uint8_t kScratch2 = kHostR11;  ///< linear address, offset in the page, then free

inline constexpr bool IsHomed(unsigned gpr) { return gpr == x86::kR10 || gpr == x86::kR11 || gpr == x86::kR15; }
/// Host register of a guest register that is not homed.
inline constexpr uint8_t HostOf(unsigned gpr) { return gpr == x86::kRsp ? kHostR15 : static_cast<uint8_t>(gpr); }
inline Mem GprSlot(unsigned gpr) {
  return Context(offsetof(JitContext, state) + offsetof(x86::CpuState, gpr) + 8 * gpr);
}

/// All in the writable view's numbering except `enter` and `miss_target`, which C++ and guest-visible tables use.
struct Stubs {
  void (*enter)(const uint8_t* code) = nullptr;
  const uint8_t* exit_link = nullptr;
  const uint8_t* exit_poll = nullptr;
  const uint8_t* exit_interpret = nullptr;
  // The same and `slow_address`, with RCX in JitContext::saved_rcx.
  const uint8_t* exit_poll_rcx = nullptr;
  const uint8_t* exit_interpret_rcx = nullptr;
  const uint8_t* slow_address_rcx = nullptr;
  const uint8_t* exit_lookup = nullptr;    ///< R10 = RIP
  const uint8_t* lookup[kContexts] = {};   ///< R10 = RIP: through the jump cache
  const uint8_t* slow[kContexts][2] = {};  ///< [context][write]: R11 = offset as the check left it, R10 = index
  const uint8_t* slow_address = nullptr;   ///< the same with R11 = linear address
  // Checks out of line, called with R11 = linear address: R10 becomes what has to be added to it. They keep the flags
  // and R11, or neither.
  static constexpr unsigned kCheckSizes = 7;                ///< 1 to 64 bytes
  const uint8_t* check[kContexts][2][kCheckSizes][2] = {};  ///< [context][write][log2 of size][keeps]
  const uint8_t* string = nullptr;                          ///< exit_id: a site with a string instruction
  const uint8_t* miss_target = nullptr;  ///< exit_lookup in the executable view: what empty jump cache entries hold
  const uint8_t* return_empty[kContexts] = {};  ///< executable view: what the return stack of a context is empty by
  const uint8_t* fault_exit = nullptr;  ///< executable view: where a host fault handler resumes; state.rip is set
};

/// What a check out of line tells JitVcpu::SlowCheck in JitContext::exit_id.
struct CheckCode {
  unsigned context = 0;
  bool write = false;
  unsigned log2_size = 0;
  bool keeps = false;
  bool sample = false;  ///< not a miss: JitContext::sample_countdown has run out

  constexpr uint32_t Pack() const {
    return context | (write ? 4u : 0u) | log2_size << 3 | (keeps ? 64u : 0u) | (sample ? 128u : 0u);
  }
  static constexpr CheckCode Unpack(uint32_t code) {
    return {.context = code & 3,
            .write = (code & 4) != 0,
            .log2_size = code >> 3 & 7,
            .keeps = (code & 64) != 0,
            .sample = (code & 128) != 0};
  }
};

/// R11 = address, R10 = its index in a TLB whose tags are at `tag` of the context: the displacement of a jump that is
/// taken unless `size` bytes there hit. Keeps the flags and R11, with RCX in JitContext::saved_rcx where the jump
/// leads; or neither.
uint8_t* EmitTagCheck(Assembler& code, size_t tag, unsigned size, bool keeps);

/// R10 = RIP: a jump or call to what the jump cache has for it. Keeps the flags.
void EmitLookup(Assembler& code, unsigned context, bool call = false);

/// Emits them at `at` (writable view); returns the end. `to_exec`: executable minus writable address.
uint8_t* EmitStubs(uint8_t* at, int64_t to_exec, Stubs& stubs);

}  // namespace nacre::engine::jit
