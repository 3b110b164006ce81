#include "devices/ata/ata_drive.h"

#include <algorithm>
#include <utility>

#include "base/bits.h"
#include "base/check.h"

namespace nacre::devices {

using Kind = storage::DiskRequest::Kind;
using namespace ata;

class AtaDrive::Request final : public storage::DiskRequest {
 public:
  explicit Request(AtaDrive* drive) : drive_(drive) {}
  void Done(int error) override { drive_->RequestDone(error); }

 private:
  AtaDrive* drive_;
};

AtaDrive::AtaDrive(std::unique_ptr<storage::Disk> disk, bool serial)
    : disk_(std::move(disk)), serial_(serial), buffer_(kBufferSize), request_(std::make_unique<Request>(this)) {}

AtaDrive::~AtaDrive() { DropAll(); }

std::span<uint8_t> AtaDrive::ClearedBuffer(size_t size) {
  std::fill_n(buffer_.begin(), size, uint8_t{0});
  return std::span(buffer_).first(size);
}

void AtaDrive::Execute() {
  NACRE_CHECK(!request_running_);
  ClearTransfer();
  flush_after_ = false;
  regs_.status = kBusy;
  regs_.error = 0;
  Command();
}

void AtaDrive::ClearTransfer() {
  phase_ = Phase::kIdle;
  list_ = nullptr;
  left_ = offset_ = 0;
  buffer_size_ = position_ = block_end_ = 0;
}

void AtaDrive::Succeed(bool interrupt) {
  ClearTransfer();
  regs_.status = ready_status();
  ShowEnd();
  host_->OnCommandEnd(interrupt);
}

void AtaDrive::EndWithError(uint8_t error) {
  ClearTransfer();
  regs_.status = ready_status() | kError;
  regs_.error = error;
  ShowEnd();
  host_->OnCommandEnd(true);
}

void AtaDrive::Abort() {
  NACRE_CHECK(!request_running_);
  EndWithError(kAbort);
}

void AtaDrive::MoveDisk(const Transfer& transfer) {
  from_disk_ = true;
  write_ = transfer.write;
  dma_ = transfer.dma;
  flush_after_ = transfer.flush_after;
  offset_ = transfer.offset;
  left_ = transfer.size_bytes;
  fill_bytes_ = transfer.fill_bytes;
  block_limit_ = serial_ ? kBufferSize : transfer.block_limit;
  interrupt_next_block_ = !write_;  // the first block to the device is asked for by DRQ alone
  if (dma_) {
    phase_ = Phase::kDmaWait;
    return host_->OnDmaRequest();
  }
  NextPart();
}

void AtaDrive::SendBuffer(uint32_t size_bytes, bool dma, uint32_t block_limit) {
  if (size_bytes == 0) return Succeed();
  from_disk_ = write_ = false;
  dma_ = dma;
  left_ = 0;
  block_limit_ = serial_ ? kBufferSize : block_limit;
  buffer_size_ = block_end_ = size_bytes;
  position_ = 0;
  interrupt_next_block_ = true;
  if (dma_) {
    phase_ = Phase::kDmaWait;
    return host_->OnDmaRequest();
  }
  NextBlock();
}

void AtaDrive::ReceiveBuffer(uint32_t size_bytes, bool dma, bool interrupt, uint32_t block_limit) {
  from_disk_ = false;
  write_ = true;
  dma_ = dma;
  left_ = 0;
  block_limit_ = serial_ ? kBufferSize : block_limit;
  buffer_size_ = block_end_ = size_bytes;
  position_ = 0;
  interrupt_next_block_ = interrupt;
  if (dma_) {
    phase_ = Phase::kDmaWait;
    return host_->OnDmaRequest();
  }
  NextBlock();
}

/// Programmed I/O: the buffer's next block, up to the limit.
void AtaDrive::NextBlock() {
  block_end_ = static_cast<uint32_t>(std::min<uint64_t>(buffer_size_, uint64_t{position_} + block_limit_));
  phase_ = write_ ? Phase::kBlockOut : Phase::kBlockIn;
  regs_.status = ready_status() | kDataRequest;
  ShowBlock();
  host_->OnBlock(std::exchange(interrupt_next_block_, true));
}

/// Programmed I/O with the image: what the buffer takes next.
void AtaDrive::NextPart() {
  buffer_size_ = static_cast<uint32_t>(std::min<uint64_t>(left_, fill_bytes_));
  position_ = 0;
  if (write_) return NextBlock();
  BufferVector(buffer_size_);
  Begin(Work::kFill, Kind::kRead, offset_, buffer_size_);
}

void AtaDrive::BlockDone() {
  if (phase_ != Phase::kBlockIn && phase_ != Phase::kBlockOut) return;
  position_ = block_end_;
  phase_ = Phase::kIdle;
  regs_.status = kBusy;
  if (position_ < buffer_size_) return NextBlock();
  if (!from_disk_) return write_ ? BufferReceived() : Succeed(packet());
  if (write_) {
    BufferVector(buffer_size_);
    return Begin(Work::kStore, Kind::kWrite, offset_, buffer_size_);
  }
  offset_ += buffer_size_;
  left_ -= buffer_size_;
  if (left_ > 0) return NextPart();
  Succeed(packet());  // the block's interrupt was the last one of an ATA device
}

void AtaDrive::RunDma(ScatterList& list) {
  if (phase_ != Phase::kDmaWait) return;
  list_ = &list;
  regs_.status = kBusy;
  if (from_disk_)
    DmaStep();
  else
    DmaBuffer();
}

void AtaDrive::DmaBuffer() {
  const auto rest = std::span(buffer_).subspan(position_, buffer_size_ - position_);
  position_ += static_cast<uint32_t>(write_ ? list_->Read(rest) : list_->Write(rest));
  if (position_ < buffer_size_) {
    list_ = nullptr;
    return host_->OnDmaStopped();
  }
  phase_ = Phase::kIdle;
  if (write_) return BufferReceived();
  Succeed();
}

void AtaDrive::DmaStep() {
  const uint64_t size = list_->Take(std::min(left_, kMaxRequest), kSectorSize, pieces_);
  if (size == 0) {
    phase_ = Phase::kDmaWait;
    list_ = nullptr;
    return host_->OnDmaStopped();
  }
  list_->Map(pieces_, request_->vectors);
  Begin(Work::kDma, write_ ? Kind::kWrite : Kind::kRead, offset_, size);
}

void AtaDrive::Flush() {
  flush_after_ = false;
  Begin(Work::kFlush, Kind::kFlush, 0, 0);
}

void AtaDrive::Verify(uint64_t offset, uint64_t size_bytes) {
  offset_ = offset;
  left_ = size_bytes;
  const uint64_t size = std::min<uint64_t>(left_, kBufferSize);
  BufferVector(size);
  Begin(Work::kVerify, Kind::kRead, offset_, size);
}

void AtaDrive::StartBackEnd(Kind kind, uint64_t offset, uint64_t size_bytes) {
  request_->unmap = true;
  Begin(Work::kOther, kind, offset, size_bytes);
}

void AtaDrive::BufferVector(uint64_t size_bytes) { request_->vectors.assign(1, {buffer_.data(), size_bytes}); }

void AtaDrive::Begin(Work work, Kind kind, uint64_t offset, uint64_t size_bytes) {
  phase_ = Phase::kBackEnd;
  regs_.status = kBusy;
  work_ = work;
  request_->kind = kind;
  request_->offset = offset;
  request_->size_bytes = size_bytes;
  request_running_ = true;
  disk_->Start(*request_);
  disk_->Submit();
}

/// The back end may finish a request inside Submit; then the call that began it goes on in the loop of the one before,
/// so that a long chain of short requests does not grow the stack.
void AtaDrive::RequestDone(int error) {
  if (work_ == Work::kDma && !write_) list_->MarkWritten(pieces_);
  request_error_ = error;
  request_done_ = true;
  if (continuing_) return;
  continuing_ = true;
  while (std::exchange(request_done_, false)) {
    request_running_ = false;
    if (!dropping_) Continue(request_error_);
  }
  continuing_ = false;
}

void AtaDrive::Continue(int error) {
  phase_ = Phase::kIdle;
  const Work work = std::exchange(work_, Work::kNone);
  if (work == Work::kOther) return BackEndDone(error);
  if (error != 0) return DiskFailed(error, offset_);
  const uint64_t done = request_->size_bytes;
  switch (work) {
    case Work::kFill:
      return NextBlock();
    case Work::kVerify:
      offset_ += done;
      left_ -= done;
      if (left_ > 0) return Verify(offset_, left_);
      return Succeed();
    case Work::kStore:
      offset_ += done;
      left_ -= done;
      if (left_ > 0) return NextPart();
      return EndTransfer();
    case Work::kDma:
      offset_ += done;
      left_ -= done;
      if (left_ > 0) return DmaStep();
      return EndTransfer();
    default:
      return Succeed();
  }
}

void AtaDrive::EndTransfer() {
  if (flush_after_) return Flush();
  Succeed();
}

void AtaDrive::DropAll() {
  dropping_ = true;
  while (request_running_) disk_->Drain();
  DropQueued();
  dropping_ = false;
  work_ = Work::kNone;
  ClearTransfer();
}

void AtaDrive::Quiesce() {
  while (request_running_) disk_->Drain();
}

void AtaDrive::Diagnose() {
  DropAll();
  flush_after_ = false;
  regs_.features = 0;
  regs_.status = packet() ? 0 : ready_status();
  regs_.error = kDiagnosticsPassed;
  regs_.device = 0;
  Signature();
}

void AtaDrive::SoftReset() { Diagnose(); }

void AtaDrive::HardReset() {
  DropAll();
  ResetSettings();
  from_disk_ = write_ = dma_ = interrupt_next_block_ = false;
  fill_bytes_ = kSectorSize;
  block_limit_ = kBufferSize;
  regs_ = {};
  Diagnose();
}

void AtaDrive::Serialize(state::Archive& archive) {
  if (archive.loading()) DropAll();
  archive.Section(1, 1, [&](state::Archive& inner, uint16_t) { regs_.Serialize(inner); });
  archive.Section(2, 1, [&](state::Archive& inner, uint16_t) { SerializeTransfer(inner); });
}

void AtaDrive::SerializeTransfer(state::Archive& archive) {
  archive.Field(1, phase_);
  archive.Field(2, from_disk_);
  archive.Field(3, write_);
  archive.Field(4, dma_);
  archive.Field(5, flush_after_);
  archive.Field(6, interrupt_next_block_);
  archive.Field(7, offset_);
  archive.Field(8, left_);
  archive.Field(9, fill_bytes_);
  archive.Field(10, block_limit_);
  archive.Field(11, buffer_size_);
  archive.Field(12, position_);
  archive.Field(13, block_end_);
  std::vector<uint8_t> used(buffer_.begin(), buffer_.begin() + std::min(buffer_size_, kBufferSize));
  archive.Bytes(14, used, kBufferSize);
  if (!archive.loading()) return;
  const bool possible = phase_ < Phase::kBackEnd && fill_bytes_ % kSectorSize == 0 && fill_bytes_ >= kSectorSize &&
                        fill_bytes_ <= kBufferSize && block_limit_ >= 1 && block_limit_ <= kBufferSize &&
                        buffer_size_ <= kBufferSize && position_ <= block_end_ && block_end_ <= buffer_size_ &&
                        used.size() == buffer_size_ && left_ <= disk_->size_bytes() && left_ % kSectorSize == 0 &&
                        offset_ <= disk_->size_bytes() && offset_ % kSectorSize == 0;
  // A data phase has data; one of the image has as much of it left as the buffer holds.
  const bool blocks = phase_ == Phase::kBlockIn || phase_ == Phase::kBlockOut;
  const bool wrong_phase = (phase_ == Phase::kBlockIn && write_) || (phase_ == Phase::kBlockOut && !write_) ||
                           (blocks && position_ == block_end_) ||
                           (from_disk_ && phase_ != Phase::kIdle && (left_ == 0 || (blocks && buffer_size_ > left_))) ||
                           (from_disk_ && blocks && buffer_size_ % kSectorSize != 0);
  if (!possible || wrong_phase) {
    archive.Reject("an ATA device's data phase makes no sense");
    fill_bytes_ = kSectorSize;
    block_limit_ = kBufferSize;
    return ClearTransfer();
  }
  std::ranges::copy(used, buffer_.begin());
}

}  // namespace nacre::devices
