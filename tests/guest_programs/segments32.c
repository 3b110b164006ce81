// Segmentation in 32-bit mode: limits, expand-down, access rights, privilege, far transfers, call gates with parameters,
// LDT, 16-bit stacks and code.
#include "guest.h"

static uint32_t buffer[1024] __attribute__((aligned(4096)));

// A descriptor for tests, as FS.
static void load_fs(uint32_t base, uint32_t limit, uint16_t attributes) {
  gdt[16] = descriptor(base, limit, attributes);
  __asm__ volatile("movw %w0, %%fs" ::"r"(16 * 8));
}

static uint32_t fs_read(uint32_t offset) {
  uint32_t value;
  __asm__ volatile("movl %%fs:(%1), %0" : "=r"(value) : "r"(offset));
  return value;
}
static uint8_t fs_read8(uint32_t offset) {
  uint8_t value;
  __asm__ volatile("movb %%fs:(%1), %0" : "=q"(value) : "r"(offset));
  return value;
}
static void fs_write(uint32_t offset, uint32_t value) {
  __asm__ volatile("movl %1, %%fs:(%0)" ::"r"(offset), "r"(value) : "memory");
}

static void limits(void) {
  section("limits");
  for (unsigned i = 0; i < 1024; ++i) buffer[i] = i * 0x01010101;
  load_fs((reg)buffer, 0xff, 0x4093);
  STRICT(CHECK_EQ(fs_read(4), 0x01010101));
  CHECK_EQ(fs_read(0xfc), 63 * 0x01010101);
  STRICT(CHECK_FAULT(kGP, 0, fs_read(0xfd)));
  STRICT(CHECK_FAULT(kGP, 0, fs_read(0x100)));
  CHECK_EQ(fs_read8(0xff), 63);
  STRICT(CHECK_FAULT(kGP, 0, fs_read(0xfffffffe)));  // wraps
  STRICT(CHECK_FAULT(kGP, 0, fs_write(0xfe, 0)));
  load_fs((reg)buffer, 0, 0xc093);  // one page
  CHECK_EQ(fs_read(0xffc), (uint32_t)1023 * 0x01010101);
  STRICT(CHECK_FAULT(kGP, 0, fs_read(0xffd)));
  // Expand-down: what lies above the limit, up to 64 KiB or 4 GiB.
  load_fs((reg)buffer - 0x100, 0xff, 0x4097);
  CHECK_EQ(fs_read(0x100), 0);
  CHECK_EQ(fs_read(0x104), 0x01010101);
  STRICT(CHECK_FAULT(kGP, 0, fs_read(0xff)));
  STRICT(CHECK_FAULT(kGP, 0, fs_read(0xfc)));
  STRICT(CHECK_FAULT(kGP, 0, fs_read8(0)));
  load_fs((reg)buffer - 0x100, 0xff, 0x0097);
  CHECK_EQ(fs_read(0x104), 0x01010101);
  STRICT(CHECK_FAULT(kGP, 0, fs_read(0xfffe)));
  STRICT(CHECK_FAULT(kGP, 0, fs_read(0x10000)));
  // A base that wraps around 4 GiB.
  load_fs((reg)buffer + 0x1000, 0xfffff, 0xc093);
  CHECK_EQ(fs_read(0xfffff004), 0x01010101);
}

