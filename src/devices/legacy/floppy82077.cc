// Registers and commands without a data phase; those with one are in floppy_transfer.cc.
#include "devices/legacy/floppy82077.h"

#include <algorithm>
#include <utility>

#include "base/bits.h"
#include "base/check.h"
#include "devices/legacy/floppy_bits.h"

namespace nacre::devices {

using namespace floppy;

namespace {

// Registers (data sheet 2.1). Status A and B are of PS/2 boards only.
constexpr unsigned kOutput = 2, kTape = 3, kMainStatus = 4, kData = 5;
/// Heads go a little beyond the last cylinder.
constexpr unsigned kLastCylinder = 83;
/// RECALIBRATE gives up after so many steps (5.2.1).
constexpr unsigned kRecalibrateSteps = 79;

}  // namespace

const FloppyGeometry* FloppyGeometry::Find(uint64_t size_bytes) {
  static constexpr FloppyGeometry kKnown[] = {{40, 1, 8, 1, 2},  {40, 1, 9, 1, 2}, {40, 2, 8, 1, 2},
                                              {40, 2, 9, 1, 2},  {80, 2, 9, 3, 2}, {80, 2, 15, 2, 0},
                                              {80, 2, 18, 4, 0}, {80, 2, 36, 5, 3}};
  const auto* found = std::ranges::find(kKnown, size_bytes, &FloppyGeometry::size_bytes);
  return found == std::end(kKnown) ? nullptr : found;
}

Status Floppy82077::CheckSize(std::string_view name, uint64_t size_bytes) {
  if (FloppyGeometry::Find(size_bytes)) return {};
  return Fail(
      "{}: no diskette has {} bytes; `truncate -s 1440K FILE` makes an empty one (others: 160K, 180K, 320K, 360K, "
      "720K, 1200K, 2880K)",
      name, size_bytes);
}

Status Floppy82077::Plug(unsigned index, std::string_view name, std::unique_ptr<storage::Disk> disk) {
  NACRE_CHECK(index < kDrives && !drives_[index].disk);
  NACRE_TRY_STATUS(CheckSize(name, disk->size_bytes()));
  drives_[index].geometry = *FloppyGeometry::Find(disk->size_bytes());
  drives_[index].disk = std::move(disk);
  return {};
}

uint8_t Floppy82077::drive_type(unsigned index) const {
  return drives_[index].disk ? drives_[index].geometry.drive_type : uint8_t{0};
}

void Floppy82077::SetInterrupt(bool level) {
  interrupt_ = level;
  irq_.Set(level && (output_ & kDmaGate) != 0);
}

uint8_t Floppy82077::MainStatus() const {
  if ((output_ & kNotReset) == 0) return 0;
  uint8_t status = 0;
  for (unsigned unit = 0; unit < kUnits; ++unit)
    if ((seek_status_[unit] & (kSeekEnd | kReadyChanged)) == kSeekEnd) status |= static_cast<uint8_t>(1u << unit);
  switch (phase_) {
    case Phase::kCommand:
      return static_cast<uint8_t>(status | kRequest | (command_size_ > 0 ? kCommandBusy : 0));
    case Phase::kResult:
      return status | kRequest | kToHost | kCommandBusy;
    case Phase::kExecution:
      break;
  }
  status |= kCommandBusy;
  if (!by_processor()) return status;
  return static_cast<uint8_t>(status | kNotDma | (moving_ ? kRequest : 0) | (moving_ && to_host() ? kToHost : 0));
}

uint8_t Floppy82077::ReadRegister(unsigned reg) {
  switch (reg) {
    case kOutput:
      return output_;
    case kTape:
      return tape_;
    case kMainStatus:
      return MainStatus();
    case kData:
      return ReadData();
    default:
      return 0xff;
  }
}

void Floppy82077::WriteRegister(unsigned reg, uint8_t value) {
  switch (reg) {
    case kOutput:
      return WriteOutput(value);
    case kTape:
      tape_ = value & 3;
      return;
    case kMainStatus:  // data rate select
      rate_ = value & 3;
      if ((value & kSoftReset) == 0) return;
      SoftReset();
      if ((output_ & kNotReset) != 0) PollDrives();
      return;
    case kData:
      return WriteData(value);
    default:
      return;
  }
}

void Floppy82077::WriteOutput(uint8_t value) {
  const uint8_t old = std::exchange(output_, value);
  if ((value & kNotReset) == 0) {
    if ((old & kNotReset) != 0) SoftReset();
    return SetInterrupt(false);
  }
  if ((old & kNotReset) == 0) PollDrives();
  SetInterrupt(interrupt_);
  MoveData();
}

void Floppy82077::DropWork() {
  DropRequest();
  phase_ = Phase::kCommand;
  work_ = Work::kNone;
  command_size_ = result_size_ = result_next_ = 0;
  moving_ = last_ = seeked_ = false;
  seek_status_ = {};
}

void Floppy82077::SoftReset() {
  DropWork();
  if (!locked_) {
    configuration_ = kDefaultConfiguration;
    precompensation_ = 0;
  }
  perpendicular_ &= kPerpendicularDrives;
  SetInterrupt(false);
}

/// Out of reset, the controller finds that the ready lines of all four drives have changed (5.2.3).
void Floppy82077::PollDrives() {
  if ((configuration_ & kPollingOff) != 0) return;
  for (unsigned unit = 0; unit < kUnits; ++unit) seek_status_[unit] = static_cast<uint8_t>(kReadyChanged | unit);
  SetInterrupt(true);
}

void Floppy82077::Reset() {
  DropWork();
  output_ = tape_ = 0;
  rate_ = 2;
  specify_ = {};
  configuration_ = kDefaultConfiguration;
  precompensation_ = perpendicular_ = 0;
  locked_ = false;
  cylinder_ = {};
  command_ = {};
  result_ = {};
  unit_ = head_ = c_ = h_ = r_ = 0;
  left_ = position_ = wanted_ = 0;
  st1_ = st2_ = 0;
  sector_ = {};
  for (Drive& drive : drives_) drive.changed = true;
  SetInterrupt(false);
}

uint8_t Floppy82077::ReadData() {
  if (phase_ == Phase::kExecution) {
    if (!moving_ || !by_processor() || !to_host()) return 0;
    SetInterrupt(false);
    const uint8_t value = sector_[position_++];
    if (position_ == wanted_) DataMoved();
    return value;
  }
  if (phase_ != Phase::kResult) return 0;
  const uint8_t value = result_[result_next_++];
  SetInterrupt(false);
  if (result_next_ < result_size_) return value;
  result_next_ = result_size_ = 0;
  Finish();
  // The end of a seek on another drive is still to be told.
  if (std::ranges::any_of(seek_status_, [](uint8_t st0) { return (st0 & (kSeekEnd | kReadyChanged)) == kSeekEnd; }))
    SetInterrupt(true);
  return value;
}

void Floppy82077::WriteData(uint8_t value) {
  if ((output_ & kNotReset) == 0) return;
  if (phase_ == Phase::kExecution && moving_ && by_processor() && !to_host()) {
    SetInterrupt(false);
    sector_[position_++] = value;
    if (position_ == wanted_) DataMoved();
    return;
  }
  if (phase_ != Phase::kCommand) return;
  command_[command_size_++] = value;
  const CommandForm* form = FindForm(command_[0]);
  if (form && command_size_ < form->size) return;
  command_size_ = 0;
  if (form) return (this->*form->run)();
  Results({kInvalid});
}

void Floppy82077::Results(std::initializer_list<uint8_t> bytes) {
  std::ranges::copy(bytes, result_.begin());
  result_size_ = static_cast<uint8_t>(bytes.size());
  result_next_ = 0;
  phase_ = Phase::kResult;
}

const Floppy82077::CommandForm* Floppy82077::FindForm(uint8_t code) {
  using F = Floppy82077;
  static constexpr CommandForm kForms[] = {
      {0x1f, kReadData, 9, &F::StartTransfer},
      {0x1f, kReadDeleted, 9, &F::StartTransfer},
      {0x3f, kWriteData, 9, &F::StartTransfer},
      {0x3f, kWriteDeleted, 9, &F::StartTransfer},
      {0x9f, kReadTrack, 9, &F::StartTransfer},
      {0x1f, kVerify, 9, &F::StartTransfer},
      {0xbf, kFormatTrack, 6, &F::StartFormat},
      {0xff, kSpecify, 3, &F::Specify},
      {0xff, kSenseDrive, 2, &F::SenseDrive},
      {0xff, kRecalibrate, 2, &F::Recalibrate},
      {0xff, kSenseInterrupt, 1, &F::SenseInterrupt},
      {0xbf, kReadId, 2, &F::ReadId},
      {0xff, kDumpRegisters, 1, &F::DumpRegisters},
      {0xff, kSeek, 3, &F::SeekTo},
      {0xbf, kRelativeSeek, 3, &F::SeekRelative},
      {0xff, kVersion, 1, &F::Version},
      {0xff, kPerpendicular, 2, &F::Perpendicular},
      {0xff, kConfigure, 4, &F::Configure},
      {0x7f, kLock, 1, &F::Lock},
  };
  for (const CommandForm& form : kForms)
    if ((code & form.mask) == form.code) return &form;
  return nullptr;
}

void Floppy82077::Specify() {
  specify_ = {command_[1], command_[2]};
  Finish();
}

void Floppy82077::SenseDrive() {
  const unsigned unit = command_[1] & 3;
  const Drive* drive = unit < kDrives && drives_[unit].disk ? &drives_[unit] : nullptr;
  auto st3 = static_cast<uint8_t>((command_[1] & 7) | kSt3Fixed);
  if (drive && drive->disk->read_only()) st3 |= kSt3WriteProtected;
  if (drive && cylinder_[unit] == 0) st3 |= kSt3Track0;
  Results({st3});
}

/// At most one drive's at a time; what a reset left comes first to last.
void Floppy82077::SenseInterrupt() {
  for (unsigned unit = 0; unit < kUnits; ++unit) {
    if (seek_status_[unit] == 0) continue;
    SetInterrupt(false);
    return Results({std::exchange(seek_status_[unit], uint8_t{0}), cylinder_[unit]});
  }
  Results({kInvalid});
}

void Floppy82077::Recalibrate() {
  const unsigned unit = command_[1] & 3;
  const unsigned from = cylinder_[unit];
  const bool found = unit < kDrives && drives_[unit].disk && from <= kRecalibrateSteps;
  StepTo(unit, from - std::min(from, kRecalibrateSteps));
  EndSeek(unit, found ? uint8_t{0} : uint8_t{kAbnormal | kEquipmentCheck});
}

void Floppy82077::SeekTo() {
  StepTo(command_[1] & 3, command_[2]);
  EndSeek(command_[1] & 3, command_[1] & 4);
}

void Floppy82077::SeekRelative() {
  const unsigned unit = command_[1] & 3, from = cylinder_[unit], steps = command_[2];
  StepTo(unit, (command_[0] & kInwards) != 0 ? from + steps : from - std::min(from, steps));
  EndSeek(unit, command_[1] & 4);
}

void Floppy82077::StepTo(unsigned unit, unsigned cylinder) {
  cylinder_[unit] = static_cast<uint8_t>(std::min(cylinder, kLastCylinder));
  if (unit < kDrives && drives_[unit].disk) drives_[unit].changed = false;
}

void Floppy82077::EndSeek(unsigned unit, uint8_t status) {
  seek_status_[unit] = static_cast<uint8_t>(kSeekEnd | status | unit);
  Finish();
  SetInterrupt(true);
}

void Floppy82077::DumpRegisters() {
  Results({cylinder_[0], cylinder_[1], cylinder_[2], cylinder_[3], specify_[0], specify_[1], command_[6],
           static_cast<uint8_t>((locked_ ? 0x80 : 0) | (perpendicular_ & 0x3f)), configuration_, precompensation_});
}

void Floppy82077::Configure() {
  configuration_ = command_[2] & 0x7f;
  precompensation_ = command_[3];
  Finish();
}

void Floppy82077::Perpendicular() {
  // The drives' bits change only where OW says so (5.2.8).
  perpendicular_ =
      static_cast<uint8_t>((command_[1] & 3) | ((command_[1] & 0x80) != 0 ? command_[1] & kPerpendicularDrives
                                                                          : perpendicular_ & kPerpendicularDrives));
  Finish();
}

void Floppy82077::Lock() {
  locked_ = (command_[0] & 0x80) != 0;
  Results({static_cast<uint8_t>(locked_ ? 0x10 : 0)});
}

uint64_t Floppy82077::Io::Read(uint64_t offset, unsigned size) {
  uint64_t value = 0;
  for (unsigned i = 0; i < size; ++i)
    value |= uint64_t{offset + i < kSize ? device.ReadRegister(static_cast<unsigned>(offset + i)) : uint8_t{0xff}}
             << (8 * i);
  return value;
}

void Floppy82077::Io::Write(uint64_t offset, unsigned size, uint64_t value) {
  for (unsigned i = 0; i < size && offset + i < kSize; ++i)
    device.WriteRegister(static_cast<unsigned>(offset + i), static_cast<uint8_t>(value >> (8 * i)));
}

/// DIR: in AT mode the disk change line of the selected drive, where its motor runs.
uint64_t Floppy82077::Input::Read(uint64_t offset, unsigned size) {
  const uint64_t ones = MaskToSize(~uint64_t{0}, size);
  if (offset != 0) return ones;
  const unsigned unit = device.output_ & 3;
  const bool drive = unit < kDrives && device.drives_[unit].disk && TestBit(device.output_, 4 + unit);
  return (ones & ~uint64_t{0xff}) | (drive && device.drives_[unit].changed ? 0x80u : 0u);
}

void Floppy82077::Input::Write(uint64_t offset, unsigned, uint64_t value) {
  if (offset == 0) device.rate_ = value & 3;  // CCR
}

void Floppy82077::Serialize(state::Archive& archive) {
  if (archive.loading())
    DropWork();
  else
    Quiesce();
  archive.Field(1, output_);
  archive.Field(2, tape_);
  archive.Field(3, rate_);
  archive.Field(4, phase_);
  archive.Bytes(5, std::span<uint8_t>(command_));
  archive.Field(6, command_size_);
  archive.Bytes(7, std::span<uint8_t>(result_));
  archive.Field(8, result_size_);
  archive.Field(9, result_next_);
  archive.Field(10, interrupt_);
  archive.Bytes(11, std::span<uint8_t>(seek_status_));
  archive.Bytes(12, std::span<uint8_t>(cylinder_));
  archive.Bytes(13, std::span<uint8_t>(specify_));
  archive.Field(14, configuration_);
  archive.Field(15, precompensation_);
  archive.Field(16, perpendicular_);
  archive.Field(17, locked_);
  archive.Field(18, drives_[0].changed);
  archive.Field(19, drives_[1].changed);
  archive.Section(20, 1, [&](state::Archive& inner, uint16_t) { SaveWork(inner); });
  if (archive.loading()) CheckLoaded(archive);
}

void Floppy82077::SaveWork(state::Archive& archive) {
  archive.Field(1, work_);
  archive.Field(2, unit_);
  archive.Field(3, head_);
  archive.Field(4, c_);
  archive.Field(5, h_);
  archive.Field(6, r_);
  archive.Field(7, left_);
  archive.Field(8, st1_);
  archive.Field(9, st2_);
  archive.Field(10, seeked_);
  archive.Field(11, moving_);
  archive.Field(12, last_);
  archive.Field(13, position_);
  archive.Field(14, wanted_);
  archive.Bytes(15, std::span<uint8_t>(sector_));
}

void Floppy82077::CheckLoaded(state::Archive& archive) {
  rate_ &= 3;
  for (uint8_t& cylinder : cylinder_) cylinder = std::min<uint8_t>(cylinder, kLastCylinder);
  const CommandForm* form = FindForm(command_[0]);
  const bool commands = phase_ == Phase::kCommand && (command_size_ == 0 || (form && command_size_ < form->size)) &&
                        work_ == Work::kNone && !moving_;
  const bool results = phase_ == Phase::kResult && result_next_ < result_size_ && result_size_ <= result_.size() &&
                       work_ == Work::kNone && !moving_ && command_size_ == 0;
  const bool data = phase_ == Phase::kExecution && work_ > Work::kNone && work_ <= Work::kFormat && moving_ &&
                    unit_ < kDrives && drives_[unit_].disk && head_ < 2 && command_size_ == 0 && position_ < wanted_ &&
                    wanted_ == (work_ == Work::kFormat ? kIdSize : storage::kSectorSize);
  if (!commands && !results && !data) {
    DropWork();
    return archive.Reject("a floppy controller's command makes no sense");
  }
  SetInterrupt(interrupt_);
}

}  // namespace nacre::devices
