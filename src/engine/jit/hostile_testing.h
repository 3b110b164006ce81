#pragma once
// A small machine for tests with guests that mean harm: 16 MiB of RAM, page tables with holes and aliases, an IDT whose
// handlers halt, and no devices. Used by jit_hostile_test.cc and jit_fuzz_test.cc. One thread.

#include <memory>
#include <span>
#include <string_view>

#include "engine/engine.h"

namespace nacre::engine::jit::hostile {

inline constexpr uint64_t kRam = 16 * kMiB;
/// Page tables: the first 2 MiB by 4 KiB pages (table at kPageTable), the rest of RAM by 2 MiB pages; 4 MiB of RAM also
/// at the end of the first 4 GiB and of the whole address space, 6 MiB at the end of the lower canonical half.
inline constexpr uint64_t kPageTables = 0x1000, kPageTable = 0x4000;
inline constexpr uint64_t kIdt = 0xa000, kHandlers = 0xb000, kTss = 0xb800, kGdt = 0xbc00, kFaultStack = 0xd000;
inline constexpr uint64_t kCode = 0x100000, kStack = 0x180000;
/// An address without RAM or device, mapped in the page tables.
inline constexpr uint64_t kNothing = 0x1f0000;

/// Statistic of the translator that must stay 0 whatever the guest does.
inline constexpr std::string_view kWildAccesses = "host faults: wild accesses (a bug of Nacre)";

/// No device anywhere.
class NullHost : public VcpuHost {
 public:
  uint32_t PortRead(uint16_t, unsigned) override { return 0xffffffff; }
  void PortWrite(uint16_t, unsigned, uint32_t) override {}
  uint64_t MmioRead(GuestPhys, unsigned) override { return ~uint64_t{0}; }
  void MmioWrite(GuestPhys, unsigned, uint64_t) override {}
  bool ReadMsr(uint32_t, uint64_t&) override { return false; }
  bool WriteMsr(uint32_t, uint64_t) override { return false; }
  uint64_t ReadCr8() override { return 0; }
  void WriteCr8(uint64_t) override {}
  int AcknowledgeInterrupt() override { return -1; }
  uint64_t Hypercall(uint64_t, const uint64_t (&)[4], bool) override { return ~uint64_t{0}; }
};

enum class Mode { kKernel64, kUser64, kKernel32, kUser32, kReal };

/// A state of the given mode at kCode with flat segments.
x86::CpuState StartState(Mode mode);

class Machine {
 public:
  explicit Machine(std::unique_ptr<Engine> engine, std::string_view cpu = "x86-64-v3");

  Vcpu& vcpu() { return *vcpu_; }
  memory::GuestMemory& memory() { return *memory_; }
  /// Fills RAM with numbers made from `seed`, writes tables and handlers.
  void Reset(uint64_t seed);
  void Put(uint64_t address, std::span<const uint8_t> bytes);
  void Put64(uint64_t address, uint64_t value);
  uint64_t Statistic(std::string_view name) const;

 private:
  void PutTables();

  NullHost host_;
  std::unique_ptr<memory::GuestMemory> memory_;
  std::unique_ptr<x86::CpuModel> model_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Vcpu> vcpu_;
};

}  // namespace nacre::engine::jit::hostile
