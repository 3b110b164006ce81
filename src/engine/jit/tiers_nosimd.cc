// Two kinds of translation. Code is first translated compactly: checks of memory accesses are calls, nothing is
// analysed beyond the block. Those checks count; now and then one of them is a sample. A block that is sampled twice is
// hot: it and the blocks that it is linked to are translated anew for speed when they are next entered. Called from
// translated code with guest vectors live.

#include <algorithm>

#include "engine/jit/jit_vcpu.h"

namespace nacre::engine::jit {

/// A check out of line found no translation in the TLB, or is a sample: returns where its caller goes on, or 0 with the
/// exit prepared when the interpreter must do the instruction. The return address has left the return stack, which may
/// have been full, or be emptied meanwhile.
uint64_t JitVcpu::SlowCheck() {
  JitContext& context = *context_;
  const CheckCode check = CheckCode::Unpack(context.exit_id);
  const uint64_t back = context.exit_at, address = context.slow_address;
  const auto code = static_cast<uint32_t>(back - 1 - reinterpret_cast<uint64_t>(buffer_.exec_base()));
  if (check.sample) {
    context.sample_countdown = options_.debug.stress.sample != 0 ? options_.debug.stress.sample : kSamplePeriod;
    TakeSample(store_->FindByCode(code));
  }
  const unsigned size = 1u << check.log2_size;
  const bool crosses = (address & kPageMask) + size > kPageSize;
  const uint8_t* host = crosses ? nullptr : FillTlb(check.context, address, check.write);
  if (!host && !crosses && code_host_ && MayWriteBesideCode(code_host_, address & kPageMask, size)) host = code_host_;
  if (host) {
    context.slow_addend = reinterpret_cast<uint64_t>(host) - AlignDown(address, kPageSize);
    return back;
  }
  if (crosses && !check.write && ReadAcrossPages(check.context, address, size)) return back;
  const Block& block = store_->block(store_->FindByCode(code));
  context.state.rip = block.rip + store_->GuestOffset(block, code);
  // As in SlowMemory.
  if (!crosses && !X87ExceptionIsPending() && (size <= 8 || address % size == 0)) pending_fault_ = walk_fault_;
  context.exit_id = kNone;
  context.exit_code = kExitInterpret;
  return 0;
}

void JitVcpu::TakeSample(uint32_t id) {
  if (id == kNone || !store_->block(id).valid) return;
  const uint64_t phys = store_->block(id).phys;
  if (!warm_.Has(phys)) {
    warm_.Add(phys);
    return;
  }
  uint32_t found[kPromotedTogether] = {id};
  unsigned count = 1;
  for (unsigned i = 0; i < count; ++i) {
    for (uint32_t out = store_->FirstLink(found[i]); out != kNone; out = store_->NextLink(out)) {
      const uint32_t target = store_->link(out).target_block;
      if (count == kPromotedTogether || target == kNone || !store_->block(target).compact) continue;
      if (std::find(found, found + count, target) == found + count) found[count++] = target;
    }
  }
  for (unsigned i = 0; i < count; ++i) {
    hot_.Add(store_->block(found[i]).phys);
    store_->Forget(found[i]);
  }
  counters_.promoted += count;
}

}  // namespace nacre::engine::jit
