#pragma once
// Bytes to x86::Instruction, by Zydis; a fast path in front of it (x86/fast_decoder.h) answers for the common encodings
// with the same result. Called once per instruction by the engines, which cache the result. Any thread.
// The decoder decides only what bytes mean; which instructions the CPU model has is asked of CpuModel.

#include <cstdint>
#include <span>

#include "x86/instruction.h"

namespace nacre::x86 {

enum class DecodeStatus : uint8_t {
  kOk,
  kInvalid,   ///< #UD
  kTooLong,   ///< over 15 bytes: #GP(0)
  kTruncated  ///< more bytes are needed than given: fetch on (and fault there) or it is an error
};

/// Decodes the instruction at the start of `bytes` (up to 15 are looked at). Fills `out` on kOk only.
DecodeStatus Decode(std::span<const uint8_t> bytes, CodeSize code_size, Instruction& out);

/// The same without the fast path: the one source of what instructions mean.
DecodeStatus DecodeByZydis(std::span<const uint8_t> bytes, CodeSize code_size, Instruction& out);

/// "ADD", "VPADDD", ...: static text.
const char* MnemonicName(uint16_t mnemonic);

/// Intel-syntax text of one instruction at `address`, for logs and dumps (up to 127 characters).
void Format(const Instruction& instruction, uint64_t address, char (&text)[128]);

}  // namespace nacre::x86
