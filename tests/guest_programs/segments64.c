// Segmentation in 64-bit mode: far transfers, call gates to another privilege, LDT, LAR, LSL, VERR, UMIP.
#include "guest.h"

struct __attribute__((packed)) far_pointer {
  uint64_t offset;
  uint16_t selector;
};
struct __attribute__((packed)) far_pointer32 {
  uint32_t offset;
  uint16_t selector;
};

static void call_gate(unsigned index, void* target, uint16_t selector, uint8_t type) {
  const reg at = (reg)target;
  gdt[index] = (at & 0xffff) | (uint64_t)selector << 16 | (uint64_t)type << 40 | (at >> 16 & 0xffff) << 48;
  gdt[index + 1] = at >> 32;
}

extern char far_target[], gate_target[], gate_target_user[], narrow_target[];
struct gate_seen {
  reg cs, ss, sp, word[4];
} gate_seen;
__asm__(
    ".text\n"
    "far_target: movl %cs, %eax\n lretq\n"
    // Through a gate: notes CS, SS, RSP and what was pushed, then returns.
    "gate_target:\n"
    "movl %cs, %eax\n movq %rax, gate_seen(%rip)\n movl %ss, %eax\n movq %rax, gate_seen+8(%rip)\n"
    "movq %rsp, gate_seen+16(%rip)\n"
    "movq (%rsp), %rax\n movq %rax, gate_seen+24(%rip)\n movq 8(%rsp), %rax\n movq %rax, gate_seen+32(%rip)\n"
    "movq 16(%rsp), %rax\n movq %rax, gate_seen+40(%rip)\n movq 24(%rsp), %rax\n movq %rax, gate_seen+48(%rip)\n"
    "lretq\n"
    // 32-bit code: 48 is DEC EAX.
    ".code32\n"
    "narrow_target: .byte 0x48\n lret\n"
    ".code64\n");

static void far_transfers(void) {
  section("far calls, jumps and returns");
  reg cs = 0;
  gdt[12] = gdt[1];
  struct far_pointer to = {(reg)far_target, 12 * 8};
  __asm__ volatile("rex64 lcall *%1" : "=a"(cs) : "m"(to) : "memory");
  CHECK_EQ(cs, 12 * 8);
  struct far_pointer32 narrow = {(uint32_t)(reg)narrow_target, 0x18};
  // To compatibility mode and back; its stack elements are 32 bits wide, and so is what it sees of them.
  reg value = 5;
  __asm__ volatile("lcall *%1" : "+a"(value) : "m"(narrow) : "memory");
  CHECK_EQ(value, 4);
  CHECK_FAULT(kGP, 0x10, to.selector = 0x10; __asm__ volatile("rex64 lcall *%0" ::"m"(to)));
  CHECK_FAULT(kGP, 0, to.selector = 3; __asm__ volatile("rex64 lcall *%0" ::"m"(to)));
  CHECK_FAULT(kGP, 0x30, to.selector = 0x33; __asm__ volatile("rex64 lcall *%0" ::"m"(to)));  // DPL 3 from CPL 0
  gdt[12] &= ~(1ull << 47);
  CHECK_FAULT(kNP, 12 * 8, to.selector = 12 * 8; __asm__ volatile("rex64 lcall *%0" ::"m"(to)));
  gdt[12] = gdt[1] | 1ull << 54;  // L and D
  STRICT(CHECK_FAULT(kGP, 12 * 8, __asm__ volatile("rex64 lcall *%0" ::"m"(to))));
  gdt[12] = gdt[1];
  to.offset = 0x800000000000;
  STRICT(CHECK_FAULT(kGP, 0, __asm__ volatile("rex64 lcall *%0" ::"m"(to))));
  // A conforming segment keeps the privilege.
  gdt[13] = gdt[1] | 1ull << 42;
  to = (struct far_pointer){(reg)far_target, 13 * 8};
  __asm__ volatile("rex64 lcall *%1" : "=a"(cs) : "m"(to) : "memory");
  CHECK_EQ(cs, 13 * 8);
}

USER_TEXT static void user_calls_gate(void) {
  static USER_DATA struct far_pointer32 gate = {0xdeadbeef, 14 * 8 + 3};
  __asm__ volatile("lcall *%0; int $0x80" ::"m"(gate) : "rax", "memory");
}

static void gates(void) {
  section("call gates");
  // From the same privilege: CS and RIP only.
  call_gate(14, gate_target, 8, 0xec);
  const struct far_pointer32 gate = {0, 14 * 8};
  __asm__ volatile("lcall *%0" ::"m"(gate) : "rax", "memory");
  CHECK_EQ(gate_seen.cs, 8);
  CHECK_EQ(gate_seen.word[1], 8);
  // From user mode: the stack of the TSS, with the old one on it.
  CHECK_FAULT(0x80, 0, run_user(user_calls_gate, 2));
  CHECK_EQ(guest_last.frame.cs, 0x33);
  CHECK_EQ(gate_seen.cs, 8);
  CHECK_EQ(gate_seen.ss, 0);  // null, RPL 0
  extern char kernel_stack_top[];
  CHECK_EQ(gate_seen.sp, (reg)kernel_stack_top - 32);
  CHECK_EQ(gate_seen.word[1], 0x33);
  CHECK_EQ(gate_seen.word[2] >= (reg)user_stack && gate_seen.word[2] <= USER_STACK_TOP, 1);
  CHECK_EQ(gate_seen.word[3], 0x2b);
  // A gate of DPL 0 is out of reach; a gate that is not present; a gate to data; no 16-byte gate.
  call_gate(14, gate_target, 8, 0x8c);
  CHECK_FAULT(kGP, 14 * 8, run_user(user_calls_gate, 2));
  call_gate(14, gate_target, 8, 0x6c);
  CHECK_FAULT(kNP, 14 * 8, run_user(user_calls_gate, 2));
  call_gate(14, gate_target, 0x10, 0xec);
  CHECK_FAULT(kGP, 0x10, run_user(user_calls_gate, 2));
  call_gate(14, gate_target, 0x18, 0xec);  // 32-bit code
  CHECK_FAULT(kGP, 0x18, run_user(user_calls_gate, 2));
  call_gate(14, gate_target, 8, 0xec);
  gdt[15] |= 0x00000c0000000000;  // the upper half's type must be 0
  STRICT(CHECK_FAULT(kGP, 14 * 8, run_user(user_calls_gate, 2)));
}

