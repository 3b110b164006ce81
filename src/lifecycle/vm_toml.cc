#include "lifecycle/vm_toml.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <span>

#include "base/nearest.h"
#include "base/size_text.h"
#include "engine/jit/jit_engine.h"
#include "lifecycle/toml_value.h"
#include "storage/image.h"
#include "x86/cpu_model_selection.h"

namespace nacre::lifecycle {

namespace {

using machine::DiskBus;
using machine::DiskConfig;
using machine::FloppyConfig;
using machine::GpuKind;
using machine::InputKind;
using machine::NetworkCard;
using machine::NetworkConfig;
using machine::SerialConfig;
using machine::SerialKind;
using Kind = TomlValue::Kind;

constexpr int64_t kVersion = 1;

/// A key of a table that describes a T. `read` is false for a value that is not allowed; `write` gives the value as
/// TOML,
/// "" where the key is left out.
template <typename T>
struct Key {
  std::string_view name, allowed;
  bool (*read)(T& to, const TomlValue& value);
  std::string (*write)(const T& from);
  bool needed = false;
};

bool ReadText(std::string& to, const TomlValue& value) {
  if (value.kind != Kind::kText || value.text.find('\0') != std::string::npos) return false;
  to = value.text;
  return true;
}
bool ReadName(std::string& to, const TomlValue& value) { return ReadText(to, value) && !to.empty(); }
bool ReadFlag(bool& to, const TomlValue& value) {
  if (value.kind != Kind::kBoolean) return false;
  to = value.boolean;
  return true;
}
template <typename Number>
bool ReadNumber(Number& to, const TomlValue& value, int64_t least, int64_t most) {
  if (value.kind != Kind::kInteger || value.integer < least || value.integer > most) return false;
  to = static_cast<Number>(value.integer);
  return true;
}
bool ReadSize(uint64_t& to, const TomlValue& value, uint64_t least, uint64_t most) {
  if (value.kind != Kind::kText) return false;
  const auto size = ParseSize(value.text);
  if (!size || *size < least || *size > most) return false;
  to = *size;
  return true;
}
bool ReadNames(std::vector<std::string>& to, const TomlValue& value) {
  to.clear();
  if (value.kind == Kind::kText) return ReadName(to.emplace_back(), value);
  if (value.kind != Kind::kArray) return false;
  return std::ranges::all_of(value.items, [&](const TomlValue& item) { return ReadName(to.emplace_back(), item); });
}
template <typename Choice, size_t kCount>
bool ReadChoice(Choice& to, const TomlValue& value,
                const std::array<std::pair<std::string_view, Choice>, kCount>& all) {
  if (value.kind != Kind::kText) return false;
  const auto found = std::ranges::find(all, value.text, [](const auto& entry) { return entry.first; });
  if (found == all.end()) return false;
  to = found->second;
  return true;
}

std::string Written(const std::string& text) { return text.empty() ? "" : TomlQuoted(text); }
std::string Written(bool flag, bool usual) { return flag == usual ? "" : flag ? "true" : "false"; }
std::string Written(const std::vector<std::string>& names) {
  std::vector<std::string> quoted;
  for (const std::string& name : names) quoted.push_back(TomlQuoted(name));
  return quoted.empty() ? "" : fmt::format("[{}]", fmt::join(quoted, ", "));
}
template <typename Choice, size_t kCount>
std::string Written(Choice choice, const std::array<std::pair<std::string_view, Choice>, kCount>& all) {
  const auto found = std::ranges::find(all, choice, [](const auto& entry) { return entry.second; });
  return TomlQuoted(found->first);
}

constexpr std::array<std::pair<std::string_view, RestartPolicy>, 3> kRestarts{
    {{"no", RestartPolicy::kNo}, {"on-failure", RestartPolicy::kOnFailure}, {"always", RestartPolicy::kAlways}}};
constexpr std::array<std::pair<std::string_view, DiskBus>, 3> kBuses{
    {{"virtio", DiskBus::kVirtio}, {"ide", DiskBus::kIde}, {"sata", DiskBus::kSata}}};
constexpr std::array<std::pair<std::string_view, NetworkCard>, 2> kCards{
    {{"virtio", NetworkCard::kVirtio}, {"e1000", NetworkCard::kE1000}}};
constexpr std::array<std::pair<std::string_view, GpuKind>, 2> kGpus{
    {{"vga", GpuKind::kVga}, {"virtio", GpuKind::kVirtio}}};
constexpr std::array<std::pair<std::string_view, InputKind>, 3> kInputs{
    {{"ps2", InputKind::kPs2}, {"virtio", InputKind::kVirtio}, {"virtio-mouse", InputKind::kVirtioMouse}}};

bool ReadStream(SerialConfig& to, const TomlValue& value) {
  if (value.kind != Kind::kText) return false;
  constexpr std::string_view kFile = "file:";
  to.path.clear();
  if (value.text == "stdio") {
    to.kind = SerialKind::kStdio;
  } else if (value.text == "none") {
    to.kind = SerialKind::kNone;
  } else if (value.text.starts_with(kFile) && value.text.size() > kFile.size()) {
    to.kind = SerialKind::kFile;
    to.path = value.text.substr(kFile.size());
  } else {
    return false;
  }
  return true;
}
std::string WrittenStream(const SerialConfig& stream, SerialKind usual) {
  if (stream.kind == SerialKind::kFile) return TomlQuoted("file:" + stream.path);
  if (stream.kind == usual) return "";
  return stream.kind == SerialKind::kStdio ? "\"stdio\"" : "\"none\"";
}

bool ReadUuid(std::string& to, const TomlValue& value) {
  if (value.kind != Kind::kText || value.text.size() != 36) return false;
  for (size_t i = 0; i < value.text.size(); ++i) {
    const bool dash = i == 8 || i == 13 || i == 18 || i == 23;
    if (dash ? value.text[i] != '-' : !std::isxdigit(static_cast<unsigned char>(value.text[i]))) return false;
  }
  to = value.text;
  return true;
}

bool ReadBootOrder(std::vector<machine::BootKind>& to, const TomlValue& value) {
  if (value.kind != Kind::kArray) return false;
  for (const TomlValue& item : value.items) {
    machine::BootKind kind{};
    if (!ReadChoice(kind, item, machine::kBootNames) || std::ranges::find(to, kind) != to.end()) return false;
    to.push_back(kind);
  }
  return true;
}

std::string ForwardText(const network::PortForward& forward) {
  return fmt::format("{}:{}:{}-{}:{}", forward.udp ? "udp" : "tcp", forward.host_address, forward.host_port,
                     forward.guest_address, forward.guest_port);
}

constexpr std::array kVmKeys = std::to_array<Key<VmConfig>>({
    {"version", "1, the only version of this file so far",
     [](VmConfig&, const TomlValue& v) { return v.kind == Kind::kInteger && v.integer == kVersion; },
     [](const VmConfig&) { return fmt::format("{}", kVersion); }},
    {"uuid", "a UUID such as \"5a0b16c8-9a52-4a5b-8d4e-2f0c5d1b7e90\" (`uuidgen` prints new ones)",
     [](VmConfig& c, const TomlValue& v) { return ReadUuid(c.uuid, v); },
     [](const VmConfig& c) { return Written(c.uuid); }, true},
    {"image", "a text: what the VM was made of", [](VmConfig& c, const TomlValue& v) { return ReadText(c.image, v); },
     [](const VmConfig& c) { return Written(c.image); }},
    {"restart", "\"no\", \"on-failure\" or \"always\"",
     [](VmConfig& c, const TomlValue& v) { return ReadChoice(c.restart, v, kRestarts); },
     [](const VmConfig& c) { return c.restart == RestartPolicy::kNo ? "" : Written(c.restart, kRestarts); }},
    {"restart-limit", "a number from 0 (no limit) to 1000",
     [](VmConfig& c, const TomlValue& v) { return ReadNumber(c.restart_limit, v, 0, VmConfig::kMaxRestartLimit); },
     [](const VmConfig& c) {
       return c.restart_limit == VmConfig::kDefaultRestartLimit ? "" : fmt::format("{}", c.restart_limit);
     }},
    {"autostart", "true or false", [](VmConfig& c, const TomlValue& v) { return ReadFlag(c.autostart, v); },
     [](const VmConfig& c) { return Written(c.autostart, false); }},
    {"memory", "a size from \"4M\" to \"512G\", such as \"512M\"",
     [](VmConfig& c, const TomlValue& v) {
       return ReadSize(c.machine.memory_bytes, v, machine::kMinMemoryBytes, machine::kMaxMemoryBytes) &&
              c.machine.memory_bytes % kPageSize == 0;
     },
     [](const VmConfig& c) { return TomlQuoted(SizeText(c.machine.memory_bytes)); }},
    {"cpus", "a number from 1 to 64",
     [](VmConfig& c, const TomlValue& v) { return ReadNumber(c.machine.cpu_count, v, 1, machine::kMaxCpus); },
     [](const VmConfig& c) { return fmt::format("{}", c.machine.cpu_count); }},
    {"cpu",
     "a model \"x86-64-v1\" to \"x86-64-v4\", \"host\" or \"default\", with features added and taken away as in "
     "\"x86-64-v3,-pcid,+hle\"",
     [](VmConfig& c, const TomlValue& v) {
       return ReadName(c.machine.cpu_model, v) && x86::ParseModelName(c.machine.cpu_model).has_value();
     },
     [](const VmConfig& c) { return TomlQuoted(c.machine.cpu_model); }},
    {"engine", "\"auto\", \"kvm\", \"jit\" or \"interp\"",
     [](VmConfig& c, const TomlValue& v) { return ReadChoice(c.machine.engine, v, machine::kEngineNames); },
     [](const VmConfig& c) { return Written(c.machine.engine, machine::kEngineNames); }},
    {"code-cache", "a size from \"4M\" to \"1G\"",
     [](VmConfig& c, const TomlValue& v) {
       return ReadSize(c.machine.code_cache_bytes, v, engine::jit::kMinCodeCache, engine::jit::kMaxCodeCache);
     },
     [](const VmConfig& c) { return Written(c.machine.code_cache_bytes ? SizeText(c.machine.code_cache_bytes) : ""); }},
    {"serial", "\"stdio\" (the VM's console), \"file:PATH\" or \"none\"",
     [](VmConfig& c, const TomlValue& v) { return ReadStream(c.machine.serial, v); },
     [](const VmConfig& c) { return WrittenStream(c.machine.serial, SerialKind::kStdio); }},
    {"console", "\"stdio\" (the VM's console), \"file:PATH\" or \"none\"",
     [](VmConfig& c, const TomlValue& v) { return ReadStream(c.machine.console, v); },
     [](const VmConfig& c) { return WrittenStream(c.machine.console, SerialKind::kNone); }},
    {"balloon", "true or false", [](VmConfig& c, const TomlValue& v) { return ReadFlag(c.machine.balloon, v); },
     [](const VmConfig& c) { return Written(c.machine.balloon, true); }},
    {"guest-agent", "true or false", [](VmConfig& c, const TomlValue& v) { return ReadFlag(c.machine.guest_agent, v); },
     [](const VmConfig& c) { return Written(c.machine.guest_agent, true); }},
    {"vsock", "the path of a socket", [](VmConfig& c, const TomlValue& v) { return ReadText(c.machine.vsock, v); },
     [](const VmConfig& c) { return Written(c.machine.vsock); }},
    {"debug-exit", "true or false", [](VmConfig& c, const TomlValue& v) { return ReadFlag(c.machine.debug_exit, v); },
     [](const VmConfig& c) { return Written(c.machine.debug_exit, false); }},
    {"no-reboot", "true or false", [](VmConfig& c, const TomlValue& v) { return ReadFlag(c.machine.no_reboot, v); },
     [](const VmConfig& c) { return Written(c.machine.no_reboot, false); }},
});

constexpr std::array kBootKeys = std::to_array<Key<VmConfig>>({
    {"kernel", "a file name", [](VmConfig& c, const TomlValue& v) { return ReadName(c.machine.kernel, v); },
     [](const VmConfig& c) { return Written(c.machine.kernel); }},
    {"initrd", "a list of file names, such as [\"initrd.img\"]",
     [](VmConfig& c, const TomlValue& v) { return ReadNames(c.machine.initrds, v); },
     [](const VmConfig& c) { return Written(c.machine.initrds); }},
    {"append", "a text: the kernel's command line",
     [](VmConfig& c, const TomlValue& v) { return ReadText(c.machine.command_line, v); },
     [](const VmConfig& c) { return Written(c.machine.command_line); }},
    {"firmware", "\"bios\", \"uefi\" or a file name",
     [](VmConfig& c, const TomlValue& v) { return ReadName(c.machine.firmware, v); },
     [](const VmConfig& c) { return Written(c.machine.firmware); }},
    {"firmware-vars", "a file name",
     [](VmConfig& c, const TomlValue& v) { return ReadName(c.machine.firmware_variables, v); },
     [](const VmConfig& c) { return Written(c.machine.firmware_variables); }},
    {"order", "a list of \"floppy\", \"disk\", \"cdrom\" and \"net\", each once at most",
     [](VmConfig& c, const TomlValue& v) { return ReadBootOrder(c.machine.boot, v); },
     [](const VmConfig& c) {
       std::vector<std::string> names;
       for (const machine::BootKind kind : c.machine.boot)
         names.emplace_back(
             std::ranges::find(machine::kBootNames, kind, [](const auto& e) { return e.second; })->first);
       return Written(names);
     }},
});

constexpr std::array kDisplayKeys = std::to_array<Key<VmConfig>>({
    {"show", "\"none\", \"offscreen\", \"vnc:ADDRESS:PORT\" or \"vnc:unix:PATH\"",
     [](VmConfig& c, const TomlValue& v) {
       return ReadName(c.show, v) && c.show.find(',') == std::string::npos &&
              (c.show == "none" || c.show == "offscreen" || c.show.starts_with("vnc:"));
     },
     [](const VmConfig& c) { return c.show == "none" ? "" : Written(c.show); }},
    {"password", "the name of a file with 1 to 8 characters",
     [](VmConfig& c, const TomlValue& v) { return ReadName(c.password_file, v); },
     [](const VmConfig& c) { return Written(c.password_file); }},
    {"gpu", "\"vga\" or \"virtio\"",
     [](VmConfig& c, const TomlValue& v) { return ReadChoice(c.machine.display.gpu, v, kGpus); },
     [](const VmConfig& c) {
       return c.machine.display.gpu == GpuKind::kVga ? "" : Written(c.machine.display.gpu, kGpus);
     }},
    {"input", "\"virtio\", \"virtio-mouse\" or \"ps2\"",
     [](VmConfig& c, const TomlValue& v) { return ReadChoice(c.machine.display.input, v, kInputs); },
     [](const VmConfig& c) {
       return c.machine.display.input == InputKind::kVirtio ? "" : Written(c.machine.display.input, kInputs);
     }},
    {"clipboard", "true or false",
     [](VmConfig& c, const TomlValue& v) { return ReadFlag(c.machine.display.clipboard, v); },
     [](const VmConfig& c) { return Written(c.machine.display.clipboard, false); }},
});

constexpr std::array kDiskKeys = std::to_array<Key<DiskConfig>>({
    {"file", "a file name", [](DiskConfig& d, const TomlValue& v) { return ReadName(d.path, v); },
     [](const DiskConfig& d) { return Written(d.path); }, true},
    {"format", "\"raw\" or \"qcow2\"",
     [](DiskConfig& d, const TomlValue& v) {
       d.format = v.kind == Kind::kText ? storage::FormatNamed(v.text) : std::nullopt;
       return d.format.has_value();
     },
     [](const DiskConfig& d) {
       return Written(d.format && !d.cdrom ? std::string(storage::FormatName(*d.format)) : "");
     }},
    {"bus", "\"virtio\" (not for a CD-ROM drive), \"ide\" or \"sata\"",
     [](DiskConfig& d, const TomlValue& v) { return ReadChoice(d.bus, v, kBuses); },
     [](const DiskConfig& d) { return d.bus == DiskBus::kVirtio ? "" : Written(d.bus, kBuses); }},
    {"cdrom", "true or false", [](DiskConfig& d, const TomlValue& v) { return ReadFlag(d.cdrom, v); },
     [](const DiskConfig& d) { return Written(d.cdrom, false); }},
    {"readonly", "true or false", [](DiskConfig& d, const TomlValue& v) { return ReadFlag(d.read_only, v); },
     [](const DiskConfig& d) { return Written(d.read_only && !d.cdrom, false); }},
    {"snapshot", "true or false: whether writes are forgotten at the end",
     [](DiskConfig& d, const TomlValue& v) { return ReadFlag(d.snapshot, v); },
     [](const DiskConfig& d) { return Written(d.snapshot, false); }},
});

constexpr std::array kFloppyKeys = std::to_array<Key<FloppyConfig>>({
    {"file", "a file name", [](FloppyConfig& f, const TomlValue& v) { return ReadName(f.path, v); },
     [](const FloppyConfig& f) { return Written(f.path); }, true},
    {"readonly", "true or false", [](FloppyConfig& f, const TomlValue& v) { return ReadFlag(f.read_only, v); },
     [](const FloppyConfig& f) { return Written(f.read_only, false); }},
});

constexpr std::array kNetKeys = std::to_array<Key<NetworkConfig>>({
    {"kind", "\"user\"", [](NetworkConfig&, const TomlValue& v) { return v.kind == Kind::kText && v.text == "user"; },
     [](const NetworkConfig&) { return Written("user"); }, true},
    {"mac", "an address that is no group's, such as \"52:54:00:12:34:56\"",
     [](NetworkConfig& n, const TomlValue& v) {
       const auto mac = network::ParseMac(v.kind == Kind::kText ? v.text : "");
       if (mac) n.mac = *mac;
       return mac.has_value();
     },
     [](const NetworkConfig& n) { return n.mac ? TomlQuoted(network::MacText(*n.mac)) : ""; }},
    {"model", "\"virtio\" or \"e1000\"",
     [](NetworkConfig& n, const TomlValue& v) { return ReadChoice(n.card, v, kCards); },
     [](const NetworkConfig& n) { return n.card == NetworkCard::kVirtio ? "" : Written(n.card, kCards); }},
    {"forward", "a list of forwards, such as [\"tcp:127.0.0.1:2222-:22\"]",
     [](NetworkConfig& n, const TomlValue& v) {
       std::vector<std::string> texts;
       if (!ReadNames(texts, v)) return false;
       for (const std::string& text : texts) {
         const auto forward = network::ParsePortForward(text);
         if (!forward) return false;
         n.forwards.push_back(*forward);
       }
       return true;
     },
     [](const NetworkConfig& n) {
       std::vector<std::string> texts;
       for (const auto& forward : n.forwards) texts.push_back(ForwardText(forward));
       return Written(texts);
     }},
});

constexpr std::string_view kBoot = "boot", kDisplay = "display", kDisk = "disk", kFloppy = "floppy", kNet = "net";

class Reader {
 public:
  explicit Reader(const std::string& file) : file_(file) {}

