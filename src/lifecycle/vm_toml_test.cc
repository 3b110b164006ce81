#include "lifecycle/vm_toml.h"

#include <gtest/gtest.h>

#include "lifecycle/toml_value.h"

namespace nacre::lifecycle {
namespace {

constexpr std::string_view kUuid = "uuid = \"5a0b16c8-9a52-4a5b-8d4e-2f0c5d1b7e90\"\n";

/// A file that is complete but for what is in question, which begins at line 2.
std::string With(std::string_view text) { return fmt::format("{}{}\n[boot]\nfirmware = \"bios\"\n", kUuid, text); }

TEST(VmToml, WhatIsNotSaidHasTheDefaultsOfARun) {
  const auto config = ParseVmToml(With(""), "vm.toml");
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->machine.memory_bytes, 512 * kMiB);
  EXPECT_EQ(config->machine.cpu_count, 1u);
  EXPECT_EQ(config->machine.engine, machine::EngineKind::kAuto);
  EXPECT_EQ(config->machine.serial.kind, machine::SerialKind::kStdio);
  EXPECT_EQ(config->restart, RestartPolicy::kNo);
  EXPECT_FALSE(config->autostart);
  EXPECT_TRUE(config->machine.networks.empty());
}

constexpr std::string_view kWhole = R"(version = 1
uuid = "5a0b16c8-9a52-4a5b-8d4e-2f0c5d1b7e90"
image = "debian"
restart = "on-failure"
restart-limit = 3
autostart = true
memory = "1G"
cpus = 4
cpu = "x86-64-v2,-pcid"
engine = "jit"
code-cache = "64M"
serial = "none"
console = "stdio"
balloon = false
guest-agent = false
vsock = "run/vsock"
debug-exit = true
no-reboot = true

[boot]
kernel = "boot/kernel"
initrd = ["boot/initrd", "boot/more"]
append = "console=hvc0 quote=\"a\" back=\\"
firmware = "uefi"
firmware-vars = "firmware-vars"
order = ["cdrom", "disk"]

[display]
show = "vnc:127.0.0.1:5901"
password = "vnc-password"
gpu = "virtio"
input = "ps2"
clipboard = true

[[disk]]
file = "disks/vda.raw"
format = "raw"

[[disk]]
file = "/srv/install.iso"
bus = "sata"
cdrom = true

[[disk]]
file = "disks/b, with a comma"
bus = "ide"
readonly = true
snapshot = true

[[floppy]]
file = "a.img"
readonly = true

[[net]]
kind = "user"
mac = "52:54:00:01:02:0a"
model = "e1000"
forward = ["tcp:127.0.0.1:2222-:22", "udp:0.0.0.0:53-10.0.2.15:53"]

[[net]]
kind = "user"
)";

TEST(VmToml, EveryKeyComesBackAsItWas) {
  const auto config = ParseVmToml(kWhole, "vm.toml");
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(VmTomlText(*config), kWhole);
  EXPECT_EQ(config->machine.command_line, "console=hvc0 quote=\"a\" back=\\");
  EXPECT_EQ(config->machine.disks[2].path, "disks/b, with a comma");
  EXPECT_TRUE(config->machine.disks[1].read_only);
}

TEST(VmToml, PathsAreOfTheVmsFolder) {
  auto config = ParseVmToml(kWhole, "vm.toml");
  ASSERT_TRUE(config) << config.error().message;
  config->password_file.clear();
  config->show = "vnc:unix:run/vnc";
  const auto machine = MachineOf(*config, "/home/vms/web");
  ASSERT_TRUE(machine) << machine.error().message;
  EXPECT_EQ(machine->kernel, "/home/vms/web/boot/kernel");
  EXPECT_EQ(machine->initrds[1], "/home/vms/web/boot/more");
  EXPECT_EQ(machine->firmware, "uefi");
  EXPECT_EQ(machine->disks[0].path, "/home/vms/web/disks/vda.raw");
  EXPECT_EQ(machine->disks[1].path, "/srv/install.iso");
  ASSERT_TRUE(machine->display.vnc);
  EXPECT_EQ(machine->display.vnc->unix_path, "/home/vms/web/run/vnc");
}

