// virtio console, rng and balloon.

#include <gtest/gtest.h>

#include <random>

#include "base/fuzz_testing.h"
#include "devices/virtio/balloon.h"
#include "devices/virtio/console.h"
#include "devices/virtio/rng.h"
#include "devices/virtio/virtio_testing.h"

namespace nacre::devices {
namespace {

constexpr uint64_t kData = 0x40'0000;

class TestChars : public CharBackend {
 public:
  void Write(std::span<const uint8_t> bytes) override { output.append(bytes.begin(), bytes.end()); }
  void RoomAvailable() override { ++room_available; }
  void SetReceiver(CharReceiver* to) override { receiver = to; }
  void SetOpen(bool is) override { opened.push_back(is); }
  /// Offers input as a back end does: no more than there is room for.
  size_t Type(std::string_view text) {
    const size_t size = std::min(text.size(), receiver->Room());
    receiver->Receive({reinterpret_cast<const uint8_t*>(text.data()), size});
    return size;
  }
  std::string output;
  unsigned room_available = 0;
  std::vector<bool> opened;
  CharReceiver* receiver = nullptr;
};

class VirtioConsoleTest : public testing::TestWithParam<bool>, public VirtioBench {
 protected:
  VirtioConsoleTest() {
    auto created = VirtioConsole::Create(
        {.ports = {{.backend = &terminal}, {.backend = &agent, .name = "org.nacre.agent", .console = false}}}, memory,
        scheduler);
    EXPECT_TRUE(created.has_value());
    console = created->get();
    Plug(std::move(*created));
  }
  ~VirtioConsoleTest() override { pci.reset(); }
  static std::string Text(std::span<const uint8_t> data) { return {data.begin(), data.end()}; }
  static std::span<const uint8_t> Bytes(std::string_view text) {
    return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
  }
  void Send(unsigned queue, std::string_view text) {
    Fill(kData, Bytes(text));
    ring(queue).Add({{kData, static_cast<uint32_t>(text.size())}});
    Kick(queue);
  }
  void Control(uint32_t id, uint16_t event, uint16_t value) {
    memory.WriteValue(GuestPhys(kData + 0x1000), id);
    memory.WriteValue(GuestPhys(kData + 0x1004), event);
    memory.WriteValue(GuestPhys(kData + 0x1006), value);
    ring(3).Add({{kData + 0x1000, 8}});
    Kick(3);
    EXPECT_TRUE(ring(3).GetUsed());
  }
  struct Message {
    uint32_t id;
    uint16_t event;
    uint16_t value;
    std::string data;
    bool operator==(const Message&) const = default;
  };
  /// Gives one buffer and takes one message.
  std::optional<Message> NextControl() {
    const uint64_t at = kData + 0x2000 + 128 * (control_buffers++ % 32);
    control_at[ring(2).Add({{at, 128, true}})] = at;
    Kick(2);
    const auto used = ring(2).GetUsed();
    if (!used) return std::nullopt;
    const auto bytes = Get(control_at[static_cast<uint16_t>(used->id)], used->written);
    return Message{LoadLe<uint32_t>(&bytes[0]), LoadLe<uint16_t>(&bytes[4]), LoadLe<uint16_t>(&bytes[6]),
                   Text(std::span(bytes).subspan(8))};
  }
  std::string TakeInput(unsigned queue) {
    const auto used = ring(queue).GetUsed();
    return used ? Text(Get(kData + 0x4000, used->written)) : "(none)";
  }

