#include "lifecycle/image_store.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>

#include "lifecycle/vm_layers.h"

namespace nacre::lifecycle {
namespace {

namespace fs = std::filesystem;

class ImageStoreTest : public testing::Test {
 protected:
  ImageStoreTest() {
    std::string name = testing::TempDir() + "nacre-images-XXXXXX";
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    folder = name;
  }
  ~ImageStoreTest() override {
    std::error_code error;
    fs::remove_all(folder, error);
  }
  static void Put(const fs::path& path, std::string_view text) { std::ofstream(path, std::ios::binary) << text; }
  Result<std::string> Make(const std::string& name, std::string_view disk, bool replace = false) {
    auto image = NACRE_TRY(NewImage::Begin(home(), name, replace));
    Put(image->folder() / "disk.raw", disk);
    Put(image->folder() / "vmlinuz", "kernel");
    Put(image->folder() / "work", "not part of it");
    return image->Commit({.kernel = "vmlinuz",
                          .disk = "disk.raw",
                          .initrds = {},
                          .append = "quiet \"x\"",
                          .firmware = {},
                          .source = "test",
                          .memory = "256M"});
  }
  Home home() const { return Home(folder); }

  fs::path folder;
};

TEST_F(ImageStoreTest, MadeReadVerifiedAndRemoved) {
  const auto id = Make("debian", "disk");
  ASSERT_TRUE(id) << id.error().message;
  const auto report = InspectImage(home(), "debian");
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(report->id, *id);
  EXPECT_EQ(report->image.append, "quiet \"x\"");
  EXPECT_EQ(report->image.memory_bytes, 256u << 20);
  EXPECT_EQ(report->image.disk_format, "raw");
  EXPECT_EQ(report->source, "test");
  ASSERT_EQ(report->files.size(), 2u);
  EXPECT_EQ(report->files[0].name, "disk.raw");
  EXPECT_EQ(report->files[1].sha256, "6923dd1bc0460082c5d55a831908c24a282860b7f1cd6c2b79cf1bc8857c639c");
  EXPECT_FALSE(fs::exists(folder / "images/debian/work"));
  EXPECT_TRUE(VerifyImage(home(), "debian"));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder / "images"), fs::directory_iterator()), 1);
  EXPECT_TRUE(RemoveImage(home(), "debian"));
  EXPECT_TRUE(fs::is_empty(folder / "images"));
  EXPECT_FALSE(RemoveImage(home(), "debian"));
  EXPECT_FALSE(RemoveImage(home(), ".."));
}

TEST_F(ImageStoreTest, ADamagedFileIsNamed) {
  ASSERT_TRUE(Make("debian", "disk"));
  chmod((folder / "images/debian/disk.raw").c_str(), 0644);
  Put(folder / "images/debian/disk.raw", "dusk");
  const Status status = VerifyImage(home(), "debian");
  ASSERT_FALSE(status);
  EXPECT_NE(status.error().message.find("disk.raw"), std::string::npos);
  EXPECT_EQ(status.error().message.find("vmlinuz"), std::string::npos);
}

TEST_F(ImageStoreTest, TheSameContentIsTheSameImageAndStandsOnce) {
  const auto first = Make("a", "disk"), second = Make("b", "disk"), third = Make("c", "other");
  ASSERT_TRUE(first && second && third);
  EXPECT_EQ(*first, *second);
  EXPECT_NE(*first, *third);
  struct stat a {
  }, b{}, c{};
  ASSERT_EQ(0, stat((folder / "images/a/disk.raw").c_str(), &a));
  ASSERT_EQ(0, stat((folder / "images/b/disk.raw").c_str(), &b));
  ASSERT_EQ(0, stat((folder / "images/c/disk.raw").c_str(), &c));
  EXPECT_EQ(a.st_ino, b.st_ino);
  EXPECT_NE(a.st_ino, c.st_ino);
  EXPECT_TRUE(RemoveImage(home(), "a"));
  EXPECT_TRUE(VerifyImage(home(), "b"));
}

