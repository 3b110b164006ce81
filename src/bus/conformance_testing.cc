#include "bus/conformance_testing.h"
#include "base/fuzz_testing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "base/bits.h"

namespace nacre::bus {
namespace {

constexpr uint64_t kSeed = 0x6e61637265;
constexpr uint64_t kRandomAccesses = 100'000;  // see base/fuzz_testing.h
constexpr uint64_t kEveryOffsetLimit = 8192;   // of a large block: its beginning; its end is probed as well
constexpr uint64_t kBeyond = 16;

using Random = std::mt19937_64;

void Access(const ConformanceBlock& block, uint64_t offset, unsigned size, bool write, uint64_t value) {
  if (write) return block.handler->Write(offset, size, MaskToSize(value, size));
  const uint64_t read = block.handler->Read(offset, size);
  EXPECT_EQ(read, MaskToSize(read, size)) << "a read of " << size << " bytes at offset " << offset << " gave more";
}

/// Random accesses inside the blocks, as a bus would make them.
void Mutate(ConformanceSubject& subject, Random& random, unsigned count, bool time_passes) {
  const std::vector<ConformanceBlock> blocks = subject.blocks();
  for (unsigned i = 0; i < count; ++i) {
    if (random() % 64 == 0) subject.Stimulate(random());
    if (blocks.empty()) continue;
    const ConformanceBlock& block = blocks[random() % blocks.size()];
    unsigned size = 1u << random() % 4;
    while (size > block.max_access || size > block.size_bytes) size /= 2;
    // Small offsets and small values reach more than uniform ones.
    const uint64_t span = random() % 4 == 0 ? block.size_bytes : std::min<uint64_t>(block.size_bytes, 256);
    const uint64_t offset = std::min(random() % span, block.size_bytes - size);
    uint64_t value = random();
    if (random() % 2 == 0) value >>= random() % 64;
    Access(block, offset, size, random() % 2 == 0, value);
    if (time_passes && random() % 16 == 0) subject.scheduler().Advance(static_cast<int64_t>(random() % 3'000'000));
  }
  if (!time_passes) subject.scheduler().RunPosted();
}

}  // namespace

std::vector<uint8_t> Save(Device& device) {
  state::Archive archive = state::Archive::ForSaving();
  device.Serialize(archive);
  return archive.Finish();
}

Status Load(Device& device, std::span<const uint8_t> bytes) {
  state::Archive archive = state::Archive::ForLoading(bytes);
  device.Serialize(archive);
  return archive.status();
}

void CheckEveryOffset(ConformanceSubject& subject) {
  Random random(kSeed);
  subject.device().Reset();
  for (const ConformanceBlock& block : subject.blocks()) {
    const auto probe = [&](uint64_t first, uint64_t last) {
      for (uint64_t offset = first; offset < last; ++offset) {
        for (unsigned size = 1; size <= block.max_access; size *= 2) {
          Access(block, offset, size, false, 0);
          Access(block, offset, size, true, random());
          Access(block, offset, size, true, 0);
          Access(block, offset, size, true, ~uint64_t{0});
        }
      }
    };
    // The bus never goes beyond a block; a device must survive it all the same.
    probe(0, std::min(block.size_bytes, kEveryOffsetLimit) + kBeyond);
    if (block.size_bytes > kEveryOffsetLimit) probe(block.size_bytes - kBeyond, block.size_bytes + kBeyond);
  }
}

void CheckRandomAccesses(ConformanceSubject& subject) {
  Random random(FuzzSeed(kSeed + 1));
  subject.device().Reset();
  constexpr unsigned kBatch = 100;
  for (FuzzRun run(kRandomAccesses / kBatch); run.Next();) Mutate(subject, random, kBatch, true);
}

void CheckReset(ConformanceSubject& subject) {
  Random random(kSeed + 2);
  subject.device().Reset();
  const std::vector<uint8_t> fresh = Save(subject.device());
  for (int round = 0; round < 8; ++round) {
    Mutate(subject, random, 500, false);
    subject.device().Reset();
    EXPECT_EQ(Save(subject.device()), fresh) << "reset does not bring back the power-on state";
  }
}

void CheckSaveAndRestore(ConformanceSubject& subject, ConformanceSubject& other) {
  Random random(kSeed + 3);
  subject.device().Reset();
  other.device().Reset();
  for (int round = 0; round < 16; ++round) {
    Mutate(subject, random, 500, true);
    const std::vector<uint8_t> saved = Save(subject.device());
    EXPECT_EQ(Save(subject.device()), saved) << "saving changes the state";
    Mutate(subject, random, 500, false);
    ASSERT_TRUE(Load(subject.device(), saved)) << Load(subject.device(), saved).error().message;
    EXPECT_EQ(Save(subject.device()), saved) << "a restore over other state leaves some of it";
    // Another machine, at the same guest time.
    other.scheduler().Advance(subject.scheduler().NowNs() - other.scheduler().NowNs());
    ASSERT_TRUE(Load(other.device(), saved));
    EXPECT_EQ(Save(other.device()), saved) << "a restore into another device differs";
  }
}

void CheckHostileArchives(ConformanceSubject& subject) {
  Random random(kSeed + 4);
  subject.device().Reset();
  Mutate(subject, random, 500, true);
  const std::vector<uint8_t> saved = Save(subject.device());
  const size_t step = std::max<size_t>(1, saved.size() / 512);
  for (size_t size = 0; size < saved.size(); size += step) {
    // A copy of exact size, so that a sanitizer sees a read beyond it.
    const std::vector<uint8_t> truncated(saved.begin(), saved.begin() + static_cast<ptrdiff_t>(size));
    [[maybe_unused]] const Status loaded = Load(subject.device(), truncated);
    Mutate(subject, random, 4, true);
    subject.device().Reset();
  }
  for (int round = 0; round < 1000 && !saved.empty(); ++round) {
    std::vector<uint8_t> mutated = saved;
    for (uint64_t changes = 1 + random() % 8; changes > 0; --changes) {
      // Values more often than headers: a wrong header is found at once.
      mutated[random() % mutated.size()] = static_cast<uint8_t>(random() % 3 == 0 ? 0xff : random());
    }
    [[maybe_unused]] const Status loaded = Load(subject.device(), mutated);
    Mutate(subject, random, 32, true);
    if (round % 4 == 0) subject.device().Reset();
  }
}

void RunConformance(const SubjectFactory& make) {
  CheckEveryOffset(*make());
  CheckRandomAccesses(*make());
  if (const auto subject = make(); !subject->battery_backed()) CheckReset(*subject);
  CheckSaveAndRestore(*make(), *make());
  CheckHostileArchives(*make());
}

}  // namespace nacre::bus