  VirtioConsole* console = nullptr;
  TestChars terminal, agent;
  unsigned control_buffers = 0;
  std::map<uint16_t, uint64_t> control_at;
};
INSTANTIATE_TEST_SUITE_P(Rings, VirtioConsoleTest, testing::Bool(),
                         [](const auto& kind) { return std::string(kind.param ? "Packed" : "Split"); });

TEST_P(VirtioConsoleTest, OnePortWithoutMultiport) {
  Start(0, GetParam());
  Send(1, "hello\n");
  EXPECT_EQ("hello\n", terminal.output);
  EXPECT_TRUE(ring(1).GetUsed());
  ring(0).Add({{kData + 0x4000, 64, true}});
  Kick(0);
  EXPECT_EQ(3u, terminal.Type("abc"));
  EXPECT_EQ("abc", TakeInput(0));
  EXPECT_TRUE(line.level);
}

TEST_P(VirtioConsoleTest, InputWaitsForBuffersAndIsBounded) {
  Start(0, GetParam());
  const std::string text(10'000, 'x');
  EXPECT_EQ(4096u, terminal.Type(text));
  EXPECT_EQ(0u, terminal.Type("y"));
  ring(0).Add({{kData + 0x4000, 4000, true}});
  Kick(0);
  EXPECT_EQ(4000u, TakeInput(0).size());
  EXPECT_EQ(1u, terminal.room_available);
}

TEST_P(VirtioConsoleTest, Clause5_3_6_2_PortsAreAnnouncedAndOpened) {
  Start(Bit(0) | Bit(1), GetParam());
  EXPECT_EQ(2u, Config(4, 4)) << "max_nr_ports";
  Control(0, 0, 1);  // DEVICE_READY
  EXPECT_EQ((Message{0, 1, 0, ""}), NextControl());
  EXPECT_EQ((Message{1, 1, 0, ""}), NextControl());
  Control(0, 3, 1);  // PORT_READY
  EXPECT_EQ((Message{0, 4, 1, ""}), NextControl()) << "CONSOLE_PORT";
  EXPECT_EQ((Message{0, 5, 0, std::string("\x50\0\x19\0", 4)}), NextControl()) << "RESIZE 80x25";
  EXPECT_EQ((Message{0, 6, 1, ""}), NextControl()) << "PORT_OPEN";
  Control(1, 3, 1);
  EXPECT_EQ((Message{1, 7, 1, "org.nacre.agent"}), NextControl());
  EXPECT_EQ((Message{1, 6, 1, ""}), NextControl());
  EXPECT_EQ(std::nullopt, NextControl());

  ring(4).Add({{kData + 0x4000, 64, true}});
  Kick(4);
  agent.Type("early");
  EXPECT_EQ("(none)", TakeInput(4)) << "the guest has not opened the port";
  Control(1, 6, 1);
  EXPECT_TRUE(console->guest_connected(1));
  EXPECT_EQ("early", TakeInput(4));
  Send(5, "to the agent");
  EXPECT_EQ("to the agent", agent.output);
  EXPECT_EQ("", terminal.output);

  console->Resize(132, 50);
  console->SetHostConnected(1, false);
  // One buffer waits already from the call that found nothing.
  const UsedEntry used = ring(2).Used();
  EXPECT_EQ(12u, used.written);
  EXPECT_EQ((Message{1, 6, 0, ""}), NextControl());
}

TEST_P(VirtioConsoleTest, ControlMessagesThatMakeNoSenseAreIgnored) {
  Start(Bit(1), GetParam());
  for (uint32_t id : {0u, 1u, 2u, 1000u, ~0u})
    for (uint16_t event = 0; event < 12; ++event)
      for (uint16_t value : {0, 1, 65535}) Control(id, event, value);
  for (int i = 0; i < 2000; ++i) Control(0, 0, 1);  // what piles up is bounded
  EXPECT_EQ(15, Status());
}

TEST_P(VirtioConsoleTest, BackEndsAreToldWhoIsThere) {
  Start(Bit(1), GetParam());
  Control(0, 0, 1);
  Control(1, 3, 1);
  for (const uint16_t value : {0, 1, 1, 0, 1}) Control(1, 6, value);
  EXPECT_EQ(agent.opened, (std::vector<bool>{true, false, true}));
  agent.Type(std::string(5000, 'x'));
  EXPECT_EQ(0u, agent.receiver->Room());
  Control(1, 6, 0);
  EXPECT_EQ(4096u, agent.receiver->Room()) << "it is not for the next program";
  EXPECT_EQ(1u, agent.room_available);
  Control(1, 6, 1);
  SetCommon(20, 1, 0);
  EXPECT_EQ(agent.opened, (std::vector<bool>{true, false, true, false, true, false}));
  EXPECT_TRUE(terminal.opened.empty());
}

TEST_P(VirtioConsoleTest, OpenPortsMoveOn) {
  Start(Bit(1), GetParam());
  Control(1, 3, 1);
  Control(1, 6, 1);
  agent.Type("half a req");
  VirtioBench other;
  TestChars here, there;
  auto created = VirtioConsole::Create({.ports = {{.backend = &here}, {.backend = &there, .console = false}}},
                                       other.memory, other.scheduler);
  other.Plug(std::move(*created));
  CopyStateTo(other);
  EXPECT_EQ(there.opened, std::vector<bool>{true});
  EXPECT_TRUE(here.opened.empty());
  other.ring(4).Add({{kData + 0x4000, 64, true}});
  other.Kick(4);
  EXPECT_EQ(10u, other.ring(4).Used().written);
  other.pci.reset();
}

TEST_P(VirtioConsoleTest, BuffersOfNoSizeDoNotHoldTheLockForEver) {
  Start(Bit(1), GetParam());
  Control(1, 3, 1);
  Control(1, 6, 1);
  for (int i = 0; i < 64; ++i) ring(4).Add({{kData, 8}});  // nothing to write to
  agent.Type("x");
  for (int i = 0; i < 64; ++i) EXPECT_EQ(0u, ring(4).Used().written);
  ring(4).Add({{kData + 0x4000, 64, true}});
  Kick(4);
  EXPECT_EQ("x", TakeInput(4));
}

/// A device with an agent's port and no console.
TEST(VirtioConsoleWithoutConsole, TheFirstPortIsNotThere) {
  VirtioBench bench;
  TestChars agent;
  auto created = VirtioConsole::Create({.ports = {{}, {.backend = &agent, .name = "a", .console = false}}},
                                       bench.memory, bench.scheduler);
  ASSERT_TRUE(created);
  bench.Plug(std::move(*created));
  const auto control = [&](uint32_t id, uint16_t event, uint16_t value) {
    bench.memory.WriteValue(GuestPhys(kData), id);
    bench.memory.WriteValue(GuestPhys(kData + 4), event);
    bench.memory.WriteValue(GuestPhys(kData + 6), value);
    bench.ring(3).Add({{kData, 8}});
    bench.Kick(3);
  };
  bench.memory_bus.Write(VirtioBench::kBar0 + VirtioPci::kDeviceOffset + 8, 4, 'E');  // emerg_wr
  bench.Start(Bit(0) | Bit(1), false);
  for (int i = 0; i < 8; ++i) bench.ring(2).Add({{kData + 0x1000 + 64u * static_cast<unsigned>(i), 64, true}});
  control(0, 0, 1);
  control(0, 3, 1);
  control(0, 6, 1);
  EXPECT_EQ(8u, bench.ring(2).Used().written);
  EXPECT_FALSE(bench.ring(2).GetUsed());
  EXPECT_EQ((std::vector<uint8_t>{1, 0, 0, 0, 1, 0, 0, 0}), bench.Get(kData + 0x1000, 8)) << "DEVICE_ADD of port 1";
  bench.ring(1).Add({{kData, 8}});
  bench.Kick(1);
  EXPECT_TRUE(bench.ring(1).GetUsed());
  bench.ring(0).Add({{kData + 0x2000, 8, true}});
  bench.Kick(0);
  EXPECT_FALSE(bench.ring(0).GetUsed());
  EXPECT_EQ(15, bench.Status());
  bench.pci.reset();
}

TEST(VirtioConsoleWithoutConsole, WhatCannotBe) {
  VirtioBench bench;
  TestChars agent;
  for (VirtioConsole::Options options :
       {VirtioConsole::Options{.ports = {}}, VirtioConsole::Options{.ports = {{.backend = &agent, .console = false}}},
        VirtioConsole::Options{.ports = {{}, {.backend = &agent, .name = std::string(65, 'x'), .console = false}}},
        VirtioConsole::Options{.ports = std::vector<VirtioConsole::PortOptions>(17)}})
    EXPECT_FALSE(VirtioConsole::Create(options, bench.memory, bench.scheduler));
}

// A hostile driver of ports with a seed; longer runs: base/fuzz_testing.h. Asserted: no crash, bounded memory, and what
// one driver did is gone with a reset.
TEST(VirtioConsoleFuzz, RandomDriver) {
  std::mt19937_64 random(FuzzSeed(20261122));
  const auto below = [&](uint64_t limit) { return static_cast<uint32_t>(random() % limit); };
  /// Types back as soon as there is room, from within RoomAvailable.
  struct Eager : TestChars {
    void RoomAvailable() override {
      if (receiver && ++depth < 40) Type(std::string(1000, 'e'));
    }
    void Write(std::span<const uint8_t> bytes) override { written += bytes.size(); }
    unsigned depth = 0;
    uint64_t written = 0;
  };
  Eager terminal, agent;
  VirtioBench bench;
  auto created = VirtioConsole::Create({.ports = {{.backend = &terminal},
                                                  {.backend = &agent, .name = "agent", .console = false},
                                                  {.backend = nullptr, .name = "nothing", .console = false}}},
                                       bench.memory, bench.scheduler);
  VirtioConsole* const console = created->get();
  bench.Plug(std::move(*created));
  bench.Start(Bit(0) | Bit(1), false);
  FuzzRun run(20'000);
  while (run.Next()) {
    const unsigned queue = below(8);
    std::vector<TestBuffer> buffers;
    for (uint32_t i = 1 + below(3); i != 0; --i)
      buffers.push_back({kData + below(0x8000), below(8) ? below(5000) : below(0x100'0000), below(2) != 0});
    if (queue == 3) {
      const uint64_t at = kData + 8ull * below(0x1000);
      bench.memory.WriteValue(GuestPhys(at), below(16) ? below(4) : static_cast<uint32_t>(random()));
      bench.memory.WriteValue(GuestPhys(at + 4), static_cast<uint16_t>(below(16) ? below(9) : random()));
      bench.memory.WriteValue(GuestPhys(at + 6), static_cast<uint16_t>(below(3)));
      buffers = {{at, below(16) ? 8 : below(12)}};
    }
    bench.ring(queue).Add(buffers, below(4) == 0);
    bench.Kick(queue);
    terminal.depth = agent.depth = 0;
    if (below(4) == 0) agent.Type(std::string(below(5000), 'a'));
    if (below(8) == 0) terminal.Type(std::string(below(5000), 't'));
    if (below(16) == 0) console->Resize(static_cast<uint16_t>(random()), static_cast<uint16_t>(random()));
    if (below(32) == 0) console->SetHostConnected(below(3), below(2) != 0);
    bench.scheduler.Advance(1);
    bool again = bench.Status() != 15 || below(2000) == 0;
    for (unsigned i = 0; i < 8; ++i) {
      while (bench.ring(i).GetUsed()) {
      }
      again |= run.index() % 48 == 47;
    }
    if (!again) continue;
    auto saving = state::Archive::ForSaving();
    bench.pci->Serialize(saving);
    const auto bytes = saving.Finish();
    ASSERT_LT(bytes.size(), 100'000u);
    auto loading = state::Archive::ForLoading(bytes);
    bench.pci->Serialize(loading);
    ASSERT_TRUE(loading.ok());
    bench.SetCommon(20, 1, 0);
    bench.Start(Bit(0) | (below(8) ? Bit(1) : 0), below(2) != 0);
  }
  EXPECT_GT(agent.written, 0u);
  EXPECT_GT(agent.opened.size(), run.cases() / 2000);
  bench.pci.reset();
}

TEST_P(VirtioConsoleTest, Clause5_3_4_EmergencyWriteNeedsNoDriver) {
  memory_bus.Write(kBar0 + VirtioPci::kDeviceOffset + 8, 4, 'E');
  EXPECT_EQ("E", terminal.output);
}

TEST_P(VirtioConsoleTest, InputThatWaitsMovesOn) {
  Start(0, GetParam());
  terminal.Type("typed");
  VirtioBench other;
  TestChars here, there;
  auto created = VirtioConsole::Create({.ports = {{.backend = &here}, {.backend = &there, .console = false}}},
                                       other.memory, other.scheduler);
  other.Plug(std::move(*created));
  CopyStateTo(other);
  other.ring(0).Add({{kData + 0x4000, 64, true}});
  other.Kick(0);
  EXPECT_EQ(5u, other.ring(0).Used().written);
  EXPECT_EQ("typed", Text(other.Get(kData + 0x4000, 5)));
  other.pci.reset();
}

// -- rng

TEST(VirtioRng, FillsEveryPartAndIsBounded) {
  VirtioBench bench;
  bench.Plug(VirtioRng::Create("rng", bench.memory, bench.scheduler));
  bench.Start(0, false);
  bench.ring(0).Add({{kData, 10, true}, {kData + 0x1000, 100'000, true}});
  bench.Kick(0);
  const UsedEntry used = bench.ring(0).Used();
  EXPECT_EQ(4096u, used.written);
  EXPECT_NE(std::vector<uint8_t>(10), bench.Get(kData, 10));
  EXPECT_EQ(std::vector<uint8_t>(100), bench.Get(kData + 0x1000 + 4086, 100));
  bench.ring(0).Add({{kData, 10}});
  bench.Kick(0);
  EXPECT_EQ(0u, bench.ring(0).Used().written) << "nothing to write to";
}

// -- balloon

class VirtioBalloonTest : public testing::TestWithParam<bool>, public VirtioBench {
 protected:
  VirtioBalloonTest() : VirtioBench(64 * kMiB) {
    auto created = VirtioBalloon::Create("balloon", memory, scheduler);
    balloon = created.get();
    Plug(std::move(created));
  }
  bool IsZero(uint64_t address, size_t size) { return Get(address, size) == std::vector<uint8_t>(size); }
  void Touch(uint64_t address, size_t size) { Fill(address, std::vector<uint8_t>(size, 0x5a)); }
  VirtioBalloon* balloon = nullptr;
};
INSTANTIATE_TEST_SUITE_P(Rings, VirtioBalloonTest, testing::Bool(),
                         [](const auto& kind) { return std::string(kind.param ? "Packed" : "Split"); });

TEST_P(VirtioBalloonTest, InflatingGivesPagesBack) {
  Start(0, GetParam());
  Touch(0x200'0000, 16 * kPageSize);
  for (unsigned i = 0; i < 8; ++i) memory.WriteValue(GuestPhys(kData + 4 * i), uint32_t{0x2000 + i});
  memory.WriteValue(GuestPhys(kData + 32), uint32_t{0x200c});
  memory.WriteValue(GuestPhys(kData + 36), uint32_t{0x200b});
  memory.WriteValue(GuestPhys(kData + 40), uint32_t{0xffffffff});  // not RAM: ignored
  ring(0).Add({{kData, 44}});
  Kick(0);
  ASSERT_TRUE(ring(0).GetUsed());
  EXPECT_TRUE(IsZero(0x200'0000, 8 * kPageSize));
  EXPECT_FALSE(IsZero(0x200'8000, kPageSize));
  EXPECT_TRUE(IsZero(0x200'b000, 2 * kPageSize));
  EXPECT_FALSE(IsZero(0x200'd000, kPageSize));
  EXPECT_EQ(10 * kPageSize, balloon->discarded_bytes());
  ring(1).Add({{kData, 44}});
  Kick(1);
  EXPECT_TRUE(ring(1).GetUsed());
  EXPECT_EQ(15, Status());
}

TEST_P(VirtioBalloonTest, TheTargetIsToldAndTheActualSizeRead) {
  Start(0, GetParam());
  balloon->SetTarget(16 * kMiB);
  EXPECT_EQ(2, ReadIsr());
  EXPECT_EQ(4096u, Config(0, 4));
  memory_bus.Write(kBar0 + VirtioPci::kDeviceOffset + 4, 4, 1000);
  EXPECT_EQ(1000 * kPageSize, balloon->actual_bytes());
  memory_bus.Write(kBar0 + VirtioPci::kDeviceOffset, 4, 7);
  EXPECT_EQ(4096u, Config(0, 4)) << "the target is the host's";
  balloon->SetTarget(~uint64_t{0});
  EXPECT_EQ(64 * kMiB, balloon->target_bytes());
}

TEST_P(VirtioBalloonTest, FreePagesAreReportedOnEitherQueueNumber) {
  for (auto [features, queue] : {std::pair{Bit(5), 2u}, {Bit(5) | Bit(1), 3u}, {Bit(5), 4u}, {Bit(5) | Bit(1), 4u}}) {
    Start(features, GetParam());
    Touch(0x200'0000, 4 * kPageSize);
    ring(queue).Add({{0x200'0000, 2 * kPageSize, true}, {0x200'3000, kPageSize, true}});
    Kick(queue);
    ASSERT_TRUE(ring(queue).GetUsed());
    EXPECT_TRUE(IsZero(0x200'0000, 2 * kPageSize));
    EXPECT_FALSE(IsZero(0x200'2000, kPageSize));
    EXPECT_TRUE(IsZero(0x200'3000, kPageSize));
  }
}

TEST_P(VirtioBalloonTest, Clause5_5_6_3_StatisticsStayUntilNewOnesAreWanted) {
  Start(Bit(1), GetParam());
  const auto put = [&](unsigned index, uint16_t tag, uint64_t value) {
    memory.WriteValue(GuestPhys(kData + 10 * index), tag);
    memory.WriteValue(GuestPhys(kData + 10 * index + 2), value);
  };
  put(0, 4, 1234);
  put(1, 5, 5678);
  put(2, 999, 1);
  ring(2).Add({{kData, 30}});
  Kick(2);
  EXPECT_FALSE(ring(2).GetUsed());
  EXPECT_EQ(1234u, balloon->stats().free_bytes);
  EXPECT_EQ(5678u, balloon->stats().total_bytes);
  EXPECT_FALSE(balloon->stats().cache_bytes);
  balloon->RequestStats();
  ASSERT_TRUE(ring(2).GetUsed());
  put(0, 4, 4321);
  ring(2).Add({{kData, 30}});
  Kick(2);
  EXPECT_EQ(4321u, balloon->stats().free_bytes);
}

}  // namespace
}  // namespace nacre::devices
