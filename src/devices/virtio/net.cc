#include "devices/virtio/net.h"

#include <algorithm>

#include "base/bits.h"

namespace nacre::devices {
namespace {

constexpr unsigned kFeatureChecksum = 0, kFeatureGuestChecksum = 1, kFeatureMtu = 3, kFeatureMac = 5,
                   kFeatureMergeBuffers = 15, kFeatureStatus = 16;
constexpr unsigned kReceiveQueue = 0, kTransmitQueue = 1;
// 5.1.6: struct virtio_net_hdr, always with num_buffers since version 1.
constexpr uint64_t kHeaderSize = 12;
constexpr uint8_t kNeedsChecksum = 1, kDataValid = 2;
constexpr uint16_t kStatusLinkUp = 1;
constexpr uint64_t kMaxFrame = 65535 + 18;  // a full IP packet with Ethernet and VLAN headers
constexpr uint64_t kMinFrame = 14;

}  // namespace

std::unique_ptr<VirtioNet> VirtioNet::Create(const Options& options, std::unique_ptr<network::NetBackend> backend,
                                             memory::GuestMemory& memory, Scheduler& scheduler) {
  return std::unique_ptr<VirtioNet>(new VirtioNet(options, std::move(backend), memory, scheduler));
}

VirtioNet::VirtioNet(const Options& options, std::unique_ptr<network::NetBackend> backend, memory::GuestMemory& memory,
                     Scheduler& scheduler)
    : VirtioDevice({.name = options.name,
                    .type = VirtioType::kNet,
                    .features = Bit(kFeatureChecksum) | Bit(kFeatureGuestChecksum) | Bit(kFeatureMtu) |
                                Bit(kFeatureMac) | Bit(kFeatureMergeBuffers) | Bit(kFeatureStatus),
                    .queue_sizes = {options.queue_size, options.queue_size}},
                   memory, scheduler),
      backend_(std::move(backend)) {
  // 5.1.4: struct virtio_net_config.
  std::ranges::copy(options.mac, config_.begin());
  StoreLe<uint16_t>(&config_[6], backend_->link_up() ? kStatusLinkUp : 0);
  StoreLe<uint16_t>(&config_[8], 1);
  StoreLe<uint16_t>(&config_[10], backend_->mtu());
  frame_.reserve(kMaxFrame);
  backend_->Attach(this);
}

VirtioNet::~VirtioNet() { backend_->Attach(nullptr); }

void VirtioNet::OnQueue(unsigned index) {
  if (index == kReceiveQueue) {
    // Buffers came. The driver need not say so again until there is a frame that finds no room.
    queue(index).DisableNotification();
    backend_->ReceiveReady();
    return;
  }
  ForEachChain(index, [&](Chain& chain) {
    Transmit(chain);
    queue(kTransmitQueue).Push(chain, 0);
  });
  backend_->SendDone();
}

void VirtioNet::Transmit(const Chain& chain) {
  uint8_t header[kHeaderSize];
  const uint64_t total = chain.readable_bytes();
  if (total < kHeaderSize + kMinFrame || total > kHeaderSize + kMaxFrame || chain.Read(0, header) != kHeaderSize) {
    ++counters_.dropped_frames;
    return;
  }
  frame_.resize(total - kHeaderSize);
  chain.Read(kHeaderSize, frame_);
  if (header[1] != 0) {  // gso_type: segmentation was not offered
    ++counters_.dropped_frames;
    return;
  }
  if ((header[0] & kNeedsChecksum) != 0) {  // 5.1.6.2
    const size_t start = LoadLe<uint16_t>(header + 6);
    const size_t field = start + LoadLe<uint16_t>(header + 8);
    if (!has_feature(kFeatureChecksum) || field + 2 > frame_.size()) {
      ++counters_.dropped_frames;
      return;
    }
    StoreLe(&frame_[field], network::InternetChecksum(std::span(frame_).subspan(start)));
  }
  ++counters_.sent_frames;
  counters_.sent_bytes += frame_.size();
  backend_->Send(frame_);
}

/// Pops receive buffers for `size_bytes` into buffers_[0, count). All or none; with none the driver is asked
/// to tell when it adds one.
bool VirtioNet::TakeBuffers(uint64_t size_bytes, unsigned& count, bool& hopeless) {
  VirtQueue& ring = queue(kReceiveQueue);
  uint64_t room = 0;
  unsigned slots = 0;
  count = 0;
  while (room < size_bytes) {
    if (count == buffers_.size()) buffers_.emplace_back();
    if (count > 0 && !has_feature(kFeatureMergeBuffers)) break;
    if (ring.Pop(buffers_[count])) {
      room += buffers_[count].writable_bytes();
      slots += buffers_[count].slots;
      ++count;
    } else if (slots >= ring.setup().size || !ring.EnableNotification()) {
      break;
    }
  }
  if (room >= size_bytes) return true;
  // A frame that even a full ring of buffers could not take must not wait for ever.
  hopeless = !driver_ok() || slots >= ring.setup().size || (count > 0 && !has_feature(kFeatureMergeBuffers));
  for (unsigned i = count; i > 0; --i) ring.PutBack(buffers_[i - 1]);
  return false;
}

bool VirtioNet::Receive(std::span<const uint8_t> frame) {
  VirtQueue& ring = queue(kReceiveQueue);
  if (!driver_ok() || !ring.enabled() || frame.size() > kMaxFrame) {
    ++counters_.dropped_frames;
    return true;
  }
  unsigned count = 0;
  bool hopeless = false;
  if (!TakeBuffers(kHeaderSize + frame.size(), count, hopeless)) {
    if (hopeless) ++counters_.dropped_frames;
    return hopeless;
  }
  uint8_t header[kHeaderSize] = {};
  if (has_feature(kFeatureGuestChecksum)) header[0] = kDataValid;
  StoreLe(&header[10], static_cast<uint16_t>(count));
  uint64_t done = 0;
  for (unsigned i = 0; i < count; ++i) {
    const Chain& chain = buffers_[i];
    uint64_t at = 0;
    if (i == 0) at = chain.Write(memory(), 0, header);
    const uint64_t piece = std::min<uint64_t>(chain.writable_bytes() - at, frame.size() - done);
    chain.Write(memory(), at, frame.subspan(done, piece));
    done += piece;
    ring.Stage(chain, static_cast<uint32_t>(at + piece));
  }
  ring.Publish();
  ++counters_.received_frames;
  counters_.received_bytes += frame.size();
  return true;
}

void VirtioNet::ReceiveDone() { Signal(kReceiveQueue); }

void VirtioNet::LinkChanged() {
  StoreLe<uint16_t>(&config_[6], backend_->link_up() ? kStatusLinkUp : 0);
  ConfigChanged();
}

void VirtioNet::OnReset() { backend_->ReceiveReady(); }  // what waited for the driver is dropped: it is not there

void VirtioNet::OnLoaded() { StoreLe<uint16_t>(&config_[6], backend_->link_up() ? kStatusLinkUp : 0); }

}  // namespace nacre::devices
