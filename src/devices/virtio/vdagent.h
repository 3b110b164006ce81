#pragma once
// The host's end of the port com.redhat.spice.0, for the clipboard: it speaks with the SPICE agent in the guest
// (Debian's package spice-vdagent) by the agent protocol (spice-protocol: spice/vd_agent.h). Of that protocol it knows
// capabilities and the clipboard's text; whatever else an agent sends is passed over. All under the device lock.
//
// On the port bytes come in chunks { u32 port, u32 size }. What the chunks of one port hold, one after another, are
// messages { u32 protocol, u32 type, u64 opaque, u32 size, data }, all little-endian. Whoever copies something tells
// the other side so (grab); that one asks for it, here at once and in the guest when somebody pastes.
//
// The guest is hostile: nothing is allocated for bytes that have not come, texts have at most kMaxClipboardBytes, so
// have messages that are kept (longer ones are passed over), and no more than kMaxWaiting waits for the guest. A chunk
// or a message that cannot be makes the rest of the stream meaningless: it is ignored until the port is opened again.

#include <array>
#include <vector>

#include "base/char_backend.h"
#include "bus/device.h"
#include "display/clipboard.h"

namespace nacre::devices {

class Vdagent final : public bus::Device, public CharBackend, public display::Clipboard {
 public:
  static constexpr std::string_view kPortName = "com.redhat.spice.0";
  static constexpr size_t kMaxWaiting = 3 * 1024 * 1024;

  std::string_view name() const override { return "vdagent0"; }
  void Reset() override;
  /// Comes before the port's device: that opens the port again when it is loaded. What people have offered is not
  /// saved.
  void Serialize(state::Archive& archive) override;

  void Write(std::span<const uint8_t> bytes) override;
  void RoomAvailable() override { Flush(); }
  void SetReceiver(CharReceiver* receiver) override;
  void SetOpen(bool open) override;

  void Offer(std::string text) override;
  void Listen(std::function<void(std::string text)> copied) override { copied_ = std::move(copied); }

 private:
  static constexpr size_t kChunkHeader = 8, kMessageHeader = 20;
  /// What comes on one of the protocol's two ports.
  struct Message {
    std::vector<uint8_t> header;  ///< up to kMessageHeader
    std::vector<uint8_t> data;    ///< of a message that is kept
    uint32_t left = 0;            ///< bytes of data that are still to come
    bool kept() const;
    uint32_t type() const;
    uint32_t size() const;
  };

  void Forget();
  void Lose();
  /// Takes some of `bytes`, at least one, and returns how many.
  size_t TakeChunk(std::span<const uint8_t> bytes);
  size_t TakeMessage(Message& message, std::span<const uint8_t> bytes);
  void Handle(uint32_t type, std::span<const uint8_t> data);
  void HandleCapabilities(std::span<const uint8_t> data);
  void HandleGrab(std::span<const uint8_t> types);
  void HandleText(std::span<const uint8_t> data);
  void HandleRequest(std::span<const uint8_t> data);
  void SendCapabilities(bool ask);
  void SendGrab();
  std::string Selection() const;
  void Send(uint32_t type, std::string_view before, std::string_view text = {});
  void Queue(uint32_t type, std::string_view before, std::string_view text);
  void Flush();
  bool can(unsigned capability) const { return (capabilities_ >> capability & 1) != 0; }

  CharReceiver* receiver_ = nullptr;
  std::function<void(std::string text)> copied_;
  std::string offered_;  ///< empty: nothing

  bool open_ = false;  ///< the agent has the port
  bool lost_ = false;  ///< nobody knows what the agent's bytes mean
  std::vector<uint8_t> chunk_header_;
  uint32_t chunk_port_ = 0, chunk_left_ = 0;
  std::array<Message, 2> messages_;
  uint32_t capabilities_ = 0;  ///< the agent's
  bool wanted_ = false;        ///< the agent has been asked for its text
  bool grabbed_ = false;       ///< the agent has been told of offered_
  std::string waiting_;        ///< for the guest, from sent_ on
  size_t sent_ = 0;
  bool flushing_ = false;
};

}  // namespace nacre::devices
