#include "guest.h"

struct fault guest_last;
volatile int guest_active;
reg guest_environment[8];
void (*guest_handlers[256])(struct frame*);
USER_DATA uint8_t user_stack[8192];
bool guest_strict;
static unsigned checks, failures;

void put_char(char c) {
  while ((inb(0x3fd) & 0x20) == 0) {
  }
  outb(0x3f8, (uint8_t)c);
}

void put_text(const char* text) {
  for (; *text; ++text) put_char(*text);
}

void put_hex(uint64_t value) {
  put_text("0x");
  int shift = 60;
  while (shift > 0 && (value >> shift) == 0) shift -= 4;
  for (; shift >= 0; shift -= 4) put_char("0123456789abcdef"[(value >> shift) & 15]);
}

static void put_decimal(unsigned value) {
  char text[12];
  int n = 0;
  do text[n++] = (char)('0' + value % 10);
  while ((value /= 10) != 0);
  while (n > 0) put_char(text[--n]);
}

void guest_exit(int value) {
  for (;;) {
    outb(0xf4, (uint8_t)value);
    __asm__ volatile("cli; hlt");
  }
}

void section(const char* name) {
  put_text("- ");
  put_text(name);
  put_text("\n");
}

void skip(const char* what) {
  put_text("skip ");
  put_text(what);
  put_text("\n");
}

static void fail_at(const char* what, int line) {
  ++failures;
  put_text("FAIL line ");
  put_decimal((unsigned)line);
  put_text(": ");
  put_text(what);
}

void check_equal(const char* what, int line, uint64_t got, uint64_t wanted) {
  ++checks;
  if (got == wanted) return;
  fail_at(what, line);
  put_text(": got ");
  put_hex(got);
  put_text(", wanted ");
  put_hex(wanted);
  put_text("\n");
}

static void put_fault(int vector, reg error) {
  if (vector == kNone) {
    put_text("nothing");
    return;
  }
  put_text("vector ");
  put_decimal((unsigned)vector);
  put_text(" error ");
  put_hex(error);
}

void check_fault(const char* what, int line, const struct fault* fault, int vector, reg error) {
  ++checks;
  if (fault->vector == vector && (vector == kNone || fault->error == error)) return;
  fail_at(what, line);
  put_text(": got ");
  put_fault(fault->vector, fault->error);
  if (fault->vector != kNone) {
    put_text(" at ");
    put_hex(fault->ip);
    put_text(" cr2 ");
    put_hex(fault->cr2);
  }
  put_text(", wanted ");
  put_fault(vector, error);
  put_text("\n");
}

void guest_interrupt(struct frame* frame) {
  if (guest_handlers[frame->vector] != 0) {
    guest_handlers[frame->vector](frame);
    return;
  }
  const bool active = guest_active != 0;
  guest_active = 0;
  guest_last.vector = (int)frame->vector;
  guest_last.error = frame->error;
  guest_last.cr2 = read_cr2();
  guest_last.ip = frame->ip;
  guest_last.flags = frame->flags;
  memcpy(&guest_last.frame, frame, sizeof(*frame));
  if (active) guest_longjmp(guest_environment);
  put_text("FAIL: unexpected ");
  put_fault((int)frame->vector, frame->error);
  put_text(" at ");
  put_hex(frame->ip);
  put_text(" cr2 ");
  put_hex(guest_last.cr2);
  put_text("\n");
  guest_exit(kFail);
}

// Called by the boot code.
void guest_start(void) {
  // Entered as multiboot or as PVH says: magic number, or start_info's.
  if (guest_magic != 0x2badb002) CHECK_EQ(*(const uint32_t*)(reg)guest_info, 0x336ec578);
  guest_strict = cpuid(0x40000000, 0).b != 0x54474354;  // "TCGT"
  guest_main();
  put_text(failures == 0 ? "PASS " : "FAILED ");
  put_decimal(failures == 0 ? checks : failures);
  put_text(failures == 0 ? " checks\n" : " of the checks\n");
  guest_exit(failures == 0 ? kPass : kFail);
}

void run_user(void (*function)(void), reg flags) {
#ifdef __x86_64__
  guest_enter_user((reg)function, USER_STACK_TOP - 8, flags, 0x33, 0x2b, 0);
#else
  guest_enter_user((reg)function, USER_STACK_TOP - 4, flags, 0x23, 0x2b, 0);
#endif
}

void* memset(void* to, int value, size_t count) {
  for (uint8_t* at = to; count > 0; --count) *at++ = (uint8_t)value;
  return to;
}

void* memcpy(void* to, const void* from, size_t count) {
  uint8_t* out = to;
  for (const uint8_t* at = from; count > 0; --count) *out++ = *at++;
  return to;
}

int memcmp(const void* a, const void* b, size_t count) {
  const uint8_t *x = a, *y = b;
  for (; count > 0; --count, ++x, ++y)
    if (*x != *y) return *x - *y;
  return 0;
}

uint64_t descriptor(uint32_t base, uint32_t limit, uint16_t attributes) {
  return (limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)(attributes & 0xff) << 40 |
         (uint64_t)(limit >> 16 & 15) << 48 | (uint64_t)(attributes >> 12) << 52 | (uint64_t)(base >> 24) << 56;
}

void set_gate(unsigned vector, void (*function)(void), uint16_t selector, uint8_t type) {
  const reg at = (reg)function;
#ifdef __x86_64__
  uint8_t* gate = idt + 16 * vector;
  *(uint64_t*)(gate + 8) = at >> 32;
#else
  uint8_t* gate = idt + 8 * vector;
#endif
  *(uint16_t*)gate = (uint16_t)at;
  *(uint16_t*)(gate + 2) = selector;
  gate[4] = 0;
  gate[5] = type;
  *(uint16_t*)(gate + 6) = (uint16_t)(at >> 16);
}

void pic_setup(uint8_t first_vector, uint16_t unmasked) {
  outb(0x20, 0x11);
  outb(0xa0, 0x11);
  outb(0x21, first_vector);
  outb(0xa1, (uint8_t)(first_vector + 8));
  outb(0x21, 4);
  outb(0xa1, 2);
  outb(0x21, 1);
  outb(0xa1, 1);
  outb(0x21, (uint8_t)~unmasked);
  outb(0xa1, (uint8_t)~(unmasked >> 8));
}

void pic_eoi(unsigned irq) {
  if (irq >= 8) outb(0xa0, 0x20);
  outb(0x20, 0x20);
}

void pit_rate(uint16_t divisor) {
  outb(0x43, 0x34);
  outb(0x40, (uint8_t)divisor);
  outb(0x40, (uint8_t)(divisor >> 8));
}
