#include "devices/virtio/console.h"

#include <algorithm>

#include "base/bits.h"

namespace nacre::devices {
namespace {

constexpr unsigned kFeatureSize = 0, kFeatureMultiport = 1, kFeatureEmergencyWrite = 2;
constexpr unsigned kControlReceive = 2, kControlTransmit = 3;  // 5.3.2
// 5.3.6.2: struct virtio_console_control.
constexpr uint64_t kControlSize = 8;
constexpr uint16_t kDeviceReady = 0, kDeviceAdd = 1, kPortReady = 3, kConsolePort = 4, kResize = 5, kPortOpen = 6,
                   kPortName = 7;
constexpr size_t kMaxInput = 4096;
constexpr size_t kMaxControl = 256;
constexpr size_t kMaxPorts = 16;
constexpr size_t kMaxName = 64;
constexpr uint16_t kQueueSize = 64;
constexpr uint64_t kPiece = 4096;
constexpr uint64_t kMaxOutput = 1024 * 1024;  // of one buffer: a hostile one claims gigabytes

unsigned ReceiveQueue(unsigned port) { return port == 0 ? 0 : 2 + 2 * port; }
unsigned TransmitQueue(unsigned port) { return ReceiveQueue(port) + 1; }

}  // namespace

Result<std::unique_ptr<VirtioConsole>> VirtioConsole::Create(Options options, memory::GuestMemory& memory,
                                                             Scheduler& scheduler) {
  if (options.ports.empty() || options.ports.size() > kMaxPorts)
    return Fail("{}: {} ports, from 1 to {}", options.name, options.ports.size(), kMaxPorts);
  for (const PortOptions& port : options.ports)
    if (port.name.size() > kMaxName) return Fail("{}: a port's name has at most {} bytes", options.name, kMaxName);
  if (options.ports[0].backend && !options.ports[0].console)
    return Fail("{}: the first port is a console, or is not there", options.name);
  return std::unique_ptr<VirtioConsole>(new VirtioConsole(std::move(options), memory, scheduler));
}

VirtioConsole::VirtioConsole(Options options, memory::GuestMemory& memory, Scheduler& scheduler)
    : VirtioDevice({.name = options.name,
                    .type = VirtioType::kConsole,
                    .features = Bit(kFeatureSize) | Bit(kFeatureMultiport) | Bit(kFeatureEmergencyWrite),
                    .queue_sizes = std::vector<uint16_t>(2 + 2 * options.ports.size(), kQueueSize)},
                   memory, scheduler) {
  for (PortOptions& port : options.ports) {
    ports_.push_back(std::make_unique<Port>(this, static_cast<unsigned>(ports_.size())));
    ports_.back()->options = std::move(port);
  }
  StoreLe<uint16_t>(&config_[0], 80);
  StoreLe<uint16_t>(&config_[2], 25);
  StoreLe<uint32_t>(&config_[4], static_cast<uint32_t>(ports_.size()));
  for (auto& port : ports_)
    if (port->options.backend) port->options.backend->SetReceiver(port.get());
}

VirtioConsole::~VirtioConsole() {
  for (auto& port : ports_)
    if (port->options.backend) port->options.backend->SetReceiver(nullptr);
}

bool VirtioConsole::multiport() const { return has_feature(kFeatureMultiport); }

void VirtioConsole::WriteConfig(uint32_t offset, std::span<const uint8_t> data) {
  // 5.3.4: a character written to emerg_wr appears even before the driver is set up.
  if (offset == 8 && !data.empty()) ports_[0]->Write(data.first(1));
}

void VirtioConsole::OnQueue(unsigned index) {
  if (index == kControlReceive) {
    if (multiport()) FlushControl();
    return;
  }
  if (index == kControlTransmit) {
    if (!multiport()) return;
    ForEachChain(index, [&](Chain& chain) {
      uint8_t message[kControlSize];
      const bool complete = chain.Read(0, message) == kControlSize;
      queue(kControlTransmit).Push(chain, 0);
      if (complete)
        HandleControl(LoadLe<uint32_t>(message), LoadLe<uint16_t>(message + 4), LoadLe<uint16_t>(message + 6));
    });
    return;
  }
  const unsigned port = index < 2 ? 0 : (index - 2) / 2;
  if (port > 0 && !multiport()) return;
  if (index == ReceiveQueue(port))
    DeliverInput(port);
  else
    Transmit(port);
}

size_t VirtioConsole::Port::Room() { return kMaxInput - input.size(); }

void VirtioConsole::Port::Receive(std::span<const uint8_t> bytes) {
  const size_t taken = std::min(bytes.size(), Room());
  input.insert(input.end(), bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(taken));
  if (owner->driver_ok()) owner->DeliverInput(number);
}

void VirtioConsole::Port::Write(std::span<const uint8_t> bytes) {
  if (options.backend) options.backend->Write(bytes);
}

void VirtioConsole::Port::SetGuestOpen(bool open) {
  if (std::exchange(guest_open, open) == open || !options.backend) return;
  // What is on its way to a program is not for the next one; what was typed waits.
  const bool was_full = Room() == 0;
  if (!open && !options.console) input.clear();
  options.backend->SetOpen(open);
  if (was_full && Room() > 0) options.backend->RoomAvailable();
}

void VirtioConsole::DeliverInput(unsigned port) {
  Port& from = *ports_[port];
  const unsigned index = ReceiveQueue(port);
  VirtQueue& ring = queue(index);
  if (multiport() && !from.guest_open) return;  // Linux throws away what comes before a port is open
  const bool was_full = from.Room() == 0;
  bool moved = false;
  // Buffers of no size take nothing away, and another CPU may add them for ever.
  for (unsigned budget = 4u * ring.setup().size; !from.input.empty(); --budget) {
    if (budget == 0) {
      LookAgain(index);
      break;
    }
    if (!ring.Pop(receive_chain_)) {
      if (ring.EnableNotification()) continue;
      break;
    }
    const auto size = static_cast<size_t>(std::min<uint64_t>(from.input.size(), receive_chain_.writable_bytes()));
    const auto end = from.input.begin() + static_cast<ptrdiff_t>(size);
    const std::vector<uint8_t> bytes(from.input.begin(), end);
    receive_chain_.Write(memory(), 0, bytes);
    ring.Push(receive_chain_, static_cast<uint32_t>(size));
    from.input.erase(from.input.begin(), end);
    moved = true;
  }
  if (moved) Signal(index);
  if (was_full && from.Room() > 0 && from.options.backend) from.options.backend->RoomAvailable();
}

void VirtioConsole::Transmit(unsigned port) {
  const unsigned index = TransmitQueue(port);
  ForEachChain(index, [&](Chain& chain) {
    uint8_t piece[kPiece];
    const uint64_t total = std::min(chain.readable_bytes(), kMaxOutput);
    for (uint64_t done = 0; done < total;) {
      const uint64_t size = chain.Read(done, std::span(piece).first(std::min(kPiece, total - done)));
      ports_[port]->Write(std::span(piece).first(size));
      done += size;
    }
    queue(index).Push(chain, 0);
  });
}

void VirtioConsole::HandleControl(uint32_t id, uint16_t event, uint16_t value) {
  if (event == kDeviceReady) {
    for (uint32_t i = 0; value == 1 && i < ports_.size(); ++i)
      if (ports_[i]->options.backend) SendControl(i, kDeviceAdd, 0);
    return;
  }
  if (id >= ports_.size() || !ports_[id]->options.backend) return;
  Port& port = *ports_[id];
  if (event == kPortReady && value == 1 && !port.announced) {
    port.announced = true;
    if (port.options.console) {
      SendControl(id, kConsolePort, 1);
      SendResize();
    }
    const std::string& name = port.options.name;
    if (!name.empty()) SendControl(id, kPortName, 1, {reinterpret_cast<const uint8_t*>(name.data()), name.size()});
    if (port.host_open) SendControl(id, kPortOpen, 1);
  } else if (event == kPortOpen) {
    port.SetGuestOpen(value != 0);
    if (port.guest_open) DeliverInput(id);
  }
}

void VirtioConsole::SendControl(uint32_t id, uint16_t event, uint16_t value, std::span<const uint8_t> data) {
  if (control_.size() >= kMaxControl) return;
  std::vector<uint8_t> message(kControlSize);
  StoreLe(&message[0], id);
  StoreLe(&message[4], event);
  StoreLe(&message[6], value);
  message.insert(message.end(), data.begin(), data.end());
  control_.push_back(std::move(message));
  FlushControl();
}

void VirtioConsole::FlushControl() {
  VirtQueue& ring = queue(kControlReceive);
  bool moved = false;
  Chain chain;
  while (!control_.empty()) {
    if (!ring.Pop(chain)) {
      if (ring.EnableNotification()) continue;
      break;
    }
    const uint64_t size = chain.Write(memory(), 0, control_.front());
    ring.Push(chain, static_cast<uint32_t>(size));
    control_.pop_front();
    moved = true;
  }
  if (moved) Signal(kControlReceive);
}

void VirtioConsole::Resize(uint16_t columns, uint16_t rows) {
  if (LoadLe<uint16_t>(&config_[0]) == columns && LoadLe<uint16_t>(&config_[2]) == rows) return;
  StoreLe(&config_[0], columns);
  StoreLe(&config_[2], rows);
  if (!has_feature(kFeatureSize) || !driver_ok()) return;
  if (multiport())
    SendResize();
  else
    ConfigChanged();
}

void VirtioConsole::SendResize() {
  if (!has_feature(kFeatureSize)) return;
  for (uint32_t i = 0; i < ports_.size(); ++i)
    if (ports_[i]->options.console && ports_[i]->announced)
      SendControl(i, kResize, 0, std::span(config_).first(4));  // cols, rows
}

void VirtioConsole::SetHostConnected(unsigned port, bool connected) {
  if (std::exchange(ports_[port]->host_open, connected) == connected) return;
  if (driver_ok() && multiport() && ports_[port]->announced) SendControl(port, kPortOpen, connected ? 1 : 0);
}

void VirtioConsole::OnReset() {
  for (auto& port : ports_) {
    port->SetGuestOpen(false);
    port->announced = false;
  }
  control_.clear();
}

void VirtioConsole::SerializeState(state::Archive& archive) {
  archive.List(
      1, ports_.size(), ports_.size(),
      [&](size_t count) {
        if (count != ports_.size()) archive.Reject(name() + ": the number of ports differs");
      },
      [&](state::Archive& element, size_t index) {
        Port& port = *ports_[index];
        std::vector<uint8_t> input(port.input.begin(), port.input.end());
        element.Field(1, port.guest_open);
        element.Field(2, port.announced);
        element.Bytes(3, input, kMaxInput);
        if (element.loading()) port.input.assign(input.begin(), input.end());
      });
  archive.List(
      2, control_.size(), kMaxControl, [&](size_t count) { control_.resize(count); },
      [&](state::Archive& element, size_t index) { element.Bytes(1, control_[index], kControlSize + kMaxName); });
}

void VirtioConsole::OnLoaded() {
  for (auto& port : ports_)
    if (port->guest_open && port->options.backend) port->options.backend->SetOpen(true);
  if (driver_ok() && multiport()) SendResize();  // the terminal may be another one now
}

}  // namespace nacre::devices
