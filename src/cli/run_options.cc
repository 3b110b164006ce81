#include "cli/run_options.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "base/nearest.h"
#include "cli/debug_options.h"
#include "engine/jit/jit_engine.h"
#include "storage/image.h"
#include "x86/cpu_model_selection.h"

namespace nacre::cli {

namespace {

using machine::DiskConfig;
using machine::EngineKind;
using machine::kMaxCpus;
using machine::NetworkKind;
using machine::SerialKind;

std::vector<std::string_view> Split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (;;) {
    const size_t at = text.find(separator);
    parts.push_back(text.substr(0, at));
    if (at == std::string_view::npos) return parts;
    text.remove_prefix(at + 1);
  }
}

Status NotYet(std::string_view what, std::string_view instead) {
  return Fail("{} is not there yet{}{}", what, instead.empty() ? "" : "; ", instead);
}

Status SetMemory(RunOptions& options, std::string_view value) {
  const auto size = ParseSize(value);
  if (!size) return Fail("--memory {}: {}", value, size.error().message);
  if (*size < machine::kMinMemoryBytes || *size > machine::kMaxMemoryBytes || *size % kPageSize != 0)
    return Fail("--memory {}: give a size from 4M to 512G, for example --memory 512M", value);
  options.machine.memory_bytes = *size;
  return {};
}

Status SetCodeCache(RunOptions& options, std::string_view value) {
  const auto size = ParseSize(value);
  if (!size) return Fail("--code-cache {}: {}", value, size.error().message);
  if (*size < engine::jit::kMinCodeCache || *size > engine::jit::kMaxCodeCache)
    return Fail("--code-cache {}: give a size from 4M to 1G", value);
  options.machine.code_cache_bytes = *size;
  return {};
}

Status SetCpus(RunOptions& options, std::string_view value) {
  unsigned count = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), count);
  if (error != std::errc() || end != value.data() + value.size() || count < 1 || count > kMaxCpus)
    return Fail("--cpus {}: give a number from 1 to {}", value, kMaxCpus);
  options.machine.cpu_count = count;
  return {};
}

Status SetCpuModel(RunOptions& options, std::string_view value) {
  const auto name = x86::ParseModelName(value);
  if (!name) return Fail("--cpu: {}", name.error().message);
  options.machine.cpu_model = value;
  return {};
}

Status SetTour(RunOptions& options, std::string_view value) {
  for (const std::string_view part : Split(value, ',')) {
    if (part.starts_with("every=")) {
      options.tour.every = std::chrono::milliseconds(NACRE_TRY(ParseDurationMs(part.substr(6))));
    } else if (part.starts_with("times=")) {
      const std::string_view digits = part.substr(6);
      const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), options.tour.most);
      if (error != std::errc() || end != digits.data() + digits.size() || options.tour.most == 0)
        return Fail("--switch-engine {}: times= wants a number from 1", value);
    } else if (const auto kind = machine::EngineByName(part); kind && *kind != EngineKind::kAuto) {
      options.tour.stops.push_back(*kind);
    } else {
      return Fail("--switch-engine {}: give engines (jit, interp, kvm), every=TIME and times=N", value);
    }
  }
  if (options.tour.stops.empty()) return Fail("--switch-engine {}: name an engine to go to", value);
  return {};
}

Status SetEngine(RunOptions& options, std::string_view value) {
  const auto engine = machine::EngineByName(value);
  if (!engine) return Fail("--engine {}: choose auto, kvm, jit or interp", value);
  options.machine.engine = *engine;
  return {};
}

/// A `bus=` of --disk and --cdrom.
Status SetDiskBus(DiskConfig& disk, std::string_view option, std::string_view bus) {
  using machine::DiskBus;
  if (bus == "ide") {
    disk.bus = DiskBus::kIde;
  } else if (bus == "sata") {
    disk.bus = DiskBus::kSata;
  } else if (bus == "virtio" && !disk.cdrom) {
    disk.bus = DiskBus::kVirtio;
  } else {
    return Fail("{} {}: bus={}: choose {}ide or sata", option, disk.path, bus, disk.cdrom ? "" : "virtio, ");
  }
  return {};
}

