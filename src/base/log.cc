#include "base/log.h"

#include <unistd.h>

#include <mutex>
#include <string>

namespace nacre {
namespace {

struct Logger {
  std::atomic<LogLevel> level{LogLevel::kWarning};
  std::mutex mutex;
  std::function<void(LogLevel, std::string_view)> sink;
};

// The one place with process-wide state: messages must also come out of code that knows no machine.
Logger& TheLogger() {
  static Logger logger;
  return logger;
}

constexpr std::string_view kPrefix[] = {"nacre: error: ", "nacre: warning: ", "nacre: ", "nacre: debug: "};

}  // namespace

void SetLogLevel(LogLevel level) { TheLogger().level.store(level, std::memory_order_relaxed); }

bool LogEnabled(LogLevel level) { return level <= TheLogger().level.load(std::memory_order_relaxed); }

void SetLogSink(std::function<void(LogLevel, std::string_view)> sink) {
  const std::lock_guard lock(TheLogger().mutex);
  TheLogger().sink = std::move(sink);
}

void LogText(LogLevel level, std::string_view text) {
  const std::lock_guard lock(TheLogger().mutex);
  if (TheLogger().sink) return TheLogger().sink(level, text);
  const std::string line = fmt::format("{}{}\n", kPrefix[static_cast<size_t>(level)], text);
  // One write, so that lines of several processes do not mix; a failure has nowhere to be told.
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace nacre
