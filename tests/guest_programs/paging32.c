// 32-bit paging and PAE: two-level tables, 4 MiB pages, WP, user rights, PDPTEs, NX under PAE, switching between them.
#include "guest.h"

enum { P = 1, W = 2, U = 4, kA = 0x20, kD = 0x40, kPs = 0x80, kG = 0x100 };
static uint32_t directory[1024] __attribute__((aligned(4096))), table[1024] __attribute__((aligned(4096)));
static uint64_t pdpt[4] __attribute__((aligned(32))), pds[4][512] __attribute__((aligned(4096))),
    ptable[512] __attribute__((aligned(4096)));
static uint8_t page_a[4096] __attribute__((aligned(4096))), page_b[4096] __attribute__((aligned(4096)));

#define BASE 0x40000000u
#define AT(n) ((volatile uint8_t*)(BASE + (n) * 4096u))
#define PHYS(object) ((reg)(object))

static void paging(bool on) { write_cr0(on ? read_cr0() | 1u << 31 | 1 << 16 : read_cr0() & ~(1u << 31)); }

static void map(unsigned n, uint32_t entry) {
  table[n] = entry;
  invlpg(AT(n));
}

USER_TEXT static void user_reads(void) { __asm__ volatile("movb %0, %%al; int $0x80" ::"m"(*(char*)BASE) : "eax"); }
USER_TEXT static void user_writes(void) { __asm__ volatile("movb $1, %0; int $0x80" : "=m"(*(char*)BASE)); }
USER_TEXT static void user_runs(void) { __asm__ volatile("int $0x80"); }

static void two_levels(void) {
  section("two levels with 4 MiB pages");
  for (unsigned i = 0; i < 1024; ++i) directory[i] = i << 22 | P | W | kPs;
  directory[1] |= U;
  directory[BASE >> 22] = PHYS(table) | P | W | U;
  write_cr4(read_cr4() | 1 << 4);
  write_cr3(PHYS(directory));
  paging(true);
  map(0, PHYS(page_a) | P | W);
  page_a[1] = 11;
  CHECK_EQ(AT(0)[1], 11);
  CHECK_EQ(table[0] & (kA | kD), kA);
  AT(0)[2] = 22;
  CHECK_EQ(page_a[2], 22);
  CHECK_EQ(table[0] & (kA | kD), kA | kD);
  CHECK_EQ(directory[BASE >> 22] & kA, kA);
  CHECK_EQ(directory[0] & (kA | kD), kA | kD);  // a 4 MiB page has its own
  CHECK_FAULT(kPF, 0, (void)*AT(1));
  CHECK_EQ(guest_last.cr2, (reg)AT(1));
  CHECK_FAULT(kPF, 2, *AT(1) = 1);
  map(0, PHYS(page_a) | P);
  CHECK_FAULT(kPF, 3, *AT(0) = 1);
  write_cr0(read_cr0() & ~(1ul << 16));
  CHECK_OK(*AT(0) = 1);
  write_cr0(read_cr0() | 1 << 16);
  map(0, PHYS(page_a) | P | W);
  CHECK_FAULT(0x80, 0, run_user(user_runs, 2));
  CHECK_FAULT(kPF, 5, run_user(user_reads, 2));
  CHECK_FAULT(kPF, 7, run_user(user_writes, 2));
  map(0, PHYS(page_a) | P | U);
  CHECK_FAULT(0x80, 0, run_user(user_reads, 2));
  CHECK_FAULT(kPF, 7, run_user(user_writes, 2));
  // Over a page boundary.
  map(0, PHYS(page_a) | P | W);
  map(1, PHYS(page_b) | P | W);
  *(volatile uint32_t*)(AT(0) + 4094) = 0x44332211;
  CHECK_EQ(page_a[4095], 0x22);
  CHECK_EQ(page_b[0], 0x33);
  map(1, 0);
  CHECK_FAULT(kPF, 2, *(volatile uint32_t*)(AT(0) + 4094) = 0);
  CHECK_EQ(page_a[4095], 0x22);
  // Reserved bits of a 4 MiB page; without PSE the bit means nothing and a table is read.
  directory[(BASE >> 22) + 1] = 1u << 21 | P | W | kPs;
  invlpg((void*)(BASE + 0x400000));
  STRICT(CHECK_FAULT(kPF, 9, (void)*(volatile uint8_t*)(BASE + 0x400000)));
  directory[(BASE >> 22) + 1] = 0;
  invlpg((void*)(BASE + 0x400000));
  paging(false);
}

