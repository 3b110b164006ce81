// Benchmarks of the instruction stream: calls, branches, integers, memory, floating point, vectors.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

#define NOINLINE __attribute__((noinline, noclone))

static NOINLINE uint64_t Fib(uint64_t n) { return n < 2 ? n : Fib(n - 1) + Fib(n - 2); }

static uint64_t RunFib(uint64_t iterations) {
  uint64_t sum = 0;
  for (uint64_t i = 0; i < iterations; ++i) sum += Fib(27 + (i & 1));
  return sum;
}

static NOINLINE int Tak(int x, int y, int z) {
  if (y >= x) return z;
  return Tak(Tak(x - 1, y, z), Tak(y - 1, z, x), Tak(z - 1, x, y));
}

static uint64_t RunTak(uint64_t iterations) {
  uint64_t sum = 0;
  for (uint64_t i = 0; i < iterations; ++i) sum += (uint64_t)Tak(18, 12, 6 + (int)(i & 1));
  return sum;
}

// Calls through a table of functions: what virtual methods and callbacks cost.
static NOINLINE uint64_t OpAdd(uint64_t a, uint64_t b) { return a + b; }
static NOINLINE uint64_t OpXor(uint64_t a, uint64_t b) { return a ^ (b << 3); }
static NOINLINE uint64_t OpMul(uint64_t a, uint64_t b) { return a * (b | 1); }
static NOINLINE uint64_t OpRotate(uint64_t a, uint64_t b) {
  return (a << (b & 31)) | (a >> (64 - (b & 31) - (b == 0)));
}

static uint64_t RunIndirect(uint64_t iterations) {
  uint64_t (*volatile const table[4])(uint64_t, uint64_t) = {OpAdd, OpXor, OpMul, OpRotate};
  uint64_t value = 1, random = 88172645463325252ULL;
  for (uint64_t i = 0; i < iterations; ++i) {
    const uint64_t r = NextRandom(&random);
    value = table[(r >> 60) & 3](value, (r & 15) + 1);
  }
  return value;
}

static void QuickSort(int32_t* a, int64_t low, int64_t high) {
  while (low < high) {
    const int32_t pivot = a[low + (high - low) / 2];
    int64_t i = low, j = high;
    while (i <= j) {
      while (a[i] < pivot) ++i;
      while (a[j] > pivot) --j;
      if (i <= j) {
        const int32_t t = a[i];
        a[i++] = a[j];
        a[j--] = t;
      }
    }
    if (j - low < high - i) {
      QuickSort(a, low, j);
      low = i;
    } else {
      QuickSort(a, i, high);
      high = j;
    }
  }
}

static uint64_t RunSort(uint64_t iterations) {
  enum { kCount = 200000 };
  int32_t* a = Allocate(kCount * sizeof *a);
  uint64_t random = 42, sum = 0;
  for (uint64_t n = 0; n < iterations; ++n) {
    for (int i = 0; i < kCount; ++i) a[i] = (int32_t)NextRandom(&random);
    QuickSort(a, 0, kCount - 1);
    for (int i = 0; i < kCount; i += 1000) sum = sum * 31 + (uint32_t)a[i];
  }
  free(a);
  return sum;
}

static int Compare(const void* a, const void* b) {
  const uint64_t x = *(const uint64_t*)a, y = *(const uint64_t*)b;
  return (x > y) - (x < y);
}

static uint64_t RunQsort(uint64_t iterations) {
  enum { kCount = 50000 };
  uint64_t* a = Allocate(kCount * sizeof *a);
  uint64_t random = 7, sum = 0;
  for (uint64_t n = 0; n < iterations; ++n) {
    for (int i = 0; i < kCount; ++i) a[i] = NextRandom(&random);
    qsort(a, kCount, sizeof *a, Compare);
    for (int i = 0; i < kCount; i += 500) sum = sum * 31 + a[i];
  }
  free(a);
  return sum;
}

static uint64_t RunSieve(uint64_t iterations) {
  enum { kLimit = 2000000 };
  uint8_t* composite = Allocate(kLimit);
  uint64_t sum = 0;
  for (uint64_t n = 0; n < iterations; ++n) {
    memset(composite, 0, kLimit);
    for (uint32_t i = 2; i < kLimit; ++i) {
      if (composite[i]) continue;
      sum += i;
      for (uint64_t j = (uint64_t)i * i; j < kLimit; j += i) composite[j] = 1;
    }
  }
  free(composite);
  return sum;
}

