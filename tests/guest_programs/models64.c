// The CPU model: what CPUID does not show is not there. Each feature's representative instruction raises #UD exactly
// where its bit is clear; bits of control registers and MSRs that come with a feature raise #GP without it;
// instructions that are others without their feature (TZCNT and LZCNT) are those; XSAVE writes the components that
// CPUID shows.
#include "guest.h"

enum {
  kOsFxsr = 1 << 9,
  kOsXmmExcpt = 1 << 10,
  kUmip = 1 << 11,
  kFsGsBase = 1 << 16,
  kPcide = 1 << 17,
  kOsXsave = 1 << 18,
  kSmep = 1 << 20,
  kSmap = 1 << 21
};
enum { kNxe = 1 << 11 };
static const uint32_t kEfer = 0xc0000080;

struct feature {
  const char* name;
  uint32_t leaf, subleaf;
  char reg;
  uint8_t bit;
  uint8_t bytes[8];  // RAX = 2, RCX = 0, RDX = 0, RDI = a buffer
};
static const struct feature features[] = {
    {"CMOV", 1, 0, 'd', 15, {0x0f, 0x44, 0xc1}},
    {"CLFSH", 1, 0, 'd', 19, {0x0f, 0xae, 0x3f}},
    {"MMX", 1, 0, 'd', 23, {0x0f, 0xfc, 0xc1}},
    {"FXSR", 1, 0, 'd', 24, {0x0f, 0xae, 0x07}},
    {"SSE", 1, 0, 'd', 25, {0x0f, 0x58, 0xc1}},
    {"SSE, LDMXCSR", 1, 0, 'd', 25, {0x0f, 0xae, 0x57, 0x40}},
    {"SSE2", 1, 0, 'd', 26, {0x66, 0x0f, 0x58, 0xc1}},
    {"SSE3", 1, 0, 'c', 0, {0xf2, 0x0f, 0x12, 0xc1}},
    {"SSE3, FISTTP", 1, 0, 'c', 0, {0xdb, 0x0f}},
    {"PCLMULQDQ", 1, 0, 'c', 1, {0x66, 0x0f, 0x3a, 0x44, 0xc1}},
    {"SSSE3", 1, 0, 'c', 9, {0x66, 0x0f, 0x38, 0x00, 0xc1}},
    {"SSSE3, MMX", 1, 0, 'c', 9, {0x0f, 0x38, 0x00, 0xc1}},
    {"FMA", 1, 0, 'c', 12, {0xc4, 0xe2, 0xf1, 0x98, 0xc2}},
    {"CX16", 1, 0, 'c', 13, {0x48, 0x0f, 0xc7, 0x0f}},
    {"SSE4.1", 1, 0, 'c', 19, {0x66, 0x0f, 0x38, 0x17, 0xc1}},
    {"SSE4.2", 1, 0, 'c', 20, {0x66, 0x0f, 0x38, 0x37, 0xc1}},
    {"SSE4.2, CRC32", 1, 0, 'c', 20, {0xf2, 0x0f, 0x38, 0xf1, 0xc1}},
    {"MOVBE", 1, 0, 'c', 22, {0x0f, 0x38, 0xf0, 0x07}},
    {"POPCNT", 1, 0, 'c', 23, {0xf3, 0x0f, 0xb8, 0xc1}},
    {"AES", 1, 0, 'c', 25, {0x66, 0x0f, 0x38, 0xdc, 0xc1}},
    {"XSAVE", 1, 0, 'c', 26, {0x0f, 0xae, 0x27}},
    {"XSAVE, XGETBV", 1, 0, 'c', 26, {0x0f, 0x01, 0xd0}},
    {"AVX", 1, 0, 'c', 28, {0xc5, 0xf8, 0x58, 0xc1}},
    {"AVX, VZEROUPPER", 1, 0, 'c', 28, {0xc5, 0xf8, 0x77}},
    {"F16C", 1, 0, 'c', 29, {0xc4, 0xe2, 0x79, 0x13, 0xc1}},
    {"RDRAND", 1, 0, 'c', 30, {0x0f, 0xc7, 0xf0}},
    {"FSGSBASE", 7, 0, 'b', 0, {0xf3, 0x48, 0x0f, 0xae, 0xc8}},
    {"BMI1", 7, 0, 'b', 3, {0xc4, 0xe2, 0x78, 0xf2, 0xc1}},
    {"AVX2", 7, 0, 'b', 5, {0xc4, 0xe2, 0x7d, 0x00, 0xc1}},
    {"BMI2", 7, 0, 'b', 8, {0xc4, 0xe2, 0x7b, 0xf5, 0xc1}},
    {"INVPCID", 7, 0, 'b', 10, {0x66, 0x0f, 0x38, 0x82, 0x07}},
    {"AVX512F", 7, 0, 'b', 16, {0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc1}},
    {"AVX512F, KMOVW", 7, 0, 'b', 16, {0xc5, 0xf8, 0x92, 0xc8}},
    {"AVX512DQ", 7, 0, 'b', 17, {0x62, 0xf1, 0x7c, 0x48, 0x54, 0xc1}},
    {"RDSEED", 7, 0, 'b', 18, {0x0f, 0xc7, 0xf8}},
    {"ADX", 7, 0, 'b', 19, {0x66, 0x0f, 0x38, 0xf6, 0xc1}},
    {"SMAP", 7, 0, 'b', 20, {0x0f, 0x01, 0xca}},
    {"AVX512_IFMA", 7, 0, 'b', 21, {0x62, 0xf2, 0xed, 0x48, 0xb4, 0xcb}},
    {"CLWB", 7, 0, 'b', 24, {0x66, 0x0f, 0xae, 0x37}},
    {"AVX512CD", 7, 0, 'b', 28, {0x62, 0xf2, 0x7d, 0x48, 0xc4, 0xc1}},
    {"SHA", 7, 0, 'b', 29, {0x0f, 0x38, 0xc8, 0xc1}},
    {"AVX512BW", 7, 0, 'b', 30, {0x62, 0xf1, 0x7d, 0x48, 0xfc, 0xc1}},
    {"AVX512VL", 7, 0, 'b', 31, {0x62, 0xf1, 0x7c, 0x08, 0x58, 0xc1}},
    {"AVX512_VBMI", 7, 0, 'c', 1, {0x62, 0xf2, 0x6d, 0x48, 0x8d, 0xcb}},
    {"AVX512_VBMI2", 7, 0, 'c', 6, {0x62, 0xf2, 0x7d, 0x48, 0x63, 0xc1}},
    {"GFNI", 7, 0, 'c', 8, {0x66, 0x0f, 0x38, 0xcf, 0xc1}},
    {"VAES", 7, 0, 'c', 9, {0xc4, 0xe2, 0x7d, 0xdc, 0xc1}},
    {"VPCLMULQDQ", 7, 0, 'c', 10, {0xc4, 0xe3, 0x7d, 0x44, 0xc1}},
    {"AVX512_VNNI", 7, 0, 'c', 11, {0x62, 0xf2, 0x75, 0x48, 0x50, 0xc2}},
    {"AVX512_BITALG", 7, 0, 'c', 12, {0x62, 0xf2, 0x7d, 0x48, 0x54, 0xc1}},
    {"AVX512_VPOPCNTDQ", 7, 0, 'c', 14, {0x62, 0xf2, 0x7d, 0x48, 0x55, 0xc1}},
    {"RDPID", 7, 0, 'c', 22, {0xf3, 0x0f, 0xc7, 0xf8}},
    {"AVX512_FP16", 7, 0, 'd', 23, {0x62, 0xf5, 0x7c, 0x48, 0x58, 0xc1}},
    {"AVX512_BF16", 7, 1, 'a', 5, {0x62, 0xf2, 0x76, 0x48, 0x52, 0xc2}},
    {"XSAVEOPT", 0xd, 1, 'a', 0, {0x0f, 0xae, 0x37}},
    {"LAHF", 0x80000001, 0, 'c', 0, {0x9f}},
    {"RDTSCP", 0x80000001, 0, 'd', 27, {0x0f, 0x01, 0xf9}},
};

