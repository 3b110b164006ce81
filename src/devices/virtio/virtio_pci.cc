#include "devices/virtio/virtio_pci.h"

#include <algorithm>
#include <bit>

#include "base/bits.h"

namespace nacre::devices {
namespace {

constexpr uint16_t kVendor = 0x1af4;  // 4.1.2
constexpr uint16_t kFirstDeviceId = 0x1040;
constexpr uint16_t kSubsystem = 0x1100;  // 4.1.2.1: at least 0x40, so that no legacy driver binds
constexpr unsigned kRegisterBar = 0, kMsixBar = 1;

// 4.1.4: cfg_type.
constexpr uint8_t kTypeCommon = 1, kTypeNotify = 2, kTypeIsr = 3, kTypeDevice = 4, kTypePciAccess = 5;
// Offsets in struct virtio_pci_cap.
constexpr unsigned kCapBar = 4, kCapOffset = 8, kCapLength = 12, kCapData = 16, kCapSize = 16;

constexpr uint8_t kIsrQueue = 1, kIsrConfig = 2;

// struct virtio_pci_common_cfg (4.1.4.3).
struct Field {
  uint8_t offset;
  uint8_t size;
};
constexpr unsigned kDeviceFeatureSelect = 0, kDeviceFeature = 4, kDriverFeatureSelect = 8, kDriverFeature = 12,
                   kConfigVector = 16, kNumQueues = 18, kDeviceStatus = 20, kConfigGeneration = 21, kQueueSelect = 22,
                   kQueueSize = 24, kQueueVector = 26, kQueueEnable = 28, kQueueNotifyOff = 30, kQueueDescriptors = 32,
                   kQueueDriver = 40, kQueueDevice = 48, kCommonSize = 56;
// 64-bit fields are written as two halves (4.1.3.1).
constexpr Field kFields[] = {{0, 4},  {4, 4},  {8, 4},  {12, 4}, {16, 2}, {18, 2}, {20, 1}, {21, 1}, {22, 2}, {24, 2},
                             {26, 2}, {28, 2}, {30, 2}, {32, 4}, {36, 4}, {40, 4}, {44, 4}, {48, 4}, {52, 4}};

uint32_t ClassCode(VirtioType type) {
  switch (type) {
    case VirtioType::kNet:
      return 0x020000;  // Ethernet controller
    case VirtioType::kBlock:
      return 0x010000;  // SCSI storage controller, as other VMMs have it
    case VirtioType::kConsole:
      return 0x078000;  // other communication controller
    case VirtioType::kGpu:
      return 0x038000;  // other display controller
    case VirtioType::kInput:
      return 0x098000;  // other input controller
    case VirtioType::kVsock:
      return 0x028000;  // other network controller
    case VirtioType::kRng:
    case VirtioType::kBalloon:
      return 0x00ff00;
  }
  return 0x00ff00;
}

PciIdentity IdentityOf(const VirtioDevice& device) {
  return {.vendor = kVendor,
          .device = static_cast<uint16_t>(kFirstDeviceId + static_cast<uint16_t>(device.type())),
          .subsystem_vendor = kVendor,
          .subsystem = kSubsystem,
          .class_code = ClassCode(device.type()),
          .revision = 1};
}

}  // namespace

VirtioPci::VirtioPci(std::unique_ptr<VirtioDevice> device, const PciWiring& wiring)
    : PciDevice(device->name(), IdentityOf(*device), wiring),
      device_(std::move(device)),
      common_block_(this, &VirtioPci::ReadCommon, &VirtioPci::WriteCommon),
      isr_block_(this, &VirtioPci::ReadIsr, &VirtioPci::WriteIsr),
      device_block_(this, &VirtioPci::ReadDevice, &VirtioPci::WriteDevice),
      notify_block_(this, &VirtioPci::ReadNotify, &VirtioPci::WriteNotify),
      queue_vectors_(device_->queue_count(), kNoVector) {
  const unsigned vectors = device_->queue_count() + 1;
  AddBar(kRegisterBar, BarKind::kMemory32, kBarSize);
  AddBarBlock(kRegisterBar, kCommonOffset, kCommonSize, common_block_);
  AddBarBlock(kRegisterBar, kIsrOffset, kBlockSize, isr_block_);
  AddBarBlock(kRegisterBar, kDeviceOffset, kBlockSize, device_block_);
  AddBarBlock(kRegisterBar, kNotifyOffset, kBlockSize, notify_block_);
  for (unsigned queue = 0; queue < device_->queue_count(); ++queue) {
    bells_.push_back(std::make_unique<QueueBell>(*device_, queue));
    AddBarDoorbell(kRegisterBar, kNotifyOffset + queue * kNotifyMultiplier, *bells_.back());
  }
  AddBar(kMsixBar, BarKind::kMemory32, std::bit_ceil(Msix::BlockSize(vectors)));
  AddMsix(kMsixBar, 0, vectors);
  AddStructure(kTypeCommon, kCommonOffset, kCommonSize, 0, false);
  AddStructure(kTypeNotify, kNotifyOffset, kBlockSize, kNotifyMultiplier, true);
  AddStructure(kTypeIsr, kIsrOffset, 4, 0, false);
  AddStructure(kTypeDevice, kDeviceOffset, kBlockSize, 0, false);
  access_capability_ = AddStructure(kTypePciAccess, 0, 0, 0, true);
  device_->Attach(this);
}

VirtioPci::~VirtioPci() { device_->Attach(nullptr); }

uint8_t VirtioPci::AddStructure(uint8_t type, uint64_t offset, uint64_t size_bytes, uint32_t extra, bool has_extra) {
  std::array<uint8_t, kCapSize + 4> capability{};
  std::array<uint8_t, kCapSize + 4> mask{};
  const unsigned size = has_extra ? kCapSize + 4 : kCapSize;
  capability[2] = static_cast<uint8_t>(size);
  capability[3] = type;
  capability[kCapBar] = kRegisterBar;
  StoreLe(&capability[kCapOffset], static_cast<uint32_t>(offset));
  StoreLe(&capability[kCapLength], static_cast<uint32_t>(size_bytes));
  StoreLe(&capability[kCapData], extra);
  if (type == kTypePciAccess) {  // 4.1.4.9: the driver writes bar, offset, length and data
    mask[kCapBar] = 0xff;
    std::fill(mask.begin() + kCapOffset, mask.end(), 0xff);
  }
  return AddCapability(pci::kCapVendor, std::span(capability).first(size).subspan(2),
                       std::span(mask).first(size).subspan(2));
}

// -- registers

uint64_t VirtioPci::ReadCommon(uint64_t offset, unsigned size) {
  uint64_t value = 0;
  for (const Field& field : kFields) {
    if (offset >= field.offset + field.size || field.offset >= offset + size) continue;
    const uint64_t content = GetField(field.offset);
    for (unsigned i = 0; i < field.size; ++i) {
      const uint64_t at = field.offset + i;
      if (at >= offset && at < offset + size) value |= Bits(content, 8 * i, 8) << (8 * (at - offset));
    }
  }
  return value;
}

void VirtioPci::WriteCommon(uint64_t offset, unsigned size, uint64_t value) {
  for (const Field& field : kFields) {
    if (offset >= field.offset + field.size || field.offset >= offset + size) continue;
    uint64_t content = GetField(field.offset);
    for (unsigned i = 0; i < field.size; ++i) {
      const uint64_t at = field.offset + i;
      if (at < offset || at >= offset + size) continue;
      content = (content & ~(uint64_t{0xff} << (8 * i))) | (Bits(value, 8 * (at - offset), 8) << (8 * i));
    }
    SetField(field.offset, content);
  }
}

uint64_t VirtioPci::GetField(unsigned offset) {
  switch (offset) {
    case kDeviceFeatureSelect:
      return device_feature_select_;
    case kDeviceFeature:
      return device_feature_select_ > 1 ? 0 : Bits(device_->offered_features(), 32 * device_feature_select_, 32);
    case kDriverFeatureSelect:
      return driver_feature_select_;
    case kDriverFeature:
      return driver_feature_select_ > 1 ? 0 : Bits(device_->driver_features(), 32 * driver_feature_select_, 32);
    case kConfigVector:
      return config_vector_;
    case kNumQueues:
      return device_->queue_count();
    case kDeviceStatus:
      return device_->status();
    case kConfigGeneration:
      return device_->config_generation();
    case kQueueSelect:
      return queue_select_;
    default:
      break;
  }
  if (queue_select_ >= device_->queue_count()) return 0;  // 4.1.4.3.1: size 0 says that there is no such queue
  const VirtQueue& queue = device_->queue(queue_select_);
  switch (offset) {
    case kQueueSize:
      return queue.setup().size;
    case kQueueVector:
      return queue_vectors_[queue_select_];
    case kQueueEnable:
      return queue.enabled() ? 1 : 0;
    case kQueueNotifyOff:
      return queue_select_;
    case kQueueDescriptors:
    case kQueueDescriptors + 4:
      return Bits(queue.setup().descriptors, 8 * (offset - kQueueDescriptors), 32);
    case kQueueDriver:
    case kQueueDriver + 4:
      return Bits(queue.setup().driver_area, 8 * (offset - kQueueDriver), 32);
    case kQueueDevice:
    case kQueueDevice + 4:
      return Bits(queue.setup().device_area, 8 * (offset - kQueueDevice), 32);
    default:
      return 0;
  }
}

void VirtioPci::SetField(unsigned offset, uint64_t value) {
  switch (offset) {
    case kDeviceFeatureSelect:
      device_feature_select_ = static_cast<uint32_t>(value);
      return;
    case kDriverFeatureSelect:
      driver_feature_select_ = static_cast<uint32_t>(value);
      return;
    case kDriverFeature:
      device_->SetDriverFeatures(driver_feature_select_, static_cast<uint32_t>(value));
      return;
    case kConfigVector:
      config_vector_ = CheckVector(value);
      return;
    case kDeviceStatus:
      if (value == 0) {
        ResetFunction();
      } else {
        device_->SetStatus(static_cast<uint8_t>(value));
      }
      return;
    case kQueueSelect:
      queue_select_ = static_cast<uint16_t>(value);
      return;
    default:
      SetQueueField(offset, value);
  }
}

void VirtioPci::SetQueueField(unsigned offset, uint64_t value) {
  if (queue_select_ >= device_->queue_count()) return;
  VirtQueue& queue = device_->queue(queue_select_);
  if (offset == kQueueVector) {
    queue_vectors_[queue_select_] = CheckVector(value);
    return;
  }
  if (queue.enabled()) return;  // 4.1.4.3.2: the driver does not change an enabled queue
  const auto half = [value](uint64_t& address, unsigned at) {
    const unsigned shift = 8 * at;
    address = (address & ~(uint64_t{0xffffffff} << shift)) | (value << shift);
  };
  switch (offset) {
    case kQueueSize:
      queue.setup().size = static_cast<uint16_t>(value);
      return;
    case kQueueEnable:
      if (value == 1) device_->EnableQueue(queue_select_);
      return UpdateBells();
    case kQueueDescriptors:
    case kQueueDescriptors + 4:
      return half(queue.setup().descriptors, offset - kQueueDescriptors);
    case kQueueDriver:
    case kQueueDriver + 4:
      return half(queue.setup().driver_area, offset - kQueueDriver);
    case kQueueDevice:
    case kQueueDevice + 4:
      return half(queue.setup().device_area, offset - kQueueDevice);
    default:
      return;
  }
}

uint16_t VirtioPci::CheckVector(uint64_t value) const {
  return value < msix_vectors() ? static_cast<uint16_t>(value) : kNoVector;  // 4.1.5.1.2.1
}

uint64_t VirtioPci::ReadIsr(uint64_t offset, unsigned) {
  if (offset != 0) return 0;
  const uint8_t value = isr_;  // 4.1.4.5.1: reading clears it and lowers the line
  isr_ = 0;
  UpdateIntx();
  return value;
}

uint64_t VirtioPci::ReadDevice(uint64_t offset, unsigned size) {
  const std::span<const uint8_t> config = device_->config();
  uint64_t value = 0;
  for (unsigned i = 0; i < size && offset + i < config.size(); ++i) value |= uint64_t{config[offset + i]} << (8 * i);
  return value;
}

void VirtioPci::WriteDevice(uint64_t offset, unsigned size, uint64_t value) {
  uint8_t bytes[8];
  StoreLe(bytes, value);
  device_->WriteConfig(static_cast<uint32_t>(offset), std::span(bytes).first(size));
}

// -- the window in configuration space (4.1.4.9)

bus::IoHandler* VirtioPci::BlockAt(uint64_t offset, unsigned size) {
  if ((size != 1 && size != 2 && size != 4) || offset % size != 0 || offset >= kBarSize) return nullptr;
  if (offset < kIsrOffset) return offset + size <= kCommonSize ? &common_block_ : nullptr;
  return offset < kDeviceOffset ? &isr_block_ : offset < kNotifyOffset ? &device_block_ : &notify_block_;
}

void VirtioPci::BeforeConfigRead(unsigned offset, unsigned size) {
  uint8_t* capability = config() + access_capability_;
  const unsigned data = access_capability_ + kCapData;
  if (offset + size <= data || offset >= data + 4 || capability[kCapBar] != kRegisterBar) return;
  const auto at = LoadLe<uint32_t>(capability + kCapOffset);
  const auto length = LoadLe<uint32_t>(capability + kCapLength);
  if (bus::IoHandler* block = BlockAt(at, length))
    StoreLe(capability + kCapData, static_cast<uint32_t>(block->Read(at % kBlockSize, length)));
}

void VirtioPci::AfterConfigWrite(unsigned offset, unsigned size) {
  UpdateIntx();  // MSI-X may have been switched on or off
  const uint8_t* capability = config() + access_capability_;
  const unsigned data = access_capability_ + kCapData;
  if (offset + size <= data || offset >= data + 4 || capability[kCapBar] != kRegisterBar) return;
  const auto at = LoadLe<uint32_t>(capability + kCapOffset);
  const auto length = LoadLe<uint32_t>(capability + kCapLength);
  const auto value = LoadLe<uint32_t>(capability + kCapData);
  if (bus::IoHandler* block = BlockAt(at, length)) block->Write(at % kBlockSize, length, MaskToSize(value, length));
}

// -- interrupts

void VirtioPci::InterruptQueue(unsigned queue) {
  if (!msix_enabled()) return RaiseIsr(kIsrQueue);
  if (queue_vectors_[queue] != kNoVector) NotifyVector(queue_vectors_[queue]);
}

void VirtioPci::InterruptConfig() {
  if (!msix_enabled()) return RaiseIsr(kIsrConfig);
  if (config_vector_ != kNoVector) NotifyVector(config_vector_);
}

void VirtioPci::RaiseIsr(uint8_t bit) {
  isr_ |= bit;
  UpdateIntx();
}

void VirtioPci::UpdateBells() {
  for (unsigned queue = 0; queue < device_->queue_count(); ++queue) SetDoorbell(queue, device_->queue(queue).enabled());
}

void VirtioPci::UpdateIntx() { SetIntx(isr_ != 0 && !msix_enabled()); }

// -- reset and state

void VirtioPci::ResetFunction() {
  device_->Reset();
  device_feature_select_ = driver_feature_select_ = 0;
  config_vector_ = kNoVector;
  queue_select_ = 0;
  isr_ = 0;
  std::ranges::fill(queue_vectors_, kNoVector);
  UpdateBells();
  UpdateIntx();
}

void VirtioPci::SerializeFunction(state::Archive& archive) {
  archive.Field(1, device_feature_select_);
  archive.Field(2, driver_feature_select_);
  archive.Field(3, config_vector_);
  archive.Field(4, queue_select_);
  archive.Section(6, 1, [&](state::Archive& device, uint16_t) { device_->Serialize(device); });
  archive.Field(5, isr_);  // after the device, which may complete requests when it is saved
  archive.List(
      7, queue_vectors_.size(), queue_vectors_.size(), [](size_t) {},
      [&](state::Archive& element, size_t index) { element.Field(1, queue_vectors_[index]); });
  if (!archive.loading()) return;
  config_vector_ = CheckVector(config_vector_);
  for (uint16_t& vector : queue_vectors_) vector = CheckVector(vector);
  UpdateBells();
  UpdateIntx();
}

}  // namespace nacre::devices
