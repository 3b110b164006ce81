#include "lifecycle/ovf.h"

#include <gtest/gtest.h>

#include <random>

#include "base/fuzz_testing.h"

namespace nacre::lifecycle {
namespace {

using machine::DiskBus;
using machine::NetworkCard;

/// As VirtualBox writes them: no prefixes, addresses without colons, sizes in bytes, its own section for firmware.
constexpr std::string_view kVirtualBox = R"xml(<?xml version="1.0"?>
<Envelope ovf:version="1.0" xml:lang="en-US" xmlns="http://schemas.dmtf.org/ovf/envelope/1"
  xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
  xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
  xmlns:vbox="http://www.virtualbox.org/ovf/machine">
  <References><File ovf:id="file1" ovf:href="debian-disk001.vmdk"/><File ovf:id="file2" ovf:href="tools.iso"/></References>
  <DiskSection><Info>disks</Info>
    <Disk ovf:capacity="8589934592" ovf:diskId="vmdisk1" ovf:fileRef="file1" ovf:format="x" vbox:uuid="1"/>
  </DiskSection>
  <NetworkSection><Info>n</Info><Network ovf:name="NAT"><Description>d</Description></Network></NetworkSection>
  <VirtualSystem ovf:id="My Debian (2)"><Info>A virtual machine</Info>
    <OperatingSystemSection ovf:id="96"><Info>i</Info></OperatingSystemSection>
    <VirtualHardwareSection><Info>i</Info>
      <Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType>
        <rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
      <Item><rasd:AllocationUnits>MegaBytes</rasd:AllocationUnits><rasd:InstanceID>2</rasd:InstanceID>
        <rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>2048</rasd:VirtualQuantity></Item>
      <Item><rasd:Address>0</rasd:Address><rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceSubType>PIIX4</rasd:ResourceSubType>
        <rasd:ResourceType>5</rasd:ResourceType></Item>
      <Item><rasd:Address>0</rasd:Address><rasd:InstanceID>5</rasd:InstanceID><rasd:ResourceSubType>AHCI</rasd:ResourceSubType>
        <rasd:ResourceType>20</rasd:ResourceType></Item>
      <Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:HostResource>/file/file2</rasd:HostResource>
        <rasd:InstanceID>6</rasd:InstanceID><rasd:Parent>3</rasd:Parent><rasd:ResourceType>15</rasd:ResourceType></Item>
      <Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:HostResource>/disk/vmdisk1</rasd:HostResource>
        <rasd:InstanceID>7</rasd:InstanceID><rasd:Parent>5</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
      <Item><rasd:Address>080027A1B2C3</rasd:Address><rasd:InstanceID>8</rasd:InstanceID>
        <rasd:ResourceSubType>E1000</rasd:ResourceSubType><rasd:ResourceType>10</rasd:ResourceType></Item>
    </VirtualHardwareSection>
    <vbox:Machine><Hardware><Firmware type="EFI"/></Hardware></vbox:Machine>
  </VirtualSystem>
</Envelope>)xml";

/// As VMware's tools write them: prefixes, sizes in units, SCSI, an empty drive, a disk that stands before its
/// controller.
constexpr std::string_view kVmware = R"xml(<?xml version="1.0" encoding="UTF-8"?>
<ovf:Envelope xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:vmw="http://www.vmware.com/schema/ovf"
  xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">
  <ovf:References><ovf:File ovf:href="vm-disk1.vmdk" ovf:id="file1" ovf:size="12345"/></ovf:References>
  <ovf:DiskSection><ovf:Info/>
    <ovf:Disk ovf:capacity="16" ovf:capacityAllocationUnits="byte * 2^30" ovf:diskId="d1" ovf:fileRef="file1"/>
    <ovf:Disk ovf:capacity="1" ovf:capacityAllocationUnits="byte * 2^30" ovf:diskId="d2"/>
  </ovf:DiskSection>
  <ovf:VirtualSystem ovf:id="vm"><ovf:Info/><ovf:Name>web server</ovf:Name>
    <ovf:VirtualHardwareSection><ovf:Info/>
      <ovf:Item><rasd:HostResource>ovf:/disk/d2</rasd:HostResource><rasd:InstanceID>9</rasd:InstanceID>
        <rasd:AddressOnParent>1</rasd:AddressOnParent><rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></ovf:Item>
      <ovf:Item><rasd:HostResource>ovf:/disk/d1</rasd:HostResource><rasd:InstanceID>8</rasd:InstanceID>
        <rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></ovf:Item>
      <ovf:Item><rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceSubType>lsilogic</rasd:ResourceSubType>
        <rasd:ResourceType>6</rasd:ResourceType></ovf:Item>
      <ovf:Item ovf:required="false"><rasd:InstanceID>11</rasd:InstanceID><rasd:ResourceType>16</rasd:ResourceType></ovf:Item>
      <ovf:Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:ResourceType>4</rasd:ResourceType>
        <rasd:VirtualQuantity>1024</rasd:VirtualQuantity></ovf:Item>
      <ovf:Item><rasd:ResourceSubType>VmxNet3</rasd:ResourceSubType><rasd:ResourceType>10</rasd:ResourceType></ovf:Item>
      <vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="bios"/>
    </ovf:VirtualHardwareSection>
  </ovf:VirtualSystem>
</ovf:Envelope>)xml";

