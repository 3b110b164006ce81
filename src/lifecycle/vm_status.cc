#include "lifecycle/vm_status.h"

#include <fmt/chrono.h>
#include <sys/stat.h>
#include <unistd.h>

#include <ctime>

#include "lifecycle/toml_value.h"
#include "lifecycle/vm_files.h"

namespace nacre::lifecycle {

namespace fs = std::filesystem;

std::string_view NameOf(machine::EndReason reason) {
  using machine::EndReason;
  switch (reason) {
    case EndReason::kPowerOff:
      return "powered off";
    case EndReason::kReset:
      return "reset";
    case EndReason::kDebugExit:
      return "debug exit";
    case EndReason::kLeft:
      return "stopped";
    case EndReason::kGuestCrash:
      return "crashed";
    case EndReason::kEngineError:
      return "engine failed";
    case EndReason::kTimeout:
      break;
  }
  return "time over";
}

Status WriteEnd(const VmPaths& vm, const VmEnd& end) {
  return WriteAtomically(
      vm.end(), fmt::format("reason = {}\nstatus = {}\ntime = {}\ndetail = {}\n", TomlQuoted(end.reason), end.status,
                            TomlQuoted(end.time), TomlQuoted(end.detail)));
}

std::optional<VmEnd> ReadEnd(const VmPaths& vm) {
  const auto root = ReadToml(vm.end().string());
  if (!root) return std::nullopt;
  const auto text = [&](std::string_view key) {
    const TomlValue* value = root->Find(key);
    return value && value->kind == TomlValue::Kind::kText ? value->text : std::string();
  };
  const TomlValue* status = root->Find("status");
  return VmEnd{.reason = text("reason"),
               .detail = text("detail"),
               .status = status ? static_cast<int>(status->integer) : 0,
               .time = text("time")};
}

void ForgetEnd(const VmPaths& vm) { unlink(vm.end().c_str()); }

bool HasRun(const VmPaths& vm) {
  std::error_code error;
  return fs::exists(vm.log(), error);
}

std::string TimeText() { return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr))); }

uint64_t DiskBytes(const VmPaths& vm) {
  uint64_t bytes = 0;
  std::error_code error;
  for (fs::directory_iterator at(vm.disks(), error), end; !error && at != end; at.increment(error)) {
    struct stat info {};
    if (lstat(at->path().c_str(), &info) == 0 && S_ISREG(info.st_mode))
      bytes += static_cast<uint64_t>(info.st_blocks) * 512;
  }
  return bytes;
}

}  // namespace nacre::lifecycle