static uint8_t buffer[4096] __attribute__((aligned(64)));
static uint8_t code[64] __attribute__((aligned(64)));

static bool has(uint32_t leaf, uint32_t subleaf, char reg, unsigned bit) {
  if (leaf > cpuid(leaf & 0x80000000, 0).a) return false;
  const struct cpuid r = cpuid(leaf, subleaf);
  return (reg == 'a' ? r.a : reg == 'b' ? r.b : reg == 'c' ? r.c : r.d) >> bit & 1;
}

// The exception that the instruction raises, or kNone.
static int run_bytes(const uint8_t* bytes) {
  memset(buffer, 0, sizeof buffer);
  buffer[0x40 + 1] = 0x1f;  // MXCSR for LDMXCSR
  buffer[0x40] = 0x80;
  unsigned length = 8;
  while (length > 1 && bytes[length - 1] == 0) --length;
  // An immediate of 0 or a displacement may follow: NOPs would be read as such, zeros and a RET as well.
  memset(code, 0x90, sizeof code);
  memcpy(code, bytes, length);
  if (bytes[0] == 0x66 && bytes[2] == 0x3a) code[length++] = 0;
  if (bytes[0] == 0xc4 && (bytes[1] & 0x1f) == 3) code[length++] = 0;
  code[length] = 0xc3;
  TRY({
    reg a = 2, c = 0, d = 0, i = (reg)buffer;
    __asm__ volatile("call *%4" : "+a"(a), "+c"(c), "+d"(d), "+D"(i) : "r"((reg)code) : "rsi", "r8", "memory", "cc");
  });
  return guest_last.vector;
}

