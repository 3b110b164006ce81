#pragma once
// A very small x86-64 assembler for the translator's own glue: byte templates, no tables, no allocation. Re-emitted
// guest instructions do not come through here (guest_emitter.h). Writes through the code buffer's writable view;
// relative distances are the same in both views. The caller guarantees room. One thread.

#include <cstdint>
#include <cstring>

#include "base/check.h"

namespace nacre::engine::jit {

/// Host registers by number.
inline constexpr uint8_t kHostRax = 0, kHostRcx = 1, kHostRdx = 2, kHostRbx = 3, kHostRsp = 4, kHostRbp = 5,
                         kHostRsi = 6, kHostRdi = 7, kHostR8 = 8, kHostR9 = 9, kHostR10 = 10, kHostR11 = 11,
                         kHostR15 = 15;

/// A host memory operand. `gs` addresses the vCPU's context.
struct Mem {
  int base = -1;
  int index = -1;
  unsigned scale = 1;
  int32_t disp = 0;
  bool gs = false;
};
inline Mem Context(size_t offset) { return {.disp = static_cast<int32_t>(offset), .gs = true}; }
inline Mem ContextIndexed(int index, size_t offset) {
  return {.index = index, .scale = 8, .disp = static_cast<int32_t>(offset), .gs = true};
}

/// ModRM, SIB and displacement of a memory operand; the high bits of the registers' numbers are the prefix's business.
/// `byte_displacement`: a displacement of one byte may be used (EVEX counts those in units of the operand's size).
inline uint8_t* EncodeMemory(uint8_t* at, unsigned reg, const Mem& mem, bool byte_displacement = true) {
  const auto field = static_cast<uint8_t>((reg & 7) << 3);
  const auto scale = static_cast<uint8_t>(mem.scale == 8 ? 0xc0 : mem.scale == 4 ? 0x80 : mem.scale == 2 ? 0x40 : 0);
  const auto index = static_cast<uint8_t>((mem.index < 0 ? 4 : mem.index & 7) << 3);
  bool no_disp = false, short_disp = false;
  if (mem.base < 0) {  // [disp32] or [index*scale + disp32], both by SIB: without it mod 00 rm 101 is RIP-relative
    *at++ = field | 4;
    *at++ = static_cast<uint8_t>(scale | index | 5);
  } else {
    const auto base = static_cast<uint8_t>(mem.base & 7);
    no_disp = mem.disp == 0 && base != 5;
    short_disp = mem.disp == static_cast<int8_t>(mem.disp) && (byte_displacement || mem.disp == 0);
    const auto mod = static_cast<uint8_t>(no_disp ? 0 : short_disp ? 0x40 : 0x80);
    if (mem.index >= 0 || base == 4) {
      *at++ = mod | field | 4;
      *at++ = static_cast<uint8_t>(scale | index | base);
    } else {
      *at++ = mod | field | base;
    }
  }
  if (no_disp) return at;
  std::memcpy(at, &mem.disp, 4);  // little endian: the first byte is the short one
  return at + (short_disp ? 1 : 4);
}

class Assembler {
 public:
  explicit Assembler(uint8_t* at) : at_(at) {}

  uint8_t* at() const { return at_; }
  void Byte(uint8_t value) { *at_++ = value; }
  template <typename T>
  void Value(T value) {
    std::memcpy(at_, &value, sizeof(T));
    at_ += sizeof(T);
  }

  /// [prefix] [REX] [0F [38|3A]] opcode /reg mem. map: 0-3 as x86::Instruction::map.
  void Op(unsigned reg, const Mem& mem, uint8_t opcode, bool wide = true, unsigned map = 0, uint8_t prefix = 0) {
    if (mem.gs) Byte(0x65);
    if (prefix) Byte(prefix);
    Rex(wide, reg, mem.index, mem.base);
    Opcode(map, opcode);
    ModRm(reg, mem);
  }
  void Op(unsigned reg, unsigned rm, uint8_t opcode, bool wide = true, unsigned map = 0) {
    Rex(wide, reg, -1, static_cast<int>(rm));
    Opcode(map, opcode);
    Byte(static_cast<uint8_t>(0xc0 | (reg & 7) << 3 | (rm & 7)));
  }

