// Hostile drivers: random register accesses and random ring contents against every device, with fixed seeds.
// What is asserted: no crash, no sanitizer report, no write outside RAM, and the device works again after a
// reset. Longer runs: base/fuzz_testing.h.

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <random>

#include "base/fuzz_testing.h"
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

/// Sends frames back to the guest, and refuses to lose them.
class EchoNet : public network::NetBackend {
 public:
  void Attach(network::FrameReceiver* receiver) override { receiver_ = receiver; }
  void Send(std::span<const uint8_t> frame) override {
    if (receiver_ && waiting_.empty() && receiver_->Receive(frame)) return;
    if (waiting_.size() < 64) waiting_.emplace_back(frame.begin(), frame.end());
  }
  void SendDone() override {
    if (receiver_) receiver_->ReceiveDone();
  }
  void ReceiveReady() override {
    while (!waiting_.empty() && receiver_->Receive(waiting_.front())) waiting_.pop_front();
    receiver_->ReceiveDone();
  }
  bool link_up() const override { return true; }
  uint16_t mtu() const override { return 1500; }

 private:
  network::FrameReceiver* receiver_ = nullptr;
  std::deque<std::vector<uint8_t>> waiting_;
};

/// Nobody is there, or who says nothing.
class QuietVsock final : public VsockHost {
 public:
  class Stream final : public VsockStream {
   public:
    int64_t Read(std::span<uint8_t>) override { return kNotNow; }
    int64_t Write(std::span<const uint8_t> from) override { return static_cast<int64_t>(from.size()); }
    void EndWrites() override {}
    void SetReady(std::function<void()>) override {}
    void Want(bool, bool) override {}
    void Accepted(uint32_t) override {}
  };
  std::unique_ptr<VsockStream> Connect(uint32_t port) override {
    if (port % 2 != 0) return nullptr;
    return std::make_unique<Stream>();
  }
  void SetGuest(VsockGuest*) override {}
};

class VirtioFuzzTest : public testing::TestWithParam<VirtioType>, public VirtioBench {
 protected:
  VirtioFuzzTest() : VirtioBench(4 * kMiB) {
    io = std::move(*storage::AsyncIo::Create());
    Plug(Make());
  }
  std::unique_ptr<VirtioDevice> Make() {
    switch (GetParam()) {
      case VirtioType::kBlock: {
        Fd image(memfd_create("fuzz", MFD_CLOEXEC));
        EXPECT_EQ(0, ftruncate(image.get(), kMiB));
        auto disk = storage::RawDisk::Adopt(std::move(image), kMiB, false, io);
        return std::move(*VirtioBlock::Create({.queues = 2}, std::move(disk), memory, scheduler));
      }
      case VirtioType::kNet:
        return VirtioNet::Create({}, std::make_unique<EchoNet>(), memory, scheduler);
      case VirtioType::kConsole: {
        VirtioConsole::Options options;
        options.ports.push_back({.backend = &nowhere_});
        options.ports.push_back({.backend = &nowhere_, .name = "x", .console = false});
        return std::move(*VirtioConsole::Create(std::move(options), memory, scheduler));
      }
      case VirtioType::kRng:
        return VirtioRng::Create("rng", memory, scheduler);
      case VirtioType::kBalloon:
        return VirtioBalloon::Create("balloon", memory, scheduler);
      case VirtioType::kGpu:
        return VirtioGpu::Create(memory, scheduler);
      case VirtioType::kInput: {
        auto keyboard = VirtioInput::Create(VirtioInput::Kind::kKeyboard, memory, scheduler);
        input_ = keyboard.get();
        return keyboard;
      }
      case VirtioType::kVsock:
        return std::move(*VirtioVsock::Create(3, quiet_, memory, scheduler));
    }
    return nullptr;
  }
  ~VirtioFuzzTest() override { pci.reset(); }

  uint64_t Random() { return random_(); }
  /// An address that is mostly in RAM, often near an edge.
  uint64_t RandomAddress() {
    switch (Random() % 8) {
      case 0:
        return Random();
      case 1:
        return 4 * kMiB - Random() % 64;
      default:
        return Random() % (4 * kMiB);
    }
  }
  uint32_t RandomSize() { return static_cast<uint32_t>(Random() % 16 ? Random() % 5000 : Random()); }

