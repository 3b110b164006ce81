#include "lifecycle/vm_clone.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "lifecycle/vm_create.h"
#include "lifecycle/vm_layers.h"
#include "lifecycle/vm_lock.h"
#include "lifecycle/vm_toml.h"
#include "storage/image.h"

namespace nacre::lifecycle {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kDiskBytes = 4 << 20;

class VmClone : public testing::Test {
 protected:
  VmClone() : home_(Scratch()) {
    std::ofstream(Outside("kernel")) << "a kernel";
    NewVm vm;
    vm.name = "a";
    vm.config.machine.kernel = Outside("kernel");
    vm.config.machine.networks.emplace_back();
    vm.disk_bytes = kDiskBytes;
    const Status made = CreateVm(home_, std::move(vm));
    EXPECT_TRUE(made) << made.error().message;
  }
  ~VmClone() override {
    std::error_code error;
    fs::remove_all(home_.folder().parent_path(), error);
  }
  static Home Scratch() {
    std::string name = testing::TempDir() + "nacre-clone-XXXXXX";
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    return Home(fs::path(name) / "home");
  }
  fs::path Outside(std::string_view name) const { return home_.folder().parent_path() / name; }
  VmPaths Vm(std::string_view name) const { return {home_.vms() / name}; }
  fs::path DiskOf(std::string_view name) const { return Vm(name).disks() / "disk0.qcow2"; }

