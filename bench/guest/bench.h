#pragma once
// The guest benchmark: one static program that runs as /init of a guest or as a plain process of the host.
// Every benchmark does a fixed amount of work and returns a checksum of its results, so that an engine that
// computes wrongly is seen as such and not as a fast one.

#include <stddef.h>
#include <stdint.h>

struct Bench {
  const char* name;
  uint64_t (*run)(uint64_t iterations);  // returns the checksum; must not depend on time, addresses or process numbers
  uint64_t iterations;                   // about half a second on a software emulator
};

extern const struct Bench kCpuBenches[];     // ends with name == 0
extern const struct Bench kSystemBenches[];  // ends with name == 0

// Ends the program with a message: a broken benchmark must not give a number.
void Die(const char* what);

// malloc that cannot fail; freed by free().
void* Allocate(size_t size);

// cpu_text.c
uint64_t RunJson(uint64_t iterations);
uint64_t RunCompress(uint64_t iterations);
uint64_t RunRegex(uint64_t iterations);
uint64_t RunStateMachine(uint64_t iterations);
uint64_t RunStringCalls(uint64_t iterations);
// cpu_data.c
uint64_t RunBtree(uint64_t iterations);
uint64_t RunGraph(uint64_t iterations);
uint64_t RunAllocate(uint64_t iterations);
// cpu_number.c
uint64_t RunBigNumber(uint64_t iterations);
uint64_t RunMandelbrot(uint64_t iterations);
uint64_t RunQueens(uint64_t iterations);
uint64_t RunChacha(uint64_t iterations);

static inline uint64_t NextRandom(uint64_t* state) {  // xorshift64*, Vigna 2014
  uint64_t x = *state;
  x ^= x >> 12;
  x ^= x << 25;
  x ^= x >> 27;
  *state = x;
  return x * 0x2545F4914F6CDD1DULL;
}
