// What every guest program has: serial output, checks, exceptions caught by TRY, user mode, port and register access.
// Freestanding; one processor; 32 or 64 bits. A program defines guest_main and calls CHECK; the result goes to the
// debug-exit port: kPass or kFail.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef unsigned long reg;

enum { kPass = 16, kFail = 17 };  // `nacre run` exits with (value << 1) | 1

#ifdef __x86_64__
struct frame {
  reg r15, r14, r13, r12, r11, r10, r9, r8, bp, di, si, dx, cx, bx, ax;
  reg vector, error, ip, cs, flags, sp, ss;
};
#else
struct frame {
  reg gs, fs, es, ds, di, si, bp, frame_sp, bx, dx, cx, ax;
  reg vector, error, ip, cs, flags, sp, ss;  // sp and ss only when the privilege changed
  reg v86_es, v86_ds, v86_fs, v86_gs;        // only from virtual-8086 mode
};
#endif

enum {
  kNone = -1,
  kDE = 0,
  kDB,
  kNMI,
  kBP,
  kOF,
  kBR,
  kUD,
  kNM,
  kDF,
  kTS = 10,
  kNP,
  kSS,
  kGP,
  kPF,
  kMF = 16,
  kAC,
  kXM = 19
};

// The last exception or interrupt that TRY caught.
struct fault {
  int vector;  // kNone: nothing happened
  reg error, cr2, ip, flags;
  struct frame frame;
};

extern struct fault guest_last;
extern volatile int guest_active;
extern reg guest_environment[8];
extern void (*guest_handlers[256])(struct frame*);  // called instead of TRY's way; return: IRET
extern uint64_t gdt[64];
extern uint8_t idt[4096];
extern uint8_t tss[];
extern uint32_t guest_magic, guest_info;

struct __attribute__((packed)) table_pointer {
  uint16_t limit;
  reg base;
};
extern struct table_pointer gdt_pointer, idt_pointer;

int guest_setjmp(reg* environment) __attribute__((returns_twice));
void guest_longjmp(reg* environment) __attribute__((noreturn));
void guest_enter_user(reg ip, reg sp, reg flags, reg cs, reg ss, reg argument);
void guest_main(void);
void guest_interrupt(struct frame* frame);  // what every vector without a handler does

// Runs code; an exception in it comes back here as guest_last.
#define TRY(...)                                \
  (__extension__({                              \
    guest_last.vector = kNone;                  \
    if (guest_setjmp(guest_environment) == 0) { \
      guest_active = 1;                         \
      __asm__ volatile("" ::: "memory");        \
      __VA_ARGS__;                              \
      __asm__ volatile("" ::: "memory");        \
    }                                           \
    guest_active = 0;                           \
    &guest_last;                                \
  }))

void guest_exit(int value) __attribute__((noreturn));
void put_char(char c);
void put_text(const char* text);
void put_hex(uint64_t value);
void skip(const char* what);
void check_equal(const char* what, int line, uint64_t got, uint64_t wanted);
void check_fault(const char* what, int line, const struct fault* fault, int vector, reg error);
// got == wanted, or the program fails (and goes on).
#define CHECK_EQ(got, wanted) check_equal(#got, __LINE__, (uint64_t)(got), (uint64_t)(wanted))
#define CHECK(condition) check_equal(#condition, __LINE__, (condition) != 0, 1)
// The statement raises that exception with that error code (0 for those without one).
#define CHECK_FAULT(vector, error, ...) check_fault(#__VA_ARGS__, __LINE__, TRY(__VA_ARGS__), vector, error)
#define CHECK_OK(...) check_fault(#__VA_ARGS__, __LINE__, TRY(__VA_ARGS__), kNone, 0)
void section(const char* name);
// QEMU's translator checks less than the manual says; what it is known to let pass stands behind this, so that the
// programs can be tried on it.
extern bool guest_strict;
#define STRICT(...)     \
  do {                  \
    if (guest_strict) { \
      __VA_ARGS__;      \
    }                   \
  } while (0)

