// Locked instructions from all processors at once: nothing is lost, wherever the operand lies (SDM 3A 8.1.2: locked
// accesses are atomic across cache lines and pages too).
#include "smp.h"

static uint8_t area[3 * 4096] __attribute__((aligned(4096)));
static struct smp_barrier barrier;
static uint8_t* operand;
static unsigned rounds;
static volatile uint64_t gathered[kMaxCpus][8];

struct operation {
  const char* name;
  unsigned size, alignment;
  void (*step)(unsigned cpu, void* at, unsigned i);
  uint64_t (*wanted)(void);
};
static const struct operation* operation;

static uint64_t one_each(void) { return (uint64_t)smp_count * rounds; }
static uint64_t none(void) { return 0; }

#define STEP(name, text, type)                                                 \
  static void name(unsigned cpu, void* at, unsigned i) {                       \
    (void)cpu;                                                                 \
    (void)i;                                                                   \
    __asm__ volatile(text : "+m"(*(type*)at) : "r"((type)1) : "memory", "cc"); \
  }
STEP(inc8, "lock incb %0", uint8_t)
STEP(add16, "lock addw %1, %0", uint16_t)
STEP(add32, "lock addl %1, %0", uint32_t)
STEP(sub64, "lock subq $-1, %0", uint64_t)
STEP(inc64, "lock incq %0", uint64_t)
STEP(not64, "lock notq %0; lock notq %0", uint64_t)
STEP(neg32, "lock negl %0; lock negl %0", uint32_t)

static void xadd64(unsigned cpu, void* at, unsigned i) {
  uint64_t value = 1;
  __asm__ volatile("lock xaddq %1, %0" : "+m"(*(uint64_t*)at), "+r"(value)::"memory", "cc");
  (void)i;
  gathered[cpu][0] += value;  // every value once
}
static void adc64(unsigned cpu, void* at, unsigned i) {
  (void)cpu;
  (void)i;
  __asm__ volatile("stc; lock adcq $0, %0" : "+m"(*(uint64_t*)at)::"memory", "cc");
}
static void cmpxchg32(unsigned cpu, void* at, unsigned i) {
  (void)cpu;
  (void)i;
  uint32_t old = *(volatile uint32_t*)at;
  for (bool done = false; !done;)
    __asm__ volatile("lock cmpxchgl %3, %1" : "+a"(old), "+m"(*(uint32_t*)at), "=@ccz"(done) : "r"(old + 1) : "memory");
}
static void cmpxchg64(unsigned cpu, void* at, unsigned i) {
  (void)cpu;
  (void)i;
  uint64_t old = *(volatile uint64_t*)at;
  for (bool done = false; !done;)
    __asm__ volatile("lock cmpxchgq %3, %1" : "+a"(old), "+m"(*(uint64_t*)at), "=@ccz"(done) : "r"(old + 1) : "memory");
}
static void cmpxchg8b(unsigned cpu, void* at, unsigned i) {
  (void)cpu;
  (void)i;
  uint32_t low = ((volatile uint32_t*)at)[0], high = ((volatile uint32_t*)at)[1];
  for (bool done = false; !done;) {
    const uint64_t next = ((uint64_t)high << 32 | low) + 1;
    __asm__ volatile("lock cmpxchg8b %2"
                     : "+a"(low), "+d"(high), "+m"(*(uint64_t*)at), "=@ccz"(done)
                     : "b"((uint32_t)next), "c"((uint32_t)(next >> 32))
                     : "memory");
  }
}
static void cmpxchg16b(unsigned cpu, void* at, unsigned i) {  // the upper half counts down
  (void)cpu;
  (void)i;
  uint64_t low = ((volatile uint64_t*)at)[0], high = ((volatile uint64_t*)at)[1];
  for (bool done = false; !done;)
    __asm__ volatile("lock cmpxchg16b %2"
                     : "+a"(low), "+d"(high), "+m"(*(unsigned __int128*)at), "=@ccz"(done)
                     : "b"(low + 1), "c"(high - 1)
                     : "memory");
}
// Bit locks and exchange locks around a plain increment: the first 4 bytes are the lock, gathered[0][1] the counter.
static volatile uint64_t guarded;
static void bts_lock(unsigned cpu, void* at, unsigned i) {
  (void)cpu;
  (void)i;
  for (bool taken = true; taken;) {
    __asm__ volatile("lock btsl $7, %0" : "+m"(*(uint32_t*)at), "=@ccc"(taken)::"memory");
    if (taken) pause();
  }
  ++guarded;
  __asm__ volatile("lock btrl $7, %0" : "+m"(*(uint32_t*)at)::"memory", "cc");
}
static void xchg_lock(unsigned cpu, void* at, unsigned i) {
  (void)cpu;
  (void)i;
  for (uint32_t value = 1; value != 0;) {
    __asm__ volatile("xchgl %1, %0" : "+m"(*(uint32_t*)at), "+r"(value)::"memory");  // locked without a prefix
    if (value != 0) pause();
  }
  ++guarded;
  uint32_t value = 0;
  __asm__ volatile("xchgl %1, %0" : "+m"(*(uint32_t*)at), "+r"(value)::"memory");
}
// Each processor has a bit of its own: OR, AND, XOR, BTC leave the others' alone.
static void own_bit(unsigned cpu, void* at, unsigned i) {
  const uint32_t bit = 1u << cpu;
  const uint32_t mine = *(volatile uint32_t*)at & bit;
  switch (i % 4) {
    case 0:
      __asm__ volatile("lock orl %1, %0" : "+m"(*(uint32_t*)at) : "r"(bit) : "memory", "cc");
      break;
    case 1:
      __asm__ volatile("lock andl %1, %0" : "+m"(*(uint32_t*)at) : "r"(~bit) : "memory", "cc");
      break;
    case 2:
      __asm__ volatile("lock xorl %1, %0" : "+m"(*(uint32_t*)at) : "r"(bit) : "memory", "cc");
      break;
    default:
      __asm__ volatile("lock btcl %1, %0" : "+m"(*(uint32_t*)at) : "r"(cpu) : "memory", "cc");
  }
  // Before each step it is what the step before left.
  gathered[cpu][1] += (mine != 0) != (i % 4 == 1 || i % 4 == 3);
}

