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

Status ParseJitStress(JitDebugOptions& options, std::string_view value) {
  return ForEachPart(value, [&](std::string_view part) -> Status {
    engine::jit::JitStress& stress = options.stress;
    const size_t equals = part.find('=');
    const std::string_view name = part.substr(0, equals);
    if (part == "tlb") {
      stress.tiny_tlb = true;
      return {};
    }
    if (part == "compact") {
      stress.compact = true;
      return {};
    }
    uint32_t* const period = name == "flush"        ? &stress.flush
                             : name == "interrupt"  ? &stress.interrupt
                             : name == "invalidate" ? &stress.invalidate
                             : name == "sample"     ? &stress.sample
                             : name == "cache"      ? &stress.cache_mib
                                                    : nullptr;
    if (!period)
      return Fail(
          "--jit-stress {}: choose of flush[=N], interrupt[=N], invalidate[=N], sample[=N], compact, cache[=MIB], tlb, "
          "with commas",
          value);
    *period = 1;
    if (equals == std::string_view::npos) return {};
    const std::string_view number = part.substr(equals + 1);
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), *period);
    if (error != std::errc() || end != number.data() + number.size() || *period == 0)
      return Fail("--jit-stress {}: '{}' is not a number above 0", value, number);
    return {};
  });
}

const char* JitOnlyOption(const JitDebugOptions& options) {
  const engine::jit::JitStress& stress = options.stress;
  const bool stressed =
      stress.at_entries() || stress.cache_mib != 0 || stress.tiny_tlb || stress.compact || stress.sample != 0;
  return options.dump()        ? "--dump-block"
         : options.perf_map    ? "--perf-map"
         : options.check_reuse ? "--check-reuse"
         : stressed            ? "--jit-stress"
                               : nullptr;
}

Status CheckDebugOptions(const JitDebugOptions& options, bool engine_is_jit) {
  const char* const option = JitOnlyOption(options);
  if (option && !engine_is_jit) return Fail("{} works with --engine jit", option);
  if (!options.symbols_file.empty() && !options.perf_map) return Fail("--perf-symbols needs --perf-map");
  return {};
}

}  // namespace nacre::cli
