#pragma once
// What both kinds of vCPU (kvm_vcpu.h, kvm_user_vcpu.h) do with exits and with the count of assisted instructions. On
// the vCPU's thread.

#include <vector>

#include "engine/engine.h"
#include "engine/kvm/kvm_api.h"

namespace nacre::engine::kvm {

/// KVM_EXIT_IO and KVM_EXIT_MMIO: done by the machine; what was read is put where KVM looks for it.
void AnswerPort(kvm_run& run, VcpuHost& host);
void AnswerMmio(kvm_run& run, VcpuHost& host);

/// The mnemonic (x86::Instruction) of the instruction at CS:RIP; 0: undecodable or not readable.
uint16_t MnemonicAt(memory::GuestMemory& memory, const x86::CpuState& state);
/// "assisted instructions", and each mnemonic with a count, the most frequent first.
void AppendAssists(const std::vector<uint64_t>& by_mnemonic, std::vector<Statistic>& out);

}  // namespace nacre::engine::kvm
