#include "boot/boot_state.h"

#include "boot/boot_layout.h"

namespace nacre::boot {

namespace {

using x86::Segment;

constexpr uint16_t kCodeSelector = 0x10, kDataSelector = 0x18, kTaskSelector = 0x20;
constexpr uint32_t kCode = 0xb | Segment::kS | Segment::kP | Segment::kG;
constexpr uint32_t kData = 0x3 | Segment::kS | Segment::kP | Segment::kG | Segment::kDb;
constexpr uint32_t kBusyTask = 0xb | Segment::kP;

/// A descriptor (SDM 3A 3.4.5) with base 0; limit in bytes.
constexpr uint64_t Descriptor(uint32_t attributes, uint32_t limit) {
  const uint64_t field = (attributes & Segment::kG) ? limit >> 12 : limit;
  return Bits(field, 0, 16) | (Bits(field, 16, 4) << 48) | (Bits(attributes, 0, 8) << 40) |
         (Bits(attributes, 12, 4) << 52);
}

Status WriteGdt(memory::GuestMemory& memory, uint32_t code_attributes) {
  const uint64_t gdt[] = {0, 0, Descriptor(code_attributes, ~0u), Descriptor(kData, ~0u), Descriptor(kBusyTask, 0x67),
                          0};
  if (!memory.WriteValue(kGdtAddress, gdt)) return Fail("boot: the guest has no memory at {:#x}", kGdtAddress.value);
  return {};
}

void SetFlatState(x86::CpuState& state, uint32_t code_attributes, GuestPhys entry) {
  for (Segment& segment : state.segment) segment = {0, ~0u, kData, kDataSelector};
  state.segment[x86::kCs] = {0, ~0u, code_attributes, kCodeSelector};
  state.tr = {0, 0x67, kBusyTask, kTaskSelector};
  state.ldtr = {0, 0, Segment::kUnusable, 0};
  state.gdtr = {kGdtAddress.value, 6 * 8 - 1};
  state.cr0 = x86::cr0::kPe | x86::cr0::kEt | x86::cr0::kNe;
  state.rip = entry.value;
  state.gpr[x86::kRsp] = kBootStackTop.value;
  state.xsave.fcw() = 0x37f;
  state.xsave.mxcsr() = 0x1f80;
}

}  // namespace

Result<x86::CpuState> ProtectedModeState(memory::GuestMemory& memory, GuestPhys entry) {
  NACRE_TRY_STATUS(WriteGdt(memory, kCode | Segment::kDb));
  x86::CpuState state;
  SetFlatState(state, kCode | Segment::kDb, entry);
  return state;
}

Result<x86::CpuState> LongModeState(memory::GuestMemory& memory, GuestPhys entry) {
  NACRE_TRY_STATUS(WriteGdt(memory, kCode | Segment::kL));
  constexpr uint64_t kTable = 3, kLargePage = 0x83;  // present, writable (, page size)
  uint64_t tables[6][512] = {};
  tables[0][0] = (kPageTableAddress.value + kPageSize) | kTable;
  for (uint64_t i = 0; i < 4; ++i) tables[1][i] = (kPageTableAddress.value + (2 + i) * kPageSize) | kTable;
  for (uint64_t i = 0; i < 4 * 512; ++i) tables[2 + i / 512][i % 512] = (i * 2 * kMiB) | kLargePage;
  if (!memory.WriteValue(kPageTableAddress, tables))
    return Fail("boot: the guest has no memory at {:#x}", kPageTableAddress.value);
  x86::CpuState state;
  SetFlatState(state, kCode | Segment::kL, entry);
  state.cr0 |= x86::cr0::kPg;
  state.cr3 = kPageTableAddress.value;
  state.cr4 = x86::cr4::kPae;
  state.msr.efer = x86::efer::kLme | x86::efer::kLma;
  return state;
}

}  // namespace nacre::boot
