#include "codegen/code_buffer.h"

#include <gtest/gtest.h>

#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>

#include "base/bits.h"

namespace nacre::codegen {
namespace {

TEST(CodeBuffer, RunsWhatWasWrittenThroughTheOtherView) {
  auto buffer = CodeBuffer::Create(5000);
  ASSERT_TRUE(buffer) << buffer.error().message;
  EXPECT_EQ(buffer->size_bytes(), 8192u);
  EXPECT_NE(buffer->write_base(), buffer->exec_base());
  const uint8_t code[] = {0xb8, 42, 0, 0, 0, 0xc3};  // mov eax, 42; ret
  uint8_t* at = buffer->write_base() + 4090;         // across the page boundary
  std::memcpy(at, code, sizeof(code));
  auto function = reinterpret_cast<int (*)()>(const_cast<uint8_t*>(buffer->ToExec(at)));
  EXPECT_EQ(function(), 42);
  at[1] = 43;
  EXPECT_EQ(function(), 43);
  EXPECT_EQ(buffer->ToWrite(buffer->ToExec(at)), at);
  EXPECT_TRUE(buffer->ContainsExec(buffer->exec_base() + 8191));
  EXPECT_FALSE(buffer->ContainsExec(buffer->exec_base() + 8192));
  EXPECT_FALSE(buffer->ContainsExec(buffer->exec_base() - 1));
  EXPECT_TRUE(buffer->ContainsWrite(at));
}

TEST(CodeBuffer, NoMappingIsWritableAndExecutable) {
  auto buffer = CodeBuffer::Create(kPageSize * 4);
  ASSERT_TRUE(buffer) << buffer.error().message;
  std::ifstream maps("/proc/self/maps");
  int seen = 0;
  for (std::string line; std::getline(maps, line);) {
    if (line.find("nacre-code") == std::string::npos) continue;
    uint64_t start = 0, end = 0;
    char rights[5] = {};
    ASSERT_EQ(std::sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " %4s", &start, &end, rights), 3);
    EXPECT_FALSE(rights[1] == 'w' && rights[2] == 'x') << line;
    if (start == reinterpret_cast<uintptr_t>(buffer->write_base()) ||
        start == reinterpret_cast<uintptr_t>(buffer->exec_base()))
      ++seen;
  }
  EXPECT_EQ(seen, 2);
}

TEST(CodeBuffer, AnonymousViewsAreTheSameMemory) {
  auto buffer = CodeBuffer::Create(2 * kPageSize, CodeBuffer::Backing::kAnonymous);
  ASSERT_TRUE(buffer) << buffer.error().message;
  const uint8_t code[] = {0xb8, 42, 0, 0, 0, 0xc3};  // mov eax, 42; ret
  uint8_t* at = buffer->write_base() + 4090;
  std::memcpy(at, code, sizeof(code));
  EXPECT_EQ(reinterpret_cast<int (*)()>(const_cast<uint8_t*>(buffer->ToExec(at)))(), 42);
  at[1] = 43;
  EXPECT_EQ(reinterpret_cast<int (*)()>(const_cast<uint8_t*>(buffer->ToExec(at)))(), 43);
  buffer->Discard(0, 2 * kPageSize);
  EXPECT_EQ(*buffer->ToExec(at), 0);
}

TEST(CodeBuffer, RejectsImpossibleSizes) {
  EXPECT_FALSE(CodeBuffer::Create(0));
  EXPECT_FALSE(CodeBuffer::Create(size_t{2} * kGiB));
  EXPECT_FALSE(CodeBuffer::Create(~size_t{0}));
}

TEST(CodeBuffer, MovesAndDiscards) {
  auto created = CodeBuffer::Create(3 * kPageSize);
  ASSERT_TRUE(created);
  CodeBuffer buffer = std::move(*created);
  EXPECT_EQ(created->size_bytes(), 0u);
  std::memset(buffer.write_base(), 0xcc, buffer.size_bytes());
  buffer.Discard(100, 2 * kPageSize);  // only page 1 is whole
  EXPECT_EQ(buffer.exec_base()[kPageSize - 1], 0xcc);
  EXPECT_EQ(buffer.exec_base()[kPageSize], 0);
  EXPECT_EQ(buffer.exec_base()[2 * kPageSize - 1], 0);
  EXPECT_EQ(buffer.exec_base()[2 * kPageSize], 0xcc);
}

}  // namespace
}  // namespace nacre::codegen