  Result<VmConfig> Read(const TomlValue& root) {
    VmConfig config;
    constexpr std::array kSections{kBoot, kDisplay, kDisk, kFloppy, kNet};
    NACRE_TRY_STATUS(ReadTable<VmConfig>(root, "", kVmKeys, config, kSections));
    if (const TomlValue* boot = root.Find(kBoot)) NACRE_TRY_STATUS(ReadSection(*boot, kBoot, kBootKeys, config));
    if (const TomlValue* display = root.Find(kDisplay))
      NACRE_TRY_STATUS(ReadSection(*display, kDisplay, kDisplayKeys, config));
    NACRE_TRY_STATUS(ReadList<DiskConfig>(root, kDisk, kDiskKeys, config.machine.disks));
    NACRE_TRY_STATUS(ReadList<FloppyConfig>(root, kFloppy, kFloppyKeys, config.machine.floppies));
    NACRE_TRY_STATUS(ReadList<NetworkConfig>(root, kNet, kNetKeys, config.machine.networks));
    NACRE_TRY_STATUS(CheckTogether(root, config));
    return config;
  }

 private:
  std::unexpected<Error> At(unsigned line, std::string_view what) const { return Fail("{}:{}: {}", file_, line, what); }

  template <typename T>
  Status ReadTable(const TomlValue& table, std::string_view section, std::span<const Key<T>> keys, T& to,
                   std::span<const std::string_view> sections = {}) {
    const auto full = [&](std::string_view key) {
      return section.empty() ? std::string(key) : fmt::format("{}.{}", section, key);
    };
    for (const auto& [name, value] : table.entries) {
      if (std::ranges::find(sections, name) != sections.end()) continue;
      const auto key = std::ranges::find(keys, name, &Key<T>::name);
      if (key == keys.end()) return UnknownKey<T>(value.line, section, name, keys, sections);
      if (key->read(to, value)) continue;
      const std::string shown = value.kind == Kind::kText ? TomlQuoted(value.text) : value.text;
      return At(value.line, fmt::format("{} = {} is not allowed; give {}", full(name), shown, key->allowed));
    }
    for (const Key<T>& key : keys)
      if (key.needed && !table.Find(key.name))
        return At(std::max(table.line, 1u), fmt::format("{} is missing; give {}", full(key.name), key.allowed));
    return {};
  }

