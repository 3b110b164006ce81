#pragma once
// Guest RAM: one mapping, anonymous or of a memfd, seen by the guest as a low region at 0 and, above `kLowLimit`, a
// high region at 4 GiB; and, where the board has it, firmware ROM that ends at 4 GiB. In the first megabyte each page
// may show RAM, ROM or nothing, and this changes while the guest runs. All host code that reads or writes guest RAM on
// behalf of devices, loaders and engines goes through here, so that dirty pages and pages that hold translated code are
// known. Any thread: guest RAM is racy by nature; page flags are atomic.

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "memory/address.h"

namespace nacre::memory {

/// What a page of the first megabyte shows to the CPUs. Writes to what is not writable go to the memory bus, and so do
/// reads of kNothing.
enum class LowPage : uint8_t {
  kRam,
  kReadOnlyRam,
  kRom,  ///< the end of the ROM, so that both end at their megabyte
  kNothing
};

/// Told when a host-side write hits a page that holds translated code (see GuestMemory::SetCodePage). May be called
/// from any thread that writes guest RAM through GuestMemory.
class CodeWriteListener {
 public:
  virtual ~CodeWriteListener() = default;
  virtual void OnCodeWrite(GuestPhys address, uint64_t size_bytes) = 0;
};

struct Region {
  GuestPhys start;
  uint64_t size_bytes = 0;
  uint64_t offset = 0;  ///< in the host mapping, and in the file if there is one
  bool read_only = false;
  bool operator==(const Region&) const = default;
};

/// A page as the CPUs see it.
struct CpuPage {
  uint8_t* host = nullptr;  ///< null: not memory, for the memory bus
  bool writable = false;
};

class GuestMemory {
 public:
  /// RAM below 4 GiB ends here; the rest starts at 4 GiB. The hole is for PCI, IO-APIC, HPET, local APIC, firmware.
  static constexpr uint64_t kLowLimit = 3 * kGiB;
  static constexpr uint8_t kDirty = 1;  ///< written since TakeDirty
  static constexpr uint8_t kCode = 2;   ///< an engine holds a translation or decoded form of bytes of this page

  /// Anonymous memory has huge pages where the host gives them; only a file can be seen through a second view.
  static constexpr uint64_t kMaxRom = 16 * kMiB, kMaxVideo = 64 * kMiB;

  enum class Backing : uint8_t { kFile, kAnonymous };
  /// `size_bytes`: a multiple of 4096, from 1 MiB to 1 TiB. Pages come from the host as they are touched.
  /// `rom_bytes`: a multiple of 4096, at most kMaxRom.
  static Result<std::unique_ptr<GuestMemory>> Create(uint64_t size_bytes, Backing backing = Backing::kFile,
                                                     uint64_t rom_bytes = 0, uint64_t video_bytes = 0);
  /// The same RAM as `of`, which must be a file, now has, copy-on-write: writes stay in this view until
  /// DropPrivatePage. Pages that this view has not written follow `of`. For running an engine beside another one
  /// without touching the guest.
  static Result<std::unique_ptr<GuestMemory>> CreatePrivateView(const GuestMemory& of);
  ~GuestMemory();
  GuestMemory(const GuestMemory&) = delete;
  GuestMemory& operator=(const GuestMemory&) = delete;

  uint64_t size_bytes() const { return size_bytes_; }
  std::span<const Region> regions() const { return regions_; }
  /// The whole RAM, regions one after another, then the ROM, then the video memory.
  uint8_t* host_base() const { return base_; }
  /// Pages of RAM, ROM and video memory: one more than the largest PageIndex.
  uint64_t page_count() const { return (size_bytes_ + rom_size_ + video_size_) / kPageSize; }

  /// Host address of [address, address + size_bytes), or nullptr unless all of it is RAM of one region that can be read
  /// and written now. For devices; who writes through it calls MarkWritten afterwards.
  uint8_t* HostPointer(GuestPhys address, uint64_t size_bytes) const {
    uint8_t* host = RamPointer(address, size_bytes);
    return host && address.value < mapped_end_ && !IsLowRam(address, size_bytes) ? nullptr : host;
  }
  bool IsRam(GuestPhys address, uint64_t size_bytes) const { return HostPointer(address, size_bytes) != nullptr; }

  /// The RAM, ROM or video memory of the range, whether or not a window shows something else there; nullptr unless all
  /// of it is of one region.
  uint8_t* BackingPointer(GuestPhys address, uint64_t size_bytes) const {
    if (uint8_t* ram = RamPointer(address, size_bytes)) return ram;
    const uint64_t at = address.value - rom_start_;
    if (at < rom_size_ && size_bytes <= rom_size_ - at) return rom() + at;
    const uint64_t in_video = address.value - video_start_->load(std::memory_order_relaxed);
    return in_video < video_size_ && size_bytes <= video_size_ - in_video ? video_base() + in_video : nullptr;
  }

