#include "x86/cpu_model_features.h"

namespace nacre::x86 {
namespace {

// Subleaf 0 throughout. Bits that follow the state (OSXSAVE) or the topology (HTT) are added by Cpuid.
constexpr Feature kFeatures[] = {
    // Leaf 1, EDX.
    {"FPU", 1, 'd', 0, kLevelV2, false, {ZYDIS_ISA_SET_X87, ZYDIS_ISA_SET_FCMOV}},
    {"DE", 1, 'd', 2, kLevelV2, true},
    {"PSE", 1, 'd', 3, kLevelV2, true},
    {"TSC", 1, 'd', 4, kLevelV2, false},
    {"MSR", 1, 'd', 5, kLevelV2, true},
    {"PAE", 1, 'd', 6, kLevelV2, true},
    {"MCE", 1, 'd', 7, kLevelV2, true},
    {"CX8", 1, 'd', 8, kLevelV2, false},
    {"APIC", 1, 'd', 9, kLevelV2, true},
    {"SEP", 1, 'd', 11, kLevelV2, true},
    {"MTRR", 1, 'd', 12, kLevelV2, true},
    {"PGE", 1, 'd', 13, kLevelV2, true},
    {"MCA", 1, 'd', 14, kLevelV2, true},
    {"CMOV", 1, 'd', 15, kLevelV2, false, {ZYDIS_ISA_SET_CMOV}},
    {"PAT", 1, 'd', 16, kLevelV2, true},
    {"PSE36", 1, 'd', 17, kLevelV2, true},
    {"CLFSH", 1, 'd', 19, kLevelV2, false, {ZYDIS_ISA_SET_CLFSH}},
    {"MMX", 1, 'd', 23, kLevelV2, false, {ZYDIS_ISA_SET_PENTIUMMMX}},
    {"FXSR", 1, 'd', 24, kLevelV2, false, {ZYDIS_ISA_SET_FXSAVE, ZYDIS_ISA_SET_FXSAVE64}},
    {"SSE", 1, 'd', 25, kLevelV2, false, {ZYDIS_ISA_SET_SSE, ZYDIS_ISA_SET_SSEMXCSR, ZYDIS_ISA_SET_SSE_PREFETCH}},
    {"SSE2", 1, 'd', 26, kLevelV2, false, {ZYDIS_ISA_SET_SSE2, ZYDIS_ISA_SET_SSE2MMX}},
    {"SS", 1, 'd', 27, kLevelV2, true},
    // Leaf 1, ECX.
    {"SSE3", 1, 'c', 0, kLevelV2, false, {ZYDIS_ISA_SET_SSE3, ZYDIS_ISA_SET_SSE3X87}},
    {"PCLMULQDQ", 1, 'c', 1, kLevelV2, false, {ZYDIS_ISA_SET_PCLMULQDQ}},
    {"SSSE3", 1, 'c', 9, kLevelV2, false, {ZYDIS_ISA_SET_SSSE3, ZYDIS_ISA_SET_SSSE3MMX}},
    {"FMA", 1, 'c', 12, kLevelV3, false, {ZYDIS_ISA_SET_FMA}},
    {"CX16", 1, 'c', 13, kLevelV2, false, {ZYDIS_ISA_SET_CMPXCHG16B}},
    {"PCID", 1, 'c', 17, kLevelV2, true},
    {"SSE4.1", 1, 'c', 19, kLevelV2, false, {ZYDIS_ISA_SET_SSE4}},
    {"SSE4.2", 1, 'c', 20, kLevelV2, false, {ZYDIS_ISA_SET_SSE42}},
    {"x2APIC", 1, 'c', 21, kLevelV2, true},
    {"MOVBE", 1, 'c', 22, kLevelV3, false, {ZYDIS_ISA_SET_MOVBE}},
    {"POPCNT", 1, 'c', 23, kLevelV2, false, {ZYDIS_ISA_SET_POPCNT}},
    {"TSC_DEADLINE", 1, 'c', 24, kLevelV2, true},
    {"AES", 1, 'c', 25, kLevelV2, false, {ZYDIS_ISA_SET_AES}},
    {"XSAVE", 1, 'c', 26, kLevelV3, false, {ZYDIS_ISA_SET_XSAVE}},
    {"AVX", 1, 'c', 28, kLevelV3, false, {ZYDIS_ISA_SET_AVX, ZYDIS_ISA_SET_AVXAES}},
    {"F16C", 1, 'c', 29, kLevelV3, false, {ZYDIS_ISA_SET_F16C}},
    {"RDRAND", 1, 'c', 30, kLevelV3, false, {ZYDIS_ISA_SET_RDRAND}},
    {"HYPERVISOR", 1, 'c', 31, kLevelV2, true},
    // Leaf 6, EAX.
    {"ARAT", 6, 'a', 2, kLevelV2, true},
    // Leaf 7, EBX.
    {"FSGSBASE", 7, 'b', 0, kLevelV3, true, {ZYDIS_ISA_SET_RDWRFSGS}},
    {"TSC_ADJUST", 7, 'b', 1, kLevelV2, true},
    {"BMI1", 7, 'b', 3, kLevelV3, false, {ZYDIS_ISA_SET_BMI1}},
    {"AVX2", 7, 'b', 5, kLevelV3, false, {ZYDIS_ISA_SET_AVX2, ZYDIS_ISA_SET_AVX2GATHER}},
    {"SMEP", 7, 'b', 7, kLevelV2, true},
    {"BMI2", 7, 'b', 8, kLevelV3, false, {ZYDIS_ISA_SET_BMI2}},
    {"ERMS", 7, 'b', 9, kLevelV3, true},
    {"INVPCID", 7, 'b', 10, kLevelV2, true, {ZYDIS_ISA_SET_INVPCID}},
    {"FCS_FDS_DEPRECATED", 7, 'b', 13, kLevelV2, true},
    {"RDSEED", 7, 'b', 18, kLevelHost, false, {ZYDIS_ISA_SET_RDSEED}},
    {"ADX", 7, 'b', 19, kLevelHost, false, {ZYDIS_ISA_SET_ADOX_ADCX}},
    {"SMAP", 7, 'b', 20, kLevelV2, true, {ZYDIS_ISA_SET_SMAP}},
    {"CLFLUSHOPT", 7, 'b', 23, kLevelHost, false, {ZYDIS_ISA_SET_CLFLUSHOPT}},
    {"CLWB", 7, 'b', 24, kLevelHost, false, {ZYDIS_ISA_SET_CLWB}},
    {"SHA", 7, 'b', 29, kLevelHost, false, {ZYDIS_ISA_SET_SHA}},
    // Leaf 7, ECX and EDX.
    {"UMIP", 7, 'c', 2, kLevelV2, true},
    {"RDPID", 7, 'c', 22, kLevelHost, false, {ZYDIS_ISA_SET_RDPID}},
    {"FSRM", 7, 'd', 4, kLevelHost, false},
    {"SPEC_CTRL", 7, 'd', 26, kLevelV2, true},
    {"STIBP", 7, 'd', 27, kLevelV2, true},
    {"ARCH_CAPABILITIES", 7, 'd', 29, kLevelV2, true},
    {"SSBD", 7, 'd', 31, kLevelV2, true},
    // Leaf 0x80000001.
    {"LAHF_LM", 0x80000001, 'c', 0, kLevelV2, false, {ZYDIS_ISA_SET_LAHF}},
    {"LZCNT", 0x80000001, 'c', 5, kLevelV3, false, {ZYDIS_ISA_SET_LZCNT}},
    {"PREFETCHW", 0x80000001, 'c', 8, kLevelV2, true},
    {"SYSCALL", 0x80000001, 'd', 11, kLevelV2, true},
    {"NX", 0x80000001, 'd', 20, kLevelV2, true},
    {"PDPE1GB", 0x80000001, 'd', 26, kLevelV2, true},
    {"RDTSCP", 0x80000001, 'd', 27, kLevelV2, true, {ZYDIS_ISA_SET_RDTSCP}},
    {"LM", 0x80000001, 'd', 29, kLevelV2, true, {ZYDIS_ISA_SET_LONGMODE}},
    {"INVARIANT_TSC", 0x80000007, 'd', 8, kLevelV2, true},
};

constexpr ZydisISASet kBaseline[] = {
    ZYDIS_ISA_SET_I86,          ZYDIS_ISA_SET_I186,        ZYDIS_ISA_SET_I286PROTECTED, ZYDIS_ISA_SET_I286REAL,
    ZYDIS_ISA_SET_I386,         ZYDIS_ISA_SET_I486,        ZYDIS_ISA_SET_I486REAL,      ZYDIS_ISA_SET_PENTIUMREAL,
    ZYDIS_ISA_SET_PPRO,         ZYDIS_ISA_SET_FAT_NOP,     ZYDIS_ISA_SET_PAUSE,         ZYDIS_ISA_SET_RDPMC,
    ZYDIS_ISA_SET_PREFETCH_NOP, ZYDIS_ISA_SET_PREFETCHWT1,  // hints: NOPs where they mean nothing
};

}  // namespace

std::span<const Feature> FeatureTable() { return kFeatures; }
std::span<const ZydisISASet> BaselineIsaSets() { return kBaseline; }

}  // namespace nacre::x86
