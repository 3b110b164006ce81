// Native command queuing of AtaDisk (SATA 3.0, 13.6). The commands are independent of each other and of the one in the
// registers.

#include <algorithm>
#include <bit>
#include <utility>

#include "base/check.h"
#include "devices/ata/ata_disk.h"

namespace nacre::devices {

using namespace ata;
using Kind = storage::DiskRequest::Kind;

AtaDisk::~AtaDisk() { DropAll(); }

bool AtaDisk::ExecuteQueued(unsigned tag, ScatterList& list) {
  NACRE_CHECK(tag < kQueueDepth && (running_tags_ & Bit(tag)) == 0);
  TaskFile& regs = registers();
  const uint64_t lba = regs.Lba48();
  const uint32_t count = regs.features != 0 ? regs.features : 65536u;  // count and features change places
  const bool write = regs.command == kCmdWriteQueued;
  const bool there = lba < sectors_ && count <= sectors_ - lba;
  power_mode_ = 0xff;
  if (!there || (write && disk().read_only()) || (regs.device & kLba) == 0) {
    regs.error = there ? kAbort : kNotFound;
    regs.status = ready_status() | kError;
    failed_tag_ = static_cast<uint8_t>(tag);
    failed_status_ = regs.status;
    failed_error_ = regs.error;
    failed_lba_ = lba;
    return false;
  }
  if (!queue_[tag]) queue_[tag] = std::make_unique<Queued>(this, tag);
  Queued& queued = *queue_[tag];
  queued.list = &list;
  queued.next_offset = lba * kSectorSize;
  queued.left = uint64_t{count} * kSectorSize;
  queued.write = write;
  queued.through = write && ((regs.device & 0x80) != 0 || !write_cache_);
  regs.status = ready_status();
  regs.error = 0;
  running_tags_ |= static_cast<uint32_t>(Bit(tag));
  QueuedStep(tag);
  return true;
}

void AtaDisk::QueuedStep(unsigned tag) {
  Queued& queued = *queue_[tag];
  queued.vectors.clear();
  if (queued.left == 0) {
    queued.kind = Kind::kFlush;
    queued.offset = queued.size_bytes = 0;
    queued.through = false;
  } else {
    queued.kind = queued.write ? Kind::kWrite : Kind::kRead;
    queued.offset = queued.next_offset;
    queued.size_bytes = queued.list->Take(std::min(queued.left, kMaxRequest), kSectorSize, queued.pieces);
    queued.list->Map(queued.pieces, queued.vectors);
    // Size 0, where the list ends too early: the back end would call it done.
    if (queued.size_bytes == 0) return QueuedDone(tag, EFAULT);
  }
  disk().Start(queued);
  disk().Submit();
}

/// As AtaDrive::RequestDone: requests that are done inside Submit wait for the loop below.
void AtaDisk::QueuedDone(unsigned tag, int error) {
  Queued& queued = *queue_[tag];
  if (queued.kind == Kind::kRead) queued.list->MarkWritten(queued.pieces);
  queued.result = error;
  done_tags_ |= static_cast<uint32_t>(Bit(tag));
  if (continuing_queue_) return;
  continuing_queue_ = true;
  while (done_tags_ != 0) {
    const auto next = static_cast<unsigned>(std::countr_zero(done_tags_));
    done_tags_ &= done_tags_ - 1;
    ContinueQueued(next);
  }
  continuing_queue_ = false;
}

void AtaDisk::ContinueQueued(unsigned tag) {
  Queued& queued = *queue_[tag];
  if (dropping()) {
    running_tags_ &= ~static_cast<uint32_t>(Bit(tag));
    return;
  }
  if (queued.result == 0 && queued.kind != Kind::kFlush) {
    queued.next_offset += queued.size_bytes;
    queued.left -= queued.size_bytes;
    if (queued.left > 0 || queued.through) return QueuedStep(tag);
  }
  running_tags_ &= ~static_cast<uint32_t>(Bit(tag));
  if (queued.result != 0) {
    failed_tag_ = static_cast<uint8_t>(tag);
    failed_error_ = queued.kind == Kind::kRead && queued.result != EFAULT ? kUncorrectable : kAbort;
    failed_status_ = ready_status() | kError;
    failed_lba_ = queued.next_offset / kSectorSize;
    registers().status = failed_status_;
    registers().error = failed_error_;
  }
  host().OnQueuedEnd(tag, queued.result == 0);
}

void AtaDisk::DropQueued() {
  while (running_tags_ != 0) disk().Drain();
}

void AtaDisk::Quiesce() {
  AtaDrive::Quiesce();
  while (running_tags_ != 0) disk().Drain();
}

}  // namespace nacre::devices
