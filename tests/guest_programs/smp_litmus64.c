// Litmus tests of x86's memory model (SDM 3A 8.2; Owens, Sarkar, Sewell: "A better x86 memory model: x86-TSO"):
// outcomes that it forbids must not appear; those that it allows are counted and printed.
#include "smp.h"

enum { kSlots = 512, kRounds = 12 };

struct slot {
  volatile uint64_t value;
  uint64_t pad[7];
} __attribute__((aligned(64)));
static struct slot x[kSlots], y[kSlots];
static volatile uint64_t seen[4][kSlots][2];  // registers of each processor
static volatile unsigned progress[4][16] __attribute__((aligned(64)));
static struct smp_barrier barrier;

struct test {
  const char* name;
  unsigned cpus;
  void (*step)(unsigned cpu, unsigned i);
  bool (*outcome)(unsigned i);
  bool forbidden;
};
static const struct test* test;

static void put(volatile uint64_t* at, uint64_t value) {
  __asm__ volatile("movq %1, %0" : "=m"(*at) : "r"(value) : "memory");
}
static uint64_t get(volatile uint64_t* at) {
  uint64_t value;
  __asm__ volatile("movq %1, %0" : "=r"(value) : "m"(*at) : "memory");
  return value;
}
static uint64_t exchange(volatile uint64_t* at, uint64_t value) {
  __asm__ volatile("xchgq %1, %0" : "+m"(*at), "+r"(value)::"memory");
  return value;
}
#define R(cpu, n) seen[cpu][i][n]

static void sb(unsigned cpu, unsigned i) {
  put(cpu == 0 ? &x[i].value : &y[i].value, 1);
  R(cpu, 0) = get(cpu == 0 ? &y[i].value : &x[i].value);
}
static void sb_mfence(unsigned cpu, unsigned i) {
  put(cpu == 0 ? &x[i].value : &y[i].value, 1);
  fence();
  R(cpu, 0) = get(cpu == 0 ? &y[i].value : &x[i].value);
}
static void sb_xchg(unsigned cpu, unsigned i) {
  exchange(cpu == 0 ? &x[i].value : &y[i].value, 1);
  R(cpu, 0) = get(cpu == 0 ? &y[i].value : &x[i].value);
}
static void sb_locked(unsigned cpu, unsigned i) {  // what kernels use as a barrier
  put(cpu == 0 ? &x[i].value : &y[i].value, 1);
  __asm__ volatile("lock addl $0, -4(%%rsp)" ::: "memory", "cc");
  R(cpu, 0) = get(cpu == 0 ? &y[i].value : &x[i].value);
}
static bool both_zero(unsigned i) { return R(0, 0) == 0 && R(1, 0) == 0; }

static void mp(unsigned cpu, unsigned i) {
  if (cpu == 0) {
    put(&x[i].value, 1);
    put(&y[i].value, 1);
  } else {
    R(1, 0) = get(&y[i].value);
    R(1, 1) = get(&x[i].value);
  }
}
static bool mp_seen(unsigned i) { return R(1, 0) == 1 && R(1, 1) == 0; }

static void lb(unsigned cpu, unsigned i) {
  R(cpu, 0) = get(cpu == 0 ? &x[i].value : &y[i].value);
  put(cpu == 0 ? &y[i].value : &x[i].value, 1);
}
static bool both_one(unsigned i) { return R(0, 0) == 1 && R(1, 0) == 1; }

static void two_writes(unsigned cpu, unsigned i) {  // 2+2W
  put(cpu == 0 ? &x[i].value : &y[i].value, 1);
  put(cpu == 0 ? &y[i].value : &x[i].value, 2);
}
static bool first_writes_win(unsigned i) { return x[i].value == 1 && y[i].value == 1; }

static void s(unsigned cpu, unsigned i) {
  if (cpu == 0) {
    put(&x[i].value, 2);
    put(&y[i].value, 1);
  } else {
    R(1, 0) = get(&y[i].value);
    put(&x[i].value, 1);
  }
}
static bool s_seen(unsigned i) { return R(1, 0) == 1 && x[i].value == 2; }

static void r_mfence(unsigned cpu, unsigned i) {
  if (cpu == 0) {
    put(&x[i].value, 1);
    put(&y[i].value, 1);
  } else {
    put(&y[i].value, 2);
    fence();
    R(1, 0) = get(&x[i].value);
  }
}
static bool r_seen(unsigned i) { return y[i].value == 2 && R(1, 0) == 0; }

static void corr(unsigned cpu, unsigned i) {
  if (cpu == 0) {
    put(&x[i].value, 1);
  } else {
    R(1, 0) = get(&x[i].value);
    R(1, 1) = get(&x[i].value);
  }
}
static bool corr_seen(unsigned i) { return R(1, 0) == 1 && R(1, 1) == 0; }

static void n5(unsigned cpu, unsigned i) {  // each sees the other's write after its own
  put(&x[i].value, cpu + 1);
  R(cpu, 0) = get(&x[i].value);
}
static bool n5_seen(unsigned i) { return R(0, 0) == 2 && R(1, 0) == 1; }

static void forwarding(unsigned cpu, unsigned i) {  // SB where each reads its own write first: still allowed
  volatile uint64_t* own = cpu == 0 ? &x[i].value : &y[i].value;
  put(own, 1);
  R(cpu, 1) = get(own);
  R(cpu, 0) = get(cpu == 0 ? &y[i].value : &x[i].value);
}
static bool own_write_lost(unsigned i) { return R(0, 1) != 1 || R(1, 1) != 1; }

