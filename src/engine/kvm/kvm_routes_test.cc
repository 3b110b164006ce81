// Interrupt messages by irqfd: guests of a few instructions on the host's KVM, whose local APIC is the kernel's.
#include "engine/kvm/kvm_routes.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

#include "engine/kvm/kvm_testing.h"

namespace nacre::engine::kvm {
namespace {

constexpr uint64_t kToCpu0 = 0xfee00000;

class KvmRoutesTest : public KvmGuestTest {};

TEST_F(KvmRoutesTest, AMessageArrivesByItsDescriptor) {
  MessageSink& sink = *engine->message_sink();
  auto line = sink.OpenLine({kToCpu0, 0x51});
  ASSERT_TRUE(line);
  Start();
  line->Send();
  EXPECT_TRUE(Eventually([&] { return Count(0x51) == 1; }));
  const uint64_t one = 1;
  ASSERT_EQ(write(line->event_fd(), &one, sizeof one), 8) << "as vhost would";
  EXPECT_TRUE(Eventually([&] { return Count(0x51) == 2; }));
  ASSERT_TRUE(line->Change({kToCpu0, 0x52}));
  line->Send();
  EXPECT_TRUE(Eventually([&] { return Count(0x52) == 1; }));
  EXPECT_EQ(Count(0x51), 2);
}

TEST_F(KvmRoutesTest, PinsAndLinesShareTheTable) {
  MessageSink& sink = *engine->message_sink();
  auto first = sink.OpenLine({kToCpu0, 0x51});
  std::optional<MessageWrite> pins[KvmRoutes::kPins];
  pins[4] = MessageWrite{kToCpu0, 0x44};
  ASSERT_TRUE(sink.SetPinRoutes(pins));
  auto second = sink.OpenLine({kToCpu0, 0x52});
  ASSERT_TRUE(first && second);
  pins[4].reset();
  ASSERT_TRUE(sink.SetPinRoutes(pins));
  Start();
  first->Send();
  second->Send();
  EXPECT_TRUE(Eventually([&] { return Count(0x51) == 1 && Count(0x52) == 1; }));
}

// What was sent before the line goes has arrived, even to a CPU that does not run.
TEST_F(KvmRoutesTest, ALineThatGoesLosesNothing) {
  MessageSink& sink = *engine->message_sink();
  for (unsigned i = 0; i < 20; ++i) {
    auto line = sink.OpenLine({kToCpu0, 0x40 + i});
    ASSERT_TRUE(line);
    line->Send();
  }
  KeptState kept;
  ASSERT_TRUE(vcpu->apic_keeper()->ExportKept(kept));
  EXPECT_EQ(kept.apic.irr[2], 0xfffffu) << "vectors 0x40 to 0x53";
}

TEST_F(KvmRoutesTest, LinesAreBoundedAndNumbersComeBack) {
  MessageSink& sink = *engine->message_sink();
  std::vector<std::unique_ptr<MessageLine>> lines;
  for (unsigned i = 0; i < KvmRoutes::kMaxLines; ++i) {
    lines.push_back(sink.OpenLine({kToCpu0, 0x40 + i % 0x80}));
    ASSERT_TRUE(lines.back()) << i;
  }
  EXPECT_FALSE(sink.OpenLine({kToCpu0, 0x30}));
  lines[7].reset();
  lines[7] = sink.OpenLine({kToCpu0, 0x30});
  ASSERT_TRUE(lines[7]);
  Start();
  lines[7]->Send();
  EXPECT_TRUE(Eventually([&] { return Count(0x30) == 1; }));
}

// As many as the other helper threads of a machine could send at once.
TEST_F(KvmRoutesTest, ManyMessagesFromManyThreads) {
  MessageSink& sink = *engine->message_sink();
  constexpr unsigned kThreads = 4, kRounds = 25;
  std::vector<std::unique_ptr<MessageLine>> lines;
  for (unsigned i = 0; i < kThreads; ++i) lines.push_back(sink.OpenLine({kToCpu0, 0x50 + i}));
  Start();
  std::vector<std::thread> threads;
  std::atomic<unsigned> failed = 0;
  for (unsigned i = 0; i < kThreads; ++i)
    threads.emplace_back([&, i] {
      // One at a time of a vector: the local APIC keeps one more while one is served, not two.
      for (unsigned round = 1; round <= kRounds; ++round) {
        lines[i]->Send();
        if (!Eventually([&] { return Count(static_cast<uint8_t>(0x50 + i)) == static_cast<int>(round); })) ++failed;
      }
    });
  for (std::thread& one : threads) one.join();
  EXPECT_EQ(failed, 0u);
}

}  // namespace
}  // namespace nacre::engine::kvm
