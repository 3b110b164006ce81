#include "display/vnc_server.h"

#include <linux/input-event-codes.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <rfb/rfb.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <bitset>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/fd.h"
#include "base/log.h"
#include "display/clipboard.h"
#include "display/keys.h"

extern "C" {
#include <rfb/rfbregion.h>
}

// libvncserver's headers define these.
#undef TRUE
#undef FALSE
#undef max
#undef min

namespace nacre::display {
namespace {

constexpr int64_t kFastNs = 33'000'000, kSlowNs = 250'000'000;
constexpr int kClientWaitMs = 3000;
constexpr unsigned kFirstWidth = 640, kFirstHeight = 480;
constexpr int kQemuExtendedKeys = -258;  // pseudo-encoding; the RFB protocol's community description
/// ExtendedDesktopSize's answer for what the guest decides later: the request is forwarded (same description).
constexpr int kSizeForwarded = 4;
constexpr uint8_t kQemuMessage = 255, kQemuKeyEvent = 0;

Result<Fd> ListenUnix(const std::string& path) {
  Fd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return FailErrno("--display vnc: socket");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  const auto* generic = reinterpret_cast<const sockaddr*>(&address);
  // What a process that is gone has left; one that lives answers.
  if (connect(fd.get(), generic, sizeof(address)) != 0 && errno == ECONNREFUSED) unlink(path.c_str());
  fd = Fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.valid() || bind(fd.get(), generic, sizeof(address)) != 0) return FailErrno("--display vnc:unix:{}", path);
  if (chmod(path.c_str(), 0600) != 0 || listen(fd.get(), 4) != 0) return FailErrno("--display vnc:unix:{}", path);
  return fd;
}

/// The smallest position of a PointerMove that a guest takes for this pixel.
uint16_t ScalePointer(int at, unsigned size) {
  const auto pixel = static_cast<uint32_t>(std::clamp(at, 0, static_cast<int>(size) - 1));
  constexpr uint32_t kPositions = uint32_t{kPointerRange} + 1;
  return static_cast<uint16_t>((pixel * kPositions + size - 1) / size);
}

Result<Fd> ListenTcp(const std::string& host, uint16_t port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found); error != 0)
    return Fail("--display vnc:{}:{}: {}", host, port, gai_strerror(error));
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> free_found(found, freeaddrinfo);
  Fd fd(socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  if (fd.valid()) setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (!fd.valid() || bind(fd.get(), found->ai_addr, found->ai_addrlen) != 0 || listen(fd.get(), 4) != 0)
    return FailErrno("--display vnc:{}:{}", host, port);
  return fd;
}

uint16_t PortOf(int fd) {
  sockaddr_storage address{};
  socklen_t size = sizeof(address);
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) return 0;
  if (address.ss_family == AF_INET) return ntohs(reinterpret_cast<sockaddr_in&>(address).sin_port);
  if (address.ss_family == AF_INET6) return ntohs(reinterpret_cast<sockaddr_in6&>(address).sin6_port);
  return 0;
}

void LibraryLog(const char* format, ...) {
  if (!LogEnabled(LogLevel::kDebug)) return;
  char text[256];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  LogDebug("vnc: {}", std::string_view(text).substr(0, std::strcspn(text, "\n")));
}

}  // namespace

class VncServer::Impl {
 public:
  Impl(const VncOptions& options, Fd listener, Screen& screen, InputSink& input, std::mutex& device_lock,
       Clipboard* clipboard)
      : options_(options),
        listener_(std::move(listener)),
        source_(screen),
        input_(input),
        device_lock_(device_lock),
        clipboard_(clipboard),
        wake_(eventfd(0, EFD_CLOEXEC)) {}
  ~Impl();
  Status Start();
  uint16_t port() const { return options_.unix_path.empty() ? PortOf(listener_.get()) : uint16_t{0}; }

 private:
  struct Client {
    std::bitset<KEY_CNT> pressed;
  };

