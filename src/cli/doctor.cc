#include "cli/doctor.h"

#include <cpuid.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/bits.h"
#include "base/fd.h"
#include "cli/paths.h"
#include "engine/kvm/kvm_choice.h"
#include "storage/async_io.h"
#include "x86/cpu_model.h"

namespace nacre::cli {

namespace {

std::string CpuName() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with("model name")) continue;
    const size_t at = line.find(": ");
    if (at != std::string::npos) return line.substr(at + 2);
  }
  return "unknown";
}

std::string ModelState(const char* name) {
  const auto model = x86::CpuModel::Create(name, {});
  return model ? "yes" : "no: " + model.error().message;
}

bool InVirtualMachine() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) && TestBit(c, 31);
}

/// The translator maps its code twice, writable and executable, over one memfd; some hardened hosts forbid it.
std::string GeneratedCodeState() {
  const Fd fd(memfd_create("nacre-doctor", MFD_CLOEXEC));
  if (!fd.valid() || ftruncate(fd.get(), kPageSize) != 0) return fmt::format("no: memfd: {}", std::strerror(errno));
  void* code = mmap(nullptr, kPageSize, PROT_READ | PROT_EXEC, MAP_SHARED, fd.get(), 0);
  if (code == MAP_FAILED) return fmt::format("no: executable mapping: {} (use --engine interp)", std::strerror(errno));
  munmap(code, kPageSize);
  return "allowed";
}

std::string IoState() {
  const auto io = storage::AsyncIo::Create(storage::AsyncIo::Engine::kIoUring);
  return io ? "works" : "no, disks use threads instead: " + io.error().message;
}

std::string MemoryState() {
  struct sysinfo info {};
  if (sysinfo(&info) != 0) return "unknown";
  uint64_t available_kib = 0;
  std::ifstream file("/proc/meminfo");
  for (std::string word; file >> word;)
    if (word == "MemAvailable:") file >> available_kib;
  return fmt::format("{} MiB, {} MiB available", info.totalram * info.mem_unit / kMiB, available_kib / kKiB);
}

std::string GuestsState() {
  std::string names;
  std::error_code error;
  for (const auto& folder : GuestFolders()) {
    std::vector<std::string> found;
    for (const auto& entry : std::filesystem::directory_iterator(folder, error))
      if (std::filesystem::exists(entry.path() / "vmlinuz", error)) found.push_back(entry.path().filename());
    std::ranges::sort(found);
    for (const std::string& name : found) names += (names.empty() ? "" : ", ") + name;
  }
  return names.empty() ? "none yet (`make run` prepares the default one)" : names;
}

/// Names have a column of their own.
std::string Line(std::string_view name, std::string_view value) { return fmt::format("{:<16} {}\n", name, value); }

}  // namespace

std::string DescribeKvm(const engine::kvm::KvmFindings& findings, bool in_virtual_machine) {
  const engine::kvm::EngineChoice choice = engine::kvm::Choose(findings);
  std::string text;
  if (!findings.unusable.empty()) {
    text += Line("KVM", findings.unusable);
    text += Line("Engine", "--engine auto takes jit, the translator: there is no KVM to use");
    return text;
  }
  text += Line("KVM",
               in_virtual_machine ? "/dev/kvm opens; nested, this host is itself a virtual machine" : "/dev/kvm opens");
  const engine::kvm::KvmModel& cpu = findings.cpu;
  const bool lacking = !cpu.missing.empty();
  text += Line("  CPU features", lacking ? fmt::format("lacks {} of {}", engine::kvm::Joined(cpu.missing), cpu.asked)
                                         : fmt::format("all of {}", cpu.asked));
  if (findings.probe && engine::kvm::Emulates(*findings.probe))
    text +=
        Line("  guests get",
             "with --engine kvm the CPU model host: their kernels are interpreted, long stays in programs are KVM's");
  else if (cpu.model)
    text += Line("  guests get", fmt::format("{} on KVM unless --cpu says otherwise", cpu.model->name()));
  else if (lacking)
    text += Line("  guests get", "none: no CPU model is whole on it");
  bool slow = false;
  if (findings.probe) {
    const auto& [speed, failure, emulates] = *findings.probe;
    slow = !failure.empty() || std::max(speed.kernel, speed.user) > engine::kvm::kMostTimesNative;
    if (speed.kernel > 0) text += Line("  guest kernels", engine::kvm::Times(speed.kernel) + " the host's own time");
    if (speed.user > 0) text += Line("  guest programs", engine::kvm::Times(speed.user) + " the host's own time");
    if (!failure.empty()) text += Line("  a small guest", "fails " + failure);
  }
  text += Line("Engine", choice.kvm ? "--engine auto takes kvm: " + choice.reason
                                    : "--engine auto takes jit, the translator: " + choice.reason);
  if (slow) {
    text += Line("  for a fast KVM",
                 in_virtual_machine
                     ? "turn nested virtualization on where this virtual machine is run, or use a bare-metal host"
                     : "look for messages of kvm in the kernel's log (dmesg)");
  } else if (lacking && !cpu.model) {
    text += Line("  for KVM", "a newer CPU or kernel has them");
  }
  return text;
}

std::string Doctor() {
  utsname host{};
  uname(&host);
  std::string text;
  const auto line = [&](std::string_view name, std::string_view value) { text += Line(name, value); };
  line("Nacre", NACRE_VERSION);
  line("Host", fmt::format("{} {} {}", host.sysname, host.release, host.machine));
  line("CPU", fmt::format("{}, {} threads{}", CpuName(), std::thread::hardware_concurrency(),
                          InVirtualMachine() ? ", a virtual machine" : ""));
  line("  x86-64-v1", ModelState("x86-64-v1"));
  line("  x86-64-v2", ModelState("x86-64-v2"));
  line("  x86-64-v3", ModelState("x86-64-v3"));
  line("  x86-64-v4", ModelState("x86-64-v4"));
  const auto model = x86::CpuModel::Create("default", {});
  if (model)
    line("  guests get",
         fmt::format("{} at {} MHz unless --cpu says otherwise", model->name(), model->tsc_khz() / 1000));
  line("Memory", MemoryState());
  line("Generated code", GeneratedCodeState());
  line("io_uring", IoState());
  line("Guests", GuestsState());
  if (model) {
    text += DescribeKvm(engine::kvm::ExamineKvm("default", {}), InVirtualMachine());
  } else {
    line("Engine", "none: " + model.error().message);
  }
  return text;
}

}  // namespace nacre::cli
