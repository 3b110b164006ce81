#include "machine/firmware_parts.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "boot/firmware_kernel.h"
#include "boot/smbios.h"
#include "boot/table_loader.h"
#include "devices/chipset/acpi_pm.h"
#include "devices/chipset/local_apic.h"

namespace nacre::machine {

namespace {

using devices::FwCfg;

constexpr uint16_t kLogPort = 0x402;
/// How long changed variables wait for more before they are written.
constexpr int64_t kWriteDelayNs = 100'000'000;

Status WriteAll(int fd, const uint8_t* from, uint64_t count, uint64_t offset) {
  while (count != 0) {
    const ssize_t done = pwrite(fd, from, count, static_cast<off_t>(offset));
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) return FailErrno("cannot write");
    from += done;
    offset += static_cast<uint64_t>(done);
    count -= static_cast<uint64_t>(done);
  }
  return {};
}

/// etc/e820: address and size, 64 bits, type, 32 bits.
std::vector<uint8_t> MemoryMapFile(const memory::GuestMemory& memory) {
  constexpr uint32_t kUsable = 1;
  std::vector<uint8_t> file;
  for (const memory::Region& region : memory.regions()) {
    const size_t at = file.size();
    file.resize(at + 20);
    StoreLe(&file[at], region.start.value);
    StoreLe(&file[at + 8], region.size_bytes);
    StoreLe(&file[at + 16], kUsable);
  }
  return file;
}

std::vector<uint8_t> Lines(const std::vector<std::string>& lines) {
  std::vector<uint8_t> file;
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i != 0) file.push_back('\n');
    file.insert(file.end(), lines[i].begin(), lines[i].end());
  }
  file.push_back(0);
  return file;
}

}  // namespace

uint64_t FirmwareParts::RomBytes(const boot::FirmwareImage& image) {
  return AlignUp(image.variables.size() + image.code.size(), kPageSize);
}

FirmwareParts::FirmwareParts(Wiring wiring) : wiring_(std::move(wiring)) {}

FirmwareParts::~FirmwareParts() {
  Flush();
  log_.Flush();
}

