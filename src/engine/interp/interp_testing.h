#pragma once
// A guest for the interpreter's tests: 16 MiB of RAM, a machine that remembers port accesses, and CPU states in every
// mode with descriptor tables in place. Every interrupt vector leads to a HLT of its own, so that a program "ends" in a
// vector. Tests only.

#include <gtest/gtest.h>

#include <initializer_list>
#include <memory>
#include <utility>
#include <vector>

#include "engine/interp/interpreter.h"
#include "x86/cpu_model.h"

namespace nacre::engine::interp {

class FakeHost : public VcpuHost {
 public:
  uint32_t PortRead(uint16_t port, unsigned size) override {
    port_reads.push_back({port, size});
    return port_value;
  }
  void PortWrite(uint16_t port, unsigned, uint32_t value) override { port_writes.push_back({port, value}); }
  uint64_t MmioRead(GuestPhys address, unsigned size) override {
    mmio_reads.push_back({address.value, size});
    return mmio_value;
  }
  void MmioWrite(GuestPhys address, unsigned, uint64_t value) override {
    mmio_writes.push_back({address.value, value});
  }
  bool ReadMsr(uint32_t index, uint64_t& value) override {
    value = 0x1234;
    return index == 0x1b;
  }
  bool WriteMsr(uint32_t index, uint64_t) override { return index == 0x1b; }
  uint64_t ReadCr8() override { return cr8; }
  void WriteCr8(uint64_t value) override { cr8 = value; }
  int AcknowledgeInterrupt() override { return std::exchange(interrupt, -1); }
  uint64_t Hypercall(uint64_t number, const uint64_t (&)[4], bool) override { return number + 1; }

