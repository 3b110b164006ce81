#pragma once
// The headers of tar archives: POSIX.1-1988 ustar, with GNU's large numbers and its mark of long names. Any thread.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace nacre::tar {

inline constexpr size_t kBlock = 512;     ///< bytes; headers and data fill whole ones
inline constexpr size_t kNameSize = 100;  ///< most bytes of a name in a header

struct Member {
  std::string name = {}, link = {};
  uint64_t size = 0;  ///< bytes
  uint32_t mode = 0644;
  int64_t time_s = 0;  ///< since the Epoch
  char type = '0';     ///< a file; '5' a folder, '2' a symbolic link, ...
};

enum class Dialect : uint8_t {
  kUstar,
  kGnu,  ///< may have longer names in members of type L and K before it
};

/// One block. Of names longer than kNameSize the beginning.
std::string HeaderOf(const Member& member, Dialect dialect);

/// Nothing: it is no header, or damaged. Two blocks of zeros end an archive.
std::optional<Member> ParseHeader(std::string_view block);
bool IsEnd(std::string_view block);

/// What the data of a member of type x (POSIX.1-2001, pax) says of the next one. Nothing: damaged.
struct Pax {
  std::optional<std::string> name, link;
  std::optional<uint64_t> size;
};
std::optional<Pax> ParsePax(std::string_view text);

/// Bytes behind the data of a member up to the next header.
inline uint64_t PaddingOf(uint64_t size) { return (kBlock - size % kBlock) % kBlock; }

}  // namespace nacre::tar
