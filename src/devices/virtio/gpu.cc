#include "devices/virtio/gpu.h"

#include <algorithm>
#include <cstring>

#include "base/bits.h"

namespace nacre::devices {
namespace {

constexpr unsigned kControlQueue = 0, kCursorQueue = 1;  // 5.7.2
constexpr uint16_t kControlSize = 256, kCursorSize = 16;
constexpr unsigned kFeatureEdid = 1;
// 5.7.4: struct virtio_gpu_config.
constexpr unsigned kEventsRead = 0, kEventsClear = 4, kScanouts = 8;
constexpr uint32_t kEventDisplay = 1;
constexpr unsigned kMaxScanouts = 16;
// 5.7.6.7: struct virtio_gpu_ctrl_hdr, enum virtio_gpu_ctrl_type.
constexpr uint64_t kHeaderSize = 24;
constexpr uint32_t kFlagFence = 1;
constexpr uint32_t kGetDisplayInfo = 0x100, kResourceCreate2d = 0x101, kResourceUnref = 0x102, kSetScanout = 0x103,
                   kResourceFlush = 0x104, kTransferToHost2d = 0x105, kAttachBacking = 0x106, kDetachBacking = 0x107,
                   kGetEdid = 0x10a, kUpdateCursor = 0x300, kMoveCursor = 0x301;
constexpr uint32_t kOk = 0x1100, kOkDisplayInfo = 0x1101, kOkEdid = 0x1104, kErrorUnspecified = 0x1200,
                   kErrorOutOfMemory = 0x1201, kErrorScanout = 0x1202, kErrorResource = 0x1203,
                   kErrorParameter = 0x1205;
constexpr uint64_t kEntrySize = 16;  // struct virtio_gpu_mem_entry
constexpr size_t kEdidSize = 1024;
constexpr uint32_t kCursorSide = 64;  // 5.7.6.10
/// Bytes moved for a notification before others get their turn with the device lock, and what a command counts besides.
constexpr uint64_t kTurnBytes = 64 * kMiB, kCommandBytes = 64 * kKiB;

}  // namespace

uint32_t VirtioGpu::Request::word(unsigned at) const { return LoadLe<uint32_t>(&body[at]); }
gpu::Rect VirtioGpu::Request::rect() const { return {word(0), word(4), word(8), word(12)}; }

std::unique_ptr<VirtioGpu> VirtioGpu::Create(memory::GuestMemory& memory, Scheduler& scheduler) {
  return std::unique_ptr<VirtioGpu>(new VirtioGpu(memory, scheduler));
}

VirtioGpu::VirtioGpu(memory::GuestMemory& memory, Scheduler& scheduler)
    : VirtioDevice({.name = "virtio-gpu0",
                    .type = VirtioType::kGpu,
                    .features = Bit(kFeatureEdid),
                    .queue_sizes = {kControlSize, kCursorSize}},
                   memory, scheduler) {
  StoreLe<uint32_t>(&config_[kScanouts], 1);
}

void VirtioGpu::WriteConfig(uint32_t offset, std::span<const uint8_t> data) {
  if (offset != kEventsClear || data.size() != 4) return;
  StoreLe<uint32_t>(&config_[kEventsRead], LoadLe<uint32_t>(&config_[kEventsRead]) & ~LoadLe<uint32_t>(data.data()));
}

bool VirtioGpu::RequestSize(unsigned width, unsigned height) {
  if (width < kCursorSide || height < kCursorSide || width > display::Surface::kMaxWidth ||
      height > display::Surface::kMaxHeight)
    return false;
  if (width == width_ && height == height_) return true;
  width_ = width;
  height_ = height;
  StoreLe<uint32_t>(&config_[kEventsRead], kEventDisplay);
  ConfigChanged();
  Changed();
  return true;
}

std::unique_ptr<display::Frame> VirtioGpu::Capture() {
  const auto found = resources_.find(scanout_.resource);
  if (found == resources_.end()) return gpu::MakeFrame(nullptr, {0, 0, width_, height_});
  return gpu::MakeFrame(&found->second, scanout_.rect);
}

void VirtioGpu::OnQueue(unsigned index) {
  VirtQueue& ring = queue(index);
  ring.DisableNotification();
  uint64_t cost = 0;
  do {
    while (cost < kTurnBytes && ring.Pop(chain_)) cost += kCommandBytes + Serve(index, chain_);
    if (cost >= kTurnBytes) {
      LookAgain(index);
      break;
    }
  } while (ring.EnableNotification());
  Signal(index);
}

uint64_t VirtioGpu::Serve(unsigned queue_index, Chain& chain) {
  std::array<uint8_t, kHeaderSize> header{};
  Request request{.chain = &chain};
  Response response{kErrorUnspecified};
  moved_bytes_ = 0;
  if (chain.Read(0, header) == kHeaderSize) {
    request.type = LoadLe<uint32_t>(&header[0]);
    chain.Read(kHeaderSize, request.body);  // what is not there is zero
    const bool cursor = request.type == kUpdateCursor || request.type == kMoveCursor;
    if (cursor == (queue_index == kCursorQueue)) response = Execute(request);
  }
  std::vector<uint8_t> bytes(kHeaderSize);
  StoreLe(&bytes[0], response.type);
  const uint32_t flags = LoadLe<uint32_t>(&header[4]) & kFlagFence;
  StoreLe(&bytes[4], flags);
  if (flags) std::copy(&header[8], &header[20], &bytes[8]);  // fence_id, ctx_id
  bytes.insert(bytes.end(), response.body.begin(), response.body.end());
  const uint64_t written = chain.Write(memory(), 0, bytes);
  queue(queue_index).Push(chain, static_cast<uint32_t>(written));
  return moved_bytes_;
}

VirtioGpu::Response VirtioGpu::Execute(const Request& request) {
  switch (request.type) {
    case kGetDisplayInfo:
      return DisplayInfo();
    case kResourceCreate2d:
      return CreateResource(request);
    case kResourceUnref:
      return Unref(request);
    case kSetScanout:
      return SetScanout(request);
    case kResourceFlush:
      return Flush(request);
    case kTransferToHost2d:
      return Transfer(request);
    case kAttachBacking:
      return AttachBacking(request);
    case kDetachBacking:
      return DetachBacking(request);
    case kGetEdid:
      return GetEdid(request);
    case kUpdateCursor:
    case kMoveCursor:
      return MoveCursor(request);
    default:
      return {kErrorUnspecified};
  }
}

gpu::Resource* VirtioGpu::Find(uint32_t id) {
  const auto found = resources_.find(id);
  return found == resources_.end() ? nullptr : &found->second;
}

VirtioGpu::Response VirtioGpu::DisplayInfo() const {
  Response response{kOkDisplayInfo, std::vector<uint8_t>(kMaxScanouts * 24)};
  StoreLe<uint32_t>(&response.body[8], width_);
  StoreLe<uint32_t>(&response.body[12], height_);
  StoreLe<uint32_t>(&response.body[16], 1);  // enabled
  return response;
}

VirtioGpu::Response VirtioGpu::GetEdid(const Request& request) const {
  if (request.word(0) != 0) return {kErrorScanout};
  const auto edid = gpu::MakeEdid(width_, height_);
  Response response{kOkEdid, std::vector<uint8_t>(8 + kEdidSize)};
  StoreLe<uint32_t>(&response.body[0], static_cast<uint32_t>(edid.size()));
  std::ranges::copy(edid, &response.body[8]);
  return response;
}

VirtioGpu::Response VirtioGpu::CreateResource(const Request& request) {
  gpu::Resource resource{
      .id = request.word(0), .format = request.word(4), .width = request.word(8), .height = request.word(12)};
  if (resource.id == 0 || Find(resource.id)) return {kErrorResource};
  if (!gpu::IsFormat(resource.format) || !gpu::Rect{0, 0, resource.width, resource.height}.Inside(kMaxSide, kMaxSide))
    return {kErrorParameter};
  if (resources_.size() >= kMaxResources || resource.size_bytes() > kMaxHostBytes - host_bytes_)
    return {kErrorOutOfMemory};
  resource.pixels = gpu::Pixels::Create(resource.size_bytes() / 4);
  if (!resource.pixels) return {kErrorOutOfMemory};
  host_bytes_ += resource.size_bytes();
  resources_.emplace(resource.id, std::move(resource));
  return {kOk};
}

VirtioGpu::Response VirtioGpu::Unref(const Request& request) {
  gpu::Resource* const resource = Find(request.word(0));
  if (!resource) return {kErrorResource};
  if (scanout_.resource == resource->id) {
    scanout_ = {};
    Changed();
  }
  host_bytes_ -= resource->size_bytes();
  backing_entries_ -= resource->backing.size();
  resources_.erase(resource->id);
  return {kOk};
}

VirtioGpu::Response VirtioGpu::SetScanout(const Request& request) {
  const uint32_t scanout = request.word(16), id = request.word(20);
  if (scanout != 0) return {kErrorScanout};
  if (id == 0) {
    scanout_ = {};
    Changed();
    return {kOk};
  }
  const gpu::Resource* const resource = Find(id);
  if (!resource) return {kErrorResource};
  if (!request.rect().Inside(resource->width, resource->height)) return {kErrorParameter};
  scanout_ = {id, request.rect()};
  Changed();
  return {kOk};
}

VirtioGpu::Response VirtioGpu::Flush(const Request& request) {
  const gpu::Resource* const resource = Find(request.word(16));
  if (!resource) return {kErrorResource};
  if (!request.rect().Inside(resource->width, resource->height)) return {kErrorParameter};
  if (resource->id == scanout_.resource) Changed();
  return {kOk};
}

VirtioGpu::Response VirtioGpu::Transfer(const Request& request) {
  gpu::Resource* const resource = Find(request.word(24));
  if (!resource) return {kErrorResource};
  const gpu::Rect rect = request.rect();
  if (!rect.Inside(resource->width, resource->height)) return {kErrorParameter};
  // Looking for the place in a backing of many pieces costs as well.
  moved_bytes_ = uint64_t{rect.width} * rect.height * 4 + resource->backing.size() * kEntrySize;
  const bool done = resource->TransferToHost(memory(), rect, LoadLe<uint64_t>(&request.body[16]));
  return {done ? kOk : kErrorParameter};
}

VirtioGpu::Response VirtioGpu::AttachBacking(const Request& request) {
  gpu::Resource* const resource = Find(request.word(0));
  if (!resource) return {kErrorResource};
  if (!resource->backing.empty()) return {kErrorUnspecified};
  const uint32_t count = request.word(4);
  constexpr uint64_t kEntriesAt = kHeaderSize + 8;
  if (count > kMaxBackingEntries - backing_entries_) return {kErrorOutOfMemory};
  const uint64_t readable = request.chain->readable_bytes();
  if (count == 0 || readable < kEntriesAt || (readable - kEntriesAt) / kEntrySize < count) return {kErrorParameter};
  std::vector<uint8_t> bytes(count * kEntrySize);
  request.chain->Read(kEntriesAt, bytes);
  std::vector<gpu::BackingEntry> backing(count);
  for (uint32_t i = 0; i < count; ++i) {
    backing[i] = {LoadLe<uint64_t>(&bytes[i * kEntrySize]), LoadLe<uint32_t>(&bytes[i * kEntrySize + 8])};
    if (!memory().IsRam(GuestPhys(backing[i].address), backing[i].size_bytes)) return {kErrorParameter};
  }
  moved_bytes_ = bytes.size();
  resource->backing = std::move(backing);
  backing_entries_ += count;
  return {kOk};
}

VirtioGpu::Response VirtioGpu::DetachBacking(const Request& request) {
  gpu::Resource* const resource = Find(request.word(0));
  if (!resource) return {kErrorResource};
  backing_entries_ -= resource->backing.size();
  resource->backing = {};
  return {kOk};
}

VirtioGpu::Response VirtioGpu::MoveCursor(const Request& request) {
  if (request.word(0) != 0) return {kErrorScanout};
  cursor_.x = static_cast<int>(std::min<uint32_t>(request.word(4), display::Surface::kMaxWidth));
  cursor_.y = static_cast<int>(std::min<uint32_t>(request.word(8), display::Surface::kMaxHeight));
  if (request.type == kMoveCursor) return {kOk};
  const uint32_t id = request.word(16);
  const gpu::Resource* const resource = Find(id);
  if (id != 0 && (!resource || resource->width != kCursorSide || resource->height != kCursorSide))
    return {kErrorResource};
  SetCursorImage(resource, request.word(20), request.word(24));
  return {kOk};
}

void VirtioGpu::SetCursorImage(const gpu::Resource* resource, uint32_t hot_x, uint32_t hot_y) {
  cursor_.image.reset();
  if (!resource) return;
  display::CursorImage image{.width = kCursorSide,
                             .height = kCursorSide,
                             .hot_x = std::min(hot_x, kCursorSide - 1),
                             .hot_y = std::min(hot_y, kCursorSide - 1),
                             .argb = {}};
  image.argb.assign(resource->pixels->data(), resource->pixels->data() + resource->pixels->count());
  for (uint32_t& pixel : image.argb) pixel = gpu::ToArgb(resource->format, pixel);
  cursor_.image = std::make_shared<const display::CursorImage>(std::move(image));
}

void VirtioGpu::OnReset() {
  resources_.clear();
  host_bytes_ = 0;
  backing_entries_ = 0;
  scanout_ = {};
  cursor_ = {};
  StoreLe<uint32_t>(&config_[kEventsRead], 0);
  Changed();
}

void VirtioGpu::SerializeState(state::Archive& archive) {
  uint32_t events = LoadLe<uint32_t>(&config_[kEventsRead]);
  archive.Field(1, width_);
  archive.Field(2, height_);
  archive.Field(3, events);
  archive.Field(4, scanout_.resource);
  uint32_t* const rect[] = {&scanout_.rect.x, &scanout_.rect.y, &scanout_.rect.width, &scanout_.rect.height};
  for (uint16_t i = 0; i < 4; ++i) archive.Field(static_cast<uint16_t>(5 + i), *rect[i]);
  archive.Field(9, cursor_.x);
  archive.Field(10, cursor_.y);
  display::CursorImage image{};
  if (cursor_.image) image = *cursor_.image;
  std::vector<uint8_t> argb(image.argb.size() * 4);
  std::memcpy(argb.data(), image.argb.data(), argb.size());
  archive.Field(11, image.hot_x);
  archive.Field(12, image.hot_y);
  archive.Bytes(13, argb, uint64_t{kCursorSide} * kCursorSide * 4);
  std::vector<gpu::Resource> list;
  for (const auto& [id, resource] : resources_) list.push_back(resource);
  archive.List(
      14, list.size(), kMaxResources, [&](size_t count) { list.resize(count); },
      [&](state::Archive& element, size_t index) {
        gpu::Resource& resource = list[index];
        element.Field(1, resource.id);
        element.Field(2, resource.format);
        element.Field(3, resource.width);
        element.Field(4, resource.height);
        std::vector<uint8_t> backing(resource.backing.size() * kEntrySize);
        for (size_t i = 0; i < resource.backing.size(); ++i) {
          StoreLe(&backing[i * kEntrySize], resource.backing[i].address);
          StoreLe(&backing[i * kEntrySize + 8], resource.backing[i].size_bytes);
        }
        element.Bytes(5, backing, kMaxBackingEntries * kEntrySize);
        std::vector<uint8_t> pixels(element.loading() ? 0 : resource.size_bytes());
        if (!pixels.empty()) std::memcpy(pixels.data(), resource.pixels->data(), pixels.size());
        element.Bytes(6, pixels, kMaxHostBytes);
        if (!element.loading() || !element.ok()) return;
        const bool fits = resource.id != 0 && gpu::IsFormat(resource.format) && !Find(resource.id) &&
                          gpu::Rect{0, 0, resource.width, resource.height}.Inside(kMaxSide, kMaxSide) &&
                          pixels.size() == resource.size_bytes() && pixels.size() <= kMaxHostBytes - host_bytes_ &&
                          backing.size() / kEntrySize <= kMaxBackingEntries - backing_entries_;
        if (fits) resource.pixels = gpu::Pixels::Create(pixels.size() / 4);
        if (!resource.pixels) return element.Reject(name() + ": a resource that no guest can have");
        std::memcpy(resource.pixels->data(), pixels.data(), pixels.size());
        for (size_t at = 0; at + kEntrySize <= backing.size(); at += kEntrySize)
          resource.backing.push_back({LoadLe<uint64_t>(&backing[at]), LoadLe<uint32_t>(&backing[at + 8])});
        host_bytes_ += pixels.size();
        backing_entries_ += resource.backing.size();
        resources_.emplace(resource.id, resource);
      });
  if (!archive.loading()) return;
  if (width_ == 0 || height_ == 0 || width_ > display::Surface::kMaxWidth || height_ > display::Surface::kMaxHeight) {
    width_ = kFirstWidth;
    height_ = kFirstHeight;
  }
  StoreLe<uint32_t>(&config_[kEventsRead], events & kEventDisplay);
  const gpu::Resource* const shown = Find(scanout_.resource);
  if (!shown || !scanout_.rect.Inside(shown->width, shown->height)) scanout_ = {};
  cursor_.x = std::clamp(cursor_.x, 0, static_cast<int>(display::Surface::kMaxWidth));
  cursor_.y = std::clamp(cursor_.y, 0, static_cast<int>(display::Surface::kMaxHeight));
  if (argb.size() == uint64_t{kCursorSide} * kCursorSide * 4) {
    gpu::Resource picture{.id = 1, .format = 1, .width = kCursorSide, .height = kCursorSide};
    picture.pixels = gpu::Pixels::Create(argb.size() / 4);
    if (picture.pixels) {
      std::memcpy(picture.pixels->data(), argb.data(), argb.size());
      SetCursorImage(&picture, image.hot_x, image.hot_y);
    }
  }
  Changed();
}

}  // namespace nacre::devices
