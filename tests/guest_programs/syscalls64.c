// SYSCALL and SYSRET, SYSENTER and SYSEXIT, SWAPGS, compatibility mode.
#include "guest.h"

enum { kEfer = 0xc0000080, kStar, kLstar, kCstar, kFmask, kFsBase = 0xc0000100, kGsBase, kKernelGsBase };
enum { kSysenterCs = 0x174, kSysenterEsp, kSysenterEip };

struct seen {
  reg cx, r11, flags, cs, ss, sp;
};
struct seen seen;
uint8_t syscall_stack[4096] __attribute__((aligned(16)));

// Entered by SYSCALL and SYSENTER: notes what it finds and leaves through the TRY's interrupt.
extern char syscall_entry[], sysenter_entry[];
__asm__(
    ".text\n"
    "syscall_entry:\n"
    "movq %rcx, seen(%rip)\n movq %r11, seen+8(%rip)\n"
    "movq %rsp, seen+40(%rip)\n leaq syscall_stack+4096(%rip), %rsp\n"
    "pushfq\n popq seen+16(%rip)\n"
    "movl %cs, %eax\n movq %rax, seen+24(%rip)\n movl %ss, %eax\n movq %rax, seen+32(%rip)\n"
    "int $0x40\n"
    "sysenter_entry:\n"
    "movq %rsp, seen+40(%rip)\n"
    "pushfq\n popq seen+16(%rip)\n"
    "movl %cs, %eax\n movq %rax, seen+24(%rip)\n movl %ss, %eax\n movq %rax, seen+32(%rip)\n"
    "int $0x41\n");

USER_TEXT static void user_syscall(void) { __asm__ volatile("syscall" ::: "rcx", "r11"); }
USER_TEXT static void user_sysenter(void) { __asm__ volatile("sysenter"); }
USER_TEXT static void user_sysret(void) { __asm__ volatile("sysretq"); }
USER_TEXT static void user_swapgs(void) { __asm__ volatile("swapgs"); }
USER_TEXT static void user_returned(void) { __asm__ volatile("pushfq; popq %%rax; movl %%ss, %%edx; int $0x80" ::: "rax"); }

static void system_call(void) {
  section("SYSCALL");
  wrmsr(kStar, 0x0020000800000000);
  wrmsr(kLstar, (reg)syscall_entry);
  wrmsr(kFmask, 0x4700 | 1);  // NT DF IF TF CF
  CHECK_FAULT(0x40, 0, run_user(user_syscall, 0x203 | kFlagDf));
  CHECK_EQ(seen.cx, (reg)user_syscall + 2);
  CHECK_EQ(seen.r11 & (kFlagIf | kFlagDf | 1), kFlagIf | kFlagDf | 1);
  CHECK_EQ(seen.flags & (0x4701), 0);
  CHECK_EQ(seen.cs, 8);
  CHECK_EQ(seen.ss, 0x10);
  CHECK_EQ(seen.sp, USER_STACK_TOP - 8);
  STRICT(CHECK_FAULT(kGP, 0, wrmsr(kLstar, 0x800000000000)));
  wrmsr(kEfer, rdmsr(kEfer) & ~1ull);
  CHECK_FAULT(kUD, 0, run_user(user_syscall, 2));
  wrmsr(kEfer, rdmsr(kEfer) | 1);
}

static void sysret_to(reg ip, reg flags, reg sp, bool wide) {
  if (wide)
    __asm__ volatile("mov %0, %%rsp; mov %1, %%r11; sysretq" ::"r"(sp), "r"(flags), "c"(ip) : "r11", "memory");
  __asm__ volatile("mov %0, %%rsp; mov %1, %%r11; sysretl" ::"r"(sp), "r"(flags), "c"(ip) : "r11", "memory");
}

static void system_return(void) {
  section("SYSRET");
  CHECK_FAULT(0x80, 0, sysret_to((reg)user_returned, 0x10cd7 & ~0x300ul, USER_STACK_TOP, true));
  CHECK_EQ(guest_last.frame.cs, 0x33);
  CHECK_EQ(guest_last.frame.ss, 0x2b);
  CHECK_EQ(guest_last.frame.dx, 0x2b);
  CHECK_EQ(guest_last.frame.ax & 0xcd5, 0xcd5 & ~0x300ul);
  // To 32-bit code: MOV EAX, 0x11223344; 48 is DEC EAX there; int 0x80.
  static USER_DATA uint8_t narrow[] = {0xb8, 0x44, 0x33, 0x22, 0x11, 0x48, 0x89, 0xc2, 0xcd, 0x80};
  CHECK_FAULT(0x80, 0, sysret_to((reg)narrow, 2, USER_STACK_TOP, false));
  CHECK_EQ(guest_last.frame.cs, 0x23);
  CHECK_EQ(guest_last.frame.dx, 0x11223343);
  CHECK_FAULT(kGP, 0, run_user(user_sysret, 2));
}

