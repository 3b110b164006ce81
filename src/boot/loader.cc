#include "boot/loader.h"

#include <unistd.h>

#include "boot/boot_file.h"

namespace nacre::boot {

namespace {

/// Larger than any kernel; smaller than what would press the host.
constexpr uint64_t kMaxKernelBytes = 512 * kMiB;
constexpr uint32_t kXenPhys32Entry = 18;  // XEN_ELFNOTE_PHYS32_ENTRY

Result<LoadedKernel> LoadAny(memory::GuestMemory& memory, const BootRequest& request, const KernelFile& file) {
  if (IsBzImage(file)) return LoadBzImage(memory, request, file);
  if (IsMultiboot(file)) return LoadMultiboot(memory, request, file);
  if (ElfImage::HasMagic(file)) {
    const ElfImage elf = NACRE_TRY(ElfImage::Parse(file));
    if (const auto entry = elf.NoteValue("Xen", kXenPhys32Entry))
      return LoadPvh(memory, request, file, elf, GuestPhys(*entry));
    return LoadVmlinux(memory, request, file, elf);
  }
  return Fail("not a kernel that Nacre knows (bzImage, ELF with a PVH note, vmlinux or multiboot)");
}

struct ModuleFile {
  std::string path, text;
};

ModuleFile SplitModule(const std::string& entry) {
  const size_t space = entry.find(' ');
  if (space == std::string::npos || access(entry.c_str(), F_OK) == 0) return {entry, ""};
  return {entry.substr(0, space), entry.substr(space + 1)};
}

}  // namespace

Result<LoadedKernel> LoadKernel(memory::GuestMemory& memory, const BootRequest& request) {
  if (memory.regions().front().size_bytes < 4 * kMiB)
    return Fail("a guest with less than 4M of memory cannot boot a kernel");
  const KernelFile file = NACRE_TRY(ReadBootFile(request.kernel, kMaxKernelBytes));
  NACRE_TRY_STATUS(WriteBiosData(memory));
  auto loaded = LoadAny(memory, request, file);
  if (!loaded) return Context(std::move(loaded).error(), "kernel {}", request.kernel);
  return loaded;
}

Status WriteCommandLine(memory::GuestMemory& memory, const std::string& text, uint64_t max_bytes) {
  if (text.size() > max_bytes)
    return Fail("the command line has {} bytes, this kernel takes at most {}", text.size(), max_bytes);
  if (text.find('\0') != std::string::npos) return Fail("the command line holds a zero byte");
  if (!memory.Write(kCommandLineAddress, {reinterpret_cast<const uint8_t*>(text.c_str()), text.size() + 1}))
    return Fail("the guest has no memory for the command line");
  return {};
}

Result<std::vector<LoadedModule>> LoadModules(memory::GuestMemory& memory, const BootRequest& request,
                                              GuestPhys kernel_end, GuestPhys strings, uint64_t string_bytes,
                                              bool with_names) {
  std::vector<LoadedModule> modules;
  uint64_t limit = kModuleLimit;
  for (const std::string& entry : request.initrds) {
    const ModuleFile module = SplitModule(entry);
    const uint64_t room = std::min(memory.regions().front().size_bytes, limit);
    const auto content = NACRE_TRY(ReadBootFile(module.path, room));
    LoadedModule loaded;
    if (!PlaceHigh(memory, content.size(), kernel_end, limit, loaded.address))
      return Fail("{}: {} bytes do not fit beside the kernel in the guest's memory: give more with --memory",
                  module.path, content.size());
    NACRE_TRY_STATUS(LoadBytes(memory, loaded.address, content, content.size()));
    limit = loaded.address.value;
    loaded.size_bytes = content.size();
    loaded.text = strings;
    const std::string& text = with_names ? entry : module.text;
    const uint64_t text_bytes = text.size() + 1;
    if (text_bytes > string_bytes) return Fail("{}: the strings of the modules are too long", module.path);
    if (!memory.Write(strings, {reinterpret_cast<const uint8_t*>(text.c_str()), text_bytes}))
      return Fail("{}: the guest has no memory for the module's string", module.path);
    strings = strings + text_bytes;
    string_bytes -= text_bytes;
    modules.push_back(loaded);
  }
  return modules;
}

}  // namespace nacre::boot
