#pragma once
// Everything that defines one virtual machine and how it is run: what the command line fills in and Machine::Create
// reads. Plain data; strings are as the user gave them, already checked for form.

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/bits.h"
#include "display/vnc_server.h"
#include "engine/jit/debug_options.h"
#include "engine/kvm/kvm_options.h"
#include "network/ethernet.h"
#include "network/user_net.h"

namespace nacre::storage {
enum class ImageFormat : uint8_t;  // image.h
}

namespace nacre::machine {

enum class EngineKind : uint8_t { kInterp, kJit, kKvm, kAuto };
inline constexpr std::array<std::pair<std::string_view, EngineKind>, 4> kEngineNames{{{"auto", EngineKind::kAuto},
                                                                                      {"kvm", EngineKind::kKvm},
                                                                                      {"jit", EngineKind::kJit},
                                                                                      {"interp", EngineKind::kInterp}}};
constexpr std::string_view NameOf(EngineKind kind) {
  for (const auto& [name, value] : kEngineNames)
    if (value == kind) return name;
  return {};
}
constexpr std::optional<EngineKind> EngineByName(std::string_view name) {
  for (const auto& [known, kind] : kEngineNames)
    if (known == name) return kind;
  return std::nullopt;
}

enum class DiskBus : uint8_t { kVirtio, kIde, kSata };

struct DiskConfig {
  std::string path;
  DiskBus bus = DiskBus::kVirtio;
  bool cdrom = false;  ///< a disc in a CD-ROM drive, on IDE or SATA; always read_only
  bool read_only = false;
  bool snapshot = false;                            ///< writes are thrown away at the end
  std::optional<storage::ImageFormat> format = {};  ///< nothing: raw or qcow2 as the file looks

  /// The guest's writes stay in it: each machine needs its own.
  bool is_own() const { return !read_only && !cdrom && !snapshot; }
};

/// A diskette in drive A: or B:.
struct FloppyConfig {
  std::string path;
  bool read_only = false;
};
inline constexpr unsigned kMaxFloppies = 2;

enum class NetworkKind : uint8_t { kNone, kUser };
enum class NetworkCard : uint8_t { kVirtio, kE1000 };

/// What firmware may boot from.
enum class BootKind : uint8_t { kFloppy, kDisk, kCdrom, kNetwork };
inline constexpr std::array<std::pair<std::string_view, BootKind>, 4> kBootNames{{{"floppy", BootKind::kFloppy},
                                                                                  {"disk", BootKind::kDisk},
                                                                                  {"cdrom", BootKind::kCdrom},
                                                                                  {"net", BootKind::kNetwork}}};

struct NetworkConfig {
  NetworkKind kind = NetworkKind::kUser;
  NetworkCard card = NetworkCard::kVirtio;
  std::optional<network::MacAddress> mac;  ///< nothing: 52:54:00:12:34:56 and on, by the card's number
  std::vector<network::PortForward> forwards;
};

enum class SerialKind : uint8_t { kNone, kStdio, kFile };

/// Where the guest's serial port or its virtio console leads.
struct SerialConfig {
  SerialKind kind = SerialKind::kStdio;
  std::string path = {};  ///< kFile
  bool input = true;      ///< kStdio: read standard input
  bool terminal = false;  ///< kStdio: input is a terminal in raw mode, where Ctrl-] leaves
};

/// Beside the PS/2 keyboard and mouse, which serve until a driver of these runs.
enum class InputKind : uint8_t {
  kPs2,          ///< nothing
  kVirtio,       ///< a keyboard and a tablet
  kVirtioMouse,  ///< a keyboard and a mouse
};

enum class GpuKind : uint8_t {
  kVga,
  kVirtio,  ///< virtio-gpu; a VGA besides only where firmware needs one
};

/// The guest's screen, with keyboard and mouse beside it.
struct DisplayConfig {
  bool present = false;  ///< with firmware there is one anyway
  GpuKind gpu = GpuKind::kVga;
  InputKind input = InputKind::kVirtio;
  bool clipboard = false;  ///< a port of virtio-serial for the SPICE agent, which has the guest's clipboard
  std::optional<display::VncOptions> vnc;  ///< who shows it; nothing: only screenshots
};

inline constexpr uint64_t kMinMemoryBytes = 4 * kMiB, kMaxMemoryBytes = 512 * kGiB;
inline constexpr unsigned kMaxCpus = 64;

/// What makes the guest's hardware is part of snapshots (config_archive.cc).
struct MachineConfig {
  std::string restore;  ///< the directory of a snapshot, from which this configuration is; the guest goes on from there

