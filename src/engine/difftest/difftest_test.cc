// Every instruction form that the models hold and user mode can execute: the interpreter and the translator against the
// bare host CPU.
//   NACRE_DIFFTEST_CASES  how many cases to make instead of the fixed budget
//   NACRE_DIFFTEST_SEED   another series of cases
//   NACRE_DIFFTEST_FORM   only forms whose name contains this text
//   NACRE_DIFFTEST_LIST   a file for the list of all forms, each tested or with a reason why not

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "base/bits.h"
#include "engine/difftest/runner.h"
#include "engine/jit/jit_engine.h"

namespace nacre::engine::difftest {
namespace {

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

RunOptions OptionsFromEnvironment(uint64_t default_cases) {
  RunOptions options;
  const std::string cases = Environment("NACRE_DIFFTEST_CASES"), seed = Environment("NACRE_DIFFTEST_SEED");
  options.cases = cases.empty() ? default_cases : std::stoull(cases);
  options.seed = seed.empty() ? 1 : std::stoull(seed);
  options.form_filter = Environment("NACRE_DIFFTEST_FORM");
  options.seconds = cases.empty() ? 10 : 0;
  return options;
}

class DiffTest : public testing::TestWithParam<x86::CodeSize> {
 protected:
  void SetUp() override {
    auto host = HostCpu::Create();
    if (!host) GTEST_SKIP() << host.error().message;
    host_ = std::move(*host);
    auto model = x86::CpuModel::Create("host", {});
    ASSERT_TRUE(model.has_value()) << model.error().message;
    model_ = std::make_unique<x86::CpuModel>(std::move(*model));
    auto guest = Guest::Create(*model_);
    ASSERT_TRUE(guest.has_value()) << guest.error().message;
    guest_ = std::move(*guest);
    forms_ = EnumerateForms(*model_, GetParam());
  }
  void RunTranslator(Engine& engine, std::vector<std::unique_ptr<Subject>> subjects, const RunOptions& options);

  std::unique_ptr<HostCpu> host_;
  std::unique_ptr<x86::CpuModel> model_;
  std::unique_ptr<Guest> guest_;
  std::vector<Form> forms_;
};

void Print(const RunReport& report) {
  for (const FormFailure& failure : report.failures)
    std::printf("MISMATCH %s  case seed %#lx\n%s", failure.form.c_str(), failure.seed, failure.text.c_str());
  for (const std::string& form : report.never_made) std::printf("never made: %s\n", form.c_str());
  std::printf(
      "forms %lu: tested %lu, not testable here %lu, not in the model %lu; made %lu, cases %lu, faults %lu,"
      " mismatches %lu"
      " in %zu forms\n",
      report.forms, report.tested, report.excluded, report.absent, report.made, report.cases, report.faults,
      report.mismatches, report.failures.size());
}

void WriteList(const std::vector<Form>& forms, const std::string& path) {
  FILE* file = std::fopen(path.c_str(), "a");
  ASSERT_NE(file, nullptr);
  for (const Form& form : forms)
    std::fprintf(file, "%s: %s\n", form.name.c_str(), form.reason ? form.reason : "tested");
  std::fclose(file);
}

/// Runs the forms on the translator in both ways, after `subjects`.
void DiffTest::RunTranslator(Engine& engine, std::vector<std::unique_ptr<Subject>> subjects,
                             const RunOptions& options) {
  for (const bool single : {true, false}) {
    auto subject = MakeEngineSubject(engine, *guest_, {.fault_flags = true}, single);
    ASSERT_TRUE(subject.has_value()) << subject.error().message;
    subjects.push_back(std::move(*subject));
  }
  const RunReport report = RunForms(forms_, *host_, *guest_, subjects, options);
  Print(report);
  EXPECT_EQ(report.mismatches, 0u);
  EXPECT_TRUE(report.never_made.empty());
  EXPECT_GT(report.tested, Environment("NACRE_DIFFTEST_FORM").empty() ? 1000u : 0u);
}

/// The interpreter, and the translator in both ways to run it.
TEST_P(DiffTest, EnginesEqualHost) {
  auto engine = jit::CreateJitEngine({.code_cache_bytes = 16 * kMiB});
  ASSERT_TRUE(engine.has_value()) << engine.error().message;
  std::vector<std::unique_ptr<Subject>> subjects;
  subjects.push_back(MakeInterpreterSubject(*guest_));
  RunTranslator(**engine, std::move(subjects), OptionsFromEnvironment(100'000));
  if (const std::string path = Environment("NACRE_DIFFTEST_LIST"); !path.empty()) WriteList(forms_, path);
}

TEST_P(DiffTest, CompactCodeEqualsHost) {
  auto engine = jit::CreateJitEngine({.code_cache_bytes = 16 * kMiB, .debug = {.stress = {.compact = true}}});
  ASSERT_TRUE(engine.has_value()) << engine.error().message;
  RunTranslator(**engine, {}, OptionsFromEnvironment(50'000));
}

TEST_P(DiffTest, DecoderNamesAllReadsAndWrites) {
  const RunReport report = RunClaims(forms_, *host_, *guest_, OptionsFromEnvironment(60'000));
  Print(report);
  EXPECT_EQ(report.mismatches, 0u);
}

INSTANTIATE_TEST_SUITE_P(CodeSizes, DiffTest, testing::Values(x86::CodeSize::k64, x86::CodeSize::k32),
                         [](const auto& size) { return size.param == x86::CodeSize::k64 ? "Long" : "Compatibility"; });

}  // namespace
}  // namespace nacre::engine::difftest
