// A guest under load that checks itself while it goes from engine to engine: memory written and read back, a one-shot
// timer of 1 ms each of whose interrupts comes once, interrupts by the 8259, IPIs and an NMI to itself, the registers of
// x87 and SSE, and three clocks that run on together. tests/e2e/test_switch.py changes the engine meanwhile; alone it is
// a load of some seconds. "until-power" on the command line: until the power button is pressed.
#include "guest.h"

enum { kId = 0x20, kEoi = 0xb0, kSvr = 0xf0, kIcrLow = 0x300, kIcrHigh = 0x310, kLvtTimer = 0x320, kLvtLint0 = 0x350, kInitialCount = 0x380,
       kCurrentCount = 0x390, kDivide = 0x3e0, kMasked = 1 << 16, kDeadline = 2 << 17, kExtInt = 7 << 8 };
enum { kTimerVector = 0x40, kFirstIpi = 0x50, kLastIpi = 0x53, kPicVector = 0x20 };
enum { kTscDeadline = 0x6e0, kMsrSystemTime = 0x4b564d01, kPmEvent = 0x600, kPmTimer = 0x608, kPowerButton = 1 << 8 };
enum { kTicks = 1200, kPasses = 3, kWords = 16384, kStride = 8, kStallMs = 20000 };

static volatile uint32_t* const apic = (volatile uint32_t*)0xfee00000;
static uint32_t get(unsigned at) { return apic[at / 4]; }
static void put(unsigned at, uint32_t value) { apic[at / 4] = value; }

static uint64_t tsc_khz, period;
static bool by_deadline, until_power, counter_jumps;

// The clocks.
struct kvm_time {
  uint32_t version, unused;
  uint64_t tsc, system_ns;
  uint32_t multiplier;
  int8_t shift;
  uint8_t flags, unused2[2];
};
static volatile struct kvm_time kvm_time __attribute__((aligned(32)));
static bool has_kvm_time;
static uint64_t last_tsc, last_kvm_ns, first_tsc, first_kvm_ns, pm_ticks, clock_reads;
static uint32_t last_pm;

static uint64_t kvm_ns(void) {
  for (;;) {
    const uint32_t version = kvm_time.version;
    if (version & 1) continue;
    uint64_t passed = rdtsc() - kvm_time.tsc;
    passed = kvm_time.shift < 0 ? passed >> -kvm_time.shift : passed << kvm_time.shift;
    const uint64_t ns =
        kvm_time.system_ns + (uint64_t)((__extension__(unsigned __int128) passed * kvm_time.multiplier) >> 32);
    if (kvm_time.version == version) return ns;
  }
}

/// Of the clock that goes on whatever the time stamp counter does.
static uint64_t now_ms(void) { return has_kvm_time ? kvm_ns() / 1000000 : rdtsc() / tsc_khz; }

// Not interrupted.
static void look_at_clocks(bool pm) {
  const uint64_t tsc = rdtsc();
  if (tsc < last_tsc) CHECK_EQ(tsc, last_tsc);
  last_tsc = tsc;
  if (has_kvm_time) {
    const uint64_t ns = kvm_ns();
    if (ns < last_kvm_ns) CHECK_EQ(ns, last_kvm_ns);
    last_kvm_ns = ns;
    if (pm) {
      const uint32_t now = inl(kPmTimer);
      pm_ticks += (now - last_pm) & 0xffffff;
      last_pm = now;
    }
  }
  ++clock_reads;
}

// The timer: armed once, it comes once, and not before its time.
static volatile bool armed;
static volatile uint64_t due, armed_at_ms;
static volatile unsigned ticks, pic_ticks, ipis[kLastIpi + 1 - kFirstIpi], nmis;

static void arm(void) {
  const uint64_t now = rdtsc();
  due = due + period > now + period / 2 ? due + period : now + period / 2;
  armed = true;
  armed_at_ms = now_ms();
  if (by_deadline)
    wrmsr(kTscDeadline, due);
  else
    put(kInitialCount, 50000);
}

