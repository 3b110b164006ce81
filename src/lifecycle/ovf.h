#pragma once
// The descriptor of an OVF package: one virtual machine as VirtualBox, VMware and others exchange it. Written after
// DMTF DSP0243 1.1 (OVF 1.0 and 1.1 have one namespace); read from untrusted files, also where they follow it loosely.
// Any thread.

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "machine/machine_config.h"

namespace nacre::lifecycle {

inline constexpr size_t kMaxOvfBytes = 4 << 20;

struct OvfDisk {
  std::string file = {};        ///< its name in the package; empty: an empty disk, or an empty drive
  uint64_t file_bytes = 0;      ///< 0: not said
  uint64_t capacity_bytes = 0;  ///< of a disk
  bool gzip = false;            ///< the file is compressed as a whole
  bool cdrom = false;
  machine::DiskBus bus = machine::DiskBus::kSata;
};

struct OvfNetwork {
  machine::NetworkCard card = machine::NetworkCard::kE1000;
  std::optional<network::MacAddress> mac = {};
};

struct OvfMachine {
  std::string name = {};
  unsigned cpu_count = 1;
  uint64_t memory_bytes = 0;
  bool uefi = false;
  std::vector<OvfDisk> disks = {};  ///< by controller and place there
  std::vector<OvfNetwork> networks = {};
};

/// The controllers are those that every other system has: disks of virtio appear on SATA, and virtio's network card as
/// an e1000; attributes of a namespace of Nacre's own keep what they are here.
std::string WriteOvf(const OvfMachine& machine);

/// The package's one machine. Errors say what is missing, or what cannot be had here.
Result<OvfMachine> ReadOvf(std::string_view text);

}  // namespace nacre::lifecycle
