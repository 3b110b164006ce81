#pragma once
// Linear to guest-physical translation with every paging mode (SDM 3A ch. 4): none, 32-bit, PAE, 4-level; large pages,
// A/D bits by compare-exchange, WP, NX, SMEP, SMAP, PGE. No caching: callers keep their own TLB. Compiled without
// vector registers, so that translated code may call it with guest vectors live. Any thread.

#include <cstdint>

#include "memory/address.h"
#include "memory/guest_memory.h"
#include "x86/cpu_state.h"

namespace nacre::x86 {

enum class Access : uint8_t { kRead, kWrite, kExecute };

/// #PF error code bits (SDM 3A 4.7).
namespace pf {
inline constexpr uint32_t kPresent = 1, kWrite = 2, kUser = 4, kReserved = 8, kFetch = 16;
}

struct Translation {
  bool ok = false;
  uint32_t error_code = 0;     ///< of the #PF when !ok
  GuestPhys address;           ///< of the byte asked for (any guest-physical address, RAM or not)
  uint64_t page_bytes = 4096;  ///< size of the page that maps it
  // Rights of the mapping under the state's CR0.WP, SMEP, SMAP for the privilege asked with. `writable` only if the
  // D bit is set already (or was set by this walk), so that a cached write right never misses a D update.
  bool readable = false, writable = false, executable = false;
  bool user = false;    ///< the mapping's combined U/S
  bool global = false;  ///< G bit with CR4.PGE
};

struct WalkOptions {
  Access access = Access::kRead;
  bool user = false;           ///< the access is a user-mode access (CPL 3 and not an implicit supervisor access)
  bool set_bits = true;        ///< update A and D; false: a probe that changes nothing
  bool smap_override = false;  ///< supervisor access with EFLAGS.AC set and not implicit: SMAP does not apply
  bool pages_1gib = true;      ///< the CPU model has them; else their PS bit is reserved
  uint8_t physical_address_bits = 52;  ///< of the CPU model: address bits above are reserved in entries
};

/// With paging off: identity, 4 KiB, all rights. Does not check canonical form: that is segmentation's #GP/#SS. Paging
/// structures outside RAM read as entries with reserved bits. A and D bits are set only where the access is permitted;
/// their stores mark the page dirty (GuestMemory::kDirty) but do not call the CodeWriteListener.
Translation WalkPages(memory::GuestMemory& memory, const CpuState& state, GuestVirt address,
                      const WalkOptions& options);

/// Loads and checks the four PAE PDPTEs at CR3 (SDM 3A 4.4.1). False: reserved bits are set (#GP, nothing changed).
bool LoadPdptes(memory::GuestMemory& memory, CpuState& state, uint64_t cr3, unsigned physical_address_bits = 52);

}  // namespace nacre::x86
