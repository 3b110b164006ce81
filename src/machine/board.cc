#include "machine/board.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "agent/guest_agent.h"
#include "boot/boot_layout.h"
#include "devices/virtio/balloon.h"
#include "devices/virtio/gpu.h"
#include "devices/virtio/input.h"
#include "devices/virtio/net.h"
#include "devices/virtio/rng.h"
#include "devices/virtio/vsock.h"
#include "network/user_net.h"

namespace nacre::machine {

namespace {

/// Where a direct boot leads PIRQA# to PIRQD#: the two ISA interrupts that nothing else uses. They work through the
/// 8259s and through the IO-APIC alike.
constexpr std::array<uint8_t, 4> kPciIrqs{10, 11, 10, 11};
/// Between the end of low RAM (at most 3 GiB) and the IO-APIC.
constexpr uint64_t kPciMemory32First = 0xc0000000, kPciMemory32End = 0xfec00000;
constexpr uint16_t kPciIoFirst = 0xc000;
/// Of Debian's package seabios.
constexpr const char* kVgaRom = "/usr/share/seabios/vgabios-stdvga.bin";
constexpr size_t kMaxVgaRom = 256 * kKiB;
/// The screen that a kernel finds at direct boot.
constexpr uint16_t kBootWidth = 1024, kBootHeight = 768;
/// The number of CPUs beside the first, as SeaBIOS reads it.
constexpr uint8_t kCmosCpuCount = 0x5f;
/// The reason for a reset, by which a PC's firmware goes on.
constexpr uint8_t kCmosShutdownStatus = 0x0f, kShutdownResume = 0xfe;
/// The IO-APIC pins that PIRQA# to PIRQD# have for themselves.
constexpr unsigned kFirstPirqGsi = 16;
/// Locally administered, as QEMU's users know it.
constexpr network::MacAddress kFirstMac = {0x52, 0x54, 0x00, 0x12, 0x34, 0x56};

/// `file` keeps what is opened for it.
Result<std::unique_ptr<FdConsole>> OpenStream(const SerialConfig& config, std::string_view option, Fd& file,
                                              const Board::Wiring& wiring) {
  FdConsole::Options options;
  switch (config.kind) {
    case SerialKind::kNone:
      break;
    case SerialKind::kStdio:
      options = {config.input ? STDIN_FILENO : -1, STDOUT_FILENO, config.terminal, wiring.leave};
      break;
    case SerialKind::kFile:
      // A guest that goes on goes on writing.
      file = Fd(open(config.path.c_str(),
                     O_WRONLY | O_CREAT | (wiring.config->restore.empty() ? O_TRUNC : O_APPEND) | O_CLOEXEC, 0666));
      if (!file.valid()) return FailErrno("{} file:{}", option, config.path);
      options.output = file.get();
      break;
  }
  return FdConsole::Create(options, *wiring.loop);
}

}  // namespace

Board::~Board() { QuiesceDisks(); }

void Board::MapPorts(uint16_t start, uint16_t count, bus::IoHandler& handler, std::string_view name) {
  mappings_.push_back(ports_.Add(start, count, handler, name));
}

bus::IrqLine& Board::NewIrq(unsigned irq) {
  irqs_.push_back(router_->NewSource(irq));
  return *irqs_.back();
}

Status Board::Build(const Wiring& wiring) {
  config_ = wiring.config;
  memory_ = wiring.memory;
  loop_ = wiring.loop;
  BuildInterrupts(wiring);
  BuildLegacy(wiring);
  NACRE_TRY_STATUS(BuildGenerationId());
  NACRE_TRY_STATUS(BuildSerial(wiring));
  NACRE_TRY_STATUS(BuildPci(wiring));
  NACRE_TRY_STATUS(BuildDisplay(wiring));
  NACRE_TRY_STATUS(BuildInput(wiring));
  NACRE_TRY_STATUS(BuildDisks(wiring));
  NACRE_TRY_STATUS(BuildNetworks(wiring));
  NACRE_TRY(AttachVirtio(devices::VirtioRng::Create("virtio-rng0", *memory_, *loop_)));
  if (config_->balloon) NACRE_TRY(AttachVirtio(devices::VirtioBalloon::Create("virtio-balloon0", *memory_, *loop_)));
  NACRE_TRY_STATUS(BuildConsole(wiring));
  NACRE_TRY_STATUS(BuildVsock());
  return wiring.firmware ? BuildFirmware(wiring) : Status{};
}

Status Board::BuildFirmware(const Wiring& wiring) {
  rtc_->SetCmos(kCmosCpuCount, static_cast<uint8_t>(wiring.cpus.size() - 1));
  firmware_ = NACRE_TRY(FirmwareParts::Create(
      {.config = config_,
       .image = wiring.firmware,
       .memory = memory_,
       .loop = loop_,
       .ports = &ports_,
       .memory_bus = &memory_bus_,
       .pci = pci_.get(),
       .memory_changed = wiring.memory_changed,
       .acpi = [this] { return AcpiDescription(); },
       .generation_id_placed = [this](uint64_t address) { generation_id_->Place(GuestPhys(address)); },
       .boot_order = BootOrder()}));
  for (bus::Device* device : firmware_->devices()) devices_.push_back(device);
  return {};
}

void Board::BuildInterrupts(const Wiring& wiring) {
  for (unsigned i = 0; i < wiring.cpus.size(); ++i) {
    local_apics_.push_back(std::make_unique<devices::LocalApic>(i, apic_bus_, *loop_, *wiring.tsc, *wiring.cpus[i]));
    devices_.push_back(local_apics_.back().get());
  }
  Keep(pic_, std::make_unique<devices::Pic8259>(apic_bus_.lint0()));
  apic_bus_.SetExtIntSource(pic_.get());
  Keep(io_apic_, std::make_unique<devices::IoApic>(0, apic_bus_));
  router_ = std::make_unique<devices::GsiRouter>(*pic_, *io_apic_);
  MapPorts(devices::Pic8259::kMasterPort, 2, pic_->master_io(), "pic");
  MapPorts(devices::Pic8259::kSlavePort, 2, pic_->slave_io(), "pic");
  MapPorts(devices::Pic8259::kElcrPort, 2, pic_->elcr_io(), "pic");
  mappings_.push_back(memory_bus_.Add(devices::IoApic::kDefaultBase, devices::IoApic::kSize, *io_apic_, "ioapic"));
}

void Board::BuildLegacy(const Wiring& wiring) {
  devices::MachineControl& control = *wiring.control;
  Keep(kvm_clock_, std::make_unique<devices::KvmClock>(static_cast<unsigned>(wiring.cpus.size()), *memory_, *loop_,
                                                       *wiring.tsc, wall_clock_));
  Keep(kvm_paravirt_, std::make_unique<devices::KvmParavirt>(*memory_, apic_bus_));
  Keep(acpi_pm_, std::make_unique<devices::AcpiPm>(*loop_, NewIrq(devices::AcpiPm::kSciIrq), control));
  MapPorts(devices::AcpiPm::kGpeBase, devices::AcpiPm::kGpeSize, acpi_pm_->gpe_io(), "acpi-pm");
  MapPorts(devices::AcpiPm::kSmiCommandPort, 2, acpi_pm_->smi_io(), "acpi-pm");
  Keep(reset_control_, std::make_unique<devices::ResetControl>(control));
  Keep(a20_, std::make_unique<devices::A20Gate>([this, changed = wiring.memory_changed](bool on) {
         memory_->SetA20(on);
         changed();
       }));
  Keep(system_control_, std::make_unique<devices::SystemControlA>(control, *a20_));
  MapPorts(devices::SystemControlA::kPort, 1, *system_control_, "port92");
  Keep(post_, std::make_unique<devices::PostPort>());
  MapPorts(devices::PostPort::kPort, 1, *post_, "post");
  if (config_->debug_exit) {
    Keep(debug_exit_, std::make_unique<devices::DebugExitPort>(control));
    MapPorts(devices::DebugExitPort::kPort, 4, *debug_exit_, "debug-exit");
  }
  using devices::Hpet;
  Hpet::Lines hpet_lines{&NewIrq(0), &NewIrq(devices::Rtc::kIrq), {}};
  for (unsigned i = 0; i < Hpet::kRoutes; ++i) hpet_lines.routes[i] = &NewIrq(Hpet::kFirstRoute + i);
  Keep(hpet_, std::make_unique<Hpet>(*loop_, hpet_lines, apic_bus_));
  mappings_.push_back(memory_bus_.Add(Hpet::kDefaultBase, Hpet::kSize, *hpet_, "hpet"));
  Keep(pit_, std::make_unique<devices::Pit8254>(*loop_, hpet_->gate_irq0()));
  MapPorts(devices::Pit8254::kPort, 4, *pit_, "pit");
  MapPorts(devices::Pit8254::kSpeakerPort, 1, pit_->speaker_io(), "pit");
  Keep(rtc_, std::make_unique<devices::Rtc>(*loop_, wall_clock_, acpi_pm_->WatchRtc(hpet_->gate_irq8())));
  MapPorts(devices::Rtc::kPort, 2, *rtc_, "rtc");
  uint64_t above_4g = 0;
  for (const memory::Region& region : memory_->regions())
    if (region.start.value != 0) above_4g += region.size_bytes;
  rtc_->SetMemorySize(memory_->regions().front().size_bytes, above_4g);
  Keep(i8042_, std::make_unique<devices::I8042>(*loop_, NewIrq(devices::I8042::kIrq), NewIrq(devices::I8042::kMouseIrq),
                                                control, *a20_, config_->has_screen()));
  i8042_->SetKeyListener([this] { acpi_pm_->KeyPressed(); });
  input_ = std::make_unique<display::InputRouter>(*i8042_);
  key_pacer_ = std::make_unique<display::KeyPacer>(*input_, *loop_);
  typist_ = std::make_unique<display::Typist>(*input_, *loop_);
  MapPorts(devices::I8042::kDataPort, 1, i8042_->data_io(), "i8042");
  MapPorts(devices::I8042::kCommandPort, 1, i8042_->command_io(), "i8042");
  Keep(dma_, std::make_unique<devices::Dma8237>(*memory_));
  MapPorts(devices::Dma8237::kMasterPort, devices::Dma8237::kMasterSize, dma_->master_io(), "dma");
  MapPorts(devices::Dma8237::kSlavePort, devices::Dma8237::kSlaveSize, dma_->slave_io(), "dma");
  MapPorts(devices::Dma8237::kPagePort, devices::Dma8237::kPageSize, dma_->page_io(), "dma");
}

Status Board::BuildGenerationId() {
  const auto guid = NACRE_TRY(devices::GenerationId::Random());
  const auto notify = [this] { acpi_pm_->RaiseGpe(devices::GenerationId::kGpe); };
  Keep(generation_id_, std::make_unique<devices::GenerationId>(*memory_, guid, notify));
  return {};
}

Status Board::BuildSerial(const Wiring& wiring) {
  serial_stream_ = NACRE_TRY(OpenStream(config_->serial, "--serial", serial_file_, wiring));
  using devices::Uart16550;
  Keep(serial_, std::make_unique<Uart16550>("serial0", *loop_, NewIrq(Uart16550::kIrqs[0]), *serial_stream_));
  MapPorts(Uart16550::kPorts[0], Uart16550::kSize, *serial_, "serial0");
  return {};
}

Status Board::BuildConsole(const Wiring& wiring) {
  const bool has_console = config_->console.kind != SerialKind::kNone;
  if (has_console) console_stream_ = NACRE_TRY(OpenStream(config_->console, "--console", console_file_, wiring));
  if (config_->guest_agent) agent_port_ = std::make_unique<agent::PortStream>(*loop_);
  if (config_->has_clipboard()) Keep(vdagent_, std::make_unique<devices::Vdagent>());
  if (!has_console && !agent_port_ && !vdagent_) return {};
  devices::VirtioConsole::Options options;
  options.ports.push_back({.backend = console_stream_.get()});
  if (agent_port_)
    options.ports.push_back(
        {.backend = agent_port_.get(), .name = std::string(agent::GuestAgent::kPortName), .console = false});
  if (vdagent_)
    options.ports.push_back(
        {.backend = vdagent_.get(), .name = std::string(devices::Vdagent::kPortName), .console = false});
  auto device = NACRE_TRY(devices::VirtioConsole::Create(std::move(options), *memory_, *loop_));
  if (has_console) virtio_console_ = device.get();
  NACRE_TRY(AttachVirtio(std::move(device)));
  return {};
}

Status Board::BuildVsock() {
  if (config_->vsock.empty()) return {};
  vsock_sockets_ = NACRE_TRY(VsockSockets::Create(config_->vsock, *loop_));
  auto device = NACRE_TRY(devices::VirtioVsock::Create(VsockSockets::kGuestCid, *vsock_sockets_, *memory_, *loop_));
  NACRE_TRY(AttachVirtio(std::move(device)));
  return {};
}

Status Board::BuildPci(const Wiring&) {
  using devices::IsaBridge, devices::PowerManagement;
  const devices::PciWiring wiring{&ports_, &memory_bus_, &apic_bus_};
  IsaBridge::Lines routes;
  for (unsigned pirq = 0; pirq < 4; ++pirq) {
    routes.own[pirq] = &NewIrq(kFirstPirqGsi + pirq);
    for (unsigned irq = 0; irq < 16; ++irq)
      if (TestBit(IsaBridge::kRoutable, irq)) routes.isa[pirq][irq] = &NewIrq(irq);
  }
  Keep(isa_bridge_, std::make_unique<IsaBridge>(wiring, routes));
  Keep(power_management_,
       std::make_unique<PowerManagement>(wiring, acpi_pm_->io(), static_cast<uint16_t>(devices::AcpiPm::kPmSize)));
  std::array<bus::IrqLine*, 4> lines;
  for (unsigned i = 0; i < lines.size(); ++i) lines[i] = &isa_bridge_->pirq(i);
  Keep(pci_, std::make_unique<devices::PciHost>(wiring, lines, kPciIrqs));
  NACRE_TRY_STATUS(pci_->Attach(*isa_bridge_, IsaBridge::kSlot, IsaBridge::kFunction));
  NACRE_TRY_STATUS(pci_->Attach(*power_management_, PowerManagement::kSlot, PowerManagement::kFunction));
  pci_->SetResetControl(reset_control_.get());
  MapPorts(0xcf8, 8, pci_->io(), "pci-host");
  return {};
}

Result<unsigned> Board::AttachVirtio(std::unique_ptr<devices::VirtioDevice> device) {
  auto transport =
      std::make_unique<devices::VirtioPci>(std::move(device), devices::PciWiring{&ports_, &memory_bus_, &apic_bus_});
  const unsigned slot = NACRE_TRY(pci_->AttachAnywhere(*transport));
  devices_.push_back(transport.get());
  virtio_.push_back(std::move(transport));
  return slot;
}

void Board::AddBootEntry(BootKind kind, std::string path) {
  boot_entries_.emplace_back(kind, "/pci@i0cf8/" + std::move(path));
}

std::vector<std::string> Board::BootOrder() const {
  auto entries = boot_entries_;
  std::ranges::stable_sort(entries, {},
                           [&](const auto& entry) { return std::ranges::find(config_->boot, entry.first); });
  std::vector<std::string> paths;
  for (auto& [kind, path] : entries) paths.push_back(std::move(path));
  return paths;
}

void Board::VideoMemory::Place(std::optional<uint64_t> address) {
  memory.PlaceVideo(address ? std::optional(GuestPhys(*address)) : std::nullopt);
  changed();
}

Status Board::BuildDisplay(const Wiring& wiring) {
  if (config_->has_virtio_gpu()) {
    auto gpu = devices::VirtioGpu::Create(*memory_, *loop_);
    screen_ = gpu.get();
    NACRE_TRY(AttachVirtio(std::move(gpu)));
  }
  if (!config_->has_vga()) return {};
  using devices::Vga;
  // Without the package there is no VBE BIOS: only firmware would run it.
  std::ifstream rom(kVgaRom, std::ios::binary);
  Vga::Options options;
  options.rom.assign(std::istreambuf_iterator<char>(rom), {});
  if (options.rom.size() > kMaxVgaRom) return Fail("{}: {} bytes are no VGA BIOS", kVgaRom, options.rom.size());
  video_memory_ = std::make_unique<VideoMemory>(*memory_, wiring.memory_changed);
  options.video = video_memory_.get();
  vga_ = NACRE_TRY(Vga::Create(std::move(options), {&ports_, &memory_bus_, &apic_bus_}, *loop_));
  NACRE_TRY(pci_->AttachAnywhere(*vga_));
  if (screen_) screen_choice_ = std::make_unique<display::ScreenChoice>(*screen_, *vga_);
  screen_ = vga_.get();
  if (screen_choice_) screen_ = screen_choice_.get();
  devices_.push_back(vga_.get());
  MapPorts(Vga::kPorts, Vga::kPortCount, vga_->ports(), "vga");
  MapPorts(Vga::kDispiPorts, 3, vga_->dispi_io(), "vga");
  using devices::vga::kWindowBase, devices::vga::kWindowSize;
  mappings_.push_back(memory_bus_.Add(kWindowBase, kWindowSize, vga_->window(), "vga-window"));
  memory_->SetLowPages(GuestPhys(kWindowBase), GuestPhys(kWindowBase + kWindowSize - 1), memory::LowPage::kNothing);
  return {};
}

Status Board::BuildInput(const Wiring&) {
  using devices::VirtioInput;
  if (!config_->display.present || config_->display.input == InputKind::kPs2) return {};
  auto keyboard = VirtioInput::Create(VirtioInput::Kind::kKeyboard, *memory_, *loop_);
  const bool mouse = config_->display.input == InputKind::kVirtioMouse;
  auto pointer = VirtioInput::Create(mouse ? VirtioInput::Kind::kMouse : VirtioInput::Kind::kTablet, *memory_, *loop_);
  input_->SetKeyboard(keyboard.get());
  input_->SetPointer(pointer.get());
  NACRE_TRY(AttachVirtio(std::move(keyboard)));
  NACRE_TRY(AttachVirtio(std::move(pointer)));
  return {};
}

std::optional<boot::LinearScreen> Board::BootScreen() const {
  const auto address = vga_ ? vga_->BarAddress(0) : std::nullopt;
  if (!address) return std::nullopt;
  return boot::LinearScreen{GuestPhys(*address), devices::Vga::kMemorySize, kBootWidth, kBootHeight};
}

Status Board::BuildNetworks(const Wiring&) {
  for (size_t i = 0; i < config_->networks.size(); ++i) {
    const NetworkConfig& network = config_->networks[i];
    if (network.kind == NetworkKind::kNone) continue;
    network::MacAddress mac = kFirstMac;
    mac[5] = static_cast<uint8_t>(mac[5] + i);
    if (network.mac) mac = *network.mac;
    network::UserNetOptions options;
    options.forwards = network.forwards;
    if (network.card == NetworkCard::kE1000) options.mtu = devices::E1000::kStandardMtu;
    auto backend = NACRE_TRY(network::UserNet::Create(options, *loop_));
    unsigned slot = 0;
    if (network.card == NetworkCard::kE1000) {
      auto card = std::make_unique<devices::E1000>(devices::E1000::Options{fmt::format("e1000-{}", i), mac},
                                                   devices::PciWiring{&ports_, &memory_bus_, &apic_bus_},
                                                   std::move(backend), *memory_, *loop_);
      slot = NACRE_TRY(pci_->AttachAnywhere(*card));
      devices_.push_back(card.get());
      e1000_.push_back(std::move(card));
    } else {
      slot = NACRE_TRY(AttachVirtio(devices::VirtioNet::Create({.name = fmt::format("virtio-net{}", i), .mac = mac},
                                                               std::move(backend), *memory_, *loop_)));
    }
    AddBootEntry(BootKind::kNetwork, fmt::format("ethernet@{:x}/ethernet-phy@0", slot));
  }
  return {};
}

void Board::Reset() {
  for (bus::Device* device : devices_) device->Reset();
}

void Board::Wake() {
  const std::array<const bus::Device*, 7> powered{
      acpi_pm_.get(),          rtc_.get(), pci_.get(),          isa_bridge_.get(),
      power_management_.get(), vga_.get(), generation_id_.get()};
  for (bus::Device* device : devices_)
    if (std::ranges::find(powered, device) == powered.end()) device->Reset();
  // By this value (and a waking vector) firmware knows that it is to resume.
  if (firmware_) rtc_->SetCmos(kCmosShutdownStatus, kShutdownResume);
  acpi_pm_->EndSleep();
}

Status Board::PrepareDirectBoot() {
  NACRE_TRY_STATUS(PrepareResume());
  generation_id_->Place(boot::kGenerationIdPage + boot::kGenerationIdOffset);
  if (vga_) vga_->SetLinearMode(kBootWidth, kBootHeight);
  return {};
}

Status Board::PrepareResume() {
  for (unsigned i = 0; i < kPciIrqs.size(); ++i)
    isa_bridge_->ConfigWrite(devices::IsaBridge::kRoute + i, 1, kPciIrqs[i]);
  power_management_->Place(devices::AcpiPm::kPmBase);
  // Channel 4 lets the first DMA controller through.
  ports_.Write(devices::Dma8237::kModePort4, 1, devices::Dma8237::kCascade);
  ports_.Write(devices::Dma8237::kMaskPort4, 1, 0);
  // PCI interrupts are level-triggered at the 8259s.
  for (const uint8_t irq : {kPciIrqs[0], kPciIrqs[1], static_cast<uint8_t>(devices::AcpiPm::kSciIrq)}) {
    const uint16_t port = static_cast<uint16_t>(devices::Pic8259::kElcrPort + irq / 8);
    ports_.Write(port, 1, ports_.Read(port, 1) | Bit(irq % 8));
  }
  // 64-bit base addresses go below 4 GiB too: guests without PAE reach nothing else.
  NACRE_TRY_STATUS(pci_->AssignResources({.io_start = kPciIoFirst,
                                          .io_end = 0x10000,
                                          .memory32_start = kPciMemory32First,
                                          .memory32_end = kPciMemory32End,
                                          .memory64_start = 0,
                                          .memory64_end = 0}));
  return {};
}

boot::AcpiConfig Board::AcpiDescription() const {
  using devices::AcpiPm;
  boot::AcpiConfig acpi;
  acpi.has_ps2 = config_->has_screen();
  acpi.has_vga = config_->has_vga();
  acpi.has_dma = true;
  acpi.has_floppy = floppy_ != nullptr;
  const uint16_t pm_base = power_management_->base() != 0 ? power_management_->base() : AcpiPm::kPmBase;
  acpi.cpu_count = static_cast<unsigned>(local_apics_.size());
  acpi.local_apic_address = devices::LocalApic::kDefaultBase;
  acpi.io_apic_address = devices::IoApic::kDefaultBase;
  acpi.pm_event_port = pm_base + AcpiPm::kEventOffset;
  acpi.pm_control_port = pm_base + AcpiPm::kControlOffset;
  acpi.pm_timer_port = pm_base + AcpiPm::kTimerOffset;
  acpi.gpe_port = AcpiPm::kGpeBase;
  acpi.gpe_length = AcpiPm::kGpeSize;
  acpi.smi_command_port = AcpiPm::kSmiCommandPort;
  acpi.acpi_enable = AcpiPm::kAcpiEnable;
  acpi.acpi_disable = AcpiPm::kAcpiDisable;
  acpi.sci_irq = AcpiPm::kSciIrq;
  acpi.s3_sleep_type = AcpiPm::kSleepTypeS3;
  acpi.s4_sleep_type = AcpiPm::kSleepTypeS4;
  acpi.s5_sleep_type = AcpiPm::kSleepTypeS5;
  acpi.keyboard_gpe = AcpiPm::kKeyboardGpe;
  acpi.reset_port = devices::ResetControl::kPort;
  acpi.reset_value = devices::ResetControl::kResetValue;
  acpi.hpet_address = devices::Hpet::kDefaultBase;
  acpi.has_generation_id = true;
  if (config_->firmware.empty()) acpi.generation_id_page = static_cast<uint32_t>(boot::kGenerationIdPage.value);
  acpi.generation_id_event = devices::GenerationId::kGpe;
  acpi.rtc_century = devices::Rtc::kCenturyIndex;
  if (config_->firmware.empty()) {
    acpi.pci_memory32 = {kPciMemory32First, kPciMemory32End - 1};
    acpi.pci_gsi = acpi.pci_pic_irq = kPciIrqs;
    return acpi;
  }
  // Firmware places PCI devices between RAM and the IO-APIC, and where it likes above 4 GiB.
  acpi.pci_memory32 = {memory_->regions().front().size_bytes, kPciMemory32End - 1};
  const devices::PciHost::Span above = pci_->BarsAbove4G();
  acpi.pci_memory64 = {above.first, above.last};
  for (unsigned i = 0; i < 4; ++i) {
    acpi.pci_gsi[i] = static_cast<uint8_t>(kFirstPirqGsi + i);
    acpi.pci_pic_irq[i] = isa_bridge_->route(i) != 0 ? isa_bridge_->route(i) : kPciIrqs[i];
  }
  return acpi;
}

void Board::Flush() {
  QuiesceDisks();
  if (firmware_) firmware_->Flush();
  serial_->Flush();
  serial_stream_->Flush();
  if (console_stream_) console_stream_->Flush();
}

std::vector<engine::Statistic> Board::Traffic() const {
  std::vector<engine::Statistic> out;
  const auto add = [&](const bus::AddressMap& map, std::string_view kind) {
    for (const bus::Traffic& traffic : map.traffic())
      if (traffic.reads + traffic.writes != 0)
        out.push_back({fmt::format("{} ({})", traffic.name, kind), traffic.reads + traffic.writes});
  };
  add(ports_, "ports");
  add(memory_bus_, "memory");
  return out;
}

}  // namespace nacre::machine
