// Every device of chipset, legacy and pci through the suite of bus/conformance_testing.h.

#include <gtest/gtest.h>

#include "base/bits.h"
#include "bus/conformance_testing.h"
#include "devices/chipset/acpi_pm.h"
#include "devices/chipset/device_testing.h"
#include "devices/chipset/fw_cfg.h"
#include "devices/chipset/gsi_router.h"
#include "devices/chipset/hpet.h"
#include "devices/chipset/io_apic.h"
#include "devices/chipset/kvm_clock.h"
#include "devices/chipset/kvm_paravirt.h"
#include "devices/chipset/local_apic.h"
#include "devices/chipset/pflash.h"
#include "devices/chipset/small_ports.h"
#include "devices/legacy/i8042.h"
#include "devices/legacy/pic8259.h"
#include "devices/legacy/pit8254.h"
#include "devices/legacy/rtc.h"
#include "devices/legacy/uart16550.h"
#include "devices/pci/pci_host.h"
#include "devices/pci/piix.h"

namespace nacre::devices {
namespace {

using bus::ConformanceBlock;
using bus::ConformanceSubject;

template <typename Subject>
void RunSuite() {
  bus::RunConformance([] { return std::make_unique<Subject>(); });
}

struct LocalApicSubject final : ConformanceSubject {
  LocalApicSubject() { apic_bus.SetExtIntSource(&pic); }
  bus::Device& device() override { return apic; }
  std::vector<ConformanceBlock> blocks() override { return {{&apic, 0x1000, 8}}; }
  void Stimulate(uint64_t random) override {
    const auto byte = static_cast<uint8_t>(random >> 8);
    uint64_t value = 0;
    switch (random % 11) {
      case 0:
        return apic.Deliver(static_cast<DeliveryMode>(byte & 7), static_cast<uint8_t>(random >> 16),
                            TestBit(random, 40));
      case 1:
        apic.WriteMsr(LocalApic::kMsrApicBase, 0xfee00000 | (byte & 0xc) << 8);
        return;
      case 2:
        apic.WriteMsr(0x800 + byte, random >> 16 & 0xfffff);
        return;
      case 3:
        apic.ReadMsr(0x800 + byte, value);
        return;
      case 4:
        apic.WriteMsr(LocalApic::kMsrTscDeadline, random >> (random % 61));
        return;
      case 5:
        return apic.WriteCr8(byte & 15);
      case 6:
        return apic_bus.lint0().Set(TestBit(random, 20));
      case 7:
        return apic_bus.lint1().Set(TestBit(random, 20));
      case 8:
        apic.Write(0xf0, 4, 0x1ff);
        return;
      case 9:
        EXPECT_TRUE(apic.ImportState(apic.ExportState()));
        return;
      default:
        apic.Acknowledge();
    }
  }
  TestTsc tsc{scheduler()};
  ApicBus apic_bus;
  Pic8259 pic{apic_bus.lint0()};
  TestCpu cpu;
  LocalApic apic{0, apic_bus, scheduler(), tsc, cpu};
};
TEST(Conformance, LocalApic) { RunSuite<LocalApicSubject>(); }

struct IoApicSubject final : ConformanceSubject {
  bus::Device& device() override { return io_apic; }
  std::vector<ConformanceBlock> blocks() override { return {{&io_apic, IoApic::kSize, 8}}; }
  void Stimulate(uint64_t random) override { io_apic.SetPin(random % 30, TestBit(random, 10)); }
  ApicBus apic_bus;
  IoApic io_apic{1, apic_bus};
};
TEST(Conformance, IoApic) { RunSuite<IoApicSubject>(); }

struct PicSubject final : ConformanceSubject {
  bus::Device& device() override { return pic; }
  std::vector<ConformanceBlock> blocks() override {
    return {{&pic.master_io(), 2, 2}, {&pic.slave_io(), 2, 2}, {&pic.elcr_io(), 2, 2}};
  }
  void Stimulate(uint64_t random) override {
    if (random % 3 == 0) {
      pic.AcknowledgeExtInt();
    } else {
      pic.SetIrq(random >> 8 & 31, TestBit(random, 20));
    }
  }
  TestLine intr;
  Pic8259 pic{intr};
};
TEST(Conformance, Pic8259) { RunSuite<PicSubject>(); }

struct PitSubject final : ConformanceSubject {
  bus::Device& device() override { return pit; }
  std::vector<ConformanceBlock> blocks() override { return {{&pit, 4, 4}, {&pit.speaker_io(), 1, 1}}; }
  TestLine irq;
  Pit8254 pit{scheduler(), irq};
};
TEST(Conformance, Pit8254) { RunSuite<PitSubject>(); }

struct RtcSubject final : ConformanceSubject {
  bus::Device& device() override { return rtc; }
  std::vector<ConformanceBlock> blocks() override { return {{&rtc, 2, 2}}; }
  bool battery_backed() const override { return true; }
  TestWallClock wall{scheduler()};
  TestLine irq;
  Rtc rtc{scheduler(), wall, irq};
};
TEST(Conformance, Rtc) { RunSuite<RtcSubject>(); }

struct UartSubject final : ConformanceSubject {
  bus::Device& device() override { return uart; }
  std::vector<ConformanceBlock> blocks() override { return {{&uart, Uart16550::kSize, 4}}; }
  void Stimulate(uint64_t random) override {
    if (random % 8 == 0) return uart.ReceiveBreak();
    // Input is offered now, not kept for later: what waits outside is not the device's state.
    if (backend.receiver && backend.receiver->Room() != 0) backend.Send("x");
  }
  TestCharBackend backend;
  TestLine irq;
  Uart16550 uart{"serial0", scheduler(), irq, backend};
};
TEST(Conformance, Uart16550) { RunSuite<UartSubject>(); }

struct AcpiPmSubject final : ConformanceSubject {
  bus::Device& device() override { return pm; }
  std::vector<ConformanceBlock> blocks() override {
    return {{&pm.io(), AcpiPm::kPmSize, 4}, {&pm.gpe_io(), AcpiPm::kGpeSize, 4}, {&pm.smi_io(), 2, 2}};
  }
  void Stimulate(uint64_t random) override {
    if (random % 2 == 0) pm.PressPowerButton();
    pm.RaiseGpe(random >> 8 & 31);
  }
  TestLine sci;
  TestMachine machine;
  AcpiPm pm{scheduler(), sci, machine};
};
TEST(Conformance, AcpiPm) { RunSuite<AcpiPmSubject>(); }

struct HpetSubject final : ConformanceSubject {
  bus::Device& device() override { return hpet; }
  std::vector<ConformanceBlock> blocks() override { return {{&hpet, Hpet::kSize, 8}}; }
  TestLine lines[6];
  TestMsiSink msi;
  Hpet hpet{scheduler(), {&lines[0], &lines[1], {&lines[2], &lines[3], &lines[4], &lines[5]}}, msi};
};
TEST(Conformance, Hpet) { RunSuite<HpetSubject>(); }

template <bool kPlugged>
struct I8042Subject final : ConformanceSubject {
  bus::Device& device() override { return i8042; }
  std::vector<ConformanceBlock> blocks() override { return {{&i8042.data_io(), 1, 1}, {&i8042.command_io(), 1, 1}}; }
  void Stimulate(uint64_t random) override {
    i8042.Key(random >> 8 & 0xff, TestBit(random, 0));
    i8042.MovePointer(
        {static_cast<int>(random >> 16 & 0xff), 3, TestBit(random, 1), static_cast<uint8_t>(random >> 2)});
  }
  TestLine irq, mouse_irq;
  TestMachine machine;
  A20Gate a20;
  I8042 i8042{scheduler(), irq, mouse_irq, machine, a20, kPlugged};
};
TEST(Conformance, I8042) { RunSuite<I8042Subject<false>>(); }
TEST(Conformance, I8042WithKeyboardAndMouse) { RunSuite<I8042Subject<true>>(); }

struct KvmClockSubject final : ConformanceSubject {
  bus::Device& device() override { return clock; }
  std::vector<ConformanceBlock> blocks() override { return {}; }
  void Stimulate(uint64_t random) override {
    if (random % 8 == 0) return clock.Resumed();
    constexpr uint32_t kMsrs[] = {KvmClock::kMsrWallClockLegacy, KvmClock::kMsrSystemTimeLegacy,
                                  KvmClock::kMsrWallClock, KvmClock::kMsrSystemTime};
    clock.WriteMsr(random >> 8 & 3, kMsrs[random >> 12 & 3], random >> 16 >> (random >> 4 & 31));
  }
  TestTsc tsc{scheduler()};
  TestWallClock wall{scheduler()};
  std::unique_ptr<memory::GuestMemory> memory = std::move(*memory::GuestMemory::Create(kMiB));
  KvmClock clock{2, *memory, scheduler(), tsc, wall};
};
TEST(Conformance, KvmClock) { RunSuite<KvmClockSubject>(); }

struct KvmParavirtSubject final : ConformanceSubject {
  bus::Device& device() override { return paravirt; }
  std::vector<ConformanceBlock> blocks() override { return {}; }
  void Stimulate(uint64_t random) override {
    const unsigned cpu = random >> 8 & 1;
    switch (random % 8) {
      case 0:
        return paravirt.Sleeping(cpu);
      case 1:
        paravirt.Running(cpu);
        return;
      case 2:
        paravirt.TakeKick(cpu);
        return;
      case 3:
        return paravirt.AddStolenTime(cpu, random >> 40);
      case 4:
        paravirt.Hypercall(random >> 12 & 15, {random >> 30, random >> 40 & 3, random >> 50 & 3, random >> 20 & 0xffff},
                           TestBit(random, 10));
        return;
      case 5:
        apics[cpu]->Acknowledge();
        return;
      default:
        paravirt.WriteMsr(random >> 8 & 3, KvmParavirt::kMsrStealTime + (random >> 12 & 1),
                          random >> 16 >> (random >> 4 & 47));
    }
  }
  TestTsc tsc{scheduler()};
  TestCpu cpus[2];
  ApicBus apic_bus;
  std::unique_ptr<LocalApic> apics[2] = {std::make_unique<LocalApic>(0, apic_bus, scheduler(), tsc, cpus[0]),
                                         std::make_unique<LocalApic>(1, apic_bus, scheduler(), tsc, cpus[1])};
  std::unique_ptr<memory::GuestMemory> memory = std::move(*memory::GuestMemory::Create(kMiB));
  KvmParavirt paravirt{*memory, apic_bus};
};
TEST(Conformance, KvmParavirt) { RunSuite<KvmParavirtSubject>(); }

template <typename Port>
struct PortSubject final : ConformanceSubject {
  bus::Device& device() override { return port; }
  std::vector<ConformanceBlock> blocks() override { return {{&port, 1, 1}}; }
  TestMachine machine;
  Port port{machine};
};
TEST(Conformance, ResetControl) { RunSuite<PortSubject<ResetControl>>(); }

struct SystemControlSubject final : ConformanceSubject {
  bus::Device& device() override { return port; }
  std::vector<ConformanceBlock> blocks() override { return {{&port, 1, 1}}; }
  TestMachine machine;
  A20Gate a20;
  SystemControlA port{machine, a20};
};
TEST(Conformance, SystemControlA) { RunSuite<SystemControlSubject>(); }

struct A20Subject final : ConformanceSubject {
  bus::Device& device() override { return a20; }
  std::vector<ConformanceBlock> blocks() override { return {{&port, 1, 1}}; }
  TestMachine machine;
  A20Gate a20;
  SystemControlA port{machine, a20};
};
TEST(Conformance, A20Gate) { RunSuite<A20Subject>(); }

TEST(Conformance, DebugExit) { RunSuite<PortSubject<DebugExitPort>>(); }

struct FwCfgSubject final : ConformanceSubject {
  FwCfgSubject() {
    fw_cfg.AddFile("etc/fixed", FwCfg::Bytes(300, 1));
    fw_cfg.AddFile("etc/made", FwCfg::Bytes(40), [this] { return FwCfg::Bytes(40, ++made); });
  }
  bus::Device& device() override { return fw_cfg; }
  std::vector<ConformanceBlock> blocks() override {
    return {{&fw_cfg.io(), FwCfg::kPorts, 2}, {&fw_cfg.dma_io(), 8, 4}};
  }
  void Stimulate(uint64_t random) override {
    const uint32_t words[4] = {static_cast<uint32_t>(random), static_cast<uint32_t>(random >> 20), 0,
                               static_cast<uint32_t>(random >> 16 & 0xffff0f00)};
    memory->WriteValue(GuestPhys(0x3000), words);
    if (random % 4 != 0) return fw_cfg.io().Write(0, 2, FwCfg::kFirstFile + random % 3);
    fw_cfg.dma_io().Write(0, 4, 0);
    fw_cfg.dma_io().Write(4, 4, __builtin_bswap32(0x3000));
  }
  uint8_t made = 0;
  std::unique_ptr<memory::GuestMemory> memory = std::move(*memory::GuestMemory::Create(kMiB));
  FwCfg fw_cfg{*memory};
};
TEST(Conformance, FwCfg) { RunSuite<FwCfgSubject>(); }

struct PFlashSubject final : ConformanceSubject {
  bus::Device& device() override { return flash; }
  std::vector<ConformanceBlock> blocks() override { return {{&flash, 0x2000, 8}}; }
  bool battery_backed() const override { return true; }
  std::unique_ptr<memory::GuestMemory> memory =
      std::move(*memory::GuestMemory::Create(kMiB, memory::GuestMemory::Backing::kFile, 0x4000));
  PFlash flash{
      *memory,
      {.rom_offset = 0x1000, .size_bytes = 0x2000, .mapping_changed = [] {}, .written = [](uint64_t, uint64_t) {}}};
};
TEST(Conformance, PFlash) { RunSuite<PFlashSubject>(); }

struct PostSubject final : ConformanceSubject {
  bus::Device& device() override { return port; }
  std::vector<ConformanceBlock> blocks() override { return {{&port, 1, 1}}; }
  PostPort port;
};
TEST(Conformance, PostPort) { RunSuite<PostSubject>(); }

/// A device with everything that PciDevice offers.
class Everything final : public PciDevice {
 public:
  explicit Everything(const PciWiring& wiring) : PciDevice("everything", {0x1234, 1, 0, 0, 0xff0000, 0, 1}, wiring) {
    AddBar(0, BarKind::kIo, 16);
    AddBar(2, BarKind::kMemory64, 0x4000);
    AddMsix(2, 0x1000, 65);
    AddMsi(32);
    Reset();
  }
  void Stimulate(uint64_t random) {
    SetIntx(TestBit(random, 0));
    NotifyVector(random >> 8 & 0x7f);
  }

