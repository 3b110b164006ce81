#include "machine/kernel_doorbells.h"

#include <sys/eventfd.h>
#include <unistd.h>

namespace nacre::machine {

class KernelDoorbells::Service final : public bus::DoorbellService {
 public:
  Service(KernelDoorbells& owner, GuestPhys address, Fd event)
      : owner_(owner), address_(address), event_(std::move(event)) {}
  ~Service() override { Stop(); }

  bool Start(bus::Doorbell& doorbell) {
    auto watch = owner_.loop_.Watch(event_.get(), EPOLLIN, [this, &doorbell](uint32_t) {
      if (!Take()) return;
      ++owner_.rings_;
      doorbell.Ring();  // may end this service
    });
    if (!watch || !owner_.events_.AddWriteEvent(address_, event_.get())) return false;
    watch_ = std::move(*watch);
    ++owner_.served_;
    return true;
  }
  bool Stop() override {
    if (!watch_) return false;
    watch_.reset();
    --owner_.served_;
    if (!owner_.retired_) owner_.events_.RemoveWriteEvent(address_, event_.get());
    return Take();
  }

  bool Take() override {
    uint64_t count = 0;
    return ::read(event_.get(), &count, sizeof count) == sizeof count && count != 0;
  }

 private:
  KernelDoorbells& owner_;
  const GuestPhys address_;
  const Fd event_;
  std::unique_ptr<FdWatch> watch_;  ///< null: not served
};

std::unique_ptr<bus::DoorbellService> KernelDoorbells::Serve(uint64_t address, bus::Doorbell& doorbell) {
  if (served_ == kMost) return nullptr;
  Fd event(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!event.valid()) return nullptr;
  auto service = std::make_unique<Service>(*this, GuestPhys(address), std::move(event));
  if (!service->Start(doorbell)) return nullptr;
  return service;
}

}  // namespace nacre::machine
