// The receive half of the card (manual, chapter 3.2).

#include <zlib.h>

#include <algorithm>

#include "base/bits.h"
#include "devices/ethernet/e1000.h"

namespace nacre::devices {

using namespace e1000;

namespace {

constexpr size_t kMinFrame = 60, kMaxStandard = 1514, kTagSize = 4, kTypeAt = 12;

uint16_t TypeOf(std::span<const uint8_t> frame) {
  return static_cast<uint16_t>(frame[kTypeAt] << 8 | frame[kTypeAt + 1]);
}

unsigned BufferSize(uint32_t control) {
  const auto code = static_cast<unsigned>(Bits(control, kBufferSizeShift, 2));
  if ((control & kBufferExtension) != 0 && code != 0) return 32768u >> code;
  return 2048u >> code;
}

/// What the card says of the checksums that came with a frame; those of the back end are right.
uint8_t ChecksumStatus(std::span<const uint8_t> frame, uint32_t control) {
  constexpr size_t kIp = 14;
  if (TypeOf(frame) != 0x0800 || frame.size() < kIp + 20 || (frame[kIp] >> 4) != 4) return kIgnoreChecksums;
  uint8_t status = (control & kIpOffload) != 0 ? kIpChecksumSeen : 0;
  const bool fragment = (frame[kIp + 6] & 0x3f) != 0 || frame[kIp + 7] != 0;
  const uint8_t protocol = frame[kIp + 9];
  constexpr uint8_t kTcp = 6, kUdp = 17;
  if (!fragment && (protocol == kTcp || protocol == kUdp) && (control & kTcpUdpOffload) != 0)
    status |= kTcpChecksumSeen;
  return status != 0 ? status : kIgnoreChecksums;
}

}  // namespace

/// 13.4.2x: by address. `status` says whether the filter could not be sure.
bool E1000::Accepts(std::span<const uint8_t> frame, uint8_t& status) const {
  const uint32_t control = reg(kRctl);
  const auto address = frame.first(6);
  if (std::ranges::all_of(address, [](uint8_t byte) { return byte == 0xff; }))
    return (control & (kBroadcastAccept | kMulticastPromiscuous)) != 0;
  for (unsigned at = kReceiveAddress; at < kReceiveAddressEnd; at += 8) {
    if ((reg(at + 4) & kAddressValid) != 0 && reg(at) == LoadLe<uint32_t>(address.data()) &&
        (reg(at + 4) & 0xffff) == LoadLe<uint16_t>(address.data() + 4))
      return true;
  }
  if ((address[0] & 1) == 0) return (control & kUnicastPromiscuous) != 0;
  status |= kInexactFilter;
  if ((control & kMulticastPromiscuous) != 0) return true;
  constexpr unsigned kShifts[] = {4, 3, 2, 0};
  const unsigned hash = (LoadLe<uint16_t>(&address[4]) >> kShifts[Bits(control, kMulticastOffsetShift, 2)]) & 0xfff;
  return TestBit(reg(kMta + 4 * (hash / 32)), hash % 32);
}

/// Of a frame with a tag.
bool E1000::AcceptsVlan(std::span<const uint8_t> frame) const {
  const uint32_t control = reg(kRctl);
  if ((control & kVlanFilter) == 0) return true;
  const auto tag = static_cast<uint16_t>(frame[kTypeAt + 2] << 8 | frame[kTypeAt + 3]);
  if ((control & kCfiFilter) != 0 && TestBit(tag, 12) != ((control & kCfi) != 0)) return false;
  const unsigned vlan = tag & 0xfff;
  return TestBit(reg(kVfta + 4 * (vlan / 32)), vlan % 32);
}

bool E1000::Receive(std::span<const uint8_t> frame) {
  const uint32_t control = reg(kRctl);
  if ((control & kReceiveEnable) == 0 || !bus_master() || frame.size() < kTypeAt + 2) return true;
  const bool has_tag = reg(kVet) != 0 && TypeOf(frame) == reg(kVet) && frame.size() >= kTypeAt + kTagSize + 2;
  const size_t longest = (control & kLongPackets) != 0 ? kMaxFrame : kMaxStandard + (has_tag ? kTagSize : 0);
  if (frame.size() > longest) {
    Count(kOversize);
    return true;
  }
  uint8_t status = 0;
  if (!Accepts(frame, status) || (has_tag && !AcceptsVlan(frame))) return true;

  const bool strip_tag = has_tag && (reg(kCtrl) & kCtrlVlanMode) != 0;
  const size_t stored =
      std::max(frame.size() - (strip_tag ? kTagSize : 0), kMinFrame) + ((control & kStripCrc) != 0 ? 0 : 4);
  const unsigned buffer_size = BufferSize(control), count = RingSize(reg(kRdlen));
  const auto needed = static_cast<unsigned>((stored + buffer_size - 1) / buffer_size);
  if (needed >= count) return true;  // even an empty ring has no room
  if (reg(kRdh) >= count) reg(kRdh) = 0;
  const unsigned tail = reg(kRdt) < count ? reg(kRdt) : reg(kRdh), head = reg(kRdh);
  const unsigned available = tail >= head ? tail - head : count - head + tail;
  if (available < needed) return false;

  uint16_t tag = 0;
  arrived_.assign(frame.begin(), frame.end());
  if (strip_tag) {
    tag = static_cast<uint16_t>(frame[kTypeAt + 2] << 8 | frame[kTypeAt + 3]);
    arrived_.erase(arrived_.begin() + kTypeAt, arrived_.begin() + kTypeAt + kTagSize);
    status |= kReceivedVlan;
  }
  if (arrived_.size() < kMinFrame) arrived_.resize(kMinFrame);
  status |= ChecksumStatus(arrived_, reg(kRxcsum));
  const size_t wire = arrived_.size() + 4;
  if ((control & kStripCrc) == 0) {
    const auto sequence = static_cast<uint32_t>(crc32(0, arrived_.data(), static_cast<uInt>(arrived_.size())));
    arrived_.resize(wire);
    StoreLe(&arrived_[wire - 4], sequence);
  }
  Store(arrived_, status, tag, buffer_size);

  CountFrame({kTotalReceived, kGoodReceived, kTotalOctetsReceived, kGoodOctetsReceived, kReceived64}, wire);
  if ((frame[0] & 1) != 0) Count(frame[1] == 0xff && frame[5] == 0xff ? kBroadcastReceived : kMulticastReceived);
  received_causes_ |= kReceiveTimer;
  const auto threshold = static_cast<unsigned>(Bits(control, kThresholdShift, 2));  // a half, a quarter, an eighth
  if (available - needed <= count >> (std::min(threshold, 2u) + 1)) received_causes_ |= kReceiveLow;
  return true;
}

/// As many descriptors as it takes; there are enough.
void E1000::Store(std::span<const uint8_t> frame, uint8_t status, uint16_t tag, unsigned buffer_size) {
  const unsigned count = RingSize(reg(kRdlen));
  // RXCSUM.PCSS: over the frame without FCS.
  const size_t start = reg(kRxcsum) & 0xff;
  const size_t summed = frame.size() - ((reg(kRctl) & kStripCrc) != 0 ? 0 : 4);
  const uint16_t sum = start < summed ? network::OnesComplementSum(frame.subspan(start, summed - start)) : uint16_t{0};
  for (size_t done = 0; done < frame.size();) {
    const uint64_t descriptor = Base(kRdbal) + uint64_t{reg(kRdh)} * kDescriptorSize;
    const auto part = frame.subspan(done, std::min<size_t>(buffer_size, frame.size() - done));
    done += part.size();
    // What is not RAM swallows it.
    uint64_t buffer = 0;
    if (memory_.ReadValue(GuestPhys(descriptor), buffer)) memory_.Write(GuestPhys(buffer), part);
    const bool last = done == frame.size();
    const auto flags = static_cast<uint8_t>(kDescriptorDone | (last ? kReceivedEnd | status : 0));
    memory_.WriteValue(GuestPhys(descriptor + 8), part.size() | uint64_t{sum} << 16 | uint64_t{flags} << 32 |
                                                      uint64_t{last ? tag : uint16_t{0}} << 48);
    reg(kRdh) = reg(kRdh) + 1 == count ? 0 : reg(kRdh) + 1;
  }
}

void E1000::ReceiveDone() {
  if (received_causes_ == 0) return;
  const uint32_t causes = received_causes_;
  received_causes_ = 0;
  Raise(causes);
}

}  // namespace nacre::devices
