#pragma once
// For tests of network cards: a back end that keeps what it is given and holds what the card has no room for.

#include <vector>

#include "network/backend.h"

namespace nacre::network {

class FakeNet : public NetBackend {
 public:
  void Attach(FrameReceiver* to) override { receiver = to; }
  void Send(std::span<const uint8_t> frame) override { sent.emplace_back(frame.begin(), frame.end()); }
  void SendDone() override { ++batches; }
  void ReceiveReady() override {
    ++ready;
    while (!waiting.empty() && receiver->Receive(waiting.front())) waiting.erase(waiting.begin());
    receiver->ReceiveDone();
  }
  bool link_up() const override { return up; }
  uint16_t mtu() const override { return 65520; }

  bool Offer(std::vector<uint8_t> frame) {
    if (receiver->Receive(frame)) {
      receiver->ReceiveDone();
      return true;
    }
    waiting.push_back(std::move(frame));
    return false;
  }

  FrameReceiver* receiver = nullptr;
  std::vector<std::vector<uint8_t>> sent, waiting;
  unsigned batches = 0, ready = 0;
  bool up = true;
};

}  // namespace nacre::network