TEST(VmToml, TextsSurvive) {
  for (const std::string_view text : {"", "a", "\"\\", "tab\tnewline\n\x01\x7f", "gr\xc3\xb6\xc3\x9f"}) {
    const auto back = ParseToml(fmt::format("key = {}", TomlQuoted(text)), "file");
    ASSERT_TRUE(back) << back.error().message;
    EXPECT_EQ(back->Find("key")->text, text);
  }
}

struct Wrong {
  std::string_view text;
  std::string_view line;   ///< of the error
  std::string_view names;  ///< the key
  std::string_view says;   ///< what is allowed, or near
};

constexpr Wrong kWrong[] = {
    {"memory = \"3X\"", "vm.toml:2:", "memory = \"3X\"", "\"4M\" to \"512G\""},
    {"memory = 512", "vm.toml:2:", "memory = 512", "\"512M\""},
    {"memory = \"1M\"", "vm.toml:2:", "memory", "\"4M\""},
    {"memory = \"5000001\"", "vm.toml:2:", "memory", "\"4M\""},
    {"\n\ncpus = 0", "vm.toml:4:", "cpus = 0", "1 to 64"},
    {"cpus = 65", "vm.toml:2:", "cpus = 65", "1 to 64"},
    {"cpus = \"4\"", "vm.toml:2:", "cpus = \"4\"", "1 to 64"},
    {"cpus = 1.5", "vm.toml:2:", "cpus = 1.5", "1 to 64"},
    {"cpu = \"pentium\"", "vm.toml:2:", "cpu = \"pentium\"", "x86-64-v1"},
    {"engine = \"tcg\"", "vm.toml:2:", "engine = \"tcg\"", "\"jit\""},
    {"code-cache = \"1M\"", "vm.toml:2:", "code-cache", "\"4M\" to \"1G\""},
    {"restart = \"sometimes\"", "vm.toml:2:", "restart", "\"on-failure\""},
    {"restart-limit = -1", "vm.toml:2:", "restart-limit", "0 (no limit) to 1000"},
    {"autostart = \"yes\"", "vm.toml:2:", "autostart", "true or false"},
    {"serial = \"file:\"", "vm.toml:2:", "serial", "\"file:PATH\""},
    {"serial = \"stdio\"\nconsole = \"stdio\"", "vm.toml:2:", "serial and console", "one console"},
    {"version = 2", "vm.toml:2:", "version = 2", "only version"},
    {"uuid = \"5a0b16c8\"", "vm.toml:2:", "", ""},  // twice: the library's own error
    {"memroy = \"1G\"", "vm.toml:2:", "'memroy'", "did you mean 'memory'?"},
    {"dsik = 1", "vm.toml:2:", "'dsik'", "did you mean 'disk'?"},
    {"xyzzyplugh = 1", "vm.toml:2:", "'xyzzyplugh'", "there are version, uuid"},
    {"disk = \"a.img\"", "vm.toml:2:", "disk", "[[disk]]"},
    {"disk = [\"a.img\"]", "vm.toml:2:", "disk", "[[disk]]"},
    {"net = 1", "vm.toml:2:", "net", "[[net]]"},
    {"display = 1", "vm.toml:2:", "display = 1", "[display]"},
    {"[[disk]]\nbus = \"virtio\"", "vm.toml:2:", "disk.file is missing", "a file name"},
    {"[[disk]]\nfile = \"\"", "vm.toml:3:", "disk.file", "a file name"},
    {"[[disk]]\nfile = \"a\"\nbus = \"scsi\"", "vm.toml:4:", "disk.bus = \"scsi\"", "\"sata\""},
    {"[[disk]]\nfile = \"a\"\nformat = \"vmdk\"", "vm.toml:4:", "disk.format", "\"raw\""},
    {"[[disk]]\nfile = \"a\"\n[[disk]]\nfile = \"b\"\nsize = 4", "vm.toml:6:", "'size' in disk", "file"},
    {"[[disk]]\nfile = \"a\"\ncdrom = true\nbus = \"virtio\"", "vm.toml:5:", "disk.bus", "\"ide\""},
    {"[[floppy]]\nfile = \"a\"\n[[floppy]]\nfile = \"b\"\n[[floppy]]\nfile = \"c\"", "vm.toml:6:", "floppy", "two"},
    {"[[net]]\nkind = \"tap\"", "vm.toml:3:", "net.kind = \"tap\"", "\"user\""},
    {"[[net]]\nkind = \"user\"\nmac = \"01:00:5e:00:00:01\"", "vm.toml:4:", "net.mac", "52:54:00:12:34:56"},
    {"[[net]]\nkind = \"user\"\nforward = [\"22\"]", "vm.toml:4:", "net.forward", "tcp:127.0.0.1:2222-:22"},
    {"[[net]]\nkind = \"user\"\nforward = [22]", "vm.toml:4:", "net.forward", "tcp:127.0.0.1:2222-:22"},
    {"[display]\nshow = \"x11\"", "vm.toml:3:", "display.show", "\"offscreen\""},
    {"[display]\nshow = \"vnc:0.0.0.0:1,password=x\"", "vm.toml:3:", "display.show", "\"offscreen\""},
    {"[display]\npassword = \"x\"", "vm.toml:3:", "display.password", "vnc:"},
    {"a = [[[[[[[[[[1]]]]]]]]]]", "vm.toml:2:", "deeper", ""},
    {"memory = ", "vm.toml:2:", "not TOML", ""},
};