#define USER_TEXT __attribute__((section(".user.text"), noinline))
#define USER_DATA __attribute__((section(".user.data")))
// A stack in the page that user mode may touch.
extern uint8_t user_stack[8192];
#define USER_STACK_TOP ((reg)(user_stack + sizeof(user_stack) - 64))
// Runs `function` (USER_TEXT) in user mode; it comes back by int $0x80, or by a fault: use inside TRY.
void run_user(void (*function)(void), reg flags);

static inline void outb(uint16_t port, uint8_t value) { __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }
static inline void outl(uint16_t port, uint32_t value) { __asm__ volatile("outl %0, %1" ::"a"(value), "Nd"(port)); }
static inline uint8_t inb(uint16_t port) {
  uint8_t value;
  __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
  return value;
}
static inline uint32_t inl(uint16_t port) {
  uint32_t value;
  __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
  return value;
}
static inline uint64_t rdtsc(void) {
  uint32_t low, high;
  __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
  return (uint64_t)high << 32 | low;
}
static inline uint64_t rdmsr(uint32_t index) {
  uint32_t low, high;
  __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(index));
  return (uint64_t)high << 32 | low;
}
static inline void wrmsr(uint32_t index, uint64_t value) {
  __asm__ volatile("wrmsr" ::"c"(index), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)) : "memory");
}
struct cpuid {
  uint32_t a, b, c, d;
};
static inline struct cpuid cpuid(uint32_t leaf, uint32_t subleaf) {
  struct cpuid r;
  __asm__ volatile("cpuid" : "=a"(r.a), "=b"(r.b), "=c"(r.c), "=d"(r.d) : "a"(leaf), "c"(subleaf));
  return r;
}
#define CONTROL_REGISTER(name)                                       \
  static inline reg read_##name(void) {                              \
    reg value;                                                       \
    __asm__ volatile("mov %%" #name ", %0" : "=r"(value)::"memory"); \
    return value;                                                    \
  }                                                                  \
  static inline void write_##name(reg value) { __asm__ volatile("mov %0, %%" #name ::"r"(value) : "memory"); }
CONTROL_REGISTER(cr0)
CONTROL_REGISTER(cr2)
CONTROL_REGISTER(cr3)
CONTROL_REGISTER(cr4)
CONTROL_REGISTER(dr0)
CONTROL_REGISTER(dr1)
CONTROL_REGISTER(dr2)
CONTROL_REGISTER(dr3)
CONTROL_REGISTER(dr6)
CONTROL_REGISTER(dr7)
static inline void invlpg(const volatile void* address) { __asm__ volatile("invlpg (%0)" ::"r"(address) : "memory"); }
static inline void cli(void) { __asm__ volatile("cli" ::: "memory"); }
static inline void sti(void) { __asm__ volatile("sti" ::: "memory"); }
static inline reg read_flags(void) {
  reg value;
  __asm__ volatile("pushf; pop %0" : "=r"(value)::"memory");
  return value;
}
static inline void write_flags(reg value) { __asm__ volatile("push %0; popf" ::"r"(value) : "memory", "cc"); }
enum { kFlagTf = 1 << 8, kFlagIf = 1 << 9, kFlagDf = 1 << 10, kFlagNt = 1 << 14, kFlagRf = 1 << 16, kFlagAc = 1 << 18 };

void* memset(void* to, int value, size_t count);
void* memcpy(void* to, const void* from, size_t count);
int memcmp(const void* a, const void* b, size_t count);

// A segment descriptor: attributes are bits 40-47 in bits 0-7, bits 52-55 in bits 12-15.
uint64_t descriptor(uint32_t base, uint32_t limit, uint16_t attributes);
// An IDT gate: type 0x8e interrupt, 0x8f trap, 0x85 task, | 0x60 for user mode.
void set_gate(unsigned vector, void (*function)(void), uint16_t selector, uint8_t type);

// The legacy interrupt controllers and timer.
void pic_setup(uint8_t first_vector, uint16_t unmasked);
void pic_eoi(unsigned irq);
void pit_rate(uint16_t divisor);  // channel 0, mode 2
