#include "codegen/code_buffer.h"

#include <sys/mman.h>
#include <unistd.h>

#include <utility>

#include "base/bits.h"
#include "base/check.h"
#include "base/fd.h"

namespace nacre::codegen {
namespace {

constexpr size_t kMaxBytes = 2 * kGiB - kPageSize;

#ifdef MFD_EXEC
constexpr unsigned kMemfdExec = MFD_EXEC;
#else
constexpr unsigned kMemfdExec = 0x10;  // Linux 6.3; older C libraries do not know it
#endif

// Hosts with vm.memfd_noexec set make memfds without execute permission unless it is asked for; kernels before 6.3
// refuse the flag.
int CreateMemfd() {
  const int fd = memfd_create("nacre-code", MFD_CLOEXEC | kMemfdExec);
  if (fd >= 0 || errno != EINVAL) return fd;
  return memfd_create("nacre-code", MFD_CLOEXEC);
}

}  // namespace

Result<CodeBuffer> CodeBuffer::CreateAnonymous(size_t size_bytes) {
  CodeBuffer buffer;
  void* write_view =
      mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (write_view == MAP_FAILED) return FailErrno("cannot map {} bytes for generated code", size_bytes);
  buffer.write_base_ = static_cast<uint8_t*>(write_view);
  buffer.size_bytes_ = size_bytes;
  void* exec_view = mremap(write_view, 0, size_bytes, MREMAP_MAYMOVE);  // of a shared mapping: the same pages again
  if (exec_view == MAP_FAILED) return FailErrno("cannot map {} bytes for generated code twice", size_bytes);
  buffer.exec_base_ = static_cast<const uint8_t*>(exec_view);
  if (mprotect(exec_view, size_bytes, PROT_READ | PROT_EXEC) != 0)
    return FailErrno("cannot make {} bytes of memory executable", size_bytes);
  return buffer;
}

Result<CodeBuffer> CodeBuffer::Create(size_t size_bytes, Backing backing) {
  if (size_bytes == 0 || size_bytes > kMaxBytes)
    return Fail("code buffer of {} bytes: must be 1 to {}", size_bytes, kMaxBytes);
  size_bytes = AlignUp(size_bytes, kPageSize);
  if (backing == Backing::kAnonymous) return CreateAnonymous(size_bytes);
  const Fd fd(CreateMemfd());
  if (!fd.valid()) return FailErrno("cannot create a memory file for generated code");
  if (ftruncate(fd.get(), static_cast<off_t>(size_bytes)) != 0)
    return FailErrno("cannot size the memory file for generated code to {} bytes", size_bytes);
  CodeBuffer buffer;
  void* write_view = mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd.get(), 0);
  if (write_view == MAP_FAILED) return FailErrno("cannot map {} bytes for generated code", size_bytes);
  buffer.write_base_ = static_cast<uint8_t*>(write_view);
  buffer.size_bytes_ = size_bytes;
  void* exec_view = mmap(nullptr, size_bytes, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_NORESERVE, fd.get(), 0);
  if (exec_view == MAP_FAILED)
    return FailErrno(
        "cannot map {} bytes of executable memory (is execution of memory files forbidden here: SELinux, "
        "vm.memfd_noexec, seccomp?)",
        size_bytes);
  buffer.exec_base_ = static_cast<const uint8_t*>(exec_view);
  return buffer;
}

CodeBuffer::CodeBuffer(CodeBuffer&& other) noexcept
    : write_base_(std::exchange(other.write_base_, nullptr)),
      exec_base_(std::exchange(other.exec_base_, nullptr)),
      size_bytes_(std::exchange(other.size_bytes_, 0)) {}

CodeBuffer& CodeBuffer::operator=(CodeBuffer&& other) noexcept {
  std::swap(write_base_, other.write_base_);
  std::swap(exec_base_, other.exec_base_);
  std::swap(size_bytes_, other.size_bytes_);
  return *this;
}

CodeBuffer::~CodeBuffer() {
  if (write_base_ != nullptr) munmap(write_base_, size_bytes_);
  if (exec_base_ != nullptr) munmap(const_cast<uint8_t*>(exec_base_), size_bytes_);
}

void CodeBuffer::Discard(size_t offset, size_t length) {
  NACRE_CHECK(offset <= size_bytes_ && length <= size_bytes_ - offset);
  const size_t start = AlignUp(offset, kPageSize);
  const size_t end = AlignDown(offset + length, kPageSize);
  if (start >= end) return;
  // Punches the hole in the file: MADV_DONTNEED alone would only unmap. Failure costs memory, not correctness, but the
  // promise of zeros must hold.
  if (madvise(write_base_ + start, end - start, MADV_REMOVE) != 0) std::memset(write_base_ + start, 0, end - start);
}

}  // namespace nacre::codegen
