// String instructions: across pages, faulting in the middle with the registers where they stand, backwards, comparing.
#include "guest.h"

extern uint64_t pml4[512];
static uint64_t t3[512] __attribute__((aligned(4096))), t2[512] __attribute__((aligned(4096))),
    t1[512] __attribute__((aligned(4096)));
static uint8_t pages[4 * 4096] __attribute__((aligned(4096)));

#define BASE 0x8000000000ull
#define AT(offset) ((uint8_t*)(BASE + (offset)))

struct registers {
  reg si, di, cx, ax;
};
static struct registers r;

#define STRING(instruction)                                                                                     \
  __asm__ volatile(                                                                                             \
      "movq r(%%rip), %%rsi; movq r+8(%%rip), %%rdi; movq r+16(%%rip), %%rcx; movq r+24(%%rip), %%rax;" instruction \
      "; cld; movq %%rsi, r(%%rip); movq %%rdi, r+8(%%rip); movq %%rcx, r+16(%%rip)" ::                         \
          : "rsi", "rdi", "rcx", "rax", "memory", "cc")

static void set(const void* si, const void* di, reg cx, reg ax) { r = (struct registers){(reg)si, (reg)di, cx, ax}; }

// Pages 0 and 2 of the window are there, 1 and 3 are not, unless the bits of `present` say otherwise. The pages stand in
// reverse order in memory.
static void map(unsigned present) {
  for (unsigned i = 0; i < 4; ++i) {
    t1[i] = ((reg)pages + 4096 * (3 - i)) | 6 | (present >> i & 1);
    invlpg(AT(4096 * i));
  }
}

static void fill(void) {
  map(15);
  for (unsigned i = 0; i < sizeof(pages); ++i) *AT(i) = (uint8_t)(i * 7 + i / 256);
}

static void moves(void) {
  section("MOVS across pages");
  fill();
  set(AT(100), AT(4096 + 4090), 5000, 0);
  STRING("rep movsb");
  CHECK_EQ(r.cx, 0);
  CHECK_EQ(r.si, (reg)AT(5100));
  CHECK_EQ(r.di, (reg)AT(4096 + 4090 + 5000));
  for (unsigned i = 0; i < 3000; ++i)
    if (*AT(4096 + 4090 + i) != (uint8_t)((100 + i) * 7 + (100 + i) / 256)) CHECK_EQ(i, -1);
  fill();
  set(AT(1), AT(8192 - 3), 600, 0);
  STRING("rep movsq");
  CHECK_EQ(r.si, (reg)AT(1 + 4800));
  for (unsigned i = 0; i < 4800; ++i)
    if (*AT(8192 - 3 + i) != (uint8_t)((1 + i) * 7 + (1 + i) / 256)) CHECK_EQ(i, -1);
  // Overlapping by one: a fill.
  *AT(10) = 0xab;
  set(AT(10), AT(11), 5000, 0);
  STRING("rep movsb");
  CHECK_EQ(*AT(10 + 5000), 0xab);
  // Overlapping by less than the element: each step reads what the last one wrote.
  fill();
  set(AT(0), AT(3), 4, 0);
  STRING("rep movsl");
  uint8_t expected[32];
  for (unsigned i = 0; i < 19; ++i) expected[i] = (uint8_t)(i * 7);
  for (unsigned k = 0; k < 4; ++k) {
    uint8_t four[4];
    memcpy(four, expected + 4 * k, 4);
    memcpy(expected + 3 + 4 * k, four, 4);
  }
  CHECK_EQ(memcmp(AT(0), expected, 19), 0);
  // Backwards.
  fill();
  set(AT(4099), AT(8199), 10, 0);
  STRING("std; rep movsw");
  CHECK_EQ(r.si, (reg)AT(4079));
  CHECK_EQ(r.di, (reg)AT(8179));
  CHECK_EQ(*AT(8199 - 18), (uint8_t)((4099 - 18) * 7 + (4099 - 18) / 256));
  // Nothing to do: nothing is touched.
  map(0);
  set(AT(0), AT(0), 0, 0);
  CHECK_OK(STRING("rep movsb"));
  // 32-bit addresses: the count and the registers are 32 bits wide, and their upper halves are cleared.
  set((void*)(0xffffffff00000000 | (reg)pages), (void*)(0xffffffff00000000 | ((reg)pages + 64)), 0xffffffff00000004, 0);
  STRING("addr32 rep movsb");
  CHECK_EQ(r.cx, 0);
  CHECK_EQ(r.si, (reg)pages + 4);
}

static void faults(void) {
  section("faults in the middle");
  fill();
  map(13);  // page 1 is missing
  set(AT(8192), AT(4096 - 20), 10, 0);
  CHECK_FAULT(kPF, 2, STRING("rep movsl"));
  CHECK_EQ(guest_last.cr2, (reg)AT(4096));
  CHECK_EQ(guest_last.frame.cx, 5);
  CHECK_EQ(guest_last.frame.si, (reg)AT(8192 + 20));
  CHECK_EQ(guest_last.frame.di, (reg)AT(4096));
  // The element that straddles is not written in part.
  map(15);
  *AT(4095) = 0x99;
  map(13);
  set(AT(8192), AT(4096 - 21), 10, 0);
  CHECK_FAULT(kPF, 2, STRING("rep movsl"));
  CHECK_EQ(guest_last.frame.cx, 5);
  CHECK_EQ(guest_last.frame.di, (reg)AT(4095));
  CHECK_EQ(*AT(4095), 0x99);
  // The source ends first.
  set(AT(4096 - 5), AT(8192), 10, 0);
  CHECK_FAULT(kPF, 0, STRING("rep movsb"));
  CHECK_EQ(guest_last.frame.cx, 5);
  CHECK_EQ(guest_last.frame.di, (reg)AT(8192 + 5));
  CHECK_EQ(guest_last.cr2, (reg)AT(4096));
  // STOS, backwards.
  set(0, AT(8192 + 12), 10, 0x5555555555555555);
  CHECK_FAULT(kPF, 2, STRING("std; rep stosl"));
  CHECK_EQ(guest_last.frame.cx, 6);
  CHECK_EQ(guest_last.frame.di, (reg)AT(8192 - 4));
  CHECK(guest_last.flags & kFlagDf);
  CHECK_EQ(*(uint32_t*)AT(8192), 0x55555555);
  // LODS and SCAS.
  set(AT(4096 - 16), 0, 10, 0);
  CHECK_FAULT(kPF, 0, STRING("rep lodsq"));
  CHECK_EQ(guest_last.frame.cx, 8);
  set(0, AT(4096 - 3), 10, 0x77);
  map(15);
  memset(AT(4096 - 3), 0, 3);
  map(13);
  CHECK_FAULT(kPF, 0, STRING("repne scasb"));
  CHECK_EQ(guest_last.frame.cx, 7);
}

