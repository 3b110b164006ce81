// 4-level paging: A and D bits, WP, NX, large pages, reserved bits, user rights, SMEP, SMAP, global pages, PCID, INVPCID,
// INVLPG.
#include "guest.h"

enum { P = 1, W = 2, U = 4, kA = 0x20, kD = 0x40, kPs = 0x80, kG = 0x100 };
#define NX (1ull << 63)
#define EFER 0xc0000080

extern uint64_t pml4[512], pdpt[512], pd[2048];
typedef uint64_t table[512];
static table t3 __attribute__((aligned(4096))), t2 __attribute__((aligned(4096))), t1 __attribute__((aligned(4096)));
static table other_pml4 __attribute__((aligned(4096)));
static uint8_t page_a[4096] __attribute__((aligned(4096))), page_b[4096] __attribute__((aligned(4096)));

// Linear addresses of our own, in PML4 entry 1: 4 KiB pages through t3, t2, t1.
#define BASE 0x8000000000ull
#define AT(n) ((volatile uint8_t*)(BASE + (n) * 4096ull))
#define PHYS(object) ((uint64_t)(reg)(object))

static void map(unsigned n, uint64_t entry) {
  t1[n] = entry;
  invlpg(AT(n));
}

static void setup(void) {
  pml4[1] = PHYS(t3) | P | W | U;
  t3[0] = PHYS(t2) | P | W | U;
  t2[0] = PHYS(t1) | P | W | U;
}

static void accessed_and_dirty(void) {
  section("A and D");
  map(0, PHYS(page_a) | P | W);
  pml4[1] &= ~(uint64_t)kA;
  t3[0] &= ~(uint64_t)kA;
  t2[0] &= ~(uint64_t)kA;
  write_cr3(read_cr3());
  (void)*AT(0);
  CHECK_EQ(t1[0] & (kA | kD), kA);
  CHECK_EQ(pml4[1] & kA, kA);
  CHECK_EQ(t3[0] & kA, kA);
  CHECK_EQ(t2[0] & kA, kA);
  *AT(0) = 42;
  CHECK_EQ(t1[0] & (kA | kD), kA | kD);
  CHECK_EQ(page_a[0], 42);
  // D cleared and flushed: set again by the next write, though a read has cached the translation.
  map(0, PHYS(page_a) | P | W);
  (void)*AT(0);
  __asm__ volatile("lock addb $1, (%0)" ::"r"(AT(0)) : "memory");
  CHECK_EQ(t1[0] & kD, kD);
  // A faulting access changes nothing.
  map(1, PHYS(page_a) | P);
  write_cr0(read_cr0() | 1 << 16);
  CHECK_FAULT(kPF, 3, *AT(1) = 1);
  CHECK_EQ(t1[1] & kD, 0);
}

static void not_present_and_reserved(void) {
  section("not present, reserved bits");
  map(2, 0);
  CHECK_FAULT(kPF, 0, (void)*AT(2));
  CHECK_EQ(guest_last.cr2, (reg)AT(2));
  CHECK_FAULT(kPF, 2, AT(2)[123] = 1);
  CHECK_EQ(guest_last.cr2, (reg)AT(2) + 123);
  map(2, PHYS(page_a) | P | W | 1ull << 51);
  STRICT(CHECK_FAULT(kPF, 9, (void)*AT(2)));
  STRICT(CHECK_FAULT(kPF, 11, *AT(2) = 1));
  // An access over a page boundary faults with the address of the second page; nothing is written.
  map(2, PHYS(page_a) | P | W);
  map(3, 0);
  *(uint32_t*)(page_a + 4092) = 0x11111111;
  CHECK_FAULT(kPF, 2, *(volatile uint64_t*)(AT(2) + 4092) = ~0ull);
  CHECK_EQ(guest_last.cr2, (reg)AT(3));
  CHECK_EQ(*(uint32_t*)(page_a + 4092), 0x11111111);
  // Over the boundary of two pages that are apart.
  map(3, PHYS(page_b) | P | W);
  *(volatile uint64_t*)(AT(2) + 4092) = 0x1122334455667788;
  CHECK_EQ(*(uint32_t*)(page_a + 4092), 0x55667788);
  CHECK_EQ(*(uint32_t*)page_b, 0x11223344);
  CHECK_EQ(*(volatile uint64_t*)(AT(2) + 4092), 0x1122334455667788);
}

