// FXSAVE, FXRSTOR, the XSAVE family, LDMXCSR, VZEROUPPER and VZEROALL, done by their pages in SDM 2A-2C and SDM 1
// ch. 13. CPU models report FCS/FDS as deprecated, and FIP, FDP and FOP are kept at zero: host addresses must not show
// there.

#include <algorithm>
#include <cstring>

#include "base/bits.h"
#include "engine/interp/vector_impl.h"

namespace nacre::engine::interp {
namespace {

using x86::CpuState;
using x86::XsaveArea;

constexpr uint64_t kX87Bit = 1, kSseBit = 2, kAvxBit = 4;
constexpr unsigned kXmmOffset = 160, kHeaderOffset = 512, kHeaderBytes = 64;

using Component = x86::XsaveComponent;

/// Outside 64-bit code vector registers from 8 on are out of reach (SDM 1 13.5).
unsigned BytesOf(const Component& component, const VectorCall& call) {
  if (call.vector_registers() == 16) return component.bytes;
  constexpr unsigned kAvx = 2, kZmmHi256 = 6, kHi16Zmm = 7;
  if (component.bit == kHi16Zmm) return 0;
  return component.bit == kAvx || component.bit == kZmmHi256 ? component.bytes / 2 : component.bytes;
}

bool AllZero(const uint8_t* from, size_t bytes) {
  return std::all_of(from, from + bytes, [](uint8_t byte) { return byte == 0; });
}

/// XINUSE (SDM 1 13.6): components that are not in their initial configuration.
uint64_t InUse(CpuState& state) {
  XsaveArea& area = state.xsave;
  uint64_t in_use = 0;
  if (area.fcw() != kFcwInit || area.fsw() != 0 || area.ftw() != 0 || !AllZero(area.st(0), 128)) in_use |= kX87Bit;
  if (!AllZero(area.xmm(0), 256)) in_use |= kSseBit;
  for (const Component& component : x86::kXsaveComponents)
    if (!AllZero(area.bytes + component.offset, component.bytes)) in_use |= Bit(component.bit);
  return in_use;
}

/// What goes to guest memory: all of it is probed before any of it is written.
class Pieces {
 public:
  void Add(unsigned offset, const void* from, unsigned bytes) {
    if (bytes == 0) return;
    piece_[count_++] = {offset, from, bytes};
  }
  VectorResult Write(const VectorCall& call) const {
    for (unsigned i = 0; i < count_; ++i)
      if (!call.Probe(piece_[i].offset, piece_[i].bytes)) return VectorResult::kMemoryFault;
    for (unsigned i = 0; i < count_; ++i)
      if (!call.Write(piece_[i].offset, piece_[i].from, piece_[i].bytes)) return VectorResult::kMemoryFault;
    return VectorResult::kOk;
  }

