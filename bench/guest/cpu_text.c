// Benchmarks on bytes and text: JSON, compression, regular expressions, a lexer, the C library's string functions.
#include <stdlib.h>
#include <string.h>

#include "bench.h"

// ---- JSON: a document is parsed into a tree and the tree written out again.

struct JsonNode {
  char kind;  // { [ " n t f z (null)
  uint32_t length;
  const char* text;  // of a string, inside the document
  double number;
  struct JsonNode *key, *child, *next;  // key: the member's name, a string
};

struct Json {
  const char* at;
  struct JsonNode* nodes;
  size_t used, capacity;
};

static struct JsonNode* ParseValue(struct Json* json);

static struct JsonNode* NewNode(struct Json* json, char kind) {
  if (json->used == json->capacity) Die("json: too many nodes");
  struct JsonNode* node = &json->nodes[json->used++];
  memset(node, 0, sizeof *node);
  node->kind = kind;
  return node;
}

static char SkipBlanks(struct Json* json) {
  while (*json->at == ' ' || *json->at == '\n' || *json->at == '\t') ++json->at;
  return *json->at;
}

static struct JsonNode* ParseString(struct Json* json) {
  struct JsonNode* node = NewNode(json, '"');
  node->text = ++json->at;
  while (*json->at != '"') {
    if (*json->at == '\\') ++json->at;
    if (!*json->at++) Die("json: string without end");
  }
  node->length = (uint32_t)(json->at++ - node->text);
  return node;
}

static struct JsonNode* ParseNumber(struct Json* json) {
  struct JsonNode* node = NewNode(json, 'n');
  double sign = 1, value = 0, scale = 1;
  if (*json->at == '-') sign = -1, ++json->at;
  for (; *json->at >= '0' && *json->at <= '9'; ++json->at) value = value * 10 + (*json->at - '0');
  if (*json->at == '.') {
    for (++json->at; *json->at >= '0' && *json->at <= '9'; ++json->at) {
      value = value * 10 + (*json->at - '0');
      scale *= 10;
    }
  }
  node->number = sign * value / scale;
  return node;
}

static struct JsonNode* ParseMembers(struct Json* json, char kind) {
  struct JsonNode *node = NewNode(json, kind), **link = &node->child;
  const char end = kind == '{' ? '}' : ']';
  ++json->at;
  while (SkipBlanks(json) != end) {
    struct JsonNode* key = NULL;
    if (kind == '{') {
      key = ParseString(json);
      if (SkipBlanks(json) != ':') Die("json: no colon");
      ++json->at;
    }
    *link = ParseValue(json);
    (*link)->key = key;
    link = &(*link)->next;
    if (SkipBlanks(json) == ',') ++json->at;
  }
  ++json->at;
  return node;
}

static struct JsonNode* ParseValue(struct Json* json) {
  switch (SkipBlanks(json)) {
    case '{':
      return ParseMembers(json, '{');
    case '[':
      return ParseMembers(json, '[');
    case '"':
      return ParseString(json);
    case 't':
      json->at += 4;
      return NewNode(json, 't');
    case 'f':
      json->at += 5;
      return NewNode(json, 'f');
    case 'n':
      json->at += 4;
      return NewNode(json, 'z');
    default:
      return ParseNumber(json);
  }
}

static char* WriteNumber(char* out, double number) {
  if (number < 0) *out++ = '-', number = -number;
  uint64_t thousandths = (uint64_t)(number * 1000 + 0.5);
  char digits[24];
  int count = 0;
  do digits[count++] = (char)('0' + thousandths % 10);
  while ((thousandths /= 10) || count < 4);
  while (count) {
    if (count == 3) *out++ = '.';
    *out++ = digits[--count];
  }
  return out;
}

