#include "memory/guest_memory.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "base/bits.h"
#include "base/check.h"

namespace nacre::memory {
namespace {

constexpr uint64_t kHugePage = 2 * kMiB;
constexpr uint64_t kLeastRemapped = 256 * kKiB;

/// Private pages, under which there may be those of a snapshot's file (memory_image.h): large pieces are mapped anew as
/// anonymous memory, of which the host makes one mapping with what is beside them. Small ones are given back, and
/// cleared where the file shows then.
bool DiscardPrivate(uint8_t* host, uint64_t size_bytes) {
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  if (size_bytes >= kLeastRemapped && mmap(host, size_bytes, PROT_READ | PROT_WRITE, kFlags, -1, 0) != MAP_FAILED) {
    (void)madvise(host, size_bytes, MADV_HUGEPAGE);
    return true;
  }
  if (madvise(host, size_bytes, MADV_DONTNEED) != 0) return false;
  for (uint64_t at = 0; at < size_bytes; at += kPageSize)
    if (std::any_of(host + at, host + at + kPageSize, [](uint8_t byte) { return byte != 0; }))
      std::memset(host + at, 0, kPageSize);
  return true;
}

}  // namespace

Result<std::unique_ptr<GuestMemory>> GuestMemory::Create(uint64_t size_bytes, Backing backing, uint64_t rom_bytes,
                                                         uint64_t video_bytes) {
  NACRE_CHECK(video_bytes <= kMaxVideo && video_bytes % kPageSize == 0);
  if (size_bytes < kMiB || size_bytes > 1024 * kGiB || size_bytes % kPageSize != 0)
    return Fail("guest memory of {} bytes: give a multiple of 4 KiB between 1M and 1T", size_bytes);
  if (rom_bytes > kMaxRom || rom_bytes % kPageSize != 0)
    return Fail("firmware of {} bytes: give a multiple of 4 KiB, at most {} MiB", rom_bytes, kMaxRom / kMiB);
  std::unique_ptr<GuestMemory> memory(new GuestMemory);
  memory->Share(std::make_shared<Windows>());
  if (rom_bytes != 0) memory->mapped_end_ = kMiB;
  if (backing == Backing::kAnonymous) {
    NACRE_TRY_STATUS(memory->Map(size_bytes, rom_bytes, video_bytes, MAP_PRIVATE | MAP_ANONYMOUS));
    return memory;
  }
  memory->fd_ = Fd(memfd_create("nacre-guest-ram", MFD_CLOEXEC));
  if (!memory->fd_.valid()) return FailErrno("guest memory: memfd_create");
  if (ftruncate(memory->fd_.get(), static_cast<off_t>(size_bytes + rom_bytes + video_bytes)) != 0)
    return FailErrno("guest memory of {} bytes", size_bytes);
  NACRE_TRY_STATUS(memory->Map(size_bytes, rom_bytes, video_bytes, MAP_SHARED));
  return memory;
}

Result<std::unique_ptr<GuestMemory>> GuestMemory::CreatePrivateView(const GuestMemory& of) {
  std::unique_ptr<GuestMemory> memory(new GuestMemory);
  if (!of.fd_.valid()) return Fail("guest memory: a second view needs memory that is a file");
  memory->fd_ = Fd(fcntl(of.fd_.get(), F_DUPFD_CLOEXEC, 0));
  if (!memory->fd_.valid()) return FailErrno("guest memory: cannot duplicate its descriptor");
  memory->Share(of.windows_);
  memory->mapped_end_ = of.mapped_end_;
  NACRE_TRY_STATUS(memory->Map(of.size_bytes(), of.rom_size(), of.video_size_, MAP_PRIVATE));
  return memory;
}

void GuestMemory::Share(std::shared_ptr<Windows> windows) {
  windows_ = std::move(windows);
  low_pages_ = windows_->low_pages.data();
  hidden_start_ = &windows_->hidden_start;
  hidden_end_ = &windows_->hidden_end;
  address_mask_ = &windows_->address_mask;
  video_start_ = &windows_->video_start;
}

Status GuestMemory::Map(uint64_t size_bytes, uint64_t rom_bytes, uint64_t video_bytes, int sharing) {
  const uint64_t used_bytes = size_bytes + rom_bytes + video_bytes;
  const uint64_t mapping_bytes = used_bytes + 2 * kHugePage;  // on both sides something is left that faults
  void* mapping = mmap(nullptr, mapping_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) return FailErrno("guest memory: cannot map {} bytes", mapping_bytes);
  mapping_ = static_cast<uint8_t*>(mapping);
  mapping_bytes_ = mapping_bytes;
  auto* at = reinterpret_cast<uint8_t*>(AlignUp(reinterpret_cast<uint64_t>(mapping) + 1, kHugePage));
  if (mmap(at, used_bytes, PROT_READ | PROT_WRITE, sharing | MAP_NORESERVE | MAP_FIXED, fd_.get(), 0) == MAP_FAILED)
    return FailErrno("guest memory: cannot map {} bytes", size_bytes);
  // Failure costs speed only: each access to a small page takes room in the host's TLB.
  if (!fd_.valid()) (void)madvise(at, used_bytes, MADV_HUGEPAGE);
  base_ = at;
  size_bytes_ = size_bytes;
  low_size_ = std::min(size_bytes, kLowLimit);
  high_size_ = size_bytes - low_size_;
  regions_.push_back({GuestPhys(0), low_size_, 0});
  if (high_size_ > 0) regions_.push_back({GuestPhys(4 * kGiB), high_size_, low_size_});
  rom_size_ = rom_bytes;
  rom_start_ = 4 * kGiB - rom_bytes;
  video_size_ = video_bytes;
  page_flags_ = std::make_unique<std::atomic<uint8_t>[]>(AlignUp(page_count(), 8));
  return {};
}

void GuestMemory::SetLowPages(GuestPhys first, GuestPhys last, LowPage show) {
  NACRE_CHECK(first <= last && last.value < kMiB);
  mapped_end_ = kMiB;
  for (uint64_t page = first.page(); page <= last.page(); ++page)
    low_pages_[page].store(show, std::memory_order_relaxed);
}

void GuestMemory::HideRom(uint64_t start, uint64_t end) {
  // A CPU that looks in between sees memory, as it did before.
  hidden_end_->store(0, std::memory_order_relaxed);
  hidden_start_->store(AlignDown(start, kPageSize), std::memory_order_relaxed);
  hidden_end_->store(AlignUp(end, kPageSize), std::memory_order_relaxed);
}

bool GuestMemory::PlaceVideo(std::optional<GuestPhys> start) {
  constexpr uint64_t kBoard = 0xfec00000;  // IO-APIC, HPET, local APIC, firmware: up to 4 GiB
  const auto fits = [&](uint64_t from) {
    if (video_size_ == 0 || from % kPageSize != 0) return false;
    if (from < 4 * kGiB) return from >= std::max(low_size_, kMiB) && from <= kBoard - video_size_;
    return from >= 4 * kGiB + high_size_ && from < Bit(52) - video_size_;
  };
  const bool placed = start && fits(start->value);
  video_start_->store(placed ? start->value : kNowhere, std::memory_order_relaxed);
  return placed;
}

void GuestMemory::ClearVideo(uint64_t size_bytes) {
  NACRE_CHECK(size_bytes <= video_size_ && size_bytes % kPageSize == 0);
  if (size_bytes == 0) return;
  const bool done = fd_.valid() ? fallocate(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, video_base() - base_,
                                            static_cast<off_t>(size_bytes)) == 0
                                : madvise(video_base(), size_bytes, MADV_DONTNEED) == 0;
  if (!done) std::memset(video_base(), 0, size_bytes);
}

std::vector<Region> GuestMemory::Layout() const {
  std::vector<Region> layout;
  const auto add = [&](const Region& piece) {
    if (!layout.empty()) {
      Region& before = layout.back();
      if (before.start + before.size_bytes == piece.start && before.offset + before.size_bytes == piece.offset &&
          before.read_only == piece.read_only) {
        before.size_bytes += piece.size_bytes;
        return;
      }
    }
    layout.push_back(piece);
  };
  const auto add_pages = [&](uint64_t first, uint64_t end) {
    for (uint64_t a = first; a < end; a += kPageSize) {
      // The ROM stays where it is.
      const CpuPage page = a < 2 * kMiB ? FindPage(GuestPhys(a)) : PageAt(GuestPhys(a));
      if (page.host) add({GuestPhys(a), kPageSize, static_cast<uint64_t>(page.host - base_), !page.writable});
    }
  };
  add_pages(0, mapped_end_);
  // Pieces of their own, so that the last, large one stays as it is whatever the windows and the A20 gate do.
  const auto add_ram = [&](uint64_t first, uint64_t end) {
    if (first < end) layout.push_back({GuestPhys(first), end - first, first});
  };
  const bool a20 = OnBus(GuestPhys(kMiB)).value != 0;
  const uint64_t second_end = std::min(low_size_, 2 * kMiB);
  if (!a20 || mapped_end_ != 0) {
    if (!a20)
      add_pages(mapped_end_ != 0 ? kMiB : 0, second_end);
    else
      add_ram(mapped_end_, second_end);
    add_ram(second_end, low_size_);
  } else {
    add_ram(0, low_size_);
  }
  const uint64_t video_start = video_start_->load(std::memory_order_relaxed);
  const Region video{GuestPhys(video_start), video_size_, size_bytes_ + rom_size_};
  if (video_start < rom_start_) layout.push_back(video);
  add_pages(rom_start_, rom_start_ + rom_size_);
  if (high_size_ > 0) add({GuestPhys(4 * kGiB), high_size_, low_size_});
  if (video_start >= rom_start_ && video_start != kNowhere) layout.push_back(video);
  return layout;
}

bool GuestMemory::ReadByte(GuestPhys address, uint8_t& value) const {
  const CpuPage page = FindPage(GuestPhys(AlignDown(address.value, kPageSize)));
  if (!page.host) return false;
  value = page.host[address.page_offset()];
  return true;
}

bool GuestMemory::WriteUnder(GuestPhys address, uint8_t value) {
  uint8_t* host = RamPointer(address, 1);
  if (!host) return false;
  *host = value;
  MarkWritten(address, 1);
  return true;
}

void GuestMemory::ForgetCodePages() {
  for (uint64_t page = 0; page < page_count(); ++page)
    if (page_flags_[page].load(std::memory_order_relaxed) & kCode)
      page_flags_[page].fetch_and(static_cast<uint8_t>(~kCode), std::memory_order_relaxed);
}

void GuestMemory::TakeDirty(std::span<uint64_t> bitmap) {
  NACRE_CHECK(bitmap.size() == page_bitmap_words());
  for (uint64_t page = 0; page < size_bytes_ / kPageSize; ++page) {
    if (!(page_flags_[page].load(std::memory_order_relaxed) & kDirty)) continue;
    // Before the data is read: what is written after it sets the flag again.
    page_flags_[page].fetch_and(static_cast<uint8_t>(~kDirty), std::memory_order_seq_cst);
    bitmap[page / 64] |= Bit(page % 64);
  }
}

void GuestMemory::DropPrivatePage(uint64_t page_index) {
  NACRE_CHECK(page_index < page_count());
  madvise(base_ + page_index * kPageSize, kPageSize, MADV_DONTNEED);
  page_flags_[page_index].store(0, std::memory_order_relaxed);
}

GuestMemory::~GuestMemory() {
  if (mapping_) munmap(mapping_, mapping_bytes_);
}

bool GuestMemory::Read(GuestPhys address, std::span<uint8_t> to) const {
  const uint8_t* from = HostPointer(address, to.size());
  if (!from) return false;
  if (!to.empty()) std::memcpy(to.data(), from, to.size());  // an empty span may be null
  return true;
}

bool GuestMemory::Write(GuestPhys address, std::span<const uint8_t> from) {
  uint8_t* to = HostPointer(address, from.size());
  if (!to) return false;
  if (!from.empty()) std::memcpy(to, from.data(), from.size());
  MarkWritten(address, from.size());
  return true;
}

void GuestMemory::MarkWritten(GuestPhys address, uint64_t size_bytes) {
  if (size_bytes == 0) return;
  const uint8_t* host = BackingPointer(address, size_bytes);  // a window may have changed since the write
  if (!host && video_size_ != 0) return;                      // video memory that was taken away since
  NACRE_CHECK(host != nullptr);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  const uint64_t first = PageIndex(host);
  const uint64_t last = PageIndex(host + size_bytes - 1);
  bool code = false;
  for (uint64_t page = first; page <= last; ++page) {
    const uint8_t flags = page_flags_[page].load(std::memory_order_relaxed);
    if (!(flags & kDirty)) page_flags_[page].fetch_or(kDirty, std::memory_order_relaxed);
    code |= (flags & kCode) != 0;
  }
  if (code && code_listener_) code_listener_->OnCodeWrite(address, size_bytes);
}

void GuestMemory::SetCodePage(GuestPhys address, bool on) {
  const uint8_t* host = BackingPointer(GuestPhys(AlignDown(address.value, kPageSize)), kPageSize);
  NACRE_CHECK(host != nullptr);
  std::atomic<uint8_t>& flags = page_flags_[PageIndex(host)];
  if (on)
    flags.fetch_or(kCode, std::memory_order_seq_cst);
  else
    flags.fetch_and(static_cast<uint8_t>(~kCode), std::memory_order_seq_cst);
}

bool GuestMemory::Discard(GuestPhys address, uint64_t size_bytes) {
  const uint64_t start = AlignUp(address.value, kPageSize);
  const uint64_t end = AlignDown(address.value + size_bytes, kPageSize);
  if (size_bytes == 0 || end <= start || end < address.value) return false;
  uint8_t* host = RamPointer(GuestPhys(start), end - start);
  if (!host) return false;
  const bool done = fd_.valid() ? fallocate(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, host - base_,
                                            static_cast<off_t>(end - start)) == 0
                                : DiscardPrivate(host, end - start);
  if (!done) return false;
  MarkWritten(GuestPhys(start), end - start);
  return true;
}

}  // namespace nacre::memory