static void rights(void) {
  section("rights");
  load_fs((reg)buffer, 0xff, 0x4091);
  STRICT(CHECK_EQ(fs_read(4), 0x01010101));
  STRICT(CHECK_FAULT(kGP, 0, fs_write(4, 0)));
  load_fs((reg)buffer, 0xff, 0x409b);  // readable code
  STRICT(CHECK_EQ(fs_read(4), 0x01010101));
  STRICT(CHECK_FAULT(kGP, 0, fs_write(4, 0)));
  CHECK_FAULT(kGP, 16 * 8, load_fs((reg)buffer, 0xff, 0x4099));  // execute-only code
  CHECK_FAULT(kGP, 16 * 8, load_fs((reg)buffer, 0xff, 0x0082));  // an LDT
  CHECK_FAULT(kNP, 16 * 8, load_fs((reg)buffer, 0xff, 0x4013));
  __asm__ volatile("movw %w0, %%fs" ::"r"(0));
  STRICT(CHECK_FAULT(kGP, 0, fs_read(4)));
  load_fs((reg)buffer, 0xff, 0x4092);
  CHECK_EQ(gdt[16] >> 40 & 0xff, 0x93);  // the accessed bit is set
  gdt[16] = descriptor(0, 0xfffff, 0xc091);
  CHECK_FAULT(kGP, 16 * 8, __asm__ volatile("movw %w0, %%ss" ::"r"(16 * 8)));  // read-only
  gdt[16] = descriptor(0, 0xfffff, 0xc013);
  CHECK_FAULT(kSS, 16 * 8, __asm__ volatile("movw %w0, %%ss" ::"r"(16 * 8)));
  gdt[16] = descriptor(0, 0xfffff, 0xc0f3);
  CHECK_FAULT(kGP, 16 * 8, __asm__ volatile("movw %w0, %%ss" ::"r"(16 * 8)));  // DPL 3
  CHECK_FAULT(kGP, 0, __asm__ volatile("movw %w0, %%ss" ::"r"(0)));
  CHECK_FAULT(kGP, 0x200, __asm__ volatile("movw %w0, %%es" ::"r"(0x200)));  // beyond the GDT
}

static void stacks(void) {
  section("stacks");
  // #SS by limit: through EBP, by PUSH.
  gdt[16] = descriptor(0, 0x4ff, 0xc093);  // 5 MiB
  STRICT(CHECK_FAULT(kSS, 0, __asm__ volatile("movw %w0, %%ss; movl $0x500000, %%ebp; movl (%%ebp), %%eax" ::"r"(16 * 8) : "ebp", "eax")));
  // A 16-bit stack: SP wraps, the upper half of ESP stays.
  reg sp = 0, word = 0;
  gdt[17] = descriptor((reg)buffer & ~0xffffu, 0xffff, 0x0093);
  const reg at = ((reg)buffer & 0xffff) + 64;
  __asm__ volatile(
      "movl %%esp, %%ebx; movw %w2, %%ss; movl %3, %%esp; pushl $0x12345678; movl %%esp, %0; popl %1; movw %w4, %%ss; movl "
      "%%ebx, %%esp"
      : "=&r"(sp), "=&r"(word)
      : "r"(17 * 8), "r"(0xabcd0000 | at), "r"(0x10)
      : "ebx", "memory");
  CHECK_EQ(sp, (0xabcd0000 | at) - 4);
  CHECK_EQ(word, 0x12345678);
  CHECK_EQ(buffer[15], 0x12345678);
}

struct __attribute__((packed)) far_pointer {
  uint32_t offset;
  uint16_t selector;
};

struct gate_seen {
  reg cs, ss, sp, word[6];
} gate_seen;
extern char far_target[], gate_target[], code16[];
__asm__(
    ".text\n"
    "far_target: movl %cs, %eax\n lret\n"
    "gate_target:\n"
    "movl %cs, %eax\n movl %eax, %ss:gate_seen\n movl %ss, %eax\n movl %eax, %ss:gate_seen+4\n movl %esp, %ss:gate_seen+8\n"
    "movl (%esp), %eax\n movl %eax, %ss:gate_seen+12\n movl 4(%esp), %eax\n movl %eax, %ss:gate_seen+16\n"
    "movl 8(%esp), %eax\n movl %eax, %ss:gate_seen+20\n movl 12(%esp), %eax\n movl %eax, %ss:gate_seen+24\n"
    "movl 16(%esp), %eax\n movl %eax, %ss:gate_seen+28\n movl 20(%esp), %eax\n movl %eax, %ss:gate_seen+32\n"
    "lret $8\n"
    // 16-bit code: MOV AX, 0x1122; a far return of 32 bits.
    "code16: .byte 0xb8, 0x22, 0x11, 0x66, 0xcb\n");