TEST(Ovf, VirtualBoxsForm) {
  const auto machine = ReadOvf(kVirtualBox);
  ASSERT_TRUE(machine) << machine.error().message;
  EXPECT_EQ("My Debian (2)", machine->name);
  EXPECT_EQ(2u, machine->cpu_count);
  EXPECT_EQ(uint64_t{2} << 30, machine->memory_bytes);
  EXPECT_TRUE(machine->uefi);
  ASSERT_EQ(2u, machine->disks.size());
  EXPECT_TRUE(machine->disks[0].cdrom);
  EXPECT_EQ("tools.iso", machine->disks[0].file);
  EXPECT_EQ(DiskBus::kIde, machine->disks[0].bus);
  EXPECT_EQ("debian-disk001.vmdk", machine->disks[1].file);
  EXPECT_EQ(DiskBus::kSata, machine->disks[1].bus);
  EXPECT_EQ(uint64_t{8} << 30, machine->disks[1].capacity_bytes);
  ASSERT_EQ(1u, machine->networks.size());
  EXPECT_EQ((network::MacAddress{0x08, 0x00, 0x27, 0xa1, 0xb2, 0xc3}), machine->networks[0].mac);
}

TEST(Ovf, VmwaresForm) {
  const auto machine = ReadOvf(kVmware);
  ASSERT_TRUE(machine) << machine.error().message;
  EXPECT_EQ("web server", machine->name);
  EXPECT_FALSE(machine->uefi);
  EXPECT_EQ(uint64_t{1} << 30, machine->memory_bytes);
  ASSERT_EQ(3u, machine->disks.size());
  EXPECT_TRUE(machine->disks[0].cdrom);
  EXPECT_EQ("", machine->disks[0].file);
  EXPECT_EQ("vm-disk1.vmdk", machine->disks[1].file);
  EXPECT_EQ(DiskBus::kSata, machine->disks[1].bus);
  EXPECT_EQ(uint64_t{16} << 30, machine->disks[1].capacity_bytes);
  EXPECT_EQ("", machine->disks[2].file);
  EXPECT_EQ(uint64_t{1} << 30, machine->disks[2].capacity_bytes);
  EXPECT_EQ(NetworkCard::kE1000, machine->networks[0].card);
}

