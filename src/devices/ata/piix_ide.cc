#include "devices/ata/piix_ide.h"

#include <algorithm>

#include "base/bits.h"
#include "base/check.h"

namespace nacre::devices {

namespace {

constexpr PciIdentity kIdentity = {0x8086, 0x7010, 0x1af4, 0x1100, 0x010180, 0, 0};
// IDETIM, one for each channel; bit 15: the channel's ports are decoded.
constexpr unsigned kTiming = 0x40, kSlaveTiming = 0x44;
constexpr unsigned kDecode = 15;
// Bus master registers of a channel.
constexpr unsigned kCommand = 0, kStatus = 2, kTable = 4, kChannelSize = 8;
constexpr uint8_t kStart = 0x01, kToMemory = 0x08;
constexpr uint8_t kActive = 0x01, kFailed = 0x02, kInterrupt = 0x04, kDrivesUseDma = 0x60;

/// The physical region descriptor table.
class RegionTable final : public ScatterList {
 public:
  using ScatterList::ScatterList;
  void Begin(uint32_t address) {
    Restart();
    next_ = address;
    ended_ = bad_table_ = false;
  }
  void Stop() { ended_ = true; }
  bool failed() const { return faulted() || bad_table_; }
  bool ended() const { return ended_ && empty(); }

 private:
  std::optional<ScatterPiece> NextEntry() override {
    if (ended_) return std::nullopt;
    uint64_t entry = 0;
    if (!memory().ReadValue(GuestPhys(next_), entry)) {
      bad_table_ = true;
      return std::nullopt;
    }
    // The table does not cross a 64 KiB boundary.
    next_ = (next_ & 0xffff0000) | ((next_ + 8) & 0xffff);
    ended_ = TestBit(entry, 63);
    const uint64_t size = Bits(entry, 32, 16) & ~uint64_t{1};
    return ScatterPiece{Bits(entry, 0, 32) & ~uint64_t{1}, size != 0 ? size : 0x10000};
  }
  uint32_t next_ = 0;
  bool ended_ = true;
  bool bad_table_ = false;
};

}  // namespace

class PiixIde::Channel final : public IdeBus {
 public:
  Channel(PiixIde& owner, bus::IrqLine& irq, memory::GuestMemory& memory) : owner_(owner), irq_(irq), table_(memory) {}

  IdeChannel ide{*this};
  bus::Mapping command_mapping, control_mapping;

  uint8_t Read(unsigned offset) const {
    switch (offset) {
      case kCommand:
        return command_;
      case kStatus:
        return status_;
      case 1:
      case 3:
        return 0;
      default:
        return static_cast<uint8_t>(table_address_ >> (8 * (offset - kTable)));
    }
  }
  void Write(unsigned offset, uint8_t value) {
    switch (offset) {
      case kCommand:
        return WriteCommand(value);
      case kStatus:
        status_ = static_cast<uint8_t>((status_ & kActive) | (value & kDrivesUseDma) |
                                       (status_ & ~value & (kFailed | kInterrupt)));
        return;
      case 1:
      case 3:
        return;
      default: {
        const unsigned shift = 8 * (offset - kTable);
        table_address_ = (table_address_ & ~(0xffu << shift)) | uint32_t{value} << shift;
        table_address_ &= ~3u;
      }
    }
  }

  void OnInterrupt(bool level) override {
    if (level) status_ |= kInterrupt;
    irq_.Set(level);
  }
  void OnDmaRequest(AtaDrive& drive) override {
    // One table serves one command: the engine is started anew for each.
    if ((status_ & kActive) == 0 || used_ || !owner_.bus_master()) return;
    used_ = true;
    drive.RunDma(table_);
  }
  void OnDmaStopped(AtaDrive& drive) override {
    status_ &= static_cast<uint8_t>(~kActive);
    if (!table_.failed()) return;  // too short a table: the drive waits
    status_ |= kFailed;
    drive.Abort();
  }
  void OnDmaEnd() override {
    if (used_ && table_.ended()) status_ &= static_cast<uint8_t>(~kActive);
  }

  void Reset() {
    ide.Reset();
    command_ = status_ = 0;
    table_address_ = 0;
    used_ = false;
    irq_.Set(false);
  }
  void Serialize(state::Archive& archive) {
    archive.Field(1, command_);
    archive.Field(2, status_);
    archive.Field(3, table_address_);
    archive.Field(4, used_);
    archive.Section(5, 1, [&](state::Archive& inner, uint16_t) { ide.Serialize(inner); });
    if (!archive.loading()) return;
    command_ &= kStart | kToMemory;
    status_ &= kActive | kFailed | kInterrupt | kDrivesUseDma;
    table_address_ &= ~3u;
    table_.Begin(table_address_);
  }

