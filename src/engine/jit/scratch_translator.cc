#include "engine/jit/scratch_translator.h"

#include <algorithm>

namespace nacre::engine::jit {

Result<std::unique_ptr<ScratchTranslator>> ScratchTranslator::Create(std::string_view cpu_model) {
  x86::CpuModel model = NACRE_TRY(x86::CpuModel::Create(cpu_model, {}));
  std::unique_ptr<ScratchTranslator> scratch(new ScratchTranslator(std::move(model)));
  scratch->buffer_ = NACRE_TRY(codegen::CodeBuffer::Create(kBufferBytes));
  scratch->code_start_ = EmitStubs(scratch->buffer_.write_base(),
                                   scratch->buffer_.exec_base() - scratch->buffer_.write_base(), scratch->stubs_);
  return scratch;
}

Result<BlockListing> ScratchTranslator::Translate(std::span<const uint8_t> code, uint64_t rip, uint32_t flags) {
  constexpr uint8_t kHlt = 0xf4;
  const uint64_t offset = rip & kPageMask;
  pages_.assign(kPages * kPageSize, kHlt);
  if (code.size() > pages_.size() - offset)
    return Fail("{} bytes of code: at {:#x} there is room for {}", code.size(), rip, pages_.size() - offset);
  std::ranges::copy(code, pages_.begin() + static_cast<ptrdiff_t>(offset));
  BlockStore store(kPages, buffer_.write_base(), static_cast<uint32_t>(code_start_ - buffer_.write_base()),
                   static_cast<uint32_t>(buffer_.size_bytes()), kBufferBytes);
  Translator translator(model_, buffer_, store, stubs_);
  // 16-bit code: the segment of selector 0.
  const bool narrow = (flags & kFlagCode16) != 0;
  const TranslateRequest request{.rip = narrow ? uint64_t{1} << kCodeSegmentShift | rip : rip,
                                 .segment = {.limit = narrow ? 0xffff : 0xffffffff},
                                 .phys = offset,
                                 .page = pages_.data(),
                                 .page_index = 0,
                                 .flags = flags,
                                 .next_page_asked = true,
                                 .next_page = pages_.data() + kPageSize,
                                 .next_phys_page = 1,
                                 .next_page_index = 1,
                                 .next_page_id = 1};
  const uint32_t block = translator.Translate(request);
  if (block == kNone) return Fail("the translation of {} bytes does not fit", code.size());
  return ListBlock({store, stubs_, buffer_}, request, block, store.block(block).hot_size);
}

}  // namespace nacre::engine::jit
