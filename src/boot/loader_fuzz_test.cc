// Mutated kernels and initrds: each loads or is refused with a text that names the file, and nothing is written outside
// the guest's memory.
//
// Longer runs: base/fuzz_testing.h; the cases are mutations of each kind of kernel.

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <random>

#include "base/fd.h"
#include "base/fuzz_testing.h"
#include "boot/kernel_images_testing.h"

namespace nacre::boot {
namespace {

/// A file without a name in any folder.
class MemoryFile {
 public:
  MemoryFile() : fd_(memfd_create("loader-fuzz", MFD_CLOEXEC)) {}
  std::string path() const { return "/proc/self/fd/" + std::to_string(fd_.get()); }
  void Set(const KernelFile& content) {
    ASSERT_EQ(ftruncate(fd_.get(), 0), 0);
    ASSERT_EQ(pwrite(fd_.get(), content.data(), content.size(), 0), static_cast<ssize_t>(content.size()));
  }
  void Grow(uint64_t size_bytes) { ASSERT_EQ(ftruncate(fd_.get(), static_cast<off_t>(size_bytes)), 0); }

 private:
  Fd fd_;
};

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : random_(seed) {}

  KernelFile Mutate(const KernelFile& good) {
    KernelFile bad = good;
    for (uint64_t count = 1 + Below(4); count > 0; --count) {
      if (bad.size() < 16) break;
      // Headers more often than the rest.
      const uint64_t at = Below(Below(4) ? std::min<uint64_t>(bad.size() - 8, 0x400) : bad.size() - 8);
      switch (Below(6)) {
        case 0:
          bad[at] ^= static_cast<uint8_t>(1 << Below(8));
          break;
        case 1:
          bad[at] = static_cast<uint8_t>(random_());
          break;
        case 2:
          Set(bad, at, Number(), 2);
          break;
        case 3:
          Set(bad, at & ~3ull, Number(), 4);
          break;
        case 4:
          Set(bad, at & ~7ull, Number(), 8);
          break;
        default:
          bad.resize(Below(bad.size()));
          break;
      }
    }
    return bad;
  }
  uint64_t Below(uint64_t n) { return random_() % n; }

 private:
  uint64_t Number() {
    switch (Below(5)) {
      case 0:
        return random_();
      case 1:
        return 0 - Below(4097);
      case 2:
        return uint64_t{1} << Below(64);
      case 3:
        return (uint64_t{1} << Below(64)) - Below(4097);
      default:
        return Below(0x2000);
    }
  }
  static void Set(KernelFile& file, uint64_t at, uint64_t value, unsigned bytes) {
    std::memcpy(file.data() + at, &value, bytes);
  }

  std::mt19937_64 random_;
};

class LoaderFuzz : public testing::Test {
 protected:
  LoaderFuzz() : memory_(std::move(memory::GuestMemory::Create(16 * kMiB).value())) {
    request_.memory_map = BuildMemoryMap(*memory_, {});
    request_.command_line = "console=ttyS0";
    request_.rsdp = kAcpiAddress;
    initrd_.Set(KernelFile(5000, 0xab));
    request_.kernel = kernel_.path();
    request_.initrds = {initrd_.path(), initrd_.path()};
  }
  bool Load(const KernelFile& file) {
    kernel_.Set(file);
    const auto loaded = LoadKernel(*memory_, request_);
    if (!loaded) {
      EXPECT_NE(loaded.error().message.find("/proc/self/fd/"), std::string::npos) << loaded.error().message;
    }
    return loaded.has_value();
  }
  void Fuzz(const KernelFile& good) {
    ASSERT_TRUE(Load(good));
    Mutator mutator(FuzzSeed(1));
    uint64_t refused = 0;
    for (FuzzRun run(1000); run.Next();) refused += !Load(mutator.Mutate(good));
    EXPECT_GT(refused, 0u);
    for (size_t length = 0; length < good.size(); length += 1 + length / 256)
      (void)Load({good.begin(), good.begin() + static_cast<std::ptrdiff_t>(length)});
  }

  std::unique_ptr<memory::GuestMemory> memory_;
  MemoryFile kernel_, initrd_;
  BootRequest request_;
};

KernelFile SmallBzImage(bool wide) {
  KernelFile file = BzImage(wide);
  Put<uint64_t>(file, 0x258, 2 * kMiB);  // preferred address
  return file;
}

TEST_F(LoaderFuzz, BzImage64) { Fuzz(SmallBzImage(true)); }
TEST_F(LoaderFuzz, BzImage32) { Fuzz(SmallBzImage(false)); }
TEST_F(LoaderFuzz, Pvh64) { Fuzz(Elf<Elf64_Ehdr, Elf64_Phdr>(kMiB)); }
TEST_F(LoaderFuzz, Pvh32) { Fuzz(Elf<Elf32_Ehdr, Elf32_Phdr>(kMiB)); }
TEST_F(LoaderFuzz, Vmlinux) { Fuzz(Elf<Elf64_Ehdr, Elf64_Phdr>(0)); }
TEST_F(LoaderFuzz, Multiboot) { Fuzz(Multiboot(1 << 16)); }
TEST_F(LoaderFuzz, MultibootElf) {
  KernelFile file = Elf<Elf32_Ehdr, Elf32_Phdr>(0);
  const uint32_t header[] = {0x1badb002, 0, 0u - 0x1badb002};
  std::memcpy(file.data() + 0x200, header, sizeof(header));
  Fuzz(file);
}

TEST_F(LoaderFuzz, HugeFilesAreRefusedUnread) {
  for (const uint64_t size_bytes : {600 * kMiB, uint64_t{1} << 40}) {
    kernel_.Set(SmallBzImage(true));
    kernel_.Grow(size_bytes);
    EXPECT_FALSE(LoadKernel(*memory_, request_));
  }
  kernel_.Set(SmallBzImage(true));
  initrd_.Grow(uint64_t{1} << 40);
  const auto loaded = LoadKernel(*memory_, request_);
  ASSERT_FALSE(loaded);
  EXPECT_NE(loaded.error().message.find(initrd_.path()), std::string::npos);
}

TEST_F(LoaderFuzz, FoldersDevicesAndUnreadableFilesAreRefused) {
  for (const char* path : {"/", "/dev/zero", "/dev/null", "/proc/self/mem", "/nonexistent/file"}) {
    request_.kernel = path;
    const auto loaded = LoadKernel(*memory_, request_);
    ASSERT_FALSE(loaded) << path;
    EXPECT_NE(loaded.error().message.find(path), std::string::npos) << loaded.error().message;
  }
}

TEST_F(LoaderFuzz, APipeIsReadToItsEnd) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const Fd read_end(ends[0]);
  {
    const Fd write_end(ends[1]);
    const KernelFile content = SmallBzImage(true);
    ASSERT_EQ(write(write_end.get(), content.data(), content.size()), static_cast<ssize_t>(content.size()));
  }
  request_.kernel = "/proc/self/fd/" + std::to_string(read_end.get());
  EXPECT_TRUE(LoadKernel(*memory_, request_));
}

}  // namespace
}  // namespace nacre::boot
