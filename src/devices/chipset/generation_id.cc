#include "devices/chipset/generation_id.h"

#include <sys/random.h>

namespace nacre::devices {

Result<GenerationId::Guid> GenerationId::Random() {
  Guid guid{};
  if (getrandom(guid.data(), guid.size(), 0) != static_cast<ssize_t>(guid.size()))
    return FailErrno("random numbers for the VM generation ID");
  return guid;
}

bool GenerationId::Write() { return address_ == 0 || memory_.Write(GuestPhys(address_), guid_); }

bool GenerationId::Place(GuestPhys address) {
  if (address.value == 0 || address.value % 8 != 0) return false;
  address_ = address.value;
  if (Write()) return true;
  address_ = 0;
  return false;
}

void GenerationId::Change(const Guid& guid) {
  guid_ = guid;
  if (Write()) notify_();
}

void GenerationId::Serialize(state::Archive& archive) {
  archive.Field(1, address_);
  archive.Bytes(2, std::span<uint8_t>(guid_));
  // Memory holds the ID already: nothing is written, and whoever restores decides whether it changes.
  if (archive.loading() && address_ % 8 != 0) archive.Reject("generation-id: its place is not aligned");
}

}  // namespace nacre::devices
