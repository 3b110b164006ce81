#pragma once
// Translates bytes without a machine around them, to look at the result. For nacre-translate and the tests of generated
// code. One thread.

#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "engine/jit/block_listing.h"
#include "x86/cpu_model.h"

namespace nacre::engine::jit {

class ScratchTranslator {
 public:
  /// `cpu_model` as CpuModel::Create has it.
  static Result<std::unique_ptr<ScratchTranslator>> Create(std::string_view cpu_model);

  /// The block at `rip`, in a page that holds `code` there and HLT everywhere else, and so does the page after it,
  /// which is mapped. `flags`: BlockFlags.
  Result<BlockListing> Translate(std::span<const uint8_t> code, uint64_t rip, uint32_t flags);

 private:
  explicit ScratchTranslator(x86::CpuModel model) : model_(std::move(model)) {}

  static constexpr uint64_t kPages = 2, kBufferBytes = 4 * kMiB;
  x86::CpuModel model_;
  codegen::CodeBuffer buffer_;
  Stubs stubs_;
  uint8_t* code_start_ = nullptr;
  std::vector<uint8_t> pages_;
};

}  // namespace nacre::engine::jit
