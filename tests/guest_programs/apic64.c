// The local APIC: timer one-shot, periodic and by TSC deadline, self-IPI, priorities, EOI, x2APIC, waking from HLT.
#include "guest.h"

enum { kId = 0x20, kVersion = 0x30, kTpr = 0x80, kPpr = 0xa0, kEoi = 0xb0, kSvr = 0xf0, kIsr = 0x100, kIrr = 0x200, kIcrLow = 0x300,
       kIcrHigh = 0x310, kLvtTimer = 0x320, kLvtLint0 = 0x350, kInitialCount = 0x380, kCurrentCount = 0x390, kDivide = 0x3e0 };
enum { kMasked = 1 << 16, kPeriodic = 1 << 17, kDeadline = 2 << 17 };
#define APIC_BASE 0x1b
#define TSC_DEADLINE 0x6e0

static bool x2;
static volatile uint32_t* const registers = (volatile uint32_t*)0xfee00000;

static uint32_t get(unsigned at) { return x2 ? (uint32_t)rdmsr(0x800 + at / 16) : registers[at / 4]; }
static void put(unsigned at, uint32_t value) {
  if (x2)
    wrmsr(0x800 + at / 16, value);
  else
    registers[at / 4] = value;
}
static void send_self(uint32_t vector) {
  if (x2) return wrmsr(0x830, 1u << 18 | vector);
  put(kIcrHigh, 0);
  put(kIcrLow, 1u << 18 | vector);
}
static bool bit_of(unsigned at, unsigned vector) { return get(at + vector / 32 * 16) >> (vector % 32) & 1; }

static volatile unsigned count[256];
static volatile unsigned order[16], taken;
static bool keep;  // handlers do not send EOI

static void handler(struct frame* frame) {
  ++count[frame->vector];
  if (taken < 16) order[taken] = (unsigned)frame->vector;
  ++taken;
  if (!keep) put(kEoi, 0);
}

static void wait_for(volatile unsigned* counter, unsigned wanted) {
  while (*counter < wanted) __asm__ volatile("sti; hlt; cli" ::: "memory");
}

static void identity(void) {
  section("registers");
  CHECK(rdmsr(APIC_BASE) >> 11 & 1);
  CHECK(rdmsr(APIC_BASE) >> 8 & 1);  // the boot processor
  CHECK_EQ(rdmsr(APIC_BASE) & ~0xfffull, 0xfee00000);
  CHECK_EQ(get(kId) >> 24, cpuid(1, 0).b >> 24);
  CHECK((get(kVersion) & 0xff) >= 0x10);
  put(kSvr, 0x1ff);
  put(kTpr, 0);
  put(kLvtLint0, kMasked);
}

static void self_ipi(void) {
  section("self-IPI, priorities, EOI");
  cli();
  taken = 0;
  send_self(0x50);
  send_self(0x90);
  send_self(0x70);
  CHECK(bit_of(kIrr, 0x90));
  CHECK(bit_of(kIrr, 0x50));
  wait_for(&taken, 3);
  CHECK_EQ(order[0], 0x90);
  CHECK_EQ(order[1], 0x70);
  CHECK_EQ(order[2], 0x50);
  CHECK(!bit_of(kIrr, 0x90));
  // Without EOI: in service, and lower ones wait.
  taken = 0;
  keep = true;
  send_self(0x80);
  wait_for(&taken, 1);
  CHECK(bit_of(kIsr, 0x80));
  CHECK_EQ(get(kPpr), 0x80);
  send_self(0x60);
  __asm__ volatile("sti; nop; nop; cli");
  CHECK_EQ(taken, 1);
  send_self(0xa0);
  __asm__ volatile("sti; nop; nop; cli");
  CHECK_EQ(taken, 2);
  CHECK_EQ(order[1], 0xa0);
  put(kEoi, 0);
  CHECK(!bit_of(kIsr, 0xa0));
  CHECK(bit_of(kIsr, 0x80));
  put(kEoi, 0);
  keep = false;
  __asm__ volatile("sti; nop; nop; cli");
  CHECK_EQ(taken, 3);
  // The task priority holds them back; CR8 is the same register.
  taken = 0;
  put(kTpr, 0x70);
  reg cr8;
  __asm__ volatile("mov %%cr8, %0" : "=r"(cr8));
  CHECK_EQ(cr8, 7);
  send_self(0x75);
  __asm__ volatile("sti; nop; nop; cli");
  CHECK_EQ(taken, 0);
  __asm__ volatile("mov %0, %%cr8" ::"r"(6ul));
  CHECK_EQ(get(kTpr), 0x60);
  __asm__ volatile("sti; nop; nop; cli");
  CHECK_EQ(taken, 1);
  STRICT(CHECK_FAULT(kGP, 0, __asm__ volatile("mov %0, %%cr8" ::"r"(0x10ul))));
  put(kTpr, 0);
}

