#pragma once
// Guest RAM: one mapping, anonymous or of a memfd, seen by the guest as a low region at 0 and, above `kLowLimit`, a
// high region at 4 GiB. All host code that reads or writes guest RAM on behalf of devices, loaders and engines goes
// through here, so that dirty pages and pages that hold translated code are known. Any thread: guest RAM is racy by
// nature; page flags are atomic.

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "memory/address.h"

namespace nacre::memory {

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
};

class GuestMemory {
 public:
  /// RAM below 4 GiB ends here; the rest starts at 4 GiB. The hole is for PCI, IO-APIC, HPET, local APIC, firmware.
  static constexpr uint64_t kLowLimit = 3 * kGiB;
  static constexpr uint8_t kDirty = 1;  ///< written since TakeDirty
  static constexpr uint8_t kCode = 2;   ///< an engine holds a translation or decoded form of bytes of this page

  /// Anonymous memory has huge pages where the host gives them; only a file can be seen through a second view.
  enum class Backing : uint8_t { kFile, kAnonymous };
  /// `size_bytes`: a multiple of 4096, from 1 MiB to 1 TiB. Pages come from the host as they are touched.
  static Result<std::unique_ptr<GuestMemory>> Create(uint64_t size_bytes, Backing backing = Backing::kFile);
  /// The same RAM as `of`, which must be a file, now has, copy-on-write: writes stay in this view until
  /// DropPrivatePage. Pages that this view has not written follow `of`. For running an engine beside another one
  /// without touching the guest.
  static Result<std::unique_ptr<GuestMemory>> CreatePrivateView(const GuestMemory& of);
  ~GuestMemory();
  GuestMemory(const GuestMemory&) = delete;
  GuestMemory& operator=(const GuestMemory&) = delete;

  uint64_t size_bytes() const { return size_bytes_; }
  std::span<const Region> regions() const { return regions_; }
  /// The whole RAM, regions one after another.
  uint8_t* host_base() const { return base_; }

  /// Host address of [address, address + size_bytes), or nullptr unless all of it is RAM of one region. For reading;
  /// who writes through it calls MarkWritten afterwards.
  uint8_t* HostPointer(GuestPhys address, uint64_t size_bytes) const {
    const uint64_t a = address.value;
    if (a < low_size_ && size_bytes <= low_size_ - a) return base_ + a;
    if (a >= 4 * kGiB && a - 4 * kGiB < high_size_ && size_bytes <= high_size_ - (a - 4 * kGiB))
      return base_ + low_size_ + (a - 4 * kGiB);
    return nullptr;
  }
  bool IsRam(GuestPhys address, uint64_t size_bytes) const { return HostPointer(address, size_bytes) != nullptr; }

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
  GuestMemory() = default;
  Status Map(uint64_t size_bytes, int sharing);

  Fd fd_;                       ///< of a file
  uint8_t* mapping_ = nullptr;  ///< mapping_bytes_ that hold the RAM at base_, aligned to huge pages
  uint64_t mapping_bytes_ = 0;
  uint8_t* base_ = nullptr;
  uint64_t size_bytes_ = 0;
  uint64_t low_size_ = 0;
  uint64_t high_size_ = 0;
  std::vector<Region> regions_;
  std::unique_ptr<std::atomic<uint8_t>[]> page_flags_;
  CodeWriteListener* code_listener_ = nullptr;
};

}  // namespace nacre::memory
