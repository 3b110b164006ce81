#include "devices/virtio/vsock.h"

#include <algorithm>

#include "base/bits.h"

namespace nacre::devices {
namespace {

constexpr unsigned kReceive = 0, kTransmit = 1, kEvent = 2;  // 5.10.2
constexpr uint16_t kQueueSize = 128;
constexpr uint64_t kHeaderSize = 44;
constexpr uint16_t kStream = 1;  // 5.10.6
enum Op : uint16_t { kRequest = 1, kResponse, kReset, kShutdown, kData, kCreditUpdate, kCreditRequest };
constexpr uint32_t kNoReceive = 1, kNoSend = 2;  // 5.10.6.5
constexpr uint32_t kTransportReset = 0;          // 5.10.6.7
constexpr size_t kMaxOutbox = 2048;
constexpr uint32_t kFirstHostPort = 0x4000'0000;  // of connections that the host asks for

}  // namespace

Result<std::unique_ptr<VirtioVsock>> VirtioVsock::Create(uint64_t cid, VsockHost& host, memory::GuestMemory& memory,
                                                         Scheduler& scheduler) {
  if (cid < kFirstCid || cid > kLastCid)
    return Fail("vsock: cid {}: give a number from {} to {}", cid, kFirstCid, kLastCid);
  return std::unique_ptr<VirtioVsock>(new VirtioVsock(cid, host, memory, scheduler));
}

VirtioVsock::VirtioVsock(uint64_t cid, VsockHost& host, memory::GuestMemory& memory, Scheduler& scheduler)
    : VirtioDevice({.name = "virtio-vsock0",
                    .type = VirtioType::kVsock,
                    .features = 0,
                    .queue_sizes = {kQueueSize, kQueueSize, kQueueSize}},
                   memory, scheduler),
      cid_(cid),
      host_(host),
      next_port_(kFirstHostPort) {
  StoreLe(config_.data(), cid_);
  host_.SetGuest(this);
}

VirtioVsock::~VirtioVsock() { host_.SetGuest(nullptr); }

void VirtioVsock::OnQueue(unsigned index) {
  if (index == kTransmit) {
    ForEachChain(index, [&](Chain& chain) {
      TakePacket(chain);
      queue(kTransmit).Push(chain, 0);
    });
    Deliver();
  } else if (index == kReceive) {
    Deliver();
  } else {
    SendEvent();
  }
}

void VirtioVsock::TakePacket(const Chain& chain) {
  uint8_t bytes[kHeaderSize];
  if (chain.Read(0, bytes) != kHeaderSize) return;
  const Header header{.source_cid = LoadLe<uint64_t>(bytes),
                      .target_cid = LoadLe<uint64_t>(bytes + 8),
                      .source_port = LoadLe<uint32_t>(bytes + 16),
                      .target_port = LoadLe<uint32_t>(bytes + 20),
                      .length = LoadLe<uint32_t>(bytes + 24),
                      .type = LoadLe<uint16_t>(bytes + 28),
                      .op = LoadLe<uint16_t>(bytes + 30),
                      .flags = LoadLe<uint32_t>(bytes + 32),
                      .buffer = LoadLe<uint32_t>(bytes + 36),
                      .forwarded = LoadLe<uint32_t>(bytes + 40)};
  // 5.10.6.4.1: a packet with another source is dropped. One of more data than its buffers hold is none at all.
  if (header.source_cid != cid_ || header.target_cid != kHostCid) return;
  if (header.op == kData && header.length > chain.readable_bytes() - kHeaderSize) return;
  Handle(header, chain);
}

void VirtioVsock::Handle(const Header& header, const Chain& chain) {
  const Key key{header.target_port, header.source_port};
  if (header.type != kStream) return Refuse(header);
  const auto place = connections_.find(key);
  if (header.op == kRequest) return HandleRequest(key, header);
  if (place == connections_.end()) {
    if (header.op != kReset) Refuse(header);
    return;
  }
  Connection& connection = place->second;
  connection.guest_buffer = header.buffer;
  connection.guest_forwarded = header.forwarded;
  connection.told = true;  // there may be credit now
  switch (header.op) {
    case kResponse:
      if (connection.open) return Drop(place, true);
      connection.open = true;
      connection.stream->Accepted(key.host_port);
      return;
    case kReset:
      return Drop(place, false);
    case kShutdown:
      return HandleShutdown(place, header.flags);
    case kData:
      return HandleData(place, header, chain);
    case kCreditUpdate:
      return;
    case kCreditRequest:
      return Say(key, kCreditUpdate);
    default:
      return Drop(place, true);
  }
}

void VirtioVsock::HandleRequest(const Key& key, const Header& header) {
  if (const auto known = connections_.find(key); known != connections_.end()) return Drop(known, true);
  auto stream = connections_.size() < kMaxConnections ? host_.Connect(key.host_port) : nullptr;
  if (!stream) return Refuse(header);
  Connection& connection = connections_[key];
  connection.stream = std::move(stream);
  connection.open = connection.told = true;
  connection.guest_buffer = header.buffer;
  connection.guest_forwarded = header.forwarded;
  connection.stream->SetReady([this, key] { Ready(key); });
  Say(key, kResponse);
}

bool VirtioVsock::ConnectToGuest(uint32_t port, std::unique_ptr<VsockStream> stream) {
  if (!driver_ok() || connections_.size() >= kMaxConnections) return false;
  Key key{next_port_, port};
  while (connections_.contains(key)) ++key.host_port;
  next_port_ = std::max(kFirstHostPort, key.host_port + 1);
  Connection& connection = connections_[key];
  connection.stream = std::move(stream);
  connection.stream->SetReady([this, key] { Ready(key); });
  Say(key, kRequest);
  Deliver();
  return true;
}

void VirtioVsock::HandleData(Place place, const Header& header, const Chain& chain) {
  Connection& connection = place->second;
  // 5.10.6.3: the sender keeps to the credit.
  if (!connection.open || (connection.guest_shutdown & kNoSend) != 0 ||
      header.length > kBuffer - (connection.received - connection.forwarded))
    return Drop(place, true);
  const size_t before = connection.waiting.size();
  connection.waiting.resize(before + header.length);
  chain.Read(kHeaderSize, std::span(connection.waiting).subspan(before));
  connection.received += header.length;
  FlushToHost(place);
}

void VirtioVsock::HandleShutdown(Place place, uint32_t flags) {
  place->second.guest_shutdown |= flags & (kNoReceive | kNoSend);
  FlushToHost(place);
}

bool VirtioVsock::FlushToHost(Place place) {
  Connection& connection = place->second;
  size_t done = 0;
  while (done < connection.waiting.size()) {
    const int64_t taken = connection.stream->Write(std::span(connection.waiting).subspan(done));
    if (taken == VsockStream::kBroken) {
      Drop(place, true);
      return false;
    }
    if (taken <= 0) break;
    done += static_cast<size_t>(taken);
  }
  connection.waiting.erase(connection.waiting.begin(), connection.waiting.begin() + static_cast<ptrdiff_t>(done));
  connection.forwarded += static_cast<uint32_t>(done);
  if (connection.waiting.empty() && (connection.guest_shutdown & kNoSend) != 0) {
    if (!std::exchange(connection.writes_ended, true)) connection.stream->EndWrites();
    if ((connection.guest_shutdown & kNoReceive) != 0) {
      Drop(place, true);  // 5.10.6.5: both directions are closed, and all is delivered
      return false;
    }
  }
  if (connection.forwarded - connection.told_forwarded > kBuffer / 2) Say(place->first, kCreditUpdate);
  return true;
}

/// From the event loop.
void VirtioVsock::Ready(const Key& key) {
  const auto place = connections_.find(key);
  if (place == connections_.end()) return;
  place->second.told = true;
  FlushToHost(place);
  Deliver();
}

void VirtioVsock::Refuse(const Header& header) {
  if (outbox_.size() >= kMaxOutbox) return;
  outbox_.push_back({.source_cid = kHostCid,
                     .target_cid = header.source_cid,
                     .source_port = header.target_port,
                     .target_port = header.source_port,
                     .type = header.type,
                     .op = kReset});
}

void VirtioVsock::Say(const Key& key, uint16_t op, uint32_t flags) {
  if (outbox_.size() >= kMaxOutbox) return;
  outbox_.push_back({.source_cid = kHostCid,
                     .target_cid = cid_,
                     .source_port = key.host_port,
                     .target_port = key.guest_port,
                     .type = kStream,
                     .op = op,
                     .flags = flags});
}

void VirtioVsock::Drop(Place place, bool say) {
  if (say) Say(place->first, kReset);
  connections_.erase(place);
}

void VirtioVsock::Store(const Header& header, std::span<uint8_t> bytes) {
  StoreLe(&bytes[0], header.source_cid);
  StoreLe(&bytes[8], header.target_cid);
  StoreLe(&bytes[16], header.source_port);
  StoreLe(&bytes[20], header.target_port);
  StoreLe(&bytes[24], header.length);
  StoreLe(&bytes[28], header.type);
  StoreLe(&bytes[30], header.op);
  StoreLe(&bytes[32], header.flags);
  StoreLe(&bytes[36], header.buffer);
  StoreLe(&bytes[40], header.forwarded);
}

/// False: the guest has no more buffers there. `moved` is set when there was one.
bool VirtioVsock::SendOutbox(bool& moved) {
  VirtQueue& ring = queue(kReceive);
  bool full = false;
  size_t sent = 0;
  while (sent < outbox_.size() && !full) {
    if (!ring.Pop(chain_)) {
      if (ring.EnableNotification()) continue;
      full = true;
      break;
    }
    Header header = outbox_[sent++];
    // The credit as it is now (5.10.6.3).
    if (const auto place = connections_.find({header.source_port, header.target_port}); place != connections_.end()) {
      header.buffer = kBuffer;
      header.forwarded = place->second.told_forwarded = place->second.forwarded;
    }
    uint8_t bytes[kHeaderSize];
    Store(header, bytes);
    ring.Push(chain_, static_cast<uint32_t>(chain_.Write(memory(), 0, bytes)));
    moved = true;
  }
  outbox_.erase(outbox_.begin(), outbox_.begin() + static_cast<ptrdiff_t>(sent));
  return !full;
}

void VirtioVsock::Deliver() {
  if (!driver_ok()) return;
  unsigned budget = 4u * queue(kReceive).setup().size;
  bool moved = false;
  const bool full = !SendOutbox(moved);
  for (auto place = connections_.begin(); place != connections_.end() && !full;) {
    const auto current = place++;
    if (!current->second.told || !current->second.open) continue;
    while (budget > 0 && DeliverData(current)) {
      moved = true;
      --budget;
    }
    if (budget == 0) {
      LookAgain(kReceive);
      break;
    }
  }
  if (!full) SendOutbox(moved);  // ends of streams that were met
  if (moved) Signal(kReceive);
}

/// One packet; false: nothing to send now, or no place for it.
bool VirtioVsock::DeliverData(Place place) {
  Connection& connection = place->second;
  const uint32_t unread = connection.sent - connection.guest_forwarded;
  const uint32_t credit = unread < connection.guest_buffer ? connection.guest_buffer - unread : 0;
  const bool wants = !connection.host_ended && credit > 0;
  if (!wants) {
    connection.told = false;  // a credit update comes
    connection.stream->Want(false, !connection.waiting.empty());
    return false;
  }
  VirtQueue& ring = queue(kReceive);
  if (!ring.Pop(chain_)) {
    if (!ring.EnableNotification() || !ring.Pop(chain_)) return false;
  }
  uint8_t piece[16 * 1024];
  const uint64_t room = chain_.writable_bytes() > kHeaderSize ? chain_.writable_bytes() - kHeaderSize : 0;
  const uint64_t most = std::min<uint64_t>({credit, room, sizeof(piece)});
  const int64_t got = most == 0 ? VsockStream::kNotNow : connection.stream->Read(std::span(piece).first(most));
  if (most == 0) {  // a buffer that holds nothing: given back, or it would stand in the way for ever
    ring.Push(chain_, 0);
    return true;
  }
  if (got <= 0) {
    ring.PutBack(chain_);
    connection.told = false;
    const Key key = place->first;
    if (got == VsockStream::kBroken) {
      Drop(place, true);
    } else if (got == 0) {
      connection.host_ended = true;
      connection.stream->Want(false, !connection.waiting.empty());
      Say(key, kShutdown, kNoSend);
    } else {
      connection.stream->Want(true, !connection.waiting.empty());
    }
    return false;
  }
  Header header{.source_cid = kHostCid,
                .target_cid = cid_,
                .source_port = place->first.host_port,
                .target_port = place->first.guest_port,
                .length = static_cast<uint32_t>(got),
                .type = kStream,
                .op = kData,
                .buffer = kBuffer,
                .forwarded = connection.forwarded};
  connection.told_forwarded = connection.forwarded;
  connection.sent += header.length;
  uint8_t bytes[kHeaderSize];
  Store(header, bytes);
  chain_.Write(memory(), 0, bytes);
  chain_.Write(memory(), kHeaderSize, std::span(piece).first(static_cast<size_t>(got)));
  ring.Push(chain_, static_cast<uint32_t>(kHeaderSize + static_cast<size_t>(got)));
  return true;
}

void VirtioVsock::SendEvent() {
  if (!event_waits_ || !driver_ok()) return;
  VirtQueue& ring = queue(kEvent);
  if (!ring.Pop(chain_)) {
    if (!ring.EnableNotification() || !ring.Pop(chain_)) return;
  }
  uint8_t bytes[4];
  StoreLe(bytes, kTransportReset);
  ring.Push(chain_, static_cast<uint32_t>(chain_.Write(memory(), 0, bytes)));
  event_waits_ = false;
  Signal(kEvent);
}

void VirtioVsock::OnReset() {
  connections_.clear();
  outbox_.clear();
  event_waits_ = false;
}

/// Connections stay with the process that has them: whoever loads this tells the guest that they are gone.
void VirtioVsock::SerializeState(state::Archive& archive) {
  archive.Field(1, next_port_);
  if (archive.loading()) next_port_ = std::max(next_port_, kFirstHostPort);
}

/// All queues are looked at then.
void VirtioVsock::OnLoaded() { event_waits_ = true; }

}  // namespace nacre::devices
