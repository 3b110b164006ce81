// Doorbells between an engine that counts writes by eventfd and the event loop, and vectors of devices that have lines.
#include "machine/kernel_doorbells.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <map>
#include <mutex>

#include "bus/bus.h"
#include "machine/kernel_apics.h"

namespace nacre::machine {
namespace {

/// An engine that has a few places.
struct TestEvents final : engine::WriteEvents {
  Status AddWriteEvent(GuestPhys address, int event_fd) override {
    if (events.size() == most || events.contains(address.value)) return Fail("no place");
    events[address.value] = event_fd;
    return {};
  }
  void RemoveWriteEvent(GuestPhys address, int event_fd) override {
    EXPECT_EQ(events.at(address.value), event_fd);
    events.erase(address.value);
  }
  void Write(uint64_t address) {
    const uint64_t one = 1;
    ASSERT_EQ(write(events.at(address), &one, sizeof one), 8);
  }
  std::map<uint64_t, int> events;
  size_t most = 2;
};

struct Bell final : bus::Doorbell {
  void Ring() override { ++rings; }
  int rings = 0;
};

class KernelDoorbellsTest : public testing::Test {
 protected:
  std::mutex lock_;
  std::unique_ptr<EventLoop> loop_ = std::move(*EventLoop::Create(lock_));
  TestEvents events_;
  KernelDoorbells doorbells_{events_, *loop_};
  bus::MemoryBus bus_;
  Bell bells_[3];
};

TEST_F(KernelDoorbellsTest, WritesRingOnTheLoop) {
  const bus::DoorbellMapping first(bus_, 0x1000, bells_[0]);
  bus_.SetDoorbellHost(&doorbells_);
  const bus::DoorbellMapping second(bus_, 0x1004, bells_[1]);
  EXPECT_EQ(doorbells_.served(), 2u);
  events_.Write(0x1004);
  events_.Write(0x1004);
  EXPECT_EQ(bells_[1].rings, 0);
  loop_->RunOnce(1000);
  EXPECT_EQ(bells_[1].rings, 1) << "one for both";
  EXPECT_EQ(bells_[0].rings, 0);
  events_.Write(0x1000);
  loop_->RunOnce(1000);
  EXPECT_EQ(bells_[0].rings, 1);
  EXPECT_EQ(doorbells_.rings(), 2u);
  bus_.SetDoorbellHost(nullptr);
}

TEST_F(KernelDoorbellsTest, WhatWasNotSeenRingsWhenTheEngineGoes) {
  const bus::DoorbellMapping first(bus_, 0x1000, bells_[0]);
  bus_.SetDoorbellHost(&doorbells_);
  events_.Write(0x1000);
  bus_.SetDoorbellHost(nullptr);
  EXPECT_EQ(bells_[0].rings, 1);
  EXPECT_TRUE(events_.events.empty());
  EXPECT_EQ(doorbells_.served(), 0u);
  loop_->RunOnce(0);
  EXPECT_EQ(bells_[0].rings, 1);
}

TEST_F(KernelDoorbellsTest, APauseDrainsAndAnEngineThatGoesIsLeftAlone) {
  const bus::DoorbellMapping first(bus_, 0x1000, bells_[0]);
  bus_.SetDoorbellHost(&doorbells_);
  events_.Write(0x1000);
  bus_.DrainDoorbells();
  EXPECT_EQ(bells_[0].rings, 1);
  bus_.DrainDoorbells();
  EXPECT_EQ(bells_[0].rings, 1);
  EXPECT_EQ(doorbells_.served(), 1u);
  events_.Write(0x1000);
  doorbells_.Retire();
  bus_.SetDoorbellHost(nullptr);
  EXPECT_EQ(bells_[0].rings, 2);
  EXPECT_EQ(events_.events.size(), 1u);
}

TEST_F(KernelDoorbellsTest, ADeviceThatGoesIsNotRung) {
  bus_.SetDoorbellHost(&doorbells_);
  {
    const bus::DoorbellMapping first(bus_, 0x1000, bells_[0]);
    events_.Write(0x1000);
  }
  EXPECT_TRUE(events_.events.empty());
  loop_->RunOnce(0);
  EXPECT_EQ(bells_[0].rings, 0);
}

TEST_F(KernelDoorbellsTest, WithoutAPlaceTheBusServes) {
  bus_.SetDoorbellHost(&doorbells_);
  const bus::DoorbellMapping first(bus_, 0x1000, bells_[0]), same(bus_, 0x1000, bells_[1]);
  EXPECT_EQ(events_.events.size(), 1u) << "the address is taken";
  const bus::DoorbellMapping second(bus_, 0x2000, bells_[1]), third(bus_, 0x3000, bells_[2]);
  EXPECT_EQ(doorbells_.served(), 2u);
  EXPECT_FALSE(events_.events.contains(0x3000));
}

struct TestSink final : engine::MessageSink {
  struct Line final : engine::MessageLine {
    Line(TestSink& owner, const engine::MessageWrite& first) : sink(owner), message(first) {}
    void Send() override { sink.by_line.push_back(message.data); }
    Status Change(const engine::MessageWrite& other) override {
      message = other;
      return {};
    }
    int event_fd() const override { return -1; }
    TestSink& sink;
    engine::MessageWrite message;
  };
  void Send(const engine::MessageWrite& message) override { sent.push_back(message.data); }
  Status SetPinRoutes(std::span<const std::optional<engine::MessageWrite>>) override { return {}; }
  std::unique_ptr<engine::MessageLine> OpenLine(const engine::MessageWrite& message) override {
    return std::make_unique<Line>(*this, message);
  }
  std::vector<uint32_t> sent, by_line;
};

// A line is one write; a message to every CPU is one for each.
TEST(KernelApics, MessagesToEveryCpuHaveNoLine) {
  devices::ApicBus bus;
  devices::IoApic io_apic(0, bus);
  TestSink sink;
  int lint1 = 0;
  KernelApics apics(
      sink, io_apic, 2, [](bool) {}, [&] { ++lint1; });
  const auto vector = bus.NewVector();
  bus.SetRemote(&apics);
  vector->Set(bus::MsiMessage{0xfee01000, 0x50});
  vector->Send();
  vector->Set(bus::MsiMessage{0xfeeff000, 0x51});
  vector->Send();
  vector->Set(bus::MsiMessage{0xfee00000, 0x52});
  vector->Send();
  constexpr uint32_t kAssert = 1 << 14;
  EXPECT_EQ(sink.by_line, (std::vector<uint32_t>{0x50 | kAssert, 0x52 | kAssert}));
  EXPECT_EQ(sink.sent, (std::vector<uint32_t>{0x51 | kAssert, 0x51 | kAssert}));
  bus.lint1().Set(true);
  EXPECT_EQ(lint1, 1);
  EXPECT_TRUE(sink.sent.size() == 2) << "no NMI but by each CPU's table";
  bus.SetRemote(nullptr);
}

}  // namespace
}  // namespace nacre::machine
