// The CPU thread with an engine that does what the test says.
#include "machine/vcpu_runner.h"

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <deque>

namespace nacre::machine {
namespace {

using engine::ExitReason;

/// Run returns what the script says; after its end it halts, and runs on when something is requested.
class ScriptedVcpu : public engine::Vcpu {
 public:
  void Import(const x86::CpuState& state) override { state_ = state; }
  void Export(x86::CpuState& state) const override { state = state_; }
  ExitReason Run(uint64_t) override {
    ++runs_;
    if (requests_.load() & engine::kRequestStop) {
      requests_.fetch_and(~uint32_t{engine::kRequestStop});
      return ExitReason::kStop;
    }
    if (requests_.load() & engine::kRequestInit) {
      requests_.fetch_and(~uint32_t{engine::kRequestInit});
      return ExitReason::kInit;
    }
    if (requests_.load() & engine::kRequestInterrupt) {
      requests_.fetch_and(~uint32_t{engine::kRequestInterrupt});
      ++state_.gpr[x86::kRax];
    }
    return after_;
  }
  void Request(uint32_t bits) override { requests_.fetch_or(bits); }
  void ClearRequest(uint32_t bits) override { requests_.fetch_and(~bits); }
  uint32_t pending_requests() const override { return requests_; }
  std::string error() const override { return "broken"; }
  std::vector<engine::Statistic> Statistics() const override { return {}; }

