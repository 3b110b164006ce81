#pragma once
// Runs one vector or x87 instruction of the guest on the host CPU. The instruction is rewritten so that its memory
// operand is [RDI], a bounce buffer, and its general register operand RAX; its vector registers keep their numbers.
// What results (the canonical bytes) is cached as a snippet of generated code. Used by VectorUnit only; one thread.

#include <array>
#include <cstdint>
#include <unordered_map>

#include "codegen/code_buffer.h"
#include "engine/host_faults.h"
#include "x86/cpu_state.h"
#include "x86/instruction.h"

namespace nacre::engine::interp {

/// What NacreThunk... (thunk_enter.S) takes and leaves; offsets in thunk_abi.h.
struct alignas(64) ThunkContext {
  uint8_t* xsave = nullptr;  ///< the guest's XsaveArea
  uint64_t rax = 0, rcx = 0, rdx = 0;
  uint8_t* bounce = nullptr;
  uint64_t flags = 0;                    ///< in: for x87 only; out: always
  int fault_signal = 0;                  ///< set by the signal handler
  alignas(64) uint8_t fx[512] = {};      ///< the FXSAVE image after an x87 instruction
  alignas(64) uint8_t memory[512] = {};  ///< the bounce buffer
};

/// An instruction's bytes after rewriting.
struct CanonicalBytes {
  std::array<uint8_t, 15> bytes = {};
  uint8_t length = 0;
  bool operator==(const CanonicalBytes&) const = default;
};

/// How a general register operand is encoded, so that it can be renamed to RAX.
enum class GprPlace : uint8_t { kNone, kReg, kRm };

/// For legacy, VEX and EVEX encodings, not for VSIB.
CanonicalBytes Canonicalize(const x86::Instruction& instruction, GprPlace gpr);

class ThunkRunner : private HostFaultHandler {
 public:
  static constexpr size_t kSlotBytes = 32;
  static constexpr size_t kSlots = 8192;

  /// The host must allow executable memory files: a precondition of every software engine, checked before by its maker.
  ThunkRunner();
  ~ThunkRunner() override = default;
  ThunkRunner(const ThunkRunner&) = delete;
  ThunkRunner& operator=(const ThunkRunner&) = delete;

  /// The code of the instruction; valid until generation() changes, which only this function does.
  const uint8_t* Snippet(const CanonicalBytes& canonical);
  uint64_t generation() const { return generation_; }

  ThunkContext& context() { return context_; }
  /// Runs a snippet on the vector registers of `area`; with `avx512`, on all that AVX-512 has (the host must have it),
  /// else on YMM0 to YMM15. False: the host raised SIGFPE or SIGILL (context().fault_signal), registers are unchanged
  /// but for MXCSR's flags.
  bool RunVector(x86::XsaveArea& area, const uint8_t* snippet, bool avx512);
  /// Runs a snippet on the x87 and XMM state of `area`, which stays as it is: the outcome is in context().fx, with the
  /// error pointers cleared.
  bool RunX87(x86::XsaveArea& area, const uint8_t* snippet);

 private:
  struct Hash {
    size_t operator()(const CanonicalBytes& key) const;
  };
  bool OnHostFault(int signal, const siginfo_t& info, ucontext_t& context) override;

  ThunkContext context_;
  codegen::CodeBuffer buffer_;
  HostFaultRange range_;
  std::unordered_map<CanonicalBytes, uint32_t, Hash> slots_;
  uint32_t next_slot_ = 0;
  uint64_t generation_ = 1;
  bool host_avx_ = false;
};

}  // namespace nacre::engine::interp