Status AddDisk(RunOptions& options, std::string_view value) {
  DiskConfig disk;
  const auto parts = Split(value, ',');
  disk.path = parts[0];
  if (disk.path.empty()) return Fail("--disk {}: give a file name first", value);
  for (const std::string_view part : std::span(parts).subspan(1)) {
    if (part == "readonly") {
      disk.read_only = true;
    } else if (part == "snapshot") {
      disk.snapshot = true;
    } else if (part.starts_with("format=")) {
      disk.format = storage::FormatNamed(part.substr(7));
      if (!disk.format)
        return Fail("--disk {}: {}: choose raw or qcow2; `nacre disk convert` reads other formats", value, part);
    } else if (part.starts_with("bus=")) {
      NACRE_TRY_STATUS(SetDiskBus(disk, "--disk", part.substr(4)));
    } else {
      return Fail("--disk {}: '{}' is not known (format=raw|qcow2, bus=virtio|ide|sata, readonly, snapshot)", value,
                  part);
    }
  }
  options.machine.disks.push_back(std::move(disk));
  return {};
}

Status AddCdrom(RunOptions& options, std::string_view value) {
  DiskConfig disc;
  const auto parts = Split(value, ',');
  disc.path = parts[0];
  disc.bus = machine::DiskBus::kIde;
  disc.cdrom = disc.read_only = true;
  disc.format = storage::ImageFormat::kRaw;
  if (disc.path.empty()) return Fail("--cdrom {}: give a file name first", value);
  for (const std::string_view part : std::span(parts).subspan(1)) {
    if (!part.starts_with("bus=")) return Fail("--cdrom {}: '{}' is not known (bus=ide|sata)", value, part);
    NACRE_TRY_STATUS(SetDiskBus(disc, "--cdrom", part.substr(4)));
  }
  options.machine.disks.push_back(std::move(disc));
  return {};
}

Status SetBoot(RunOptions& options, std::string_view value) {
  std::vector<machine::BootKind> order;
  for (const std::string_view part : Split(value, ',')) {
    const auto* known = std::ranges::find(machine::kBootNames, part, [](const auto& entry) { return entry.first; });
    if (known == machine::kBootNames.end()) return Fail("--boot {}: choose floppy, disk, cdrom and net", value);
    if (std::ranges::find(order, known->second) != order.end())
      return Fail("--boot {}: {} is there twice", value, part);
    order.push_back(known->second);
  }
  options.machine.boot = std::move(order);
  return {};
}

Status AddFloppy(RunOptions& options, std::string_view value) {
  machine::FloppyConfig floppy;
  const auto parts = Split(value, ',');
  floppy.path = parts[0];
  if (floppy.path.empty()) return Fail("--floppy {}: give a file name first", value);
  for (const std::string_view part : std::span(parts).subspan(1)) {
    if (part != "readonly") return Fail("--floppy {}: '{}' is not known (readonly)", value, part);
    floppy.read_only = true;
  }
  if (options.machine.floppies.size() == machine::kMaxFloppies)
    return Fail("--floppy {}: there are two drives, A: and B:", value);
  options.machine.floppies.push_back(std::move(floppy));
  return {};
}

Status SetNetwork(RunOptions& options, std::string_view value) {
  const auto parts = Split(value, ',');
  const std::string_view kind = parts[0];
  if (kind.starts_with("switch:") || kind.starts_with("tap:"))
    return NotYet(fmt::format("--net {}", kind), "use --net user or --net none");
  if (kind == "none") {
    if (parts.size() > 1) return Fail("--net {}: none takes no options", value);
    return {};
  }
  if (kind != "user") return Fail("--net {}: choose user or none", value);
  machine::NetworkConfig network;
  for (const std::string_view part : std::span(parts).subspan(1)) {
    if (part.starts_with("forward=")) {
      const auto forward = network::ParsePortForward(part.substr(8));
      if (!forward) return Fail("--net {}: {}", value, forward.error().message);
      network.forwards.push_back(*forward);
    } else if (part.starts_with("model=")) {
      const std::string_view card = part.substr(6);
      if (card != "virtio" && card != "e1000")
        return Fail("--net {}: '{}' is no card (model=virtio|e1000)", value, card);
      network.card = card == "e1000" ? machine::NetworkCard::kE1000 : machine::NetworkCard::kVirtio;
    } else if (part.starts_with("mac=")) {
      const auto mac = network::ParseMac(part.substr(4));
      if (!mac) return Fail("--net {}: {}", value, mac.error().message);
      network.mac = *mac;
    } else {
      return Fail("--net {}: '{}' is not known (forward=tcp:127.0.0.1:2222-:22, model=virtio|e1000, mac=ADDRESS)",
                  value, part);
    }
  }
  options.machine.networks.push_back(std::move(network));
  return {};
}

