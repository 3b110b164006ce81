// The dirty log: the same guest on every engine, and exactly the pages that it and a device wrote are told.
#include <gtest/gtest.h>

#include <set>

#include "engine/interp/interp_engine.h"
#include "engine/interp/interp_testing.h"
#include "engine/jit/jit_engine.h"
#include "engine/kvm/kvm_device.h"
#include "engine/kvm/kvm_engine.h"

namespace nacre::engine {
namespace {

enum class Kind { kInterp, kJit, kKvmRings, kKvmBitmaps };

constexpr uint8_t kEndPort = 0x80;
/// An emulating KVM does not stop at a full ring: there it is a large one.
uint32_t RingEntries() { return kvm::HostVirtualization() == kvm::CpuVirtualization::kNone ? 16384 : 1024; }

/// Ends the run when the guest writes to kEndPort.
class EndingHost final : public interp::FakeHost {
 public:
  void PortWrite(uint16_t, unsigned, uint32_t) override { vcpu->Request(kRequestStop); }
  Vcpu* vcpu = nullptr;
};

class DirtyLogTest : public interp::InterpTest, public testing::WithParamInterface<Kind> {
 protected:
  using Pages = std::set<uint64_t>;
  static constexpr uint64_t kPageTables = interp::at::kPml4 / kPageSize;

  void SetUp() override {
    const bool kvm = GetParam() == Kind::kKvmRings || GetParam() == Kind::kKvmBitmaps;
    if (kvm)
      if (const auto device = kvm::KvmDevice::Open(); !device) GTEST_SKIP() << device.error().message;
    InterpTest::SetUp();
    LongMode();
    // 2 MiB to 16 MiB by large pages.
    for (uint64_t entry = 1; entry < 8; ++entry)
      Put<uint64_t>(interp::at::kPml4 + 0x2000 + entry * 8, entry << 21 | 0x87);
    auto made = MakeEngine();
    ASSERT_TRUE(made) << made.error().message;
    engine = std::move(*made);
    auto made_vcpu = engine->CreateVcpu({0, model.get(), memory.get(), &ending});
    ASSERT_TRUE(made_vcpu) << made_vcpu.error().message;
    vcpu = std::move(*made_vcpu);
    ending.vcpu = vcpu.get();
  }
  void TearDown() override {
    vcpu.reset();
    engine.reset();
  }
  Result<std::unique_ptr<Engine>> MakeEngine() {
    switch (GetParam()) {
      case Kind::kInterp:
        return interp::CreateInterpEngine();
      case Kind::kJit:
        return jit::CreateJitEngine({.code_cache_bytes = jit::kMinCodeCache});
      case Kind::kKvmRings:
        return kvm::CreateKvmEngine(*memory, {.dirty_ring_entries = RingEntries()});
      case Kind::kKvmBitmaps:
        return kvm::CreateKvmEngine(*memory, {.dirty_ring_entries = 0});
    }
    return Fail("no such engine");
  }

  /// From `s`, whose code ends by a write to kEndPort and a jump to itself.
  void Run() {
    s.rip = interp::at::kCode;
    vcpu->Import(s);
    ASSERT_EQ(static_cast<int>(vcpu->Run()), static_cast<int>(ExitReason::kStop)) << vcpu->error();
    vcpu->Export(s);
  }
  /// mov byte [address], 1
  static std::vector<uint8_t> Store(uint32_t address) {
    std::vector<uint8_t> code{0xc6, 0x04, 0x25, 0, 0, 0, 0, 1};
    StoreLe(&code[3], address);
    return code;
  }
  void Program(const std::vector<std::vector<uint8_t>>& parts) {
    uint64_t address = interp::at::kCode;
    for (const auto& part : parts)
      for (const uint8_t byte : part) Put<uint8_t>(address++, byte);
    Code({0xe6, kEndPort, 0xeb, 0xfe}, address);
  }
  Pages Collect(DirtyLog& log) {
    std::vector<uint64_t> bitmap(memory->page_bitmap_words());
    const Status status = log.Collect(bitmap);
    EXPECT_TRUE(status) << status.error().message;
    Pages pages;
    for (uint64_t page = 0; page < bitmap.size() * 64; ++page)
      if (TestBit(bitmap[page / 64], page % 64)) pages.insert(page);
    return pages;
  }

