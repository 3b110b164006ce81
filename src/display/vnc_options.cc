#include <arpa/inet.h>
#include <sys/un.h>

#include <charconv>
#include <fstream>

#include "display/vnc_server.h"

namespace nacre::display {
namespace {

Result<std::string> ReadPassword(const std::string& path) {
  std::ifstream file(path);
  std::string password;
  if (!file || !std::getline(file, password)) return Fail("password file {}: cannot read a line of it", path);
  if (password.empty() || password.size() > VncOptions::kMaxPassword)
    return Fail("password file {}: VNC authentication uses 1 to {} characters, its first line has {}", path,
                VncOptions::kMaxPassword, password.size());
  return password;
}

bool OnlyThisHost(const std::string& host) { return host == "localhost" || host.starts_with("127.") || host == "::1"; }

}  // namespace

Result<VncOptions> ParseVncOptions(std::string_view text) {
  VncOptions options;
  const size_t comma = text.find(',');
  std::string_view where = text.substr(0, comma);
  if (comma != std::string_view::npos) {
    constexpr std::string_view kPassword = "password=";
    const std::string_view rest = text.substr(comma + 1);
    if (!rest.starts_with(kPassword)) return Fail("'{}': after the address comes password=FILE", rest);
    options.password = NACRE_TRY(ReadPassword(std::string(rest.substr(kPassword.size()))));
  }
  if (where.starts_with("unix:")) {
    options.unix_path = where.substr(5);
    if (options.unix_path.empty() || options.unix_path.size() >= sizeof(sockaddr_un::sun_path))
      return Fail("'{}': a socket's path has 1 to {} bytes", where, sizeof(sockaddr_un::sun_path) - 1);
    return options;
  }
  const size_t colon = where.rfind(':');
  if (colon == std::string_view::npos || colon == 0) return Fail("'{}': give ADDRESS:PORT or unix:PATH", where);
  const std::string_view port = where.substr(colon + 1);
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), options.port);
  if (error != std::errc() || end != port.data() + port.size() || port.empty())
    return Fail("'{}' is not a port number, 0 to 65535", port);
  where = where.substr(0, colon);
  if (where.starts_with('[') && where.ends_with(']')) where = where.substr(1, where.size() - 2);
  options.host = where;
  if (options.password.empty() && !OnlyThisHost(options.host))
    return Fail(
        "at {} others reach the screen and its keyboard without a password: add ,password=FILE or listen at "
        "127.0.0.1",
        options.host);
  return options;
}

}  // namespace nacre::display
