#include "x86/cpu_model.h"

#include <Zydis/Zydis.h>
#include <cpuid.h>
#include <time.h>
#include <x86intrin.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/bits.h"
#include "base/check.h"
#include "x86/cpu_model_features.h"
#include "x86/cpu_model_selection.h"
#include "x86/decoder.h"

namespace nacre::x86 {
namespace {

// GenuineIntel, family 6, a model number that no product has: no kernel knows errata or missing features of it.
constexpr uint32_t kSignature = 0x000f0601;
constexpr uint32_t kMaxBasicLeaf = 0x16;
constexpr uint32_t kMaxExtendedLeaf = 0x80000008;
constexpr uint32_t kApicTimerKhz = 1'000'000;

CpuidResult HostCpuid(uint32_t leaf, uint32_t subleaf = 0) {
  CpuidResult r;
  __cpuid_count(leaf, subleaf, r.eax, r.ebx, r.ecx, r.edx);
  return r;
}

uint32_t& RegisterOf(CpuidResult& result, char reg) {
  return reg == 'a' ? result.eax : reg == 'b' ? result.ebx : reg == 'c' ? result.ecx : result.edx;
}

/// The TSC against CLOCK_MONOTONIC_RAW. Each pair of readings is taken several times and the tightest is kept.
uint64_t CalibrateTscKhz() {
  struct Point {
    uint64_t tsc, ns;
  };
  const auto sample = [] {
    Point best{};
    uint64_t best_width = ~uint64_t{0};
    for (int i = 0; i < 16; ++i) {
      timespec now;
      const uint64_t before = __rdtsc();
      clock_gettime(CLOCK_MONOTONIC_RAW, &now);
      const uint64_t after = __rdtsc();
      if (after - before >= best_width) continue;
      best_width = after - before;
      best = {before + best_width / 2,
              static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec)};
    }
    return best;
  };
  const Point first = sample();
  const timespec pause{0, 20'000'000};
  nanosleep(&pause, nullptr);
  const Point last = sample();
  if (last.ns <= first.ns || last.tsc <= first.tsc) return 0;
  return (last.tsc - first.tsc) * 1'000'000 / (last.ns - first.ns);
}

/// From the hypervisor's timing leaf or the crystal's leaf where they tell it (exact), else measured. Once per process.
uint64_t HostTscKhz() {
  static const uint64_t khz = [] {
    const auto plausible = [](uint64_t value) { return value >= 100'000 && value <= 20'000'000; };
    if (TestBit(HostCpuid(1).ecx, 31) && HostCpuid(0x40000000).eax >= 0x40000010 &&
        HostCpuid(0x40000000).eax < 0x40010000) {
      const uint64_t told = HostCpuid(0x40000010).eax;
      if (plausible(told)) return told;
    }
    if (HostCpuid(0).eax >= 0x15) {
      const CpuidResult crystal = HostCpuid(0x15);
      if (crystal.eax != 0 && crystal.ebx != 0 && crystal.ecx != 0) {
        const uint64_t told = uint64_t{crystal.ecx} * crystal.ebx / crystal.eax / 1000;
        if (plausible(told)) return told;
      }
    }
    return CalibrateTscKhz();
  }();
  return khz;
}

/// Of an area in the standard format that holds `components`.
uint32_t XsaveBytes(uint64_t components) {
  uint32_t bytes = XsaveArea::kAvxOffset;  // the legacy region and the header
  for (const XsaveComponent& component : kXsaveComponents)
    if (TestBit(components, component.bit)) bytes = std::max(bytes, component.offset + component.bytes);
  return bytes;
}

struct Ratio {
  uint32_t numerator = 0, denominator = 1;
};

/// The best fraction for value / scale with a numerator up to `limit`, by continued fractions.
Ratio Approximate(uint64_t value, uint64_t scale, uint64_t limit) {
  uint64_t a = value, b = scale;
  uint64_t n0 = 0, d0 = 1, n1 = 1, d1 = 0;
  while (b != 0) {
    const uint64_t quotient = a / b;
    const uint64_t n = quotient * n1 + n0;
    const uint64_t d = quotient * d1 + d0;
    if (n > limit) break;
    n0 = n1, d0 = d1, n1 = n, d1 = d;
    const uint64_t rest = a % b;
    a = b;
    b = rest;
  }
  return {static_cast<uint32_t>(n1), static_cast<uint32_t>(std::max<uint64_t>(d1, 1))};
}

}  // namespace

Result<CpuModel> CpuModel::Create(std::string_view name, const CpuModelOptions& options) {
  return Create(NACRE_TRY(ParseModelName(name)), options);
}

Result<CpuModel> CpuModel::Create(const ModelName& name, const CpuModelOptions& options) {
  if (options.cpu_count == 0 || options.cpu_count > 1024)
    return Fail("{} CPUs: give a number from 1 to 1024", options.cpu_count);
  const SelectedModel selected = NACRE_TRY(SelectModel(name));
  CpuModel model;
  model.name_ = selected.name.Text();
  model.cpu_count_ = options.cpu_count;
  model.tsc_khz_ = options.tsc_khz != 0 ? options.tsc_khz : HostTscKhz();
  if (model.tsc_khz_ == 0) return Fail("CPU model {}: cannot measure the host's time stamp counter", model.name_);
  model.AddBasicLeaves();
  model.AddCacheLeaves();
  model.AddExtendedLeaves(selected.name.base);
  model.AddFeatures(selected);
  model.AddMasks();
  model.AddXsaveLeaves();
  model.AddFrequencyLeaves();
  if (options.paravirtual) model.AddParavirtualLeaves();
  return model;
}

CpuModel CpuModel::Unmasked() const {
  CpuModel unmasked = *this;
  for (const Feature& feature : FeatureTable()) {
    if (!HostHas(feature)) continue;
    for (const ZydisISASet set : feature.isa_sets)
      if (set != ZYDIS_ISA_SET_INVALID) unmasked.isa_sets_[set] = true;
  }
  return unmasked;
}

CpuidResult& CpuModel::AddLeaf(uint32_t leaf, uint32_t subleaf, bool indexed) {
  leaves_.push_back({leaf, subleaf, indexed, {}});
  return leaves_.back().value;
}

const CpuModel::Leaf* CpuModel::FindLeaf(uint32_t leaf, uint32_t subleaf) const {
  for (const Leaf& entry : leaves_)
    if (entry.leaf == leaf && (!entry.indexed || entry.subleaf == subleaf)) return &entry;
  return nullptr;
}

bool CpuModel::HasFeature(uint32_t leaf, uint32_t subleaf, char reg, unsigned bit) const {
  const Leaf* found = FindLeaf(leaf, subleaf);
  if (!found) return false;
  CpuidResult value = found->value;
  return TestBit(RegisterOf(value, reg), bit);
}

void CpuModel::AddFeatures(const SelectedModel& selected) {
  isa_sets_.assign(ZYDIS_ISA_SET_MAX_VALUE + 1, false);
  for (ZydisISASet set : BaselineIsaSets()) isa_sets_[set] = true;
  for (const Feature& feature : FeatureTable()) {
    if (!selected.features.test(IndexOf(feature))) continue;
    const auto leaf = std::ranges::find_if(
        leaves_, [&](const Leaf& entry) { return entry.leaf == feature.leaf && entry.subleaf == feature.subleaf; });
    NACRE_CHECK(leaf != leaves_.end());
    RegisterOf(leaf->value, feature.reg) |= static_cast<uint32_t>(Bit(feature.bit));
    for (ZydisISASet set : feature.isa_sets)
      if (set != ZYDIS_ISA_SET_INVALID) isa_sets_[set] = true;
  }
}

/// Bits of registers that exist with a feature.
void CpuModel::AddMasks() {
  const bool avx = HasFeature(1, 0, 'c', 28), avx512 = HasFeature(7, 0, 'b', 16);
  xcr0_mask_ = 3u | (avx ? 4u : 0u) | (avx512 ? kAvx512Components : 0u);
  const auto with = [this](uint32_t leaf, char reg, unsigned bit, uint64_t bits, uint32_t subleaf = 0) {
    return HasFeature(leaf, subleaf, reg, bit) ? bits : 0;
  };
  cr4_mask_ = cr4::kTsd | cr4::kDe | cr4::kPse | cr4::kPae | cr4::kMce | cr4::kPge | cr4::kPce |
              with(1, 'd', 24, cr4::kOsFxsr) | with(1, 'd', 25, cr4::kOsXmmExcpt) | with(1, 'c', 17, cr4::kPcide) |
              with(1, 'c', 26, cr4::kOsXsave) | with(7, 'b', 0, cr4::kFsGsBase) | with(7, 'b', 7, cr4::kSmep) |
              with(7, 'b', 20, cr4::kSmap) | with(7, 'c', 2, cr4::kUmip);
  has_1gib_pages_ = HasFeature(0x80000001, 0, 'd', 26);
  efer_mask_ = efer::kSce | efer::kLme | efer::kLma | with(0x80000001, 'd', 20, efer::kNxe);
  spec_ctrl_mask_ = with(7, 'd', 26, 1 << 0) | with(7, 'd', 27, 1 << 1) | with(7, 'd', 31, 1 << 2) |
                    with(7, 'd', 4, 1 << 10, 2);  // IBRS STIBP SSBD BHI_DIS_S
}

void CpuModel::AddBasicLeaves() {
  CpuidResult& vendor = AddLeaf(0);
  vendor.eax = kMaxBasicLeaf;
  std::memcpy(&vendor.ebx, "Genu", 4);
  std::memcpy(&vendor.edx, "ineI", 4);
  std::memcpy(&vendor.ecx, "ntel", 4);
  CpuidResult& version = AddLeaf(1);
  version.eax = kSignature;
  version.ebx = (std::min(cpu_count_, 255u) << 16) | (8 << 8);  // CLFLUSH line of 64 bytes
  if (cpu_count_ > 1) version.edx |= 1u << 28;                  // HTT: the count above is valid
  AddLeaf(6);
  AddLeaf(7, 0, true).eax = 2;  // the last subleaf
  AddLeaf(7, 1, true);
  AddLeaf(7, 2, true);
  AddLeaf(0xd, 0, true);
  AddLeaf(0xd, 1, true);
  // Extended topology (SDM 3A 9.9.1): one thread per core, all cores in one package.
  const unsigned core_bits = static_cast<unsigned>(std::bit_width(cpu_count_ - 1));
  CpuidResult& thread = AddLeaf(0xb, 0, true);
  thread = {0, 1, 1 << 8, 0};
  CpuidResult& core = AddLeaf(0xb, 1, true);
  core = {core_bits, cpu_count_, 1 | 2 << 8, 0};
}

void CpuModel::AddCacheLeaves() {
  AddLeaf(2) = {0x00feff01, 0, 0, 0};  // see leaves 4 and 0x18
  struct Cache {
    uint32_t type, level, size_kib, ways;
    bool shared;
  };
  constexpr Cache kCaches[] = {
      {1, 1, 32, 8, false}, {2, 1, 32, 8, false}, {3, 2, 1024, 16, false}, {3, 3, 16384, 16, true}};
  const uint32_t cores = std::min(static_cast<uint32_t>(std::bit_ceil(cpu_count_)), 64u) - 1;
  uint32_t subleaf = 0;
  for (const Cache& cache : kCaches) {
    const uint32_t sharing = cache.shared ? std::bit_ceil(cpu_count_) - 1 : 0;
    CpuidResult& leaf = AddLeaf(4, subleaf++, true);
    leaf.eax = cache.type | cache.level << 5 | 1 << 8 | std::min(sharing, 0xfffu) << 14 | cores << 26;
    leaf.ebx = 63 | (cache.ways - 1) << 22;
    leaf.ecx = cache.size_kib * 1024 / cache.ways / 64 - 1;
  }
  AddLeaf(0x80000006).ecx = 1024u << 16 | 8 << 12 | 64;
}

void CpuModel::AddXsaveLeaves() {
  if (!HasFeature(1, 0, 'c', 26)) return;
  const auto main = std::ranges::find_if(leaves_, [](const Leaf& l) { return l.leaf == 0xd && l.subleaf == 0; });
  main->value.eax = static_cast<uint32_t>(xcr0_mask_);
  main->value.ecx = XsaveBytes(xcr0_mask_);
  for (const XsaveComponent& component : kXsaveComponents)
    if (TestBit(xcr0_mask_, component.bit))
      AddLeaf(0xd, component.bit, true) = {component.bytes, component.offset, 0, 0};
}

/// Leaf 0x15 in units of the APIC timer's 1 GHz, which Linux takes as that timer's rate. Linux multiplies its kHz by
/// the numerator in 32 bits, hence the bound.
void CpuModel::AddFrequencyLeaves() {
  const Ratio ratio = Approximate(tsc_khz_, kApicTimerKhz, 0xffffffffu / kApicTimerKhz);
  AddLeaf(0x15) = {ratio.denominator, ratio.numerator, kApicTimerKhz * 1000, 0};
  const auto mhz = static_cast<uint32_t>(std::min<uint64_t>((tsc_khz_ + 500) / 1000, 0xffff));
  AddLeaf(0x16) = {mhz, mhz, 100, 0};
}

bool CpuModel::IsHypercall(uint16_t mnemonic) {
  return mnemonic == ZYDIS_MNEMONIC_VMCALL || mnemonic == ZYDIS_MNEMONIC_VMMCALL;
}

void CpuModel::AddParavirtualLeaves() {
  hypercalls_ = true;
  CpuidResult& signature = AddLeaf(0x40000000);
  signature.eax = 0x40000010;
  std::memcpy(&signature.ebx, "KVMK", 4);
  std::memcpy(&signature.ecx, "VMKV", 4);
  std::memcpy(&signature.edx, "M\0\0\0", 4);
  // Clock source (old and new MSRs), no I/O delay needed, stolen time, paravirtual EOI, kick of halted CPUs, TLB flush,
  // multicast IPIs, stable clock.
  AddLeaf(0x40000001).eax = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 9 | 1 << 11 | 1 << 24;
  AddLeaf(0x40000010) = {static_cast<uint32_t>(tsc_khz_), kApicTimerKhz, 0, 0};
}

void CpuModel::AddExtendedLeaves(std::string_view base) {
  AddLeaf(0x80000000).eax = kMaxExtendedLeaf;
  AddLeaf(0x80000001);
  char brand[48] = {};
  fmt::format_to_n(brand, sizeof brand - 1, "Nacre Virtual CPU ({})", base);
  for (uint32_t i = 0; i < 3; ++i) {
    CpuidResult& leaf = AddLeaf(0x80000002 + i);
    std::memcpy(&leaf.eax, brand + 16 * i, 4);
    std::memcpy(&leaf.ebx, brand + 16 * i + 4, 4);
    std::memcpy(&leaf.ecx, brand + 16 * i + 8, 4);
    std::memcpy(&leaf.edx, brand + 16 * i + 12, 4);
  }
  AddLeaf(0x80000007);
  AddLeaf(0x80000008).eax = physical_address_bits_ | linear_address_bits() << 8;
}

CpuidResult CpuModel::Cpuid(uint32_t leaf, uint32_t subleaf, const CpuState& state, unsigned apic_id) const {
  // SDM 2A "CPUID": a leaf above the maximum gives the data of the highest basic leaf.
  const bool hypervisor_range = leaf >= 0x40000000 && leaf < 0x50000000;
  if (!hypervisor_range && ((leaf > kMaxBasicLeaf && leaf < 0x80000000) || leaf > kMaxExtendedLeaf))
    leaf = kMaxBasicLeaf;
  const Leaf* found = FindLeaf(leaf, subleaf);
  CpuidResult result = found ? found->value : CpuidResult{};
  switch (leaf) {
    case 1:
      result.ebx |= apic_id << 24;
      if (state.cr4 & cr4::kOsXsave) result.ecx |= 1u << 27;
      break;
    case 0xb:
      result.ecx = (result.ecx & ~0xffu) | (subleaf & 0xff);
      result.edx = apic_id;
      break;
    case 0xd:
      if (subleaf == 0 && result.eax != 0) result.ebx = XsaveBytes(state.xcr0);
      break;
    case 0x80000001:
      if (!state.code64()) result.edx &= ~(1u << 11);  // Intel: SYSCALL only in 64-bit mode
      break;
    default:
      break;
  }
  return result;
}

std::vector<CpuModel::CpuidEntry> CpuModel::CpuidEntries(unsigned apic_id) const {
  CpuState state;
  ResetCpuState(state);
  std::vector<CpuidEntry> entries;
  for (const Leaf& leaf : leaves_)
    entries.push_back({leaf.leaf, leaf.subleaf, leaf.indexed, Cpuid(leaf.leaf, leaf.subleaf, state, apic_id)});
  // Outside 64-bit code Cpuid hides SYSCALL; hardware does so by itself.
  for (CpuidEntry& entry : entries)
    if (entry.leaf == 0x80000001) entry.value = FindLeaf(entry.leaf, 0)->value;
  return entries;
}

/// SDM 4 table 2-2, IA32_ARCH_CAPABILITIES: RDCL_NO IBRS_ALL SKIP_L1DFL_VMENTRY SSB_NO MDS_NO PSCHANGE_MC_NO TAA_NO
/// SBDR_SSDP_NO FBSDP_NO PSDP_NO BHI_NO PBRSB_NO GDS_NO RFDS_NO ITS_NO.
uint64_t CpuModel::arch_capabilities() {
  uint64_t value = 0;
  for (unsigned bit : {0, 1, 3, 4, 5, 6, 8, 13, 14, 15, 20, 24, 26, 27, 62}) value |= Bit(bit);
  return value;
}

bool CpuModel::Adapt(Instruction& instruction) const {
  const bool scan = instruction.mnemonic == ZYDIS_MNEMONIC_TZCNT || instruction.mnemonic == ZYDIS_MNEMONIC_LZCNT;
  if (scan && !Has(instruction)) {
    uint8_t bytes[15];
    std::memcpy(bytes, instruction.bytes, sizeof bytes);
    for (unsigned i = 0; i < instruction.prefix_count; ++i)
      if (bytes[i] == 0xf3) bytes[i] = 0xf2;
    const uint8_t length = instruction.length;
    return Decode({bytes, length}, instruction.code_size, instruction) == DecodeStatus::kOk && Has(instruction);
  }
  return Has(instruction);
}

}  // namespace nacre::x86