Status SetKvmKernel(RunOptions& options, std::string_view value) {
  using engine::kvm::KernelMode;
  constexpr std::pair<std::string_view, KernelMode> kWho[] = {
      {"auto", KernelMode::kAuto}, {"kvm", KernelMode::kKvm}, {"interp", KernelMode::kInterp}};
  for (const auto& [name, who] : kWho) {
    if (name != value) continue;
    options.machine.kvm_kernel = who;
    return {};
  }
  return Fail("--kvm-kernel {}: choose auto, kvm or interp", value);
}

Status SetStream(machine::SerialConfig& stream, std::string_view option, std::string_view value) {
  if (value == "stdio") {
    stream.kind = SerialKind::kStdio;
  } else if (value == "none") {
    stream.kind = SerialKind::kNone;
  } else if (value.starts_with("file:") && value.size() > 5) {
    stream.kind = SerialKind::kFile;
    stream.path = value.substr(5);
  } else {
    return Fail("{} {}: choose stdio, file:PATH or none", option, value);
  }
  return {};
}

Status SetSerial(RunOptions& options, std::string_view value) {
  options.serial_given = true;
  return SetStream(options.machine.serial, "--serial", value);
}

Status SetConsole(RunOptions& options, std::string_view value) {
  return SetStream(options.machine.console, "--console", value);
}

Status SetDisplay(RunOptions& options, std::string_view value) {
  machine::DisplayConfig& display = options.machine.display;
  options.display = value;
  display.present = false;
  display.vnc.reset();
  if (value == "none") return {};
  display.present = true;
  if (value == "offscreen") return {};
  if (!value.starts_with("vnc:")) return Fail("--display {}: choose none, offscreen or vnc:ADDRESS:PORT", value);
  auto vnc = display::ParseVncOptions(value.substr(4));
  if (!vnc) return Context(vnc.error(), "--display {}", value);
  display.vnc = std::move(*vnc);
  return {};
}

Status SetGpu(RunOptions& options, std::string_view value) {
  if (value != "vga" && value != "virtio") return Fail("--gpu {}: choose vga or virtio", value);
  options.machine.display.gpu = value == "vga" ? machine::GpuKind::kVga : machine::GpuKind::kVirtio;
  return {};
}

Status SetInput(RunOptions& options, std::string_view value) {
  using machine::InputKind;
  constexpr std::array<std::pair<std::string_view, InputKind>, 3> kInputs{
      {{"ps2", InputKind::kPs2}, {"virtio", InputKind::kVirtio}, {"virtio-mouse", InputKind::kVirtioMouse}}};
  for (const auto& [name, kind] : kInputs) {
    if (name != value) continue;
    options.machine.display.input = kind;
    return {};
  }
  return Fail("--input {}: choose ps2, virtio or virtio-mouse", value);
}

Status SetTimeout(RunOptions& options, std::string_view value) {
  const auto time = ParseDurationMs(value);
  if (!time) return Fail("--timeout {}: {}", value, time.error().message);
  options.machine.timeout_ms = *time;
  return {};
}

Status SetBalloon(RunOptions& options, std::string_view value) {
  if (value != "on" && value != "off") return Fail("--balloon {}: choose on or off", value);
  options.machine.balloon = value == "on";
  return {};
}

Status SetClipboard(RunOptions& options, std::string_view value) {
  if (value != "on" && value != "off") return Fail("--clipboard {}: choose on or off", value);
  options.machine.display.clipboard = value == "on";
  return {};
}

Status SetGuestAgent(RunOptions& options, std::string_view value) {
  if (value != "on" && value != "off") return Fail("--guest-agent {}: choose on or off", value);
  options.guest_agent = value == "on";
  return {};
}

Status SetLockstepFrom(RunOptions& options, std::string_view value) {
  std::string_view digits = value;
  if (digits.starts_with("0x")) digits.remove_prefix(2);
  const char* last = digits.data() + digits.size();
  const auto [end, error] = std::from_chars(digits.data(), last, options.machine.lockstep_from, 16);
  if (error != std::errc() || end != last) return Fail("--lockstep-from {}: give a hexadecimal address", value);
  return {};
}

