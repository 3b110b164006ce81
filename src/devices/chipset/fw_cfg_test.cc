// QEMU's fw_cfg specification (docs/specs/fw_cfg): ports, DMA, directory; and what a hostile guest may ask for.

#include "devices/chipset/fw_cfg.h"

#include <gtest/gtest.h>

#include <numeric>
#include <string>

#include "base/bits.h"

namespace nacre::devices {
namespace {

constexpr uint32_t kError = 1, kRead = 2, kSkip = 4, kSelect = 8, kWrite = 16;
constexpr uint64_t kAccess = 0x1000, kBuffer = 0x2000;

class FwCfgTest : public testing::Test {
 protected:
  std::string ReadPorts(uint16_t key, size_t count) {
    fw_cfg_.io().Write(0, 2, key);
    std::string out;
    for (size_t i = 0; i < count; ++i) out.push_back(static_cast<char>(fw_cfg_.io().Read(1, 1)));
    return out;
  }
  /// The control word afterwards.
  uint32_t Dma(uint32_t control, uint32_t length, uint64_t address, uint64_t at = kAccess) {
    const uint32_t words[4] = {__builtin_bswap32(control), __builtin_bswap32(length),
                               __builtin_bswap32(static_cast<uint32_t>(address >> 32)),
                               __builtin_bswap32(static_cast<uint32_t>(address))};
    memory_->WriteValue(GuestPhys(at), words);
    fw_cfg_.dma_io().Write(0, 4, __builtin_bswap32(static_cast<uint32_t>(at >> 32)));
    fw_cfg_.dma_io().Write(4, 4, __builtin_bswap32(static_cast<uint32_t>(at)));
    uint32_t result = 0;
    memory_->ReadValue(GuestPhys(at), result);
    return __builtin_bswap32(result);
  }
  std::string Buffer(size_t count) {
    std::string text(count, 0);
    memory_->Read(GuestPhys(kBuffer), {reinterpret_cast<uint8_t*>(text.data()), count});
    return text;
  }
  uint16_t KeyOf(std::string_view name) {
    const std::string directory = ReadPorts(FwCfg::kFileDirectory, 4 + 64 * FwCfg::kMaxFiles);
    for (size_t at = 4; at + 64 <= directory.size(); at += 64)
      if (directory.substr(at + 8).c_str() == std::string(name))
        return static_cast<uint16_t>(static_cast<uint8_t>(directory[at + 4]) << 8 |
                                     static_cast<uint8_t>(directory[at + 5]));
    return 0;
  }

