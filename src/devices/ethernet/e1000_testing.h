#pragma once
// For tests: an 82540EM with a driver that uses it as operating systems do.

#include <vector>

#include "base/bits.h"
#include "bus/bus.h"
#include "devices/chipset/device_testing.h"
#include "devices/ethernet/e1000.h"
#include "network/backend_testing.h"

namespace nacre::devices {

class E1000Bench {
 public:
  static constexpr uint64_t kBase = 0xe000'0000, kMemory = 8 * kMiB;
  static constexpr uint16_t kIo = 0xc000;
  static constexpr uint64_t kSendRing = 0x10'0000, kReceiveRing = 0x11'0000, kSendData = 0x20'0000,
                            kReceiveData = 0x40'0000;
  static constexpr unsigned kRing = 16, kBuffer = 2048;
  static constexpr network::MacAddress kMac = {0x52, 0x54, 0, 1, 2, 3};

  explicit E1000Bench(Scheduler* given = nullptr) {
    auto net = std::make_unique<network::FakeNet>();
    backend = net.get();
    card = std::make_unique<E1000>(E1000::Options{"e1000-0", kMac}, PciWiring{&ports, &memory_bus, &msi},
                                   std::move(net), *memory, given ? *given : scheduler);
    card->SetIntxLine(&line);
    card->Reset();
    Enable();
  }
  void Enable() {
    card->ConfigWrite(pci::kBar0, 4, static_cast<uint32_t>(kBase));
    card->ConfigWrite(pci::kBar0 + 4 * E1000::kIoBar, 4, kIo);
    card->ConfigWrite(pci::kCommand, 2, pci::kCommandIo | pci::kCommandMemory | pci::kCommandMaster);
  }
  uint32_t Reg(unsigned offset) { return static_cast<uint32_t>(memory_bus.Read(kBase + offset, 4)); }
  void Set(unsigned offset, uint32_t value) { memory_bus.Write(kBase + offset, 4, value); }
  /// Both rings, all receive buffers but one given, all interrupts.
  void Start(uint32_t receive_control = e1000::kBroadcastAccept | e1000::kStripCrc, unsigned buffer = kBuffer) {
    using namespace e1000;
    Set(kTdbal, static_cast<uint32_t>(kSendRing));
    Set(kTdlen, kRing * kDescriptorSize);
    Set(kTdh, 0);
    Set(kTdt, 0);
    Set(kTctl, kTransmitEnable | kPadShort);
    for (unsigned i = 0; i < kRing; ++i) {
      memory->WriteValue(GuestPhys(kReceiveRing + i * kDescriptorSize), kReceiveData + i * uint64_t{buffer});
      memory->WriteValue(GuestPhys(kReceiveRing + i * kDescriptorSize + 8), uint64_t{0});
    }
    Set(kRdbal, static_cast<uint32_t>(kReceiveRing));
    Set(kRdlen, kRing * kDescriptorSize);
    Set(kRdh, 0);
    Set(kRctl, kReceiveEnable | receive_control);
    Set(kRdt, kRing - 1);
    Set(kIms, 0x1ffff);
    next_send = next_receive = 0;
  }
  /// One descriptor; the caller rings.
  void Queue(uint64_t low, uint64_t high) {
    memory->WriteValue(GuestPhys(kSendRing + next_send * e1000::kDescriptorSize), low);
    memory->WriteValue(GuestPhys(kSendRing + next_send * e1000::kDescriptorSize + 8), high);
    next_send = (next_send + 1) % kRing;
  }
  void Ring() { Set(e1000::kTdt, next_send); }
  uint8_t SendStatus(unsigned index) { return Get(kSendRing + index * e1000::kDescriptorSize + 12, 1)[0]; }
  void Fill(uint64_t address, std::span<const uint8_t> data) { memory->Write(GuestPhys(address), data); }
  std::vector<uint8_t> Get(uint64_t address, size_t size) {
    std::vector<uint8_t> data(size);
    memory->Read(GuestPhys(address), data);
    return data;
  }
  struct Received {
    uint16_t size = 0, checksum = 0;
    uint8_t status = 0, errors = 0;
    uint16_t tag = 0;
    std::vector<uint8_t> data;
  };
  /// The next descriptor that the card is done with; status 0: none.
  Received Take() {
    const uint64_t at = kReceiveRing + next_receive * e1000::kDescriptorSize;
    const auto raw = Get(at, e1000::kDescriptorSize);
    Received out{
        LoadLe<uint16_t>(&raw[8]), LoadLe<uint16_t>(&raw[10]), raw[12], raw[13], LoadLe<uint16_t>(&raw[14]), {}};
    if (out.status == 0) return out;
    out.data = Get(LoadLe<uint64_t>(raw.data()), out.size);
    memory->WriteValue(GuestPhys(at + 8), uint64_t{0});
    next_receive = (next_receive + 1) % kRing;
    return out;
  }

  std::unique_ptr<memory::GuestMemory> memory = *memory::GuestMemory::Create(kMemory);
  bus::PortBus ports;
  bus::MemoryBus memory_bus;
  TestMsiSink msi;
  TestLine line;
  ManualScheduler scheduler;
  network::FakeNet* backend = nullptr;
  std::unique_ptr<E1000> card;
  unsigned next_send = 0, next_receive = 0;
};

}  // namespace nacre::devices
