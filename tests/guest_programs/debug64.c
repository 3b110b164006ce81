// Single-step and hardware breakpoints: DR6, RF, the shadow of MOV SS, string instructions, general detect.
#include "guest.h"

enum { kB0 = 1, kBd = 1 << 13, kBs = 1 << 14 };
#define DR6_FIXED 0xffff0ff0ul

static reg ips[64], status[64];
static unsigned traps;
static bool stop_stepping;

static void note_trap(struct frame* frame) {
  if (traps < 64) {
    ips[traps] = frame->ip;
    status[traps] = read_dr6();
  }
  ++traps;
  write_dr6(DR6_FIXED);
  if (stop_stepping) frame->flags &= ~(reg)kFlagTf;
  // A breakpoint on an instruction is a fault: RF lets it run.
  if (status[traps - 1] & 15) frame->flags |= kFlagRf;
}

static void begin(void) {
  traps = 0;
  write_dr6(DR6_FIXED);
  guest_handlers[kDB] = note_trap;
}

#define STEP_ON "pushfq; orl $0x100, (%%rsp); popfq\n"
#define STEP_OFF "pushfq; andl $~0x100, (%%rsp); popfq\n"

extern char step1[], step2[], step3[], step4[], step5[];
static void single_step(void) {
  section("single-step");
  begin();
  __asm__ volatile(STEP_ON "nop\nstep1: inc %%eax\nstep2: jmp step3\nnop\nstep3: nop\nstep4:" STEP_OFF "step5:" ::: "eax", "memory", "cc");
  // A trap after each instruction from the one behind POPF to the POPF that ends it, itself included.
  CHECK_EQ(traps, 7);
  CHECK_EQ(ips[0], (reg)step1);
  CHECK_EQ(ips[1], (reg)step2);
  CHECK_EQ(ips[2], (reg)step3);
  CHECK_EQ(ips[3], (reg)step4);
  CHECK_EQ(ips[6], (reg)step5);
  for (unsigned i = 0; i < 7; ++i) CHECK_EQ(status[i], DR6_FIXED | kBs);
  // Each iteration of a repeated string instruction traps, at the instruction itself until it is done.
  static uint8_t from[4], to[4];
  begin();
  reg count = 3;
  const void* source = from;
  void* target = to;
  __asm__ volatile(STEP_ON "rep movsb\n" STEP_OFF : "+c"(count), "+S"(source), "+D"(target)::"memory", "cc");
  CHECK_EQ(traps, 3 + 3);
  CHECK_EQ(ips[0], ips[1]);
  CHECK_EQ(ips[2], ips[1] + 2);
  // INT n clears TF in the handler; the trap after it is the caller's next.
  begin();
  __asm__ volatile(STEP_ON "int $0x45\n nop\n" STEP_OFF ::: "memory", "cc");
  CHECK_EQ(traps, 1 + 3);
}

static void ignore(struct frame* frame) { (void)frame; }

extern char shadow1[], shadow2[], faulting[];
static void shadow(void) {
  section("MOV SS holds traps and interrupts for one instruction");
  begin();
  const reg ss = 0x10;
  __asm__ volatile(STEP_ON "mov %0, %%ss\nshadow1: nop\nshadow2: nop\n" STEP_OFF ::"r"(ss) : "memory", "cc");
  CHECK_EQ(ips[0], (reg)shadow2);
  // A fault while stepping: its saved flags hold TF, its handler does not step.
  begin();
  CHECK_FAULT(kUD, 0, __asm__ volatile(STEP_ON "faulting: ud2" ::: "memory"));
  CHECK_EQ(guest_last.ip, (reg)faulting);
  CHECK(guest_last.flags & kFlagTf);
  CHECK_EQ(traps, 0);
}

static volatile uint64_t watched[4] __attribute__((aligned(32)));
extern char at_break[], after_write[];

__attribute__((noinline)) static void passes_by(void) { __asm__ volatile("nop\nat_break: nop" ::: "memory"); }

