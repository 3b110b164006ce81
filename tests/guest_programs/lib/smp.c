#include "smp.h"

extern const uint8_t smp_trampoline[], smp_trampoline_end[];
unsigned smp_count = 1;
struct smp_cpu smp_cpus[kMaxCpus];
uint8_t smp_stacks[kMaxCpus << 14] __attribute__((aligned(4096)));

enum { kApicBase = 0x1b, kGsBase = 0xc0000101 };

static volatile uint32_t* const apic = (volatile uint32_t*)0xfee00000;
uint32_t apic_read(unsigned at) { return apic[at / 4]; }
void apic_write(unsigned at, uint32_t value) { apic[at / 4] = value; }
void apic_eoi(void) { apic_write(0xb0, 0); }

void apic_command(uint32_t low, unsigned destination) {
  const reg flags = read_flags();
  cli();
  apic_write(0x310, destination << 24);
  apic_write(0x300, low);
  write_flags(flags);
}

unsigned smp_self(void) {
  unsigned index;
  __asm__ volatile("movl %%gs:%c1, %0" : "=r"(index) : "i"(offsetof(struct smp_cpu, index)));
  return index;
}

void smp_count_interrupt(struct frame* frame) {
  ++smp_cpus[smp_self()].interrupts[frame->vector];
  apic_eoi();
}

static void (*volatile call)(void);
static volatile unsigned calls_left;
static void on_call(struct frame* frame) {
  (void)frame;
  call();
  __atomic_sub_fetch(&calls_left, 1, __ATOMIC_SEQ_CST);
  apic_eoi();
}

void smp_call_others(void (*function)(void)) {
  call = function;
  calls_left = smp_count - 1;
  compiler_barrier();
  apic_command(0xc4000 | kCallVector, 0);
  while (calls_left != 0) pause();
}

#define RECOVERABLE(access) \
  "leaq 1f(%%rip), %%rax\n movq %%rax, %%gs:%c3\n movl $0, %0\n " access "\n movl $1, %0\n 1: movq $0, %%gs:%c3"

bool smp_try_store(volatile void* at, uint64_t value) {
  int done;
  __asm__ volatile(RECOVERABLE("movq %2, (%1)")
                   : "=&r"(done)
                   : "r"(at), "r"(value), "i"(offsetof(struct smp_cpu, recover))
                   : "rax", "memory");
  return done;
}

bool smp_try_load(const volatile void* at, uint64_t* value) {
  int done;
  uint64_t loaded = 0;
  __asm__ volatile(RECOVERABLE("movq (%2), %1")
                   : "=&r"(done), "+&r"(loaded)
                   : "r"(at), "i"(offsetof(struct smp_cpu, recover))
                   : "rax", "memory");
  *value = loaded;
  return done;
}

extern uint64_t pml4[512];
static uint64_t t3[512] __attribute__((aligned(4096))), t2[512] __attribute__((aligned(4096)));
volatile uint64_t smp_page_table[512] __attribute__((aligned(4096)));
void smp_map_pages(void) {
  t2[0] = (reg)smp_page_table | 7;
  t3[0] = (reg)t2 | 7;
  pml4[1] = (reg)t3 | 7;
}

static void ignore(struct frame* frame) {
  (void)frame;
  apic_eoi();
}

static void page_fault(struct frame* frame) {
  struct smp_cpu* cpu = &smp_cpus[smp_self()];
  cpu->fault_address = read_cr2();
  if (cpu->recover == 0) {
    guest_handlers[kPF] = 0;
    guest_interrupt(frame);
    return;
  }
  ++cpu->faults;
  frame->ip = cpu->recover;
}

static void setup(unsigned index) {
  smp_cpus[index].self = &smp_cpus[index];
  smp_cpus[index].index = index;
  wrmsr(kGsBase, (reg)&smp_cpus[index]);
  apic_write(0xf0, 0x1ff);
  apic_write(0x80, 0);
}

