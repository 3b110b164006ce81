#pragma once
// A CPU model: what the guest's CPUID says, which instructions raise #UD, which XSAVE components exist. It belongs to
// the VM, is fixed when the VM is created and is the same on every engine. Immutable after creation; any thread.
// Specification: Intel SDM 2A "CPUID", x86-64 psABI micro-architecture levels; KVM's paravirtual leaves (Linux,
// Documentation/virt/kvm/x86/cpuid.rst).
//
// The levels hold, beyond the psABI's, only what practically every host of that level has:
//   x86-64-v1  + what every x86-64 CPU has (SYSENTER NX PAT MTRR MCA, local APIC), x2APIC, TSC deadline
//   x86-64-v2  + AES PCLMULQDQ RDTSCP; no XSAVE
//   x86-64-v3  + AES PCLMULQDQ RDTSCP RDRAND FSGSBASE ERMS XSAVEOPT
//   x86-64-v4  + nothing
//   host       + RDSEED ADX SHA CLFLUSHOPT CLWB RDPID FSRM where the host has them; where it has all of level v4:
//                AVX-512 with IFMA VBMI VBMI2 VNNI BITALG VPOPCNTDQ BF16 FP16 GFNI VAES VPCLMULQDQ
// and from x86-64-v2 on what our engines do in software whatever the host: SMEP SMAP UMIP PCID INVPCID TSC_ADJUST,
// 1 GiB pages, SPEC_CTRL and its kin. What a model lacks raises #UD (instructions) or #GP (bits of CR4, EFER, XCR0;
// MSRs). Absent everywhere: VME, MONITOR, performance counters, XSAVEC/XSAVES, protection keys, CET.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "x86/cpu_state.h"
#include "x86/instruction.h"

namespace nacre::x86 {

struct ModelName;
struct SelectedModel;

struct CpuidResult {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

struct CpuModelOptions {
  unsigned cpu_count = 1;
  uint64_t tsc_khz = 0;     ///< 0: measured from the host
  bool paravirtual = true;  ///< KVM's leaves at 0x40000000
};

class CpuModel {
 public:
  /// "x86-64-v1" to "x86-64-v4", "host", or "default" (the highest that the host has, up to v3), with modifiers (see
  /// ModelName). Fails with the list of what the host lacks.
  static Result<CpuModel> Create(std::string_view name, const CpuModelOptions& options);
  static Result<CpuModel> Create(const ModelName& name, const CpuModelOptions& options);

  /// The same CPU, but Has() says yes to whatever the host's CPU executes: what a guest meets where the hardware runs its
  /// code, which masks no instructions.
  CpuModel Unmasked() const;

  /// What gives this model again on the same host, `default` resolved.
  const std::string& name() const { return name_; }
  uint64_t tsc_khz() const { return tsc_khz_; }
  unsigned cpu_count() const { return cpu_count_; }
  /// CPUID as vCPU `apic_id` with `state` sees it (OSXSAVE, XSAVE size, APIC id are dynamic).
  CpuidResult Cpuid(uint32_t leaf, uint32_t subleaf, const CpuState& state, unsigned apic_id) const;
  /// All of it, for an engine that gives CPUID to the hardware, as vCPU `apic_id` has it after RESET.
  struct CpuidEntry {
    uint32_t leaf = 0, subleaf = 0;
    bool indexed = false;  ///< the subleaf matters
    CpuidResult value;
  };
  std::vector<CpuidEntry> CpuidEntries(unsigned apic_id) const;
  /// XCR0 bits that the guest may set.
  uint64_t xcr0_mask() const { return xcr0_mask_; }
  uint64_t cr4_mask() const { return cr4_mask_; }  ///< CR4 bits that may be set; others #GP
  uint64_t efer_mask() const { return efer_mask_; }
  uint64_t spec_ctrl_mask() const { return spec_ctrl_mask_; }  ///< IA32_SPEC_CTRL; 0: there is no such MSR
  bool has_tsc_adjust() const { return HasFeature(7, 0, 'b', 1); }
  bool has_tsc_aux() const { return HasFeature(0x80000001, 0, 'd', 27) || HasFeature(7, 0, 'c', 22); }
  bool has_1gib_pages() const { return has_1gib_pages_; }
  /// IA32_ARCH_CAPABILITIES: immune to what an emulated pipeline cannot have, so that guests choose no work-arounds.
  static uint64_t arch_capabilities();
  unsigned physical_address_bits() const { return physical_address_bits_; }
  /// Linear address bits (48; 57 is not modelled).
  unsigned linear_address_bits() const { return 48; }
  /// Whether the model has the instruction's feature; false: #UD. CR4/CR0 conditions are the engine's business.
  bool Has(const Instruction& instruction) const {
    return HasIsaSet(instruction.isa_set) || (hypercalls_ && IsHypercall(instruction.mnemonic));
  }
  /// Call after Decode. F3 0F BC and F3 0F BD are TZCNT and LZCNT only where the CPU has them; without, they are BSF
  /// and BSR with a meaningless prefix, and so does this make of the instruction (its bytes too: F2 for F3, which means
  /// the same and is BSF or BSR on every host when emitted again). Returns Has(instruction).
  bool Adapt(Instruction& instruction) const;
  bool HasIsaSet(uint16_t isa_set) const { return isa_set < isa_sets_.size() && isa_sets_[isa_set]; }
  /// A feature by CPUID place, e.g. HasFeature(7, 0, 'b', 5) for AVX2.
  bool HasFeature(uint32_t leaf, uint32_t subleaf, char reg, unsigned bit) const;

 private:
  /// VMCALL and VMMCALL: of all that belongs to virtualization they alone are there, with KVM's leaves.
  static bool IsHypercall(uint16_t mnemonic);

  struct Leaf {
    uint32_t leaf = 0, subleaf = 0;
    bool indexed = false;
    CpuidResult value;
  };
  const Leaf* FindLeaf(uint32_t leaf, uint32_t subleaf) const;
  CpuidResult& AddLeaf(uint32_t leaf, uint32_t subleaf = 0, bool indexed = false);
  void AddFeatures(const SelectedModel& selected);
  void AddMasks();
  void AddBasicLeaves();
  void AddCacheLeaves();
  void AddXsaveLeaves();
  void AddFrequencyLeaves();
  void AddParavirtualLeaves();
  void AddExtendedLeaves(std::string_view base);

  std::string name_;
  std::vector<Leaf> leaves_;
  std::vector<bool> isa_sets_;
  unsigned cpu_count_ = 1;
  uint64_t tsc_khz_ = 0;
  uint64_t xcr0_mask_ = 0;
  uint64_t cr4_mask_ = 0;
  uint64_t efer_mask_ = 0;
  uint64_t spec_ctrl_mask_ = 0;
  bool hypercalls_ = false;
  bool has_1gib_pages_ = false;
  unsigned physical_address_bits_ = 40;
};

}  // namespace nacre::x86
