#include "engine/jit/block_listing.h"

#include <Zydis/Zydis.h>
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <sstream>

namespace nacre::engine::jit {

namespace {

struct FlagName {
  uint32_t flag;
  const char* name;
};
constexpr FlagName kFlagNames[] = {
    {kFlagCode64, "code64"},
    {kFlagFlat, "flat"},
    {kFlagFs, "fs"},
    {kFlagGs, "gs"},
    {kFlagX87, "x87"},
    {kFlagSse, "sse"},
    {kFlagAvx, "avx"},
    {kFlagCpl0, "cpl0"},
    {kFlagSmap, "smap"},
    {kFlagTsc, "tsc"},
    {kFlagFsGsBase, "fsgsbase"},
    {kFlagUngrouped, "ungrouped"},
    {kFlagSingle, "single"},
    {kFlagAvx512, "avx512"},
    {kFlagCode16, "code16"},
    {kFlagStack16, "stack16"},
    {kFlagReal, "real"},
    {kFlagPlainSegments, "plain"},
    {kFlagEsKind, "es-whole"},
    {2 * kFlagEsKind, "es-small"},
    {kFlagSsKind, "ss-whole"},
    {2 * kFlagSsKind, "ss-small"},
    {kFlagDsKind, "ds-whole"},
    {2 * kFlagDsKind, "ds-small"},
    {kFlagFsLimited, "fs-small"},
    {kFlagGsLimited, "gs-small"},
    {kFlagIopl, "iopl"},
    {kFlagCsReadable, "cs-readable"},
};
constexpr FlagName kContextNames[] = {
    {kContextSupervisor, "kernel"}, {kContextUser, "user"}, {kContextSupervisorAc, "kernel-ac"}};

/// Zydis with short operands: no zero padding, no "ptr".
class Disassembler {
 public:
  Disassembler() {
    ZydisDecoderInit(&decoder_, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    ZydisFormatterInit(&formatter_, ZYDIS_FORMATTER_STYLE_INTEL);
    for (const auto property : {ZYDIS_FORMATTER_PROP_ADDR_PADDING_ABSOLUTE, ZYDIS_FORMATTER_PROP_ADDR_PADDING_RELATIVE,
                                ZYDIS_FORMATTER_PROP_DISP_PADDING, ZYDIS_FORMATTER_PROP_IMM_PADDING})
      ZydisFormatterSetProperty(&formatter_, property, ZYDIS_PADDING_DISABLED);
    ZydisFormatterSetProperty(&formatter_, ZYDIS_FORMATTER_PROP_HEX_UPPERCASE, ZYAN_FALSE);
  }

  bool Decode(const uint8_t* bytes, size_t room) {
    return ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder_, bytes, room, &insn, operands));
  }
  std::string Text(uint64_t address) {
    char text[256] = "";
    ZydisFormatterFormatInstruction(&formatter_, &insn, operands, insn.operand_count_visible, text, sizeof text,
                                    address, nullptr);
    std::string out = text;
    for (size_t at; (at = out.find(" ptr ")) != std::string::npos;) out.erase(at, 4);
    return out;
  }

  ZydisDecodedInstruction insn;
  ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];

 private:
  ZydisDecoder decoder_;
  ZydisFormatter formatter_;
};

