// Whole machines with guests of a few instructions, on every engine: how a run starts and ends.
#include "machine/machine.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <fstream>

#include "engine/kvm/kvm_model.h"

namespace nacre::machine {
namespace {

using Code = std::vector<uint8_t>;

Code operator+(Code left, const Code& right) {
  left.insert(left.end(), right.begin(), right.end());
  return left;
}
Code OutByte(uint8_t port, uint8_t value) { return {0xb0, value, 0xe6, port}; }
Code OutByteAt(uint16_t port, uint8_t value) {
  return {0xba, static_cast<uint8_t>(port), static_cast<uint8_t>(port >> 8), 0, 0, 0xb0, value, 0xee};
}
const Code kSpin{0xeb, 0xfe};
/// mov dx, 0x604; mov ax, SLP_EN | S5; out dx, ax
const Code kPowerOffCode{0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x20, 0x66, 0xef};
/// lidt of an empty table, then #BP
const Code kTripleFault{0x0f, 0x01, 0x1d, 0x00, 0x08, 0x10, 0x00, 0xcc};

/// The board's ACPI tables (boot/boot_layout.h) with the FACS behind the RSDP, and in that the waking vector.
constexpr uint32_t kWakingVector = 0xe0000 + 64 + 12;
Code Dword(uint32_t value) {
  return {static_cast<uint8_t>(value), static_cast<uint8_t>(value >> 8), static_cast<uint8_t>(value >> 16),
          static_cast<uint8_t>(value >> 24)};
}
/// mov dword [address], value
Code Store(uint32_t address, uint32_t value) { return Code{0xc7, 0x05} + Dword(address) + Dword(value); }
/// mov dx, port; mov ax, value; out dx, ax
Code OutWord(uint16_t port, uint16_t value) {
  return Code{0xba} + Dword(port) +
         Code{0x66, 0xb8, static_cast<uint8_t>(value), static_cast<uint8_t>(value >> 8), 0x66, 0xef};
}
constexpr uint16_t kPmEnable = 0x602, kPmControl = 0x604, kPowerButton = 1 << 8, kSleepS3 = 1 << 13 | 1 << 10;

class MachineTest : public testing::TestWithParam<EngineKind> {
 protected:
  ~MachineTest() override { unlink(path_.c_str()); }

  /// A multiboot kernel: the header with addresses, then `code` at 1 MiB + 0x20.
  MachineConfig Config(const Code& code) {
    constexpr uint32_t kBase = 0x100000, kFlags = 1 << 16, kMagic = 0x1badb002;
    const uint32_t header[] = {kMagic, kFlags, 0u - kMagic - kFlags, kBase, kBase, 0, 0, kBase + 0x20};
    std::ofstream file(path_, std::ios::binary);
    file.write(reinterpret_cast<const char*>(header), sizeof(header));
    file.write(reinterpret_cast<const char*>(code.data()), static_cast<std::streamsize>(code.size()));
    MachineConfig config;
    config.kernel = path_;
    config.memory_bytes = 16 * kMiB;
    config.engine = GetParam();
    config.serial.kind = SerialKind::kNone;
    config.debug_exit = true;
    config.timeout_ms = 20000;
    return config;
  }
  RunResult Run(const MachineConfig& config) {
    auto machine = Machine::Create(config);
    EXPECT_TRUE(machine) << machine.error().message;
    return machine ? (*machine)->Run() : RunResult{EndReason::kTimeout, 0, {}};
  }

