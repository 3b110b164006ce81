// nacre-translate: what the translator makes of some bytes.

#include <fmt/core.h>

#include <charconv>
#include <string>
#include <string_view>
#include <vector>

#include "engine/jit/scratch_translator.h"

namespace {

using namespace nacre;
using namespace nacre::engine::jit;

constexpr std::string_view kUsage =
    "Usage: nacre-translate [--rip HEX] [--mode WORDS] [--cpu MODEL] BYTES...\n\n"
    "Translates guest code, given as hexadecimal bytes, and prints guest and host code side by side.\n"
    "  --rip HEX     where the code is (1000)\n"
    "  --mode WORDS  kernel, user or kernel-ac, and any of code64 flat fs gs x87 sse avx cpl0 smap tsc fsgsbase\n"
    "                ungrouped, and outside 64-bit code code16 stack16 real plain iopl cs-readable, es-, ss- or "
    "ds-whole,\n"
    "                and of each of these, fs- and gs-small (\"user code64 flat fs gs x87 sse avx tsc\")\n"
    "  --cpu MODEL   as `nacre run` has it (default)\n";

bool ParseHex(std::string_view text, uint64_t& value) {
  if (text.starts_with("0x")) text.remove_prefix(2);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
  return error == std::errc() && end == text.data() + text.size();
}

Status Run(std::span<char*> words) {
  uint64_t rip = 0x1000;
  std::string mode = "user code64 flat fs gs x87 sse avx tsc", cpu = "default";
  std::vector<uint8_t> code;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string_view word = words[i];
    if (word.starts_with("--")) {
      if (i + 1 == words.size()) return Fail("{} needs a value", word);
      const std::string_view value = words[++i];
      if (word == "--mode")
        mode = value;
      else if (word == "--cpu")
        cpu = value;
      else if (word != "--rip" || !ParseHex(value, rip))
        return Fail("{} {} is not known\n{}", word, value, kUsage);
      continue;
    }
    for (size_t at = 0; at < word.size(); at += 2) {
      uint64_t byte = 0;
      if (!ParseHex(word.substr(at, 2), byte)) return Fail("'{}' is not made of hexadecimal bytes", word);
      code.push_back(static_cast<uint8_t>(byte));
    }
  }
  if (code.empty()) return Fail("no bytes given\n{}", kUsage);
  const uint32_t flags = ParseFlagWords(mode);
  if (flags == kNone) return Fail("--mode {}: a word is not known\n{}", mode, kUsage);
  const auto translator = NACRE_TRY(ScratchTranslator::Create(cpu));
  fmt::print("{}", SideBySide(NACRE_TRY(translator->Translate(code, rip, flags))));
  return {};
}

}  // namespace

int main(int count, char** words) {
  const Status status = Run({words + 1, static_cast<size_t>(count - 1)});
  if (status) return 0;
  fmt::print(stderr, "nacre-translate: {}\n", status.error().message);
  return 1;
}
