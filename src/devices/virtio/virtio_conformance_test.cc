// The suite that every device passes (bus/conformance_testing.h), over each virtio device behind PCI. The stimulus is
// a driver that sets the device up, offers buffers and kicks, so that the suite meets it in working states too.

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bus/conformance_testing.h"
#include "devices/virtio/balloon.h"
#include "devices/virtio/block.h"
#include "devices/virtio/console.h"
#include "devices/virtio/gpu.h"
#include "devices/virtio/input.h"
#include "devices/virtio/net.h"
#include "devices/virtio/rng.h"
#include "devices/virtio/virtio_testing.h"
#include "devices/virtio/vsock.h"
#include "storage/raw_disk.h"

namespace nacre::devices {
namespace {

class NoNet : public network::NetBackend {
 public:
  void Attach(network::FrameReceiver*) override {}
  void Send(std::span<const uint8_t>) override {}
  void SendDone() override {}
  void ReceiveReady() override {}
  bool link_up() const override { return true; }
  uint16_t mtu() const override { return 1500; }
};

/// A window of the memory bus as one register block.
class BusWindow : public bus::IoHandler {
 public:
  BusWindow(bus::MemoryBus& memory_bus, uint64_t base) : bus_(memory_bus), base_(base) {}
  uint64_t Read(uint64_t offset, unsigned size) override { return bus_.Read(base_ + offset, size); }
  void Write(uint64_t offset, unsigned size, uint64_t value) override { bus_.Write(base_ + offset, size, value); }

 private:
  bus::MemoryBus& bus_;
  const uint64_t base_;
};

class Subject : public bus::ConformanceSubject {
 public:
  explicit Subject(VirtioType type) : bench_(4 * kMiB) {
    io_ = std::move(*storage::AsyncIo::Create());
    bench_.Plug(Make(type));
  }
  ~Subject() override { bench_.pci.reset(); }

  bus::Device& device() override { return *bench_.pci; }
  std::vector<bus::ConformanceBlock> blocks() override {
    bench_.PlaceBars();
    return {{&registers_, VirtioPci::kBarSize, 8}, {&msix_, kPageSize, 8}};
  }
  void Stimulate(uint64_t random) override {
    const bool packed = (random & 1) != 0;
    uint64_t features = bench_.OfferedFeatures() & (random >> 1);
    features = (features | Bit(virtio_feature::kVersion1)) & ~Bit(virtio_feature::kRingPacked);
    if (packed) features |= Bit(virtio_feature::kRingPacked);
    if (!bench_.Negotiate(features)) return;
    const auto count = static_cast<unsigned>(bench_.Common(18, 2));
    for (unsigned i = 0; i < count; ++i) bench_.SetUpQueue(i, 16, packed, static_cast<uint16_t>(random % 3));
    bench_.SetCommon(20, 1, 15);
    for (unsigned i = 0; i < count; ++i) {
      bench_.ring(i).Add({{0x20'0000, 64}, {0x20'1000, 512, true}, {0x20'2000, 1, true}}, (random & 2) != 0);
      bench_.Kick(i);
    }
    bench_.device().Quiesce();
  }

 private:
  std::unique_ptr<VirtioDevice> Make(VirtioType type) {
    switch (type) {
      case VirtioType::kBlock: {
        Fd image(memfd_create("conformance", MFD_CLOEXEC));
        EXPECT_EQ(0, ftruncate(image.get(), kMiB));
        auto disk = storage::RawDisk::Adopt(std::move(image), kMiB, false, io_);
        return std::move(*VirtioBlock::Create({.queues = 2}, std::move(disk), bench_.memory, scheduler()));
      }
      case VirtioType::kNet:
        return VirtioNet::Create({}, std::make_unique<NoNet>(), bench_.memory, scheduler());
      case VirtioType::kConsole:
        return std::move(*VirtioConsole::Create(
            {.ports = {{.backend = &nowhere_}, {.backend = &nowhere_, .name = "x", .console = false}}}, bench_.memory,
            scheduler()));
      case VirtioType::kRng:
        return VirtioRng::Create("rng", bench_.memory, scheduler());
      case VirtioType::kBalloon:
        return VirtioBalloon::Create("balloon", bench_.memory, scheduler());
      case VirtioType::kGpu:
        return VirtioGpu::Create(bench_.memory, scheduler());
      case VirtioType::kInput:
        return VirtioInput::Create(VirtioInput::Kind::kKeyboard, bench_.memory, scheduler());
      case VirtioType::kVsock:
        return std::move(*VirtioVsock::Create(3, nobody_, bench_.memory, scheduler()));
    }
    return nullptr;
  }

  struct : VsockHost {
    std::unique_ptr<VsockStream> Connect(uint32_t) override { return nullptr; }
    void SetGuest(VsockGuest*) override {}
  } nobody_;
  NullCharBackend nowhere_;
  std::shared_ptr<storage::AsyncIo> io_;
  VirtioBench bench_;
  BusWindow registers_{bench_.memory_bus, VirtioBench::kBar0};
  BusWindow msix_{bench_.memory_bus, VirtioBench::kBar1};
};

void Conform(VirtioType type) {
  bus::RunConformance([type] { return std::make_unique<Subject>(type); });
}

TEST(Conformance, VirtioBlock) { Conform(VirtioType::kBlock); }
TEST(Conformance, VirtioNet) { Conform(VirtioType::kNet); }
TEST(Conformance, VirtioConsole) { Conform(VirtioType::kConsole); }
TEST(Conformance, VirtioRng) { Conform(VirtioType::kRng); }
TEST(Conformance, VirtioBalloon) { Conform(VirtioType::kBalloon); }
TEST(Conformance, VirtioGpu) { Conform(VirtioType::kGpu); }
TEST(Conformance, VirtioInput) { Conform(VirtioType::kInput); }
TEST(Conformance, VirtioVsock) { Conform(VirtioType::kVsock); }

}  // namespace
}  // namespace nacre::devices