static void write_protection(void) {
  section("WP");
  map(0, PHYS(page_a) | P);
  write_cr0(read_cr0() | 1 << 16);
  CHECK_FAULT(kPF, 3, *AT(0) = 7);
  write_cr0(read_cr0() & ~(1ul << 16));
  CHECK_OK(*AT(0) = 7);
  CHECK_EQ(page_a[0], 7);
  write_cr0(read_cr0() | 1 << 16);
  CHECK_FAULT(kPF, 3, *AT(0) = 8);
  // Rights are the least of all levels.
  map(0, PHYS(page_a) | P | W);
  t2[0] &= ~(uint64_t)W;
  write_cr3(read_cr3());
  CHECK_FAULT(kPF, 3, *AT(0) = 8);
  t2[0] |= W;
  write_cr3(read_cr3());
  CHECK_OK(*AT(0) = 8);
}

static void call_it(unsigned n) { ((void (*)(void))(reg)AT(n))(); }

static void no_execute(void) {
  section("NX");
  page_a[0] = 0xc3;
  map(0, PHYS(page_a) | P);
  CHECK_OK(call_it(0));
  map(0, PHYS(page_a) | P | NX);
  CHECK_FAULT(kPF, 0x11, call_it(0));
  CHECK_OK((void)*AT(0));
  map(0, PHYS(page_a) | P);
  t2[0] |= NX;
  write_cr3(read_cr3());
  CHECK_FAULT(kPF, 0x11, call_it(0));
  t2[0] &= ~NX;
  write_cr3(read_cr3());
  // Without EFER.NXE the bit is reserved, and a fetch is not told apart.
  map(0, PHYS(page_a) | P | NX);
  wrmsr(EFER, rdmsr(EFER) & ~0x800ull);
  STRICT(CHECK_FAULT(kPF, 9, (void)*AT(0)));
  map(0, 0);
  CHECK_FAULT(kPF, 0, call_it(0));
  wrmsr(EFER, rdmsr(EFER) | 0x800);
}

static void large_pages(void) {
  section("large pages");
  page_b[5] = 55;
  t2[1] = (PHYS(page_b) & ~0x1fffffull) | P | W | kPs;
  volatile uint8_t* at = (uint8_t*)(BASE + 0x200000 + (PHYS(page_b) & 0x1fffff));
  CHECK_EQ(at[5], 55);
  at[6] = 66;
  CHECK_EQ(page_b[6], 66);
  CHECK_EQ(t2[1] & (kA | kD), kA | kD);
  t2[1] = 0x2000 | P | W | kPs;  // bits 20:13 are reserved
  invlpg(at);
  STRICT(CHECK_FAULT(kPF, 9, (void)*at));
  t2[1] = (PHYS(page_b) & ~0x1fffffull) | P | W | kPs | 0x1000;  // PAT is not
  invlpg(at);
  CHECK_OK((void)*at);
  if (!(cpuid(0x80000001, 0).d >> 26 & 1)) return skip("1 GiB pages");
  t3[1] = 0 | P | W | kPs;
  at = (uint8_t*)(BASE + 0x40000000 + PHYS(page_b));
  CHECK_EQ(at[5], 55);
  at[7] = 77;
  CHECK_EQ(page_b[7], 77);
  CHECK_EQ(t3[1] & (kA | kD), kA | kD);
}

USER_TEXT static void user_reads(void) { __asm__ volatile("mov %0, %%rax; movb (%%rax), %%al; int $0x80" ::"i"(BASE) : "rax"); }
USER_TEXT static void user_writes(void) { __asm__ volatile("mov %0, %%rax; movb %%al, (%%rax); int $0x80" ::"i"(BASE) : "rax"); }
USER_TEXT static void user_only(void) { __asm__ volatile(""); }

static void user_rights(void) {
  section("user and supervisor");
  map(0, PHYS(page_a) | P | W | U);
  CHECK_FAULT(0x80, 0, run_user(user_writes, 2));
  map(0, PHYS(page_a) | P | U);
  CHECK_FAULT(kPF, 7, run_user(user_writes, 2));
  CHECK_FAULT(0x80, 0, run_user(user_reads, 2));
  map(0, PHYS(page_a) | P | W);
  CHECK_FAULT(kPF, 5, run_user(user_reads, 2));
  CHECK_FAULT(kPF, 7, run_user(user_writes, 2));
  map(0, 0);
  CHECK_FAULT(kPF, 4, run_user(user_reads, 2));
  write_cr0(read_cr0() & ~(1ul << 16));  // WP never frees user mode
  map(0, PHYS(page_a) | P | U);
  CHECK_FAULT(kPF, 7, run_user(user_writes, 2));
  write_cr0(read_cr0() | 1 << 16);
}