  x86::CpuState state_;
  std::atomic<uint32_t> requests_ = 0;
  std::atomic<unsigned> runs_ = 0;
  std::atomic<ExitReason> after_ = ExitReason::kHalted;
};

class Events : public VcpuEvents {
 public:
  void OnShutdown(unsigned) override { ++shutdowns_; }
  void OnEngineError(unsigned, std::string error) override { error_ = std::move(error); }
  bool TakeKick(unsigned) override { return kicked_.exchange(false); }
  void OnSleep(unsigned) override { ++sleeps_; }
  bool OnWake(unsigned) override {
    ++wakes_;
    return flush_.exchange(false);
  }
  std::atomic<unsigned> shutdowns_ = 0, sleeps_ = 0, wakes_ = 0;
  std::atomic<bool> kicked_ = false, flush_ = false;
  std::string error_;
};

class VcpuRunnerTest : public testing::Test {
 protected:
  void Make(unsigned index = 0) {
    auto vcpu = std::make_unique<ScriptedVcpu>();
    vcpu_ = vcpu.get();
    runner_ = std::make_unique<VcpuRunner>(index, std::move(vcpu), events_);
  }
  template <typename Condition>
  void Eventually(Condition condition) {
    for (int i = 0; i < 5000 && !condition(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    EXPECT_TRUE(condition());
  }
  Events events_;
  ScriptedVcpu* vcpu_ = nullptr;
  std::unique_ptr<VcpuRunner> runner_;
};

TEST_F(VcpuRunnerTest, HaltedCpuSleepsUntilSomethingIsRequested) {
  Make();
  runner_->Resume();
  Eventually([&] { return vcpu_->runs_ >= 1; });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const unsigned runs = vcpu_->runs_;
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(vcpu_->runs_, runs);
  runner_->Request(engine::kRequestInterrupt);
  Eventually([&] { return (vcpu_->requests_ & engine::kRequestInterrupt) == 0; });
  runner_->Park();
  EXPECT_EQ(runner_->state().gpr[x86::kRax], 1u);
}

TEST_F(VcpuRunnerTest, NoRequestIsLost) {
  Make();
  runner_->Resume();
  for (int i = 0; i < 2000; ++i) {
    runner_->Request(engine::kRequestInterrupt);
    while (vcpu_->requests_ & engine::kRequestInterrupt) std::this_thread::yield();
  }
  runner_->Park();
  EXPECT_EQ(runner_->state().gpr[x86::kRax], 2000u);
}

TEST_F(VcpuRunnerTest, KickEndsTheHalt) {
  Make();
  runner_->Resume();
  Eventually([&] { return events_.sleeps_ == 1; });
  EXPECT_EQ(vcpu_->requests_ & engine::kRequestUnhalt, 0u);
  events_.kicked_ = true;
  runner_->Wake();
  Eventually([&] { return (vcpu_->requests_ & engine::kRequestUnhalt) != 0; });
  runner_->Park();
}

TEST_F(VcpuRunnerTest, TlbIsFlushedBeforeTheCpuGoesOnIfAskedWhileItSlept) {
  Make();
  runner_->Resume();
  Eventually([&] { return events_.sleeps_ == 1; });
  runner_->Request(engine::kRequestInterrupt);
  Eventually([&] { return events_.sleeps_ == 2; });
  EXPECT_EQ(events_.wakes_, 1u);
  EXPECT_EQ(vcpu_->requests_ & engine::kRequestTlbFlush, 0u);
  events_.flush_ = true;
  runner_->Request(engine::kRequestInterrupt);
  Eventually([&] { return events_.sleeps_ == 3; });
  EXPECT_NE(vcpu_->requests_ & engine::kRequestTlbFlush, 0u);
  runner_->Park();
}

TEST_F(VcpuRunnerTest, ParkAndResumeKeepTheState) {
  Make();
  vcpu_->after_ = ExitReason::kBudget;  // busy
  for (uint64_t i = 0; i < 200; ++i) {
    runner_->state().gpr[x86::kRbx] = i;
    runner_->Resume();
    runner_->Park();
    ASSERT_EQ(runner_->state().gpr[x86::kRbx], i);
  }
}

TEST_F(VcpuRunnerTest, ShutdownIsToldOnceAndCpuParks) {
  Make();
  vcpu_->after_ = ExitReason::kShutdown;
  runner_->Resume();
  Eventually([&] { return events_.shutdowns_ == 1; });
  runner_->Request(engine::kRequestInterrupt);
  runner_->Park();
  EXPECT_EQ(events_.shutdowns_, 1u);
}

TEST_F(VcpuRunnerTest, EngineErrorIsTold) {
  Make();
  vcpu_->after_ = ExitReason::kError;
  runner_->Resume();
  Eventually([&] { return vcpu_->runs_ == 1; });
  runner_->Park();
  EXPECT_EQ(events_.error_, "broken");
}

// SDM 3A 9.4.4.1: an application processor waits for a SIPI, which says where it starts; the bootstrap processor does
// not.
TEST_F(VcpuRunnerTest, InitAndStartUp) {
  Make(1);
  x86::InitCpuState(runner_->state(), false);
  runner_->Resume();
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_EQ(vcpu_->runs_, 0u);
  runner_->Init();  // what every kernel sends first
  runner_->StartUp(0x9a);
  Eventually([&] { return vcpu_->runs_ > 0; });
  runner_->StartUp(0x12);  // ignored
  runner_->Park();
  EXPECT_FALSE(runner_->state().wait_for_sipi);
  EXPECT_EQ(runner_->state().segment[x86::kCs].base, 0x9a000u);
  EXPECT_EQ(runner_->state().segment[x86::kCs].selector, 0x9a00);
  EXPECT_EQ(runner_->state().rip, 0u);
  runner_->Resume();
  runner_->Init();
  Eventually([&] { return (vcpu_->requests_ & engine::kRequestInit) == 0; });
  runner_->Park();
  EXPECT_TRUE(runner_->state().wait_for_sipi);
  // A reset leaves nothing of what came before it.
  x86::InitCpuState(runner_->state(), false);
  runner_->Resume();
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  runner_->Park();
  EXPECT_TRUE(runner_->state().wait_for_sipi);
}

// A SIPI right behind the INIT, before the CPU's thread has seen either.
TEST_F(VcpuRunnerTest, StartUpBeforeInitIsActedOn) {
  Make(1);
  vcpu_->after_ = ExitReason::kBudget;  // busy
  runner_->state().wait_for_sipi = false;
  for (unsigned round = 1; round <= 200; ++round) {
    const unsigned runs = vcpu_->runs_;
    runner_->Resume();
    Eventually([&] { return vcpu_->runs_ != runs; });
    runner_->Init();
    runner_->StartUp(static_cast<uint8_t>(round));
    runner_->StartUp(0);
    if (round % 2) Eventually([&] { return (vcpu_->requests_ & engine::kRequestInit) == 0; });
    if (round % 3) std::this_thread::yield();
    runner_->Park();
    ASSERT_FALSE(runner_->state().wait_for_sipi) << round;
    ASSERT_EQ(runner_->state().segment[x86::kCs].base, round << 12);
  }
}

TEST_F(VcpuRunnerTest, BootstrapProcessorIgnoresStartUp) {
  Make(0);
  runner_->Resume();
  runner_->Init();
  runner_->StartUp(0x9a);
  Eventually([&] { return (vcpu_->requests_ & engine::kRequestInit) == 0; });
  runner_->Park();
  EXPECT_FALSE(runner_->state().wait_for_sipi);
  EXPECT_EQ(runner_->state().segment[x86::kCs].base, 0xffff0000u);
}

}  // namespace
}  // namespace nacre::machine