TEST(Ovf, WhatIsWrittenIsRead) {
  OvfMachine machine{.name = "a<b>&\"c\"", .cpu_count = 4, .memory_bytes = uint64_t{3} << 30, .uefi = true};
  machine.disks.push_back(
      {.file = "x-disk1.vmdk", .file_bytes = 77, .capacity_bytes = 5'000'000'512, .bus = DiskBus::kVirtio});
  machine.disks.push_back({.file = "x-disk2.vmdk", .file_bytes = 78, .capacity_bytes = 512, .bus = DiskBus::kSata});
  machine.disks.push_back({.file = "x-cd1.iso", .file_bytes = 79, .cdrom = true, .bus = DiskBus::kIde});
  machine.networks.push_back({.card = NetworkCard::kVirtio, .mac = network::MacAddress{0x52, 0x54, 0, 1, 2, 3}});
  machine.networks.push_back({.card = NetworkCard::kE1000, .mac = {}});
  const auto read = ReadOvf(WriteOvf(machine));
  ASSERT_TRUE(read) << read.error().message;
  EXPECT_EQ(machine.name, read->name);
  EXPECT_EQ(4u, read->cpu_count);
  EXPECT_EQ(machine.memory_bytes, read->memory_bytes);
  EXPECT_TRUE(read->uefi);
  ASSERT_EQ(3u, read->disks.size());
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(machine.disks[i].file, read->disks[i].file);
    EXPECT_EQ(machine.disks[i].file_bytes, read->disks[i].file_bytes);
    EXPECT_EQ(machine.disks[i].capacity_bytes, read->disks[i].capacity_bytes);
    EXPECT_EQ(machine.disks[i].bus, read->disks[i].bus);
    EXPECT_EQ(machine.disks[i].cdrom, read->disks[i].cdrom);
  }
  ASSERT_EQ(2u, read->networks.size());
  EXPECT_EQ(NetworkCard::kVirtio, read->networks[0].card);
  EXPECT_EQ(machine.networks[0].mac, read->networks[0].mac);
  EXPECT_EQ(NetworkCard::kE1000, read->networks[1].card);
}

TEST(Ovf, ElementsStandInTheSchemasOrder) {
  OvfMachine machine{.name = "x", .memory_bytes = 1 << 30, .uefi = true};
  machine.disks.push_back({.file = "x-cd1.iso", .file_bytes = 79, .cdrom = true, .bus = DiskBus::kIde});
  machine.networks.push_back({.card = NetworkCard::kVirtio, .mac = network::MacAddress{0x52, 0x54, 0, 1, 2, 3}});
  const std::string text = WriteOvf(machine);
  unsigned items = 0;
  for (size_t at = text.find("<Item"); at != std::string::npos; at = text.find("<Item", at + 1), ++items) {
    const size_t end = text.find("</Item>", at);
    std::string before;
    for (size_t name = text.find("<rasd:", at); name < end; name = text.find("<rasd:", name + 1)) {
      const std::string next = text.substr(name, text.find('>', name) - name);
      EXPECT_LT(before, next);
      before = next;
    }
  }
  EXPECT_EQ(5u, items);
  EXPECT_GT(text.find("<vmw:Config"), text.rfind("</Item>"));
}

TEST(Ovf, ErrorsSayWhatIsWrong) {
  const auto error = [](std::string text, std::string_view from = {}, std::string_view to = {}) {
    if (!from.empty()) text.replace(text.find(from), from.size(), to);
    const auto machine = ReadOvf(text);
    return machine ? "none" : machine.error().message;
  };
  const std::string good(kVmware);
  EXPECT_NE(std::string::npos, error("not XML").find("byte"));
  EXPECT_EQ("there is no element Envelope: this is no OVF descriptor", error("<a/>"));
  EXPECT_EQ("there is no disk 'd9' in the DiskSection", error(good, "/disk/d2", "/disk/d9"));
  EXPECT_EQ("there is no file 'file1' in the References", error(good, "ovf:id=\"file1\"", "ovf:id=\"f\""));
  EXPECT_EQ("disk d1: '16' in units of 'byte * 2^70' is not understood", error(good, "byte * 2^30", "byte * 2^70"));
  EXPECT_EQ("memory: '-1' in units of 'byte * 2^20' is not understood", error(good, ">1024<", ">-1<"));
  EXPECT_EQ("disk d1: differences to another disk are not supported",
            error(good, "ovf:diskId=\"d1\"", "ovf:diskId=\"d1\" ovf:parentRef=\"d0\""));
  EXPECT_EQ("there is no element VirtualHardwareSection", error("<Envelope><VirtualSystem/></Envelope>"));
}

TEST(Ovf, FuzzDescriptors) {
  std::mt19937_64 random(FuzzSeed(1));
  FuzzRun run(2000);
  while (run.Next()) {
    std::string text(random() % 2 ? kVmware : kVirtualBox);
    for (unsigned i = 0; i <= random() % 6; ++i) {
      const size_t at = random() % text.size();
      if (random() % 3 == 0)
        text.erase(at, random() % 40);
      else if (random() % 2)
        text.insert(at, text.substr(random() % text.size(), random() % 200));
      else
        text[at] = static_cast<char>(random());
    }
    static_cast<void>(ReadOvf(text));
  }
}

TEST(Ovf, DepthDoesNoHarm) {
  std::string text;
  for (int i = 0; i < 500'000; ++i) text += "<a>";
  EXPECT_FALSE(ReadOvf(text));
  std::string closed = "<Envelope><References>" + text.substr(0, 900'000);
  for (int i = 0; i < 300'000; ++i) closed += "</a>";
  EXPECT_FALSE(ReadOvf(closed + "</References></Envelope>"));
}

}  // namespace
}  // namespace nacre::lifecycle
