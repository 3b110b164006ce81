#include "lifecycle/snapshot_store.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstring>
#include <fstream>

#include "machine/config_archive.h"
#include "machine/snapshot_files.h"
#include "state/archive.h"

namespace nacre::lifecycle {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kPages = 512;

/// Chains of snapshots that no machine made: this folder looks at no more of a state than its
/// configuration.
class SnapshotStoreTest : public testing::Test {
 protected:
  SnapshotStoreTest() {
    std::string name = testing::TempDir() + "nacre-store-XXXXXX";
    folder_ = mkdtemp(name.data());
  }
  ~SnapshotStoreTest() override { fs::remove_all(folder_); }

  /// Page `number` differs from the parent's, and all later ones.
  void Add(const std::string& name, const std::string& parent, uint64_t number) {
    fs::create_directory(folder_ / name);
    std::unique_ptr<memory::MemoryImage> below;
    if (!parent.empty()) below = std::move(*machine::OpenMemory(folder_ / parent));
    std::vector<uint8_t> memory(kPages * kPageSize);
    size_t hint = 0;
    for (uint64_t page = 0; below && page < kPages; ++page)
      if (const uint8_t* bytes = below->Page(page, hint)) std::memcpy(&memory[page * kPageSize], bytes, kPageSize);
    std::memset(&memory[number * kPageSize], static_cast<int>(number), kPageSize);
    auto writer = memory::MemoryWriter::Create(folder_ / name / "memory.bin", kPages, below.get());
    ASSERT_TRUE(writer) << writer.error().message;
    ASSERT_EQ((*writer)->Write(memory.data()), 0);
    memory::ImageMap map = (*writer)->Map();
    machine::SnapshotIdentity identity{"id-" + name, parent, parent.empty() ? "" : "id-" + parent, ++created_};
    state::StateFile file;
    file.Add("clocks", {1, 2, 3});
    machine::MachineConfig config;
    file.Add("config", machine::SaveSection([&](state::Archive& archive) { SerializeConfig(archive, config); }));
    file.Add("identity", machine::SaveSection([&](state::Archive& archive) { identity.Serialize(archive); }));
    file.Add("memory", machine::SaveSection([&](state::Archive& archive) { map.Serialize(archive); }));
    ASSERT_TRUE(machine::WriteFileDurably(folder_ / name / "state.bin", file.Encode()));
  }
  void ExpectPages(const std::string& name, const std::vector<uint64_t>& numbers) {
    ASSERT_TRUE(VerifySnapshot(folder_ / name));
    const auto image = machine::OpenMemory(folder_ / name);
    size_t hint = 0;
    for (const uint64_t number : numbers) {
      const uint8_t* const page = (*image)->Page(number, hint);
      ASSERT_NE(page, nullptr) << name << " " << number;
      EXPECT_EQ(page[77], number);
    }
  }

  fs::path folder_;
  int64_t created_ = 1;
};

TEST_F(SnapshotStoreTest, ListsWhatIsThere) {
  EXPECT_TRUE(ListSnapshots(folder_ / "none").empty());
  Add("b", "", 1);
  Add("a", "b", 2);
  fs::create_directory(folder_ / ".new-123456");
  fs::create_directory(folder_ / "broken");
  const auto list = ListSnapshots(folder_);
  ASSERT_EQ(list.size(), 3u);
  EXPECT_EQ(list[0].name, "b");
  EXPECT_EQ(list[1].name, "a");
  EXPECT_EQ(list[1].parent, "b");
  EXPECT_EQ(list[1].stored_bytes, kPageSize);
  EXPECT_EQ(list[1].memory_bytes, kPages * kPageSize);
  EXPECT_NE(list[2].problem.find("broken/state.bin"), std::string::npos);
}

TEST_F(SnapshotStoreTest, WhatACrashLeftIsRemoved) {
  Add("kept", "", 1);
  for (const char* name : {".new-abcdef", ".rm-old"}) {
    fs::create_directory(folder_ / name);
    std::ofstream(folder_ / name / "memory.bin") << "half";
  }
  RemoveUnfinishedSnapshots(folder_);
  RemoveUnfinishedSnapshots(folder_ / "none");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()), 1);
  ExpectPages("kept", {1});
}

TEST_F(SnapshotStoreTest, RemovedParentsLiveOnInTheirChildren) {
  Add("one", "", 1);
  Add("two", "one", 2);
  Add("three", "two", 3);
  Add("other", "one", 4);
  ASSERT_TRUE(RemoveSnapshot(folder_, "two"));
  ExpectPages("three", {1, 2, 3});
  EXPECT_EQ(ListSnapshots(folder_)[1].parent, "one");
  ASSERT_TRUE(RemoveSnapshot(folder_, "one"));
  ExpectPages("three", {1, 2, 3});
  ExpectPages("other", {1, 4});
  ASSERT_TRUE(RemoveSnapshot(folder_, "other"));
  const auto list = ListSnapshots(folder_);
  ASSERT_EQ(list.size(), 1u);
  EXPECT_EQ(list[0].parent, "");
  EXPECT_FALSE(RemoveSnapshot(folder_, "other"));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()), 1);
}

TEST_F(SnapshotStoreTest, DamageIsNotGivenToChildren) {
  Add("one", "", 1);
  Add("two", "one", 2);
  {
    std::fstream file(folder_ / "one/memory.bin", std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(kPageSize + 5);
    file.put('x');
  }
  EXPECT_FALSE(VerifySnapshot(folder_ / "two"));
  EXPECT_FALSE(RemoveSnapshot(folder_, "one"));
  EXPECT_TRUE(fs::exists(folder_ / "one/state.bin"));
  ASSERT_TRUE(RemoveSnapshot(folder_, "two"));
  EXPECT_TRUE(RemoveSnapshot(folder_, "one"));
}

TEST_F(SnapshotStoreTest, AnotherOfTheSameNameIsNoParent) {
  Add("one", "", 1);
  Add("two", "one", 2);
  fs::rename(folder_ / "one", folder_ / "kept");
  Add("three", "kept", 9);
  EXPECT_NE(ListSnapshots(folder_).back().problem.find("one/state.bin"), std::string::npos);
  fs::rename(folder_ / "three", folder_ / "one");
  EXPECT_NE(ListSnapshots(folder_).back().problem.find("not the snapshot"), std::string::npos);
}

}  // namespace
}  // namespace nacre::lifecycle
