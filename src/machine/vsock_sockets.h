#pragma once
// The host's side of virtio-vsock by Unix stream sockets, as users of other virtual machine monitors know it: who
// connects to PATH and sends "CONNECT PORT\n" is answered "OK HOST_PORT\n" when a program of the guest has accepted;
// what the guest connects to port P of the host arrives at the socket PATH_P, where a program of the host listens.
// Under the device lock.

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "base/event_loop.h"
#include "base/fd.h"
#include "base/result.h"
#include "devices/virtio/vsock.h"

namespace nacre::machine {

class VsockSockets final : public devices::VsockHost {
 public:
  /// Every guest's own: the sockets tell machines apart.
  static constexpr uint64_t kGuestCid = 3;
  /// Of clients that have not said yet which port they want.
  static constexpr size_t kMaxWaiting = 64;

  /// Listens at `path`, for this user only; the name goes with this object. Replaces a socket that nobody listens on.
  static Result<std::unique_ptr<VsockSockets>> Create(const std::string& path, EventLoop& loop);
  ~VsockSockets() override;

  std::unique_ptr<devices::VsockStream> Connect(uint32_t port) override;
  void SetGuest(devices::VsockGuest* guest) override { guest_ = guest; }

 private:
  struct Client {
    Fd fd;
    std::unique_ptr<FdWatch> watch;
    std::string line;
  };

  VsockSockets(std::string path, EventLoop& loop) : path_(std::move(path)), loop_(loop) {}
  void Accept();
  void ReadLine(uint64_t id);

  const std::string path_;
  EventLoop& loop_;
  Fd socket_;
  std::unique_ptr<FdWatch> watch_;
  std::map<uint64_t, Client> clients_;
  uint64_t next_client_ = 0;
  devices::VsockGuest* guest_ = nullptr;
};

}  // namespace nacre::machine
