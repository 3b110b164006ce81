#pragma once
// A VNC server (RFB 3.8, RFC 6143) over libvncserver for one screen: VNC authentication, only changed tiles, sizes that
// follow the guest's, keys by symbol or by QEMU's extended key events, the pointer as relative moves, text that is
// copied as Latin-1 or, with the extended clipboard, as UTF-8.
//
// Threads: one of its own, which does all work with clients and draws. It takes the device lock to capture a frame and
// to hand over input, never while it draws, encodes or waits for a client. Without clients it sleeps; with clients it
// looks at the screen 30 times a second while something happens and 4 times a second when all is still.
//
// Clients are hostile: their number is bounded, one that neither sends nor takes what it must for some seconds is
// dropped, messages are bounded by the library, file transfer is off. A client can slow down the others, never the
// guest.

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "base/result.h"
#include "display/input.h"
#include "display/screen.h"

namespace nacre::display {

class Clipboard;

struct VncOptions {
  static constexpr unsigned kMaxClients = 8;
  static constexpr size_t kMaxPassword = 8;  ///< what VNC authentication uses

  std::string host{};       ///< name or address to listen at
  uint16_t port = 0;        ///< 0: any that is free
  std::string unix_path{};  ///< instead of host and port
  std::string password{};   ///< empty: none
  std::string name = "Nacre";
};

/// Of "HOST:PORT[,password=FILE]" or "unix:PATH[,password=FILE]"; HOST may be an IPv6 address in brackets. Reads the
/// password's file. Fails as well for an address that others can reach without a password.
Result<VncOptions> ParseVncOptions(std::string_view text);

class VncServer {
 public:
  /// Listens. `screen`, `input`, `device_lock` and `clipboard` must outlive it. Without a clipboard clients' texts are
  /// thrown away.
  static Result<std::unique_ptr<VncServer>> Start(const VncOptions& options, Screen& screen, InputSink& input,
                                                  std::mutex& device_lock, Clipboard* clipboard = nullptr);
  /// Drops all clients. The device lock must not be held.
  ~VncServer();
  VncServer(const VncServer&) = delete;
  VncServer& operator=(const VncServer&) = delete;

  /// The TCP port; 0 for a Unix socket.
  uint16_t port() const;

 private:
  class Impl;
  explicit VncServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace nacre::display
