// decode-bench FILE...: how long x86::Decode takes for one instruction of real code, beside Zydis alone, and how much
// of it the fast path covers. Each FILE is an ELF program, library or vmlinux (scripts/extract-vmlinux of the kernel's
// sources unpacks a vmlinuz); all executable sections are decoded from end to end. Best of 25 rounds,
// then every field is compared.

#include <elf.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "x86/decoder.h"
#include "x86/fast_decoder.h"

namespace nacre::x86 {
namespace {

constexpr int kRounds = 25;
constexpr size_t kMissesShown = 12;

struct Code {
  CodeSize size = CodeSize::k64;
  std::vector<std::vector<uint8_t>> sections;
};

template <typename Header, typename Section>
void AddSections(const std::vector<uint8_t>& file, Code& code) {
  Header header;
  if (file.size() < sizeof header) return;
  std::memcpy(&header, file.data(), sizeof header);
  for (unsigned i = 0; i < header.e_shnum; ++i) {
    Section section;
    const uint64_t at = header.e_shoff + uint64_t{i} * sizeof section;
    if (at > file.size() || file.size() - at < sizeof section) return;
    std::memcpy(&section, file.data() + at, sizeof section);
    if (section.sh_type != SHT_PROGBITS || (section.sh_flags & SHF_EXECINSTR) == 0) continue;
    if (section.sh_offset > file.size() || file.size() - section.sh_offset < section.sh_size) continue;
    const auto first = file.begin() + static_cast<ptrdiff_t>(section.sh_offset);
    code.sections.emplace_back(first, first + static_cast<ptrdiff_t>(section.sh_size));
  }
}

Code Load(const char* name) {
  std::ifstream stream(name, std::ios::binary);
  const std::vector<uint8_t> file{std::istreambuf_iterator<char>(stream), {}};
  Code code;
  if (file.size() < EI_NIDENT || std::memcmp(file.data(), ELFMAG, SELFMAG) != 0) return code;
  if (file[EI_CLASS] == ELFCLASS64) {
    AddSections<Elf64_Ehdr, Elf64_Shdr>(file, code);
  } else {
    code.size = CodeSize::k32;
    AddSections<Elf32_Ehdr, Elf32_Shdr>(file, code);
  }
  return code;
}

struct Sweep {
  uint64_t instructions = 0, checksum = 0;  ///< the checksum keeps the work from being optimised away
};

template <typename Decoder>
Sweep Run(const Code& code, Decoder decode) {
  Sweep sweep;
  Instruction instruction;
  for (const std::vector<uint8_t>& section : code.sections) {
    const std::span<const uint8_t> bytes(section);
    for (size_t at = 0; at < bytes.size();) {
      if (!decode(bytes.subspan(at), instruction)) {
        ++at;
        continue;
      }
      ++sweep.instructions;
      sweep.checksum += instruction.mnemonic * uint64_t{31} + instruction.gpr_read + instruction.length;
      at += instruction.length;
    }
  }
  return sweep;
}

template <typename Decoder>
double Nanoseconds(const Code& code, Decoder decode, Sweep& sweep) {
  double best = 1e30;
  for (int round = 0; round < kRounds; ++round) {
    const auto start = std::chrono::steady_clock::now();
    sweep = Run(code, decode);
    const std::chrono::duration<double, std::nano> time = std::chrono::steady_clock::now() - start;
    best = std::min(best, time.count() / static_cast<double>(std::max<uint64_t>(sweep.instructions, 1)));
  }
  return best;
}

/// The mnemonics that most often go to Zydis. Also counts what the fast path took, and where it is not as Zydis.
std::string Misses(const Code& code, uint64_t& fast, uint64_t& wrong) {
  std::map<std::string, uint64_t> counts;
  Run(code, [&](std::span<const uint8_t> bytes, Instruction& out) {
    if (FastDecode(bytes, code.size, out)) {
      ++fast;
      Instruction reference;
      if (DecodeByZydis(bytes, code.size, reference) != DecodeStatus::kOk || !(reference == out)) ++wrong;
      return true;
    }
    if (DecodeByZydis(bytes, code.size, out) != DecodeStatus::kOk) return false;
    ++counts[fmt::format("{}{}", out.encoding == Encoding::kEvex ? "EVEX." : "", MnemonicName(out.mnemonic))];
    return true;
  });
  std::vector<std::pair<uint64_t, std::string>> order;
  for (const auto& [name, count] : counts) order.emplace_back(count, name);
  std::sort(order.rbegin(), order.rend());
  std::string text;
  for (size_t i = 0; i < std::min(order.size(), kMissesShown); ++i)
    text += fmt::format(" {}:{}", order[i].second, order[i].first);
  return text;
}

int Main(std::span<char*> names) {
  for (const char* name : names) {
    const Code code = Load(name);
    if (code.sections.empty()) {
      fmt::print(stderr, "{}: no ELF file with executable sections\n", name);
      return 1;
    }
    Sweep ours, theirs;
    const double fast_ns = Nanoseconds(
        code,
        [&](std::span<const uint8_t> bytes, Instruction& out) {
          return Decode(bytes, code.size, out) == DecodeStatus::kOk;
        },
        ours);
    const double zydis_ns = Nanoseconds(
        code,
        [&](std::span<const uint8_t> bytes, Instruction& out) {
          return DecodeByZydis(bytes, code.size, out) == DecodeStatus::kOk;
        },
        theirs);
    uint64_t fast = 0, wrong = 0;
    const std::string misses = Misses(code, fast, wrong);
    fmt::print(
        "{}\n  {} instructions, {:.2f} % on the fast path, {} templates; {:.1f} ns, Zydis alone {:.1f} ns, {} differ\n",
        name, ours.instructions, 100.0 * static_cast<double>(fast) / static_cast<double>(ours.instructions),
        FastTemplateCount(), fast_ns, zydis_ns, wrong);
    fmt::print("  by Zydis:{}\n", misses);
  }
  return 0;
}

}  // namespace
}  // namespace nacre::x86

int main(int argc, char** argv) {
  if (argc < 2) {
    fmt::print(stderr, "usage: decode-bench FILE...\n");
    return 2;
  }
  return nacre::x86::Main({argv + 1, static_cast<size_t>(argc - 1)});
}
