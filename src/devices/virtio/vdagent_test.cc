// The host's end of the SPICE agent's port, with an agent of the test's own.

#include "devices/virtio/vdagent.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "base/bits.h"
#include "base/fuzz_testing.h"
#include "bus/conformance_testing.h"

namespace nacre::devices {
namespace {

using namespace std::string_literals;

constexpr uint32_t kClipboard = 4, kCapabilities = 6, kGrab = 7, kRequest = 8, kRelease = 9, kMaxClipboard = 14;
constexpr uint32_t kByDemand = 1 << 5, kSelections = 1 << 6, kLimit = 1 << 10;
constexpr uint32_t kText = 1, kImage = 2;
const std::string kMain(4, '\0'), kPrimary("\1\0\0\0", 4);

std::string Word(uint32_t word) {
  std::string bytes(4, '\0');
  StoreLe(bytes.data(), word);
  return bytes;
}
uint32_t WordAt(std::string_view bytes, size_t at) { return LoadLe<uint32_t>(bytes.data() + at); }

struct Sent {
  uint32_t type = 0;
  std::string data;
  bool operator==(const Sent&) const = default;
};
void PrintTo(const Sent& sent, std::ostream* out) { *out << sent.type << " " << testing::PrintToString(sent.data); }

/// The port's device and the agent behind it.
struct Agent final : CharReceiver {
  explicit Agent(Vdagent& at) : host(at) {
    host.SetReceiver(this);
    host.Listen([this](std::string text) { copied.push_back(std::move(text)); });
  }
  ~Agent() override { host.SetReceiver(nullptr); }
  size_t Room() override { return room; }
  void Receive(std::span<const uint8_t> bytes) override {
    ASSERT_LE(bytes.size(), room);
    if (!endless) room -= bytes.size();
    input.append(bytes.begin(), bytes.end());
  }
  void Write(std::string_view bytes, size_t piece = SIZE_MAX) {
    for (; !bytes.empty(); bytes.remove_prefix(std::min(piece, bytes.size())))
      host.Write({reinterpret_cast<const uint8_t*>(bytes.data()), std::min(piece, bytes.size())});
  }
  static std::string Message(uint32_t type, const std::string& data) {
    return Word(1) + Word(type) + Word(0) + Word(0) + Word(static_cast<uint32_t>(data.size())) + data;
  }
  static std::string Chunk(std::string_view bytes, uint32_t port = 1) {
    return Word(port) + Word(static_cast<uint32_t>(bytes.size())) + std::string(bytes);
  }
  void Say(uint32_t type, const std::string& data) { Write(Chunk(Message(type, data))); }
  /// Opens the port as spice-vdagentd does and drops what the host says first.
  void Begin(uint32_t capabilities = kByDemand | kSelections) {
    host.SetOpen(true);
    Say(kCapabilities, Word(0) + Word(capabilities));
    Heard();
  }
  /// The host's messages since the last call; its chunks are as the agent takes them.
  std::vector<Sent> Heard() {
    std::string stream;
    for (std::string_view rest = input; !rest.empty();) {
      EXPECT_EQ(WordAt(rest, 0), 1u);
      const uint32_t size = WordAt(rest, 4);
      EXPECT_LE(size, 2048u);
      stream += rest.substr(8, size);
      rest.remove_prefix(8 + size);
    }
    input.clear();
    std::vector<Sent> messages;
    for (std::string_view rest = stream; !rest.empty();) {
      EXPECT_EQ(WordAt(rest, 0), 1u);
      const uint32_t size = WordAt(rest, 16);
      messages.push_back({WordAt(rest, 4), std::string(rest.substr(20, size))});
      rest.remove_prefix(20 + size);
    }
    return messages;
  }

