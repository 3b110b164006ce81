#pragma once
// The firmware's side of memory control on a 82441FX board: the PAM registers, which say for each piece of
// 0xc0000-0xfffff whether reads and writes go to RAM or to ROM, SMRAM's window at 0xa0000, and accesses to ROM that are
// no plain reads. Intel 82441FX data sheet, 3.2.18 and 3.2.24. Tells the guest's memory, which the CPUs see directly;
// what it does not give them comes here from the memory bus. Under the device lock.

#include <array>
#include <cstdint>
#include <functional>
#include <span>

#include "bus/device.h"
#include "memory/guest_memory.h"

namespace nacre::devices {

class ShadowMemory final {
 public:
  static constexpr uint64_t kStart = 0xc0000, kSize = 0x40000;
  static constexpr uint64_t kSmramStart = 0xa0000, kSmramSize = 0x20000;
  static constexpr unsigned kPamCount = 7;
  static constexpr uint8_t kSmramOpen = 0x48;  ///< D_OPEN and G_SMRAME

  /// `changed`: the CPUs see other memory now and must forget their address translations.
  ShadowMemory(memory::GuestMemory& memory, std::function<void()> changed)
      : memory_(memory), changed_(std::move(changed)) {}

  /// The registers have these values; `pam`: PAM0 to PAM6.
  void Apply(std::span<const uint8_t, kPamCount> pam, uint8_t smram);

  /// For [kStart, kStart + kSize).
  bus::IoHandler& low_io() { return low_io_; }
  /// For the ROM below 4 GiB, from its first byte.
  bus::IoHandler& rom_io() { return rom_io_; }

 private:
  static constexpr unsigned kSegments = 13;  ///< twelve of 16 KiB, then 64 KiB
  struct LowIo final : bus::IoHandler {
    explicit LowIo(ShadowMemory& owner) : shadow(owner) {}
    uint64_t Read(uint64_t offset, unsigned size) override;
    void Write(uint64_t offset, unsigned size, uint64_t value) override;
    ShadowMemory& shadow;
  };
  struct RomIo final : bus::IoHandler {
    explicit RomIo(ShadowMemory& owner) : shadow(owner) {}
    uint64_t Read(uint64_t offset, unsigned size) override;
    void Write(uint64_t, unsigned, uint64_t) override {}
    ShadowMemory& shadow;
  };
  uint64_t ReadBytes(uint64_t address, unsigned size) const;

  memory::GuestMemory& memory_;
  std::function<void()> changed_;
  std::array<uint8_t, kSegments> access_{};  ///< bit 0: reads go to RAM, bit 1: writes
  bool applied_ = false;
  bool smram_open_ = false;
  LowIo low_io_{*this};
  RomIo rom_io_{*this};
};

}  // namespace nacre::devices