  template <typename T>
  Status UnknownKey(unsigned line, std::string_view section, std::string_view name, std::span<const Key<T>> keys,
                    std::span<const std::string_view> sections) {
    std::vector<std::string_view> names;
    for (const Key<T>& key : keys) names.push_back(key.name);
    names.insert(names.end(), sections.begin(), sections.end());
    const std::string_view near = Nearest(name, names);
    const std::string where = section.empty() ? "" : fmt::format(" in {}", section);
    if (!near.empty()) return At(line, fmt::format("there is no key '{}'{}; did you mean '{}'?", name, where, near));
    return At(line, fmt::format("there is no key '{}'{}; there are {}", name, where, fmt::join(names, ", ")));
  }

  Status ReadSection(const TomlValue& table, std::string_view section, std::span<const Key<VmConfig>> keys,
                     VmConfig& to) {
    if (table.kind != Kind::kTable)
      return At(table.line,
                fmt::format("{0} = {1} is not allowed; {0} is a table: [{0}] and its keys below", section, table.text));
    return ReadTable<VmConfig>(table, section, keys, to);
  }

  template <typename T>
  Status ReadList(const TomlValue& root, std::string_view section, std::span<const Key<T>> keys, std::vector<T>& to) {
    const TomlValue* list = root.Find(section);
    if (!list) return {};
    const auto wrong = [&](unsigned line) {
      return At(line, fmt::format("{0} is a list of tables: [[{0}]] and its keys below, for each", section));
    };
    if (list->kind != Kind::kArray) return wrong(list->line);
    for (const TomlValue& item : list->items) {
      if (item.kind != Kind::kTable) return wrong(item.line != 0 ? item.line : list->line);
      NACRE_TRY_STATUS(ReadTable<T>(item, section, keys, to.emplace_back()));
    }
    return {};
  }