Result<std::unique_ptr<FirmwareParts>> FirmwareParts::Create(Wiring wiring) {
  std::unique_ptr<FirmwareParts> parts(new FirmwareParts(std::move(wiring)));
  const Wiring& w = parts->wiring_;
  NACRE_TRY_STATUS(parts->PlaceImage());
  parts->fw_cfg_ = std::make_unique<FwCfg>(*w.memory);
  parts->AddItems();
  NACRE_TRY_STATUS(parts->AddKernel());
  parts->mappings_.push_back(w.ports->Add(FwCfg::kPort, FwCfg::kPorts, parts->fw_cfg_->io(), "fw-cfg"));
  parts->mappings_.push_back(w.ports->Add(FwCfg::kDmaPort, 8, parts->fw_cfg_->dma_io(), "fw-cfg"));

  using devices::ShadowMemory;
  parts->shadow_ = std::make_unique<ShadowMemory>(*w.memory, w.memory_changed);
  parts->mappings_.push_back(
      w.memory_bus->Add(ShadowMemory::kStart, ShadowMemory::kSize, parts->shadow_->low_io(), "shadow"));
  parts->mappings_.push_back(
      w.memory_bus->Add(w.memory->rom_start().value, w.memory->rom_size(), parts->shadow_->rom_io(), "rom"));
  w.pci->SetShadowMemory(parts->shadow_.get());

  const std::string& log = w.config->firmware_log;
  if (!log.empty()) {
    parts->log_.file = Fd(open(log.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
    if (!parts->log_.file.valid()) return FailErrno("--firmware-log {}", log);
    parts->mappings_.push_back(w.ports->Add(kLogPort, 1, parts->log_, "firmware-log"));
  }
  return parts;
}

Status FirmwareParts::PlaceImage() {
  const boot::FirmwareImage& image = *wiring_.image;
  memory::GuestMemory& memory = *wiring_.memory;
  std::vector<uint8_t> variables = image.variables;
  if (!wiring_.config->firmware_variables.empty()) NACRE_TRY_STATUS(OpenVariables(variables));
  const uint64_t size = memory.rom_size();
  const uint64_t code_at = size - image.code.size();
  NACRE_CHECK(variables.size() <= code_at);
  std::memset(memory.rom(), 0xff, size);
  std::ranges::copy(image.code, memory.rom() + code_at);
  if (variables.empty()) return {};
  const uint64_t variables_at = code_at - variables.size();
  if (variables_at % kPageSize != 0) return Fail("firmware {}: its size is no multiple of 4 KiB", image.path);
  std::ranges::copy(variables, memory.rom() + variables_at);
  flash_ = std::make_unique<devices::PFlash>(
      memory, devices::PFlash::Options{
                  .rom_offset = variables_at,
                  .size_bytes = variables.size(),
                  .mapping_changed = wiring_.memory_changed,
                  .written = [this](uint64_t offset, uint64_t count) { VariablesWritten(offset, count); }});
  mappings_.push_back(
      wiring_.memory_bus->Add(memory.rom_start().value + variables_at, variables.size(), *flash_, "pflash"));
  write_timer_ = wiring_.loop->CreateTimer([this] { Flush(); });
  return {};
}

Status FirmwareParts::OpenVariables(std::vector<uint8_t>& variables) {
  const std::string& path = wiring_.config->firmware_variables;
  if (variables.empty())
    return Fail("--firmware-vars: firmware {} keeps no variables; use --firmware uefi", wiring_.image->path);
  variables_file_ = Fd(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
  if (!variables_file_.valid()) return FailErrno("--firmware-vars {}", path);
  if (flock(variables_file_.get(), LOCK_EX | LOCK_NB) != 0)
    return FailErrno("--firmware-vars {}: another machine uses it", path);
  struct stat info {};
  if (fstat(variables_file_.get(), &info) != 0) return FailErrno("--firmware-vars {}", path);
  if (info.st_size == 0) {
    if (const Status status = WriteAll(variables_file_.get(), variables.data(), variables.size(), 0); !status)
      return Context(status.error(), "--firmware-vars {}", path);
    return {};
  }
  if (static_cast<uint64_t>(info.st_size) != variables.size())
    return Fail("--firmware-vars {}: {} bytes, firmware {} keeps {}; give an empty or new file", path, info.st_size,
                wiring_.image->path, variables.size());
  const ssize_t got = pread(variables_file_.get(), variables.data(), variables.size(), 0);
  if (got != info.st_size) return FailErrno("--firmware-vars {}: cannot read it", path);
  return {};
}

void FirmwareParts::VariablesWritten(uint64_t offset, uint64_t size_bytes) {
  if (!variables_file_.valid()) return;
  if (changed_start_ == changed_end_) {
    changed_start_ = offset;
    changed_end_ = offset + size_bytes;
    write_timer_->Arm(wiring_.loop->NowNs() + kWriteDelayNs);
    return;
  }
  changed_start_ = std::min(changed_start_, offset);
  changed_end_ = std::max(changed_end_, offset + size_bytes);
}

/// What cannot be written now is tried again with the next change, and at the end.
void FirmwareParts::Flush() {
  log_.Flush();
  if (changed_start_ == changed_end_ || !flash_) return;
  const uint8_t* from = wiring_.memory->rom() +
                        (wiring_.memory->rom_size() - wiring_.image->code.size() - wiring_.image->variables.size());
  if (WriteAll(variables_file_.get(), from + changed_start_, changed_end_ - changed_start_, changed_start_))
    changed_start_ = changed_end_ = 0;
}

void FirmwareParts::AddItems() {
  const MachineConfig& config = *wiring_.config;
  FwCfg& items = *fw_cfg_;
  const auto cpus = static_cast<uint16_t>(config.cpu_count);
  items.AddValue<uint64_t>(FwCfg::kRamSize, wiring_.memory->size_bytes());
  items.AddValue<uint16_t>(FwCfg::kNoGraphic, 0);
  items.AddValue(FwCfg::kCpuCount, cpus);
  items.AddValue(FwCfg::kMaxCpus, cpus);
  items.AddValue<uint16_t>(FwCfg::kBootMenu, 0);
  items.AddFile("etc/e820", MemoryMapFile(*wiring_.memory));
  // Firmware reads the tables when it has placed the PCI devices: they say where.
  const auto acpi = wiring_.acpi;
  const boot::FirmwareTables tables = boot::BuildFirmwareTables(acpi());
  items.AddFile(boot::kAcpiTablesFile, tables.tables, [acpi] { return boot::BuildFirmwareTables(acpi()).tables; });
  items.AddFile(boot::kAcpiRsdpFile, tables.rsdp, [acpi] { return boot::BuildFirmwareTables(acpi()).rsdp; });
  items.AddFile(boot::kTableLoaderFile, tables.loader, [acpi] { return boot::BuildFirmwareTables(acpi()).loader; });
  items.AddFile(boot::kGenerationIdFile, std::vector<uint8_t>(boot::kGenerationIdFileBytes));
  items.AddWritableFile(boot::kGenerationIdPlaceFile, sizeof(uint64_t), [this](const FwCfg::Bytes& address) {
    wiring_.generation_id_placed(LoadLe<uint64_t>(address.data()));
  });
  boot::SmbiosTables smbios = boot::BuildSmbios(config.cpu_count, wiring_.memory->size_bytes());
  items.AddFile(boot::kSmbiosTablesFile, std::move(smbios.tables));
  items.AddFile(boot::kSmbiosAnchorFile, std::move(smbios.anchor));
  // By ACPI sleep state, S0 to S5: bit 7 there is one, bits 2:0 its SLP_TYP. (S4 is only a way to switch off.)
  using devices::AcpiPm;
  items.AddFile("etc/system-states",
                {0x80, 0, 0, 0x80 | AcpiPm::kSleepTypeS3, 0x80 | AcpiPm::kSleepTypeS4, 0x80 | AcpiPm::kSleepTypeS5});
  // The BIOS's text goes to the screen and to the serial port.
  constexpr uint8_t kSerialPort[] = {0xf8, 0x03};
  items.AddFile("etc/sercon-port", {std::begin(kSerialPort), std::end(kSerialPort)});
}

Status FirmwareParts::AddKernel() {
  const MachineConfig& config = *wiring_.config;
  std::vector<std::string> order = wiring_.boot_order;
  if (!config.kernel.empty()) {
    boot::FirmwareKernel kernel = NACRE_TRY(boot::LoadFirmwareKernel(
        {config.kernel, config.initrds, config.command_line}, wiring_.memory->regions().front().size_bytes));
    FwCfg& items = *fw_cfg_;
    items.AddValue(FwCfg::kSetupAddress, kernel.setup_address);
    items.AddValue(FwCfg::kSetupSize, static_cast<uint32_t>(kernel.setup.size()));
    items.Add(FwCfg::kSetupData, std::move(kernel.setup));
    items.AddValue(FwCfg::kKernelAddress, kernel.kernel_address);
    items.AddValue(FwCfg::kKernelSize, static_cast<uint32_t>(kernel.kernel.size()));
    items.Add(FwCfg::kKernelData, std::move(kernel.kernel));
    items.AddValue(FwCfg::kInitrdAddress, kernel.initrd_address);
    items.AddValue(FwCfg::kInitrdSize, static_cast<uint32_t>(kernel.initrd.size()));
    items.Add(FwCfg::kInitrdData, std::move(kernel.initrd));
    items.AddValue(FwCfg::kCommandLineAddress, kernel.command_line_address);
    items.AddValue(FwCfg::kCommandLineSize, static_cast<uint32_t>(kernel.command_line.size()));
    items.Add(FwCfg::kCommandLineData, std::move(kernel.command_line));
    auto rom = boot::LoadKernelRom();
    if (!rom && config.firmware == "bios") return std::unexpected(std::move(rom).error());
    if (rom) {
      fw_cfg_->AddFile(boot::kKernelRomFile, *std::move(rom));
      order.insert(order.begin(), std::string("/rom@") + boot::kKernelRomFile);
    }
  }
  if (!order.empty()) fw_cfg_->AddFile("bootorder", Lines(order));
  return {};
}

std::vector<bus::Device*> FirmwareParts::devices() {
  std::vector<bus::Device*> all{fw_cfg_.get()};
  if (flash_) all.push_back(flash_.get());
  return all;
}

void FirmwareParts::Log::Write(uint64_t offset, unsigned, uint64_t value) {
  if (offset != 0) return;
  line_.push_back(static_cast<char>(value));
  if (value == '\n' || line_.size() >= 4096) Flush();
}

void FirmwareParts::Log::Flush() {
  if (line_.empty() || !file.valid()) return;
  (void)!write(file.get(), line_.data(), line_.size());
  line_.clear();
}

}  // namespace nacre::machine
