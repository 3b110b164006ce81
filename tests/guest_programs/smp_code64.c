// One processor changes code that others run or have run (SDM 3A 8.1.3, 11.6; AMD APM 2 7.6.1): with serialisation they
// run the new code; without it, the old one or the new one, and in the end the new one.
#include "smp.h"

static uint8_t code[4 * 4096] __attribute__((aligned(4096))), other[4096] __attribute__((aligned(4096)));
static volatile unsigned stop, wrong, value, calls[kMaxCpus][16];
static struct smp_barrier barrier;
typedef unsigned (*function)(void);

static unsigned run(const volatile uint8_t* at) { return ((function)(reg)at)(); }
// mov eax, value; ret
static void emit(volatile uint8_t* at, uint32_t result) {
  at[0] = 0xb8;
  *(volatile uint32_t*)(at + 1) = result;
  at[5] = 0xc3;
}
static void bad(void) { __atomic_add_fetch(&wrong, 1, __ATOMIC_SEQ_CST); }
static void serialize(void) { (void)cpuid(0, 0); }

static void start(void (*work)(unsigned)) {
  stop = 0;
  for (unsigned cpu = 1; cpu < smp_count; ++cpu) smp_post(cpu, work);
}
static void finish(const char* what) {
  stop = 1;
  for (unsigned cpu = 1; cpu < smp_count; ++cpu) smp_wait(cpu);
  check_equal(what, 0, wrong, 0);
  wrong = 0;
}

// The manual's way: write, say so, the others wait for it and serialise.
enum { kHandshakes = 200 };
static volatile bool more;
static volatile uint8_t* place;
static void handshake(unsigned cpu) {
  for (unsigned i = 0; more; ++i) {
    if (cpu == i % smp_count) {
      emit(place, i);
      if (i % 4 == 0) emit(place + 4096, i);  // another page too
    }
    smp_barrier(&barrier, smp_count);
    serialize();
    if (run(place) != i) bad();
    if (run(place + 4096) != (i & ~3u)) bad();
    smp_barrier(&barrier, smp_count);
    if (cpu == 0) more = smp_more(i, kHandshakes);
    smp_barrier(&barrier, smp_count);
  }
}
static void handshakes(const char* name, volatile uint8_t* at) {
  section(name);
  place = at;
  more = true;
  smp_run(smp_count, handshake);
  CHECK_EQ(wrong, 0);
  wrong = 0;
}

// An aligned immediate is rewritten while the others run it: what they see never goes back.
static void call_on(unsigned cpu) {
  unsigned last = 0;
  while (!stop) {
    const unsigned got = run(code + 3);  // the immediate at code + 4
    if (got < last || got > value) bad();
    last = got;
    calls[cpu][0] = got;
  }
}
static void without_serialisation(void) {
  section("an aligned immediate, without serialisation");
  value = 0;
  emit(code + 3, 0);
  memset((void*)calls, 0, sizeof(calls));
  start(call_on);
  for (unsigned i = 1; smp_more(i - 1, 300); ++i) {
    value = i;
    compiler_barrier();
    *(volatile uint32_t*)(code + 4) = i;
    if (i % 10 == 0)
      for (unsigned cpu = 1; cpu < smp_count; ++cpu)
        while (calls[cpu][0] != i) pause();
  }
  finish("old or new");
}

