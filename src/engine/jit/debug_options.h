#pragma once
// Options of the translator for people who work on it; all off by default. Set by the command line
// (src/cli/debug_options.h) and by tests.

#include <cstdint>
#include <string>
#include <vector>

#include "base/bits.h"

namespace nacre::engine::jit {

/// What is made to happen at every Nth entry into translated code from the dispatcher; 0: not. With N = 1 direct jumps
/// are not linked, so that each block boundary is such an entry.
struct JitStress {
  uint32_t flush = 0;       ///< all cached translations of addresses are flushed
  uint32_t interrupt = 0;   ///< a request comes that turns out to be nothing
  uint32_t invalidate = 0;  ///< the translations of the page are thrown away
  uint32_t cache_mib = 0;   ///< the most MiB for translations; 0: as else
  bool tiny_tlb = false;    ///< kTinyTlbEntries in each data TLB
  bool compact = false;     ///< code is made compact until samples find it hot
  uint32_t sample = 0;      ///< checks until the next sample for hot code; 0: the usual number

  static constexpr unsigned kTinyTlbEntries = 8;  ///< at least 4: see NoTag

  bool at_entries() const { return flush != 0 || interrupt != 0 || invalidate != 0; }
  bool unlinked() const { return flush == 1 || interrupt == 1 || invalidate == 1; }
};

/// What JitStress::interrupt requests: as kRequestInterrupt, but edge: the interrupt controller, which was not asked,
/// does not take it back.
constexpr uint32_t kRequestNoInterrupt = 1u << 31;

struct JitDebugOptions {
  std::vector<uint64_t> dump_rips = {};  ///< translations that hold one of these addresses are listed
  bool dump_all = false;                 ///< every translation is
  std::string dump_file = {};            ///< where to; empty: standard error
  bool perf_map = false;                 ///< see PerfMap
  std::string symbols_file = {};         ///< of the guest's kernel, for the perf map
  bool check_reuse = false;              ///< blocks used again are compared with a translation made now
  JitStress stress = {};

  bool dump() const { return dump_all || !dump_rips.empty(); }
};

}  // namespace nacre::engine::jit
