// Segmentation, privilege, gates, tasks and virtual-8086 mode.

#include "engine/interp/interp_testing.h"

namespace nacre::engine::interp {
namespace {

namespace rf = x86::rflags;
using x86::kRax, x86::kRbx, x86::kRcx, x86::kRdx, x86::kRsp, x86::kRbp, x86::kRsi, x86::kRdi;

TEST_F(InterpTest, RealModeInterruptAndReturn) {
  RealMode();
  s.rflags |= rf::kIf | rf::kCf;
  Put<uint32_t>(0x21 * 4, 0x00009000);
  Code({0xcd, 0x21, 0xf4});                // int 0x21; hlt
  Code({0xb8, 0x34, 0x12, 0xcf}, 0x9000);  // mov ax, 0x1234; iret
  interpreter->Step(s);
  EXPECT_EQ(s.rip, 0x9000u);
  EXPECT_EQ(s.rflags & (rf::kIf | rf::kCf), rf::kCf);
  EXPECT_EQ(Get<uint16_t>(0x6ffa), 0x8002);
  EXPECT_EQ(Get<uint16_t>(0x6ffe), rf::kIf | rf::kCf | 2);
  EXPECT_EQ(Run(), -1);
  EXPECT_EQ(s.gpr[kRax] & 0xffff, 0x1234u);
  EXPECT_EQ(s.gpr[kRsp], 0x7000u);
  EXPECT_TRUE(s.rflags & rf::kIf);
}

TEST_F(InterpTest, RealModeLimitsAndDivide) {
  RealMode();
  Code({0xa1, 0xff, 0xff});  // mov ax, [0xffff]: a word over the limit
  EXPECT_EQ(Run(), 13);
  EXPECT_EQ(Get<uint16_t>(0x6ffa), at::kCode) << "a fault returns to its instruction, without error code";
  RealMode();
  Code({0x31, 0xdb, 0xf7, 0xf3});  // xor bx, bx; div bx
  EXPECT_EQ(Run(), 0);
  EXPECT_EQ(Get<uint16_t>(0x6ffa), at::kCode + 2);
}

TEST_F(InterpTest, RealToProtectedToLong) {
  LongMode();  // for the tables
  const x86::CpuState target = s;
  RealMode();
  s.gdtr = target.gdtr;
  s.cr3 = at::kPml4;
  s.cr4 = x86::cr4::kPae;
  s.idtr = target.idtr;
  Code({0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0,                    // mov ecx, EFER
        0x66, 0xb8, 0x00, 0x01, 0x00, 0x00, 0x66, 0x31, 0xd2,  // mov eax, LME; xor edx, edx
        0x0f, 0x30,                                            // wrmsr
        0x66, 0xb8, 0x01, 0x00, 0x00, 0x80,                    // mov eax, PG | PE
        0x0f, 0x22, 0xc0,                                      // mov cr0, eax
        0x66, 0xea, 0x00, 0x90, 0x00, 0x00, 0x08, 0x00});      // jmp 8:0x9000
  Code({0x48, 0xb8, 8, 7, 6, 5, 4, 3, 2, 1, 0xf4}, 0x9000);    // mov rax, 0x0102030405060708; hlt
  EXPECT_EQ(Run(), -1);
  EXPECT_EQ(s.gpr[kRax], 0x0102030405060708u);
  EXPECT_TRUE(s.code64());
}

TEST_F(InterpTest, SegmentFaultsAndErrorCodes) {
  struct Case {
    uint16_t selector;
    int vector;
    uint32_t error;
  };
  for (const Case& c : {Case{sel::kAbsent, 11, sel::kAbsent}, Case{0x100, 13, 0x100}, Case{sel::kTss, 13, sel::kTss},
                        Case{sel::kCode0 + 4, 13, sel::kCode0 + 4}}) {
    Protected32();
    s.gpr[kRax] = c.selector;
    Code({0x8e, 0xd8});  // mov ds, ax
    EXPECT_EQ(Run(), c.vector) << c.selector;
    EXPECT_EQ(Stack32(0), c.error) << c.selector;
    EXPECT_EQ(Stack32(1), at::kCode);
    EXPECT_TRUE(Stack32(3) & rf::kRf) << "faults push RF";
    EXPECT_EQ(s.segment[x86::kDs].selector, sel::kData0);
  }
  Protected32();
  s.gpr[kRax] = sel::kCode0;
  Code({0x8e, 0xd0});  // mov ss, ax
  EXPECT_EQ(Run(), 13);
  EXPECT_EQ(Stack32(0), sel::kCode0);
  Protected32();
  Code({0x31, 0xc0, 0x8e, 0xd8, 0x88, 0x00});  // xor eax, eax; mov ds, ax; mov [eax], al
  EXPECT_EQ(Run(), 13);
  EXPECT_EQ(Stack32(0), 0u);
  EXPECT_EQ(Stack32(1), at::kCode + 4);
}

TEST_F(InterpTest, LimitsAndExpandDown) {
  Protected32();
  s.gpr[kRax] = sel::kSmall;
  Code({0x8e, 0xc0, 0x26, 0xa1, 0x0c, 0, 0, 0, 0x26, 0xa1, 0x0d, 0, 0, 0});  // mov es, ax; mov eax, es:[12]; [13]
  Put<uint32_t>(at::kData + 12, 0x11223344);
  EXPECT_EQ(Run(), 13);
  EXPECT_EQ(s.gpr[kRax], 0x11223344u);
  EXPECT_EQ(Stack32(1), at::kCode + 8);
  Protected32();
  s.gpr[kRax] = sel::kExpandDown;
  Code({0x8e, 0xc0, 0x26, 0xa1, 0x00, 0x10, 0, 0, 0x26, 0xa1, 0xff, 0x0f, 0, 0});
  EXPECT_EQ(Run(), 13);
  EXPECT_EQ(Stack32(1), at::kCode + 8) << "only offsets above the limit are valid";
  Protected32();
  s.gpr[kRax] = sel::kSmall;
  // mov ss, ax; mov esp, 2; push eax: wraps below 0, beyond the limit. #SS cannot be pushed either: #DF, shutdown.
  Code({0x8e, 0xd0, 0xbc, 2, 0, 0, 0, 0x50});
  EXPECT_EQ(Run(), -2);
}

TEST_F(InterpTest, ReadOnlyAndExecuteOnlySegments) {
  Protected32();
  Code({0x2e, 0xa2, 0x00, 0x00, 0x03, 0x00});  // mov cs:[0x30000], al
  EXPECT_EQ(Run(), 13);
  EXPECT_EQ(Stack32(0), 0u);
}

TEST_F(InterpTest, CallGateSwitchesStackAndCopiesParameters) {
  Protected32();
  Gate(at::kGdt + sel::kGate, sel::kCode0, 0x9000, 0xec, 2);  // two parameters, DPL 3
  UserMode();
  Code({0x6a, 0x11, 0x6a, 0x22, 0x9a, 0, 0, 0, 0, sel::kGate, 0, 0xeb, 0xfe});       // push 0x11; push 0x22; call gate
  Code({0x8b, 0x44, 0x24, 0x0c, 0x8b, 0x5c, 0x24, 0x08, 0xca, 0x08, 0x00}, 0x9000);  // eax, ebx = parameters; retf 8
  Steps(3);
  EXPECT_EQ(s.rip, 0x9000u);
  EXPECT_EQ(s.cpl(), 0u);
  EXPECT_EQ(s.gpr[kRsp], at::kStack0 - 24);
  EXPECT_EQ(Stack32(4), at::kStack3 - 8);
  EXPECT_EQ(Stack32(5), sel::kData3);
  EXPECT_EQ(Stack32(0), at::kCode + 11);
  EXPECT_EQ(Stack32(1), sel::kCode3);
  s.segment[x86::kEs].attributes = 0xc093;  // a DPL 0 segment must not survive the return
  Steps(3);
  EXPECT_EQ(s.gpr[kRax], 0x11u);
  EXPECT_EQ(s.gpr[kRbx], 0x22u);
  EXPECT_EQ(s.cpl(), 3u);
  EXPECT_EQ(s.rip, at::kCode + 11);
  EXPECT_EQ(s.gpr[kRsp], at::kStack3);
  EXPECT_EQ(s.segment[x86::kEs].selector, 0);
  EXPECT_TRUE(s.segment[x86::kEs].unusable());
  EXPECT_FALSE(s.segment[x86::kDs].unusable());
}

TEST_F(InterpTest, InnerStackOfBadSegmentIsInvalidTss) {
  Protected32();
  Gate(at::kGdt + sel::kGate, sel::kCode0, 0x9000, 0xec);
  UserMode();
  Code({0x9a, 0, 0, 0, 0, sel::kGate, 0});
  // The #TS comes by a task of its own, as ring 0 has no stack.
  Put<uint16_t>(at::kTss + 8, sel::kCode0);
  EXPECT_EQ(Run(), -2) << "#TS, then #TS delivering it, #DF, and #TS again";
}

TEST_F(InterpTest, IntFromUserModeAndGatePrivilege) {
  Protected32();
  UserMode();
  s.rflags |= rf::kIf;
  Code({0xcd, 0x80});
  EXPECT_EQ(Run(), 0x80);
  EXPECT_EQ(s.cpl(), 0u);
  EXPECT_EQ(Stack32(0), at::kCode + 2);
  EXPECT_EQ(Stack32(1), sel::kCode3);
  EXPECT_EQ(Stack32(2), rf::kIf | 2);
  EXPECT_EQ(Stack32(3), at::kStack3);
  EXPECT_EQ(Stack32(4), sel::kData3);
  EXPECT_FALSE(s.rflags & rf::kIf);
  Protected32();
  UserMode();
  Gate(at::kIdt + 0x81 * 8, sel::kCode0, at::kHandlers, 0x8e);  // DPL 0
  Code({0xcd, 0x81});
  EXPECT_EQ(Run(), 13);
  EXPECT_EQ(Stack32(0), 0x81u * 8 + 2) << "IDT bit, no EXT for INT n";
}

TEST_F(InterpTest, NotPresentHandlerSetsExt) {
  Protected32();
  Gate(at::kIdt + 6 * 8, sel::kCode0, 0, 0x6e);  // not present
  Code({0x0f, 0x0b});                            // ud2
  EXPECT_EQ(Run(), 11);
  EXPECT_EQ(Stack32(0), 6u * 8 + 2 + 1);
}

TEST_F(InterpTest, PrivilegedInstructionsInUserMode) {
  const std::vector<std::vector<uint8_t>> kCases = {{0xf4},
                                                    {0xfa},
                                                    {0xfb},
                                                    {0x0f, 0x20, 0xc0},
                                                    {0x0f, 0x30},
                                                    {0x0f, 0x06},
                                                    {0x0f, 0x01, 0x38},
                                                    {0x0f, 0x09},
                                                    {0xe4, 0x10},
                                                    {0x0f, 0x00, 0xd8}};
  for (const auto& bytes : kCases) {
    LongMode();
    UserMode();
    s.gpr[kRax] = at::kData;
    for (size_t i = 0; i < bytes.size(); ++i) Put<uint8_t>(at::kCode + i, bytes[i]);
    EXPECT_EQ(Run(), 13) << int(bytes[0]) << ' ' << int(bytes.back());
    EXPECT_EQ(Stack64(0), 0u);
  }
}

TEST_F(InterpTest, IoBitmap) {
  Protected32();
  UserMode();
  s.tr.limit = 0x68 + 4;
  Put<uint16_t>(at::kTss + 0x66, 0x68);
  Put<uint32_t>(at::kTss + 0x68, ~(1u << 5));
  Code({0xe6, 0x05, 0xe6, 0x06});  // out 5, al (allowed); out 6, al
  s.gpr[kRax] = 0x77;
  EXPECT_EQ(Run(), 13);
  ASSERT_EQ(host.port_writes.size(), 1u);
  EXPECT_EQ(host.port_writes[0], (std::pair<uint16_t, uint32_t>{5, 0x77}));
}

TEST_F(InterpTest, TaskSwitchByCallAndBack) {
  Protected32();
  Put<uint32_t>(at::kTss2 + 32, 0x9000);  // EIP
  Put<uint32_t>(at::kTss2 + 36, 2);       // EFLAGS
  Put<uint32_t>(at::kTss2 + 40, 0xaaaa);  // EAX
  Put<uint32_t>(at::kTss2 + 56, at::kStack0 - 0x800);
  for (unsigned i = 0; i < 6; ++i) Put<uint32_t>(at::kTss2 + 72 + i * 4, i == 1 ? sel::kCode0 : sel::kData0);
  s.gpr[kRbx] = 0x1234;
  Code({0x9a, 0, 0, 0, 0, sel::kTss2, 0, 0xf4});  // call TSS2; hlt
  Code({0x43, 0xcf}, 0x9000);                     // inc ebx; iret
  Steps(1);
  EXPECT_EQ(s.rip, 0x9000u);
  EXPECT_EQ(s.gpr[kRax], 0xaaaau);
  EXPECT_EQ(s.gpr[kRbx], 0u);
  EXPECT_EQ(s.tr.selector, sel::kTss2);
  EXPECT_TRUE(s.rflags & rf::kNt);
  EXPECT_TRUE(s.cr0 & x86::cr0::kTs);
  EXPECT_EQ(Get<uint16_t>(at::kTss2), sel::kTss) << "back link";
  EXPECT_EQ(Get<uint8_t>(at::kGdt + sel::kTss2 + 5), 0x8b) << "busy";
  EXPECT_EQ(Get<uint8_t>(at::kGdt + sel::kTss + 5), 0x8b) << "a caller stays busy";
  EXPECT_EQ(Run(), -1);
  EXPECT_EQ(s.rip, at::kCode + 8);
  EXPECT_EQ(s.gpr[kRbx], 0x1234u);
  EXPECT_EQ(s.tr.selector, sel::kTss);
  EXPECT_FALSE(s.rflags & rf::kNt);
  EXPECT_EQ(Get<uint8_t>(at::kGdt + sel::kTss2 + 5), 0x89) << "available again";
  EXPECT_EQ(Get<uint32_t>(at::kTss2 + 40 + 12), 1u) << "EBX of the nested task was saved";
}

TEST_F(InterpTest, TaskGateTakesAnExceptionWithErrorCode) {
  Protected32();
  Put<uint32_t>(at::kTss2 + 32, at::kHandlers + 0x500);  // handler 0x50: a HLT
  Put<uint32_t>(at::kTss2 + 36, 2);
  Put<uint32_t>(at::kTss2 + 56, at::kStack0 - 0x800);
  for (unsigned i = 0; i < 6; ++i) Put<uint32_t>(at::kTss2 + 72 + i * 4, i == 1 ? sel::kCode0 : sel::kData0);
  Gate(at::kIdt + 13 * 8, sel::kTss2, 0, 0x85);
  s.gpr[kRax] = 0x100;
  Code({0x8e, 0xd8});  // mov ds, ax: #GP(0x100)
  EXPECT_EQ(Run(), 0x50);
  EXPECT_EQ(s.gpr[kRsp], at::kStack0 - 0x804);
  EXPECT_EQ(Stack32(0), 0x100u);
  EXPECT_EQ(Get<uint32_t>(at::kTss + 32), at::kCode) << "the faulting instruction's EIP in the old TSS";
}

TEST_F(InterpTest, TrapBitOfATaskGivesOneDebugException) {
  Protected32();
  Put<uint32_t>(at::kTss2 + 32, 0x9000);
  Put<uint32_t>(at::kTss2 + 36, 2);
  Put<uint32_t>(at::kTss2 + 56, at::kStack0 - 0x800);
  for (unsigned i = 0; i < 6; ++i) Put<uint32_t>(at::kTss2 + 72 + i * 4, i == 1 ? sel::kCode0 : sel::kData0);
  Put<uint16_t>(at::kTss2 + 100, 1);
  Code({0xea, 0, 0, 0, 0, sel::kTss2, 0});  // jmp TSS2
  Code({0xf4}, 0x9000);
  EXPECT_EQ(Run(), 1);
  EXPECT_EQ(Stack32(0), 0x9000u);
  EXPECT_EQ(s.gpr[kRsp], at::kStack0 - 0x80c);
  EXPECT_TRUE(s.dr6 & Bit(15));
  EXPECT_FALSE(s.pending_debug);
  EXPECT_EQ(Get<uint8_t>(at::kGdt + sel::kTss + 5), 0x89) << "JMP leaves the old task available";
}

TEST_F(InterpTest, BusyTaskIsRefused) {
  Protected32();
  Code({0xea, 0, 0, 0, 0, sel::kTss, 0});  // jmp own TSS
  EXPECT_EQ(Run(), 13);
  EXPECT_EQ(Stack32(0), sel::kTss);
}

TEST_F(InterpTest, Virtual8086EnterInterruptLeave) {
  Protected32();
  // IRETD to v86: the frame on the stack of CPL 0.
  const uint32_t frame[9] = {0x10, 0x0900, rf::kVm | 2 | (3 << 12), 0x100, 0x0a00, 0x1000, 0x1100, 0x1200, 0x1300};
  for (unsigned i = 0; i < 9; ++i) Put<uint32_t>(at::kStack0 - 36 + i * 4, frame[i]);
  s.gpr[kRsp] = at::kStack0 - 36;
  Code({0xcf});
  Code({0x8c, 0xd8, 0xbb, 0x00, 0x20, 0x8e, 0xc3, 0x26, 0xa1, 0x04, 0x00, 0xcd, 0x31}, 0x9010);
  // mov ax, ds; mov bx, 0x2000; mov es, bx; mov ax, es:[4]; int 0x31
  Put<uint16_t>(0x20004, 0xbeef);
  Steps(1);
  EXPECT_TRUE(s.virtual8086());
  EXPECT_EQ(s.cpl(), 3u);
  EXPECT_EQ(s.segment[x86::kDs].base, 0x11000u);
  Steps(1);
  EXPECT_EQ(s.gpr[kRax] & 0xffff, 0x1100u);
  EXPECT_EQ(Run(), 0x31);
  EXPECT_EQ(s.gpr[kRax] & 0xffff, 0xbeefu);
  EXPECT_FALSE(s.virtual8086());
  EXPECT_EQ(s.cpl(), 0u);
  EXPECT_EQ(Stack32(0), 0x1du);
  EXPECT_EQ(Stack32(1), 0x0900u);
  EXPECT_TRUE(Stack32(2) & rf::kVm);
  EXPECT_EQ(Stack32(4), 0x0a00u);
  EXPECT_EQ(Stack32(5), 0x2000u) << "ES";
  EXPECT_EQ(Stack32(6), 0x1100u) << "DS";
  EXPECT_TRUE(s.segment[x86::kDs].unusable());
}

TEST_F(InterpTest, Virtual8086ChecksIopl) {
  for (const auto& bytes : std::vector<std::vector<uint8_t>>{{0xcd, 0x31}, {0xfa}, {0x9c}, {0x9d}, {0xcf}, {0xf4}}) {
    Protected32();
    const uint32_t frame[9] = {0x10, 0x0900, rf::kVm | 2, 0x100, 0x0a00, 0, 0, 0, 0};
    for (unsigned i = 0; i < 9; ++i) Put<uint32_t>(at::kStack0 - 36 + i * 4, frame[i]);
    s.gpr[kRsp] = at::kStack0 - 36;
    Code({0xcf});
    for (size_t i = 0; i < bytes.size(); ++i) Put<uint8_t>(0x9010 + i, bytes[i]);
    EXPECT_EQ(Run(), 13) << int(bytes[0]);
    EXPECT_EQ(Stack32(0), 0u);
  }
}

TEST_F(InterpTest, LongModeInterruptFrameAndIst) {
  LongMode();
  UserMode();
  Put<uint64_t>(at::kTss + 0x24, at::kStack0 + 0x4008);  // IST1, misaligned on purpose
  Gate(at::kIdt + 0x40 * 16, sel::kCode0, at::kHandlers + 0x400, 0xee, 1);
  Code({0xcd, 0x40});
  EXPECT_EQ(Run(), 0x40);
  EXPECT_EQ(s.gpr[kRsp], at::kStack0 + 0x4000 - 40);
  EXPECT_EQ(Stack64(0), at::kCode + 2);
  EXPECT_EQ(Stack64(1), sel::kCode3);
  EXPECT_EQ(Stack64(3), at::kStack3);
  EXPECT_EQ(Stack64(4), sel::kData3);
  EXPECT_EQ(s.segment[x86::kSs].selector, 0);
  EXPECT_TRUE(s.segment[x86::kSs].unusable());
  // And back: IRETQ with a null SS is only for CPL < 3; this one restores the user's.
  Code({0x48, 0xcf}, at::kHandlers + 0x400 + 1);
  s.halted = false;
  Steps(1);
  EXPECT_EQ(s.cpl(), 3u);
  EXPECT_EQ(s.gpr[kRsp], at::kStack3);
  EXPECT_EQ(s.segment[x86::kSs].selector, sel::kData3);
}

TEST_F(InterpTest, SyscallAndSysret) {
  LongMode();
  UserMode();
  s.msr.star = (uint64_t{0x10 | 3} << 48) | (uint64_t{sel::kCode0} << 32);
  s.msr.lstar = 0x9000;
  s.msr.sfmask = rf::kIf | rf::kDf;
  s.rflags |= rf::kIf | rf::kCf;
  Code({0x0f, 0x05, 0xeb, 0xfe});
  Code({0x48, 0x0f, 0x07}, 0x9000);
  Steps(1);
  EXPECT_EQ(s.rip, 0x9000u);
  EXPECT_EQ(s.cpl(), 0u);
  EXPECT_EQ(s.gpr[kRcx], at::kCode + 2);
  EXPECT_EQ(s.gpr[11], rf::kIf | rf::kCf | 2);
  EXPECT_EQ(s.rflags, rf::kCf | 2);
  EXPECT_EQ(s.segment[x86::kSs].selector, sel::kData0);
  Steps(1);
  EXPECT_EQ(s.rip, at::kCode + 2);
  EXPECT_EQ(s.cpl(), 3u);
  EXPECT_EQ(s.segment[x86::kCs].selector, 0x23);
  EXPECT_EQ(s.segment[x86::kSs].selector, 0x1b);
  EXPECT_EQ(s.rflags, rf::kIf | rf::kCf | 2);
  // A non-canonical return address faults in the kernel.
  LongMode();
  s.gpr[kRcx] = Bit(47);
  Code({0x48, 0x0f, 0x07});
  EXPECT_EQ(Run(), 13);
  EXPECT_EQ(s.cpl(), 0u);
}

}  // namespace
}  // namespace nacre::engine::interp