/// Makes the lines of a block's host code.
class HostLister {
 public:
  HostLister(const TranslationView& view, const Block& block)
      : view_(view), block_(block), code_(view.buffer.write_base() + block.code) {
    const auto name = [&](const uint8_t* in_write_view, std::string text, Id id = Id::kNothing) {
      if (in_write_view) stubs_[Offset(in_write_view)] = {std::move(text), id};
    };
    name(view.stubs.exit_link, "exit_link", Id::kLink);
    name(view.stubs.exit_poll, "exit_poll", Id::kLink);
    name(view.stubs.exit_interpret, "exit_interpret", Id::kSite);
    name(view.stubs.exit_poll_rcx, "exit_poll_rcx", Id::kLink);
    name(view.stubs.exit_interpret_rcx, "exit_interpret_rcx", Id::kSite);
    name(view.stubs.slow_address_rcx, "miss_at_r11_rcx", Id::kSite);
    name(view.stubs.exit_lookup, "exit_lookup");
    name(view.stubs.string, "string", Id::kSite);
    name(view.stubs.slow_address, "miss_at_r11", Id::kSite);
    static constexpr const char* kContext[kContexts] = {"kernel", "user", "kernel_ac"};
    for (unsigned context = 0; context < kContexts; ++context) {
      name(view.stubs.lookup[context], fmt::format("lookup_{}", kContext[context]));
      for (unsigned write = 0; write < 2; ++write) {
        const char* const access = write ? "write" : "read";
        name(view.stubs.slow[context][write], fmt::format("{}_miss_{}", access, kContext[context]), Id::kSite);
        for (unsigned size = 0; size < Stubs::kCheckSizes; ++size)
          for (unsigned keeps = 0; keeps < 2; ++keeps)
            name(view.stubs.check[context][write][size][keeps],
                 fmt::format("check_{}{}{}_{}", access, 1u << size, keeps ? "_keep" : "", kContext[context]));
      }
    }
    stubs_[static_cast<uint32_t>(view.stubs.miss_target - view.buffer.exec_base())] = {"jump_miss", Id::kNothing};
    stubs_[static_cast<uint32_t>(view.stubs.fault_exit - view.buffer.exec_base())] = {"fault_exit", Id::kNothing};
  }

  std::vector<HostLine> List() {
    FindLabels();
    std::vector<HostLine> lines;
    for (uint32_t at = 0; at < block_.host_size;) {
      HostLine line{.offset = at, .length = 1, .label = {}, .text = "(bad)"};
      if (const auto label = labels_.find(at); label != labels_.end()) line.label = label->second;
      if (disassembler_.Decode(code_ + at, block_.host_size - at)) {
        line.length = disassembler_.insn.length;
        line.text = Describe(at);
        if (const Id id = IdBehind(at); id != Id::kNothing) {
          const auto number = LoadLe<uint32_t>(code_ + at + line.length);
          line.text += id == Id::kLink ? fmt::format(", link to {:#x}", view_.store.link(number).target_rip)
                                       : fmt::format(", site {:#x}", BlockStore::RipOf(view_.store.site(number)));
          line.length += 4;
        }
      }
      at += line.length;
      lines.push_back(std::move(line));
    }
    return lines;
  }

 private:
  /// What the number means that stands behind the call of a way out.
  enum class Id : uint8_t { kNothing, kLink, kSite };

  /// The number that belongs to the present instruction.
  Id IdBehind(uint32_t at) const {
    uint64_t target = 0;
    if (disassembler_.insn.mnemonic != ZYDIS_MNEMONIC_CALL || !Target(at, target)) return Id::kNothing;
    const auto stub = stubs_.find(static_cast<uint32_t>(target));
    return stub == stubs_.end() ? Id::kNothing : stub->second.second;
  }

  uint32_t Offset(const uint8_t* in_write_view) const {
    return static_cast<uint32_t>(in_write_view - view_.buffer.write_base());
  }

  /// Where a direct branch or a RIP-relative operand of the present instruction leads, in the buffer.
  bool Target(uint32_t at, uint64_t& target) const {
    for (unsigned i = 0; i < disassembler_.insn.operand_count_visible; ++i) {
      const ZydisDecodedOperand& operand = disassembler_.operands[i];
      const bool relative = operand.type == ZYDIS_OPERAND_TYPE_IMMEDIATE && operand.imm.is_relative;
      const bool memory = operand.type == ZYDIS_OPERAND_TYPE_MEMORY && operand.mem.base == ZYDIS_REGISTER_RIP;
      if (relative || memory)
        return ZYAN_SUCCESS(ZydisCalcAbsoluteAddress(&disassembler_.insn, &operand, block_.code + at, &target));
    }
    return false;
  }

