#include "devices/virtio/rng.h"

#include <sys/random.h>

#include <algorithm>
#include <array>

namespace nacre::devices {
namespace {
constexpr uint64_t kMaxBytes = 4096;  // a request; 5.4.6.2 lets the device fill less than the buffer
}

std::unique_ptr<VirtioRng> VirtioRng::Create(std::string name, memory::GuestMemory& memory, Scheduler& scheduler) {
  return std::unique_ptr<VirtioRng>(
      new VirtioRng({.name = std::move(name), .type = VirtioType::kRng, .queue_sizes = {64}}, memory, scheduler));
}

void VirtioRng::OnQueue(unsigned index) {
  ForEachChain(index, [&](Chain& chain) {
    std::array<uint8_t, kMaxBytes> bytes;
    const uint64_t wanted = std::min(chain.writable_bytes(), kMaxBytes);
    uint64_t filled = 0;
    while (filled < wanted) {
      const ssize_t got = getrandom(bytes.data() + filled, wanted - filled, 0);
      if (got <= 0 && errno != EINTR) break;
      if (got > 0) filled += static_cast<uint64_t>(got);
    }
    chain.Write(memory(), 0, std::span(bytes).first(filled));
    queue(index).Push(chain, static_cast<uint32_t>(filled));
  });
}

}  // namespace nacre::devices