Status AppendText(RunOptions& options, std::string_view value) {
  std::string& line = options.machine.command_line;
  if (!line.empty()) line += ' ';
  line += value;
  return {};
}

struct Option {
  std::string_view name;
  std::string_view value;  ///< what the value is called in the help; empty: a switch
  std::string_view help;
  Status (*set)(RunOptions& options, std::string_view value);
};

constexpr std::array kOptions = std::to_array<Option>({
    {"--kernel", "FILE", "boot this kernel: Linux bzImage, PVH ELF, multiboot ELF",
     [](RunOptions& o, std::string_view v) -> Status { o.machine.kernel = v; return {}; }},
    {"--initrd", "FILE", "the kernel's initial RAM disk, or a multiboot module (repeatable)",
     [](RunOptions& o, std::string_view v) -> Status { o.machine.initrds.emplace_back(v); return {}; }},
    {"--append", "TEXT", "the kernel's command line", AppendText},
    {"--firmware", "bios|uefi|FILE", "firmware starts the machine from its disks, or starts the kernel: SeaBIOS, OVMF or this file",
     [](RunOptions& o, std::string_view v) -> Status { o.machine.firmware = v; return {}; }},
    {"--firmware-vars", "FILE", "where uefi keeps its variables (they are forgotten at the end)",
     [](RunOptions& o, std::string_view v) -> Status { o.machine.firmware_variables = v; return {}; }},
    {"--firmware-log", "FILE", "what the firmware prints for developers",
     [](RunOptions& o, std::string_view v) -> Status { o.machine.firmware_log = v; return {}; }},
    {"--boot", "KIND[,KIND...]", "what firmware tries first: floppy, disk, cdrom, net; then the rest in the order of the options", SetBoot},
    {"--disk", "FILE[,OPTION...]",
     "a disk: bus=virtio|ide|sata, readonly, snapshot (writes are thrown away), format=raw|qcow2 (repeatable)", AddDisk},
    {"--cdrom", "FILE[,bus=ide|sata]", "a disc in a CD-ROM drive (on IDE) (repeatable)", AddCdrom},
    {"--floppy", "FILE[,readonly]", "a diskette in drive A:, the second time in B:", AddFloppy},
    {"--memory", "SIZE", "the guest's memory (512M)", SetMemory},
    {"--cpus", "N", "the guest's CPUs (1), each a thread of the host", SetCpus},
    {"--cpu", "MODEL[,-FEATURE][,+FEATURE]", "x86-64-v1 to x86-64-v4 or host; the default is what the host has, up to v3", SetCpuModel},
    {"--engine", "ENGINE", "auto, kvm, jit or interp (`nacre doctor` tells what auto is here)", SetEngine},
    {"--code-cache", "SIZE", "memory for translations, for each CPU (92M; less from six CPUs on)", SetCodeCache},
    {"--net", "KIND", "user[,model=virtio|e1000][,mac=ADDRESS][,forward=tcp:127.0.0.1:2222-:22] or none (user)", SetNetwork},
    {"--serial", "WHERE", "the serial port ttyS0: stdio, file:PATH or none (stdio, or none with --console stdio)", SetSerial},
    {"--console", "WHERE", "the virtio console hvc0: stdio, file:PATH or none (none)", SetConsole},
    {"--display", "WHERE", "the screen: none, offscreen, vnc:ADDRESS:PORT[,password=FILE], vnc:unix:PATH (none)", SetDisplay},
    {"--gpu", "KIND", "with --display, the adapter: vga (with Bochs VBE, as QEMU's std) or virtio (virtio-gpu, 2D) (vga)", SetGpu},
    {"--input", "KIND", "beside PS/2 keyboard and mouse, with --display: virtio (keyboard and tablet), virtio-mouse or ps2 (virtio)",
     SetInput},
    {"--clipboard", "on|off", "with --display, text that is copied goes between VNC clients and a guest with spice-vdagent (off)",
     SetClipboard},
    {"--vsock", "PATH", "virtio-vsock: a Unix socket that leads to the guest's ports, PATH_PORT to this host's (docs/vsock.md)",
     [](RunOptions& o, std::string_view v) -> Status { o.machine.vsock = v; return {}; }},
    {"--balloon", "on|off", "the memory balloon (on)", SetBalloon},
    {"--guest-agent", "on|off", "a port for the guest agent of `nacre exec` and `nacre cp` (on with --control)", SetGuestAgent},
    {"--control", "PATH", "a socket by which `nacre control PATH` and others steer the running VM",
     [](RunOptions& o, std::string_view v) -> Status { o.control = v; return {}; }},
    {"--restore", "DIRECTORY", "go on from a snapshot (docs/snapshots.md); its hardware is the snapshot's",
     [](RunOptions& o, std::string_view v) -> Status { o.machine.restore = v; return {}; }},
    {"--debug-exit", "", "a guest's write to port 0xf4 ends the run with status (value << 1) | 1",
     [](RunOptions& o, std::string_view) -> Status { o.machine.debug_exit = true; return {}; }},
    {"--no-reboot", "", "end the run when the guest resets the machine",
     [](RunOptions& o, std::string_view) -> Status { o.machine.no_reboot = true; return {}; }},
    {"--timeout", "TIME", "stop after this time (30, 500ms, 2m) with status 124", SetTimeout},
    {"--engine-stats", "", "print at the end where time went",
     [](RunOptions& o, std::string_view) -> Status { o.engine_stats = true; return {}; }},
    {"--lockstep", "", "run jit and interp side by side and stop at the first difference",
     [](RunOptions& o, std::string_view) -> Status { o.machine.lockstep = true; return {}; }},
    {"--lockstep-from", "RIP", "with --lockstep: compare only once RIP has reached this address", SetLockstepFrom},
    {"--dump-block", "RIP[,RIP...][,to=FILE]", "list each translation that holds one of these addresses, or all",
     [](RunOptions& o, std::string_view v) { return ParseDumpBlock(o.machine.jit_debug, v); }},
    {"--perf-map", "", "write /tmp/perf-PID.map, by which `perf report` names guest code",
     [](RunOptions& o, std::string_view) -> Status { o.machine.jit_debug.perf_map = true; return {}; }},
    {"--perf-symbols", "FILE", "with --perf-map: the guest kernel's System.map or /proc/kallsyms",
     [](RunOptions& o, std::string_view v) -> Status { o.machine.jit_debug.symbols_file = v; return {}; }},
    {"--jit-stress", "MODE[,MODE...]", "make rare events frequent: flush[=N], interrupt[=N], invalidate[=N], sample[=N], compact, cache[=MIB], tlb",
     [](RunOptions& o, std::string_view v) { return ParseJitStress(o.machine.jit_debug, v); }},
    {"--kvm-kernel", "WHO", "with kvm, who runs the guest's kernel: kvm, interp, or auto (interp where KVM emulates)",
     SetKvmKernel},
    {"--switch-engine", "ENGINE[,ENGINE...][,every=TIME][,times=N]", "go from engine to engine while the guest runs (every 100ms)", SetTour},
    {"--check-reuse", "", "compare each translation that is used again with a new one",
     [](RunOptions& o, std::string_view) -> Status { o.machine.jit_debug.check_reuse = true; return {}; }},
    {"--help", "", "this text", [](RunOptions& o, std::string_view) -> Status { o.help = true; return {}; }},
});