 private:
  void WriteCommand(uint8_t value) {
    const bool was_started = (command_ & kStart) != 0;
    command_ = value & (kStart | kToMemory);
    const bool started = (command_ & kStart) != 0;
    if (started == was_started) return;
    if (!started) {
      // What the back end is moving arrives; the drive gets nothing more to move.
      table_.Stop();
      ide.Quiesce();
      status_ &= static_cast<uint8_t>(~kActive);
      return;
    }
    table_.Begin(table_address_);
    used_ = false;
    status_ |= kActive;
    if (AtaDrive* drive = ide.dma_drive()) OnDmaRequest(*drive);
  }

  PiixIde& owner_;
  bus::IrqLine& irq_;
  RegionTable table_;
  uint8_t command_ = 0;
  uint8_t status_ = 0;
  uint32_t table_address_ = 0;
  bool used_ = false;  ///< the table has served a command
};

PiixIde::PiixIde(const PciWiring& wiring, const std::array<bus::IrqLine*, kChannels>& irqs, memory::GuestMemory& memory)
    : PciDevice("ide", kIdentity, wiring), ports_(*wiring.ports) {
  for (unsigned i = 0; i < kChannels; ++i) {
    channels_[i] = std::make_unique<Channel>(*this, *irqs[i], memory);
    // Decoded from reset on: firmware sets this on real boards, a direct boot has none.
    DefineConfig(kTiming + 2 * i, 2, 1u << kDecode, 0xffff);
  }
  DefineConfig(kSlaveTiming, 1, 0, 0xff);
  AddBar(kBusMasterBar, BarKind::kIo, kBusMasterSize);
  AddBarBlock(kBusMasterBar, 0, kBusMasterSize, bus_master_);
}

PiixIde::~PiixIde() = default;

void PiixIde::Plug(unsigned place, std::unique_ptr<AtaDrive> drive) {
  NACRE_CHECK(place < kChannels * IdeChannel::kDrives);
  channels_[place / 2]->ide.Plug(place % 2, std::move(drive));
}

IdeChannel& PiixIde::channel(unsigned index) { return channels_[index]->ide; }

void PiixIde::Quiesce() {
  for (auto& channel : channels_) channel->ide.Quiesce();
}

void PiixIde::ResetFunction() {
  for (auto& channel : channels_) channel->Reset();
  UpdatePorts();
}

void PiixIde::SerializeFunction(state::Archive& archive) {
  for (unsigned i = 0; i < kChannels; ++i) {
    archive.Section(static_cast<uint16_t>(1 + i), 1,
                    [&](state::Archive& inner, uint16_t) { channels_[i]->Serialize(inner); });
  }
  if (archive.loading()) UpdatePorts();
}

void PiixIde::AfterConfigWrite(unsigned offset, unsigned size) {
  const bool command = offset < pci::kCommand + 2 && offset + size > pci::kCommand;
  const bool timing = offset < kTiming + 4 && offset + size > kTiming;
  if (command || timing) UpdatePorts();
}

void PiixIde::UpdatePorts() {
  const bool io = (config()[pci::kCommand] & pci::kCommandIo) != 0;
  for (unsigned i = 0; i < kChannels; ++i) {
    Channel& channel = *channels_[i];
    const bool decode = io && TestBit(LoadLe<uint16_t>(config() + kTiming + 2 * i), kDecode);
    if (decode == channel.command_mapping.mapped()) continue;
    if (decode) {
      channel.command_mapping =
          ports_.Add(kCommandPorts[i], IdeChannel::kCommandSize, channel.ide.command_io(), name());
      channel.control_mapping =
          ports_.Add(kControlPorts[i], IdeChannel::kControlSize, channel.ide.control_io(), name());
    } else {
      channel.command_mapping.Remove();
      channel.control_mapping.Remove();
    }
  }
}

uint64_t PiixIde::BusMaster::Read(uint64_t offset, unsigned size) {
  uint64_t value = 0;
  for (unsigned i = 0; i < size; ++i) {
    const auto at = static_cast<unsigned>(offset + i);
    const uint8_t byte =
        at < kBusMasterSize ? device.channels_[at / kChannelSize]->Read(at % kChannelSize) : uint8_t{0xff};
    value |= uint64_t{byte} << (8 * i);
  }
  return value;
}

void PiixIde::BusMaster::Write(uint64_t offset, unsigned size, uint64_t value) {
  for (unsigned i = 0; i < size && offset + i < kBusMasterSize; ++i) {
    const auto at = static_cast<unsigned>(offset + i);
    device.channels_[at / kChannelSize]->Write(at % kChannelSize, static_cast<uint8_t>(value >> (8 * i)));
  }
}

}  // namespace nacre::devices
