#include "cli/doctor_json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace nacre::cli {
namespace {

using engine::kvm::KvmFindings;
using engine::kvm::KvmProbe;

TEST(DoctorJson, TellsWhetherKvmEmulates) {
  KvmFindings findings;
  findings.probe = KvmProbe{.speed = {1300, 1.0}, .failure = {}};
  auto report = nlohmann::json::parse(DoctorJson(findings));
  EXPECT_TRUE(report["kvm"]["usable"]);
  EXPECT_TRUE(report["kvm"]["emulates"]);
  EXPECT_EQ(report["kvm"]["kernel"], 1300);
  EXPECT_EQ(report["auto"], "jit");
  findings.probe = KvmProbe{.speed = {1.02, 1.0}, .failure = {}};
  report = nlohmann::json::parse(DoctorJson(findings));
  EXPECT_FALSE(report["kvm"]["emulates"]);
  EXPECT_EQ(report["auto"], "kvm");
}

TEST(DoctorJson, NoKvm) {
  KvmFindings findings;
  findings.unusable = "no \"/dev/kvm\"";
  const auto report = nlohmann::json::parse(DoctorJson(findings));
  EXPECT_FALSE(report["kvm"]["usable"]);
  EXPECT_FALSE(report["kvm"]["emulates"]);
  EXPECT_EQ(report["kvm"]["failure"], findings.unusable);
}

}  // namespace
}  // namespace nacre::cli