static char* WriteValue(char* out, const struct JsonNode* node) {
  static const char* const words[] = {['t'] = "true", ['f'] = "false", ['z'] = "null"};
  switch (node->kind) {
    case '"':
      *out++ = '"';
      memcpy(out, node->text, node->length);
      out += node->length;
      *out++ = '"';
      return out;
    case 'n':
      return WriteNumber(out, node->number);
    case 't':
    case 'f':
    case 'z':
      return stpcpy(out, words[(int)node->kind]);
    default:
      break;
  }
  *out++ = node->kind;
  for (const struct JsonNode* child = node->child; child; child = child->next) {
    if (child->key) {
      out = WriteValue(out, child->key);
      *out++ = ':';
    }
    out = WriteValue(out, child);
    if (child->next) *out++ = ',';
  }
  *out++ = node->kind == '{' ? '}' : ']';
  return out;
}

static char* MakeDocument(char* out) {
  uint64_t random = 2024;
  *out++ = '[';
  for (int i = 0; i < 400; ++i) {
    if (i) out = stpcpy(out, ",\n  ");
    out = stpcpy(out, "{\"name\": \"item ");
    out = WriteNumber(out, (double)(NextRandom(&random) % 100000));
    out = stpcpy(out, " \\\"quoted\\\"\", \"price\": ");
    out = WriteNumber(out, (double)(NextRandom(&random) % 1000000) / 64 - 5000);
    out = stpcpy(out, ", \"sold\": ");
    out = stpcpy(out, NextRandom(&random) % 3 ? "true" : "null");
    out = stpcpy(out, ", \"tags\": [\"red\", \"round\", {\"deep\": [1, 2.5, -3]}], \"sizes\": [");
    for (int k = 0; k < 8; ++k) {
      if (k) *out++ = ',';
      out = WriteNumber(out, (double)(NextRandom(&random) % 4096));
    }
    out = stpcpy(out, "]}");
  }
  out = stpcpy(out, "]");
  return out;
}

uint64_t RunJson(uint64_t iterations) {
  enum { kBytes = 1 << 18, kNodes = 400 * 32 };
  char *document = Allocate(kBytes), *copy = Allocate(kBytes);
  struct Json json = {.nodes = Allocate(kNodes * sizeof *json.nodes), .capacity = kNodes};
  MakeDocument(document);
  uint64_t sum = 0;
  for (uint64_t n = 0; n < iterations; ++n) {
    json.at = document;
    json.used = 0;
    const size_t length = (size_t)(WriteValue(copy, ParseValue(&json)) - copy);
    sum = sum * 31 + length + json.used;
    for (size_t i = 0; i < length; i += 97) sum = sum * 31 + (uint8_t)copy[i];
  }
  free(json.nodes);
  free(copy);
  free(document);
  return sum;
}

// ---- A Lempel-Ziv compressor with a hash table of positions, and its decompressor.

static void MakeText(uint8_t* text, size_t size) {
  char words[256][10];
  uint64_t random = 77;
  for (int w = 0; w < 256; ++w) {
    const int letters = 2 + (int)(NextRandom(&random) >> 61);
    for (int k = 0; k < letters; ++k) words[w][k] = (char)('a' + NextRandom(&random) % 26);
    words[w][letters] = 0;
  }
  for (size_t at = 0; at < size;) {
    const char* word = words[(NextRandom(&random) >> 56) & (NextRandom(&random) >> 56)];
    while (*word && at < size) text[at++] = (uint8_t)*word++;
    if (at < size) text[at++] = ' ';
  }
}

// Tokens: 0 LITERAL, or LENGTH (4 to 255) and a distance of two bytes.
static size_t Compress(const uint8_t* in, size_t size, uint8_t* out, uint32_t* heads) {
  size_t written = 0;
  memset(heads, 0, sizeof(uint32_t) << 14);
  for (size_t at = 0; at < size;) {
    size_t length = 0;
    uint32_t candidate = 0, word;
    if (at + 4 <= size) {
      memcpy(&word, in + at, sizeof word);
      uint32_t* head = &heads[(word * 2654435761U) >> 18];
      candidate = *head;
      *head = (uint32_t)at + 1;
      if (candidate && at - --candidate < 65536) {
        while (length < 255 && at + length < size && in[candidate + length] == in[at + length]) ++length;
      }
    }
    if (length < 4) {
      out[written++] = 0;
      out[written++] = in[at++];
    } else {
      const size_t distance = at - candidate;
      out[written++] = (uint8_t)length;
      out[written++] = (uint8_t)distance;
      out[written++] = (uint8_t)(distance >> 8);
      at += length;
    }
  }
  return written;
}