  /// What holds between keys.
  Status CheckTogether(const TomlValue& root, VmConfig& config) {
    machine::MachineConfig& machine = config.machine;
    const TomlValue* boot = root.Find(kBoot);
    const unsigned line = boot ? std::max(boot->line, 1u) : 1;
    const auto boot_line = [&](std::string_view key) {
      const TomlValue* value = boot ? boot->Find(key) : nullptr;
      return value ? value->line : line;
    };
    if (machine.kernel.empty() && machine.firmware.empty())
      return At(line, "nothing to start: give boot.kernel, a file name, or boot.firmware, \"bios\" or \"uefi\"");
    if (machine.kernel.empty() && !machine.initrds.empty())
      return At(boot_line("initrd"), "boot.initrd needs boot.kernel");
    if (machine.kernel.empty() && !machine.command_line.empty())
      return At(boot_line("append"), "boot.append needs boot.kernel");
    if (machine.firmware.empty() && !machine.boot.empty())
      return At(boot_line("order"), "boot.order needs boot.firmware: a kernel starts at once");
    if (machine.firmware.empty() && !machine.firmware_variables.empty())
      return At(boot_line("firmware-vars"), "boot.firmware-vars needs boot.firmware");
    if (!config.password_file.empty() && !config.show.starts_with("vnc:"))
      return At(root.Find(kDisplay)->Find("password")->line, "display.password needs display.show = \"vnc:...\"");
    NACRE_TRY_STATUS(CheckConsoles(root, machine));
    return CheckDisks(root, machine);
  }

