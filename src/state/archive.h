#pragma once
// Versioned save and restore. One function of a device describes its state for both directions, so that saving and
// loading cannot drift apart:
//
//   void Serial::Serialize(state::Archive& archive) {
//     archive.Field(1, ier_);
//     archive.Field(2, lcr_);
//     archive.Bytes(3, fifo_, kFifoSize);       // a vector, with the most that a load accepts
//     if (archive.loading()) UpdateInterrupt();
//   }
//
// Fields are found by number within their section. A number is never reused for another meaning; new numbers may be
// added: old files lack them (the value stays what it was after Reset), old programs skip them. Never raw structs.
//
// On the wire (all little-endian) a field is { u16 id, u16 kind, u32 size, payload }; kind: 0 bytes, 1 integer (8
// bytes), 2 section (payload: u16 version, then fields). The whole is framed and checksummed by who stores it
// (lifecycle). Loading never trusts a size. One thread.

#include <concepts>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/result.h"

namespace nacre::state {

template <typename T>
concept Scalar = std::integral<T> || std::is_enum_v<T>;

class Archive {
 public:
  /// Saves into memory: call the fields, then Finish().
  static Archive ForSaving();
  /// Loads from `data`, which must outlive the archive.
  static Archive ForLoading(std::span<const uint8_t> data);

  bool loading() const { return loading_; }

  /// An integer, enum or bool. A loaded value that does not fit the type is rejected.
  template <Scalar T>
  void Field(uint16_t id, T& value) {
    int64_t wide = loading_ ? 0 : static_cast<int64_t>(value);
    if (Integer(id, wide, sizeof(T), std::is_signed_v<T>)) value = static_cast<T>(wide);
  }
  /// Exactly `bytes.size()` bytes.
  void Bytes(uint16_t id, std::span<uint8_t> bytes);
  /// Up to `max_size` bytes; the vector is resized on load.
  void Bytes(uint16_t id, std::vector<uint8_t>& bytes, size_t max_size);
  void Text(uint16_t id, std::string& text, size_t max_size);
  /// A group of fields with numbers and a version of its own. On load, `fields` runs only when the section is there;
  /// `version` is the file's.
  void Section(uint16_t id, uint16_t version, const std::function<void(Archive&, uint16_t version)>& fields);
  /// `count` groups (1-based ids inside one section); on load `resize` is called with the file's count, at most max.
  void List(uint16_t id, size_t count, size_t max, const std::function<void(size_t)>& resize,
            const std::function<void(Archive&, size_t index)>& element);
  /// Scalars in a fixed array.
  template <Scalar T, size_t N>
  void Array(uint16_t id, T (&values)[N]) {
    Section(id, 1, [&](Archive& archive, uint16_t) {
      for (size_t i = 0; i < N; ++i) archive.Field(static_cast<uint16_t>(i + 1), values[i]);
    });
  }

  /// Loading only: the file's values make no sense. The first reason is kept.
  void Reject(std::string reason);
  bool ok() const { return error_.empty(); }
  Status status() const;
  /// Saving only: the bytes.
  std::vector<uint8_t> Finish() { return std::move(out_); }

 private:
  struct Entry {
    uint16_t kind = 0;
    std::span<const uint8_t> payload;
  };

  explicit Archive(bool loading) : loading_(loading) {}
  void Index(std::span<const uint8_t> data);
  bool Integer(uint16_t id, int64_t& value, size_t size, bool is_signed);
  void Put(uint16_t id, uint16_t kind, std::span<const uint8_t> payload);
  const Entry* Find(uint16_t id, uint16_t kind);

  bool loading_;
  std::vector<uint8_t> out_;
  std::map<uint16_t, Entry> entries_;
  std::string error_;
};

}  // namespace nacre::state
