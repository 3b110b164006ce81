#pragma once
// Runs the differential test: for every form, cases on the bare host and on a subject, compared. One thread.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "engine/difftest/generator.h"
#include "engine/difftest/guest.h"
#include "engine/difftest/host_cpu.h"

namespace nacre::engine::difftest {

struct RunOptions {
  uint64_t cases = 0;  ///< to make in all, spread over the forms
  uint64_t seed = 1;
  std::string form_filter;  ///< only forms whose name contains this
  double seconds = 0;       ///< stop after this long, 0: never
};

struct FormFailure {
  std::string form;
  uint64_t seed = 0;  ///< of the case
  std::string text;
};

struct RunReport {
  uint64_t forms = 0, tested = 0, excluded = 0, absent = 0;
  uint64_t made = 0;   ///< cases made
  uint64_t cases = 0;  ///< cases run, by each subject
  uint64_t faults = 0, mismatches = 0;
  std::vector<std::string> never_made;  ///< forms of which no seed made a case
  std::vector<FormFailure> failures;    ///< the first of each form
};

/// Checks on the bare host what the decoder says of each form: registers and flags that are not in gpr_read and
/// flags_read have no influence, those not in gpr_written and flags_written do not change.
RunReport RunClaims(const std::vector<Form>& forms, HostCpu& host, Guest& guest, const RunOptions& options);

/// Each case once on the host and once by each subject.
RunReport RunForms(const std::vector<Form>& forms, HostCpu& host, Guest& guest,
                   const std::vector<std::unique_ptr<Subject>>& subjects, const RunOptions& options);

}  // namespace nacre::engine::difftest
