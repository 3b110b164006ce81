#include "engine/difftest/runner.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "base/bits.h"

namespace nacre::engine::difftest {

namespace {

/// Registers and flags that changed although the decoder says that they are not written.
std::string BrokenClaims(const TestCase& test, const Outcome& outcome) {
  std::string text;
  if (outcome.vector >= 0) return text;
  for (unsigned i = 0; i < 16; ++i) {
    if (test.insn.gpr_written & (1u << i)) continue;
    if (outcome.gpr[i] != test.state.gpr[i]) text += fmt::format("  register {} is not in gpr_written\n", i);
  }
  const uint64_t changed = (outcome.rflags ^ test.state.rflags) & x86::rflags::kArithmetic & ~test.insn.flags_written;
  if (changed != 0) text += fmt::format("  flags {:#x} are not in flags_written\n", changed);
  return text;
}

/// Calls `check(test, seed)` on cases of every form that is not excluded, round by round, so that a run that is cut
/// short has seen every form; its text is a failure.
template <typename Check>
RunReport ForEachCase(const std::vector<Form>& forms, HostCpu& host, Guest& guest, const RunOptions& options,
                      Check&& check) {
  RunReport report;
  std::vector<const Form*> tested;
  for (const Form& form : forms) {
    ++report.forms;
    if (form.reason) {
      ++(std::string_view(form.reason) == "not in the CPU model" ? report.absent : report.excluded);
    } else if (form.name.find(options.form_filter) != std::string::npos) {
      tested.push_back(&form);
    }
  }
  if (tested.empty()) return report;
  Generator generator(guest, {.gs = host.has_gs_base(), .avx = host.has_avx(), .avx512 = host.has_avx512()});
  const uint64_t per_form = std::max<uint64_t>(1, options.cases / tested.size());
  std::vector<uint64_t> made(tested.size()), failed(tested.size());
  auto test = std::make_unique<TestCase>();
  const auto start = std::chrono::steady_clock::now();
  const auto late = [&] {
    return options.seconds > 0 &&
           std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() > options.seconds;
  };
  for (uint64_t round = 0; round < per_form && !(round > 0 && late()); ++round) {
    for (size_t i = 0; i < tested.size(); ++i) {
      const uint64_t form_seed = std::hash<std::string>{}(tested[i]->key);
      uint64_t seed = 0;
      bool ok = false;
      for (unsigned attempt = 0; attempt < 16 && !ok; ++attempt) {
        seed = (options.seed * 0x100000001b3 + round * 16 + attempt) * 0x9e3779b97f4a7c15 + form_seed;
        ok = generator.Make(*tested[i], seed, *test);
      }
      if (!ok) continue;
      ++made[i];
      ++report.made;
      const std::string failure = check(*test, report);
      if (failure.empty()) continue;
      ++report.mismatches;
      if (failed[i]++ == 0) report.failures.push_back({tested[i]->name, seed, Describe(*test) + failure});
    }
  }
  for (size_t i = 0; i < tested.size(); ++i) {
    if (made[i] == 0)
      report.never_made.push_back(tested[i]->name);
    else
      ++report.tested;
  }
  return report;
}

/// The same case with everything changed that the decoder says is not read.
void Perturb(TestCase& test) {
  for (unsigned i = 0; i < 16; ++i) {
    if (i == x86::kRsp || (test.insn.gpr_read & (1u << i))) continue;
    test.state.gpr[i] = ~test.state.gpr[i];
    if (test.insn.code_size != x86::CodeSize::k64) test.state.gpr[i] &= i < 8 ? 0xffffffff : 0;
  }
  test.state.rflags ^= x86::rflags::kArithmetic & ~uint64_t{test.insn.flags_read};
}

/// Whether two runs of a case, the second after Perturb, differ where they must not.
std::string Influence(const TestCase& first, const Outcome& one, const TestCase& second, const Outcome& two) {
  std::string text;
  if (one.vector != two.vector || one.rip != two.rip) text += "  a register or flag that is not read decides the way\n";
  for (unsigned i = 0; i < 16; ++i) {
    const bool kept = one.gpr[i] == first.state.gpr[i] && two.gpr[i] == second.state.gpr[i];
    if (one.gpr[i] != two.gpr[i] && !kept) text += fmt::format("  register {} depends on what is not read\n", i);
    if (one.gpr[i] != two.gpr[i] && (first.insn.gpr_written & (1u << i)) && one.vector < 0)
      text += fmt::format("  register {} is written and must be in gpr_read\n", i);
  }
  if (one.vector < 0) {
    const uint64_t flags = uint64_t{first.insn.flags_written} & ~UndefinedFlags(first.insn, first.state);
    if ((one.rflags ^ two.rflags) & flags) text += "  flags depend on what is not read\n";
  }
  if (std::memcmp(one.data, two.data, sizeof one.data) != 0) text += "  memory depends on what is not read\n";
  if (std::memcmp(one.xsave.bytes + 160, two.xsave.bytes + 160, 256) != 0)
    text += "  vectors depend on what is not read\n";
  return text;
}

}  // namespace

RunReport RunClaims(const std::vector<Form>& forms, HostCpu& host, Guest& guest, const RunOptions& options) {
  auto second = std::make_unique<TestCase>();
  auto one = std::make_unique<Outcome>();
  auto two = std::make_unique<Outcome>();
  return ForEachCase(forms, host, guest, options, [&](const TestCase& test, RunReport& report) {
    host.Run(test, *one);
    ++report.cases;
    report.faults += one->vector >= 0;
    *second = test;
    Perturb(*second);
    host.Run(*second, *two);
    return BrokenClaims(test, *one) + Influence(test, *one, *second, *two);
  });
}

RunReport RunForms(const std::vector<Form>& forms, HostCpu& host, Guest& guest,
                   const std::vector<std::unique_ptr<Subject>>& subjects, const RunOptions& options) {
  auto expected = std::make_unique<Outcome>();
  auto got = std::make_unique<Outcome>();
  return ForEachCase(forms, host, guest, options, [&](const TestCase& test, RunReport& report) {
    host.Run(test, *expected);
    report.faults += expected->vector >= 0;
    std::string text;
    for (const std::unique_ptr<Subject>& subject : subjects) {
      guest.Run(test, *subject, *got);
      ++report.cases;
      const std::string differences = Differences(test, *expected, *got, subject->tolerance());
      if (!differences.empty()) text += fmt::format("  {}:\n{}", subject->name(), differences);
    }
    return text;
  });
}

}  // namespace nacre::engine::difftest
