#include "lifecycle/ovf.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <pugixml.hpp>
#include <sstream>

#include "base/bits.h"
#include "network/ethernet.h"

namespace nacre::lifecycle {

namespace {

using machine::DiskBus;
using machine::NetworkCard;
using pugi::xml_node;

constexpr const char* kOwnSpace = "urn:nacre:ovf";
constexpr const char* kStreamFormat = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized";

// CIM_ResourceAllocationSettingData.ResourceType (DSP0004, MOF of CIM 2.22).
enum ResourceType : int {
  kOther = 1,
  kProcessor = 3,
  kMemory = 4,
  kIde = 5,
  kScsi = 6,
  kEthernet = 10,
  kCdDrive = 15,
  kDvdDrive = 16,
  kDiskDrive = 17,
  kOtherStorage = 20,
};

constexpr std::array<std::pair<DiskBus, const char*>, 3> kBuses{
    {{DiskBus::kVirtio, "virtio"}, {DiskBus::kIde, "ide"}, {DiskBus::kSata, "sata"}}};
const char* NameOf(DiskBus bus) {
  return std::ranges::find(kBuses, bus, &std::pair<DiskBus, const char*>::first)->second;
}

// -- writing

class Writer {
 public:
  explicit Writer(const OvfMachine& machine) : machine_(machine) {}

  std::string Run() {
    xml_node declaration = document_.append_child(pugi::node_declaration);
    declaration.append_attribute("version") = "1.0";
    declaration.append_attribute("encoding") = "UTF-8";
    xml_node envelope = document_.append_child("Envelope");
    const auto space = [&](const char* prefix, const char* name) { envelope.append_attribute(prefix) = name; };
    space("xmlns", "http://schemas.dmtf.org/ovf/envelope/1");
    space("xmlns:ovf", "http://schemas.dmtf.org/ovf/envelope/1");
    space("xmlns:rasd", "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData");
    space("xmlns:vssd", "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData");
    space("xmlns:vmw", "http://www.vmware.com/schema/ovf");
    space("xmlns:nacre", kOwnSpace);
    PutFiles(envelope.append_child("References"));
    PutDisks(envelope.append_child("DiskSection"));
    if (!machine_.networks.empty()) {
      xml_node section = envelope.append_child("NetworkSection");
      PutText(section, "Info", "Networks of the machine");
      xml_node network = section.append_child("Network");
      network.append_attribute("ovf:name") = "NAT";
      PutText(network, "Description", "The outside, through the host");
    }
    PutSystem(envelope.append_child("VirtualSystem"));
    std::ostringstream text;
    document_.save(text, "  ", pugi::format_default, pugi::encoding_utf8);
    return text.str();
  }

 private:
  static void PutText(xml_node parent, const char* name, const std::string& text) {
    parent.append_child(name).text() = text.c_str();
  }
  static std::string FileId(size_t index) { return fmt::format("file{}", index + 1); }
  static std::string DiskId(size_t index) { return fmt::format("vmdisk{}", index + 1); }

  void PutFiles(xml_node references) {
    for (size_t i = 0; i < machine_.disks.size(); ++i) {
      const OvfDisk& disk = machine_.disks[i];
      if (disk.file.empty()) continue;
      xml_node file = references.append_child("File");
      file.append_attribute("ovf:href") = disk.file.c_str();
      file.append_attribute("ovf:id") = FileId(i).c_str();
      file.append_attribute("ovf:size") = fmt::format("{}", disk.file_bytes).c_str();
    }
  }
  void PutDisks(xml_node section) {
    PutText(section, "Info", "Virtual disks of the machine");
    for (size_t i = 0; i < machine_.disks.size(); ++i) {
      const OvfDisk& disk = machine_.disks[i];
      if (disk.cdrom) continue;
      xml_node entry = section.append_child("Disk");
      entry.append_attribute("ovf:capacity") = fmt::format("{}", disk.capacity_bytes).c_str();
      entry.append_attribute("ovf:diskId") = DiskId(i).c_str();
      if (!disk.file.empty()) entry.append_attribute("ovf:fileRef") = FileId(i).c_str();
      entry.append_attribute("ovf:format") = kStreamFormat;
      entry.append_attribute("nacre:bus") = NameOf(disk.bus);
    }
  }