static void check_features(void) {
  for (unsigned i = 0; i < sizeof features / sizeof *features; ++i) {
    const struct feature* f = &features[i];
    const bool there = has(f->leaf, f->subleaf, f->reg, f->bit);
    const int vector = run_bytes(f->bytes);
    check_equal(f->name, __LINE__, vector == kUD, !there);
  }
}

static const uint8_t vaddps[8] = {0xc5, 0xf8, 0x58, 0xc1}, andn[8] = {0xc4, 0xe2, 0x78, 0xf2, 0xc1},
                     vaddps_zmm[8] = {0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc1};

static void xsetbv(uint64_t value) {
  __asm__ volatile("xsetbv" ::"a"((uint32_t)value), "d"((uint32_t)(value >> 32)), "c"(0));
}

static __attribute__((noinline)) int try_xsetbv(uint64_t value) { return TRY(xsetbv(value))->vector; }

static void extended_state(void) {
  section("XCR0 and the XSAVE area");
  CHECK_FAULT(kUD, 0, xsetbv(3));  // OSXSAVE is clear
  if (!has(1, 0, 'c', 26)) {
    CHECK_FAULT(kGP, 0, write_cr4(read_cr4() | kOsXsave));
    CHECK_EQ(cpuid(0xd, 0).a | cpuid(0xd, 0).b | cpuid(0xd, 0).c | cpuid(0xd, 1).a, 0);
    return skip("XSAVE");
  }
  check_equal("AVX without OSXSAVE", __LINE__, run_bytes(vaddps), kUD);
  check_equal("AVX-512 without OSXSAVE", __LINE__, run_bytes(vaddps_zmm), kUD);
  check_equal("ANDN without OSXSAVE", __LINE__, run_bytes(andn) == kUD, !has(7, 0, 'b', 3));
  write_cr4(read_cr4() | kOsXsave);
  check_equal("AVX without its state", __LINE__, run_bytes(vaddps), kUD);
  const struct cpuid state = cpuid(0xd, 0);
  const uint64_t mask = (uint64_t)state.d << 32 | state.a;
  CHECK_EQ(mask & 3, 3);
  CHECK_EQ(mask >> 2 & 1, has(1, 0, 'c', 28));
  CHECK_EQ(mask >> 5 & 7, has(7, 0, 'b', 16) ? 7 : 0);
  for (unsigned bit = 2; bit < 63; ++bit)
    if (!(mask >> bit & 1)) check_equal("xsetbv", __LINE__, try_xsetbv(mask | 1ull << bit), kGP);
  CHECK_OK(xsetbv(mask & 7));
  if (has(7, 0, 'b', 16)) check_equal("AVX-512 without its state", __LINE__, run_bytes(vaddps_zmm), kUD);
  CHECK_OK(xsetbv(mask));
  CHECK_EQ(cpuid(0xd, 0).b, state.c);
  memset(buffer, 0xa5, sizeof buffer);
  memset(buffer + 512, 0, 64);
  __asm__ volatile("xsave %0" : "=m"(buffer) : "a"(-1), "d"(-1));
  uint64_t saved;
  memcpy(&saved, buffer + 512, 8);
  CHECK_EQ(saved & ~mask, 0);
  unsigned beyond = 0;
  for (unsigned at = state.c; at < sizeof buffer; ++at) beyond += buffer[at] != 0xa5;
  CHECK_EQ(beyond, 0);
}

static __attribute__((noinline)) int try_cr4(reg bit) {
  return TRY({
           write_cr4(read_cr4() | bit);
           write_cr4(read_cr4() & ~bit);
         })
      ->vector;
}

