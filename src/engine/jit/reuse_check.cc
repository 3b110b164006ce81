// JitDebugOptions::check_reuse: whether a block that was used again is what a translation made now would be.

#include <fmt/format.h>

#include <algorithm>

#include "engine/jit/jit_vcpu.h"

namespace nacre::engine::jit {
namespace {

constexpr uint32_t kAbsent = 0;

/// The code with everything that depends on the place of code and records taken out.
std::vector<uint8_t> Normalized(BlockStore& store, const uint8_t* code_base, const Block& block) {
  const uint8_t* code = code_base + block.code;
  std::vector<uint8_t> out(code, code + block.host_size);
  const auto blank = [&](uint32_t at) { StoreLe<uint32_t>(out.data() + at, kAbsent); };
  for (const Fixup& fixup : store.FixupsOf(block)) {
    if (fixup.stub_before()) blank(fixup.at - 4u);
    if (fixup.kind == Fixup::kStub || fixup.kind == Fixup::kLink || fixup.kind == Fixup::kLinkAgain ||
        fixup.kind == Fixup::kSite)
      blank(fixup.at);
    if (fixup.kind == Fixup::kSite) {  // a prediction may have been given up
      const Site& site = store.site(LoadLe<uint32_t>(code + fixup.at));
      if (site.predicted) std::fill_n(out.begin() + site.retry, kIndexBytes, uint8_t{0});
    }
    if (fixup.kind != Fixup::kLink) continue;
    const Link& link = store.link(LoadLe<uint32_t>(code + fixup.at));
    blank(link.displacement);
    if (link.in_place) out[link.displacement - 1u] = 0;  // a call or a jump
    if (link.page_id_place) blank(link.page_id_place);
  }
  return out;
}

/// Everything else about links and sites, as text.
std::string Records(BlockStore& store, const uint8_t* code_base, const Block& block) {
  std::string text =
      fmt::format("phys {:x} rip {:x} flags {:x} page {} length {} instructions {} body {} looks {}-{}:", block.phys,
                  block.rip, block.flags, block.page, block.guest_length, block.instruction_count, block.body,
                  block.look_first, block.look_last);
  for (const InstructionPlace& place : store.PlacesOf(block))
    text += fmt::format(" {}:{}", place.host_offset, place.guest_offset);
  for (const Fixup& fixup : store.FixupsOf(block)) {
    const uint32_t id = LoadLe<uint32_t>(code_base + block.code + fixup.at);
    if (fixup.kind == Fixup::kLink) {
      const Link& link = store.link(id);
      text += fmt::format(" link {:x} at {} stub {} page {} live {:x} {}", link.target_rip, link.displacement,
                          link.stub, link.page_id_place, static_cast<unsigned>(link.live_flags),
                          static_cast<bool>(link.page_id_negated));
    } else if (fixup.kind == Fixup::kSite) {
      const Site& site = store.site(id);
      text += fmt::format(" site {:x} retry {} {} {} {} {}{}{}", BlockStore::RipOf(site), site.retry, site.mnemonic,
                          site.size, static_cast<unsigned>(site.context), site.write ? "w" : "", site.group ? "g" : "",
                          static_cast<unsigned>(site.string));
    }
  }
  return text;
}

}  // namespace

void JitVcpu::CheckReuse(TranslateRequest request, uint32_t reused) {
  const Block block = store_->block(reused);
  request.indirect = block.body != 0;
  request.compact = block.compact;
  const uint8_t* base = buffer_.write_base();
  const std::vector<uint8_t> code = Normalized(*store_, base, store_->block(reused));
  const std::string records = Records(*store_, base, store_->block(reused));
  const uint32_t fresh = translator_->Translate(request);
  NACRE_CHECK(fresh != kWantsNextPage);
  if (fresh == kNone) return;  // no room
  // Constants may be short at one address and long at another; and shared checks that fail are given up by address.
  const bool comparable = store_->block(fresh).host_size == block.host_size;
  if (comparable && (Normalized(*store_, base, store_->block(fresh)) != code ||
                     Records(*store_, base, store_->block(fresh)) != records)) {
    fmt::print(stderr, "a block used again differs from its translation\n  again: {}\n  fresh: {}\n", records,
               Records(*store_, base, store_->block(fresh)));
    const std::vector<uint8_t> other = Normalized(*store_, base, store_->block(fresh));
    for (size_t i = 0; i < code.size(); ++i)
      if (code[i] != other[i]) fmt::print(stderr, "  {:x}: {:02x} {:02x}\n", i, code[i], other[i]);
    NACRE_CHECK(false);
  }
  ++(comparable ? counters_.reuse_checked : counters_.reuse_incomparable);
  store_->Forget(fresh);
}

}  // namespace nacre::engine::jit
