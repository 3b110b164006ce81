#include "memory/memory_image.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "state/archive.h"
#include "state/crc32c.h"

namespace nacre::memory {
namespace {

/// Shorter runs of a layer are copied: a mapping costs more, and a process has 65,530 at most.
constexpr uint64_t kLeastMappedPages = 16;
constexpr size_t kMostMappings = 20'000;
constexpr uint64_t kWriteBytes = kMiB;

alignas(kPageSize) constexpr uint8_t kZeros[kPageSize] = {};

Status ReadFully(int fd, const std::string& path, uint8_t* to, uint64_t size_bytes, uint64_t offset) {
  while (size_bytes > 0) {
    const ssize_t got = pread(fd, to, size_bytes, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return FailErrno("{}", path);
    if (got == 0) return Fail("{}: the file ends too early", path);
    to += got;
    offset += static_cast<uint64_t>(got);
    size_bytes -= static_cast<uint64_t>(got);
  }
  return {};
}

}  // namespace

uint64_t ImageMap::PagesHere() const {
  uint64_t here = 0;
  for (const Run& run : runs)
    if (run.source == PageSource::kHere) here += run.count;
  return here;
}

/// A run is its number of pages times 4 and its source.
void ImageMap::Serialize(state::Archive& archive) {
  archive.Field(1, pages);
  std::vector<uint8_t> packed(runs.size() * 8), sums(checksums.size() * 4);
  for (size_t i = 0; i < runs.size(); ++i)
    StoreLe(&packed[8 * i], runs[i].count << 2 | static_cast<uint64_t>(runs[i].source));
  for (size_t i = 0; i < checksums.size(); ++i) StoreLe(&sums[4 * i], checksums[i]);
  if (archive.loading() && pages > kMaxPages) return archive.Reject("memory: more than 1 TiB");
  archive.Bytes(2, packed, pages * 8);
  archive.Bytes(3, sums, (pages / kPiecePages + 1) * 4);
  if (!archive.loading() || !archive.ok()) return;
  runs.clear();
  checksums.clear();
  uint64_t at = 0;
  for (size_t i = 0; i + 8 <= packed.size(); i += 8) {
    const auto word = LoadLe<uint64_t>(&packed[i]);
    const uint64_t count = word >> 2;
    const auto source = static_cast<PageSource>(word & 3);
    if (count == 0 || count > pages - at || source > PageSource::kParent)
      return archive.Reject("memory: an impossible run of pages");
    runs.push_back({at, count, source});
    at += count;
  }
  for (size_t i = 0; i + 4 <= sums.size(); i += 4) checksums.push_back(LoadLe<uint32_t>(&sums[i]));
  if (pages == 0 || at != pages || packed.size() % 8 != 0 ||
      sums.size() != AlignUp(pages, kPiecePages) / kPiecePages * 4)
    archive.Reject("memory: not all pages are told");
}

// -- reading

Result<std::unique_ptr<MemoryImage>> MemoryImage::Open(std::vector<ImageLayer> layers) {
  NACRE_CHECK(!layers.empty());
  std::unique_ptr<MemoryImage> image(new MemoryImage);
  image->layers_ = std::move(layers);
  for (size_t i = 0; i < image->layers_.size(); ++i) {
    const auto& [path, map] = image->layers_[i];
    const bool last = i + 1 == image->layers_.size();
    if (map.pages != image->pages()) return Fail("{}: not as many pages as the memory of the snapshot above", path);
    if (last && std::ranges::find(map.runs, PageSource::kParent, &ImageMap::Run::source) != map.runs.end())
      return Fail("{}: its parent is missing", path);
    Fd file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    struct stat info {};
    if (!file.valid() || fstat(file.get(), &info) != 0) return FailErrno("{}", path);
    if (!S_ISREG(info.st_mode) || static_cast<uint64_t>(info.st_size) != map.pages * kPageSize)
      return Fail("{}: {} bytes, there should be {}", path, info.st_size, map.pages * kPageSize);
    void* view = mmap(nullptr, map.pages * kPageSize, PROT_READ, MAP_PRIVATE | MAP_NORESERVE, file.get(), 0);
    if (view == MAP_FAILED) return FailErrno("{}: cannot map {} bytes", path, map.pages * kPageSize);
    image->views_.push_back(static_cast<const uint8_t*>(view));
    image->files_.push_back(std::move(file));
  }
  image->Resolve();
  return image;
}

MemoryImage::~MemoryImage() {
  for (const uint8_t* view : views_) munmap(const_cast<uint8_t*>(view), pages() * kPageSize);
}

/// From the oldest layer up, each takes its pages from what there is so far.
void MemoryImage::Resolve() {
  runs_ = {{0, pages(), kNoLayer}};
  for (size_t layer = layers_.size(); layer-- > 0;) {
    std::vector<Resolved> next;
    const auto add = [&](Resolved run) {
      if (!next.empty() && next.back().layer == run.layer)
        next.back().count += run.count;
      else
        next.push_back(run);
    };
    size_t below = 0;
    for (const ImageMap::Run& run : layers_[layer].map.runs) {
      const uint64_t end = run.first + run.count;
      if (run.source != PageSource::kParent)
        add({run.first, run.count, run.source == PageSource::kHere ? layer : kNoLayer});
      for (uint64_t at = run.first; run.source == PageSource::kParent && at < end;) {
        while (runs_[below].first + runs_[below].count <= at) ++below;
        const uint64_t stop = std::min(end, runs_[below].first + runs_[below].count);
        add({at, stop - at, runs_[below].layer});
        at = stop;
      }
    }
    runs_ = std::move(next);
  }
}

const uint8_t* MemoryImage::Page(uint64_t page, size_t& hint) const {
  if (hint >= runs_.size() || page < runs_[hint].first) hint = 0;
  while (page >= runs_[hint].first + runs_[hint].count) ++hint;
  const size_t layer = runs_[hint].layer;
  return layer == kNoLayer ? nullptr : views_[layer] + page * kPageSize;
}

uint64_t SavedPages(const GuestMemory& memory) { return (memory.size_bytes() + memory.rom_size()) / kPageSize; }

Status MemoryImage::MapInto(GuestMemory& memory) const {
  if (SavedPages(memory) != pages())
    return Fail("the snapshot's memory has {} pages, the machine's {}", pages(), SavedPages(memory));
  size_t mappings = 0;
  for (const Resolved& run : runs_) {
    if (run.layer == kNoLayer) continue;  // as it is
    uint8_t* const to = memory.host_base() + run.first * kPageSize;
    const uint64_t size_bytes = run.count * kPageSize;
    const int fd = files_[run.layer].get();
    const std::string& path = layers_[run.layer].path;
    if (run.count < kLeastMappedPages || mappings >= kMostMappings) {
      NACRE_TRY_STATUS(ReadFully(fd, path, to, size_bytes, run.first * kPageSize));
      continue;
    }
    ++mappings;
    if (mmap(to, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED, fd,
             static_cast<off_t>(run.first * kPageSize)) == MAP_FAILED)
      return FailErrno("{}: cannot map {} bytes", path, size_bytes);
  }
  return {};
}

Status MemoryImage::Verify(const std::atomic<bool>& stop) const {
  std::vector<uint8_t> buffer(ImageMap::kPiecePages * kPageSize);
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    const auto& [path, map] = layers_[layer];
    uint32_t sum = 0;
    uint64_t piece = 0;
    const auto check = [&]() -> Status {
      if (sum == map.checksums[piece]) return {};
      return Fail("{}: damaged between bytes {} and {}", path, piece * buffer.size(), (piece + 1) * buffer.size());
    };
    for (const ImageMap::Run& run : map.runs) {
      const uint64_t end = run.first + run.count;
      for (uint64_t at = run.first; at < end;) {
        if (at / ImageMap::kPiecePages != piece) {
          if (stop) return {};
          NACRE_TRY_STATUS(check());
          sum = 0;
          piece = at / ImageMap::kPiecePages;
        }
        const uint64_t next = std::min(end, (piece + 1) * ImageMap::kPiecePages);
        if (run.source == PageSource::kHere) {
          const std::span<uint8_t> bytes(buffer.data(), (next - at) * kPageSize);
          NACRE_TRY_STATUS(ReadFully(files_[layer].get(), path, bytes.data(), bytes.size(), at * kPageSize));
          sum = state::Crc32c(bytes, sum);
        }
        at = next;
      }
    }
    NACRE_TRY_STATUS(check());
  }
  return {};
}

// -- writing

Result<std::unique_ptr<MemoryWriter>> MemoryWriter::Create(const std::string& path, uint64_t pages,
                                                           const MemoryImage* parent, bool kept) {
  std::unique_ptr<MemoryWriter> writer(new MemoryWriter);
  writer->pages_ = pages;
  writer->parent_ = parent;
  writer->kept_ = kept;
  writer->file_ = Fd(open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!writer->file_.valid()) return FailErrno("{}", path);
  if (ftruncate(writer->file_.get(), static_cast<off_t>(pages * kPageSize)) != 0)
    return FailErrno("{}: cannot make a file of {} bytes", path, pages * kPageSize);
  const uint64_t sums_bytes = AlignUp(pages, ImageMap::kPiecePages) / ImageMap::kPiecePages * sizeof(uint32_t);
  writer->shared_bytes_ = sums_bytes + pages;
  void* shared =
      mmap(nullptr, writer->shared_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (shared == MAP_FAILED) return FailErrno("{}: cannot map {} bytes", path, writer->shared_bytes_);
  writer->shared_ = static_cast<uint8_t*>(shared);
  writer->checksums_ = reinterpret_cast<uint32_t*>(writer->shared_);
  writer->sources_ = reinterpret_cast<PageSource*>(writer->shared_ + sums_bytes);
  return writer;
}

MemoryWriter::~MemoryWriter() {
  if (shared_) munmap(shared_, shared_bytes_);
}

int MemoryWriter::Write(const uint8_t* base) {
  size_t hint = 0;
  uint64_t run = 0;  // pages before `page` that are to be written
  for (uint64_t page = 0; page < pages_; ++page) {
    const uint8_t* const bytes = base + page * kPageSize;
    const bool zero = std::memcmp(bytes, kZeros, kPageSize) == 0;
    const uint8_t* const before = parent_ ? parent_->Page(page, hint) : nullptr;
    if (parent_ && (before ? !zero && std::memcmp(bytes, before, kPageSize) == 0 : zero))
      sources_[page] = PageSource::kParent;
    else
      sources_[page] = zero ? PageSource::kZero : PageSource::kHere;
    const bool here = sources_[page] == PageSource::kHere;
    if (here && kept_) {
      uint32_t& sum = checksums_[page / ImageMap::kPiecePages];
      sum = state::Crc32c({bytes, kPageSize}, sum);
    }
    if (run != 0 && (!here || run * kPageSize >= kWriteBytes)) {
      if (const int error = WriteRun(base, page - run, run)) return error;
      run = 0;
    }
    if (here) ++run;
  }
  if (const int error = WriteRun(base, pages_ - run, run)) return error;
  return !kept_ || fdatasync(file_.get()) == 0 ? 0 : errno;
}

int MemoryWriter::WriteRun(const uint8_t* base, uint64_t first, uint64_t count) {
  uint64_t at = first * kPageSize;
  const uint64_t end = at + count * kPageSize;
  while (at < end) {
    const ssize_t done = pwrite(file_.get(), base + at, end - at, static_cast<off_t>(at));
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) return done == 0 ? EIO : errno;
    at += static_cast<uint64_t>(done);
  }
  return 0;
}

ImageMap MemoryWriter::Map() const {
  ImageMap map;
  map.pages = pages_;
  for (uint64_t page = 0; page < pages_; ++page) {
    if (!map.runs.empty() && map.runs.back().source == sources_[page])
      ++map.runs.back().count;
    else
      map.runs.push_back({page, 1, sources_[page]});
  }
  map.checksums.assign(checksums_, checksums_ + AlignUp(pages_, ImageMap::kPiecePages) / ImageMap::kPiecePages);
  return map;
}

// -- removing a layer from a chain

namespace {

void AddRun(std::vector<ImageMap::Run>& runs, ImageMap::Run run) {
  if (!runs.empty() && runs.back().source == run.source)
    runs.back().count += run.count;
  else
    runs.push_back(run);
}

Status CopyPages(int from, const std::string& from_path, int to, const std::string& to_path, ImageMap::Run run,
                 std::vector<uint8_t>& buffer) {
  for (uint64_t at = run.first; at < run.first + run.count;) {
    const uint64_t count = std::min(run.first + run.count - at, buffer.size() / kPageSize);
    NACRE_TRY_STATUS(ReadFully(from, from_path, buffer.data(), count * kPageSize, at * kPageSize));
    for (uint64_t done = 0; done < count * kPageSize;) {
      const ssize_t written =
          pwrite(to, &buffer[done], count * kPageSize - done, static_cast<off_t>(at * kPageSize + done));
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) return FailErrno("{}", to_path);
      done += static_cast<uint64_t>(written);
    }
    at += count;
  }
  return {};
}

Result<std::vector<uint32_t>> SumPieces(int fd, const ImageLayer& layer, std::vector<uint8_t>& buffer) {
  std::vector<uint32_t> sums(layer.map.checksums.size());
  for (const ImageMap::Run& run : layer.map.runs) {
    if (run.source != PageSource::kHere) continue;
    for (uint64_t at = run.first; at < run.first + run.count;) {
      const uint64_t piece = at / ImageMap::kPiecePages;
      const uint64_t next = std::min(run.first + run.count, (piece + 1) * ImageMap::kPiecePages);
      const std::span<uint8_t> bytes(buffer.data(), (next - at) * kPageSize);
      NACRE_TRY_STATUS(ReadFully(fd, layer.path, bytes.data(), bytes.size(), at * kPageSize));
      sums[piece] = state::Crc32c(bytes, sums[piece]);
      at = next;
    }
  }
  return sums;
}

}  // namespace