struct LaterOption {
  std::string_view name, instead;
};
constexpr std::array kLaterOptions = std::to_array<LaterOption>({
    {"--json", "the output of `nacre run` is the guest's console"},
});

Status CheckEngineOptions(machine::MachineConfig& machine) {
  const bool for_jit = machine.lockstep || machine.code_cache_bytes != 0 || JitOnlyOption(machine.jit_debug);
  if (machine.engine == EngineKind::kAuto && for_jit) machine.engine = EngineKind::kJit;
  if (machine.lockstep && machine.engine != EngineKind::kJit) return Fail("--lockstep works with --engine jit");
  if (machine.lockstep && machine.cpu_count > 1)
    return Fail("--lockstep compares one CPU with the interpreter: use --cpus 1");
  if (machine.lockstep_from != 0 && !machine.lockstep) return Fail("--lockstep-from needs --lockstep");
  return CheckDebugOptions(machine.jit_debug, machine.engine == EngineKind::kJit);
}

Status CheckTogether(RunOptions& options, bool network_given) {
  machine::MachineConfig& machine = options.machine;
  if (!network_given) machine.networks.push_back({});
  NACRE_TRY_STATUS(CheckEngineOptions(machine));
  if (machine.console.kind == SerialKind::kStdio) {
    if (options.serial_given && machine.serial.kind == SerialKind::kStdio)
      return Fail("--serial stdio and --console stdio: standard input and output can serve only one of them");
    if (!options.serial_given) machine.serial.kind = SerialKind::kNone;
  }
  if (machine.firmware.empty() && !machine.boot.empty())
    return Fail("--boot needs --firmware: a kernel given with --kernel starts at once");
  if (machine.firmware.empty() && (!machine.firmware_variables.empty() || !machine.firmware_log.empty()))
    return Fail("--firmware-vars and --firmware-log need --firmware");
  machine.guest_agent = options.guest_agent.value_or(true);
  options.default_guest = machine.kernel.empty() && machine.firmware.empty() && machine.restore.empty();
  if (machine.kernel.empty() && !machine.firmware.empty() && !machine.command_line.empty())
    return Fail("--append with --firmware needs --kernel");
  if (machine.kernel.empty() && !machine.initrds.empty()) return Fail("--initrd needs --kernel");
  if (!machine.restore.empty() && !options.guest_command.empty())
    return Fail("--restore: the guest runs already; a command after -- is for a new one");
  if (!options.default_guest && !options.guest_command.empty())
    return Fail("a guest command after -- works with the default guest only; use --append with your own kernel");
  return {};
}

