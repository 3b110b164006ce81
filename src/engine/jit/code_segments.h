#pragma once
// Where code is, as blocks, links and jump caches name it: in 64-bit code RIP; else the linear address, and in the
// upper 32 bits the number of the code segment, which stands for its base and limit. So what depends on these (return
// addresses, where IP wraps, where the segment ends) may be constant in a block. Numbers: 0 is flat (base 0, limit
// 4 GiB); 1 + S is what real-address and virtual-8086 mode make of selector S (base 16 * S, limit 64 KiB); the rest is
// given in the order of appearance. Used with guest vectors live; one thread.

#include <array>
#include <cstdint>

namespace nacre::engine::jit {

inline constexpr unsigned kCodeSegmentShift = 32;
inline constexpr uint64_t kCodeSegmentMask = ~uint64_t{0xffffffff};

struct CodeSegment {
  uint32_t base = 0;
  uint32_t limit = 0xffffffff;
  bool operator==(const CodeSegment&) const = default;
};

class CodeSegments {
 public:
  static constexpr uint32_t kFirstGiven = 0x10001;
  static constexpr unsigned kMost = 2048;  ///< numbers that are given

  /// 0xffffffff: all numbers are given; Clear takes them back.
  uint32_t NumberOf(const CodeSegment& segment) {
    if (segment == CodeSegment{}) return 0;
    if (segment.limit == 0xffff && segment.base <= 0xffff0 && segment.base % 16 == 0) return 1 + segment.base / 16;
    unsigned at = (segment.base ^ segment.base >> 13 ^ segment.limit) * 0x9e3779b1u >> 20;
    for (; places_[at] != 0; at = (at + 1) % kPlaces)
      if (given_[places_[at] - 1u] == segment) return kFirstGiven + places_[at] - 1u;
    if (count_ == kMost) return 0xffffffff;
    given_[count_] = segment;
    places_[at] = static_cast<uint16_t>(++count_);
    return kFirstGiven + count_ - 1;
  }
  /// No code address of before may be used any more.
  void Clear() {
    count_ = 0;
    for (uint16_t& place : places_) place = 0;
  }

 private:
  static constexpr unsigned kPlaces = 4096;  ///< as many as 12 bits of the hash
  static_assert(kMost < kPlaces);
  unsigned count_ = 0;
  std::array<CodeSegment, kMost> given_{};
  std::array<uint16_t, kPlaces> places_{};  ///< number in given_ plus 1; 0: free
};

}  // namespace nacre::engine::jit
