// Every exception that software can raise, with error code, saved RIP and flags; user mode; double fault.
#include "guest.h"

extern char after_int3[], at_ud2[], after_icebp[];

static void divide(uint64_t high, uint64_t low, uint64_t by) {
  __asm__ volatile("div %2" : "+a"(low), "+d"(high) : "r"(by) : "cc");
}

USER_TEXT static void user_returns(void) { __asm__ volatile("int $0x80"); }
USER_TEXT static void user_hlt(void) { __asm__ volatile("hlt"); }
USER_TEXT static void user_cli(void) { __asm__ volatile("cli"); }
USER_TEXT static void user_in(void) { __asm__ volatile("inb $0x60, %%al" ::: "eax"); }
USER_TEXT static void user_int3(void) { __asm__ volatile("int3"); }
USER_TEXT static void user_int_0x30(void) { __asm__ volatile("int $0x30"); }
USER_TEXT static void user_reads_kernel(void) { __asm__ volatile("movb 0x100000, %%al" ::: "eax"); }
USER_TEXT static void user_writes_kernel(void) { __asm__ volatile("movb $1, 0x100000" ::: "memory"); }
USER_TEXT static void user_jumps_to_kernel(void) { __asm__ volatile("mov $0x100000, %%eax; jmp *%%rax" ::: "rax"); }
USER_TEXT static void user_misaligned(void) {
  __asm__ volatile("pushfq; orl $0x40000, (%%rsp); popfq; movl 1(%%rsp), %%eax" ::: "rax");
}
USER_TEXT static void user_aligned(void) {
  __asm__ volatile("pushfq; orl $0x40000, (%%rsp); popfq; movl 4(%%rsp), %%eax; int $0x80" ::: "rax");
}
USER_TEXT static void user_mov_cr(void) { __asm__ volatile("mov %%cr0, %%rax" ::: "rax"); }
USER_TEXT static void user_rdmsr(void) { __asm__ volatile("rdmsr" ::: "rax", "rdx"); }
USER_TEXT static void user_iopl(void) {
  __asm__ volatile("pushfq; orq $0x3200, (%%rsp); popfq; int $0x80" ::: "memory");
}

static void traps_and_faults(void) {
  section("traps and faults");
  CHECK_FAULT(kDE, 0, divide(0, 1, 0));
  CHECK_FAULT(kDE, 0, divide(5, 1, 5));
  CHECK_OK(divide(4, 1, 5));
  CHECK_FAULT(kBP, 0, __asm__ volatile("int3; after_int3:"));
  CHECK_EQ(guest_last.ip, (reg)after_int3);
  CHECK_FAULT(kUD, 0, __asm__ volatile("at_ud2: ud2"));
  CHECK_EQ(guest_last.ip, (reg)at_ud2);
  CHECK_FAULT(kUD, 0, __asm__ volatile(".byte 0x06"));  // push es
  CHECK_FAULT(kUD, 0, __asm__ volatile("lock; nop"));
  CHECK_FAULT(kUD, 0, __asm__ volatile(".byte 0x0f, 0x0b"));
  STRICT(CHECK_FAULT(kDB, 0, __asm__ volatile(".byte 0xf1; after_icebp:")));
  STRICT(CHECK_EQ(guest_last.ip, (reg)after_icebp));
  CHECK_FAULT(0x30, 0, __asm__ volatile("int $0x30"));
  CHECK_FAULT(kGP, 0, __asm__ volatile(".fill 15, 1, 0x66; nop"));  // 16 bytes
  CHECK_OK(__asm__ volatile(".fill 14, 1, 0x66; nop"));
}