  Status CheckConsoles(const TomlValue& root, machine::MachineConfig& machine) {
    if (machine.console.kind != SerialKind::kStdio || machine.serial.kind != SerialKind::kStdio) return {};
    // As with the options: the virtio console takes the stream unless the serial port was given it by name.
    if (const TomlValue* serial = root.Find("serial"))
      return At(serial->line, "serial and console cannot both be \"stdio\": a VM has one console");
    machine.serial.kind = SerialKind::kNone;
    return {};
  }

  Status CheckDisks(const TomlValue& root, machine::MachineConfig& machine) {
    for (size_t i = 0; i < machine.disks.size(); ++i) {
      DiskConfig& disk = machine.disks[i];
      if (!disk.cdrom) continue;
      const TomlValue& table = root.Find(kDisk)->items[i];
      if (disk.bus == DiskBus::kVirtio && table.Find("bus"))
        return At(table.Find("bus")->line, "disk.bus = \"virtio\" is not allowed with cdrom; give \"ide\" or \"sata\"");
      if (!table.Find("bus")) disk.bus = DiskBus::kIde;
      disk.read_only = true;
      disk.format = storage::ImageFormat::kRaw;
    }
    if (machine.floppies.size() > machine::kMaxFloppies)
      return At(root.Find(kFloppy)->items[machine::kMaxFloppies].line, "there are two floppy drives, A: and B:");
    return {};
  }

