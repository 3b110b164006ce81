// Hardware task switches, 16 and 32 bits (SDM 3A ch. 7.3).

#include "engine/interp/handlers.h"

namespace nacre::engine::interp {

using x86::Segment;
using x86::SegmentIndex;
namespace rf = x86::rflags;

namespace {

/// Where the fields of a TSS lie (SDM 3A figures 7-2 and 7-10).
struct Layout {
  unsigned size, eip, eflags, gpr, gpr_size, segments, segment_step, segment_count, ldt, minimum;
};
constexpr Layout kLayout32 = {104, 32, 36, 40, 4, 72, 4, 6, 96, 0x67};
constexpr Layout kLayout16 = {44, 14, 16, 18, 2, 34, 2, 4, 42, 0x2b};
constexpr unsigned kCr3At = 28, kTrapAt = 100;

const Layout& LayoutOf(unsigned type) { return (type & 8) ? kLayout32 : kLayout16; }

uint32_t Field(const uint8_t* tss, unsigned at, unsigned size) {
  return size == 4 ? LoadLe<uint32_t>(tss + at) : LoadLe<uint16_t>(tss + at);
}
void SetField(uint8_t* tss, unsigned at, unsigned size, uint64_t value) {
  if (size == 4)
    StoreLe<uint32_t>(tss + at, static_cast<uint32_t>(value));
  else
    StoreLe<uint16_t>(tss + at, static_cast<uint16_t>(value));
}

/// Stores the outgoing task's registers. Only the dynamic fields are written (SDM 3A 7.2.1).
bool SaveTask(Core& c, uint64_t rip, uint64_t flags) {
  const x86::CpuState& s = *c.state;
  const Layout& layout = LayoutOf(s.tr.type());
  uint8_t tss[104];
  INTERP_TRY(c.SystemRead(s.tr.base, tss, layout.size));
  SetField(tss, layout.eip, layout.gpr_size, rip);
  SetField(tss, layout.eflags, layout.gpr_size, flags);
  for (unsigned i = 0; i < 8; ++i) SetField(tss, layout.gpr + i * layout.gpr_size, layout.gpr_size, s.gpr[i]);
  for (unsigned i = 0; i < layout.segment_count; ++i)
    SetField(tss, layout.segments + i * layout.segment_step, 2, s.segment[i].selector);
  const unsigned end = layout.segments + layout.segment_count * layout.segment_step;
  return c.SystemWrite(s.tr.base + layout.eip, tss + layout.eip, end - layout.eip);
}

bool SetBusy(Core& c, uint16_t selector, bool busy) {
  Descriptor d;
  bool outside;
  INTERP_TRY(c.TryDescriptor(selector, d, outside));
  if (outside) return c.Ts(selector & 0xfffc);
  auto access = static_cast<uint8_t>(d.high >> 8);
  access = static_cast<uint8_t>(busy ? access | 2 : access & ~2);
  return c.SystemWrite(d.address + 5, &access, 1);
}

bool LoadTaskLdt(Core& c, uint16_t selector) {
  x86::CpuState& s = *c.state;
  s.ldtr = Segment{};
  s.ldtr.selector = selector;
  s.ldtr.attributes = Segment::kUnusable;
  if ((selector & ~3) == 0) return true;
  const uint32_t error = selector & 0xfffc;
  if (selector & 4) return c.Ts(error);
  Descriptor d;
  INTERP_TRY(c.ReadDescriptor(selector, d, x86::kInvalidTss));
  if (d.code_or_data() || d.type() != kLdt || !d.present()) return c.Ts(error);
  s.ldtr.base = d.base();
  s.ldtr.limit = d.limit();
  s.ldtr.attributes = d.attributes();
  return true;
}

bool LoadTaskCode(Core& c, uint16_t selector) {
  if ((selector & ~3) == 0) return c.Ts(0);
  const uint32_t error = selector & 0xfffc;
  const unsigned rpl = selector & 3;
  Descriptor d;
  INTERP_TRY(c.ReadDescriptor(selector, d, x86::kInvalidTss));
  if (!d.is_code() || (d.conforming() ? d.dpl() > rpl : d.dpl() != rpl)) return c.Ts(error);
  if (!d.present()) return c.Np(error);
  INTERP_TRY(c.SetDescriptorBits(d, Bit(8)));
  c.CommitCode(selector, d, rpl);
  return true;
}

bool LoadTaskData(Core& c, SegmentIndex index, uint16_t selector, unsigned cpl) {
  c.CommitNull(index, selector, 0);
  if ((selector & ~3) == 0) return true;
  const uint32_t error = selector & 0xfffc;
  Descriptor d;
  INTERP_TRY(c.ReadDescriptor(selector, d, x86::kInvalidTss));
  if (!d.code_or_data() || !d.readable()) return c.Ts(error);
  const bool any_level = d.is_code() && d.conforming();
  if (!any_level && ((selector & 3u) > d.dpl() || cpl > d.dpl())) return c.Ts(error);
  if (!d.present()) return c.Np(error);
  INTERP_TRY(c.SetDescriptorBits(d, Bit(8)));
  c.CommitSegment(index, selector, d);
  return true;
}

/// The segment registers of the incoming task; a fault here is the new task's (SDM 3A 7.3 step 13).
bool LoadTaskSegments(Core& c, const uint16_t (&selectors)[6]) {
  x86::CpuState& s = *c.state;
  if (s.virtual8086()) {
    for (unsigned i = 0; i < 6; ++i) c.SetVirtual8086Segment(static_cast<SegmentIndex>(i), selectors[i]);
    return true;
  }
  // Until each is checked it is unusable, and CPL is what CS asks for.
  const unsigned cpl = selectors[x86::kCs] & 3;
  for (unsigned i = 0; i < 6; ++i) c.CommitNull(static_cast<SegmentIndex>(i), selectors[i], i == x86::kSs ? cpl : 0);
  INTERP_TRY(LoadTaskCode(c, selectors[x86::kCs]));
  Descriptor stack;
  INTERP_TRY(c.CheckStackSegment(selectors[x86::kSs], cpl, stack, x86::kInvalidTss));
  c.CommitSegment(x86::kSs, selectors[x86::kSs], stack);
  for (SegmentIndex index : {x86::kEs, x86::kDs, x86::kFs, x86::kGs})
    INTERP_TRY(LoadTaskData(c, index, selectors[index], cpl));
  return true;
}

}  // namespace

bool Core::TaskGate(const Descriptor& gate, uint16_t, TaskSource source, const Event* event) {
  const uint16_t selector = gate.gate_selector();
  const uint32_t error = selector & 0xfffc;
  if (selector & 4) return Gp(error);
  Descriptor d;
  INTERP_TRY(ReadDescriptor(selector, d, x86::kGeneralProtection));
  if (d.code_or_data() || (d.type() != kTss16 && d.type() != kTss32)) return Gp(error);
  if (!d.present()) return Np(error);
  return TaskSwitch(selector, d, source, event);
}

bool Core::TaskReturn() {
  uint16_t link;
  INTERP_TRY(SystemRead(state->tr.base, &link, 2));
  const uint32_t error = link & 0xfffc;
  if (link & 4) return Ts(error);
  Descriptor d;
  INTERP_TRY(ReadDescriptor(link, d, x86::kInvalidTss));
  if (d.code_or_data() || (d.type() != kTss16Busy && d.type() != kTss32Busy)) return Ts(error);
  if (!d.present()) return Np(error);
  return TaskSwitch(link, d, TaskSource::kReturn, nullptr);
}

namespace {

/// CR3, RFLAGS and the general registers of the incoming task; `tss` is a copy of its TSS.
bool LoadTaskRegisters(Core& c, const uint8_t* tss, const Layout& layout, bool nested) {
  x86::CpuState& s = *c.state;
  const bool wide = layout.gpr_size == 4;
  if (wide && s.paging()) {
    const uint64_t cr3 = Field(tss, kCr3At, 4);
    if ((s.cr4 & x86::cr4::kPae) && !x86::LoadPdptes(*c.config.memory, s, cr3, c.config.model->physical_address_bits()))
      return c.Gp();
    s.cr3 = cr3;
    c.FlushTlb();
    if (c.listener) c.listener->OnAddressSpace(c.pcid(), false);
  }
  constexpr uint64_t kFlags = rf::kArithmetic | rf::kTf | rf::kIf | rf::kDf | rf::kIoplMask | rf::kNt | rf::kRf |
                              rf::kVm | rf::kAc | rf::kVif | rf::kVip | rf::kId;
  uint64_t flags = Field(tss, layout.eflags, layout.gpr_size) & (wide ? kFlags : kFlags & 0xffff);
  if (nested) flags |= rf::kNt;
  s.rflags = flags | rf::kFixed1;
  for (unsigned i = 0; i < 8; ++i) {
    const uint32_t value = Field(tss, layout.gpr + i * layout.gpr_size, layout.gpr_size);
    s.gpr[i] = wide ? value : 0xffff0000u | value;
  }
  s.rip = c.next_rip = Field(tss, layout.eip, layout.gpr_size);
  c.keep_rf = c.no_trap = true;
  return true;
}

/// LDTR and the segment registers. A fault belongs to the new task, whose selectors are then visible but unusable.
bool LoadTaskSelectors(Core& c, const uint8_t* tss, const Layout& layout) {
  uint16_t selectors[6] = {};
  for (unsigned i = 0; i < layout.segment_count; ++i)
    selectors[i] = LoadLe<uint16_t>(tss + layout.segments + i * layout.segment_step);
  if (LoadTaskLdt(c, LoadLe<uint16_t>(tss + layout.ldt))) return LoadTaskSegments(c, selectors);
  for (unsigned i = 0; i < 6; ++i)
    c.CommitNull(static_cast<SegmentIndex>(i), selectors[i], i == x86::kSs ? selectors[x86::kCs] & 3 : 0);
  return false;
}

}  // namespace

bool Core::TaskSwitch(uint16_t selector, const Descriptor& descriptor, TaskSource source, const Event* event) {
  x86::CpuState& s = *state;
  const Layout& layout = LayoutOf(descriptor.type());
  const bool wide = layout.gpr_size == 4;
  if (descriptor.limit() < layout.minimum) return Ts(selector & 0xfffc);
  const uint64_t base = descriptor.base();
  uint8_t tss[104];
  INTERP_TRY(SystemRead(base, tss, layout.size));
  const bool nested = source == TaskSource::kCall || source == TaskSource::kEvent;

  // The outgoing task.
  uint64_t flags = s.rflags;
  if (event && event->set_rf) flags |= rf::kRf;
  if (source == TaskSource::kReturn) flags &= ~rf::kNt;
  const uint16_t old_selector = s.tr.selector;
  INTERP_TRY(SaveTask(*this, event ? event->return_rip : next_rip, flags));
  if (!nested) INTERP_TRY(SetBusy(*this, old_selector, false));
  if (nested) INTERP_TRY(SystemWrite(base, &old_selector, 2));
  if (source != TaskSource::kReturn) INTERP_TRY(SetBusy(*this, selector, true));

  // The incoming one: from here on every fault belongs to it.
  s.tr.selector = selector;
  s.tr.base = base;
  s.tr.limit = descriptor.limit();
  s.tr.attributes = descriptor.attributes() | 2;
  s.cr0 |= x86::cr0::kTs;
  s.dr7 &= ~uint64_t{0x155};  // local breakpoints and LE
  INTERP_TRY(LoadTaskRegisters(*this, tss, layout, nested));
  INTERP_TRY(LoadTaskSelectors(*this, tss, layout));
  UpdateAccessMode();
  if (s.rip > s.segment[x86::kCs].limit) return Gp();
  if (wide && (tss[kTrapAt] & 1)) task_trap = true;
  if (event && event->has_error) INTERP_TRY(Push(wide ? 4 : 2, event->error));
  return true;
}

}  // namespace nacre::engine::interp