static uint64_t RunCrc(uint64_t iterations) {
  enum { kSize = 1 << 20 };
  static uint32_t table[256];
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t c = i;
    for (int k = 0; k < 8; ++k) c = c & 1 ? 0xEDB88320u ^ (c >> 1) : c >> 1;
    table[i] = c;
  }
  uint8_t* data = Allocate(kSize);
  for (int i = 0; i < kSize; ++i) data[i] = (uint8_t)(i * 7 + (i >> 8));
  uint32_t crc = ~0u;
  for (uint64_t n = 0; n < iterations; ++n) {
    for (int i = 0; i < kSize; ++i) crc = table[(crc ^ data[i]) & 0xFF] ^ (crc >> 8);
  }
  free(data);
  return crc;
}

static uint64_t RunHash(uint64_t iterations) {
  enum { kSlots = 1 << 16, kKeys = 40000 };
  struct Slot {
    uint64_t key, value;
  }* slots = Allocate(kSlots * sizeof *slots);
  uint64_t sum = 0;
  for (uint64_t n = 0; n < iterations; ++n) {
    memset(slots, 0, kSlots * sizeof *slots);
    for (int pass = 0; pass < 2; ++pass) {
      uint64_t random = 1234567;
      for (int i = 0; i < kKeys; ++i) {
        const uint64_t key = NextRandom(&random) | 1;
        uint64_t at = (key * 0x9E3779B97F4A7C15ULL) >> 48;
        while (slots[at].key && slots[at].key != key) at = (at + 1) & (kSlots - 1);
        slots[at].key = key;
        slots[at].value += (uint64_t)i;
      }
    }
    for (int i = 0; i < kSlots; ++i) sum += slots[i].value ^ slots[i].key;
  }
  free(slots);
  return sum;
}

static uint64_t RunList(uint64_t iterations) {
  enum { kNodes = 1 << 16 };
  struct Node {
    struct Node* next;
    uint64_t value;
  }* nodes = Allocate(kNodes * sizeof *nodes);
  uint32_t* order = Allocate(kNodes * sizeof *order);
  uint64_t random = 99, sum = 0;
  for (uint32_t i = 0; i < kNodes; ++i) order[i] = i;
  for (uint32_t i = kNodes - 1; i > 0; --i) {
    const uint32_t j = (uint32_t)(NextRandom(&random) % (i + 1)), t = order[i];
    order[i] = order[j];
    order[j] = t;
  }
  for (uint32_t i = 0; i < kNodes; ++i) {
    nodes[order[i]].next = &nodes[order[(i + 1) % kNodes]];
    nodes[order[i]].value = i;
  }
  const struct Node* node = &nodes[order[0]];
  for (uint64_t i = 0; i < iterations * kNodes; ++i) {
    sum += node->value;
    node = node->next;
  }
  free(order);
  free(nodes);
  return sum;
}

// A byte-code machine with computed gotos: one indirect jump an operation.
static uint64_t RunInterpreter(uint64_t iterations) {
  enum { kPush, kAdd, kMul, kXor, kDup, kLoop, kEnd };
  static const uint8_t program[] = {kPush, 3,    kAdd,  kDup, kMul, kPush, 5,   kXor,
                                    kDup,  kAdd, kPush, 7,    kMul, kLoop, kEnd};
  static const void* const labels[] = {&&push, &&add, &&mul, &&xor_, &&dup, &&loop, &&end};
  uint64_t stack[16] = {1}, *top = stack, count = iterations;
  const uint8_t* pc = program;
#define NEXT goto* labels[*pc++]
  NEXT;
push:
  *++top = *pc++;
  NEXT;
add:
  --top;
  top[0] += top[1];
  NEXT;
mul:
  if (top > stack) --top;
  top[0] = top[0] * (top[1] | 1) + 1;
  NEXT;
xor_:
  --top;
  top[0] ^= top[1];
  NEXT;
dup:
  top[1] = top[0];
  ++top;
  NEXT;
loop:
  if (--count) pc = program;
  NEXT;
end:
#undef NEXT
  return stack[0];
}

static uint64_t Digest(const double* values, int count) {
  uint64_t sum = 0;
  for (int i = 0; i < count; ++i) {
    uint64_t bits;
    memcpy(&bits, &values[i], sizeof bits);
    sum = sum * 1099511628211ULL + bits;
  }
  return sum;
}