  const std::string& file_;
};

template <typename T>
void Write(std::string& text, std::string_view heading, std::span<const Key<T>> keys, const T& from) {
  std::string lines;
  for (const Key<T>& key : keys)
    if (const std::string value = key.write(from); !value.empty()) lines += fmt::format("{} = {}\n", key.name, value);
  if (lines.empty()) return;
  if (!heading.empty()) text += fmt::format("\n{}\n", heading);
  text += lines;
}

}  // namespace

Result<VmConfig> ParseVmToml(std::string_view text, const std::string& file) {
  return Reader(file).Read(NACRE_TRY(ParseToml(text, file)));
}

Result<VmConfig> ReadVmToml(const std::string& path) { return Reader(path).Read(NACRE_TRY(ReadToml(path))); }

std::string VmTomlText(const VmConfig& config) {
  std::string text;
  Write<VmConfig>(text, "", kVmKeys, config);
  Write<VmConfig>(text, "[boot]", kBootKeys, config);
  Write<VmConfig>(text, "[display]", kDisplayKeys, config);
  for (const DiskConfig& disk : config.machine.disks) Write<DiskConfig>(text, "[[disk]]", kDiskKeys, disk);
  for (const FloppyConfig& floppy : config.machine.floppies)
    Write<FloppyConfig>(text, "[[floppy]]", kFloppyKeys, floppy);
  for (const NetworkConfig& net : config.machine.networks) Write<NetworkConfig>(text, "[[net]]", kNetKeys, net);
  return text;
}

}  // namespace nacre::lifecycle