static void smep_and_smap(void) {
  section("SMEP and SMAP");
  const uint32_t features = cpuid(7, 0).b;
  CHECK_OK(user_only());
  if (features >> 7 & 1) {
    write_cr4(read_cr4() | 1 << 20);
    CHECK_FAULT(kPF, 0x11, user_only());
    CHECK_OK((void)*(volatile uint8_t*)user_only);
    write_cr4(read_cr4() & ~(1ul << 20));
    CHECK_OK(user_only());
  } else {
    skip("SMEP");
  }
  if (!(features >> 20 & 1)) return skip("SMAP");
  map(0, PHYS(page_a) | P | W | U);
  (void)*AT(0);
  write_cr4(read_cr4() | 1 << 21);
  CHECK_FAULT(kPF, 1, (void)*AT(0));
  CHECK_FAULT(kPF, 3, *AT(0) = 1);
  CHECK_OK(__asm__ volatile("stac"); (void)*AT(0); __asm__ volatile("clac"));
  CHECK_FAULT(kPF, 3, *AT(0) = 1);
  // An implicit supervisor access does not look at AC: a descriptor of an LDT in a user page.
  gdt[9] = 0x0000820000000fff;
  gdt[10] = BASE >> 32;
  ((uint64_t*)page_a)[1] = gdt[2];
  __asm__ volatile("lldt %w0" ::"r"(0x48));
  STRICT(CHECK_FAULT(kPF, 1, __asm__ volatile("stac; mov %0, %%ds" ::"r"(0xc))));
  __asm__ volatile("lldt %w0; clac" ::"r"(0));
  CHECK_FAULT(0x80, 0, run_user(user_reads, 2));
  write_cr4(read_cr4() & ~(1ul << 21));
  CHECK_OK((void)*AT(0));
}

static void translations_are_cached(void) {
  section("INVLPG, CR3, global pages");
  page_a[0] = 1;
  page_b[0] = 2;
  map(0, PHYS(page_a) | P | W);
  CHECK_EQ(*AT(0), 1);
  map(0, PHYS(page_b) | P | W);
  CHECK_EQ(*AT(0), 2);
  t1[0] = PHYS(page_a) | P | W;
  write_cr3(read_cr3());
  CHECK_EQ(*AT(0), 1);
  // Another address space.
  memcpy(other_pml4, pml4, sizeof(other_pml4));
  other_pml4[1] = 0;
  const reg mine = read_cr3();
  write_cr3(PHYS(other_pml4));
  CHECK_FAULT(kPF, 0, (void)*AT(0));
  write_cr3(mine);
  CHECK_EQ(*AT(0), 1);
  // Global pages survive CR3 or not (the CPU may forget), but never INVLPG or a change of CR4.PGE.
  write_cr4(read_cr4() | 1 << 7);
  t1[0] = PHYS(page_a) | P | W | kG;
  invlpg(AT(0));
  CHECK_EQ(*AT(0), 1);
  t1[0] = PHYS(page_b) | P | W | kG;
  write_cr4(read_cr4() & ~(1ul << 7));
  CHECK_EQ(*AT(0), 2);
  write_cr4(read_cr4() | 1 << 7);
  CHECK_EQ(*AT(0), 2);
  map(0, PHYS(page_a) | P | W | kG);
  CHECK_EQ(*AT(0), 1);
  write_cr4(read_cr4() & ~(1ul << 7));
}

static void invpcid(uint64_t type, uint64_t pcid, uint64_t address) {
  const uint64_t operand[2] = {pcid, address};
  __asm__ volatile("invpcid %0, %1" ::"m"(operand), "r"(type) : "memory");
}

