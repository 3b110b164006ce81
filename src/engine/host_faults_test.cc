#include "engine/host_faults.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include "codegen/code_buffer.h"

namespace nacre::engine {
namespace {

// div ecx; ret  with EDX:EAX = 1:0 by 0: #DE. The handler skips the instruction.
constexpr uint8_t kDivide[] = {0x31, 0xc9, 0xf7, 0xf1, 0xc3};
// mov rax, [0]; ret
constexpr uint8_t kLoadNull[] = {0x31, 0xc0, 0x48, 0x8b, 0x00, 0xc3};

class SkipInstruction : public HostFaultHandler {
 public:
  bool OnHostFault(int signal, const siginfo_t&, ucontext_t& context) override {
    last_signal = signal;
    int on_stack_probe = 0;
    handler_stack = reinterpret_cast<uintptr_t>(&on_stack_probe);
    context.uc_mcontext.gregs[REG_RIP] += signal == SIGFPE ? 2 : 3;
    return true;
  }
  int last_signal = 0;
  uintptr_t handler_stack = 0;
};

TEST(HostFaults, HandlerRedirectsOnTheSignalStack) {
  auto buffer = codegen::CodeBuffer::Create(4096);
  ASSERT_TRUE(buffer);
  std::memcpy(buffer->write_base(), kDivide, sizeof(kDivide));
  std::memcpy(buffer->write_base() + 64, kLoadNull, sizeof(kLoadNull));
  SkipInstruction handler;
  auto range = HostFaultRange::Register(buffer->exec_base(), buffer->size_bytes(), handler);
  ASSERT_TRUE(range) << range.error().message;
  std::thread([&] {
    auto stack = SignalStack::Create();
    ASSERT_TRUE(stack) << stack.error().message;
    stack_t now = {};
    ASSERT_EQ(sigaltstack(nullptr, &now), 0);
    reinterpret_cast<void (*)()>(const_cast<uint8_t*>(buffer->exec_base()))();
    EXPECT_EQ(handler.last_signal, SIGFPE);
    reinterpret_cast<void (*)()>(const_cast<uint8_t*>(buffer->exec_base() + 64))();
    EXPECT_EQ(handler.last_signal, SIGSEGV);
    EXPECT_LT(handler.handler_stack - reinterpret_cast<uintptr_t>(now.ss_sp), now.ss_size);
  }).join();
}

TEST(HostFaultsDeathTest, FaultsElsewhereStillKill) {
  auto buffer = codegen::CodeBuffer::Create(4096);
  ASSERT_TRUE(buffer);
  std::memcpy(buffer->write_base(), kDivide, sizeof(kDivide));
  auto function = reinterpret_cast<void (*)()>(const_cast<uint8_t*>(buffer->exec_base()));
  SkipInstruction handler;
  {
    auto range = HostFaultRange::Register(buffer->exec_base(), buffer->size_bytes(), handler);
    ASSERT_TRUE(range);
    function();
  }
  EXPECT_DEATH(function(), "");  // the range has ended
}

TEST(HostFaults, RangesAreReusedAndBounded) {
  SkipInstruction handler;
  static uint8_t code[HostFaultRange::kMaxRanges + 1];
  for (int round = 0; round < 2; ++round) {
    std::vector<HostFaultRange> ranges;
    for (;;) {
      auto range = HostFaultRange::Register(code + ranges.size(), 1, handler);
      if (!range) break;
      ranges.push_back(std::move(*range));
      ASSERT_LE(ranges.size(), HostFaultRange::kMaxRanges);
    }
    EXPECT_GT(ranges.size(), HostFaultRange::kMaxRanges / 2);
  }
}

}  // namespace
}  // namespace nacre::engine
