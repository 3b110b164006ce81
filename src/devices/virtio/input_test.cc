// virtio-input: what drivers ask for, events, LEDs.

#include "devices/virtio/input.h"

#include <gtest/gtest.h>
#include <linux/input-event-codes.h>

#include "devices/virtio/virtio_testing.h"

namespace nacre::devices {
namespace {

constexpr uint64_t kData = 0x40'0000;

class VirtioInputTest : public testing::TestWithParam<bool>, public VirtioBench {
 protected:
  struct Seen {
    uint16_t type, code;
    uint32_t value;
    bool operator==(const Seen&) const = default;
  };
  void Begin(VirtioInput::Kind kind) {
    auto created = VirtioInput::Create(kind, memory, scheduler);
    input = created.get();
    Plug(std::move(created));
    Start(0, GetParam());
  }
  ~VirtioInputTest() override { pci.reset(); }
  void Give(unsigned count, uint32_t size = 8) {
    for (unsigned i = 0; i < count; ++i) {
      const uint64_t at = kData + 16 * (given_++ % 256);
      places_[ring(0).Add({{at, size, true}})] = at;
    }
    Kick(0);
  }
  std::vector<Seen> Take() {
    std::vector<Seen> all;
    while (const auto used = ring(0).GetUsed()) {
      const auto bytes = Get(places_[static_cast<uint16_t>(used->id)], 8);
      if (used->written == 8)
        all.push_back({LoadLe<uint16_t>(&bytes[0]), LoadLe<uint16_t>(&bytes[2]), LoadLe<uint32_t>(&bytes[4])});
    }
    return all;
  }
  std::vector<uint8_t> Ask(uint8_t select, uint8_t subselect) {
    memory_bus.Write(kBar0 + VirtioPci::kDeviceOffset, 1, select);
    memory_bus.Write(kBar0 + VirtioPci::kDeviceOffset + 1, 1, subselect);
    std::vector<uint8_t> answer(Config(2, 1));
    for (unsigned i = 0; i < answer.size(); ++i) answer[i] = static_cast<uint8_t>(Config(8 + i, 1));
    return answer;
  }
  bool Has(uint8_t type, unsigned code) {
    const auto bits = Ask(0x11, type);
    return code / 8 < bits.size() && (bits[code / 8] >> code % 8 & 1) != 0;
  }
  static constexpr Seen kSync{EV_SYN, SYN_REPORT, 0};

  VirtioInput* input = nullptr;

