// The console on pipes and files: nothing is lost, whatever the pace of either side.
#include "machine/fd_console.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <deque>

namespace nacre::machine {
namespace {

/// A device that takes a few bytes at a time.
class SlowReceiver : public CharReceiver {
 public:
  size_t Room() override { return room_; }
  void Receive(std::span<const uint8_t> bytes) override {
    ASSERT_LE(bytes.size(), room_);
    room_ -= bytes.size();
    text_.append(bytes.begin(), bytes.end());
  }
  size_t room_ = 0;
  std::string text_;
};

class FdConsoleTest : public testing::Test {
 protected:
  FdConsoleTest() : loop_(std::move(EventLoop::Create(lock_).value())) {
    EXPECT_EQ(pipe(in_), 0);
    EXPECT_EQ(pipe(out_), 0);
  }
  ~FdConsoleTest() override {
    console_.reset();
    for (const int fd : {in_[0], in_[1], out_[0], out_[1]}) close(fd);
  }
  void Make(int input, bool terminal = false) {
    console_ = std::move(FdConsole::Create({input, out_[1], terminal, [this] { left_ = true; }}, *loop_).value());
    console_->SetReceiver(&receiver_);
  }
  void Send(std::string_view text) {
    ASSERT_EQ(write(in_[1], text.data(), text.size()), static_cast<ssize_t>(text.size()));
  }
  void Spin() {
    for (int i = 0; i < 5; ++i) loop_->RunOnce(1);
  }
  void GiveRoom(size_t room) {
    receiver_.room_ = room;
    console_->RoomAvailable();
    Spin();
  }
  std::string Output() {
    char text[8192];
    const ssize_t got = read(out_[0], text, sizeof(text));
    return {text, static_cast<size_t>(std::max<ssize_t>(got, 0))};
  }

  std::mutex lock_;
  std::unique_ptr<EventLoop> loop_;
  int in_[2], out_[2];
  SlowReceiver receiver_;
  std::unique_ptr<FdConsole> console_;
  bool left_ = false;
};

TEST_F(FdConsoleTest, InputWaitsForRoom) {
  Make(in_[0]);
  Send("hello, guest");
  Spin();
  EXPECT_EQ(receiver_.text_, "");
  GiveRoom(5);
  EXPECT_EQ(receiver_.text_, "hello");
  GiveRoom(100);
  EXPECT_EQ(receiver_.text_, "hello, guest");
  Send(" again");
  Spin();
  EXPECT_EQ(receiver_.text_, "hello, guest again");
}

TEST_F(FdConsoleTest, EndOfInputIsNoEnd) {
  Make(in_[0]);
  Send("last words");
  close(in_[1]);
  in_[1] = dup(0);
  GiveRoom(4);
  GiveRoom(100);
  EXPECT_EQ(receiver_.text_, "last words");
  EXPECT_FALSE(left_);
  console_->Write(std::vector<uint8_t>{'o', 'k'});
  Spin();
  EXPECT_EQ(Output(), "ok");
}

TEST_F(FdConsoleTest, FileAsInput) {
  const std::string path = testing::TempDir() + "nacre-console-" + std::to_string(getpid());
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600);
  unlink(path.c_str());
  const std::string text(10000, 'x');
  ASSERT_EQ(write(fd, text.data(), text.size()), 10000);
  lseek(fd, 0, SEEK_SET);
  Make(fd);
  for (int i = 0; i < 20; ++i) GiveRoom(1000);
  EXPECT_EQ(receiver_.text_, text);
  close(fd);
}

TEST_F(FdConsoleTest, LeaveKeyWorksWhileTheGuestReadsNothing) {
  Make(in_[0], true);
  Send("abc");
  Spin();
  Send(
      "d\x1d"
      "e");
  Spin();
  EXPECT_TRUE(left_);
  GiveRoom(100);
  EXPECT_EQ(receiver_.text_, "abcd");
}

TEST_F(FdConsoleTest, LeaveKeyIsDataOnAPipe) {
  Make(in_[0]);
  Send("\x1d");
  GiveRoom(10);
  EXPECT_FALSE(left_);
  EXPECT_EQ(receiver_.text_, "\x1d");
}

TEST_F(FdConsoleTest, OutputWaitsForASlowReader) {
  Make(-1);
  std::string expected, got;
  for (int i = 0; i < 3000; ++i) {
    const std::string line = "line " + std::to_string(i) + " of a long text that fills the pipe\n";
    expected += line;
    console_->Write({reinterpret_cast<const uint8_t*>(line.data()), line.size()});
  }
  ASSERT_GT(expected.size(), 70000u);
  while (got.size() < expected.size()) {
    Spin();
    got += Output();
  }
  EXPECT_TRUE(got == expected);
}

TEST_F(FdConsoleTest, FlushWritesAtOnce) {
  Make(-1);
  console_->Write(std::vector<uint8_t>{'b', 'y', 'e'});
  console_->Flush();
  EXPECT_EQ(Output(), "bye");
}

TEST_F(FdConsoleTest, GoneReaderIsNoTrouble) {
  signal(SIGPIPE, SIG_IGN);
  Make(-1);
  close(out_[0]);
  out_[0] = dup(0);
  console_->Write(std::vector<uint8_t>{'x'});
  Spin();
  console_->Write(std::vector<uint8_t>{'y'});
  console_->Flush();
}

}  // namespace
}  // namespace nacre::machine
