#include <arpa/inet.h>

#include <charconv>

#include "network/user_net.h"

namespace nacre::network {
namespace {

Status Endpoint(std::string_view text, std::string& address, uint16_t& port) {
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return Fail("'{}' is not ADDRESS:PORT", text);
  const std::string_view number = text.substr(colon + 1);
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), port);
  if (error != std::errc() || end != number.data() + number.size() || port == 0)
    return Fail("'{}' is not a port (1 to 65535)", number);
  if (colon == 0) return {};
  address = text.substr(0, colon);
  in_addr parsed{};
  if (inet_pton(AF_INET, address.c_str(), &parsed) != 1) return Fail("'{}' is not an IPv4 address", address);
  return {};
}

Result<PortForward> Parse(std::string_view text) {
  PortForward forward;
  if (text.starts_with("udp:"))
    forward.udp = true;
  else if (!text.starts_with("tcp:"))
    return Fail("it starts with neither tcp: nor udp:");
  text.remove_prefix(4);
  const size_t dash = text.find('-');
  if (dash == std::string_view::npos) return Fail("no '-' between the host's and the guest's side");
  NACRE_TRY_STATUS(Endpoint(text.substr(0, dash), forward.host_address, forward.host_port));
  NACRE_TRY_STATUS(Endpoint(text.substr(dash + 1), forward.guest_address, forward.guest_port));
  return forward;
}

}  // namespace

Result<PortForward> ParsePortForward(std::string_view text) {
  auto forward = Parse(text);
  if (!forward) return Context(forward.error(), "forward '{}' (as in tcp:127.0.0.1:2222-:22)", text);
  return forward;
}

}  // namespace nacre::network