void smp_enter(unsigned index) {
  struct smp_cpu* cpu = &smp_cpus[index];
  setup(index);
  cpu->work = 0;
  cpu->recover = 0;
  compiler_barrier();
  ++cpu->starts;
  for (;;) {
    cli();
    void (*work)(unsigned) = cpu->work;
    if (work == 0) {
      __asm__ volatile("sti; hlt" ::: "memory");
      continue;
    }
    sti();
    work(index);
    cli();
    compiler_barrier();
    cpu->work = 0;
  }
}

void smp_delay(unsigned microseconds) {
  const uint64_t end = rdtsc() + (uint64_t)microseconds * 2500;
  while (rdtsc() < end) pause();
}

void smp_init(unsigned cpu) { apic_command(0x4500, cpu); }
void smp_sipi(unsigned cpu) { apic_command(0x4600 | SMP_TRAMPOLINE >> 12, cpu); }

bool smp_wait_started(unsigned cpu, unsigned starts) {
  const uint64_t end = rdtsc() + 25000000000ull;  // seconds: the host may be busy
  while (smp_cpus[cpu].starts < starts && rdtsc() < end) pause();
  return smp_cpus[cpu].starts >= starts;
}

void smp_start(void) {
  outb(0x21, 0xff);
  outb(0xa1, 0xff);
  memcpy((void*)(reg)SMP_TRAMPOLINE, smp_trampoline, (size_t)(smp_trampoline_end - smp_trampoline));
  for (unsigned v = 0x20; v < 0x100; ++v) guest_handlers[v] = smp_count_interrupt;
  guest_handlers[kWorkVector] = ignore;
  guest_handlers[kCallVector] = on_call;
  guest_handlers[kPF] = page_fault;
  setup(0);
  // Who is there? All that answer; CPUID says how many to wait for, where it knows.
  const unsigned expected = cpuid(1, 0).b >> 16 & 0xff;
  apic_command(0xc4500, 0);
  smp_delay(10000);
  apic_command(0xc4600 | SMP_TRAMPOLINE >> 12, 0);
  smp_delay(200);
  apic_command(0xc4600 | SMP_TRAMPOLINE >> 12, 0);
  if (expected > 1)
    for (unsigned i = 1; i < expected && i < kMaxCpus; ++i) CHECK(smp_wait_started(i, 1));
  else
    smp_delay(300000);
  while (smp_count < kMaxCpus && smp_cpus[smp_count].starts != 0) ++smp_count;
  put_number("processors", smp_count);
  sti();
}

void smp_post(unsigned cpu, void (*function)(unsigned cpu)) {
  smp_cpus[cpu].work = function;
  smp_ipi(cpu, kWorkVector);
}

void smp_wait(unsigned cpu) {
  while (smp_cpus[cpu].work != 0) pause();
}

void smp_run(unsigned count, void (*function)(unsigned cpu)) {
  for (unsigned i = 1; i < count; ++i) smp_post(i, function);
  function(0);
  for (unsigned i = 1; i < count; ++i) smp_wait(i);
}

void smp_barrier(struct smp_barrier* barrier, unsigned count) {
  const unsigned round = barrier->round;
  if (__atomic_add_fetch(&barrier->arrived, 1, __ATOMIC_SEQ_CST) == count) {
    barrier->arrived = 0;
    __atomic_add_fetch(&barrier->round, 1, __ATOMIC_SEQ_CST);
    return;
  }
  while (barrier->round == round) pause();
}

bool smp_more(unsigned i, unsigned wanted) {
  static uint64_t end;
  if (i == 0) end = rdtsc() + 2000000000ull;
  return i < wanted && (i < 4 || rdtsc() < end);
}

uint32_t smp_random(uint32_t* state) {
  *state = *state * 1664525 + 1013904223;
  return *state >> 8;
}

void put_number(const char* name, uint64_t value) {
  put_text("  ");
  put_text(name);
  put_text(" ");
  put_hex(value);
  put_text("\n");
}
