// One processor changes page tables which others use: after the shoot-down (INVLPG in an interrupt) nobody uses what
// was before it, and nothing is lost of the accessed and dirty bits (SDM 3A 4.8, 4.10.5).
#include "smp.h"

enum { kPresent = 1, kWritable = 2, kAccessed = 1 << 5, kDirty = 1 << 6, kGlobal = 1 << 8 };
#define PTE (smp_page_table[0])
#define PAGE ((volatile uint64_t*)SMP_PAGES)

static volatile uint64_t frame_a[512] __attribute__((aligned(4096))), frame_b[512] __attribute__((aligned(4096)));
static volatile unsigned stop, faults_seen[kMaxCpus], wrong;
static struct smp_barrier barrier;

static uint64_t map(volatile uint64_t* frame, uint64_t bits) { return (reg)frame | kPresent | bits; }
static void drop_page(void) { invlpg(PAGE); }
static void drop_all(void) { write_cr3(read_cr3()); }
static void drop_global(void) {
  write_cr4(read_cr4() & ~(1ul << 7));
  write_cr4(read_cr4() | 1ul << 7);
}

static uint64_t shoot_down(uint64_t entry, void (*drop)(void)) {
  const uint64_t old = __atomic_exchange_n(&PTE, entry, __ATOMIC_SEQ_CST);
  drop();
  smp_call_others(drop);
  return old;
}

static uint64_t sum(volatile uint64_t* frame) {
  uint64_t total = 0;
  for (unsigned cpu = 1; cpu < smp_count; ++cpu) total += frame[cpu];
  return total;
}

static void write_on(unsigned cpu) {
  for (uint64_t i = 1; !stop; ++i)
    if (!smp_try_store(&PAGE[cpu], i)) ++faults_seen[cpu];
}

// The same as one block of code that loops.
static void write_tight(unsigned cpu) {
  uint64_t value = 1;
  while (!stop) {
    bool ended;
    __asm__ volatile(
        "leaq 2f(%%rip), %%rax\n movq %%rax, %%gs:%c4\n movb $0, %1\n"
        "1: movq %0, (%2)\n incq %0\n cmpl $0, (%3)\n je 1b\n"
        "movb $1, %1\n 2: movq $0, %%gs:%c4"
        : "+&r"(value), "=&r"(ended)
        : "r"(&PAGE[cpu]), "r"(&stop), "i"(offsetof(struct smp_cpu, recover))
        : "rax", "memory", "cc");
    if (!ended) ++faults_seen[cpu];
  }
}
static void write_string(unsigned cpu) {
  uint64_t value = 1;
  while (!stop) {
    volatile uint64_t* at = &PAGE[cpu];
    reg count = 1;
    bool ended;
    __asm__ volatile(
        "leaq 2f(%%rip), %%rdx\n movq %%rdx, %%gs:%c4\n movb $0, %1\n rep stosq\n"
        "movb $1, %1\n 2: movq $0, %%gs:%c4"
        : "+&D"(at), "=&r"(ended), "+&c"(count)
        : "a"(value), "i"(offsetof(struct smp_cpu, recover))
        : "rdx", "memory", "cc");
    ++value;
    if (!ended) ++faults_seen[cpu];
  }
}

static void start(void (*function)(unsigned)) {
  stop = 0;
  for (unsigned cpu = 1; cpu < smp_count; ++cpu) {
    faults_seen[cpu] = 0;
    smp_post(cpu, function);
  }
}
static void finish(void) {
  stop = 1;
  for (unsigned cpu = 1; cpu < smp_count; ++cpu) smp_wait(cpu);
}

static void await_change(volatile uint64_t* frame) {
  for (unsigned cpu = 1; cpu < smp_count; ++cpu) {
    const uint64_t before = frame[cpu];
    while (frame[cpu] == before) pause();
  }
}
static void await_fault(void) {
  for (unsigned cpu = 1; cpu < smp_count; ++cpu) {
    const unsigned before = faults_seen[cpu];
    while (faults_seen[cpu] == before) pause();
  }
}

static void writers(const char* name, void (*write)(unsigned), void (*drop)(void), uint64_t extra, unsigned rounds) {
  section(name);
  shoot_down(map(frame_a, kWritable | extra), drop);
  start(write);
  for (unsigned i = 0; smp_more(i, rounds); ++i) {
    await_change(frame_a);
    // Unmapped, or write-protected.
    shoot_down(i % 2 ? map(frame_a, extra) : 0, drop);
    const uint64_t before = sum(frame_a);
    await_fault();
    smp_delay(20);
    CHECK_EQ(sum(frame_a), before);
    // To another frame and back.
    shoot_down(map(frame_b, kWritable | extra), drop);
    const uint64_t still = sum(frame_a);
    await_change(frame_b);
    CHECK_EQ(sum(frame_a), still);
    CHECK_EQ(still, before);
    shoot_down(map(frame_a, kWritable | extra), drop);
    const uint64_t rest = sum(frame_b);
    await_change(frame_a);
    CHECK_EQ(sum(frame_b), rest);
  }
  finish();
  shoot_down(0, drop_global);
}

