#pragma once
// What the tests of VectorUnit share: a CPU in 64-bit mode with everything enabled, and a small guest memory of which
// parts can be made to fault. Tests only.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <set>
#include <vector>

#include "base/bits.h"
#include "engine/interp/vector.h"
#include "x86/cpu_model.h"
#include "x86/cpu_state.h"
#include "x86/decoder.h"

namespace nacre::engine::interp {

/// 64 KiB at offset 0 of every segment, but for a base that tests give. Bytes in `bad` fault.
class FakeMemory : public OperandMemory {
 public:
  bool Read(x86::SegmentIndex, uint64_t offset, void* to, unsigned size) override {
    if (!Allowed(offset, size)) return false;
    std::memcpy(to, bytes.data() + offset, size);
    bytes_read += size;
    return true;
  }
  bool Write(x86::SegmentIndex, uint64_t offset, const void* from, unsigned size) override {
    if (!Allowed(offset, size)) return false;
    std::memcpy(bytes.data() + offset, from, size);
    bytes_written += size;
    return true;
  }
  bool ProbeWrite(x86::SegmentIndex, uint64_t offset, unsigned size) override { return Allowed(offset, size); }

  template <typename T>
  T Get(uint64_t offset) const {
    T value;
    std::memcpy(&value, bytes.data() + offset, sizeof(T));
    return value;
  }
  template <typename T>
  void Put(uint64_t offset, const T& value) {
    std::memcpy(bytes.data() + offset, &value, sizeof(T));
  }

  std::vector<uint8_t> bytes = std::vector<uint8_t>(64 * 1024);
  std::set<uint64_t> bad;
  unsigned bytes_read = 0, bytes_written = 0;

 private:
  bool Allowed(uint64_t offset, unsigned size) const {
    if (offset > bytes.size() || size > bytes.size() - offset) return false;
    const auto first = bad.lower_bound(offset);
    return first == bad.end() || *first >= offset + size;
  }
};

inline const x86::CpuModel& TestModel() {
  static const auto model = x86::CpuModel::Create("default", {.cpu_count = 1, .tsc_khz = 1000000});
  EXPECT_TRUE(model.has_value()) << model.error().message;
  return *model;
}

class VectorTest : public testing::Test {
 protected:
  static constexpr uint64_t kAt = 0x1000;

  VectorTest() {
    state.cr0 = x86::cr0::kPe | x86::cr0::kNe | x86::cr0::kMp | x86::cr0::kPg;
    state.cr4 = x86::cr4::kOsFxsr | x86::cr4::kOsXmmExcpt | x86::cr4::kOsXsave;
    state.xcr0 = 7;
    state.msr.efer = x86::efer::kLma | x86::efer::kLme;
    state.segment[x86::kCs].attributes = x86::Segment::kL;
    state.xsave.fcw() = 0x37f;
    state.xsave.mxcsr() = 0x1f80;
    state.gpr[x86::kRax] = kAt;
  }

  /// The code segment is 32-bit, or 16-bit.
  void Enter32() {
    state.msr.efer = 0;
    state.segment[x86::kCs].attributes = x86::Segment::kDb;
    code_size = x86::CodeSize::k32;
  }
  void Enter16() {
    Enter32();
    state.segment[x86::kCs].attributes = 0;
    code_size = x86::CodeSize::k16;
  }

  /// Runs one instruction whose memory operand, if any, is at `offset`.
  VectorResult Run(std::initializer_list<uint8_t> bytes, uint64_t offset = kAt) {
    x86::Instruction insn;
    const std::vector<uint8_t> copy(bytes);
    EXPECT_EQ(x86::Decode(copy, code_size, insn), x86::DecodeStatus::kOk);
    EXPECT_EQ(insn.length, copy.size());
    EXPECT_TRUE(VectorUnit::Handles(insn)) << x86::MnemonicName(insn.mnemonic);
    return unit.Execute(state, insn, offset, memory);
  }

  template <typename T>
  std::array<T, 32 / sizeof(T)> Ymm(unsigned index) {
    std::array<T, 32 / sizeof(T)> value;
    std::memcpy(value.data(), state.xsave.xmm(index), 16);
    std::memcpy(reinterpret_cast<uint8_t*>(value.data()) + 16, state.xsave.ymm_high(index), 16);
    return value;
  }
  template <typename T>
  void SetYmm(unsigned index, std::initializer_list<T> values) {
    std::array<T, 32 / sizeof(T)> value = {};
    std::copy(values.begin(), values.end(), value.begin());
    std::memcpy(state.xsave.xmm(index), value.data(), 16);
    std::memcpy(state.xsave.ymm_high(index), reinterpret_cast<uint8_t*>(value.data()) + 16, 16);
  }
  long double St(unsigned index) {
    long double value = 0;
    std::memcpy(&value, state.xsave.st(index), 10);
    return value;
  }
  /// FLD m64.
  void Push(double value) {
    memory.Put(0x800, value);
    EXPECT_EQ(Run({0xdd, 0x00}, 0x800), VectorResult::kOk);
  }

  VectorUnit unit{TestModel()};
  x86::CpuState state;
  FakeMemory memory;
  x86::CodeSize code_size = x86::CodeSize::k64;
};

}  // namespace nacre::engine::interp
