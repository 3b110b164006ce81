#pragma once
// Registers and descriptors of Intel's 82540EM (PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's
// Manual, 317453; chapters 3 and 13).

#include <cstdint>

namespace nacre::devices::e1000 {

inline constexpr unsigned kCtrl = 0x0000, kStatus = 0x0008, kEecd = 0x0010, kEerd = 0x0014, kCtrlExt = 0x0018,
                          kMdic = 0x0020, kFcal = 0x0028, kFcah = 0x002c, kFct = 0x0030, kVet = 0x0038, kIcr = 0x00c0,
                          kItr = 0x00c4, kIcs = 0x00c8, kIms = 0x00d0, kImc = 0x00d8, kRctl = 0x0100, kFcttv = 0x0170,
                          kTxcw = 0x0178, kRxcw = 0x0180, kTctl = 0x0400, kTipg = 0x0410, kAit = 0x0458,
                          kLedctl = 0x0e00, kPba = 0x1000, kFcrtl = 0x2160, kFcrth = 0x2168, kRdbal = 0x2800,
                          kRdbah = 0x2804, kRdlen = 0x2808, kRdh = 0x2810, kRdt = 0x2818, kRdtr = 0x2820,
                          kRxdctl = 0x2828, kRadv = 0x282c, kRsrpd = 0x2c00, kTdbal = 0x3800, kTdbah = 0x3804,
                          kTdlen = 0x3808, kTdh = 0x3810, kTdt = 0x3818, kTidv = 0x3820, kTxdctl = 0x3828,
                          kTadv = 0x382c, kTspmt = 0x3830, kStatistics = 0x4000, kRxcsum = 0x5000, kMta = 0x5200,
                          kReceiveAddress = 0x5400, kVfta = 0x5600, kWuc = 0x5800, kWufc = 0x5808, kIpav = 0x5838,
                          kManc = 0x5820, kEnd = 0x5a00;
inline constexpr unsigned kStatisticsEnd = 0x4128, kMtaEnd = 0x5400, kReceiveAddressEnd = 0x5480, kVftaEnd = 0x5800;

// Statistics that an emulated link has.
inline constexpr unsigned kMissedPackets = 0x4010, kReceived64 = 0x405c, kGoodReceived = 0x4074,
                          kBroadcastReceived = 0x4078, kMulticastReceived = 0x407c, kGoodSent = 0x4080,
                          kGoodOctetsReceived = 0x4088, kGoodOctetsSent = 0x4090, kNoBuffers = 0x40a0,
                          kOversize = 0x40ac, kTotalOctetsReceived = 0x40c0, kTotalOctetsSent = 0x40c8,
                          kTotalReceived = 0x40d0, kTotalSent = 0x40d4, kSent64 = 0x40d8, kMulticastSent = 0x40f0,
                          kBroadcastSent = 0x40f4, kSegmentationContexts = 0x40f8;

// CTRL
inline constexpr uint32_t kCtrlReset = 1u << 26, kCtrlVlanMode = 1u << 30, kCtrlPhyReset = 1u << 31;
// STATUS: full duplex, link up, 1000 Mb/s.
inline constexpr uint32_t kStatusFullDuplex = 1 << 0, kStatusLinkUp = 1 << 1, kStatusSpeed1000 = 2 << 6;
// EERD
inline constexpr uint32_t kEerdStart = 1 << 0, kEerdDone = 1 << 4;
// MDIC
inline constexpr uint32_t kMdicWrite = 1 << 26, kMdicRead = 2 << 26, kMdicReady = 1 << 28, kMdicInterrupt = 1 << 29,
                          kMdicError = 1 << 30;
// Interrupt causes
inline constexpr uint32_t kTransmitDone = 1 << 0, kTransmitQueueEmpty = 1 << 1, kLinkChange = 1 << 2,
                          kReceiveLow = 1 << 4, kReceiveOverrun = 1 << 6, kReceiveTimer = 1 << 7, kMdioDone = 1 << 9;
inline constexpr uint32_t kCauses = 0x1ffff;
// RCTL
inline constexpr uint32_t kReceiveEnable = 1 << 1, kUnicastPromiscuous = 1 << 3, kMulticastPromiscuous = 1 << 4,
                          kLongPackets = 1 << 5, kLoopback = 3 << 6, kBroadcastAccept = 1 << 15, kVlanFilter = 1 << 18,
                          kCfiFilter = 1 << 19, kCfi = 1 << 20, kBufferExtension = 1 << 25, kStripCrc = 1 << 26;
inline constexpr unsigned kThresholdShift = 8, kMulticastOffsetShift = 12, kBufferSizeShift = 16;
// TCTL
inline constexpr uint32_t kTransmitEnable = 1 << 1, kPadShort = 1 << 3;
// RXCSUM
inline constexpr uint32_t kIpOffload = 1 << 8, kTcpUdpOffload = 1 << 9;
// RAH
inline constexpr uint32_t kAddressValid = 1u << 31;

// Transmit descriptors (3.3): the command byte, or TUCMD and DCMD.
inline constexpr uint8_t kEndOfPacket = 1 << 0, kInsertChecksum = 1 << 2, kSegmentation = 1 << 2,
                         kReportStatus = 1 << 3, kExtended = 1 << 5, kVlanInsert = 1 << 6;
inline constexpr uint8_t kContextTcp = 1 << 0, kContextIp = 1 << 1;
// POPTS
inline constexpr uint8_t kOptionIpChecksum = 1 << 0, kOptionTcpChecksum = 1 << 1;
inline constexpr uint8_t kDescriptorDone = 1 << 0;
// Status of a receive descriptor (3.2.3.1).
inline constexpr uint8_t kReceivedEnd = 1 << 1, kIgnoreChecksums = 1 << 2, kReceivedVlan = 1 << 3,
                         kTcpChecksumSeen = 1 << 5, kIpChecksumSeen = 1 << 6, kInexactFilter = 1 << 7;

inline constexpr unsigned kDescriptorSize = 16;

}  // namespace nacre::devices::e1000
