// Long stays in 64-bit user mode with interrupts on, and each way out of them: an engine that treats such stays
// differently from short ones must not let it be seen.
#include "guest.h"

enum { P = 1, W = 2, U = 4, kA = 0x20, kD = 0x40 };
enum { kStar = 0xc0000081, kLstar, kFmask = 0xc0000084, kFsBase = 0xc0000100 };
enum { kOsFxsr = 1 << 9, kOsXsave = 1 << 18, kAm = 1 << 18 };
#define PHYS(object) ((uint64_t)(reg)(object))
#define FLAGS (2 | kFlagIf)

extern uint64_t pml4[512];
typedef uint64_t table[512];
static table t3 __attribute__((aligned(4096))), t2 __attribute__((aligned(4096))), t1 __attribute__((aligned(4096)));
static table other_pml4 __attribute__((aligned(4096)));
static uint8_t page_a[4096] __attribute__((aligned(4096))), page_b[4096] __attribute__((aligned(4096)));
#define BASE 0x8000000000ull

static void map(unsigned n, uint64_t entry) {
  t1[n] = entry;
  invlpg((void*)(BASE + n * 4096ull));
}

// User code that first counts for some 100,000 instructions; then, at NAME_at, `body`.
#define USER(name, body)                                                                                             \
  extern char name[], name##_at[];                                                                                   \
  __asm__(".pushsection .user.text,\"ax\",@progbits\n" #name ": movl $50000, %ecx\n1: decl %ecx\n jnz 1b\n" #name \
          "_at: " body "\n int $0x80\n.popsection")
#define RUN(name, flags) run_user((void (*)(void))(reg)name, flags)
#define STEP_IP(name, bytes) ((reg)name##_at + (bytes))

USER(sees, "pushfq; popq %rax; movl %cs, %ebx; movl %ss, %edx; movl %ds, %esi; movl %fs, %edi; movq %rsp, %r8");
USER(keeps, "leaq 1(%r9), %rax");
USER(calls, "syscall");
USER(reads, "movabs 0x8000000000, %al");
USER(writes, "movb $7, %al; movabs %al, 0x8000000000");
USER(jumps, "movabs $0x8000000000, %rax; jmp *%rax");
USER(reads_kernel, "movb 0x100000, %al");
USER(undefined, "ud2");
USER(divides, "xorl %ecx, %ecx; divl %ecx");
USER(halts, "hlt");
USER(port, "inb $0x61, %al");
USER(breaks, "int3");
USER(breaks_long, ".byte 0xcd, 3");
USER(traps, ".byte 0xf1");
USER(steps, "pushfq; orl $0x100, (%rsp); popfq; nop; nop");
USER(steps_into, "pushfq; orl $0x100, (%rsp); popfq; ud2");
USER(misaligned, "pushfq; orl $0x40000, (%rsp); popfq; movl 1(%rsp), %eax");
USER(noncanonical, "movabs $0x800000000000, %rax; movb (%rax), %al");
USER(loads_segment, "movl $0x2b, %eax; movl %eax, %ds; movl %ds, %edx; movl $0x10, %eax; movl %eax, %ds");
USER(uses_fs, "movq %fs:8, %rax");
USER(vectors, "movq %rax, %xmm3; movl $50000, %ecx\n2: decl %ecx\n jnz 2b\n movq %xmm3, %rdx");
USER(reads_tsc, "rdtsc; movl %eax, %esi; movl %edx, %edi; movl $50000, %ecx\n2: decl %ecx\n jnz 2b\n rdtsc");
USER(identifies, "movl $1, %eax; xorl %ecx, %ecx; cpuid");
USER(loops, "2: incq %rax\n jmp 2b");
USER(device, "movabs $0x8000001000, %rdx; movl $1, (%rdx); movl 16(%rdx), %eax; movl 16(%rdx), %ebx");

// All state components, as a kernel does.
static void enable_vectors(void) {
  write_cr4(read_cr4() | kOsFxsr);
  if (!(cpuid(1, 0).c >> 26 & 1)) return;
  write_cr4(read_cr4() | kOsXsave);
  const struct cpuid components = cpuid(0xd, 0);
  __asm__ volatile("xsetbv" ::"c"(0), "a"(components.a), "d"(components.d));
}

