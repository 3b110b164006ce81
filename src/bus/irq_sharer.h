#pragma once
// Several sources on one level-triggered line (wired OR). Under the device lock.

#include <cstdint>
#include <memory>

#include "bus/device.h"

namespace nacre::bus {

class IrqSharer {
 public:
  IrqSharer() = default;
  explicit IrqSharer(IrqLine* line) : line_(line) {}
  IrqSharer(const IrqSharer&) = delete;
  IrqSharer& operator=(const IrqSharer&) = delete;

  void SetTarget(IrqLine* line) { line_ = line; }
  /// A line for one more source. The sharer must outlive it.
  std::unique_ptr<IrqLine> NewSource() { return std::make_unique<Source>(*this); }

 private:
  class Source final : public IrqLine {
   public:
    explicit Source(IrqSharer& sharer) : sharer_(sharer) {}
    ~Source() override { Set(false); }
    void Set(bool level) override {
      if (level == level_) return;
      level_ = level;
      sharer_.Change(level);
    }

   private:
    IrqSharer& sharer_;
    bool level_ = false;
  };

  void Change(bool level) {
    const bool was = asserted_ != 0;
    asserted_ += level ? 1 : -1;
    if (line_ && was != (asserted_ != 0)) line_->Set(asserted_ != 0);
  }

  IrqLine* line_ = nullptr;
  int asserted_ = 0;
};

}  // namespace nacre::bus