  void FindLabels() {
    for (uint32_t at = 0; at < block_.host_size;) {
      if (!disassembler_.Decode(code_ + at, block_.host_size - at)) {
        ++at;
        continue;
      }
      uint64_t target = 0;
      if (Target(at, target) && target - block_.code < block_.host_size)
        labels_[static_cast<uint32_t>(target - block_.code)];
      const uint32_t length = disassembler_.insn.length;
      at += length + (IdBehind(at) != Id::kNothing ? 4 : 0);
    }
    unsigned number = 0;
    for (auto& [at, label] : labels_) label = fmt::format("L{}", ++number);
  }

  std::string NameOf(uint64_t target) const {
    if (target - block_.code < block_.host_size) return labels_.at(static_cast<uint32_t>(target - block_.code));
    if (const auto stub = stubs_.find(static_cast<uint32_t>(target)); stub != stubs_.end()) return stub->second.first;
    const uint32_t other = view_.store.FindByCode(static_cast<uint32_t>(target));
    if (other == kNone) return fmt::format("code+{:#x}", target);
    const Block& block = view_.store.block(other);
    return fmt::format("block {:#x}{}", block.rip,
                       target == block.entry() ? "" : fmt::format("+{:#x}", target - block.code));
  }

  std::string Describe(uint32_t at) {
    std::string text = disassembler_.Text(block_.code + at);
    uint64_t target = 0;
    if (Target(at, target)) {
      const std::string shown = fmt::format("{:#x}", target);
      if (const size_t place = text.find(shown); place != std::string::npos)
        text.replace(place, shown.size(), NameOf(target));
    }
    const size_t open = text.find("gs:[");
    if (open == std::string::npos) return text;
    uint64_t displacement = 0;
    std::string index;
    for (unsigned i = 0; i < disassembler_.insn.operand_count_visible; ++i) {
      const ZydisDecodedOperand& operand = disassembler_.operands[i];
      if (operand.type != ZYDIS_OPERAND_TYPE_MEMORY) continue;
      displacement = static_cast<uint64_t>(operand.mem.disp.value);
      for (const auto& [reg, scale] : {std::pair{operand.mem.base, 1}, {operand.mem.index, int{operand.mem.scale}}}) {
        if (reg == ZYDIS_REGISTER_NONE) continue;
        index += fmt::format("+{}", ZydisRegisterGetString(reg));
        if (scale != 1) index += fmt::format("*{}", scale);
      }
    }
    const std::string slot = ContextSlotName(displacement);
    text.replace(open, text.find(']', open) + 1 - open, fmt::format("gs:[{}{}]", slot, index));
    return text;
  }

  const TranslationView& view_;
  const Block& block_;
  const uint8_t* code_;
  Disassembler disassembler_;
  std::map<uint32_t, std::string> labels_;
  std::map<uint32_t, std::pair<std::string, Id>> stubs_;
};

/// The guest instruction at an offset from the start of the block; false where it cannot be decoded.
bool DecodeGuest(const TranslateRequest& request, unsigned offset, x86::Instruction& insn) {
  const auto at = static_cast<unsigned>(request.phys & kPageMask) + offset;
  uint8_t bytes[15] = {};
  size_t count = 0;
  for (; count < sizeof bytes; ++count) {
    const uint64_t place = at + count;
    if (place >= kPageSize && !request.next_page) break;
    bytes[count] = place < kPageSize ? request.page[place] : request.next_page[place - kPageSize];
  }
  return x86::Decode({bytes, count}, CodeSizeOf(request.flags), insn) == x86::DecodeStatus::kOk;
}

std::string Line(const HostLine& host, bool with_offset) {
  const std::string label = host.label.empty() ? "" : host.label + ":";
  return with_offset ? fmt::format("{:>4x} {:<5}{}", host.offset, label, host.text)
                     : fmt::format("{:<5}{}", label, host.text);
}

std::string Header(const BlockListing& listing) {
  return fmt::format(
      "rip {:#x}, physical {:#x}, {}: {} guest bytes, {} host bytes, {} host instructions, {} to enter, {} cold\n",
      listing.rip, listing.phys, FlagWords(listing.flags), listing.guest_bytes, listing.host_bytes, listing.hot_count,
      listing.entry.size(), listing.cold.size());
}

}  // namespace