static void registers(void) {
  section("registers and flags");
  CHECK_FAULT(0x80, 0, RUN(sees, FLAGS | kFlagDf));
  CHECK_EQ(guest_last.frame.ax & 0x3700, kFlagIf | kFlagDf);
  CHECK_EQ(guest_last.frame.bx, 0x33);
  CHECK_EQ(guest_last.frame.dx, 0x2b);
  CHECK_EQ(guest_last.frame.si, 0);
  CHECK_EQ(guest_last.frame.di, 0);
  CHECK_EQ(guest_last.frame.r8, USER_STACK_TOP - 8);
  CHECK_EQ(guest_last.frame.sp, USER_STACK_TOP - 8);
  CHECK_EQ(guest_last.flags & 0x3f00, kFlagIf | kFlagDf);
  CHECK_EQ(guest_last.flags & kFlagRf, 0);
  CHECK_FAULT(0x80, 0, __asm__ volatile("movq $0x1234, %%r9" ::: "r9"); RUN(keeps, FLAGS));
  CHECK_EQ(guest_last.frame.ax, guest_last.frame.r9 + 1);
  wrmsr(kFsBase, PHYS(user_stack));
  *(uint64_t*)(user_stack + 8) = 0x1122334455667788;
  CHECK_FAULT(0x80, 0, RUN(uses_fs, FLAGS));
  CHECK_EQ(guest_last.frame.ax, 0x1122334455667788);
  CHECK_EQ(rdmsr(kFsBase), PHYS(user_stack));
  CHECK_FAULT(kGP, 0x10, RUN(loads_segment, FLAGS));
  CHECK_EQ(guest_last.frame.dx, 0x2b);
  CHECK_FAULT(0x80, 0, __asm__ volatile("movl $77, %%eax; movd %%eax, %%xmm4" ::: "eax"); RUN(vectors, FLAGS));
  CHECK_EQ(guest_last.frame.dx, guest_last.frame.ax);
  uint32_t kept;
  __asm__ volatile("movd %%xmm4, %0" : "=r"(kept));
  CHECK_EQ(kept, 77);
}

static void counter_and_identity(void) {
  section("time stamp counter and CPUID");
  const uint64_t before = rdtsc();
  CHECK_FAULT(0x80, 0, RUN(reads_tsc, FLAGS));
  const uint64_t after = rdtsc(), first = guest_last.frame.di << 32 | (uint32_t)guest_last.frame.si;
  const uint64_t second = guest_last.frame.dx << 32 | (uint32_t)guest_last.frame.ax;
  CHECK(before < first && first < second && second < after);
  CHECK_FAULT(0x80, 0, RUN(identifies, FLAGS));
  CHECK_EQ(guest_last.frame.ax, cpuid(1, 0).a);
  CHECK_EQ(guest_last.frame.dx, cpuid(1, 0).d);
}

extern char entry[];
static reg syscall_frame[2] __attribute__((used));
static uint8_t syscall_stack[1024] __attribute__((aligned(16), used));
__asm__(".text\nentry: movq %rcx, syscall_frame(%rip)\n movq %r11, syscall_frame+8(%rip)\n"
        "leaq syscall_stack+1024(%rip), %rsp\n int $0x40\n");

static void exceptions(void) {
  section("system call, exceptions, traps");
  wrmsr(kStar, 0x0020000800000000);
  wrmsr(kLstar, (reg)entry);
  wrmsr(kFmask, 0x4700);
  CHECK_FAULT(0x40, 0, RUN(calls, FLAGS));
  CHECK_EQ(syscall_frame[0], STEP_IP(calls, 2));
  CHECK_EQ(syscall_frame[1] & 0x3f00, kFlagIf);
  CHECK_FAULT(kUD, 0, RUN(undefined, FLAGS));
  CHECK_EQ(guest_last.ip, (reg)undefined_at);
  CHECK_FAULT(kDE, 0, RUN(divides, FLAGS));
  CHECK_EQ(guest_last.ip, STEP_IP(divides, 2));
  CHECK_FAULT(kGP, 0, RUN(halts, FLAGS));
  CHECK_FAULT(kGP, 0, RUN(port, FLAGS));
  CHECK_FAULT(0x80, 0, RUN(port, FLAGS | 0x3000));
  CHECK_FAULT(kGP, 0, RUN(noncanonical, FLAGS));
  STRICT(CHECK_FAULT(kGP, 8 * kBP + 2, RUN(breaks, FLAGS)));
  STRICT(CHECK_EQ(guest_last.ip, (reg)breaks_at));
  idt[16 * kBP + 5] |= 0x60;
  CHECK_FAULT(kBP, 0, RUN(breaks, FLAGS));
  CHECK_EQ(guest_last.ip, STEP_IP(breaks, 1));
  CHECK_FAULT(kBP, 0, RUN(breaks_long, FLAGS));
  CHECK_EQ(guest_last.ip, STEP_IP(breaks_long, 2));
  idt[16 * kBP + 5] &= (uint8_t)~0x60;
  STRICT(CHECK_FAULT(kDB, 0, RUN(traps, FLAGS)));
  STRICT(CHECK_EQ(guest_last.ip, STEP_IP(traps, 1)));
  CHECK_FAULT(kDB, 0, RUN(steps, FLAGS));
  CHECK_EQ(guest_last.ip, STEP_IP(steps, 10));
  CHECK_EQ(read_dr6() & 0x4000, 0x4000);
  write_dr6(0xffff0ff0);
  CHECK_FAULT(kUD, 0, RUN(steps_into, FLAGS));
  CHECK_EQ(guest_last.ip, STEP_IP(steps_into, 9));
  CHECK_FAULT(0x80, 0, RUN(misaligned, FLAGS));
  write_cr0(read_cr0() | kAm);
  STRICT(CHECK_FAULT(kAC, 0, RUN(misaligned, FLAGS)));
  write_cr0(read_cr0() & ~(reg)kAm);
}