static size_t Decompress(const uint8_t* in, size_t size, uint8_t* out) {
  size_t written = 0;
  for (size_t at = 0; at < size;) {
    size_t length = in[at++];
    if (length == 0) {
      out[written++] = in[at++];
      continue;
    }
    const size_t distance = in[at] | (size_t)in[at + 1] << 8;
    at += 2;
    for (; length; --length, ++written) out[written] = out[written - distance];
  }
  return written;
}

uint64_t RunCompress(uint64_t iterations) {
  enum { kSize = 1 << 18 };
  uint8_t *text = Allocate(kSize), *packed = Allocate(kSize * 2), *back = Allocate(kSize);
  uint32_t* heads = Allocate(sizeof(uint32_t) << 14);
  MakeText(text, kSize);
  uint64_t sum = 0;
  for (uint64_t n = 0; n < iterations; ++n) {
    text[n * 1009 % kSize] ^= 1;
    const size_t length = Compress(text, kSize, packed, heads);
    if (Decompress(packed, length, back) != kSize || memcmp(text, back, kSize) != 0) Die("compress: not the same");
    sum = sum * 31 + length;
    for (size_t i = 0; i < length; i += 501) sum = sum * 31 + packed[i];
  }
  free(heads);
  free(back);
  free(packed);
  free(text);
  return sum;
}

// ---- Regular expressions by backtracking: letters, '.', [a-z], and each followed by '*', '+' or '?'.

static const char* AtomEnd(const char* pattern) {
  if (*pattern == '[') {
    while (*pattern != ']') ++pattern;
  }
  return pattern + 1;
}

static int MatchesAtom(const char* pattern, uint8_t c) {
  if (*pattern == '.') return 1;
  if (*pattern != '[') return (uint8_t)*pattern == c;
  for (++pattern; *pattern != ']'; pattern += 3) {
    if (c >= (uint8_t)pattern[0] && c <= (uint8_t)pattern[2]) return 1;
  }
  return 0;
}

// Returns the length of the longest match at text, or -1.
static long MatchHere(const char* pattern, const uint8_t* text, const uint8_t* end) {
  if (!*pattern) return 0;
  const char *next = AtomEnd(pattern), *rest = next;
  long least = 1, most = 1;
  if (*next == '*') least = 0, most = end - text, ++rest;
  if (*next == '+') most = end - text, ++rest;
  if (*next == '?') least = 0, ++rest;
  long count = 0;
  while (count < most && text + count < end && MatchesAtom(pattern, text[count])) ++count;
  for (; count >= least; --count) {
    const long tail = MatchHere(rest, text + count, end);
    if (tail >= 0) return count + tail;
  }
  return -1;
}

uint64_t RunRegex(uint64_t iterations) {
  enum { kSize = 1 << 14 };
  static const char* const patterns[] = {"a[a-m]*z", "[a-f]+ [s-z][a-z]* e", "th?e.?a", "[x-z][a-z]+q", ".q. [k-p]"};
  uint8_t* text = Allocate(kSize);
  MakeText(text, kSize);
  uint64_t sum = 0;
  for (uint64_t n = 0; n < iterations; ++n) {
    const char* pattern = patterns[n % (sizeof patterns / sizeof *patterns)];
    for (const uint8_t *at = text, *end = text + kSize; at < end;) {
      const long length = MatchHere(pattern, at, end);
      if (length > 0) sum = sum * 31 + (uint64_t)(at - text) + (uint64_t)length;
      at += length > 0 ? length : 1;
    }
  }
  free(text);
  return sum;
}

// ---- A lexer of a C-like language: a state machine with a switch on the state and one on the character.