TEST_F(ImageStoreTest, WhatIsHalfMadeIsNoImageAndGoes) {
  {
    const auto image = NewImage::Begin(home(), "debian", false);
    ASSERT_TRUE(image);
    Put((*image)->folder() / "disk.raw", "half");
    EXPECT_TRUE(home().ImageNames().empty());
    // Another one at the same time leaves it alone.
    ASSERT_TRUE(Make("other", "disk"));
    EXPECT_TRUE(fs::exists((*image)->folder() / "disk.raw"));
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(folder / "images"), fs::directory_iterator()), 1);
  // A killed process's.
  fs::create_directory(folder / "images/.new-x-123456");
  Put(folder / "images/.new-x-123456/.lock", "");
  Put(folder / "images/.new-x-123456/disk.raw", "half");
  ASSERT_TRUE(Make("third", "disk3"));
  EXPECT_FALSE(fs::exists(folder / "images/.new-x-123456"));
}

TEST_F(ImageStoreTest, NamesAreTakenOnceUnlessReplaced) {
  ASSERT_TRUE(Make("debian", "disk"));
  const auto again = Make("debian", "disk2");
  ASSERT_FALSE(again);
  EXPECT_NE(again.error().message.find("--replace"), std::string::npos);
  EXPECT_FALSE(Make("a/b", "disk"));
  const auto replaced = Make("debian", "disk2", true);
  ASSERT_TRUE(replaced) << replaced.error().message;
  EXPECT_EQ(InspectImage(home(), "debian")->id, *replaced);
}

TEST_F(ImageStoreTest, AnImageInUseStays) {
  ASSERT_TRUE(Make("debian", "disk"));
  fs::create_directories(folder / "vms/web");
  Put(folder / "vms/web/vm.toml", "kernel = \"../../images/debian/vmlinuz\"\n");
  const Status removed = RemoveImage(home(), "debian");
  ASSERT_FALSE(removed);
  EXPECT_NE(removed.error().message.find("web"), std::string::npos);
  EXPECT_TRUE(VerifyImage(home(), "debian"));
}

TEST_F(ImageStoreTest, ADiskThatStandsOnItKeepsIt) {
  ASSERT_TRUE(Make("debian", std::string(4096, 'x')));
  for (const char* owner : {"vms/web", "layers/1234"}) {
    const fs::path disk = folder / owner / "disks/disk0.qcow2";
    fs::create_directories(disk.parent_path());
    const auto below = LookAtDisk(folder / "images/debian/disk.raw", storage::ImageFormat::kRaw);
    ASSERT_TRUE(below) << below.error().message;
    ASSERT_TRUE(MakeOverlay(home(), disk, *below));
    const Status removed = RemoveImage(home(), "debian");
    ASSERT_FALSE(removed);
    EXPECT_NE(removed.error().message.find(fs::path(owner).filename()), std::string::npos) << removed.error().message;
    Put(disk, "no qcow2 image");
    EXPECT_FALSE(RemoveImage(home(), "debian")) << "nobody knows";
    fs::remove_all(folder / owner);
  }
  EXPECT_TRUE(RemoveImage(home(), "debian"));
}

TEST_F(ImageStoreTest, SumsThatAreMissingOrNoneAreSaid) {
  ASSERT_TRUE(Make("debian", "disk"));
  const fs::path toml = folder / "images/debian/image.toml";
  chmod(toml.c_str(), 0644);
  for (const char* text : {"kernel = \"vmlinuz\"\n", "kernel = \"vmlinuz\"\n[sha256]\nvmlinuz = \"xyz\"\n",
                           "kernel = \"vmlinuz\"\nsha256 = \"x\"\n"}) {
    Put(toml, text);
    const auto report = InspectImage(home(), "debian");
    ASSERT_FALSE(report);
    EXPECT_NE(report.error().message.find("image.toml:"), std::string::npos);
  }
}

}  // namespace
}  // namespace nacre::lifecycle
