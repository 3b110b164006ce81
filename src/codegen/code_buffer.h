#pragma once
// Memory for generated code under W^X: one memfd mapped twice, once readable and writable (the writer's view), once
// readable and executable (the view that runs). No page is ever writable and executable through one mapping. Used by
// the translator, the interpreter's thunks and the WebAssembly compiler.
//
// Threads: creation, destruction and the accessors on any thread; who writes what is the owner's business. x86 keeps
// instruction fetches coherent with stores to the same physical memory through any mapping, but another CPU that runs
// old bytes needs a serializing event before it surely sees new ones (SDM 3A 8.1.3).

#include <cstddef>
#include <cstdint>

#include "base/result.h"

namespace nacre::codegen {

class CodeBuffer {
 public:
  /// `size_bytes` is rounded up to whole pages; 1 byte to 2 GiB - 4 KiB, so that a 32-bit displacement reaches
  /// everywhere inside. Pages come from the host as they are touched and read as zero until then.
  /// kAnonymous: the two mappings have no name, which perf wants of code that it looks up in /tmp/perf-PID.map.
  enum class Backing : uint8_t { kFile, kAnonymous };
  static Result<CodeBuffer> Create(size_t size_bytes, Backing backing = Backing::kFile);

  CodeBuffer() = default;
  CodeBuffer(CodeBuffer&& other) noexcept;
  CodeBuffer& operator=(CodeBuffer&& other) noexcept;
  CodeBuffer(const CodeBuffer&) = delete;
  CodeBuffer& operator=(const CodeBuffer&) = delete;
  ~CodeBuffer();

  uint8_t* write_base() const { return write_base_; }
  const uint8_t* exec_base() const { return exec_base_; }
  size_t size_bytes() const { return size_bytes_; }

  /// Between the two views of one byte. The address must lie in the buffer (its end included).
  const uint8_t* ToExec(const uint8_t* in_write_view) const { return exec_base_ + (in_write_view - write_base_); }
  uint8_t* ToWrite(const uint8_t* in_exec_view) const { return write_base_ + (in_exec_view - exec_base_); }
  /// Whether a host program counter lies in the executable view.
  bool ContainsExec(const void* address) const {
    return reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(exec_base_) < size_bytes_;
  }
  bool ContainsWrite(const void* address) const {
    return reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(write_base_) < size_bytes_;
  }

  /// Gives the pages of [offset, offset + length) back to the host; they read as zero afterwards. Both are rounded
  /// inwards to whole pages. For emptied parts of a code cache.
  void Discard(size_t offset, size_t length);

 private:
  static Result<CodeBuffer> CreateAnonymous(size_t size_bytes);

  uint8_t* write_base_ = nullptr;
  const uint8_t* exec_base_ = nullptr;
  size_t size_bytes_ = 0;
};

}  // namespace nacre::codegen
