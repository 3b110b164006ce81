// Kernel loaders on small images made here: what a good file becomes in guest memory, and that no bad file does harm.
#include "boot/loader.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <random>

#include "boot/kernel_images_testing.h"

namespace nacre::boot {
namespace {

constexpr uint64_t kRam = 64 * kMiB;

class LoaderTest : public testing::Test {
 protected:
  LoaderTest() : memory_(std::move(memory::GuestMemory::Create(kRam).value())) {
    request_.memory_map = BuildMemoryMap(*memory_, {});
    request_.command_line = "console=ttyS0";
    request_.rsdp = kAcpiAddress;
    request_.random_seed.fill(0x5a);
  }
  ~LoaderTest() override {
    for (const std::string& path : made_) unlink(path.c_str());
  }

  std::string MakeFile(const KernelFile& content) {
    std::string path =
        testing::TempDir() + "nacre-loader-" + std::to_string(getpid()) + "-" + std::to_string(made_.size());
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(content.data()), static_cast<std::streamsize>(content.size()));
    made_.push_back(path);
    return path;
  }
  Result<LoadedKernel> Load(const KernelFile& file) {
    request_.kernel = MakeFile(file);
    auto result = LoadKernel(*memory_, request_);
    if (!result) {
      EXPECT_NE(result.error().message.find(request_.kernel), std::string::npos);
    }
    return result;
  }
  template <typename T>
  T At(uint64_t address) {
    T value{};
    EXPECT_TRUE(memory_->ReadValue(GuestPhys(address), value));
    return value;
  }
  std::string TextAt(uint64_t address) {
    return reinterpret_cast<const char*>(memory_->HostPointer(GuestPhys(address), 1));
  }