Status UnknownOption(std::string_view name) {
  for (const LaterOption& later : kLaterOptions)
    if (later.name == name) return NotYet(name, later.instead);
  std::vector<std::string_view> names;
  for (const Option& option : kOptions) names.push_back(option.name);
  const std::string_view near = Nearest(name, names);
  if (near.empty()) return Fail("unknown option {}", name);
  return Fail("unknown option {}; did you mean {}?", name, near);
}

}  // namespace

Result<RunOptions> ParseRun(std::span<const std::string_view> words) {
  RunOptions options;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string_view word = words[i];
    if (word == "--") {
      for (const std::string_view rest : words.subspan(i + 1)) options.guest_command.emplace_back(rest);
      if (options.guest_command.empty()) return Fail("-- must be followed by a command for the guest");
      break;
    }
    if (word == "-h") {
      options.help = true;
      continue;
    }
    if (!word.starts_with("-")) {
      options.names.emplace_back(word);
      continue;
    }
    const size_t equals = word.find('=');
    const std::string_view name = word.substr(0, equals);
    const auto option = std::ranges::find(kOptions, name, &Option::name);
    if (option == kOptions.end()) NACRE_TRY_STATUS(UnknownOption(name));
    std::string_view value;
    if (option->value.empty()) {
      if (equals != std::string_view::npos) return Fail("{} takes no value", name);
    } else if (equals != std::string_view::npos) {
      value = word.substr(equals + 1);
    } else if (i + 1 < words.size()) {
      value = words[++i];
    } else {
      return Fail("{} needs a value: {} {}", name, name, option->value);
    }
    if (!option->value.empty() && value.empty() && name != "--append") return Fail("{} needs a value", name);
    options.given.push_back(option->name);
    NACRE_TRY_STATUS(option->set(options, value));
  }
  if (!options.help)
    NACRE_TRY_STATUS(CheckTogether(options, std::ranges::find(options.given, "--net") != options.given.end()));
  return options;
}

bool IsOfOneRun(std::string_view option) {
  constexpr std::array<std::string_view, 14> kOfOneRun{
      "--control",       "--timeout",     "--engine-stats", "--lockstep",    "--lockstep-from",
      "--dump-block",    "--perf-map",    "--perf-symbols", "--jit-stress",  "--kvm-kernel",
      "--switch-engine", "--check-reuse", "--help",         "--firmware-log"};
  return std::ranges::find(kOfOneRun, option) != kOfOneRun.end();
}