uint64_t RunStateMachine(uint64_t iterations) {
  enum { kSize = 1 << 16 };
  enum { kStart, kName, kInteger, kFraction, kString, kEscape, kSlash, kComment, kLineComment, kStar, kStates };
  static const char* const pieces[] = {
      "while ", "(",  "count_",    "42", "3.14159", " + ", "\"text \\\" more\"", "/* note */", ");\n", "x",
      "[i]",    "--", "// rest\n", "{ ", "} ",      "/"};
  uint8_t* text = Allocate(kSize);
  uint64_t random = 11, sum = 0;
  for (size_t at = 0; at < kSize;) {
    for (const char* piece = pieces[NextRandom(&random) >> 60]; *piece && at < kSize;) text[at++] = (uint8_t)*piece++;
  }
  for (uint64_t n = 0; n < iterations; ++n) {
    uint64_t tokens[kStates] = {0};
    int state = kStart;
    for (size_t at = 0; at < kSize; ++at) {
      const uint8_t c = text[at];
      switch (state) {
        case kName:
          if ((c >= 'a' && c <= 'z') || c == '_' || (c >= '0' && c <= '9')) break;
          ++tokens[kName], state = kStart, --at;
          break;
        case kInteger:
          if (c >= '0' && c <= '9') break;
          if (c == '.') {
            state = kFraction;
            break;
          }
          ++tokens[kInteger], state = kStart, --at;
          break;
        case kFraction:
          if (c >= '0' && c <= '9') break;
          ++tokens[kFraction], state = kStart, --at;
          break;
        case kString:
          if (c == '\\') state = kEscape;
          if (c == '"') ++tokens[kString], state = kStart;
          break;
        case kEscape:
          state = kString;
          break;
        case kSlash:
          if (c == '*')
            state = kComment;
          else if (c == '/')
            state = kLineComment;
          else
            ++tokens[kSlash], state = kStart, --at;
          break;
        case kComment:
          if (c == '*') state = kStar;
          break;
        case kStar:
          state = c == '/' ? (++tokens[kComment], kStart) : c == '*' ? kStar : kComment;
          break;
        case kLineComment:
          if (c == '\n') ++tokens[kLineComment], state = kStart;
          break;
        default:
          switch (c) {
            case '"':
              state = kString;
              break;
            case '/':
              state = kSlash;
              break;
            case 'a' ... 'z':
            case '_':
              state = kName;
              break;
            case '0' ... '9':
              state = kInteger;
              break;
            case ' ':
            case '\n':
              break;
            case '(':
            case '[':
            case '{':
              tokens[kStart] += 3;
              break;
            case ')':
            case ']':
            case '}':
              tokens[kStart] += 5;
              break;
            default:
              tokens[kStart] += c;
              break;
          }
      }
    }
    text[(n * 4099) % kSize] ^= 1;
    for (int i = 0; i < kStates; ++i) sum = sum * 31 + tokens[i];
  }
  free(text);
  return sum;
}

// ---- What the C library does in short calls: memset, strlen, strcmp, memcpy, strcpy of some ten to hundred bytes.

uint64_t RunStringCalls(uint64_t iterations) {
  enum { kStrings = 512, kRoom = 128 };
  char(*strings)[kRoom] = Allocate((size_t)kStrings * kRoom);
  uint64_t random = 31, sum = 0;
  for (int i = 0; i < kStrings; ++i) {
    const size_t length = 4 + NextRandom(&random) % 100;
    memset(strings[i], 'a' + (i & 3), length);
    strings[i][length - 2] = (char)('a' + NextRandom(&random) % 26);
    strings[i][length] = 0;
  }
  for (uint64_t n = 0; n < iterations; ++n) {
    char room[kRoom];
    for (int i = 0; i < kStrings; ++i) {
      const char* other = strings[(size_t)(i * 7 + (int)(n & 63)) % kStrings];
      const size_t length = strlen(strings[i]);
      sum = sum * 3 + length + (strcmp(strings[i], other) > 0);
      memset(room, (int)(sum & 127) + 1, length);
      strcpy(room + length / 4, other + strlen(other) / 2);
      sum += (uint8_t)room[n & 3] + (uint64_t)(memchr(room, 'c', kRoom / 2) != NULL);
    }
  }
  free(strings);
  return sum;
}
