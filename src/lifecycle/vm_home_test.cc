#include "lifecycle/vm_home.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <thread>

#include "lifecycle/vm_files.h"
#include "lifecycle/vm_lock.h"

namespace nacre::lifecycle {
namespace {

namespace fs = std::filesystem;

class VmFolder : public testing::Test {
 protected:
  VmFolder() {
    std::string name = testing::TempDir() + "nacre-vm-XXXXXX";
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  ~VmFolder() override {
    std::error_code error;
    fs::remove_all(folder_, error);
  }
  static std::string Content(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  fs::path folder_;
};

TEST(VmName, WhatFileSystemsAndShellsTake) {
  for (const std::string_view name : {"a", "web", "Web-1", "a.b_c-9", "0", "debian-12.5"})
    EXPECT_TRUE(CheckName(name)) << name;
  for (const std::string& name :
       {std::string(""), std::string("."), std::string(".."), std::string("a/b"), std::string("/a"),
        std::string("../a"), std::string("-a"), std::string(".a"), std::string("_a"), std::string("a."),
        std::string("a-"), std::string("a b"), std::string("a\n"), std::string("a\0b", 3), std::string("gr\xc3\xb6n"),
        std::string("a*"), std::string("$a"), std::string(kMaxNameBytes + 1, 'a')}) {
    const Status status = CheckName(name);
    ASSERT_FALSE(status) << name;
    EXPECT_NE(status.error().message.find("name"), std::string::npos);
  }
  EXPECT_TRUE(CheckName(std::string(kMaxNameBytes, 'a')));
}

TEST_F(VmFolder, VmsAreFoundAndNearNamesNamed) {
  const Home home(folder_);
  EXPECT_TRUE(home.VmNames().empty());
  ASSERT_TRUE(MakeFolders(home.vms() / "web"));
  ASSERT_TRUE(MakeFolders(home.vms() / "db"));
  ASSERT_TRUE(MakeFolders(home.vms() / ".new-x"));
  EXPECT_EQ(home.VmNames(), (std::vector<std::string>{"db", "web"}));
  ASSERT_TRUE(home.FindVm("web"));
  EXPECT_EQ(home.FindVm("web")->name(), "web");
  const auto wrong = home.FindVm("webb");
  ASSERT_FALSE(wrong);
  EXPECT_NE(wrong.error().message.find("did you mean web?"), std::string::npos) << wrong.error().message;
  EXPECT_FALSE(home.FindVm("../vms/web"));
}

TEST_F(VmFolder, ALockIsTakenOnceAndNamesItsHolder) {
  const fs::path path = folder_ / "run/lock";
  EXPECT_FALSE(HolderOf(path));
  {
    const auto lock = VmLock::Take(path);
    ASSERT_TRUE(lock) << lock.error().message;
    ASSERT_TRUE(HolderOf(path));
    EXPECT_EQ(HolderOf(path)->pid, getpid());
    const auto second = VmLock::Take(path);
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().code, EBUSY);
    EXPECT_NE(second.error().message.find(std::to_string(getpid())), std::string::npos);
    EXPECT_FALSE(WaitForLock(path, 1));
  }
  EXPECT_FALSE(HolderOf(path));
  EXPECT_TRUE(WaitForLock(path, 1));
  EXPECT_TRUE(VmLock::Take(path));
}

TEST_F(VmFolder, AKilledProcessHasNoLock) {
  const fs::path path = folder_ / "run/lock";
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {
    const auto lock = VmLock::Take(path);
    if (lock && write(ready[1], "x", 1) == 1) pause();
    _exit(1);
  }
  char byte = 0;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  ASSERT_TRUE(HolderOf(path));
  EXPECT_EQ(HolderOf(path)->pid, child);
  kill(child, SIGKILL);
  EXPECT_TRUE(WaitForLock(path, 60'000));
  EXPECT_TRUE(VmLock::Take(path));
  waitpid(child, nullptr, 0);
  close(ready[0]);
  close(ready[1]);
}

TEST_F(VmFolder, OnlyOneOfManyGetsTheLock) {
  std::atomic<int> got = 0, refused = 0;
  std::vector<std::thread> threads;
  std::vector<std::optional<VmLock>> locks(8);
  for (auto& slot : locks)
    threads.emplace_back([&] {
      auto lock = VmLock::Take(folder_ / "run/lock");
      if (!lock) {
        ++refused;
        return;
      }
      ++got;
      slot = std::move(*lock);
    });
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(got, 1);
  EXPECT_EQ(refused, 7);
}

TEST_F(VmFolder, NoLockWhereThereIsNoVm) {
  const auto lock = VmLock::Take(folder_ / "missing/run/lock");
  ASSERT_FALSE(lock);
  EXPECT_EQ(lock.error().code, ENOENT);
}

TEST_F(VmFolder, AFileIsReplacedWhole) {
  const fs::path path = folder_ / "file";
  ASSERT_TRUE(WriteAtomically(path, "one"));
  ASSERT_TRUE(WriteAtomically(path, "another"));
  EXPECT_EQ(Content(path), "another");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 1);
  const Status status = WriteAtomically(folder_ / "missing/file", "x");
  ASSERT_FALSE(status);
  EXPECT_NE(status.error().message.find("missing/file"), std::string::npos);
}

TEST_F(VmFolder, ACopyHasTheHolesToo) {
  const fs::path from = folder_ / "from", to = folder_ / "to";
  {
    std::ofstream file(from, std::ios::binary);
    file << "begin";
    file.seekp(8 << 20);
    file << "end";
  }
  fs::resize_file(from, 16 << 20);
  ASSERT_TRUE(CopyFile(from, to));
  EXPECT_EQ(Content(from), Content(to));
  const Status again = CopyFile(from, to);
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().code, EEXIST);
  EXPECT_FALSE(CopyFile(folder_, folder_ / "x"));
  EXPECT_FALSE(CopyFile(folder_ / "missing", folder_ / "x"));
}

TEST_F(VmFolder, ARenameReplacesNothing) {
  ASSERT_TRUE(MakeFolders(folder_ / "a/b"));
  ASSERT_TRUE(MakeFolders(folder_ / "c"));
  const Status status = RenameNew(folder_ / "a", folder_ / "c");
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, EEXIST);
  EXPECT_TRUE(RenameNew(folder_ / "a", folder_ / "d"));
  EXPECT_TRUE(fs::exists(folder_ / "d/b"));
}

}  // namespace
}  // namespace nacre::lifecycle