static void general_protection(void) {
  section("#GP, #SS, #NP, #TS");
  CHECK_FAULT(kGP, 0, *(volatile uint8_t*)0x800000000000);
  STRICT(CHECK_FAULT(kGP, 0, *(volatile uint64_t*)0x7ffffffffffc));  // not mapped, but the end is not canonical
  STRICT(CHECK_FAULT(kSS, 0, __asm__ volatile("mov %0, %%rbp; movb (%%rbp), %%al; 1:" ::"r"(0x800000000000) : "rbp", "rax")));
  CHECK_FAULT(kGP, 0x48, __asm__ volatile("mov %0, %%ds" ::"r"(0x48)));       // not a data segment
  CHECK_FAULT(kGP, 0xfff8, __asm__ volatile("mov %0, %%ds" ::"r"(0xfff8)));   // beyond the limit
  STRICT(CHECK_FAULT(kGP, 0, __asm__ volatile("mov %0, %%ss" ::"r"(3))));             // null with RPL 3
  gdt[9] = descriptor(0, 0xfffff, 0xc013);                                    // data, not present
  CHECK_FAULT(kNP, 0x48, __asm__ volatile("mov %0, %%ds" ::"r"(0x48)));
  CHECK_FAULT(kSS, 0x48, __asm__ volatile("mov %0, %%ss" ::"r"(0x48)));
  CHECK_FAULT(kGP, 0x80 * 8, __asm__ volatile("ltr %w0" ::"r"(0x80 * 8)));    // beyond the limit of the GDT
  CHECK_FAULT(kGP, 0x10, __asm__ volatile("ltr %w0" ::"r"(0x10)));
  STRICT(CHECK_FAULT(kGP, 0, wrmsr(0xdeadbeef, 0)));
  STRICT(CHECK_FAULT(kGP, 0, rdmsr(0xdeadbeef)));
  STRICT(CHECK_FAULT(kGP, 0, write_cr0(read_cr0() & ~(reg)1)));                       // PG without PE
  STRICT(CHECK_FAULT(kGP, 0, write_cr0((read_cr0() | 1u << 29) & ~(1ul << 30))));     // NW without CD
  STRICT(CHECK_FAULT(kGP, 0, write_cr0(read_cr0() | 1ul << 32)));
  STRICT(CHECK_FAULT(kGP, 0, write_cr4(read_cr4() | 1ul << 31)));
  STRICT(CHECK_FAULT(kGP, 0, write_cr4(read_cr4() & ~(reg)0x20)));                    // PAE in long mode
  STRICT(CHECK_FAULT(kGP, 0, wrmsr(0xc0000080, rdmsr(0xc0000080) & ~0x100ull)));      // LME while paging
  STRICT(CHECK_FAULT(kGP, 0, wrmsr(0xc0000100, 0x800000000000)));                     // FS base not canonical
  CHECK_FAULT(kUD, 0, __asm__ volatile("mov %%cr1, %0" : "=r"((reg){0})));
  // An IDT entry that is not present, or is no gate.
  idt[0x31 * 16 + 5] = 0x0e;
  STRICT(CHECK_FAULT(kNP, 0x31 * 8 + 2, __asm__ volatile("int $0x31")));
  idt[0x31 * 16 + 5] = 0x89;
  STRICT(CHECK_FAULT(kGP, 0x31 * 8 + 2, __asm__ volatile("int $0x31")));
  idt[0x31 * 16 + 5] = 0x8e;
}

static void user_mode(void) {
  section("user mode");
  CHECK_FAULT(0x80, 0, run_user(user_returns, 2));
  CHECK_EQ(guest_last.frame.cs, 0x33);
  CHECK_EQ(guest_last.frame.ss, 0x2b);
  CHECK_EQ(guest_last.frame.sp, USER_STACK_TOP - 8);
  CHECK_FAULT(kGP, 0, run_user(user_hlt, 2));
  CHECK_EQ(guest_last.ip, (reg)user_hlt);
  CHECK_FAULT(kGP, 0, run_user(user_cli, 2));
  CHECK_FAULT(kGP, 0, run_user(user_in, 2));
  CHECK_FAULT(kGP, 0, run_user(user_mov_cr, 2));
  CHECK_FAULT(kGP, 0, run_user(user_rdmsr, 2));
  STRICT(CHECK_FAULT(kGP, 3 * 8 + 2, run_user(user_int3, 2)));  // the gate's DPL is 0
  STRICT(CHECK_FAULT(kGP, 0x30 * 8 + 2, run_user(user_int_0x30, 2)));
  CHECK_FAULT(kPF, 5, run_user(user_reads_kernel, 2));
  CHECK_EQ(guest_last.cr2, 0x100000);
  CHECK_FAULT(kPF, 7, run_user(user_writes_kernel, 2));
  CHECK_FAULT(kPF, 0x15, run_user(user_jumps_to_kernel, 2));
  CHECK_EQ(guest_last.ip, 0x100000);
  CHECK_FAULT(0x80, 0, run_user(user_iopl, 2));
  CHECK_EQ(guest_last.flags & 0x3200, 0);  // POPF changes neither IOPL nor IF, silently
  write_cr0(read_cr0() | 1u << 18);        // AM
  STRICT(CHECK_FAULT(kAC, 0, run_user(user_misaligned, 2)));
  CHECK_FAULT(0x80, 0, run_user(user_aligned, 2));
  write_cr0(read_cr0() & ~(1ul << 18));
  CHECK_FAULT(0x80, 0, run_user(user_aligned, 2));
}

// A #PF whose delivery faults is a double fault, which has a stack of its own.
static void double_fault(void) {
  section("double fault");
  idt[14 * 16 + 5] = 0x0e;  // #PF's gate is not present: #NP while delivering #PF
  CHECK_FAULT(kDF, 0, *(volatile uint8_t*)0x7f0000000000);
  idt[14 * 16 + 5] = 0x8e;
  CHECK(guest_last.frame.vector == kDF);
  // A stack that cannot be pushed to.
  CHECK_FAULT(kDF, 0, __asm__ volatile("mov %0, %%rsp; push %%rax" ::"r"(0x7f0000000000)));
}

