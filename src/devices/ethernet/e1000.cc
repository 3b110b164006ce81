#include "devices/ethernet/e1000.h"

#include <algorithm>
#include <iterator>
#include <limits>

#include "base/bits.h"

namespace nacre::devices {

using namespace e1000;

namespace {

constexpr uint16_t kDevice = 0x100e, kSubsystem = 0x001e;
constexpr PciIdentity kIdentity = {0x8086, kDevice, 0x8086, kSubsystem, 0x020000, 2, 1};
constexpr int64_t kItrUnitNs = 256;

/// What can be written and is only kept, or begins something that WriteRegister does as well.
constexpr uint32_t WriteMask(unsigned offset) {
  if (offset >= kMta && offset < kMtaEnd) return 0xffffffff;
  if (offset >= kReceiveAddress && offset < kReceiveAddressEnd) return (offset & 4) != 0 ? 0x8003ffff : 0xffffffff;
  if (offset >= kVfta && offset < kVftaEnd) return 0xffffffff;
  switch (offset) {
    case kCtrl:
      return 0x583c1b69;
    case kItr:
    case kRdh:
    case kRdt:
    case kTdh:
    case kTdt:
    case kRdtr:
    case kRadv:
    case kTidv:
    case kTadv:
    case kFct:
    case kVet:
    case kFcttv:
    case kFcah:
    case kAit:
    case kPba:
    case kFcrtl:
    case kFcrth:
    case kWuc:
    case kWufc:
      return 0xffff;
    case kRdlen:
    case kTdlen:
      return 0xfff80;
    case kRdbal:
    case kTdbal:
      return 0xfffffff0;
    case kRctl:
      return 0x06dfffbe;
    case kTctl:
      return 0x03fffffa;
    case kRxcsum:
      return 0x7ff;
    case kRdbah:
    case kTdbah:
    case kCtrlExt:
    case kFcal:
    case kTxcw:
    case kTipg:
    case kLedctl:
    case kRxdctl:
    case kRsrpd:
    case kTxdctl:
    case kTspmt:
    case kIpav:
    case kManc:
      return 0xffffffff;
    default:
      return 0;
  }
}

}  // namespace

E1000::E1000(const Options& options, const PciWiring& wiring, std::unique_ptr<network::NetBackend> backend,
             memory::GuestMemory& memory, Scheduler& scheduler)
    : PciDevice(options.name, kIdentity, wiring),
      backend_(std::move(backend)),
      memory_(memory),
      scheduler_(scheduler),
      mac_(options.mac),
      eeprom_(options.mac, kDevice, kSubsystem),
      throttle_(scheduler.CreateTimer([this] { UpdateInterrupt(); })),
      more_(scheduler.CreateTimer([this] { Transmit(); })) {
  AddBar(kRegistersBar, BarKind::kMemory32, kRegistersSize);
  AddBarBlock(kRegistersBar, 0, kRegistersSize, registers_io_);
  AddBar(kIoBar, BarKind::kIo, kIoSize);
  AddBarBlock(kIoBar, 0, kIoSize, io_window_);
  ResetCard();
  phy_.Reset();
  backend_->Attach(this);
}

E1000::~E1000() { backend_->Attach(nullptr); }

// ---- Registers: 32 bits wide, and only written whole (13.2).

uint64_t E1000::Registers::Read(uint64_t offset, unsigned size) {
  const auto word = static_cast<unsigned>(offset & ~uint64_t{3});
  uint64_t value = device.ReadRegister(word) >> (8 * (offset & 3));
  const auto first = static_cast<unsigned>(4 - (offset & 3));
  if (size > first) value |= uint64_t{device.ReadRegister(word + 4)} << (8 * first);
  return MaskToSize(value, size);
}

void E1000::Registers::Write(uint64_t offset, unsigned size, uint64_t value) {
  if (size < 4 || (offset & 3) != 0) return;
  device.WriteRegister(static_cast<unsigned>(offset), static_cast<uint32_t>(value));
  if (size == 8) device.WriteRegister(static_cast<unsigned>(offset + 4), static_cast<uint32_t>(value >> 32));
}

uint64_t E1000::IoWindow::Read(uint64_t offset, unsigned size) {
  if (size != 4) return MaskToSize(~uint64_t{0}, size);
  if (offset == 0) return address;
  return offset == 4 ? device.ReadRegister(address) : 0xffffffff;
}

void E1000::IoWindow::Write(uint64_t offset, unsigned size, uint64_t value) {
  if (size != 4) return;
  if (offset == 0) address = static_cast<uint32_t>(value) & (kRegistersSize - 4);
  if (offset == 4) device.WriteRegister(address, static_cast<uint32_t>(value));
}

uint32_t E1000::ReadRegister(unsigned offset) {
  if (offset >= kEnd) return 0;
  switch (offset) {
    case kStatus:
      return kStatusFullDuplex | kStatusSpeed1000 | (backend_->link_up() ? kStatusLinkUp : 0);
    case kEecd:
      return eeprom_.ReadControl();
    case kIcr: {
      const uint32_t causes = causes_;
      causes_ = 0;
      UpdateInterrupt();
      return causes;
    }
    case kIms:
      return mask_;
    default:
      break;
  }
  const uint32_t value = reg(offset);
  if (offset >= kStatistics && offset < kStatisticsEnd) {  // cleared by reading; octets by their upper half
    const bool lower = offset == kGoodOctetsReceived || offset == kGoodOctetsSent || offset == kTotalOctetsReceived ||
                       offset == kTotalOctetsSent;
    if (!lower) reg(offset) = 0;
    if (offset - 4 == kGoodOctetsReceived || offset - 4 == kGoodOctetsSent || offset - 4 == kTotalOctetsReceived ||
        offset - 4 == kTotalOctetsSent)
      reg(offset - 4) = 0;
  }
  return value;
}

void E1000::WriteRegister(unsigned offset, uint32_t value) {
  if (offset >= kEnd) return;
  switch (offset) {
    case kCtrl:
      if ((value & kCtrlPhyReset) != 0) phy_.Reset();
      if ((value & kCtrlReset) != 0) return ResetCard();
      break;
    case kEecd:
      return eeprom_.WriteControl(value);
    case kEerd:
      reg(kEerd) = value & 0xff00;
      if ((value & kEerdStart) != 0)
        reg(kEerd) |= uint32_t{eeprom_.Word(static_cast<unsigned>(Bits(value, 8, 8)))} << 16 | kEerdDone;
      return;
    case kMdic:
      return WriteMdic(value);
    case kIcr:
      causes_ &= ~value;
      return UpdateInterrupt();
    case kIcs:
      return Raise(value & kCauses);
    case kIms:
      mask_ |= value & kCauses;
      return UpdateInterrupt();
    case kImc:
      mask_ &= ~value;
      return UpdateInterrupt();
    default:
      break;
  }
  const uint32_t mask = WriteMask(offset);
  if (mask == 0) return;
  reg(offset) = value & mask;
  switch (offset) {
    case kItr:
      // An interrupt that waits for the old interval does not.
      next_interrupt_ns_ = std::min(next_interrupt_ns_, scheduler_.NowNs() + int64_t{reg(kItr)} * kItrUnitNs);
      return UpdateInterrupt();
    case kTctl:
    case kTdt:
      if (!more_->armed()) Transmit();
      return;
    case kRctl:
    case kRdt:
      return backend_->ReceiveReady();
    default:
      return;
  }
}

void E1000::WriteMdic(uint32_t value) {
  const auto address = static_cast<unsigned>(Bits(value, 21, 5)), number = static_cast<unsigned>(Bits(value, 16, 5));
  uint32_t result = value & 0x3fffffff & ~(kMdicReady | kMdicError);
  if (address != E1000Phy::kAddress) {
    result |= kMdicError;
  } else if ((value & kMdicRead) != 0) {
    result = (result & ~0xffffu) | phy_.Read(number, backend_->link_up());
  } else if ((value & kMdicWrite) != 0) {
    phy_.Write(number, static_cast<uint16_t>(value));
  }
  reg(kMdic) = result | kMdicReady;
  if ((value & kMdicInterrupt) != 0) Raise(kMdioDone);
}

// ---- Interrupts.

void E1000::Raise(uint32_t causes) {
  causes_ |= causes;
  UpdateInterrupt();
}

void E1000::UpdateInterrupt() {
  const bool wanted = (causes_ & mask_) != 0;
  if (wanted && !level_) {
    const int64_t now = scheduler_.NowNs();
    if (now < next_interrupt_ns_) {
      throttle_->Arm(next_interrupt_ns_);  // ITR may have become less
      return;
    }
    next_interrupt_ns_ = now + int64_t{reg(kItr)} * kItrUnitNs;
  }
  throttle_->Cancel();
  level_ = wanted;
  SetIntx(level_);
}

void E1000::LinkChanged() { Raise(kLinkChange); }

// ---- Statistics stay at their greatest value (13.7).

void E1000::Count(unsigned statistic, uint64_t amount) {
  uint32_t& value = reg(statistic);
  value = static_cast<uint32_t>(std::min<uint64_t>(value + amount, std::numeric_limits<uint32_t>::max()));
}

void E1000::CountOctets(unsigned statistic, uint64_t amount) {
  const uint64_t before = Base(statistic);
  const uint64_t after = before + amount < before ? ~uint64_t{0} : before + amount;
  reg(statistic) = static_cast<uint32_t>(after);
  reg(statistic + 4) = static_cast<uint32_t>(after >> 32);
}

void E1000::CountFrame(const FrameCounters& counters, size_t wire_bytes) {
  Count(counters.total);
  Count(counters.good);
  CountOctets(counters.total_octets, wire_bytes);
  CountOctets(counters.good_octets, wire_bytes);
  // 64, 65 to 127, 128 to 255, 256 to 511, 512 to 1023, more.
  constexpr size_t kEnds[] = {65, 128, 256, 512, 1024};
  const auto size_class = static_cast<unsigned>(std::ranges::upper_bound(kEnds, wire_bytes) - std::begin(kEnds));
  Count(counters.by_size + 4 * size_class);
}

// ---- Reset and state.

/// By CTRL.RST: everything but the PHY. Then the address comes from the EEPROM.
void E1000::ResetCard() {
  file_.fill(0);
  reg(kCtrl) = 0x0a49;
  reg(kLedctl) = 0x07068302;
  reg(kPba) = 0x0030;
  reg(kTipg) = 0x00602008;
  reg(kReceiveAddress) = LoadLe<uint32_t>(mac_.data());
  reg(kReceiveAddress + 4) = LoadLe<uint16_t>(mac_.data() + 4) | kAddressValid;
  causes_ = mask_ = received_causes_ = 0;
  next_interrupt_ns_ = 0;
  more_->Cancel();
  checksum_context_ = segment_context_ = {};
  packet_ = {};
  eeprom_.Reset();
  UpdateInterrupt();
}

void E1000::ResetFunction() {
  ResetCard();
  phy_.Reset();
  io_window_.address = 0;
  backend_->ReceiveReady();  // what waited for the driver is dropped: it is not there
}

void E1000::SerializeFunction(state::Archive& archive) {
  // The registers that are not zero, by their offsets.
  std::vector<uint16_t> numbers;
  for (unsigned i = 0; i < file_.size() && !archive.loading(); ++i)
    if (file_[i] != 0) numbers.push_back(static_cast<uint16_t>(i));
  if (archive.loading()) file_.fill(0);
  archive.List(
      1, numbers.size(), file_.size(), [&](size_t count) { numbers.resize(count); },
      [&](state::Archive& fields, size_t index) {
        uint16_t number = numbers[index];
        uint32_t value = archive.loading() ? 0 : file_[number];
        fields.Field(1, number);
        fields.Field(2, value);
        if (number >= file_.size()) return fields.Reject("e1000: there is no such register");
        file_[number] = value;
      });
  archive.Field(2, causes_);
  archive.Field(3, mask_);
  archive.Field(4, received_causes_);
  int64_t wait_ns = std::max<int64_t>(next_interrupt_ns_ - scheduler_.NowNs(), 0);
  archive.Field(5, wait_ns);
  archive.Field(6, io_window_.address);
  eeprom_.Serialize(archive, 7);
  phy_.Serialize(archive, 8);
  uint16_t id = 9;
  for (Context* context : {&checksum_context_, &segment_context_}) {
    archive.Section(id++, 1, [&](state::Archive& fields, uint16_t) {
      fields.Field(1, context->ip_start);
      fields.Field(2, context->ip_field);
      fields.Field(3, context->ip_end);
      fields.Field(4, context->tcp_start);
      fields.Field(5, context->tcp_field);
      fields.Field(6, context->tcp_end);
      fields.Field(7, context->segment);
      fields.Field(8, context->header);
      fields.Field(9, context->command);
    });
  }
  archive.Section(11, 1, [&](state::Archive& fields, uint16_t) {
    fields.Bytes(1, packet_.bytes, kMaxPacket);
    fields.Field(2, packet_.open);
    fields.Field(3, packet_.segmented);
    fields.Field(4, packet_.too_long);
    fields.Field(5, packet_.options);
  });
  bool more = more_->armed();
  archive.Field(12, more);
  archive.Field(13, level_);
  if (!archive.loading()) return;
  for (unsigned i = 0; i < file_.size(); ++i) {
    const unsigned offset = 4 * i;
    const bool own = offset == kEerd || offset == kMdic || (offset >= kStatistics && offset < kStatisticsEnd);
    if (!own) file_[i] &= WriteMask(offset);
  }
  causes_ &= kCauses;
  mask_ &= kCauses;
  received_causes_ &= kCauses;
  io_window_.address &= kRegistersSize - 4;
  next_interrupt_ns_ = scheduler_.NowNs() + std::clamp<int64_t>(wait_ns, 0, 0xffff * kItrUnitNs);
  throttle_->Cancel();
  more_->Cancel();
  if (more) more_->Arm(scheduler_.NowNs());
  SetIntx(level_);
  UpdateInterrupt();
}

}  // namespace nacre::devices
