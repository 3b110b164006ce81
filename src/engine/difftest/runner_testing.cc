#include "engine/difftest/runner.h"

#include <chrono>
#include <algorithm>

#include "base/bits.h"

namespace nacre::engine::difftest {

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

RunReport RunForms(const std::vector<Form>& forms, HostCpu& host, Guest& guest, Subject& subject,
                   const RunOptions& options) {
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
  Generator generator(guest, {.gs = host.has_gs_base(), .avx = host.has_avx()});
  const uint64_t per_form = std::max<uint64_t>(1, options.cases / tested.size());
  std::vector<uint64_t> made(tested.size()), failed(tested.size());
  auto test = std::make_unique<TestCase>();
  auto expected = std::make_unique<Outcome>();
  auto got = std::make_unique<Outcome>();
  const auto start = std::chrono::steady_clock::now();
  const auto late = [&] {
    return options.seconds > 0 &&
           std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() > options.seconds;
  };
  // Round by round, so that a run that is cut short has seen every form.
  for (uint64_t round = 0; round < per_form; ++round) {
    if (round > 0 && late()) break;
    for (size_t i = 0; i < tested.size(); ++i) {
      uint64_t seed = 0;
      bool ok = false;
      for (unsigned attempt = 0; attempt < 16 && !ok; ++attempt) {
        seed = (options.seed * 0x100000001b3 + round * 16 + attempt) * 0x9e3779b97f4a7c15 + std::hash<std::string>{}(tested[i]->key);
        ok = generator.Make(*tested[i], seed, *test);
      }
      if (!ok) continue;
      ++made[i];
      ++report.cases;
      host.Run(*test, *expected);
      guest.Run(*test, subject, *got);
      report.faults += expected->vector >= 0;
      std::string difference = Differences(*test, *expected, *got, subject.tolerance()) + BrokenClaims(*test, *expected);
      if (difference.empty()) continue;
      ++report.mismatches;
      if (failed[i]++ == 0)
        report.failures.push_back({tested[i]->name, seed, Describe(*test) + difference});
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

}  // namespace nacre::engine::difftest
