#include "engine/dirty_flags.h"

namespace nacre::engine {
namespace {

class DirtyFlags final : public DirtyLog {
 public:
  DirtyFlags(memory::GuestMemory& memory, std::vector<Vcpu*> vcpus) : memory_(memory), vcpus_(std::move(vcpus)) {
    std::vector<uint64_t> before(memory_.page_bitmap_words());
    Take(before);
  }
  Status Collect(std::span<uint64_t> bitmap) override {
    Take(bitmap);
    return {};
  }

 private:
  void Take(std::span<uint64_t> bitmap) {
    memory_.TakeDirty(bitmap);
    for (Vcpu* vcpu : vcpus_) vcpu->Request(kRequestTlbFlush);
  }

  memory::GuestMemory& memory_;
  const std::vector<Vcpu*> vcpus_;
};

}  // namespace

std::unique_ptr<DirtyLog> StartDirtyFlags(memory::GuestMemory& memory, std::vector<Vcpu*> vcpus) {
  return std::make_unique<DirtyFlags>(memory, std::move(vcpus));
}

}  // namespace nacre::engine
