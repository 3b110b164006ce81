#include "engine/jit/address_space.h"

#include <sys/mman.h>
#include <unistd.h>

#include <new>
#include <utility>

#include "base/fd.h"

namespace nacre::engine::jit {
namespace {

constexpr size_t kViewBytes = sizeof(AddressSpaceView);
static_assert(kViewBytes % kPageSize == 0);

struct Part {
  size_t offset, bytes;
};
/// Runs of whole pages that each view has for itself.
constexpr Part kPrivate[] = {
    {offsetof(JitContext, tlb) + kContextUser * sizeof(DataTlb), 2 * sizeof(DataTlb)},
    {offsetof(JitContext, code_pages) + kContextUser * sizeof(CodePages), sizeof(CodePages)},
    {offsetof(JitContext, jump_cache) + kContextUser * sizeof(JumpCache), sizeof(JumpCache)},
    {sizeof(JitContext), kViewBytes - sizeof(JitContext)},
};
static_assert(kContextSupervisorAc == kContextUser + 1);
static_assert(sizeof(JitContext) % kPageSize == 0 && offsetof(JitContext, tlb) % kPageSize == 0 &&
              offsetof(JitContext, code_pages) % kPageSize == 0 && offsetof(JitContext, jump_cache) % kPageSize == 0);
static_assert(sizeof(DataTlb) % kPageSize == 0 && sizeof(CodePages) % kPageSize == 0 &&
              sizeof(JumpCache) % kPageSize == 0);

}  // namespace

Result<AddressSpaces> AddressSpaces::Create() {
  const Fd fd(memfd_create("nacre-vcpu", MFD_CLOEXEC));
  if (!fd.valid()) return FailErrno("cannot create a memory file for a virtual CPU");
  if (ftruncate(fd.get(), static_cast<off_t>(sizeof(JitContext))) != 0)
    return FailErrno("cannot size the memory file for a virtual CPU to {} bytes", sizeof(JitContext));
  constexpr int kReadWrite = PROT_READ | PROT_WRITE;
  void* base = mmap(nullptr, kSpaces * kViewBytes, kReadWrite, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return FailErrno("cannot map {} bytes for a virtual CPU", kSpaces * kViewBytes);
  AddressSpaces spaces;
  spaces.views_ = static_cast<AddressSpaceView*>(base);
  for (unsigned i = 0; i < kSpaces; ++i) {
    auto* view = static_cast<uint8_t*>(base) + i * kViewBytes;
    if (mmap(view, sizeof(JitContext), kReadWrite, MAP_SHARED | MAP_FIXED, fd.get(), 0) == MAP_FAILED)
      return FailErrno("cannot map the state of a virtual CPU");
    for (const Part& part : kPrivate)
      if (mmap(view + part.offset, part.bytes, kReadWrite, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
          MAP_FAILED)
        return FailErrno("cannot map an address space of a virtual CPU");
  }
  new (&spaces.views_[0].context) JitContext;  // the members with initial values are those that all views share
  return spaces;
}

AddressSpaces::AddressSpaces(AddressSpaces&& other) noexcept : views_(std::exchange(other.views_, nullptr)) {}

AddressSpaces& AddressSpaces::operator=(AddressSpaces&& other) noexcept {
  std::swap(views_, other.views_);
  return *this;
}

AddressSpaces::~AddressSpaces() {
  if (views_) munmap(views_, kSpaces * kViewBytes);
}

}  // namespace nacre::engine::jit
