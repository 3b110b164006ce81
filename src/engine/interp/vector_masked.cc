// Masked moves and gathers touch, and fault on, only the elements that their mask selects, so they are done here and
// not by the thunk (SDM 2C "VMASKMOV", "VPMASKMOV", "VPGATHERDD/VPGATHERQD", 2B "MASKMOVDQU", "MASKMOVQ").

#include <algorithm>
#include <cstring>

#include "base/bits.h"
#include "engine/interp/vector_impl.h"

namespace nacre::engine::interp {
namespace {

using x86::Operand;
using x86::RegisterClass;

/// An element is selected by the top bit of its place in the mask.
bool Selected(const Ymm& mask, unsigned element, unsigned element_bytes) {
  return (mask[(element + 1) * element_bytes - 1] & 0x80) != 0;
}

/// MMX register `index` is a physical x87 register; the image is relative to TOP (SDM 2A "FXSAVE").
const uint8_t* MmxRegister(x86::XsaveArea& area, unsigned index) {
  const unsigned top = (area.fsw() >> 11) & 7;
  return area.st((index - top) & 7);
}

}  // namespace

VectorResult VectorUnit::Impl::MaskedLoad(const VectorCall& call, const VectorPlan& plan) {
  const auto& insn = call.insn;
  const Ymm mask = LoadYmm(call.state, insn.operand[1].index);
  const unsigned size = plan.element_bytes;
  Ymm result = {};
  for (unsigned i = 0; i < insn.vector_length / size; ++i)
    if (Selected(mask, i, size) && !call.Read(i * size, result.data() + i * size, size))
      return VectorResult::kMemoryFault;
  StoreYmm(call.state, insn.operand[0].index, result);
  return VectorResult::kOk;
}

VectorResult VectorUnit::Impl::MaskedStore(const VectorCall& call, const VectorPlan& plan) {
  const auto& insn = call.insn;
  const Ymm mask = LoadYmm(call.state, insn.operand[1].index);
  const Ymm value = LoadYmm(call.state, insn.operand[2].index);
  const unsigned size = plan.element_bytes;
  const unsigned count = insn.vector_length / size;
  for (unsigned i = 0; i < count; ++i)
    if (Selected(mask, i, size) && !call.Probe(i * size, size)) return VectorResult::kMemoryFault;
  for (unsigned i = 0; i < count; ++i)
    if (Selected(mask, i, size) && !call.Write(i * size, value.data() + i * size, size))
      return VectorResult::kMemoryFault;
  return VectorResult::kOk;
}

VectorResult VectorUnit::Impl::ByteMaskedStore(const VectorCall& call, const VectorPlan& plan) {
  // The operand is DS:rDI (or the override), whatever the caller made of an operand that is not written out.
  const VectorCall at{call.state, call.insn, call.state.gpr[x86::kRdi], call.memory};
  x86::XsaveArea& area = call.state.xsave;
  const Operand& source = call.insn.operand[0];
  const Operand& mask_operand = call.insn.operand[1];
  const bool mmx = source.register_class == RegisterClass::kMmx;
  const unsigned bytes = mmx ? 8 : 16;
  uint8_t value[16], mask[16];
  std::memcpy(value, mmx ? MmxRegister(area, source.index) : area.xmm(source.index), bytes);
  std::memcpy(mask, mmx ? MmxRegister(area, mask_operand.index) : area.xmm(mask_operand.index), bytes);
  unsigned selected = 0;
  for (unsigned i = 0; i < bytes; ++i) {
    if ((mask[i] & 0x80) == 0) continue;
    ++selected;
    if (!at.Probe(i, 1)) return VectorResult::kMemoryFault;
  }
  // With nothing selected faults "may still be signaled" (SDM 2B); AMD's CPUs do.
  if (selected == 0 && !at.Probe(0, bytes)) return VectorResult::kMemoryFault;
  for (unsigned i = 0; i < bytes; ++i)
    if ((mask[i] & 0x80) != 0 && !at.Write(i, value + i, 1)) return VectorResult::kMemoryFault;
  // MASKMOVQ enters MMX state; run it on the bounce buffer for that.
  if (mmx && thunk_.RunX87(area, plan.snippet)) CommitX87(call.state);
  return VectorResult::kOk;
}

// Equal registers among destination, index and mask are #UD; the decoder takes care of it.
VectorResult VectorUnit::Impl::Gather(const VectorCall& call, const VectorPlan& plan) {
  const auto& insn = call.insn;
  const unsigned destination = insn.operand[0].index;
  const unsigned mask_register = insn.operand[2].index;
  const auto mnemonic = insn.zydis_mnemonic();
  const bool dword_index = mnemonic == ZYDIS_MNEMONIC_VGATHERDPS || mnemonic == ZYDIS_MNEMONIC_VGATHERDPD ||
                           mnemonic == ZYDIS_MNEMONIC_VPGATHERDD || mnemonic == ZYDIS_MNEMONIC_VPGATHERDQ;
  const unsigned index_bytes = dword_index ? 4 : 8;
  const unsigned size = plan.element_bytes;
  const unsigned count = insn.vector_length / (size > index_bytes ? size : index_bytes);
  const Ymm index = LoadYmm(call.state, insn.index);
  Ymm value = LoadYmm(call.state, destination);
  Ymm mask = LoadYmm(call.state, mask_register);
  for (unsigned i = 0; i < count; ++i) {
    if (!Selected(mask, i, size)) continue;
    const int64_t element_index =
        dword_index ? LoadLe<int32_t>(index.data() + i * 4) : LoadLe<int64_t>(index.data() + i * 8);
    if (!call.Read(static_cast<uint64_t>(element_index) * insn.scale, value.data() + i * size, size)) {
      // What is gathered stays gathered and its mask cleared, so that the restart goes on from here.
      StoreYmm(call.state, destination, value);
      StoreYmm(call.state, mask_register, mask);
      return VectorResult::kMemoryFault;
    }
    std::memset(mask.data() + i * size, 0, size);
  }
  std::memset(value.data() + count * size, 0, value.size() - count * size);
  StoreYmm(call.state, destination, value);
  StoreYmm(call.state, mask_register, Ymm{});
  return VectorResult::kOk;
}

namespace {

struct VectorIndex {
  Zmm lanes;
  unsigned bytes;  ///< of each
  int64_t At(unsigned i) const {
    return bytes == 4 ? LoadLe<int32_t>(lanes.data() + i * 4) : LoadLe<int64_t>(lanes.data() + i * 8);
  }
};

/// EVEX 90, 92, A0, A2 have indices of 4 bytes, 91, 93, A1, A3 of 8 (SDM 2C "VPGATHERDD", "VPSCATTERDD").
VectorIndex IndexOf(const VectorCall& call) {
  return {LoadZmm(call.state, call.insn.index), (call.insn.opcode & 1) != 0 ? 8u : 4u};
}

unsigned ElementCount(const VectorCall& call, unsigned element_bytes, unsigned index_bytes) {
  return call.insn.vector_length / std::max(element_bytes, index_bytes);
}

}  // namespace

// Elements are done from the lowest on, and the writemask's bit of each is cleared with it: a fault leaves what is done
// and the restart goes on from there (SDM 2C "VPGATHERDD", "VPSCATTERDD").
VectorResult VectorUnit::Impl::OpmaskGather(const VectorCall& call, const VectorPlan& plan) {
  const unsigned destination = call.insn.operand[0].index, size = plan.element_bytes;
  const VectorIndex index = IndexOf(call);
  const unsigned count = ElementCount(call, size, index.bytes);
  Zmm value = LoadZmm(call.state, destination);
  auto mask = LoadLe<uint64_t>(call.state.xsave.opmask(call.insn.opmask));
  bool complete = true;
  for (unsigned i = 0; i < count && complete; ++i) {
    if (!TestBit(mask, i)) continue;
    complete = call.Read(static_cast<uint64_t>(index.At(i)) * call.insn.scale, value.data() + i * size, size);
    if (complete) mask &= ~Bit(i);
  }
  // After a fault, as Intel's CPUs do: what is above the vector length goes with the first element.
  const bool progress = mask != LoadLe<uint64_t>(call.state.xsave.opmask(call.insn.opmask));
  const size_t kept = complete ? count * size : progress ? call.insn.vector_length : value.size();
  std::memset(value.data() + kept, 0, value.size() - kept);
  if (complete) mask = 0;
  StoreZmm(call.state, destination, value);
  StoreLe(call.state.xsave.opmask(call.insn.opmask), mask);
  return complete ? VectorResult::kOk : VectorResult::kMemoryFault;
}

VectorResult VectorUnit::Impl::Scatter(const VectorCall& call, const VectorPlan& plan) {
  const unsigned size = plan.element_bytes;
  const VectorIndex index = IndexOf(call);
  const unsigned count = ElementCount(call, size, index.bytes);
  const x86::Operand& source = call.insn.operand[call.insn.operand_count - 1];
  const Zmm value = LoadZmm(call.state, source.index);
  auto mask = LoadLe<uint64_t>(call.state.xsave.opmask(call.insn.opmask));
  bool complete = true;
  for (unsigned i = 0; i < count && complete; ++i) {
    if (!TestBit(mask, i)) continue;
    complete = call.Write(static_cast<uint64_t>(index.At(i)) * call.insn.scale, value.data() + i * size, size);
    if (complete) mask &= ~Bit(i);
  }
  StoreLe(call.state.xsave.opmask(call.insn.opmask), complete ? uint64_t{0} : mask);
  return complete ? VectorResult::kOk : VectorResult::kMemoryFault;
}

}  // namespace nacre::engine::interp
