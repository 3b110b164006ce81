// The server against libvncclient, and against clients that behave badly.

#include "display/vnc_server.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <linux/input-event-codes.h>
#include <poll.h>
#include <rfb/rfbclient.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>
#include <zlib.h>

#include <array>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <span>
#include <stdexcept>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "display/clipboard.h"
#include "display/keys.h"

#undef TRUE
#undef FALSE
#undef max
#undef min

namespace nacre::display {
namespace {

void Silent(const char*, ...) {}

struct TestScreen final : Screen {
  struct Picture final : Frame {
    void Draw(Surface& to) const override {
      to.Resize(width, height);
      const std::vector<uint32_t> black(width, 0);
      std::vector<uint32_t> row(width, color);
      for (unsigned y = 0; y < height; ++y) to.PutRow(y, y == at ? row.data() : black.data());
    }
    unsigned width = 0, height = 0, at = 0;
    uint32_t color = 0;
  };
  std::unique_ptr<Frame> Capture() override {
    ++captures;
    return std::make_unique<Picture>(now);
  }
  Cursor cursor() const override { return pointer; }
  bool RequestSize(unsigned width, unsigned height) override {
    asked_width = width;
    asked_height = height;
    return sizable;
  }
  Picture now;
  Cursor pointer;
  int captures = 0;
  bool sizable = false;
  unsigned asked_width = 0, asked_height = 0;
};

struct TestClipboard final : Clipboard {
  void Offer(std::string text) override { offered.push_back(std::move(text)); }
  void Listen(std::function<void(std::string)> copied) override { tell = std::move(copied); }
  std::vector<std::string> offered;
  std::function<void(std::string)> tell;
};

struct TestInput final : InputSink {
  void Key(uint16_t code, bool down) override { keys.push_back({code, down}); }
  bool keys_taken() const override { return true; }
  void MovePointer(const PointerMove& move) override { moves.push_back(move); }
  uint8_t leds() const override { return lit; }
  std::vector<KeyStroke> keys;
  std::vector<PointerMove> moves;
  uint8_t lit = 0;
};

/// A client byte by byte.
struct RawClient {
  explicit RawClient(Fd socket) : fd(std::move(socket)) {
    const timeval patience{.tv_sec = 60, .tv_usec = 0};
    EXPECT_EQ(setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)), 0);
  }
  void Send(std::span<const uint8_t> bytes) const {
    EXPECT_EQ(write(fd.get(), bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  }
  void Send(const std::vector<uint8_t>& bytes) const { Send(std::span(bytes)); }
  std::vector<uint8_t> Receive(size_t size) const {
    std::vector<uint8_t> bytes(size);
    if (recv(fd.get(), bytes.data(), size, MSG_WAITALL) != static_cast<ssize_t>(size))
      throw std::runtime_error("hung up");
    return bytes;
  }
  uint32_t Word() const {
    const auto bytes = Receive(4);
    return static_cast<uint32_t>(bytes[0]) << 24 | bytes[1] << 16 | bytes[2] << 8 | bytes[3];
  }
  void Hello() const {
    Receive(12);
    Send({'R', 'F', 'B', ' ', '0', '0', '3', '.', '0', '0', '8', '\n'});
    Receive(Receive(1)[0]);
    Send({1});  // no authentication
    Receive(4);
    Send({1});
    Receive(Receive(24)[23]);
  }
  const Fd fd;
};

class VncTest : public testing::Test {
 protected:
  VncTest() {
    rfbClientLog = rfbClientErr = Silent;
    screen_.now.width = 320;
    screen_.now.height = 200;
    screen_.now.at = 70;
    screen_.now.color = 0x102030;
  }
  void Start(VncOptions options = {.host = "127.0.0.1"}) {
    auto started = VncServer::Start(options, screen_, input_, lock_, &clipboard_);
    ASSERT_TRUE(started) << started.error().message;
    server_ = std::move(*started);
  }
  struct FreeClient {
    void operator()(rfbClient* client) const {
      free(client->frameBuffer);
      free(client->rcSource);
      free(client->rcMask);
      rfbClientCleanup(client);
    }
  };
  using Client = std::unique_ptr<rfbClient, FreeClient>;
  /// Null when the server does not let it in. `password` must live on.
  Client Connect(const char* password = nullptr, bool cursors = false) {
    Client client(rfbGetClient(8, 3, 4));
    client->serverHost = strdup("127.0.0.1");
    client->serverPort = server_->port();
    client->canHandleNewFBSize = 1;
    client->appData.useRemoteCursor = cursors;
    client->connectTimeout = 10;
    client->readTimeout = 10;
    rfbClientSetClientData(client.get(), &password_key_, const_cast<char*>(password));
    client->GetPassword = [](rfbClient* asking) {
      const void* known = rfbClientGetClientData(asking, &password_key_);
      return known ? strdup(static_cast<const char*>(known)) : nullptr;
    };
    if (rfbInitClient(client.get(), nullptr, nullptr)) return client;
    (void)client.release();  // freed by the failure
    return nullptr;
  }
  template <typename Condition>
  bool Until(rfbClient* client, Condition condition) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!condition()) {
      if (std::chrono::steady_clock::now() > end) return false;
      if (!client) {
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
        continue;
      }
      // What came with the message before is in the library's buffer, of which its wait knows nothing.
      const int ready = client->buffered > 0 ? 1 : WaitForMessage(client, 20'000);
      if (ready < 0 || (ready > 0 && !HandleRFBServerMessage(client))) return false;
    }
    return true;
  }
  static uint32_t Pixel(const rfbClient* client, int x, int y) {
    if (!client->frameBuffer || x >= client->width || y >= client->height) return 0xffffffff;
    uint32_t pixel = 0;
    std::memcpy(&pixel, client->frameBuffer + (y * client->width + x) * 4, 4);
    const auto& format = client->format;
    return (pixel >> format.redShift & 255) << 16 | (pixel >> format.greenShift & 255) << 8 |
           (pixel >> format.blueShift & 255);
  }
  size_t Keys() {
    const std::lock_guard lock(lock_);
    return input_.keys.size();
  }
  Fd Raw() {
    Fd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(server_->port());
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    return fd;
  }

  std::vector<std::string> Offered() {
    const std::lock_guard lock(lock_);
    return clipboard_.offered;
  }
  /// In the guest.
  void Copy(std::string text) {
    const std::lock_guard lock(lock_);
    clipboard_.tell(std::move(text));
  }

  inline static int password_key_ = 0, text_key_ = 0, shape_key_ = 0;
  std::mutex lock_;
  TestScreen screen_;
  TestInput input_;
  TestClipboard clipboard_;
  std::unique_ptr<VncServer> server_;
};

TEST_F(VncTest, ShowsTheScreenItsChangesAndItsNewSizes) {
  Start();
  const Client client = Connect();
  ASSERT_TRUE(client);
  ASSERT_TRUE(Until(client.get(), [&] { return Pixel(client.get(), 319, 70) == 0x102030; }));
  EXPECT_EQ(client->width, 320);
  EXPECT_EQ(Pixel(client.get(), 0, 71), 0u);
  {
    const std::lock_guard lock(lock_);
    screen_.now.color = 0xff8001;
  }
  ASSERT_TRUE(Until(client.get(), [&] { return Pixel(client.get(), 5, 70) == 0xff8001; }));
  {
    const std::lock_guard lock(lock_);
    screen_.now.width = 640;
    screen_.now.height = 480;
    screen_.now.at = 479;
  }
  ASSERT_TRUE(Until(client.get(), [&] { return Pixel(client.get(), 639, 479) == 0xff8001; }));
}

TEST_F(VncTest, OnlyTilesThatHaveChangedAreSent) {
  Start();
  const RawClient client(Raw());
  client.Hello();
  client.Send({2, 0, 0, 1, 0, 0, 0, 0});  // raw
  // The rectangles of the next update: x, y, width, height.
  const auto next = [&](uint8_t incremental) {
    client.Send({3, incremental, 0, 0, 0, 0, 1, 64, 0, 200});
    std::vector<std::array<unsigned, 4>> rectangles(client.Receive(4)[3]);
    for (auto& r : rectangles) {
      for (unsigned& value : r) {
        const auto bytes = client.Receive(2);
        value = static_cast<unsigned>(bytes[0] << 8 | bytes[1]);
      }
      EXPECT_EQ(client.Word(), 0u);
      client.Receive(size_t{r[2]} * r[3] * 4);
    }
    return rectangles;
  };
  unsigned pixels = 0;
  for (const auto& r : next(0)) pixels += r[2] * r[3];
  EXPECT_GE(pixels, 320u * 200);
  for (const uint32_t color : {0xff0000u, 0x00ff00u}) {
    {
      const std::lock_guard lock(lock_);
      screen_.now.color = color;
    }
    const auto rectangles = next(1);
    EXPECT_FALSE(rectangles.empty());
    for (const auto& r : rectangles) {  // row 70 is in the second row of tiles
      EXPECT_GE(r[1], Surface::kTile);
      EXPECT_LE(r[1] + r[3], 2 * Surface::kTile);
    }
  }
}

TEST_F(VncTest, TheCursorIsTheClientsOrIsDrawn) {
  Start();
  auto image = std::make_shared<CursorImage>();
  *image = {.width = 2, .height = 1, .hot_x = 1, .hot_y = 0, .argb = {0xff123456, 0x00ffffff}};
  screen_.pointer = {.image = image, .x = 20, .y = 100};
  const Client knows = Connect(nullptr, true), other = Connect();
  ASSERT_TRUE(knows && other);
  std::vector<int> shape;
  rfbClientSetClientData(knows.get(), &shape_key_, &shape);
  knows->GotCursorShape = [](rfbClient* asked, int hot_x, int hot_y, int width, int height, int pixel_bytes) {
    uint32_t pixel = 0;
    std::memcpy(&pixel, asked->rcSource, 4);
    *static_cast<std::vector<int>*>(rfbClientGetClientData(asked, &shape_key_)) = {
        hot_x, hot_y, width, height, pixel_bytes, asked->rcMask[0], asked->rcMask[1], static_cast<int>(pixel != 0)};
  };
  ASSERT_TRUE(Until(knows.get(), [&] { return !shape.empty(); }));
  EXPECT_EQ(shape, (std::vector<int>{1, 0, 2, 1, 4, 1, 0, 1}));
  ASSERT_TRUE(Until(other.get(), [&] { return Pixel(other.get(), 20, 100) == 0x123456; }));
  EXPECT_EQ(Pixel(other.get(), 21, 100), 0u) << "transparent";
  {
    const std::lock_guard lock(lock_);
    screen_.pointer.x = 200;
  }
  ASSERT_TRUE(Until(other.get(), [&] { return Pixel(other.get(), 200, 100) == 0x123456; }));
  EXPECT_EQ(Pixel(other.get(), 20, 100), 0u);
}

TEST_F(VncTest, WithoutClientsNobodyLooksAtTheScreen) {
  Start();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  const std::lock_guard lock(lock_);
  EXPECT_EQ(screen_.captures, 0);
}

TEST_F(VncTest, PasswordsAreChecked) {
  Start({.host = "127.0.0.1", .password = "nacre"});
  EXPECT_FALSE(Connect());
  EXPECT_FALSE(Connect("wrong"));
  EXPECT_TRUE(Connect("nacre"));
}

/// RFB's ExtendedDesktopSize: each request is answered at once, a new size is told when the guest has taken it.
TEST_F(VncTest, ARequestForASizeIsForwardedOrRefused) {
  constexpr uint8_t kForwarded = 4, kProhibited = 1;
  Start();
  const RawClient client(Raw());
  client.Hello();
  // The next rectangle of ExtendedDesktopSize: reason, status, width, height.
  const auto next = [&] {
    for (;;) {
      const unsigned count = client.Receive(4)[3];
      for (unsigned i = 0; i < count; ++i) {
        const auto r = client.Receive(12);
        const auto word = [&](size_t at) { return r[at] << 8 | r[at + 1]; };
        if (r[8] == 0) {  // raw
          client.Receive(static_cast<size_t>(word(4)) * static_cast<size_t>(word(6)) * 4);
          continue;
        }
        client.Receive(3 + size_t{16} * client.Receive(1)[0]);
        return std::vector<int>{word(0), word(2), word(4), word(6)};
      }
      client.Send({3, 1, 0, 0, 0, 0, 1, 64, 0, 200});
    }
  };
  client.Send({2, 0, 0, 2, 0, 0, 0, 0, 0xff, 0xff, 0xfe, 0xcc});
  for (const uint8_t answer : {kProhibited, kForwarded}) {
    {
      const std::lock_guard lock(lock_);
      screen_.sizable = answer == kForwarded;
    }
    client.Send({251, 0, 2, 0, 1, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 2, 0, 1, 0, 0, 0, 0, 0});
    client.Send({3, 1, 0, 0, 0, 0, 1, 64, 0, 200});
    EXPECT_EQ(next(), (std::vector<int>{1, answer, 320, 200}));
    const std::lock_guard lock(lock_);
    EXPECT_EQ(screen_.asked_width, 512u);
    EXPECT_EQ(screen_.asked_height, 256u);
  }
  {
    const std::lock_guard lock(lock_);
    screen_.now.width = 512;
    screen_.now.height = 256;
  }
  client.Send({3, 1, 0, 0, 0, 0, 1, 64, 0, 200});
  const auto told = next();
  EXPECT_EQ(told[2], 512);
  EXPECT_EQ(told[3], 256);
}

TEST_F(VncTest, TextGoesBothWaysAsLatin1) {
  Start();
  const Client client = Connect();
  ASSERT_TRUE(client);
  std::string text = "caf\xe9\r\n";
  ASSERT_TRUE(SendClientCutText(client.get(), text.data(), static_cast<int>(text.size())));
  ASSERT_TRUE(Until(nullptr, [&] { return !Offered().empty(); }));
  EXPECT_EQ(Offered(), std::vector<std::string>{"caf\u00e9\n"});
  std::string got;
  rfbClientSetClientData(client.get(), &text_key_, &got);
  client->GotXCutText = [](rfbClient* asked, const char* bytes, int size) {
    static_cast<std::string*>(rfbClientGetClientData(asked, &text_key_))->assign(bytes, static_cast<size_t>(size));
  };
  Copy("two\nlines, \u00e9\u20ac");
  ASSERT_TRUE(Until(client.get(), [&] { return !got.empty(); }));
  EXPECT_EQ(got, "two\nlines, \xe9?");
}

/// The RFB protocol's community description, "Extended Clipboard Pseudo-Encoding".
TEST_F(VncTest, TextGoesBothWaysAsUtf8) {
  constexpr uint32_t kText = 1, kCaps = 1 << 24, kRequest = 1 << 25, kNotify = 1 << 27, kProvide = 1 << 28;
  Start();
  const RawClient client(Raw());
  client.Hello();
  const auto next = [&] {  // a ServerCutText message with a negative size
    EXPECT_EQ(client.Receive(4)[0], 3);
    return -client.Word();
  };
  const auto send = [&](uint32_t flags, std::vector<uint8_t> rest = {}) {
    std::vector<uint8_t> message{6, 0, 0, 0};
    for (const uint32_t word : {-static_cast<uint32_t>(rest.size() + 4), flags})
      for (const int shift : {24, 16, 8, 0}) message.push_back(static_cast<uint8_t>(word >> shift));
    message.insert(message.end(), rest.begin(), rest.end());
    client.Send(message);
  };
  client.Send({2, 0, 0, 2, 0, 0, 0, 0, 0xc0, 0xa1, 0xe5, 0xce});
  const auto sizes = next();
  EXPECT_TRUE(client.Word() & kCaps);
  client.Receive(sizes - 4);
  send(kCaps | kRequest | kNotify | kProvide | kText, {0, 0, 0, 0});

  std::vector<uint8_t> plain{0, 0, 0, 9};
  for (const char c : std::string_view("\u20ac\r\nabc", 8)) plain.push_back(static_cast<uint8_t>(c));
  plain.push_back(0);
  std::vector<uint8_t> packed(100);
  z_stream stream{};
  ASSERT_EQ(deflateInit(&stream, 6), Z_OK);
  stream.next_in = plain.data();
  stream.avail_in = static_cast<unsigned>(plain.size());
  stream.next_out = packed.data();
  stream.avail_out = static_cast<unsigned>(packed.size());
  ASSERT_EQ(deflate(&stream, Z_SYNC_FLUSH), Z_OK);
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  send(kProvide | kText, packed);
  ASSERT_TRUE(Until(nullptr, [&] { return !Offered().empty(); }));
  EXPECT_EQ(Offered(), std::vector<std::string>{"\u20ac\nabc"});

  Copy("\U0001f40c\n");
  EXPECT_EQ(next(), 4u);
  EXPECT_EQ(client.Word(), kNotify | kText);
  send(kRequest | kText);
  const uint32_t size = next();
  EXPECT_EQ(client.Word(), kProvide | kText);
  const auto bytes = client.Receive(size - 4);
  std::vector<uint8_t> text(100);
  uLongf text_size = text.size();
  ASSERT_EQ(uncompress(text.data(), &text_size, bytes.data(), bytes.size()), Z_OK);
  EXPECT_EQ(std::string(text.begin(), text.begin() + static_cast<ptrdiff_t>(text_size)),
            std::string("\0\0\0\x07\U0001f40c\r\n\0", 11));
}

TEST_F(VncTest, WhoHasNotGivenThePasswordIsNotTold) {
  Start({.host = "127.0.0.1", .password = "nacre"});
  const RawClient stranger(Raw());
  stranger.Receive(12);
  stranger.Send({'R', 'F', 'B', ' ', '0', '0', '3', '.', '0', '0', '8', '\n'});
  stranger.Receive(stranger.Receive(1)[0]);
  const Client client = Connect("nacre");
  ASSERT_TRUE(client);
  bool told = false;
  rfbClientSetClientData(client.get(), &text_key_, &told);
  client->GotXCutText = [](rfbClient* asked, const char*, int) {
    *static_cast<bool*>(rfbClientGetClientData(asked, &text_key_)) = true;
  };
  Copy("for people with a password");
  Copy("the second one");
  ASSERT_TRUE(Until(client.get(), [&] { return told; }));
  stranger.Send({2});  // VNC authentication: all that comes is a challenge
  stranger.Receive(16);
  char byte = 0;
  EXPECT_EQ(recv(stranger.fd.get(), &byte, 1, MSG_DONTWAIT), -1);
}

TEST_F(VncTest, KeysAreReleasedWhenAClientGoes) {
  Start();
  {
    const Client client = Connect();
    ASSERT_TRUE(client);
    SendKeyEvent(client.get(), 'a', 1);
    SendKeyEvent(client.get(), 'a', 0);
    SendKeyEvent(client.get(), '?', 1);     // without Shift
    SendKeyEvent(client.get(), 0x20ac, 1);  // there is no such key
    ASSERT_TRUE(Until(client.get(), [&] { return Keys() == 5; }));
  }
  ASSERT_TRUE(Until(nullptr, [&] { return Keys() == 6; }));
  const std::vector<KeyStroke> want{{KEY_A, true},     {KEY_A, false},         {KEY_LEFTSHIFT, true},
                                    {KEY_SLASH, true}, {KEY_LEFTSHIFT, false}, {KEY_SLASH, false}};
  EXPECT_EQ(input_.keys, want);
}

TEST_F(VncTest, ShiftIsWhatTheSymbolNeeds) {
  Start();
  input_.lit = kCapsLockLed;
  const Client client = Connect();
  ASSERT_TRUE(client);
  SendKeyEvent(client.get(), 'A', 1);  // Caps Lock makes it
  SendKeyEvent(client.get(), 0xffe1, 1);
  SendKeyEvent(client.get(), '/', 1);  // a layout that has it with Shift
  ASSERT_TRUE(Until(client.get(), [&] { return Keys() == 5; }));
  const std::lock_guard lock(lock_);
  const std::vector<KeyStroke> want{
      {KEY_A, true}, {KEY_LEFTSHIFT, true}, {KEY_LEFTSHIFT, false}, {KEY_SLASH, true}, {KEY_LEFTSHIFT, true}};
  EXPECT_EQ(input_.keys, want);
}

TEST_F(VncTest, PointerMovesAreRelative) {
  Start();
  const Client client = Connect();
  ASSERT_TRUE(client);
  SendPointerEvent(client.get(), 100, 50, 0);
  SendPointerEvent(client.get(), 110, 45, rfbButton1Mask | rfbButton3Mask);
  SendPointerEvent(client.get(), 110, 45, 8);
  ASSERT_TRUE(Until(client.get(), [&] {
    const std::lock_guard lock(lock_);
    return input_.moves.size() == 3;
  }));
  const std::lock_guard lock(lock_);
  EXPECT_EQ(input_.moves[0].dx, 0);
  EXPECT_EQ(input_.moves[1].dx, 10);
  EXPECT_EQ(input_.moves[1].dy, -5);
  EXPECT_EQ(input_.moves[1].buttons, kLeftButton | kRightButton);
  EXPECT_EQ(input_.moves[2].wheel, 1);
  EXPECT_EQ(input_.moves[2].buttons, 0);
}

TEST_F(VncTest, QemusExtendedKeyEventsNameKeys) {
  Start();
  const Fd fd = Raw();
  // Version, no authentication, shared; then encodings with -258, and the right Alt key without a symbol.
  const std::string hello("RFB 003.008\n\x01\x01", 14);
  ASSERT_EQ(write(fd.get(), hello.data(), hello.size()), 14);
  const std::string rest("\x02\x00\x00\x01\xff\xff\xfe\xfe\xff\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\xb8", 20);
  ASSERT_EQ(write(fd.get(), rest.data(), rest.size()), 20);
  ASSERT_TRUE(Until(nullptr, [&] { return Keys() == 1; }));
  EXPECT_EQ(input_.keys[0], (KeyStroke{KEY_RIGHTALT, true}));
}

TEST_F(VncTest, ClientsAreCountedAndSilentOnesDropped) {
  Start();
  std::vector<Fd> fds;
  for (unsigned i = 0; i < VncOptions::kMaxClients + 2; ++i) fds.push_back(Raw());
  // Those beyond the most are closed without a word; none of them keeps the server from its end.
  ASSERT_TRUE(Until(nullptr, [&] {
    char byte = 0;
    return recv(fds.back().get(), &byte, 1, MSG_DONTWAIT) == 0;
  }));
}

TEST_F(VncTest, RubbishDoesNotHurt) {
  Start();
  std::mt19937 random(20261122);
  for (int round = 0; round < 60; ++round) {
    const Fd fd = Raw();
    std::string bytes = round % 3 == 0 ? std::string() : std::string("RFB 003.008\n\x01\x01", 14);
    const size_t length = random() % 3000;
    while (bytes.size() < length) bytes.push_back(static_cast<char>(round % 2 ? random() % 12 : random()));
    send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    shutdown(fd.get(), SHUT_WR);
    pollfd wait{fd.get(), POLLIN, 0};
    poll(&wait, 1, 20);
  }
  ASSERT_TRUE(Until(nullptr, [&] { return Connect() != nullptr; }));
}

TEST_F(VncTest, AUnixSocketIsForItsOwnerAndGoesAway) {
  const std::string path = testing::TempDir() + "nacre-vnc-" + std::to_string(getpid());
  std::ofstream(path + ".note") << "x";
  for (int round = 0; round < 2; ++round) {
    Start({.host = {}, .unix_path = path});
    EXPECT_EQ(std::filesystem::status(path).permissions(),
              std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
    Fd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    ASSERT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    char version[12];
    ASSERT_EQ(recv(fd.get(), version, sizeof(version), MSG_WAITALL), 12);
    EXPECT_EQ(std::string_view(version, 12), "RFB 003.008\n");
    const auto second = VncServer::Start({.host = {}, .unix_path = path}, screen_, input_, lock_);
    EXPECT_FALSE(second) << "somebody else listens there";
    server_.reset();
    EXPECT_FALSE(std::filesystem::exists(path));
  }
  std::filesystem::remove(path + ".note");
}

TEST(VncOptions, AddressesPasswordsAndMistakes) {
  const auto local = ParseVncOptions("127.0.0.1:5901");
  ASSERT_TRUE(local);
  EXPECT_EQ(local->host, "127.0.0.1");
  EXPECT_EQ(local->port, 5901);
  EXPECT_EQ(ParseVncOptions("[::1]:0")->host, "::1");
  EXPECT_EQ(ParseVncOptions("unix:/tmp/x")->unix_path, "/tmp/x");
  const std::string file = testing::TempDir() + "nacre-vnc-password-" + std::to_string(getpid());
  std::ofstream(file) << "secret\nsecond line\n";
  const auto open = ParseVncOptions("0.0.0.0:5900,password=" + file);
  ASSERT_TRUE(open) << open.error().message;
  EXPECT_EQ(open->password, "secret");
  std::ofstream(file) << "much too long\n";
  EXPECT_FALSE(ParseVncOptions("127.0.0.1:5900,password=" + file));
  std::filesystem::remove(file);
  for (const std::string wrong : {"", "5900", ":5900", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:59x",
                                  "unix:", "0.0.0.0:5900", "127.0.0.1:1,secret", "127.0.0.1:1,password=/nowhere"})
    EXPECT_FALSE(ParseVncOptions(wrong)) << wrong;
}

}  // namespace
}  // namespace nacre::display