TEST(VmToml, ErrorsNameTheLineTheKeyAndWhatIsAllowed) {
  for (const Wrong& wrong : kWrong) {
    const auto config = ParseVmToml(With(wrong.text), "vm.toml");
    ASSERT_FALSE(config) << wrong.text;
    const std::string& said = config.error().message;
    EXPECT_TRUE(said.starts_with(wrong.line)) << wrong.text << "\n" << said;
    EXPECT_NE(said.find(wrong.names), std::string::npos) << wrong.text << "\n" << said;
    EXPECT_NE(said.find(wrong.says), std::string::npos) << wrong.text << "\n" << said;
  }
}

TEST(VmToml, WhatStartsIsChecked) {
  const struct {
    std::string_view text, line, says;
  } kCases[] = {
      {"", "vm.toml:1:", "boot.kernel"},
      {"[boot]\n", "vm.toml:", "boot.firmware"},
      {"[boot]\nfirmware = \"bios\"\ninitrd = [\"a\"]", "vm.toml:4:", "boot.initrd needs boot.kernel"},
      {"[boot]\nfirmware = \"bios\"\nappend = \"a\"", "vm.toml:4:", "boot.append needs boot.kernel"},
      {"[boot]\nkernel = \"k\"\norder = [\"disk\"]", "vm.toml:4:", "boot.order needs boot.firmware"},
      {"[boot]\nfirmware = \"bios\"\norder = [\"disk\", \"disk\"]", "vm.toml:4:", "each once"},
      {"[boot]\nkernel = \"k\"\nfirmware-vars = \"v\"", "vm.toml:4:", "needs boot.firmware"},
      {"[boot]\nkernel = \"k\"\ninitrd = 3", "vm.toml:4:", "a list of file names"},
  };
  for (const auto& [text, line, says] : kCases) {
    const auto config = ParseVmToml(std::string(kUuid) + std::string(text), "vm.toml");
    ASSERT_FALSE(config) << text;
    EXPECT_TRUE(config.error().message.starts_with(line)) << config.error().message;
    EXPECT_NE(config.error().message.find(says), std::string::npos) << config.error().message;
  }
  const auto config = ParseVmToml("[boot]\nkernel = \"k\"\n", "vm.toml");
  ASSERT_FALSE(config);
  EXPECT_NE(config.error().message.find("uuid is missing"), std::string::npos) << config.error().message;
}

TEST(VmToml, NewNumbersAreWellFormedAndDiffer) {
  const std::string uuid = NewUuid();
  EXPECT_TRUE(ParseVmToml(fmt::format("uuid = \"{}\"\n[boot]\nkernel = \"k\"\n", uuid), "vm.toml")) << uuid;
  EXPECT_NE(uuid, NewUuid());
  const network::MacAddress mac = NewMac();
  EXPECT_EQ(mac[0] & 3, 2);  // locally administered, of one card
  EXPECT_NE(mac, NewMac());
}

}  // namespace
}  // namespace nacre::lifecycle
