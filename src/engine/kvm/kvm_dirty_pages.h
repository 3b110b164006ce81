#pragma once
// A VM's memory slots, and the pages that its guest writes, as the host's KVM knows them: by a ring of each vCPU
// (KVM_CAP_DIRTY_LOG_RING), else by a bitmap of each memory slot (KVM_GET_DIRTY_LOG). Which of the two is settled
// before the first vCPU is made.
//
// Threads: OnRingFull on a vCPU's thread, SetSlots on any; the rest while no vCPU runs.

#include "engine/kvm/kvm_api.h"

#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "engine/engine.h"
#include "engine/kvm/kvm_device.h"
#include "memory/guest_memory.h"

namespace nacre::engine::kvm {

class KvmDirtyPages {
 public:
  /// Slots from this number on are free for others.
  static constexpr uint32_t kMaxSlots = 256;

  /// `vm`: KVM's descriptor. Both must outlive it. `ring_entries`: of each vCPU, a power of two from 1024; 0: no ring.
  KvmDirtyPages(int vm, const KvmDevice& device, memory::GuestMemory& memory, uint32_t ring_entries);
  ~KvmDirtyPages();
  KvmDirtyPages(const KvmDirtyPages&) = delete;
  KvmDirtyPages& operator=(const KvmDirtyPages&) = delete;

  /// Gives the VM the memory that its guest shall see now (GuestMemory::Layout). What changes is for a moment not
  /// there: a vCPU that runs in it meanwhile gets what the memory bus says.
  Status SetSlots();
  Status AddVcpu(unsigned index, int vcpu);
  /// Before its descriptor is closed.
  void RemoveVcpu(unsigned index);

  Result<std::unique_ptr<DirtyLog>> Start();
  /// KVM_EXIT_DIRTY_RING_FULL.
  Status OnRingFull();
  bool uses_rings() const { return ring_entries_ != 0; }
  uint64_t full_rings() const { return full_rings_; }

 private:
  class Log;
  struct Ring {
    kvm_dirty_gfn* entries = nullptr;
    uint32_t next = 0;
  };
  Status Collect(std::span<uint64_t> bitmap);
  Status SetLogging(bool on);
  // Under the mutex.
  Status SetSlot(uint32_t slot);
  Status RemoveSlot(uint32_t slot);
  /// From the rings to noted_. How many entries.
  Result<uint32_t> Harvest();
  void Harvest(Ring& ring);
  Status CollectSlot(uint32_t slot, std::span<uint64_t> bitmap);
  void Note(std::span<uint64_t> bitmap, uint32_t slot, uint64_t page) const;

  const int vm_;
  memory::GuestMemory& memory_;
  uint32_t ring_entries_ = 0;    ///< 0: bitmaps
  bool manual_protect_ = false;  ///< bitmaps: KVM_GET_DIRTY_LOG leaves the pages writable until they are cleared
  std::mutex mutex_;
  bool logging_ = false;
  std::vector<memory::Region> slots_;  ///< by number; size 0: free
  std::vector<Ring> rings_;            ///< by vCPU
  std::vector<uint64_t> noted_;        ///< not yet collected
  uint64_t full_rings_ = 0;
};

}  // namespace nacre::engine::kvm
