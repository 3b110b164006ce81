#pragma once
// Routes interrupt messages (IPIs, IO-APIC pins, MSIs) to the local APICs: destination matching and
// lowest-priority arbitration (SDM 3A 11.6.2). Knows every local APIC; IDs are their indices. Under the
// device lock.

#include <cstdint>
#include <memory>
#include <vector>

#include "bus/device.h"
#include "devices/chipset/apic_types.h"

namespace nacre::devices {

class LocalApic;

class ApicBus final : public bus::MsiSink {
 public:
  ApicBus() = default;
  ApicBus(const ApicBus&) = delete;
  ApicBus& operator=(const ApicBus&) = delete;

  /// By LocalApic's constructor, in the order of their IDs from 0.
  void Add(LocalApic* apic);
  void Remove(LocalApic* apic);
  unsigned size() const { return static_cast<unsigned>(apics_.size()); }
  LocalApic& apic(unsigned id) { return *apics_[id]; }
  void AddEoiListener(EoiListener* listener) { eoi_listeners_.push_back(listener); }
  void SetExtIntSource(ExtIntSource* source) { ext_int_ = source; }
  ExtIntSource* ext_int_source() const { return ext_int_; }

  /// From now on `remote` keeps the local APICs: messages and the pins' levels go there, and our models stand still
  /// with the state they have. nullptr: the models serve again, each from its LocalApic::ImportState on; what was sent
  /// to the remote before has arrived there. No CPU runs meanwhile.
  void SetRemote(RemoteApics* remote);
  RemoteApics* remote() const { return remote_; }

  /// Delivers to every local APIC that the destination names (one of them for lowest priority).
  void Route(const ApicMessage& message);
  /// To all but `source` (nullptr: to all): the shorthands of the interrupt command register.
  void RouteToOthers(const ApicMessage& message, const LocalApic* source);
  /// A memory write to 0xfeexxxxx (SDM 3A 11.11.1); other addresses are no interrupt and are dropped.
  void Send(uint64_t address, uint32_t data) override;
  /// In remote mode it has a line of its own, if there is one.
  std::unique_ptr<bus::MsiVector> NewVector() override;
  void BroadcastEoi(uint8_t vector) {
    for (EoiListener* listener : eoi_listeners_) listener->OnEoi(vector);
  }

  /// INTR of the 8259 pair: LINT0 of every local APIC.
  bus::IrqLine& lint0() { return lint_[0]; }
  /// The board's NMI: LINT1 of every local APIC.
  bus::IrqLine& lint1() { return lint_[1]; }
  /// An edge at LINT1 of one CPU, which somebody else who kept its local APIC has not brought to it yet.
  void PulseLint1(unsigned id);

 private:
  class Vector;
  struct LintLine final : bus::IrqLine {
    LintLine(ApicBus& owner, unsigned number) : apic_bus(owner), pin(number) {}
    void Set(bool value) override;
    ApicBus& apic_bus;
    unsigned pin;
    bool level = false;
  };

  std::vector<LocalApic*> apics_;
  std::vector<Vector*> vectors_;
  std::vector<EoiListener*> eoi_listeners_;
  ExtIntSource* ext_int_ = nullptr;
  RemoteApics* remote_ = nullptr;
  LintLine lint_[2] = {{*this, 0}, {*this, 1}};
  size_t last_chosen_ = 0;  ///< lowest-priority ties go round; not architectural state
};

}  // namespace nacre::devices