  static Impl& Of(rfbClientPtr client) { return *static_cast<Impl*>(client->screen->screenData); }
  static rfbNewClientAction OnNewClient(rfbClientPtr client);
  static void OnClientGone(rfbClientPtr client);
  static void OnKey(rfbBool down, rfbKeySym symbol, rfbClientPtr client);
  static void OnPointer(int buttons, int x, int y, rfbClientPtr client);
  static rfbBool OnPseudoEncoding(rfbClientPtr client, void** data, int encoding);
  static rfbBool OnMessage(rfbClientPtr client, void* data, const rfbClientToServerMsg* message);
  static void RegisterExtension();
  static void OnCutText(char* text, int size, rfbClientPtr client);
  static void OnCutTextUtf8(char* text, int size, rfbClientPtr client);
  static int OnSetDesktopSize(int width, int height, int screens, rfbExtDesktopScreen* layout, rfbClientPtr client);

  void Loop();
  void Accept();
  void Refresh();
  void SetFormat();
  void ShowCursor(const Cursor& cursor);
  bool UpdateWanted();
  std::vector<rfbClientPtr> Clients();
  void PressSymbol(Client& client, uint32_t symbol, bool down);
  void SendKey(Client& client, uint16_t key, bool down);
  void OfferText(std::string text);
  void TellCopied();
  void Active() { interval_ns_ = kFastNs; }

  const VncOptions options_;
  Fd listener_;
  Screen& source_;
  InputSink& input_;
  std::mutex& device_lock_;
  Clipboard* const clipboard_;
  Fd wake_;
  std::thread thread_;

  std::mutex mutex_;  ///< for what follows; taken under the device lock
  bool stopping_ = false;
  std::optional<std::string> copied_;  ///< in the guest, and the clients have not been told

  // The thread's.
  Surface surface_;
  unsigned size_generation_ = 0;
  uint64_t drawn_ = 0;  ///< the screen's generation that surface_ shows; 0: unknown
  std::shared_ptr<const CursorImage> cursor_;
  rfbScreenInfoPtr rfb_ = nullptr;
  std::string password_;
  char* passwords_[2] = {};
  int64_t interval_ns_ = kFastNs;
  int pointer_x_ = 0, pointer_y_ = 0, wheel_buttons_ = 0;
  bool pointer_known_ = false;
};

// ---- Setting up and down.

Status VncServer::Impl::Start() {
  if (!wake_.valid()) return FailErrno("--display vnc: eventfd");
  rfbLog = rfbErr = LibraryLog;
  RegisterExtension();
  surface_.Resize(kFirstWidth, kFirstHeight);
  size_generation_ = surface_.size_generation();
  rfb_ = rfbGetScreen(nullptr, nullptr, kFirstWidth, kFirstHeight, 8, 3, 4);
  if (!rfb_) return Fail("--display vnc: libvncserver has no memory");
  SetFormat();
  rfb_->frameBuffer = reinterpret_cast<char*>(const_cast<uint32_t*>(surface_.pixels().data()));
  rfb_->desktopName = options_.name.c_str();
  rfb_->screenData = this;
  rfb_->cursor = nullptr;  // the guest draws its own
  rfb_->alwaysShared = 1;
  rfb_->deferUpdateTime = 0;
  rfb_->maxClientWait = kClientWaitMs;
  rfb_->ignoreSIGPIPE = 0;  // blocked by the thread
  rfb_->permitFileTransfer = 0;
  rfb_->newClientHook = OnNewClient;
  rfb_->setDesktopSizeHook = OnSetDesktopSize;
  rfb_->setXCutText = OnCutText;
  rfb_->setXCutTextUTF8 = OnCutTextUtf8;
  rfb_->kbdAddEvent = OnKey;
  rfb_->ptrAddEvent = OnPointer;
  if (!options_.password.empty()) {
    password_ = options_.password;
    passwords_[0] = password_.data();
    rfb_->authPasswdData = passwords_;
    rfb_->passwordCheck = rfbCheckPasswordByList;
  }
  rfb_->autoPort = 0;  // we listen and accept ourselves
  rfb_->port = rfb_->ipv6port = -1;
  rfb_->httpDir = nullptr;
  rfbInitServer(rfb_);
  if (clipboard_) {
    const std::lock_guard lock(device_lock_);
    clipboard_->Listen([this](std::string text) {
      const std::lock_guard copied_lock(mutex_);
      copied_ = std::move(text);
      eventfd_write(wake_.get(), 1);
    });
  }
  thread_ = std::thread([this] { Loop(); });
  pthread_setname_np(thread_.native_handle(), "vnc");
  return {};
}