  void PutSystem(xml_node system) {
    system.append_attribute("ovf:id") = machine_.name.c_str();
    PutText(system, "Info", "A virtual machine");
    PutText(system, "Name", machine_.name);
    xml_node operating_system = system.append_child("OperatingSystemSection");
    operating_system.append_attribute("ovf:id") = "102";  // CIM_OperatingSystem.OSType: other, 64-bit
    PutText(operating_system, "Info", "The kind of guest");
    xml_node hardware = system.append_child("VirtualHardwareSection");
    PutText(hardware, "Info", "Virtual hardware");
    xml_node kind = hardware.append_child("System");
    PutText(kind, "vssd:ElementName", "Virtual Hardware Family");
    PutText(kind, "vssd:InstanceID", "0");
    PutText(kind, "vssd:VirtualSystemIdentifier", machine_.name);
    PutText(kind, "vssd:VirtualSystemType", "vmx-10 virtualbox-2.2");
    PutItems(hardware);
    if (!machine_.uefi) return;
    xml_node config = hardware.append_child("vmw:Config");
    config.append_attribute("ovf:required") = "false";
    config.append_attribute("vmw:key") = "firmware";
    config.append_attribute("vmw:value") = "efi";
  }

  /// What an item has, in the schema's order, which is the alphabet's.
  struct Item {
    std::string address = {}, address_on_parent = {}, automatic_allocation = {}, allocation_units = {}, connection = {},
                description = {}, element_name = {}, host_resource = {}, parent = {}, resource_sub_type = {};
    int resource_type = kOther;
    std::string virtual_quantity = {};
  };
  unsigned Put(xml_node hardware, const Item& item, const char* own = nullptr, const char* own_value = nullptr) {
    xml_node node = hardware.append_child("Item");
    if (own) node.append_attribute(own) = own_value;
    const auto put = [&](const char* name, const std::string& value) {
      if (!value.empty()) PutText(node, name, value);
    };
    const unsigned instance = next_instance_++;
    put("rasd:Address", item.address);
    put("rasd:AddressOnParent", item.address_on_parent);
    put("rasd:AllocationUnits", item.allocation_units);
    put("rasd:AutomaticAllocation", item.automatic_allocation);
    put("rasd:Connection", item.connection);
    put("rasd:Description", item.description);
    put("rasd:ElementName", item.element_name);
    put("rasd:HostResource", item.host_resource);
    put("rasd:InstanceID", fmt::format("{}", instance));
    put("rasd:Parent", item.parent);
    put("rasd:ResourceSubType", item.resource_sub_type);
    put("rasd:ResourceType", fmt::format("{}", item.resource_type));
    put("rasd:VirtualQuantity", item.virtual_quantity);
    return instance;
  }