// How kernels patch running code: a breakpoint over the first byte, the tail, the first byte; an interrupt to all
// after each step.
static volatile unsigned breakpoints;
static void on_breakpoint(struct frame* frame) {
  if (frame->ip != (reg)(code + 2048 + 1)) bad();
  __atomic_add_fetch(&breakpoints, 1, __ATOMIC_SEQ_CST);
  frame->ip += 4;  // the instruction's end: EAX stays what it was
}
static void call_patched(unsigned cpu) {
  (void)cpu;
  while (!stop) {
    unsigned got;
    __asm__ volatile("movl $7, %%eax; call *%1" : "=&a"(got) : "r"((reg)(code + 2048)) : "memory");
    if (got != 7 && got != 0x11111111 && got != 0x22222222) bad();
  }
}
static void breakpoint_patching(void) {
  section("by breakpoint");
  static const uint8_t nop5[] = {0x0f, 0x1f, 0x44, 0, 0, 0xc3};
  volatile uint8_t* at = code + 2048;
  guest_handlers[kBP] = on_breakpoint;
  memcpy((void*)at, nop5, 6);
  start(call_patched);
  for (unsigned i = 0; smp_more(i, 150); ++i) {
    uint8_t bytes[6];
    memcpy(bytes, nop5, 6);
    if (i % 3) emit(bytes, i % 3 * 0x11111111);
    at[0] = 0xcc;
    smp_call_others(serialize);
    for (unsigned k = 1; k < 5; ++k) at[k] = bytes[k];
    smp_call_others(serialize);
    at[0] = bytes[0];
    smp_call_others(serialize);
    unsigned got;
    __asm__ volatile("movl $7, %%eax; call *%1" : "=&a"(got) : "r"((reg)at) : "memory");
    CHECK_EQ(got, i % 3 ? i % 3 * 0x11111111 : 7);
  }
  finish("torn");
  put_number("breakpoints", breakpoints);
}

// Every processor makes and runs code of its own; all of it lies in one page.
static void make_own(unsigned cpu) {
  volatile uint8_t* own = code + 64 * cpu;
  smp_barrier(&barrier, smp_count);
  for (unsigned i = 0; i < 300; ++i) {
    emit(own, i << 8 | cpu);
    if (run(own) != (i << 8 | cpu)) bad();
    if (run(own) != (i << 8 | cpu)) bad();
  }
}

// Data beside code that others run: nothing that is written is lost.
static void count_beside(unsigned cpu) {
  volatile uint64_t* counter = (volatile uint64_t*)(code + 3072 + 8 * cpu);
  uint64_t* shared = (uint64_t*)(code + 3072 + 512);
  smp_barrier(&barrier, smp_count);
  for (unsigned i = 0; i < 300; ++i) {
    *counter = *counter + 1;
    __atomic_add_fetch(shared, 1, __ATOMIC_SEQ_CST);
    if (run(code + 256) != 99) bad();
  }
}
static void one_page(void) {
  section("code of all processors in one page");
  smp_run(smp_count, make_own);
  CHECK_EQ(wrong, 0);
  section("data in a page of code");
  emit(code + 256, 99);
  memset(code + 3072, 0, 1024);
  smp_run(smp_count, count_beside);
  CHECK_EQ(wrong, 0);
  uint64_t sum = 0;
  for (unsigned cpu = 0; cpu < smp_count; ++cpu) sum += *(uint64_t*)(code + 3072 + 8 * cpu);
  CHECK_EQ(sum, 300 * smp_count);
  CHECK_EQ(*(uint64_t*)(code + 3072 + 512), 300 * smp_count);
}

// A page of code is replaced by another through the page tables.
static void drop_page(void) { invlpg((void*)SMP_PAGES); }
static volatile unsigned epoch;
static void call_mapped(unsigned cpu) {
  (void)cpu;
  while (!stop) {
    const unsigned before = epoch;
    compiler_barrier();
    const unsigned got = run((const uint8_t*)SMP_PAGES);
    compiler_barrier();
    if (before % 2 == 0 && epoch == before && got != before / 2 % 2 + 1) bad();
    if (got != 1 && got != 2) bad();
  }
}
static void remapped(void) {
  section("another page mapped");
  emit(code, 1);
  emit(other, 2);
  smp_map_pages();
  smp_page_table[0] = (reg)code | 3;
  epoch = 0;
  start(call_mapped);
  for (unsigned i = 1; smp_more(i - 1, 200); ++i) {
    ++epoch;
    smp_page_table[0] = (reg)(i % 2 ? other : code) | 3;
    drop_page();
    smp_call_others(drop_page);
    ++epoch;
    for (unsigned n = 0; n < 50; ++n) pause();
  }
  finish("old page");
}

void guest_main(void) {
  smp_start();
  if (smp_count < 2) return skip("one processor");
  smp_map_pages();
  for (unsigned i = 0; i < 4; ++i) smp_page_table[8 + i] = (reg)(code + 4096 * i) | 3;
  handshakes("write, wait, serialise", code + 16);
  handshakes("an instruction across pages", code + 4096 - 3);
  without_serialisation();
  breakpoint_patching();
  one_page();
  remapped();
}
