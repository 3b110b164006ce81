#pragma once
// What generated code sees of its vCPU, addressed through the host's GS base: the CpuState, the software TLB, the jump
// caches and a few words of glue. Standard layout; generated code uses offsetof. Written by the vCPU's thread, except
// the poll words, which any thread may write (Vcpu::Request).
//
// Contexts: translations of data addresses depend on privilege, so each context has a TLB of its own: 0 supervisor,
// 1 user, 2 supervisor with EFLAGS.AC set while SMAP is on.

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "x86/cpu_state.h"

namespace nacre::engine::jit {

inline constexpr unsigned kContexts = 3;
inline constexpr unsigned kContextSupervisor = 0, kContextUser = 1, kContextSupervisorAc = 2;
inline constexpr unsigned kTlbEntries = 4096;  ///< the most that a TLB can have
inline constexpr unsigned kPageSlots = 4096;
inline constexpr unsigned kPredictions = 4096;  ///< see prediction.h
inline constexpr unsigned kAccessGroups = 16;
inline constexpr unsigned kLoopStreams = 6;
inline constexpr unsigned kJumpCacheEntries = 16384;

/// A direct-mapped TLB of 4 KiB pages, indexed by the low bits of the page number, as many as JitContext::tlb_mask
/// says. A hit on entry i for an access of `size` bytes at address a: (a + tag[i]) as an unsigned number is at most
/// 4096 - size, which tests the page and page crossing at once; then host address = a + addend[i]. Entries that
/// hold nothing have NoTag(i).
struct DataTlb {
  uint64_t read_tag[kTlbEntries];
  uint64_t write_tag[kTlbEntries];
  uint64_t addend[kTlbEntries];  ///< host address less linear address
};

/// The negated address of a page that is not canonical and has index i ^ 2: no address with index i matches it. Not
/// index i ^ 1: the check that keeps flags adds size - 1 first, and an access that reaches from page i into page i + 1
/// would pass. A check that tries entry i for an address with another index (prediction.h) may pass with an address
/// that is not canonical; then neither is its sum with any addend, and the access faults on the host as it must in the
/// guest.
constexpr uint64_t NoTag(unsigned i) { return 0 - (uint64_t{1} << 63 | static_cast<uint64_t>(i ^ 2) << 12); }

/// Code pages as translated code knows them: page_id[slot of the linear page] names the (linear page, physical page)
/// pair that a link across pages was made for. Zero: unknown.
struct CodePages {
  uint32_t page_id[kPageSlots];
};

/// Indirect branch targets: entry of RIP r is JumpIndex(r). Generated code jumps to its target, which is the way to a
/// miss or the indirect entry of a block, where R10 is compared with the block's own RIP. Zero in negated_rip, which is
/// for C++ only, is an empty entry. Entry 0 is never used, so that Vcpu::Request can make every lookup miss by clearing
/// the index mask.
struct JumpCache {
  uint64_t negated_rip[kJumpCacheEntries];
  uint64_t target[kJumpCacheEntries];
};

enum ExitCode : uint32_t {
  kExitLookup,     ///< state.rip is right, find its block
  kExitLink,       ///< exit_id: a link that is not patched yet
  kExitInterpret,  ///< exit_id: a site; its instruction goes to the interpreter
  kExitUngrouped,  ///< state.rip is right; go on there with a block of kFlagUngrouped
  kExitPoll        ///< exit_id: a link whose poll saw a request
};

struct JitContext {
  x86::CpuState state;

