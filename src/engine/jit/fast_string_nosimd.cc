// REP strings outside 64-bit code, through any segments: within pages and limits, element by element only where DF is
// set or the destination lies close behind the source. Called with guest vectors live.

#include "engine/jit/jit_vcpu.h"

namespace nacre::engine::jit {

using x86::CpuState;
using x86::Segment;

namespace {

constexpr uint8_t kMovs = 0xa4, kCmps = 0xa6, kStos = 0xaa, kLods = 0xac, kScas = 0xae;

template <typename T>
T Get(const uint8_t* at) {
  T value;
  __builtin_memcpy(&value, at, sizeof value);
  return value;
}

/// The host's flags of a comparison.
template <typename T>
uint64_t CompareFlags(T left, T right) {
  uint64_t flags;
  asm volatile("cmp %[right], %[left]\n pushfq\n popq %[flags]"
               : [flags] "=r"(flags)
               : [left] "q"(left), [right] "q"(right)
               : "cc", "memory");
  return flags;
}

/// Elements of two runs, or of a value and a run (`step` 0), up to the first pair that is equal or unequal as wanted,
/// which counts as done. `flags`: of the last comparison.
template <typename T>
uint64_t Compare(const uint8_t* left, unsigned step, const uint8_t* right, uint64_t count, bool until_equal,
                 bool& ended, uint64_t& flags) {
  uint64_t done = 0;
  T a, b;
  do {
    a = Get<T>(left + done * step);
    b = Get<T>(right + done * sizeof(T));
    ++done;
    ended = (a == b) == until_equal;
  } while (!ended && done < count);
  flags = CompareFlags<T>(a, b);
  return done;
}

}  // namespace

/// How many elements from an offset on can be accessed at once, and where they are; 0: not even one.
uint64_t JitVcpu::StringRun(unsigned index, uint64_t offset, uint64_t count, const Site& site, bool write,
                            uint8_t*& host) {
  const CpuState& state = context_->state;
  const Segment& segment = state.segment[index];
  const unsigned size = site.size;
  const uint64_t top = site.opmask_bits & Site::kNarrowString ? 0xffff : 0xffffffff;
  if (offset + size - 1 > segment.limit) return 0;
  const uint64_t linear = (segment.base + offset) & 0xffffffff;
  uint64_t most = (kPageSize - (linear & kPageMask)) / size;
  // Offsets wrap, which a single element must not where it would go on beyond the top.
  const uint64_t end = segment.limit < top ? segment.limit : top;
  const uint64_t within = end < offset + size - 1 ? 1 : (end - offset + 1) / size;
  if (within < most) most = within;
  if (most == 0) return 0;
  host = HostFor(site.context, linear, size, write);
  if (!host) return 0;
  return count < most ? count : most;
}

bool JitVcpu::FastSegmentString(const Site& site) {
  CpuState& state = context_->state;
  const uint64_t mask = site.opmask_bits & Site::kNarrowString ? 0xffff : 0xffffffff;
  const uint64_t kept = site.opmask_bits & Site::kNarrowString ? ~mask : 0;
  const unsigned size = site.size;
  const uint8_t opcode = site.from;
  const bool down = (state.rflags & x86::rflags::kDf) != 0;
  const bool compares = opcode == kCmps || opcode == kScas;
  const bool reads = opcode == kMovs || opcode == kCmps || opcode == kLods;
  uint64_t& rcx = state.gpr[x86::kRcx];
  uint64_t& rsi = state.gpr[x86::kRsi];
  uint64_t& rdi = state.gpr[x86::kRdi];
  uint64_t& rax = state.gpr[x86::kRax];
  const auto advance = [&](uint64_t& reg, uint64_t elements) {
    const uint64_t distance = elements * size;
    reg = (reg & kept) | ((down ? reg - distance : reg + distance) & mask);
  };
  uint64_t flags = 0;
  bool ended = false, compared = false;
  const auto set_flags = [&] {
    if (compared) context_->flags = (flags & x86::rflags::kArithmetic) | x86::rflags::kFixed1;
  };
  while ((rcx & mask) != 0 && !ended) {
    uint64_t run = down ? 1 : rcx & mask;
    uint8_t *source = nullptr, *target = nullptr;
    if (reads) run = StringRun(site.to, rsi & mask, run, site, false, source);
    if (run != 0 && opcode != kLods) run = StringRun(x86::kEs, rdi & mask, run, site, !compares, target);
    if (run == 0) return false;  // flags are as they were: a fault must leave them so
    if (opcode == kMovs) {
      uint8_t* to = target;
      const uint8_t* from = source;
      uint64_t left = run;
      if (size == 4)
        asm volatile("rep movsl" : "+c"(left), "+D"(to), "+S"(from) : : "memory");
      else if (size == 2)
        asm volatile("rep movsw" : "+c"(left), "+D"(to), "+S"(from) : : "memory");
      else
        asm volatile("rep movsb" : "+c"(left), "+D"(to), "+S"(from) : : "memory");
    } else if (opcode == kStos) {
      uint8_t* to = target;
      uint64_t left = run;
      if (size == 4)
        asm volatile("rep stosl" : "+c"(left), "+D"(to) : "a"(rax) : "memory");
      else if (size == 2)
        asm volatile("rep stosw" : "+c"(left), "+D"(to) : "a"(rax) : "memory");
      else
        asm volatile("rep stosb" : "+c"(left), "+D"(to) : "a"(rax) : "memory");
    } else if (opcode == kLods) {
      __builtin_memcpy(&rax, source + (run - 1) * size, size);
      if (size == 4) rax &= 0xffffffff;
    } else {
      const uint8_t* left = opcode == kScas ? reinterpret_cast<const uint8_t*>(&rax) : source;
      const unsigned step = opcode == kScas ? 0 : size;
      const bool until_equal = (site.opmask_bits & Site::kUntilEqual) != 0;
      run = size == 4   ? Compare<uint32_t>(left, step, target, run, until_equal, ended, flags)
            : size == 2 ? Compare<uint16_t>(left, step, target, run, until_equal, ended, flags)
                        : Compare<uint8_t>(left, step, target, run, until_equal, ended, flags);
      compared = true;
    }
    if (reads) advance(rsi, run);
    if (opcode != kLods) advance(rdi, run);
    rcx = (rcx & kept) | ((rcx - run) & mask);
    // In lockstep it ends as the interpreter's does.
    if ((rcx & mask) != 0 && !ended && !lockstep_ && context_->go.load(std::memory_order_relaxed) == 0) {
      set_flags();
      return true;
    }
  }
  set_flags();
  if (kept == 0 && rcx != 0) rcx &= mask;
  state.rip += site.length;
  return true;
}

}  // namespace nacre::engine::jit
