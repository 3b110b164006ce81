#pragma once
// What looks at each new translation when a person asked for it (JitDebugOptions). Costs nothing otherwise: there is no
// such object then. One thread.

#include <cstdio>
#include <memory>

#include "base/result.h"
#include "engine/jit/block_listing.h"
#include "engine/jit/debug_options.h"
#include "engine/jit/perf_map.h"

namespace nacre::engine::jit {

class TranslationTools {
 public:
  /// Null when the options ask for nothing.
  /// `stub_bytes`: of fixed code at the start of the buffer.
  static Result<std::unique_ptr<TranslationTools>> Create(const JitDebugOptions& options, unsigned vcpu_index,
                                                          const codegen::CodeBuffer& buffer, uint32_t stub_bytes);
  ~TranslationTools();

  /// After each translation; `hot_bytes` as for ListBlock.
  void OnTranslated(const TranslationView& view, const TranslateRequest& request, uint32_t block, uint32_t hot_bytes);

 private:
  explicit TranslationTools(const JitDebugOptions& options) : options_(options) {}

  JitDebugOptions options_;
  std::FILE* dump_ = nullptr;  ///< owned unless it is stderr; null: nothing is listed
  std::unique_ptr<PerfMap> perf_map_;
};

}  // namespace nacre::engine::jit