static void fast_call(void) {
  section("SYSENTER and SYSEXIT");
  if (cpuid(0, 0).b == 0x68747541) return skip("SYSENTER in 64-bit mode: \"AuthenticAMD\" has none");
  wrmsr(kSysenterCs, 0);
  CHECK_FAULT(kGP, 0, run_user(user_sysenter, 2));
  wrmsr(kSysenterCs, 8);
  wrmsr(kSysenterEsp, (reg)syscall_stack + 2048);
  wrmsr(kSysenterEip, (reg)sysenter_entry);
  CHECK_FAULT(0x41, 0, run_user(user_sysenter, 0x202));
  CHECK_EQ(seen.cs, 8);
  CHECK_EQ(seen.ss, 0x10);
  CHECK_EQ(seen.sp, (reg)syscall_stack + 2048);
  CHECK_EQ(seen.flags & kFlagIf, 0);
  // SYSEXIT takes its segments from SYSENTER_CS: + 16, + 24, and + 32, + 40 for 64 bits.
  gdt[16] = gdt[1];
  gdt[17] = gdt[2];
  gdt[18] = gdt[4];
  gdt[19] = gdt[5];
  gdt[20] = gdt[6];
  gdt[21] = gdt[5];
  wrmsr(kSysenterCs, 16 * 8);
  CHECK_FAULT(0x80, 0, __asm__ volatile("sysexitq" ::"d"((reg)user_returned), "c"(USER_STACK_TOP)));
  CHECK_EQ(guest_last.frame.cs, 20 * 8 + 3);
  CHECK_EQ(guest_last.frame.ss, 21 * 8 + 3);
  static USER_DATA uint8_t narrow[] = {0xb8, 0x44, 0x33, 0x22, 0x11, 0x48, 0xcd, 0x80};
  CHECK_FAULT(0x80, 0, __asm__ volatile("sysexitl" ::"d"((reg)narrow), "c"(USER_STACK_TOP)));
  CHECK_EQ(guest_last.frame.cs, 18 * 8 + 3);
  CHECK_EQ(guest_last.frame.ax, 0x11223343);
}

static void gs_swapped(void) {
  section("SWAPGS, FS and GS");
  static uint64_t one[2] = {0x1111, 0x2222}, two[2] = {0x3333, 0x4444};
  uint64_t value;
  wrmsr(kGsBase, (reg)one);
  wrmsr(kKernelGsBase, (reg)two);
  wrmsr(kFsBase, (reg)two);
  __asm__ volatile("movq %%gs:8, %0" : "=r"(value));
  CHECK_EQ(value, 0x2222);
  __asm__ volatile("swapgs; movq %%gs:8, %0; swapgs" : "=r"(value));
  CHECK_EQ(value, 0x4444);
  __asm__ volatile("movq %%fs:0, %0" : "=r"(value));
  CHECK_EQ(value, 0x3333);
  __asm__ volatile("swapgs");
  CHECK_EQ(rdmsr(kGsBase), (reg)two);
  CHECK_EQ(rdmsr(kKernelGsBase), (reg)one);
  CHECK_FAULT(kGP, 0, run_user(user_swapgs, 2));
  // A selector loads the descriptor's base; a null selector leaves it to the CPU model, the MSR decides afterwards.
  gdt[9] = descriptor(0x12340, 0xfffff, 0xc093);
  __asm__ volatile("mov %0, %%fs" ::"r"(0x48));
  CHECK_EQ(rdmsr(kFsBase), 0x12340);
  wrmsr(kFsBase, (reg)one);
  __asm__ volatile("movq %%fs:0, %0" : "=r"(value));
  CHECK_EQ(value, 0x1111);
  if (cpuid(7, 0).b & 1) {
    CHECK_FAULT(kUD, 0, __asm__ volatile("rdfsbase %0" : "=r"(value)));
    write_cr4(read_cr4() | 1 << 16);
    __asm__ volatile("rdfsbase %0" : "=r"(value));
    CHECK_EQ(value, (reg)one);
    __asm__ volatile("wrgsbase %0; rdgsbase %0" : "+r"(value));
    CHECK_EQ(rdmsr(kGsBase), (reg)one);
    STRICT(CHECK_FAULT(kGP, 0, __asm__ volatile("wrfsbase %0" ::"r"(0x800000000000))));
    __asm__ volatile("wrfsbase %k0; rdfsbase %q0" : "=r"(value) : "0"(0xffffffff12345678));
    CHECK_EQ(value, 0x12345678);
    // The ends of the canonical halves, through registers of every kind.
    static const uint64_t good[] = {0, 0x7fffffffffff, 0xffff800000000000, ~0ull};
    static const uint64_t bad[] = {0x800000000000, 0xffff7fffffffffff, 1ull << 63, 1ull << 48};
    for (volatile unsigned i = 0; i < 4; ++i) {
      __asm__ volatile("mov %1, %%r11; wrfsbase %%r11; rdfsbase %0" : "=r"(value) : "r"(good[i]) : "r11");
      CHECK_EQ(value, good[i]);
      __asm__ volatile("stc; wrgsbase %%rcx; rdgsbase %0; jc 1f; xor %0, %0; 1:" : "=r"(value) : "c"(good[i]) : "cc");
      CHECK_EQ(value, good[i]);
      STRICT(CHECK_FAULT(kGP, 0, __asm__ volatile("wrgsbase %0" ::"c"(bad[i]))));
      STRICT(CHECK_FAULT(kGP, 0, __asm__ volatile("mov %0, %%r15; wrfsbase %%r15" ::"r"(bad[i]) : "r15")));
      STRICT(CHECK_FAULT(kGP, 0, wrmsr(0xc0000102, bad[i])));
      wrmsr(0xc0000102, good[i]);
      CHECK_EQ(rdmsr(0xc0000102), good[i]);
    }
  } else {
    skip("FSGSBASE");
  }
}