BlockListing ListBlock(const TranslationView& view, const TranslateRequest& request, uint32_t index,
                       uint32_t hot_bytes) {
  const Block& block = view.store.block(index);
  BlockListing listing{.rip = block.rip, .phys = block.phys, .flags = block.flags, .host_bytes = block.host_size};
  std::vector<uint32_t> starts;
  std::vector<InstructionPlace> places = BlockStore::PlacesOf(block);
  if (places.empty()) places.emplace_back();
  for (const InstructionPlace& place : places) {
    x86::Instruction insn;
    char text[128] = "(undecodable)";
    const uint64_t rip = block.rip + place.guest_offset;
    if (DecodeGuest(request, place.guest_offset, insn)) {
      x86::Format(insn, rip, text);
      listing.guest_bytes = place.guest_offset + insn.length;
    }
    listing.guest.push_back({.rip = rip, .text = text, .host = {}});
    starts.push_back(place.host_offset);
  }
  for (HostLine& line : HostLister(view, block).List()) {
    if (line.offset < block.body) {
      listing.entry.push_back(std::move(line));
      continue;
    }
    if (line.offset >= hot_bytes) {
      listing.cold.push_back(std::move(line));
      continue;
    }
    ++listing.hot_count;
    const auto after = std::upper_bound(starts.begin(), starts.end(), line.offset);
    listing.guest[static_cast<size_t>(std::max<ptrdiff_t>(after - starts.begin(), 1) - 1)].host.push_back(
        std::move(line));
  }
  return listing;
}

std::string SideBySide(const BlockListing& listing) {
  constexpr unsigned kGuestWidth = 58;
  std::string out = Header(listing);
  const auto row = [&](std::string_view guest, const HostLine* host) {
    out += fmt::format("{:<{}} |{}\n", guest, kGuestWidth, host ? " " + Line(*host, true) : "");
  };
  const auto part = [&](std::string left, const std::vector<HostLine>& lines) {
    for (const HostLine& host : lines) {
      row(left, &host);
      left.clear();
    }
  };
  part("entry of indirect branches", listing.entry);
  for (const GuestLine& guest : listing.guest) {
    const std::string left = fmt::format("{:16x}  {}", guest.rip, guest.text);
    if (guest.host.empty()) row(left, nullptr);
    part(left, guest.host);
  }
  part("cold", listing.cold);
  return out;
}

std::string Interleaved(const BlockListing& listing) {
  std::string out;
  const auto part = [&](std::string_view head, const std::vector<HostLine>& lines) {
    out += fmt::format("{}\n", head);
    for (const HostLine& host : lines) out += fmt::format("    {}\n", Line(host, false));
  };
  if (!listing.entry.empty()) part("entry of indirect branches", listing.entry);
  for (const GuestLine& guest : listing.guest) part(guest.text, guest.host);
  if (!listing.cold.empty()) part("cold", listing.cold);
  return out;
}

std::string FlagWords(uint32_t flags) {
  std::string words = "?";
  for (const FlagName& context : kContextNames)
    if ((flags & kFlagContextMask) == context.flag) words = context.name;
  for (const FlagName& flag : kFlagNames)
    if (flags & flag.flag) words += fmt::format(" {}", flag.name);
  return words;
}

uint32_t ParseFlagWords(const std::string& words) {
  uint32_t flags = 0;
  std::istringstream stream(words);
  for (std::string word; stream >> word;) {
    const auto same = [&](const FlagName& flag) { return flag.name == word; };
    if (const auto* context = std::ranges::find_if(kContextNames, same); context != std::end(kContextNames))
      flags |= context->flag;
    else if (const auto* flag = std::ranges::find_if(kFlagNames, same); flag != std::end(kFlagNames))
      flags |= flag->flag;
    else
      return kNone;
  }
  return flags;
}

}  // namespace nacre::engine::jit