  /// The page at `page`, a multiple of 4096, as the CPUs see it now.
  CpuPage FindPage(GuestPhys page) const { return PageAt(OnBus(page)); }
  /// Where a CPU's access to `address` goes: elsewhere while the A20 gate is off.
  GuestPhys OnBus(GuestPhys address) const {
    return GuestPhys(address.value & address_mask_->load(std::memory_order_relaxed));
  }
  /// Video memory comes and goes with its base address register: translated code is not kept for it.
  bool MayHoldCode(const uint8_t* host) const { return host < video_base(); }
  /// Where the byte at `host`, which may hold code, is for the guest, whatever windows show it too.
  GuestPhys AddressOf(const uint8_t* host) const {
    const auto at = static_cast<uint64_t>(host - base_);
    if (at < low_size_) return GuestPhys(at);
    return at < size_bytes_ ? GuestPhys(4 * kGiB + (at - low_size_)) : GuestPhys(rom_start_ + (at - size_bytes_));
  }

  // Firmware. Who changes what the CPUs see makes them forget their address translations afterwards.
  uint8_t* rom() const { return base_ + size_bytes_; }
  uint64_t rom_size() const { return rom_size_; }
  GuestPhys rom_start() const { return GuestPhys(rom_start_); }
  /// Empty where there is none. Its pages are never told to TakeDirty.
  std::span<uint8_t> video() const { return {video_base(), video_size_}; }
  /// CPUs see the video memory from here on, a multiple of 4096; nothing: nowhere. False, and nowhere, where RAM or ROM
  /// would be in the way, or what every board has below 4 GiB: it is left to the memory bus.
  bool PlaceVideo(std::optional<GuestPhys> start);
  /// Its first bytes, a multiple of 4096, read as zero.
  void ClearVideo(uint64_t size_bytes);
  /// [first, last] inside the first megabyte, whole pages. The first call comes before any CPU runs.
  void SetLowPages(GuestPhys first, GuestPhys last, LowPage show);
  /// The ROM's bytes [start, end) are registers for now, not memory; empty: none are.
  void HideRom(uint64_t start, uint64_t end);
  /// The A20 gate: off, the CPUs' accesses leave address bit 20 out. Devices do not.
  void SetA20(bool on) { address_mask_->store(on ? ~uint64_t{0} : ~kMiB, std::memory_order_relaxed); }
  /// What the CPUs see now, sorted by address. While the A20 gate is off, of all odd megabytes only the second shows
  /// its neighbour.
  std::vector<Region> Layout() const;
  /// A byte of memory as a CPU reads it, where it is not RAM that can be written; false: there is none.
  bool ReadByte(GuestPhys address, uint8_t& value) const;
  /// RAM under what a window shows; false: none.
  bool WriteUnder(GuestPhys address, uint8_t value);

  /// Copies; false (and nothing is changed) unless the whole range is RAM of one region.
  bool Read(GuestPhys address, std::span<uint8_t> to) const;
  bool Write(GuestPhys address, std::span<const uint8_t> from);
  template <typename T>
  bool ReadValue(GuestPhys address, T& value) const {
    return Read(address, {reinterpret_cast<uint8_t*>(&value), sizeof(T)});
  }
  template <typename T>
  bool WriteValue(GuestPhys address, const T& value) {
    return Write(address, {reinterpret_cast<const uint8_t*>(&value), sizeof(T)});
  }

  /// After a write through HostPointer: sets kDirty and tells the listener where kCode was set. The flag is tested
  /// after the data was written, so that an engine which sets kCode before it reads the bytes misses nothing.
  void MarkWritten(GuestPhys address, uint64_t size_bytes);

  /// Index into the flags of a RAM page: its page number from host_base on.
  uint64_t PageIndex(const uint8_t* host) const { return static_cast<uint64_t>(host - base_) / kPageSize; }
  std::atomic<uint8_t>& PageFlags(uint64_t page_index) { return page_flags_[page_index]; }
  /// kCode on or off for the page at `address` (must be RAM).
  void SetCodePage(GuestPhys address, bool on);
  /// No page holds translated code any more: the engine that said so is gone. While no CPU runs.
  void ForgetCodePages();
  void SetCodeWriteListener(CodeWriteListener* listener) { code_listener_ = listener; }

