#pragma once
// A virtio-gpu and a driver of it. For tests only. Control requests are answered at once.

#include <gtest/gtest.h>

#include "devices/virtio/gpu.h"
#include "devices/virtio/virtio_testing.h"

namespace nacre::devices {

class GpuBench : public VirtioBench {
 public:
  static constexpr uint64_t kRequest = 0x40'0000, kAnswer = 0x48'0000, kPicture = 0x60'0000;
  static constexpr uint32_t kOk = 0x1100, kUnspecified = 0x1200, kNoMemory = 0x1201, kBadScanout = 0x1202,
                            kBadResource = 0x1203, kBadParameter = 0x1205;

  GpuBench() {
    auto created = VirtioGpu::Create(memory, scheduler);
    gpu = created.get();
    Plug(std::move(created));
  }
  ~GpuBench() { pci.reset(); }

  /// Words behind the header; the answer's type. The whole answer is in `answer`.
  uint32_t Ask(uint32_t type, const std::vector<uint32_t>& words, unsigned queue = 0) {
    std::vector<uint32_t> request{type, 0, 0, 0, 0, 0};
    request.insert(request.end(), words.begin(), words.end());
    return AskRaw({reinterpret_cast<const uint8_t*>(request.data()), request.size() * 4}, queue);
  }
  uint32_t AskRaw(std::span<const uint8_t> request, unsigned queue = 0, uint32_t room = 2048) {
    Fill(kRequest, request);
    ring(queue).Add({{kRequest, static_cast<uint32_t>(request.size())}, {kAnswer, room, true}});
    Kick(queue);
    scheduler.Advance(1);
    answer = Get(kAnswer, ring(queue).Used().written);
    return answer.size() >= 4 ? LoadLe<uint32_t>(answer.data()) : 0;
  }
  uint32_t Create(uint32_t id, uint32_t width, uint32_t height, uint32_t format = 2) {
    return Ask(0x101, {id, format, width, height});
  }
  uint32_t Attach(uint32_t id, const std::vector<std::pair<uint32_t, uint32_t>>& pieces) {
    std::vector<uint32_t> words{id, static_cast<uint32_t>(pieces.size())};
    for (const auto& [address, size] : pieces) words.insert(words.end(), {address, 0, size, 0});
    return Ask(0x106, words);
  }
  uint32_t Transfer(uint32_t id, const gpu::Rect& r, uint64_t offset) {
    return Ask(0x105, {r.x, r.y, r.width, r.height, static_cast<uint32_t>(offset), static_cast<uint32_t>(offset >> 32),
                       id, 0});
  }
  uint32_t Scanout(uint32_t id, const gpu::Rect& r, uint32_t scanout = 0) {
    return Ask(0x103, {r.x, r.y, r.width, r.height, scanout, id});
  }
  uint32_t Flush(uint32_t id, const gpu::Rect& r) { return Ask(0x104, {r.x, r.y, r.width, r.height, id, 0}); }
  const display::Surface& Draw() {
    gpu->Capture()->Draw(surface);
    return surface;
  }
  uint32_t Pixel(unsigned x, unsigned y) { return Draw().row(y)[x] & 0xffffff; }

  VirtioGpu* gpu = nullptr;
  std::vector<uint8_t> answer;
  display::Surface surface;
};

}  // namespace nacre::devices
