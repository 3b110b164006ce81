#pragma once
// A growing array that never moves its elements and never holds more than one chunk too much: for the translator's
// bookkeeping, which is large and only grows. Trivially copyable elements; no exceptions; one thread.

#include <cstddef>
#include <memory>
#include <type_traits>
#include <vector>

namespace nacre::engine::jit {

template <typename T, size_t kChunk = 2048>
class ChunkedVector {
  static_assert(std::is_trivially_copyable_v<T> && (kChunk & (kChunk - 1)) == 0);

 public:
  size_t size() const { return size_; }
  T& operator[](size_t i) { return chunks_[i / kChunk][i % kChunk]; }
  const T& operator[](size_t i) const { return chunks_[i / kChunk][i % kChunk]; }
  T& back() { return (*this)[size_ - 1]; }
  void push_back(const T& value) {
    if (size_ == chunks_.size() * kChunk) chunks_.push_back(std::make_unique<T[]>(kChunk));
    (*this)[size_++] = value;
  }
  void pop_back() { --size_; }
  void clear() {
    chunks_.clear();
    size_ = 0;
  }

 private:
  std::vector<std::unique_ptr<T[]>> chunks_;
  size_t size_ = 0;
};

}  // namespace nacre::engine::jit