  // Direct boot.
  std::string kernel;
  std::vector<std::string> initrds;
  std::string command_line;

  // Firmware starts the machine: "bios", "uefi" or a file; empty: direct boot. With a kernel the firmware starts it.
  std::string firmware;
  std::string firmware_variables;  ///< the file that keeps them; empty: they are forgotten at the end
  std::string firmware_log;        ///< a file for what firmware prints for developers; empty: it prints nothing
  std::vector<BootKind> boot;  ///< these first; the rest, and each kind, in the order of floppies, disks and networks

  uint64_t memory_bytes = 512 * kMiB;
  unsigned cpu_count = 1;
  std::string cpu_model = "default";
  EngineKind engine = EngineKind::kAuto;  ///< kAuto: as engine::kvm::Choose says
  engine::kvm::KernelMode kvm_kernel = engine::kvm::KernelMode::kAuto;
  engine::jit::JitDebugOptions jit_debug = {};
  uint64_t code_cache_bytes = 0;  ///< of each CPU, for translations; 0: as the number of CPUs suggests
  uint64_t lockstep_from = 0;     ///< RIP at which lockstep starts to compare
  bool lockstep = false;          ///< jit: run beside interp and stop at the first difference

  std::vector<DiskConfig> disks;
  std::string disk_layers;             ///< where frozen disks go (DiskFreeze); empty: beside the disk
  std::vector<FloppyConfig> floppies;  ///< at most kMaxFloppies
  std::vector<NetworkConfig> networks;
  SerialConfig serial;                              ///< ttyS0; there is a port even where it leads nowhere
  SerialConfig console{.kind = SerialKind::kNone};  ///< hvc0; kNone: no such device. Not kStdio together with serial
  bool balloon = true;
  bool guest_agent = true;  ///< a port of virtio-serial for the guest agent (agent/guest_agent.h)
  std::string vsock;        ///< virtio-vsock by this Unix socket (vsock_sockets.h); empty: no such device
  DisplayConfig display;

  bool has_screen() const { return display.present || !firmware.empty(); }
  bool has_clipboard() const { return display.present && display.clipboard; }
  bool has_virtio_gpu() const { return display.present && display.gpu == GpuKind::kVirtio; }
  /// OVMF has a driver for virtio-gpu.
  bool has_vga() const { return has_screen() && !(has_virtio_gpu() && (firmware.empty() || firmware == "uefi")); }

  bool debug_exit = false;  ///< port 0xf4 ends the run with status (value << 1) | 1
  bool no_reboot = false;   ///< a reset ends the run
  std::optional<uint64_t> timeout_ms;
};

/// How a run ended.
enum class EndReason : uint8_t {
  kPowerOff,
  kReset,        ///< with no_reboot
  kDebugExit,    ///< see RunResult::debug_exit_value
  kLeft,         ///< the user left the console, or a signal asked to stop
  kGuestCrash,   ///< triple fault
  kEngineError,  ///< the engine could not go on
  kTimeout
};

struct RunResult {
  EndReason reason = EndReason::kPowerOff;
  uint32_t debug_exit_value = 0;
  std::string detail;  ///< of a crash or an error: lines for the user
};

}  // namespace nacre::machine
