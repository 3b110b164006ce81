#include "x86/decoder.h"

#include <Zydis/Zydis.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "x86/cpu_state.h"

namespace nacre::x86 {
namespace {

constexpr uint16_t Mask(std::initializer_list<Gpr> registers) {
  uint16_t mask = 0;
  for (Gpr reg : registers) mask = static_cast<uint16_t>(mask | 1u << reg);
  return mask;
}

Instruction Must(std::vector<uint8_t> bytes, CodeSize size = CodeSize::k64) {
  Instruction instruction;
  EXPECT_EQ(Decode(bytes, size, instruction), DecodeStatus::kOk);
  EXPECT_EQ(instruction.length, bytes.size());
  return instruction;
}

DecodeStatus StatusOf(std::vector<uint8_t> bytes, CodeSize size = CodeSize::k64) {
  Instruction instruction;
  return Decode(bytes, size, instruction);
}

std::string Text(std::vector<uint8_t> bytes, CodeSize size = CodeSize::k64, uint64_t address = 0x1000) {
  char text[128];
  Format(Must(std::move(bytes), size), address, text);
  return text;
}

std::string Hex(const Instruction& instruction) {
  std::string text;
  for (unsigned i = 0; i < instruction.length; ++i) text += fmt::format("{:02x} ", instruction.bytes[i]);
  return text;
}

TEST(Decoder, AddRegisterMemory) {
  const Instruction add = Must({0x01, 0x44, 0x8b, 0x10});  // add [rbx+rcx*4+16], eax
  EXPECT_EQ(add.mnemonic, ZYDIS_MNEMONIC_ADD);
  EXPECT_EQ(add.operand_size, 4);
  EXPECT_EQ(add.address_size, 8);
  EXPECT_EQ(add.opcode_at, 0);
  EXPECT_EQ(add.modrm_at, 1);
  EXPECT_EQ(add.sib_at, 2);
  EXPECT_EQ(add.displacement_at, 3);
  EXPECT_EQ(add.displacement_size, 1);
  EXPECT_EQ(add.modrm, 0x44);
  EXPECT_EQ(add.sib, 0x8b);
  EXPECT_EQ(add.base, kRbx);
  EXPECT_EQ(add.index, kRcx);
  EXPECT_EQ(add.scale, 4);
  EXPECT_EQ(add.displacement, 16);
  EXPECT_EQ(add.segment, kDs);
  ASSERT_EQ(add.operand_count, 2);
  EXPECT_EQ(add.operand[0].kind, OperandKind::kMemory);
  EXPECT_TRUE(add.operand[0].read && add.operand[0].written);
  EXPECT_EQ(add.operand[0].size, 4);
  EXPECT_EQ(add.operand[1].register_class, RegisterClass::kGpr);
  EXPECT_EQ(add.gpr_read, Mask({kRax, kRbx, kRcx}));
  EXPECT_EQ(add.gpr_written, 0);
  EXPECT_EQ(add.flags_written, rflags::kArithmetic);
  EXPECT_EQ(add.flags_read, 0);
  EXPECT_EQ(add.branch, BranchKind::kNone);
}

TEST(Decoder, RexAndLayout) {
  const Instruction mov = Must({0x66, 0x49, 0x8b, 0x85, 0, 0, 0, 0x80});  // mov rax, [r13-2^31]; 66 loses to REX.W
  EXPECT_EQ(mov.prefix_count, 1);
  EXPECT_EQ(mov.rex, 0x49);
  EXPECT_EQ(mov.opcode_at, 2);
  EXPECT_EQ(mov.operand_size, 8);
  EXPECT_EQ(mov.base, kR13);
  EXPECT_EQ(mov.segment, kDs);
  EXPECT_EQ(mov.displacement, -0x80000000LL);
  EXPECT_TRUE(mov.has(kInsnOperandSizePrefix));

  const Instruction movzx = Must({0x44, 0x0f, 0xb6, 0xc4});  // movzx r8d, spl: with REX no AH
  EXPECT_EQ(movzx.opcode_at, 2);
  EXPECT_EQ(movzx.map, 1);
  EXPECT_EQ(movzx.operand[1].register_class, RegisterClass::kGpr);
  EXPECT_EQ(movzx.operand[1].index, kRsp);
  EXPECT_EQ(movzx.gpr_written, Mask({kR8}));

  const Instruction vex = Must({0xc4, 0xe3, 0x69, 0x4a, 0xcb, 0x40});  // vblendvps xmm1, xmm2, xmm3, xmm4
  EXPECT_EQ(vex.encoding, Encoding::kVex);
  EXPECT_EQ(vex.opcode_at, 3);
  EXPECT_EQ(vex.map, 3);
  EXPECT_EQ(vex.vector_length, 16);
  EXPECT_EQ(vex.immediate, 0x40u);
  EXPECT_EQ(vex.immediate_at, 5);
  EXPECT_EQ(vex.operand_count, 4);
  EXPECT_TRUE(vex.has(kInsnVector));

  const Instruction three = Must({0x66, 0x0f, 0x38, 0x00, 0xc1});  // pshufb
  EXPECT_EQ(three.prefix_count, 1);
  EXPECT_EQ(three.opcode_at, 3);
  EXPECT_EQ(three.vector_length, 16);
}

TEST(Decoder, HighByteRegisters) {
  const Instruction mov = Must({0x88, 0xfc});  // mov ah, bh
  EXPECT_EQ(mov.operand[0].register_class, RegisterClass::kGprHigh);
  EXPECT_EQ(mov.operand[0].index, 0);
  EXPECT_EQ(mov.operand[1].index, 3);
  EXPECT_EQ(mov.operand_size, 1);
  EXPECT_EQ(mov.gpr_read, Mask({kRax, kRbx}));  // the rest of RAX survives
  EXPECT_EQ(mov.gpr_written, Mask({kRax}));
}

TEST(Decoder, PartialAndConditionalWritesAlsoRead) {
  EXPECT_EQ(Must({0x89, 0xc8}).gpr_read, Mask({kRcx}));              // mov eax, ecx
  EXPECT_EQ(Must({0x66, 0x89, 0xc8}).gpr_read, Mask({kRax, kRcx}));  // mov ax, cx
  EXPECT_EQ(Must({0x0f, 0x44, 0xc1}).gpr_read, Mask({kRax, kRcx}));  // cmove eax, ecx
  EXPECT_EQ(Must({0x0f, 0xbc, 0xc1}).gpr_read, Mask({kRax, kRcx}));  // bsf eax, ecx
  EXPECT_EQ(Must({0x0f, 0x94, 0xc0}).gpr_read, Mask({kRax}));        // sete al
  const Instruction cmpxchg = Must({0x0f, 0xb1, 0xd1});              // cmpxchg ecx, edx
  EXPECT_EQ(cmpxchg.gpr_read, Mask({kRax, kRcx, kRdx}));
  EXPECT_EQ(cmpxchg.gpr_written, Mask({kRax, kRcx}));
}

TEST(Decoder, ImplicitRegisters) {
  const Instruction mul = Must({0xf7, 0xe1});  // mul ecx
  EXPECT_EQ(mul.operand_count, 1);
  EXPECT_EQ(mul.gpr_read, Mask({kRax, kRcx}));
  EXPECT_EQ(mul.gpr_written, Mask({kRax, kRdx}));
  const Instruction push = Must({0x50});
  EXPECT_EQ(push.operand_count, 1);
  EXPECT_FALSE(push.has_memory());
  EXPECT_EQ(push.gpr_read, Mask({kRax, kRsp}));
  EXPECT_EQ(push.gpr_written, Mask({kRsp}));
  EXPECT_EQ(push.operand_size, 8);
  EXPECT_EQ(Must({0xd7}).gpr_read, Mask({kRax, kRbx}));  // xlat
  EXPECT_EQ(Must({0x60}, CodeSize::k32).gpr_read, 0xff);
  EXPECT_EQ(Must({0x61}, CodeSize::k32).gpr_written, 0xff);
  const Instruction cpuid = Must({0x0f, 0xa2});
  EXPECT_EQ(cpuid.gpr_read, Mask({kRax, kRcx}));
  EXPECT_EQ(cpuid.gpr_written, Mask({kRax, kRbx, kRcx, kRdx}));
  const Instruction cx16 = Must({0x48, 0x0f, 0xc7, 0x0f});  // cmpxchg16b [rdi]
  EXPECT_EQ(cx16.gpr_read, Mask({kRax, kRbx, kRcx, kRdx, kRdi}));
  EXPECT_EQ(cx16.gpr_written, Mask({kRax, kRdx}));
  EXPECT_EQ(cx16.operand[0].size, 16);
}

TEST(Decoder, Strings) {
  const Instruction movsb = Must({0xa4});
  EXPECT_EQ(movsb.operand_size, 1);
  EXPECT_FALSE(movsb.has_memory());
  EXPECT_EQ(movsb.segment, kDs);
  EXPECT_EQ(movsb.base, kRsi);
  EXPECT_EQ(movsb.gpr_written, Mask({kRsi, kRdi}));
  EXPECT_FALSE(movsb.has(kInsnRep));

  const Instruction rep = Must({0xf3, 0x64, 0x48, 0xa5});  // rep fs: movsq
  EXPECT_TRUE(rep.has(kInsnRep));
  EXPECT_EQ(rep.operand_size, 8);
  EXPECT_EQ(rep.segment, kFs);
  EXPECT_EQ(rep.gpr_read, Mask({kRcx, kRsi, kRdi}));
  EXPECT_EQ(rep.gpr_written, Mask({kRcx, kRsi, kRdi}));

  EXPECT_TRUE(Must({0xf2, 0xaa}).has(kInsnRep));  // F2 before STOS repeats as F3 does
  EXPECT_EQ(Must({0x26, 0xf3, 0xab}, CodeSize::k32).segment, kEs);
  EXPECT_EQ(Must({0x64, 0xab}, CodeSize::k32).segment, kEs);  // the destination ignores the override
  const Instruction repne = Must({0xf2, 0xae});
  EXPECT_TRUE(repne.has(kInsnRepne));
  EXPECT_FALSE(repne.has(kInsnRep));
  EXPECT_EQ(repne.flags_read & rflags::kArithmetic, rflags::kArithmetic);  // RCX 0 leaves the flags
  const Instruction cmps = Must({0xf3, 0xa6});
  EXPECT_EQ(cmps.gpr_written, Mask({kRcx, kRsi, kRdi}));
  EXPECT_FALSE(Must({0xf3, 0x0f, 0xaf, 0xc1}).has(kInsnRep));  // imul: F3 means nothing
}

TEST(Decoder, Segments) {
  EXPECT_EQ(Must({0x8b, 0x45, 0x00}).segment, kSs);        // [rbp]
  EXPECT_EQ(Must({0x8b, 0x04, 0x24}).segment, kSs);        // [rsp]
  EXPECT_EQ(Must({0x41, 0x8b, 0x45, 0x00}).segment, kDs);  // [r13]
  EXPECT_EQ(Must({0x8b, 0x04, 0x2b}).segment, kDs);        // [rbx+rbp]
  EXPECT_EQ(Must({0x36, 0x8b, 0x00}).segment, kDs);        // SS: means nothing in 64-bit mode
  EXPECT_EQ(Must({0x65, 0x2e, 0x8b, 0x00}).segment, kGs);  // ... and does not undo GS:
  EXPECT_EQ(Must({0x65, 0x64, 0x8b, 0x00}).segment, kFs);  // the last one counts
  EXPECT_EQ(Must({0x36, 0x8b, 0x00}, CodeSize::k32).segment, kSs);
  EXPECT_EQ(Must({0x3e, 0x8b, 0x45, 0x00}, CodeSize::k32).segment, kDs);
  EXPECT_EQ(Must({0x2e, 0x8b, 0x45, 0x00}, CodeSize::k32).segment, kCs);
  EXPECT_TRUE(Must({0x36, 0x8b, 0x00}).has(kInsnSegmentPrefix));
}

TEST(Decoder, SixteenBitAddressing) {
  struct Case {
    uint8_t modrm;
    uint8_t base, index;
    uint8_t segment;
  };
  constexpr Case kCases[] = {{0x00, kRbx, kRsi, kDs},        {0x01, kRbx, kRdi, kDs},
                             {0x02, kRbp, kRsi, kSs},        {0x03, kRbp, kRdi, kSs},
                             {0x04, kRsi, kNoRegister, kDs}, {0x05, kRdi, kNoRegister, kDs},
                             {0x07, kRbx, kNoRegister, kDs}};
  for (const Case& c : kCases) {
    const Instruction mov = Must({0x8b, c.modrm}, CodeSize::k16);
    EXPECT_EQ(mov.base, c.base) << int{c.modrm};
    EXPECT_EQ(mov.index, c.index) << int{c.modrm};
    EXPECT_EQ(mov.segment, c.segment) << int{c.modrm};
    EXPECT_EQ(mov.address_size, 2);
    EXPECT_EQ(mov.operand_size, 2);
    EXPECT_EQ(mov.scale, c.index == kNoRegister ? 0 : 1);
  }
  const Instruction direct = Must({0x8b, 0x06, 0x34, 0xf2}, CodeSize::k16);
  EXPECT_EQ(direct.base, kNoRegister);
  EXPECT_EQ(static_cast<uint16_t>(direct.displacement), 0xf234);
  EXPECT_EQ(direct.displacement_size, 2);
  const Instruction bp = Must({0x8b, 0x46, 0xfe}, CodeSize::k16);  // [bp-2]
  EXPECT_EQ(bp.base, kRbp);
  EXPECT_EQ(bp.displacement, -2);
  EXPECT_EQ(bp.segment, kSs);
  EXPECT_EQ(Must({0x67, 0x8b, 0x00}, CodeSize::k32).address_size, 2);
  EXPECT_EQ(Must({0x67, 0x66, 0x8b, 0x00}, CodeSize::k16).operand_size, 4);
}

TEST(Decoder, RipRelative) {
  const Instruction mov = Must({0x48, 0x8b, 0x05, 0x10, 0, 0, 0});
  EXPECT_EQ(mov.base, kRipRegister);
  EXPECT_EQ(mov.displacement, 16);
  EXPECT_EQ(mov.displacement_at, 3);
  EXPECT_EQ(mov.gpr_read, 0);
  EXPECT_EQ(Must({0x67, 0x8b, 0x05, 0, 0, 0, 0}).address_size, 4);
  EXPECT_EQ(Must({0x8b, 0x05, 0, 0, 0, 0}, CodeSize::k32).base, kNoRegister);
  EXPECT_EQ(Must({0x8b, 0x04, 0x25, 0, 0, 0, 0x80}).displacement, -0x80000000LL);
}

TEST(Decoder, Vsib) {
  const Instruction gather = Must({0xc4, 0xe2, 0x69, 0x90, 0x4c, 0xa0, 0x08});  // vpgatherdd xmm1, [rax+xmm4*4+8], xmm2
  EXPECT_TRUE(gather.has(kInsnVsib));
  EXPECT_EQ(gather.base, kRax);
  EXPECT_EQ(gather.index, 4);
  EXPECT_EQ(gather.scale, 4);
  EXPECT_EQ(gather.displacement, 8);
  EXPECT_EQ(gather.gpr_read, Mask({kRax}));
}

TEST(Decoder, Immediates) {
  EXPECT_EQ(Must({0x83, 0xc0, 0xff}).immediate, ~uint64_t{0});
  EXPECT_EQ(Must({0x48, 0x05, 0, 0, 0, 0x80}).immediate, 0xffffffff80000000);
  EXPECT_EQ(Must({0xc1, 0xe0, 0xff}).immediate, 0xffu);
  EXPECT_EQ(Must({0xd1, 0xe0}).immediate, 1u);
  EXPECT_EQ(Must({0xd1, 0xe0}).immediate_size, 0);
  EXPECT_EQ(Must({0xc2, 0xf0, 0xff}).immediate, 0xfff0u);
  EXPECT_EQ(Must({0xcd, 0x80}).immediate, 0x80u);
  EXPECT_EQ(Must({0xe4, 0x80}).immediate, 0x80u);
  EXPECT_EQ(Must({0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8}).immediate, 0x0807060504030201u);
  EXPECT_EQ(Must({0x6a, 0x80}).immediate, 0xffffffffffffff80);
  const Instruction enter = Must({0xc8, 0x10, 0x80, 0x1f});
  EXPECT_EQ(enter.immediate, 0x8010u);
  EXPECT_EQ(enter.immediate2, 0x1f);
  EXPECT_EQ(enter.immediate2_size, 1);
  const Instruction far = Must({0x9a, 1, 2, 3, 4, 5, 6}, CodeSize::k32);
  EXPECT_EQ(far.operand[0].kind, OperandKind::kFarPointer);
  EXPECT_EQ(far.immediate, 0x04030201u);
  EXPECT_EQ(far.immediate2, 0x0605);
  EXPECT_EQ(far.branch, BranchKind::kFar);
  const Instruction moffs = Must({0xa1, 1, 0, 0, 0, 0, 0, 0, 0x80});
  EXPECT_EQ(static_cast<uint64_t>(moffs.displacement), 0x8000000000000001u);
  EXPECT_EQ(moffs.displacement_size, 8);
  EXPECT_TRUE(moffs.has_memory());
}

TEST(Decoder, Branches) {
  EXPECT_EQ(Must({0x75, 0xfe}).branch, BranchKind::kConditional);
  EXPECT_EQ(Must({0x75, 0xfe}).immediate, static_cast<uint64_t>(-2));
  EXPECT_EQ(Must({0x75, 0xfe}).flags_read, rflags::kZf);
  EXPECT_EQ(Must({0xe2, 0xfe}).branch, BranchKind::kConditional);
  EXPECT_EQ(Must({0xe3, 0xfe}).branch, BranchKind::kConditional);
  EXPECT_EQ(Must({0xeb, 0x00}).branch, BranchKind::kJump);
  EXPECT_EQ(Must({0xe8, 0, 0, 0, 0}).branch, BranchKind::kCall);
  EXPECT_EQ(Must({0xff, 0xe0}).branch, BranchKind::kIndirectJump);
  EXPECT_EQ(Must({0xff, 0x10}).branch, BranchKind::kIndirectCall);
  EXPECT_EQ(Must({0xff, 0x10}).operand_size, 8);
  EXPECT_EQ(Must({0xc3}).branch, BranchKind::kReturn);
  EXPECT_EQ(Must({0xf3, 0xc3}).branch, BranchKind::kReturn);
  for (const std::vector<uint8_t>& bytes : std::vector<std::vector<uint8_t>>{{0xcb},
                                                                             {0x48, 0xcf},
                                                                             {0xcf},
                                                                             {0x0f, 0x05},
                                                                             {0x0f, 0x34},
                                                                             {0x0f, 0x35},
                                                                             {0x48, 0x0f, 0x07},
                                                                             {0xcc},
                                                                             {0xcd, 3},
                                                                             {0xf1},
                                                                             {0xff, 0x18},
                                                                             {0xff, 0x28}})
    EXPECT_EQ(Must(bytes).branch, BranchKind::kFar) << MnemonicName(Must(bytes).mnemonic);
  // Intel ignores 66 before near branches in 64-bit mode.
  const Instruction call = Must({0x66, 0xe8, 1, 0, 0, 0});
  EXPECT_EQ(call.operand_size, 8);
  EXPECT_EQ(call.immediate_size, 4);
  EXPECT_EQ(Must({0x66, 0xe8, 1, 0}, CodeSize::k32).operand_size, 2);
  EXPECT_EQ(Must({0xe8, 1, 0}, CodeSize::k16).operand_size, 2);
}

TEST(Decoder, Flags) {
  EXPECT_EQ(Must({0xff, 0xc0}).flags_written, rflags::kArithmetic & ~rflags::kCf);  // inc
  EXPECT_EQ(Must({0x11, 0xc8}).flags_read, rflags::kCf);                            // adc
  EXPECT_EQ(Must({0xd3, 0xe0}).flags_read, rflags::kArithmetic);                    // shl eax, cl: a count of 0
  EXPECT_EQ(Must({0xc1, 0xe0, 5}).flags_read, 0);
  EXPECT_EQ(Must({0xc1, 0xe0, 5}).flags_written, rflags::kArithmetic);
  EXPECT_EQ(Must({0xc1, 0xe0, 5}).flags_undefined, rflags::kAf | rflags::kOf);
  EXPECT_EQ(Must({0xd1, 0xe0}).flags_undefined, rflags::kAf);
  EXPECT_EQ(Must({0xc1, 0xe0, 32}).flags_written, 0);
  EXPECT_EQ(Must({0x48, 0xc1, 0xe0, 32}).flags_written, rflags::kArithmetic);
  EXPECT_EQ(Must({0xc1, 0xc0, 5}).flags_written, rflags::kCf | rflags::kOf);  // rol
  EXPECT_EQ(Must({0xd1, 0xd0}).flags_read & rflags::kCf, rflags::kCf);        // rcl
  EXPECT_EQ(Must({0x0f, 0xa3, 0xc8}).flags_written & rflags::kZf, 0u);        // bt keeps ZF
  EXPECT_EQ(Must({0x89, 0xc8}).flags_written, 0);
  EXPECT_EQ(Must({0x9e}).flags_written, rflags::kArithmetic & ~rflags::kOf);  // sahf
  EXPECT_EQ(Must({0x9c}).flags_read, rflags::kArithmetic);                    // pushf
  EXPECT_EQ(Must({0xc4, 0xe2, 0x71, 0xf7, 0xc0}).flags_written, 0);           // shlx
}

TEST(Decoder, Lock) {
  EXPECT_TRUE(Must({0xf0, 0x01, 0x00}).has(kInsnLock));
  EXPECT_EQ(StatusOf({0xf0, 0x01, 0xc0}), DecodeStatus::kInvalid);  // a register cannot be locked
  EXPECT_EQ(StatusOf({0xf0, 0x89, 0x00}), DecodeStatus::kInvalid);  // nor MOV
  EXPECT_TRUE(Must({0xf0, 0x0f, 0xc7, 0x08}).has(kInsnLock));
  EXPECT_TRUE(Must({0xf2, 0xf0, 0x01, 0x00}).has(kInsnLock));  // XACQUIRE is a hint
}

TEST(Decoder, Kinds) {
  EXPECT_TRUE(Must({0xd8, 0xc1}).has(kInsnX87));
  EXPECT_TRUE(Must({0xdf, 0x08}).has(kInsnX87));  // fisttp
  EXPECT_TRUE(Must({0x9b}).has(kInsnX87));
  EXPECT_EQ(Must({0xdb, 0x28}).memory_operand()->size, 10);  // fld m80
  EXPECT_TRUE(Must({0x0f, 0x58, 0xc1}).has(kInsnVector));
  EXPECT_TRUE(Must({0x0f, 0xfc, 0xc1}).has(kInsnVector));
  EXPECT_TRUE(Must({0x0f, 0x77}).has(kInsnVector));
  EXPECT_TRUE(Must({0xc5, 0xf8, 0x77}).has(kInsnVector));
  EXPECT_TRUE(Must({0x0f, 0xae, 0x10}).has(kInsnVector));               // ldmxcsr
  EXPECT_TRUE(Must({0xf2, 0x0f, 0x2d, 0x00}).has(kInsnVector));         // cvtsd2si eax, [rax]
  EXPECT_FALSE(Must({0x0f, 0xc3, 0x00}).has(kInsnVector));              // movnti
  EXPECT_FALSE(Must({0xc4, 0xe2, 0x7b, 0xf5, 0xc1}).has(kInsnVector));  // pdep
  EXPECT_EQ(Must({0xc5, 0xfd, 0x6f, 0xc1}).vector_length, 32);
  for (const std::vector<uint8_t>& bytes : std::vector<std::vector<uint8_t>>{{0xf4},
                                                                             {0x0f, 0x20, 0xc0},
                                                                             {0x0f, 0x22, 0xd8},
                                                                             {0x0f, 0x01, 0x10},
                                                                             {0x0f, 0x30},
                                                                             {0x0f, 0x06},
                                                                             {0x0f, 0x01, 0x38},
                                                                             {0x0f, 0x09}})
    EXPECT_TRUE(Must(bytes).has(kInsnPrivileged)) << MnemonicName(Must(bytes).mnemonic);
  for (const std::vector<uint8_t>& bytes : std::vector<std::vector<uint8_t>>{
           {0xfa}, {0xe4, 0}, {0x0f, 0x31}, {0x0f, 0x33}, {0x0f, 0x01, 0xe0}, {0x0f, 0xa2}})
    EXPECT_FALSE(Must(bytes).has(kInsnPrivileged)) << MnemonicName(Must(bytes).mnemonic);
}

TEST(Decoder, SystemRegisters) {
  const Instruction mov = Must({0x44, 0x0f, 0x22, 0xc1});  // mov cr8, rcx
  EXPECT_EQ(mov.operand[0].register_class, RegisterClass::kControl);
  EXPECT_EQ(mov.operand[0].index, 8);
  EXPECT_EQ(mov.operand[1].index, kRcx);
  EXPECT_EQ(mov.operand[1].size, 8);
  EXPECT_EQ(Must({0x0f, 0x23, 0xf8}).operand[0].register_class, RegisterClass::kDebug);
  EXPECT_EQ(Must({0x0f, 0x23, 0xf8}).operand[0].index, 7);
  EXPECT_EQ(Must({0x0f, 0x20, 0x00}, CodeSize::k32).operand[0].kind, OperandKind::kRegister);  // mod is ignored
  EXPECT_EQ(Must({0x8e, 0xe0}).operand[0].register_class, RegisterClass::kSegment);
  EXPECT_EQ(Must({0x8e, 0xe0}).operand[0].index, kFs);
  EXPECT_EQ(StatusOf({0x8e, 0xc8}), DecodeStatus::kInvalid);        // mov cs
  EXPECT_EQ(StatusOf({0x0f, 0x20, 0xc8}), DecodeStatus::kInvalid);  // cr1
}

TEST(Decoder, NopSpace) {
  // Without CET and MPX these are NOPs, with a memory operand that is not touched.
  for (const std::vector<uint8_t>& bytes : std::vector<std::vector<uint8_t>>{{0xf3, 0x0f, 0x1e, 0xfa},
                                                                             {0x0f, 0x1f, 0x00},
                                                                             {0x0f, 0x1a, 0xc0},
                                                                             {0x66, 0x0f, 0x1b, 0xc0},
                                                                             {0x0f, 0x1c, 0x00},
                                                                             {0x0f, 0x0d, 0xc0}})
    EXPECT_EQ(Must(bytes).mnemonic, ZYDIS_MNEMONIC_NOP);
  EXPECT_EQ(Must({0xf3, 0x90}).mnemonic, ZYDIS_MNEMONIC_PAUSE);
  EXPECT_EQ(Must({0x90}).mnemonic, ZYDIS_MNEMONIC_NOP);
  EXPECT_EQ(Must({0xf3, 0x0f, 0x09}).mnemonic, ZYDIS_MNEMONIC_WBINVD);
  EXPECT_EQ(Must({0xf3, 0x0f, 0xbd, 0xc1}).mnemonic, ZYDIS_MNEMONIC_LZCNT);
  EXPECT_EQ(Must({0xf3, 0x0f, 0xbc, 0xc1}).mnemonic, ZYDIS_MNEMONIC_TZCNT);
}

TEST(Decoder, CodeSizeChangesMeaning) {
  EXPECT_EQ(Must({0x40}, CodeSize::k32).mnemonic, ZYDIS_MNEMONIC_INC);
  EXPECT_EQ(Must({0x40}, CodeSize::k16).operand_size, 2);
  EXPECT_EQ(StatusOf({0x40}), DecodeStatus::kTruncated);
  EXPECT_EQ(Must({0xc5, 0x00}, CodeSize::k32).mnemonic, ZYDIS_MNEMONIC_LDS);
  EXPECT_EQ(Must({0x62, 0x00}, CodeSize::k32).mnemonic, ZYDIS_MNEMONIC_BOUND);
  EXPECT_EQ(Must({0x63, 0xc1}, CodeSize::k32).mnemonic, ZYDIS_MNEMONIC_ARPL);
  EXPECT_EQ(Must({0x48, 0x63, 0xc1}).mnemonic, ZYDIS_MNEMONIC_MOVSXD);
  for (uint8_t opcode : {0x06, 0x27, 0x37, 0x60, 0xce, 0xd4, 0xd5, 0xd6}) {
    EXPECT_EQ(StatusOf({opcode, 0}), DecodeStatus::kInvalid) << int{opcode};
    EXPECT_EQ(StatusOf({opcode, 0}, CodeSize::k32), DecodeStatus::kOk) << int{opcode};
    EXPECT_EQ(StatusOf({opcode, 0}, CodeSize::k16), DecodeStatus::kOk) << int{opcode};
  }
}

TEST(Decoder, LengthLimits) {
  std::vector<uint8_t> bytes(14, 0x66);
  bytes.push_back(0x90);
  EXPECT_EQ(StatusOf(bytes), DecodeStatus::kOk);
  bytes.insert(bytes.begin(), 0x66);
  EXPECT_EQ(StatusOf(bytes), DecodeStatus::kTooLong);
  EXPECT_EQ(StatusOf(std::vector<uint8_t>(15, 0x66)), DecodeStatus::kTooLong);
  EXPECT_EQ(StatusOf(std::vector<uint8_t>(40, 0x2e)), DecodeStatus::kTooLong);
  EXPECT_EQ(StatusOf(std::vector<uint8_t>(14, 0x66)), DecodeStatus::kTruncated);
  EXPECT_EQ(StatusOf({}), DecodeStatus::kTruncated);
  EXPECT_EQ(StatusOf({0x0f}), DecodeStatus::kTruncated);
  EXPECT_EQ(StatusOf({0xe8, 0, 0}), DecodeStatus::kTruncated);
  EXPECT_EQ(StatusOf({0x0f, 0x0a}), DecodeStatus::kInvalid);
  EXPECT_EQ(StatusOf({0x66, 0xc5, 0xf8, 0x77}), DecodeStatus::kInvalid);        // 66 before VEX
  EXPECT_EQ(StatusOf({0x48, 0xc5, 0xf8, 0x77}), DecodeStatus::kInvalid);        // REX before VEX
  EXPECT_EQ(StatusOf({0xc5, 0xf0, 0x6f, 0xc0, 0, 0}), DecodeStatus::kInvalid);  // unused VEX.vvvv must be 1111
}

TEST(Decoder, WhereZydisIsWrong) {
  const Instruction mov = Must({0x67, 0x43, 0x8b, 0x04, 0x85, 0xf8, 1, 0, 0});  // mov eax, [r8d*4+0x1f8]
  EXPECT_EQ(mov.base, kNoRegister);
  EXPECT_EQ(mov.index, kR8);
  EXPECT_EQ(mov.displacement, 0x1f8);
  EXPECT_EQ(mov.gpr_read, Mask({kR8}));
  const Instruction xchg = Must({0xf3, 0x41, 0x90});
  EXPECT_EQ(xchg.mnemonic, ZYDIS_MNEMONIC_XCHG);
  EXPECT_EQ(xchg.gpr_written, Mask({kRax, kR8}));
  EXPECT_EQ(xchg.bytes[0], 0xf3);
  EXPECT_EQ(Must({0xc4, 0xe2, 0x79, 0x17, 0xc1}).flags_written, rflags::kArithmetic);  // vptest
}

TEST(Decoder, InPlace) {
  Instruction add = Must({0x48, 0x01, 0xc8});
  EXPECT_EQ(Decode(add.bytes, CodeSize::k64, add), DecodeStatus::kOk);
  EXPECT_EQ(add.mnemonic, ZYDIS_MNEMONIC_ADD);
  EXPECT_EQ(add.length, 3);
}

TEST(Decoder, EveryPrefixOfAnInstructionIsTruncated) {
  std::mt19937_64 random(1);
  int whole = 0;
  for (int n = 0; n < 200000; ++n) {
    uint8_t bytes[15];
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
    const auto size = static_cast<CodeSize>(random() % 3);
    Instruction instruction;
    if (Decode(bytes, size, instruction) != DecodeStatus::kOk) continue;
    ++whole;
    ASSERT_EQ(Decode({bytes, instruction.length}, size, instruction), DecodeStatus::kOk);
    ASSERT_LE(instruction.operand_count, 5);
    ASSERT_LT(instruction.opcode_at, instruction.length);
    ASSERT_LT(instruction.modrm_at, instruction.length);
    ASSERT_LE(instruction.displacement_at + instruction.displacement_size, instruction.length);
    ASSERT_LE(instruction.immediate_at + instruction.immediate_size, instruction.length);
    ASSERT_EQ(instruction.bytes[instruction.opcode_at], instruction.opcode) << Hex(instruction);
    for (size_t cut = 0; cut < instruction.length; ++cut) {
      Instruction unused;
      ASSERT_EQ(Decode({bytes, cut}, size, unused), DecodeStatus::kTruncated);
    }
  }
  EXPECT_GT(whole, 50000);
}

TEST(Decoder, TextAndNames) {
  EXPECT_STREQ(MnemonicName(ZYDIS_MNEMONIC_VPADDD), "VPADDD");
  EXPECT_STREQ(MnemonicName(0xffff), "INVALID");
  EXPECT_EQ(Text({0x48, 0x01, 0xc8}), "add rax, rcx");
  EXPECT_EQ(Text({0x75, 0xfe}), "jnz 0x0000000000001000");
}

TEST(Decoder, EvexWritemaskAndMemoryElements) {
  struct Case {
    std::vector<uint8_t> bytes;
    uint8_t opmask, bits, element, size;
    bool masked;
    int64_t displacement;
  };
  const Case cases[] = {
      {{0x62, 0xf1, 0x7e, 0x49, 0x6f, 0x48, 0x01}, 1, 16, 4, 64, true, 64},    // vmovdqu32 zmm1{k1}, [rax+64]
      {{0x62, 0xf1, 0x7e, 0x48, 0x6f, 0x48, 0xff}, 0, 16, 4, 64, false, -64},  // vmovdqu32 zmm1, [rax-64]
      {{0x62, 0xf1, 0x6c, 0x5f, 0x58, 0x48, 0x02}, 7, 16, 4, 4, true, 8},      // vaddps zmm1{k7}, zmm2, [rax+8]{1to16}
      {{0x62, 0xf2, 0x7d, 0x4a, 0x5a, 0x48, 0x01}, 2, 16, 4, 16, true, 16},    // vbroadcasti32x4 zmm1{k2}, [rax+16]
      {{0x62, 0xf1, 0x6e, 0x09, 0x58, 0x08}, 1, 1, 4, 4, true, 0},             // vaddss xmm1{k1}, xmm2, [rax]
      {{0x62, 0xf2, 0x6d, 0x49, 0x00, 0x08}, 1, 64, 1, 64, false, 0},          // vpshufb zmm1{k1}, zmm2, [rax]: E4NF
      {{0x62, 0xf2, 0x7d, 0x49, 0x30, 0x08}, 1, 32, 1, 32, true, 0},           // vpmovzxbw zmm1{k1}, [rax]
  };
  for (const Case& c : cases) {
    Instruction insn;
    ASSERT_EQ(Decode(c.bytes, CodeSize::k64, insn), DecodeStatus::kOk);
    char text[128];
    Format(insn, 0, text);
    EXPECT_EQ(insn.opmask, c.opmask) << text;
    EXPECT_EQ(insn.opmask_bits, c.bits) << text;
    EXPECT_EQ(insn.memory_element, c.element) << text;
    EXPECT_EQ(insn.memory_operand()->size, c.size) << text;
    EXPECT_EQ(insn.has(kInsnMaskedMemory), c.masked) << text;
    EXPECT_EQ(insn.displacement, c.displacement) << text;
    EXPECT_TRUE(insn.has(kInsnVector));
  }
}

}  // namespace
}  // namespace nacre::x86
