// The 82077AA's commands with a data phase (data sheet 290166, 5.1), one sector at a time.
#include <algorithm>
#include <utility>

#include "base/check.h"
#include "devices/legacy/floppy82077.h"
#include "devices/legacy/floppy_bits.h"

namespace nacre::devices {

using namespace floppy;
using storage::kSectorSize;
using Kind = storage::DiskRequest::Kind;

class Floppy82077::Request final : public storage::DiskRequest {
 public:
  explicit Request(Floppy82077* owner) : owner_(owner) {}
  void Done(int error) override { owner_->RequestDone(error); }

 private:
  Floppy82077* owner_;
};

Floppy82077::Floppy82077(bus::IrqLine& irq, Dma8237& dma)
    : irq_(irq), dma_(dma), request_(std::make_unique<Request>(this)) {
  dma_.SetListener(kDmaChannel, [this] { MoveData(); });
}

Floppy82077::~Floppy82077() {
  dma_.SetListener(kDmaChannel, {});
  DropRequest();
}

/// 0, or ST1: whether the head finds a formatted track under it that it can read.
uint8_t Floppy82077::FindTrack() const {
  const Drive* drive = unit_ < kDrives && drives_[unit_].disk ? &drives_[unit_] : nullptr;
  const bool readable = drive && (command_[0] & kMfm) != 0 && rate_ == drive->geometry.rate &&
                        head_ < drive->geometry.heads && cylinder_[unit_] < drive->geometry.cylinders;
  return readable ? 0 : kMissingMark;
}

void Floppy82077::ReadId() {
  unit_ = command_[1] & 3;
  head_ = command_[1] >> 2 & 1;
  seeked_ = false;
  c_ = cylinder_[unit_];
  h_ = head_;
  st1_ = st2_ = 0;
  command_[5] = kSizeCode;
  if (const uint8_t st1 = FindTrack(); st1 != 0) return EndTransfer(st1, 0);
  // The diskette turns: the next sector passes by.
  r_ = static_cast<uint8_t>(r_ % drives_[unit_].geometry.sectors + 1);
  EndTransfer(0, 0);
}

void Floppy82077::StartTransfer() {
  static constexpr std::pair<uint8_t, Work> kWork[] = {
      {kReadData, Work::kRead}, {kReadDeleted, Work::kReadDeleted}, {kReadTrack, Work::kReadTrack},
      {kVerify, Work::kVerify}, {kWriteData, Work::kWrite},         {kWriteDeleted, Work::kWrite},
  };
  work_ = std::ranges::find(kWork, static_cast<uint8_t>(command_[0] & 0x1f), &std::pair<uint8_t, Work>::first)->second;
  phase_ = Phase::kExecution;
  unit_ = command_[1] & 3;
  head_ = command_[1] >> 2 & 1;
  c_ = command_[2];
  h_ = command_[3];
  r_ = command_[4];
  st1_ = st2_ = 0;
  last_ = seeked_ = false;
  if ((configuration_ & kImpliedSeek) != 0 && c_ != cylinder_[unit_]) {
    StepTo(unit_, c_);  // without an interrupt of its own
    seeked_ = true;
  }
  if (work_ == Work::kReadTrack) {
    if (c_ != cylinder_[unit_] || h_ != head_ || r_ != 1) st1_ = kNoData;  // compared, but not obeyed
    r_ = 1;
  }
  left_ = work_ == Work::kVerify && (command_[1] & kVerifyCount) != 0 ? command_[8] : uint8_t{0};
  if (const uint8_t st1 = FindTrack(); st1 != 0) return EndTransfer(st1, 0);
  if (work_ == Work::kWrite && drives_[unit_].disk->read_only()) return EndTransfer(kNotWritable, 0);
  if (work_ == Work::kReadDeleted && (command_[0] & kSkip) != 0) {
    // No sector has the mark, so all are skipped.
    r_ = command_[6];
    return EndTransfer(kEndOfCylinder, kControlMark);
  }
  NextSector();
}

/// Searches for C, H, R, N on the track.
void Floppy82077::NextSector() {
  if (const uint8_t st1 = FindTrack(); st1 != 0) return EndTransfer(st1, 0);
  const FloppyGeometry& geometry = drives_[unit_].geometry;
  const bool any_id = work_ == Work::kReadTrack;
  if (!any_id && c_ != cylinder_[unit_]) return EndTransfer(kNoData, c_ == 0xff ? kBadCylinder : kWrongCylinder);
  if ((!any_id && h_ != head_) || command_[5] != kSizeCode || r_ == 0 || r_ > geometry.sectors)
    return EndTransfer(kNoData, 0);
  if (work_ != Work::kWrite) return Begin(Kind::kRead);
  Offer(kSectorSize);
}

void Floppy82077::Offer(unsigned size) {
  position_ = 0;
  wanted_ = static_cast<uint16_t>(size);
  moving_ = true;
  if (by_processor()) return SetInterrupt(true);
  MoveData();
}

void Floppy82077::MoveData() {
  if (!moving_ || by_processor() || (output_ & kDmaGate) == 0) return;
  const std::span<uint8_t> rest(&sector_[position_], static_cast<size_t>(wanted_ - position_));
  const Dma8237::Moved moved = to_host() ? dma_.ToMemory(kDmaChannel, rest) : dma_.FromMemory(kDmaChannel, rest);
  position_ = static_cast<uint16_t>(position_ + moved.bytes);
  last_ = moved.terminal_count;
  if (position_ == wanted_ || last_) DataMoved();
}

void Floppy82077::DataMoved() {
  moving_ = false;
  if (to_host()) return SectorDone();
  std::fill(sector_.begin() + position_, sector_.begin() + wanted_, uint8_t{0});  // terminal count inside
  if (work_ == Work::kFormat) return IdTaken();
  // The guest cannot have changed where the head is.
  if (FindTrack() != 0) return EndTransfer(kMissingMark, 0);
  Begin(Kind::kWrite);
}

/// The sector at R has been read or written, with all that the processor or the DMA controller wanted of it.
void Floppy82077::SectorDone() {
  if (work_ == Work::kReadDeleted) return EndTransfer(0, kControlMark);
  const bool counted = work_ == Work::kVerify && (command_[1] & kVerifyCount) != 0;
  const bool at_end = r_ == command_[6];
  // A counted VERIFY, and one up to EOT, end well without terminal count (5.1.6).
  if (last_ || (counted && --left_ == 0) || (work_ == Work::kVerify && !counted && at_end && !ContinuesOnSide1())) {
    Advance();
    return EndTransfer(0, 0);
  }
  if (work_ == Work::kReadTrack && at_end) return EndTransfer(0, 0);
  if (at_end && !ContinuesOnSide1()) return EndTransfer(kEndOfCylinder, 0);
  Advance();
  NextSector();
}

bool Floppy82077::ContinuesOnSide1() const { return (command_[0] & kMultiTrack) != 0 && head_ == 0; }

/// The ID after this one (table 5-6).
void Floppy82077::Advance() {
  if (r_ != command_[6]) {
    ++r_;
    return;
  }
  r_ = 1;
  if ((command_[0] & kMultiTrack) == 0) {
    ++c_;
    return;
  }
  h_ ^= 1;
  if (head_ == 0 && !last_)
    head_ = 1;
  else if (head_ == 1)
    ++c_;
}

void Floppy82077::StartFormat() {
  work_ = Work::kFormat;
  phase_ = Phase::kExecution;
  unit_ = command_[1] & 3;
  head_ = command_[1] >> 2 & 1;
  c_ = cylinder_[unit_];
  h_ = head_;
  r_ = 0;
  left_ = command_[3];
  st1_ = st2_ = 0;
  last_ = seeked_ = false;
  if (const uint8_t st1 = FindTrack(); st1 != 0) return EndTransfer(st1, 0);
  if (drives_[unit_].disk->read_only()) return EndTransfer(kNotWritable, 0);
  if (left_ == 0) return EndTransfer(0, 0);
  Offer(kIdSize);
}

/// An image holds its own format only: another ID has no place in it.
void Floppy82077::IdTaken() {
  c_ = sector_[0];
  h_ = sector_[1];
  r_ = sector_[2];
  if (FindTrack() != 0 || c_ != cylinder_[unit_] || h_ != head_ || sector_[3] != kSizeCode || r_ == 0 ||
      r_ > drives_[unit_].geometry.sectors)
    return EndTransfer(kNoData, 0);
  sector_.fill(command_[5]);
  Begin(Kind::kWrite);
}

void Floppy82077::EndTransfer(uint8_t st1, uint8_t st2) {
  const uint8_t size_code = work_ == Work::kFormat ? command_[2] : command_[5];
  work_ = Work::kNone;
  moving_ = false;
  st1_ |= st1;
  st2_ |= st2;
  const auto st0 = static_cast<uint8_t>((st1_ != 0 ? kAbnormal : 0) | (seeked_ ? kSeekEnd : 0) | head_ << 2 | unit_);
  Results({st0, st1_, st2_, c_, h_, r_, size_code});
  SetInterrupt(true);
}

void Floppy82077::Begin(Kind kind) {
  const Drive& drive = drives_[unit_];
  const FloppyGeometry& geometry = drive.geometry;
  NACRE_CHECK(r_ >= 1 && r_ <= geometry.sectors && head_ < geometry.heads && !request_running_);
  const uint64_t track = uint64_t{cylinder_[unit_]} * geometry.heads + head_;
  request_->kind = kind;
  request_->offset = (track * geometry.sectors + r_ - 1) * kSectorSize;
  request_->size_bytes = kSectorSize;
  request_->vectors.assign(1, {sector_.data(), kSectorSize});
  request_running_ = true;
  drive.disk->Start(*request_);
  drive.disk->Submit();
}

/// The back end may finish a request inside Submit; then the call that began it goes on in the loop of the one before.
void Floppy82077::RequestDone(int error) {
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

void Floppy82077::Continue(int error) {
  if (error != 0) return EndTransfer(kDataError, kDataErrorInField);
  switch (work_) {
    case Work::kRead:
    case Work::kReadDeleted:
    case Work::kReadTrack:
      return Offer(kSectorSize);
    case Work::kFormat:
      if (--left_ == 0 || last_) return EndTransfer(0, 0);
      return Offer(kIdSize);
    default:
      return SectorDone();
  }
}

void Floppy82077::DropRequest() {
  dropping_ = true;
  Quiesce();
  dropping_ = false;
}

void Floppy82077::Quiesce() {
  while (request_running_) drives_[unit_].disk->Drain();
}

}  // namespace nacre::devices
