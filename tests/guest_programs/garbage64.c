// Random reads and writes of every width to every port, to PCI configuration space, to all device memory (virtio's queues
// get random rings in RAM) and to model-specific registers. It passes when it gets to the end: the machine stayed alive.
// Left out: what ends or restarts a machine rightly (reset, power-off, debug-exit, INIT), and the serial port's data.
#include "guest.h"

enum { kConfigAddress = 0xcf8, kConfigData = 0xcfc, kRounds = 60000 };

static uint64_t state = 0x9e3779b97f4a7c15;

static uint64_t next(void) {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

static uint64_t value(void) {
  switch (next() % 4) {
    case 0: return next();
    case 1: return next() & 0xff;
    case 2: return ~0ull << (next() % 64);
    default: return 0x200000 + (next() & 0xffff0);  // an address in RAM that nobody uses
  }
}

/// With the three ports before each, which wide accesses reach from.
static bool port_ends_machine(unsigned port) {
  return (port >= 0x5d && port <= 0x64) || (port >= 0x8d && port <= 0x93) || (port >= 0xf1 && port <= 0xf7) ||
         (port >= 0x3f5 && port <= 0x3ff) || (port >= 0x4fd && port < 0x700) || (port >= 0xaffd && port <= 0xb0ff) ||
         (port >= 0xcf5 && port <= 0xcff);
}

static void touch_port(void) {
  const unsigned port = next() % 4 ? (unsigned)next() & 0xfff : (unsigned)next() & 0xffff;
  if (port_ends_machine(port)) return;
  const uint32_t what = (uint32_t)value();
  switch (next() % 6) {
    case 0: outb((uint16_t)port, (uint8_t)what); break;
    case 1: __asm__ volatile("outw %0, %1" ::"a"((uint16_t)what), "d"((uint16_t)port)); break;
    case 2: outl((uint16_t)port, what); break;
    case 3: inb((uint16_t)port); break;
    default: inl((uint16_t)port); break;
  }
}

static uint32_t config(unsigned device, unsigned at) {
  outl(kConfigAddress, 0x80000000u | device << 11 | (at & 0xfc));
  return inl(kConfigData);
}

static void config_write(unsigned device, unsigned at, uint32_t what) {
  outl(kConfigAddress, 0x80000000u | device << 11 | (at & 0xfc));
  outl(kConfigData, what);
}

static uint64_t bars[64];
static unsigned bar_count;

/// Device memory is where the board put it; random writes may move it later.
static void find_bars(void) {
  for (unsigned device = 0; device < 32; ++device) {
    if (config(device, 0) == 0xffffffff) continue;
    config_write(device, 4, 7);
    for (unsigned i = 0; i < 6 && bar_count < 60; ++i) {
      const uint32_t low = config(device, 0x10 + 4 * i);
      if (low == 0 || (low & 1)) continue;
      const bool wide = (low & 6) == 4;
      bars[bar_count++] = (low & ~15u) | (wide ? (uint64_t)config(device, 0x14 + 4 * i) << 32 : 0);
      i += wide;
    }
  }
  bars[bar_count++] = 0xfec00000;
  bars[bar_count++] = 0xfed00000;
  bars[bar_count++] = 0xfee00000;
}

static void touch_config(void) {
  const unsigned device = (unsigned)next() % 10, at = (unsigned)next() & 0xff;
  if (next() % 2 == 0) {
    config(device, at);
  } else if (at >= 4 && (at < 0x10 || at >= 0x28)) {  // base addresses stay, so that there is something to touch
    config_write(device, at, (at & ~3u) == 4 ? 7 : (uint32_t)value());
  }
}

static void touch_memory(void) {
  const uint64_t base = bars[next() % bar_count];
  const uint64_t at = base + (next() % 4 ? next() % 0x40 * 4 : next() % 0x4000);
  if (base == 0xfee00000 && (at & 0xff0) == 0x300) return;  // no INIT, no STARTUP
  const uint64_t what = value();
  TRY(switch (next() % 8) {
    case 0: *(volatile uint8_t*)at = (uint8_t)what; break;
    case 1: *(volatile uint16_t*)at = (uint16_t)what; break;
    case 2: case 3: *(volatile uint32_t*)at = (uint32_t)what; break;
    case 4: *(volatile uint64_t*)at = what; break;
    case 5: (void)*(volatile uint8_t*)at; break;
    case 6: (void)*(volatile uint64_t*)at; break;
    default: (void)*(volatile uint32_t*)at; break;
  });
}

/// A queue of a virtio device with random descriptors, and a notification. The layout is virtio 1.x's common structure
/// at the start of the device's memory; garbage in it is what this is about.
static void start_queue(void) {
  volatile uint8_t* const common = (volatile uint8_t*)bars[next() % bar_count];
  if ((reg)common >= 0xfec00000 && (reg)common < 0xfef00000) return;
  uint64_t* const ring = (uint64_t*)0x200000;
  for (unsigned i = 0; i < 2048; ++i) ring[i] = next() % 3 ? value() : next() & 0x00070007000000ff;
  TRY({
    if (next() % 4 == 0) common[0x14] = 0;
    common[0x14] = 1;
    common[0x14] = 3;
    *(volatile uint32_t*)(common + 8) = (uint32_t)(next() % 2);
    *(volatile uint32_t*)(common + 12) = next() % 4 ? 1 : (uint32_t)next();
    common[0x14] = 0xb;
    *(volatile uint16_t*)(common + 0x16) = (uint16_t)(next() % 3);
    *(volatile uint16_t*)(common + 0x18) = (uint16_t)(next() % 4 ? 1u << (next() % 9) : next());
    *(volatile uint64_t*)(common + 0x20) = value();
    *(volatile uint64_t*)(common + 0x28) = value();
    *(volatile uint64_t*)(common + 0x30) = value();
    *(volatile uint16_t*)(common + 0x1c) = 1;
    common[0x14] = 0xf;
    for (unsigned at = 0; at < 0x4000; at += 0x1000) *(volatile uint16_t*)(common + at) = (uint16_t)(next() % 3);
  });
}

static void touch_msr(void) {
  const uint32_t index = next() % 2 ? (uint32_t)next() & 0xfff : 0x4b564d00 + (uint32_t)next() % 16;
  if (index == 0x1b || index == 0x830) return;  // the local APIC's place, and INIT
  TRY((void)rdmsr(index));
  if (index >= 0x800 || index == 0x6e0) TRY(wrmsr(index, value()));
}

static void ignore(struct frame* frame) { (void)frame; }

void guest_main(void) {
  section("garbage everywhere");
  cli();
  guest_handlers[kNMI] = ignore;
  for (unsigned vector = 32; vector < 256; ++vector) guest_handlers[vector] = ignore;
  find_bars();
  CHECK(bar_count > 3);
  for (unsigned round = 0; round < kRounds; ++round) {
    switch (next() % 8) {
      case 0: case 1: touch_port(); break;
      case 2: touch_config(); break;
      case 3: touch_msr(); break;
      case 4: if (round % 8 == 0) start_queue(); break;
      default: touch_memory(); break;
    }
  }
}
