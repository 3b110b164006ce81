#include "devices/virtio/balloon.h"

#include <algorithm>

#include "base/bits.h"

namespace nacre::devices {
namespace {

constexpr unsigned kFeatureStats = 1, kFeatureDeflateOnOom = 2, kFeatureReporting = 5;
constexpr unsigned kInflateQueue = 0, kDeflateQueue = 1, kStatsQueue = 2, kSpecifiedReportingQueue = 4;
constexpr unsigned kTarget = 0, kActual = 4;  // 5.5.4: num_pages, actual
constexpr uint64_t kBalloonPage = 4096;
constexpr uint64_t kMaxFrames = 16384;  // of one request; Linux sends 256
constexpr uint64_t kStatSize = 10, kMaxStats = 32;

}  // namespace

std::unique_ptr<VirtioBalloon> VirtioBalloon::Create(std::string name, memory::GuestMemory& memory,
                                                     Scheduler& scheduler) {
  return std::unique_ptr<VirtioBalloon>(
      new VirtioBalloon({.name = std::move(name),
                         .type = VirtioType::kBalloon,
                         .features = Bit(kFeatureStats) | Bit(kFeatureDeflateOnOom) | Bit(kFeatureReporting),
                         .queue_sizes = {128, 128, 64, 64, 64}},
                        memory, scheduler));
}

/// 5.5.2 gives the reporting queue index 4. Linux, and the VMMs that it was written for, count only the
/// queues whose features were negotiated. Both are understood.
VirtioBalloon::Role VirtioBalloon::RoleOf(unsigned index) const {
  if (index == kInflateQueue) return Role::kInflate;
  if (index == kDeflateQueue) return Role::kDeflate;
  const bool stats = has_feature(kFeatureStats);
  if (index == kStatsQueue && stats) return Role::kStats;
  const unsigned counted = stats ? kStatsQueue + 1 : kStatsQueue;
  if (has_feature(kFeatureReporting) && (index == counted || index == kSpecifiedReportingQueue))
    return Role::kReporting;
  return Role::kNone;
}

void VirtioBalloon::OnQueue(unsigned index) {
  switch (RoleOf(index)) {
    case Role::kInflate:
      return ForEachChain(index, [&](Chain& chain) {
        Inflate(chain);
        queue(index).Push(chain, 0);
      });
    case Role::kDeflate:  // the pages come back as the guest touches them
      return ForEachChain(index, [&](Chain& chain) { queue(index).Push(chain, 0); });
    case Role::kReporting:
      return ForEachChain(index, [&](Chain& chain) {
        for (const GuestBuffer& buffer : chain.writable()) Discard(buffer.address.value, buffer.size_bytes);
        queue(index).Push(chain, 0);
      });
    case Role::kStats:
      return ReadStats(index);
    case Role::kNone:
      return;
  }
}

void VirtioBalloon::Inflate(const Chain& chain) {
  std::vector<uint8_t> frames(std::min(chain.readable_bytes(), kMaxFrames * 4));
  chain.Read(0, frames);
  // Guests often give neighbours, in either direction: one system call for a run.
  uint64_t start = 0, end = 0;
  for (size_t at = 0; at + 4 <= frames.size(); at += 4) {
    const uint64_t address = uint64_t{LoadLe<uint32_t>(&frames[at])} * kBalloonPage;
    if (address == end && end != 0) {
      end += kBalloonPage;
    } else if (address + kBalloonPage == start) {
      start = address;
    } else {
      Discard(start, end - start);
      start = address;
      end = address + kBalloonPage;
    }
  }
  Discard(start, end - start);
}

void VirtioBalloon::Discard(uint64_t address, uint64_t size_bytes) {
  if (size_bytes != 0 && memory().Discard(GuestPhys(address), size_bytes)) discarded_bytes_ += size_bytes;
}

/// The driver's buffer with statistics stays on the ring until new ones are wanted (5.5.6.3).
void VirtioBalloon::ReadStats(unsigned index) {
  VirtQueue& ring = queue(index);
  if (!ring.Pop(chain_)) {
    ring.EnableNotification();
    return;
  }
  Stats stats;
  for (uint64_t at = 0; at < kMaxStats * kStatSize; at += kStatSize) {
    uint8_t entry[kStatSize];
    if (chain_.Read(at, entry) != kStatSize) break;
    std::optional<uint64_t>* const fields[] = {&stats.swapped_in,      &stats.swapped_out, &stats.major_faults,
                                               &stats.minor_faults,    &stats.free_bytes,  &stats.total_bytes,
                                               &stats.available_bytes, &stats.cache_bytes};
    const auto tag = LoadLe<uint16_t>(entry);
    if (tag < std::size(fields)) *fields[tag] = LoadLe<uint64_t>(entry + 2);
  }
  stats_ = stats;
  ring.PutBack(chain_);
}

void VirtioBalloon::RequestStats() {
  if (!driver_ok() || !has_feature(kFeatureStats)) return;
  VirtQueue& ring = queue(kStatsQueue);
  if (!ring.Pop(chain_)) return;
  ring.EnableNotification();
  ring.Push(chain_, 0);
  Signal(kStatsQueue);
}

void VirtioBalloon::SetTarget(uint64_t size_bytes) {
  const uint64_t pages = std::min<uint64_t>(size_bytes / kBalloonPage, memory().size_bytes() / kBalloonPage);
  if (LoadLe<uint32_t>(&config_[kTarget]) == pages) return;
  StoreLe(&config_[kTarget], static_cast<uint32_t>(pages));
  ConfigChanged();
}

uint64_t VirtioBalloon::target_bytes() const { return LoadLe<uint32_t>(&config_[kTarget]) * kBalloonPage; }
uint64_t VirtioBalloon::actual_bytes() const { return LoadLe<uint32_t>(&config_[kActual]) * kBalloonPage; }

void VirtioBalloon::WriteConfig(uint32_t offset, std::span<const uint8_t> data) {
  for (size_t i = 0; i < data.size(); ++i)
    if (offset + i >= kActual && offset + i < kActual + 4) config_[offset + i] = data[i];
}

void VirtioBalloon::OnReset() {
  StoreLe<uint32_t>(&config_[kActual], 0);
  stats_ = {};
}

void VirtioBalloon::SerializeState(state::Archive& archive) { archive.Bytes(1, std::span<uint8_t>(config_)); }

}  // namespace nacre::devices