static void on_timer(struct frame* frame) {
  (void)frame;
  CHECK(armed);
  if (by_deadline && rdtsc() < due) CHECK_EQ(rdtsc(), due);
  armed = false;
  look_at_clocks(++ticks % 32 == 0);
  put(kEoi, 0);
  arm();
}

static void on_ipi(struct frame* frame) {
  ++ipis[frame->vector - kFirstIpi];
  put(kEoi, 0);
}

static void on_pic(struct frame* frame) {
  (void)frame;
  ++pic_ticks;
  pic_eoi(0);
}

static void on_nmi(struct frame* frame) {
  (void)frame;
  ++nmis;
}

static void look_for_a_stall(void) {
  cli();
  look_at_clocks(false);
  if (armed && now_ms() - armed_at_ms > kStallMs) {
    put_text("FAIL: a timer interrupt was lost\n");
    guest_exit(kFail);
  }
  sti();
}

static void wait_for_more(const volatile unsigned* counter, unsigned than) {
  const uint64_t since = now_ms();
  while (*counter == than && now_ms() - since < kStallMs) __asm__ volatile("pause");
}

static void ipis_to_myself(void) {
  static uint32_t sent;
  const unsigned first = sent++ % 4, second = (first + 1) % 4;
  const unsigned before_first = ipis[first], before_second = ipis[second], before_nmi = nmis;
  cli();
  put(kIcrHigh, 0);
  put(kIcrLow, 1u << 18 | (kFirstIpi + first));
  put(kIcrLow, 1u << 18 | (kFirstIpi + second));
  for (int i = 0; i < 200; ++i) __asm__ volatile("pause");  // time to be taken elsewhere with them waiting
  CHECK_EQ(ipis[first], before_first);
  sti();
  wait_for_more(&ipis[first], before_first);
  wait_for_more(&ipis[second], before_second);
  put(kIcrHigh, get(kId));
  put(kIcrLow, 4u << 8);  // an NMI to itself by its id: the self shorthand knows no NMI
  wait_for_more(&nmis, before_nmi);
  for (int i = 0; i < 20; ++i) __asm__ volatile("pause");
  CHECK_EQ(ipis[first], before_first + 1);
  CHECK_EQ(ipis[second], before_second + 1);
  CHECK_EQ(nmis, before_nmi + 1);
}

// Memory: what one pass wrote the next one finds.
static volatile uint64_t memory[kWords * kStride] __attribute__((aligned(4096)));
static uint64_t mixed(uint64_t i, uint64_t pass) {
  uint64_t x = i * 0x9e3779b97f4a7c15 + pass * 0xd6e8feb86659fd93;
  x ^= x >> 32;
  return x * 0xd6e8feb86659fd93;
}
static void memory_pass(uint64_t pass) {
  uint64_t wrong = 0;
  for (uint64_t i = 0; i < kWords; ++i) {
    wrong += pass != 0 && memory[i * kStride] != mixed(i, pass - 1);
    memory[i * kStride] = mixed(i, pass);
    if (i % 512 == 0) {
      look_for_a_stall();
      ipis_to_myself();
    }
    if (i % 4096 == 0) __asm__ volatile("hlt");
  }
  CHECK_EQ(wrong, 0);
}

static uint8_t vectors[512] __attribute__((aligned(16))), found[512] __attribute__((aligned(16)));
static void fill_registers(void) {
  write_cr4(read_cr4() | 1 << 9 | 1 << 10);
  write_cr0((read_cr0() & ~(reg)0xc) | 2);
  __asm__ volatile("fninit; fxsave %0" : "=m"(vectors));
  vectors[4] = 0xff;  // all of x87's registers in use
  for (unsigned i = 32; i < 416; ++i) vectors[i] = (uint8_t)(i * 37);
  for (unsigned i = 0; i < 8; ++i) memset(vectors + 32 + 16 * i + 10, 0, 6);
  __asm__ volatile("fxrstor %0; fxsave %1" ::"m"(vectors), "m"(found) : "memory");
  memcpy(vectors, found, sizeof(vectors));
}
static void check_registers(void) {
  __asm__ volatile("fxsave %0" : "=m"(found));
  CHECK_EQ(memcmp(vectors, found, 24), 0);
  CHECK_EQ(memcmp(vectors + 32, found + 32, 384), 0);
}