Status AdoptParent(ImageLayer& layer, const ImageLayer& parent) {
  if (layer.map.pages != parent.map.pages) return Fail("{}: not as many pages as {}", layer.path, parent.path);
  const Fd from(open(parent.path.c_str(), O_RDONLY | O_CLOEXEC)), to(open(layer.path.c_str(), O_RDWR | O_CLOEXEC));
  if (!from.valid()) return FailErrno("{}", parent.path);
  if (!to.valid()) return FailErrno("{}", layer.path);
  std::vector<uint8_t> buffer(ImageMap::kPiecePages * kPageSize);
  // What is damaged must not get good checksums.
  for (const auto& [fd, checked] : {std::pair(from.get(), &parent), std::pair(to.get(), &std::as_const(layer))})
    if (NACRE_TRY(SumPieces(fd, *checked, buffer)) != checked->map.checksums)
      return Fail("{}: damaged; nothing was changed", checked->path);
  std::vector<ImageMap::Run> runs;
  size_t below = 0;
  for (const ImageMap::Run& run : layer.map.runs) {
    if (run.source != PageSource::kParent) {
      AddRun(runs, run);
      continue;
    }
    for (uint64_t at = run.first; at < run.first + run.count;) {
      while (parent.map.runs[below].first + parent.map.runs[below].count <= at) ++below;
      const ImageMap::Run& under = parent.map.runs[below];
      const ImageMap::Run piece{at, std::min(run.first + run.count, under.first + under.count) - at, under.source};
      if (piece.source == PageSource::kHere)
        NACRE_TRY_STATUS(CopyPages(from.get(), parent.path, to.get(), layer.path, piece, buffer));
      AddRun(runs, piece);
      at += piece.count;
    }
  }
  if (fdatasync(to.get()) != 0) return FailErrno("{}", layer.path);
  layer.map.runs = std::move(runs);
  layer.map.checksums = NACRE_TRY(SumPieces(to.get(), layer, buffer));
  return {};
}

}  // namespace nacre::memory
