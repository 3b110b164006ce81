#pragma once
// How a host, image or configuration failure travels: Result<T> with text that a person can act on
// (what happened, to which file or option, what to do). Guest mistakes never travel this way: they are
// architectural faults or device status. Our own bugs are NACRE_CHECK (base/check.h). Any thread.

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <expected>
#include <string>
#include <utility>

namespace nacre {

/// A failure. `code` is an errno value where one is known, else 0.
struct Error {
  std::string message;
  int code = 0;
};

template <typename T>
using Result = std::expected<T, Error>;
using Status = Result<void>;

/// `return Fail("{}: not a bzImage (no HdrS signature)", path);`
template <typename... Args>
[[nodiscard]] std::unexpected<Error> Fail(fmt::format_string<Args...> format, Args&&... args) {
  return std::unexpected(Error{fmt::format(format, std::forward<Args>(args)...), 0});
}

/// As Fail, with the text of the present errno appended and its value kept.
template <typename... Args>
[[nodiscard]] std::unexpected<Error> FailErrno(fmt::format_string<Args...> format, Args&&... args) {
  const int saved_errno = errno;
  return std::unexpected(
      Error{fmt::format("{}: {}", fmt::format(format, std::forward<Args>(args)...), std::strerror(saved_errno)),
            saved_errno});
}

/// Puts "context: " before the message of a failure on its way up.
template <typename... Args>
[[nodiscard]] std::unexpected<Error> Context(Error error, fmt::format_string<Args...> format, Args&&... args) {
  error.message = fmt::format("{}: {}", fmt::format(format, std::forward<Args>(args)...), error.message);
  return std::unexpected(std::move(error));
}

}  // namespace nacre

/// Evaluates to the value of a Result, or returns its error from the enclosing function.
#define NACRE_TRY(expression)                                                           \
  __extension__({                                                                       \
    auto nacre_try_result = (expression);                                               \
    if (!nacre_try_result) return std::unexpected(std::move(nacre_try_result).error()); \
    std::move(nacre_try_result).value();                                                \
  })

/// As NACRE_TRY for a Status.
#define NACRE_TRY_STATUS(expression)                                                    \
  do {                                                                                  \
    auto nacre_try_result = (expression);                                               \
    if (!nacre_try_result) return std::unexpected(std::move(nacre_try_result).error()); \
  } while (false)