static uint64_t RunMatrix(uint64_t iterations) {
  enum { kN = 96 };
  static double a[kN][kN], b[kN][kN], c[kN][kN];
  for (int i = 0; i < kN; ++i) {
    for (int j = 0; j < kN; ++j) {
      a[i][j] = (double)(i * 3 + j) / 97.0;
      b[i][j] = (double)(i - j * 2) / 89.0;
    }
  }
  uint64_t sum = 0;
  for (uint64_t n = 0; n < iterations; ++n) {
    memset(c, 0, sizeof c);
    for (int i = 0; i < kN; ++i) {
      for (int k = 0; k < kN; ++k) {
        for (int j = 0; j < kN; ++j) c[i][j] += a[i][k] * b[k][j];
      }
    }
    a[0][0] += 1;
    sum += Digest(&c[0][0], kN * kN);
  }
  return sum;
}

static uint64_t RunNbody(uint64_t iterations) {
  struct Body {
    double x[3], v[3], mass;
  } bodies[5] = {{{0, 0, 0}, {0, 0, 0}, 39.47},
                 {{4.84, -1.16, -0.10}, {0.606, 2.81, -0.02}, 0.037},
                 {{8.34, 4.12, -0.4}, {-1.01, 1.82, 0.008}, 0.011},
                 {{12.89, -15.11, -0.22}, {1.08, 0.868, -0.01}, 0.0017},
                 {{15.37, -25.9, 0.179}, {0.979, 0.594, -0.034}, 0.002}};
  for (uint64_t n = 0; n < iterations; ++n) {
    for (int i = 0; i < 5; ++i) {
      for (int j = i + 1; j < 5; ++j) {
        double d[3], square = 0;
        for (int k = 0; k < 3; ++k) {
          d[k] = bodies[i].x[k] - bodies[j].x[k];
          square += d[k] * d[k];
        }
        const double force = 0.001 / (square * sqrt(square));
        for (int k = 0; k < 3; ++k) {
          bodies[i].v[k] -= d[k] * bodies[j].mass * force;
          bodies[j].v[k] += d[k] * bodies[i].mass * force;
        }
      }
    }
    for (int i = 0; i < 5; ++i) {
      for (int k = 0; k < 3; ++k) bodies[i].x[k] += 0.001 * bodies[i].v[k];
    }
  }
  return Digest(&bodies[0].x[0], 5 * 7);
}

static uint64_t RunFft(uint64_t iterations) {
  enum { kSize = 4096 };
  static double re[kSize], im[kSize], cosine[kSize / 2], sine[kSize / 2];
  // Twiddle factors by rotation: libm may choose its code by CPU, and with it the last bit.
  const double step_re = 0.99999882345170187902, step_im = 0.00153398018628476561;
  double w_re = 1, w_im = 0;
  for (int i = 0; i < kSize / 2; ++i) {
    cosine[i] = w_re;
    sine[i] = -w_im;
    const double t = w_re * step_re - w_im * step_im;
    w_im = w_re * step_im + w_im * step_re;
    w_re = t;
  }
  for (int i = 0; i < kSize; ++i) {
    re[i] = (double)((i * 37) % 101) / 101.0;
    im[i] = 0;
  }
  for (uint64_t n = 0; n < iterations; ++n) {
    for (int i = 1, j = 0; i < kSize; ++i) {
      int bit = kSize >> 1;
      for (; j & bit; bit >>= 1) j ^= bit;
      j ^= bit;
      if (i < j) {
        const double tr = re[i], ti = im[i];
        re[i] = re[j];
        im[i] = im[j];
        re[j] = tr;
        im[j] = ti;
      }
    }
    for (int length = 2; length <= kSize; length <<= 1) {
      for (int i = 0; i < kSize; i += length) {
        for (int k = 0; k < length / 2; ++k) {
          const int w = k * (kSize / length), p = i + k, q = p + length / 2;
          const double tr = re[q] * cosine[w] - im[q] * sine[w], ti = re[q] * sine[w] + im[q] * cosine[w];
          re[q] = re[p] - tr;
          im[q] = im[p] - ti;
          re[p] += tr;
          im[p] += ti;
        }
      }
    }
    for (int i = 0; i < kSize; ++i) {
      re[i] /= 64;
      im[i] /= 64;
    }
  }
  return Digest(re, kSize) ^ Digest(im, kSize);
}

