#pragma once
// The firmware configuration device (QEMU's documented interface, docs/specs/fw_cfg): items under 16-bit keys, some of
// them files with a name, that firmware reads by ports 0x510-0x511 or by DMA through port 0x514; a few are written by
// DMA.
//
// The machine adds all items before the guest runs. Under the device lock.

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "bus/device.h"
#include "memory/guest_memory.h"

namespace nacre::devices {

class FwCfg final : public bus::Device {
 public:
  static constexpr uint16_t kPort = 0x510;  ///< io(), kPorts ports: selector (16 bits), data (8 bits)
  static constexpr uint16_t kPorts = 2;
  static constexpr uint16_t kDmaPort = 0x514;  ///< dma_io(), 8 ports: an address, big-endian
  static constexpr uint64_t kMaxItem = 1 * kGiB;
  static constexpr size_t kMaxFiles = 64, kMaxFileName = 55;
  /// Keys that have a meaning of their own.
  enum Key : uint16_t {
    kSignature = 0x00,
    kId = 0x01,
    kRamSize = 0x03,
    kNoGraphic = 0x04,
    kCpuCount = 0x05,
    kKernelAddress = 0x07,
    kKernelSize = 0x08,
    kInitrdAddress = 0x0a,
    kInitrdSize = 0x0b,
    kBootMenu = 0x0e,
    kMaxCpus = 0x0f,
    kKernelEntry = 0x10,
    kKernelData = 0x11,
    kInitrdData = 0x12,
    kCommandLineAddress = 0x13,
    kCommandLineSize = 0x14,
    kCommandLineData = 0x15,
    kSetupAddress = 0x16,
    kSetupSize = 0x17,
    kSetupData = 0x18,
    kFileDirectory = 0x19,
    kFirstFile = 0x20
  };

  using Bytes = std::vector<uint8_t>;
  /// `memory`: where DMA goes.
  explicit FwCfg(memory::GuestMemory& memory);

  /// Each key once.
  void Add(uint16_t key, Bytes bytes);
  /// Little-endian.
  template <typename T>
  void AddValue(uint16_t key, T value) {
    Bytes bytes(sizeof(T));
    StoreLe(bytes.data(), value);
    Add(key, std::move(bytes));
  }
  /// A name of at most kMaxFileName characters, each once; at most kMaxFiles files. Before the guest runs.
  void AddFile(std::string_view name, Bytes bytes);
  /// `make` is called when the guest selects the file, for what depends on what the firmware has set up. The size in
  /// the directory is that of `bytes`: what `make` returns is cut or filled with zeros to it.
  void AddFile(std::string_view name, Bytes bytes, std::function<Bytes()> make);
  /// A file that the guest writes, at first and after a reset zeros; `written` is called with all of it.
  void AddWritableFile(std::string_view name, size_t size_bytes, std::function<void(const Bytes&)> written);
  /// The bytes of a file as a guest reads them, for tests; null: there is none of that name.
  const Bytes* File(std::string_view name) const;

  bus::IoHandler& io() { return io_; }
  bus::IoHandler& dma_io() { return dma_io_; }

  std::string_view name() const override { return "fw-cfg"; }
  void Reset() override;
  void Serialize(state::Archive& archive) override;

 private:
  struct Item {
    Bytes bytes;
    std::function<Bytes()> make;
    std::function<void(const Bytes&)> written;
    bool changes() const { return make || written; }
  };
  struct Io final : bus::IoHandler {
    explicit Io(FwCfg& owner) : device(owner) {}
    uint64_t Read(uint64_t offset, unsigned size) override;
    void Write(uint64_t offset, unsigned size, uint64_t value) override;
    FwCfg& device;
  };
  struct DmaIo final : bus::IoHandler {
    explicit DmaIo(FwCfg& owner) : device(owner) {}
    uint64_t Read(uint64_t offset, unsigned size) override;
    void Write(uint64_t offset, unsigned size, uint64_t value) override;
    FwCfg& device;
  };

  Item* Selected();
  void Select(uint16_t key);
  uint8_t NextByte();
  void RunDma(uint64_t at);
  bool Transfer(uint32_t control, uint32_t length, uint64_t address);
  bool WriteItem(uint32_t length, uint64_t address);
  void RebuildDirectory();

  memory::GuestMemory& memory_;
  std::map<uint16_t, Item> items_;
  std::map<std::string, uint16_t, std::less<>> files_;  ///< name to key
  uint16_t key_ = 0;
  uint64_t offset_ = 0;
  uint32_t dma_high_ = 0;
  Io io_{*this};
  DmaIo dma_io_{*this};
};

}  // namespace nacre::devices