  std::unique_ptr<memory::GuestMemory> memory_;
  BootRequest request_;
  std::vector<std::string> made_;
};

TEST_F(LoaderTest, BzImageEntersAt64BitEntryWithZeroPage) {
  request_.initrds = {MakeFile(KernelFile(5000, 0xab)), MakeFile(KernelFile(10, 0xcd))};
  const auto loaded = Load(BzImage(true));
  ASSERT_TRUE(loaded) << loaded.error().message;
  const x86::CpuState& state = loaded->state;
  EXPECT_EQ(state.rip, 16 * kMiB + 0x200);
  EXPECT_TRUE(state.code64());
  EXPECT_TRUE(state.paging());
  EXPECT_EQ(state.rflags & x86::rflags::kIf, 0u);
  EXPECT_EQ(state.segment[x86::kCs].selector, 0x10);
  EXPECT_EQ(state.segment[x86::kDs].selector, 0x18);
  EXPECT_EQ(At<uint64_t>(state.gdtr.base + 0x10), 0x00af9b000000ffffu);
  const uint64_t zero_page = state.gpr[x86::kRsi];
  EXPECT_EQ(At<uint32_t>(zero_page + 0x202), 0x53726448u);
  EXPECT_EQ(At<uint8_t>(zero_page + 0x210), 0xff);
  EXPECT_EQ(At<uint64_t>(zero_page + 0x070), kAcpiAddress.value);
  EXPECT_EQ(TextAt(At<uint32_t>(zero_page + 0x228)), "console=ttyS0");
  EXPECT_EQ(At<uint8_t>(zero_page + 0x1e8), request_.memory_map.size());
  EXPECT_EQ(At<uint64_t>(zero_page + 0x2d0 + 3 * 20), kMiB);
  EXPECT_EQ(At<uint64_t>(zero_page + 0x2d0 + 3 * 20 + 8), kRam - kMiB);
  const uint64_t initrd = At<uint32_t>(zero_page + 0x218);
  EXPECT_EQ(At<uint32_t>(zero_page + 0x21c), 5000u + 12u);
  EXPECT_GE(initrd, 24 * kMiB);
  EXPECT_EQ(At<uint8_t>(initrd), 0xab);
  EXPECT_EQ(At<uint8_t>(initrd + 5000), 0xcd);
  const uint64_t setup_data = At<uint64_t>(zero_page + 0x250);
  EXPECT_EQ(At<uint32_t>(setup_data + 8), 9u);
  EXPECT_EQ(At<uint8_t>(setup_data + 16), 0x5a);
}

TEST_F(LoaderTest, PageTablesMapTheFirst4GiBOneToOne) {
  const auto loaded = Load(BzImage(true));
  ASSERT_TRUE(loaded);
  for (const uint64_t address : {uint64_t{0}, 3 * kMiB, 4 * kGiB - 1}) {
    const uint64_t pdpt = At<uint64_t>(loaded->state.cr3) & ~kPageMask;
    const uint64_t directory = At<uint64_t>(pdpt + 8 * (address >> 30)) & ~kPageMask;
    const uint64_t entry = At<uint64_t>(directory + 8 * ((address >> 21) & 511));
    EXPECT_EQ(entry, AlignDown(address, 2 * kMiB) | 0x83);
  }
}

TEST_F(LoaderTest, KernelWithout64BitEntryStartsInProtectedMode) {
  const auto loaded = Load(BzImage(false));
  ASSERT_TRUE(loaded);
  EXPECT_EQ(loaded->state.rip, 16 * kMiB);
  EXPECT_FALSE(loaded->state.paging());
  EXPECT_FALSE(loaded->state.long_mode_active());
  EXPECT_TRUE(loaded->state.protected_mode());
  EXPECT_EQ(loaded->state.gpr[x86::kRsi], kZeroPageAddress.value);
}

TEST_F(LoaderTest, InitrdStaysBelowTheKernelsLimit) {
  KernelFile file = BzImage(true);
  Put<uint32_t>(file, 0x22c, 30 * kMiB - 1);
  request_.initrds = {MakeFile(KernelFile(4096, 1))};
  ASSERT_TRUE(Load(file));
  EXPECT_EQ(At<uint32_t>(kZeroPageAddress.value + 0x218), 30 * kMiB - 4096);
}

TEST_F(LoaderTest, RefusesWhatDoesNotFit) {
  KernelFile file = BzImage(true);
  Put<uint32_t>(file, 0x260, 0xffffffff);
  EXPECT_FALSE(Load(file));
  file = BzImage(true);
  Put<uint64_t>(file, 0x258, ~uint64_t{0} - 100);
  EXPECT_FALSE(Load(file));
  request_.command_line = std::string(2048, 'x');
  EXPECT_FALSE(Load(BzImage(true)));
  request_.command_line.clear();
  request_.initrds = {MakeFile({})};
  const auto empty = LoadKernel(*memory_, request_);
  ASSERT_FALSE(empty);
  EXPECT_NE(empty.error().message.find("is empty"), std::string::npos);
  request_.initrds = {MakeFile(KernelFile(1, 0))};
  ASSERT_EQ(truncate(request_.initrds[0].c_str(), 60 * kMiB), 0);
  EXPECT_FALSE(Load(BzImage(true)));
  ASSERT_EQ(truncate(request_.initrds[0].c_str(), static_cast<off_t>(100 * kGiB)), 0);
  EXPECT_FALSE(Load(BzImage(true)));
}

TEST_F(LoaderTest, PvhGetsStartInfo) {
  request_.initrds = {MakeFile(KernelFile(100, 7)) + " first module"};
  for (const bool wide : {false, true}) {
    const auto loaded =
        Load(wide ? Elf<Elf64_Ehdr, Elf64_Phdr>(kMiB + 0x20) : Elf<Elf32_Ehdr, Elf32_Phdr>(kMiB + 0x20));
    ASSERT_TRUE(loaded) << loaded.error().message;
    EXPECT_EQ(loaded->protocol, "PVH");
    EXPECT_EQ(loaded->state.rip, kMiB + 0x20);
    EXPECT_FALSE(loaded->state.paging());
    const uint64_t info = loaded->state.gpr[x86::kRbx];
    EXPECT_EQ(At<uint32_t>(info), 0x336ec578u);
    ASSERT_EQ(At<uint32_t>(info + 12), 1u);
    const uint64_t module = At<uint64_t>(info + 16);
    EXPECT_EQ(At<uint8_t>(At<uint64_t>(module) + 99), 7);
    EXPECT_EQ(At<uint64_t>(module + 8), 100u);
    EXPECT_EQ(TextAt(At<uint64_t>(module + 16)), "first module");
    EXPECT_EQ(TextAt(At<uint64_t>(info + 24)), "console=ttyS0");
    EXPECT_EQ(At<uint64_t>(info + 32), kAcpiAddress.value);
    EXPECT_EQ(At<uint32_t>(info + 48), request_.memory_map.size());
    EXPECT_EQ(At<uint8_t>(kMiB + 0xff), 0xf4);
  }
}

TEST_F(LoaderTest, RestOfASegmentIsZeroed) {
  ASSERT_TRUE(memory_->Write(GuestPhys(kMiB), KernelFile(0x3000, 0xee)));
  ASSERT_TRUE(Load(Elf<Elf64_Ehdr, Elf64_Phdr>(kMiB)));
  for (uint64_t at = 0x100; at < 0x2000; ++at) ASSERT_EQ(At<uint8_t>(kMiB + at), 0) << at;
  EXPECT_EQ(At<uint8_t>(kMiB + 0x2000), 0xee);
}

TEST_F(LoaderTest, VmlinuxWithoutNoteStartsAtItsPhysicalEntry) {
  const auto loaded = Load(Elf<Elf64_Ehdr, Elf64_Phdr>(0));
  ASSERT_TRUE(loaded) << loaded.error().message;
  EXPECT_EQ(loaded->protocol, "Linux 64-bit");
  EXPECT_EQ(loaded->state.rip, kMiB + 0x10);
  EXPECT_EQ(loaded->state.gpr[x86::kRsi], kZeroPageAddress.value);
}

TEST_F(LoaderTest, MultibootByAddresses) {
  request_.initrds = {MakeFile(KernelFile(100, 7)) + " one two", MakeFile(KernelFile(5000, 8))};
  const auto loaded = Load(Multiboot(1 << 16));
  ASSERT_TRUE(loaded) << loaded.error().message;
  EXPECT_EQ(loaded->state.gpr[x86::kRax], 0x2badb002u);
  EXPECT_EQ(loaded->state.rip, kMiB + 0x200);
  EXPECT_EQ(At<uint32_t>(kMiB + 0x100), 0x1badb002u);
  EXPECT_EQ(At<uint8_t>(kMiB + 0x800), 0);
  const uint64_t info = loaded->state.gpr[x86::kRbx];
  EXPECT_EQ(At<uint32_t>(info) & 0x4d, 0x4du);
  EXPECT_EQ(At<uint32_t>(info + 8), (kRam - kMiB) / kKiB);
  EXPECT_EQ(TextAt(At<uint32_t>(info + 16)), request_.kernel + " console=ttyS0");
  ASSERT_EQ(At<uint32_t>(info + 20), 2u);
  const uint64_t modules = At<uint32_t>(info + 24);
  EXPECT_EQ(At<uint32_t>(modules + 4) - At<uint32_t>(modules), 100u);
  EXPECT_EQ(TextAt(At<uint32_t>(modules + 8)), request_.initrds[0]);
  EXPECT_EQ(At<uint16_t>(0x40e), 0x9fc0u);
  EXPECT_EQ(At<uint16_t>(0x413), 639u);
  EXPECT_EQ(At<uint32_t>(modules + 20) - At<uint32_t>(modules + 16), 5000u);
  EXPECT_EQ(At<uint8_t>(At<uint32_t>(modules + 16)), 8);
  EXPECT_EQ(At<uint32_t>(info + 44), request_.memory_map.size() * 24);
}

TEST_F(LoaderTest, MultibootElf) {
  KernelFile file = Elf<Elf32_Ehdr, Elf32_Phdr>(0);
  const uint32_t header[] = {0x1badb002, 3, 0u - 0x1badb002 - 3};
  std::memcpy(file.data() + 0x200, header, sizeof(header));
  const auto loaded = Load(file);
  ASSERT_TRUE(loaded) << loaded.error().message;
  EXPECT_EQ(loaded->protocol, "multiboot");
  EXPECT_EQ(loaded->state.rip, kMiB + 0x10);
}

TEST_F(LoaderTest, MultibootRefusesFeaturesItDoesNotKnow) { EXPECT_FALSE(Load(Multiboot((1 << 16) | (1 << 5)))); }

// Hostile files: cut at every place, and with every 32-bit field replaced; they load or they fail, no more.
TEST_F(LoaderTest, CutAndBrokenFilesDoNoHarm) {
  request_.initrds = {MakeFile(KernelFile(100, 7))};
  std::mt19937 random(1);
  for (const KernelFile& good :
       {BzImage(true), Elf<Elf64_Ehdr, Elf64_Phdr>(kMiB), Elf<Elf32_Ehdr, Elf32_Phdr>(0), Multiboot(1 << 16)}) {
    request_.kernel = MakeFile(good);
    for (size_t length = 0; length < good.size(); length += length < 0x480 ? 7 : 201) {
      ASSERT_EQ(truncate(request_.kernel.c_str(), 0), 0);
      std::ofstream(request_.kernel, std::ios::binary)
          .write(reinterpret_cast<const char*>(good.data()), static_cast<std::streamsize>(length));
      (void)LoadKernel(*memory_, request_);
    }
    for (size_t at = 0; at + 4 <= std::min<size_t>(good.size(), 0x400); at += 2) {
      KernelFile bad = good;
      const uint32_t values[] = {0xffffffff, 0x80000000, 0, static_cast<uint32_t>(random())};
      std::memcpy(bad.data() + at, &values[random() % 4], 4);
      if (IsBzImage(bad)) (void)LoadBzImage(*memory_, request_, bad);
      if (IsMultiboot(bad)) (void)LoadMultiboot(*memory_, request_, bad);
      if (const auto elf = ElfImage::Parse(bad)) {
        (void)elf->NoteValue("Xen", 18);
        (void)LoadVmlinux(*memory_, request_, bad, *elf);
      }
    }
  }
}

TEST_F(LoaderTest, RandomFilesAreRefused) {
  std::mt19937 random(2);
  for (int i = 0; i < 20; ++i) {
    KernelFile file(1 + random() % 20000);
    for (uint8_t& byte : file) byte = static_cast<uint8_t>(random());
    EXPECT_FALSE(Load(file));
  }
  EXPECT_FALSE(Load({}));
  request_.kernel = "/nonexistent/vmlinuz";
  EXPECT_FALSE(LoadKernel(*memory_, request_));
  request_.kernel = "/";
  EXPECT_FALSE(LoadKernel(*memory_, request_));
}

}  // namespace
}  // namespace nacre::boot