  /// Writes rubbish that resembles descriptors into the rings of `index`.
  void SpoilRing(unsigned index) {
    RingDriver& target = ring(index);
    const QueueSetup& setup = target.setup;
    switch (Random() % 6) {
      case 0:
      case 1:
        return target.SetDescriptor(setup.descriptors, static_cast<unsigned>(Random() % setup.size), RandomAddress(),
                                    RandomSize(), static_cast<uint16_t>(Random() % 9 ? Random() % 8 : Random()),
                                    static_cast<uint16_t>(Random() % setup.size));
      case 2:
        return target.Poke(setup.driver_area + 2, static_cast<uint16_t>(Random()));
      case 3:
        return target.Poke(setup.driver_area + 4 + 2 * (Random() % setup.size), static_cast<uint16_t>(Random()));
      case 4:
        return target.Poke(setup.descriptors + 16 * (Random() % setup.size) + 14, static_cast<uint16_t>(Random()));
      default:
        return target.Poke(setup.device_area + 2 * (Random() % 100), static_cast<uint16_t>(Random()));
    }
  }
  /// A well-formed chain of random buffers whose first bytes look like a request.
  void OfferChain(unsigned index) {
    RingDriver& target = ring(index);
    const QueueSetup& setup = target.setup;
    const unsigned count = 1 + static_cast<unsigned>(Random() % 4);
    const auto first = static_cast<unsigned>(Random() % (setup.size - 4u));
    const unsigned readable = static_cast<unsigned>(Random() % (count + 1));
    const uint64_t data = 0x20'0000 + Random() % 0x10'0000;
    memory.WriteValue(GuestPhys(data), static_cast<uint32_t>(Random() % 16));
    memory.WriteValue(GuestPhys(data + 8), Random() % 4096);
    for (unsigned i = 0; i < count; ++i) {
      const bool last = i + 1 == count;
      const auto flags = static_cast<uint16_t>((i >= readable ? 2 : 0) | (last ? 0 : 1));
      const uint32_t size = i == 0 ? 16 : last ? 1 : static_cast<uint32_t>(512 * (Random() % 9));
      if (packed_) {
        target.SetDescriptor(setup.descriptors, first + i, data + 0x1000 * i, size, static_cast<uint16_t>(first),
                             static_cast<uint16_t>(flags | (Random() & 1 ? 0x80 : 0x8000)));
      } else {
        target.SetDescriptor(setup.descriptors, first + i, data + 0x1000 * i, size, flags,
                             static_cast<uint16_t>(first + i + 1));
      }
    }
    if (!packed_) target.Offer(static_cast<uint16_t>(first));
  }
  void StartDriver(bool packed) {
    packed_ = packed;
    uint64_t features = (OfferedFeatures() & Random()) | Bit(virtio_feature::kVersion1);
    features &= ~Bit(virtio_feature::kRingPacked);
    if (packed) features |= Bit(virtio_feature::kRingPacked);
    ASSERT_TRUE(Negotiate(features));
    const auto count = static_cast<unsigned>(Common(18, 2));
    for (unsigned i = 0; i < count; ++i) SetUpQueue(i, 16, packed);  // they lie in the second MiB of RAM
    SetCommon(20, 1, 15);
  }
  void RandomRegisterAccess() {
    static constexpr uint64_t kOffsets[] = {VirtioPci::kCommonOffset, VirtioPci::kIsrOffset, VirtioPci::kDeviceOffset,
                                            VirtioPci::kNotifyOffset};
    const uint64_t at = kBar0 + kOffsets[Random() % 4] + Random() % 72;
    const unsigned size = 1u << (Random() % 4);
    const uint64_t value = Random() % 3 ? Random() % 32 : Random();
    if (Random() % 3 == 0)
      memory_bus.Read(at, size);
    else
      memory_bus.Write(at, size, value);
    if (Random() % 16 == 0) pci->ConfigWrite(static_cast<unsigned>(Random() % 256), 4, static_cast<uint32_t>(Random()));
    if (Random() % 16 == 0) pci->ConfigRead(static_cast<unsigned>(Random() % 256), 4);
  }
  void Settle() {
    if (input_) input_->Key(static_cast<uint16_t>(Random() % 300), Random() % 2 != 0);
    device().Quiesce();
    scheduler.Advance(1);
    ReadIsr();
  }

  std::shared_ptr<storage::AsyncIo> io;
  NullCharBackend nowhere_;
  QuietVsock quiet_;
  VirtioInput* input_ = nullptr;
  std::mt19937_64 random_{FuzzSeed(20240131)};
  bool packed_ = false;
};

std::string NameOf(const testing::TestParamInfo<VirtioType>& type) {
  switch (type.param) {
    case VirtioType::kNet:
      return "Net";
    case VirtioType::kBlock:
      return "Block";
    case VirtioType::kConsole:
      return "Console";
    case VirtioType::kRng:
      return "Rng";
    case VirtioType::kBalloon:
      return "Balloon";
    case VirtioType::kGpu:
      return "Gpu";
    case VirtioType::kInput:
      return "Input";
    case VirtioType::kVsock:
      return "Vsock";
  }
  return "";
}
INSTANTIATE_TEST_SUITE_P(Devices, VirtioFuzzTest,
                         testing::Values(VirtioType::kNet, VirtioType::kBlock, VirtioType::kConsole, VirtioType::kRng,
                                         VirtioType::kBalloon, VirtioType::kGpu, VirtioType::kInput,
                                         VirtioType::kVsock),
                         NameOf);

TEST_P(VirtioFuzzTest, RandomRings) {
  unsigned broken = 0, used = 0;
  for (FuzzRun run(2500); run.Next();) {
    StartDriver((run.index() & 1) != 0);
    const auto count = static_cast<unsigned>(Common(18, 2));
    const bool gentle = Random() % 3 != 0;
    for (int step = 0; step < 40; ++step) {
      const auto queue = static_cast<unsigned>(Random() % count);
      if (gentle || Random() % 4)
        OfferChain(queue);
      else
        SpoilRing(queue);
      if (Random() % 4 == 0) Kick(queue);
      if (Random() % 16 == 0) Settle();
      if (Random() % 64 == 0) RandomRegisterAccess();
    }
    Settle();
    broken += (Status() & virtio_status::kNeedsReset) != 0;
    for (unsigned i = 0; i < count && !packed_; ++i) used += ring(i).Peek<uint16_t>(ring(i).setup.device_area + 2) != 0;
    PlaceBars();
  }
  EXPECT_GT(broken, 20u) << "the rubbish was not rubbish enough";
  EXPECT_GT(used, 20u) << "nothing was ever served";
  StartDriver(false);
  EXPECT_EQ(15, Status());
}

TEST_P(VirtioFuzzTest, RandomRegisters) {
  for (int step = 0; step < 60'000; ++step) {
    RandomRegisterAccess();
    if (step % 500 == 0) PlaceBars();
    if (step % 1000 == 0) Settle();
  }
  PlaceBars();
  StartDriver(false);
  EXPECT_EQ(15, Status());
}

}  // namespace
}  // namespace nacre::devices