  void PutItems(xml_node hardware) {
    Put(hardware, {.allocation_units = "hertz * 10^6",
                   .description = "Number of virtual CPUs",
                   .element_name = fmt::format("{} virtual CPU(s)", machine_.cpu_count),
                   .resource_type = kProcessor,
                   .virtual_quantity = fmt::format("{}", machine_.cpu_count)});
    const uint64_t memory = AlignUp(machine_.memory_bytes, kMiB) / kMiB;
    Put(hardware, {.allocation_units = "byte * 2^20",
                   .description = "Memory size",
                   .element_name = fmt::format("{} MB of memory", memory),
                   .resource_type = kMemory,
                   .virtual_quantity = fmt::format("{}", memory)});
    // An IDE controller has two drives.
    std::vector<unsigned> ide;
    std::optional<unsigned> sata;
    unsigned on_ide = 0, on_sata = 0;
    for (size_t i = 0; i < machine_.disks.size(); ++i) {
      const OvfDisk& disk = machine_.disks[i];
      unsigned parent = 0, place = 0;
      if (disk.bus == DiskBus::kIde) {
        if (on_ide % 2 == 0)
          ide.push_back(Put(hardware, {.address = fmt::format("{}", ide.size()),
                                       .description = "IDE controller",
                                       .element_name = fmt::format("IDE {}", ide.size()),
                                       .resource_sub_type = "PIIX4",
                                       .resource_type = kIde}));
        parent = ide.back();
        place = on_ide++ % 2;
      } else {
        if (!sata)
          sata = Put(hardware, {.address = "0",
                                .description = "SATA controller",
                                .element_name = "SATA 0",
                                .resource_sub_type = "AHCI",
                                .resource_type = kOtherStorage});
        parent = *sata;
        place = on_sata++;
      }
      const std::string resource =
          disk.cdrom ? (disk.file.empty() ? "" : "ovf:/file/" + FileId(i)) : "ovf:/disk/" + DiskId(i);
      Put(hardware, {.address_on_parent = fmt::format("{}", place),
                     .automatic_allocation = disk.cdrom ? "true" : "",
                     .element_name = fmt::format("{} {}", disk.cdrom ? "CD-ROM" : "Disk", i + 1),
                     .host_resource = resource,
                     .parent = fmt::format("{}", parent),
                     .resource_type = disk.cdrom ? kCdDrive : kDiskDrive});
    }
    for (size_t i = 0; i < machine_.networks.size(); ++i) {
      const OvfNetwork& network = machine_.networks[i];
      Put(hardware,
          {.address = network.mac ? network::MacText(*network.mac) : "",
           .automatic_allocation = "true",
           .connection = "NAT",
           .element_name = fmt::format("Network card {}", i + 1),
           .resource_sub_type = "E1000",
           .resource_type = kEthernet},
          "nacre:card", network.card == NetworkCard::kVirtio ? "virtio" : "e1000");
    }
  }

