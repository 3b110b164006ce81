// What KVM offers to guests with several processors (Linux Documentation/virt/kvm/x86: cpuid.rst, msr.rst,
// hypercalls.rst): clock, end of interrupt, stolen time with its TLB flush, kick, interrupts to many.
#include "smp.h"

enum { kVector = 0x60 };
enum {
  kFeatureClock = 1 << 3,
  kFeatureSteal = 1 << 5,
  kFeatureEoi = 1 << 6,
  kFeatureKick = 1 << 7,
  kFeatureFlush = 1 << 9,
  kFeatureSendIpi = 1 << 11
};
enum { kMsrSystemTime = 0x4b564d01, kMsrSteal = 0x4b564d03, kMsrEoi = 0x4b564d04 };
enum { kHcKick = 5, kHcSendIpi = 10 };

static long hypercall(unsigned number, reg b, reg c, reg d, reg si) {
  long result;
  __asm__ volatile("vmcall" : "=a"(result) : "a"((reg)number), "b"(b), "c"(c), "d"(d), "S"(si) : "memory");
  return result;
}

static struct clock {
  volatile uint32_t version, pad;
  volatile uint64_t tsc, time;
  volatile uint32_t multiplier;
  volatile int8_t shift;
  volatile uint8_t flags, pad2[2];
  uint8_t rest[32];
} __attribute__((aligned(64))) clocks[kMaxCpus];

static uint64_t now(unsigned cpu) {
  const struct clock* c = &clocks[cpu];
  for (;;) {
    const uint32_t version = c->version;
    compiler_barrier();
    __asm__ volatile("lfence" ::: "memory");
    uint64_t delta = rdtsc() - c->tsc;
    delta = c->shift < 0 ? delta >> -c->shift : delta << c->shift;
    const uint64_t time = c->time + (uint64_t)((unsigned __int128)delta * c->multiplier >> 32);
    compiler_barrier();
    if (version % 2 == 0 && c->version == version) return time;
  }
}

static volatile uint64_t latest;
static volatile unsigned backwards;
static void read_clock(unsigned cpu) {
  wrmsr(kMsrSystemTime, (reg)&clocks[cpu] | 1);
  for (unsigned i = 0; i < 3000; ++i) {
    uint64_t seen = latest;
    const uint64_t time = now(cpu);
    if (time < seen) __atomic_add_fetch(&backwards, 1, __ATOMIC_SEQ_CST);
    while (time > seen &&
           !__atomic_compare_exchange_n(&latest, &seen, time, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
    }
  }
}
static void clock(void) {
  section("clock: monotonic over all processors");
  smp_run(smp_count, read_clock);
  for (unsigned cpu = 0; cpu < smp_count; ++cpu) CHECK_EQ(clocks[cpu].flags & 1, 1);
  CHECK_EQ(backwards, 0);
}

// The handler's way of Linux: the bit says that the end of this interrupt needs no access to the APIC.
static volatile uint32_t eoi_words[kMaxCpus][16] __attribute__((aligned(64)));
static volatile unsigned spared, written, arrived;
static void on_eoi_vector(struct frame* frame) {
  (void)frame;
  bool was;
  __asm__ volatile("btrl $0, %0" : "+m"(eoi_words[smp_self()][0]), "=@ccc"(was)::"memory");
  if (was)
    ++spared;
  else {
    ++written;
    apic_eoi();
  }
  ++arrived;  // last: the sender then looks at the other two
}
static void enable_eoi(unsigned cpu) {
  eoi_words[cpu][0] = 0;
  wrmsr(kMsrEoi, (reg)&eoi_words[cpu] | 1);
}
static void disable_eoi(unsigned cpu) {
  (void)cpu;
  wrmsr(kMsrEoi, 0);
}
static void eoi(void) {
  section("end of interrupt");
  guest_handlers[kVector] = on_eoi_vector;
  for (unsigned cpu = 1; cpu < smp_count; ++cpu) {
    smp_post(cpu, enable_eoi);
    smp_wait(cpu);
    spared = written = arrived = 0;
    unsigned sent = 0;
    while (smp_more(sent, 500)) {
      const unsigned i = ++sent;
      smp_ipi(cpu, kVector);
      while (arrived != i) pause();
    }
    CHECK_EQ(spared + written, sent);
    CHECK(spared > sent / 4);
    smp_post(cpu, disable_eoi);
    smp_wait(cpu);
    smp_ipi(cpu, kVector);
    while (arrived != sent + 1) pause();
    CHECK_EQ(eoi_words[cpu][0] & 1, 0);
  }
  guest_handlers[kVector] = smp_count_interrupt;
}

static void await(unsigned cpu, unsigned count) {
  while (smp_cpus[cpu].interrupts[kVector] < count) pause();
}
static void send_ipi(void) {
  section("interrupts to many");
  const reg others = (1ul << smp_count) - 2;
  unsigned sent = 0;
  while (smp_more(sent, 100)) {
    const unsigned i = ++sent;
    CHECK_EQ(hypercall(kHcSendIpi, others, 0, 0, kVector), smp_count - 1);
    for (unsigned cpu = 1; cpu < smp_count; ++cpu) await(cpu, i);
  }
  CHECK_EQ(hypercall(kHcSendIpi, 1, 0, 1, kVector), 1);  // bit 0 of APIC IDs from 1 on
  await(1, sent + 1);
  CHECK_EQ(hypercall(kHcSendIpi, 1, 0, smp_count, kVector), 0);
  CHECK((long)hypercall(77, 0, 0, 0, 0) == -1000);
  smp_delay(300);
  CHECK_EQ(smp_cpus[0].interrupts[kVector], 0);
  for (unsigned cpu = 1; cpu < smp_count; ++cpu)
    CHECK_EQ(smp_cpus[cpu].interrupts[kVector], cpu == 1 ? sent + 1 : sent);
}

// What a paravirtual spin lock does: HLT without interrupts, until it is kicked.
static volatile unsigned turn;
static volatile bool ended;  // this turn is the last one
static void wait_kicked(unsigned cpu) {
  cli();
  bool last = false;
  for (unsigned i = 1; !last; ++i) {
    while (turn < i) __asm__ volatile("hlt" ::: "memory");
    last = ended;
    __atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST);
  }
  (void)cpu;
  sti();
}
static void kick(void) {
  section("kicks");
  turn = arrived = 0;
  ended = false;
  for (unsigned cpu = 1; cpu < smp_count; ++cpu) smp_post(cpu, wait_kicked);
  for (unsigned i = 1; !ended; ++i) {
    ended = !smp_more(i, 300);
    turn = i;
    fence();
    for (unsigned cpu = 1; cpu < smp_count; ++cpu) CHECK_EQ(hypercall(kHcKick, 0, cpu, 0, 0), 0);
    while (arrived != i * (smp_count - 1)) pause();
  }
  for (unsigned cpu = 1; cpu < smp_count; ++cpu) smp_wait(cpu);
}