static void selectors(void) {
  section("selectors in registers");
  reg value = ~0ul;
  __asm__ volatile("movw %%cs, %w0" : "+r"(value));
  CHECK_EQ(value, 0xffffffffffff0008);
  __asm__ volatile("mov $-1, %%r10; movw %%cs, %%r10w; mov %%r10, %0" : "=r"(value)::"r10");
  CHECK_EQ(value, 0xffffffffffff0008);
  __asm__ volatile("mov $-1, %k0; mov %%cs, %k0" : "=r"(value));
  CHECK_EQ(value, 8);
}

static void compatibility_mode(void) {
  section("compatibility mode");
  // User code at 0x20: 40 is INC EAX, addresses are 32 bits wide and wrap, PUSH is of 4 bytes.
  static USER_DATA uint8_t code[] = {0xb8, 0x2b, 0, 0, 0, 0x8e, 0xd8,     // mov eax, 0x2b; mov ds, eax
                                     0x31, 0xc0,                          // xor eax, eax
                                     0x40,                                // inc eax
                                     0x89, 0xe2,                          // mov edx, esp
                                     0x50,                                // push eax
                                     0x29, 0xe2,                          // sub edx, esp
                                     0xbb, 0xff, 0xff, 0xff, 0xff,        // mov ebx, 0xffffffff
                                     0x8b, 0x8b, 1, 0, 0x40, 0,           // mov ecx, [ebx + 0x400001]: wraps to 0x400000
                                     0x06, 0x07,                          // push es; pop es
                                     0xcd, 0x80};
  CHECK_FAULT(0x80, 0, guest_enter_user((reg)code, USER_STACK_TOP, 2, 0x23, 0x2b, 0));
  CHECK_EQ(guest_last.frame.ax, 1);
  CHECK_EQ(guest_last.frame.dx, 4);
  CHECK_EQ((uint32_t)guest_last.frame.cx, *(uint32_t*)0x400000);
  CHECK_EQ(guest_last.ip, (reg)code + sizeof(code));
  // SYSCALL from there goes to CSTAR on AMD, is #UD on Intel: not asked. A segment limit counts there.
  gdt[10] = descriptor(0, 0x7ff, 0xc0f3);  // user data, limit 8 MiB - 1
  // mov eax, 0x53; mov ds, eax; mov al, [0x4fffff] or mov eax, [0x7ffffe]
  static USER_DATA uint8_t within[] = {0xb8, 0x53, 0, 0, 0, 0x8e, 0xd8, 0xa0, 0xff, 0xff, 0x4f, 0, 0xcd, 0x80};
  static USER_DATA uint8_t limited[] = {0xb8, 0x53, 0, 0, 0, 0x8e, 0xd8, 0xa1, 0xfe, 0xff, 0x7f, 0, 0xcd, 0x80};
  STRICT(CHECK_FAULT(kGP, 0, guest_enter_user((reg)limited, USER_STACK_TOP, 2, 0x23, 0x2b, 0)));
  CHECK_FAULT(0x80, 0, guest_enter_user((reg)within, USER_STACK_TOP, 2, 0x23, 0x2b, 0));
}

void guest_main(void) {
  system_call();
  system_return();
  fast_call();
  gs_swapped();
  selectors();
  compatibility_mode();
}