  const OvfMachine& machine_;
  pugi::xml_document document_;
  unsigned next_instance_ = 1;
};

// -- reading: prefixes of namespaces differ from program to program, so names are taken without them

std::string_view Plain(std::string_view name) {
  const size_t colon = name.rfind(':');
  return colon == std::string_view::npos ? name : name.substr(colon + 1);
}
xml_node Child(xml_node parent, std::string_view name) {
  for (xml_node node : parent.children())
    if (node.type() == pugi::node_element && Plain(node.name()) == name) return node;
  return {};
}
std::string Attribute(xml_node node, std::string_view name) {
  for (const pugi::xml_attribute attribute : node.attributes())
    if (Plain(attribute.name()) == name) return attribute.value();
  return {};
}
std::string Text(xml_node parent, std::string_view name) {
  std::string text = Child(parent, name).child_value();
  constexpr std::string_view kSpaces = " \t\r\n";
  text.erase(0, std::min(text.find_first_not_of(kSpaces), text.size()));
  text.erase(text.find_last_not_of(kSpaces) + 1);
  return text;
}

std::optional<uint64_t> Number(std::string_view text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || text.empty() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

/// "byte * 2^20", as DSP0004 has units, or the words of older packages. Nothing: unknown.
std::optional<uint64_t> BytesPer(std::string units) {
  std::erase_if(units, [](char c) { return c == ' ' || c == '\t'; });
  std::ranges::transform(units, units.begin(),
                         [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  if (units.empty() || units == "byte" || units == "bytes") return 1;
  constexpr std::string_view kPower = "byte*2^";
  if (units.starts_with(kPower)) {
    const auto power = Number(std::string_view(units).substr(kPower.size()));
    if (!power || *power > 62) return std::nullopt;
    return uint64_t{1} << *power;
  }
  if (units == "kb" || units == "kilobytes") return kKiB;
  if (units == "mb" || units == "megabytes") return kMiB;
  if (units == "gb" || units == "gigabytes") return kGiB;
  return std::nullopt;
}

Result<uint64_t> Bytes(const std::string& number, const std::string& units, std::string_view what) {
  const auto value = Number(number);
  const auto per = BytesPer(units);
  uint64_t bytes = 0;
  if (!value || !per || __builtin_mul_overflow(*value, *per, &bytes) || bytes > Bit(62))
    return Fail("{}: '{}' in units of '{}' is not understood", what, number, units);
  return bytes;
}

class Reader {
 public:
  Result<OvfMachine> Run(std::string_view text) {
    if (text.size() > kMaxOvfBytes)
      return Fail("a descriptor of {} bytes, at most {} are read", text.size(), kMaxOvfBytes);
    // No entities are defined and nothing else is fetched.
    const pugi::xml_parse_result parsed = document_.load_buffer(text.data(), text.size(), pugi::parse_default);
    if (!parsed) return Fail("byte {}: {}", parsed.offset, parsed.description());
    const xml_node envelope = Child(document_, "Envelope");
    if (!envelope) return Fail("there is no element Envelope: this is no OVF descriptor");
    ReadFiles(envelope);
    NACRE_TRY_STATUS(ReadDisks(envelope));
    const xml_node system = NACRE_TRY(System(envelope));
    machine_.name = Text(system, "Name");
    if (machine_.name.empty()) machine_.name = Attribute(system, "id");
    const xml_node hardware = Child(system, "VirtualHardwareSection");
    if (!hardware) return Fail("there is no element VirtualHardwareSection");
    NACRE_TRY_STATUS(ReadItems(hardware));
    ReadFirmware(system, hardware);
    std::ranges::stable_sort(placed_, {}, [](const Placed& p) { return std::tuple(p.parent, p.place); });
    for (Placed& placed : placed_) machine_.disks.push_back(std::move(placed.disk));
    return std::move(machine_);
  }

 private:
  struct File {
    std::string href;
    uint64_t size = 0;
    bool gzip = false;
  };
  struct Disk {
    std::string file;  ///< its id
    uint64_t capacity = 0;
    std::string bus;  ///< Nacre's own attribute
  };
  struct Placed {
    uint64_t parent = 0, place = 0;
    OvfDisk disk;
  };

  void ReadFiles(xml_node envelope) {
    for (const xml_node node : Child(envelope, "References").children()) {
      if (Plain(node.name()) != "File") continue;
      const std::string compression = Attribute(node, "compression");
      files_[Attribute(node, "id")] = {Attribute(node, "href"), Number(Attribute(node, "size")).value_or(0),
                                       compression == "gzip"};
    }
  }
  Status ReadDisks(xml_node envelope) {
    for (const xml_node node : Child(envelope, "DiskSection").children()) {
      if (Plain(node.name()) != "Disk") continue;
      const std::string id = Attribute(node, "diskId");
      if (!Attribute(node, "parentRef").empty())
        return Fail("disk {}: differences to another disk are not supported", id);
      const uint64_t capacity =
          NACRE_TRY(Bytes(Attribute(node, "capacity"), Attribute(node, "capacityAllocationUnits"), "disk " + id));
      disks_[id] = {Attribute(node, "fileRef"), capacity, Attribute(node, "bus")};
    }
    return {};
  }
  static Result<xml_node> System(xml_node envelope) {
    if (const xml_node system = Child(envelope, "VirtualSystem")) return system;
    const xml_node collection = Child(envelope, "VirtualSystemCollection");
    if (!collection) return Fail("there is no element VirtualSystem");
    xml_node only;
    for (const xml_node node : collection.children()) {
      if (Plain(node.name()) != "VirtualSystem") continue;
      if (only) return Fail("the package has several machines; one at a time is supported");
      only = node;
    }
    if (!only) return Fail("there is no element VirtualSystem");
    return only;
  }

  Status ReadItems(xml_node hardware) {
    // Controllers first: disks may stand before them.
    for (const xml_node item : hardware.children()) {
      const uint64_t type = Number(Text(item, "ResourceType")).value_or(0);
      if (type == kIde) controllers_[Text(item, "InstanceID")] = DiskBus::kIde;
      if (type == kScsi || type == kOtherStorage) controllers_[Text(item, "InstanceID")] = DiskBus::kSata;
    }
    for (const xml_node item : hardware.children()) {
      const auto type = Number(Text(item, "ResourceType"));
      if (!type) continue;
      switch (*type) {
        case kProcessor: {
          const auto count = Number(Text(item, "VirtualQuantity"));
          if (!count || *count < 1 || *count > machine::kMaxCpus)
            return Fail("{} CPUs: 1 to {} are possible", Text(item, "VirtualQuantity"), machine::kMaxCpus);
          machine_.cpu_count = static_cast<unsigned>(*count);
          break;
        }
        case kMemory: {
          std::string units = Text(item, "AllocationUnits");
          if (units.empty()) units = "byte * 2^20";
          machine_.memory_bytes = NACRE_TRY(Bytes(Text(item, "VirtualQuantity"), units, "memory"));
          break;
        }
        case kDiskDrive:
        case kCdDrive:
        case kDvdDrive:
          NACRE_TRY_STATUS(ReadDrive(item, *type != kDiskDrive));
          break;
        case kEthernet: {
          OvfNetwork network;
          const std::string own = Attribute(item, "card"), sub_type = Text(item, "ResourceSubType");
          if (own == "virtio" || (own.empty() && Plain(sub_type) == "virtio")) network.card = NetworkCard::kVirtio;
          if (const auto mac = ParseLooseMac(Text(item, "Address"))) network.mac = *mac;
          machine_.networks.push_back(network);
          break;
        }
        default:
          break;  // sound, USB, video: what there is here is enough
      }
    }
    return {};
  }

  /// VirtualBox leaves the colons out.
  static std::optional<network::MacAddress> ParseLooseMac(std::string text) {
    if (text.size() == 12)
      for (size_t at = 10; at > 0; at -= 2) text.insert(at, ":");
    const auto mac = network::ParseMac(text);
    if (!mac) return std::nullopt;
    return *mac;
  }

  Status ReadDrive(xml_node item, bool cdrom) {
    Placed placed;
    const std::string parent = Text(item, "Parent"), resource = Text(item, "HostResource");
    placed.parent = Number(parent).value_or(0);
    placed.place = Number(Text(item, "AddressOnParent")).value_or(0);
    placed.disk.cdrom = cdrom;
    if (const auto found = controllers_.find(parent); found != controllers_.end()) placed.disk.bus = found->second;
    const size_t slash = resource.rfind('/');
    const std::string id = slash == std::string::npos ? resource : resource.substr(slash + 1);
    std::string file = id;
    if (!cdrom) {
      if (id.empty()) return {};  // of the host, or nothing
      const auto disk = disks_.find(id);
      if (disk == disks_.end()) return Fail("there is no disk '{}' in the DiskSection", id);
      placed.disk.capacity_bytes = disk->second.capacity;
      file = disk->second.file;
      for (const auto& [bus, name] : kBuses)
        if (disk->second.bus == name) placed.disk.bus = bus;
    }
    if (!file.empty() && (!cdrom || resource.find("/file/") != std::string::npos)) {
      const auto found = files_.find(file);
      if (found == files_.end()) return Fail("there is no file '{}' in the References", file);
      placed.disk.file = found->second.href;
      placed.disk.file_bytes = found->second.size;
      placed.disk.gzip = found->second.gzip;
    }
    placed_.push_back(std::move(placed));
    return {};
  }

  /// VMware's way, and VirtualBox's.
  void ReadFirmware(xml_node system, xml_node hardware) {
    for (const xml_node node : hardware.children())
      if (Plain(node.name()) == "Config" && Attribute(node, "key") == "firmware")
        machine_.uefi = Attribute(node, "value") == "efi";
    const xml_node firmware = Child(Child(Child(system, "Machine"), "Hardware"), "Firmware");
    if (Attribute(firmware, "type").starts_with("EFI")) machine_.uefi = true;
  }

  pugi::xml_document document_;
  OvfMachine machine_;
  std::map<std::string, File> files_;
  std::map<std::string, Disk> disks_;
  std::map<std::string, DiskBus> controllers_;  ///< by InstanceID
  std::vector<Placed> placed_;
};

}  // namespace

std::string WriteOvf(const OvfMachine& machine) { return Writer(machine).Run(); }

Result<OvfMachine> ReadOvf(std::string_view text) { return Reader().Run(text); }

}  // namespace nacre::lifecycle
