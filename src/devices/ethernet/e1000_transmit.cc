// The transmit half of the card (manual, chapter 3.3).

#include <algorithm>

#include "base/bits.h"
#include "devices/ethernet/e1000.h"

namespace nacre::devices {

using namespace e1000;

namespace {

/// Of one go; then the others have their turn.
constexpr unsigned kMaxDescriptors = 256;
constexpr size_t kMaxBytes = 256 * kKiB;
constexpr size_t kHeader = 14, kMinFrame = 60;

uint16_t LoadNetwork16(const uint8_t* at) { return static_cast<uint16_t>(at[0] << 8 | at[1]); }
void StoreNetwork16(uint8_t* at, size_t value) {
  at[0] = static_cast<uint8_t>(value >> 8);
  at[1] = static_cast<uint8_t>(value);
}
uint32_t LoadNetwork32(const uint8_t* at) { return uint32_t{LoadNetwork16(at)} << 16 | LoadNetwork16(at + 2); }
void StoreNetwork32(uint8_t* at, uint32_t value) {
  StoreNetwork16(at, value >> 16);
  StoreNetwork16(at + 2, value & 0xffff);
}

/// Over bytes [start, last], or to the end where last is 0; into `field`. Nothing where the frame has no such bytes.
void InsertChecksum(std::span<uint8_t> frame, size_t start, size_t last, size_t field) {
  const size_t end = last == 0 ? frame.size() : std::min(last + 1, frame.size());
  if (start >= end || field + 2 > frame.size()) return;
  StoreLe(&frame[field], network::InternetChecksum(frame.subspan(start, end - start)));
}

}  // namespace

void E1000::Transmit() {
  if ((reg(kTctl) & kTransmitEnable) == 0 || !bus_master()) return;
  const unsigned count = RingSize(reg(kTdlen));
  if (count == 0 || reg(kTdh) == reg(kTdt)) return;
  uint32_t causes = 0;
  const uint64_t sent_before = Base(kTotalOctetsSent);
  unsigned done = 0;
  while (reg(kTdh) != reg(kTdt)) {
    if (done++ == kMaxDescriptors || Base(kTotalOctetsSent) - sent_before > kMaxBytes) {
      more_->Arm(scheduler_.NowNs());
      break;
    }
    // A head outside the ring is the guest's mistake.
    const uint32_t head = reg(kTdh) < count ? reg(kTdh) : 0;
    if (!TransmitDescriptor(Base(kTdbal) + uint64_t{head} * kDescriptorSize, causes)) break;
    reg(kTdh) = head + 1 == count ? 0 : head + 1;
    if (reg(kTdt) >= count && reg(kTdh) == 0) break;  // a tail outside the ring is never reached
  }
  if (reg(kTdh) == reg(kTdt)) causes |= kTransmitQueueEmpty;
  backend_->SendDone();
  Raise(causes);
}

bool E1000::TransmitDescriptor(uint64_t address, uint32_t& causes) {
  uint8_t descriptor[kDescriptorSize];
  if (!memory_.Read(GuestPhys(address), descriptor)) return false;
  const uint8_t command = descriptor[11];
  const bool extended = (command & kExtended) != 0;
  if (extended && (descriptor[10] & 0xf0) == 0) {
    LoadContext(descriptor, command);
  } else {
    if (!packet_.open) {
      packet_.open = true;
      packet_.segmented = extended && (command & kSegmentation) != 0;
      packet_.options = extended ? descriptor[13] : 0;
    }
    const uint32_t size = extended ? LoadLe<uint32_t>(&descriptor[8]) & 0xfffff : LoadLe<uint16_t>(&descriptor[8]);
    Append(LoadLe<uint64_t>(descriptor), size);
    if ((command & kEndOfPacket) != 0) FinishPacket(descriptor, command, extended);
  }
  if ((command & kReportStatus) != 0) {
    memory_.WriteValue(GuestPhys(address + 12), static_cast<uint8_t>(descriptor[12] | kDescriptorDone));
    causes |= kTransmitDone;
  }
  return true;
}

void E1000::LoadContext(std::span<const uint8_t, kDescriptorSize> descriptor, uint8_t command) {
  // The card keeps one for segmentation and one for the rest.
  const bool segmentation = (command & kSegmentation) != 0;
  Context& context = segmentation ? segment_context_ : checksum_context_;
  context.ip_start = descriptor[0];
  context.ip_field = descriptor[1];
  context.ip_end = LoadLe<uint16_t>(&descriptor[2]);
  context.tcp_start = descriptor[4];
  context.tcp_field = descriptor[5];
  context.tcp_end = LoadLe<uint16_t>(&descriptor[6]);
  context.command = command;
  context.header = descriptor[13];
  context.segment = LoadLe<uint16_t>(&descriptor[14]);
  if (segmentation) Count(kSegmentationContexts);
}

void E1000::Append(uint64_t address, uint64_t size_bytes) {
  if (packet_.too_long || size_bytes > kMaxPacket - packet_.bytes.size()) {
    packet_.too_long = true;
    return;
  }
  const size_t at = packet_.bytes.size();
  packet_.bytes.resize(at + size_bytes);
  // What is not RAM reads as all ones, as on a bus where nobody answers.
  const auto part = std::span(packet_.bytes).subspan(at);
  if (!memory_.Read(GuestPhys(address), part)) std::ranges::fill(part, uint8_t{0xff});
}

void E1000::FinishPacket(std::span<const uint8_t, kDescriptorSize> descriptor, uint8_t command, bool extended) {
  std::vector<uint8_t>& bytes = packet_.bytes;
  const bool tagged = (command & kVlanInsert) != 0 && (reg(kCtrl) & kCtrlVlanMode) != 0;
  const auto tag = LoadLe<uint16_t>(&descriptor[14]);
  if (!packet_.too_long && bytes.size() >= kHeader) {
    if (packet_.segmented) {
      SendSegments(tagged, tag);
    } else {
      if (!extended && (command & kInsertChecksum) != 0) InsertChecksum(bytes, descriptor[13], 0, descriptor[10]);
      const Context& context = checksum_context_;
      if ((packet_.options & kOptionIpChecksum) != 0)
        InsertChecksum(bytes, context.ip_start, context.ip_end, context.ip_field);
      if ((packet_.options & kOptionTcpChecksum) != 0)
        InsertChecksum(bytes, context.tcp_start, context.tcp_end, context.tcp_field);
      SendFrame(bytes, tagged, tag);
    }
  }
  bytes.clear();
  packet_.open = packet_.too_long = packet_.segmented = false;
  packet_.options = 0;
}

/// 3.5: the header in front of every segment, with its lengths, numbers and flags brought up to date.
void E1000::SendSegments(bool tagged, uint16_t tag) {
  const Context& context = segment_context_;
  const bool ip4 = (context.command & kContextIp) != 0, tcp = (context.command & kContextTcp) != 0;
  const size_t header = context.header, ip = context.ip_start, transport = context.tcp_start;
  const std::span<const uint8_t> bytes(packet_.bytes);
  // The fields below are inside the header, or there is no sense in it.
  if (context.segment == 0 || header < kHeader || header >= bytes.size() || ip + (ip4 ? 20 : 40) > header ||
      transport + (tcp ? 20 : 8) > header || context.tcp_field + size_t{2} > header)
    return;
  const size_t payload = bytes.size() - header, count = (payload + context.segment - 1) / context.segment;
  if (count > kMaxSegments) return;
  for (size_t i = 0; i < count; ++i) {
    const size_t from = i * context.segment, size = std::min<size_t>(context.segment, payload - from);
    frame_.assign(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(header));
    const auto data = bytes.subspan(header + from, size);
    frame_.insert(frame_.end(), data.begin(), data.end());
    if (ip4) {
      StoreNetwork16(&frame_[ip + 2], frame_.size() - ip);
      StoreNetwork16(&frame_[ip + 4], LoadNetwork16(&bytes[ip + 4]) + i);
    } else {
      StoreNetwork16(&frame_[ip + 4], frame_.size() - ip - 40);
    }
    if (tcp) {
      StoreNetwork32(&frame_[transport + 4], LoadNetwork32(&bytes[transport + 4]) + static_cast<uint32_t>(from));
      constexpr uint8_t kFin = 1 << 0, kPush = 1 << 3;
      if (i + 1 < count) frame_[transport + 13] = static_cast<uint8_t>(frame_[transport + 13] & ~(kFin | kPush));
    } else {
      StoreNetwork16(&frame_[transport + 4], frame_.size() - transport);
    }
    if ((packet_.options & kOptionIpChecksum) != 0) InsertChecksum(frame_, ip, context.ip_end, context.ip_field);
    if ((packet_.options & kOptionTcpChecksum) != 0) {
      // The driver has summed the pseudo header without the length, which is each segment's own.
      uint8_t parts[4];
      StoreNetwork16(parts, frame_.size() - transport);
      std::copy_n(&frame_[context.tcp_field], 2, parts + 2);
      StoreLe(&frame_[context.tcp_field], network::OnesComplementSum(parts));
      InsertChecksum(frame_, transport, context.tcp_end, context.tcp_field);
    }
    SendFrame(frame_, tagged, tag);
  }
}

void E1000::SendFrame(std::vector<uint8_t>& frame, bool tagged, uint16_t tag) {
  if (frame.size() > kMaxFrame) return;
  if (tagged) {
    uint8_t words[4];
    StoreNetwork16(words, reg(kVet));
    StoreNetwork16(words + 2, tag);
    frame.insert(frame.begin() + 12, words, words + 4);
  }
  if ((reg(kTctl) & kPadShort) != 0 && frame.size() < kMinFrame) frame.resize(kMinFrame);
  CountFrame({kTotalSent, kGoodSent, kTotalOctetsSent, kGoodOctetsSent, kSent64}, frame.size() + 4);
  if ((frame[0] & 1) != 0) {
    const bool broadcast = std::ranges::all_of(std::span(frame).first(6), [](uint8_t byte) { return byte == 0xff; });
    Count(broadcast ? kBroadcastSent : kMulticastSent);
  }
  if ((reg(kRctl) & kLoopback) != 0 || phy_.loopback()) {
    Receive(frame);
    ReceiveDone();
    return;
  }
  backend_->Send(frame);
}

}  // namespace nacre::devices