  uint64_t flags = 0;           ///< arithmetic flags between translated code and C++ (host format)
  uint64_t interrupt_flag = 0;  ///< RFLAGS.IF while translated code owns the state: 0 or 1
  uint64_t saved_rcx = 0;
  uint64_t saved_scratch = 0;
  uint64_t host_rsp = 0;      ///< the thread's own stack while translated code runs on the return stack
  uint64_t return_rsp = 0;    ///< top of the return stack in use (return_stacks.h) while C++ runs
  uint64_t slow_address = 0;  ///< linear address of a TLB miss
  uint64_t slow_addend = 0;   ///< with a way on behind the check: what is added to slow_address for the host's
  uint64_t resume = 0;        ///< host address to go on at after a slow path
  uint32_t exit_id = 0;
  uint32_t exit_code = 0;
  uint64_t exit_at = 0;          ///< host address behind the call of a way out, where its number is, or of a check
  int64_t sample_countdown = 0;  ///< checks out of line until one of them is taken as a sample
  uint64_t slow_handler = 0;     ///< C++ function for TLB misses
  uint64_t check_handler = 0;    ///< C++ function for what checks out of line cannot do
  uint64_t string_handler = 0;   ///< C++ function for string instructions
  uint64_t self = 0;
  /// Of each access group of the running block: host less linear address, or where Translator::IsRelative does not
  /// hold, the host address of its start.
  uint64_t group_host[kAccessGroups] = {};
  // The running loop's (emit_loop.cc).
  uint64_t stream_host[kLoopStreams] = {};  ///< of each stream: host less linear address, plus what of the latter stays
  uint32_t loop_wait = 0;                   ///< rounds of the plain body that are left before a look
  uint64_t loop_rounds = 0;                 ///< while they are counted: rounds that stay on the pages, less one
  uint64_t loop_limit = 0;                  ///< what the counting register is after the last of them
  // Registers of a gather or scatter on its way through JitVcpu::FastGather; slow_address: its base address.
  alignas(64) uint8_t gather_index[64] = {};
  uint8_t gather_value[64] = {};
  uint8_t gather_mask[64] = {};             ///< a vector, or an opmask in the first 8 bytes
  alignas(64) uint8_t crossing[128] = {};   ///< what a read across pages has found, as aligned as in the guest
  uint64_t tlb_mask[kContexts] = {};        ///< bits of an address that are the index, per context
  uint64_t tlb_index_mask[kContexts] = {};  ///< the same of page numbers
  uint64_t page_number_mask = ~uint64_t{4095};
  uint64_t arithmetic_mask = x86::rflags::kArithmetic;
  uint64_t not_direction_mask = ~x86::rflags::kDf;
  uint64_t bit_in_32_mask = 31, bit_in_64_mask = 63;  ///< bit offsets of BT and the like within their operand
  uint64_t direction_mask = x86::rflags::kDf;
  uint64_t not_ac_mask = ~x86::rflags::kAc;
  uint64_t saved_pointer = 0;  ///< a far pointer on its way to CS
  uint64_t above_16_mask = ~uint64_t{0xffff}, above_32_mask = ~uint64_t{0xffffffff};

  /// By the page offset of an instruction: the TLB entry that served it last. Below the size that any TLB of a
  /// supervisor or user context has had, up to which all of these hold nothing or pages in their places.
  uint16_t predicted[kPredictions] = {};

  // Written by any thread. `go` is 1 unless a request waits; no_request likewise but stays 0 while interrupts are off.
  std::atomic<uint64_t> go = 1;
  std::atomic<uint64_t> no_request = 1;
  std::atomic<uint64_t> jump_mask = 0;

  // Which of these an address space has for itself: address_space.h.
  alignas(4096) DataTlb tlb[kContexts];
  CodePages code_pages[kContexts];
  JumpCache jump_cache[kContexts];
};

/// The index into the jump cache: bits of a hash of RIP, which is the CRC32 instruction's (with a checksum of 0): it
/// keeps the flags and mixes all bits.
inline constexpr uint64_t kJumpBits = kJumpCacheEntries - 1;
inline unsigned JumpIndex(uint64_t rip) {
  uint64_t hash = 0;
  asm("crc32q %1, %0" : "+r"(hash) : "r"(rip));
  return static_cast<unsigned>(hash & kJumpBits);
}

static_assert(std::is_standard_layout_v<JitContext>);

}  // namespace nacre::engine::jit
