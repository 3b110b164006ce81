#include "cli/tar_stream.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <random>

namespace nacre::cli {
namespace {

namespace fs = std::filesystem;

class TarStreamTest : public testing::Test {
 protected:
  TarStreamTest() {
    std::string name = testing::TempDir() + "nacre-tar-XXXXXX";
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    folder = name;
    fs::create_directory(folder / "out");
  }
  ~TarStreamTest() override {
    std::error_code error;
    fs::remove_all(folder, error);
  }
  static void Put(const fs::path& path, std::string_view text) {
    fs::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << text;
  }
  static std::string Get(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  TarReader Reader(const std::string& target = "copy") {
    return {Fd(open((folder / "out").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)), target};
  }
  std::string Packed(const fs::path& path, const std::string& name) {
    std::string archive;
    const Status status = WriteTar(
        path.string(), name, [&](std::string_view bytes) { return archive += bytes, Status(); },
        [&](const std::string& what) { skipped.push_back(what); });
    EXPECT_TRUE(status) << status.error().message;
    return archive;
  }
  /// A member of an archive as a hostile guest writes it.
  static std::string Member(std::string_view name, char type, std::string_view link = {}, std::string_view data = {}) {
    std::string block(512, '\0');
    name.copy(&block[0], 100);
    std::string_view("0000644").copy(&block[100], 7);
    fmt::format("{:011o}", data.size()).copy(&block[124], 11);
    std::string_view("00000000000").copy(&block[136], 11);
    block[156] = type;
    link.copy(&block[157], 100);
    unsigned sum = 8 * ' ';
    for (size_t i = 0; i < 512; ++i) sum += static_cast<uint8_t>(block[i]);
    fmt::format("{:06o}", sum).copy(&block[148], 6);
    return block + std::string(data) + std::string((512 - data.size() % 512) % 512, '\0');
  }
  Status Unpack(const std::string& archive) {
    TarReader reader = Reader();
    NACRE_TRY_STATUS(reader.Take(archive + std::string(1024, '\0')));
    return reader.Finish();
  }

  fs::path folder;
  std::vector<std::string> skipped;
};

TEST_F(TarStreamTest, AFolderThereAndBack) {
  const fs::path from = folder / "from";
  std::mt19937 random(1);
  std::string bytes(300'001, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  const std::string deep = "a/" + std::string(90, 'b') + "/" + std::string(200, 'c') + ".txt";
  Put(from / "empty", "");
  Put(from / "data", bytes);
  Put(from / deep, "deep");
  fs::create_directory(from / "nothing");
  fs::create_symlink("data", from / "link");
  fs::create_symlink(std::string(150, 'x'), from / "long-link");
  mkfifo((from / "fifo").c_str(), 0600);
  chmod((from / "data").c_str(), 0751);
  chmod((from / "a").c_str(), 0500);
  const std::string archive = Packed(from, "name");
  EXPECT_EQ(skipped, std::vector<std::string>{"name/fifo"});
  for (const size_t step : {size_t{1000}, archive.size(), size_t{1}}) {
    fs::remove_all(folder / "out/copy");
    TarReader reader = Reader();
    for (size_t at = 0; at < archive.size(); at += step) {
      const Status status = reader.Take(std::string_view(archive).substr(at, step));
      ASSERT_TRUE(status) << status.error().message;
    }
    ASSERT_TRUE(reader.Finish());
    const fs::path copy = folder / "out/copy";
    EXPECT_EQ(Get(copy / "data"), bytes);
    EXPECT_EQ(Get(copy / deep), "deep");
    EXPECT_TRUE(fs::is_empty(copy / "empty") && fs::is_empty(copy / "nothing"));
    EXPECT_EQ(fs::read_symlink(copy / "link"), "data");
    EXPECT_EQ(fs::read_symlink(copy / "long-link"), std::string(150, 'x'));
    struct stat status {};
    ASSERT_EQ(0, stat((copy / "data").c_str(), &status));
    EXPECT_EQ(status.st_mode & 07777, 0751u);
    ASSERT_EQ(0, stat((copy / "a").c_str(), &status));
    EXPECT_EQ(status.st_mode & 07777, 0500u);
    chmod((copy / "a").c_str(), 0700);
  }
  chmod((from / "a").c_str(), 0700);
}

TEST_F(TarStreamTest, NothingOutsideIsTouched) {
  Put(folder / "secret", "secret");
  const std::string up = (folder / "secret").string();
  for (const std::string& archive :
       {Member("../secret", '0', "", "x"), Member("/etc/x", '0', "", "x"), Member(up, '0', "", "x"),
        Member("r/../../secret", '0', "", "x"), Member("r", '2', "..") + Member("r/secret", '0', "", "x"),
        Member("r", '5') + Member("r/l", '2', folder.string()) + Member("r/l/secret", '0', "", "x"),
        Member("r", '5') + Member("r/h", '1', "../secret") + Member("r/h", '0', "", "x"),
        Member("r", '5') + Member("r/h", '1', up), Member("r", '0', "", "x") + Member("s", '0', "", "x"),
        Member("r", '5') + Member("", '0', "", "x"), Member("r", '5') + Member("r//s", '0', "", "x"),
        Member("././@LongLink", 'L', "", "../secret") + Member("r", '0', "", "x"),
        Member("p", 'x', "", "18 path=../secret\n") + Member("r", '0', "", "x"),
        Member("r", '5') + Member("r/l", '2', "/") + Member("r/l", '5') + Member("r/l/tmp", '5')}) {
    fs::remove_all(folder / "out/copy");
    EXPECT_FALSE(Unpack(archive));
    EXPECT_EQ(Get(folder / "secret"), "secret");
    fs::remove_all(folder / "out/copy");
    EXPECT_TRUE(fs::is_empty(folder / "out"));
  }
}

TEST_F(TarStreamTest, DevicesAreLeftOutAndLinksReplaced) {
  TarReader reader = Reader();
  ASSERT_TRUE(reader.Take(Member("r", '5') + Member("r/null", '3') + Member("r/a", '0', "", "1") +
                          Member("r/b", '1', "r/a") + Member("r/a", '2', "b") + Member("r/a", '0', "", "2") +
                          std::string(1024, '\0')));
  ASSERT_TRUE(reader.Finish());
  EXPECT_EQ(reader.skipped(), std::vector<std::string>{"r/null"});
  EXPECT_EQ(Get(folder / "out/copy/a") + Get(folder / "out/copy/b"), "21");
}

TEST_F(TarStreamTest, DamageIsSeen) {
  Put(folder / "from/file", std::string(2000, 'f'));
  const std::string archive = Packed(folder / "from", "r");
  EXPECT_FALSE(Reader().Finish());
  for (const size_t size : {size_t{100}, size_t{512}, size_t{1500}, archive.size() - 1024}) {
    TarReader reader = Reader();
    ASSERT_TRUE(reader.Take(archive.substr(0, size)));
    EXPECT_FALSE(reader.Finish()) << size;
  }
  EXPECT_FALSE(Unpack(Member("././@LongLink", 'L', "", std::string(100'000, 'x'))));
  for (const char* pax : {"1", "99 path=x\n", "5 =\n", "x", "9 path=x", "11 size=-1\n", "4 a\n"})
    EXPECT_FALSE(Unpack(Member("p", 'x', "", pax) + Member("r", '5'))) << pax;
  // What random damage does must end, and stay below out/copy.
  std::mt19937_64 random(20261122);
  for (int round = 0; round < 500; ++round) {
    std::string broken = archive;
    for (uint64_t i = 1 + random() % 4; i != 0; --i) broken[random() % 1024] = static_cast<char>(random());
    if (random() % 2) {  // with a right sum
      unsigned sum = 8 * ' ';
      for (size_t i = 0; i < 512; ++i) sum += i >= 148 && i < 156 ? 0 : static_cast<uint8_t>(broken[i]);
      fmt::format("{:06o}", sum).copy(&broken[148], 6);
      broken[154] = '\0';
    }
    (void)Unpack(broken);
    std::error_code error;
    fs::permissions(folder / "out/copy", fs::perms::owner_all, error);
    fs::remove_all(folder / "out/copy", error);
    EXPECT_TRUE(fs::is_empty(folder / "out"));
  }
}

}  // namespace
}  // namespace nacre::cli