static void wrc(unsigned cpu, unsigned i) {
  if (cpu == 0) {
    put(&x[i].value, 1);
  } else if (cpu == 1) {
    R(1, 0) = get(&x[i].value);
    put(&y[i].value, 1);
  } else {
    R(2, 0) = get(&y[i].value);
    R(2, 1) = get(&x[i].value);
  }
}
static bool wrc_seen(unsigned i) { return R(1, 0) == 1 && R(2, 0) == 1 && R(2, 1) == 0; }

static void iriw(unsigned cpu, unsigned i) {
  if (cpu < 2) return put(cpu == 0 ? &x[i].value : &y[i].value, 1);
  R(cpu, 0) = get(cpu == 2 ? &x[i].value : &y[i].value);
  R(cpu, 1) = get(cpu == 2 ? &y[i].value : &x[i].value);
}
static bool iriw_seen(unsigned i) { return R(2, 0) == 1 && R(2, 1) == 0 && R(3, 0) == 1 && R(3, 1) == 0; }

// A string instruction's stores are seen before the store that follows it (SDM 3A 8.2.4.2).
static void mp_stos(unsigned cpu, unsigned i) {
  if (cpu == 0) {
    volatile uint64_t* at = &x[i].value;
    reg count = 8;
    __asm__ volatile("rep stosq" : "+D"(at), "+c"(count) : "a"(1ul) : "memory");
    put(&y[i].value, 1);
  } else {
    R(1, 0) = get(&y[i].value);
    R(1, 1) = get(&x[i].pad[6]);
  }
}

static const struct test tests[] = {
    {"SB", 2, sb, both_zero, false},
    {"SB+mfence", 2, sb_mfence, both_zero, true},
    {"SB+xchg", 2, sb_xchg, both_zero, true},
    {"SB+lock", 2, sb_locked, both_zero, true},
    {"SB+forwarding", 2, forwarding, both_zero, false},
    {"SB+forwarding, own write", 2, forwarding, own_write_lost, true},
    {"MP", 2, mp, mp_seen, true},
    {"MP+stos", 2, mp_stos, mp_seen, true},
    {"LB", 2, lb, both_one, true},
    {"2+2W", 2, two_writes, first_writes_win, true},
    {"S", 2, s, s_seen, true},
    {"R+mfence", 2, r_mfence, r_seen, true},
    {"CoRR", 2, corr, corr_seen, true},
    {"n5", 2, n5, n5_seen, true},
    {"WRC", 3, wrc, wrc_seen, true},
    {"IRIW", 4, iriw, iriw_seen, true},
};

// Keeps the processors near each other, without waiting for one that the host does not run; then shifts them a little.
static void keep_pace(unsigned cpu, unsigned i, uint32_t* random) {
  progress[cpu][0] = i;
  for (unsigned other = 0; other < test->cpus; ++other)
    for (unsigned spins = 0; spins < 100 && progress[other][0] < i; ++spins) compiler_barrier();
  for (unsigned shift = smp_random(random) % 16; shift > 0; --shift) compiler_barrier();
}

static void one_round(unsigned cpu) {
  uint32_t random = cpu * 77 + 1;
  smp_barrier(&barrier, test->cpus);
  for (unsigned i = 0; i < kSlots; ++i) {
    // Both lines to where a store to one waits and a load of the other does not.
    (void)get(cpu % 2 == 0 ? &y[i].value : &x[i].value);
    keep_pace(cpu, i + 1, &random);
    test->step(cpu, i);
  }
}

static void litmus(void) {
  for (unsigned t = 0; t < sizeof(tests) / sizeof(tests[0]); ++t) {
    test = &tests[t];
    if (test->cpus > smp_count) {
      skip(test->name);
      continue;
    }
    unsigned count = 0;
    for (unsigned round = 0; smp_more(round, kRounds); ++round) {
      memset(x, 0, sizeof(x));
      memset(y, 0, sizeof(y));
      for (unsigned cpu = 0; cpu < 4; ++cpu) progress[cpu][0] = 0;
      fence();
      smp_run(test->cpus, one_round);
      for (unsigned i = 0; i < kSlots; ++i) count += test->outcome(i);
    }
    put_text(test->forbidden ? "  forbidden " : "  allowed ");
    put_number(test->name, count);
    if (test->forbidden) CHECK_EQ(count, 0);
  }
}

// Accesses within a cache line are indivisible (SDM 3A 8.1.1), whatever their alignment.
enum { kTears = 20000 };
static uint8_t line[128] __attribute__((aligned(64)));
static volatile unsigned tear_offset, torn, writing;
static void tear(unsigned cpu) {
  volatile uint64_t* at = (volatile uint64_t*)(line + tear_offset);
  smp_barrier(&barrier, 2);
  if (cpu == 0) {
    for (unsigned i = 0; i < kTears; ++i) put(at, i % 2 ? ~0ull : 0);
    writing = 0;
  } else {
    while (writing) {
      const uint64_t value = get(at);
      if (value != 0 && value != ~0ull) ++torn;
    }
  }
}

void guest_main(void) {
  smp_start();
  if (smp_count < 2) return skip("one processor");
  section("litmus tests");
  litmus();
  section("indivisible accesses");
  static const unsigned offsets[] = {0, 8, 3, 29, 56};
  for (unsigned i = 0; i < 5; ++i) {
    tear_offset = offsets[i];
    *(volatile uint64_t*)(line + tear_offset) = 0;
    writing = 1;
    smp_run(2, tear);
    CHECK_EQ(torn, 0);
  }
}
