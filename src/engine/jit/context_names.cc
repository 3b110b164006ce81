// Names for offsets of JitContext.

#include <fmt/format.h>

#include "engine/jit/block_listing.h"

namespace nacre::engine::jit {

namespace {

constexpr const char* kGprNames[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                       "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
constexpr const char* kSegmentNames[] = {"es", "cs", "ss", "ds", "fs", "gs"};
constexpr const char* kContextNames[kContexts] = {"kernel", "user", "kernel_ac"};

/// A field, or the elements of an array.
struct Slot {
  const char* name;
  size_t offset, size, element;
};

#define NACRE_SLOT(field) \
  Slot { #field, offsetof(JitContext, field), sizeof(JitContext::field), sizeof(JitContext::field) }
#define NACRE_ARRAY(field) \
  Slot { #field, offsetof(JitContext, field), sizeof(JitContext::field), sizeof(JitContext::field[0]) }
#define NACRE_PART(type, field) \
  Slot { #field, offsetof(type, field), sizeof(type::field), sizeof(type::field[0]) }

constexpr Slot kSlots[] = {
    NACRE_SLOT(flags),
    NACRE_SLOT(interrupt_flag),
    NACRE_SLOT(saved_rcx),
    NACRE_SLOT(saved_scratch),
    NACRE_SLOT(host_rsp),
    NACRE_SLOT(return_rsp),
    NACRE_SLOT(slow_address),
    NACRE_SLOT(slow_addend),
    NACRE_SLOT(resume),
    NACRE_SLOT(exit_id),
    NACRE_SLOT(exit_at),
    NACRE_SLOT(sample_countdown),
    NACRE_SLOT(check_handler),
    NACRE_SLOT(exit_code),
    NACRE_SLOT(slow_handler),
    NACRE_SLOT(string_handler),
    NACRE_SLOT(self),
    NACRE_ARRAY(group_host),
    NACRE_ARRAY(predicted),
    NACRE_ARRAY(stream_host),
    NACRE_SLOT(loop_wait),
    NACRE_SLOT(loop_rounds),
    NACRE_SLOT(loop_limit),
    NACRE_SLOT(gather_index),
    NACRE_SLOT(gather_value),
    NACRE_SLOT(gather_mask),
    NACRE_SLOT(crossing),
    NACRE_ARRAY(tlb_mask),
    NACRE_ARRAY(tlb_index_mask),
    NACRE_SLOT(page_number_mask),
    NACRE_SLOT(arithmetic_mask),
    NACRE_SLOT(not_direction_mask),
    NACRE_SLOT(bit_in_32_mask),
    NACRE_SLOT(bit_in_64_mask),
    NACRE_SLOT(direction_mask),
    NACRE_SLOT(not_ac_mask),
    NACRE_SLOT(saved_pointer),
    NACRE_SLOT(above_16_mask),
    NACRE_SLOT(above_32_mask),
    NACRE_SLOT(go),
    NACRE_SLOT(no_request),
    NACRE_SLOT(jump_mask),
};
constexpr Slot kTlbParts[] = {NACRE_PART(DataTlb, read_tag), NACRE_PART(DataTlb, write_tag),
                              NACRE_PART(DataTlb, addend)};
constexpr Slot kJumpParts[] = {NACRE_PART(JumpCache, negated_rip), NACRE_PART(JumpCache, target)};

std::string Within(const Slot& slot, uint64_t offset) {
  std::string name = slot.name;
  const uint64_t in_slot = offset - slot.offset;
  if (slot.element != slot.size && in_slot / slot.element != 0) name += fmt::format("[{}]", in_slot / slot.element);
  if (in_slot % slot.element != 0) name += fmt::format("+{:#x}", in_slot % slot.element);
  return name;
}

template <size_t kCount>
std::string Find(const Slot (&slots)[kCount], uint64_t offset) {
  for (const Slot& slot : slots)
    if (offset - slot.offset < slot.size) return Within(slot, offset);
  return {};
}

std::string StateName(uint64_t offset) {
  using x86::CpuState;
  if (const uint64_t at = offset - offsetof(CpuState, gpr); at < sizeof(CpuState::gpr))
    return fmt::format("guest.{}{}", kGprNames[at / 8], at % 8 ? fmt::format("+{}", at % 8) : "");
  if (const uint64_t at = offset - offsetof(CpuState, segment); at < sizeof(CpuState::segment)) {
    const uint64_t index = at / sizeof(x86::Segment), field = at % sizeof(x86::Segment);
    const std::string name = index < std::size(kSegmentNames) ? kSegmentNames[index] : fmt::format("seg{}", index);
    return fmt::format("guest.{}{}", name,
                       field == offsetof(x86::Segment, base) ? ".base" : fmt::format("+{:#x}", field));
  }
  if (offset == offsetof(CpuState, rip)) return "guest.rip";
  if (offset - offsetof(CpuState, rflags) < 8) return "guest.rflags";
  if (offset == offsetof(CpuState, cr0)) return "guest.cr0";
  if (offset == offsetof(CpuState, cr2)) return "guest.cr2";
  if (offset == offsetof(CpuState, cr3)) return "guest.cr3";
  if (offset == offsetof(CpuState, cr4)) return "guest.cr4";
  if (offset == offsetof(CpuState, tsc_offset)) return "guest.tsc_offset";
  if (offset == offsetof(CpuState, interrupt_shadow)) return "guest.interrupt_shadow";
  if (offset == offsetof(CpuState, msr) + offsetof(decltype(CpuState::msr), kernel_gs_base))
    return "guest.kernel_gs_base";
  return fmt::format("guest+{:#x}", offset);
}

}  // namespace

std::string ContextSlotName(uint64_t offset) {
  if (const uint64_t at = offset - offsetof(JitContext, state); at < sizeof(x86::CpuState)) return StateName(at);
  if (std::string name = Find(kSlots, offset); !name.empty()) return name;
  if (const uint64_t at = offset - offsetof(JitContext, tlb); at < sizeof(JitContext::tlb))
    return fmt::format("{}.tlb.{}", kContextNames[at / sizeof(DataTlb)], Find(kTlbParts, at % sizeof(DataTlb)));
  if (const uint64_t at = offset - offsetof(JitContext, code_pages); at < sizeof(JitContext::code_pages))
    return fmt::format("{}.page_id[{}]", kContextNames[at / sizeof(CodePages)], at % sizeof(CodePages) / 4);
  if (const uint64_t at = offset - offsetof(JitContext, jump_cache); at < sizeof(JitContext::jump_cache))
    return fmt::format("{}.jump_cache.{}", kContextNames[at / sizeof(JumpCache)],
                       Find(kJumpParts, at % sizeof(JumpCache)));
  return fmt::format("context+{:#x}", offset);
}

}  // namespace nacre::engine::jit
