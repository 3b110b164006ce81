#include "x86/cpu_model_selection.h"

#include <cpuid.h>

#include <algorithm>
#include <cctype>

#include "base/bits.h"
#include "base/nearest.h"

namespace nacre::x86 {
namespace {

constexpr std::string_view kLevels[] = {"x86-64-v1", "x86-64-v2", "x86-64-v3", "x86-64-v4"};
constexpr std::string_view kHost = "host", kDefault = "default";

/// What a feature cannot be without (SDM 1 ch. 10 to 15, SDM 2A "CPUID"). AVX-512 goes as a whole, see Feature::avx512.
struct Dependency {
  std::string_view feature, needs;
};
constexpr Dependency kDependencies[] = {
    {"SSE", "MMX"},
    {"SSE", "FXSR"},
    {"SSE2", "SSE"},
    {"SSE3", "SSE2"},
    {"SSSE3", "SSE3"},
    {"SSE4.1", "SSSE3"},
    {"SSE4.2", "SSE4.1"},
    {"AES", "SSE2"},
    {"PCLMULQDQ", "SSE2"},
    {"SHA", "SSE2"},
    {"XSAVE", "FXSR"},
    {"XSAVEOPT", "XSAVE"},
    {"AVX", "XSAVE"},
    {"AVX", "SSE4.2"},
    {"AVX2", "AVX"},
    {"FMA", "AVX"},
    {"F16C", "AVX"},
    {"AVX512F", "AVX2"},
    {"AVX512F", "FMA"},
    {"AVX512F", "F16C"},
    {"VAES", "AES"},
    {"INVPCID", "PCID"},
    {"STIBP", "SPEC_CTRL"},
    {"SSBD", "SPEC_CTRL"},
    {"BHI_CTRL", "SPEC_CTRL"},
    {"VPCLMULQDQ", "PCLMULQDQ"},
};

/// What no x86-64 CPU is without, and this machine's firmware tables and devices rely on.
constexpr std::string_view kFixed[] = {"FPU", "DE",  "PSE",  "TSC", "MSR", "PAE",   "MCE",     "CX8", "APIC",
                                       "SEP", "PGE", "MTRR", "MCA", "PAT", "PSE36", "SYSCALL", "LM"};

bool IsFixed(const Feature& feature) { return std::ranges::find(kFixed, feature.name) != std::end(kFixed); }

bool SameName(std::string_view a, std::string_view b) {
  return std::ranges::equal(a, b, [](unsigned char x, unsigned char y) { return std::tolower(x) == std::tolower(y); });
}

std::string LowerCase(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return lower;
}

/// Whether `a` needs `b`, by one step.
bool Needs(const Feature& a, const Feature& b) {
  if (a.avx512 && b.avx512 && b.level == kLevelV4) return true;
  return std::ranges::any_of(kDependencies,
                             [&](const Dependency& d) { return d.feature == a.name && d.needs == b.name; });
}

/// Adds to `set` all that `grows` says of one of its members and another feature.
template <typename Grows>
FeatureSet Closure(const Feature& feature, Grows grows) {
  const auto table = FeatureTable();
  FeatureSet set;
  std::vector<size_t> open{IndexOf(feature)};
  while (!open.empty()) {
    const size_t at = open.back();
    open.pop_back();
    if (set.test(at)) continue;
    set.set(at);
    for (size_t i = 0; i < table.size(); ++i)
      if (!set.test(i) && grows(table[at], table[i])) open.push_back(i);
  }
  return set;
}

struct Registers {
  uint32_t a = 0, b = 0, c = 0, d = 0;
};

Registers HostCpuid(uint32_t leaf, uint32_t subleaf = 0) {
  Registers r;
  __cpuid_count(leaf, subleaf, r.a, r.b, r.c, r.d);
  return r;
}

}  // namespace

bool HostHas(const Feature& feature) {
  static const uint32_t max_basic = HostCpuid(0).a;
  static const uint32_t max_extended = HostCpuid(0x80000000).a;
  if (feature.leaf < 0x80000000 ? feature.leaf > max_basic : feature.leaf > max_extended) return false;
  if (feature.leaf == 7 && feature.subleaf > HostCpuid(7).a) return false;
  const Registers r = HostCpuid(feature.leaf, feature.subleaf);
  const uint32_t value = feature.reg == 'a' ? r.a : feature.reg == 'b' ? r.b : feature.reg == 'c' ? r.c : r.d;
  if (!TestBit(value, feature.bit)) return false;
  const std::string_view name = feature.name;
  const bool avx = name == "AVX" || name == "AVX2" || name == "FMA" || name == "F16C";
  if (avx || feature.avx512 || name == "XSAVE") {
    if (!TestBit(HostCpuid(1).c, 27)) return false;  // OSXSAVE
    uint32_t low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    const uint32_t needed = feature.avx512 ? 0xe6 : avx ? 6 : 0;
    return (low & needed) == needed;
  }
  return true;
}

namespace {

/// All that a VM can have here: what the host has, and what our engines do whatever it has.
const FeatureSet& PossibleHere() {
  static const FeatureSet possible = [] {
    const auto table = FeatureTable();
    FeatureSet set;
    for (size_t i = 0; i < table.size(); ++i)
      if (table[i].software || HostHas(table[i])) set.set(i);
    // A host may have parts of AVX-512; a model has all of level v4 or none.
    for (size_t i = 0; i < table.size(); ++i)
      if (set.test(i) && (WithRequirements(table[i]) & ~set).any()) set.reset(i);
    return set;
  }();
  return possible;
}

FeatureSet OfLevel(unsigned level) {
  const auto table = FeatureTable();
  FeatureSet set;
  for (size_t i = 0; i < table.size(); ++i)
    if (table[i].level <= level) set.set(i);
  return set;
}

std::string_view DefaultLevel() { return kLevels[std::min<unsigned>(HighestLevelOfHost(), kLevelV3)]; }

unsigned LevelOf(std::string_view base) {
  if (base == kDefault) base = DefaultLevel();
  const auto found = std::ranges::find(kLevels, base);
  return found == std::end(kLevels) ? unsigned{kLevelV1} : static_cast<unsigned>(found - std::begin(kLevels));
}

/// What a name stands for, whether the host has it or not.
FeatureSet Expand(const ModelName& name) {
  FeatureSet features = OfLevel(LevelOf(name.base));
  if (name.base == kHost) features |= PossibleHere();
  for (const auto& [add, feature] : name.modifiers) {
    if (add)
      features |= WithRequirements(*feature);
    else
      features &= ~WithDependents(*feature);
  }
  return features;
}

std::string Names(const FeatureSet& set) {
  std::string text;
  for (size_t i = 0; i < FeatureTable().size(); ++i)
    if (set.test(i)) text += (text.empty() ? "" : " ") + std::string(FeatureTable()[i].name);
  return text;
}

Error UnknownFeature(std::string_view model, std::string_view name) {
  std::vector<std::string> lower;
  for (const Feature& feature : FeatureTable()) lower.push_back(LowerCase(feature.name));
  const std::vector<std::string_view> names(lower.begin(), lower.end());
  const std::string typed = LowerCase(name);
  const std::string_view near = Nearest(typed, names);
  if (!near.empty()) return {fmt::format("CPU model {}: no feature '{}'; did you mean {}?", model, name, near), 0};
  std::string all;
  for (const std::string_view known : names) all += fmt::format(" {}", known);
  return {fmt::format("CPU model {}: no feature '{}'; there are{}", model, name, all), 0};
}

Result<ModelName::Modifier> ParseModifier(std::string_view model, std::string_view part) {
  if (part.size() < 2 || (part[0] != '-' && part[0] != '+'))
    return Fail("CPU model {}: '{}': write -FEATURE or +FEATURE, for example -avx512f", model, part);
  const Feature* feature = FindFeature(part.substr(1));
  if (!feature) return std::unexpected(UnknownFeature(model, part.substr(1)));
  if (part[0] == '-' && IsFixed(*feature))
    return Fail("CPU model {}: {} cannot be taken away: every x86-64 CPU has it", model, feature->name);
  return ModelName::Modifier{part[0] == '+', feature};
}

}  // namespace

std::span<const std::string_view> ModelLevels() { return kLevels; }

size_t IndexOf(const Feature& feature) { return static_cast<size_t>(&feature - FeatureTable().data()); }

const Feature* FindFeature(std::string_view name) {
  const auto table = FeatureTable();
  const auto found = std::ranges::find_if(table, [&](const Feature& f) { return SameName(f.name, name); });
  return found == table.end() ? nullptr : &*found;
}

FeatureSet WithDependents(const Feature& feature) {
  return Closure(feature, [](const Feature& member, const Feature& other) { return Needs(other, member); });
}

FeatureSet WithRequirements(const Feature& feature) {
  return Closure(feature, [](const Feature& member, const Feature& other) { return Needs(member, other); });
}

std::string ModelName::Text() const {
  std::string text = base;
  for (const Modifier& modifier : modifiers)
    text += fmt::format(",{}{}", modifier.add ? '+' : '-', LowerCase(modifier.feature->name));
  return text;
}

ModelName ModelName::Without(const FeatureSet& features) const {
  const auto table = FeatureTable();
  ModelName name = *this;
  std::erase_if(name.modifiers,
                [&](const Modifier& m) { return m.add && (WithRequirements(*m.feature) & features).any(); });
  const FeatureSet there = Expand(name);
  FeatureSet gone;
  for (size_t i = 0; i < table.size(); ++i) {
    if (!features.test(i) || !there.test(i) || gone.test(i)) continue;
    // One that goes with another of `features` need not be said.
    FeatureSet others = WithRequirements(table[i]) & features & ~WithDependents(table[i]);
    if (others.any()) continue;
    gone |= WithDependents(table[i]);
    name.modifiers.push_back({false, &table[i]});
  }
  return name;
}

Result<ModelName> ParseModelName(std::string_view text) {
  ModelName name;
  const size_t comma = text.find(',');
  name.base = text.substr(0, comma);
  if (std::ranges::find(kLevels, name.base) == std::end(kLevels) && name.base != kHost && name.base != kDefault)
    return Fail("CPU model '{}': choose x86-64-v1, x86-64-v2, x86-64-v3, x86-64-v4, host or default", name.base);
  std::string_view rest = comma == std::string_view::npos ? std::string_view() : text.substr(comma);
  while (!rest.empty()) {
    rest.remove_prefix(1);  // the comma
    const std::string_view part = rest.substr(0, rest.find(','));
    name.modifiers.push_back(NACRE_TRY(ParseModifier(text, part)));
    rest.remove_prefix(part.size());
  }
  return name;
}

unsigned HighestLevelOfHost() {
  unsigned level = kLevelV1;
  while (level < kLevelV4 && (OfLevel(level + 1) & ~PossibleHere()).none()) ++level;
  return level;
}

Result<SelectedModel> SelectModel(const ModelName& name) {
  SelectedModel selected{.name = name, .features = Expand(name)};
  if (name.base == kDefault) selected.name.base = DefaultLevel();
  if (const FeatureSet missing = selected.features & ~PossibleHere(); missing.any()) {
    const bool lower_level = name.modifiers.empty() && LevelOf(name.base) > HighestLevelOfHost();
    return Fail("CPU model {}: this host's CPU or its kernel lacks {}; try --cpu {}", selected.name.Text(),
                Names(missing), lower_level ? kLevels[HighestLevelOfHost()] : selected.name.Without(missing).Text());
  }
  return selected;
}

}  // namespace nacre::x86
