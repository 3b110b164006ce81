#include "boot/firmware.h"

#include <unistd.h>

#include <span>

#include "base/bits.h"
#include "boot/boot_file.h"

namespace nacre::boot {

namespace {

constexpr uint64_t kMaxFirmware = 16 * kMiB;

struct Known {
  const char* code;
  const char* variables;  ///< null: none
};

/// Debian's places first, then those of other distributions.
constexpr Known kBios[] = {{"/usr/share/seabios/bios-256k.bin", nullptr}, {"/usr/share/qemu/bios-256k.bin", nullptr}};
constexpr Known kUefi[] = {
    {"/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"},
    {"/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"},
    {"/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"},
};

Result<std::vector<uint8_t>> ReadPart(const std::string& path) {
  auto bytes = ReadBootFile(path, kMaxFirmware);
  if (!bytes) return Context(std::move(bytes).error(), "firmware");
  return bytes;
}

Result<FirmwareImage> LoadKnown(std::span<const Known> places, const char* what, const char* package) {
  for (const Known& known : places) {
    if (access(known.code, R_OK) != 0 || (known.variables && access(known.variables, R_OK) != 0)) continue;
    FirmwareImage image{.path = known.code, .code = NACRE_TRY(ReadPart(known.code)), .variables = {}};
    if (known.variables) image.variables = NACRE_TRY(ReadPart(known.variables));
    if (image.variables.size() % kPageSize != 0 || image.variables.size() + image.code.size() > kMaxFirmware)
      return Fail("firmware {}: its size is not that of {}", known.code, what);
    return image;
  }
  return Fail(
      "{} is not on this host ({} is not there): install Debian's package {}, or name a file with --firmware FILE",
      what, places.front().code, package);
}

}  // namespace

Result<FirmwareImage> LoadFirmware(const std::string& name) {
  if (name == "bios") return LoadKnown(kBios, "SeaBIOS", "seabios");
  if (name == "uefi") return LoadKnown(kUefi, "OVMF", "ovmf");
  return FirmwareImage{.path = name, .code = NACRE_TRY(ReadPart(name)), .variables = {}};
}

}  // namespace nacre::boot
