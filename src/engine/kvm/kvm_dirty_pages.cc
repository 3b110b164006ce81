#include "engine/kvm/kvm_dirty_pages.h"

#include <sys/ioctl.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <bit>

#include "base/bits.h"
#include "base/check.h"

namespace nacre::engine::kvm {

class KvmDirtyPages::Log final : public DirtyLog {
 public:
  explicit Log(KvmDirtyPages& pages) : pages_(pages) {}
  ~Log() override { (void)pages_.SetLogging(false); }
  Status Collect(std::span<uint64_t> bitmap) override { return pages_.Collect(bitmap); }

 private:
  KvmDirtyPages& pages_;
};

KvmDirtyPages::KvmDirtyPages(int vm, const KvmDevice& device, memory::GuestMemory& memory, uint32_t ring_entries)
    : vm_(vm), memory_(memory) {
  kvm_enable_cap enable{};
  for (const uint32_t capability : {KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING}) {
    const auto most_bytes = static_cast<uint32_t>(device.Check(static_cast<int>(capability)));
    if (ring_entries == 0 || most_bytes < ring_entries * sizeof(kvm_dirty_gfn)) continue;
    enable.cap = capability;
    enable.args[0] = ring_entries * sizeof(kvm_dirty_gfn);
    if (ioctl(vm_, KVM_ENABLE_CAP, &enable) != 0) continue;
    ring_entries_ = ring_entries;
    return;
  }
  if ((device.Check(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE) == 0) return;
  // Without KVM_DIRTY_LOG_INITIALLY_SET: the log begins empty.
  enable.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2;
  enable.args[0] = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE;
  manual_protect_ = ioctl(vm_, KVM_ENABLE_CAP, &enable) == 0;
}

KvmDirtyPages::~KvmDirtyPages() {
  for (unsigned i = 0; i < rings_.size(); ++i) RemoveVcpu(i);
}

Status KvmDirtyPages::SetSlot(uint32_t slot) {
  const memory::Region& region = slots_[slot];
  kvm_userspace_memory_region place{};
  place.slot = slot;
  place.flags = region.read_only ? KVM_MEM_READONLY : logging_ ? KVM_MEM_LOG_DIRTY_PAGES : 0;
  place.guest_phys_addr = region.start.value;
  place.memory_size = region.size_bytes;
  place.userspace_addr = reinterpret_cast<uint64_t>(memory_.host_base() + region.offset);
  if (ioctl(vm_, KVM_SET_USER_MEMORY_REGION, &place) != 0)
    return FailErrno("KVM: {} KiB of guest memory at {:#x}", region.size_bytes / kKiB, region.start.value);
  return {};
}

Status KvmDirtyPages::RemoveSlot(uint32_t slot) {
  memory::Region& region = slots_[slot];
  // A vCPU that runs may write until the slot is gone, and the log goes with it.
  if (logging_ && !region.read_only)
    for (uint64_t page = 0; page < region.size_bytes / kPageSize; ++page) Note(noted_, slot, page);
  region.size_bytes = 0;
  return SetSlot(slot);
}

/// Slots may not overlap, so those that go, go first.
Status KvmDirtyPages::SetSlots() {
  const std::lock_guard lock(mutex_);
  if (logging_) NACRE_TRY(Harvest());  // while the rings' numbers of slots mean what they meant
  std::vector<memory::Region> wanted = memory_.Layout();
  for (uint32_t slot = 0; slot < slots_.size(); ++slot) {
    if (slots_[slot].size_bytes == 0) continue;
    if (const auto same = std::ranges::find(wanted, slots_[slot]); same != wanted.end())
      wanted.erase(same);
    else
      NACRE_TRY_STATUS(RemoveSlot(slot));
  }
  for (const memory::Region& region : wanted) {
    auto free = std::ranges::find(slots_, uint64_t{0}, &memory::Region::size_bytes);
    if (free == slots_.end()) free = slots_.insert(free, memory::Region{});
    NACRE_CHECK(slots_.size() <= kMaxSlots);
    *free = region;
    NACRE_TRY_STATUS(SetSlot(static_cast<uint32_t>(free - slots_.begin())));
  }
  return {};
}

Status KvmDirtyPages::SetLogging(bool on) {
  const std::lock_guard lock(mutex_);
  logging_ = on;
  for (uint32_t slot = 0; slot < slots_.size(); ++slot)
    if (slots_[slot].size_bytes != 0 && !slots_[slot].read_only) NACRE_TRY_STATUS(SetSlot(slot));
  return {};
}

Status KvmDirtyPages::AddVcpu(unsigned index, int vcpu) {
  if (!uses_rings()) return {};
  if (index >= rings_.size()) rings_.resize(index + 1);
  void* entries = mmap(nullptr, ring_entries_ * sizeof(kvm_dirty_gfn), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu,
                       KVM_DIRTY_LOG_PAGE_OFFSET * static_cast<off_t>(kPageSize));
  if (entries == MAP_FAILED) return FailErrno("KVM: the ring of written pages of virtual CPU {}", index);
  rings_[index] = {static_cast<kvm_dirty_gfn*>(entries), 0};
  return {};
}

void KvmDirtyPages::RemoveVcpu(unsigned index) {
  if (index >= rings_.size() || !rings_[index].entries) return;
  munmap(rings_[index].entries, ring_entries_ * sizeof(kvm_dirty_gfn));
  rings_[index].entries = nullptr;
}

Result<std::unique_ptr<DirtyLog>> KvmDirtyPages::Start() {
  {
    const std::lock_guard lock(mutex_);
    noted_.assign(memory_.page_bitmap_words(), 0);
    memory_.TakeDirty(noted_);
    NACRE_TRY(Harvest());
    std::ranges::fill(noted_, 0);
  }
  auto log = std::make_unique<Log>(*this);
  NACRE_TRY_STATUS(SetLogging(true));
  return log;
}

Status KvmDirtyPages::Collect(std::span<uint64_t> bitmap) {
  NACRE_CHECK(bitmap.size() == memory_.page_bitmap_words());
  const std::lock_guard lock(mutex_);
  if (uses_rings()) {
    NACRE_TRY(Harvest());
  } else {
    for (uint32_t slot = 0; slot < slots_.size(); ++slot) NACRE_TRY_STATUS(CollectSlot(slot, bitmap));
  }
  for (size_t i = 0; i < bitmap.size(); ++i) bitmap[i] |= std::exchange(noted_[i], 0);
  memory_.TakeDirty(bitmap);  // what we write ourselves the kernel does not see
  return {};
}

Status KvmDirtyPages::CollectSlot(uint32_t slot, std::span<uint64_t> bitmap) {
  if (slots_[slot].read_only) return {};
  const uint64_t pages = slots_[slot].size_bytes / kPageSize;
  if (pages == 0) return {};
  std::vector<uint64_t> words((pages + 63) / 64);
  kvm_dirty_log log{};
  log.slot = slot;
  log.dirty_bitmap = words.data();
  if (ioctl(vm_, KVM_GET_DIRTY_LOG, &log) != 0) return FailErrno("KVM_GET_DIRTY_LOG");
  if (manual_protect_) {
    kvm_clear_dirty_log clear{};
    clear.slot = slot;
    clear.num_pages = static_cast<uint32_t>(pages);
    clear.dirty_bitmap = words.data();
    if (ioctl(vm_, KVM_CLEAR_DIRTY_LOG, &clear) != 0) return FailErrno("KVM_CLEAR_DIRTY_LOG");
  }
  for (uint64_t word = 0; word < words.size(); ++word)
    for (uint64_t rest = words[word]; rest != 0; rest &= rest - 1)
      Note(bitmap, slot, word * 64 + static_cast<unsigned>(std::countr_zero(rest)));
  return {};
}

void KvmDirtyPages::Note(std::span<uint64_t> bitmap, uint32_t slot, uint64_t page) const {
  if (slot >= slots_.size() || page >= slots_[slot].size_bytes / kPageSize) return;
  const uint64_t index = slots_[slot].offset / kPageSize + page;
  if (index >= memory_.size_bytes() / kPageSize) return;  // ROM, by a number that had another meaning
  bitmap[index / 64] |= Bit(index % 64);
}

Status KvmDirtyPages::OnRingFull() {
  const std::lock_guard lock(mutex_);
  ++full_rings_;
  if (noted_.empty()) noted_.assign(memory_.page_bitmap_words(), 0);
  if (NACRE_TRY(Harvest()) == 0) return Fail("KVM says that a ring of written pages is full, which is empty");
  return {};
}

Result<uint32_t> KvmDirtyPages::Harvest() {
  if (!uses_rings()) return 0u;
  uint32_t count = 0;
  for (Ring& ring : rings_) {
    if (!ring.entries) continue;
    const uint32_t from = ring.next;
    Harvest(ring);
    // The kernel leaves the guest while some entries are still free.
    if (ring.next - from >= ring_entries_) return Fail("KVM has overrun a ring of {} written pages", ring_entries_);
    count += ring.next - from;
  }
  // What was taken is protected again, so that the next write is seen.
  if (ioctl(vm_, KVM_RESET_DIRTY_RINGS, 0) < 0) return FailErrno("KVM_RESET_DIRTY_RINGS");
  return count;
}

void KvmDirtyPages::Harvest(Ring& ring) {
  for (uint32_t i = 0; i < ring_entries_; ++i, ++ring.next) {
    kvm_dirty_gfn& entry = ring.entries[ring.next % ring_entries_];
    const std::atomic_ref flags(entry.flags);
    if ((flags.load(std::memory_order_acquire) & KVM_DIRTY_GFN_F_DIRTY) == 0) return;
    Note(noted_, entry.slot & 0xffff, entry.offset);  // above: the address space, system management mode's
    flags.store(KVM_DIRTY_GFN_F_RESET, std::memory_order_release);
  }
}

}  // namespace nacre::engine::kvm
