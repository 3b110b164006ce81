#pragma once
// Intel 82540EM gigabit Ethernet (8086:100e; manual 317453), for systems without virtio drivers: legacy and extended
// transmit descriptors with checksums, VLAN tags and TCP segmentation; receive with address and VLAN filters, checksum
// results and chained buffers; interrupts throttled by ITR. The link is one of 1000 Mb/s and has no delays: RDTR, RADV,
// TIDV and TADV are kept and do nothing. Under the device lock.

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "base/scheduler.h"
#include "devices/ethernet/e1000_eeprom.h"
#include "devices/ethernet/e1000_registers.h"
#include "devices/pci/pci_device.h"
#include "memory/guest_memory.h"
#include "network/backend.h"
#include "network/ethernet.h"

namespace nacre::devices {

class E1000 final : public PciDevice, private network::FrameReceiver {
 public:
  static constexpr unsigned kRegistersBar = 0, kIoBar = 2;
  static constexpr uint64_t kRegistersSize = 128 * kKiB, kIoSize = 64;
  /// What its drivers expect of the network.
  static constexpr uint16_t kStandardMtu = 1500;
  /// A packet that the guest gives for segmentation; what is longer is dropped.
  static constexpr size_t kMaxPacket = 64 * kKiB + 256;
  /// Frames that one packet may become; more (segments of a few bytes) are dropped.
  static constexpr size_t kMaxSegments = 1024;
  /// The longest frame on the wire, without FCS.
  static constexpr size_t kMaxFrame = 16384 - 4;

  struct Options {
    std::string name = "e1000-0";
    network::MacAddress mac = {0x52, 0x54, 0x00, 0x12, 0x34, 0x56};
  };
  E1000(const Options& options, const PciWiring& wiring, std::unique_ptr<network::NetBackend> backend,
        memory::GuestMemory& memory, Scheduler& scheduler);
  ~E1000() override;

  bus::IoHandler& registers_io() { return registers_io_; }

 private:
  struct Registers final : bus::IoHandler {
    explicit Registers(E1000& owner) : device(owner) {}
    uint64_t Read(uint64_t offset, unsigned size) override;
    void Write(uint64_t offset, unsigned size, uint64_t value) override;
    E1000& device;
  };
  /// IOADDR and IODATA (13.1).
  struct IoWindow final : bus::IoHandler {
    explicit IoWindow(E1000& owner) : device(owner) {}
    uint64_t Read(uint64_t offset, unsigned size) override;
    void Write(uint64_t offset, unsigned size, uint64_t value) override;
    E1000& device;
    uint32_t address = 0;
  };
  /// What a context descriptor says (3.3.6).
  struct Context {
    uint8_t ip_start = 0, ip_field = 0, tcp_start = 0, tcp_field = 0;
    uint16_t ip_end = 0, tcp_end = 0;  ///< last byte; 0: to the packet's end
    uint16_t segment = 0;              ///< MSS
    uint8_t header = 0;                ///< bytes in front of each segment
    uint8_t command = 0;
  };
  /// The packet whose descriptors are coming.
  struct Packet {
    std::vector<uint8_t> bytes;
    bool open = false;
    bool segmented = false;
    bool too_long = false;
    uint8_t options = 0;
  };

  // Registers.
  uint32_t& reg(unsigned offset) { return file_[offset / 4]; }
  uint32_t reg(unsigned offset) const { return file_[offset / 4]; }
  uint32_t ReadRegister(unsigned offset);
  void WriteRegister(unsigned offset, uint32_t value);
  void WriteMdic(uint32_t value);
  void ResetCard();
  void ResetFunction() override;
  void SerializeFunction(state::Archive& archive) override;
  void Raise(uint32_t causes);
  void UpdateInterrupt();
  void Count(unsigned statistic, uint64_t amount = 1);
  /// Of one direction: the registers that count its frames, its octets, and its frames by size, from 64 bytes on.
  struct FrameCounters {
    unsigned total, good, total_octets, good_octets, by_size;
  };
  /// `wire_bytes`: with FCS.
  void CountFrame(const FrameCounters& counters, size_t wire_bytes);
  void CountOctets(unsigned statistic, uint64_t amount);

  // Transmit: e1000_transmit.cc.
  void Transmit();
  /// The interrupt causes that follow; nothing: its memory is none.
  bool TransmitDescriptor(uint64_t address, uint32_t& causes);
  void LoadContext(std::span<const uint8_t, e1000::kDescriptorSize> descriptor, uint8_t command);
  void Append(uint64_t address, uint64_t size_bytes);
  void FinishPacket(std::span<const uint8_t, e1000::kDescriptorSize> descriptor, uint8_t command, bool extended);
  void SendSegments(bool tagged, uint16_t tag);
  void SendFrame(std::vector<uint8_t>& frame, bool tagged, uint16_t tag);

  // Receive: e1000_receive.cc.
  bool Receive(std::span<const uint8_t> frame) override;
  void ReceiveDone() override;
  void LinkChanged() override;
  bool Accepts(std::span<const uint8_t> frame, uint8_t& status) const;
  bool AcceptsVlan(std::span<const uint8_t> frame) const;
  void Store(std::span<const uint8_t> frame, uint8_t status, uint16_t tag, unsigned buffer_size);

  /// Descriptors of a ring: of TDLEN or RDLEN.
  static unsigned RingSize(uint32_t length) { return length / e1000::kDescriptorSize; }
  uint64_t Base(unsigned low) const { return reg(low) | uint64_t{reg(low + 4)} << 32; }

  std::unique_ptr<network::NetBackend> backend_;
  memory::GuestMemory& memory_;
  Scheduler& scheduler_;
  const network::MacAddress mac_;
  E1000Eeprom eeprom_;
  E1000Phy phy_;
  std::array<uint32_t, e1000::kEnd / 4> file_{};  ///< the registers, by their offsets
  uint32_t causes_ = 0;                           ///< ICR
  uint32_t mask_ = 0;                             ///< IMS
  uint32_t received_causes_ = 0;                  ///< of the batch that is coming in
  bool level_ = false;
  int64_t next_interrupt_ns_ = 0;  ///< not before, by ITR
  std::unique_ptr<Timer> throttle_, more_;
  Context checksum_context_, segment_context_;
  Packet packet_;
  std::vector<uint8_t> frame_;    ///< the segment being sent
  std::vector<uint8_t> arrived_;  ///< the frame being received, as it goes to memory
  Registers registers_io_{*this};
  IoWindow io_window_{*this};
};

}  // namespace nacre::devices