static bool repaired;
static void repair(struct frame* frame) {
  (void)frame;
  repaired = true;
  map(15);
}

static void resumed(void) {
  section("repaired and resumed");
  fill();
  map(13);
  guest_handlers[kPF] = repair;
  set(AT(8192), AT(4096 - 100), 300, 0);
  STRING("rep movsb");
  guest_handlers[kPF] = 0;
  CHECK(repaired);
  CHECK_EQ(r.cx, 0);
  CHECK_EQ(memcmp(AT(4096 - 100), AT(8192), 300), 0);
}

static void comparisons(void) {
  section("CMPS and SCAS");
  map(15);
  memset(AT(0), 'a', 16384);
  *AT(5000) = 'b';
  reg flags;
  set(0, AT(0), 16384, 'b');
  STRING("repne scasb; pushfq; popq %%rax; movq %%rax, r+24(%%rip)");
  flags = r.ax;
  CHECK_EQ(r.di, (reg)AT(5001));
  CHECK_EQ(flags & 0x40, 0x40);
  set(AT(0), AT(8192), 8192, 0);
  STRING("repe cmpsb; pushfq; popq %%rax; movq %%rax, r+24(%%rip)");
  CHECK_EQ(r.si, (reg)AT(5001));
  CHECK_EQ(r.cx, 8192 - 5001);
  CHECK_EQ(r.ax & 0x41, 0);  // 'b' - 'a': above
  set(AT(0), AT(8192), 4096 / 8, 0);
  STRING("repe cmpsq; pushfq; popq %%rax; movq %%rax, r+24(%%rip)");
  CHECK_EQ(r.cx, 0);
  CHECK_EQ(r.ax & 0x40, 0x40);
  // No iteration leaves the flags.
  set(AT(0), AT(0), 0, 0);
  STRING("xor %%eax, %%eax; inc %%eax; stc; repe cmpsb; pushfq; popq %%rax; movq %%rax, r+24(%%rip)");
  CHECK_EQ(r.ax & 0x41, 1);
}

static void ports(void) {
  section("INS and OUTS");
  map(15);
  static const char text[] = "- written by REP OUTSB\n";
  set(text, 0, sizeof(text) - 1, 0);
  __asm__ volatile("movq r(%%rip), %%rsi; movq r+16(%%rip), %%rcx; mov $0x3f8, %%edx; rep outsb; movq %%rsi, r(%%rip)" ::
                       : "rsi", "rcx", "rdx", "memory");
  CHECK_EQ(r.si, (reg)text + sizeof(text) - 1);
  outb(0x3ff, 0x5a);  // the serial port's scratch register
  memset(AT(4090), 0, 16);
  set(0, AT(4090), 10, 0);
  __asm__ volatile("movq r+8(%%rip), %%rdi; movq r+16(%%rip), %%rcx; mov $0x3ff, %%edx; rep insb; movq %%rdi, r+8(%%rip)" ::
                       : "rdi", "rcx", "rdx", "memory");
  CHECK_EQ(r.di, (reg)AT(4100));
  for (unsigned i = 0; i < 10; ++i) CHECK_EQ(*AT(4090 + i), 0x5a);
  CHECK_EQ(*AT(4100), 0);
  // Into a page that is not there: the fault comes before the port is read, and nothing has moved.
  map(13);
  set(0, AT(4096), 1, 0);
  CHECK_FAULT(kPF, 2,
              __asm__ volatile("movq r+8(%%rip), %%rdi; mov $0x3ff, %%edx; insb" ::: "rdi", "rdx", "memory"));
  CHECK_EQ(guest_last.frame.di, (reg)AT(4096));
}

static int seen;
static void count_ticks(struct frame* frame) {
  (void)frame;
  ++seen;
  pic_eoi(0);
}

// Interrupts are taken between iterations.
static void interrupted(void) {
  section("interrupted by a timer");
  map(15);
  guest_handlers[0x20] = count_ticks;
  pic_setup(0x20, 1);
  pit_rate(1193);  // 1 ms
  sti();
  for (unsigned i = 0; i < 4000 && seen < 5; ++i) {
    memset(AT(0), (int)i, 4);
    set(AT(0), AT(4), 16380 / 4, 0);
    STRING("rep movsl");
    if (*AT(16383) != (uint8_t)i || r.cx != 0) CHECK_EQ(i, -1);
  }
  cli();
  CHECK(seen >= 5);
}

void guest_main(void) {
  pml4[1] = (reg)t3 | 7;
  t3[0] = (reg)t2 | 7;
  t2[0] = (reg)t1 | 7;
  moves();
  faults();
  resumed();
  comparisons();
  ports();
  interrupted();
}
