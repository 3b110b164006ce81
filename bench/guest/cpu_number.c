// Benchmarks on numbers: multi-word arithmetic, scalar floating point, bits, a cipher.
#include <stdlib.h>
#include <string.h>

#include "bench.h"

// ---- Modular exponentiation of 1024-bit numbers by Montgomery's multiplication, as in RSA and Diffie-Hellman.

enum { kLimbs = 16 };

// out = a * b / 2^1024 mod modulus; inverse = -modulus^-1 mod 2^64.
static void MultiplyMontgomery(uint64_t* out, const uint64_t* a, const uint64_t* b, const uint64_t* modulus,
                               uint64_t inverse) {
  uint64_t t[kLimbs + 2] = {0};
  for (int i = 0; i < kLimbs; ++i) {
    unsigned __int128 carry = 0;
    for (int j = 0; j < kLimbs; ++j) {
      carry += (unsigned __int128)a[j] * b[i] + t[j];
      t[j] = (uint64_t)carry;
      carry >>= 64;
    }
    carry += t[kLimbs];
    t[kLimbs] = (uint64_t)carry;
    t[kLimbs + 1] = (uint64_t)(carry >> 64);
    const uint64_t factor = t[0] * inverse;
    carry = ((unsigned __int128)factor * modulus[0] + t[0]) >> 64;
    for (int j = 1; j < kLimbs; ++j) {
      carry += (unsigned __int128)factor * modulus[j] + t[j];
      t[j - 1] = (uint64_t)carry;
      carry >>= 64;
    }
    carry += t[kLimbs];
    t[kLimbs - 1] = (uint64_t)carry;
    t[kLimbs] = t[kLimbs + 1] + (uint64_t)(carry >> 64);
  }
  unsigned char borrow = 0;
  uint64_t less[kLimbs];
  for (int j = 0; j < kLimbs; ++j) {
    const uint64_t difference = t[j] - modulus[j];
    less[j] = difference - borrow;
    borrow = (t[j] < modulus[j]) | (difference < borrow);
  }
  memcpy(out, t[kLimbs] || !borrow ? less : t, kLimbs * sizeof *out);
}

uint64_t RunBigNumber(uint64_t iterations) {
  uint64_t modulus[kLimbs], base[kLimbs], power[kLimbs], exponent[kLimbs];
  uint64_t random = 1024, sum = 0;
  for (int i = 0; i < kLimbs; ++i) {
    modulus[i] = NextRandom(&random);
    base[i] = NextRandom(&random);
    exponent[i] = NextRandom(&random);
  }
  modulus[0] |= 1;
  modulus[kLimbs - 1] |= 1ULL << 63;
  base[kLimbs - 1] &= ~(1ULL << 63);
  uint64_t inverse = 1;
  for (int i = 0; i < 6; ++i) inverse *= 2 - modulus[0] * inverse;  // Newton's iteration doubles the right bits
  inverse = -inverse;
  for (uint64_t n = 0; n < iterations; ++n) {
    memcpy(power, base, sizeof power);
    for (int bit = kLimbs * 64 - 1; bit >= 0; --bit) {
      MultiplyMontgomery(power, power, power, modulus, inverse);
      if (exponent[bit / 64] >> (bit % 64) & 1) MultiplyMontgomery(power, power, base, modulus, inverse);
    }
    memcpy(base, power, sizeof base);
    for (int i = 0; i < kLimbs; ++i) sum = sum * 31 + power[i];
  }
  return sum;
}

// ---- The Mandelbrot set: scalar floating point with a branch at every step.

uint64_t RunMandelbrot(uint64_t iterations) {
  enum { kWidth = 96, kHeight = 64, kLimit = 200 };
  uint64_t sum = 0;
  for (uint64_t n = 0; n < iterations; ++n) {
    const double zoom = 1.0 / (double)(1 + n % 8);
    for (int y = 0; y < kHeight; ++y) {
      for (int x = 0; x < kWidth; ++x) {
        const double c_re = -0.75 + (x - kWidth / 2) * 0.03 * zoom, c_im = 0.1 + (y - kHeight / 2) * 0.03 * zoom;
        double re = 0, im = 0;
        int steps = 0;
        while (steps < kLimit && re * re + im * im < 4) {
          const double next = re * re - im * im + c_re;
          im = 2 * re * im + c_im;
          re = next;
          ++steps;
        }
        sum = sum * 31 + (uint64_t)steps;
      }
    }
  }
  return sum;
}

// ---- The queens' problem by bit masks: recursion with short functions and unpredictable branches.

static __attribute__((noinline, noclone)) uint64_t PlaceQueens(uint32_t all, uint32_t columns, uint32_t left,
                                                               uint32_t right) {
  if (columns == all) return 1;
  uint64_t found = 0;
  for (uint32_t free_places = all & ~(columns | left | right); free_places; free_places &= free_places - 1) {
    const uint32_t place = free_places & -free_places;
    found += PlaceQueens(all, columns | place, (left | place) << 1, (right | place) >> 1);
  }
  return found;
}

uint64_t RunQueens(uint64_t iterations) {
  uint64_t sum = 0;
  for (uint64_t n = 0; n < iterations; ++n) sum = sum * 31 + PlaceQueens((1U << (8 + n % 3)) - 1, 0, 0, 0);
  return sum;
}

// ---- ChaCha20's block function (RFC 8439, section 2.3) as a key stream.

static inline uint32_t RotateLeft(uint32_t x, int n) { return x << n | x >> (32 - n); }

static inline void QuarterRound(uint32_t* s, int a, int b, int c, int d) {
  s[a] += s[b], s[d] = RotateLeft(s[d] ^ s[a], 16);
  s[c] += s[d], s[b] = RotateLeft(s[b] ^ s[c], 12);
  s[a] += s[b], s[d] = RotateLeft(s[d] ^ s[a], 8);
  s[c] += s[d], s[b] = RotateLeft(s[b] ^ s[c], 7);
}

uint64_t RunChacha(uint64_t iterations) {
  enum { kBlocks = 256 };
  uint32_t state[16];
  uint64_t random = 20, sum = 0;
  for (int i = 0; i < 16; ++i) state[i] = (uint32_t)NextRandom(&random);
  for (uint64_t n = 0; n < iterations * kBlocks; ++n) {
    uint32_t s[16];
    memcpy(s, state, sizeof s);
    for (int round = 0; round < 10; ++round) {
      for (int i = 0; i < 4; ++i) QuarterRound(s, i, 4 + i, 8 + i, 12 + i);
      for (int i = 0; i < 4; ++i) QuarterRound(s, i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4);
    }
    for (int i = 0; i < 16; ++i) sum = sum * 3 + (s[i] + state[i]);
    ++state[12];
  }
  return sum;
}