// A processor that does not run has a mark; who finds it asks for a flush instead of sending an interrupt.
static struct steal {
  volatile uint64_t time;
  volatile uint32_t version, flags;
  volatile uint8_t preempted, pad[47];
} __attribute__((aligned(64))) steals[kMaxCpus];
static volatile uint64_t frames[2][512] __attribute__((aligned(4096)));
static volatile unsigned stale, expected;
static void enable_steal(unsigned cpu) { wrmsr(kMsrSteal, (reg)&steals[cpu] | 1); }
static void look(unsigned cpu) {
  (void)cpu;
  if (*(volatile uint64_t*)SMP_PAGES != expected) ++stale;
}
static void drop(unsigned cpu) {
  (void)cpu;
  invlpg((void*)SMP_PAGES);
}
static void flush(void) {
  section("TLB flushes of processors that sleep");
  smp_map_pages();
  frames[0][0] = 0;
  frames[1][0] = 1;
  smp_page_table[0] = (reg)frames[0] | 3;
  smp_run(smp_count, enable_steal);
  unsigned marked = 0;
  for (unsigned i = 0; smp_more(i, 200); ++i) {
    const unsigned cpu = 1 + i % (smp_count - 1);
    expected = i / (smp_count - 1) % 2;
    if (i % (smp_count - 1) == 0) {
      // Another frame; the sleepers are asked to flush, the others by interrupt.
      for (unsigned c = 1; c < smp_count; ++c)
        for (unsigned n = 0; n < 2000 && !(steals[c].preempted & 1); ++n) pause();
      smp_page_table[0] = (reg)frames[expected] | 3;
      fence();
      for (unsigned c = 1; c < smp_count; ++c) {
        uint8_t mark = 1;
        if (__atomic_compare_exchange_n(&steals[c].preempted, &mark, 3, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST) ||
            mark == 3) {
          ++marked;
        } else {
          smp_post(c, drop);
          smp_wait(c);
        }
      }
    }
    smp_post(cpu, look);
    smp_wait(cpu);
  }
  put_number("asked for", marked);
  CHECK(marked > 0);
  CHECK_EQ(stale, 0);
}

void guest_main(void) {
  smp_start();
  if (smp_count < 2) return skip("one processor");
  const struct cpuid signature = cpuid(0x40000000, 0);
  if (signature.b != 0x4b4d564b) return skip("not offered");
  const uint32_t features = cpuid(0x40000001, 0).a;
  const uint32_t all = kFeatureClock | kFeatureSteal | kFeatureEoi | kFeatureKick | kFeatureFlush | kFeatureSendIpi;
  CHECK_EQ(features & all, all);
  clock();
  eoi();
  send_ipi();
  kick();
  flush();
}