static void iret_checks(void) {
  section("IRET");
  CHECK_FAULT(kGP, 0, guest_enter_user(0x800000000000, USER_STACK_TOP, 2, 0x33, 0x2b, 0));
  CHECK_FAULT(kGP, 0x28, guest_enter_user((reg)user_returns, USER_STACK_TOP, 2, 0x2b, 0x2b, 0));  // CS is data
  CHECK_FAULT(kGP, 0x30, guest_enter_user((reg)user_returns, USER_STACK_TOP, 2, 0x33, 0x33, 0));  // SS is code
  CHECK_FAULT(kGP, 0, guest_enter_user((reg)user_returns, USER_STACK_TOP, 2, 0, 0x2b, 0));
  CHECK_FAULT(kGP, 0, guest_enter_user((reg)user_returns, USER_STACK_TOP, kFlagNt, 0x33, 0, 0));
  CHECK_FAULT(kGP, 0, write_flags(2 | kFlagNt); guest_enter_user((reg)user_returns, USER_STACK_TOP, 2, 0x33, 0x2b, 0));
}

USER_TEXT static void user_reads_nothing(void) { __asm__ volatile("mov $0x7f0000000000, %%rax; std; stc; movb (%%rax), %%al" ::: "rax"); }
USER_TEXT static void user_reads_over_pages(void) {
  __asm__ volatile("mov $0x7f0000000ffd, %%rax; std; stc; mov (%%rax), %%rax" ::: "rax");
}

static void compare_frames(const struct frame* a, const struct frame* b) {
  CHECK_EQ(a->error, b->error);
  CHECK_EQ(a->cs, b->cs);
  CHECK_EQ(a->ss, b->ss);
  CHECK_EQ(a->sp, b->sp);
  CHECK_EQ(a->flags, b->flags);
}

// A page fault of an ordinary access and one of an access over two pages may take different ways through an engine:
// both must leave the same frame.
static void page_fault_frames(void) {
  section("page fault frames");
  struct frame plain;
  TRY(__asm__ volatile("std; stc; mov 0x7f0000000000, %%al; cld" ::: "rax", "cc"));
  plain = guest_last.frame;
  CHECK_EQ(guest_last.vector, kPF);
  CHECK_EQ(guest_last.cr2, 0x7f0000000000);
  STRICT(CHECK(plain.flags & kFlagRf));
  CHECK(plain.flags & kFlagDf);
  CHECK_EQ(plain.cs, 8);
  TRY(__asm__ volatile("std; stc; movabs 0x7f0000000ffd, %%rax; cld" ::: "rax", "cc"));
  __asm__ volatile("cld");
  CHECK_EQ(guest_last.cr2, 0x7f0000000ffd);
  compare_frames(&plain, &guest_last.frame);
  CHECK_FAULT(kPF, 4, run_user(user_reads_nothing, 2));
  CHECK_EQ(guest_last.cr2, 0x7f0000000000);
  plain = guest_last.frame;
  CHECK_EQ(plain.cs, 0x33);
  CHECK_EQ(plain.ss, 0x2b);
  CHECK_EQ(plain.flags & (kFlagDf | 3), kFlagDf | 3);
  STRICT(CHECK(plain.flags & kFlagRf));
  CHECK_FAULT(kPF, 4, run_user(user_reads_over_pages, 2));
  compare_frames(&plain, &guest_last.frame);
  // Through a stack of its own.
  static uint8_t stack[4096] __attribute__((aligned(4096)));
  *(uint64_t*)(tss + 0x24 + 6 * 8) = (reg)stack + sizeof(stack) - 8;
  idt[14 * 16 + 4] = 7;
  for (volatile unsigned user = 0; user < 2; ++user) {
    memset(stack, 0, sizeof(stack));
    if (user)
      CHECK_FAULT(kPF, 4, run_user(user_reads_nothing, 2));
    else
      CHECK_FAULT(kPF, 2, *(volatile uint8_t*)0x7f0000000000 = 1);
    CHECK_EQ(*(uint64_t*)(stack + sizeof(stack) - 16 - 40), guest_last.ip);
    CHECK_EQ(*(uint64_t*)(stack + sizeof(stack) - 16 - 48), guest_last.error);
  }
  idt[14 * 16 + 4] = 0;
  // A trap gate leaves IF alone; the gate's code segment must be one.
  idt[14 * 16 + 5] = 0x8f;
  CHECK_FAULT(kPF, 0, (void)*(volatile uint8_t*)0x7f0000000000);
  idt[14 * 16 + 5] = 0x8e;
  const uint8_t selector = idt[14 * 16 + 2];
  idt[14 * 16 + 2] = 0x10;
  CHECK_FAULT(kDF, 0, (void)*(volatile uint8_t*)0x7f0000000000);
  idt[14 * 16 + 2] = selector;
  CHECK_FAULT(kPF, 0, (void)*(volatile uint8_t*)0x7f0000000000);
}

void guest_main(void) {
  traps_and_faults();
  general_protection();
  user_mode();
  double_fault();
  page_fault_frames();
  iret_checks();
}