static reg lar(uint16_t selector, bool* valid) {
  reg value = 0;
  bool zf;
  __asm__ volatile("larl %w2, %k0" : "+r"(value), "=@ccz"(zf) : "r"(selector));
  *valid = zf;
  return value;
}
static reg lsl(uint16_t selector, bool* valid) {
  reg value = 0;
  bool zf;
  __asm__ volatile("lsll %w2, %k0" : "+r"(value), "=@ccz"(zf) : "r"(selector));
  *valid = zf;
  return value;
}
static bool verr(uint16_t selector) {
  bool zf;
  __asm__ volatile("verr %w1" : "=@ccz"(zf) : "r"(selector));
  return zf;
}
static bool verw(uint16_t selector) {
  bool zf;
  __asm__ volatile("verw %w1" : "=@ccz"(zf) : "r"(selector));
  return zf;
}

static void questions(void) {
  section("LAR, LSL, VERR, VERW");
  bool valid;
  CHECK_EQ(lar(0x10, &valid) & 0x00f0ff00, 0x00c09300);  // bits 19:16 are undefined
  CHECK(valid);
  CHECK_EQ(lsl(0x10, &valid), 0xffffffff);
  CHECK(valid);
  gdt[9] = descriptor(0, 0x1234, 0x00f1);
  CHECK_EQ(lsl(0x48, &valid), 0x1234);
  lar(0, &valid);
  CHECK(!valid);
  lar(0xfff8, &valid);
  CHECK(!valid);
  CHECK_EQ(lar(0x38, &valid), 0x00008b00);  // a busy TSS
  CHECK(valid);
  lsl(14 * 8, &valid);  // a call gate has no limit
  CHECK(!valid);
  CHECK(verr(0x10));
  CHECK(verw(0x10));
  CHECK(verr(0x08));
  CHECK(!verw(0x08));
  CHECK(!verw(0x48));
  CHECK(!verr(0x38));
  CHECK(!verr(0));
}

static void local_descriptors(void) {
  section("LDT and TSS");
  static uint64_t ldt[4];
  ldt[1] = gdt[2];
  ldt[2] = gdt[1];
  gdt[16] = descriptor((uint32_t)(reg)ldt, sizeof(ldt) - 1, 0x82);
  gdt[17] = 0;
  uint16_t selector = 0;
  __asm__ volatile("lldt %w0" ::"r"(16 * 8));
  __asm__ volatile("sldt %0" : "=r"(selector));
  CHECK_EQ(selector, 16 * 8);
  CHECK_OK(__asm__ volatile("mov %0, %%ds; mov %1, %%ds" ::"r"(0xc), "r"(0x10)));
  CHECK_FAULT(kGP, 0x24, __asm__ volatile("mov %0, %%ds" ::"r"(0x24)));  // beyond its limit
  CHECK_FAULT(kGP, 0x10, __asm__ volatile("lldt %w0" ::"r"(0x10)));
  CHECK_OK(__asm__ volatile("lldt %w0" ::"r"(0)));
  CHECK_FAULT(kGP, 0xc, __asm__ volatile("mov %0, %%ds" ::"r"(0xc)));
  __asm__ volatile("str %0" : "=r"(selector));
  CHECK_EQ(selector, 0x38);
  CHECK_EQ(gdt[7] >> 40 & 0xff, 0x8b);
  CHECK_FAULT(kGP, 0x38, __asm__ volatile("ltr %w0" ::"r"(0x38)));  // busy
  gdt[9] = descriptor(0, 0xfffff, 0xc093) & ~(1ull << 40);
  CHECK_OK(__asm__ volatile("mov %0, %%fs" ::"r"(0x48)));
  STRICT(CHECK_EQ(gdt[9] >> 40 & 1, 1));  // the accessed bit
}

USER_TEXT static void user_sgdt(void) {
  static USER_DATA uint8_t room[16];
  __asm__ volatile("sgdt %0; int $0x80" : "=m"(room)::"memory");
}
USER_TEXT static void user_smsw(void) { __asm__ volatile("smsw %%rax; int $0x80" ::: "rax"); }

static void user_mode_prevention(void) {
  section("UMIP");
  CHECK_FAULT(0x80, 0, run_user(user_sgdt, 2));
  CHECK_FAULT(0x80, 0, run_user(user_smsw, 2));
  if (!(cpuid(7, 0).c >> 2 & 1)) return skip("UMIP");
  write_cr4(read_cr4() | 1 << 11);
  CHECK_FAULT(kGP, 0, run_user(user_sgdt, 2));
  CHECK_FAULT(kGP, 0, run_user(user_smsw, 2));
  struct table_pointer pointer;
  CHECK_OK(__asm__ volatile("sgdt %0" : "=m"(pointer)));
  CHECK_EQ(pointer.base, (reg)gdt);
  write_cr4(read_cr4() & ~(1ul << 11));
}

void guest_main(void) {
  far_transfers();
  gates();
  questions();
  local_descriptors();
  user_mode_prevention();
}