static void control_bits(void) {
  section("control registers");
  const struct {
    reg bit;
    uint32_t leaf;
    char reg;
    uint8_t number;
  } bits[] = {{kOsFxsr, 1, 'd', 24}, {kOsXmmExcpt, 1, 'd', 25}, {kUmip, 7, 'c', 2},   {kFsGsBase, 7, 'b', 0},
              {kPcide, 1, 'c', 17},  {kOsXsave, 1, 'c', 26},    {kSmep, 7, 'b', 7},   {kSmap, 7, 'b', 20},
              {1 << 0, 1, 'd', 1},   {1 << 12, 7, 'c', 16},     {1 << 22, 7, 'c', 3}, {1 << 23, 7, 'c', 7}};
  for (unsigned i = 0; i < sizeof bits / sizeof *bits; ++i) {
    const bool there = has(bits[i].leaf, 0, bits[i].reg, bits[i].number);
    if (there && bits[i].bit == 1 << 12) continue;  // LA57: #GP in long mode whatever CPUID says
    check_equal("a bit of CR4", __LINE__, try_cr4(bits[i].bit), there ? kNone : kGP);
  }
  const reg efer = rdmsr(kEfer);
  check_fault("EFER.NXE", __LINE__, TRY(wrmsr(kEfer, efer | kNxe)), has(0x80000001, 0, 'd', 20) ? kNone : kGP, 0);
  wrmsr(kEfer, efer);
}

static void msrs(void) {
  section("model-specific registers");
  const bool spec_ctrl = has(7, 0, 'd', 26) || has(7, 0, 'd', 27) || has(7, 0, 'd', 31);
  const bool aux = has(0x80000001, 0, 'd', 27) || has(7, 0, 'c', 22);
  check_fault("TSC_ADJUST", __LINE__, TRY((void)rdmsr(0x3b)), has(7, 0, 'b', 1) ? kNone : kGP, 0);
  check_fault("SPEC_CTRL", __LINE__, TRY((void)rdmsr(0x48)), spec_ctrl ? kNone : kGP, 0);
  check_fault("PRED_CMD", __LINE__, TRY(wrmsr(0x49, 1)), has(7, 0, 'd', 26) ? kNone : kGP, 0);
  check_fault("ARCH_CAPABILITIES", __LINE__, TRY((void)rdmsr(0x10a)), has(7, 0, 'd', 29) ? kNone : kGP, 0);
  check_fault("TSC_DEADLINE", __LINE__, TRY((void)rdmsr(0x6e0)), has(1, 0, 'c', 24) ? kNone : kGP, 0);
  check_fault("TSC_AUX", __LINE__, TRY(wrmsr(0xc0000103, 7)), aux ? kNone : kGP, 0);
  check_fault("x2APIC", __LINE__, TRY(wrmsr(0x1b, rdmsr(0x1b) | 1 << 10)), has(1, 0, 'c', 21) ? kNone : kGP, 0);
}

static void bit_scans(void) {
  section("TZCNT and LZCNT, or BSF and BSR");
  reg count;
  __asm__ volatile("rep; bsf %1, %0" : "=r"(count) : "r"((reg)0x100) : "cc");
  CHECK_EQ(count, 8);
  __asm__ volatile("rep; bsr %1, %0" : "=r"(count) : "r"((reg)0x100) : "cc");
  CHECK_EQ(count, has(0x80000001, 0, 'c', 5) ? 55 : 8);
  count = 77;
  __asm__ volatile("rep; bsf %1, %0" : "+r"(count) : "r"((reg)0) : "cc");
  CHECK_EQ(count, has(7, 0, 'b', 3) ? 64 : 77);
  count = 77;
  __asm__ volatile("rep; bsr %1, %0" : "+r"(count) : "r"((reg)0) : "cc");
  CHECK_EQ(count, has(0x80000001, 0, 'c', 5) ? 64 : 77);
}

static void hints(void) {
  section("hints are NOPs without their features");
  static const uint8_t prefetchw[8] = {0x0f, 0x0d, 0x0f}, prefetchwt1[8] = {0x0f, 0x0d, 0x17},
                       endbr[8] = {0xf3, 0x0f, 0x1e, 0xfa}, cldemote[8] = {0x0f, 0x1c, 0x07};
  check_equal("PREFETCHW", __LINE__, run_bytes(prefetchw), kNone);
  check_equal("PREFETCHWT1", __LINE__, run_bytes(prefetchwt1), kNone);
  check_equal("ENDBR64", __LINE__, run_bytes(endbr), kNone);
  check_equal("CLDEMOTE", __LINE__, run_bytes(cldemote), kNone);
}

void guest_main(void) {
  cli();
  control_bits();
  TRY(write_cr4(read_cr4() | kOsFxsr | kOsXmmExcpt));
  if (has(7, 0, 'b', 0)) write_cr4(read_cr4() | kFsGsBase);
  extended_state();
  section("instructions");
  check_features();
  section("instructions again, in code that was translated");
  check_features();
  bit_scans();
  hints();
  msrs();
}
