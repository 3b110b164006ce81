#include "machine/config_archive.h"

#include "state/archive.h"

namespace nacre::machine {
namespace {

constexpr size_t kMaxPath = 4096, kMaxLine = 65536, kMaxList = 1024;

template <typename E>
void EnumField(state::Archive& archive, uint16_t id, E& value, E last) {
  archive.Field(id, value);
  if (archive.loading() && value > last) archive.Reject(fmt::format("field {}: unknown kind", id));
}

template <typename T, typename Element>
void ListField(state::Archive& archive, uint16_t id, std::vector<T>& list, const Element& element) {
  archive.List(
      id, list.size(), kMaxList, [&](size_t count) { list.resize(count); },
      [&](state::Archive& fields, size_t i) { element(fields, list[i]); });
}

void SerializeDisk(state::Archive& archive, DiskConfig& disk) {
  archive.Text(1, disk.path, kMaxPath);
  EnumField(archive, 2, disk.bus, DiskBus::kSata);
  archive.Field(3, disk.cdrom);
  archive.Field(4, disk.read_only);
  archive.Field(5, disk.snapshot);
  // 0: as the file looks.
  uint8_t format = disk.format ? static_cast<uint8_t>(1 + static_cast<uint8_t>(*disk.format)) : 0;
  archive.Field(6, format);
  if (!archive.loading()) return;
  if (format > 2) return archive.Reject("an unknown format of a disk");
  disk.format = format == 0 ? std::nullopt : std::optional(static_cast<storage::ImageFormat>(format - 1));
}

void SerializeForward(state::Archive& archive, network::PortForward& forward) {
  archive.Field(1, forward.udp);
  archive.Text(2, forward.host_address, kMaxPath);
  archive.Field(3, forward.host_port);
  archive.Text(4, forward.guest_address, kMaxPath);
  archive.Field(5, forward.guest_port);
}

void SerializeNetwork(state::Archive& archive, NetworkConfig& network) {
  EnumField(archive, 1, network.kind, NetworkKind::kUser);
  EnumField(archive, 2, network.card, NetworkCard::kE1000);
  bool has_mac = network.mac.has_value();
  archive.Field(3, has_mac);
  network::MacAddress mac = network.mac.value_or(network::MacAddress{});
  archive.Bytes(4, std::span<uint8_t>(mac));
  if (archive.loading()) network.mac = has_mac ? std::optional(mac) : std::nullopt;
  ListField(archive, 5, network.forwards, SerializeForward);
}

void SerializeStream(state::Archive& archive, SerialConfig& stream) {
  EnumField(archive, 1, stream.kind, SerialKind::kFile);
  archive.Text(2, stream.path, kMaxPath);
}

void SerializeDisplay(state::Archive& archive, DisplayConfig& display) {
  archive.Field(1, display.present);
  EnumField(archive, 2, display.gpu, GpuKind::kVirtio);
  EnumField(archive, 3, display.input, InputKind::kVirtioMouse);
  archive.Field(4, display.clipboard);
  // Who shows the screen is the next run's choice; a password does not belong into a file.
}

}  // namespace

void SerializeConfig(state::Archive& archive, MachineConfig& config) {
  archive.Text(1, config.kernel, kMaxPath);
  ListField(archive, 2, config.initrds,
            [](state::Archive& fields, std::string& path) { fields.Text(1, path, kMaxLine); });
  archive.Text(3, config.command_line, kMaxLine);
  archive.Text(4, config.firmware, kMaxPath);
  archive.Text(5, config.firmware_variables, kMaxPath);
  ListField(archive, 6, config.boot,
            [](state::Archive& fields, BootKind& kind) { EnumField(fields, 1, kind, BootKind::kNetwork); });
  archive.Field(7, config.memory_bytes);
  archive.Field(8, config.cpu_count);
  archive.Text(9, config.cpu_model, kMaxLine);
  ListField(archive, 10, config.disks, SerializeDisk);
  ListField(archive, 11, config.floppies, [](state::Archive& fields, FloppyConfig& floppy) {
    fields.Text(1, floppy.path, kMaxPath);
    fields.Field(2, floppy.read_only);
  });
  ListField(archive, 12, config.networks, SerializeNetwork);
  archive.Section(13, 1, [&](state::Archive& fields, uint16_t) { SerializeStream(fields, config.serial); });
  archive.Section(14, 1, [&](state::Archive& fields, uint16_t) { SerializeStream(fields, config.console); });
  archive.Field(15, config.balloon);
  archive.Section(16, 1, [&](state::Archive& fields, uint16_t) { SerializeDisplay(fields, config.display); });
  archive.Field(17, config.debug_exit);
  archive.Field(18, config.no_reboot);
  if (archive.loading()) config.guest_agent = false;  // there was none before there was this field
  archive.Field(19, config.guest_agent);
  archive.Text(20, config.vsock, kMaxPath);
  if (!archive.loading()) return;
  if (config.memory_bytes < kMinMemoryBytes || config.memory_bytes > kMaxMemoryBytes ||
      config.memory_bytes % kPageSize != 0)
    archive.Reject("an impossible size of memory");
  if (config.cpu_count < 1 || config.cpu_count > kMaxCpus) archive.Reject("an impossible number of CPUs");
  if (config.floppies.size() > kMaxFloppies) archive.Reject("too many floppy drives");
}

}  // namespace nacre::machine
