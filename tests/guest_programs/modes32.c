// 16-bit code: one program in real-address and in virtual-8086 mode under a monitor, with the timer's interrupts, and
// 16-bit code of protected mode with limits, a stack that wraps and an expand-down segment.
#include "guest.h"

void run_real(void);
void enter_v86(void);
void call16(reg offset);
extern char blob[], blob_end[], on_int_offset[], on_timer_offset[];
extern char code16[], code16_end[], sum16[], over16[], stack16[], down16[];
#define WORD(at) (*(volatile uint16_t*)(at))
#define LONG(at) (*(volatile uint32_t*)(at))
enum { kVm = 1 << 17, kSum = 0x7e00 };
#define EXPECTED 0xcd69379eu

static void prepare(void) {
  memcpy((void*)0x8000, blob, (size_t)(blob_end - blob));
  memset((void*)0x20000, 0, 0x20000);
  memset((void*)kSum, 0, 0x100);
  LONG(0x40 * 4) = (uint32_t)on_int_offset;
  LONG(0x20 * 4) = (uint32_t)on_timer_offset;
}

static void in_real_mode(void) {
  section("real-address mode");
  pic_setup(0x20, 1);
  pit_rate(1000);
  for (int round = 0; round < 40; ++round) {
    prepare();
    run_real();
    CHECK_EQ(LONG(kSum), EXPECTED);
    CHECK_EQ(WORD(kSum + 4), 20);
    CHECK_EQ(LONG(kSum + 8), 0x180000u * 1000 + 4 * (999 * 500));
    CHECK_EQ(LONG(0x180000 + 999 * 4), 0x180000 + 999 * 4);
  }
}

static int ticks;
static uint16_t virtual_if;
static void tick(struct frame* frame) {
  (void)frame;
  ++ticks;
  pic_eoi(0);
}

static uint16_t* stack_of(struct frame* frame, int words) {
  frame->sp = (frame->sp + (reg)(2 * words)) & 0xffff;
  return (uint16_t*)((frame->ss << 4) + frame->sp);
}

// What IOPL 0 keeps from a virtual-8086 program, done for it.
static void monitor(struct frame* frame) {
  const uint8_t* code = (const uint8_t*)((frame->cs << 4) + frame->ip);
  CHECK_EQ(frame->error, 0);
  uint16_t* stack;
  const uint16_t flags = (uint16_t)((frame->flags & ~(reg)kFlagIf) | virtual_if);
  switch (code[0]) {
    case 0x9c:
      stack = stack_of(frame, -1);
      stack[0] = flags;
      frame->ip += 1;
      return;
    case 0x9d:
      stack = stack_of(frame, 1) - 1;
      frame->flags = (frame->flags & ~(reg)0xcff) | (stack[0] & 0xcff) | kFlagIf;
      virtual_if = stack[0] & kFlagIf;
      frame->ip += 1;
      return;
    case 0xcd:
      stack = stack_of(frame, -3);
      stack[0] = (uint16_t)(frame->ip + 2);
      stack[1] = (uint16_t)frame->cs;
      stack[2] = flags;
      virtual_if = 0;
      frame->ip = WORD(code[1] * 4);
      frame->cs = WORD(code[1] * 4 + 2);
      return;
    case 0xcf:
      stack = stack_of(frame, 3) - 3;
      frame->ip = stack[0];
      frame->cs = stack[1];
      frame->flags = (frame->flags & ~(reg)0xcff) | (stack[2] & 0xcff) | kFlagIf;
      virtual_if = stack[2] & kFlagIf;
      return;
    default:
      guest_handlers[kGP] = 0;
      guest_interrupt(frame);
  }
}

static void in_virtual_mode(void) {
  section("virtual-8086 mode");
  guest_handlers[0x20] = tick;
  static int round;
  for (round = 0; round < 20; ++round) {
    prepare();
    guest_handlers[kGP] = monitor;
    virtual_if = kFlagIf;
    TRY(enter_v86());
    CHECK_EQ(guest_last.vector, kGP);
    CHECK_EQ(*(uint8_t*)guest_last.frame.ip, 0xf4);
    CHECK_EQ(LONG(kSum), EXPECTED);
    CHECK_EQ(WORD(kSum + 4), 20);
  }
  guest_handlers[kGP] = 0;
  pic_setup(0x20, 0);
}

static void set_descriptor(unsigned selector, reg base, reg limit, uint64_t access) {
  gdt[selector / 8] = (limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 | access << 40 |
                      (uint64_t)(limit >> 16 & 0xf) << 48 | (uint64_t)(base >> 24) << 56;
}

static uint8_t data[0x20000];

static void in_protected_mode(void) {
  section("16-bit code of protected mode");
  static reg sum;
  for (unsigned i = 0; i < sizeof data; ++i) data[i] = (uint8_t)(i * 7 + (i >> 8));
  static unsigned base;
  for (base = 0; base < 0x20; base += 5) {
    set_descriptor(0x40, (reg)code16, (reg)(code16_end - code16 - 1), 0x9b);
    set_descriptor(0x48, (reg)data + base, 0x300, 0x93);
    sum = 0;
    for (unsigned i = 0; i <= 0x300; ++i) sum += data[base + i];
    sum = (sum & ~(reg)0xff) | ((sum + (uint8_t)code16[0]) & 0xff);
    reg got;
    __asm__ volatile("pushl %1\n call call16\n addl $4, %%esp" : "=a"(got) : "r"((reg)sum16) : "ecx", "edx", "memory");
    CHECK_EQ(got, sum);
    STRICT(CHECK_FAULT(kGP, 0, call16((reg)over16)));
    STRICT(CHECK_EQ(guest_last.frame.ip, (reg)over16 + 9));
    STRICT(CHECK_EQ(guest_last.frame.dx & 0xffff, *(uint16_t*)(data + base + 0x2ff)));
  }
  // 64 KiB that begin at an odd place: pushes from SP 2 on go to 0, then to 0xfffe.
  set_descriptor(0x50, (reg)data + 0x123, 0xffff, 0x93);
  for (int round = 0; round < 3; ++round) {
    reg got;
    __asm__ volatile("pushl %1\n call call16\n addl $4, %%esp" : "=a"(got) : "r"((reg)stack16) : "ecx", "edx", "memory");
    CHECK_EQ(got, 0x33330000u + ((0x4444 + 0x1111 + 0x2222) & 0xffff));
    CHECK_EQ(*(uint16_t*)(data + 0x123), 0x1111);
    CHECK_EQ(*(uint16_t*)(data + 0x123 + 0xfffe), 0x2222);
    CHECK_EQ(*(uint32_t*)(data + 0x123 + 0xfffa), 0x33334444);
  }
  set_descriptor(0x58, (reg)data, 0x0fff, 0x97);
  *(uint16_t*)(data + 0x1000) = 0x4321;
  *(uint16_t*)(data + 0xfffe) = 0x1111;
  STRICT(CHECK_FAULT(kGP, 0, call16((reg)down16)));
  STRICT(CHECK_EQ(guest_last.frame.ax & 0xffff, 0x5432));
}

void guest_main(void) {
  in_protected_mode();
  in_real_mode();
  in_virtual_mode();
}
