#pragma once
// A parallel NOR flash with Intel's command set (CFI, Intel StrataFlash data sheet; JEDEC JESD68.01), which holds a
// UEFI firmware's variables in a part of the ROM below 4 GiB. CPUs read it as memory until a command is written; while
// one is in force their accesses come here. Under the device lock.

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "bus/device.h"
#include "memory/guest_memory.h"

namespace nacre::devices {

class PFlash final : public bus::Device, public bus::IoHandler {
 public:
  static constexpr uint64_t kBlock = 4096;  ///< what one erase command clears

  struct Options {
    uint64_t rom_offset = 0;  ///< the flash is [rom_offset, rom_offset + size_bytes) of the memory's ROM
    uint64_t size_bytes = 0;  ///< a multiple of kBlock
    /// The CPUs see the range as memory now, or no more: they must forget their address translations.
    std::function<void()> mapping_changed;
    /// Bytes of the flash have changed, from its offset on.
    std::function<void(uint64_t offset, uint64_t size_bytes)> written;
  };
  PFlash(memory::GuestMemory& memory, Options options);

  uint64_t Read(uint64_t offset, unsigned size) override;
  void Write(uint64_t offset, unsigned size, uint64_t value) override;

  std::string_view name() const override { return "pflash"; }
  /// The content stays.
  void Reset() override;
  /// With the content.
  void Serialize(state::Archive& archive) override;

 private:
  enum class Mode : uint8_t { kArray, kStatus, kIdentity, kQuery, kProgram, kErase, kBufferCount, kBuffer, kConfirm };

  uint8_t* bytes() const { return memory_.rom() + options_.rom_offset; }
  void SetMode(Mode mode);
  void Command(uint64_t offset, uint8_t command);
  void Program(uint64_t offset, unsigned size, uint64_t value);
  void Erase(uint64_t offset);
  void Changed(uint64_t offset, uint64_t size_bytes);
  uint8_t QueryByte(uint64_t offset) const;

  memory::GuestMemory& memory_;
  const Options options_;
  Mode mode_ = Mode::kArray;
  uint8_t status_ = 0;
  uint32_t buffer_left_ = 0;  ///< writes that a buffered program still takes
};

}  // namespace nacre::devices
