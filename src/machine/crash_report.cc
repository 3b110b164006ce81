#include "machine/crash_report.h"

#include <fmt/format.h>

#include <algorithm>

#include "x86/decoder.h"
#include "x86/page_walk.h"

namespace nacre::machine {

namespace {

/// Up to 15 bytes at CS:RIP, through the guest's page tables.
std::vector<uint8_t> CodeBytes(const x86::CpuState& state, memory::GuestMemory& memory) {
  std::vector<uint8_t> bytes;
  const uint64_t base = state.code64() ? 0 : state.segment[x86::kCs].base;
  for (uint64_t i = 0; i < 15; ++i) {
    uint64_t linear = base + state.rip + i;
    if (!state.code64()) linear &= 0xffffffff;
    const x86::Translation at =
        x86::WalkPages(memory, state, GuestVirt(linear), {.access = x86::Access::kRead, .set_bits = false});
    uint8_t byte = 0;
    if (!at.ok || !memory.ReadValue(at.address, byte)) break;
    bytes.push_back(byte);
  }
  return bytes;
}

x86::CodeSize CodeSizeOf(const x86::CpuState& state) {
  if (state.code64()) return x86::CodeSize::k64;
  return state.segment[x86::kCs].big() ? x86::CodeSize::k32 : x86::CodeSize::k16;
}

}  // namespace

std::string CrashReport(const x86::CpuState& state, memory::GuestMemory& memory, unsigned cpu) {
  std::string text = fmt::format("\n  CPU {}: RIP {:04x}:{:016x}  RFLAGS {:08x}  CPL {}\n", cpu,
                                 state.segment[x86::kCs].selector, state.rip, state.rflags, state.cpl());
  text += fmt::format("  CR0 {:08x}  CR2 {:016x}  CR3 {:016x}  CR4 {:08x}  EFER {:04x}\n", state.cr0, state.cr2,
                      state.cr3, state.cr4, state.msr.efer);
  constexpr const char* kNames[] = {"RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI",
                                    "R8 ", "R9 ", "R10", "R11", "R12", "R13", "R14", "R15"};
  for (unsigned i = 0; i < 16; ++i)
    text += fmt::format("{}{} {:016x}", i % 4 == 0 ? (i ? "\n  " : "  ") : "  ", kNames[i], state.gpr[i]);
  text += fmt::format("\n  IDT {:016x} limit {:04x}  GDT {:016x} limit {:04x}\n", state.idtr.base, state.idtr.limit,
                      state.gdtr.base, state.gdtr.limit);
  const auto bytes = CodeBytes(state, memory);
  if (bytes.empty()) return text + "  no code can be read at RIP\n";
  text += fmt::format("  code at RIP: {:02x}", fmt::join(bytes, " "));
  x86::Instruction instruction;
  if (x86::Decode(bytes, CodeSizeOf(state), instruction) == x86::DecodeStatus::kOk) {
    char assembly[128];
    x86::Format(instruction, state.rip, assembly);
    text += fmt::format("  ({})", assembly);
  }
  return text + "\n";
}

}  // namespace nacre::machine