static void call_gate(unsigned index, void* target, uint16_t selector, uint8_t type, unsigned parameters) {
  const reg at = (reg)target;
  gdt[index] = (at & 0xffff) | (uint64_t)selector << 16 | (uint64_t)parameters << 32 | (uint64_t)type << 40 |
               (uint64_t)(at >> 16) << 48;
}

USER_DATA static struct far_pointer user_gate = {0, 18 * 8 + 3};
USER_TEXT static void user_calls_gate(void) {
  __asm__ volatile("pushl $0x1111; pushl $0x2222; lcall *%0; movl %%esp, %%edx; int $0x80" ::"m"(user_gate) : "eax", "memory");
}
USER_TEXT static void user_returns_to_kernel(void) { __asm__ volatile("pushl $8; pushl $0; lret"); }
USER_TEXT static void user_loads_kernel_data(void) { __asm__ volatile("movl $0x10, %%eax; movl %%eax, %%es" ::: "eax"); }
USER_TEXT static void user_calls_kernel(void) { __asm__ volatile("lcall $8, $0"); }

static void far_transfers(void) {
  section("far transfers");
  reg value = 0;
  struct far_pointer to = {(reg)far_target, 8};
  __asm__ volatile("lcall *%1" : "=a"(value) : "m"(to) : "memory");
  CHECK_EQ(value, 8);
  // Code with a base, and a limit.
  gdt[19] = descriptor((reg)far_target, 0x3ff, 0x409b);
  to = (struct far_pointer){0, 19 * 8};
  __asm__ volatile("lcall *%1" : "=a"(value) : "m"(to) : "memory");
  CHECK_EQ(value, 19 * 8);
  to.offset = 0x400;
  STRICT(CHECK_FAULT(kGP, 0, __asm__ volatile("lcall *%0" ::"m"(to) : "eax")));
  // Through the end of a segment: the fetch faults.
  gdt[19] = descriptor((reg)far_target, 0, 0x409b);  // one byte
  to.offset = 0;
  STRICT(CHECK_FAULT(kGP, 0, __asm__ volatile("lcall *%0" ::"m"(to) : "eax")));
  STRICT(CHECK_EQ(guest_last.frame.cs, 19 * 8));
  STRICT(CHECK_EQ(guest_last.ip, 0));
  // 16-bit code.
  gdt[20] = descriptor((reg)code16, 0xffff, 0x009b);
  to = (struct far_pointer){0, 20 * 8};
  __asm__ volatile("lcall *%1" : "=a"(value) : "m"(to), "0"(0xaaaaaaaa) : "memory");
  CHECK_EQ(value, 0xaaaa1122);
  CHECK_FAULT(kGP, 0x10, __asm__ volatile("lcall $0x10, $0"));
  CHECK_FAULT(kGP, 0, __asm__ volatile("lcall $0, $0"));
  CHECK_FAULT(kGP, 0x20, __asm__ volatile("lcall $0x23, $0"));
  CHECK_FAULT(kGP, 8, run_user(user_calls_kernel, 2));
  CHECK_FAULT(kGP, 8, run_user(user_returns_to_kernel, 2));
  CHECK_FAULT(kGP, 0x10, run_user(user_loads_kernel_data, 2));
}