  const std::string path_ = testing::TempDir() + "nacre-machine-" + std::to_string(getpid());
};

TEST_P(MachineTest, DebugExit) {
  const RunResult result = Run(Config(OutByte(0xf4, 0x21) + kSpin));
  EXPECT_EQ(result.reason, EndReason::kDebugExit);
  EXPECT_EQ(result.debug_exit_value, 0x21u);
}

TEST_P(MachineTest, PowerOff) { EXPECT_EQ(Run(Config(kPowerOffCode + kSpin)).reason, EndReason::kPowerOff); }

TEST_P(MachineTest, TripleFaultIsDescribed) {
  const RunResult result = Run(Config(kTripleFault));
  EXPECT_EQ(result.reason, EndReason::kGuestCrash);
  for (const char* part : {"triple fault", "RIP 0010:0000000000100027", "CR2", "int3"})
    EXPECT_NE(result.detail.find(part), std::string::npos) << part << " in " << result.detail;
}

TEST_P(MachineTest, ResetEndsTheRunIfAsked) {
  MachineConfig config = Config(OutByteAt(0xcf9, 0x06) + kSpin);
  config.no_reboot = true;
  EXPECT_EQ(Run(config).reason, EndReason::kReset);
}

// The battery keeps CMOS byte 0x40 over the reset: 0 at first, then 1.
TEST_P(MachineTest, ResetStartsAgainWithFreshMemory) {
  const Code once = OutByte(0x70, 0x40) + Code{0xe4, 0x71,            // in al, 0x71
                                               0x84, 0xc0,            // test al, al
                                               0x75, 0x13}            // jnz second start
                    + Code{0xfe, 0x05, 0x00, 0x00, 0x20, 0x00}        // inc byte [0x200000]
                    + Code{0xb0, 0x01, 0xe6, 0x71}                    // mov al, 1; out 0x71, al
                    + Code{0xb0, 0x06, 0x66, 0xba, 0xf9, 0x0c, 0xee}  // reset
                    + kSpin;
  const Code again{0xa0, 0x00, 0x00, 0x20, 0x00,  // mov al, [0x200000]
                   0xe6, 0xf4};                   // out 0xf4, al
  const RunResult result = Run(Config(once + again + kSpin));
  EXPECT_EQ(result.reason, EndReason::kDebugExit);
  EXPECT_EQ(result.debug_exit_value, 0u);
}

// At its waking vector, in real-address mode, with its memory: there it says what it had left behind.
TEST_P(MachineTest, SleepEndsAtTheWakingVector) {
  constexpr uint32_t kVector = 0x8003;
  const Code code =
      Store(0x9000, 0x42) + Store(kWakingVector, kVector) + Store(kVector, 0xd88ec031) +  // xor ax, ax; mov ds, ax
      Store(kVector + 4, 0xe69000a0) +  // mov al, [0x9000]; out 0xf4, al
      Store(kVector + 8, 0xfeebf4) + OutWord(kPmEnable, kPowerButton) + OutWord(kPmControl, kSleepS3) + kSpin;
  auto machine = Machine::Create(Config(code));
  ASSERT_TRUE(machine);
  Machine& guest = **machine;
  std::thread button([&] {
    while (!guest.asleep() && guest.state() != RunState::kEnded) std::this_thread::yield();
    // What parks the CPUs for a moment does not wake them.
    guest.RequestRegisters([&](Result<std::vector<std::string>> done) { EXPECT_TRUE(done); });
    guest.RequestEngine(EngineKind::kInterp, [&](Result<Machine::EngineSwitch> done) {
      EXPECT_TRUE(done);
      EXPECT_TRUE(guest.asleep());
      guest.PressPowerButton();
    });
  });
  const RunResult result = guest.Run();
  button.join();
  EXPECT_EQ(result.reason, EndReason::kDebugExit);
  EXPECT_EQ(result.debug_exit_value, 0x42u);
  EXPECT_FALSE(guest.asleep());
}

TEST_P(MachineTest, SleepWithoutAWakingVectorEndsInAReset) {
  MachineConfig config = Config(OutWord(kPmEnable, kPowerButton) + OutWord(kPmControl, kSleepS3) + kSpin);
  config.no_reboot = true;
  auto machine = Machine::Create(config);
  ASSERT_TRUE(machine);
  (*machine)->PressPowerButton();  // pending when the guest goes to sleep
  EXPECT_EQ((*machine)->Run().reason, EndReason::kReset);
}

TEST_P(MachineTest, TimeoutEndsABusyGuest) {
  MachineConfig config = Config(kSpin);
  config.timeout_ms = 30;
  EXPECT_EQ(Run(config).reason, EndReason::kTimeout);
}

TEST_P(MachineTest, TimeoutEndsAHaltedGuest) {
  MachineConfig config = Config({0xfa, 0xf4});  // cli; hlt
  config.timeout_ms = 30;
  EXPECT_EQ(Run(config).reason, EndReason::kTimeout);
}

// The counter stands still while the machine does: the guest spins until it has counted 60 ms.
TEST_P(MachineTest, PauseStopsTimeAndResumeGoesOn) {
  const auto ticks = static_cast<uint32_t>(x86::CpuModel::Create("default", {})->tsc_khz() * 60);
  Code code{0x0f, 0x31, 0x89, 0xc3,                      // rdtsc; mov ebx, eax
            0x0f, 0x31, 0x29, 0xd8, 0x3d, 0,   0, 0, 0,  // again: rdtsc; sub eax, ebx; cmp eax, ticks
            0x72, 0xf5,                                  // jb again
            0xb0, 0x01, 0xe6, 0xf4, 0xeb, 0xfe};
  std::memcpy(&code[9], &ticks, 4);
  auto machine = Machine::Create(Config(code));
  ASSERT_TRUE(machine);
  (*machine)->RequestPause();
  const auto start = std::chrono::steady_clock::now();
  std::thread resume([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(60));
    (*machine)->RequestResume();
  });
  const RunResult result = (*machine)->Run();
  const auto elapsed = std::chrono::steady_clock::now() - start;
  resume.join();
  EXPECT_EQ(result.reason, EndReason::kDebugExit);
  // It may have counted some of it before the pause began.
  EXPECT_GE(elapsed, std::chrono::milliseconds(60 + 30));
}

// A paused guest goes on with another engine, which its pause survives; requests are carried out in their order.
TEST_P(MachineTest, RequestsAreAnsweredInOrder) {
  auto machine = Machine::Create(Config(kSpin));
  ASSERT_TRUE(machine);
  Machine& guest = **machine;
  EXPECT_EQ(guest.state(), RunState::kCreated);
  std::string order;
  const EngineKind other = GetParam() == EngineKind::kJit ? EngineKind::kInterp : EngineKind::kJit;
  guest.RequestEngine(other, [&](Result<Machine::EngineSwitch> done) {
    ASSERT_TRUE(done);
    EXPECT_EQ(done->before, GetParam());
    EXPECT_GT(done->pause.count(), 0);
    order += "switched ";
  });
  guest.RequestPause([&](Status done) {
    EXPECT_TRUE(done);
    EXPECT_EQ(guest.state(), RunState::kPaused);
    order += "paused ";
  });
  guest.RequestEngine(GetParam(), [&](Result<Machine::EngineSwitch> done) {
    ASSERT_TRUE(done);
    EXPECT_EQ(done->before, other);
    EXPECT_EQ(done->pause.count(), 0);
    EXPECT_EQ(guest.state(), RunState::kPaused);
    EXPECT_EQ(guest.engine_kind(), GetParam());
    order += "switched ";
  });
  const auto before = std::make_shared<std::chrono::nanoseconds>();
  guest.RequestStatistics([&, before](Result<std::vector<StatisticsSection>> done) {
    ASSERT_TRUE(done);
    EXPECT_FALSE(done->empty());
    *before = guest.uptime();
    order += "counted ";
  });
  guest.RequestResume([&, before](Status done) {
    EXPECT_TRUE(done);
    EXPECT_EQ(guest.state(), RunState::kRunning);
    EXPECT_GE(guest.uptime(), *before);
    order += "resumed";
    guest.Stop();
  });
  EXPECT_EQ(guest.Run().reason, EndReason::kLeft);
  EXPECT_EQ(order, "switched paused switched counted resumed");
  EXPECT_EQ(guest.state(), RunState::kEnded);
  bool refused = false;
  guest.RequestPause([&](Status done) { refused = !done && done.error().code == ECANCELED; });
  EXPECT_TRUE(refused);
}

// A guest whose CPU model the host's KVM lacks, or whose host has no KVM, goes on with the engine that it has.
TEST_P(MachineTest, AnEngineWithoutTheModelIsRefused) {
  MachineConfig config = Config(kSpin);
  config.cpu_model = "host";
  config.kvm_kernel = engine::kvm::KernelMode::kKvm;
  auto machine = Machine::Create(config);
  ASSERT_TRUE(machine) << machine.error().message;
  Machine& guest = **machine;
  const Status kvm = engine::kvm::CheckModel(guest.cpu_model());
  if (kvm) GTEST_SKIP() << "this host's KVM has all of " << guest.cpu_model().name();
  std::string refusal;
  guest.RequestEngine(EngineKind::kKvm, [&](Result<Machine::EngineSwitch> done) {
    ASSERT_FALSE(done);
    refusal = done.error().message;
  });
  guest.RequestStatistics([&](Result<std::vector<StatisticsSection>> done) {
    EXPECT_TRUE(done);
    EXPECT_EQ(guest.state(), RunState::kRunning);
    EXPECT_EQ(guest.engine_kind(), GetParam());
    guest.Stop();
  });
  EXPECT_EQ(guest.Run().reason, EndReason::kLeft);
  EXPECT_EQ(refusal, kvm.error().message);
}

// What was asked of a guest that never ran, or that ended first, is refused.
TEST_P(MachineTest, RequestsOfAnEndedGuestAreRefused) {
  int refused = 0;
  const auto count = [&](const auto& done) { refused += !done && done.error().code == ECANCELED; };
  {
    auto machine = Machine::Create(Config(kSpin));
    ASSERT_TRUE(machine);
    (*machine)->RequestPause(count);
  }
  EXPECT_EQ(refused, 1);
  auto machine = Machine::Create(Config(kSpin));
  ASSERT_TRUE(machine);
  (*machine)->RequestPause([&](Status) { (*machine)->Stop(); });
  (*machine)->RequestPause([&](Status) { (*machine)->RequestResume(count); });
  (*machine)->RequestStatistics(count);
  EXPECT_EQ((*machine)->Run().reason, EndReason::kLeft);
  EXPECT_EQ(refused, 3);
}

TEST_P(MachineTest, StopFromAnotherThread) {
  auto machine = Machine::Create(Config(kSpin));
  ASSERT_TRUE(machine);
  std::thread stop([&] { (*machine)->Stop(); });
  EXPECT_EQ((*machine)->Run().reason, EndReason::kLeft);
  stop.join();
  EXPECT_NE((*machine)->StatisticsText().find("cpu 0"), std::string::npos);
}

TEST_P(MachineTest, MissingFilesAreNamed) {
  MachineConfig config = Config(kSpin);
  config.initrds = {"/no/such/initrd"};
  const auto no_initrd = Machine::Create(config);
  ASSERT_FALSE(no_initrd);
  EXPECT_NE(no_initrd.error().message.find("/no/such/initrd"), std::string::npos);
  config.initrds = {};
  config.disks.push_back({.path = "/no/such/disk"});
  const auto no_disk = Machine::Create(config);
  ASSERT_FALSE(no_disk);
  EXPECT_NE(no_disk.error().message.find("/no/such/disk"), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(Engines, MachineTest, testing::Values(EngineKind::kInterp, EngineKind::kJit),
                         [](const auto& engine) { return engine.param == EngineKind::kInterp ? "interp" : "jit"; });

}  // namespace
}  // namespace nacre::machine
