#pragma once
// The board's interrupt wiring: an ISA interrupt reaches the 8259 pair and the IO-APIC at once, whichever the
// guest uses; IRQ 0 sits on IO-APIC pin 2 (MP 1.4, 3.6.2.2; the MADT says so by an override); lines 16 to 23
// reach the IO-APIC only. Lines can be shared: every caller takes a source of its own. Under the device lock.

#include <array>
#include <memory>

#include "base/check.h"
#include "bus/irq_sharer.h"
#include "devices/chipset/io_apic.h"
#include "devices/legacy/pic8259.h"

namespace nacre::devices {

class GsiRouter {
 public:
  static constexpr unsigned kLines = IoApic::kPins;

  GsiRouter(Pic8259& pic, IoApic& io_apic) {
    for (unsigned i = 0; i < kLines; ++i) {
      lines_[i].pic = i < 16 && i != 2 ? &pic.line(i) : nullptr;
      lines_[i].io_apic = i == 2 ? nullptr : &io_apic.line(i == 0 ? 2 : i);
      sharers_[i].SetTarget(&lines_[i]);
    }
  }
  GsiRouter(const GsiRouter&) = delete;
  GsiRouter& operator=(const GsiRouter&) = delete;

  /// A line for one more device on ISA IRQ 0-15 (not 2: the cascade) or global interrupt 16-23. The router
  /// must outlive it.
  std::unique_ptr<bus::IrqLine> NewSource(unsigned irq) {
    NACRE_CHECK(irq < kLines && irq != 2);
    return sharers_[irq].NewSource();
  }
  /// The global interrupt of an ISA IRQ, for ACPI tables.
  static unsigned GsiOf(unsigned isa_irq) { return isa_irq == 0 ? 2 : isa_irq; }

 private:
  struct FanOut final : bus::IrqLine {
    void Set(bool level) override {
      if (pic) pic->Set(level);
      if (io_apic) io_apic->Set(level);
    }
    bus::IrqLine* pic = nullptr;
    bus::IrqLine* io_apic = nullptr;
  };

  std::array<FanOut, kLines> lines_;
  std::array<bus::IrqSharer, kLines> sharers_;
};

}  // namespace nacre::devices
