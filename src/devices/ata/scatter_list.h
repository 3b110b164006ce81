#pragma once
// A walk along a guest's scatter list: the pieces of RAM that a DMA transfer reads or writes, in order. Controllers
// give the entries, one at a time, from tables in guest memory; nothing is kept for entries not yet reached. Entries
// must not be empty: then the bytes wanted bound the walk. Under the device lock.

#include <sys/uio.h>

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "memory/guest_memory.h"

namespace nacre::devices {

struct ScatterPiece {
  uint64_t address = 0;
  uint64_t size_bytes = 0;
};

class ScatterList {
 public:
  /// Of one Take.
  static constexpr size_t kMaxPieces = 256;

  explicit ScatterList(memory::GuestMemory& memory) : memory_(memory) {}
  virtual ~ScatterList() = default;

  /// The next pieces: at most `most` bytes in at most kMaxPieces pieces, and a multiple of `unit` (at most 512) bytes,
  /// unless fewer than `unit` are left: then nothing. Everything that is given is RAM.
  uint64_t Take(uint64_t most, uint64_t unit, std::vector<ScatterPiece>& pieces);
  /// Copies; fewer bytes than asked where the list ends. To the guest, or from it.
  uint64_t Write(std::span<const uint8_t> from);
  uint64_t Read(std::span<uint8_t> to);

  /// A piece was not RAM: the walk ended there.
  bool faulted() const { return faulted_; }
  /// Bytes taken since Restart.
  uint64_t taken() const { return taken_; }

  /// Host addresses of pieces, for the disk's request.
  void Map(std::span<const ScatterPiece> pieces, std::vector<iovec>& vectors) const;
  /// After the pieces were written to.
  void MarkWritten(std::span<const ScatterPiece> pieces);

 protected:
  /// The next entry of the table; nothing at its end.
  virtual std::optional<ScatterPiece> NextEntry() = 0;
  /// The walk begins anew.
  void Restart();
  /// Something taken back from a Take waits to be taken.
  bool empty() const { return next_ == waiting_.size(); }
  memory::GuestMemory& memory() const { return memory_; }

 private:
  memory::GuestMemory& memory_;
  std::vector<ScatterPiece> waiting_;  ///< read from the table, not taken: from next_ on
  size_t next_ = 0;
  uint64_t taken_ = 0;
  bool faulted_ = false;
};

}  // namespace nacre::devices
