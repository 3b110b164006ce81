// x87, SSE, AVX and AVX-512 as an operating system uses them: #NM on demand, #MF, #XM, saving and restoring, state that survives
// interrupts, alignment.
#include "guest.h"

static uint8_t area[4096] __attribute__((aligned(64)));
static float ones[4] __attribute__((aligned(16))) = {1, 1, 1, 1};
static float zeros[4] __attribute__((aligned(16)));

static void set_cr0(reg clear, reg set) { write_cr0((read_cr0() & ~clear) | set); }
enum { kMp = 2, kEm = 4, kTs = 8, kNe = 0x20 };
enum { kOsFxsr = 1 << 9, kOsXmmExcpt = 1 << 10, kOsXsave = 1 << 18 };

static void addps(void) { __asm__ volatile("addps %xmm1, %xmm0"); }
static void fninit(void) { __asm__ volatile("fninit"); }

static void guards(void) {
  section("#UD and #NM");
  set_cr0(kEm | kTs, kMp | kNe);
  write_cr4(read_cr4() & ~(reg)(kOsFxsr | kOsXmmExcpt));
  CHECK_FAULT(kUD, 0, addps());  // OSFXSR is clear
  write_cr4(read_cr4() | kOsFxsr | kOsXmmExcpt);
  CHECK_OK(addps());
  CHECK_OK(fninit());
  set_cr0(0, kTs);
  CHECK_FAULT(kNM, 0, addps());
  CHECK_FAULT(kNM, 0, fninit());
  CHECK_FAULT(kNM, 0, __asm__ volatile("fwait"));
  STRICT(CHECK_FAULT(kNM, 0, __asm__ volatile("emms")));
  CHECK_FAULT(kNM, 0, __asm__ volatile("fxsave %0" : "=m"(area)));
  CHECK_OK(__asm__ volatile("sfence; prefetcht0 %0; movnti %1, %0" : "+m"(area) : "r"(1)));
  set_cr0(kMp, 0);
  CHECK_OK(__asm__ volatile("fwait"));
  set_cr0(kTs, kMp | kEm);
  CHECK_FAULT(kUD, 0, addps());
  CHECK_FAULT(kNM, 0, fninit());
  STRICT(CHECK_FAULT(kUD, 0, __asm__ volatile("emms")));
  set_cr0(kEm, 0);
  CHECK_FAULT(kGP, 0, __asm__ volatile("movaps 4+%0, %%xmm0" ::"m"(*area)));
  CHECK_OK(__asm__ volatile("movups 4+%0, %%xmm0" ::"m"(*area)));
}

static unsigned switches;
static void on_demand(struct frame* frame) {
  (void)frame;
  ++switches;
  __asm__ volatile("clts");
  __asm__ volatile("fxrstor %0" ::"m"(area));
}

// What a lazy operating system does: the state is loaded by the first #NM.
static void lazily(void) {
  section("state loaded on demand");
  uint64_t value = 0x1122334455667788;
  __asm__ volatile("fninit; movq %0, %%xmm3; movlhps %%xmm3, %%xmm3; fxsave %1" ::"r"(value), "m"(area) : "memory");
  __asm__ volatile("pxor %xmm3, %xmm3");
  guest_handlers[kNM] = on_demand;
  set_cr0(0, kTs);
  uint64_t got;
  __asm__ volatile("movq %%xmm3, %0" : "=r"(got));
  CHECK_EQ(got, value);
  CHECK_EQ(switches, 1);
  CHECK_EQ(read_cr0() & kTs, 0);
  guest_handlers[kNM] = 0;
}

static void x87_errors(void) {
  section("#MF");
  const uint16_t unmasked = 0x37b;
  CHECK_OK(__asm__ volatile("fninit; fldcw %0; fldz; fld1; fdiv %%st(1), %%st" ::"m"(unmasked)));
  CHECK_FAULT(kMF, 0, __asm__ volatile("fwait"));
  STRICT(CHECK_FAULT(kMF, 0, __asm__ volatile("fld1")));
  uint16_t status;
  __asm__ volatile("fnstsw %0" : "=a"(status));
  CHECK_EQ(status & 0xff, 0x84);
  CHECK_OK(__asm__ volatile("fnclex; fwait"));
  CHECK_OK(__asm__ volatile("fninit; fldz; fld1; fdiv %st(1), %st; fwait"));
}

