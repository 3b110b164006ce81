#include "devices/virtio/block.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include "base/bits.h"

namespace nacre::devices {
namespace {

using Kind = storage::DiskRequest::Kind;

constexpr unsigned kFeatureSegMax = 2, kFeatureReadOnly = 5, kFeatureBlockSize = 6, kFeatureFlush = 9,
                   kFeatureTopology = 10, kFeatureMultiQueue = 12, kFeatureDiscard = 13, kFeatureWriteZeroes = 14;
// 5.2.6: struct virtio_blk_req.
constexpr uint32_t kTypeIn = 0, kTypeOut = 1, kTypeFlush = 4, kTypeGetId = 8, kTypeDiscard = 11, kTypeWriteZeroes = 13;
constexpr uint8_t kStatusOk = 0, kStatusIoError = 1, kStatusUnsupported = 2;
constexpr uint64_t kHeaderSize = 16, kSegmentSize = 16, kIdSize = 20;
constexpr uint32_t kFlagUnmap = 1;
constexpr uint32_t kMaxRangeSectors = 4 * 1024 * 1024 - 8;  // just under 2 GiB a request

uint64_t FeaturesFor(const storage::Disk& disk, const VirtioBlock::Options& options) {
  uint64_t features = Bit(kFeatureSegMax) | Bit(kFeatureBlockSize) | Bit(kFeatureFlush) | Bit(kFeatureTopology);
  if (options.queues > 1) features |= Bit(kFeatureMultiQueue);
  return features | (disk.read_only() ? Bit(kFeatureReadOnly) : Bit(kFeatureDiscard) | Bit(kFeatureWriteZeroes));
}

}  // namespace

class VirtioBlock::Request : public storage::DiskRequest {
 public:
  explicit Request(VirtioBlock* owner) : owner_(owner) {}
  void Done(int error) override { owner_->RequestDone(*this, error); }

  unsigned queue = 0;
  Chain chain;
  bool flush_after = false;

