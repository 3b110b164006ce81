#include "engine/kvm/kvm_exits.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "x86/decoder.h"
#include "x86/page_walk.h"

namespace nacre::engine::kvm {

void AnswerPort(kvm_run& run, VcpuHost& host) {
  const auto& io = run.io;
  uint8_t* data = reinterpret_cast<uint8_t*>(&run) + io.data_offset;
  for (uint32_t i = 0; i < io.count; ++i, data += io.size) {
    uint32_t value = 0;
    if (io.direction == KVM_EXIT_IO_OUT) {
      std::memcpy(&value, data, io.size);
      host.PortWrite(io.port, io.size, value);
    } else {
      value = host.PortRead(io.port, io.size);
      std::memcpy(data, &value, io.size);
    }
  }
}

void AnswerMmio(kvm_run& run, VcpuHost& host) {
  auto& mmio = run.mmio;
  // 1, 2, 4 and 8 bytes as they are; what crossed something in parts of one byte.
  const unsigned part = std::has_single_bit(mmio.len) && mmio.len <= 8 ? mmio.len : 1;
  for (unsigned at = 0; at < std::min<unsigned>(mmio.len, sizeof mmio.data); at += part) {
    const GuestPhys address(mmio.phys_addr + at);
    uint64_t value = 0;
    if (mmio.is_write) {
      std::memcpy(&value, mmio.data + at, part);
      host.MmioWrite(address, part, value);
    } else {
      value = host.MmioRead(address, part);
      std::memcpy(mmio.data + at, &value, part);
    }
  }
}

uint16_t MnemonicAt(memory::GuestMemory& memory, const x86::CpuState& state) {
  x86::Instruction insn;
  uint8_t bytes[15] = {};
  const bool code64 = state.code64();
  const uint64_t linear = code64 ? state.rip : (state.segment[x86::kCs].base + state.rip) & 0xffffffff;
  size_t count = 0;
  for (; count < sizeof bytes; ++count) {
    const auto found = x86::WalkPages(memory, state, GuestVirt(linear + count),
                                      {.access = x86::Access::kExecute, .user = state.cpl() == 3, .set_bits = false});
    if (!found.ok || !memory.Read(found.address, {&bytes[count], 1})) break;
  }
  const auto size = code64                          ? x86::CodeSize::k64
                    : state.segment[x86::kCs].big() ? x86::CodeSize::k32
                                                    : x86::CodeSize::k16;
  const bool decoded = x86::Decode({bytes, count}, size, insn) == x86::DecodeStatus::kOk;
  return decoded ? insn.mnemonic : 0;
}

void AppendAssists(const std::vector<uint64_t>& by_mnemonic, std::vector<Statistic>& out) {
  std::vector<std::pair<uint64_t, uint16_t>> top;
  uint64_t sum = 0;
  for (size_t i = 0; i < by_mnemonic.size(); ++i) {
    sum += by_mnemonic[i];
    if (by_mnemonic[i]) top.emplace_back(by_mnemonic[i], static_cast<uint16_t>(i));
  }
  out.push_back({"assisted instructions", sum});
  std::sort(top.rbegin(), top.rend());
  for (const auto& [count, mnemonic] : top)
    out.push_back({fmt::format("assisted: {}", mnemonic ? x86::MnemonicName(mnemonic) : "undecodable"), count});
}

}  // namespace nacre::engine::kvm
