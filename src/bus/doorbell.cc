#include "bus/doorbell.h"

#include <algorithm>
#include <utility>

#include "bus/bus.h"

namespace nacre::bus {

DoorbellMapping::DoorbellMapping(MemoryBus& memory_bus, uint64_t address, Doorbell& doorbell)
    : bus_(memory_bus), address_(address), doorbell_(doorbell) {
  bus_.doorbells_.push_back(this);
  if (bus_.doorbell_host_) Serve(*bus_.doorbell_host_);
}

DoorbellMapping::~DoorbellMapping() {
  service_.reset();
  std::erase(bus_.doorbells_, this);
}

void DoorbellMapping::Stop() {
  if (const auto service = std::exchange(service_, nullptr); service && service->Stop()) doorbell_.Ring();
}

void DoorbellMapping::Drain() {
  if (service_ && service_->Take()) doorbell_.Ring();
}

void DoorbellMapping::Serve(DoorbellHost& host) { service_ = host.Serve(address_, doorbell_); }

void MemoryBus::SetDoorbellHost(DoorbellHost* host) {
  if (host == doorbell_host_) return;
  doorbell_host_ = host;
  ForEachDoorbell([](DoorbellMapping& mapping) { mapping.Stop(); });
  if (!host) return;
  for (DoorbellMapping* mapping : doorbells_) mapping->Serve(*host);
}

void MemoryBus::DrainDoorbells() {
  ForEachDoorbell([](DoorbellMapping& mapping) { mapping.Drain(); });
}

/// A device may take its own away when it is rung.
void MemoryBus::ForEachDoorbell(void (*apply)(DoorbellMapping&)) {
  const std::vector<DoorbellMapping*> all = doorbells_;
  for (DoorbellMapping* mapping : all)
    if (std::ranges::find(doorbells_, mapping) != doorbells_.end()) apply(*mapping);
}

}  // namespace nacre::bus