 private:
  struct Piece {
    unsigned offset;
    const void* from;
    unsigned bytes;
  };
  Piece piece_[12] = {};
  unsigned count_ = 0;
};

/// The legacy region as stored: no error pointers, our MXCSR mask.
struct LegacyImage {
  explicit LegacyImage(CpuState& state) {
    std::memcpy(bytes, state.xsave.bytes, sizeof(bytes));
    std::memset(bytes + 5, 0, 19);
    StoreLe<uint32_t>(bytes + 28, kMxcsrMask);
    for (unsigned i = 0; i < 8; ++i) std::memset(bytes + 32 + 16 * i + 10, 0, 6);
  }
  uint8_t bytes[416];
};

/// Takes FCW, FSW, FTW and the registers out of a legacy region.
void LoadX87(CpuState& state, const uint8_t* legacy) {
  std::memcpy(state.xsave.bytes, legacy, 5);
  std::memset(state.xsave.bytes + 5, 0, 19);
  std::memcpy(state.xsave.st(0), legacy + 32, 128);
}

void InitX87(CpuState& state) {
  std::memset(state.xsave.bytes, 0, 24);
  state.xsave.fcw() = kFcwInit;
  std::memset(state.xsave.st(0), 0, 128);
}

uint64_t RequestedFeatures(const CpuState& state) {
  const uint64_t mask = (state.gpr[x86::kRdx] << 32) | static_cast<uint32_t>(state.gpr[x86::kRax]);
  return state.xcr0 & mask;
}

/// A header in the standard format that XRSTOR accepts (SDM 1 13.8.1). CPU models have no compaction (XSAVEC).
bool HeaderValid(const CpuState& state, const uint8_t (&header)[kHeaderBytes]) {
  return (LoadLe<uint64_t>(header) & ~state.xcr0) == 0 && AllZero(header + 8, 16);
}

}  // namespace

VectorResult VectorUnit::Impl::Fxsave(const VectorCall& call) {
  if (!call.Aligned(16)) return VectorResult::kGeneralProtection;
  if (!call.Probe(0, 512)) return VectorResult::kMemoryFault;
  const LegacyImage image(call.state);
  // Bytes above the last register stay as they are (SDM 2A "FXSAVE": reserved or available to software).
  const unsigned bytes = kXmmOffset + 16 * call.vector_registers();
  return call.Write(0, image.bytes, bytes) ? VectorResult::kOk : VectorResult::kMemoryFault;
}

VectorResult VectorUnit::Impl::Fxrstor(const VectorCall& call) {
  if (!call.Aligned(16)) return VectorResult::kGeneralProtection;
  uint8_t image[512];
  if (!call.Read(0, image, sizeof(image))) return VectorResult::kMemoryFault;
  const auto mxcsr = LoadLe<uint32_t>(image + 24);
  if ((mxcsr & ~kMxcsrMask) != 0) return VectorResult::kGeneralProtection;
  LoadX87(call.state, image);
  call.state.xsave.mxcsr() = mxcsr;
  std::memcpy(call.state.xsave.xmm(0), image + kXmmOffset, 16 * call.vector_registers());
  NormalizeX87(call.state);
  return VectorResult::kOk;
}

VectorResult VectorUnit::Impl::Xsave(const VectorCall& call, bool optimized) {
  if (!call.Aligned(64)) return VectorResult::kGeneralProtection;
  CpuState& state = call.state;
  const uint64_t features = RequestedFeatures(state);
  const uint64_t in_use = InUse(state);
  const uint64_t saved = optimized ? features & in_use : features;
  const LegacyImage legacy(state);
  Pieces pieces;
  if ((saved & kX87Bit) != 0) {
    pieces.Add(0, legacy.bytes, 24);
    pieces.Add(32, legacy.bytes + 32, 128);
  }
  if ((features & (kSseBit | kAvxBit)) != 0) pieces.Add(24, legacy.bytes + 24, 8);  // MXCSR and its mask
  if ((saved & kSseBit) != 0) pieces.Add(kXmmOffset, legacy.bytes + kXmmOffset, 16 * call.vector_registers());
  for (const Component& component : x86::kXsaveComponents)
    if (TestBit(saved, component.bit))
      pieces.Add(component.offset, state.xsave.bytes + component.offset, BytesOf(component, call));
  uint64_t xstate_bv = 0;
  if (!call.Read(kHeaderOffset, &xstate_bv, sizeof(xstate_bv))) return VectorResult::kMemoryFault;
  xstate_bv = (xstate_bv & ~features) | (features & in_use);
  pieces.Add(kHeaderOffset, &xstate_bv, sizeof(xstate_bv));
  return pieces.Write(call);
}

VectorResult VectorUnit::Impl::Xrstor(const VectorCall& call) {
  if (!call.Aligned(64)) return VectorResult::kGeneralProtection;
  CpuState& state = call.state;
  uint8_t header[kHeaderBytes];
  if (!call.Read(kHeaderOffset, header, sizeof(header))) return VectorResult::kMemoryFault;
  if (!HeaderValid(state, header)) return VectorResult::kGeneralProtection;
  const uint64_t features = RequestedFeatures(state);
  const uint64_t present = features & LoadLe<uint64_t>(header);
  // Everything is read and checked before anything is loaded.
  XsaveArea incoming;
  const bool has_mxcsr = (features & (kSseBit | kAvxBit)) != 0;
  if ((present & kX87Bit) != 0 && (!call.Read(0, incoming.bytes, 24) || !call.Read(32, incoming.bytes + 32, 128)))
    return VectorResult::kMemoryFault;
  if (has_mxcsr && !call.Read(24, incoming.bytes + 24, 4)) return VectorResult::kMemoryFault;
  const unsigned xmm_bytes = 16 * call.vector_registers();
  if ((present & kSseBit) != 0 && !call.Read(kXmmOffset, incoming.xmm(0), xmm_bytes)) return VectorResult::kMemoryFault;
  for (const Component& component : x86::kXsaveComponents) {
    const unsigned bytes = TestBit(present, component.bit) ? BytesOf(component, call) : 0;
    if (bytes != 0 && !call.Read(component.offset, incoming.bytes + component.offset, bytes))
      return VectorResult::kMemoryFault;
  }
  if (has_mxcsr && (incoming.mxcsr() & ~kMxcsrMask) != 0) return VectorResult::kGeneralProtection;

  if ((features & kX87Bit) != 0) {
    if ((present & kX87Bit) != 0)
      LoadX87(state, incoming.bytes);
    else
      InitX87(state);
    NormalizeX87(state);
  }
  if (has_mxcsr) state.xsave.mxcsr() = incoming.mxcsr();
  // What is absent from the area is zero in `incoming`: the initial configuration.
  if ((features & kSseBit) != 0) std::memcpy(state.xsave.xmm(0), incoming.xmm(0), xmm_bytes);
  for (const Component& component : x86::kXsaveComponents)
    if (TestBit(features, component.bit))
      std::memcpy(state.xsave.bytes + component.offset, incoming.bytes + component.offset, BytesOf(component, call));
  return VectorResult::kOk;
}

VectorResult VectorUnit::Impl::Ldmxcsr(const VectorCall& call) {
  uint32_t value = 0;
  if (!call.Read(0, &value, sizeof(value))) return VectorResult::kMemoryFault;
  if ((value & ~kMxcsrMask) != 0) return VectorResult::kGeneralProtection;
  call.state.xsave.mxcsr() = value;
  return VectorResult::kOk;
}

VectorResult VectorUnit::Impl::ZeroUpper(const VectorCall& call, bool all) {
  for (unsigned i = 0; i < call.vector_registers(); ++i) {
    std::memset(call.state.xsave.ymm_high(i), 0, 16);
    std::memset(call.state.xsave.zmm_high(i), 0, 32);
    if (all) std::memset(call.state.xsave.xmm(i), 0, 16);
  }
  return VectorResult::kOk;
}

}  // namespace nacre::engine::interp