static void simd_errors(void) {
  section("#XM");
  uint32_t mxcsr = 0x1d80, got;
  __asm__ volatile("ldmxcsr %0; movaps %1, %%xmm0; movaps %2, %%xmm1" ::"m"(mxcsr), "m"(ones), "m"(zeros));
  STRICT(CHECK_FAULT(kXM, 0, __asm__ volatile("divps %xmm1, %xmm0")));
  __asm__ volatile("stmxcsr %0" : "=m"(got));
  STRICT(CHECK_EQ(got, 0x1d84));
  STRICT(write_cr4(read_cr4() & ~(reg)kOsXmmExcpt));
  STRICT(CHECK_FAULT(kUD, 0, __asm__ volatile("divps %xmm1, %xmm0")));
  uint32_t lane;
  __asm__ volatile("movd %%xmm0, %0" : "=r"(lane));
  STRICT(CHECK_EQ(lane, 0x3f800000));
  write_cr4(read_cr4() | kOsXmmExcpt);
  mxcsr = 0x10000;
  STRICT(CHECK_FAULT(kGP, 0, __asm__ volatile("ldmxcsr %0" ::"m"(mxcsr))));
  mxcsr = 0x1f80;
  __asm__ volatile("ldmxcsr %0" ::"m"(mxcsr));
  __asm__ volatile("divps %xmm1, %xmm0; movd %xmm0, %eax");
}

static int ticks;
static void clobber(struct frame* frame) {
  (void)frame;
  ++ticks;
  __asm__ volatile("fxsave64 %0; fninit; fldpi; pcmpeqb %%xmm5, %%xmm5; xorps %%xmm6, %%xmm6; fxrstor64 %0" ::"m"(area)
                   : "memory");
  pic_eoi(0);
}

static void through_interrupts(void) {
  section("state through interrupts");
  guest_handlers[0x20] = clobber;
  pic_setup(0x20, 1);
  pit_rate(1193);
  __asm__ volatile("fninit; fld1; xorps %xmm5, %xmm5; pcmpeqb %xmm6, %xmm6; psrlq $63, %xmm6");  // xmm6: ones
  sti();
  uint64_t count = 0, sum = 0;
  double st = 0;
  // XMM5 counts in both lanes, ST counts too.
  while (ticks < 20 && count < 400000000) {
    __asm__ volatile("paddq %%xmm6, %%xmm5; paddq %%xmm6, %%xmm5; paddq %%xmm6, %%xmm5; fld1; faddp" ::: "memory");
    ++count;
  }
  cli();
  __asm__ volatile("movq %%xmm5, %0" : "=r"(sum));
  __asm__ volatile("fstpl %0" : "=m"(st));
  uint64_t whole;
  __asm__ volatile("fldl %1; fistpll %0" : "=m"(whole) : "m"(st));
  CHECK(ticks >= 20);
  CHECK_EQ(sum, 3 * count);
  CHECK_EQ(whole, count + 1);
}

static uint64_t xgetbv(void) {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t)high << 32 | low;
}
static void xsetbv(uint32_t index, uint64_t value) {
  __asm__ volatile("xsetbv" ::"c"(index), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)));
}

static void set_ymm3(uint64_t value) {
  __asm__ volatile("vmovq %0, %%xmm3; vinsertf128 $1, %%xmm3, %%ymm3, %%ymm3" ::"r"(value));
}
static uint64_t low_of_ymm3(void) {
  uint64_t value;
  __asm__ volatile("vmovq %%xmm3, %0" : "=r"(value));
  return value;
}
static uint64_t high_of_ymm3(void) {
  uint64_t value;
  __asm__ volatile("vextractf128 $1, %%ymm3, %%xmm1; vmovq %%xmm1, %0" : "=r"(value));
  return value;
}
#define XSTATE(name, at, mask) __asm__ volatile(name " (%0)" ::"r"(at), "a"(mask), "d"(0) : "memory")

