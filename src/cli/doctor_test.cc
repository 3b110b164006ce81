#include "cli/doctor.h"

#include <gtest/gtest.h>

namespace nacre::cli {
namespace {

using engine::kvm::KvmFindings;
using engine::kvm::KvmProbe;

KvmFindings Measured(double kernel, double user) {
  KvmFindings findings;
  findings.cpu.asked = "x86-64-v3";
  findings.probe = KvmProbe{.speed = {kernel, user}, .failure = {}};
  return findings;
}

void ExpectHas(const std::string& text, std::initializer_list<std::string_view> parts) {
  for (const std::string_view part : parts) EXPECT_NE(text.find(part), std::string::npos) << part << " in:\n" << text;
}

TEST(Doctor, NamesAnEngineAndWhy) {
  const std::string text = Doctor();
  const bool jit = text.find("--engine auto takes jit") != std::string::npos;
  const bool kvm = text.find("--engine auto takes kvm") != std::string::npos;
  EXPECT_NE(jit, kvm) << text;
  ExpectHas(text, {"KVM  ", "/dev/kvm"});
}

TEST(Doctor, AFastKvm) {
  ExpectHas(DescribeKvm(Measured(1.01, 1.0), false),
            {"/dev/kvm opens\n", "all of x86-64-v3", "1.01 times", "--engine auto takes kvm: "});
}

TEST(Doctor, ASlowKvm) {
  ExpectHas(DescribeKvm(Measured(980, 1.1), true), {"nested", "980 times", "1.10 times", "kernels are interpreted",
                                                    "--engine auto takes jit", "turn nested virtualization on"});
  ExpectHas(DescribeKvm(Measured(980, 1.1), false), {"dmesg"});
}

TEST(Doctor, NoKvm) {
  KvmFindings findings;
  findings.unusable = "/dev/kvm is not there: load its module (as root: modprobe kvm_intel)";
  ExpectHas(DescribeKvm(findings, false), {"modprobe kvm_intel", "--engine auto takes jit"});
}

TEST(Doctor, AKvmWithoutSomeFeatures) {
  KvmFindings findings = Measured(1, 1);
  findings.cpu.missing = {"PCID", "SMAP"};
  ExpectHas(DescribeKvm(findings, false),
            {"lacks PCID SMAP of x86-64-v3", "guests get", "none", "--engine auto takes jit", "a newer CPU"});
  auto model = x86::CpuModel::Create("x86-64-v1,-nx", {});
  ASSERT_TRUE(model) << model.error().message;
  findings.cpu.model = std::move(*model);
  ExpectHas(DescribeKvm(findings, false), {"x86-64-v1,-nx on KVM", "--engine auto takes kvm"});
}

TEST(Doctor, AKvmThatFails) {
  KvmFindings findings = Measured(0, 0);
  findings.probe->failure = "in kernel mode: KVM_RUN: Bad address";
  ExpectHas(DescribeKvm(findings, true), {"fails in kernel mode: KVM_RUN: Bad address", "--engine auto takes jit"});
}

}  // namespace
}  // namespace nacre::cli
