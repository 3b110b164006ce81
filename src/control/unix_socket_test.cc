#include "control/unix_socket.h"

#include <sys/stat.h>
#include <sys/un.h>

#include <fstream>
#include <thread>

#include "control/control_testing.h"

namespace nacre::control {
namespace {

size_t FilesIn(const ScratchFolder& folder) {
  size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder.path())) ++count;
  return count;
}

/// What a process leaves that was killed.
void LeaveDeadSocket(const std::string& path) {
  const Fd fd(socket(AF_UNIX, SOCK_STREAM, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  ASSERT_EQ(bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
}

TEST(UnixSocket, OnlyItsUserMayUseItAndItGoesWithItsOwner) {
  const ScratchFolder folder;
  const std::string path = folder / "s";
  const mode_t before = umask(0);
  {
    const auto listening = ListeningSocket::Create(path);
    umask(before);
    ASSERT_TRUE(listening) << listening.error().message;
    struct stat status {};
    ASSERT_EQ(stat(path.c_str(), &status), 0);
    EXPECT_TRUE(S_ISSOCK(status.st_mode));
    EXPECT_EQ(status.st_mode & 0777, 0600u);
    EXPECT_TRUE(ConnectSocket(path));
    EXPECT_EQ(FilesIn(folder), 1u);
  }
  EXPECT_EQ(FilesIn(folder), 0u);
  EXPECT_EQ(ConnectSocket(path).error().code, ENOENT);
}

TEST(UnixSocket, ADeadOneIsReplacedOneInUseIsNot) {
  const ScratchFolder folder;
  const std::string path = folder / "s";
  LeaveDeadSocket(path);
  EXPECT_EQ(ConnectSocket(path).error().code, ECONNREFUSED);
  const auto first = ListeningSocket::Create(path);
  ASSERT_TRUE(first) << first.error().message;
  const auto second = ListeningSocket::Create(path);
  ASSERT_FALSE(second);
  EXPECT_NE(second.error().message.find(path + ": another process listens there"), std::string::npos)
      << second.error().message;
  EXPECT_TRUE(ConnectSocket(path));
  EXPECT_EQ(FilesIn(folder), 1u);
}

TEST(UnixSocket, OtherFilesAreLeftAlone) {
  const ScratchFolder folder;
  const std::string path = folder / "s";
  std::ofstream(path) << "text";
  const auto refused = ListeningSocket::Create(path);
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message.find("no socket"), std::string::npos) << refused.error().message;
  EXPECT_EQ(std::filesystem::file_size(path), 4u);
  EXPECT_EQ(FilesIn(folder), 1u);
}

TEST(UnixSocket, AnotherOneInItsPlaceStays) {
  const ScratchFolder folder;
  const std::string path = folder / "s";
  {
    const auto listening = ListeningSocket::Create(path);
    ASSERT_TRUE(listening);
    std::filesystem::remove(path);
    LeaveDeadSocket(path);
  }
  EXPECT_TRUE(std::filesystem::is_socket(path));
}

TEST(UnixSocket, BadPathsAreNamed) {
  const ScratchFolder folder;
  const std::string long_path = folder / std::string(108, 'x');
  for (const std::string& path : {std::string(), folder / "", folder / "none/s", long_path}) {
    const auto refused = ListeningSocket::Create(path);
    ASSERT_FALSE(refused) << path;
    EXPECT_NE(refused.error().message.find(path), std::string::npos) << refused.error().message;
  }
  EXPECT_NE(ListeningSocket::Create(long_path).error().message.find("107 bytes"), std::string::npos);
  EXPECT_NE(ConnectSocket(long_path).error().message.find("107 bytes"), std::string::npos);
  EXPECT_EQ(FilesIn(folder), 0u);
}

// The longest path works although the draft's name is longer.
TEST(UnixSocket, TheLongestPath) {
  const ScratchFolder folder;
  std::string inner = folder.path();
  while (inner.size() < 90) {
    inner += "/" + std::string(std::min<size_t>(40, 104 - inner.size()), 'd');
    ASSERT_TRUE(std::filesystem::create_directory(inner));
  }
  const std::string path = inner + "/" + std::string(106 - inner.size(), 's');
  ASSERT_EQ(path.size(), 107u);
  const auto listening = ListeningSocket::Create(path);
  ASSERT_TRUE(listening) << listening.error().message;
  EXPECT_TRUE(ConnectSocket(path));
}

TEST(UnixSocket, APathAsLongAsFilesMayHave) {
  const ScratchFolder folder;
  std::string inner = folder.path();
  for (int i = 0; i < 8; ++i) {
    inner += "/" + std::string(200, 'd');
    ASSERT_TRUE(std::filesystem::create_directory(inner));
  }
  const std::string path = inner + "/control";
  const auto listening = ListeningSocket::Create(path);
  ASSERT_TRUE(listening) << listening.error().message;
  EXPECT_TRUE(ConnectSocket(path));
  const auto second = ListeningSocket::Create(path);
  ASSERT_FALSE(second);
  EXPECT_NE(second.error().message.find("another process listens"), std::string::npos) << second.error().message;
  const auto missing = ConnectSocket(inner + "/none");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, ENOENT);
}

TEST(UnixSocket, OfManyThatFindADeadOneOneListens) {
  for (int round = 0; round < 20; ++round) {
    const ScratchFolder folder;
    const std::string path = folder / "s";
    LeaveDeadSocket(path);
    std::mutex mutex;
    std::vector<ListeningSocket> made;
    std::vector<std::thread> threads;
    for (int i = 0; i < 6; ++i) {
      threads.emplace_back([&] {
        auto one = ListeningSocket::Create(path);
        const std::lock_guard lock(mutex);
        if (one) made.push_back(std::move(*one));
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(made.size(), 1u);
    EXPECT_TRUE(ConnectSocket(path));
    EXPECT_EQ(FilesIn(folder), 1u);
  }
}

}  // namespace
}  // namespace nacre::control
