#pragma once
// NACRE_CHECK: a condition that only a bug of ours can break. Never reachable from a guest's or a file's
// bytes. Prints the place and aborts. Any thread; usable in code compiled without vector registers.

namespace nacre {

[[noreturn]] void CheckFailed(const char* file, int line, const char* condition);

}  // namespace nacre

#define NACRE_CHECK(condition)                              \
  do {                                                      \
    if (!(condition)) [[unlikely]]                          \
      ::nacre::CheckFailed(__FILE__, __LINE__, #condition); \
  } while (false)
