#pragma once
// The common encodings of 64-bit and 32-bit code decoded without Zydis: prefixes, REX or VEX, ModRM, SIB, displacement
// and immediate (SDM 2A chapter 2) are parsed here; all that follows from the opcode is a copy of a template. Templates
// come from DecodeByZydis, which is asked about an example when an encoding is first met, so meaning has one source.
// Called by x86::Decode. Any thread. The memory for templates is fixed; when it is full, Zydis answers.

#include <cstdint>
#include <span>

#include "x86/instruction.h"

namespace nacre::x86 {

/// Decodes the instruction at the start of `bytes`, which may be those in `out`. False, with `out` untouched: this is
/// for DecodeByZydis (16-bit code, rare or invalid encodings, too few bytes).
bool FastDecode(std::span<const uint8_t> bytes, CodeSize code_size, Instruction& out);

/// How many encodings have a template (programs meet about 1000); it never exceeds kMaxFastTemplates, which is room for
/// all.
unsigned FastTemplateCount();
inline constexpr unsigned kMaxFastTemplates = 20000;

}  // namespace nacre::x86
