#include "engine/vcpu_group.h"

#include <gtest/gtest.h>

#include <thread>

namespace nacre::engine {
namespace {

/// A vCPU without a guest: its "guest code" is a step function that runs between looks at the requests.
class FakeVcpu : public Vcpu, public SafepointWork {
 public:
  explicit FakeVcpu(VcpuGroup& group) : member(group, *this, this) {}

  void Import(const x86::CpuState&) override {}
  void Export(x86::CpuState&) const override {}
  ExitReason Run(uint64_t) override { return ExitReason::kStop; }
  void Request(uint32_t bits) override { requests.fetch_or(bits); }
  void ClearRequest(uint32_t bits) override { requests.fetch_and(~bits); }
  uint32_t pending_requests() const override { return requests.load(); }
  std::string error() const override { return {}; }
  std::vector<Statistic> Statistics() const override { return {}; }
  void OnSafepointWork(uint64_t argument) override {
    EXPECT_FALSE(in_step) << "work in the middle of an instruction";
    work_done += argument;
  }

  template <typename Step>
  void RunSteps(unsigned count, Step&& step) {
    member.Enter();
    for (unsigned i = 0; i < count; ++i) {
      if (requests.fetch_and(~uint32_t{kRequestEngine}) & kRequestEngine) member.Safepoint();
      step(i);
    }
    member.Leave();
  }

  std::atomic<uint32_t> requests = 0;
  VcpuGroupMember member;
  bool in_step = false;
  uint64_t work_done = 0;
};

struct Fixture {
  explicit Fixture(unsigned count) {
    for (unsigned i = 0; i < count; ++i) cpus.push_back(std::make_unique<FakeVcpu>(group));
  }
  template <typename Body>
  void OnAll(Body&& body) {
    std::vector<std::thread> threads;
    for (auto& cpu : cpus) threads.emplace_back([&] { body(*cpu); });
    for (std::thread& thread : threads) thread.join();
  }
  VcpuGroup group;
  std::vector<std::unique_ptr<FakeVcpu>> cpus;
};

TEST(VcpuGroup, ExclusiveSectionsAreAlone) {
  Fixture fixture(4);
  uint64_t counter = 0;  // neither atomic nor locked: only exclusive sections touch it
  std::atomic<unsigned> running = 0;
  fixture.OnAll([&](FakeVcpu& cpu) {
    cpu.RunSteps(3000, [&](unsigned i) {
      running.fetch_add(1);
      running.fetch_sub(1);
      if (i % 10 != 0) return;
      cpu.member.BeginExclusive();
      EXPECT_EQ(running.load(), 0u);
      ++counter;
      cpu.member.EndExclusive();
    });
  });
  EXPECT_EQ(counter, 4u * 300);
}

TEST(VcpuGroup, AskedWorkIsDoneWhenAskOthersReturns) {
  Fixture fixture(4);
  fixture.OnAll([&](FakeVcpu& cpu) {
    cpu.RunSteps(2000, [&](unsigned i) {
      cpu.in_step = true;
      asm volatile("" ::: "memory");
      cpu.in_step = false;
      if (i % 20 == 0) cpu.member.AskOthers(~uint64_t{0} >> 60, 1);
    });
  });
  for (const auto& cpu : fixture.cpus) EXPECT_EQ(cpu->work_done, 3u * 100);
}

TEST(VcpuGroup, WorkOfSleepersIsDoneForThem) {
  Fixture fixture(2);
  FakeVcpu& awake = *fixture.cpus[0];
  awake.RunSteps(1, [&](unsigned) { awake.member.AskOthers(2, 7); });
  EXPECT_EQ(fixture.cpus[1]->work_done, 7u);
  EXPECT_TRUE(fixture.cpus[1]->pending_requests() & kRequestEngine);
  fixture.cpus[1]->RunSteps(1, [](unsigned) {});
  EXPECT_EQ(fixture.cpus[1]->work_done, 7u) << "done twice";
}

TEST(VcpuGroup, ExclusiveAndAskingMix) {
  Fixture fixture(3);
  uint64_t counter = 0;
  fixture.OnAll([&](FakeVcpu& cpu) {
    cpu.RunSteps(1000, [&](unsigned i) {
      if (i % 3 == 0) cpu.member.AskOthers(7, 1);
      if (i % 5 != 0) return;
      cpu.member.BeginExclusive();
      ++counter;
      cpu.member.EndExclusive();
    });
  });
  EXPECT_EQ(counter, 3u * 200);
  for (const auto& cpu : fixture.cpus) EXPECT_EQ(cpu->work_done, 2u * 334);
}

}  // namespace
}  // namespace nacre::engine
