#pragma once
// The conformance suite that every device passes: register access of every shape, reset, save and restore, hostile
// archives. For tests only (nacre_bus_testing). A test gives a factory; each check begins with a fresh device:
//
//   TEST(Conformance, Pit) { bus::RunConformance([] { return std::make_unique<PitSubject>(); }); }

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/manual_scheduler.h"
#include "bus/device.h"

namespace nacre::bus {

/// One register block: as the bus would map it.
struct ConformanceBlock {
  IoHandler* handler = nullptr;
  uint64_t size_bytes = 0;
  unsigned max_access = 4;  ///< 4 on the port bus, 8 on the memory bus
};

/// A device together with what it is connected to.
class ConformanceSubject {
 public:
  virtual ~ConformanceSubject() = default;
  virtual Device& device() = 0;
  virtual std::vector<ConformanceBlock> blocks() = 0;
  /// Other ways in than registers (MSRs, input lines), with a random number to choose by. Called now and then.
  virtual void Stimulate([[maybe_unused]] uint64_t random) {}
  /// Memory that outlives a reset (battery): the check that reset gives one state is left out.
  virtual bool battery_backed() const { return false; }
  ManualScheduler& scheduler() { return scheduler_; }

 private:
  ManualScheduler scheduler_;
};

using SubjectFactory = std::function<std::unique_ptr<ConformanceSubject>()>;

/// Runs everything below; failures are GoogleTest failures.
void RunConformance(const SubjectFactory& make);

/// Every offset of every block and a little beyond, in sizes 1, 2, 4, 8 where the bus has them.
void CheckEveryOffset(ConformanceSubject& subject);
/// 100 000 random accesses with time passing.
void CheckRandomAccesses(ConformanceSubject& subject);
void CheckReset(ConformanceSubject& subject);
void CheckSaveAndRestore(ConformanceSubject& subject, ConformanceSubject& other);
void CheckHostileArchives(ConformanceSubject& subject);

/// The saved bytes of a device, and a load of them.
std::vector<uint8_t> Save(Device& device);
Status Load(Device& device, std::span<const uint8_t> bytes);

}  // namespace nacre::bus
