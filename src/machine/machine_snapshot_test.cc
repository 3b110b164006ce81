// Snapshots of whole machines with guests of a few instructions, on every engine; damaged, foreign and hostile ones.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <filesystem>
#include <fstream>
#include <future>
#include <random>
#include <thread>

#include "base/bits.h"
#include "machine/disk_freeze.h"
#include "machine/machine.h"
#include "machine/snapshot_files.h"
#include "state/archive.h"
#include "storage/image.h"
#include "storage/image_tools.h"

namespace nacre::machine {
namespace {

namespace fs = std::filesystem;
using Code = std::vector<uint8_t>;
using std::chrono::seconds;

/// Counts at 2 MiB, by one and for ever; ends with the count's low byte when bit 0 of the CMOS byte 40h is set.
const Code kCounter{0xff, 0x05, 0x00, 0x00, 0x20, 0x00,  // again: inc dword [0x200000]
                    0xb0, 0x40, 0xe6, 0x70, 0xe4, 0x71,  // mov al, 0x40; out 0x70, al; in al, 0x71
                    0x84, 0xc0, 0x74, 0xf0,              // test al, al; jz again
                    0xb0, 0x2a, 0xe6, 0xf4, 0xeb, 0xfe};

class SnapshotTest : public testing::Test {
 protected:
  SnapshotTest() {
    std::string name = testing::TempDir() + "nacre-snapshot-XXXXXX";
    folder_ = mkdtemp(name.data());
  }
  ~SnapshotTest() override { fs::remove_all(folder_); }

  /// A multiboot kernel: the header with addresses, then `code` at 1 MiB + 0x20.
  MachineConfig Config(const Code& code, EngineKind engine) {
    constexpr uint32_t kBase = 0x100000, kFlags = 1 << 16, kMagic = 0x1badb002;
    const uint32_t header[] = {kMagic, kFlags, 0u - kMagic - kFlags, kBase, kBase, 0, 0, kBase + 0x20};
    MachineConfig config;
    config.kernel = folder_ / "kernel";
    std::ofstream file(config.kernel, std::ios::binary);
    file.write(reinterpret_cast<const char*>(header), sizeof(header));
    file.write(reinterpret_cast<const char*>(code.data()), static_cast<std::streamsize>(code.size()));
    config.memory_bytes = 16 * kMiB;
    config.cpu_model = "x86-64-v1";
    config.engine = engine;
    config.serial.kind = SerialKind::kNone;
    config.networks = {{}};
    config.debug_exit = true;
    config.timeout_ms = 300'000;
    return config;
  }
  std::string Path(std::string_view name) const { return folder_ / name; }
  Result<Machine::SnapshotReport> Take(Machine& machine, const std::string& path) {
    std::promise<Result<Machine::SnapshotReport>> promise;
    machine.RequestSnapshot(path,
                            [&](Result<Machine::SnapshotReport> report) { promise.set_value(std::move(report)); });
    auto future = promise.get_future();
    if (future.wait_for(seconds(120)) != std::future_status::ready) return Fail("no answer");
    return future.get();
  }
  /// Runs it and lets `meanwhile` work beside; then it is stopped.
  template <typename Work>
  void RunBeside(Machine& machine, const Work& meanwhile) {
    std::thread other([&] {
      meanwhile();
      machine.Stop();
    });
    machine.Run();
    other.join();
  }
  /// A snapshot, without a parent, of a guest that counts already.
  void Make(std::string_view name, EngineKind engine = EngineKind::kInterp) {
    auto machine = Machine::Create(Config(kCounter, engine));
    ASSERT_TRUE(machine) << machine.error().message;
    RunBeside(**machine, [&] {
      const auto start = std::chrono::steady_clock::now();
      uint32_t count = 0;
      for (int i = 0; count == 0 && std::chrono::steady_clock::now() - start < seconds(120); ++i) {
        const fs::path alone = Path(fmt::format("{}.{}", name, i));
        fs::create_directory(alone);
        const auto report = Take(**machine, alone / "s");
        ASSERT_TRUE(report) << report.error().message;
        count = Count(alone / "s");
        fs::remove_all(Path(name));
        fs::rename(alone / "s", Path(name));
      }
      EXPECT_NE(count, 0u);
    });
  }
  /// The guest's count in a snapshot's memory.
  static uint32_t Count(const std::string& path) {
    const auto image = OpenMemory(path);
    EXPECT_TRUE(image) << image.error().message;
    size_t hint = 0;
    const uint8_t* const page = image ? (*image)->Page(0x200000 / kPageSize, hint) : nullptr;
    return page ? LoadLe<uint32_t>(page) : 0;
  }
  /// It goes up twice from `count`, as snapshots tell; each is the next one's parent.
  void ExpectCounting(Machine& machine, uint32_t count, const std::string& name) {
    const auto start = std::chrono::steady_clock::now();
    unsigned risen = 0;
    for (int i = 0; risen < 2 && std::chrono::steady_clock::now() - start < seconds(120); ++i) {
      const std::string path = Path(fmt::format("{}-{}", name, i));
      const auto report = Take(machine, path);
      ASSERT_TRUE(report) << report.error().message;
      EXPECT_FALSE(report->parent.empty());
      const uint32_t now = Count(path);
      ASSERT_GE(now, count);
      if (now > count) ++risen;
      count = now;
    }
    EXPECT_EQ(risen, 2u);
  }
  Result<MachineConfig> SavedConfig(const std::string& path, EngineKind engine = EngineKind::kInterp) {
    const state::StateFile file = NACRE_TRY(ReadStateFile(path));
    MachineConfig config = NACRE_TRY(ReadConfig(file));
    config.restore = path;
    config.engine = engine;
    config.timeout_ms = 300'000;
    return config;
  }
  Result<std::unique_ptr<Machine>> Restore(const std::string& path, EngineKind engine = EngineKind::kInterp) {
    return Machine::Create(NACRE_TRY(SavedConfig(path, engine)));
  }
  std::string RestoreError(const std::string& path) {
    const auto machine = Restore(path);
    return machine ? "" : machine.error().message;
  }
  /// The same snapshot with a change in its sections, and good checksums.
  template <typename Change>
  std::string Changed(std::string_view from, std::string_view to, const Change& change) {
    fs::create_directory(Path(to));
    fs::copy(Path(from) + "/memory.bin", Path(to) + "/memory.bin");
    const auto file = ReadStateFile(Path(from));
    state::StateFile next;
    for (state::StateFile::Section section : file->sections())
      if (change(section)) next.Add(section.name, section.content);
    EXPECT_TRUE(WriteFileDurably(Path(to) + "/state.bin", next.Encode()));
    return Path(to);
  }
  static void Spoil(const std::string& path, off_t offset, char value) {
    const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
    char old = 0;
    ASSERT_EQ(pread(fd, &old, 1, offset), 1);
    old = static_cast<char>(old ^ value);
    ASSERT_EQ(pwrite(fd, &old, 1, offset), 1);
    close(fd);
  }