// Components one by one, in areas that lie on two pages at every possible place.
static void xsave_parts(void) {
  static uint8_t pages[8192] __attribute__((aligned(4096)));
  for (unsigned before = 64; before < 832; before += 64) {
    uint8_t* at = pages + 4096 - before;
    memset(pages, 0xa5, sizeof(pages));
    memset(at + 512, 0, 64);
    set_ymm3(before * 0x0101010101010101);
    XSTATE("xsave64", at, 7);
    CHECK_EQ(*(uint64_t*)(at + 160 + 48), before * 0x0101010101010101);
    CHECK_EQ(*(uint64_t*)(at + 576 + 48), before * 0x0101010101010101);
    CHECK_EQ(*(uint16_t*)at, 0x37f);
    CHECK_EQ(at[416], 0xa5);
    CHECK_EQ(at[832], 0xa5);
    CHECK_EQ(at[-1], 0xa5);
    set_ymm3(1);
    XSTATE("xrstor64", at, 4);  // AVX only
    CHECK_EQ(low_of_ymm3(), 1);
    CHECK_EQ(high_of_ymm3(), before * 0x0101010101010101);
    set_ymm3(2);
    XSTATE("xrstor64", at, 2);  // SSE only
    CHECK_EQ(low_of_ymm3(), before * 0x0101010101010101);
    CHECK_EQ(high_of_ymm3(), 2);
    XSTATE("xrstor64", at, 7);
    CHECK_EQ(high_of_ymm3(), before * 0x0101010101010101);
    // What is not asked for stays, in the area and in its header.
    set_ymm3(3);
    XSTATE("xsave64", at, 2);
    CHECK_EQ(*(uint64_t*)(at + 160 + 48), 3);
    CHECK_EQ(*(uint64_t*)(at + 576 + 48), before * 0x0101010101010101);
    CHECK_EQ(*(uint64_t*)(at + 512) & 6, 6);
    // XSAVEOPT of an initial component may clear its bit and then writes nothing there.
    __asm__ volatile("vzeroupper");
    if (cpuid(0xd, 1).a & 1) {
      XSTATE("xsaveopt64", at, 6);
      CHECK_EQ(*(uint64_t*)(at + 576 + 48), *(uint64_t*)(at + 512) & 4 ? 0 : before * 0x0101010101010101);
      set_ymm3(4);
      XSTATE("xrstor64", at, 6);
      CHECK_EQ(low_of_ymm3(), 3);
      CHECK_EQ(high_of_ymm3(), 0);
    }
    // x87 and MXCSR.
    uint32_t mxcsr = 0x3f80;
    __asm__ volatile("fldpi; ldmxcsr %0" ::"m"(mxcsr));
    XSTATE("xsave64", at, 7);
    mxcsr = 0x1f80;
    __asm__ volatile("fninit; ldmxcsr %0" ::"m"(mxcsr));
    XSTATE("xrstor64", at, 7);
    uint64_t pi[2] = {0, 0};
    __asm__ volatile("stmxcsr %0; fstpt %1; fninit" : "=m"(mxcsr), "=m"(pi));
    CHECK_EQ(mxcsr, 0x3f80);
    CHECK_EQ(pi[0], 0xc90fdaa22168c235);
    *(uint64_t*)(at + 512) &= ~1ull;
    __asm__ volatile("fld1");
    XSTATE("xrstor64", at, 1);
    uint16_t status;
    __asm__ volatile("fxam; fnstsw %0; fninit" : "=m"(status));
    CHECK_EQ(status & 0x4500, 0x4100);  // empty
    *(uint32_t*)(at + 24) = 0x10000;
    STRICT(CHECK_FAULT(kGP, 0, XSTATE("xrstor64", at, 4)));
    *(uint32_t*)(at + 24) = 0x1f80;
    at[512 + 9] = 1;
    STRICT(CHECK_FAULT(kGP, 0, XSTATE("xrstor64", at, 7)));
    at[512 + 9] = 0;
    XSTATE("xrstor64", at, 7);
  }
}

