#include "devices/vga/vga.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "base/bits.h"
#include "base/check.h"
#include "devices/vga/vga_frame.h"

namespace nacre::devices {

using namespace vga;

namespace {

constexpr PciIdentity kIdentity = {0x1234, 0x1111, 0x1af4, 0x1100, 0x030000, 2, 0};
constexpr uint16_t kDispiFirstId = 0xb0c0, kDispiLastId = 0xb0c5;
constexpr uint16_t kMaxX = display::Surface::kMaxWidth, kMaxY = display::Surface::kMaxHeight;
// BAR 2.
constexpr uint64_t kPortsAt = 0x400, kPortsEnd = 0x420, kDispiAt = 0x500, kExtensionAt = 0x600;
constexpr uint32_t kLittleEndian = 0x1e1e1e1e;
// A frame of 70 Hz and 449 lines.
constexpr int64_t kFrameNs = 14'285'714, kRetraceNs = kFrameNs * 37 / 449, kLineNs = kFrameNs / 449;

/// What exists of each indexed register.
constexpr std::array<uint8_t, 5> kSequencerMask{0x03, 0x3d, 0x0f, 0x3f, 0x0e};
constexpr std::array<uint8_t, 9> kGraphicsMask{0x0f, 0x0f, 0x0f, 0x1f, 0x03, 0x7b, 0x0f, 0x0f, 0xff};
constexpr unsigned kCrtcCount = 0x19, kAttributeCount = 0x15;

template <typename Read>
uint64_t ByBytes(unsigned size, Read read) {
  uint64_t value = 0;
  for (unsigned i = 0; i < size; ++i) value |= uint64_t{read(i)} << (8 * i);
  return value;
}

}  // namespace

Result<std::unique_ptr<Vga>> Vga::Create(Options options, const PciWiring& wiring, const Scheduler& scheduler) {
  NACRE_CHECK(std::has_single_bit(options.memory_bytes) && options.memory_bytes >= kPlanesSize);
  if (options.video) {
    NACRE_CHECK(options.video->bytes().size() == options.memory_bytes);
    const std::span<uint8_t> bytes = options.video->bytes();
    return std::unique_ptr<Vga>(new Vga(std::move(options), bytes, wiring, scheduler));
  }
  void* memory = mmap(nullptr, options.memory_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return FailErrno("display: cannot map {} bytes of video memory", options.memory_bytes);
  const std::span<uint8_t> span(static_cast<uint8_t*>(memory), options.memory_bytes);
  return std::unique_ptr<Vga>(new Vga(std::move(options), span, wiring, scheduler));
}

Vga::Vga(Options options, std::span<uint8_t> memory, const PciWiring& wiring, const Scheduler& scheduler)
    : PciDevice("vga", kIdentity, wiring), video_(options.video), memory_(memory), scheduler_(scheduler) {
  AddBar(0, BarKind::kMemory32, memory_.size());
  AddBarBlock(0, 0, memory_.size(), frame_buffer_);
  AddBar(2, BarKind::kMemory32, kRegistersSize);
  AddBarBlock(2, 0, kRegistersSize, registers_io_);
  if (!options.rom.empty()) AddRom(std::move(options.rom));
  ResetFunction();
}

Vga::~Vga() {
  if (!video_) munmap(memory_.data(), memory_.size());
}

void Vga::BarMoved(unsigned index) {
  if (index == 0 && video_) video_->Place(BarAddress(0));
}

std::unique_ptr<display::Frame> Vga::Capture() { return CaptureFrame(registers_, memory_, scheduler_.NowNs()); }

void Vga::ClearMemory(uint64_t size_bytes) {
  const uint64_t pages = AlignDown(size_bytes, kPageSize);
  // Pages go back to the host and read as zero.
  if (video_)
    video_->Clear(pages);
  else if (pages != 0 && madvise(memory_.data(), pages, MADV_DONTNEED) != 0)
    std::fill_n(memory_.begin(), pages, 0);
  std::fill_n(memory_.begin() + static_cast<ptrdiff_t>(pages), size_bytes - pages, 0);
}

void Vga::ResetFunction() {
  registers_ = Registers();
  registers_.dispi[kDispiId] = kDispiLastId;
  ClearMemory(memory_.size());
}

// ---- Ports.

uint64_t Vga::ReadPorts(uint64_t offset, unsigned size) {
  return ByBytes(size, [&](unsigned i) {
    return offset + i < kPortCount ? ReadPort(static_cast<uint16_t>(kPorts + offset + i)) : uint8_t{0xff};
  });
}

void Vga::WritePorts(uint64_t offset, unsigned size, uint64_t value) {
  // A 16-bit write is an index and its data.
  for (unsigned i = 0; i < size && offset + i < kPortCount; ++i)
    WritePort(static_cast<uint16_t>(kPorts + offset + i), static_cast<uint8_t>(value >> (8 * i)));
}

uint8_t Vga::ReadPort(uint16_t port) {
  // The CRT controller is at 0x3dx for colour and at 0x3bx for monochrome.
  if ((port & 0xff0) == ((registers_.misc & 1) ? 0x3b0 : 0x3d0)) return 0xff;
  switch (port) {
    case 0x3b4:
    case 0x3d4:
      return registers_.crtc_index;
    case 0x3b5:
    case 0x3d5:
      return registers_.crtc_index < kCrtcCount ? registers_.crtc[registers_.crtc_index] : 0;
    case 0x3ba:
    case 0x3da:
      return InputStatus1();
    case 0x3c0:
      return registers_.attribute_index;
    case 0x3c1: {
      const unsigned index = registers_.attribute_index & 0x1f;
      return index < kAttributeCount ? registers_.attribute[index] : 0;
    }
    case 0x3c2:
      return 0;  // no interrupt, a colour monitor
    case 0x3c4:
      return registers_.sequencer_index;
    case 0x3c5:
      return registers_.sequencer[registers_.sequencer_index];
    case 0x3c6:
      return registers_.dac_mask;
    case 0x3c7:
      return registers_.dac_reading ? 3 : 0;
    case 0x3c8:
      return registers_.dac_write_index;
    case 0x3c9:
      return ReadDac();
    case 0x3ca:
      return registers_.feature;
    case 0x3cc:
      return registers_.misc;
    case 0x3ce:
      return registers_.graphics_index;
    case 0x3cf:
      return registers_.graphics[registers_.graphics_index];
    default:
      return 0xff;
  }
}

void Vga::WritePort(uint16_t port, uint8_t value) {
  if ((port & 0xff0) == ((registers_.misc & 1) ? 0x3b0 : 0x3d0)) return;
  switch (port) {
    case 0x3b4:
    case 0x3d4:
      registers_.crtc_index = value & 0x1f;
      return;
    case 0x3b5:
    case 0x3d5:
      return WriteCrtc(value);
    case 0x3ba:
    case 0x3da:
      registers_.feature = value & 0x0b;
      return;
    case 0x3c0:
      return WriteAttribute(value);
    case 0x3c2:
      registers_.misc = value & 0xef;
      return;
    case 0x3c4:
      registers_.sequencer_index = value & 7;
      return;
    case 0x3c5:
      if (const unsigned index = registers_.sequencer_index; index < kSequencerMask.size())
        registers_.sequencer[index] = value & kSequencerMask[index];
      return;
    case 0x3c6:
      registers_.dac_mask = value;
      return;
    case 0x3c7:
      registers_.dac_read_index = value;
      registers_.dac_component = 0;
      registers_.dac_reading = true;
      return;
    case 0x3c8:
      registers_.dac_write_index = value;
      registers_.dac_component = 0;
      registers_.dac_reading = false;
      return;
    case 0x3c9:
      return WriteDac(value);
    case 0x3ce:
      registers_.graphics_index = value & 0xf;
      return;
    case 0x3cf:
      if (const unsigned index = registers_.graphics_index; index < kGraphicsMask.size())
        registers_.graphics[index] = value & kGraphicsMask[index];
      return;
    default:
      return;
  }
}

void Vga::WriteCrtc(uint8_t value) {
  const unsigned index = registers_.crtc_index;
  if (index >= kCrtcCount) return;
  // The write protection of 0-7 leaves the line compare bit of the overflow register.
  if (index <= kOverflow && (registers_.crtc[kVerticalRetraceEnd] & 0x80)) {
    if (index != kOverflow) return;
    value = static_cast<uint8_t>((registers_.crtc[kOverflow] & ~0x10) | (value & 0x10));
  }
  registers_.crtc[index] = value;
}

void Vga::WriteAttribute(uint8_t value) {
  if (!std::exchange(registers_.attribute_data, !registers_.attribute_data)) {
    registers_.attribute_index = value & 0x3f;
    return;
  }
  const unsigned index = registers_.attribute_index & 0x1f;
  if (index >= kAttributeCount) return;
  // The palette can be written only while it is taken from the screen.
  if (index < 0x10 && (registers_.attribute_index & 0x20)) return;
  registers_.attribute[index] = index < 0x10 ? value & 0x3f : value;
}

uint8_t Vga::ReadDac() {
  const uint8_t value = registers_.dac[registers_.dac_read_index * 3u + registers_.dac_component];
  if (++registers_.dac_component == 3) {
    registers_.dac_component = 0;
    ++registers_.dac_read_index;
  }
  return value;
}

void Vga::WriteDac(uint8_t value) {
  if (!(registers_.dispi[kDispiEnable] & kDispi8BitDac)) value &= 0x3f;
  if (registers_.dac_component < 2) {
    registers_.dac_pending[registers_.dac_component++] = value;
    return;
  }
  uint8_t* entry = &registers_.dac[registers_.dac_write_index++ * 3u];
  entry[0] = registers_.dac_pending[0];
  entry[1] = registers_.dac_pending[1];
  entry[2] = value;
  registers_.dac_component = 0;
}

uint8_t Vga::InputStatus1() {
  registers_.attribute_data = false;
  const int64_t in_frame = scheduler_.NowNs() % kFrameNs;
  const bool retrace = in_frame >= kFrameNs - kRetraceNs;
  const bool blanked = retrace || in_frame % kLineNs >= kLineNs * 4 / 5;
  return static_cast<uint8_t>((retrace ? 0x08 : 0) | (blanked ? 0x01 : 0));
}

// ---- The Bochs VBE extension.

uint16_t Vga::MostRows() const {
  const uint32_t bits = registers_.dispi[kDispiBpp] < 8 ? 8 : registers_.dispi[kDispiBpp];
  const uint32_t stride = registers_.dispi[kDispiVirtualWidth] * ((bits + 7) / 8);
  return stride == 0 ? 0 : static_cast<uint16_t>(std::min<uint64_t>(memory_.size() / stride, 0xffff));
}

uint16_t Vga::ReadDispi(unsigned index) const {
  const bool capabilities = (registers_.dispi[kDispiEnable] & kDispiGetCaps) != 0;
  switch (index) {
    case kDispiXres:
      return capabilities ? kMaxX : registers_.dispi[index];
    case kDispiYres:
      return capabilities ? kMaxY : registers_.dispi[index];
    case kDispiBpp:
      return capabilities ? 32 : registers_.dispi[index];
    case kDispiVirtualHeight:
      return MostRows();
    case kDispiMemory64K:
      return static_cast<uint16_t>(memory_.size() / (64 * kKiB));
    default:
      return index < kDispiCount ? registers_.dispi[index] : 0xffff;
  }
}

void Vga::WriteDispi(unsigned index, uint16_t value) {
  auto& dispi = registers_.dispi;
  switch (index) {
    case kDispiId:
      if (value >= kDispiFirstId && value <= kDispiLastId) dispi[index] = value;
      return;
    case kDispiXres:
      if (value >= 8 && value <= kMaxX) dispi[index] = value & 0xfff8;
      return;
    case kDispiYres:
      if (value >= 1 && value <= kMaxY) dispi[index] = value;
      return;
    case kDispiBpp:
      if (value == 0) value = 8;
      if (value == 4 || value == 8 || value == 15 || value == 16 || value == 24 || value == 32) dispi[index] = value;
      return;
    case kDispiEnable:
      return EnableDispi(value);
    case kDispiBank:
      dispi[index] = value & static_cast<uint16_t>(memory_.size() / (64 * kKiB) - 1);
      return;
    case kDispiVirtualWidth:
      dispi[index] = std::max<uint16_t>(value & 0xfff8, dispi[kDispiXres]);
      return;
    case kDispiXoffset:
    case kDispiYoffset:
      dispi[index] = value;
      return;
    default:
      return;
  }
}

void Vga::EnableDispi(uint16_t value) {
  auto& dispi = registers_.dispi;
  const bool starts = (value & kDispiEnabled) && !registers_.dispi_enabled();
  // Without a whole mode there is nothing to enable.
  if (starts && (dispi[kDispiXres] == 0 || dispi[kDispiYres] == 0 || dispi[kDispiBpp] == 0)) return;
  if (((value ^ dispi[kDispiEnable]) & kDispi8BitDac) != 0)
    for (uint8_t& level : registers_.dac)
      level = (value & kDispi8BitDac) ? static_cast<uint8_t>(level << 2 | level >> 4) : level >> 2;
  dispi[kDispiEnable] = value & (kDispiEnabled | kDispiGetCaps | kDispi8BitDac | kDispiLfb | kDispiNoClear);
  if (!starts) return;
  dispi[kDispiVirtualWidth] = dispi[kDispiXres];
  dispi[kDispiXoffset] = dispi[kDispiYoffset] = dispi[kDispiBank] = 0;
  // What of the legacy registers decides about memory and picture, as the VBE BIOS expects to find it.
  registers_.graphics[kMiscellaneous] = 0x05;
  registers_.sequencer[kMapMask] = 0x0f;
  registers_.misc |= 0x02;
  if (!(value & kDispiNoClear))
    ClearMemory(std::min<uint64_t>(memory_.size(), uint64_t{registers_.linear_stride()} * dispi[kDispiYres]));
}

uint64_t Vga::ReadDispiPorts(uint64_t offset, unsigned size) {
  if (size != 2) return MaskToSize(~uint64_t{0}, size);
  return offset == 0 ? registers_.dispi_index : ReadDispi(registers_.dispi_index);
}

void Vga::WriteDispiPorts(uint64_t offset, unsigned size, uint64_t value) {
  if (size != 2) return;
  if (offset == 0)
    registers_.dispi_index = static_cast<uint16_t>(value);
  else
    WriteDispi(registers_.dispi_index, static_cast<uint16_t>(value));
}

void Vga::SetLinearMode(uint16_t width, uint16_t height) {
  WriteDispi(kDispiEnable, 0);
  WriteDispi(kDispiBpp, 32);
  WriteDispi(kDispiXres, width);
  WriteDispi(kDispiYres, height);
  WriteDispi(kDispiEnable, kDispiEnabled | kDispiLfb);
  registers_.misc |= 0x03;
  registers_.attribute_index = 0x20;
}

// ---- Memory.

uint64_t Vga::ReadWindowBytes(uint64_t offset, unsigned size) {
  return ByBytes(size, [&](unsigned i) {
    return offset + i < kWindowSize ? ReadWindow(registers_, memory_, static_cast<uint32_t>(offset + i))
                                    : uint8_t{0xff};
  });
}

void Vga::WriteWindowBytes(uint64_t offset, unsigned size, uint64_t value) {
  for (unsigned i = 0; i < size && offset + i < kWindowSize; ++i)
    WriteWindow(registers_, memory_, static_cast<uint32_t>(offset + i), static_cast<uint8_t>(value >> (8 * i)));
}

uint64_t Vga::ReadFrameBuffer(uint64_t offset, unsigned size) {
  uint64_t value = 0;
  if (offset >= memory_.size() || size > memory_.size() - offset) return MaskToSize(~uint64_t{0}, size);
  std::copy_n(&memory_[offset], size, reinterpret_cast<uint8_t*>(&value));
  return value;
}

void Vga::WriteFrameBuffer(uint64_t offset, unsigned size, uint64_t value) {
  if (offset >= memory_.size() || size > memory_.size() - offset) return;
  std::copy_n(reinterpret_cast<const uint8_t*>(&value), size, &memory_[offset]);
}

uint64_t Vga::ReadRegisters(uint64_t offset, unsigned size) {
  if (offset >= kPortsAt && offset + size <= kPortsEnd)
    return ByBytes(size, [&](unsigned i) { return ReadPort(static_cast<uint16_t>(0x3c0 + offset - kPortsAt + i)); });
  if (size == 2 && offset % 2 == 0 && offset >= kDispiAt && offset < kDispiAt + 2 * kDispiCount)
    return ReadDispi(static_cast<unsigned>(offset - kDispiAt) / 2);
  if (size == 4 && offset == kExtensionAt) return 8;  // the size of this block
  if (size == 4 && offset == kExtensionAt + 4) return kLittleEndian;
  return 0;
}

void Vga::WriteRegisters(uint64_t offset, unsigned size, uint64_t value) {
  if (offset >= kPortsAt && offset + size <= kPortsEnd) {
    for (unsigned i = 0; i < size; ++i)
      WritePort(static_cast<uint16_t>(0x3c0 + offset - kPortsAt + i), static_cast<uint8_t>(value >> (8 * i)));
  } else if (size == 2 && offset % 2 == 0 && offset >= kDispiAt && offset < kDispiAt + 2 * kDispiCount) {
    WriteDispi(static_cast<unsigned>(offset - kDispiAt) / 2, static_cast<uint16_t>(value));
  }
}

// ---- State.

void Vga::Tidy(Registers& r) const {
  r.sequencer_index &= 7;
  r.graphics_index &= 0xf;
  r.crtc_index &= 0x1f;
  r.attribute_index &= 0x3f;
  for (unsigned i = 0; i < r.sequencer.size(); ++i)
    r.sequencer[i] &= i < kSequencerMask.size() ? kSequencerMask[i] : uint8_t{0};
  for (unsigned i = 0; i < r.graphics.size(); ++i)
    r.graphics[i] &= i < kGraphicsMask.size() ? kGraphicsMask[i] : uint8_t{0};
  r.dac_component %= 3;
  auto& dispi = r.dispi;
  dispi[kDispiXres] = std::min<uint16_t>(dispi[kDispiXres], kMaxX) & 0xfff8;
  dispi[kDispiYres] = std::min(dispi[kDispiYres], kMaxY);
  dispi[kDispiBank] &= static_cast<uint16_t>(memory_.size() / (64 * kKiB) - 1);
  dispi[kDispiVirtualWidth] = std::max<uint16_t>(dispi[kDispiVirtualWidth] & 0xfff8, dispi[kDispiXres]);
  const uint16_t bpp = dispi[kDispiBpp];
  const bool known = bpp == 4 || bpp == 8 || bpp == 15 || bpp == 16 || bpp == 24 || bpp == 32;
  if (!known) dispi[kDispiBpp] = 0;
  if (!known || dispi[kDispiXres] == 0 || dispi[kDispiYres] == 0)
    dispi[kDispiEnable] &= static_cast<uint16_t>(~kDispiEnabled);
}

void Vga::SerializeFunction(state::Archive& archive) {
  Registers r = registers_;
  archive.Field(1, r.misc);
  archive.Field(2, r.feature);
  archive.Field(3, r.sequencer_index);
  archive.Field(4, r.graphics_index);
  archive.Field(5, r.crtc_index);
  archive.Field(6, r.attribute_index);
  archive.Field(7, r.attribute_data);
  archive.Bytes(8, std::span<uint8_t>(r.sequencer));
  archive.Bytes(9, std::span<uint8_t>(r.graphics));
  archive.Bytes(10, std::span<uint8_t>(r.crtc));
  archive.Bytes(11, std::span<uint8_t>(r.attribute));
  archive.Field(12, r.dac_mask);
  archive.Field(13, r.dac_read_index);
  archive.Field(14, r.dac_write_index);
  archive.Field(15, r.dac_component);
  archive.Field(16, r.dac_reading);
  archive.Bytes(17, std::span<uint8_t>(r.dac_pending));
  archive.Bytes(18, std::span<uint8_t>(r.dac));
  archive.Field(19, r.latch);
  archive.Field(20, r.dispi_index);
  archive.Section(21, 1, [&](state::Archive& dispi, uint16_t) {
    for (unsigned i = 0; i < kDispiCount; ++i) dispi.Field(static_cast<uint16_t>(i + 1), r.dispi[i]);
  });
  SerializeMemory(archive);
  if (!archive.loading() || !archive.ok()) return;
  Tidy(r);
  registers_ = r;
}

/// Pages that are not zero: their number and their bytes.
void Vga::SerializeMemory(state::Archive& archive) {
  constexpr size_t kEntry = sizeof(uint32_t) + kPageSize;
  const size_t pages = memory_.size() / kPageSize;
  std::vector<uint8_t> packed;
  if (!archive.loading()) {
    for (size_t page = 0; page < pages; ++page) {
      const auto bytes = memory_.subspan(page * kPageSize, kPageSize);
      // All is zero if the first byte is, and each is as the one before it. The guest stands still meanwhile.
      if (bytes[0] == 0 && std::memcmp(bytes.data(), bytes.data() + 1, kPageSize - 1) == 0) continue;
      packed.resize(packed.size() + kEntry);
      StoreLe(&packed[packed.size() - kEntry], static_cast<uint32_t>(page));
      std::ranges::copy(bytes, packed.end() - kPageSize);
    }
  }
  archive.Bytes(22, packed, pages * kEntry);
  if (!archive.loading() || !archive.ok()) return;
  if (packed.size() % kEntry != 0) return archive.Reject("vga: video memory that ends inside a page");
  for (size_t at = 0; at < packed.size(); at += kEntry)
    if (LoadLe<uint32_t>(&packed[at]) >= pages) return archive.Reject("vga: a page outside of the video memory");
  ClearMemory(memory_.size());
  for (size_t at = 0; at < packed.size(); at += kEntry)
    std::copy_n(&packed[at + sizeof(uint32_t)], kPageSize, &memory_[LoadLe<uint32_t>(&packed[at]) * kPageSize]);
}

}  // namespace nacre::devices
