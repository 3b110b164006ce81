#include "x86/fast_decoder.h"

#include <elf.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "x86/decoder.h"

namespace nacre::x86 {
namespace {

constexpr CodeSize kSizes[] = {CodeSize::k16, CodeSize::k32, CodeSize::k64};

std::string Hex(std::span<const uint8_t> bytes) {
  std::string text;
  for (uint8_t byte : bytes) text += fmt::format("{:02x} ", byte);
  return text;
}

/// The first field in which two results differ, by name.
std::string Difference(const Instruction& ours, const Instruction& theirs) {
#define NACRE_FIELD(name)       \
  if (ours.name != theirs.name) \
  return fmt::format(#name " {:#x}, by Zydis {:#x}", int64_t(ours.name), int64_t(theirs.name))
  NACRE_FIELD(mnemonic);
  NACRE_FIELD(isa_set);
  NACRE_FIELD(length);
  NACRE_FIELD(operand_size);
  NACRE_FIELD(address_size);
  NACRE_FIELD(vector_length);
  NACRE_FIELD(branch);
  NACRE_FIELD(attributes);
  NACRE_FIELD(segment);
  NACRE_FIELD(base);
  NACRE_FIELD(index);
  NACRE_FIELD(scale);
  NACRE_FIELD(displacement);
  NACRE_FIELD(immediate);
  NACRE_FIELD(opcode_at);
  NACRE_FIELD(immediate_at);
  NACRE_FIELD(displacement_at);
  NACRE_FIELD(operand_count);
  NACRE_FIELD(flags_read);
  NACRE_FIELD(flags_written);
  NACRE_FIELD(flags_undefined);
  NACRE_FIELD(gpr_read);
  NACRE_FIELD(gpr_written);
#undef NACRE_FIELD
  return "another field";
}

/// Counts what was compared, and how much of it the fast path took.
struct Comparison {
  uint64_t decoded = 0, fast = 0;
  unsigned failures = 0;

  /// Both paths over the same bytes; the length by Zydis, or 0.
  unsigned Compare(std::span<const uint8_t> bytes, CodeSize size) {
    Instruction theirs, ours;
    const DecodeStatus status = DecodeByZydis(bytes, size, theirs);
    ours.immediate = 0x1234;  // left-overs must not shine through
    ours.bytes[14] = 0xcc;
    const bool taken = FastDecode(bytes, size, ours);
    if (status == DecodeStatus::kOk) ++decoded;
    if (!taken) return status == DecodeStatus::kOk ? theirs.length : 0;
    ++fast;
    if (status != DecodeStatus::kOk || !(ours == theirs)) {
      if (++failures <= 20)
        ADD_FAILURE() << Hex(bytes) << "code size " << int(size) << " " << MnemonicName(ours.mnemonic) << ": "
                      << (status != DecodeStatus::kOk ? "invalid by Zydis" : Difference(ours, theirs));
    }
    return theirs.length;
  }
};

/// Bytes that are likely to be displacements, immediates and SIB bytes of every kind.
using Bytes = std::array<uint8_t, 15>;

struct Generator {
  std::mt19937_64 random{7};

  Bytes Tail() {
    Bytes bytes;
    const uint64_t words[2] = {random(), random()};
    std::memcpy(bytes.data(), words, bytes.size());
    return bytes;
  }

  /// A legacy encoding: `prefixes` has 66 in bit 0 and F3, F2, F0 in bits 1-2.
  Bytes Legacy(unsigned prefixes, unsigned map, unsigned opcode, unsigned modrm, CodeSize size) {
    Bytes bytes = Tail();
    const uint64_t chance = random();
    constexpr uint8_t kSegments[8] = {0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x64, 0x65};
    constexpr uint8_t kRepeat[4] = {0, 0xf3, 0xf2, 0xf0};
    unsigned n = 0;
    if ((chance & 7) == 0) bytes[n++] = kSegments[chance >> 3 & 7];
    if (prefixes & 1) bytes[n++] = 0x66;
    if (prefixes & 6) bytes[n++] = kRepeat[prefixes >> 1];
    if ((chance >> 6 & 15) == 0) bytes[n++] = kSegments[chance >> 10 & 7];
    if (size == CodeSize::k64 && (chance >> 13 & 3) != 0) bytes[n++] = static_cast<uint8_t>(0x40 | (chance >> 15 & 15));
    if (map != 0) bytes[n++] = 0x0f;
    if (map >= 2) bytes[n++] = map == 2 ? 0x38 : 0x3a;
    bytes[n++] = static_cast<uint8_t>(opcode);
    bytes[n++] = static_cast<uint8_t>(modrm);
    if ((chance >> 20 & 15) == 0) bytes[n + 1] = chance >> 24 & 1 ? 0 : 1;  // small shift counts
    return bytes;
  }

  /// A VEX encoding; `variant` has pp in bits 0-1, L in bit 2, W in bit 3.
  Bytes Vex(unsigned variant, unsigned map, unsigned opcode, unsigned modrm) {
    Bytes bytes = Tail();
    const uint64_t chance = random();
    const unsigned vvvv = chance & 1 ? 0x78 : chance >> 1 & 0x78;
    unsigned n = 0;
    if ((chance >> 8 & 15) == 0) bytes[n++] = 0x64;
    if (map == 1 && (variant & 8) == 0 && (chance >> 12 & 1) != 0) {
      bytes[n++] = 0xc5;
      bytes[n++] = static_cast<uint8_t>((chance >> 13 & 0x80) | vvvv | (variant & 7));
    } else {
      bytes[n++] = 0xc4;
      bytes[n++] = static_cast<uint8_t>((chance >> 13 & 0xe0) | map);
      bytes[n++] = static_cast<uint8_t>((variant & 8) << 4 | vvvv | (variant & 7));
    }
    bytes[n++] = static_cast<uint8_t>(opcode);
    bytes[n++] = static_cast<uint8_t>(modrm);
    return bytes;
  }
};

/// Every prefix, map and opcode with `modrms` ModRM bytes each (256: all of them, else a sample of each mod and reg).
void CompareEncodings(unsigned modrms, Comparison& comparison) {
  Generator generator;
  for (CodeSize size : {CodeSize::k32, CodeSize::k64}) {
    for (unsigned encoding = 0; encoding < 4 * 256 * 8; ++encoding) {
      const unsigned opcode = encoding & 255, map = encoding >> 8 & 3, prefixes = encoding >> 10;
      for (unsigned i = 0; i < modrms; ++i) {
        const unsigned modrm = modrms == 256 ? i : static_cast<unsigned>(generator.random());
        comparison.Compare(generator.Legacy(prefixes, map, opcode, modrm, size), size);
      }
    }
  }
  for (unsigned encoding = 0; encoding < 3 * 256 * 16; ++encoding) {
    const unsigned opcode = encoding & 255, variant = encoding >> 8 & 15, map = 1 + (encoding >> 12);
    for (unsigned i = 0; i < (modrms + 3) / 4; ++i)
      comparison.Compare(generator.Vex(variant, map, opcode, static_cast<unsigned>(generator.random())), CodeSize::k64);
  }
}

/// This program's own instructions.
std::vector<uint8_t> OwnText() {
  std::ifstream file("/proc/self/exe", std::ios::binary);
  const std::vector<char> all{std::istreambuf_iterator<char>(file), {}};
  Elf64_Ehdr header;
  if (all.size() < sizeof header) return {};
  std::memcpy(&header, all.data(), sizeof header);
  for (unsigned i = 0; i < header.e_phnum; ++i) {
    Elf64_Phdr segment;
    std::memcpy(&segment, all.data() + header.e_phoff + i * sizeof segment, sizeof segment);
    if (segment.p_type == PT_LOAD && (segment.p_flags & PF_X) != 0)
      return {all.begin() + static_cast<ptrdiff_t>(segment.p_offset),
              all.begin() + static_cast<ptrdiff_t>(segment.p_offset + segment.p_filesz)};
  }
  return {};
}

TEST(FastDecoder, EveryEncodingAsZydis) {
  Comparison comparison;
  CompareEncodings(16, comparison);
  EXPECT_GT(comparison.decoded, 80000u);
  EXPECT_GT(comparison.fast * 10, comparison.decoded * 8);
  EXPECT_LT(FastTemplateCount(), kMaxFastTemplates);  // all encodings have room
}

/// Millions of cases: every ModRM byte under every covered prefix and opcode.
TEST(FastDecoder, EveryModrmAsZydis) {
  Comparison comparison;
  CompareEncodings(256, comparison);
  EXPECT_GT(comparison.fast, 1000000u);
  EXPECT_LT(FastTemplateCount(), kMaxFastTemplates);
}

TEST(FastDecoder, OwnTextInEveryCodeSize) {
  const std::vector<uint8_t> text = OwnText();
  ASSERT_GT(text.size(), 100000u);
  const std::span<const uint8_t> some = std::span(text).first(std::min<size_t>(text.size(), 400000));
  for (CodeSize size : kSizes) {
    Comparison comparison;
    for (size_t at = 0; at < some.size();) {
      const unsigned length = comparison.Compare(some.subspan(at), size);
      at += length == 0 ? 1 : length;
    }
    EXPECT_GT(comparison.decoded, 10000u);
    if (size == CodeSize::k64) {
      EXPECT_GT(comparison.fast * 100, comparison.decoded * 97);
    }
  }
}

TEST(FastDecoder, RandomBytes) {
  Generator generator;
  Comparison comparison;
  for (int i = 0; i < 100000; ++i) comparison.Compare(generator.Tail(), kSizes[i % 3]);
  EXPECT_GT(comparison.fast, 10000u);
}

TEST(FastDecoder, TruncationAsZydis) {
  Generator generator;
  for (unsigned n = 0; n < 4000; ++n) {
    // The head in steps that are coprime to its size, so that every opcode is met.
    const unsigned encoding = n * 5039 % (4 * 256 * 8);
    const Bytes bytes = generator.Legacy(encoding >> 10, encoding >> 8 & 3, encoding & 255,
                                         static_cast<unsigned>(generator.random()), CodeSize::k64);
    for (size_t cut = 0; cut <= bytes.size(); ++cut) {
      Instruction ours, theirs;
      const auto given = std::span(bytes).first(cut);
      const DecodeStatus status = Decode(given, CodeSize::k64, ours);
      ASSERT_EQ(status, DecodeByZydis(given, CodeSize::k64, theirs)) << Hex(given);
      if (status == DecodeStatus::kOk) {
        ASSERT_EQ(ours, theirs) << Hex(given);
        break;
      }
    }
  }
}

TEST(FastDecoder, TooLongIsNotItsBusiness) {
  std::vector<uint8_t> bytes(10, 0x2e);  // and an instruction of 6 bytes
  for (uint8_t byte : {0x81, 0x00, 1, 2, 3, 4, 5}) bytes.push_back(byte);
  Instruction instruction;
  EXPECT_FALSE(FastDecode(bytes, CodeSize::k64, instruction));
  EXPECT_EQ(Decode(bytes, CodeSize::k64, instruction), DecodeStatus::kTooLong);
  bytes.erase(bytes.begin());
  EXPECT_TRUE(FastDecode(bytes, CodeSize::k64, instruction));
  EXPECT_EQ(instruction.length, 15);
}

TEST(FastDecoder, LeavesTheResultAloneWhenNotMine) {
  Instruction instruction;
  instruction.immediate = 77;
  const Instruction before = instruction;
  EXPECT_FALSE(FastDecode(std::vector<uint8_t>{0x48, 0x81}, CodeSize::k64, instruction));
  EXPECT_FALSE(FastDecode(std::vector<uint8_t>{0x06, 0, 0}, CodeSize::k64, instruction));
  EXPECT_FALSE(FastDecode(std::vector<uint8_t>{0xc1, 0xe0, 0x20}, CodeSize::k64, instruction));
  EXPECT_FALSE(FastDecode({}, CodeSize::k64, instruction));
  EXPECT_EQ(instruction, before);
}

TEST(FastDecoder, InPlace) {
  Instruction instruction;
  const uint8_t bytes[] = {0x48, 0x8b, 0x84, 0x8b, 1, 2, 3, 4};  // mov rax, [rbx+rcx*4+0x4030201]
  ASSERT_TRUE(FastDecode(bytes, CodeSize::k64, instruction));
  const Instruction first = instruction;
  ASSERT_TRUE(FastDecode(instruction.bytes, CodeSize::k64, instruction));
  EXPECT_EQ(instruction, first);
}

TEST(FastDecoder, ThreadsAgree) {
  std::vector<std::thread> threads;
  std::array<Comparison, 4> comparisons;
  for (Comparison& comparison : comparisons)
    threads.emplace_back([&comparison] {
      Generator generator;
      for (unsigned i = 0; i < 20000; ++i)
        comparison.Compare(generator.Legacy(i & 7, i >> 3 & 3, i >> 5 & 255, i * 37, CodeSize::k64), CodeSize::k64);
    });
  for (std::thread& thread : threads) thread.join();
  for (const Comparison& comparison : comparisons) EXPECT_EQ(comparison.fast, comparisons[0].fast);
}

}  // namespace
}  // namespace nacre::x86
