// What the translator makes of given guest code, pinned in text: src/engine/jit/pinned/*.txt hold cases, below each the
// listing of its block with its count of host instructions, in lines that begin with '|'. A change of the emitted code
// shows there in its review. All of them anew: NACRE_PIN=1 build/release/engine_test --gtest_filter='*PinnedCode*'

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <charconv>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "engine/jit/scratch_translator.h"

namespace nacre::engine::jit {
namespace {

constexpr std::string_view kFolder = "src/engine/jit/pinned/";
constexpr std::string_view kUser64 = "user code64 flat fs gs x87 sse avx tsc";

/// One block: lines `case NAME`, then any of `mode WORDS`, `rip HEX`, and `guest BYTES` (several are joined; what
/// follows a ';' is a comment).
struct PinnedCase {
  std::string name{};
  std::string mode{kUser64};
  uint64_t rip = 0x1000;
  bool entry = false;
  std::vector<uint8_t> code{};
  std::string lines{};   ///< as the file has them, without the listing
  std::string pinned{};  ///< the listing
};

struct PinnedFile {
  std::string head;  ///< before the first case
  std::vector<PinnedCase> cases;
};

bool ParseHex(std::string_view text, uint64_t& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
  return error == std::errc() && end == text.data() + text.size();
}

bool ParseLine(const std::string& line, PinnedCase& pinned) {
  std::istringstream stream(line.substr(0, line.find(';')));
  std::string key;
  if (!(stream >> key)) return true;
  std::string rest;
  std::getline(stream >> std::ws, rest);
  if (key == "entry") return pinned.entry = true;
  if (key == "mode") {
    pinned.mode = rest;
    return ParseFlagWords(rest) != kNone;
  }
  if (key == "rip") return ParseHex(rest, pinned.rip);
  if (key != "guest") return false;
  std::istringstream bytes(rest);
  for (std::string word; bytes >> word;) {
    uint64_t byte = 0;
    if (word.size() != 2 || !ParseHex(word, byte)) return false;
    pinned.code.push_back(static_cast<uint8_t>(byte));
  }
  return true;
}

Result<PinnedFile> ReadPinned(const std::string& path) {
  std::ifstream in(path);
  if (!in) return Fail("cannot read {}", path);
  PinnedFile file;
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with("case ")) file.cases.push_back({.name = line.substr(5)});
    if (file.cases.empty()) {
      file.head += line + "\n";
      continue;
    }
    PinnedCase& last = file.cases.back();
    if (line.starts_with("|")) {
      last.pinned += line + "\n";
      continue;
    }
    if (!line.empty()) last.lines += line + "\n";
    if (!line.starts_with("case ") && !ParseLine(line, last)) return Fail("{}: '{}' is not understood", path, line);
  }
  return file;
}

Result<std::string> Listing(ScratchTranslator& translator, const PinnedCase& pinned) {
  BlockListing listing = NACRE_TRY(translator.Translate(pinned.code, pinned.rip, ParseFlagWords(pinned.mode)));
  if (!pinned.entry) listing.entry.clear();
  std::istringstream lines(
      fmt::format("{} host instructions, {} cold\n{}", listing.hot_count, listing.cold.size(), Interleaved(listing)));
  std::string out;
  for (std::string line; std::getline(lines, line);) out += "| " + line + "\n";
  return out;
}

class PinnedCode : public testing::TestWithParam<const char*> {};

TEST_P(PinnedCode, IsWhatTheTranslatorEmits) {
  const std::string path = fmt::format("{}{}.txt", kFolder, GetParam());
  auto file = ReadPinned(path);
  ASSERT_TRUE(file.has_value()) << file.error().message;
  const bool avx512 = std::string_view(GetParam()) == "avx512";
  auto translator = ScratchTranslator::Create(avx512 ? "x86-64-v4" : "x86-64-v3");
  if (!translator) GTEST_SKIP() << translator.error().message;
  EXPECT_FALSE(file->cases.empty());
  std::string text = file->head;
  for (const PinnedCase& pinned : file->cases) {
    const auto got = Listing(**translator, pinned);
    ASSERT_TRUE(got.has_value()) << pinned.name << ": " << got.error().message;
    EXPECT_GT(pinned.code.size(), 0u) << pinned.name;
    if (!std::getenv("NACRE_PIN")) {
      EXPECT_EQ(pinned.pinned, *got) << path << ": " << pinned.name;
    }
    text += pinned.lines + *got + (&pinned == &file->cases.back() ? "" : "\n");
  }
  if (std::getenv("NACRE_PIN")) std::ofstream(path) << text;
}

INSTANTIATE_TEST_SUITE_P(Jit, PinnedCode,
                         testing::Values("memory", "stack", "flags", "branches", "strings", "vectors", "avx512",
                                         "system", "segments"),
                         [](const auto& file) { return std::string(file.param); });

}  // namespace
}  // namespace nacre::engine::jit