  fs::path folder_;
};

/// From each engine to each other. KVM as it is on this host, where it is.
TEST_F(SnapshotTest, GoesOnOnEveryEngine) {
  std::vector engines{EngineKind::kInterp, EngineKind::kJit};
  if (access("/dev/kvm", R_OK | W_OK) == 0)
    engines.push_back(EngineKind::kKvm);
  else
    printf("no /dev/kvm here: without kvm\n");
  for (const EngineKind from : engines) {
    const std::string name = fmt::format("from-{}", NameOf(from));
    Make(name, from);
    for (const EngineKind to : engines) {
      SCOPED_TRACE(fmt::format("{} to {}", NameOf(from), NameOf(to)));
      auto machine = Restore(Path(name), to);
      ASSERT_TRUE(machine) << machine.error().message;
      RunBeside(**machine,
                [&] { ExpectCounting(**machine, Count(Path(name)), fmt::format("{}-{}", name, NameOf(to))); });
    }
  }
}

TEST_F(SnapshotTest, APausedMachineStaysPausedMeanwhile) {
  auto machine = Machine::Create(Config(kCounter, EngineKind::kJit));
  ASSERT_TRUE(machine);
  RunBeside(**machine, [&] {
    std::promise<void> paused;
    (*machine)->RequestPause([&](const Status&) { paused.set_value(); });
    paused.get_future().wait();
    const auto uptime = (*machine)->uptime();
    for (const char* name : {"one", "two"}) {
      const auto report = Take(**machine, Path(name));
      ASSERT_TRUE(report) << report.error().message;
      EXPECT_EQ(report->pause.count(), 0);
    }
    EXPECT_EQ((*machine)->uptime(), uptime);
    EXPECT_EQ((*machine)->state(), RunState::kPaused);
  });
  // Time goes on from where it stood, and nothing but time was between the two.
  const auto one = ReadStateFile(Path("one")), two = ReadStateFile(Path("two"));
  ASSERT_TRUE(one && two);
  for (const state::StateFile::Section& section : one->sections()) {
    if (section.name == "identity" || section.name == "memory") continue;
    EXPECT_EQ(section.content, two->Find(section.name)->content) << section.name;
  }
  EXPECT_EQ(ReadImageMap(*two)->PagesHere(), 0u);
}

/// What was loaded is what is saved again: nothing of a machine's state is left out on either way.
TEST_F(SnapshotTest, LoadedAndSavedAgainIsTheSame) {
  Make("first");
  auto machine = Restore(Path("first"));
  ASSERT_TRUE(machine) << machine.error().message;
  // Before it runs.
  (*machine)->RequestPause();
  RunBeside(**machine, [&] { ASSERT_TRUE(Take(**machine, Path("second"))); });
  const auto first = ReadStateFile(Path("first")), second = ReadStateFile(Path("second"));
  ASSERT_TRUE(first && second);
  for (const char* name : {"config", "cpu-model", "device:pci-host", "device:i8042", "device:isa-bridge"}) {
    ASSERT_NE(first->Find(name), nullptr) << name;
    EXPECT_EQ(first->Find(name)->content, second->Find(name)->content) << name;
  }
  // The guest is another one now, and an event tells it.
  for (const char* name : {"device:generation-id", "device:acpi-pm"}) {
    ASSERT_NE(first->Find(name), nullptr) << name;
    EXPECT_NE(first->Find(name)->content, second->Find(name)->content) << name;
  }
}

TEST_F(SnapshotTest, FreezesDisks) {
  MachineConfig config = Config(kCounter, EngineKind::kInterp);
  fs::create_directories(Path("home/vms/a/disks"));
  const std::string beside = Path("beside.qcow2"), own = Path("home/vms/a/disks/own.qcow2");
  for (const std::string& path : {beside, own}) ASSERT_TRUE(storage::CreateQcow2(path, {.size_bytes = 1 << 20}));
  config.disks = {{.path = beside}, {.path = own}};
  config.disk_layers = Path("home/layers");
  {
    auto machine = Machine::Create(config);
    ASSERT_TRUE(machine) << machine.error().message;
    RunBeside(**machine, [&] {
      for (const char* name : {"one", "two"}) {
        const auto taken = Take(**machine, Path(name));
        EXPECT_TRUE(taken) << taken.error().message;
      }
      EXPECT_EQ(storage::DescribeImage({.path = own})->size(), 3u);
      EXPECT_EQ(storage::DescribeImage({.path = beside})->size(), 3u);
      EXPECT_EQ(storage::DescribeImage({.path = Path("one/disk0.qcow2")})->size(), 2u);
      EXPECT_EQ(storage::DescribeImage({.path = Path("two/disk1.qcow2")})->size(), 3u);
    });
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(Path("home/layers")), fs::directory_iterator()), 2);
  // What is written then is thrown away: it is restored as often as anybody likes, also beside itself.
  const auto saved = ReadConfigToRun(Path("one"));
  ASSERT_TRUE(saved) << saved.error().message;
  EXPECT_TRUE(saved->disks[0].snapshot && saved->disks[1].snapshot);
  const auto first = Machine::Create(*saved), second = Machine::Create(*saved);
  EXPECT_TRUE(first) << first.error().message;
  EXPECT_TRUE(second) << second.error().message;
}

TEST_F(SnapshotTest, AFreezeThatIsNotCarriedOutLeavesNothing) {
  fs::create_directories(Path("home/vms/a/disks"));
  const std::string path = Path("home/vms/a/disks/own.qcow2");
  ASSERT_TRUE(storage::CreateQcow2(path, {.size_bytes = 1 << 20}));
  auto io = storage::AsyncIo::Create();
  ASSERT_TRUE(io);
  const auto image = storage::OpenImage({.path = path}, std::move(*io));
  ASSERT_TRUE(image);
  const auto inode = [&] {
    struct stat info {};
    EXPECT_EQ(stat(path.c_str(), &info), 0);
    return info.st_ino;
  };
  const auto before = inode();
  {
    const auto freeze = DiskFreeze::Prepare(**image, Path("home/layers"), "x");
    ASSERT_TRUE(freeze) << freeze.error().message;
    EXPECT_NE(inode(), before);
  }
  EXPECT_EQ(inode(), before);
  EXPECT_TRUE(fs::is_empty(Path("home/layers")));
  EXPECT_EQ(std::distance(fs::directory_iterator(Path("home/vms/a/disks")), fs::directory_iterator()), 1);
  auto freeze = DiskFreeze::Prepare(**image, Path("home/layers"), "y");
  ASSERT_TRUE(freeze) << freeze.error().message;
  EXPECT_TRUE(freeze->Switch());
  EXPECT_TRUE(fs::exists(Path("home/layers/y/disks/disk.qcow2")));
}

TEST_F(SnapshotTest, RefusesWhatItCannotTake) {
  MachineConfig config = Config(kCounter, EngineKind::kInterp);
  std::ofstream(Path("disk.img")) << std::string(1 << 20, 'x');
  config.disks = {{.path = Path("disk.img"), .format = storage::ImageFormat::kRaw}};
  auto machine = Machine::Create(config);
  ASSERT_TRUE(machine) << machine.error().message;
  fs::create_directory(Path("there"));
  RunBeside(**machine, [&] {
    EXPECT_NE(Take(**machine, Path("s")).error().message.find("disk.img' is raw"), std::string::npos);
    EXPECT_NE(Take(**machine, "relative").error().message.find("absolute"), std::string::npos);
  });
  config.disks[0].read_only = true;
  machine->reset();  // the image is locked
  machine = Machine::Create(config);
  ASSERT_TRUE(machine);
  RunBeside(**machine, [&] {
    EXPECT_NE(Take(**machine, Path("there")).error().message.find("already"), std::string::npos);
    EXPECT_NE(Take(**machine, Path("no/such/folder")).error().message.find("No such file"), std::string::npos);
    EXPECT_TRUE(Take(**machine, Path("s")));
  });
  // Nothing half-made is left.
  for (const auto& entry : fs::directory_iterator(folder_))
    EXPECT_FALSE(entry.path().filename().string().starts_with(kUnfinishedPrefix)) << entry.path();
}

TEST_F(SnapshotTest, EveryDamagedSectionIsNamed) {
  Make("good");
  const auto file = ReadStateFile(Path("good"));
  ASSERT_TRUE(file);
  const std::string path = Path("good") + "/state.bin";
  const std::vector<uint8_t> bytes = file->Encode();
  size_t at = 24;
  for (const state::StateFile::Section& section : file->sections()) {
    at += 16 + section.name.size() + 4;
    if (!section.content.empty()) {
      Spoil(path, static_cast<off_t>(at + section.content.size() / 2), 0x40);
      EXPECT_EQ(RestoreError(Path("good")), fmt::format("{}: section '{}' is damaged", path, section.name));
      Spoil(path, static_cast<off_t>(at + section.content.size() / 2), 0x40);
    }
    at += section.content.size() + 4;
  }
  EXPECT_EQ(at, bytes.size());
  EXPECT_EQ(RestoreError(Path("good")), "");
  fs::resize_file(path, bytes.size() / 3);
  EXPECT_NE(RestoreError(Path("good")).find("the file ends inside section"), std::string::npos);
}

TEST_F(SnapshotTest, DamagedMemoryIsNotTaken) {
  Make("good");
  // The guest would run on it until the check gets there.
  Spoil(Path("good") + "/memory.bin", 0x200000, 0x55);
  auto machine = Restore(Path("good"));
  ASSERT_TRUE(machine);
  const RunResult result = (*machine)->Run();
  EXPECT_EQ(result.reason, EndReason::kEngineError);
  EXPECT_NE(result.detail.find("memory.bin: damaged between bytes 2097152 and 3145728"), std::string::npos)
      << result.detail;
  fs::resize_file(Path("good") + "/memory.bin", 4096);
  EXPECT_NE(RestoreError(Path("good")).find("there should be 16777216"), std::string::npos);
  fs::remove(Path("good") + "/memory.bin");
  EXPECT_NE(RestoreError(Path("good")).find("memory.bin: No such file"), std::string::npos);
}

TEST_F(SnapshotTest, MissingForeignAndReplacedParts) {
  Make("good");
  const auto without = [&](std::string_view gone) {
    return Changed("good", fmt::format("without-{}", gone),
                   [&](const state::StateFile::Section& section) { return section.name != gone; });
  };
  for (const char* name : {"device:serial0", "cpu0"})
    EXPECT_NE(RestoreError(without(name)).find(fmt::format("what was not there when the snapshot was taken: {}", name)),
              std::string::npos);
  for (const char* name : {"identity", "memory", "config", "clocks"})
    EXPECT_NE(RestoreError(without(name)).find(fmt::format("section '{}' is missing", name)), std::string::npos);
  const std::string foreign = Changed("good", "foreign", [](state::StateFile::Section& section) {
    if (section.name == "device:hpet") section.name = "device:floppy-drive-of-another";
    return true;
  });
  EXPECT_NE(RestoreError(foreign).find("device:hpet"), std::string::npos);
}

TEST_F(SnapshotTest, AParentThatIsGoneOrAnotherIsRefused) {
  auto machine = Machine::Create(Config(kCounter, EngineKind::kJit));
  ASSERT_TRUE(machine);
  RunBeside(**machine, [&] {
    for (const char* name : {"a", "b", "c"}) ASSERT_TRUE(Take(**machine, Path(name)));
  });
  EXPECT_EQ(RestoreError(Path("c")), "");
  fs::rename(Path("b"), Path("elsewhere"));
  EXPECT_NE(RestoreError(Path("c")).find("b/state.bin: No such file"), std::string::npos);
  fs::copy(Path("a"), Path("b"));
  EXPECT_NE(RestoreError(Path("c")).find("not the snapshot that the ones above were made on"), std::string::npos);
}

/// Any content, with good checksums: a device, a CPU, the configuration or the map of the memory is refused or taken.
TEST_F(SnapshotTest, HostileContentNeverCrashes) {
  Make("good");
  const auto good = ReadStateFile(Path("good"));
  ASSERT_TRUE(good);
  const char* const cases = getenv("NACRE_FUZZ_CASES");
  std::mt19937_64 random(5);
  fs::create_directory(Path("bad"));
  fs::copy(Path("good") + "/memory.bin", Path("bad") + "/memory.bin");
  for (int i = cases ? atoi(cases) : 300; i > 0; --i) {
    state::StateFile bad;
    const size_t chosen = random() % good->sections().size();
    for (size_t n = 0; n < good->sections().size(); ++n) {
      state::StateFile::Section section = good->sections()[n];
      if (n == chosen || random() % 8 == 0)
        for (unsigned change = 1 + random() % 6; change > 0 && !section.content.empty(); --change)
          section.content[random() % section.content.size()] =
              random() % 2 ? static_cast<uint8_t>(random()) : static_cast<uint8_t>(random() % 3 - 1);
      bad.Add(section.name, section.content);
    }
    ASSERT_TRUE(WriteFileDurably(Path("bad") + "/state.bin", bad.Encode()));
    auto config = SavedConfig(Path("bad"));
    if (!config || config->memory_bytes > kGiB || config->cpu_count > 4) continue;
    // What the host would be asked for.
    config->serial = config->console = {.kind = SerialKind::kNone};
    config->disks.clear();
    config->networks.clear();
    config->firmware_variables.clear();
    (void)Machine::Create(*config);
  }
}

/// tests/states has states of older versions of the program, which load as long as there are snapshots of them.
TEST_F(SnapshotTest, OldStatesStillLoad) {
  unsigned count = 0;
  for (const auto& entry : fs::directory_iterator("tests/states")) {
    if (entry.path().extension() != ".gz") continue;
    SCOPED_TRACE(entry.path());
    ++count;
    std::vector<uint8_t> bytes(kMiB);
    const gzFile zipped = gzopen(entry.path().c_str(), "rb");
    const int size = gzread(zipped, bytes.data(), static_cast<unsigned>(bytes.size()));
    gzclose(zipped);
    ASSERT_GT(size, 0);
    bytes.resize(static_cast<size_t>(size));
    const std::string path = Path(fmt::format("old{}", count));
    fs::create_directory(path);
    ASSERT_TRUE(WriteFileDurably(path + "/state.bin", bytes));
    const auto file = ReadStateFile(path);
    ASSERT_TRUE(file) << file.error().message;
    const auto map = ReadImageMap(*file);
    ASSERT_TRUE(map) << map.error().message;
    std::ofstream(path + "/memory.bin").close();
    fs::resize_file(path + "/memory.bin", map->pages * kPageSize);
    const auto machine = Restore(path);
    EXPECT_TRUE(machine) << machine.error().message;
  }
  EXPECT_GE(count, 2u);
}

}  // namespace
}  // namespace nacre::machine