static void process_contexts(void) {
  section("PCID");
  if (!(cpuid(1, 0).c >> 17 & 1)) return skip("PCID");
  const reg mine = read_cr3();
  CHECK_FAULT(kGP, 0, write_cr3(mine | 1); write_cr4(read_cr4() | 1 << 17));  // PCID must be 0 when it is enabled
  write_cr3(mine);
  write_cr4(read_cr4() | 1 << 17);
  memcpy(other_pml4, pml4, sizeof(other_pml4));
  other_pml4[1] = PHYS(t3) | P | W | U;
  page_a[0] = 1;
  page_b[0] = 2;
  map(0, PHYS(page_a) | P | W);
  write_cr3(mine | 5);
  CHECK_EQ(read_cr3(), mine | 5);
  CHECK_EQ(*AT(0), 1);
  write_cr3(PHYS(other_pml4) | 6);
  CHECK_EQ(*AT(0), 1);
  t1[0] = PHYS(page_b) | P | W;
  write_cr3(mine | 5);  // flushes context 5
  CHECK_EQ(*AT(0), 2);
  write_cr3(1ull << 63 | PHYS(other_pml4) | 6);  // keeps context 6, which may have the old translation
  invlpg(AT(0));
  CHECK_EQ(*AT(0), 2);
  CHECK_EQ(read_cr3(), PHYS(other_pml4) | 6);
  if (cpuid(7, 0).b >> 10 & 1) {
    t1[0] = PHYS(page_a) | P | W;
    invpcid(0, 6, BASE);
    CHECK_EQ(*AT(0), 1);
    t1[0] = PHYS(page_b) | P | W;
    invpcid(1, 6, 0);
    CHECK_EQ(*AT(0), 2);
    t1[0] = PHYS(page_a) | P | W;
    invpcid(2, 0, 0);
    CHECK_EQ(*AT(0), 1);
    CHECK_FAULT(kGP, 0, invpcid(4, 0, 0));
    CHECK_FAULT(kGP, 0, invpcid(0, 0x1000, BASE));
    CHECK_FAULT(kGP, 0, invpcid(0, 6, 0x800000000000));
  } else {
    skip("INVPCID");
  }
  write_cr3(mine);
  write_cr4(read_cr4() & ~(1ul << 17));
  CHECK_FAULT(kGP, 0, write_cr3(1ull << 63 | mine));
  CHECK_FAULT(kGP, 0, write_cr3(1ull << 62 | mine));
}

// Address spaces of their own from PML4 entry 1 on: [n] maps AT(0) to a page of its own, which holds `mov $n, %eax; ret`
// and, at 64, `mov $n, %eax; int $0x80`.
enum { kSpaces = 12 };
static table space_pml4[kSpaces] __attribute__((aligned(4096))), space_t3[kSpaces] __attribute__((aligned(4096))),
    space_t2[kSpaces] __attribute__((aligned(4096))), space_t1[kSpaces] __attribute__((aligned(4096)));
static uint8_t space_page[kSpaces][4096] __attribute__((aligned(4096)));
#define NO_FLUSH (1ull << 63)
#define SPACE(n) (PHYS(space_pml4[n]) | ((n) + 1))

static void make_space(unsigned n) {
  memcpy(space_pml4[n], pml4, sizeof(table));
  space_pml4[n][1] = PHYS(space_t3[n]) | P | W | U;
  space_t3[n][0] = PHYS(space_t2[n]) | P | W | U;
  space_t2[n][0] = PHYS(space_t1[n]) | P | W | U;
  space_t1[n][0] = PHYS(space_page[n]) | P | W | U;
  const uint8_t code[8] = {0xb8, n, 0, 0, 0, 0xc3}, user_code[8] = {0xb8, n, 0, 0, 0, 0xcd, 0x80};
  memcpy(space_page[n], code, sizeof(code));
  memcpy(space_page[n] + 64, user_code, sizeof(user_code));
  space_page[n][128] = (uint8_t)(n + 100);
}

static int call_number(void) { return ((int (*)(void))(reg)AT(0))(); }
static int call_user_number(void) {
  TRY(run_user((void (*)(void))((reg)AT(0) + 64), 2));
  return guest_last.vector == 0x80 ? (int)guest_last.frame.ax : -1;
}

static void check_space(unsigned n) {
  CHECK_EQ(call_number(), n);
  CHECK_EQ(call_user_number(), n);
  CHECK_EQ(AT(0)[128], n + 100);
}

