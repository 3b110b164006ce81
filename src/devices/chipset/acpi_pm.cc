#include "devices/chipset/acpi_pm.h"

#include "base/bits.h"
#include "devices/chipset/ticks.h"

namespace nacre::devices {
namespace {

// PM1 status and enable (ACPI tables 4.13, 4.14).
constexpr uint16_t kTimerBit = 1 << 0, kGlobalBit = 1 << 5, kPowerButton = 1 << 8, kSleepButton = 1 << 9,
                   kRtcBit = 1 << 10, kWake = 1 << 15;
constexpr uint16_t kStatusMask = kTimerBit | 1 << 4 | kGlobalBit | kPowerButton | kSleepButton | kRtcBit | kWake;
constexpr uint16_t kEnableMask = kTimerBit | kGlobalBit | kPowerButton | kSleepButton | kRtcBit;
// PM1 control (table 4.15).
constexpr uint16_t kSciEnable = 1 << 0, kSleepEnable = 1 << 13;
constexpr uint16_t kControlMask = kSciEnable | 1 << 1 | 7 << 10;
constexpr unsigned kTimerBits = 24;

}  // namespace

AcpiPm::AcpiPm(Scheduler& scheduler, bus::IrqLine& sci, MachineControl& machine)
    : scheduler_(scheduler), sci_(sci), machine_(machine) {
  timer_ = scheduler_.CreateTimer([this] {
    UpdateTimerStatus();
    Update();
  });
  Reset();
}

void AcpiPm::Reset() {
  status_ = enable_ = control_ = gpe_status_ = gpe_enable_ = 0;
  smi_command_ = smi_data_ = 0;
  asleep_ = false;
  timer_half_ = NsToTicks(scheduler_.NowNs(), kTimerHz) >> (kTimerBits - 1);
  Update();
}

uint32_t AcpiPm::TimerValue() const {
  return static_cast<uint32_t>(NsToTicks(scheduler_.NowNs(), kTimerHz)) & ((1u << kTimerBits) - 1);
}

/// TMR_STS is set whenever the counter's top bit changes (4.8.3.1.1).
void AcpiPm::UpdateTimerStatus() {
  const uint64_t half = NsToTicks(scheduler_.NowNs(), kTimerHz) >> (kTimerBits - 1);
  if (half == timer_half_) return;
  timer_half_ = half;
  status_ |= kTimerBit;
}

void AcpiPm::Update() {
  const bool event = (status_ & enable_) != 0 || (gpe_status_ & gpe_enable_) != 0;
  sci_.Set(event && (control_ & kSciEnable) != 0);
  if (event && asleep()) machine_.WakeUp();
  if ((enable_ & kTimerBit) != 0 && (status_ & kTimerBit) == 0) {
    timer_->Arm(TicksToNs((timer_half_ + 1) << (kTimerBits - 1), kTimerHz));
  } else {
    timer_->Cancel();
  }
}

void AcpiPm::PressPowerButton() {
  status_ |= kPowerButton;
  Update();
}

void AcpiPm::RaiseGpe(unsigned event) {
  if (event >= 16) return;
  gpe_status_ |= static_cast<uint16_t>(1 << event);
  Update();
}

void AcpiPm::KeyPressed() {
  if (asleep()) RaiseGpe(kKeyboardGpe);
}

bus::IrqLine& AcpiPm::WatchRtc(bus::IrqLine& next) {
  rtc_line_.next = &next;
  return rtc_line_;
}

void AcpiPm::RtcLine::Set(bool value) {
  next->Set(value);
  if (value && !level) {
    pm.status_ |= kRtcBit;
    pm.Update();
  }
  level = value;
}

void AcpiPm::EnterSleep(unsigned type) {
  if (type == kSleepTypeS4 || type == kSleepTypeS5) machine_.PowerOff();
  if (type != kSleepTypeS3) return;
  asleep_ = true;
  machine_.Sleep();  // what is pending already wakes the machine at once: the caller calls Update
}

void AcpiPm::EndSleep() {
  asleep_ = false;
  status_ |= kWake;
  sci_.Set(false);  // the interrupt controllers know nothing of a level from before
  Update();
}

uint8_t AcpiPm::ReadPmByte(unsigned offset) {
  switch (offset) {
    case 0:
      UpdateTimerStatus();
      return static_cast<uint8_t>(status_);
    case 1:
      return static_cast<uint8_t>(status_ >> 8);
    case 2:
      return static_cast<uint8_t>(enable_);
    case 3:
      return static_cast<uint8_t>(enable_ >> 8);
    case 4:
      return static_cast<uint8_t>(control_);
    case 5:
      return static_cast<uint8_t>(control_ >> 8);
    case 8:
    case 9:
    case 10:
    case 11:
      return static_cast<uint8_t>(TimerValue() >> (8 * (offset - 8)));
    default:
      return 0;
  }
}

void AcpiPm::WritePmByte(unsigned offset, uint8_t value) {
  switch (offset) {
    case 0:
      UpdateTimerStatus();
      status_ &= static_cast<uint16_t>(~(value & kStatusMask));  // written ones clear
      break;
    case 1:
      status_ &= static_cast<uint16_t>(~(value << 8 & kStatusMask));
      break;
    case 2:
      enable_ = static_cast<uint16_t>((enable_ & 0xff00) | (value & kEnableMask));
      break;
    case 3:
      enable_ = static_cast<uint16_t>((enable_ & 0xff) | (value << 8 & kEnableMask));
      break;
    case 4:
      // SCI_EN belongs to the firmware: only the SMI command changes it (4.8.3.2.1).
      control_ = static_cast<uint16_t>((control_ & (0xff00 | kSciEnable)) | (value & kControlMask & 0xfe));
      break;
    case 5:
      WriteControlHigh(value);
      break;
    default:
      break;
  }
}

void AcpiPm::WriteControlHigh(uint8_t value) {
  const auto wide = static_cast<uint16_t>(value << 8);
  control_ = static_cast<uint16_t>((control_ & 0xff) | (wide & kControlMask & 0xff00));
  if ((wide & kSleepEnable) != 0) EnterSleep(wide >> 10 & 7);  // SLP_EN reads as zero
}

uint64_t AcpiPm::PmIo::Read(uint64_t offset, unsigned size) {
  if (offset == kTimerOffset && size == 4) return pm.TimerValue();
  uint64_t value = 0;
  for (unsigned i = 0; i < size; ++i) value |= uint64_t{pm.ReadPmByte(static_cast<unsigned>(offset + i))} << (8 * i);
  return value;
}

void AcpiPm::PmIo::Write(uint64_t offset, unsigned size, uint64_t value) {
  for (unsigned i = 0; i < size; ++i)
    pm.WritePmByte(static_cast<unsigned>(offset + i), static_cast<uint8_t>(value >> (8 * i)));
  pm.Update();
}

uint64_t AcpiPm::GpeIo::Read(uint64_t offset, unsigned size) {
  const uint64_t all = pm.gpe_status_ | uint64_t{pm.gpe_enable_} << 16;
  return offset < kGpeSize ? MaskToSize(all >> (8 * offset), size) : 0;
}

void AcpiPm::GpeIo::Write(uint64_t offset, unsigned size, uint64_t value) {
  if (offset >= kGpeSize) return;
  const uint64_t shifted = MaskToSize(value, size) << (8 * offset);
  const uint64_t mask = MaskToSize(~uint64_t{0}, size) << (8 * offset);
  pm.gpe_status_ &= static_cast<uint16_t>(~shifted);
  pm.gpe_enable_ = static_cast<uint16_t>((pm.gpe_enable_ & ~(mask >> 16)) | (shifted >> 16));
  pm.Update();
}

uint64_t AcpiPm::SmiIo::Read(uint64_t offset, unsigned size) {
  const uint64_t both = pm.smi_command_ | uint64_t{pm.smi_data_} << 8;
  return offset < 2 ? MaskToSize(both >> (8 * offset), size) : MaskToSize(~uint64_t{0}, size);
}

void AcpiPm::SmiIo::Write(uint64_t offset, unsigned size, uint64_t value) {
  if (offset == 1 || size >= 2) pm.smi_data_ = static_cast<uint8_t>(offset == 1 ? value : value >> 8);
  if (offset != 0) return;
  pm.smi_command_ = static_cast<uint8_t>(value);
  if (pm.smi_command_ == kAcpiEnable) pm.control_ |= kSciEnable;
  if (pm.smi_command_ == kAcpiDisable) pm.control_ &= static_cast<uint16_t>(~kSciEnable);
  pm.Update();
}

void AcpiPm::Serialize(state::Archive& archive) {
  archive.Field(1, status_);
  archive.Field(2, enable_);
  archive.Field(3, control_);
  archive.Field(4, timer_half_);
  archive.Field(5, gpe_status_);
  archive.Field(6, gpe_enable_);
  archive.Field(7, smi_command_);
  archive.Field(8, smi_data_);
  bool asleep = asleep_;
  archive.Field(9, asleep);
  archive.Field(10, rtc_line_.level);
  if (!archive.loading()) return;
  status_ &= kStatusMask;
  enable_ &= kEnableMask;
  control_ &= kControlMask;
  timer_half_ &= (uint64_t{1} << 40) - 1;
  asleep_ = asleep;
  Update();
}

}  // namespace nacre::devices
