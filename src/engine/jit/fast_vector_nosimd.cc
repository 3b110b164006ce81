// XSAVE, XSAVEOPT and XRSTOR of a guest whose vector registers are live in the host's: between the registers and guest
// memory by way of CpuState::xsave, whose layout is the guest's (SDM 1 ch. 13). False: the interpreter does it.

#include "engine/jit/jit_vcpu.h"

namespace nacre::engine::jit {

using x86::CpuState;
using x86::XsaveArea;

namespace {

constexpr uint64_t kX87Bit = 1, kSseBit = 2, kAvxBit = 4;
constexpr unsigned kHeader = 512, kXmm = 160, kMxcsr = 24, kX87Registers = 32;
constexpr uint32_t kMxcsrMask = 0xffff;

void CopyQuads(uint8_t* to, const uint8_t* from, uint64_t bytes) {
  uint64_t quads = bytes / 8;
  asm volatile("rep movsq" : "+c"(quads), "+D"(to), "+S"(from) : : "memory");
}

void ZeroQuads(uint8_t* to, uint64_t bytes) {
  uint64_t quads = bytes / 8;
  asm volatile("rep stosq" : "+c"(quads), "+D"(to) : "a"(0) : "memory");
}

bool AllZero(const uint8_t* from, uint64_t bytes) {
  uint64_t any = 0;
  for (uint64_t at = 0; at < bytes; at += 8) any |= LoadLe<uint64_t>(from + at);
  return any == 0;
}

/// An XSAVE area in guest memory: at most two pages. Everything is a multiple of 8 bytes, the area aligned to 64.
struct Area {
  uint8_t* page[2] = {};
  unsigned in_first = 0;  ///< bytes on the first page