static void timer(void) {
  section("timer");
  put(kDivide, 0xb);  // by 1
  put(kLvtTimer, 0x40);
  CHECK_EQ(get(kCurrentCount), 0);
  put(kInitialCount, 1000000);
  const uint32_t first = get(kCurrentCount);
  CHECK(first <= 1000000);
  wait_for(&count[0x40], 1);
  CHECK_EQ(get(kCurrentCount), 0);
  for (int i = 0; i < 100000; ++i) __asm__ volatile("pause");
  __asm__ volatile("sti; nop; cli");
  CHECK_EQ(count[0x40], 1);
  // Masked: counts, but raises nothing.
  put(kLvtTimer, kMasked | 0x40);
  put(kInitialCount, 1000);
  while (get(kCurrentCount) != 0) __asm__ volatile("pause");
  __asm__ volatile("sti; nop; cli");
  CHECK_EQ(count[0x40], 1);
  put(kLvtTimer, kPeriodic | 0x41);
  put(kDivide, 0x3);  // by 16
  put(kInitialCount, 20000);
  wait_for(&count[0x41], 5);
  put(kInitialCount, 0);
  const unsigned stopped = count[0x41];
  for (int i = 0; i < 100000; ++i) __asm__ volatile("pause");
  __asm__ volatile("sti; nop; cli");
  CHECK(count[0x41] <= stopped + 1);  // one may have been pending
}

static void deadline(void) {
  section("TSC deadline");
  if (!(cpuid(1, 0).c >> 24 & 1)) return skip("TSC deadline");
  put(kLvtTimer, kDeadline | 0x42);
  CHECK_EQ(rdmsr(TSC_DEADLINE), 0);
  for (unsigned i = 0; i < 5; ++i) {
    const uint64_t when = rdtsc() + 1000000;
    wrmsr(TSC_DEADLINE, when);
    wait_for(&count[0x42], i + 1);
    CHECK(rdtsc() >= when);
    CHECK_EQ(rdmsr(TSC_DEADLINE), 0);
  }
  wrmsr(TSC_DEADLINE, 1);  // long past
  wait_for(&count[0x42], 6);
  wrmsr(TSC_DEADLINE, rdtsc() + (1ull << 40));
  wrmsr(TSC_DEADLINE, 0);  // disarmed
  for (int i = 0; i < 1000; ++i) __asm__ volatile("sti; pause; cli");
  CHECK_EQ(count[0x42], 6);
  put(kLvtTimer, kMasked);
}

static void extended(void) {
  section("x2APIC");
  if (!(cpuid(1, 0).c >> 21 & 1)) return skip("x2APIC");
  CHECK_FAULT(kGP, 0, rdmsr(0x802));  // not before it is switched on
  wrmsr(APIC_BASE, rdmsr(APIC_BASE) | 1 << 10);
  x2 = true;
  CHECK_EQ(get(kId), cpuid(1, 0).b >> 24);
  CHECK_EQ(get(kSvr), 0x1ff);
  taken = 0;
  send_self(0x51);
  wrmsr(0x83f, 0x52);  // SELF IPI
  wait_for(&taken, 2);
  CHECK_EQ(order[0], 0x52);
  CHECK_FAULT(kGP, 0, wrmsr(0x802, 1));          // the id is read-only
  CHECK_FAULT(kGP, 0, wrmsr(0x80b, 1));          // EOI takes 0 only
  CHECK_FAULT(kGP, 0, rdmsr(0x831));             // there is no second half of ICR
  CHECK_FAULT(kGP, 0, wrmsr(0x808, 0x100));      // reserved bits
  CHECK_FAULT(kGP, 0, wrmsr(APIC_BASE, rdmsr(APIC_BASE) & ~(1ull << 10)));  // back to xAPIC only through off
  count[0x41] = 0;
  put(kLvtTimer, kPeriodic | 0x41);
  put(kInitialCount, 20000);
  wait_for(&count[0x41], 3);
  put(kInitialCount, 0);
  put(kLvtTimer, kMasked);
}

extern char after_sti[];
static reg interrupted_at;
static void note_place(struct frame* frame) {
  interrupted_at = frame->ip;
  put(kEoi, 0);
}

static void shadow(void) {
  section("STI holds interrupts for one instruction");
  guest_handlers[0x60] = note_place;
  send_self(0x60);
  __asm__ volatile("sti\nnop\nafter_sti: nop\nnop\ncli");
  CHECK_EQ(interrupted_at, (reg)after_sti);
  // CLI behind STI: none is taken.
  interrupted_at = 0;
  send_self(0x60);
  __asm__ volatile("sti; cli");
  CHECK_EQ(interrupted_at, 0);
  __asm__ volatile("sti; nop; nop; cli");
  CHECK(interrupted_at != 0);
}

void guest_main(void) {
  for (unsigned v = 0x40; v < 0x100; ++v) guest_handlers[v] = handler;
  outb(0x21, 0xff);
  outb(0xa1, 0xff);
  identity();
  self_ipi();
  timer();
  deadline();
  shadow();
  extended();
}
