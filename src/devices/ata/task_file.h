#pragma once
// The registers between an ATA device and its host (ATA8-ACS ch. 6, ATA/ATAPI-7 vol. 2 ch. 5), and the numbers that
// stand in them. The two-byte registers hold the last value written and, above it, the one before (48-bit commands).

#include <cstdint>

#include "state/archive.h"

namespace nacre::devices {

namespace ata {
// Status.
inline constexpr uint8_t kError = 0x01, kDataRequest = 0x08, kSeekComplete = 0x10, kDeviceFault = 0x20, kReady = 0x40,
                         kBusy = 0x80;
// Error.
inline constexpr uint8_t kAbort = 0x04, kNotFound = 0x10, kUncorrectable = 0x40, kDiagnosticsPassed = 0x01;
// Device.
inline constexpr uint8_t kDevice1 = 0x10, kLba = 0x40;
// Device control.
inline constexpr uint8_t kInterruptsOff = 0x02, kSoftReset = 0x04, kHighOrder = 0x80;
// Interrupt reason: the count register of ATAPI devices.
inline constexpr uint8_t kReasonCommand = 0x01, kReasonToHost = 0x02;

inline constexpr unsigned kSectorSize = 512;

// Commands that controllers know too.
inline constexpr uint8_t kCmdDeviceReset = 0x08, kCmdDiagnostic = 0x90, kCmdPacket = 0xa0, kCmdReadQueued = 0x60,
                         kCmdWriteQueued = 0x61;
}  // namespace ata

struct TaskFile {
  uint8_t command = 0;
  uint8_t status = 0;
  uint8_t error = 0;
  uint8_t device = 0;
  uint16_t features = 0;
  uint16_t count = 0;
  uint16_t lba_low = 0;
  uint16_t lba_mid = 0;
  uint16_t lba_high = 0;

  /// 28 bits: sector number, cylinder and the low half of the device register.
  uint32_t Lba28() const {
    return (lba_low & 0xffu) | (lba_mid & 0xffu) << 8 | (lba_high & 0xffu) << 16 | (device & 0x0fu) << 24;
  }
  uint64_t Lba48() const {
    const uint64_t low = lba_low, mid = lba_mid, high = lba_high;
    return (low & 0xff) | (mid & 0xff) << 8 | (high & 0xff) << 16 | low >> 8 << 24 | mid >> 8 << 32 | high >> 8 << 40;
  }
  void SetLba28(uint32_t lba) {
    lba_low = static_cast<uint8_t>(lba);
    lba_mid = static_cast<uint8_t>(lba >> 8);
    lba_high = static_cast<uint8_t>(lba >> 16);
    device = static_cast<uint8_t>((device & 0xf0) | (lba >> 24 & 0x0f));
  }
  void SetLba48(uint64_t lba) {
    lba_low = static_cast<uint16_t>((lba & 0xff) | (lba >> 24 & 0xff) << 8);
    lba_mid = static_cast<uint16_t>((lba >> 8 & 0xff) | (lba >> 32 & 0xff) << 8);
    lba_high = static_cast<uint16_t>((lba >> 16 & 0xff) | (lba >> 40 & 0xff) << 8);
  }

  void Serialize(state::Archive& archive) {
    archive.Field(1, command);
    archive.Field(2, status);
    archive.Field(3, error);
    archive.Field(4, device);
    archive.Field(5, features);
    archive.Field(6, count);
    archive.Field(7, lba_low);
    archive.Field(8, lba_mid);
    archive.Field(9, lba_high);
  }
};

}  // namespace nacre::devices
