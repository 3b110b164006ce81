#pragma once
// Strong types for guest-physical, guest-virtual (linear) addresses: mixing them is the classic bug of this field.

#include <compare>
#include <cstdint>

#include "base/bits.h"

namespace nacre {

template <typename Tag>
struct Address {
  uint64_t value = 0;

  constexpr Address() = default;
  constexpr explicit Address(uint64_t v) : value(v) {}
  constexpr auto operator<=>(const Address&) const = default;
  constexpr Address operator+(uint64_t n) const { return Address(value + n); }
  constexpr Address operator-(uint64_t n) const { return Address(value - n); }
  constexpr uint64_t operator-(Address other) const { return value - other.value; }
  constexpr uint64_t page() const { return value / kPageSize; }
  constexpr uint64_t page_offset() const { return value & kPageMask; }
};

using GuestPhys = Address<struct GuestPhysTag>;
/// A linear address: after segmentation, before paging.
using GuestVirt = Address<struct GuestVirtTag>;

}  // namespace nacre
