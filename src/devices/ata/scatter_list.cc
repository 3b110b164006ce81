#include "devices/ata/scatter_list.h"

#include <algorithm>

namespace nacre::devices {

void ScatterList::Restart() {
  waiting_.clear();
  next_ = 0;
  taken_ = 0;
  faulted_ = false;
}

uint64_t ScatterList::Take(uint64_t most, uint64_t unit, std::vector<ScatterPiece>& pieces) {
  pieces.clear();
  uint64_t total = 0;
  most -= most % unit;
  while (total < most && pieces.size() < kMaxPieces) {
    if (next_ == waiting_.size()) {
      waiting_.clear();
      next_ = 0;
      const std::optional<ScatterPiece> entry = NextEntry();
      if (!entry || entry->size_bytes == 0) break;
      if (!memory_.IsRam(GuestPhys(entry->address), entry->size_bytes)) {
        faulted_ = true;
        break;
      }
      waiting_.push_back(*entry);
    }
    ScatterPiece& first = waiting_[next_];
    const uint64_t part = std::min(first.size_bytes, most - total);
    pieces.push_back({first.address, part});
    total += part;
    first.address += part;
    first.size_bytes -= part;
    if (first.size_bytes == 0) ++next_;
  }
  // What does not fill a unit goes back.
  std::vector<ScatterPiece> back;
  for (uint64_t excess = total % unit; excess > 0;) {
    ScatterPiece& last = pieces.back();
    const uint64_t part = std::min(excess, last.size_bytes);
    last.size_bytes -= part;
    back.push_back({last.address + last.size_bytes, part});
    if (last.size_bytes == 0) pieces.pop_back();
    excess -= part;
    total -= part;
  }
  if (!back.empty()) {
    back.insert(back.begin(), waiting_.rbegin(), waiting_.rend() - static_cast<ptrdiff_t>(next_));
    std::ranges::reverse(back);
    waiting_ = std::move(back);
    next_ = 0;
  }
  taken_ += total;
  return total;
}

uint64_t ScatterList::Write(std::span<const uint8_t> from) {
  std::vector<ScatterPiece> pieces;
  uint64_t done = 0;
  while (done < from.size() && Take(from.size() - done, 1, pieces) > 0) {
    for (const ScatterPiece& piece : pieces) {
      memory_.Write(GuestPhys(piece.address), from.subspan(done, piece.size_bytes));
      done += piece.size_bytes;
    }
  }
  return done;
}

uint64_t ScatterList::Read(std::span<uint8_t> to) {
  std::vector<ScatterPiece> pieces;
  uint64_t done = 0;
  while (done < to.size() && Take(to.size() - done, 1, pieces) > 0) {
    for (const ScatterPiece& piece : pieces) {
      memory_.Read(GuestPhys(piece.address), to.subspan(done, piece.size_bytes));
      done += piece.size_bytes;
    }
  }
  return done;
}

void ScatterList::Map(std::span<const ScatterPiece> pieces, std::vector<iovec>& vectors) const {
  vectors.clear();
  for (const ScatterPiece& piece : pieces)
    vectors.push_back({memory_.HostPointer(GuestPhys(piece.address), piece.size_bytes), piece.size_bytes});
}

void ScatterList::MarkWritten(std::span<const ScatterPiece> pieces) {
  for (const ScatterPiece& piece : pieces) memory_.MarkWritten(GuestPhys(piece.address), piece.size_bytes);
}

}  // namespace nacre::devices
