// Interrupts between processors: order, wake-up from HLT, broadcasts, NMI, INIT and SIPI again (SDM 3A 8.4, 11.6).
#include "smp.h"

enum { kVector = 0x50, kPongVector = 0x51, kPings = 100, kWakes = 1000 };

static volatile unsigned message, received, wrong, stop;
static struct smp_barrier barrier;

// What was stored before the interrupt was sent is seen by its handler.
static void on_message(struct frame* frame) {
  if (message != received + 1) ++wrong;
  ++received;
  smp_count_interrupt(frame);
}

static void spin(unsigned cpu) {
  (void)cpu;
  while (!stop) pause();
}
static void halt(unsigned cpu) {
  (void)cpu;
  for (;;) {
    cli();
    if (stop) break;
    __asm__ volatile("sti; hlt" ::: "memory");
  }
  sti();
}

static void messages(void) {
  section("every interrupt arrives, after the stores before it");
  guest_handlers[kVector] = on_message;
  for (unsigned round = 0; round < 2; ++round) {
    for (unsigned cpu = 1; cpu < smp_count; ++cpu) {
      message = received = wrong = stop = 0;
      smp_post(cpu, round == 0 ? spin : halt);
      const uint64_t start = rdtsc();
      unsigned i = 0;
      while (smp_more(i, kWakes)) {
        ++i;
        message = i;
        smp_ipi(cpu, kVector);
        while (received < i) pause();
      }
      const uint64_t cycles = rdtsc() - start;
      stop = 1;
      smp_ipi(cpu, kPongVector);
      smp_wait(cpu);
      CHECK_EQ(wrong, 0);
      if (cpu == 1)
        put_number(round == 0 ? "cycles to a running processor and back:" : "cycles to a halted one:", cycles / i);
    }
  }
  guest_handlers[kVector] = smp_count_interrupt;
}

static void on_ping(struct frame* frame) {
  smp_count_interrupt(frame);
  if (smp_cpus[smp_self()].interrupts[kVector] < kPings) smp_ipi(smp_self() ^ 1, kVector);
}

static void wait_for_pings(unsigned cpu) {
  for (;;) {
    cli();
    if (smp_cpus[cpu].interrupts[kVector] >= kPings) break;
    __asm__ volatile("sti; hlt" ::: "memory");
  }
  sti();
}

static void ping_pong(void) {
  section("handlers that send to each other");
  guest_handlers[kVector] = on_ping;
  smp_cpus[0].interrupts[kVector] = smp_cpus[1].interrupts[kVector] = 0;
  smp_ipi(1, kVector);
  smp_post(1, wait_for_pings);
  // The last interrupt of one of the two is not answered.
  while (smp_cpus[1].interrupts[kVector] < kPings) pause();
  smp_wait(1);
  CHECK_EQ(smp_cpus[1].interrupts[kVector], kPings);
  CHECK(smp_cpus[0].interrupts[kVector] >= kPings - 1);
  guest_handlers[kVector] = smp_count_interrupt;
}

static void clear_counts(void) {
  for (unsigned cpu = 0; cpu < smp_count; ++cpu) smp_cpus[cpu].interrupts[kVector] = 0;
}
static void expect_counts(const char* what, uint32_t mask) {
  for (unsigned cpu = 0; cpu < smp_count; ++cpu) {
    const unsigned wanted = mask >> cpu & 1;
    const uint64_t end = rdtsc() + 20000000000ull;
    while (smp_cpus[cpu].interrupts[kVector] < wanted && rdtsc() < end) pause();
    check_equal(what, (int)cpu, smp_cpus[cpu].interrupts[kVector], wanted);
  }
  smp_delay(500);
  for (unsigned cpu = 0; cpu < smp_count; ++cpu)
    check_equal(what, (int)cpu, smp_cpus[cpu].interrupts[kVector], mask >> cpu & 1);
  clear_counts();
}

static void destinations(void) {
  section("destinations");
  const uint32_t all = (1u << smp_count) - 1;
  clear_counts();
  for (unsigned cpu = 0; cpu < smp_count; ++cpu) {
    smp_ipi(cpu, kVector);
    expect_counts("physical", 1u << cpu);
  }
  apic_command(0x44000 | kVector, 0);
  expect_counts("self", 1);
  apic_command(0x84000 | kVector, 0);
  expect_counts("all", all);
  apic_command(0xc4000 | kVector, 0);
  expect_counts("all but self", all & ~1u);
  smp_ipi(0xff, kVector);
  expect_counts("broadcast", all);
  smp_ipi(smp_count, kVector);
  expect_counts("nobody", 0);
}

static void set_logical_id(unsigned cpu) {
  apic_write(0xe0, 0xffffffff);
  apic_write(0xd0, 1u << (24 + cpu));
}

static void logical(void) {
  section("logical destinations, lowest priority");
  if (smp_count > 8) return skip("more than 8 processors");
  smp_run(smp_count, set_logical_id);
  apic_command(0x4800 | kVector, 3);
  expect_counts("logical", 3);
  apic_command(0x4800 | kVector, 2);
  expect_counts("logical", 2);
  unsigned total = 0;
  for (unsigned i = 0; i < 20; ++i) {
    apic_command(0x4900 | kVector, 3);
    const uint64_t end = rdtsc() + 20000000000ull;
    do total = smp_cpus[0].interrupts[kVector] + smp_cpus[1].interrupts[kVector];
    while (total < i + 1 && rdtsc() < end);
  }
  smp_delay(500);
  CHECK_EQ(smp_cpus[0].interrupts[kVector] + smp_cpus[1].interrupts[kVector], 20);
  clear_counts();
}