static void many_contexts(void) {
  section("many PCIDs, INVPCID of others");
  if (!(cpuid(1, 0).c >> 17 & 1) || !(cpuid(7, 0).b >> 10 & 1)) return skip("PCID and INVPCID");
  const reg mine = read_cr3();
  write_cr4(read_cr4() | 1 << 17);
  for (unsigned n = 0; n < kSpaces; ++n) make_space(n);
  for (unsigned round = 0; round < 3; ++round)
    for (unsigned n = 0; n < kSpaces; ++n) {
      write_cr3((round ? NO_FLUSH : 0) | SPACE(n));
      check_space(n);
      write_cr3(NO_FLUSH | SPACE(0));
      check_space(0);
    }
  // Each way to drop what another context has cached, and to see that the switch back without a flush finds the new
  // mapping: INVPCID of one address, of a context, of all but global pages, of all; a load of CR3 with a flush; of CR4.
  for (unsigned way = 0; way < 6; ++way) {
    write_cr3(NO_FLUSH | SPACE(1));
    check_space(1);
    write_cr3(NO_FLUSH | SPACE(2));
    check_space(2);
    space_t1[1][0] = PHYS(space_page[3]) | P | W | U;
    if (way == 0) invpcid(0, 2, BASE);
    if (way == 1) invpcid(1, 2, 0);
    if (way == 2) invpcid(3, 0, 0);
    if (way == 3) invpcid(2, 0, 0);
    if (way == 4) write_cr3(SPACE(1));
    if (way == 5) {
      write_cr4(read_cr4() | 1 << 7);
      write_cr4(read_cr4() & ~(1ul << 7));
    }
    check_space(way == 4 ? 3 : 2);
    write_cr3(NO_FLUSH | SPACE(1));
    check_space(3);
    space_t1[1][0] = PHYS(space_page[1]) | P | W | U;
    invlpg(AT(0));
    check_space(1);
  }
  // INVLPG drops a global page from every context, and a large one whole.
  write_cr4(read_cr4() | 1 << 7);
  for (unsigned n = 4; n < 6; ++n) space_t1[n][0] = PHYS(space_page[6]) | P | W | U | kG;
  for (unsigned n = 4; n < 6; ++n) {
    write_cr3(SPACE(n));
    check_space(6);
  }
  for (unsigned n = 4; n < 6; ++n) space_t1[n][0] = PHYS(space_page[7]) | P | W | U | kG;
  invlpg(AT(0));
  check_space(7);
  write_cr3(NO_FLUSH | SPACE(4));
  check_space(7);
  // INVPCID type 2 takes global pages too.
  for (unsigned n = 4; n < 6; ++n) space_t1[n][0] = PHYS(space_page[8]) | P | W | U | kG;
  invpcid(2, 0, 0);
  check_space(8);
  write_cr3(NO_FLUSH | SPACE(5));
  check_space(8);
  // Code written in one context is seen in all.
  for (unsigned n = 4; n < 6; ++n) space_t1[n][0] = PHYS(space_page[9]) | P | W | U;
  invpcid(2, 0, 0);
  check_space(9);
  write_cr3(NO_FLUSH | SPACE(4));
  check_space(9);
  AT(0)[1] = AT(0)[65] = 77;
  CHECK_EQ(call_number(), 77);
  CHECK_EQ(call_user_number(), 77);
  write_cr3(NO_FLUSH | SPACE(5));
  CHECK_EQ(call_number(), 77);
  CHECK_EQ(call_user_number(), 77);
  AT(0)[1] = AT(0)[65] = 9;
  write_cr3(NO_FLUSH | SPACE(4));
  check_space(9);
  write_cr4(read_cr4() & ~(1ul << 7));
  // PCIDs off and on again: nothing of theirs is left.
  write_cr3(mine);
  write_cr4(read_cr4() & ~(1ul << 17));
  space_t1[10][0] = PHYS(space_page[11]) | P | W | U;
  write_cr3(PHYS(space_pml4[10]));
  check_space(11);
  write_cr3(mine);
  write_cr4(read_cr4() | 1 << 17);
  write_cr3(NO_FLUSH | SPACE(10));
  check_space(11);
  write_cr3(mine);
  write_cr4(read_cr4() & ~(1ul << 17));
}

void guest_main(void) {
  setup();
  accessed_and_dirty();
  not_present_and_reserved();
  write_protection();
  no_execute();
  large_pages();
  user_rights();
  smep_and_smap();
  translations_are_cached();
  process_contexts();
  many_contexts();
}
