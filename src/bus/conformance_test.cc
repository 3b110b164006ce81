// The suite itself: a good device passes, each kind of mistake is found.

#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include "base/bits.h"
#include "bus/conformance_testing.h"

namespace nacre::bus {
namespace {

enum class Flaw { kNone, kResetForgets, kSaveForgets, kReadsTooMuch };

class Sample final : public Device, public IoHandler {
 public:
  explicit Sample(Flaw flaw) : flaw_(flaw) {}
  std::string_view name() const override { return "sample"; }
  void Reset() override {
    a_ = 0;
    if (flaw_ != Flaw::kResetForgets) b_ = 0;
  }
  void Serialize(state::Archive& archive) override {
    archive.Field(1, a_);
    if (flaw_ != Flaw::kSaveForgets || !archive.loading()) archive.Field(2, b_);
  }
  uint64_t Read(uint64_t offset, unsigned size) override {
    const uint64_t value = offset == 0 ? a_ : b_;
    return flaw_ == Flaw::kReadsTooMuch ? value : MaskToSize(value, size);
  }
  void Write(uint64_t offset, unsigned, uint64_t value) override {
    (offset == 0 ? a_ : b_) = static_cast<uint32_t>(value);
  }

 private:
  Flaw flaw_;
  uint32_t a_ = 0, b_ = 0;
};

class SampleSubject final : public ConformanceSubject {
 public:
  explicit SampleSubject(Flaw flaw) : sample_(flaw) {}
  Device& device() override { return sample_; }
  std::vector<ConformanceBlock> blocks() override { return {{&sample_, 8, 4}}; }

 private:
  Sample sample_;
};

TEST(ConformanceSuite, AGoodDevicePasses) {
  RunConformance([] { return std::make_unique<SampleSubject>(Flaw::kNone); });
}

TEST(ConformanceSuite, FindsARegisterThatResetForgets) {
  SampleSubject subject(Flaw::kResetForgets);
  testing::TestPartResultArray results;
  {
    testing::ScopedFakeTestPartResultReporter reporter(&results);
    CheckReset(subject);
  }
  EXPECT_GT(results.size(), 0);
}

TEST(ConformanceSuite, FindsARegisterThatRestoreForgets) {
  SampleSubject subject(Flaw::kSaveForgets);
  SampleSubject other(Flaw::kSaveForgets);
  testing::TestPartResultArray results;
  {
    testing::ScopedFakeTestPartResultReporter reporter(&results);
    CheckSaveAndRestore(subject, other);
  }
  EXPECT_GT(results.size(), 0);
}

TEST(ConformanceSuite, FindsAReadWiderThanItsSize) {
  SampleSubject subject(Flaw::kReadsTooMuch);
  testing::TestPartResultArray results;
  {
    testing::ScopedFakeTestPartResultReporter reporter(&results);
    CheckEveryOffset(subject);
  }
  EXPECT_GT(results.size(), 0);
}

}  // namespace
}  // namespace nacre::bus