static volatile unsigned nmis[kMaxCpus], nested;
static void on_nmi(struct frame* frame) {
  (void)frame;
  const unsigned cpu = smp_self();
  const unsigned before = nmis[cpu];
  for (unsigned i = 0; i < 50; ++i) pause();
  if (nmis[cpu] != before) ++nested;
  ++nmis[cpu];
}

static void deaf(unsigned cpu) {  // NMI ends HLT even without IF
  cli();
  const unsigned before = nmis[cpu];
  received = 1;
  if (nmis[cpu] == before) __asm__ volatile("hlt" ::: "memory");
  sti();
}

static void nmi(void) {
  section("NMI");
  guest_handlers[kNMI] = on_nmi;
  for (unsigned cpu = 1; cpu < smp_count; ++cpu) {
    received = 0;
    smp_post(cpu, deaf);
    while (received == 0) pause();
    smp_delay(200);
    smp_ipi(cpu, kVector);  // does not end it
    smp_delay(200);
    CHECK(smp_cpus[cpu].work != 0);
    CHECK_EQ(smp_cpus[cpu].interrupts[kVector], 0);
    smp_nmi(cpu);
    smp_wait(cpu);
    CHECK_EQ(nmis[cpu], 1);
    while (smp_cpus[cpu].interrupts[kVector] == 0) pause();
    // To a running one, many: some may fall together, none nests.
    stop = 0;
    smp_post(cpu, spin);
    unsigned sent = 0;
    for (; smp_more(sent, 100); ++sent) {
      const unsigned seen = nmis[cpu];
      smp_nmi(cpu);
      smp_nmi(cpu);
      while (nmis[cpu] == seen) pause();
    }
    stop = 1;
    smp_wait(cpu);
    CHECK(nmis[cpu] >= sent + 1);
    CHECK_EQ(nested, 0);
  }
  clear_counts();
}

static volatile unsigned beats[kMaxCpus];
static void beat(unsigned cpu) {
  for (;;) ++beats[cpu];
}
static void beat_deaf(unsigned cpu) {
  cli();
  for (;;) ++beats[cpu];
}
static void nothing(unsigned cpu) { ++beats[cpu]; }

static void init_again(void) {
  section("INIT stops, SIPI starts again");
  for (unsigned round = 0; round < 4; ++round) {
    const unsigned cpu = 1 + round % (smp_count - 1);
    const unsigned starts = smp_cpus[cpu].starts;
    smp_post(cpu, round % 2 ? beat : beat_deaf);
    const unsigned before = beats[cpu];
    while (beats[cpu] < before + 10) pause();
    smp_sipi(cpu);  // ignored by a processor that runs
    smp_delay(500);
    CHECK_EQ(smp_cpus[cpu].starts, starts);
    smp_init(cpu);
    smp_delay(20000);
    unsigned now = beats[cpu];
    for (unsigned tries = 0; tries < 100 && now != beats[cpu]; ++tries) {
      now = beats[cpu];
      smp_delay(20000);
    }
    CHECK_EQ(beats[cpu], now);
    smp_ipi(cpu, kVector);  // it waits for a SIPI and nothing else
    smp_nmi(cpu);
    const unsigned nmis_before = nmis[cpu];
    smp_delay(2000);
    CHECK_EQ(beats[cpu], now);
    CHECK_EQ(smp_cpus[cpu].starts, starts);
    smp_sipi(cpu);
    CHECK(smp_wait_started(cpu, starts + 1));
    smp_sipi(cpu);  // the second one does nothing
    smp_post(cpu, nothing);
    smp_wait(cpu);
    CHECK_EQ(smp_cpus[cpu].starts, starts + 1);
    CHECK(nmis[cpu] <= nmis_before + 1);
    smp_cpus[cpu].interrupts[kVector] = 0;
  }
}

// All send to all at once; every processor takes what is meant for it.
static volatile unsigned acknowledged[kMaxCpus][16];
static void on_crowd(struct frame* frame) {
  const unsigned cpu = smp_self();
  acknowledged[cpu][0] = acknowledged[cpu][0] + 1;
  smp_count_interrupt(frame);
}
static void crowd(unsigned cpu) {
  const unsigned next = (cpu + 1) % smp_count;
  smp_barrier(&barrier, smp_count);
  for (unsigned i = 1; i <= kPings; ++i) {
    smp_ipi(next, kVector);
    while (acknowledged[next][0] < i) pause();
  }
  smp_barrier(&barrier, smp_count);
}

void guest_main(void) {
  smp_start();
  if (smp_count < 2) return skip("one processor");
  messages();
  ping_pong();
  destinations();
  logical();
  nmi();
  section("all at once");
  guest_handlers[kVector] = on_crowd;
  smp_run(smp_count, crowd);
  for (unsigned cpu = 0; cpu < smp_count; ++cpu) CHECK_EQ(acknowledged[cpu][0], kPings);
  guest_handlers[kVector] = smp_count_interrupt;
  clear_counts();
  init_again();
  messages();
}
