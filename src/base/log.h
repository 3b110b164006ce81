#pragma once
// Messages to the person who runs the program, on standard error or where the machine redirects them. Any
// thread. What a guest can cause goes through LogThrottle: a guest must not fill a disk.

#include <fmt/format.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <string_view>
#include <utility>

namespace nacre {

enum class LogLevel : uint8_t { kError, kWarning, kInfo, kDebug };

/// Messages above this level are dropped. The default is kWarning.
void SetLogLevel(LogLevel level);
bool LogEnabled(LogLevel level);
/// Replaces standard error; an empty function puts it back. Called under a lock, one message at a time, no
/// newline.
void SetLogSink(std::function<void(LogLevel, std::string_view)> sink);
void LogText(LogLevel level, std::string_view text);

template <typename... Args>
void Log(LogLevel level, fmt::format_string<Args...> format, Args&&... args) {
  if (LogEnabled(level)) LogText(level, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void LogError(fmt::format_string<Args...> format, Args&&... args) {
  Log(LogLevel::kError, format, std::forward<Args>(args)...);
}
template <typename... Args>
void LogWarning(fmt::format_string<Args...> format, Args&&... args) {
  Log(LogLevel::kWarning, format, std::forward<Args>(args)...);
}
template <typename... Args>
void LogInfo(fmt::format_string<Args...> format, Args&&... args) {
  Log(LogLevel::kInfo, format, std::forward<Args>(args)...);
}
template <typename... Args>
void LogDebug(fmt::format_string<Args...> format, Args&&... args) {
  Log(LogLevel::kDebug, format, std::forward<Args>(args)...);
}

/// Lets the first `limit` messages through; one object per kind of message.
///   if (throttle_.Allow()) LogWarning("...");
class LogThrottle {
 public:
  explicit LogThrottle(uint32_t limit = 8) : left_(limit) {}
  bool Allow() {
    uint32_t left = left_.load(std::memory_order_relaxed);
    while (left > 0) {
      if (left_.compare_exchange_weak(left, left - 1, std::memory_order_relaxed)) return true;
    }
    return false;
  }

 private:
  std::atomic<uint32_t> left_;
};

}  // namespace nacre
