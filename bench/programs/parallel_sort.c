// parallel-sort THREADS: makes, sorts and checks 6 million 64-bit numbers, more than the caches hold, with the same
// work for any number of threads: each thread moves its share into buckets by the topmost bits, then takes buckets and
// sorts them. Prints a checksum of the sorted numbers.
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { kCount = 6000000, kMostThreads = 64, kBuckets = 1024, kBucketShift = 54, kRounds = 2 };

static uint64_t *numbers, *sorted;
static size_t positions[kMostThreads][kBuckets], ends[kBuckets];
static uint64_t sums[kBuckets];
static atomic_int next_bucket, wrong;
static int threads;
static uint64_t seed;

static size_t Begin(int thread) { return (size_t)kCount * (size_t)thread / (size_t)threads; }

static uint64_t Mix(uint64_t x) {  // splitmix64's finalizer, Steele et al. 2014
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

static void Make(int thread) {
  size_t* counts = positions[thread];
  for (int b = 0; b < kBuckets; ++b) counts[b] = 0;
  for (size_t i = Begin(thread); i < Begin(thread + 1); ++i) {
    numbers[i] = Mix(seed + i * 0x9e3779b97f4a7c15ULL);
    ++counts[numbers[i] >> kBucketShift];
  }
}

static void Distribute(int thread) {
  size_t* at = positions[thread];
  for (size_t i = Begin(thread); i < Begin(thread + 1); ++i) sorted[at[numbers[i] >> kBucketShift]++] = numbers[i];
}

static void ShellSort(uint64_t* a, size_t count) {
  static const size_t gaps[] = {1750, 701, 301, 132, 57, 23, 10, 4, 1};  // Ciura 2001
  for (size_t g = 0; g < sizeof gaps / sizeof *gaps; ++g) {
    const size_t gap = gaps[g];
    for (size_t i = gap; i < count; ++i) {
      const uint64_t value = a[i];
      size_t j = i;
      for (; j >= gap && a[j - gap] > value; j -= gap) a[j] = a[j - gap];
      a[j] = value;
    }
  }
}

static void SortBuckets(int thread) {
  (void)thread;
  for (int b; (b = atomic_fetch_add(&next_bucket, 1)) < kBuckets;) {
    const size_t begin = b ? ends[b - 1] : 0;
    ShellSort(sorted + begin, ends[b] - begin);
    uint64_t sum = 0;
    for (size_t i = begin; i < ends[b]; ++i) {
      if (i > begin && sorted[i] < sorted[i - 1]) atomic_store(&wrong, 1);
      sum = sum * 31 + sorted[i];
    }
    sums[b] = sum;
  }
}

struct Share {
  void (*body)(int thread);
  int thread;
};

static void* RunShare(void* argument) {
  const struct Share* share = argument;
  share->body(share->thread);
  return NULL;
}

static void OnAll(void (*body)(int thread)) {
  pthread_t handles[kMostThreads];
  struct Share shares[kMostThreads];
  for (int t = 0; t < threads; ++t) {
    shares[t] = (struct Share){body, t};
    if (pthread_create(&handles[t], NULL, RunShare, &shares[t])) abort();
  }
  for (int t = 0; t < threads; ++t) pthread_join(handles[t], NULL);
}

int main(int argc, char** argv) {
  threads = argc > 1 ? atoi(argv[1]) : 1;
  if (threads < 1 || threads > kMostThreads) {
    fprintf(stderr, "usage: parallel-sort THREADS   (at most %d)\n", kMostThreads);
    return 2;
  }
  numbers = malloc(kCount * sizeof *numbers);
  sorted = malloc(kCount * sizeof *sorted);
  if (!numbers || !sorted) return 1;
  uint64_t sum = 0;
  for (int round = 0; round < kRounds; ++round) {
    seed = Mix((uint64_t)round + 1);
    OnAll(Make);
    size_t at = 0;
    for (int b = 0; b < kBuckets; ++b) {
      for (int t = 0; t < threads; ++t) {
        const size_t count = positions[t][b];
        positions[t][b] = at;
        at += count;
      }
      ends[b] = at;
    }
    OnAll(Distribute);
    atomic_store(&next_bucket, 0);
    OnAll(SortBuckets);
    for (int b = 0; b < kBuckets; ++b) sum = sum * 31 + sums[b];
  }
  printf("%016" PRIx64 "\n", sum);
  return atomic_load(&wrong);
}
