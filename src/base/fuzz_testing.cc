#include "base/fuzz_testing.h"

#include <cstdio>
#include <cstdlib>
#include <limits>

namespace nacre {
namespace {

constexpr uint64_t kCasesBetweenLooks = 64;

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* const text = std::getenv(name);
  return text ? std::strtoull(text, nullptr, 0) : otherwise;
}

double SecondsSince(std::clock_t start) { return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC; }

}  // namespace

uint64_t FuzzSeed(uint64_t otherwise) { return FromEnvironment("NACRE_FUZZ_SEED", otherwise); }

FuzzRun::FuzzRun(uint64_t cases)
    : limit_(FromEnvironment("NACRE_FUZZ_CASES", cases)),
      seconds_(static_cast<double>(FromEnvironment("NACRE_FUZZ_SECONDS", 0))) {
  if (seconds_ > 0) limit_ = std::numeric_limits<uint64_t>::max();
}

FuzzRun::~FuzzRun() {
  if (seconds_ > 0)
    std::printf("%llu cases in %.0f s\n", static_cast<unsigned long long>(begun_), SecondsSince(start_));
}

bool FuzzRun::Next() {
  if (begun_ >= limit_) return false;
  if (seconds_ > 0 && begun_ % kCasesBetweenLooks == 0 && SecondsSince(start_) >= seconds_) return false;
  ++begun_;
  return true;
}

}  // namespace nacre
