#include "engine/difftest/host_cpu.h"

#include <cpuid.h>
#include <sys/auxv.h>
#include <sys/mman.h>

#include <cstring>

#include "base/bits.h"
#include "base/check.h"

extern "C" {
extern const uint8_t NacreDiffTrampoline[], NacreDiffExit[], NacreDiffExitFault[], NacreDiffTrampolineEnd[];
}

namespace nacre::engine::difftest {
namespace {

constexpr uint8_t kStop = 0xf4;  // HLT: #GP wherever a branch lands
constexpr size_t kTrailer = 7;

uint8_t* At(uint64_t address) { return reinterpret_cast<uint8_t*>(address); }
template <typename T>
T& Save(unsigned offset) {
  return *reinterpret_cast<T*>(At(NACRE_DIFF_SAVE) + offset);
}
uint64_t TrampolineAddress(const uint8_t* symbol) {
  return NACRE_DIFF_TRAMPOLINE + static_cast<uint64_t>(symbol - NacreDiffTrampoline);
}

Status MapFixed(uint64_t address, size_t bytes, int protection) {
  void* wanted = At(address);
  void* mapped =
      mmap(wanted, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_POPULATE, -1, 0);
  if (mapped == MAP_FAILED || mapped != wanted) return FailErrno("cannot map {} bytes at {:#x}", bytes, address);
  return {};
}

/// XSAVE marks a component that is in its initial state; some CPUs then leave its bytes alone (SDM 1 13.6).
void FillInitialComponents(x86::XsaveArea& area, uint64_t saved) {
  const uint64_t present = LoadLe<uint64_t>(area.bytes + 512) | ~saved;
  if (!(present & 1)) {
    std::memset(area.bytes, 0, 24);
    std::memset(area.bytes + 32, 0, 128);
    area.fcw() = 0x37f;
  }
  if (!(present & 2)) std::memset(area.bytes + 160, 0, 256);
  for (const x86::XsaveComponent& component : x86::kXsaveComponents)
    if (!TestBit(present, component.bit)) std::memset(area.bytes + component.offset, 0, component.bytes);
}

}  // namespace

Result<std::unique_ptr<HostCpu>> HostCpu::Create() {
  std::unique_ptr<HostCpu> host(new HostCpu);
  NACRE_TRY_STATUS(host->Map());
  host->stack_ = NACRE_TRY(SignalStack::Create());
  host->range_ = NACRE_TRY(HostFaultRange::Register(At(NACRE_DIFF_CODE), NACRE_DIFF_CODE_BYTES, *host));
  host->use_gs_ = (getauxval(AT_HWCAP2) & 2) != 0;
  host->FindComponents();
  host->compat_ = true;
  return host;
}

void HostCpu::FindComponents() {
  if (!__builtin_cpu_supports("avx")) return;
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  xsave_mask_ = low & (__builtin_cpu_supports("avx512bw") ? 0xe7 : 7);
  for (unsigned bit = 2; bit < 8; ++bit) {
    unsigned bytes = 0, offset = 0, c = 0, d = 0;
    if (TestBit(xsave_mask_, bit)) __cpuid_count(0xd, bit, bytes, offset, c, d);
    NACRE_CHECK(offset + bytes <= x86::XsaveArea::kSize);
    component_offset_[bit] = offset;
  }
}

Status HostCpu::Map() {
  const auto bytes = static_cast<size_t>(NacreDiffTrampolineEnd - NacreDiffTrampoline);
  NACRE_CHECK(bytes <= kPageSize);
  NACRE_TRY_STATUS(MapFixed(NACRE_DIFF_TRAMPOLINE, kPageSize, PROT_READ | PROT_WRITE));
  std::memcpy(At(NACRE_DIFF_TRAMPOLINE), NacreDiffTrampoline, bytes);
  if (mprotect(At(NACRE_DIFF_TRAMPOLINE), kPageSize, PROT_READ | PROT_EXEC) != 0)
    return FailErrno("cannot make the trampoline executable");
  NACRE_TRY_STATUS(MapFixed(NACRE_DIFF_SAVE, 2 * kPageSize, PROT_READ | PROT_WRITE));
  NACRE_TRY_STATUS(MapFixed(NACRE_DIFF_CODE, NACRE_DIFF_CODE_BYTES, PROT_READ | PROT_WRITE | PROT_EXEC));
  std::memset(At(NACRE_DIFF_CODE), kStop, NACRE_DIFF_CODE_BYTES);
  NACRE_TRY_STATUS(MapFixed(NACRE_DIFF_DATA, NACRE_DIFF_DATA_BYTES, PROT_READ | PROT_WRITE));
  // Written once, so that it is a page of its own and a write to it is a protection fault.
  NACRE_TRY_STATUS(MapFixed(NACRE_DIFF_READONLY, kPageSize, PROT_READ | PROT_WRITE));
  std::memset(At(NACRE_DIFF_READONLY), 0, kPageSize);
  if (mprotect(At(NACRE_DIFF_READONLY), kPageSize, PROT_READ) != 0) return FailErrno("cannot protect a page");
  return {};
}

HostCpu::~HostCpu() {
  range_ = {};
  munmap(At(NACRE_DIFF_TRAMPOLINE), kPageSize);
  munmap(At(NACRE_DIFF_SAVE), 2 * kPageSize);
  munmap(At(NACRE_DIFF_CODE), NACRE_DIFF_CODE_BYTES);
  munmap(At(NACRE_DIFF_DATA), NACRE_DIFF_DATA_BYTES);
  munmap(At(NACRE_DIFF_READONLY), kPageSize);
}

void HostCpu::PlaceCode(const TestCase& test) {
  uint8_t* code = At(test.state.rip);
  std::memcpy(code, test.insn.bytes, test.insn.length);
  uint8_t* after = code + test.insn.length;
  const uint64_t exit = TrampolineAddress(NacreDiffExit);
  if (test.insn.code_size == x86::CodeSize::k64) {
    after[0] = 0xe9;
    StoreLe(after + 1, static_cast<uint32_t>(exit - reinterpret_cast<uint64_t>(after + 5)));
  } else {
    after[0] = 0xea;
    StoreLe(after + 1, static_cast<uint32_t>(exit));
    StoreLe(after + 5, uint16_t{NACRE_DIFF_CS64});
  }
}

void HostCpu::RemoveCode(const TestCase& test) {
  // The instruction may have changed its surroundings; only near them can it have stored by design.
  std::memset(At(test.state.rip), kStop, test.insn.length + kTrailer);
}

bool HostCpu::OnHostFault(int, const siginfo_t&, ucontext_t& context) {
  // Linux enters handlers with AC as it was.
  __builtin_ia32_writeeflags_u64(__builtin_ia32_readeflags_u64() & ~x86::rflags::kAc);
  greg_t* regs = context.uc_mcontext.gregs;
  static constexpr int kOrder[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                     REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  for (unsigned i = 0; i < 16; ++i) Save<uint64_t>(NACRE_DIFF_OUT_GPR + 8 * i) = static_cast<uint64_t>(regs[kOrder[i]]);
  Save<uint64_t>(NACRE_DIFF_OUT_RFLAGS) = static_cast<uint64_t>(regs[REG_EFL]);
  stopped_ = true;
  trap_ = static_cast<int>(regs[REG_TRAPNO]);
  error_ = static_cast<uint64_t>(regs[REG_ERR]);
  cr2_ = static_cast<uint64_t>(regs[REG_CR2]);
  fault_rip_ = static_cast<uint64_t>(regs[REG_RIP]);
  fault_cs_ = static_cast<uint16_t>(regs[REG_CSGSFS]);
  regs[REG_RIP] = static_cast<greg_t>(TrampolineAddress(NacreDiffExitFault));
  regs[REG_RSP] = static_cast<greg_t>(Save<uint64_t>(NACRE_DIFF_HOST_RSP));
  regs[REG_EFL] = 2;
  regs[REG_CSGSFS] = (regs[REG_CSGSFS] & ~greg_t{0xffff}) | NACRE_DIFF_CS64;
  return true;
}

void HostCpu::Run(const TestCase& test, Outcome& outcome) {
  x86::CpuState& state = const_cast<x86::CpuState&>(test.state);  // accessors of XsaveArea are not const
  std::memcpy(&Save<uint8_t>(NACRE_DIFF_GPR), state.gpr, sizeof state.gpr);
  Save<uint64_t>(NACRE_DIFF_RFLAGS) = state.rflags;
  Save<uint32_t>(NACRE_DIFF_TARGET) = static_cast<uint32_t>(state.rip);
  const bool compat = test.insn.code_size == x86::CodeSize::k32;
  Save<uint16_t>(NACRE_DIFF_TARGET + 4) = compat ? NACRE_DIFF_CS32 : NACRE_DIFF_CS64;
  Save<uint64_t>(NACRE_DIFF_COMPAT) = compat;
  Save<uint64_t>(NACRE_DIFF_USE_GS) = use_gs_;
  Save<uint64_t>(NACRE_DIFF_GS_BASE) = state.segment[x86::kGs].base;
  Save<uint32_t>(NACRE_DIFF_XSAVE_MASK) = xsave_mask_;
  auto& in = Save<x86::XsaveArea>(NACRE_DIFF_XSAVE_IN);
  std::memcpy(in.bytes, state.xsave.bytes, 512);
  std::memset(in.bytes + 512, 0, 64);
  StoreLe(in.bytes + 512, uint64_t{xsave_mask_});
  for (const x86::XsaveComponent& component : x86::kXsaveComponents)
    if (TestBit(xsave_mask_, component.bit))
      std::memcpy(in.bytes + component_offset_[component.bit], state.xsave.bytes + component.offset, component.bytes);
  auto& out = Save<x86::XsaveArea>(NACRE_DIFF_XSAVE_OUT);
  std::memset(out.bytes + 512, 0, 64);
  std::memcpy(At(NACRE_DIFF_DATA), test.data, NACRE_DIFF_DATA_BYTES);
  stopped_ = false;
  PlaceCode(test);

  reinterpret_cast<void (*)()>(NACRE_DIFF_TRAMPOLINE)();

  RemoveCode(test);
  outcome.vector = -1;
  outcome.error_code = 0;
  outcome.cr2 = 0;
  outcome.rip = state.rip + test.insn.length;
  outcome.cs = state.segment[x86::kCs].selector;
  outcome.es = Save<uint16_t>(NACRE_DIFF_OUT_ES);
  outcome.ss = Save<uint16_t>(NACRE_DIFF_OUT_SS);
  outcome.ds = Save<uint16_t>(NACRE_DIFF_OUT_DS);
  if (stopped_) {
    outcome.rip = fault_rip_;
    outcome.cs = fault_cs_;
    const bool landed = fault_rip_ != state.rip;  // on kStop, after a branch
    if (!landed) {
      outcome.vector = trap_;
      outcome.error_code = static_cast<uint32_t>(error_);
      if (trap_ == x86::kPageFault) outcome.cr2 = cr2_;
    }
  }
  std::memcpy(outcome.gpr, &Save<uint8_t>(NACRE_DIFF_OUT_GPR), sizeof outcome.gpr);
  outcome.rflags = Save<uint64_t>(NACRE_DIFF_OUT_RFLAGS);
  outcome.gs_base = Save<uint64_t>(NACRE_DIFF_GS_BASE);
  outcome.xsave = state.xsave;  // what the host does not have
  std::memcpy(outcome.xsave.bytes, out.bytes, x86::XsaveArea::kAvxOffset);
  for (const x86::XsaveComponent& component : x86::kXsaveComponents)
    if (TestBit(xsave_mask_, component.bit))
      std::memcpy(outcome.xsave.bytes + component.offset, out.bytes + component_offset_[component.bit],
                  component.bytes);
  FillInitialComponents(outcome.xsave, xsave_mask_);
  std::memcpy(outcome.data, At(NACRE_DIFF_DATA), NACRE_DIFF_DATA_BYTES);
}

}  // namespace nacre::engine::difftest
