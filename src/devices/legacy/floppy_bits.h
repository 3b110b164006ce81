#pragma once
// Bits and command codes of the 82077AA (data sheet 290166, sections 2.1 and 5 to 6).

#include <cstdint>

namespace nacre::devices::floppy {

// DOR.
inline constexpr uint8_t kNotReset = 0x04, kDmaGate = 0x08;
// DSR.
inline constexpr uint8_t kSoftReset = 0x80;
// MSR.
inline constexpr uint8_t kRequest = 0x80, kToHost = 0x40, kNotDma = 0x20, kCommandBusy = 0x10;
// ST0.
inline constexpr uint8_t kAbnormal = 0x40, kInvalid = 0x80, kReadyChanged = 0xc0, kSeekEnd = 0x20,
                         kEquipmentCheck = 0x10;
// ST1.
inline constexpr uint8_t kEndOfCylinder = 0x80, kDataError = 0x20, kNoData = 0x04, kNotWritable = 0x02,
                         kMissingMark = 0x01;
// ST2.
inline constexpr uint8_t kControlMark = 0x40, kDataErrorInField = 0x20, kWrongCylinder = 0x10, kBadCylinder = 0x02;
// ST3: ready and two sides always.
inline constexpr uint8_t kSt3WriteProtected = 0x40, kSt3Track0 = 0x10, kSt3Fixed = 0x28;
// CONFIGURE's second byte, PERPENDICULAR MODE's.
inline constexpr uint8_t kImpliedSeek = 0x40, kPollingOff = 0x10, kPerpendicularDrives = 0x3c;

// Commands, and what modifies them.
inline constexpr uint8_t kReadTrack = 0x02, kSpecify = 0x03, kSenseDrive = 0x04, kWriteData = 0x05, kReadData = 0x06,
                         kRecalibrate = 0x07, kSenseInterrupt = 0x08, kWriteDeleted = 0x09, kReadId = 0x0a,
                         kReadDeleted = 0x0c, kFormatTrack = 0x0d, kDumpRegisters = 0x0e, kSeek = 0x0f, kVersion = 0x10,
                         kPerpendicular = 0x12, kConfigure = 0x13, kLock = 0x14, kVerify = 0x16, kRelativeSeek = 0x8f;
inline constexpr uint8_t kMultiTrack = 0x80, kMfm = 0x40, kSkip = 0x20, kInwards = 0x40;
inline constexpr uint8_t kVerifyCount = 0x80;  ///< EC, in the second byte

inline constexpr unsigned kIdSize = 4;   ///< C, H, R, N of a sector to format
inline constexpr uint8_t kSizeCode = 2;  ///< N of 512 bytes

}  // namespace nacre::devices::floppy
