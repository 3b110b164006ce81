#include "devices/virtio/chain.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace nacre::devices {
namespace {

/// Calls visit(buffer, offset in the buffer, size) for the pieces of [offset, offset + size_bytes); returns
/// the bytes that the part had.
template <typename Visit>
uint64_t ForRange(std::span<const GuestBuffer> part, uint64_t offset, uint64_t size_bytes, Visit visit) {
  uint64_t done = 0;
  for (const GuestBuffer& buffer : part) {
    if (done == size_bytes) break;
    if (offset >= buffer.size_bytes) {
      offset -= buffer.size_bytes;
      continue;
    }
    const uint64_t piece = std::min<uint64_t>(buffer.size_bytes - offset, size_bytes - done);
    visit(buffer, offset, piece);
    done += piece;
    offset = 0;
  }
  return done;
}

}  // namespace

uint64_t Chain::Read(uint64_t offset, std::span<uint8_t> to) const {
  uint8_t* out = to.data();
  return ForRange(readable_, offset, to.size(), [&](const GuestBuffer& buffer, uint64_t at, uint64_t size) {
    std::memcpy(out, buffer.host + at, size);
    out += size;
  });
}

uint64_t Chain::Write(memory::GuestMemory& memory, uint64_t offset, std::span<const uint8_t> from) const {
  const uint8_t* in = from.data();
  return ForRange(writable_, offset, from.size(), [&](const GuestBuffer& buffer, uint64_t at, uint64_t size) {
    std::memcpy(buffer.host + at, in, size);
    memory.MarkWritten(buffer.address + at, size);
    in += size;
  });
}

void Chain::Slice(std::span<const GuestBuffer> part, uint64_t offset, uint64_t size_bytes, std::vector<iovec>& to) {
  const uint64_t got = ForRange(part, offset, size_bytes, [&](const GuestBuffer& buffer, uint64_t at, uint64_t size) {
    to.push_back({buffer.host + at, size});
  });
  NACRE_CHECK(got == size_bytes);
}

void Chain::MarkWritten(memory::GuestMemory& memory, uint64_t offset, uint64_t size_bytes) const {
  ForRange(writable_, offset, size_bytes, [&](const GuestBuffer& buffer, uint64_t at, uint64_t size) {
    memory.MarkWritten(buffer.address + at, size);
  });
}

void Chain::Clear() {
  readable_.clear();
  writable_.clear();
  readable_bytes_ = writable_bytes_ = 0;
  id = slots = 0;
}

void Chain::Add(const GuestBuffer& buffer, bool device_writes) {
  if (device_writes) {
    writable_.push_back(buffer);
    writable_bytes_ += buffer.size_bytes;
  } else {
    readable_.push_back(buffer);
    readable_bytes_ += buffer.size_bytes;
  }
}

}  // namespace nacre::devices
