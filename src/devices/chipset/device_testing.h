#pragma once
// Stand-ins for what chipset and legacy devices are connected to. For tests only.

#include <string>
#include <vector>

#include "base/char_backend.h"
#include "base/clock.h"
#include "base/manual_scheduler.h"
#include "bus/device.h"
#include "devices/chipset/a20_gate.h"
#include "devices/chipset/apic_types.h"
#include "devices/chipset/machine_control.h"
#include "devices/chipset/ticks.h"

namespace nacre::devices {

struct TestLine final : bus::IrqLine {
  void Set(bool value) override {
    if (value && !level) ++rises;
    level = value;
  }
  bool level = false;
  int rises = 0;
};

struct TestCpu final : CpuSignals {
  void SetInterrupt(bool level) override { interrupt = level; }
  void Nmi() override { ++nmis; }
  void Init() override { ++inits; }
  void Sipi(uint8_t vector) override { sipis.push_back(vector); }
  void Kick() override { ++kicks; }
  bool interrupt = false;
  int nmis = 0;
  int inits = 0;
  int kicks = 0;
  std::vector<uint8_t> sipis;
};

/// A counter of 2 GHz in step with the scheduler.
struct TestTsc final : GuestTsc {
  explicit TestTsc(const Scheduler& owner) : scheduler(owner) {}
  uint64_t Read() const override { return static_cast<uint64_t>(scheduler.NowNs()) * 2 + offset; }
  int64_t ToNs(uint64_t tsc) const override {
    if (tsc < offset) return 0;
    return static_cast<int64_t>(std::min<uint64_t>((tsc - offset) / 2, INT64_MAX / 2));
  }
  uint32_t khz() const override { return 2'000'000; }
  const Scheduler& scheduler;
  uint64_t offset = 0;
};

/// 2024-02-28 23:59:50 UTC and on with the scheduler.
struct TestWallClock final : WallClock {
  explicit TestWallClock(const Scheduler& owner) : scheduler(owner) {}
  int64_t UtcNs() const override { return start_ns + scheduler.NowNs(); }
  const Scheduler& scheduler;
  int64_t start_ns = int64_t{1'709'164'790} * kNsPerSecond;
};

struct TestMachine final : MachineControl {
  void PowerOff() override { ++power_offs; }
  void ResetMachine() override { ++resets; }
  void Sleep() override { ++sleeps; }
  void WakeUp() override { ++wakes; }
  void DebugExit(uint32_t value) override { exits.push_back(value); }
  int power_offs = 0;
  int resets = 0;
  int sleeps = 0;
  int wakes = 0;
  std::vector<uint32_t> exits;
};

struct TestMsiSink final : bus::MsiSink {
  void Send(uint64_t address, uint32_t data) override { sent.push_back({address, data}); }
  std::vector<std::pair<uint64_t, uint32_t>> sent;
};

/// Input is handed over as the device has room; output is kept.
struct TestCharBackend final : CharBackend {
  void Write(std::span<const uint8_t> bytes) override { output.append(bytes.begin(), bytes.end()); }
  void RoomAvailable() override { Pump(); }
  void SetReceiver(CharReceiver* value) override { receiver = value; }
  void Send(std::string_view text) {
    input += text;
    Pump();
  }
  void Pump() {
    while (receiver && !input.empty()) {
      const size_t count = std::min(receiver->Room(), input.size());
      if (count == 0) return;
      const std::string part = input.substr(0, count);
      input.erase(0, count);
      receiver->Receive({reinterpret_cast<const uint8_t*>(part.data()), part.size()});
    }
  }
  std::string input, output;
  CharReceiver* receiver = nullptr;
};

}  // namespace nacre::devices