// The dirty bit is cleared while others write: a page that changes after the shoot-down is dirty.
static void dirty(void) {
  section("dirty bits");
  shoot_down(map(frame_a, kWritable), drop_page);
  start(write_on);
  for (unsigned i = 0; smp_more(i, 60); ++i) {
    await_change(frame_a);
    CHECK_EQ(PTE & (kAccessed | kDirty), kAccessed | kDirty);
    __atomic_and_fetch(&PTE, ~(uint64_t)(kDirty | kAccessed), __ATOMIC_SEQ_CST);
    drop_page();
    smp_call_others(drop_page);
    await_change(frame_a);
    CHECK_EQ(PTE, map(frame_a, kWritable | kAccessed | kDirty));
  }
  finish();
}

// An entry taken away with its dirty bit clear: the page was not written and will not be, although others have read it
// and were about to write (what kernels rely on when they free a clean page).
static volatile unsigned go, ready;
static void read_then_write(unsigned cpu) {
  uint32_t random = cpu;
  for (unsigned round = 1; !stop; ++round) {
    while (go < round && !stop) pause();
    if (stop) break;
    uint64_t value;
    smp_try_load(&PAGE[cpu], &value);
    __atomic_add_fetch(&ready, 1, __ATOMIC_SEQ_CST);
    for (unsigned n = smp_random(&random) % 64; n > 0; --n) pause();
    smp_try_store(&PAGE[cpu], round);
    smp_barrier(&barrier, smp_count);
  }
}
static void clean_page_taken(void) {
  section("a clean page taken away");
  uint32_t random = 4711;
  unsigned clean = 0;
  shoot_down(0, drop_page);
  go = 0;
  start(read_then_write);
  for (unsigned round = 1; smp_more(round - 1, 300); ++round) {
    memset((void*)frame_a, 0, 4096);
    PTE = map(frame_a, kWritable);
    ready = 0;
    go = round;
    while (ready != smp_count - 1) compiler_barrier();
    for (unsigned n = smp_random(&random) % 64; n > 0; --n) pause();
    const uint64_t old = shoot_down(0, drop_page);
    const uint64_t now = sum(frame_a);
    if (!(old & kDirty)) {
      ++clean;
      if (now != 0) ++wrong;
    }
    smp_barrier(&barrier, smp_count);
    if (sum(frame_a) != now) ++wrong;
  }
  finish();
  put_number("found clean", clean);
  CHECK_EQ(wrong, 0);
}

// Readers of one frame or the other: after the shoot-down only of the new one.
static volatile unsigned epoch;
static void read_on(unsigned cpu) {
  (void)cpu;
  while (!stop) {
    const unsigned before = epoch;  // even: quiet
    compiler_barrier();
    const uint64_t value = PAGE[511];
    compiler_barrier();
    if (before % 2 == 0 && epoch == before && value != before / 2 % 2) __atomic_add_fetch(&wrong, 1, __ATOMIC_SEQ_CST);
  }
}
static void readers(void) {
  section("readers");
  frame_a[511] = 0;
  frame_b[511] = 1;
  epoch = 0;
  shoot_down(map(frame_a, 0), drop_page);
  start(read_on);
  for (unsigned i = 1; smp_more(i - 1, 300); ++i) {
    ++epoch;
    shoot_down(map(i % 2 ? frame_b : frame_a, 0), i % 3 ? drop_page : drop_all);
    ++epoch;
    for (unsigned n = 0; n < 30; ++n) pause();
  }
  finish();
  CHECK_EQ(wrong, 0);
}

// All processors set accessed and dirty bits of the same tables at once, each for pages of its own.
enum { kOwn = 500 };
static void touch(unsigned cpu) {
  smp_barrier(&barrier, smp_count);
  for (unsigned i = cpu; i < kOwn; i += smp_count) {
    *(volatile uint64_t*)(SMP_PAGES + (1 + i) * 4096ull + 8 * cpu) = 1;
  }
}
static void all_at_once(void) {
  section("accessed and dirty bits of one table");
  for (unsigned round = 0; round < 5; ++round) {
    for (unsigned i = 1; i < 512; ++i) smp_page_table[i] = map(i % 2 ? frame_a : frame_b, kWritable);
    drop_all();
    smp_call_others(drop_all);
    smp_run(smp_count, touch);
    unsigned set = 0;
    for (unsigned i = 1; i < 512; ++i) set += (smp_page_table[i] & (kAccessed | kDirty)) == (kAccessed | kDirty);
    CHECK_EQ(set, kOwn);
  }
}

void guest_main(void) {
  smp_start();
  if (smp_count < 2) return skip("one processor");
  smp_map_pages();
  writers("writers, by INVLPG", write_on, drop_page, 0, 40);
  writers("writers in one block", write_tight, drop_page, 0, 40);
  writers("writers by string instructions", write_string, drop_page, 0, 20);
  writers("writers, by CR3", write_on, drop_all, 0, 10);
  drop_global();
  smp_call_others(drop_global);
  writers("writers, a global page by CR4.PGE", write_tight, drop_global, kGlobal, 10);
  writers("writers, a global page by INVLPG", write_tight, drop_page, kGlobal, 10);
  dirty();
  clean_page_taken();
  readers();
  all_at_once();
}