static void xsave_and_avx(void) {
  section("XSAVE and AVX");
  if (!(cpuid(1, 0).c >> 26 & 1)) return skip("XSAVE");
  CHECK_FAULT(kUD, 0, xgetbv());
  write_cr4(read_cr4() | kOsXsave);
  CHECK(cpuid(1, 0).c >> 27 & 1);
  CHECK_FAULT(kGP, 0, xsetbv(0, 0));  // x87 is always on
  CHECK_FAULT(kGP, 0, xsetbv(0, 5));  // AVX without SSE
  CHECK_FAULT(kGP, 0, xsetbv(1, 1));
  CHECK_FAULT(kGP, 0, xsetbv(0, 1ull << 62 | 3));
  CHECK_OK(xsetbv(0, 1));
  CHECK_EQ(xgetbv(), 1);
  if (!(cpuid(1, 0).c >> 28 & 1)) return skip("AVX");
  CHECK_FAULT(kUD, 0, __asm__ volatile("vaddps %ymm0, %ymm0, %ymm0"));
  xsetbv(0, 3);
  CHECK_FAULT(kUD, 0, __asm__ volatile("vaddps %xmm0, %xmm0, %xmm0"));
  xsetbv(0, 7);
  CHECK_OK(__asm__ volatile("vaddps %ymm0, %ymm0, %ymm0"));
  CHECK_EQ(cpuid(0xd, 0).b, 832);
  set_cr0(0, kTs);
  CHECK_FAULT(kNM, 0, __asm__ volatile("vaddps %ymm0, %ymm0, %ymm0"));
  STRICT(CHECK_FAULT(kNM, 0, __asm__ volatile("xsave %0" ::"m"(area), "a"(7), "d"(0))));
  set_cr0(kTs, 0);
  // Round trip of an upper half.
  uint64_t value = 0x123456789abcdef0, got = 0;
  memset(area, 0, sizeof(area));
  __asm__ volatile("vmovq %0, %%xmm9; vinsertf128 $1, %%xmm9, %%ymm9, %%ymm9; xsave64 %1; vzeroall" ::"r"(value), "m"(area),
                   "a"(7), "d"(0)
                   : "memory");
  CHECK_EQ(*(uint64_t*)(area + 576 + 9 * 16), value);
  CHECK_EQ(*(uint64_t*)(area + 512) & 6, 6);
  __asm__ volatile("xrstor64 %1; vextractf128 $1, %%ymm9, %%xmm1; vmovq %%xmm1, %0" : "=r"(got) : "m"(area), "a"(7), "d"(0));
  CHECK_EQ(got, value);
  *(uint64_t*)(area + 512) = 3;
  __asm__ volatile("xrstor64 %1; vextractf128 $1, %%ymm9, %%xmm1; vmovq %%xmm1, %0" : "=r"(got) : "m"(area), "a"(7), "d"(0));
  CHECK_EQ(got, 0);
  *(uint64_t*)(area + 512) = 8;
  CHECK_FAULT(kGP, 0, __asm__ volatile("xrstor64 %0" ::"m"(area), "a"(7), "d"(0)));
  *(uint64_t*)(area + 512) = 7;
  CHECK_FAULT(kGP, 0, __asm__ volatile("xrstor64 8+%0" ::"m"(*area), "a"(7), "d"(0)));
  xsave_parts();
  // 256-bit arithmetic, legacy SSE keeps the upper half, VEX.128 clears it.
  static uint32_t eight[8] __attribute__((aligned(32))) = {1, 2, 3, 4, 5, 6, 7, 8};
  uint32_t out[8] __attribute__((aligned(32)));
  __asm__ volatile("vmovups %1, %%ymm2; paddd %%xmm2, %%xmm2; vmovups %%ymm2, %0" : "=m"(out) : "m"(eight));
  CHECK_EQ(out[3], 8);
  CHECK_EQ(out[4], 5);
  __asm__ volatile("vmovups %1, %%ymm2; vpaddd %%xmm2, %%xmm2, %%xmm2; vmovups %%ymm2, %0" : "=m"(out) : "m"(eight));
  CHECK_EQ(out[3], 8);
  CHECK_EQ(out[4], 0);
  CHECK_FAULT(kGP, 0, __asm__ volatile("vmovaps 16+%0, %%ymm2" ::"m"(*eight)));
  // A gather whose third element is not there: what is done stays done.
  if (!(cpuid(7, 0).b >> 5 & 1)) return skip("AVX2");
  static const uint64_t index[4] = {0, 8, 0x7000000000, 16};
  static uint64_t memory[3] = {100, 200, 300};
  uint64_t mask[4], data[4];
  STRICT(CHECK_FAULT(kPF, 0, __asm__ volatile("vmovdqu %0, %%ymm1; vpcmpeqd %%ymm2, %%ymm2, %%ymm2; vpxor %%ymm0, %%ymm0, %%ymm0;"
                                       "vpgatherqq %%ymm2, (%1, %%ymm1, 1), %%ymm0" ::"m"(index), "r"(memory))));
  __asm__ volatile("vmovdqu %%ymm2, %0; vmovdqu %%ymm0, %1" : "=m"(mask), "=m"(data));
  STRICT(CHECK_EQ(data[0], 100));
  STRICT(CHECK_EQ(data[1], 200));
  STRICT(CHECK_EQ(mask[1], 0));
  STRICT(CHECK_EQ(mask[2], ~0ull));
}

