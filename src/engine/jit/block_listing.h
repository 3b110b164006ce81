#pragma once
// One translation as text: guest instructions, the host code of each, the cold part, with names for the context's
// slots, stubs, links and sites. For --dump-block, nacre-translate and the tests of generated code. Any thread, while
// nothing else writes the code.

#include <cstdint>
#include <string>
#include <vector>

#include "codegen/code_buffer.h"
#include "engine/jit/block.h"
#include "engine/jit/stubs.h"
#include "engine/jit/translator.h"

namespace nacre::engine::jit {

/// Where translations live.
struct TranslationView {
  BlockStore& store;
  const Stubs& stubs;
  const codegen::CodeBuffer& buffer;
};

struct HostLine {
  uint32_t offset = 0;  ///< from the start of the block
  uint8_t length = 0;
  std::string label;  ///< "L2" where the block jumps to it
  std::string text;
};

struct GuestLine {
  uint64_t rip = 0;
  std::string text;
  std::vector<HostLine> host;
};

struct BlockListing {
  uint64_t rip = 0, phys = 0;
  uint32_t flags = 0;
  uint32_t guest_bytes = 0, host_bytes = 0;
  std::vector<HostLine> entry = {};   ///< where indirect branches come in
  unsigned hot_count = 0;             ///< host instructions without the entry and the cold part
  std::vector<GuestLine> guest = {};  ///< one more than the block has when it is empty: what is left to the interpreter
  std::vector<HostLine> cold = {};
};

/// `request`: what the block was translated from; its pages are read. `hot_bytes`: host code before the cold part.
BlockListing ListBlock(const TranslationView& view, const TranslateRequest& request, uint32_t block,
                       uint32_t hot_bytes);

/// Guest code on the left, host code on the right, a line each.
std::string SideBySide(const BlockListing& listing);
/// Without addresses of the host: guest instructions, host instructions indented below them.
std::string Interleaved(const BlockListing& listing);

/// "kernel code64 flat ..." and back; kNone: a word is not known.
std::string FlagWords(uint32_t flags);
uint32_t ParseFlagWords(const std::string& words);

/// Name of the slot at an offset of JitContext, for example "user.tlb.read_tag".
std::string ContextSlotName(uint64_t offset);

}  // namespace nacre::engine::jit
