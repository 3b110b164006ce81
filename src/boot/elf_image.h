#pragma once
// A checked view of an ELF executable's program headers, and the loading of its segments. The file is hostile: Parse
// checks every offset against it. Used by the loaders, one thread. Specification: System V gABI, chapters 4 and 5.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "memory/guest_memory.h"

namespace nacre::boot {

struct ElfSegment {
  uint32_t type = 0;
  uint64_t file_offset = 0, file_bytes = 0;  ///< inside the file
  uint64_t virtual_address = 0, physical_address = 0, memory_bytes = 0;
};

class ElfImage {
 public:
  static constexpr uint32_t kLoad = 1, kNote = 4;

  static bool HasMagic(std::span<const uint8_t> file);
  /// An x86 executable (EM_386 or EM_X86_64) with its program headers; `file` must outlive the result.
  static Result<ElfImage> Parse(std::span<const uint8_t> file);

  bool is64() const { return is64_; }
  uint64_t entry() const { return entry_; }
  std::span<const ElfSegment> segments() const { return segments_; }
  /// `entry`, when it is a virtual address of a segment, as a physical one.
  uint64_t PhysicalEntry() const;
  /// The 32- or 64-bit value of a note, if it is there.
  std::optional<uint64_t> NoteValue(std::string_view owner, uint32_t type) const;

  /// Copies all PT_LOAD segments to their physical addresses, which must be RAM at or above 1 MiB, zeroes the rest of
  /// each. Returns the end of the highest.
  Result<GuestPhys> Load(memory::GuestMemory& memory) const;

 private:
  std::span<const uint8_t> file_;
  bool is64_ = false;
  uint64_t entry_ = 0;
  std::vector<ElfSegment> segments_;
};

/// Copies `from` to `address` and zeroes what follows up to `memory_bytes`; fails unless all of it is RAM at or above
/// 1 MiB. Untouched pages of the zeroed part cost the host nothing.
Status LoadBytes(memory::GuestMemory& memory, GuestPhys address, std::span<const uint8_t> from, uint64_t memory_bytes);

}  // namespace nacre::boot
