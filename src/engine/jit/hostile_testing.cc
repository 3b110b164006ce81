#include "engine/jit/hostile_testing.h"

#include <gtest/gtest.h>

namespace nacre::engine::jit::hostile {

using x86::CpuState;
using x86::Segment;

namespace {

/// PAE paging's four pointers: in them the bits for writing and users are reserved.
constexpr uint64_t kPaePointers = 0xe000;
constexpr uint64_t kPd = 0x3000, kPdEnd = 0x5000;
constexpr uint64_t kPresent = 1, kWrite = 2, kUser = 4, kLarge = 0x80;
constexpr uint64_t kAll = kPresent | kWrite | kUser;

}  // namespace

CpuState StartState(Mode mode) {
  CpuState state;
  x86::ResetCpuState(state);
  const bool wide = mode == Mode::kKernel64 || mode == Mode::kUser64;
  const bool user = mode == Mode::kUser64 || mode == Mode::kUser32;
  state.rip = mode == Mode::kReal ? 0x8000 : kCode;
  state.gpr[x86::kRsp] = mode == Mode::kReal ? 0x7000 : kStack;
  state.idtr = {.base = kIdt, .limit = 0xfff};
  state.gdtr = {.base = kGdt, .limit = 0x3f};
  if (mode == Mode::kReal) {
    state.segment[x86::kCs] = {
        .base = 0, .limit = 0xffff, .attributes = Segment::kS | Segment::kP | 0xb, .selector = 0};
    return state;
  }
  state.cr0 = x86::cr0::kPe | x86::cr0::kMp | x86::cr0::kEt | x86::cr0::kNe | x86::cr0::kWp | x86::cr0::kPg;
  state.cr3 = kPageTables;
  state.cr4 = x86::cr4::kPae | x86::cr4::kOsFxsr | x86::cr4::kOsXmmExcpt | x86::cr4::kOsXsave;
  state.xcr0 = 7;
  state.msr.efer = x86::efer::kSce | x86::efer::kNxe | (wide ? x86::efer::kLme | x86::efer::kLma : 0);
  if (!wide) {
    state.cr3 = kPaePointers;
    state.pdpte[0] = kPd | kPresent;
    state.pdpte[3] = kPdEnd | kPresent;
  }
  const uint32_t level = user ? 3u << 5 : 0;
  for (Segment& segment : state.segment)
    segment = {.base = 0,
               .limit = 0xffffffff,
               .attributes = Segment::kS | Segment::kP | Segment::kDb | Segment::kG | 3 | level,
               .selector = static_cast<uint16_t>(user ? 0x1b : 0x10)};
  state.segment[x86::kCs].attributes =
      Segment::kS | Segment::kP | (wide ? Segment::kL : Segment::kDb) | Segment::kG | 0xb | level;
  state.segment[x86::kCs].selector = user ? 0x23 : 8;
  state.tr = {.base = kTss, .limit = 0x67, .attributes = Segment::kP | 0xb, .selector = 0x28};
  return state;
}

Machine::Machine(std::unique_ptr<Engine> engine, std::string_view cpu) : engine_(std::move(engine)) {
  memory_ = std::move(*memory::GuestMemory::Create(kRam));
  auto model = x86::CpuModel::Create(cpu, {});
  EXPECT_TRUE(model.has_value()) << (model ? "" : model.error().message);
  model_ = std::make_unique<x86::CpuModel>(std::move(*model));
  auto vcpu = engine_->CreateVcpu({.index = 0, .model = model_.get(), .memory = memory_.get(), .host = &host_});
  EXPECT_TRUE(vcpu.has_value()) << (vcpu ? "" : vcpu.error().message);
  vcpu_ = std::move(*vcpu);
}

void Machine::Put(uint64_t address, std::span<const uint8_t> bytes) {
  ASSERT_TRUE(memory_->Write(GuestPhys(address), bytes));
}

void Machine::Put64(uint64_t address, uint64_t value) { ASSERT_TRUE(memory_->WriteValue(GuestPhys(address), value)); }

void Machine::PutTables() {
  constexpr uint64_t kPdpt = 0x2000, kPdptHigh = 0x6000, kPdHigh = 0x7000, kPdptLow = 0x8000, kPdLow = 0x9000;
  for (uint64_t table = kPageTables; table < kIdt; table += kPageSize)
    for (unsigned i = 0; i < 512; ++i) Put64(table + 8 * i, 0);
  Put64(kPageTables, kPdpt | kAll);
  Put64(kPageTables + 8 * 255, kPdptLow | kAll);
  Put64(kPageTables + 8 * 511, kPdptHigh | kAll);
  Put64(kPdpt, kPd | kAll);
  Put64(kPdpt + 24, kPdEnd | kAll);
  for (unsigned i = 0; i < 4; ++i) Put64(kPaePointers + 8 * i, StartState(Mode::kKernel32).pdpte[i]);
  Put64(kPd, kPageTable | kAll);
  for (unsigned i = 1; i < kRam / (2 * kMiB); ++i) Put64(kPd + 8 * i, i * 2 * kMiB | kAll | kLarge);
  Put64(kPdEnd + 8 * 511, 4 * kMiB | kAll | kLarge);
  Put64(kPdptHigh + 8 * 511, kPdHigh | kAll);
  Put64(kPdHigh + 8 * 511, 4 * kMiB | kAll | kLarge);
  Put64(kPdptLow + 8 * 511, kPdLow | kAll);
  Put64(kPdLow + 8 * 511, 6 * kMiB | kAll | kLarge);
  for (unsigned i = 0; i < 512; ++i) {
    uint64_t entry = uint64_t{i} * kPageSize | kAll;
    if (i >= 0x1f0) entry = 2 * kRam | kAll;                                  // kNothing
    if (i >= 0x1e0 && i < 0x1f0 && i % 2) entry = 0;                          // holes
    if (i >= 0x1d0 && i < 0x1e0) entry = (0x1c0 + i % 4) * kPageSize | kAll;  // aliases
    if (i >= 0x1b0 && i < 0x1c0 && i % 2) entry &= ~kWrite;
    Put64(kPageTable + 8 * i, entry);
  }
}

void Machine::Reset(uint64_t seed) {
  auto* words = reinterpret_cast<uint64_t*>(memory_->host_base());
  for (uint64_t i = 0; i < kRam / 8; ++i) {
    seed += 0x9e3779b97f4a7c15;
    words[i] = (seed ^ seed >> 29) * 0xbf58476d1ce4e5b9;
  }
  memory_->MarkWritten(GuestPhys(0), kRam);
  PutTables();
  for (unsigned vector = 0; vector < 256; ++vector) {
    const uint64_t handler = kHandlers + 4 * vector;
    Put64(kIdt + 16 * vector, (handler & 0xffff) | 8ull << 16 | 1ull << 32 | 0xeeull << 40 | (handler >> 16) << 48);
    Put64(kIdt + 16 * vector + 8, 0);
    const uint8_t halt[4] = {0xf4, 0xf4, 0xf4, 0xf4};
    Put(handler, halt);
  }
  for (unsigned i = 0; i < 0x68; i += 8) Put64(kTss + i, 0);
  Put64(kTss + 4, kFaultStack - 0x800);
  Put64(kTss + 0x24, kFaultStack);
  const uint64_t gdt[] = {0,
                          0x00af9b000000ffff,
                          0x00cf93000000ffff,
                          0x00cff3000000ffff,
                          0x00affb000000ffff,
                          0x00008b0000000067 | kTss << 16,
                          0,
                          0x00cf9b000000ffff};
  for (unsigned i = 0; i < std::size(gdt); ++i) Put64(kGdt + 8 * i, gdt[i]);
}

uint64_t Machine::Statistic(std::string_view name) const {
  for (const auto& statistic : vcpu_->Statistics())
    if (statistic.name == name) return statistic.value;
  ADD_FAILURE() << "no statistic " << name;
  return 0;
}

}  // namespace nacre::engine::jit::hostile
