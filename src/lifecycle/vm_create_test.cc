#include "lifecycle/vm_create.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "lifecycle/vm_files.h"
#include "lifecycle/vm_lock.h"
#include "lifecycle/vm_log.h"
#include "lifecycle/vm_status.h"
#include "lifecycle/vm_toml.h"
#include "storage/image.h"

namespace nacre::lifecycle {
namespace {

namespace fs = std::filesystem;

class VmCreate : public testing::Test {
 protected:
  VmCreate() : home_(Scratch()) {
    Write("kernel", "a kernel");
    Write("initrd", "an initrd");
    Write("disk", std::string(8192, 'd'));
  }
  ~VmCreate() override {
    std::error_code error;
    fs::remove_all(home_.folder().parent_path(), error);
  }
  static Home Scratch() {
    std::string name = testing::TempDir() + "nacre-create-XXXXXX";
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    return Home(fs::path(name) / "home");
  }
  fs::path File(std::string_view name) const { return home_.folder().parent_path() / name; }
  void Write(std::string_view name, std::string_view content) const {
    std::ofstream(File(name), std::ios::binary) << content;
  }
  static std::string Content(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  NewVm Vm() const {
    NewVm vm;
    vm.name = "web";
    vm.config.machine.kernel = File("kernel");
    return vm;
  }
  std::vector<std::string> Entries() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(home_.vms())) names.push_back(entry.path().filename());
    return names;
  }
  const Home home_;
};

TEST_F(VmCreate, HasCopiesOfWhatItNeeds) {
  NewVm vm = Vm();
  vm.config.machine.initrds = {File("initrd"), File("initrd")};
  vm.config.machine.disks.emplace_back().path = File("disk");
  vm.config.machine.networks.resize(2);
  ASSERT_TRUE(CreateVm(home_, vm));
  const auto paths = home_.FindVm("web");
  ASSERT_TRUE(paths);
  const auto config = ReadVmToml(paths->toml());
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->machine.kernel, "boot/kernel");
  EXPECT_EQ(config->machine.initrds, (std::vector<std::string>{"boot/initrd", "boot/2-initrd"}));
  EXPECT_EQ(Content(paths->folder / config->machine.initrds[1]), "an initrd");
  EXPECT_TRUE(config->machine.networks[0].mac);
  EXPECT_NE(config->machine.networks[0].mac, config->machine.networks[1].mac);
  const fs::path disk = paths->folder / config->machine.disks[0].path;
  EXPECT_TRUE(fs::exists(disk)) << disk;
  EXPECT_EQ(Content(File("disk")), std::string(8192, 'd'));
}

TEST_F(VmCreate, FailsWholeOrNotAtAll) {
  NewVm vm = Vm();
  vm.config.machine.disks.emplace_back().path = File("missing");
  const Status status = CreateVm(home_, vm);
  ASSERT_FALSE(status);
  EXPECT_NE(status.error().message.find("missing"), std::string::npos) << status.error().message;
  EXPECT_TRUE(Entries().empty());
  ASSERT_TRUE(CreateVm(home_, Vm()));
  EXPECT_FALSE(CreateVm(home_, Vm()));
  EXPECT_EQ(Entries(), std::vector<std::string>{"web"});
}

TEST_F(VmCreate, VariablesOfUefiAreItsOwn) {
  NewVm vm = Vm();
  vm.config.machine.kernel.clear();
  vm.config.machine.firmware = "uefi";
  ASSERT_TRUE(CreateVm(home_, vm));
  const auto config = ReadVmToml(home_.vms() / "web/vm.toml");
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->machine.firmware_variables, "firmware-vars");
}

TEST_F(VmCreate, ARunningOneIsNotRemoved) {
  ASSERT_TRUE(CreateVm(home_, Vm()));
  const VmPaths paths{home_.vms() / "web"};
  {
    const auto lock = VmLock::Take(paths.lock());
    ASSERT_TRUE(lock);
    EXPECT_FALSE(RemoveVm(home_, paths));
  }
  EXPECT_TRUE(RemoveVm(home_, paths));
  EXPECT_TRUE(Entries().empty());
}

TEST_F(VmCreate, LeftoversOfTheDeadAreRemovedAndThoseOfTheLivingStay) {
  const VmPaths dead{home_.vms() / ".new-a-1"}, living{home_.vms() / ".new-b-2"};
  ASSERT_TRUE(MakeFolders(dead.disks()));
  ASSERT_TRUE(MakeFolders(living.disks()));
  const auto lock = VmLock::Take(living.lock());
  ASSERT_TRUE(lock);
  EXPECT_EQ(Leftovers(home_), std::vector<fs::path>{dead.folder});
  RemoveLeftovers(home_);
  EXPECT_EQ(Entries(), std::vector<std::string>{".new-b-2"});
}

TEST_F(VmCreate, AnEndIsKept) {
  ASSERT_TRUE(CreateVm(home_, Vm()));
  const VmPaths vm{home_.vms() / "web"};
  EXPECT_FALSE(ReadEnd(vm));
  ASSERT_TRUE(WriteEnd(vm, {"crashed", "line \"one\"\nline two\n", 3, TimeText()}));
  const auto end = ReadEnd(vm);
  ASSERT_TRUE(end);
  EXPECT_EQ(end->reason, "crashed");
  EXPECT_EQ(end->detail, "line \"one\"\nline two\n");
  EXPECT_EQ(end->status, 3);
  EXPECT_EQ(end->time.size(), 20u);
  ForgetEnd(vm);
  EXPECT_FALSE(ReadEnd(vm));
}

TEST_F(VmCreate, ALogIsBounded) {
  auto log = BoundedLog::Open(File("log"), 100);
  ASSERT_TRUE(log);
  for (int i = 0; i < 25; ++i) log->Write(fmt::format("{:09}\n", i));
  EXPECT_EQ(Content(File("log")).size(), 50u);
  EXPECT_EQ(Content(File("log.1")).size(), 100u);
  EXPECT_TRUE(Content(File("log.1")).starts_with("000000010\n"));
  // Opened again it goes on, and what others wrote to it counts.
  log = BoundedLog::Open(File("log"), 100);
  ASSERT_TRUE(log);
  log->Write("x\n");
  EXPECT_EQ(Content(File("log")).size(), 52u);
  EXPECT_FALSE(log->TurnIfFull());
  ASSERT_EQ(write(log->fd(), std::string(100, 'y').data(), 100), 100);
  EXPECT_TRUE(log->TurnIfFull());
  EXPECT_EQ(Content(File("log")).size(), 0u);
  EXPECT_EQ(Content(File("log.1")).size(), 152u);
}

}  // namespace
}  // namespace nacre::lifecycle
