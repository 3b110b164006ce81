#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "base/fd.h"
#include "base/sha256.h"
#include "base/tar_header.h"
#include "lifecycle/ovf.h"
#include "lifecycle/vm_copy.h"
#include "lifecycle/vm_files.h"
#include "lifecycle/vm_toml.h"
#include "storage/host_file.h"
#include "storage/vmdk_stream.h"

namespace nacre::lifecycle {

namespace fs = std::filesystem;

namespace {

std::span<const uint8_t> BytesOf(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

/// An OVA is a tar archive: the descriptor first, then the files that it names, then their sums. The descriptor says
/// how long the files are, which is known when they have been written: there is room for it, filled with spaces.
class Package {
 public:
  Package(std::string path, std::string name, int fd, const ExchangeProgress& progress)
      : path_(std::move(path)), name_(std::move(name)), fd_(fd), progress_(progress) {}

  Status Write(OvfMachine machine, const std::vector<machine::DiskConfig>& sources) {
    for (OvfDisk& disk : machine.disks) disk.file_bytes = UINT64_MAX;
    const size_t room = WriteOvf(machine).size();
    at_ = tar::kBlock + room + tar::PaddingOf(room);
    for (size_t i = 0; i < sources.size(); ++i) {
      OvfDisk& disk = machine.disks[i];
      disk.file_bytes = NACRE_TRY(disk.cdrom ? PutFile(disk.file, sources[i]) : PutDisk(disk.file, sources[i]));
    }
    std::string text = WriteOvf(machine);
    text.resize(room, '\n');
    Sha256 sum;
    sum.Add(BytesOf(text));
    sums_ = fmt::format("SHA256({}.ovf)= {}\n", name_, sum.Finish()) + sums_;
    const uint64_t end = at_;
    at_ = 0;
    NACRE_TRY_STATUS(PutMember(name_ + ".ovf", text));
    at_ = end;
    NACRE_TRY_STATUS(PutMember(name_ + ".mf", sums_));
    return Put(BytesOf(std::string(2 * tar::kBlock, '\0')));
  }

 private:
  Status Put(std::span<const uint8_t> bytes) {
    NACRE_TRY_STATUS(storage::WriteAt(path_, fd_, at_, bytes.data(), bytes.size()));
    at_ += bytes.size();
    return {};
  }
  Status PutPadding(uint64_t size) { return Put(BytesOf(std::string(tar::PaddingOf(size), '\0'))); }
  Status PutMember(const std::string& name, const std::string& content) {
    NACRE_TRY_STATUS(Put(BytesOf(HeaderOf(name, content.size()))));
    NACRE_TRY_STATUS(Put(BytesOf(content)));
    return PutPadding(content.size());
  }
  static std::string HeaderOf(const std::string& name, uint64_t size) {
    return tar::HeaderOf({.name = name, .size = size, .time_s = time(nullptr)}, tar::Dialect::kUstar);
  }

  /// Data whose length is known when it is there. Its length.
  template <typename Fill>
  Result<uint64_t> PutData(const std::string& name, Fill fill) {
    const uint64_t header = at_;
    at_ += tar::kBlock;
    Sha256 sum;
    NACRE_TRY_STATUS(fill([&](std::span<const uint8_t> bytes) {
      sum.Add(bytes);
      return Put(bytes);
    }));
    const uint64_t size = at_ - header - tar::kBlock;
    NACRE_TRY_STATUS(PutPadding(size));
    const uint64_t end = std::exchange(at_, header);
    NACRE_TRY_STATUS(Put(BytesOf(HeaderOf(name, size))));
    at_ = end;
    sums_ += fmt::format("SHA256({})= {}\n", name, sum.Finish());
    return size;
  }

  Result<uint64_t> PutDisk(const std::string& name, const machine::DiskConfig& source) {
    const std::shared_ptr<storage::AsyncIo> io = NACRE_TRY(storage::AsyncIo::Create());
    const auto disk =
        NACRE_TRY(storage::OpenImage({.path = source.path, .format = source.format, .read_only = true}, io));
    return PutData(name, [&](const auto& sink) {
      return storage::WriteVmdkStream(
          *disk, name, sink, [&](uint64_t done, uint64_t total) { return !progress_ || progress_(name, done, total); });
    });
  }

  Result<uint64_t> PutFile(const std::string& name, const machine::DiskConfig& source) {
    const Fd file(open(source.path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!file.valid()) return FailErrno("{}", source.path);
    const uint64_t total = NACRE_TRY(storage::FileBytes(source.path, file.get()));
    return PutData(name, [&](const auto& sink) -> Status {
      std::vector<uint8_t> piece(1 << 20);
      for (uint64_t done = 0; done < total;) {
        const size_t size = std::min<uint64_t>(piece.size(), total - done);
        NACRE_TRY_STATUS(storage::ReadAt(source.path, file.get(), done, piece.data(), size));
        NACRE_TRY_STATUS(sink(std::span(piece).first(size)));
        done += size;
        if (progress_ && !progress_(name, done, total)) {
          errno = ECANCELED;
          return FailErrno("{}", name);
        }
      }
      return {};
    });
  }

  const std::string path_, name_;
  const int fd_;
  const ExchangeProgress& progress_;
  uint64_t at_ = 0;
  std::string sums_;
};

Result<uint64_t> DiskBytes(const machine::DiskConfig& disk) {
  const std::shared_ptr<storage::AsyncIo> io = NACRE_TRY(storage::AsyncIo::Create());
  return NACRE_TRY(storage::OpenImage({.path = disk.path, .format = disk.format, .read_only = true}, io))->size_bytes();
}

}  // namespace

Result<Notes> ExportOva(const VmPaths& vm, const fs::path& file, const ExchangeProgress& progress) {
  const auto lock = NACRE_TRY(LockForExport(vm));
  const VmConfig config = NACRE_TRY(ReadVmToml(vm.toml().string()));
  machine::MachineConfig machine = config.machine;
  MakePathsAbsolute(machine, vm.folder);
  if (machine.firmware.empty())
    return Fail(
        "{}: starts with a kernel that is not on its disks, and an OVA package cannot say that; `nacre export --dir` "
        "copies the VM as it is",
        vm.name());
  Notes notes;
  if (!machine.kernel.empty()) notes.push_back("left out: its kernel and initrd; it will start from its disks");
  if (machine.firmware != "bios" && machine.firmware != "uefi") notes.push_back("left out: its own firmware");
  if (!machine.floppies.empty()) notes.push_back("left out: its diskettes");
  std::error_code error;
  if (fs::exists(vm.snapshots(), error) && !fs::is_empty(vm.snapshots(), error))
    notes.push_back("left out: its snapshots");
  if (std::ranges::any_of(machine.networks, [](const auto& n) { return !n.forwards.empty(); }))
    notes.push_back("left out: its port forwards");
  OvfMachine described{.name = vm.name(),
                       .cpu_count = machine.cpu_count,
                       .memory_bytes = machine.memory_bytes,
                       .uefi = machine.firmware == "uefi"};
  unsigned disks = 0, discs = 0;
  for (const auto& disk : machine.disks) {
    OvfDisk entry{.cdrom = disk.cdrom, .bus = disk.bus};
    entry.file =
        disk.cdrom ? fmt::format("{}-cd{}.iso", vm.name(), ++discs) : fmt::format("{}-disk{}.vmdk", vm.name(), ++disks);
    if (!disk.cdrom) entry.capacity_bytes = NACRE_TRY(DiskBytes(disk));
    described.disks.push_back(std::move(entry));
  }
  for (const auto& network : machine.networks) described.networks.push_back({network.card, network.mac});
  NACRE_TRY_STATUS(storage::CreateWhole(file.string(), [&](const std::string& temporary, int fd) {
    return Package(temporary, vm.name(), fd, progress).Write(described, machine.disks);
  }));
  return notes;
}

Result<Notes> ExportFolder(const VmPaths& vm, const fs::path& folder, const ExchangeProgress& progress) {
  const auto lock = NACRE_TRY(LockForExport(vm));
  VmConfig config = NACRE_TRY(ReadVmToml(vm.toml().string()));
  std::error_code error;
  if (fs::exists(fs::symlink_status(folder, error)))
    return Fail("{}: is there already; choose another name", folder.string());
  const fs::path parent = folder.has_parent_path() ? folder.parent_path() : fs::path(".");
  std::string draft = (parent / fmt::format(".{}.XXXXXX", folder.filename().string())).string();
  if (!mkdtemp(draft.data())) return FailErrno("{}", folder.string());
  Status done = CopyVm(vm, std::move(config), draft, progress);
  if (done && chmod(draft.c_str(), 0755) != 0) done = FailErrno("{}", draft);
  if (done) done = RenameNew(draft, folder);
  if (done) done = SyncFolder(parent);
  if (!done) {
    static_cast<void>(RemoveTree(draft));
    return std::unexpected(done.error());
  }
  Notes notes;
  if (fs::exists(vm.snapshots(), error) && !fs::is_empty(vm.snapshots(), error))
    notes.push_back("left out: its snapshots");
  return notes;
}

}  // namespace nacre::lifecycle