static uint8_t* const window = (uint8_t*)0x40000000;  // two pages, the second absent

static void map_window(void) {
  // The guest's tables map the first gigabyte with large pages; this is the second.
  static uint64_t directory[512] __attribute__((aligned(4096))), table[512] __attribute__((aligned(4096)));
  static uint8_t page[4096] __attribute__((aligned(4096)));
  uint64_t* pml4 = (uint64_t*)(read_cr3() & ~0xfffull);
  uint64_t* pdpt = (uint64_t*)(pml4[0] & 0xffffffffff000);
  table[0] = (uint64_t)page | 3;
  directory[0] = (uint64_t)table | 3;
  pdpt[1] = (uint64_t)directory | 3;
  write_cr3(read_cr3());
}

static uint64_t high_of_zmm29(void) {
  uint64_t value;
  __asm__ volatile("vextracti64x2 $3, %%zmm29, %%xmm1; vmovq %%xmm1, %0" : "=r"(value));
  return value;
}
static uint64_t k6(void) {
  uint64_t value;
  __asm__ volatile("kmovq %%k6, %0" : "=r"(value));
  return value;
}

// AVX-512's components one by one, in areas that lie on two pages at every possible place.
static void xsave_wide_parts(void) {
  static uint8_t pages[8192] __attribute__((aligned(4096)));
  const unsigned opmask = cpuid(0xd, 5).b, high = cpuid(0xd, 6).b, upper = cpuid(0xd, 7).b;
  for (unsigned before = 64; before < 2688; before += 192) {
    uint8_t* at = pages + 4096 - before;
    const uint64_t value = (uint64_t)before * 0x0101010101010101;
    memset(pages, 0xa5, sizeof(pages));
    memset(at + 512, 0, 64);
    __asm__ volatile("vpbroadcastq %0, %%zmm29; vpbroadcastq %0, %%zmm9; kmovq %0, %%k6" ::"r"(value));
    XSTATE("xsave64", at, 0xe7);
    CHECK_EQ(*(uint64_t*)(at + 512) & 0xe0, 0xe0);
    CHECK_EQ(*(uint64_t*)(at + opmask + 6 * 8), value);
    CHECK_EQ(*(uint64_t*)(at + high + 9 * 32), value);
    CHECK_EQ(*(uint64_t*)(at + upper + 13 * 64 + 56), value);
    CHECK_EQ(at[upper + 1024], 0xa5);
    // What is not asked for stays in the registers; what is not in the area becomes initial.
    __asm__ volatile("vpxorq %zmm29, %zmm29, %zmm29; kxorq %k6, %k6, %k6");
    XSTATE("xrstor", at, 0x20);
    CHECK_EQ(k6(), value);
    CHECK_EQ(high_of_zmm29(), 0);
    XSTATE("xrstor", at, 0xc7);
    CHECK_EQ(high_of_zmm29(), value);
    *(uint64_t*)(at + 512) &= ~0x80ull;
    XSTATE("xrstor64", at, 0xe7);
    CHECK_EQ(high_of_zmm29(), 0);
    CHECK_EQ(k6(), value);
    // Initial components: their bits are clear, and XSAVEOPT leaves their places alone.
    __asm__ volatile("kxorq %k6, %k6, %k6");
    for (unsigned k = 0; k < 8; ++k) *(uint64_t*)(at + opmask + 8 * k) = 0;
    XSTATE("xrstor64", at, 0x20);
    memset(at + opmask, 0xa5, 64);
    XSTATE("xsaveopt", at, 0x20);
    CHECK_EQ(*(uint64_t*)(at + opmask), *(uint64_t*)(at + 512) & 0x20 ? 0 : 0xa5a5a5a5a5a5a5a5);
    CHECK_EQ(*(uint64_t*)(at + 512) & 0x46, 0x46);
    CHECK_EQ(at[-1], 0xa5);
  }
}

