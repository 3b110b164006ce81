#include "engine/jit/translation_tools.h"

#include <algorithm>

namespace nacre::engine::jit {

Result<std::unique_ptr<TranslationTools>> TranslationTools::Create(const JitDebugOptions& options, unsigned vcpu_index,
                                                                   const codegen::CodeBuffer& buffer,
                                                                   uint32_t stub_bytes) {
  std::unique_ptr<TranslationTools> tools;
  if (!options.dump() && !options.perf_map) return tools;
  tools.reset(new TranslationTools(options));
  if (options.perf_map) {
    tools->perf_map_ = NACRE_TRY(PerfMap::Create(options.symbols_file, vcpu_index == 0));
    tools->perf_map_->AddStubs(buffer, stub_bytes);
  }
  if (!options.dump()) return tools;
  // Appended to: several CPUs write one file.
  tools->dump_ = options.dump_file.empty() ? stderr : std::fopen(options.dump_file.c_str(), "ae");
  if (!tools->dump_) return FailErrno("dump of translations to {}", options.dump_file);
  return tools;
}

TranslationTools::~TranslationTools() {
  if (dump_ && dump_ != stderr) std::fclose(dump_);
}

void TranslationTools::OnTranslated(const TranslationView& view, const TranslateRequest& request, uint32_t block,
                                    uint32_t hot_bytes) {
  if (perf_map_) perf_map_->AddBlock(view.buffer, view.store.block(block));
  if (!dump_) return;
  const BlockListing listing = ListBlock(view, request, block, hot_bytes);
  const auto inside = [&](uint64_t rip) { return rip - listing.rip < std::max(1u, listing.guest_bytes); };
  if (!options_.dump_all && std::ranges::none_of(options_.dump_rips, inside)) return;
  const std::string text = SideBySide(listing) + "\n";
  std::fwrite(text.data(), 1, text.size(), dump_);
  std::fflush(dump_);
}

}  // namespace nacre::engine::jit