static void no_pse(void) {
  section("without PSE the large page bit is ignored");
  static uint32_t tables[2][1024] __attribute__((aligned(4096)));
  for (unsigned t = 0; t < 2; ++t)
    for (unsigned i = 0; i < 1024; ++i) tables[t][i] = t << 22 | i << 12 | P | W;
  directory[0] = PHYS(tables[0]) | P | W | kPs;
  directory[1] = PHYS(tables[1]) | P | W | kPs;
  directory[BASE >> 22] = PHYS(table) | P | W | U | kPs;
  map(0, PHYS(page_a) | P | W);
  write_cr4(read_cr4() & ~(1ul << 4));
  write_cr3(PHYS(directory));
  paging(true);
  AT(0)[3] = 33;
  CHECK_EQ(page_a[3], 33);
  paging(false);
}

static void pae(void) {
  section("PAE");
  for (unsigned i = 0; i < 2048; ++i) pds[i / 512][i % 512] = (uint64_t)i << 21 | P | W | kPs;
  pds[0][2] |= U;
  pds[1][0] = PHYS(ptable) | P | W | U;
  for (unsigned i = 0; i < 4; ++i) pdpt[i] = PHYS(pds[i]) | P;
  write_cr4(read_cr4() | 1 << 5);
  write_cr3(PHYS(pdpt));
  wrmsr(0xc0000080, rdmsr(0xc0000080) | 1 << 11);
  paging(true);
  ptable[0] = PHYS(page_a) | P | W;
  page_a[0] = 0xc3;
  CHECK_EQ(*AT(0), 0xc3);
  CHECK_EQ(ptable[0] & (kA | kD), kA);
  CHECK_OK(((void (*)(void))BASE)());
  ptable[0] |= 1ull << 63;
  invlpg(AT(0));
  CHECK_FAULT(kPF, 0x11, ((void (*)(void))BASE)());
  CHECK_OK((void)*AT(0));
  ptable[0] = PHYS(page_a) | P | W | U;
  invlpg(AT(0));
  CHECK_FAULT(0x80, 0, run_user(user_writes, 2));
  ptable[0] |= 1ull << 52;
  invlpg(AT(0));
  STRICT(CHECK_FAULT(kPF, 9, (void)*AT(0)));
  ptable[0] = PHYS(page_b) | P | W;
  invlpg(AT(0));
  page_b[7] = 77;
  CHECK_EQ(AT(0)[7], 77);
  // The PDPTEs are loaded with CR3 and stay until it is loaded again.
  pdpt[1] = 0;
  invlpg(AT(0));
  STRICT(CHECK_EQ(AT(0)[7], 77));
  write_cr3(PHYS(pdpt));
  CHECK_FAULT(kPF, 0, (void)*AT(0));
  pdpt[1] = PHYS(pds[1]) | P | W;  // W is reserved in a PDPTE
  STRICT(CHECK_FAULT(kGP, 0, write_cr3(PHYS(pdpt))));
  pdpt[1] = PHYS(pds[1]) | P;
  write_cr3(PHYS(pdpt));
  CHECK_EQ(AT(0)[7], 77);
  // A large page through another directory entry.
  pds[1][1] = (PHYS(page_b) & ~0x1ffffful) | P | W | kPs;
  CHECK_EQ(*(volatile uint8_t*)(BASE + 0x200000 + (PHYS(page_b) & 0x1fffff) + 7), 77);
  paging(false);
  write_cr4(read_cr4() & ~(1ul << 5));
}

static void again(void) {
  section("and back to two levels");
  directory[0] = 0 | P | W | kPs;
  directory[1] = 1 << 22 | P | W | kPs | U;
  directory[BASE >> 22] = PHYS(table) | P | W | U;
  write_cr4(read_cr4() | 1 << 4);
  write_cr3(PHYS(directory));
  paging(true);
  map(0, PHYS(page_a) | P | W);
  page_a[9] = 99;
  CHECK_EQ(AT(0)[9], 99);
  // 36-bit addresses of 4 MiB pages, where the CPU has them.
  if (cpuid(1, 0).d >> 17 & 1) {
    directory[(BASE >> 22) + 2] = 1u << 13 | P | W | kPs;  // physical 4 GiB: nothing is there
    STRICT(CHECK_EQ(*(volatile uint32_t*)(BASE + 0x800000), 0xffffffff));
  }
  paging(false);
}

void guest_main(void) {
  two_levels();
  no_pse();
  pae();
  again();
}