 protected:
  void ResetFunction() override {}
  void SerializeFunction(state::Archive&) override {}
};

struct PciConfigBlock final : bus::IoHandler {
  explicit PciConfigBlock(PciDevice& owner) : device(owner) {}
  uint64_t Read(uint64_t offset, unsigned size) override {
    return device.ConfigRead(static_cast<unsigned>(offset), size);
  }
  void Write(uint64_t offset, unsigned size, uint64_t value) override {
    device.ConfigWrite(static_cast<unsigned>(offset), size, static_cast<uint32_t>(value));
  }
  PciDevice& device;
};

struct WholeBus final : bus::IoHandler {
  explicit WholeBus(bus::MemoryBus& owner) : memory(owner) {}
  uint64_t Read(uint64_t offset, unsigned size) override { return memory.Read(0xe0000000 + offset, size); }
  void Write(uint64_t offset, unsigned size, uint64_t value) override {
    memory.Write(0xe0000000 + offset, size, value);
  }
  bus::MemoryBus& memory;
};

struct PciDeviceSubject final : ConformanceSubject {
  bus::Device& device() override { return card; }
  std::vector<ConformanceBlock> blocks() override { return {{&config, 256, 4}, {&bar, 0x4000, 8}}; }
  void Stimulate(uint64_t random) override {
    if (random % 4 == 0) {
      card.ConfigWrite(0x18, 4, 0xe0000000);
      card.ConfigWrite(0x1c, 4, 0);
      card.ConfigWrite(0x04, 2, 7);
    }
    card.Stimulate(random >> 16);
  }
  bus::PortBus ports;
  bus::MemoryBus memory;
  TestMsiSink msi;
  Everything card{PciWiring{&ports, &memory, &msi}};
  PciConfigBlock config{card};
  WholeBus bar{memory};
};
TEST(Conformance, PciDevice) { RunSuite<PciDeviceSubject>(); }

struct PciHostSubject final : ConformanceSubject {
  bus::Device& device() override { return host; }
  std::vector<ConformanceBlock> blocks() override {
    return {{&host.io(), 8, 4}, {&host.ecam(), PciHost::kEcamSize, 8}};
  }
  bus::PortBus ports;
  bus::MemoryBus memory;
  TestMsiSink msi;
  TestLine line;
  PciHost host{PciWiring{&ports, &memory, &msi}, {&line, &line, &line, &line}, {10, 10, 11, 11}};
};
TEST(Conformance, PciHost) { RunSuite<PciHostSubject>(); }

struct IsaBridgeSubject final : ConformanceSubject {
  bus::Device& device() override { return bridge; }
  std::vector<ConformanceBlock> blocks() override { return {{&config, 256, 4}}; }
  void Stimulate(uint64_t random) override { bridge.pirq(random & 3).Set(TestBit(random, 8)); }
  static IsaBridge::Lines Lines(TestLine& line) {
    IsaBridge::Lines lines;
    for (auto& pirq : lines.isa) pirq.fill(&line);
    return lines;
  }
  bus::PortBus ports;
  bus::MemoryBus memory;
  TestMsiSink msi;
  TestLine line;
  IsaBridge bridge{PciWiring{&ports, &memory, &msi}, Lines(line)};
  PciConfigBlock config{bridge};
};
TEST(Conformance, IsaBridge) { RunSuite<IsaBridgeSubject>(); }

struct PowerManagementSubject final : ConformanceSubject {
  bus::Device& device() override { return bridge; }
  std::vector<ConformanceBlock> blocks() override { return {{&config, 256, 4}}; }
  bus::PortBus ports;
  bus::MemoryBus memory;
  TestMsiSink msi;
  PostPort registers;
  PowerManagement bridge{PciWiring{&ports, &memory, &msi}, registers, 1};
  PciConfigBlock config{bridge};
};
TEST(Conformance, PowerManagement) { RunSuite<PowerManagementSubject>(); }

}  // namespace
}  // namespace nacre::devices
