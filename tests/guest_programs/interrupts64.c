// External interrupts: 8259 and 8254, masks, priorities, the cascade with the RTC; IO-APIC routing with the serial port.
#include "guest.h"

static volatile unsigned count[16], taken;
static volatile unsigned order[32];
static bool keep;  // handlers do not send EOI

static void pic_handler(struct frame* frame) {
  const unsigned irq = (unsigned)frame->vector - 0x20;
  ++count[irq];
  if (taken < 32) order[taken] = irq;
  ++taken;
  if (irq == 8) {  // the RTC wants its register C read
    outb(0x70, 0x0c);
    (void)inb(0x71);
  }
  if (!keep) pic_eoi(irq);
}

static void wait_for(volatile unsigned* counter, unsigned wanted) {
  while (*counter < wanted) __asm__ volatile("sti; hlt; cli" ::: "memory");
}

static void allow(void) { __asm__ volatile("sti; nop; nop; cli" ::: "memory"); }

static uint8_t read_irr(void) {
  outb(0x20, 0x0a);
  return inb(0x20);
}
static uint8_t read_isr(void) {
  outb(0x20, 0x0b);
  return inb(0x20);
}

static void pit_and_pic(void) {
  section("8254 through the 8259");
  pic_setup(0x20, 1);
  CHECK_EQ(inb(0x21), 0xfe);
  pit_rate(2000);
  wait_for(&count[0], 10);
  // Masked: it stays requested and comes when the mask goes.
  outb(0x21, 0xff);
  allow();
  const unsigned before = count[0];
  while ((read_irr() & 1) == 0) {
  }
  allow();
  CHECK_EQ(count[0], before);
  outb(0x21, 0xfe);
  allow();
  CHECK(count[0] > before);
  // No EOI: no further one.
  keep = true;
  const unsigned last = count[0] + 1;
  wait_for(&count[0], last);
  CHECK_EQ(read_isr() & 1, 1);
  for (int i = 0; i < 20000; ++i) (void)inb(0x80);
  allow();
  CHECK_EQ(count[0], last);
  keep = false;
  pic_eoi(0);
  CHECK_EQ(read_isr() & 1, 0);
  wait_for(&count[0], last + 1);
  // One-shot: mode 0 holds the output low, so what the controller has latched is forgotten before the count begins.
  outb(0x43, 0x30);
  pic_setup(0x20, 1);
  const unsigned shot = count[0];
  outb(0x40, 3000 & 0xff);
  outb(0x40, 3000 >> 8);
  wait_for(&count[0], shot + 1);
  for (int i = 0; i < 20000; ++i) (void)inb(0x80);
  allow();
  CHECK_EQ(count[0], shot + 1);
}

static uint16_t pit_count(void) {
  outb(0x43, 0x00);
  const uint8_t low = inb(0x40);
  return (uint16_t)(low | inb(0x40) << 8);
}

static void pit_reads(void) {
  section("8254 latched count and channel 2");
  pit_rate(0);
  const uint16_t a = pit_count();
  for (int i = 0; i < 1000; ++i) (void)inb(0x80);
  const uint16_t b = pit_count();
  CHECK(a != b);
  outb(0x61, (uint8_t)((inb(0x61) & ~2) | 1));
  outb(0x43, 0xb0);
  // 65,536 counts are 55 ms, in which a busy host runs this CPU again.
  outb(0x42, 0x00);
  outb(0x42, 0x00);
  CHECK_EQ(inb(0x61) & 0x20, 0);
  unsigned spins = 0;
  while ((inb(0x61) & 0x20) == 0 && ++spins < 100000000) {
  }
  CHECK_EQ(inb(0x61) & 0x20, 0x20);
}

static void cascade(void) {
  section("the second 8259: RTC");
  pic_setup(0x20, 1 << 2 | 1 << 8);
  outb(0x70, 0x0a);
  outb(0x71, 0x26);  // 1024 Hz
  outb(0x70, 0x0b);
  const uint8_t b = inb(0x71);
  outb(0x70, 0x0b);
  outb(0x71, b | 0x40);
  outb(0x70, 0x0c);
  (void)inb(0x71);
  wait_for(&count[8], 5);
  CHECK(count[8] >= 5);
  outb(0x70, 0x0b);
  outb(0x71, b);
  outb(0x70, 0x0c);
  (void)inb(0x71);
  pic_setup(0x20, 0);
}

// --- IO-APIC -------------------------------------------------------------------------------------------------------

static volatile uint32_t* const io_apic = (volatile uint32_t*)0xfec00000;
static volatile uint32_t* const local = (volatile uint32_t*)0xfee00000;
static uint32_t io_get(unsigned index) {
  io_apic[0] = index;
  return io_apic[4];
}
static void io_put(unsigned index, uint32_t value) {
  io_apic[0] = index;
  io_apic[4] = value;
}
static void route(unsigned pin, uint32_t low) {
  io_put(0x11 + 2 * pin, 0);
  io_put(0x10 + 2 * pin, low);
}
enum { kLevel = 1 << 15, kRemoteIrr = 1 << 14, kIoMasked = 1 << 16 };

static volatile unsigned arrived[256];
static void apic_handler(struct frame* frame) {
  ++arrived[frame->vector];
  if (frame->vector == 0x64) (void)inb(0x3fa);  // the serial port's reason, which takes it away
  local[0xb0 / 4] = 0;
}

static void routed(void) {
  section("IO-APIC");
  local[0xf0 / 4] = 0x1ff;
  local[0x350 / 4] = 1 << 16;
  CHECK(((io_get(1) >> 16) & 0xff) >= 23);
  for (unsigned pin = 0; pin < 24; ++pin) CHECK_EQ(io_get(0x10 + 2 * pin) & kIoMasked, kIoMasked);
  // The PIT is at pin 2.
  route(2, 0x61);
  pit_rate(2000);
  wait_for(&arrived[0x61], 5);
  route(2, 0x62);
  wait_for(&arrived[0x62], 3);
  route(2, kIoMasked | 0x62);
  allow();
  const unsigned masked = arrived[0x62];
  for (int i = 0; i < 20000; ++i) (void)inb(0x80);
  allow();
  CHECK_EQ(arrived[0x62], masked);
  // The serial port's transmitter at pin 4: it is empty, so enabling its interrupt raises one.
  route(4, 0x64);
  outb(0x3fc, 0x0b);
  outb(0x3f9, 2);
  wait_for(&arrived[0x64], 1);
  outb(0x3f9, 0);
  CHECK_EQ(arrived[0x64], 1);
  outb(0x3f9, 2);
  wait_for(&arrived[0x64], 2);
  outb(0x3f9, 0);
  route(4, kIoMasked);
  // Writable fields hold; delivery status and remote IRR do not.
  route(5, 0xffffffff);
  CHECK_EQ(io_get(0x10 + 10) & 0xaf00, 0xaf00);
  CHECK_EQ(io_get(0x10 + 10) & kRemoteIrr, 0);
  route(5, kIoMasked);
}

void guest_main(void) {
  for (unsigned v = 0x20; v < 0x30; ++v) guest_handlers[v] = pic_handler;
  for (unsigned v = 0x60; v < 0x70; ++v) guest_handlers[v] = apic_handler;
  pit_and_pic();
  pit_reads();
  cascade();
  routed();
}