  EndingHost ending;
  std::unique_ptr<Engine> engine;
  std::unique_ptr<Vcpu> vcpu;
};

TEST_P(DirtyLogTest, PagesOfTheGuestOfTheProcessorAndOfDevices) {
  Program({Store(0x30010), {0x50} /* push rax */, Store(0x32fff)});
  auto log = engine->StartDirtyLog();
  ASSERT_TRUE(log) << log.error().message;
  EXPECT_EQ(Collect(**log), Pages{}) << "what was written before the start";
  Run();
  // Accessed bits in all four levels of page tables, which had none.
  const Pages first{
      interp::at::kStack0 / kPageSize - 1, 0x30, 0x32, kPageTables, kPageTables + 1, kPageTables + 2, kPageTables + 3};
  EXPECT_EQ(Collect(**log), first);
  EXPECT_EQ(Collect(**log), Pages{}) << "told once";

  Program({Store(0x30020), Store(0x34000)});  // writes the page of code, as a device would
  const uint8_t data[16] = {};
  ASSERT_TRUE(memory->Write(GuestPhys(0x50ff8), data));
  Run();
  const Pages second{interp::at::kCode / kPageSize, 0x30, 0x34, 0x50, 0x51, kPageTables + 3 /* dirty bit of 34 */};
  EXPECT_EQ(Collect(**log), second);

  Program({Store(0x30020)});
  Run();
  EXPECT_EQ(Collect(**log), (Pages{interp::at::kCode / kPageSize, 0x30}));
  log->reset();
  Run();
  auto again = engine->StartDirtyLog();
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_EQ(Collect(**again), Pages{}) << "what was written without a log";
  Run();
  EXPECT_EQ(Collect(**again), Pages{0x30});
}

// More pages than a ring has entries: the vCPU leaves KVM_RUN for that, and none is lost.
TEST_P(DirtyLogTest, EveryPageOfALongLoop) {
  // mov edi, 0x200000; next: mov byte [rdi], 1; add edi, 0x1000; cmp edi, 0x1000000; jb next
  Program({{0xbf, 0, 0, 0x20, 0, 0xc6, 0x07, 1, 0x81, 0xc7, 0, 0x10, 0, 0, 0x81, 0xff, 0, 0, 0, 1, 0x72, 0xef}});
  auto log = engine->StartDirtyLog();
  ASSERT_TRUE(log) << log.error().message;
  for (unsigned round = 0; round < 2; ++round) {
    Run();
    Pages pages = Collect(**log);
    std::erase_if(pages, [](uint64_t page) { return page >= kPageTables && page < kPageTables + 4; });
    Pages expected;
    for (uint64_t page = 0x200; page < 0x1000; ++page) expected.insert(page);
    EXPECT_EQ(pages, expected) << "round " << round;
  }
  if (GetParam() != Kind::kKvmRings) return;
  if (RingEntries() > 0x1000) GTEST_SKIP() << "all pages were told; full rings need a CPU with VT-x or AMD-V";
  for (const Statistic& statistic : engine->Statistics()) {
    if (statistic.name != "full rings of written pages") continue;
    EXPECT_GT(statistic.value, 0u);
  }
}

// What the first megabyte shows changes while the log runs: nothing written before is lost, and the rest of the guest's
// memory is told as before.
TEST_P(DirtyLogTest, PagesInWindows) {
  using memory::LowPage;
  constexpr GuestPhys kFirst(0xc8000), kLast(0xcbfff);
  const auto show = [&](LowPage what) {
    memory->SetLowPages(kFirst, kLast, what);
    ASSERT_TRUE(engine->MemoryChanged());
    vcpu->Request(kRequestTlbFlush);
  };
  show(LowPage::kRam);
  auto log = engine->StartDirtyLog();
  ASSERT_TRUE(log) << log.error().message;
  Program({Store(0xc8000), Store(0x200000)});
  Run();
  show(LowPage::kReadOnlyRam);
  Program({Store(0xc9000), Store(0x201000)});
  Run();
  ASSERT_EQ(ending.mmio_writes.size(), 1u);
  EXPECT_EQ(ending.mmio_writes[0].first, 0xc9000u);
  uint8_t byte = 0;
  EXPECT_TRUE(memory->ReadByte(GuestPhys(0xc9000), byte));
  EXPECT_EQ(byte, 0);
  show(LowPage::kRam);
  Program({Store(0xca000), Store(0x202000)});
  Run();
  EXPECT_EQ(ending.mmio_writes.size(), 1u);
  const Pages pages = Collect(**log);
  for (const uint64_t page : {0xc8, 0xca, 0x200, 0x201, 0x202}) EXPECT_TRUE(pages.contains(page)) << std::hex << page;
  EXPECT_FALSE(pages.contains(0x203));  // of the windows' neighbours KVM may tell too many
  EXPECT_EQ(Collect(**log), Pages{}) << "told once";
}

std::string NameOf(const testing::TestParamInfo<Kind>& kind) {
  constexpr const char* kNames[] = {"interp", "jit", "kvm_rings", "kvm_bitmaps"};
  return kNames[static_cast<size_t>(kind.param)];
}

INSTANTIATE_TEST_SUITE_P(Engines, DirtyLogTest,
                         testing::Values(Kind::kInterp, Kind::kJit, Kind::kKvmRings, Kind::kKvmBitmaps), NameOf);

}  // namespace
}  // namespace nacre::engine
