#include "lifecycle/vm_config.h"

#include <sys/random.h>

#include <span>

#include "base/check.h"

namespace nacre::lifecycle {

namespace {

void FillRandom(std::span<uint8_t> bytes) {
  // Up to 256 bytes come whole once the kernel's generator is ready (getrandom(2)).
  while (getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) NACRE_CHECK(errno == EINTR);
}

}  // namespace

void MakePathsAbsolute(machine::MachineConfig& machine, const std::filesystem::path& folder) {
  const auto absolute = [&](std::string& path) {
    if (!path.empty()) path = (folder / path).lexically_normal().string();
  };
  absolute(machine.kernel);
  for (std::string& initrd : machine.initrds) absolute(initrd);
  if (machine.firmware != "bios" && machine.firmware != "uefi") absolute(machine.firmware);
  absolute(machine.firmware_variables);
  for (auto& disk : machine.disks) absolute(disk.path);
  for (auto& floppy : machine.floppies) absolute(floppy.path);
  absolute(machine.serial.path);
  absolute(machine.console.path);
  absolute(machine.vsock);
}

Result<machine::MachineConfig> MachineOf(const VmConfig& config, const std::filesystem::path& folder) {
  machine::MachineConfig machine = config.machine;
  MakePathsAbsolute(machine, folder);
  machine.command_line = WithName(std::move(machine.command_line), folder.filename().string());
  machine.display.present = config.show != "none";
  if (!config.show.starts_with("vnc:")) return machine;
  std::string vnc = config.show.substr(4);
  constexpr std::string_view kUnix = "unix:";
  if (vnc.starts_with(kUnix))
    vnc = std::string(kUnix) + (folder / vnc.substr(kUnix.size())).lexically_normal().string();
  if (!config.password_file.empty()) vnc += ",password=" + (folder / config.password_file).lexically_normal().string();
  auto options = display::ParseVncOptions(vnc);
  if (!options) return Context(options.error(), "display.show");
  machine.display.vnc = std::move(*options);
  return machine;
}

std::string WithName(std::string text, std::string_view name) {
  constexpr std::string_view kPlace = "{name}";
  for (size_t at = text.find(kPlace); at != std::string::npos; at = text.find(kPlace, at + name.size()))
    text.replace(at, kPlace.size(), name);
  return text;
}

network::MacAddress NewMac() {
  network::MacAddress mac{0x52, 0x54, 0x00};
  FillRandom(std::span(mac).subspan(3));
  return mac;
}

std::string NewUuid() {
  std::array<uint8_t, 16> bytes{};
  FillRandom(bytes);
  bytes[6] = static_cast<uint8_t>((bytes[6] & 0x0f) | 0x40);
  bytes[8] = static_cast<uint8_t>((bytes[8] & 0x3f) | 0x80);
  std::string text;
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += fmt::format("{:02x}", bytes[i]);
  }
  return text;
}

}  // namespace nacre::lifecycle