  /// Of a bitmap with one bit for each page: in 64-bit words.
  uint64_t page_bitmap_words() const { return (size_bytes_ / kPageSize + 63) / 64; }
  /// Sets the bits of the pages that are kDirty, in the order of their host addresses, and clears the flag. An engine
  /// whose vCPUs remember that they have set a flag must make them forget it.
  void TakeDirty(std::span<uint64_t> bitmap);

  /// For private views: forgets what was written to a page, which follows the original again. Clears its flags.
  void DropPrivatePage(uint64_t page_index);

  /// Gives whole pages inside the range back to the host; they read as zero afterwards (balloon, free page reporting).
  bool Discard(GuestPhys address, uint64_t size_bytes);

 private:
  static constexpr unsigned kLowPages = kMiB / kPageSize;
  static constexpr uint64_t kNowhere = ~uint64_t{0} - kMaxVideo;
  /// Shared with private views, which see what the original sees.
  struct Windows {
    std::array<std::atomic<LowPage>, kLowPages> low_pages{};
    std::atomic<uint64_t> hidden_start = 0, hidden_end = 0;
    std::atomic<uint64_t> address_mask = ~uint64_t{0};
    std::atomic<uint64_t> video_start = kNowhere;
  };

  GuestMemory() = default;
  Status Map(uint64_t size_bytes, uint64_t rom_bytes, uint64_t video_bytes, int sharing);
  uint8_t* video_base() const { return base_ + size_bytes_ + rom_size_; }
  void Share(std::shared_ptr<Windows> windows);
  uint8_t* RamPointer(GuestPhys address, uint64_t size_bytes) const {
    const uint64_t a = address.value;
    if (a < low_size_ && size_bytes <= low_size_ - a) return base_ + a;
    if (a >= 4 * kGiB && a - 4 * kGiB < high_size_ && size_bytes <= high_size_ - (a - 4 * kGiB))
      return base_ + low_size_ + (a - 4 * kGiB);
    return nullptr;
  }
  CpuPage PageAt(GuestPhys page) const {
    const uint64_t a = page.value;
    if (a >= mapped_end_) [[likely]] {
      if (uint8_t* ram = RamPointer(page, kPageSize)) return {ram, true};
      const uint64_t in_video = a - video_start_->load(std::memory_order_relaxed);
      if (in_video < video_size_) return {video_base() + in_video, true};
      if (a - rom_start_ >= rom_size_) return {};
      const uint64_t at = a - rom_start_;
      if (at >= hidden_start_->load(std::memory_order_relaxed) && at < hidden_end_->load(std::memory_order_relaxed))
        return {};
      return {rom() + at, false};
    }
    if (a >= low_size_) return {};
    switch (low_pages_[a / kPageSize].load(std::memory_order_relaxed)) {
      case LowPage::kRam:
        return {base_ + a, true};
      case LowPage::kReadOnlyRam:
        return {base_ + a, false};
      case LowPage::kRom:
        if (kMiB - a <= rom_size_) return {rom() + (rom_size_ - (kMiB - a)), false};
        return {};
      case LowPage::kNothing:
        break;
    }
    return {};
  }
  /// Of the range, what lies below 1 MiB is kRam.
  bool IsLowRam(GuestPhys address, uint64_t size_bytes) const {
    for (uint64_t page = address.value / kPageSize; page < kLowPages && page * kPageSize < address.value + size_bytes;
         ++page)
      if (low_pages_[page].load(std::memory_order_relaxed) != LowPage::kRam) return false;
    return true;
  }

  Fd fd_;                       ///< of a file
  uint8_t* mapping_ = nullptr;  ///< mapping_bytes_ that hold the RAM at base_, aligned to huge pages
  uint64_t mapping_bytes_ = 0;
  uint8_t* base_ = nullptr;
  uint64_t size_bytes_ = 0;
  uint64_t low_size_ = 0;
  uint64_t high_size_ = 0;
  uint64_t rom_start_ = 4 * kGiB;
  uint64_t rom_size_ = 0;
  uint64_t video_size_ = 0;
  uint64_t mapped_end_ = 0;  ///< below it FindPage looks at low_pages_: 0 or 1 MiB
  std::shared_ptr<Windows> windows_;
  std::atomic<LowPage>* low_pages_ = nullptr;  ///< windows_'s
  std::atomic<uint64_t>*hidden_start_ = nullptr, *hidden_end_ = nullptr, *address_mask_ = nullptr,
  *video_start_ = nullptr;
  std::vector<Region> regions_;
  std::unique_ptr<std::atomic<uint8_t>[]> page_flags_;
  CodeWriteListener* code_listener_ = nullptr;
};

}  // namespace nacre::memory
