// Real-address mode, timed by the time stamp counter: a line "NAME OPERATIONS TICKS SUM" for each program of modes32.S.
// bench/run-modes-bench runs it under each engine.
#include "guest.h"

void run_real(void);
#define LONG(at) (*(volatile uint32_t*)(at))

struct program {
  const char* name;
  uint32_t times, operations;  // operations: in each of the times
};
// In the order of modes32.S.
static const struct program kPrograms[] = {
    {"arithmetic", 3000, 1000}, {"sieve", 60, 8192},     {"fib", 150, 1973},      {"table", 3000, 500},
    {"far-call", 4000, 100},    {"segments", 4000, 100}, {"far-pointer", 4000, 100}, {"int", 600, 100},
    {"flags", 600, 100},        {"frames", 3000, 300},   {"unreal", 3000, 500},   {"copy-words", 2000, 1000},
    {"rep-movsw", 2000, 4000},  {"lods-stos", 600, 500},
};

static void put_number(uint64_t value) {
  char text[24];
  int at = sizeof text;
  text[--at] = 0;
  do {
    // No division of 64 bits without a library.
    uint32_t high = (uint32_t)(value >> 32), low = (uint32_t)value, rest = high % 10, quotient;
    __asm__("divl %4" : "=a"(quotient), "=d"(rest) : "0"(low), "1"(rest), "r"(10u));
    value = (uint64_t)(high / 10) << 32 | quotient;
    text[--at] = (char)('0' + rest);
  } while (value);
  put_text(text + at);
}

void guest_main(void) {
  for (uint32_t i = 0; i < sizeof kPrograms / sizeof *kPrograms; ++i) {
    uint64_t best = ~0ull;
    for (int round = 0; round < 4; ++round) {  // the first one warms up
      for (uint32_t at = 0x20000; at < 0x40000; at += 4) LONG(at) = at * 2654435761u;
      LONG(0x7e00) = i;
      LONG(0x7e04) = kPrograms[i].times;
      run_real();
      uint64_t ticks = (uint64_t)LONG(0x7e0c) << 32 | LONG(0x7e08);
      if (round && ticks < best) best = ticks;
    }
    put_text(kPrograms[i].name);
    put_text(" ");
    put_number((uint64_t)kPrograms[i].times * kPrograms[i].operations);
    put_text(" ");
    put_number(best);
    put_text(" ");
    put_number(LONG(0x7e10));
    put_text("\n");
  }
}