  uint8_t* At(unsigned offset) const { return offset < in_first ? page[0] + offset : page[1] + (offset - in_first); }
  void Put(unsigned offset, const uint8_t* from, unsigned bytes) const {
    const unsigned first = offset >= in_first ? 0 : in_first - offset < bytes ? in_first - offset : bytes;
    if (first) CopyQuads(At(offset), from, first);
    if (first < bytes) CopyQuads(At(offset + first), from + first, bytes - first);
  }
  void Get(unsigned offset, uint8_t* to, unsigned bytes) const {
    const unsigned first = offset >= in_first ? 0 : in_first - offset < bytes ? in_first - offset : bytes;
    if (first) CopyQuads(to, At(offset), first);
    if (first < bytes) CopyQuads(to + first, At(offset + first), bytes - first);
  }
};

/// How far an area with these components reaches.
unsigned AreaBytes(uint64_t features) {
  unsigned bytes = kHeader + 64;
  for (const x86::XsaveComponent& component : x86::kXsaveComponents)
    if (TestBit(features, component.bit)) bytes = component.offset + component.bytes;
  return bytes;
}

}  // namespace

/// The components that are in the host's registers while vectors_live_.
uint64_t JitVcpu::LiveComponents() const { return (has_avx_ ? 7 : 3) | (avx512_live_ ? x86::kAvx512Components : 0); }

bool JitVcpu::FastXsave(const Site& site, bool restore, bool optimized) {
  CpuState& state = context_->state;
  const uint64_t live = LiveComponents();
  const uint64_t address = context_->slow_address;
  const uint64_t features = (state.gpr[x86::kRdx] << 32 | (state.gpr[x86::kRax] & 0xffffffff)) & state.xcr0;
  if (!site.has_address || !vectors_live_ || !state.code64() || (address & 63) || (state.xcr0 & ~live) ||
      !(state.cr4 & x86::cr4::kOsXsave) || (state.cr0 & (x86::cr0::kTs | x86::cr0::kEm)))
    return false;
  const unsigned size = AreaBytes(features);
  Area area;
  area.in_first = static_cast<unsigned>(kPageSize - (address & kPageMask));
  area.page[0] = HostFor(site.context, address, 64, !restore);
  if (!area.page[0]) return false;
  if (area.in_first < size) {
    area.page[1] = HostFor(site.context, address + area.in_first, 64, !restore);
    // The second fill must not have taken the first page's entry away: then a write right may have gone, too.
    if (!area.page[1] || HostFor(site.context, address, 64, !restore) != area.page[0]) return false;
  }
  if (restore ? !LoadXsaveArea(area, features) : !StoreXsaveArea(area, features, optimized)) return false;
  state.rip = BlockStore::RipOf(site) + site.length;
  return true;
}

template <typename Memory>
bool JitVcpu::StoreXsaveArea(const Memory& area, uint64_t features, bool optimized) {
  uint8_t* image = context_->state.xsave.bytes;
  StoreVectors();
  uint64_t in_use = LoadLe<uint64_t>(image + kHeader) & (kX87Bit | kSseBit | kAvxBit);
  for (const x86::XsaveComponent& component : x86::kXsaveComponents)
    if (TestBit(features & x86::kAvx512Components, component.bit) &&
        !AllZero(image + component.offset, component.bytes))
      in_use |= Bit(component.bit);
  in_use &= features;
  const uint64_t saved = optimized ? in_use : features;
  StoreLe<uint32_t>(image + kMxcsr + 4, kMxcsrMask);
  if (saved & kX87Bit) {
    area.Put(0, image, 24);
    for (unsigned i = 0; i < 8; ++i) {  // reserved bytes
      StoreLe<uint16_t>(image + kX87Registers + 16 * i + 10, 0);
      StoreLe<uint32_t>(image + kX87Registers + 16 * i + 12, 0);
    }
    area.Put(kX87Registers, image + kX87Registers, 128);
  }
  if (features & (kSseBit | kAvxBit)) area.Put(kMxcsr, image + kMxcsr, 8);
  if (saved & kSseBit) area.Put(kXmm, image + kXmm, 256);
  for (const x86::XsaveComponent& component : x86::kXsaveComponents)
    if (TestBit(saved, component.bit)) area.Put(component.offset, image + component.offset, component.bytes);
  StoreLe<uint32_t>(image + kMxcsr + 4, 0);
  uint8_t* header = area.At(kHeader);
  StoreLe<uint64_t>(header, (LoadLe<uint64_t>(header) & ~features) | in_use);
  return true;
}

template <typename Memory>
bool JitVcpu::LoadXsaveArea(const Memory& area, uint64_t features) {
  CpuState& state = context_->state;
  // Copied before it is looked at: other CPUs may write there.
  uint64_t header[3];
  area.Get(kHeader, reinterpret_cast<uint8_t*>(header), 24);
  if ((header[0] & ~state.xcr0) || header[1] || header[2]) return false;
  const uint64_t present = features & header[0];
  alignas(8) uint8_t mxcsr[8];
  area.Get(kMxcsr, mxcsr, 8);
  const bool has_mxcsr = (features & (kSseBit | kAvxBit)) != 0;
  if (has_mxcsr && (LoadLe<uint32_t>(mxcsr) & ~kMxcsrMask)) return false;
  const uint64_t live = LiveComponents();
  uint8_t* image = state.xsave.bytes;
  if (features != live) StoreVectors();  // what is not loaded stays
  if (present & kX87Bit) {
    area.Get(0, image, 24);
    image[5] = 0;
    StoreLe<uint16_t>(image + 6, 0);
    StoreLe<uint64_t>(image + 8, 0);
    StoreLe<uint64_t>(image + 16, 0);
    area.Get(kX87Registers, image + kX87Registers, 128);
  }
  if (has_mxcsr) StoreLe<uint32_t>(image + kMxcsr, LoadLe<uint32_t>(mxcsr));
  if (present & kSseBit) area.Get(kXmm, image + kXmm, 256);
  for (const x86::XsaveComponent& component : x86::kXsaveComponents)
    if (TestBit(present, component.bit))
      area.Get(component.offset, image + component.offset, component.bytes);
    else if (TestBit(features & x86::kAvx512Components, component.bit))
      ZeroQuads(image + component.offset, component.bytes);
  LoadVectors((live & ~features) | present);
  return true;
}

}  // namespace nacre::engine::jit
