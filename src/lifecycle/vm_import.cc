#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "base/fd.h"
#include "base/write_all.h"
#include "lifecycle/ova_reader.h"
#include "lifecycle/vm_copy.h"
#include "lifecycle/vm_create.h"
#include "lifecycle/vm_draft.h"
#include "lifecycle/vm_toml.h"
#include "storage/foreign_image.h"
#include "storage/host_file.h"
#include "storage/image_tools.h"

namespace nacre::lifecycle {

namespace fs = std::filesystem;

namespace {

constexpr uint64_t kDefaultMemoryBytes = uint64_t{1} << 30;
constexpr uint64_t kCopyBytes = 1 << 20;

storage::Progress Telling(const ExchangeProgress& progress, const std::string& what) {
  return [&progress, what](uint64_t done, uint64_t total) { return !progress || progress(what, done, total); };
}

/// Of the characters that a VM's name may have; never empty.
std::string NameLike(std::string_view text) {
  std::string name;
  for (const char c : text) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (plain)
      name += c;
    else if (!name.empty() && name.back() != '-')
      name += c == '.' || c == '_' ? c : '-';
  }
  name.resize(std::min(name.size(), kMaxNameBytes));
  while (!name.empty() && !std::isalnum(static_cast<unsigned char>(name.back()))) name.pop_back();
  return name.empty() ? "imported" : name;
}

/// A part of a file, as a file of its own.
Status Extract(const storage::VmdkSource& from, const std::string& to, const storage::Progress& progress) {
  const Fd file(open(to.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!file.valid()) return FailErrno("{}", to);
  std::string piece(kCopyBytes, '\0');
  for (uint64_t done = 0; done < from.size_bytes;) {
    const size_t size = std::min<uint64_t>(piece.size(), from.size_bytes - done);
    NACRE_TRY_STATUS(storage::ReadAt(from.name, from.fd, from.offset + done, piece.data(), size));
    if (const Status written = WriteAll(file.get(), std::string_view(piece).substr(0, size)); !written)
      return Context(written.error(), "{}", to);
    done += size;
    if (!progress(done, from.size_bytes)) {
      errno = ECANCELED;
      return FailErrno("{}", from.name);
    }
  }
  return storage::SyncFile(to, file.get());
}

/// The new qcow2 image `to` of what a package's file reads as. Files that it names are of no interest.
Status TakeDisk(const storage::VmdkSource& from, uint64_t capacity_bytes, const std::string& to,
                const storage::Progress& progress) {
  std::array<uint8_t, 512> start{};
  const size_t readable = std::min<uint64_t>(start.size(), from.size_bytes);
  NACRE_TRY_STATUS(storage::ReadAt(from.name, from.fd, from.offset, start.data(), readable));
  if (storage::LooksLikeVmdkStream(start)) {
    const uint64_t size = NACRE_TRY(storage::VmdkStreamDiskBytes(from));
    if (size == 0) return Fail("{}: a disk of no bytes", from.name);
    NACRE_TRY_STATUS(storage::CreateQcow2(to, {.size_bytes = std::max(size, capacity_bytes)}));
    const std::shared_ptr<storage::AsyncIo> io = NACRE_TRY(storage::AsyncIo::Create());
    auto disk = NACRE_TRY(storage::OpenImage({.path = to, .format = storage::ImageFormat::kQcow2}, io));
    NACRE_TRY_STATUS(storage::ReadVmdkStream(from, *disk, progress));
    if (const int error = storage::RunRequest(*disk, storage::DiskRequest::Kind::kFlush, 0, 0); error != 0) {
      errno = error;
      return FailErrno("{}", to);
    }
    return {};
  }
  const std::string copy = to + ".source";
  NACRE_TRY_STATUS(Extract(from, copy, progress));
  Status done;
  const std::string foreign = storage::ForeignFormat(copy);
  if (!foreign.empty()) {
    std::string text(21, '\0');
    if (readable >= text.size()) std::copy_n(start.begin(), text.size(), text.begin());
    done = text.starts_with("# Disk Descriptor") ? Fail("{}: a VMDK image in several files", from.name)
                                                 : storage::ConvertForeign(foreign, copy, to);
  } else {
    const auto info = storage::DescribeImage({.path = copy}, false);
    if (!info)
      done = std::unexpected(info.error());
    else if (!info->front().backing.empty())
      done = Fail("{}: stands on another image, which is not in the package", from.name);
    else
      done = storage::ConvertImage({.path = copy}, to, {}, progress);
  }
  unlink(copy.c_str());
  return done;
}

Status Adapt(machine::MachineConfig& machine, const ImportOptions& options) {
  if (options.memory_bytes) machine.memory_bytes = *options.memory_bytes;
  if (options.cpu_count) machine.cpu_count = *options.cpu_count;
  if (!options.firmware.empty()) machine.firmware = options.firmware;
  if (options.bus)
    for (auto& disk : machine.disks)
      if (!disk.cdrom) disk.bus = *options.bus;
  if (machine.memory_bytes < machine::kMinMemoryBytes || machine.memory_bytes > machine::kMaxMemoryBytes)
    return Fail("{} bytes of memory are not possible here; say another size with --memory", machine.memory_bytes);
  return {};
}

/// A screen and a console: whoever made it looked at one of them.
void GiveConsoles(VmConfig& config) {
  config.machine.display.present = true;
  config.show = "offscreen";
}

Result<Imported> ImportPackage(const Home& home, const fs::path& from, const ImportOptions& options,
                               const ExchangeProgress& progress) {
  const OvfPackage package = NACRE_TRY(OvfPackage::Open(from));
  const OvfMachine& machine = package.machine();
  Imported imported{.name = options.name.empty() ? NameLike(machine.name) : options.name, .notes = {}};
  NewVm vm{.name = imported.name, .config = {}};
  GiveConsoles(vm.config);
  machine::MachineConfig& made = vm.config.machine;
  made.firmware = machine.uefi ? "uefi" : "bios";
  made.cpu_count = machine.cpu_count;
  made.memory_bytes = machine.memory_bytes == 0 ? kDefaultMemoryBytes : machine.memory_bytes;
  std::vector<const OvfDisk*> sources;
  for (const OvfDisk& disk : machine.disks) {
    if (disk.cdrom && disk.file.empty()) {
      imported.notes.push_back("left out: an empty CD-ROM drive");
      continue;
    }
    if (disk.gzip) return Fail("{}: {} is compressed with gzip, which is not supported", from.string(), disk.file);
    made.disks.push_back({.path = disk.file, .bus = disk.bus, .cdrom = disk.cdrom, .read_only = disk.cdrom});
    sources.push_back(&disk);
  }
  for (const OvfNetwork& network : machine.networks) {
    made.networks.emplace_back().card = network.card;
    made.networks.back().mac = network.mac;
  }
  NACRE_TRY_STATUS(Adapt(made, options));
  if (package.has_sums())
    NACRE_TRY_STATUS(package.CheckSums(progress));
  else
    imported.notes.push_back("the package has no manifest: nothing tells whether it is damaged");
  vm.fill_disk = [&](size_t index, const std::string& to) -> Status {
    const OvfDisk& disk = *sources[index];
    if (disk.file.empty()) return storage::CreateQcow2(to, {.size_bytes = disk.capacity_bytes});
    const storage::VmdkSource source = NACRE_TRY(package.FileNamed(disk.file));
    const storage::Progress tell = Telling(progress, source.name);
    return disk.cdrom ? Extract(source, to, tell) : TakeDisk(source, disk.capacity_bytes, to, tell);
  };
  NACRE_TRY_STATUS(CreateVm(home, std::move(vm)));
  return imported;
}

Result<Imported> ImportDisk(const Home& home, const fs::path& from, const ImportOptions& options,
                            const ExchangeProgress& progress) {
  Imported imported{.name = options.name.empty() ? NameLike(from.stem().string()) : options.name, .notes = {}};
  NewVm vm{.name = imported.name, .config = {}};
  GiveConsoles(vm.config);
  machine::MachineConfig& made = vm.config.machine;
  made.firmware = "bios";
  made.memory_bytes = kDefaultMemoryBytes;
  made.disks.push_back({.path = from.string(), .bus = machine::DiskBus::kSata});
  made.networks.emplace_back().card = machine::NetworkCard::kE1000;
  NACRE_TRY_STATUS(Adapt(made, options));
  const std::string foreign = storage::ForeignFormat(from.string());
  vm.fill_disk = [&](size_t, const std::string& to) -> Status {
    if (foreign.empty())
      return storage::ConvertImage({.path = from.string()}, to, {}, Telling(progress, from.string()));
    const Fd file(open(from.c_str(), O_RDONLY | O_CLOEXEC));
    if (!file.valid()) return FailErrno("{}", from.string());
    const storage::VmdkSource source{.name = from.string(),
                                     .fd = file.get(),
                                     .offset = 0,
                                     .size_bytes = NACRE_TRY(storage::FileBytes(from, file.get()))};
    std::array<uint8_t, 512> start{};
    NACRE_TRY_STATUS(storage::ReadAt(from, file.get(), 0, start.data(), std::min<uint64_t>(512, source.size_bytes)));
    if (storage::LooksLikeVmdkStream(start)) return TakeDisk(source, 0, to, Telling(progress, from.string()));
    return storage::ConvertForeign(foreign, from.string(), to);
  };
  NACRE_TRY_STATUS(CreateVm(home, std::move(vm)));
  return imported;
}

Result<Imported> ImportFolder(const Home& home, const fs::path& from, const ImportOptions& options,
                              const ExchangeProgress& progress) {
  const VmPaths source{fs::absolute(from).lexically_normal()};
  VmConfig config = NACRE_TRY(ReadVmToml(source.toml().string()));
  std::string plain = source.folder.filename().string();
  if (plain.empty()) plain = source.folder.parent_path().filename().string();
  Imported imported{.name = options.name.empty() ? NameLike(plain) : options.name, .notes = {}};
  NACRE_TRY_STATUS(CheckName(imported.name));
  NACRE_TRY_STATUS(Adapt(config.machine, options));
  const auto lock = NACRE_TRY(LockForExport(source));
  RemoveLeftovers(home);
  VmDraft draft = NACRE_TRY(VmDraft::Create(home, imported.name));
  config.uuid = NewUuid();
  NACRE_TRY_STATUS(CopyVm(source, std::move(config), draft.folder(), progress));
  NACRE_TRY_STATUS(draft.Publish());
  std::error_code error;
  if (fs::exists(source.snapshots(), error) && !fs::is_empty(source.snapshots(), error))
    imported.notes.push_back("left out: its snapshots");
  return imported;
}

}  // namespace

Result<Imported> ImportVm(const Home& home, const fs::path& from, const ImportOptions& options,
                          const ExchangeProgress& progress) {
  struct stat status {};
  if (stat(from.c_str(), &status) != 0) return FailErrno("{}", from.string());
  if (S_ISDIR(status.st_mode)) return ImportFolder(home, from, options, progress);
  if (!S_ISREG(status.st_mode)) return Fail("{}: is no file and no directory", from.string());
  std::string ending = from.extension().string();
  std::ranges::transform(ending, ending.begin(), [](unsigned char c) { return std::tolower(c); });
  if (ending == ".ova" || ending == ".ovf") return ImportPackage(home, from, options, progress);
  return ImportDisk(home, from, options, progress);
}

}  // namespace nacre::lifecycle
