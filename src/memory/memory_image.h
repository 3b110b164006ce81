#pragma once
// The guest's memory in files (memory.bin of a snapshot), page by page at its place: what a page of the first layer has
// not, its parent has, and so on. A page of zeros takes no room. Files are mapped, not read, so that a guest runs
// before they are; checksums of pieces find what was damaged, by Verify.
//
// Pages are counted as GuestMemory::host_base() has them: RAM, then ROM.
//
// Threads: MemoryImage after Open, any thread; a MemoryWriter, one thread, and between Create and Map the process that
// Write was called in.

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/bits.h"
#include "base/fd.h"
#include "base/result.h"
#include "memory/guest_memory.h"

namespace nacre::state {
class Archive;
}

namespace nacre::memory {

enum class PageSource : uint8_t { kZero, kHere, kParent };

/// What there is to know of one file.
struct ImageMap {
  static constexpr uint64_t kPiecePages = 256;
  static constexpr uint64_t kMaxPages = (uint64_t{1} << 40) / kPageSize;
  struct Run {
    uint64_t first = 0, count = 0;
    PageSource source = PageSource::kZero;
  };

  uint64_t pages = 0;
  std::vector<Run> runs;            ///< ascending, without gaps, from page 0 to the end
  std::vector<uint32_t> checksums;  ///< CRC-32C of each piece's kHere pages, one after another; 0 where it has none

  uint64_t PagesHere() const;
  /// A load rejects what no writer makes.
  void Serialize(state::Archive& archive);
};

/// Of a machine's memory: all but the video memory, which its device saves.
uint64_t SavedPages(const GuestMemory& memory);

struct ImageLayer {
  std::string path;
  ImageMap map;
};

/// The parent's pages become the layer's, which then stands on the parent's own parent (or on none): `layer` is
/// changed, and its file gets pages in places where it had holes, and is synced. What says so (`layer.map`) must be
/// stored before the parent is removed.
Status AdoptParent(ImageLayer& layer, const ImageLayer& parent);

class MemoryImage {
 public:
  /// From the newest layer to the one without a parent; all have as many pages. The files are looked at for their size
  /// only.
  static Result<std::unique_ptr<MemoryImage>> Open(std::vector<ImageLayer> layers);
  ~MemoryImage();
  MemoryImage(const MemoryImage&) = delete;
  MemoryImage& operator=(const MemoryImage&) = delete;

  uint64_t pages() const { return layers_.front().map.pages; }
  /// The page's bytes; null: zeros. Async-signal-safe. `hint` is the caller's, 0 at first: in order it is fast.
  const uint8_t* Page(uint64_t page, size_t& hint) const;
  /// `memory` has these pages from now on, copy-on-write, and has not been used before.
  Status MapInto(GuestMemory& memory) const;
  /// Reads everything. The error names the first damaged piece of a file. `stop`: ends early, with success.
  Status Verify(const std::atomic<bool>& stop) const;

 private:
  struct Resolved {
    uint64_t first = 0, count = 0;
    size_t layer = 0;  ///< kNoLayer: zeros
  };
  static constexpr size_t kNoLayer = ~size_t{0};

  MemoryImage() = default;
  void Resolve();

  std::vector<ImageLayer> layers_;
  std::vector<Fd> files_;
  std::vector<const uint8_t*> views_;  ///< of the files, whole, read-only
  std::vector<Resolved> runs_;
};

/// Writes one layer, in a process of its own that has a copy of the memory (fork).
class MemoryWriter {
 public:
  /// `parent`: pages that are as there are left out; it must outlive the writer. Null: there is none. `kept`: the file
  /// is on the disk when Write is done, and has checksums.
  static Result<std::unique_ptr<MemoryWriter>> Create(const std::string& path, uint64_t pages,
                                                      const MemoryImage* parent, bool kept = true);
  ~MemoryWriter();
  MemoryWriter(const MemoryWriter&) = delete;
  MemoryWriter& operator=(const MemoryWriter&) = delete;

  int fd() const { return file_.get(); }
  /// In the child. Writes and syncs; 0 or an errno. Calls nothing but system calls.
  int Write(const uint8_t* base);
  /// In the parent, after the child has ended well.
  ImageMap Map() const;

 private:
  MemoryWriter() = default;
  int WriteRun(const uint8_t* base, uint64_t first, uint64_t count);

  Fd file_;
  uint64_t pages_ = 0;
  const MemoryImage* parent_ = nullptr;
  bool kept_ = true;
  uint8_t* shared_ = nullptr;  ///< by both processes: checksums, then sources
  uint64_t shared_bytes_ = 0;
  uint32_t* checksums_ = nullptr;
  PageSource* sources_ = nullptr;
};

}  // namespace nacre::memory
