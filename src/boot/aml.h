#pragma once
// A small builder of ACPI Machine Language: each function gives the bytes of one term, and terms nest. Used by
// acpi_tables.cc only; arguments are ours, never a guest's. Specification: ACPI 6.5 chapters 20 (AML) and 6.4 (resource
// descriptors). Any thread.

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/bits.h"

namespace nacre::boot::aml {

using Bytes = std::vector<uint8_t>;

Bytes Join(std::initializer_list<Bytes> terms);

/// The shortest encoding of a number.
Bytes Integer(uint64_t value);
/// Always four bytes, behind one of its own: for a number that is written later.
Bytes Dword(uint32_t value);
Bytes String(std::string_view text);
/// "PNP0A03" in its compressed 32-bit form.
Bytes EisaId(std::string_view id);
/// "_CRS", "\\_SB", "PCI0.ISA": each part up to four characters.
Bytes Path(std::string_view path);

Bytes Name(std::string_view path, const Bytes& value);
Bytes Scope(std::string_view path, const Bytes& terms);
Bytes Device(std::string_view path, const Bytes& terms);
Bytes Method(std::string_view path, unsigned argument_count, const Bytes& terms);
Bytes Package(const std::vector<Bytes>& elements);
Bytes Buffer(const Bytes& content);
Bytes Return(const Bytes& value);
Bytes Store(const Bytes& value, const Bytes& target);
/// Terms run when `condition` (a term with a value) is not zero.
Bytes If(const Bytes& condition, const Bytes& terms);
Bytes Argument(unsigned index);
Bytes Local(unsigned index);
Bytes Add(const Bytes& left, const Bytes& right);
/// The place of an element, for Store.
Bytes Index(const Bytes& package, unsigned index);
/// Tells the drivers of `device` (a path).
Bytes Notify(std::string_view device, uint8_t value);

/// A _CRS or _PRS value: descriptors joined, with the end tag.
Bytes Resources(std::initializer_list<Bytes> descriptors);
Bytes IoPorts(uint16_t first, uint8_t count);
Bytes Irq(unsigned irq);
/// One channel of the 8237s, 0 to 7: compatible timing, no bus master, transfers of 8 bits (0 to 3) or 16.
Bytes DmaChannel(unsigned channel);
Bytes FixedMemory(uint32_t address, uint32_t size_bytes);
/// Windows that a bridge passes on to its bus; `last` is included.
Bytes BusWindow(uint16_t first, uint16_t last);
Bytes IoWindow(uint16_t first, uint16_t last);
Bytes MemoryWindow32(uint32_t first, uint32_t last);
Bytes MemoryWindow64(uint64_t first, uint64_t last);

}  // namespace nacre::boot::aml