VncServer::Impl::~Impl() {
  if (clipboard_) {
    const std::lock_guard lock(device_lock_);
    clipboard_->Listen(nullptr);
  }
  if (thread_.joinable()) {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    eventfd_write(wake_.get(), 1);
    thread_.join();
  }
  if (rfb_) {
    for (rfbClientPtr client : Clients()) {
      rfbCloseClient(client);
      rfbClientConnectionGone(client);
    }
    rfb_->frameBuffer = nullptr;  // the surface's
    rfbScreenCleanup(rfb_);
  }
  if (!options_.unix_path.empty()) unlink(options_.unix_path.c_str());
}

void VncServer::Impl::SetFormat() {
  rfb_->serverFormat.redShift = 16;
  rfb_->serverFormat.greenShift = 8;
  rfb_->serverFormat.blueShift = 0;
}

std::vector<rfbClientPtr> VncServer::Impl::Clients() {
  std::vector<rfbClientPtr> clients;
  rfbClientIteratorPtr iterator = rfbGetClientIterator(rfb_);
  while (rfbClientPtr client = rfbClientIteratorNext(iterator)) clients.push_back(client);
  rfbReleaseClientIterator(iterator);
  return clients;
}

// ---- The thread.

void VncServer::Impl::Loop() {
  // The library writes to clients that are gone: an error is enough. Other signals are for other threads.
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);
  int64_t next_ns = 0;
  for (;;) {
    std::vector<pollfd> fds{{wake_.get(), POLLIN, 0}, {listener_.get(), POLLIN, 0}};
    for (const rfbClientPtr client : Clients()) fds.push_back({client->sock, POLLIN, 0});
    int timeout_ms = -1;
    if (UpdateWanted())
      timeout_ms = static_cast<int>(std::clamp<int64_t>((next_ns - HostMonotonicNs() + 999'999) / 1'000'000, 0, 1000));
    if (poll(fds.data(), fds.size(), timeout_ms) < 0 && errno != EINTR) return;
    if (fds[0].revents) {
      eventfd_t count = 0;
      eventfd_read(wake_.get(), &count);
      if (const std::lock_guard lock(mutex_); stopping_) return;
      TellCopied();
    }
    if (fds[1].revents) Accept();
    rfbProcessEvents(rfb_, 0);
    next_ns = std::min(next_ns, HostMonotonicNs() + interval_ns_);
    if (!UpdateWanted() || HostMonotonicNs() < next_ns) continue;
    Refresh();
    rfbProcessEvents(rfb_, 0);
    next_ns = HostMonotonicNs() + interval_ns_;
  }
}

void VncServer::Impl::Accept() {
  Fd fd(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!fd.valid()) return;
  // The library waits with select.
  if (fd.get() >= FD_SETSIZE || Clients().size() >= VncOptions::kMaxClients) return;
  Refresh();  // the size that the client is told is the one of now
  rfbNewClient(rfb_, fd.Release());
}

/// A client that is through the handshake waits for changes.
bool VncServer::Impl::UpdateWanted() {
  return std::ranges::any_of(Clients(), [](rfbClientPtr client) {
    return client->state == rfbClientRec::RFB_NORMAL && !sraRgnEmpty(client->requestedRegion);
  });
}

void VncServer::Impl::Refresh() {
  std::unique_ptr<Frame> frame;
  Cursor cursor;
  {
    const std::lock_guard lock(device_lock_);
    cursor = source_.cursor();
    const uint64_t generation = source_.generation();
    if (generation == 0 || generation != drawn_) frame = source_.Capture();
    drawn_ = generation;
  }
  ShowCursor(cursor);
  if (frame) frame->Draw(surface_);
  interval_ns_ = surface_.changed() ? kFastNs : std::min(interval_ns_ * 5 / 4, kSlowNs);
  if (size_generation_ != surface_.size_generation()) {
    size_generation_ = surface_.size_generation();
    rfbNewFramebuffer(rfb_, reinterpret_cast<char*>(const_cast<uint32_t*>(surface_.pixels().data())),
                      static_cast<int>(surface_.width()), static_cast<int>(surface_.height()), 8, 3, 4);
    SetFormat();
    for (const rfbClientPtr client : Clients()) rfb_->setTranslateFunction(client);
    pointer_known_ = false;
    surface_.TakeChanged();
    return;
  }
  for (const Rectangle& r : surface_.TakeChanged())
    rfbMarkRectAsModified(rfb_, static_cast<int>(r.x), static_cast<int>(r.y), static_cast<int>(r.x + r.width),
                          static_cast<int>(r.y + r.height));
}

/// Clients that know cursors get it as one; the library draws it for the others.
void VncServer::Impl::ShowCursor(const Cursor& cursor) {
  if (cursor.image) {
    rfb_->cursorX = cursor.x + static_cast<int>(cursor.image->hot_x);
    rfb_->cursorY = cursor.y + static_cast<int>(cursor.image->hot_y);
  }
  if (cursor.image == cursor_) return;
  cursor_ = cursor.image;
  Active();
  if (!cursor_) return rfbSetCursor(rfb_, nullptr);
  const size_t row_bytes = (cursor_->width + 7) / 8;
  // The library frees these.
  auto* made = static_cast<rfbCursor*>(std::calloc(1, sizeof(rfbCursor)));
  auto* rich = static_cast<uint32_t*>(std::calloc(cursor_->argb.size(), sizeof(uint32_t)));
  auto* mask = static_cast<uint8_t*>(std::calloc(cursor_->height, row_bytes));
  if (!made || !rich || !mask) {
    std::free(made);
    std::free(rich);
    std::free(mask);
    return;
  }
  for (size_t i = 0; i < cursor_->argb.size(); ++i) {
    const size_t x = i % cursor_->width, y = i / cursor_->width;
    rich[i] = cursor_->argb[i] & 0xffffff;
    if (cursor_->argb[i] >> 31) mask[y * row_bytes + x / 8] |= static_cast<uint8_t>(0x80 >> x % 8);
  }
  made->width = static_cast<unsigned short>(cursor_->width);
  made->height = static_cast<unsigned short>(cursor_->height);
  made->xhot = static_cast<unsigned short>(cursor_->hot_x);
  made->yhot = static_cast<unsigned short>(cursor_->hot_y);
  made->mask = mask;
  made->richSource = reinterpret_cast<unsigned char*>(rich);
  made->cleanup = made->cleanupMask = made->cleanupRichSource = made->cleanupSource = 1;
  rfbSetCursor(rfb_, made);
}

// ---- Clients.

rfbNewClientAction VncServer::Impl::OnNewClient(rfbClientPtr client) {
  client->clientData = new Client;
  client->clientGoneHook = OnClientGone;
  Of(client).Active();
  return RFB_CLIENT_ACCEPT;
}

void VncServer::Impl::OnClientGone(rfbClientPtr client) {
  const std::unique_ptr<Client> data(static_cast<Client*>(client->clientData));
  client->clientData = nullptr;
  if (!data) return;
  for (uint16_t key = 0; key < data->pressed.size(); ++key)
    if (data->pressed[key]) Of(client).SendKey(*data, key, false);
}

void VncServer::Impl::SendKey(Client& client, uint16_t key, bool down) {
  if (key == 0 || key >= client.pressed.size()) return;
  client.pressed[key] = down;
  Active();
  const std::lock_guard lock(device_lock_);
  input_.Key(key, down);
}

void VncServer::Impl::PressSymbol(Client& client, uint32_t symbol, bool down) {
  const auto found = FindSymbol(symbol);
  if (!found) return;
  // Some clients send 'A' without Shift; and Caps Lock may be on at either side.
  bool caps = false;
  if (found->letter) {
    const std::lock_guard lock(device_lock_);
    caps = (input_.leds() & kCapsLockLed) != 0;
  }
  std::vector<uint16_t> shifts;
  for (const uint16_t key : {KEY_LEFTSHIFT, KEY_RIGHTSHIFT})
    if (client.pressed[key]) shifts.push_back(key);
  const bool want = found->shift != caps;
  const bool press = down && !found->any_shift && want && shifts.empty();
  // A symbol that another layout has with Shift, and this one without.
  const bool lift = down && !found->any_shift && !found->letter && !want && !shifts.empty();
  if (press) SendKey(client, KEY_LEFTSHIFT, true);
  for (const uint16_t key : lift ? shifts : std::vector<uint16_t>()) SendKey(client, key, false);
  SendKey(client, found->key, down);
  for (const uint16_t key : lift ? shifts : std::vector<uint16_t>()) SendKey(client, key, true);
  if (press) SendKey(client, KEY_LEFTSHIFT, false);
}

void VncServer::Impl::OnKey(rfbBool down, rfbKeySym symbol, rfbClientPtr client) {
  if (auto* data = static_cast<Client*>(client->clientData)) Of(client).PressSymbol(*data, symbol, down != 0);
}

void VncServer::Impl::OnPointer(int buttons, int x, int y, rfbClientPtr client) {
  Impl& server = Of(client);
  PointerMove move;
  if (server.pointer_known_) {
    move.dx = x - server.pointer_x_;
    move.dy = y - server.pointer_y_;
  }
  move.x = ScalePointer(x, server.surface_.width());
  move.y = ScalePointer(y, server.surface_.height());
  server.pointer_x_ = x;
  server.pointer_y_ = y;
  server.pointer_known_ = true;
  // RFC 6143 7.5.5: left, middle, right, wheel away, wheel towards.
  const int pressed = buttons & ~server.wheel_buttons_;
  server.wheel_buttons_ = buttons & 0x18;
  move.wheel = ((pressed & 0x08) ? 1 : 0) - ((pressed & 0x10) ? 1 : 0);
  move.buttons = static_cast<uint8_t>(((buttons & 1) ? kLeftButton : 0) | ((buttons & 2) ? kMiddleButton : 0) |
                                      ((buttons & 4) ? kRightButton : 0));
  server.Active();
  const std::lock_guard lock(server.device_lock_);
  server.input_.MovePointer(move);
}

/// The guest decides: when it takes the size, all clients are told so by the new frame buffer.
int VncServer::Impl::OnSetDesktopSize(int width, int height, int, rfbExtDesktopScreen*, rfbClientPtr client) {
  Impl& server = Of(client);
  if (width <= 0 || height <= 0) return rfbExtDesktopSize_InvalidScreenLayout;
  server.Active();
  const std::lock_guard lock(server.device_lock_);
  const bool asked = server.source_.RequestSize(static_cast<unsigned>(width), static_cast<unsigned>(height));
  return asked ? kSizeForwarded : rfbExtDesktopSize_ResizeProhibited;
}

// ---- The clipboard.

void VncServer::Impl::OnCutText(char* text, int size, rfbClientPtr client) {
  Of(client).OfferText(CleanLatin1({text, static_cast<size_t>(size)}));
}

/// Of the extended clipboard: it ends with a NUL. Where a client has sent less than it has announced, the library's
/// memory holds what it may behind that; no text goes on behind its NUL.
void VncServer::Impl::OnCutTextUtf8(char* text, int size, rfbClientPtr client) {
  Of(client).OfferText(CleanText({text, strnlen(text, static_cast<size_t>(size))}));
}

void VncServer::Impl::OfferText(std::string text) {
  if (!clipboard_ || text.empty()) return;
  const std::lock_guard lock(device_lock_);
  clipboard_->Offer(std::move(text));
}

/// The library's functions for this would tell clients that have not given the password yet, too.
void VncServer::Impl::TellCopied() {
  std::optional<std::string> text;
  {
    const std::lock_guard lock(mutex_);
    copied_.swap(text);
  }
  if (!text || text->empty()) return;
  const std::string latin1 = ToLatin1(*text), utf8 = WithCrLf(*text);
  for (const rfbClientPtr client : Clients()) {
    if (client->state != rfbClientRec::RFB_NORMAL) continue;
    std::string message(1, '\3');  // RFC 6143 7.6.4: ServerCutText, padding, size
    message.append(3, '\0');
    const auto add = [&](uint32_t word) {
      for (const int shift : {24, 16, 8, 0}) message += static_cast<char>(word >> shift);
    };
    if (client->enableExtendedClipboard && (client->extClipboardUserCap & rfbExtendedClipboard_Notify)) {
      // The library answers when the client asks, and frees this.
      auto* data = static_cast<char*>(std::malloc(utf8.size() + 1));
      if (!data) continue;
      std::memcpy(data, utf8.c_str(), utf8.size() + 1);
      std::free(std::exchange(client->extClipboardData, data));
      client->extClipboardDataSize = static_cast<int>(utf8.size() + 1);
      add(static_cast<uint32_t>(-4));
      add(rfbExtendedClipboard_Notify | rfbExtendedClipboard_Text);
    } else {
      add(static_cast<uint32_t>(latin1.size()));
      message += latin1;
    }
    if (rfbWriteExact(client, message.data(), static_cast<int>(message.size())) < 0) rfbCloseClient(client);
  }
}

// ---- QEMU's extended key events: they name the key, not what is printed on it.

void VncServer::Impl::RegisterExtension() {
  static int encodings[] = {kQemuExtendedKeys, 0};
  static rfbProtocolExtension extension{};
  static std::once_flag once;
  std::call_once(once, [] {
    extension.pseudoEncodings = encodings;
    extension.enablePseudoEncoding = OnPseudoEncoding;
    extension.handleMessage = OnMessage;
    rfbRegisterProtocolExtension(&extension);
  });
}

/// The server's consent is an update with one rectangle of that encoding.
rfbBool VncServer::Impl::OnPseudoEncoding(rfbClientPtr client, void**, int encoding) {
  if (encoding != kQemuExtendedKeys) return 0;
  const auto width = static_cast<uint16_t>(client->screen->width),
             height = static_cast<uint16_t>(client->screen->height);
  const uint8_t update[] = {0,
                            0,
                            0,
                            1,
                            0,
                            0,
                            0,
                            0,
                            static_cast<uint8_t>(width >> 8),
                            static_cast<uint8_t>(width),
                            static_cast<uint8_t>(height >> 8),
                            static_cast<uint8_t>(height),
                            0xff,
                            0xff,
                            0xfe,
                            0xfe};
  return rfbWriteExact(client, reinterpret_cast<const char*>(update), sizeof(update)) > 0;
}

rfbBool VncServer::Impl::OnMessage(rfbClientPtr client, void*, const rfbClientToServerMsg* message) {
  if (message->type != kQemuMessage) return 0;
  // Submessage, down (2 bytes), symbol (4), scan code of set 1 (4) with bit 7 for extended ones.
  uint8_t rest[11];
  if (rfbReadExact(client, reinterpret_cast<char*>(rest), sizeof(rest)) <= 0 || rest[0] != kQemuKeyEvent) {
    rfbCloseClient(client);
    return 1;
  }
  const bool down = (rest[1] | rest[2]) != 0;
  const uint8_t code = rest[10];
  auto* data = static_cast<Client*>(client->clientData);
  if (data && rest[7] == 0 && rest[8] == 0 && rest[9] == 0)
    Of(client).SendKey(*data, KeyOfScanCode({static_cast<uint8_t>(code & 0x7f), (code & 0x80) != 0}), down);
  return 1;
}

// ---- The server.

VncServer::VncServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
VncServer::~VncServer() = default;
uint16_t VncServer::port() const { return impl_->port(); }

Result<std::unique_ptr<VncServer>> VncServer::Start(const VncOptions& options, Screen& screen, InputSink& input,
                                                    std::mutex& device_lock, Clipboard* clipboard) {
  Fd listener = options.unix_path.empty() ? NACRE_TRY(ListenTcp(options.host, options.port))
                                          : NACRE_TRY(ListenUnix(options.unix_path));
  auto impl = std::make_unique<Impl>(options, std::move(listener), screen, input, device_lock, clipboard);
  NACRE_TRY_STATUS(impl->Start());
  return std::unique_ptr<VncServer>(new VncServer(std::move(impl)));
}

}  // namespace nacre::display
