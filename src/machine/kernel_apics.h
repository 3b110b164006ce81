#pragma once
// Local APICs kept by the engine (kvm): the board's interrupt messages, the 8259 pair and the IO-APIC's routes go to
// the host's kernel. Between engine and board; under the device lock.

#include <functional>

#include "devices/chipset/apic_types.h"
#include "devices/chipset/io_apic.h"
#include "engine/engine.h"

namespace nacre::machine {

class KernelApics final : public devices::RemoteApics {
 public:
  /// `ext_int`: the 8259 pair's level, for the bootstrap processor. `lint1`: the pin of every CPU rose.
  KernelApics(engine::MessageSink& sink, const devices::IoApic& io_apic, unsigned cpu_count,
              std::function<void(bool)> ext_int, std::function<void()> lint1)
      : sink_(sink), io_apic_(io_apic), cpu_count_(cpu_count), ext_int_(std::move(ext_int)), lint1_(std::move(lint1)) {}

  void Deliver(const devices::ApicMessage& message) override;
  std::unique_ptr<devices::RemoteLine> NewLine(const devices::ApicMessage& message) override;
  void SetExtInt(bool level) override { ext_int_(level); }
  void Nmi() override { lint1_(); }
  /// The IO-APIC's redirection entries have changed.
  Status UpdateRoutes();

 private:
  class Line;
  static engine::MessageWrite WriteOf(const devices::ApicMessage& message);

  engine::MessageSink& sink_;
  const devices::IoApic& io_apic_;
  const unsigned cpu_count_;
  const std::function<void(bool)> ext_int_;
  const std::function<void()> lint1_;
};

}  // namespace nacre::machine