static void gates(void) {
  section("call gates");
  call_gate(18, gate_target, 8, 0xec, 2);
  CHECK_FAULT(0x80, 0, run_user(user_calls_gate, 2));
  CHECK_EQ(gate_seen.cs, 8);
  CHECK_EQ(gate_seen.ss, 0x10);
  extern char kernel_stack_top[];
  CHECK_EQ(gate_seen.sp, (reg)kernel_stack_top - 24);
  CHECK_EQ(gate_seen.word[1], 0x23);
  CHECK_EQ(gate_seen.word[2], 0x2222);  // the parameters, in order
  CHECK_EQ(gate_seen.word[3], 0x1111);
  CHECK_EQ(gate_seen.word[5], 0x2b);
  CHECK_EQ(guest_last.frame.dx, gate_seen.word[4] + 8);  // released on both stacks
  CHECK_EQ(guest_last.frame.cs, 0x23);
  call_gate(18, gate_target, 8, 0x8c, 2);
  CHECK_FAULT(kGP, 18 * 8, run_user(user_calls_gate, 2));
  call_gate(18, gate_target, 8, 0x6c, 2);
  CHECK_FAULT(kNP, 18 * 8, run_user(user_calls_gate, 2));
  call_gate(18, gate_target, 0x10, 0xec, 2);
  CHECK_FAULT(kGP, 0x10, run_user(user_calls_gate, 2));
  // To privilege 1, whose stack in the TSS is bad.
  gdt[22] = descriptor(0, 0xfffff, 0xc0bb);
  call_gate(18, gate_target, 22 * 8 + 1, 0xec, 2);
  *(uint16_t*)(tss + 16) = 0x11;
  CHECK_FAULT(kTS, 0x10, run_user(user_calls_gate, 2));
  *(uint16_t*)(tss + 16) = 0;
  CHECK_FAULT(kTS, 0, run_user(user_calls_gate, 2));
}

static void local_descriptors(void) {
  section("LDT");
  static uint64_t ldt[4];
  ldt[1] = descriptor((reg)buffer, 0xfff, 0x4093);
  gdt[21] = descriptor((reg)ldt, sizeof(ldt) - 1, 0x82);
  __asm__ volatile("lldt %w0" ::"r"(21 * 8));
  __asm__ volatile("movw %w0, %%fs" ::"r"(0xc));
  buffer[5] = 55;
  CHECK_EQ(fs_read(20), 55);
  CHECK_FAULT(kGP, 0x24, __asm__ volatile("movw %w0, %%fs" ::"r"(0x24)));
  __asm__ volatile("lldt %w0" ::"r"(0));
  CHECK_FAULT(kGP, 0xc, __asm__ volatile("movw %w0, %%fs" ::"r"(0xc)));
  __asm__ volatile("movw %w0, %%fs" ::"r"(0));
}

static void adjust_rpl(void) {
  section("ARPL, BOUND, INTO");
  uint16_t selector = 0x10;
  bool zf;
  __asm__ volatile("arpl %w2, %w0" : "+r"(selector), "=@ccz"(zf) : "r"((uint16_t)3));
  CHECK_EQ(selector, 0x13);
  CHECK(zf);
  __asm__ volatile("arpl %w2, %w0" : "+r"(selector), "=@ccz"(zf) : "r"((uint16_t)1));
  CHECK_EQ(selector, 0x13);
  CHECK(!zf);
  const int32_t bounds[2] = {-5, 10};
  CHECK_OK(__asm__ volatile("bound %0, %1" ::"r"(10), "m"(bounds)));
  CHECK_OK(__asm__ volatile("bound %0, %1" ::"r"(-5), "m"(bounds)));
  CHECK_FAULT(kBR, 0, __asm__ volatile("bound %0, %1" ::"r"(11), "m"(bounds)));
  CHECK_FAULT(kBR, 0, __asm__ volatile("bound %0, %1" ::"r"(-6), "m"(bounds)));
  CHECK_OK(__asm__ volatile("xorl %%eax, %%eax; into" ::: "eax"));
  CHECK_FAULT(kOF, 0, __asm__ volatile("movl $0x7fffffff, %%eax; incl %%eax; into" ::: "eax"));
  CHECK_FAULT(kDE, 0, __asm__ volatile("aam $0" ::: "eax"));
}

void guest_main(void) {
  limits();
  rights();
  stacks();
  far_transfers();
  gates();
  local_descriptors();
  adjust_rpl();
}
