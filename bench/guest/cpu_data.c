// Benchmarks on data structures: an ordered map of strings, a shortest path, memory that is allocated and freed.
#include <stdlib.h>
#include <string.h>

#include "bench.h"

// ---- A B-tree of strings, as in a data base's index.

enum { kOrder = 16, kKeyBytes = 24 };

struct BNode {
  int count, leaf;
  char keys[kOrder][kKeyBytes];
  uint64_t values[kOrder];
  struct BNode* children[kOrder + 1];
};

static struct BNode* NewBNode(int leaf) {
  struct BNode* node = Allocate(sizeof *node);
  node->count = 0;
  node->leaf = leaf;
  return node;
}

static void FreeTree(struct BNode* node) {
  for (int i = 0; !node->leaf && i <= node->count; ++i) FreeTree(node->children[i]);
  free(node);
}

// The first position whose key is not smaller; *same tells whether it is equal.
static int FindKey(const struct BNode* node, const char* key, int* same) {
  int low = 0, high = node->count;
  *same = 0;
  while (low < high) {
    const int middle = (low + high) / 2, order = strcmp(node->keys[middle], key);
    if (order == 0) *same = 1;
    if (order >= 0)
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

static void MakeRoom(struct BNode* node, int at) {
  memmove(node->keys[at + 1], node->keys[at], (size_t)(node->count - at) * kKeyBytes);
  memmove(&node->values[at + 1], &node->values[at], (size_t)(node->count - at) * sizeof *node->values);
  if (!node->leaf) {
    memmove(&node->children[at + 2], &node->children[at + 1], (size_t)(node->count - at) * sizeof *node->children);
  }
  ++node->count;
}

static void SplitChild(struct BNode* parent, int at) {
  struct BNode *left = parent->children[at], *right = NewBNode(left->leaf);
  const int half = kOrder / 2;
  right->count = kOrder - half - 1;
  memcpy(right->keys, left->keys[half + 1], (size_t)right->count * kKeyBytes);
  memcpy(right->values, &left->values[half + 1], (size_t)right->count * sizeof *left->values);
  if (!left->leaf) memcpy(right->children, &left->children[half + 1], (size_t)(right->count + 1) * sizeof left);
  left->count = half;
  MakeRoom(parent, at);
  memcpy(parent->keys[at], left->keys[half], kKeyBytes);
  parent->values[at] = left->values[half];
  parent->children[at + 1] = right;
}

static void AddToTree(struct BNode** root, const char* key, uint64_t value) {
  if ((*root)->count == kOrder) {
    struct BNode* above = NewBNode(0);
    above->children[0] = *root;
    SplitChild(above, 0);
    *root = above;
  }
  for (struct BNode* node = *root;;) {
    int same, at = FindKey(node, key, &same);
    if (same) {
      node->values[at] += value;
      return;
    }
    if (node->leaf) {
      MakeRoom(node, at);
      strcpy(node->keys[at], key);
      node->values[at] = value;
      return;
    }
    if (node->children[at]->count == kOrder) {
      SplitChild(node, at);
      continue;  // the key that went up may be the one that is sought
    }
    node = node->children[at];
  }
}

static uint64_t WalkTree(const struct BNode* node, uint64_t sum) {
  for (int i = 0; i < node->count; ++i) {
    if (!node->leaf) sum = WalkTree(node->children[i], sum);
    sum = sum * 31 + node->values[i] + (uint8_t)node->keys[i][5];
  }
  return node->leaf ? sum : WalkTree(node->children[node->count], sum);
}

static void MakeKey(char* key, uint64_t number) {
  static const char prefix[] = "key:";
  memcpy(key, prefix, 4);
  int at = 4;
  for (; number; number /= 26) key[at++] = (char)('a' + number % 26);
  key[at] = 0;
}

uint64_t RunBtree(uint64_t iterations) {
  enum { kKeys = 20000 };
  uint64_t sum = 0;
  for (uint64_t n = 0; n < iterations; ++n) {
    struct BNode* root = NewBNode(1);
    uint64_t random = 4711 + n;
    char key[kKeyBytes];
    for (int i = 0; i < kKeys; ++i) {
      MakeKey(key, NextRandom(&random) % (kKeys * 2) * 977 + 26);
      AddToTree(&root, key, (uint64_t)i);
    }
    sum = WalkTree(root, sum);
    FreeTree(root);
  }
  return sum;
}

// ---- Dijkstra's shortest paths with a binary heap.

struct Entry {
  uint64_t distance;
  uint32_t vertex;
};

static void PushHeap(struct Entry* heap, size_t* count, struct Entry entry) {
  size_t at = (*count)++;
  for (; at && heap[(at - 1) / 2].distance > entry.distance; at = (at - 1) / 2) heap[at] = heap[(at - 1) / 2];
  heap[at] = entry;
}

static struct Entry PopHeap(struct Entry* heap, size_t* count) {
  const struct Entry top = heap[0], last = heap[--*count];
  size_t at = 0;
  for (size_t child; (child = at * 2 + 1) < *count; at = child) {
    if (child + 1 < *count && heap[child + 1].distance < heap[child].distance) ++child;
    if (heap[child].distance >= last.distance) break;
    heap[at] = heap[child];
  }
  heap[at] = last;
  return top;
}

uint64_t RunGraph(uint64_t iterations) {
  enum { kVertices = 20000, kEdges = 6 };
  struct Edge {
    uint32_t to, weight;
  }(*edges)[kEdges] = Allocate(sizeof(struct Edge) * kVertices * kEdges);
  uint64_t* distance = Allocate(kVertices * sizeof *distance);
  struct Entry* heap = Allocate((size_t)kVertices * kEdges * sizeof *heap);
  uint64_t random = 1965, sum = 0;
  for (int v = 0; v < kVertices; ++v) {
    for (int e = 0; e < kEdges; ++e) {
      edges[v][e].to = (uint32_t)(NextRandom(&random) % kVertices);
      edges[v][e].weight = (uint32_t)(NextRandom(&random) % 1000) + 1;
    }
  }
  for (uint64_t n = 0; n < iterations; ++n) {
    size_t count = 0;
    for (int v = 0; v < kVertices; ++v) distance[v] = UINT64_MAX;
    const uint32_t start = (uint32_t)(n * 7919 % kVertices);
    distance[start] = 0;
    PushHeap(heap, &count, (struct Entry){0, start});
    while (count) {
      const struct Entry entry = PopHeap(heap, &count);
      if (entry.distance > distance[entry.vertex]) continue;
      for (int e = 0; e < kEdges; ++e) {
        const struct Edge edge = edges[entry.vertex][e];
        const uint64_t way = entry.distance + edge.weight;
        if (way < distance[edge.to]) {
          distance[edge.to] = way;
          PushHeap(heap, &count, (struct Entry){way, edge.to});
        }
      }
    }
    for (int v = 0; v < kVertices; v += 37) sum = sum * 31 + distance[v];
  }
  free(heap);
  free(distance);
  free(edges);
  return sum;
}

// ---- malloc and free of objects of mixed sizes that live for different times.

uint64_t RunAllocate(uint64_t iterations) {
  enum { kLive = 4096 };
  static uint64_t* live[kLive];
  uint64_t random = 8, sum = 0;
  for (uint64_t n = 0; n < iterations; ++n) {
    const uint64_t r = NextRandom(&random);
    uint64_t** slot = &live[(r >> 20) % kLive];
    if (*slot) {
      sum += **slot;
      free(*slot);
    }
    const size_t size = 16 + (r & 63) * ((r >> 8 & 7) + 1);
    *slot = Allocate(size);
    **slot = n ^ size;
  }
  for (int i = 0; i < kLive; ++i) {
    free(live[i]);
    live[i] = NULL;
  }
  return sum;
}
