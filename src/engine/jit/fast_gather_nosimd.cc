// Gathers and scatters of translated code, element by element through the TLB (SDM 2C "VPGATHERDD", "VPSCATTERDD").

#include "engine/jit/jit_vcpu.h"

namespace nacre::engine::jit {

namespace {

/// Bit i: element i is selected.
uint64_t SelectedElements(const Site& site, const uint8_t* mask) {
  if (site.opmask != 0) return LoadLe<uint64_t>(mask) & (Bit(site.opmask_bits) - 1);
  uint64_t selected = 0;
  for (unsigned i = 0; i < site.opmask_bits; ++i)
    if (mask[(i + 1) * site.size - 1] & 0x80) selected |= Bit(i);
  return selected;
}

template <typename T>
void CopyElement(uint8_t* to, const uint8_t* from) {
  StoreLe(to, LoadLe<T>(from));
}

}  // namespace

/// From and to JitContext::gather_..., where the registers are and where translated code takes them from. False: an
/// element faults, crosses a page or is not plain memory; the interpreter does all again, which stores the same.
bool JitVcpu::FastGather(const Site& site) {
  JitContext& context = *context_;
  uint8_t* value = context.gather_value;
  const unsigned size = site.size, count = site.opmask_bits;
  const uint64_t selected = SelectedElements(site, context.gather_mask);
  for (unsigned i = 0; i < count; ++i) {
    if (!TestBit(selected, i)) continue;
    const auto index = static_cast<uint64_t>(site.to == 4 ? LoadLe<int32_t>(context.gather_index + 4 * i)
                                                          : LoadLe<int64_t>(context.gather_index + 8 * i));
    uint8_t* host = HostFor(site.context, context.slow_address + index * site.from, size, site.write);
    if (!host) return false;
    uint8_t* to = site.write ? host : value + i * size;
    const uint8_t* from = site.write ? value + i * size : host;
    if (size == 4)
      CopyElement<uint32_t>(to, from);
    else
      CopyElement<uint64_t>(to, from);
  }
  for (unsigned at = count * size; at < sizeof context.gather_value; at += 4) StoreLe<uint32_t>(value + at, 0);
  for (unsigned at = 0; at < sizeof context.gather_mask; at += 8) StoreLe<uint64_t>(context.gather_mask + at, 0);
  context.state.rip = BlockStore::RipOf(site) + site.length;
  return true;
}

}  // namespace nacre::engine::jit
