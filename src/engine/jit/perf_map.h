#pragma once
// /tmp/perf-PID.map, by which `perf report` names translated code (Linux, tools/perf/Documentation/jit-interface.txt):
// a line for each translation, START SIZE NAME, appended as they are made. The format knows no time: where code was
// replaced, perf has two names for an address and shows one of them. One object for each code buffer; one thread.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "engine/jit/block_listing.h"

namespace nacre::engine::jit {

/// Symbols of the guest's kernel, from a System.map or a copy of /proc/kallsyms.
class GuestSymbols {
 public:
  static Result<GuestSymbols> Load(const std::string& path);
  /// "name+0x1c", or empty text where nothing is known.
  std::string Name(uint64_t address) const;

 private:
  struct Symbol {
    uint64_t address = 0;
    std::string name;
  };
  std::vector<Symbol> symbols_;  ///< by address
};

class PerfMap {
 public:
  /// `symbols_file`: may be empty. `first`: the process's first code buffer; begins the file anew.
  static Result<std::unique_ptr<PerfMap>> Create(const std::string& symbols_file, bool first);
  ~PerfMap() { Flush(); }

  void AddStubs(const codegen::CodeBuffer& buffer, uint32_t bytes);
  void AddBlock(const codegen::CodeBuffer& buffer, const Block& block);

 private:
  /// Then the file stops growing: about 80 bytes a line.
  static constexpr uint64_t kMaxLines = 4'000'000;

  PerfMap() = default;
  void Add(const uint8_t* code, uint32_t bytes, std::string_view name);
  void Flush();

  Fd file_;
  GuestSymbols symbols_;
  std::string pending_;  ///< whole lines: other CPUs append to the same file
  uint64_t lines_ = 0;
};

}  // namespace nacre::engine::jit
