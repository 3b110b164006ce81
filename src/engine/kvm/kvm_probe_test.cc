#include "engine/kvm/kvm_probe.h"

#include <gtest/gtest.h>
#include <signal.h>

#include "engine/kvm/kvm_cpuid.h"

namespace nacre::engine::kvm {
namespace {

class KvmProbeTest : public testing::Test {
 protected:
  void SetUp() override {
    auto device = KvmDevice::Open();
    if (!device) GTEST_SKIP() << device.error().message;
    const auto vm = device->CreateVm();
    if (!vm) GTEST_SKIP() << vm.error().message;
    auto supported = SupportedCpuid(*device);
    ASSERT_TRUE(supported) << supported.error().message;
    supported_ = std::move(*supported);
    device_.emplace(std::move(*device));
  }

  std::optional<KvmDevice> device_;
  std::vector<kvm_cpuid_entry2> supported_;
};

TEST_F(KvmProbeTest, MeasuresOrSaysWhyNot) {
  const KvmProbe probe = ProbeSpeed(*device_, supported_);
  RecordProperty("failure", probe.failure);
  if (probe.failure.empty()) {
    EXPECT_GT(probe.speed.kernel, 0);
    EXPECT_GT(probe.speed.user, 0);
    EXPECT_FALSE(probe.kernel_emulation_failed);
  } else {
    EXPECT_TRUE(probe.speed.kernel == 0 || probe.speed.user == 0) << probe.failure;
  }
}

TEST_F(KvmProbeTest, AGuestThatDoesNotComeBackIsLeft) {
  sigset_t before, after;
  pthread_sigmask(SIG_SETMASK, nullptr, &before);
  const KvmProbe probe = ProbeSpeed(*device_, supported_, {.cpu_ns = 0, .wall_ns = 0});
  EXPECT_NE(probe.failure.find("in kernel mode"), std::string::npos) << probe.failure;
  EXPECT_EQ(probe.speed.kernel, 0);
  // Neither the mask nor a pending signal stays behind.
  pthread_sigmask(SIG_SETMASK, nullptr, &after);
  EXPECT_EQ(sigismember(&before, SIGRTMAX), sigismember(&after, SIGRTMAX));
  sigset_t pending;
  sigpending(&pending);
  EXPECT_EQ(sigismember(&pending, SIGRTMAX), 0);
}

}  // namespace
}  // namespace nacre::engine::kvm
