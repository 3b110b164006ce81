// Several processors for 64-bit guest programs: starting them, running a function on all of them, barriers, interrupts
// between them. Processor 0 is the boot processor; it alone may use CHECK, TRY and the console.
#pragma once

#include "guest.h"

enum { kMaxCpus = 32, kWorkVector = 0xf0, kCallVector = 0xf1, kLine = 64 };
#define SMP_TRAMPOLINE 0x8000

struct smp_cpu {
  struct smp_cpu* self;
  unsigned index;
  volatile reg recover;      // #PF handler: go on here (0: the fault is unexpected)
  volatile unsigned faults;  // #PF taken that way
  volatile reg fault_address;
  volatile unsigned interrupts[256];
  void (*volatile work)(unsigned cpu);
  volatile unsigned starts;  // times it came through the trampoline
} __attribute__((aligned(64)));

extern unsigned smp_count;  // after smp_start: processors, the boot processor among them
extern struct smp_cpu smp_cpus[kMaxCpus];
extern uint8_t smp_stacks[kMaxCpus << 14];

void smp_start(void);
// Runs the function on processors 0 to count - 1 and returns when all of them are through.
void smp_run(unsigned count, void (*function)(unsigned cpu));
// On one other processor, at once returning; smp_wait waits for its end.
void smp_post(unsigned cpu, void (*function)(unsigned cpu));
void smp_wait(unsigned cpu);
// For `count` processors, each of which calls it; the barrier is used again and again.
struct smp_barrier {
  volatile unsigned arrived, round;
};
void smp_barrier(struct smp_barrier* barrier, unsigned count);
unsigned smp_self(void);
// Handler for interrupts between processors: counts in smp_cpu::interrupts, ends the interrupt.
void smp_count_interrupt(struct frame* frame);

uint32_t apic_read(unsigned at);
void apic_write(unsigned at, uint32_t value);
void apic_eoi(void);
// The interrupt command register: low half with mode and vector, destination in physical mode.
void apic_command(uint32_t low, unsigned destination);
static inline void smp_ipi(unsigned cpu, unsigned vector) { apic_command(0x4000 | vector, cpu); }
static inline void smp_nmi(unsigned cpu) { apic_command(0x4400, cpu); }
// Runs the function in an interrupt on all other processors and returns when all are through it.
void smp_call_others(void (*function)(void));
void smp_init(unsigned cpu);  // INIT, without SIPI
void smp_sipi(unsigned cpu);
bool smp_wait_started(unsigned cpu, unsigned starts);

// The access, false if it raised a page fault.
bool smp_try_store(volatile void* at, uint64_t value);
bool smp_try_load(const volatile void* at, uint64_t* value);
// A page of its own for each index below 512, at SMP_PAGES: the entry says what is mapped. Supervisor or user, by its
// bits.
#define SMP_PAGES 0x8000000000ull
extern volatile uint64_t smp_page_table[512];
void smp_map_pages(void);
static inline void pause(void) { __asm__ volatile("pause"); }
static inline void compiler_barrier(void) { __asm__ volatile("" ::: "memory"); }
static inline void fence(void) { __asm__ volatile("mfence" ::: "memory"); }
// About so many microseconds, by the time-stamp counter at some GHz.
void smp_delay(unsigned microseconds);
// For loops whose rounds wait for other processors, which a busy host runs seldom: all of `wanted` rounds, or a few of
// them when a second has passed since the loop began (i == 0).
bool smp_more(unsigned i, unsigned wanted);
uint32_t smp_random(uint32_t* state);
void put_number(const char* name, uint64_t value);  // "  name 0x..."
