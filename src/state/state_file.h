#pragma once
// The frame of a saved machine (state.bin): named sections, each with a checksum. What a section holds is an archive
// (state/archive.h), or what its writer says.
//
// On the wire, little-endian:
//   file     { "NACRE-ST", u32 version, u32 number of sections, u32 0, u32 CRC-32C of the 20 bytes before }
//   section  { u32 bytes of the name, u32 0, u64 bytes of the content, name, u32 CRC-32C of that, content,
//              u32 CRC-32C of the content }
// and nothing behind the last section. One thread.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace nacre::state {

class StateFile {
 public:
  static constexpr uint32_t kVersion = 1;
  static constexpr size_t kMaxSections = 4096, kMaxName = 128;

  struct Section {
    std::string name;
    std::vector<uint8_t> content;
  };

  /// The name is not there yet, and at most kMaxName long.
  void Add(std::string name, std::vector<uint8_t> content);
  /// Null: there is none.
  const Section* Find(std::string_view name) const;
  const std::vector<Section>& sections() const { return sections_; }

  std::vector<uint8_t> Encode() const;
  /// Allocates no more than `bytes` has. An error names the section that is damaged.
  static Result<StateFile> Decode(std::span<const uint8_t> bytes);

 private:
  std::vector<Section> sections_;
};

}  // namespace nacre::state
