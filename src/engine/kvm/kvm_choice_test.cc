#include "engine/kvm/kvm_choice.h"

#include <gtest/gtest.h>

namespace nacre::engine::kvm {
namespace {

KvmFindings Measured(double kernel, double user) {
  KvmFindings findings;
  findings.cpu.asked = "x86-64-v3";
  findings.probe = KvmProbe{.speed = {kernel, user}, .failure = {}};
  return findings;
}

bool Has(const EngineChoice& choice, std::string_view text) { return choice.reason.find(text) != std::string::npos; }

TEST(KvmChoice, AFastKvmIsTaken) {
  EXPECT_TRUE(Choose(Measured(1.0, 1.0)).kvm);
  EXPECT_TRUE(Choose(Measured(kMostTimesNative, kMostTimesNative)).kvm);
  EXPECT_TRUE(Has(Choose(Measured(1.02, 1.3)), "1.02 times"));
}

TEST(KvmChoice, ASlowKvmIsNot) {
  const EngineChoice emulating = Choose(Measured(1020.4, 1.0));
  EXPECT_FALSE(emulating.kvm);
  EXPECT_TRUE(Has(emulating, "kernels take 1020 times")) << emulating.reason;
  EXPECT_FALSE(Choose(Measured(1.0, kMostTimesNative + 0.01)).kvm);
}

TEST(KvmChoice, WithoutAKvmTheReasonIsItsError) {
  KvmFindings findings;
  findings.unusable = "/dev/kvm is not there";
  const EngineChoice choice = Choose(findings);
  EXPECT_FALSE(choice.kvm);
  EXPECT_EQ(choice.reason, findings.unusable);
}

TEST(KvmChoice, MissingFeaturesAreNamed) {
  KvmFindings findings = Measured(1, 1);
  findings.cpu.missing = {"PCID", "SMAP"};
  const EngineChoice choice = Choose(findings);
  EXPECT_FALSE(choice.kvm);
  EXPECT_TRUE(Has(choice, "x86-64-v3") && Has(choice, "PCID SMAP")) << choice.reason;
}

TEST(KvmChoice, SlownessIsSaidBeforeMissingFeatures) {
  KvmFindings findings = Measured(900, 1);
  findings.cpu.missing = {"PCID"};
  EXPECT_TRUE(Has(Choose(findings), "900 times")) << Choose(findings).reason;
}

TEST(KvmChoice, AProbeThatFailedIsNamed) {
  KvmFindings findings = Measured(0, 0);
  findings.probe->failure = "in kernel mode: KVM_RUN: Bad address";
  const EngineChoice choice = Choose(findings);
  EXPECT_FALSE(choice.kvm);
  EXPECT_TRUE(Has(choice, "in kernel mode: KVM_RUN: Bad address")) << choice.reason;
  findings.probe.reset();
  EXPECT_FALSE(Choose(findings).kvm);
}

TEST(KvmChoice, AModelThatFitsIsTaken) {
  KvmFindings findings = Measured(1, 1);
  findings.cpu.missing = {"PCID"};
  auto model = x86::CpuModel::Create("x86-64-v2,-pcid", {.tsc_khz = 2'000'000});
  ASSERT_TRUE(model) << model.error().message;
  findings.cpu.model = std::move(*model);
  EXPECT_TRUE(Choose(findings).kvm);
  EXPECT_TRUE(Has(Choose(findings), "x86-64-v2,-pcid")) << Choose(findings).reason;
}

TEST(KvmChoice, AFileThatIsNoKvmIsNotTaken) {
  const KvmFindings findings = ExamineKvm("x86-64-v1", {.tsc_khz = 2'000'000}, "/dev/null");
  EXPECT_FALSE(findings.unusable.empty());
  EXPECT_FALSE(findings.probe);
  EXPECT_FALSE(Choose(findings).kvm);
}

TEST(KvmChoice, AlwaysHasAReason) {
  EXPECT_FALSE(Choose(ExamineKvm("default", {.tsc_khz = 2'000'000})).reason.empty());
}

}  // namespace
}  // namespace nacre::engine::kvm