  void Load(unsigned reg, const Mem& mem, bool wide = true) { Op(reg, mem, 0x8b, wide); }
  void Store(const Mem& mem, unsigned reg, bool wide = true) { Op(reg, mem, 0x89, wide); }
  void Move(unsigned to, unsigned from, bool wide = true) { Op(from, to, 0x89, wide); }
  void Lea(unsigned reg, const Mem& mem, bool wide = true) { Op(reg, mem, 0x8d, wide); }
  /// Sign-extended 32-bit immediate to memory.
  void StoreImm32(const Mem& mem, uint32_t value, bool wide = false) {
    Op(0, mem, 0xc7, wide);
    Value(value);
  }
  /// The shortest flag-free way to put a constant in a register.
  void LoadImm(unsigned reg, uint64_t value) {
    if (value <= 0xffffffff) {
      Rex(false, 0, -1, static_cast<int>(reg));
      Byte(static_cast<uint8_t>(0xb8 | (reg & 7)));
      Value(static_cast<uint32_t>(value));
    } else if (static_cast<int64_t>(value) == static_cast<int32_t>(value)) {
      Rex(true, 0, -1, static_cast<int>(reg));
      Byte(0xc7);
      Byte(static_cast<uint8_t>(0xc0 | (reg & 7)));
      Value(static_cast<uint32_t>(value));
    } else {
      Rex(true, 0, -1, static_cast<int>(reg));
      Byte(static_cast<uint8_t>(0xb8 | (reg & 7)));
      Value(value);
    }
  }
  /// PEXT reg, source, mem (BMI2, flag-free): gathers the bits of `source` under the mask in memory.
  void Pext(unsigned reg, unsigned source, const Mem& mask) { Vex(reg, source, mask, 0xf5, 2); }
  /// CRC32 of 64 bits; keeps the flags.
  void Crc32(unsigned reg, unsigned source) {
    Byte(0xf2);
    Byte(static_cast<uint8_t>(0x48 | (reg >= 8 ? 4 : 0) | (source >= 8 ? 1 : 0)));
    Byte(0x0f);
    Byte(0x38);
    Byte(0xf1);
    Byte(static_cast<uint8_t>(0xc0 | (reg & 7) << 3 | (source & 7)));
  }
  /// PDEP, likewise.
  void Pdep(unsigned reg, unsigned source, const Mem& mask) { Vex(reg, source, mask, 0xf5, 3); }

  /// RORX of 64 bits: keeps the flags.
  void RotateRight(unsigned to, unsigned from, uint8_t count) {
    Byte(0xc4);
    Byte(static_cast<uint8_t>((to >= 8 ? 0 : 0x80) | 0x40 | (from >= 8 ? 0 : 0x20) | 3));
    Byte(0xfb);
    Byte(0xf0);
    Byte(static_cast<uint8_t>(0xc0 | (to & 7) << 3 | (from & 7)));
    Byte(count);
  }
  void And(unsigned reg, const Mem& mem) { Op(reg, mem, 0x23); }
  void Add(unsigned reg, const Mem& mem) { Op(reg, mem, 0x03); }
  void Sub(unsigned reg, const Mem& mem) { Op(reg, mem, 0x2b); }
  void Compare(unsigned left, const Mem& right) { Op(left, right, 0x3b); }
  void SubImm8(const Mem& mem, uint8_t value) {
    Op(5, mem, 0x83, false);
    Byte(value);
  }
  void MultiplyImm(unsigned reg, unsigned source, int32_t value) {
    Op(reg, source, 0x69);
    Value(value);
  }
  void Negate(unsigned reg) { Op(3, reg, 0xf7); }
  void ShiftRight(unsigned reg, uint8_t count) {
    Op(5, reg, 0xc1);
    Byte(count);
  }
  void Compare(unsigned left, unsigned right) { Op(right, left, 0x39); }
  void Not(unsigned reg) { Op(2, reg, 0xf7); }
  void CompareImm32(unsigned reg, uint32_t value) {
    Op(7, reg, 0x81);
    Value(value);
  }
  void CompareImm32(const Mem& mem, uint32_t value) {
    Op(7, mem, 0x81, false);
    Value(value);
  }
  void TestImm32(unsigned reg, uint32_t value) {
    Op(0, reg, 0xf7, false);
    Value(value);
  }
  void AndImm32(unsigned reg, uint32_t value) {
    Op(4, reg, 0x81, false);
    Value(value);
  }
  void AndImm32(const Mem& mem, uint32_t value) {
    Op(4, mem, 0x81, false);
    Value(value);
  }
  void CompareImm8(const Mem& mem, uint8_t value) {
    Op(7, mem, 0x83, false);
    Byte(value);
  }

