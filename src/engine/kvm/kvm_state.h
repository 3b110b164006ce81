#pragma once
// Between x86::CpuState and the structures of KVM's interface (Linux, Documentation/virt/kvm/api.rst): values only, no
// calls. Any thread.

#include "engine/kvm/kvm_api.h"

#include <cstdint>
#include <vector>

#include "x86/apic_state.h"
#include "x86/cpu_state.h"

namespace nacre::engine::kvm {

void ToKvm(const x86::CpuState& state, kvm_regs& regs);
void FromKvm(const kvm_regs& regs, x86::CpuState& state);

/// cr8, apic_base and the pending interrupt of `sregs` are left alone: they belong to the local APIC.
void ToKvm(const x86::CpuState& state, kvm_sregs2& sregs);
void FromKvm(const kvm_sregs2& sregs, x86::CpuState& state);

void ToKvm(const x86::CpuState& state, kvm_debugregs& registers);
void FromKvm(const kvm_debugregs& registers, x86::CpuState& state);

/// Where the host's kernel has the state components above SSE in its XSAVE areas: its CPUs' CPUID leaf 0DH, which need
/// not be Intel's offsets. Once per process.
struct HostXsaveLayout {
  struct Place {
    x86::XsaveComponent component;
    uint32_t offset = 0;  ///< 0: the host does not have it
  };
  std::vector<Place> places;
  uint32_t bytes = 576;  ///< of the whole area
};
const HostXsaveLayout& HostXsave();

/// `components`: the bits of XCR0 that the CPU model has. `area` has at least HostXsave().bytes.
void ToKvm(const x86::CpuState& state, uint64_t components, uint8_t* area);
/// Components that the area marks as initial become so.
void FromKvm(const uint8_t* area, uint64_t components, x86::CpuState& state);

/// MSRs of CpuState by index: what an engine must carry over beside KVM_SET_SREGS2.
struct MsrPlace {
  uint32_t index = 0;
  uint64_t* value = nullptr;
};
std::vector<MsrPlace> MsrPlaces(x86::Msrs& msrs);

void ToKvm(const x86::LocalApicState& state, kvm_lapic_state& registers);
/// Not apic_base and tsc_deadline, which are MSRs to KVM. `x2apic`: the mode that apic_base says.
void FromKvm(const kvm_lapic_state& registers, bool x2apic, x86::LocalApicState& state);

}  // namespace nacre::engine::kvm