static void avx512(void) {
  section("AVX-512");
  if (!(cpuid(7, 0).b >> 16 & 1)) return skip("AVX-512");
  CHECK_FAULT(kUD, 0, __asm__ volatile("vaddps %zmm0, %zmm0, %zmm0"));
  CHECK_FAULT(kUD, 0, __asm__ volatile("kmovq %k1, %k2"));
  CHECK_FAULT(kGP, 0, xsetbv(0, 0x27));
  CHECK_FAULT(kGP, 0, xsetbv(0, 0xe3));
  CHECK_OK(xsetbv(0, 0xe7));
  CHECK_EQ(xgetbv(), 0xe7);
  CHECK_EQ(cpuid(0xd, 0).b, 2688);
  CHECK_OK(__asm__ volatile("vaddps %zmm0, %zmm0, %zmm0; kmovq %k1, %k2"));
  map_window();

  // Masked accesses across the end of a page: only what is selected faults.
  uint32_t* last = (uint32_t*)(window + 4096 - 16);
  for (unsigned i = 0; i < 4; ++i) last[i] = 100 + i;
  uint32_t out[16], in[16];
  for (unsigned i = 0; i < 16; ++i) in[i] = i + 1;
  volatile uint64_t mask = 0xf;
  CHECK_OK(__asm__ volatile("kmovq %1, %%k1; vmovdqu32 (%2), %%zmm1%{%%k1%}%{z%}; vmovdqu32 %%zmm1, %0"
                            : "=m"(out)
                            : "r"(mask), "r"(last)));
  CHECK_EQ(out[3], 103);
  CHECK_EQ(out[4], 0);
  mask = 0x1f;
  CHECK_FAULT(kPF, 0, __asm__ volatile("kmovq %0, %%k1; vmovdqu32 (%1), %%zmm1%{%%k1%}" ::"r"(mask), "r"(last)));
  CHECK_EQ(read_cr2(), (reg)window + 4096);
  CHECK_FAULT(kPF, 2, __asm__ volatile("kmovq %0, %%k1; vmovdqu32 %2, %%zmm1; vmovdqu32 %%zmm1, (%1)%{%%k1%}" ::"r"(mask),
                                       "r"(last), "m"(in)));
  CHECK_EQ(last[0], 100);
  // Compressed: four elements fit.
  mask = 0x8421;
  CHECK_OK(__asm__ volatile("kmovq %0, %%k1; vmovdqu32 %2, %%zmm1; vpcompressd %%zmm1, (%1)%{%%k1%}" ::"r"(mask), "r"(last),
                            "m"(in)
                            : "memory"));
  CHECK_EQ(last[0], 1);
  CHECK_EQ(last[3], 16);
  CHECK_OK(__asm__ volatile("vpxord %%zmm1, %%zmm1, %%zmm1; vpexpandd (%1), %%zmm1%{%%k1%}; vmovdqu32 %%zmm1, %0"
                            : "=m"(out)
                            : "r"(last)));
  CHECK_EQ(out[10], 11);
  CHECK_EQ(out[9], 0);

  // A gather and a scatter into the absent page stop there and go on.
  uint32_t index[16];
  for (unsigned i = 0; i < 16; ++i) index[i] = i & 3;
  index[9] = 4;
  mask = 0xffff;
  CHECK_FAULT(kPF, 0,
              __asm__ volatile("kmovq %0, %%k1; vmovdqu32 %2, %%zmm2; vpxord %%zmm1, %%zmm1, %%zmm1;"
                               "vpgatherdd (%1,%%zmm2,4), %%zmm1%{%%k1%}" ::"r"(mask),
                               "r"(last), "m"(index)));
  __asm__ volatile("kmovq %%k1, %0; vmovdqu32 %%zmm1, %1" : "=r"(mask), "=m"(out));
  CHECK_EQ(mask & 0x3ff, 0x200);
  CHECK_EQ(out[7], 16);
  CHECK_EQ(out[9], 0);
  mask = 0xffff;
  CHECK_FAULT(kPF, 2,
              __asm__ volatile("kmovq %0, %%k1; vmovdqu32 %2, %%zmm2; vmovdqu32 %3, %%zmm1;"
                               "vpscatterdd %%zmm1, (%1,%%zmm2,4)%{%%k1%}" ::"r"(mask),
                               "r"(last), "m"(index), "m"(in)
                               : "memory"));
  __asm__ volatile("kmovq %%k1, %0" : "=r"(mask));
  CHECK_EQ(mask, 0xfe00);
  CHECK_EQ(last[0], 9);
  CHECK_EQ(last[1], 6);

  // Registers 16 to 31 and the masks through XSAVE and XRSTOR, at the places that CPUID tells.
  uint64_t value = 0x0123456789abcdef, got = 0;
  memset(area, 0, sizeof(area));
  __asm__ volatile("vpbroadcastq %0, %%zmm29; vpbroadcastq %0, %%zmm9; kmovq %0, %%k6; xsave64 %1;"
                   "vpxorq %%zmm29, %%zmm29, %%zmm29; vzeroall; kxorq %%k6, %%k6, %%k6" ::"r"(value),
                   "m"(area), "a"(0xe7), "d"(0)
                   : "memory");
  CHECK_EQ(*(uint64_t*)(area + cpuid(0xd, 5).b + 6 * 8), value);
  CHECK_EQ(*(uint64_t*)(area + cpuid(0xd, 6).b + 9 * 32 + 24), value);
  CHECK_EQ(*(uint64_t*)(area + cpuid(0xd, 7).b + 13 * 64 + 56), value);
  __asm__ volatile("xrstor64 %1; kmovq %%k6, %0" : "=r"(got) : "m"(area), "a"(0xe7), "d"(0));
  CHECK_EQ(got, value);
  __asm__ volatile("vextracti64x2 $3, %%zmm29, %%xmm1; vmovq %%xmm1, %0" : "=r"(got));
  CHECK_EQ(got, value);
  xsave_wide_parts();
  __asm__ volatile("vpbroadcastq %0, %%zmm9" ::"r"(value));
  // VEX clears what is above its length.
  __asm__ volatile("vpaddd %%ymm9, %%ymm9, %%ymm9; vextracti64x2 $3, %%zmm9, %%xmm1; vmovq %%xmm1, %0" : "=r"(got));
  CHECK_EQ(got, 0);
  // Two widenings of the state survive what the processor does in between.
  uint64_t sum = 0;
  for (unsigned i = 0; i < 1000; ++i) {
    __asm__ volatile("vpbroadcastq %0, %%zmm30; kmovq %0, %%k7" ::"r"((uint64_t)i));
    cpuid(0, 0);
    uint64_t a, b;
    __asm__ volatile("vextracti64x2 $2, %%zmm30, %%xmm1; vmovq %%xmm1, %0; kmovq %%k7, %1" : "=r"(a), "=r"(b));
    sum += a + b;
  }
  CHECK_EQ(sum, 999 * 1000);
  xsetbv(0, 7);
  CHECK_FAULT(kUD, 0, __asm__ volatile("kmovq %k1, %k2"));
}

void guest_main(void) {
  guards();
  lazily();
  x87_errors();
  simd_errors();
  through_interrupts();
  xsave_and_avx();
  avx512();
}
