#include "engine/kvm/kvm_routes.h"

#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>

#include "engine/kvm/kvm_api.h"

namespace nacre::engine::kvm {
namespace {

kvm_irq_routing_entry EntryOf(uint32_t number, const MessageWrite& message) {
  kvm_irq_routing_entry entry{};
  entry.gsi = number;
  entry.type = KVM_IRQ_ROUTING_MSI;
  entry.u.msi.address_lo = static_cast<uint32_t>(message.address);
  entry.u.msi.address_hi = static_cast<uint32_t>(message.address >> 32);
  entry.u.msi.data = message.data;
  return entry;
}

}  // namespace

class KvmRoutes::Line final : public MessageLine {
 public:
  Line(KvmRoutes& routes, unsigned number, Fd event) : routes_(routes), number_(number), event_(std::move(event)) {}
  /// The kernel waits for what it still has to deliver (irqfd_shutdown).
  ~Line() override {
    if (bound_) (void)Bind(KVM_IRQFD_FLAG_DEASSIGN);
    (void)routes_.Change(number_, std::nullopt);
  }
  bool Bind(uint32_t flags) {
    kvm_irqfd bind{};
    bind.fd = static_cast<uint32_t>(event_.get());
    bind.gsi = kPins + number_;
    bind.flags = flags;
    bound_ = ioctl(routes_.vm_, KVM_IRQFD, &bind) == 0;
    return bound_;
  }
  void Send() override {
    const uint64_t one = 1;
    routes_.sent_.fetch_add(1, std::memory_order_relaxed);
    [[maybe_unused]] const ssize_t written = ::write(event_.get(), &one, sizeof one);
  }
  Status Change(const MessageWrite& message) override { return routes_.Change(number_, message); }
  int event_fd() const override { return event_.get(); }

 private:
  KvmRoutes& routes_;
  const unsigned number_;
  const Fd event_;
  bool bound_ = false;
};

KvmRoutes::KvmRoutes(int vm, int most)
    : vm_(vm),
      lines_(static_cast<size_t>(std::clamp(most - static_cast<int>(kPins), 0, static_cast<int>(kMaxLines)))) {}

Status KvmRoutes::SetPins(std::span<const std::optional<MessageWrite>> pins) {
  const std::lock_guard lock(mutex_);
  std::copy_n(pins.begin(), std::min<size_t>(pins.size(), kPins), pins_.begin());
  return Commit();
}

std::unique_ptr<MessageLine> KvmRoutes::Open(const MessageWrite& message) {
  Fd event(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!event.valid()) return nullptr;
  std::unique_ptr<Line> line;
  {
    const std::lock_guard lock(mutex_);
    const auto free = std::ranges::find_if(lines_, [](const auto& used) { return !used; });
    if (free == lines_.end()) return nullptr;
    *free = message;
    line = std::make_unique<Line>(*this, static_cast<unsigned>(free - lines_.begin()), std::move(event));
    if (!Commit()) {
      free->reset();
      return nullptr;
    }
  }
  if (!line->Bind(0)) return nullptr;
  return line;
}

Status KvmRoutes::Change(unsigned line, const std::optional<MessageWrite>& message) {
  const std::lock_guard lock(mutex_);
  lines_[line] = message;
  // A number without a descriptor does nothing: it leaves the kernel's table with the next change.
  return message ? Commit() : Status{};
}

Status KvmRoutes::Commit() {
  std::vector<uint8_t> bytes(sizeof(kvm_irq_routing) + (kPins + lines_.size()) * sizeof(kvm_irq_routing_entry));
  auto* table = reinterpret_cast<kvm_irq_routing*>(bytes.data());
  uint32_t count = 0;
  for (uint32_t pin = 0; pin < kPins; ++pin)
    if (pins_[pin]) table->entries[count++] = EntryOf(pin, *pins_[pin]);
  for (uint32_t line = 0; line < lines_.size(); ++line)
    if (lines_[line]) table->entries[count++] = EntryOf(kPins + line, *lines_[line]);
  table->nr = count;
  if (ioctl(vm_, KVM_SET_GSI_ROUTING, table) != 0) return FailErrno("KVM_SET_GSI_ROUTING of {} routes", count);
  return {};
}

}  // namespace nacre::engine::kvm