static void hardware(void) {
  section("breakpoints on data");
  begin();
  write_dr0((reg)&watched[0]);
  write_dr7(0x400 | 1 << 1 | 1 << 16 | 3 << 18);  // G0, write, 4 bytes
  watched[1] = 1;
  CHECK_EQ(traps, 0);
  (void)watched[0];
  CHECK_EQ(traps, 0);
  __asm__ volatile("movb $1, 3+%0\nafter_write:" : "=m"(*(volatile uint8_t*)watched)::"memory");
  CHECK_EQ(traps, 1);
  CHECK_EQ(status[0], DR6_FIXED | kB0);
  CHECK_EQ(ips[0], (reg)after_write);
  *(volatile uint8_t*)((reg)watched + 4) = 1;  // just behind it
  CHECK_EQ(traps, 1);
  // A write that only overlaps.
  begin();
  *(volatile uint64_t*)((reg)watched - 4 + 4) = 2;
  CHECK_EQ(traps, 1);
  // Reads too.
  begin();
  write_dr7(0x400 | 1 << 1 | 3 << 16 | 2 << 18);  // G0, read or write, 8 bytes
  (void)watched[0];
  CHECK_EQ(traps, 1);
  __asm__ volatile("lock incq %0" : "+m"(watched[0]));
  CHECK_EQ(traps, 2);
  // Two at once.
  begin();
  write_dr1((reg)&watched[0] + 4);
  write_dr7(0x400 | 1 << 1 | 1 << 16 | 3 << 18 | 1 << 3 | 1 << 20 | 3 << 22);
  watched[0] = 3;
  CHECK_EQ(traps, 1);
  STRICT(CHECK_EQ(status[0], DR6_FIXED | 3));
  write_dr7(0x400);
  watched[0] = 4;
  CHECK_EQ(traps, 1);
  section("breakpoints on instructions");
  begin();
  write_dr2((reg)at_break);
  write_dr7(0x400 | 1 << 5);
  for (int i = 0; i < 3; ++i) passes_by();
  write_dr7(0x400);
  CHECK_EQ(traps, 3);
  CHECK_EQ(ips[0], (reg)at_break);
  CHECK_EQ(status[0] & 15, 4);
}

static void general_detect(void) {
  section("general detect, reserved bits");
  guest_handlers[kDB] = 0;
  write_dr6(DR6_FIXED);
  write_dr7(0x400 | kBd);
  STRICT(CHECK_FAULT(kDB, 0, (void)read_dr0()));
  STRICT(CHECK_EQ(read_dr6() & kBd, kBd));
  // The handler ran with GD clear.
  STRICT(CHECK_EQ(read_dr7() & kBd, 0));
  write_dr7(0x400);
  STRICT(CHECK_FAULT(kGP, 0, write_dr7(1ul << 32)));
  STRICT(CHECK_FAULT(kGP, 0, write_dr6(1ul << 32)));
  write_dr6(0);
  CHECK_EQ(read_dr6() & DR6_FIXED, DR6_FIXED);
  write_cr4(read_cr4() | 8);  // DE: DR4 and DR5 are gone
  CHECK_FAULT(kUD, 0, __asm__ volatile("mov %%db4, %0" : "=r"((reg){0})));
  write_cr4(read_cr4() & ~8ul);
  CHECK_OK(__asm__ volatile("mov %%db4, %0" : "=r"((reg){0})));
}

USER_TEXT static void user_steps(void) { __asm__ volatile("nop; nop; int $0x80"); }

static void user_mode(void) {
  section("stepping user mode");
  begin();
  CHECK_FAULT(0x80, 0, run_user(user_steps, 2 | kFlagTf));
  CHECK_EQ(traps, 2);  // INT clears TF before its own trap
  CHECK_EQ(ips[0], (reg)user_steps + 1);
  CHECK_EQ(ips[1], (reg)user_steps + 2);
}

void guest_main(void) {
  guest_handlers[0x45] = ignore;
  single_step();
  shadow();
  hardware();
  general_detect();
  user_mode();
}