Result<RunOptions> OverVm(RunOptions given, machine::MachineConfig machine) {
  for (const std::string_view option : given.given)
    if (!IsOfOneRun(option) && option != "--engine")
      return Fail("{} is of the VM's hardware: change vm.toml, or `nacre create` another VM", option);
  if (!given.guest_command.empty()) return Fail("a guest command after -- works with the default guest only");
  const machine::MachineConfig run = std::move(given.machine);
  if (run.engine != EngineKind::kAuto) machine.engine = run.engine;
  machine.kvm_kernel = run.kvm_kernel;
  machine.jit_debug = run.jit_debug;
  machine.lockstep = run.lockstep;
  machine.lockstep_from = run.lockstep_from;
  machine.timeout_ms = run.timeout_ms;
  machine.firmware_log = run.firmware_log;
  NACRE_TRY_STATUS(CheckEngineOptions(machine));
  given.machine = std::move(machine);
  given.default_guest = false;
  return given;
}

Status UseSavedConfig(RunOptions& options, machine::MachineConfig saved) {
  constexpr std::string_view kOwn[] = {
      "--restore",       "--engine",   "--code-cache",   "--serial",     "--console",      "--display",
      "--control",       "--timeout",  "--no-reboot",    "--vsock",      "--engine-stats", "--kvm-kernel",
      "--switch-engine", "--perf-map", "--perf-symbols", "--jit-stress", "--check-reuse",  "--dump-block"};
  const auto given = [&](std::string_view name) {
    return std::ranges::find(options.given, name) != options.given.end();
  };
  for (const std::string_view name : options.given)
    if (std::ranges::find(kOwn, name) == std::end(kOwn))
      return Fail("{}: with --restore the snapshot decides that", name);
  machine::MachineConfig& own = options.machine;
  saved.restore = own.restore;
  saved.engine = own.engine;
  saved.kvm_kernel = own.kvm_kernel;
  saved.jit_debug = own.jit_debug;
  saved.code_cache_bytes = own.code_cache_bytes;
  saved.timeout_ms = own.timeout_ms;
  if (given("--no-reboot")) saved.no_reboot = true;
  if (given("--serial")) saved.serial = own.serial;
  if (given("--vsock")) {
    if (saved.vsock.empty()) return Fail("--vsock: the snapshot's machine has no such device");
    saved.vsock = own.vsock;
  }
  if (given("--console")) {
    if ((saved.console.kind == SerialKind::kNone) != (own.console.kind == SerialKind::kNone))
      return Fail("--console: with --restore the snapshot decides whether there is one");
    saved.console = own.console;
  }
  if (saved.console.kind == SerialKind::kStdio && saved.serial.kind == SerialKind::kStdio) {
    if (given("--serial") && given("--console"))
      return Fail("--serial stdio and --console stdio: standard input and output can serve only one of them");
    // The console is a device, and stays.
    if (given("--serial"))
      saved.console = {.kind = SerialKind::kFile, .path = "/dev/null"};
    else
      saved.serial.kind = SerialKind::kNone;
  }
  if (own.display.vnc && !saved.has_screen()) return Fail("--display: the snapshot's machine has no screen");
  saved.display.vnc = own.display.vnc;
  own = std::move(saved);
  return {};
}

std::string RunHelp() {
  std::string text =
      "Usage: nacre run [options] [-- command for the default guest]\n"
      "       nacre run VM [options of one run]\n"
      "       nacre run IMAGE [options]    what it writes to its disk is gone at the end\n\n"
      "Runs a virtual machine in the foreground, its console on this terminal (Ctrl-] leaves).\n"
      "Without --kernel it is the default guest: Debian's cloud kernel with busybox.\n\n";
  for (const Option& option : kOptions)
    text += fmt::format("  {:<28} {}\n", fmt::format("{} {}", option.name, option.value), option.help);
  text +=
      "\nExit status: 0 the guest powered off, 1 failed, 2 wrong usage, 3 the guest crashed, 124 the time is over.\n";
  return text;
}

Result<uint64_t> ParseDurationMs(std::string_view text) {
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const std::string_view unit(end, text.data() + text.size());
  double factor = 1000;
  if (unit == "ms") {
    factor = 1;
  } else if (unit == "m") {
    factor = 60e3;
  } else if (unit == "h") {
    factor = 3600e3;
  } else if (!unit.empty() && unit != "s") {
    return Fail("give seconds, or a number with ms, s, m or h");
  }
  if (error != std::errc() || !std::isfinite(number) || number <= 0 || number * factor > 1e12)
    return Fail("give a time above 0, for example 30 or 500ms");
  return std::max<uint64_t>(1, static_cast<uint64_t>(number * factor));
}

}  // namespace nacre::cli