  Vdagent& host;
  std::string input;
  size_t room = SIZE_MAX;
  bool endless = true;
  std::vector<std::string> copied;
};

class VdagentTest : public testing::Test {
 protected:
  Vdagent host;
  Agent agent{host};
};
const std::vector<Sent> kNothing;

TEST_F(VdagentTest, CapabilitiesAreExchanged) {
  host.SetOpen(true);
  EXPECT_EQ(agent.Heard(), (std::vector<Sent>{{kCapabilities, Word(1) + Word(kByDemand | kSelections)}}));
  agent.Say(kCapabilities, Word(0) + Word(~0u));
  EXPECT_EQ(agent.Heard(), (std::vector<Sent>{{kMaxClipboard, Word(1024 * 1024)}}));
  agent.Say(kCapabilities, Word(1) + Word(kByDemand));
  EXPECT_EQ(agent.Heard(), (std::vector<Sent>{{kCapabilities, Word(0) + Word(kByDemand | kSelections)}}));
}

TEST_F(VdagentTest, WhatTheGuestCopiesIsFetched) {
  agent.Begin();
  agent.Say(kGrab, kMain + Word(kImage) + Word(kText));
  EXPECT_EQ(agent.Heard(), (std::vector<Sent>{{kRequest, kMain + Word(kText)}}));
  agent.Say(kClipboard, kMain + Word(kText) + "caf\u00e9\r\nx\xff");
  EXPECT_EQ(agent.copied, std::vector<std::string>{"caf\u00e9\nx\ufffd"});
  agent.Say(kClipboard, kMain + Word(kText) + "unasked");
  agent.Say(kGrab, kMain + Word(kImage));
  agent.Say(kGrab, kPrimary + Word(kText));
  EXPECT_EQ(agent.Heard(), kNothing);
  EXPECT_EQ(agent.copied.size(), 1u);
}

TEST_F(VdagentTest, AnAgentWithoutSelectionsHasNone) {
  agent.Begin(kByDemand);
  agent.Say(kGrab, Word(kText));
  EXPECT_EQ(agent.Heard(), (std::vector<Sent>{{kRequest, Word(kText)}}));
  agent.Say(kClipboard, Word(kText) + "text");
  EXPECT_EQ(agent.copied, std::vector<std::string>{"text"});
}

TEST_F(VdagentTest, WhatPeopleCopyIsOfferedAndGivenWhenAsked) {
  agent.Begin();
  agent.Say(kRequest, kMain + Word(kText));
  EXPECT_EQ(agent.Heard(), (std::vector<Sent>{{kClipboard, kMain + Word(0)}})) << "there is nothing";
  host.Offer("a text");
  EXPECT_EQ(agent.Heard(), (std::vector<Sent>{{kGrab, kMain + Word(kText)}}));
  agent.Say(kRequest, kMain + Word(kText));
  agent.Say(kRequest, kMain + Word(kImage));
  agent.Say(kRequest, kPrimary + Word(kText));
  EXPECT_EQ(agent.Heard(),
            (std::vector<Sent>{{kClipboard, kMain + Word(kText) + "a text"}, {kClipboard, kMain + Word(0)}}));
  agent.Say(kGrab, kMain + Word(kImage));
  agent.Say(kRequest, kMain + Word(kText));
  EXPECT_EQ(agent.Heard(), (std::vector<Sent>{{kClipboard, kMain + Word(0)}})) << "the guest has copied since";
}

TEST_F(VdagentTest, AnOfferWaitsForTheAgent) {
  host.Offer("early");
  EXPECT_EQ(agent.input, "");
  host.SetOpen(true);
  agent.Heard();
  agent.Say(kCapabilities, Word(0) + Word(kByDemand | kSelections));
  EXPECT_EQ(agent.Heard(), (std::vector<Sent>{{kGrab, kMain + Word(kText)}}));
  host.SetOpen(false);
  agent.Begin();
  agent.Say(kRequest, kMain + Word(kText));
  EXPECT_EQ(agent.Heard(), (std::vector<Sent>{{kClipboard, kMain + Word(kText) + "early"}}));
}

TEST_F(VdagentTest, BytesComeInAnyPieces) {
  agent.Begin();
  const std::string grab = Agent::Message(kGrab, kMain + Word(kText)),
                    text = Agent::Message(kClipboard, kMain + Word(kText) + std::string(5000, 'x')),
                    other = Agent::Message(1, std::string(16, '\xff'));
  std::string chunks;
  for (size_t at = 0; at < text.size(); at += 700)  // with another message on the other port meanwhile
    chunks += Agent::Chunk(text.substr(at, 700)) + Agent::Chunk(other.substr(std::min(at / 70, other.size()), 10), 2);
  for (const size_t piece : {1, 3, 7, 64, 100'000}) {
    agent.copied.clear();
    agent.Write(Agent::Chunk("") + Agent::Chunk(grab.substr(0, 11)) + Agent::Chunk(grab.substr(11)), piece);
    agent.Write(chunks, piece);
    ASSERT_EQ(agent.copied, std::vector<std::string>{std::string(5000, 'x')}) << piece;
    // Two messages in one chunk.
    agent.Write(Agent::Chunk(grab + Agent::Message(kClipboard, kMain + Word(kText) + "y")), piece);
    ASSERT_EQ(agent.copied.back(), "y");
  }
}

TEST_F(VdagentTest, LongTextsArePassedOver) {
  agent.Begin();
  const std::string longest(display::kMaxClipboardBytes, 'x');
  agent.Say(kGrab, kMain + Word(kText));
  agent.Say(kClipboard, kMain + Word(kText) + longest + "y");
  EXPECT_TRUE(agent.copied.empty());
  agent.Say(kClipboard, kMain + Word(kText) + longest);
  ASSERT_EQ(agent.copied.size(), 1u);
  EXPECT_TRUE(agent.copied[0] == longest);
}

TEST_F(VdagentTest, ALongTextGoesAsTheGuestReads) {
  agent.Begin();
  host.Offer(std::string(display::kMaxClipboardBytes, 'z'));
  agent.Heard();
  agent.endless = false;
  agent.room = 0;
  agent.Say(kRequest, kMain + Word(kText));
  std::string all;
  while (agent.room == 0) {
    all += std::exchange(agent.input, "");
    if (all.size() > display::kMaxClipboardBytes + 36 + 513 * 8 - 1) break;
    agent.room = 4096;
    host.RoomAvailable();
  }
  agent.input = all + agent.input;
  const auto messages = agent.Heard();
  ASSERT_EQ(messages.size(), 1u);
  EXPECT_TRUE(messages[0].data == kMain + Word(kText) + std::string(display::kMaxClipboardBytes, 'z'));
}

TEST_F(VdagentTest, WhoDoesNotReadLosesMessagesOfABoundedQueue) {
  agent.Begin();
  host.Offer(std::string(display::kMaxClipboardBytes, 'z'));
  agent.Heard();
  agent.endless = false;
  agent.room = 0;
  for (int i = 0; i < 100; ++i) agent.Say(kRequest, kMain + Word(kText));
  agent.endless = true;
  agent.room = SIZE_MAX;
  host.RoomAvailable();
  EXPECT_LE(agent.input.size(), Vdagent::kMaxWaiting);
  EXPECT_EQ(agent.Heard().size(), 2u);
}

TEST_F(VdagentTest, AnImpossibleStreamIsIgnoredUntilThePortIsOpenedAgain) {
  for (const std::string& bad :
       {Agent::Chunk("x", 0), Agent::Chunk("x", 3), Agent::Chunk(Word(2) + std::string(16, 0))}) {
    host.SetOpen(false);
    agent.Begin();
    agent.Write(bad);
    agent.Say(kGrab, kMain + Word(kText));
    EXPECT_EQ(agent.Heard(), kNothing);
  }
  host.SetOpen(false);
  agent.Say(kGrab, kMain + Word(kText));
  agent.Begin();
  EXPECT_EQ(agent.Heard(), kNothing) << "what came while the port was closed";
  agent.Say(kGrab, kMain + Word(kText));
  EXPECT_EQ(agent.Heard().size(), 1u);
}

TEST_F(VdagentTest, ShortMessagesAreIgnored) {
  agent.Begin();
  for (const uint32_t type : {kClipboard, kCapabilities, kGrab, kRequest, kRelease})
    for (size_t size = 0; size < 8; ++size) agent.Say(type, std::string(size, '\0'));
  EXPECT_EQ(agent.Heard(), kNothing);
  EXPECT_TRUE(agent.copied.empty());
}

TEST_F(VdagentTest, AConversationGoesOnFromItsSavedState) {
  agent.Begin();
  host.Offer("of people");
  agent.Say(kRequest, kMain + Word(kText));
  agent.Heard();
  host.Offer("of other people");
  const std::string said = Agent::Chunk(Agent::Message(kGrab, kMain + Word(kText)));
  agent.Write(said.substr(0, 33));
  agent.endless = false;
  agent.room = 0;
  host.Offer("the latest");
  agent.Heard();

  Vdagent restored;
  Agent other(restored);
  ASSERT_TRUE(bus::Load(restored, bus::Save(host)));
  EXPECT_EQ(other.input, "") << "the port's device comes later";
  restored.SetOpen(true);
  const std::vector<Sent> want{{kGrab, kMain + Word(kText)}, {kRelease, kMain}};
  EXPECT_EQ(other.Heard(), want) << "what people have copied is not in the file";
  other.Write(said.substr(33));
  EXPECT_EQ(other.Heard(), (std::vector<Sent>{{kRequest, kMain + Word(kText)}}));
  other.Say(kClipboard, kMain + Word(kText) + "of the guest");
  EXPECT_EQ(other.copied, std::vector<std::string>{"of the guest"});
}

// ---- Hostile guests.

struct Noise {
  explicit Noise(uint64_t seed) : random(seed) {}
  uint64_t Below(uint64_t limit) { return random() % limit; }
  std::string Bytes(size_t most) {
    std::string bytes(Below(most + 1), '\0');
    for (char& byte : bytes) byte = static_cast<char>(Below(2) ? random() : Below(4));
    return bytes;
  }
  std::string Step() {
    constexpr uint32_t kTypes[] = {1, kClipboard, kCapabilities, kGrab, kRequest, kRelease, kMaxClipboard, 99};
    std::string data = Below(2) ? kMain + Word(static_cast<uint32_t>(Below(3))) + Bytes(40) : Bytes(40);
    if (Below(4) == 0) data = Word(1) + Word(static_cast<uint32_t>(random()) | kByDemand);
    std::string message = Agent::Message(kTypes[Below(std::size(kTypes))], data);
    const auto spoil = [&](std::string& bytes, uint64_t odds) {
      if (Below(odds) == 0 && !bytes.empty()) bytes[Below(bytes.size())] = static_cast<char>(random());
    };
    spoil(message, 16);
    std::string chunks;
    while (!message.empty()) {
      const size_t size = 1 + Below(message.size());
      chunks += Agent::Chunk(message.substr(0, size), Below(50) ? 1 : 2);
      message.erase(0, size);
    }
    spoil(chunks, 32);
    return chunks;
  }
  std::mt19937_64 random;
};

TEST(VdagentFuzz, AgentsThatLie) {
  Noise noise(FuzzSeed(20261122));
  Vdagent host;
  Agent agent(host);
  uint64_t texts = 0;
  for (FuzzRun run(20'000); run.Next();) {
    switch (noise.Below(24)) {
      case 0:
        host.SetOpen(false);
        host.SetOpen(true);
        break;
      case 1:
        host.Offer(noise.Below(8) ? "short" : std::string(display::kMaxClipboardBytes, 'z'));
        break;
      case 2:
        host.Reset();
        break;
      case 3: {
        const auto saved = bus::Save(host);
        ASSERT_TRUE(bus::Load(host, saved));
        break;
      }
      case 4:
        agent.Write(noise.Bytes(64));
        break;
      case 5:
        agent.endless = noise.Below(2) != 0;
        agent.room = agent.endless ? SIZE_MAX : noise.Below(5000);
        host.RoomAvailable();
        break;
      default:
        agent.Write(noise.Step(), 1 + noise.Below(200));
    }
    ASSERT_LE(agent.input.size(), Vdagent::kMaxWaiting);
    agent.input.clear();
    for (const std::string& text : agent.copied) ASSERT_EQ(display::CleanText(text), text);
    texts += agent.copied.size();
    agent.copied.clear();
  }
  EXPECT_GT(texts, 0u);
  // An agent that behaves is heard afterwards.
  host.SetOpen(false);
  agent.endless = true;
  agent.room = SIZE_MAX;
  agent.Begin();
  agent.Say(kGrab, kMain + Word(kText));
  agent.Say(kClipboard, kMain + Word(kText) + "well");
  EXPECT_EQ(agent.copied, std::vector<std::string>{"well"});
}

struct Subject final : bus::ConformanceSubject {
  bus::Device& device() override { return host; }
  std::vector<bus::ConformanceBlock> blocks() override { return {}; }
  void Stimulate(uint64_t random) override {
    Noise noise(random);
    if (random % 8 == 0) host.SetOpen(random % 16 == 0);
    if (random % 8 == 1) host.Offer("text");
    agent.Write(noise.Step());
    agent.input.clear();
  }
  Vdagent host;
  Agent agent{host};
};
TEST(Conformance, Vdagent) {
  bus::RunConformance([] { return std::make_unique<Subject>(); });
}

}  // namespace
}  // namespace nacre::devices
