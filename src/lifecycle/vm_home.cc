#include "lifecycle/vm_home.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>

#include "base/nearest.h"

namespace nacre::lifecycle {

namespace fs = std::filesystem;

namespace {

/// Folders whose name could be a VM's or an image's and that hold `file`.
std::vector<std::string> FoldersWith(const fs::path& folder, std::string_view file) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    std::string name = at->path().filename().string();
    std::error_code ignored;
    if (CheckName(name) && fs::exists(fs::symlink_status(at->path() / file, ignored))) names.push_back(std::move(name));
  }
  std::ranges::sort(names);
  return names;
}

}  // namespace

Status CheckName(std::string_view name) {
  constexpr std::string_view kRule =
      "a name has letters, digits, '.', '_' and '-', begins and ends with a letter or a digit";
  if (name.empty()) return Fail("the name is empty; {}", kRule);
  if (name.size() > kMaxNameBytes)
    return Fail("'{}...' is too long for a name: {} bytes, at most {}", name.substr(0, 20), name.size(), kMaxNameBytes);
  const auto plain = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) && static_cast<signed char>(c) > 0;
  };
  const bool ends = plain(name.front()) && plain(name.back());
  if (!ends || !std::ranges::all_of(name, [&](char c) { return plain(c) || c == '.' || c == '_' || c == '-'; }))
    return Fail("'{}' cannot be a name; {}", name, kRule);
  return {};
}

Result<Home> Home::Find() {
  fs::path folder;
  if (const char* home = std::getenv("NACRE_HOME"); home && *home)
    folder = home;
  else if (const char* user = std::getenv("HOME"); user && *user)
    folder = fs::path(user) / ".local/share/nacre";
  else
    return Fail("where VMs are is not known: set NACRE_HOME to a folder");
  std::error_code error;
  folder = fs::absolute(folder, error).lexically_normal();
  if (error) return Fail("NACRE_HOME {}: {}", folder.string(), error.message());
  if (!folder.has_filename()) folder = folder.parent_path();  // a '/' at its end
  return Home(folder);
}

Result<VmPaths> Home::PathsOf(std::string_view name) const {
  NACRE_TRY_STATUS(CheckName(name));
  return VmPaths{vms() / name};
}

bool Home::HasVm(std::string_view name) const {
  std::error_code error;
  return CheckName(name) && fs::exists(fs::symlink_status(vms() / name, error));
}

Result<VmPaths> Home::FindVm(std::string_view name) const {
  VmPaths paths = NACRE_TRY(PathsOf(name));
  if (HasVm(name)) return paths;
  const std::vector<std::string> names = VmNames();
  const std::vector<std::string_view> words(names.begin(), names.end());
  const std::string_view near = Nearest(name, words);
  if (!near.empty()) return Fail("{}: there is no VM of this name in {}; did you mean {}?", name, vms().string(), near);
  return Fail("{}: there is no VM of this name in {}; `nacre ls` lists all, `nacre create {}` makes one", name,
              vms().string(), name);
}

std::vector<std::string> Home::VmNames() const { return FoldersWith(vms(), ""); }

std::vector<std::string> Home::ImageNames() const { return FoldersWith(images(), "image.toml"); }

}  // namespace nacre::lifecycle