  /// Jumps; each returns the place of its displacement, for Bind or Patch.
  uint8_t* Jump() {
    Byte(0xe9);
    return Displacement32();
  }
  uint8_t* Call() {
    Byte(0xe8);
    return Displacement32();
  }
  uint8_t* JumpIf(unsigned condition) {
    Byte(0x0f);
    Byte(static_cast<uint8_t>(0x80 | condition));
    return Displacement32();
  }
  uint8_t* JumpIfRcxZero() {
    Byte(0xe3);
    Byte(0);
    return at_ - 1;
  }
  uint8_t* JumpShort(uint8_t opcode) {
    Byte(opcode);
    Byte(0);
    return at_ - 1;
  }
  void JumpTo(const uint8_t* target) { Patch(Jump(), target); }
  void CallTo(const uint8_t* target) {
    Byte(0xe8);
    Patch(Displacement32(), target);
  }
  /// A call of a way out, which reads the number behind it instead of coming back.
  void CallWithId(const uint8_t* target, uint32_t id) {
    CallTo(target);
    Value(id);
  }
  void JumpReg(unsigned reg) { Op(4, reg, 0xff, false); }
  void JumpMem(const Mem& mem) { Op(4, mem, 0xff, false); }
  void CallMem(const Mem& mem) { Op(2, mem, 0xff, false); }
  void Push(unsigned reg) {
    Rex(false, 0, -1, static_cast<int>(reg));
    Byte(static_cast<uint8_t>(0x50 | (reg & 7)));
  }
  void Pop(unsigned reg) {
    Rex(false, 0, -1, static_cast<int>(reg));
    Byte(static_cast<uint8_t>(0x58 | (reg & 7)));
  }
  void PushFlags() { Byte(0x9c); }
  void PopFlags() { Byte(0x9d); }
  void Return() { Byte(0xc3); }

  void Bind8(uint8_t* displacement) {
    const int64_t distance = at_ - (displacement + 1);
    NACRE_CHECK(distance >= -128 && distance <= 127);
    *displacement = static_cast<uint8_t>(distance);
  }
  void Bind32(uint8_t* displacement) { Patch(displacement, at_); }
  /// Target in the same view as the displacement.
  static void Patch(uint8_t* displacement, const uint8_t* target) {
    const int64_t distance = target - (displacement + 4);
    NACRE_CHECK(distance == static_cast<int32_t>(distance));
    const auto narrow = static_cast<int32_t>(distance);
    std::memcpy(displacement, &narrow, 4);
  }
  void Align(unsigned alignment) {
    while (reinterpret_cast<uintptr_t>(at_) % alignment) Byte(0xcc);
  }

 private:
  void Rex(bool wide, unsigned reg, int index, int base) {
    const auto rex =
        static_cast<uint8_t>(0x40 | (wide ? 8 : 0) | (reg >= 8 ? 4 : 0) | (index >= 8 ? 2 : 0) | (base >= 8 ? 1 : 0));
    if (rex != 0x40) Byte(rex);
  }
  void Opcode(unsigned map, uint8_t opcode) {
    if (map >= 1) Byte(0x0f);
    if (map == 2) Byte(0x38);
    if (map == 3) Byte(0x3a);
    Byte(opcode);
  }
  void ModRm(unsigned reg, const Mem& mem) { at_ = EncodeMemory(at_, reg, mem); }
  /// VEX.LZ.{F3: pp=2 | F2: pp=3}.0F38.W1 opcode /reg, vvvv = source, mem.
  void Vex(unsigned reg, unsigned source, const Mem& mem, uint8_t opcode, unsigned pp) {
    if (mem.gs) Byte(0x65);
    Byte(0xc4);
    Byte(static_cast<uint8_t>((reg >= 8 ? 0 : 0x80) | (mem.index >= 8 ? 0 : 0x40) | (mem.base >= 8 ? 0 : 0x20) | 2));
    Byte(static_cast<uint8_t>(0x80 | (~source & 15) << 3 | pp));
    Byte(opcode);
    ModRm(reg, mem);
  }
  uint8_t* Displacement32() {
    at_ += 4;
    return at_ - 4;
  }

  uint8_t* at_;
};

}  // namespace nacre::engine::jit