static uint64_t RunMemcpy(uint64_t iterations) {
  enum { kSize = 1 << 20 };
  uint8_t* from = Allocate(kSize);
  uint8_t* to = Allocate(kSize);
  for (int i = 0; i < kSize; ++i) from[i] = (uint8_t)(i ^ (i >> 7));
  uint64_t sum = 0;
  for (uint64_t n = 0; n < iterations; ++n) {
    for (int at = 0; at < kSize; at += 64 << 10) memcpy(to + at, from + at, 64 << 10);
    from[n & (kSize - 1)] ^= to[(n * 7919) & (kSize - 1)];
    sum += to[(n * 104729) & (kSize - 1)];
  }
  free(from);
  free(to);
  return sum;
}

static uint64_t RunString(uint64_t iterations) {
  enum { kWords = 4096 };
  char* text = Allocate(kWords * 16 + 1);
  uint64_t random = 5, sum = 0;
  size_t length = 0;
  for (int i = 0; i < kWords; ++i) {
    const int letters = 1 + (int)(NextRandom(&random) % 12);
    for (int k = 0; k < letters; ++k) text[length++] = (char)('a' + NextRandom(&random) % 26);
    text[length++] = ' ';
  }
  text[length] = 0;
  for (uint64_t n = 0; n < iterations; ++n) {
    const char* at = text;
    for (const char* space; (space = strchr(at, ' ')) != NULL; at = space + 1)
      sum += (uint64_t)(space - at) * (uint8_t)*at;
    sum += strlen(text) + (uint64_t)memcmp(text, text + 1, 8) % 3;
    sum += strstr(text, "zzzz") != NULL;
  }
  free(text);
  return sum;
}

static inline uint32_t Rotate(uint32_t x, int n) { return (x >> n) | (x << (32 - n)); }

// SHA-256's compression (FIPS 180-4, 6.2.2); its constants are replaced by random ones.
static uint64_t RunSha256(uint64_t iterations) {
  enum { kBlocks = 256 };
  uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  uint32_t k[64];
  uint64_t random = 256;
  for (int i = 0; i < 64; ++i) k[i] = (uint32_t)(NextRandom(&random) >> 32);
  for (uint64_t n = 0; n < iterations * kBlocks; ++n) {
    uint32_t w[64];
    for (int i = 0; i < 16; ++i) w[i] = (uint32_t)n * 0x01000193u + (uint32_t)i;
    for (int i = 16; i < 64; ++i) {
      const uint32_t s0 = Rotate(w[i - 15], 7) ^ Rotate(w[i - 15], 18) ^ (w[i - 15] >> 3);
      const uint32_t s1 = Rotate(w[i - 2], 17) ^ Rotate(w[i - 2], 19) ^ (w[i - 2] >> 10);
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    uint32_t a = h[0], b = h[1], c = h[2], d = h[3], e = h[4], f = h[5], g = h[6], x = h[7];
    for (int i = 0; i < 64; ++i) {
      const uint32_t t1 = x + (Rotate(e, 6) ^ Rotate(e, 11) ^ Rotate(e, 25)) + ((e & f) ^ (~e & g)) + k[i] + w[i];
      const uint32_t t2 = (Rotate(a, 2) ^ Rotate(a, 13) ^ Rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      x = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e, h[5] += f, h[6] += g, h[7] += x;
  }
  return ((uint64_t)h[0] << 32) | h[7];
}

const struct Bench kCpuBenches[] = {
    {"fib", RunFib, 120},
    {"tak", RunTak, 1000},
    {"indirect-call", RunIndirect, 20000000},
    {"sort", RunSort, 15},
    {"qsort", RunQsort, 20},
    {"sieve", RunSieve, 30},
    {"crc", RunCrc, 100},
    {"hash", RunHash, 150},
    {"list", RunList, 800},
    {"interpreter", RunInterpreter, 6000000},
    {"matrix", RunMatrix, 50},
    {"nbody", RunNbody, 250000},
    {"fft", RunFft, 400},
    {"memcpy", RunMemcpy, 400},
    {"string", RunString, 3000},
    {"sha256", RunSha256, 1500},
    {"json", RunJson, 150},
    {"big-number", RunBigNumber, 60},
    {"compress", RunCompress, 60},
    {"regex", RunRegex, 600},
    {"btree", RunBtree, 20},
    {"graph", RunGraph, 25},
    {"allocate", RunAllocate, 4000000},
    {"state-machine", RunStateMachine, 600},
    {"mandelbrot", RunMandelbrot, 12},
    {"queens", RunQueens, 120},
    {"chacha", RunChacha, 1200},
    {"string-calls", RunStringCalls, 4000},
    {0, 0, 0},
};