  std::unique_ptr<storage::ImageDisk> Open(const fs::path& path, bool read_only = false) const {
    auto io = storage::AsyncIo::Create();
    EXPECT_TRUE(io);
    auto disk = storage::OpenImage({.path = path, .format = storage::ImageFormat::kQcow2, .read_only = read_only},
                                   std::move(*io));
    EXPECT_TRUE(disk) << disk.error().message;
    return disk ? std::move(*disk) : nullptr;
  }
  void Write(std::string_view vm, uint64_t offset, char value) const {
    const auto disk = Open(DiskOf(vm));
    ASSERT_TRUE(disk);
    std::string bytes(4096, value);
    EXPECT_EQ(RunRequest(*disk, storage::DiskRequest::Kind::kWrite, offset, bytes.size(), bytes.data()), 0);
  }
  char Read(std::string_view vm, uint64_t offset) const {
    const auto disk = Open(DiskOf(vm), true);
    if (!disk) return '?';
    std::string bytes(4096, '!');
    EXPECT_EQ(RunRequest(*disk, storage::DiskRequest::Kind::kRead, offset, bytes.size(), bytes.data()), 0);
    return bytes[77];
  }
  void Clone(std::string_view from, const std::vector<std::string>& names) const {
    const Status status = CloneVm(home_, Vm(from), names, [](const std::string&) {});
    ASSERT_TRUE(status) << status.error().message;
  }
  size_t Layers() const {
    std::error_code error;
    const fs::directory_iterator layers(home_.layers(), error);
    return static_cast<size_t>(std::distance(layers, fs::directory_iterator()));
  }
  const Home home_;
};

TEST_F(VmClone, EachGoesOnByItself) {
  Write("a", 0, '1');
  Clone("a", {"b", "c"});
  EXPECT_EQ(Layers(), 1u);
  for (const char* vm : {"a", "b", "c"}) EXPECT_EQ(Read(vm, 0), '1') << vm;
  Write("a", 0, 'a');
  Write("b", 0, 'b');
  Write("b", 65536, 'b');
  EXPECT_EQ(Read("a", 0), 'a');
  EXPECT_EQ(Read("b", 0), 'b');
  EXPECT_EQ(Read("c", 0), '1');
  EXPECT_EQ(Read("c", 65536), '\0');
  const auto a = ReadVmToml(Vm("a").toml()), b = ReadVmToml(Vm("b").toml());
  ASSERT_TRUE(a && b);
  EXPECT_NE(a->uuid, b->uuid);
  EXPECT_NE(a->machine.networks[0].mac, b->machine.networks[0].mac);
  EXPECT_EQ(b->machine.kernel, "boot/kernel");
  EXPECT_TRUE(fs::exists(Vm("b").boot() / "kernel"));
}

TEST_F(VmClone, WhatDidNotChangeNeedsNoNewLayer) {
  Clone("a", {"b"});
  Clone("a", {"c"});
  Clone("b", {"d"});
  EXPECT_EQ(Layers(), 1u);
  Write("a", 0, 'x');
  Clone("a", {"e"});
  EXPECT_EQ(Layers(), 2u);
  EXPECT_EQ(Read("e", 0), 'x');
  EXPECT_EQ(Read("c", 0), '\0');
}

TEST_F(VmClone, LayersStayAsLongAsSomethingStandsOnThem) {
  Write("a", 0, '1');
  Clone("a", {"b"});
  Write("b", 4096, '2');
  Clone("b", {"c"});
  EXPECT_EQ(Layers(), 2u);
  ASSERT_TRUE(RemoveVm(home_, Vm("a")));
  ASSERT_TRUE(RemoveVm(home_, Vm("b")));
  EXPECT_EQ(Layers(), 2u);  // c stands on b's, that on a's
  EXPECT_EQ(Read("c", 0), '1');
  EXPECT_EQ(Read("c", 4096), '2');
  ASSERT_TRUE(RemoveVm(home_, Vm("c")));
  EXPECT_EQ(Layers(), 0u);
}

TEST_F(VmClone, WhatStandsOnAFileOfAVmKeepsThatVm) {
  const auto below = LookAtDisk(DiskOf("a"), storage::ImageFormat::kQcow2);
  ASSERT_TRUE(below);
  ASSERT_TRUE(MakeOverlay(home_, home_.vms() / "top.qcow2", *below));
  const Status status = RemoveVm(home_, Vm("a"));
  ASSERT_FALSE(status);
  EXPECT_NE(status.error().message.find("top.qcow2"), std::string::npos) << status.error().message;
  fs::remove(home_.vms() / "top.qcow2");
  EXPECT_TRUE(RemoveVm(home_, Vm("a")));
}

TEST_F(VmClone, AnEndInTheMiddleLosesNothing) {
  Write("a", 0, '1');
  // As a crash leaves it between the second name and the new overlay.
  fs::create_directories(home_.layers() / "crashed/disks");
  fs::create_hard_link(DiskOf("a"), home_.layers() / "crashed/disks/disk.qcow2");
  Write("a", 0, '2');
  EXPECT_EQ(UnusedLayers(home_)->size(), 1u);
  Clone("a", {"b"});
  {
    const auto guard = LayersGuard::Take(home_);
    ASSERT_TRUE(guard);
    EXPECT_EQ(*RemoveUnusedLayers(home_, *guard), 1u);
  }
  EXPECT_EQ(Read("a", 0), '2');
  EXPECT_EQ(Read("b", 0), '2');
}

TEST_F(VmClone, AnImageThatCannotBeReadKeepsAllLayers) {
  Write("a", 0, '1');
  Clone("a", {"b"});
  std::ofstream(Vm("b").disks() / "other.qcow2") << "garbage";
  EXPECT_FALSE(UnusedLayers(home_));
  ASSERT_TRUE(RemoveVm(home_, Vm("a")));
  EXPECT_EQ(Layers(), 1u);
  ASSERT_TRUE(RemoveVm(home_, Vm("b")));  // and the garbage with it
  EXPECT_EQ(Layers(), 0u);
}

TEST_F(VmClone, Refusals) {
  {
    const auto lock = VmLock::Take(Vm("a").lock());
    ASSERT_TRUE(lock);
    const Status running = CloneVm(home_, Vm("a"), {"b"}, {});
    ASSERT_FALSE(running);
    EXPECT_NE(running.error().message.find("nacre stop a"), std::string::npos) << running.error().message;
  }
  EXPECT_FALSE(CloneVm(home_, Vm("a"), {"a"}, {}));
  EXPECT_FALSE(CloneVm(home_, Vm("a"), {"../b"}, {}));
  std::string text = VmTomlText(*ReadVmToml(Vm("a").toml()));
  text += fmt::format("\n[[disk]]\nfile = \"{}\"\nformat = \"raw\"\n", Outside("kernel").string());
  std::ofstream(Vm("a").toml()) << text;
  const Status outside = CloneVm(home_, Vm("a"), {"b"}, {});
  ASSERT_FALSE(outside);
  EXPECT_NE(outside.error().message.find("disk.file"), std::string::npos) << outside.error().message;
  EXPECT_EQ(home_.VmNames(), std::vector<std::string>{"a"});
}

/// Three clones of clones, of which only the last is left: their layers become one.
TEST_F(VmClone, LayersOnWhichOneStandsAreMerged) {
  for (char n = 0; n < 3; ++n) {
    const std::string from(1, static_cast<char>('a' + n)), to(1, static_cast<char>('b' + n));
    Write(from, 65536u * static_cast<unsigned>(n), static_cast<char>('1' + n));
    Write(from, 65536 * 5, static_cast<char>('1' + n));
    Clone(from, {to});
  }
  ASSERT_EQ(Layers(), 3u);
  for (const char* name : {"a", "b"}) ASSERT_TRUE(RemoveVm(home_, Vm(name)));
  TidyLayers(home_);
  EXPECT_EQ(Layers(), 1u);
  for (const char* name : {"c", "d"}) {
    for (char n = 0; n < 3; ++n) EXPECT_EQ(Read(name, 65536u * static_cast<unsigned>(n)), '1' + n) << name;
    EXPECT_EQ(Read(name, 65536 * 5), '3');
    EXPECT_EQ(Read(name, 65536 * 6), 0);
  }
}

TEST_F(VmClone, LayersInUseAreMergedLater) {
  for (const auto& [from, to] : {std::pair("a", "b"), std::pair("b", "c")}) {
    Write(from, 0, from[0]);
    Clone(from, {to});
  }
  {
    const auto disk = Open(DiskOf("c"));
    ASSERT_TRUE(disk);
    ASSERT_TRUE(RemoveVm(home_, Vm("a")));
    TidyLayers(home_);
    EXPECT_EQ(Layers(), 2u);
  }
  TidyLayers(home_);
  EXPECT_EQ(Layers(), 1u);
  EXPECT_EQ(Read("b", 0), 'b');
  EXPECT_EQ(Read("c", 0), 'b');
}

}  // namespace
}  // namespace nacre::lifecycle
