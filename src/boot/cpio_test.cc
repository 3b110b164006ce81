#include "boot/cpio.h"

#include <gtest/gtest.h>

#include <charconv>
#include <fstream>

namespace nacre::boot {
namespace {

struct Entry {
  uint32_t inode, mode, links, mtime, major, minor;
  std::string content;
};

/// Reads an archive as the kernel does (init/initramfs.c's grammar, written again from the specification).
std::vector<std::pair<std::string, Entry>> Unpack(const std::vector<uint8_t>& bytes) {
  std::vector<std::pair<std::string, Entry>> entries;
  size_t at = 0;
  while (true) {
    const std::string_view header(reinterpret_cast<const char*>(bytes.data()) + at, 110);
    EXPECT_EQ(header.substr(0, 6), "070701");
    const auto field = [&](int index) {
      uint32_t value = 0;
      std::from_chars(header.data() + 6 + index * 8, header.data() + 14 + index * 8, value, 16);
      return value;
    };
    const uint32_t size = field(6);
    const uint32_t name_size = field(11);
    const std::string name(header.data() + 110, name_size - 1);
    EXPECT_EQ(bytes[at + 110 + name_size - 1], 0);
    const size_t data = (at + 110 + name_size + 3) & ~size_t{3};
    if (name == "TRAILER!!!") {
      EXPECT_EQ(data, bytes.size());
      return entries;
    }
    entries.emplace_back(name, Entry{field(0), field(1), field(4), field(5), field(9), field(10),
                                     std::string(bytes.begin() + static_cast<ptrdiff_t>(data),
                                                 bytes.begin() + static_cast<ptrdiff_t>(data + size))});
    at = (data + size + 3) & ~size_t{3};
    if (at + 110 > bytes.size()) {
      ADD_FAILURE() << "no trailer";
      return entries;
    }
  }
}

std::span<const uint8_t> Text(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

TEST(Cpio, WritesEveryKindOfEntry) {
  CpioWriter writer;
  ASSERT_TRUE(writer.AddDirectory("dev", 0755));
  ASSERT_TRUE(writer.AddNode("dev/console", 0600, CpioWriter::NodeKind::kCharacter, 5, 1));
  ASSERT_TRUE(writer.AddNode("dev/vda", 0660, CpioWriter::NodeKind::kBlock, 254, 0));
  ASSERT_TRUE(writer.AddFile("init", 0755, Text("#!/bin/sh\n")));
  ASSERT_TRUE(writer.AddLink("sh", "bin/busybox"));
  const auto entries = Unpack(writer.Finish());
  ASSERT_EQ(entries.size(), 5u);
  EXPECT_EQ(entries[0].first, "dev");
  EXPECT_EQ(entries[0].second.mode, 0040755u);
  EXPECT_EQ(entries[0].second.links, 2u);
  EXPECT_EQ(entries[1].second.mode, 0020600u);
  EXPECT_EQ(entries[1].second.major, 5u);
  EXPECT_EQ(entries[1].second.minor, 1u);
  EXPECT_EQ(entries[2].second.mode, 0060660u);
  EXPECT_EQ(entries[2].second.major, 254u);
  EXPECT_EQ(entries[3].second.mode, 0100755u);
  EXPECT_EQ(entries[3].second.content, "#!/bin/sh\n");
  EXPECT_EQ(entries[3].second.mtime, 0u);
  EXPECT_EQ(entries[4].second.mode, 0120777u);
  EXPECT_EQ(entries[4].second.content, "bin/busybox");
}

TEST(Cpio, MakesParentsOnceAndBeforeTheirChildren) {
  CpioWriter writer;
  ASSERT_TRUE(writer.AddFile("lib/modules/a.ko", 0644, Text("a")));
  ASSERT_TRUE(writer.AddFile("lib/modules/b.ko", 0644, Text("bb")));
  const auto entries = Unpack(writer.Finish());
  ASSERT_EQ(entries.size(), 4u);
  EXPECT_EQ(entries[0].first, "lib");
  EXPECT_EQ(entries[1].first, "lib/modules");
  EXPECT_EQ(entries[2].first, "lib/modules/a.ko");
  EXPECT_EQ(entries[3].second.content, "bb");
  // Equal inode numbers with more than one link would be hard links to the kernel.
  EXPECT_NE(entries[2].second.inode, entries[3].second.inode);
}

TEST(Cpio, EveryPaddingOfNameAndContentIsReadBack) {
  CpioWriter writer;
  for (size_t size = 0; size < 9; ++size) {
    ASSERT_TRUE(writer.AddFile(std::string(size + 1, 'n'), 0644, Text(std::string(size, 'c'))));
  }
  const auto entries = Unpack(writer.Finish());
  ASSERT_EQ(entries.size(), 9u);
  for (size_t size = 0; size < 9; ++size) EXPECT_EQ(entries[size].second.content, std::string(size, 'c'));
}

TEST(Cpio, RefusesPathsThatAreNotPlain) {
  CpioWriter writer;
  for (const char* path : {"", "/init", "a//b", "./a", "a/../b", "a/", "..", "TRAILER!!!"}) {
    EXPECT_FALSE(writer.AddFile(path, 0644, {})) << path;
  }
  EXPECT_FALSE(writer.AddFile(std::string(5000, 'a'), 0644, {}));
  EXPECT_TRUE(Unpack(writer.Finish()).empty());
}

TEST(Cpio, RefusesTheSamePathTwice) {
  CpioWriter writer;
  ASSERT_TRUE(writer.AddFile("a/b", 0644, {}));
  EXPECT_FALSE(writer.AddFile("a/b", 0644, {}));
  EXPECT_FALSE(writer.AddDirectory("a", 0755));
}

class Manifest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(testing::TempDir()) /
              fmt::format("cpio-{}-{}", getpid(), testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::filesystem::path Write(const std::string& name, const std::string& text) {
    std::ofstream(folder_ / name) << text;
    return folder_ / name;
  }
  std::filesystem::path folder_;
};

TEST_F(Manifest, BuildsWhatItSays) {
  Write("script", "echo");
  const auto manifest = Write("guest.manifest",
                              "# a guest\n\ndir proc 0555\nfile script init 755  # the first program\n"
                              "link /bin/busybox bin/sh\nnode dev/console 600 c 5 1\n");
  const auto archive = BuildInitramfs(manifest);
  ASSERT_TRUE(archive) << archive.error().message;
  const auto entries = Unpack(*archive);
  ASSERT_EQ(entries.size(), 6u);
  EXPECT_EQ(entries[0].second.mode, 0040555u);
  EXPECT_EQ(entries[1].first, "init");
  EXPECT_EQ(entries[1].second.content, "echo");
  EXPECT_EQ(entries[3].first, "bin/sh");
  EXPECT_EQ(entries[5].second.mode, 0020600u);
  EXPECT_EQ(*archive, *BuildInitramfs(manifest));
}

TEST_F(Manifest, TellsLineAndReasonOfAMistake) {
  const std::pair<const char*, const char*> cases[] = {
      {"file absent init 755\n", "absent"}, {"dir a 999\n", "octal"},          {"dir a 17777\n", "octal"},
      {"node a 600 x 1 2\n", "expected"},   {"node a 600 c 1 y\n", "numbers"}, {"dir a\n", "expected"},
      {"dir /a 755\n", "plain path"},
  };
  for (const auto& [text, reason] : cases) {
    const auto archive = BuildInitramfs(Write("m", std::string("\n") + text));
    ASSERT_FALSE(archive) << text;
    EXPECT_NE(archive.error().message.find("m:2: "), std::string::npos) << archive.error().message;
    EXPECT_NE(archive.error().message.find(reason), std::string::npos) << archive.error().message;
  }
  EXPECT_FALSE(BuildInitramfs(folder_ / "none"));
}

}  // namespace
}  // namespace nacre::boot