static bool contains(const char* text, const char* word) {
  for (; *text; ++text) {
    unsigned n = 0;
    while (word[n] && text[n] == word[n]) ++n;
    if (!word[n]) return true;
  }
  return false;
}

static const char* command_line(void) {
  const uint32_t* const info = (const uint32_t*)(reg)guest_info;
  // Multiboot's flag 2 and field 4; PVH's cmdline_paddr.
  const uint64_t at = guest_magic == 0x2badb002 ? (info[0] & 4 ? info[4] : 0) : *(const uint64_t*)(info + 6);
  return at ? (const char*)at : "";
}

static void set_up(void) {
  until_power = contains(command_line(), "until-power");
  counter_jumps = contains(command_line(), "counter-jumps");
  const struct cpuid hypervisor = cpuid(0x40000000, 0);
  has_kvm_time = hypervisor.b == 0x4b4d564b && (cpuid(0x40000001, 0).a >> 3 & 1);
  tsc_khz = hypervisor.b == 0x4b4d564b && hypervisor.a >= 0x40000010 ? cpuid(0x40000010, 0).a : 2000000;
  period = tsc_khz;
  by_deadline = cpuid(1, 0).c >> 24 & 1;
  guest_handlers[kTimerVector] = on_timer;
  guest_handlers[kPicVector] = on_pic;
  guest_handlers[2] = on_nmi;
  for (unsigned v = kFirstIpi; v <= kLastIpi; ++v) guest_handlers[v] = on_ipi;
  if (has_kvm_time) {
    wrmsr(kMsrSystemTime, (reg)&kvm_time | 1);
    last_kvm_ns = first_kvm_ns = kvm_ns();
    last_pm = inl(kPmTimer);
  }
  last_tsc = first_tsc = rdtsc();
  fill_registers();
  put(kSvr, 0x1ff);
  put(kLvtLint0, kExtInt);
  pic_setup(kPicVector, 1);
  pit_rate(11932);  // 100 Hz
  put(kDivide, 0xb);
  put(kLvtTimer, by_deadline ? kDeadline | kTimerVector : kTimerVector);
}

static void report(const char* what, uint64_t value) {
  put_text(what);
  put_hex(value);
  put_text("\n");
}

void guest_main(void) {
  section("a load");
  set_up();
  due = rdtsc();
  arm();
  sti();
  uint64_t pass = 0;
  for (bool more = true; more; ++pass) {
    memory_pass(pass);
    check_registers();
    more = until_power ? (inl(kPmEvent) & kPowerButton) == 0 : ticks < kTicks || pass < kPasses;
  }
  cli();
  section("what was counted");
  CHECK(ticks > 0);
  CHECK(pic_ticks > 0);
  if (has_kvm_time) {
    look_at_clocks(true);
    // By the time stamp counter, KVM's clock and ACPI's timer: within 1%.
    const uint64_t tsc_us = (last_tsc - first_tsc) * 1000 / tsc_khz, kvm_us = (last_kvm_ns - first_kvm_ns) / 1000;
    const uint64_t pm_us = pm_ticks * 1000000 / 3579545;
    CHECK(kvm_us > pm_us - pm_us / 100 && kvm_us < pm_us + pm_us / 100);
    CHECK(tsc_us > pm_us - pm_us / 100 && (counter_jumps || tsc_us < pm_us + pm_us / 100));
    report("microseconds ", tsc_us);
    report("  by KVM's clock ", kvm_us);
    report("  by ACPI's timer ", pm_us);
  }
  report("timer interrupts ", ticks);
  report("8259 interrupts ", pic_ticks);
  report("IPIs ", ipis[0] + ipis[1] + ipis[2] + ipis[3]);
  report("NMIs ", nmis);
  report("passes over memory ", pass);
  report("looks at clocks ", clock_reads);
}