 private:
  VirtioBlock* owner_;
};

Result<std::unique_ptr<VirtioBlock>> VirtioBlock::Create(const Options& options, std::unique_ptr<storage::Disk> disk,
                                                         memory::GuestMemory& memory, Scheduler& scheduler) {
  if (options.queues < 1 || options.queues > 16)
    return Fail("{}: {} queues, from 1 to 16", options.name, options.queues);
  if (!std::has_single_bit(options.queue_size) || options.queue_size < 4 || options.queue_size > 1024)
    return Fail("{}: queue size {}: a power of two from 4 to 1024", options.name, options.queue_size);
  if (options.serial.size() > kIdSize)
    return Fail("{}: serial '{}' is longer than 20 characters", options.name, options.serial);
  return std::unique_ptr<VirtioBlock>(new VirtioBlock(options, std::move(disk), memory, scheduler));
}

VirtioBlock::VirtioBlock(const Options& options, std::unique_ptr<storage::Disk> disk, memory::GuestMemory& memory,
                         Scheduler& scheduler)
    : VirtioDevice({.name = options.name,
                    .type = VirtioType::kBlock,
                    .features = FeaturesFor(*disk, options),
                    .queue_sizes = std::vector<uint16_t>(options.queues, options.queue_size)},
                   memory, scheduler),
      disk_(std::move(disk)),
      serial_(options.serial.empty() ? options.name.substr(0, kIdSize) : options.serial) {
  FillConfig(options);
}

VirtioBlock::~VirtioBlock() { OnReset(); }

/// 5.2.4: struct virtio_blk_config.
void VirtioBlock::FillConfig(const Options& options) {
  StoreLe<uint64_t>(&config_[0], disk_->size_bytes() / storage::kSectorSize);
  StoreLe<uint32_t>(&config_[12], options.queue_size - 2u);  // seg_max: header and status take two
  StoreLe<uint32_t>(&config_[20], storage::kSectorSize);     // blk_size
  config_[24] = 3;                                           // physical blocks of 4 KiB
  StoreLe<uint16_t>(&config_[26], 8);                        // min_io_size
  StoreLe<uint16_t>(&config_[34], options.queues);
  StoreLe<uint32_t>(&config_[36], kMaxRangeSectors);  // max_discard_sectors
  StoreLe<uint32_t>(&config_[40], 1);                 // max_discard_seg
  StoreLe<uint32_t>(&config_[44], 8);                 // discard_sector_alignment
  StoreLe<uint32_t>(&config_[48], kMaxRangeSectors);  // max_write_zeroes_sectors
  StoreLe<uint32_t>(&config_[52], 1);                 // max_write_zeroes_seg
  config_[56] = 1;                                    // write_zeroes_may_unmap
}

void VirtioBlock::OnQueue(unsigned index) {
  ForEachChain(index, [&](Chain& chain) { Begin(index, chain); });
  disk_->Submit();
}

void VirtioBlock::Begin(unsigned index, Chain& chain) {
  uint8_t header[kHeaderSize];
  if (chain.Read(0, header) != kHeaderSize || chain.writable_bytes() < 1) {
    queue(index).Push(chain, 0);
    queue(index).Break("a block request without header or status");
    return;
  }
  if (free_.empty()) {
    requests_.push_back(std::make_unique<Request>(this));
    free_.push_back(requests_.back().get());
  }
  Request& request = *free_.back();
  free_.pop_back();
  std::swap(request.chain, chain);
  request.queue = index;
  request.vectors.clear();
  request.flush_after = false;
  if (Prepare(request, LoadLe<uint32_t>(header), LoadLe<uint64_t>(header + 8))) disk_->Start(request);
}

/// Fills in the disk's request; false when it was finished on the spot.
bool VirtioBlock::Prepare(Request& request, uint32_t type, uint64_t sector) {
  const uint64_t in_bytes = request.chain.writable_bytes() - 1;
  const uint64_t out_bytes = request.chain.readable_bytes() - kHeaderSize;
  switch (type) {
    case kTypeIn:
    case kTypeOut: {
      const bool in = type == kTypeIn;
      request.kind = in ? Kind::kRead : Kind::kWrite;
      request.size_bytes = in ? in_bytes : out_bytes;
      request.offset = sector * storage::kSectorSize;
      const bool bad = request.size_bytes % storage::kSectorSize != 0 || request.size_bytes > disk_->size_bytes() ||
                       sector > disk_->size_bytes() / storage::kSectorSize;
      if (bad) {
        Finish(request, kStatusIoError, 0);
        return false;
      }
      if (in)
        Chain::Slice(request.chain.writable(), 0, in_bytes, request.vectors);
      else
        Chain::Slice(request.chain.readable(), kHeaderSize, out_bytes, request.vectors);
      request.flush_after = !in && !has_feature(kFeatureFlush);  // 5.2.6.2: such a driver counts on write-through
      return true;
    }
    case kTypeFlush:
      request.kind = Kind::kFlush;
      request.size_bytes = request.offset = 0;
      return true;
    case kTypeDiscard:
    case kTypeWriteZeroes:
      return PrepareRange(request, type);
    case kTypeGetId: {
      std::array<uint8_t, kIdSize> id{};
      std::memcpy(id.data(), serial_.data(), std::min<size_t>(serial_.size(), kIdSize));
      const uint64_t size = std::min<uint64_t>(kIdSize, in_bytes);
      request.chain.Write(memory(), 0, std::span(id).first(size));
      Finish(request, kStatusOk, static_cast<uint32_t>(size));
      return false;
    }
    default:
      Finish(request, kStatusUnsupported, 0);
      return false;
  }
}

bool VirtioBlock::PrepareRange(Request& request, uint32_t type) {
  const bool discard = type == kTypeDiscard;
  uint8_t segment[kSegmentSize] = {};
  const uint64_t got = request.chain.Read(kHeaderSize, segment);
  const auto sector = LoadLe<uint64_t>(segment);
  const auto sectors = LoadLe<uint32_t>(segment + 8);
  const auto flags = LoadLe<uint32_t>(segment + 12);
  uint8_t status = kStatusOk;
  if (!has_feature(discard ? kFeatureDiscard : kFeatureWriteZeroes) ||
      (flags & ~(discard ? 0 : kFlagUnmap)) != 0)  // 5.2.6.2
    status = kStatusUnsupported;
  else if (got != kSegmentSize || request.chain.readable_bytes() != kHeaderSize + kSegmentSize ||
           sectors > kMaxRangeSectors || sector > disk_->size_bytes() / storage::kSectorSize)
    status = kStatusIoError;
  if (status != kStatusOk) {
    Finish(request, status, 0);
    return false;
  }
  request.kind = discard ? Kind::kDiscard : Kind::kWriteZeroes;
  request.offset = sector * storage::kSectorSize;
  request.size_bytes = uint64_t{sectors} * storage::kSectorSize;
  request.unmap = (flags & kFlagUnmap) != 0;
  request.flush_after = !discard && !has_feature(kFeatureFlush);
  return true;
}

void VirtioBlock::RequestDone(Request& request, int error) {
  const uint64_t read_bytes = request.kind == Kind::kRead ? request.size_bytes : 0;
  // The host may have written RAM even where the read failed, or the driver is gone.
  if (read_bytes > 0) request.chain.MarkWritten(memory(), 0, read_bytes);
  if (resetting_) {
    free_.push_back(&request);
    return;
  }
  if (error == 0 && request.flush_after) {
    request.flush_after = false;
    request.kind = Kind::kFlush;
    disk_->Start(request);
    disk_->Submit();
    return;
  }
  const uint8_t status = error == 0 ? kStatusOk : error == EOPNOTSUPP ? kStatusUnsupported : kStatusIoError;
  Finish(request, status, error == 0 ? static_cast<uint32_t>(read_bytes) : 0);
  Signal(request.queue);
}

void VirtioBlock::Finish(Request& request, uint8_t status, uint32_t data_written) {
  // The status is the last writable byte, whatever came before it (5.2.6).
  request.chain.Write(memory(), request.chain.writable_bytes() - 1, {&status, 1});
  queue(request.queue).Push(request.chain, data_written + 1);
  free_.push_back(&request);
}

void VirtioBlock::OnReset() {
  // Buffers in flight belong to the driver again after a reset: nothing may write to them any more.
  resetting_ = true;
  disk_->Drain();
  resetting_ = false;
}

void VirtioBlock::SerializeState(state::Archive& archive) {
  uint64_t sectors = disk_->size_bytes() / storage::kSectorSize;
  const uint64_t here = sectors;
  archive.Field(1, sectors);
  if (archive.loading() && sectors != here)
    archive.Reject(fmt::format("{}: the disk has {} sectors, the saved one had {}", name(), here, sectors));
}

}  // namespace nacre::devices
