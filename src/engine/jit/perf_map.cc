#include "engine/jit/perf_map.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <sstream>

namespace nacre::engine::jit {

namespace {

constexpr size_t kFlushBytes = 64 * kKiB;
constexpr uint64_t kMaxSymbolDistance = kMiB;  ///< farther from a symbol, an address is no part of it

}  // namespace

Result<GuestSymbols> GuestSymbols::Load(const std::string& path) {
  std::ifstream file(path);
  if (!file) return FailErrno("guest symbols in {}", path);
  GuestSymbols symbols;
  for (std::string line; std::getline(file, line);) {  // ffffffff81000000 T _text [module]
    std::istringstream words(line);
    Symbol symbol;
    char kind = 0;
    if (!(words >> std::hex >> symbol.address >> kind >> symbol.name)) continue;
    if (symbol.address != 0 && (kind == 't' || kind == 'T' || kind == 'w' || kind == 'W'))
      symbols.symbols_.push_back(std::move(symbol));
  }
  if (symbols.symbols_.empty())
    return Fail("{}: no symbols with addresses; give a System.map, or the guest's /proc/kallsyms as root reads it",
                path);
  std::ranges::stable_sort(symbols.symbols_, {}, &Symbol::address);
  return symbols;
}

std::string GuestSymbols::Name(uint64_t address) const {
  const auto after = std::ranges::upper_bound(symbols_, address, {}, &Symbol::address);
  if (after == symbols_.begin()) return {};
  const Symbol& symbol = *std::prev(after);
  if (address - symbol.address > kMaxSymbolDistance) return {};
  return fmt::format("{}+{:#x}", symbol.name, address - symbol.address);
}

Result<std::unique_ptr<PerfMap>> PerfMap::Create(const std::string& symbols_file, bool first) {
  std::unique_ptr<PerfMap> map(new PerfMap);
  if (!symbols_file.empty()) map->symbols_ = NACRE_TRY(GuestSymbols::Load(symbols_file));
  const std::string path = fmt::format("/tmp/perf-{}.map", getpid());
  // Not through a link that another user may have left there, nor into a file of theirs.
  if (first) unlink(path.c_str());
  const int exclusive = first ? O_EXCL : 0;
  map->file_ = Fd(open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC | exclusive, 0600));
  if (!map->file_.valid()) return FailErrno("{}", path);
  return map;
}

void PerfMap::Add(const uint8_t* code, uint32_t bytes, std::string_view name) {
  if (lines_ >= kMaxLines) return;
  ++lines_;
  fmt::format_to(std::back_inserter(pending_), "{:x} {:x} {}\n", reinterpret_cast<uintptr_t>(code), bytes, name);
  if (pending_.size() >= kFlushBytes) Flush();
}

void PerfMap::AddStubs(const codegen::CodeBuffer& buffer, uint32_t bytes) {
  Add(buffer.exec_base(), bytes, "nacre stubs");
}

void PerfMap::AddBlock(const codegen::CodeBuffer& buffer, const Block& block) {
  const bool user = (block.flags & kFlagContextMask) == kContextUser;
  const std::string symbol = user ? std::string() : symbols_.Name(block.rip);
  Add(buffer.exec_base() + block.code, block.host_size,
      fmt::format("guest {} {:x}{}{}", user ? "user" : "kernel", block.rip, symbol.empty() ? "" : " ", symbol));
}

void PerfMap::Flush() {
  // A line that could not be written costs a name only.
  (void)!write(file_.get(), pending_.data(), pending_.size());
  pending_.clear();
}

}  // namespace nacre::engine::jit