static const struct operation operations[] = {
    {"inc8", 1, 1, inc8, one_each},
    {"add16", 2, 1, add16, one_each},
    {"add32", 4, 1, add32, one_each},
    {"sub64", 8, 1, sub64, one_each},
    {"inc64", 8, 1, inc64, one_each},
    {"not64", 8, 1, not64, none},
    {"neg32", 4, 1, neg32, none},
    {"xadd64", 8, 1, xadd64, one_each},
    {"adc64", 8, 1, adc64, one_each},
    {"cmpxchg32", 4, 1, cmpxchg32, one_each},
    {"cmpxchg64", 8, 1, cmpxchg64, one_each},
    {"cmpxchg8b", 8, 1, cmpxchg8b, one_each},
    {"cmpxchg16b", 8, 16, cmpxchg16b, one_each},
    {"bts lock", 4, 1, bts_lock, none},
    {"xchg lock", 4, 1, xchg_lock, none},
    {"own bits", 4, 1, own_bit, none},
};

static void work(unsigned cpu) {
  smp_barrier(&barrier, smp_count);
  for (unsigned i = 0; i < rounds; ++i) operation->step(cpu, operand, i);
}

static void run_at(const char* where, unsigned offset, unsigned count) {
  section(where);
  for (unsigned o = 0; o < sizeof(operations) / sizeof(operations[0]); ++o) {
    operation = &operations[o];
    if (offset % operation->alignment != 0) continue;
    operand = area + offset;
    rounds = count;
    guarded = 0;
    memset((void*)gathered, 0, sizeof(gathered));
    memset(area, 0, sizeof(area));
    fence();
    smp_run(smp_count, work);
    uint64_t value = 0, wanted = operation->wanted();
    memcpy(&value, operand, operation->size);
    if (operation->size < 8) wanted &= (1ull << 8 * operation->size) - 1;
    check_equal(operation->name, (int)o, value, wanted);
    if (operation->step == cmpxchg16b) CHECK_EQ(((uint64_t*)operand)[1], -wanted);
    if (operation->step == bts_lock || operation->step == xchg_lock) CHECK_EQ(guarded, one_each());
    uint64_t sum = 0, wrong = 0;
    for (unsigned cpu = 0; cpu < smp_count; ++cpu) sum += gathered[cpu][0], wrong += gathered[cpu][1];
    if (operation->step == xadd64) CHECK_EQ(sum, one_each() * (one_each() - 1) / 2);
    CHECK_EQ(wrong, 0);
    // Nothing beside the operand.
    CHECK_EQ(area[offset - 1], 0);
    if (operation->step != cmpxchg16b) CHECK_EQ(area[offset + operation->size], 0);
  }
}

// Operands that overlap in part: one across two pages, one in the second page only.
static void overlap(unsigned cpu) {
  smp_barrier(&barrier, smp_count);
  for (unsigned i = 0; i < rounds; ++i) {
    if (cpu % 2 == 0)
      __asm__ volatile("lock addq %1, %0" : "+m"(*(uint64_t*)(area + 4092)) : "r"(1ull << 32 | 1) : "memory", "cc");
    else
      __asm__ volatile("lock incl %0" : "+m"(*(uint32_t*)(area + 4096))::"memory", "cc");
  }
}

// Plain stores into a line that others lock: neither is lost.
static volatile unsigned lost;
static void beside(unsigned cpu) {
  volatile uint8_t* own = area + 256 + 8 + cpu;
  smp_barrier(&barrier, smp_count);
  for (unsigned i = 0; i < rounds; ++i) {
    *own = (uint8_t)i;
    __asm__ volatile("lock incq %0" : "+m"(*(uint64_t*)(area + 256))::"memory", "cc");
    if (*own != (uint8_t)i) ++lost;
  }
}

void guest_main(void) {
  smp_start();
  run_at("aligned", 128, 2000);
  run_at("unaligned within a line", 131, 1000);
  run_at("across cache lines", 4096 + 63, 150);
  run_at("across pages", 4095, 150);
  section("overlapping operands");
  memset(area, 0, sizeof(area));
  rounds = 200;
  smp_run(smp_count, overlap);
  const unsigned wide = (smp_count + 1) / 2;
  CHECK_EQ(*(uint32_t*)(area + 4092), wide * rounds);
  CHECK_EQ(*(uint32_t*)(area + 4096), smp_count * rounds);
  section("stores beside a locked counter");
  memset(area, 0, sizeof(area));
  rounds = 3000;
  smp_run(smp_count, beside);
  CHECK_EQ(*(uint64_t*)(area + 256), one_each());
  CHECK_EQ(lost, 0);
}
