#pragma once
// The TLB index of a check is PEXT of the address, and the check's addend waits for it. In look-ups in tables the
// address is what the code waits for; there the check tries the entry that served it last (JitContext::predicted),
// which takes address and index off the chain. The tags tell whether the entry is right: see NoTag. Used with guest
// vectors live.

#include <cstddef>
#include <cstdint>

#include "engine/jit/assembler.h"
#include "engine/jit/block.h"
#include "engine/jit/context.h"
#include "engine/jit/stubs.h"

namespace nacre::engine::jit {

/// Where the prediction of an instruction is. It stays when a block is used at another RIP: page offsets are the same.
inline uint16_t& Prediction(JitContext& context, uint64_t rip) { return context.predicted[rip % kPredictions]; }

/// R10 = index of R11, an address, in the TLB of `context`. As long as EmitPredictedIndex.
inline void EmitIndex(Assembler& code, unsigned context) {
  code.Pext(kScratch1, kScratch2, Context(offsetof(JitContext, tlb_mask) + 8 * context));
}

/// The same, a cycle sooner and four bytes longer. Clobbers the flags.
inline void EmitIndexSooner(Assembler& code, unsigned context) {
  code.RotateRight(kScratch1, kScratch2, 12);
  code.And(kScratch1, Context(offsetof(JitContext, tlb_index_mask) + 8 * context));
}

/// R10 = the predicted index. MOVZX, with a prefix (address size) that does nothing but fill.
inline void EmitPredictedIndex(Assembler& code, uint64_t rip) {
  code.Op(kScratch1, Context(offsetof(JitContext, predicted) + sizeof(uint16_t) * (rip % kPredictions)), 0xb7, false, 1,
          0x67);
}
inline constexpr unsigned kIndexBytes = 11;  ///< of both

/// Finds sites whose prediction fails so often that they shall compute the index.
class PredictionFailures {
 public:
  /// A site was wrong, at `now` of a clock of about the host's frequency. True: it has been wrong too often.
  bool Note(Site& site, uint64_t now) {
    const bool in_haste = now - last_ < kHaste;
    last_ = now;
    const auto time = static_cast<unsigned>(now >> kPeriodShift & 15);
    const bool again = in_haste && ((time - (site.wrong >> 4)) & 15) <= 1;
    const unsigned count = again ? (site.wrong & 15) + 1 : 1;
    site.wrong = static_cast<uint8_t>(time << 4 | count);
    return site.given_up();
  }

 private:
  /// A failure costs some 500. Failures of all sites that are farther apart cost less than a tenth of the time.
  static constexpr uint64_t kHaste = 5000;
  /// A site that was right for so long goes on: failures come with switches between processes, too.
  static constexpr unsigned kPeriodShift = 20;
  uint64_t last_ = 0;
};

}  // namespace nacre::engine::jit