  std::vector<std::pair<uint16_t, uint32_t>> port_reads, port_writes;
  std::vector<std::pair<uint64_t, uint64_t>> mmio_reads, mmio_writes;
  uint32_t port_value = 0xffffffff;
  uint64_t mmio_value = ~uint64_t{0};
  uint64_t cr8 = 0;
  int interrupt = -1;
};

/// Where things lie in the guest's memory.
namespace at {
inline constexpr uint64_t kGdt = 0x1000, kIdt = 0x2000, kTss = 0x3000, kTss2 = 0x3200, kHandlers = 0x4000,
                          kCode = 0x8000, kStack0 = 0x10000 /* of CPL 0, going down */, kStack3 = 0x18000,
                          kPml4 = 0x20000, kData = 0x30000, kUnmapped = 0x40000 /* one page, long mode */;
}  // namespace at

/// Selectors of the test GDT.
namespace sel {
inline constexpr uint16_t kCode0 = 0x08, kData0 = 0x10, kCode3 = 0x1b, kData3 = 0x23, kTss = 0x28 /* 16 bytes */,
                          kCode16 = 0x38, kData16 = 0x40, kTss2 = 0x48, kExpandDown = 0x50, kAbsent = 0x58,
                          kSmall = 0x60, kGate = 0x68 /* 16 bytes */, kConforming = 0x78, kTaskGate = 0x80;
}  // namespace sel

class InterpTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto created = memory::GuestMemory::Create(16 * kMiB);
    ASSERT_TRUE(created.has_value());
    memory = std::move(*created);
    UseModel("default");
    for (unsigned vector = 0; vector < 256; ++vector) Put<uint8_t>(at::kHandlers + vector * 16, 0xf4);
  }

  void UseModel(std::string_view name) {
    auto made = x86::CpuModel::Create(name, {.cpu_count = 1, .tsc_khz = 1000000, .paravirtual = false});
    ASSERT_TRUE(made) << made.error().message;
    interpreter.reset();
    model = std::make_unique<x86::CpuModel>(std::move(*made));
    config = {.index = 0, .model = model.get(), .memory = memory.get(), .host = &host};
    interpreter = std::make_unique<Interpreter>(config, nullptr);
  }

  template <typename T>
  void Put(uint64_t address, T value) {
    ASSERT_TRUE(memory->WriteValue(GuestPhys(address), value));
  }
  template <typename T>
  T Get(uint64_t address) {
    T value{};
    EXPECT_TRUE(memory->ReadValue(GuestPhys(address), value));
    return value;
  }
  void Code(std::initializer_list<uint8_t> bytes, uint64_t address = at::kCode) {
    for (uint8_t byte : bytes) Put<uint8_t>(address++, byte);
  }
  void Descriptor(uint16_t selector, uint32_t base, uint32_t limit, unsigned access, unsigned flags) {
    const uint64_t low = (limit & 0xffff) | (static_cast<uint64_t>(base & 0xffffff) << 16);
    const uint64_t high = access | (((limit >> 16) & 0xf) << 8) | (flags << 12) | ((base >> 24) << 16);
    Put<uint64_t>(at::kGdt + (selector & ~7u), low | (high << 40));
  }
  void Gate(uint64_t address, uint16_t selector, uint64_t offset, unsigned access, unsigned low_byte = 0) {
    Put<uint64_t>(address, (offset & 0xffff) | (static_cast<uint64_t>(selector) << 16) |
                               (static_cast<uint64_t>(low_byte | (access << 8)) << 32) | ((offset >> 16) << 48));
  }
  void Segment(x86::SegmentIndex index, uint16_t selector, uint32_t attributes, uint32_t limit = 0xffffffff) {
    x86::Segment& segment = s.segment[index];
    segment = {};
    segment.selector = selector;
    segment.limit = limit;
    segment.attributes = attributes;
  }

  void RealMode() {
    x86::ResetCpuState(s);
    for (auto& segment : s.segment) {
      segment.base = segment.selector = 0;
      segment.limit = 0xffff;
    }
    s.rip = at::kCode;
    s.gpr[x86::kRsp] = 0x7000;
    s.idtr = {.base = 0, .limit = 0x3ff};
    for (unsigned vector = 0; vector < 256; ++vector) Put<uint32_t>(vector * 4, at::kHandlers + vector * 16);
  }

  void Tables(bool long_mode) {
    Descriptor(sel::kCode0, 0, 0xfffff, 0x9b, long_mode ? 0xa : 0xc);
    Descriptor(sel::kData0, 0, 0xfffff, 0x93, 0xc);
    Descriptor(sel::kCode3, 0, 0xfffff, 0xfb, long_mode ? 0xa : 0xc);
    Descriptor(sel::kData3, 0, 0xfffff, 0xf3, 0xc);
    Descriptor(sel::kTss, at::kTss, 0x67, 0x8b, 0);
    Put<uint64_t>(at::kGdt + sel::kTss + 8, 0);
    Descriptor(sel::kCode16, 0, 0xffff, 0x9b, 0);
    Descriptor(sel::kData16, 0, 0xffff, 0x93, 0);
    Descriptor(sel::kTss2, at::kTss2, 0x67, 0x89, 0);
    Descriptor(sel::kExpandDown, 0, 0xfff, 0x97, 0x4);
    Descriptor(sel::kAbsent, 0, 0xfffff, 0x13, 0xc);
    Descriptor(sel::kSmall, at::kData, 0xf, 0x93, 0x4);
    Descriptor(sel::kConforming, 0, 0xfffff, 0x9f, 0xc);
    s.gdtr = {.base = at::kGdt, .limit = 0xff};
    s.tr = {.base = at::kTss, .limit = 0x67, .attributes = 0x8b, .selector = sel::kTss};
    Put<uint16_t>(at::kTss + 0x66, 0x68);  // no I/O bitmap
    s.ldtr.attributes = x86::Segment::kUnusable;
    s.rip = at::kCode;
    s.rflags = x86::rflags::kFixed1;
    s.gpr[x86::kRsp] = at::kStack0;
  }

  void Protected32() {
    s = {};
    Tables(false);
    s.cr0 = x86::cr0::kPe | x86::cr0::kEt | x86::cr0::kNe;
    Segment(x86::kCs, sel::kCode0, 0xc09b);
    for (auto index : {x86::kSs, x86::kDs, x86::kEs, x86::kFs, x86::kGs}) Segment(index, sel::kData0, 0xc093);
    Put<uint32_t>(at::kTss + 4, at::kStack0);
    Put<uint16_t>(at::kTss + 8, sel::kData0);
    for (unsigned vector = 0; vector < 256; ++vector)
      Gate(at::kIdt + vector * 8, sel::kCode0, at::kHandlers + vector * 16, 0xee);
    s.idtr = {.base = at::kIdt, .limit = 0x7ff};
  }

  /// Identity map of the first 2 MiB by 4 KiB pages, all user and writable but for kUnmapped.
  void LongMode() {
    s = {};
    Tables(true);
    s.cr0 = x86::cr0::kPe | x86::cr0::kPg | x86::cr0::kEt | x86::cr0::kNe | x86::cr0::kWp;
    s.cr4 = x86::cr4::kPae | x86::cr4::kOsFxsr;
    s.msr.efer = x86::efer::kLme | x86::efer::kLma | x86::efer::kNxe | x86::efer::kSce;
    s.cr3 = at::kPml4;
    Put<uint64_t>(at::kPml4, at::kPml4 + 0x1007);
    Put<uint64_t>(at::kPml4 + 0x1000, at::kPml4 + 0x2007);
    Put<uint64_t>(at::kPml4 + 0x2000, at::kPml4 + 0x3007);
    for (uint64_t page = 0; page < 512; ++page) Put<uint64_t>(PageEntry(page * 4096), page * 4096 | 7);
    Put<uint64_t>(PageEntry(at::kUnmapped), 0);
    Segment(x86::kCs, sel::kCode0, 0xa09b);
    for (auto index : {x86::kSs, x86::kDs, x86::kEs, x86::kFs, x86::kGs}) Segment(index, sel::kData0, 0xc093);
    Put<uint64_t>(at::kTss + 4, at::kStack0);
    for (unsigned vector = 0; vector < 256; ++vector) {
      Gate(at::kIdt + vector * 16, sel::kCode0, at::kHandlers + vector * 16, 0xee);
      Put<uint64_t>(at::kIdt + vector * 16 + 8, 0);
    }
    s.idtr = {.base = at::kIdt, .limit = 0xfff};
  }
  static uint64_t PageEntry(uint64_t linear) { return at::kPml4 + 0x3000 + linear / 4096 * 8; }

  /// CPL 3 in the present mode.
  void UserMode() {
    const bool long_mode = s.long_mode_active();
    Segment(x86::kCs, sel::kCode3, long_mode ? 0xa0fb : 0xc0fb);
    for (auto index : {x86::kSs, x86::kDs, x86::kEs, x86::kFs, x86::kGs}) Segment(index, sel::kData3, 0xc0f3);
    s.gpr[x86::kRsp] = at::kStack3;
  }

  StepResult Steps(unsigned count) {
    StepResult result = StepResult::kOk;
    for (unsigned i = 0; i < count && result == StepResult::kOk; ++i) result = interpreter->Step(s);
    return result;
  }
  /// Runs to a HLT (at most 100000 steps). Returns the vector whose handler halted, or -1: the program's own HLT,
  /// -2: shutdown, -3: no HLT.
  int Run() {
    interpreter->FlushTlb();
    const StepResult result = Steps(100000);
    if (result == StepResult::kShutdown) return -2;
    if (result != StepResult::kHalted) return -3;
    const uint64_t halt = s.segment[x86::kCs].base + s.rip - 1;
    if (halt < at::kHandlers || halt >= at::kHandlers + 0x1000) return -1;
    return static_cast<int>((halt - at::kHandlers) / 16);
  }
  uint32_t Stack32(unsigned index) { return Get<uint32_t>(s.gpr[x86::kRsp] + index * 4); }
  uint64_t Stack64(unsigned index) { return Get<uint64_t>(s.gpr[x86::kRsp] + index * 8); }

  FakeHost host;
  std::unique_ptr<memory::GuestMemory> memory;
  std::unique_ptr<x86::CpuModel> model;
  VcpuConfig config;
  std::unique_ptr<Interpreter> interpreter;
  x86::CpuState s;
};

}  // namespace nacre::engine::interp
