#pragma once
// A PS/2 mouse that becomes an IntelliMouse with a wheel (identity 3), or one with five buttons (4), when it is asked
// to by the usual sequences of sample rates. IBM PS/2 Technical Reference, "Mouse"; Microsoft's description of the
// wheel. Under the device lock.

#include <array>
#include <cstdint>

#include "devices/legacy/ps2_device.h"
#include "display/input.h"

namespace nacre::devices {

class Ps2Mouse final : public Ps2Device {
 public:
  void Reset() override;
  void Write(uint8_t value) override;
  uint8_t Take() override;
  void Serialize(state::Archive& archive) override;

  void Move(const display::PointerMove& move);

 private:
  void Defaults();
  void Parameter(uint8_t command, uint8_t value);
  /// A report of what has moved since the last one.
  std::vector<uint8_t> Report();
  /// While there is something to report, and no report waits to be fetched.
  void Pump();

  bool reporting_ = false;
  bool remote_ = false;  ///< reports only when it is asked
  bool wrap_ = false;    ///< everything comes back
  bool scaling_ = false;
  uint8_t resolution_ = 2, rate_ = 100, identity_ = 0;
  uint8_t command_ = 0;
  std::array<uint8_t, 2> last_rates_{};
  int32_t dx_ = 0, dy_ = 0, wheel_ = 0;  ///< not reported yet; dy upwards
  uint8_t buttons_ = 0, reported_buttons_ = 0;
};

}  // namespace nacre::devices