 private:
  unsigned given_ = 0;
  std::map<uint16_t, uint64_t> places_;
};
INSTANTIATE_TEST_SUITE_P(Rings, VirtioInputTest, testing::Bool(),
                         [](const auto& ring) { return ring.param ? "Packed" : "Split"; });

// 5.8.5
TEST_P(VirtioInputTest, SaysWhatItIs) {
  Begin(VirtioInput::Kind::kKeyboard);
  const auto name = Ask(0x01, 0);
  EXPECT_EQ(std::string(name.begin(), name.end()), "Nacre virtio keyboard");
  EXPECT_EQ(Ask(0x03, 0).size(), 8u);
  EXPECT_TRUE(Has(EV_KEY, KEY_A));
  EXPECT_TRUE(Has(EV_KEY, KEY_PAUSE));
  EXPECT_TRUE(Has(EV_KEY, KEY_DELETE));
  EXPECT_FALSE(Has(EV_KEY, BTN_LEFT));
  EXPECT_TRUE(Has(EV_LED, LED_CAPSL));
  EXPECT_TRUE(Ask(0x11, EV_REL).empty());
  EXPECT_TRUE(Ask(0x12, ABS_X).empty());
  EXPECT_TRUE(Ask(0xff, 0xff).empty());
  EXPECT_TRUE(Ask(0, 0).empty());
}

TEST_P(VirtioInputTest, ATabletHasAxes) {
  Begin(VirtioInput::Kind::kTablet);
  EXPECT_TRUE(Has(EV_ABS, ABS_X));
  EXPECT_TRUE(Has(EV_ABS, ABS_Y));
  EXPECT_TRUE(Has(EV_REL, REL_WHEEL));
  EXPECT_FALSE(Has(EV_REL, REL_X));
  EXPECT_TRUE(Has(EV_KEY, BTN_MIDDLE));
  const auto axis = Ask(0x12, ABS_Y);
  ASSERT_EQ(axis.size(), 20u);
  EXPECT_EQ(LoadLe<uint32_t>(&axis[0]), 0u);
  EXPECT_EQ(LoadLe<uint32_t>(&axis[4]), display::kPointerRange);
  EXPECT_TRUE(Ask(0x12, ABS_Z).empty());
}

TEST_P(VirtioInputTest, KeysAndTheirRepetition) {
  Begin(VirtioInput::Kind::kKeyboard);
  Give(16);
  for (const bool down : {true, true, false}) input->Key(KEY_A, down);
  input->Key(BTN_LEFT, true);  // no key
  EXPECT_TRUE(input->keys_taken());
  EXPECT_EQ(Take(),
            (std::vector<Seen>{{EV_KEY, KEY_A, 1}, kSync, {EV_KEY, KEY_A, 2}, kSync, {EV_KEY, KEY_A, 0}, kSync}));
}

TEST_P(VirtioInputTest, EventsWaitForBuffersAndAreBounded) {
  Begin(VirtioInput::Kind::kKeyboard);
  for (int i = 0; i < 3000; ++i) input->Key(KEY_B, i % 2 == 0);
  EXPECT_FALSE(input->keys_taken());
  std::vector<Seen> all;
  for (size_t before = ~size_t{0}; all.size() != before;) {
    before = all.size();
    Give(32);
    for (const Seen& seen : Take()) all.push_back(seen);
  }
  EXPECT_TRUE(input->keys_taken());
  ASSERT_EQ(all.size(), VirtioInput::kMaxWaiting);
  EXPECT_EQ(all.back(), kSync);
  EXPECT_EQ(all[0], (Seen{EV_KEY, KEY_B, 1}));
}

TEST_P(VirtioInputTest, ABufferThatIsTooSmallTakesNoEvent) {
  Begin(VirtioInput::Kind::kKeyboard);
  Give(1, 7);
  input->Key(KEY_C, true);
  Give(2);
  EXPECT_EQ(Take(), (std::vector<Seen>{{EV_KEY, KEY_C, 1}, kSync}));
}

TEST_P(VirtioInputTest, ThePointerOnAndByTheScreen) {
  Begin(VirtioInput::Kind::kTablet);
  Give(32);
  EXPECT_TRUE(input->absolute());
  input->MovePointer({.dx = 5, .dy = 6, .x = 100, .y = 0xffff, .buttons = display::kLeftButton});
  input->MovePointer({.x = 100, .y = 7, .wheel = -1, .buttons = display::kLeftButton | display::kMiddleButton});
  input->Key(KEY_A, true);
  EXPECT_EQ(Take(), (std::vector<Seen>{{EV_ABS, ABS_X, 100},
                                       {EV_ABS, ABS_Y, display::kPointerRange},
                                       {EV_KEY, BTN_LEFT, 1},
                                       kSync,
                                       {EV_ABS, ABS_X, 100},
                                       {EV_ABS, ABS_Y, 7},
                                       {EV_REL, REL_WHEEL, ~0u},
                                       {EV_KEY, BTN_MIDDLE, 1},
                                       kSync}));
}

TEST_P(VirtioInputTest, AMouseKnowsMoves) {
  Begin(VirtioInput::Kind::kMouse);
  Give(32);
  EXPECT_FALSE(input->absolute());
  input->MovePointer({.dx = -5, .x = 9});
  input->MovePointer({.x = 10});
  input->MovePointer({.buttons = display::kRightButton});
  EXPECT_EQ(Take(), (std::vector<Seen>{{EV_REL, REL_X, ~0u - 4}, kSync, {EV_KEY, BTN_RIGHT, 1}, kSync}));
}

TEST_P(VirtioInputTest, TheDriverLightsLeds) {
  Begin(VirtioInput::Kind::kKeyboard);
  const auto tell = [&](uint16_t type, uint16_t code, uint32_t value, uint32_t size = 8) {
    memory.WriteValue(GuestPhys(kData), type);
    memory.WriteValue(GuestPhys(kData + 2), code);
    memory.WriteValue(GuestPhys(kData + 4), value);
    ring(1).Add({{kData, size}});
    Kick(1);
    EXPECT_TRUE(ring(1).GetUsed());
  };
  tell(EV_LED, LED_CAPSL, 1);
  tell(EV_LED, LED_NUML, 1);
  tell(EV_LED, LED_CAPSL, 0, 7);
  tell(EV_LED, 900, 1);
  tell(EV_KEY, LED_SCROLLL, 1);
  EXPECT_EQ(input->leds(), display::kCapsLockLed | display::kNumLockLed);
  SetCommon(20, 1, 0);
  EXPECT_EQ(input->leds(), 0);
  EXPECT_FALSE(input->active());
  input->Key(KEY_A, true);
  EXPECT_TRUE(input->keys_taken());
}

TEST_P(VirtioInputTest, WhatWaitsIsSaved) {
  Begin(VirtioInput::Kind::kKeyboard);
  Ask(0x01, 0);
  input->Key(KEY_D, true);
  VirtioBench other;
  auto created = VirtioInput::Create(VirtioInput::Kind::kKeyboard, other.memory, other.scheduler);
  VirtioInput* const copy = created.get();
  other.Plug(std::move(created));
  CopyStateTo(other);
  EXPECT_EQ(other.Config(2, 1), 21u);
  EXPECT_FALSE(copy->keys_taken());
  EXPECT_TRUE(copy->active());
  other.ring(0).Add({{kData, 8, true}});
  other.ring(0).Add({{kData + 8, 8, true}});
  other.Kick(0);
  EXPECT_EQ(LoadLe<uint16_t>(&other.Get(kData, 8)[2]), KEY_D);
  EXPECT_TRUE(copy->keys_taken());
  other.pci.reset();
}

}  // namespace
}  // namespace nacre::devices
