#include "cli/debug_options.h"

#include <charconv>

namespace nacre::cli {

using engine::jit::JitDebugOptions;

namespace {

/// Calls `take` with each part between commas.
template <typename Take>
Status ForEachPart(std::string_view text, Take take) {
  for (;;) {
    const size_t comma = text.find(',');
    NACRE_TRY_STATUS(take(text.substr(0, comma)));
    if (comma == std::string_view::npos) return {};
    text.remove_prefix(comma + 1);
  }
}

}  // namespace

Status ParseDumpBlock(JitDebugOptions& options, std::string_view value) {
  NACRE_TRY_STATUS(ForEachPart(value, [&](std::string_view part) -> Status {
    if (part == "all") {
      options.dump_all = true;
      return {};
    }
    if (part.starts_with("to=") && part.size() > 3) {
      options.dump_file = part.substr(3);
      return {};
    }
    if (part.starts_with("0x")) part.remove_prefix(2);
    uint64_t rip = 0;
    const char* last = part.data() + part.size();
    const auto [end, error] = std::from_chars(part.data(), last, rip, 16);
    if (error != std::errc() || end != last)
      return Fail("--dump-block {}: give hexadecimal addresses with commas, or all, and perhaps to=FILE", value);
    options.dump_rips.push_back(rip);
    return {};
  }));
  if (!options.dump_all && options.dump_rips.empty()) return Fail("--dump-block {}: give an address or all", value);
  return {};
}

}  // namespace nacre::cli
