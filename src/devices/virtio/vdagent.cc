#include "devices/virtio/vdagent.h"

#include <algorithm>
#include <utility>

#include "base/bits.h"

namespace nacre::devices {
namespace {

// spice/vd_agent.h.
constexpr uint32_t kProtocol = 1, kClientPort = 1, kServerPort = 2;
constexpr uint32_t kClipboard = 4, kAnnounceCapabilities = 6, kGrab = 7, kRequest = 8, kRelease = 9, kMaxClipboard = 14;
constexpr unsigned kCanClipboardByDemand = 5, kCanSelections = 6, kCanMaxClipboard = 10;
constexpr uint32_t kNone = 0, kUtf8Text = 1;  // types of what is copied
constexpr uint8_t kSelectionClipboard = 0;    // others: primary, secondary
constexpr size_t kSelectionSize = 4;          // u8 selection, 3 reserved bytes
constexpr size_t kMaxChunk = 2048;            // of those to the agent, with the message's header
constexpr size_t kMaxMessage = display::kMaxClipboardBytes + kSelectionSize + 4;

std::string Words(std::initializer_list<uint32_t> words) {
  std::string bytes;
  for (const uint32_t word : words) {
    uint8_t raw[4];
    StoreLe(raw, word);
    bytes.append(raw, raw + sizeof(raw));
  }
  return bytes;
}

}  // namespace

uint32_t Vdagent::Message::type() const { return LoadLe<uint32_t>(&header[4]); }
uint32_t Vdagent::Message::size() const { return LoadLe<uint32_t>(&header[16]); }
bool Vdagent::Message::kept() const {
  return (type() == kClipboard || type() == kAnnounceCapabilities || type() == kGrab || type() == kRequest) &&
         size() <= kMaxMessage;
}

// ---- The port.

void Vdagent::SetReceiver(CharReceiver* receiver) {
  receiver_ = receiver;
  if (!receiver) SetOpen(false);
}

void Vdagent::SetOpen(bool open) {
  if (std::exchange(open_, open) == open) {
    // Loaded: what waits goes on. What people had offered is no longer there.
    if (grabbed_ && offered_.empty()) {
      grabbed_ = false;
      Queue(kRelease, Selection(), {});
    }
    return Flush();
  }
  Forget();
  if (open) SendCapabilities(true);
}

void Vdagent::Reset() {
  open_ = false;
  Forget();
}

/// All of the conversation with the agent.
void Vdagent::Forget() {
  lost_ = false;
  chunk_header_.clear();
  chunk_port_ = chunk_left_ = 0;
  messages_ = {};
  capabilities_ = 0;
  wanted_ = grabbed_ = false;
  waiting_.clear();
  sent_ = 0;
}

void Vdagent::Lose() {
  lost_ = true;
  chunk_left_ = 0;
  messages_ = {};
}

void Vdagent::Write(std::span<const uint8_t> bytes) {
  while (open_ && !lost_ && !bytes.empty()) bytes = bytes.subspan(TakeChunk(bytes));
}

size_t Vdagent::TakeChunk(std::span<const uint8_t> bytes) {
  if (chunk_left_ > 0) {
    const size_t taken =
        TakeMessage(messages_[chunk_port_ - 1], bytes.first(std::min<size_t>(bytes.size(), chunk_left_)));
    if (!lost_) chunk_left_ -= static_cast<uint32_t>(taken);
    return taken;
  }
  chunk_header_.push_back(bytes[0]);
  if (chunk_header_.size() == kChunkHeader) {
    chunk_port_ = LoadLe<uint32_t>(&chunk_header_[0]);
    chunk_left_ = LoadLe<uint32_t>(&chunk_header_[4]);
    chunk_header_.clear();
    if (chunk_port_ != kClientPort && chunk_port_ != kServerPort) Lose();
  }
  return 1;
}

size_t Vdagent::TakeMessage(Message& message, std::span<const uint8_t> bytes) {
  size_t taken = 0;
  if (message.header.size() < kMessageHeader) {
    taken = std::min(bytes.size(), kMessageHeader - message.header.size());
    message.header.insert(message.header.end(), bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(taken));
    if (message.header.size() < kMessageHeader) return taken;
    if (LoadLe<uint32_t>(&message.header[0]) != kProtocol) {
      Lose();
      return taken;
    }
    message.left = message.size();
  } else {
    taken = std::min<size_t>(bytes.size(), message.left);
    if (message.kept())
      message.data.insert(message.data.end(), bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(taken));
    message.left -= static_cast<uint32_t>(taken);
  }
  if (message.left > 0) return taken;
  const Message whole = std::exchange(message, {});
  if (whole.kept()) Handle(whole.type(), whole.data);
  return taken;
}

// ---- What the agent says.

void Vdagent::Handle(uint32_t type, std::span<const uint8_t> data) {
  if (type == kAnnounceCapabilities) return HandleCapabilities(data);
  if (can(kCanSelections)) {
    if (data.size() < kSelectionSize || data[0] != kSelectionClipboard) return;
    data = data.subspan(kSelectionSize);
  }
  if (type == kGrab) return HandleGrab(data);
  if (type == kRequest) return HandleRequest(data);
  HandleText(data);
}

void Vdagent::HandleCapabilities(std::span<const uint8_t> data) {
  if (data.size() < 8) return;
  capabilities_ = LoadLe<uint32_t>(&data[4]);
  if (LoadLe<uint32_t>(&data[0]) != 0) SendCapabilities(false);
  if (can(kCanMaxClipboard)) Send(kMaxClipboard, Words({display::kMaxClipboardBytes}));
  grabbed_ = false;
  SendGrab();
}

void Vdagent::HandleGrab(std::span<const uint8_t> types) {
  bool text = false;
  for (; types.size() >= 4; types = types.subspan(4)) text |= LoadLe<uint32_t>(&types[0]) == kUtf8Text;
  offered_.clear();
  grabbed_ = false;
  wanted_ = text;
  if (text) Send(kRequest, Selection() + Words({kUtf8Text}));
}

void Vdagent::HandleText(std::span<const uint8_t> data) {
  if (data.size() < 4 || !std::exchange(wanted_, false) || LoadLe<uint32_t>(&data[0]) != kUtf8Text) return;
  if (copied_) copied_(display::CleanText({reinterpret_cast<const char*>(&data[0]) + 4, data.size() - 4}));
}

void Vdagent::HandleRequest(std::span<const uint8_t> data) {
  if (data.size() < 4) return;
  const bool text = grabbed_ && !offered_.empty() && LoadLe<uint32_t>(&data[0]) == kUtf8Text;
  Send(kClipboard, Selection() + Words({text ? kUtf8Text : kNone}), text ? offered_ : std::string_view());
}

// ---- What it is told.

void Vdagent::Offer(std::string text) {
  offered_ = std::move(text);
  grabbed_ = false;
  SendGrab();
}

void Vdagent::SendCapabilities(bool ask) {
  Send(kAnnounceCapabilities,
       Words({ask ? 1u : 0u, static_cast<uint32_t>(Bit(kCanClipboardByDemand) | Bit(kCanSelections))}));
}

void Vdagent::SendGrab() {
  if (offered_.empty() || !can(kCanClipboardByDemand)) return;
  grabbed_ = true;
  wanted_ = false;
  Send(kGrab, Selection() + Words({kUtf8Text}));
}

/// What comes before the rest of messages about the clipboard.
std::string Vdagent::Selection() const { return std::string(can(kCanSelections) ? kSelectionSize : 0, '\0'); }

/// `before` and `text` as one message. A guest that does not read loses messages.
void Vdagent::Send(uint32_t type, std::string_view before, std::string_view text) {
  Queue(type, before, text);
  Flush();
}

void Vdagent::Queue(uint32_t type, std::string_view before, std::string_view text) {
  const size_t size = before.size() + text.size();
  if (!open_ || waiting_.size() - sent_ + size + size / 64 + kMaxChunk > kMaxWaiting) return;
  if (sent_ > waiting_.size() / 2) waiting_.erase(0, std::exchange(sent_, 0));
  std::string message = Words({kProtocol, type, 0, 0, static_cast<uint32_t>(size)});
  message += before;
  message += text;
  for (size_t at = 0; at < message.size(); at += kMaxChunk) {
    const std::string_view chunk = std::string_view(message).substr(at, kMaxChunk);
    waiting_ += Words({kClientPort, static_cast<uint32_t>(chunk.size())});
    waiting_ += chunk;
  }
}

void Vdagent::Flush() {
  if (flushing_) return;  // Receive makes room and says so
  flushing_ = true;
  while (receiver_ && open_ && sent_ < waiting_.size()) {
    const size_t size = std::min(receiver_->Room(), waiting_.size() - sent_);
    if (size == 0) break;
    const std::string piece = waiting_.substr(sent_, size);
    sent_ += size;
    receiver_->Receive({reinterpret_cast<const uint8_t*>(piece.data()), piece.size()});
  }
  if (sent_ == waiting_.size()) {
    waiting_.clear();
    sent_ = 0;
  }
  flushing_ = false;
}

// ---- State.

void Vdagent::Serialize(state::Archive& archive) {
  if (!archive.loading()) waiting_.erase(0, std::exchange(sent_, 0));
  archive.Field(1, open_);
  archive.Field(2, lost_);
  archive.Bytes(3, chunk_header_, kChunkHeader - 1);
  archive.Field(4, chunk_port_);
  archive.Field(5, chunk_left_);
  archive.List(
      6, messages_.size(), messages_.size(),
      [&](size_t count) {
        if (count != messages_.size()) archive.Reject("vdagent0: not two ports");
      },
      [&](state::Archive& fields, size_t index) {
        if (index >= messages_.size()) return;
        Message& message = messages_[index];
        fields.Bytes(1, message.header, kMessageHeader);
        fields.Bytes(2, message.data, kMaxMessage);
        fields.Field(3, message.left);
      });
  archive.Field(7, capabilities_);
  archive.Field(8, wanted_);
  archive.Field(9, grabbed_);
  archive.Text(10, waiting_, kMaxWaiting);
  if (!archive.loading()) return;
  sent_ = 0;
  if (chunk_left_ > 0 && chunk_port_ != kClientPort && chunk_port_ != kServerPort)
    archive.Reject("vdagent0: no such port");
  for (const Message& message : messages_) {
    const bool begun = message.header.size() == kMessageHeader;
    const uint64_t kept = begun && message.kept() ? message.size() - uint64_t{message.left} : 0;
    if (message.data.size() != kept || (begun ? message.left == 0 || message.left > message.size() : message.left != 0))
      archive.Reject("vdagent0: an impossible message");
  }
  offered_.clear();
  if (!archive.ok()) Reset();
}

}  // namespace nacre::devices
