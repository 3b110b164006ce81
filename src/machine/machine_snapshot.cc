// A snapshot of a running machine. The guest stands still while its state is copied and the process is forked: the
// child has memory as it is at that instant, copy-on-write by the host's kernel, and writes it to the file while the
// guest goes on (docs/adr/0013). Then the state file is written and the directory gets its name.

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <deque>
#include <filesystem>
#include <future>

#include "base/clock.h"
#include "machine/disk_freeze.h"
#include "machine/machine.h"
#include "state/archive.h"
#include "storage/image.h"

namespace nacre::machine {

namespace fs = std::filesystem;

struct Machine::SnapshotWork {
  ~SnapshotWork() {
    if (temporary.empty()) return;
    std::error_code ignored;
    fs::remove_all(temporary, ignored);
  }

  std::string target, temporary;
  SnapshotIdentity identity;
  std::unique_ptr<memory::MemoryImage> parent;
  std::unique_ptr<memory::MemoryWriter> writer;
  std::vector<DiskFreeze> disks;  ///< of those that can be written
  state::StateFile state;
  pid_t child = -1;
  std::chrono::steady_clock::time_point start;
  std::chrono::nanoseconds pause{0};

  /// On the snapshot's thread: the child is waited for.
  Result<SnapshotReport> Finish();
};

namespace {

std::string RandomId() {
  std::array<uint8_t, 16> bytes{};
  [[maybe_unused]] const ssize_t got = getrandom(bytes.data(), bytes.size(), 0);
  std::string text;
  for (const uint8_t byte : bytes) text += fmt::format("{:02x}", byte);
  return text;
}

/// Only the forking thread lives on in it: no lock, no memory is allocated.
[[noreturn]] void WriteInChild(memory::MemoryWriter& writer, const uint8_t* memory, pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // a snapshot that nobody finishes
  if (getppid() != parent) _exit(ECANCELED);
  prctl(PR_SET_NAME, "snapshot");
  sched_param idle{};
  sched_setscheduler(0, SCHED_BATCH, &idle);
  // What the process has open is not for the child: locks and sockets would outlive their owner.
  const auto keep = static_cast<unsigned>(writer.fd());
  if (keep > 0) syscall(SYS_close_range, 0, keep - 1, 0);
  syscall(SYS_close_range, keep + 1, ~0u, 0);
  const int error = writer.Write(memory);
  _exit(error > 255 ? EIO : error);
}

}  // namespace

/// Where what was taken or restored last stands beside the new one, that is its parent.
std::unique_ptr<memory::MemoryImage> Machine::ParentFor(const std::string& path, SnapshotIdentity& identity) const {
  std::optional<KnownSnapshot> last;
  {
    const std::lock_guard lock(snapshot_mutex_);
    last = last_snapshot_;
  }
  if (!last || fs::path(last->directory).parent_path() != fs::path(path).parent_path()) return nullptr;
  const auto file = ReadStateFile(last->directory);
  const auto known = file ? ReadIdentity(*file) : Fail("gone");
  if (!known || known->id != last->id) return nullptr;
  auto image = OpenMemory(last->directory);
  if (!image || (*image)->pages() != memory::SavedPages(*memory_)) return nullptr;
  identity.parent = fs::path(last->directory).filename();
  identity.parent_id = last->id;
  return std::move(*image);
}

/// Beside the guest, so that little is left for the instant at which it stands still.
void Machine::WriteDisksOut() {
  struct Flush final : storage::DiskRequest {
    Flush() { kind = Kind::kFlush; }
    void Done(int) override { done.set_value(); }
    std::promise<void> done;
  };
  std::deque<Flush> flushes;
  {
    const std::lock_guard lock(device_lock_);
    for (size_t i = 0; i < config_.disks.size(); ++i) {
      if (!board_->image(i)) continue;
      board_->image(i)->Start(flushes.emplace_back());
      board_->image(i)->Submit();
    }
  }
  // An error comes again when the disk is frozen.
  for (Flush& flush : flushes) flush.done.get_future().wait();
}

/// Beside the guest: all that can fail or takes time.
Result<std::unique_ptr<Machine::SnapshotWork>> Machine::BeginSnapshot(const std::string& path, bool passing) {
  if (!path.starts_with('/') || path.find('\0') != std::string::npos)
    return Fail("snapshot '{}': give an absolute path", path);
  for (size_t i = 0; i < config_.disks.size(); ++i)
    NACRE_TRY_STATUS(CheckFreezable(config_.disks[i], board_->image(i)));
  auto work = std::make_unique<SnapshotWork>();
  work->start = std::chrono::steady_clock::now();
  const fs::path target = fs::path(path).lexically_normal();
  work->target = target.has_filename() ? target : target.parent_path();
  std::error_code error;
  if (fs::exists(fs::symlink_status(work->target, error))) return Fail("{}: there is such a snapshot already", path);
  work->identity.id = RandomId();
  work->identity.created_utc_ns = HostRealtimeNs();
  work->identity.passing = passing;
  if (!passing) work->parent = ParentFor(work->target, work->identity);
  std::string temporary = fs::path(work->target).parent_path() / fmt::format("{}XXXXXX", kUnfinishedPrefix);
  if (!mkdtemp(temporary.data())) return FailErrno("snapshot {}", work->target);
  work->temporary = temporary;
  work->writer = NACRE_TRY(memory::MemoryWriter::Create(fmt::format("{}/{}", temporary, kMemoryFile),
                                                        memory::SavedPages(*memory_), work->parent.get(), !passing));
  for (size_t i = 0; i < config_.disks.size(); ++i) {
    if (!board_->image(i)) continue;
    work->disks.push_back(NACRE_TRY(DiskFreeze::Prepare(*board_->image(i), config_.disk_layers, RandomId())));
    const std::string name = SnapshotDiskName(i);
    NACRE_TRY_STATUS(work->disks.back().WriteReference(fmt::format("{}/{}", temporary, name),
                                                       fmt::format("{}/{}", work->target, name)));
  }
  WriteDisksOut();
  return work;
}

Result<std::unique_ptr<Machine::SnapshotWork>> Machine::TakeSnapshot(const std::string& path, bool passing) {
  auto work = NACRE_TRY(BeginSnapshot(path, passing));
  const bool runs = state() == RunState::kRunning;
  const auto begin = std::chrono::steady_clock::now();
  if (runs) {
    ParkAll();
    PauseTime();
  }
  device_lock_.lock();
  auto saved = SaveState();
  for (DiskFreeze& disk : work->disks) {
    if (!saved) break;
    if (Status frozen = disk.Switch(); !frozen) saved = std::unexpected(std::move(frozen.error()));
  }
  if (saved) {
    const pid_t self = getpid();
    work->child = _Fork();
    if (work->child == 0) WriteInChild(*work->writer, memory_->host_base(), self);
  }
  const int fork_error = errno;
  device_lock_.unlock();
  if (runs) {
    ResumeTime();
    ResumeAll();
    work->pause = std::chrono::steady_clock::now() - begin;
  }
  if (!saved) return std::unexpected(std::move(saved.error()));
  if (work->child < 0) {
    errno = fork_error;
    return FailErrno("snapshot {}: a process that writes the memory", work->target);
  }
  work->state = std::move(*saved);
  return work;
}

Result<Machine::SnapshotReport> Machine::SnapshotWork::Finish() {
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
  if (!WIFEXITED(status)) return Fail("snapshot {}: the process that wrote the memory was killed", target);
  if (WEXITSTATUS(status) != 0) {
    errno = WEXITSTATUS(status);
    return FailErrno("snapshot {}: writing the memory", target);
  }
  memory::ImageMap map = writer->Map();
  if (!identity.parent.empty()) {
    const fs::path beside = fs::path(target).parent_path() / identity.parent;
    const auto file = ReadStateFile(beside);
    const auto known = file ? ReadIdentity(*file) : std::unexpected(file.error());
    if (!known || known->id != identity.parent_id)
      return Fail("snapshot {}: {}, on which it stands, has gone meanwhile; take it again", target, beside.string());
  }
  state.Add("identity", SaveSection([&](state::Archive& archive) { identity.Serialize(archive); }));
  state.Add("memory", SaveSection([&](state::Archive& archive) { map.Serialize(archive); }));
  const std::string state_path = fmt::format("{}/{}", temporary, kStateFile);
  const std::vector<uint8_t> bytes = state.Encode();
  NACRE_TRY_STATUS(identity.passing ? WriteNewFile(state_path, bytes) : WriteFileDurably(state_path, bytes));
  // An empty directory of that name would be replaced.
  if (syscall(SYS_renameat2, AT_FDCWD, temporary.c_str(), AT_FDCWD, target.c_str(), RENAME_NOREPLACE) != 0)
    return FailErrno("snapshot {}", target);
  temporary.clear();
  if (!identity.passing) NACRE_TRY_STATUS(SyncDirectory(fs::path(target).parent_path()));
  return SnapshotReport{pause, std::chrono::steady_clock::now() - start, map.PagesHere() * kPageSize, identity.parent};
}

void Machine::StartSnapshot(const std::string& path, bool passing, const Done<SnapshotReport>& done) {
  if (snapshot_runs_) return done(Fail("another snapshot of this VM is still being written"));
  if (snapshot_thread_.joinable()) snapshot_thread_.join();
  auto work = TakeSnapshot(path, passing);
  if (!work) return done(std::unexpected(work.error()));
  snapshot_runs_ = true;
  snapshot_thread_ = std::thread([this, done, held = std::shared_ptr<SnapshotWork>(std::move(*work))] {
    auto report = held->Finish();
    if (report && !held->identity.passing) {
      const std::lock_guard lock(snapshot_mutex_);
      last_snapshot_ = {held->target, held->identity.id};
    }
    snapshot_runs_ = false;
    done(std::move(report));
  });
  pthread_setname_np(snapshot_thread_.native_handle(), "snapshot");
}

void Machine::RequestSnapshot(std::string path, Done<SnapshotReport> done) {
  const auto carry_out = [this, path = std::move(path), done] { StartSnapshot(path, false, done); };
  Enqueue({carry_out, [done](const Error& error) { done(std::unexpected(error)); }});
}

void Machine::RequestFork(std::string path, Done<SnapshotReport> done) {
  const auto carry_out = [this, path = std::move(path), done] { StartSnapshot(path, true, done); };
  Enqueue({carry_out, [done](const Error& error) { done(std::unexpected(error)); }});
}

/// A snapshot that was begun is written to its end.
void Machine::EndSnapshots() {
  if (snapshot_thread_.joinable()) snapshot_thread_.join();
  stop_verify_ = true;
  if (verify_thread_.joinable()) verify_thread_.join();
}

}  // namespace nacre::machine