static void paging(void) {
  section("page tables that change");
  pml4[1] = PHYS(t3) | P | W | U;
  t3[0] = PHYS(t2) | P | W | U;
  t2[0] = PHYS(t1) | P | W | U;
  page_a[0] = 1;
  page_b[0] = 2;
  CHECK_FAULT(kPF, 5, RUN(reads_kernel, FLAGS));
  CHECK_EQ(guest_last.cr2, 0x100000);
  CHECK_FAULT(kPF, 4, RUN(reads, FLAGS));
  CHECK_EQ(guest_last.cr2, BASE);
  map(0, PHYS(page_a) | P | W | U);
  CHECK_FAULT(0x80, 0, RUN(reads, FLAGS));
  CHECK_EQ(guest_last.frame.ax & 0xff, 1);
  CHECK_EQ(t1[0] & (kA | kD), kA);
  map(0, PHYS(page_b) | P | W | U);
  CHECK_FAULT(0x80, 0, RUN(reads, FLAGS));
  CHECK_EQ(guest_last.frame.ax & 0xff, 2);
  CHECK_FAULT(0x80, 0, RUN(writes, FLAGS));
  CHECK_EQ(page_b[0], 7);
  CHECK_EQ(t1[0] & (kA | kD), kA | kD);
  map(0, PHYS(page_b) | P | U);
  CHECK_FAULT(kPF, 7, RUN(writes, FLAGS));
  map(0, PHYS(page_b) | P | U | 1ull << 63);
  CHECK_FAULT(kPF, 0x15, RUN(jumps, FLAGS));
  CHECK_EQ(guest_last.ip, BASE);
  map(0, PHYS(page_b) | P | W);
  CHECK_FAULT(kPF, 5, RUN(reads, FLAGS));
  // Not by INVLPG: another root, with the old page elsewhere in it.
  map(0, PHYS(page_a) | P | W | U);
  CHECK_FAULT(0x80, 0, RUN(reads, FLAGS));
  t1[0] = PHYS(page_b) | P | W | U;
  memcpy(other_pml4, pml4, sizeof(other_pml4));
  write_cr3(PHYS(other_pml4));
  CHECK_FAULT(0x80, 0, RUN(reads, FLAGS));
  CHECK_EQ(guest_last.frame.ax & 0xff, 7);
  other_pml4[1] = 0;
  write_cr3(PHYS(other_pml4));
  CHECK_FAULT(kPF, 4, RUN(reads, FLAGS));
  write_cr3(PHYS(pml4));
  CHECK_FAULT(0x80, 0, RUN(reads, FLAGS));
  // The IO-APIC's index and data.
  map(1, 0xfec00000 | P | W | U | 0x10);
  CHECK_FAULT(0x80, 0, RUN(device, FLAGS));
  CHECK_EQ(guest_last.frame.ax >> 16 & 0xff, 23);
  CHECK_EQ(guest_last.frame.bx, guest_last.frame.ax);
}

static volatile unsigned ticks;
static reg last_count;
static void tick(struct frame* frame) {
  pic_eoi(0);
  // Equal: a tick that came while the one before was served.
  CHECK(frame->ax >= last_count || frame->ip < (reg)loops_at);
  last_count = frame->ax;
  if (++ticks == 20) {
    outb(0x21, 0xff);
    frame->ip = (reg)undefined_at;
  }
}

static void interrupts(void) {
  section("interrupts end an endless loop");
  pic_setup(0x20, 1);
  pit_rate(20000);
  guest_handlers[0x20] = tick;
  CHECK_FAULT(kUD, 0, RUN(loops, FLAGS));
  CHECK_EQ(ticks, 20);
  CHECK(last_count > 0);
  guest_handlers[0x20] = 0;
}

void guest_main(void) {
  outb(0x21, 0xff);  // nothing of a firmware's
  enable_vectors();
  registers();
  counter_and_identity();
  exceptions();
  paging();
  interrupts();
}