  std::unique_ptr<memory::GuestMemory> memory_ = std::move(*memory::GuestMemory::Create(kMiB));
  FwCfg fw_cfg_{*memory_};
};

TEST_F(FwCfgTest, SignatureAndInterfacesArePublished) {
  EXPECT_EQ(ReadPorts(FwCfg::kSignature, 5), std::string("QEMU\0", 5));
  EXPECT_EQ(ReadPorts(FwCfg::kId, 4), std::string("\3\0\0\0", 4));
  EXPECT_EQ(fw_cfg_.dma_io().Read(0, 4), 0x554d4551u);  // "QEMU" in memory order
  EXPECT_EQ(fw_cfg_.dma_io().Read(4, 4), 0x47464320u);  // " CFG"
}

TEST_F(FwCfgTest, DirectoryNamesFilesInOrder) {
  fw_cfg_.AddFile("opt/b", {1, 2, 3});
  fw_cfg_.AddFile("etc/a", {4});
  const std::string directory = ReadPorts(FwCfg::kFileDirectory, 4 + 2 * 64);
  EXPECT_EQ(directory.substr(0, 4), std::string("\0\0\0\2", 4));
  EXPECT_EQ(directory.substr(4, 4), std::string("\0\0\0\1", 4));
  EXPECT_STREQ(directory.c_str() + 12, "etc/a");
  EXPECT_STREQ(directory.c_str() + 64 + 12, "opt/b");
  EXPECT_EQ(ReadPorts(KeyOf("opt/b"), 4), std::string("\1\2\3\0", 4));
  EXPECT_EQ(ReadPorts(KeyOf("etc/a"), 1), "\4");
}

TEST_F(FwCfgTest, UnknownKeysReadAsZero) { EXPECT_EQ(ReadPorts(0x7777, 3), std::string(3, 0)); }

TEST_F(FwCfgTest, DmaSelectsReadsAndSkips) {
  fw_cfg_.AddFile("f", {'a', 'b', 'c', 'd', 'e'});
  const uint32_t key = uint32_t{KeyOf("f")} << 16;
  EXPECT_EQ(Dma(key | kSelect | kRead, 2, kBuffer), 0u);
  EXPECT_EQ(Buffer(2), "ab");
  EXPECT_EQ(Dma(kSkip, 1, 0), 0u);
  EXPECT_EQ(Dma(kRead, 2, kBuffer), 0u);
  EXPECT_EQ(Buffer(2), "de");
  // Beyond the end: zeros.
  EXPECT_EQ(Dma(key | kSelect | kRead, 8, kBuffer), 0u);
  EXPECT_EQ(Buffer(8), std::string("abcde\0\0\0", 8));
}

TEST_F(FwCfgTest, SomeFilesAreWrittenWithinTheirSize) {
  FwCfg::Bytes seen;
  fw_cfg_.AddWritableFile("w", 8, [&](const FwCfg::Bytes& bytes) { seen = bytes; });
  const uint16_t key = KeyOf("w");
  const uint32_t select = uint32_t{key} << 16 | kSelect;
  EXPECT_EQ(ReadPorts(key, 8), std::string(8, 0));
  memory_->WriteValue(GuestPhys(kBuffer), uint64_t{0x1122334455667788});
  EXPECT_EQ(Dma(select | kWrite, 8, kBuffer), 0u);
  EXPECT_EQ(LoadLe<uint64_t>(seen.data()), 0x1122334455667788u);
  EXPECT_EQ(Dma(select | kSkip, 4, 0), 0u);
  EXPECT_EQ(Dma(kWrite, 4, kBuffer), 0u);
  EXPECT_EQ(LoadLe<uint64_t>(seen.data()), 0x5566778855667788u);
  seen.clear();
  EXPECT_EQ(Dma(kWrite, 1, kBuffer), kError) << "it is full";
  EXPECT_EQ(Dma(select | kWrite, 9, kBuffer), kError);
  EXPECT_EQ(Dma(select | kWrite, ~uint32_t{0}, kBuffer), kError);
  EXPECT_EQ(Dma(select | kWrite, 8, kMiB - 4), kError);
  EXPECT_EQ(Dma(0x7777 << 16 | kSelect | kWrite, 1, kBuffer), kError);
  EXPECT_TRUE(seen.empty());

  auto saving = state::Archive::ForSaving();
  fw_cfg_.Serialize(saving);
  const auto state = saving.Finish();
  const std::string written = ReadPorts(key, 8);
  fw_cfg_.Reset();
  EXPECT_EQ(ReadPorts(key, 8), std::string(8, 0));
  auto loading = state::Archive::ForLoading(state);
  fw_cfg_.Serialize(loading);
  ASSERT_TRUE(loading.ok());
  EXPECT_EQ(ReadPorts(key, 8), written);
  EXPECT_TRUE(seen.empty()) << "who is told keeps it itself";
}

TEST_F(FwCfgTest, OtherFilesCannotBeWritten) {
  fw_cfg_.AddFile("f", {'a'});
  EXPECT_EQ(Dma(uint32_t{KeyOf("f")} << 16 | kSelect | kWrite, 1, kBuffer), kError);
  EXPECT_EQ(ReadPorts(KeyOf("f"), 1), "a");
}

TEST_F(FwCfgTest, DmaOutsideMemoryFails) {
  fw_cfg_.AddFile("f", FwCfg::Bytes(8192, 'x'));
  const uint32_t key = uint32_t{KeyOf("f")} << 16;
  EXPECT_EQ(Dma(key | kSelect | kRead, 8192, kMiB - 4096), kError);
  EXPECT_EQ(Dma(key | kSelect | kRead, 16, ~uint64_t{0} - 7), kError);
  EXPECT_EQ(Dma(key | kSelect | kRead, ~uint32_t{0}, 0), kError);
  EXPECT_EQ(Dma(kRead | kSelect | 0x7777 << 16, ~uint32_t{0}, 0), kError);
  Dma(key | kSelect | kRead, 4, kBuffer, ~uint64_t{0} - 3);  // the access itself lies nowhere
  Dma(key | kSelect | kRead, 4, kBuffer, kMiB - 8);
}

TEST_F(FwCfgTest, DmaMayOverwriteItsOwnAccess) {
  fw_cfg_.AddFile("f", FwCfg::Bytes(64, 0xff));
  EXPECT_EQ(Dma(uint32_t{KeyOf("f")} << 16 | kSelect | kRead, 64, kAccess), 0u);
}

TEST_F(FwCfgTest, FilesAreMadeWhenTheyAreSelected) {
  uint8_t made = 0;
  fw_cfg_.AddFile("f", {0, 0, 0}, [&] { return FwCfg::Bytes{++made, 7}; });
  const uint16_t key = KeyOf("f");
  EXPECT_EQ(ReadPorts(key, 3), std::string("\1\7\0", 3));
  EXPECT_EQ(ReadPorts(key, 1), "\2");
}

}  // namespace
}  // namespace nacre::devices
