#pragma once
// Which vCPUs hold translations of a page of guest RAM, and which may have write tags for it in their TLBs. Together
// with GuestMemory::kCode it answers the two questions of self-modifying code: who must be told of a write, and whose
// write tags must go before a page's bytes are read for translation. Any thread.
//
// Order: a vCPU notes itself as a writer, then looks at kCode, then hands itself the tag; one that translates marks the
// page, then looks at the writers. So at least one of two that race sees the other.

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>

#include "base/check.h"
#include "memory/guest_memory.h"

namespace nacre::engine::jit {

class CodePageTable {
 public:
  /// 24 bytes a page, which the host provides as they are touched.
  explicit CodePageTable(memory::GuestMemory& memory)
      : memory_(memory), pages_(static_cast<Page*>(std::calloc(memory.page_count(), sizeof(Page)))) {
    NACRE_CHECK(pages_ != nullptr);
  }

  static constexpr uint64_t Bit(unsigned vcpu) { return uint64_t{1} << vcpu; }
  uint64_t holders(uint64_t page_index) const { return pages_[page_index].holders.load(std::memory_order_relaxed); }
  uint64_t writers(uint64_t page_index) const {
    return pages_[page_index].supervisor_writers.load() | pages_[page_index].other_writers.load();
  }
  /// In which TLBs of a vCPU the write tags may be: that of the supervisor, or others.
  bool SupervisorWrites(uint64_t page_index, unsigned vcpu) const {
    return (pages_[page_index].supervisor_writers.load() & Bit(vcpu)) != 0;
  }
  bool OtherWrites(uint64_t page_index, unsigned vcpu) const {
    return (pages_[page_index].other_writers.load() & Bit(vcpu)) != 0;
  }

  /// Before the bytes of a page are read for translation.
  void Hold(uint64_t page_index, unsigned vcpu) {
    std::lock_guard lock(mutex_);
    pages_[page_index].holders.fetch_or(Bit(vcpu));
    memory_.PageFlags(page_index).fetch_or(memory::GuestMemory::kCode);
  }
  /// The vCPU holds no translation of the page any more.
  void Release(uint64_t page_index, unsigned vcpu) {
    std::lock_guard lock(mutex_);
    if (pages_[page_index].holders.fetch_and(~Bit(vcpu)) == Bit(vcpu))
      memory_.PageFlags(page_index).fetch_and(static_cast<uint8_t>(~memory::GuestMemory::kCode));
  }

  void NoteWriter(uint64_t page_index, unsigned vcpu, bool supervisor) {
    Page& page = pages_[page_index];
    std::atomic<uint64_t>& writers = supervisor ? page.supervisor_writers : page.other_writers;
    if (!(writers.load(std::memory_order_relaxed) & Bit(vcpu))) writers.fetch_or(Bit(vcpu));
  }
  /// By the vCPU itself or under its gate: it has no write tag for the page.
  void DropWriter(uint64_t page_index, unsigned vcpu) {
    pages_[page_index].supervisor_writers.fetch_and(~Bit(vcpu));
    pages_[page_index].other_writers.fetch_and(~Bit(vcpu));
  }

 private:
  struct Page {
    std::atomic<uint64_t> holders, supervisor_writers, other_writers;
  };
  struct Free {
    void operator()(Page* pages) const { std::free(pages); }
  };
  memory::GuestMemory& memory_;
  std::unique_ptr<Page[], Free> pages_;
  std::mutex mutex_;
};

}  // namespace nacre::engine::jit
