#pragma once
// How long the seeded fuzz tests go, and with which series. For tests only. From the environment:
//   NACRE_FUZZ_CASES=N     N cases
//   NACRE_FUZZ_SECONDS=N   N seconds of the process's processor time; how many cases that were is printed at the end
//   NACRE_FUZZ_SEED=N      another series
//
//   for (FuzzRun run(30'000); run.Next();) OneCase();

#include <cstdint>
#include <ctime>

namespace nacre {

/// The seed of the series; `otherwise` when none is asked for.
uint64_t FuzzSeed(uint64_t otherwise);

class FuzzRun {
 public:
  /// `cases`: without a wish in the environment.
  explicit FuzzRun(uint64_t cases);
  ~FuzzRun();
  FuzzRun(const FuzzRun&) = delete;
  FuzzRun& operator=(const FuzzRun&) = delete;

  /// Whether there is another case. The clock is read now and then only.
  bool Next();
  /// Of the case at work, from 0.
  uint64_t index() const { return begun_ - 1; }
  /// Begun so far.
  uint64_t cases() const { return begun_; }

 private:
  uint64_t limit_;
  double seconds_ = 0;  ///< 0: by cases
  std::clock_t start_ = std::clock();
  uint64_t begun_ = 0;
};

}  // namespace nacre
