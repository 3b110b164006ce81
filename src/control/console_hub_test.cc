#include "control/console_hub.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <fstream>

#include "control/control_testing.h"

namespace nacre::control {
namespace {

/// The machine's end of the console.
class Guest {
 public:
  explicit Guest(Fd fd) : fd_(std::move(fd)) {}
  void Print(std::string_view text) {
    while (!text.empty()) {
      const ssize_t sent = send(fd_.get(), text.data(), text.size(), MSG_NOSIGNAL);
      ASSERT_GT(sent, 0);
      text.remove_prefix(static_cast<size_t>(sent));
    }
  }
  std::string Read(size_t size) {
    std::string got(size, '\0');
    EXPECT_EQ(recv(fd_.get(), got.data(), size, MSG_WAITALL), static_cast<ssize_t>(size));
    return got;
  }
  void Close() { fd_.Close(); }

 private:
  Fd fd_;
};

class ConsoleHubTest : public testing::Test {
 protected:
  ConsoleHubTest() {
    int ends[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    guest_.emplace(Fd(ends[0]));
    auto hub = ConsoleHub::Create(folder_ / "console", folder_ / "log", Fd(ends[1]));
    EXPECT_TRUE(hub) << hub.error().message;
    hub_ = std::move(*hub);
  }
  Fd Watch() {
    auto fd = ConnectSocket(folder_ / "console");
    EXPECT_TRUE(fd) << fd.error().message;
    return std::move(*fd);
  }
  static std::string Read(const Fd& fd, size_t size) {
    std::string got(size, '\0');
    const ssize_t count = recv(fd.get(), got.data(), size, MSG_WAITALL);
    got.resize(static_cast<size_t>(std::max<ssize_t>(count, 0)));
    return got;
  }
  std::string Log() const {
    std::ifstream file(folder_ / "log", std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  ScratchFolder folder_;
  std::optional<Guest> guest_;
  std::unique_ptr<ConsoleHub> hub_;
};

TEST_F(ConsoleHubTest, AllWatchersSeeAndTypeAndTheLogHasIt) {
  const Fd first = Watch(), second = Watch();
  guest_->Print("hello\n");
  EXPECT_EQ(Read(first, 6), "hello\n");
  EXPECT_EQ(Read(second, 6), "hello\n");
  ASSERT_EQ(send(first.get(), "ab", 2, 0), 2);
  EXPECT_EQ(guest_->Read(2), "ab");
  ASSERT_EQ(send(second.get(), "cd", 2, 0), 2);
  EXPECT_EQ(guest_->Read(2), "cd");
  guest_->Print("the end\n");
  guest_->Close();
  hub_.reset();
  EXPECT_EQ(Log(), "hello\nthe end\n");
  EXPECT_EQ(Read(first, 100), "the end\n");  // and its end
}

TEST_F(ConsoleHubTest, WhoComesLateSeesThePast) {
  guest_->Print("one\ntwo\n");
  const Fd first = Watch();
  EXPECT_EQ(Read(first, 8), "one\ntwo\n");
  const Fd late = Watch();
  EXPECT_EQ(Read(late, 8), "one\ntwo\n");
}

TEST_F(ConsoleHubTest, ThePastIsBoundedAndBeginsWithALine) {
  std::string line(99, 'x');
  line += '\n';
  const size_t lines = ConsoleHub::kScrollbackBytes / 50;
  const Fd first = Watch();
  std::thread printing([&] {
    for (size_t i = 0; i < lines; ++i) guest_->Print(line);
    guest_->Print("!");
  });
  EXPECT_EQ(Read(first, lines * 100 + 1).back(), '!');
  printing.join();
  const Fd late = Watch();
  std::string past;
  while (!past.ends_with('!')) {
    const std::string more = Read(late, 1);
    ASSERT_FALSE(more.empty());
    past += more;
  }
  EXPECT_LE(past.size(), ConsoleHub::kScrollbackBytes);
  EXPECT_GE(past.size(), ConsoleHub::kScrollbackBytes / 2);
  EXPECT_EQ(past.substr(0, 100), line);
}

TEST_F(ConsoleHubTest, AWatcherThatDoesNotReadIsHungUpOnAndHoldsNobodyBack) {
  const Fd idle = Watch(), reader = Watch();
  const std::string block(64 * 1024, 'y');
  const size_t blocks = ConsoleHub::kMaxPendingBytes / block.size() + 16;  // sockets hold some too
  std::thread printing([&] {
    for (size_t i = 0; i < blocks; ++i) guest_->Print(block);
  });
  EXPECT_EQ(Read(reader, blocks * block.size()).size(), blocks * block.size());
  printing.join();
  size_t got = 0;
  for (std::string some = Read(idle, 4096); !some.empty(); some = Read(idle, 4096)) got += some.size();
  EXPECT_LT(got, blocks * block.size());
}

TEST_F(ConsoleHubTest, AGuestThatDoesNotReadHoldsTypistsBackOnly) {
  const Fd typist = Watch(), reader = Watch();
  const std::string block(4096, 'z');
  size_t typed = 0;
  // As much as all buffers on the way hold.
  for (int quiet = 0; quiet < 20;) {
    const ssize_t sent = send(typist.get(), block.data(), block.size(), MSG_DONTWAIT);
    if (sent > 0) {
      typed += static_cast<size_t>(sent);
      quiet = 0;
      ASSERT_LT(typed, 64u * 1024 * 1024);
    } else {
      ++quiet;
      poll(nullptr, 0, 5);
    }
  }
  guest_->Print("still here");
  EXPECT_EQ(Read(reader, 10), "still here");
  EXPECT_EQ(guest_->Read(typed), std::string(typed, 'z'));  // nothing was lost
}

TEST_F(ConsoleHubTest, TooManyWatchersAreTold) {
  std::vector<Fd> watchers;
  for (size_t i = 0; i < ConsoleHub::kMaxWatchers; ++i) watchers.push_back(Watch());
  guest_->Print("x");
  for (const Fd& watcher : watchers) EXPECT_EQ(Read(watcher, 1), "x");
  const Fd refused = Watch();
  EXPECT_NE(Read(refused, 1000).find("too many"), std::string::npos);
  watchers.clear();
  // There is room again once their ends are seen.
  std::string got;
  for (int i = 0; i < 6000 && got != "x"; ++i) {
    const Fd next = Watch();
    got = Read(next, 1);
    if (got != "x") poll(nullptr, 0, 10);
  }
  EXPECT_EQ(got, "x");
}

TEST_F(ConsoleHubTest, WhoEndsItsInputStillSees) {
  const Fd watcher = Watch();
  ASSERT_EQ(send(watcher.get(), "q", 1, 0), 1);
  shutdown(watcher.get(), SHUT_WR);
  EXPECT_EQ(guest_->Read(1), "q");
  guest_->Print("answer");
  EXPECT_EQ(Read(watcher, 6), "answer");
}

}  // namespace
}  // namespace nacre::control
