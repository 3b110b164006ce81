// The command line's contract (docs/cli.md), option by option.
#include "cli/run_options.h"

#include <gtest/gtest.h>

#include "cli/paths.h"
#include "storage/image.h"

namespace nacre::cli {
namespace {

Result<RunOptions> Parse(std::initializer_list<std::string_view> words) { return ParseRun(std::vector(words)); }

std::string ErrorOf(std::initializer_list<std::string_view> words) {
  const auto options = Parse(words);
  return options ? "no error" : options.error().message;
}

TEST(RunOptions, DefaultsAreTheDefaultGuestWithUserNetwork) {
  const auto options = Parse({});
  ASSERT_TRUE(options);
  EXPECT_TRUE(options->default_guest);
  EXPECT_EQ(options->machine.memory_bytes, 512 * kMiB);
  EXPECT_EQ(options->machine.networks.size(), 1u);
  EXPECT_EQ(options->machine.engine, machine::EngineKind::kAuto);
}

TEST(RunOptions, CpuModels) {
  for (const char* name : {"default", "host", "x86-64-v1", "x86-64-v3,-pcid,-SMAP", "x86-64-v1,+ssse3"})
    EXPECT_EQ(Parse({"--cpu", name})->machine.cpu_model, name);
  EXPECT_EQ(ErrorOf({"--cpu", "x86-64-v3,-pcidd"}),
            "--cpu: CPU model x86-64-v3,-pcidd: no feature 'pcidd'; did you mean pcid?");
  EXPECT_NE(ErrorOf({"--cpu", "pentium"}).find("choose x86-64-v1"), std::string::npos);
}

TEST(RunOptions, Engines) {
  using machine::EngineKind;
  EXPECT_EQ(Parse({"--engine", "auto"})->machine.engine, EngineKind::kAuto);
  EXPECT_EQ(Parse({"--engine", "kvm"})->machine.engine, EngineKind::kKvm);
  EXPECT_EQ(Parse({"--engine", "jit"})->machine.engine, EngineKind::kJit);
  EXPECT_EQ(Parse({"--engine", "interp"})->machine.engine, EngineKind::kInterp);
  EXPECT_EQ(ErrorOf({"--engine", "none-such"}), "--engine none-such: choose auto, kvm, jit or interp");
}

TEST(RunOptions, WhatOnlyTheTranslatorHasMakesAutoTakeIt) {
  for (const auto& words : std::vector<std::vector<std::string_view>>{{"--lockstep"},
                                                                      {"--code-cache", "16M"},
                                                                      {"--dump-block", "all"},
                                                                      {"--perf-map"},
                                                                      {"--jit-stress", "tlb"},
                                                                      {"--jit-stress", "sample=9"},
                                                                      {"--check-reuse"}}) {
    const auto options = ParseRun(words);
    ASSERT_TRUE(options) << options.error().message;
    EXPECT_EQ(options->machine.engine, machine::EngineKind::kJit) << words[0];
  }
  for (const char* option : {"--lockstep", "--perf-map", "--check-reuse"})
    for (const char* engine : {"kvm", "interp"})
      EXPECT_EQ(ErrorOf({"--engine", engine, option}), std::string(option) + " works with --engine jit");
}

TEST(RunOptions, EveryOptionOfTheContract) {
  const auto options = Parse({"--kernel",
                              "k",
                              "--initrd",
                              "i",
                              "--append",
                              "a b",
                              "--append=c",
                              "--disk",
                              "d.img,format=raw,bus=virtio,readonly",
                              "--disk=e.img,snapshot",
                              "--memory",
                              "1G",
                              "--cpus",
                              "1",
                              "--cpu",
                              "x86-64-v2",
                              "--engine",
                              "interp",
                              "--net",
                              "user,forward=tcp:127.0.0.1:2222-:22",
                              "--display",
                              "none",
                              "--serial",
                              "file:out,1",
                              "--console",
                              "file:hvc",
                              "--debug-exit",
                              "--no-reboot",
                              "--timeout",
                              "2m",
                              "--engine-stats",
                              "--balloon",
                              "off"});
  ASSERT_TRUE(options) << options.error().message;
  const machine::MachineConfig& config = options->machine;
  EXPECT_FALSE(options->default_guest);
  EXPECT_EQ(config.kernel, "k");
  EXPECT_EQ(config.initrds, std::vector<std::string>{"i"});
  EXPECT_EQ(config.command_line, "a b c");
  ASSERT_EQ(config.disks.size(), 2u);
  EXPECT_EQ(config.disks[0].path, "d.img");
  EXPECT_TRUE(config.disks[0].read_only);
  EXPECT_EQ(config.disks[0].format, storage::ImageFormat::kRaw);
  EXPECT_TRUE(config.disks[1].snapshot);
  EXPECT_EQ(config.memory_bytes, kGiB);
  EXPECT_EQ(config.cpu_model, "x86-64-v2");
  EXPECT_EQ(config.engine, machine::EngineKind::kInterp);
  ASSERT_EQ(config.networks.size(), 1u);
  EXPECT_EQ(config.networks[0].forwards[0].host_port, 2222);
  EXPECT_EQ(config.serial.path, "out,1");
  EXPECT_EQ(config.console.kind, machine::SerialKind::kFile);
  EXPECT_EQ(config.console.path, "hvc");
  EXPECT_TRUE(config.debug_exit);
  EXPECT_TRUE(config.no_reboot);
  EXPECT_EQ(config.timeout_ms, 120000u);
  EXPECT_TRUE(options->engine_stats);
  EXPECT_FALSE(config.balloon);
}

TEST(RunOptions, NetworkCards) {
  const auto options = Parse({"--net", "user,model=e1000,mac=52:54:00:ab:cd:ef", "--net", "user,model=virtio"});
  const auto& networks = options->machine.networks;
  ASSERT_EQ(networks.size(), 2u);
  EXPECT_EQ(networks[0].card, machine::NetworkCard::kE1000);
  EXPECT_EQ(networks[0].mac, (network::MacAddress{0x52, 0x54, 0, 0xab, 0xcd, 0xef}));
  EXPECT_EQ(networks[1].card, machine::NetworkCard::kVirtio);
  EXPECT_FALSE(networks[1].mac);
  for (const char* wrong : {"user,model=ne2k", "user,mac=1:2", "user,mac=53:54:00:ab:cd:ef", "user,card=e1000"})
    EXPECT_FALSE(Parse({"--net", wrong})) << wrong;
}

TEST(RunOptions, NetNoneGivesNoCard) { EXPECT_TRUE(Parse({"--net", "none"})->machine.networks.empty()); }

TEST(RunOptions, StandardInputServesOneConsole) {
  using machine::SerialKind;
  const auto kinds = [](std::initializer_list<std::string_view> words) {
    const machine::MachineConfig config = Parse(words)->machine;
    return std::pair(config.serial.kind, config.console.kind);
  };
  EXPECT_EQ(kinds({}), std::pair(SerialKind::kStdio, SerialKind::kNone));
  EXPECT_EQ(kinds({"--console", "none"}), std::pair(SerialKind::kStdio, SerialKind::kNone));
  EXPECT_EQ(kinds({"--console", "file:x"}), std::pair(SerialKind::kStdio, SerialKind::kFile));
  EXPECT_EQ(kinds({"--console", "stdio"}), std::pair(SerialKind::kNone, SerialKind::kStdio));
  EXPECT_EQ(kinds({"--serial", "file:x", "--console", "stdio"}), std::pair(SerialKind::kFile, SerialKind::kStdio));
  EXPECT_EQ(ErrorOf({"--serial", "stdio", "--console", "stdio"}),
            "--serial stdio and --console stdio: standard input and output can serve only one of them");
  EXPECT_EQ(ErrorOf({"--console", "stdio", "--serial=stdio"}), ErrorOf({"--serial", "stdio", "--console", "stdio"}));
  EXPECT_EQ(ErrorOf({"--console", "file:"}), "--console file:: choose stdio, file:PATH or none");
}

TEST(RunOptions, DisksAndDiscsOnTheirBuses) {
  using machine::DiskBus;
  const std::vector<std::string_view> words = {"--disk",     "a",       "--disk", "b,bus=ide", "--disk",
                                               "c,bus=sata", "--cdrom", "d.iso",  "--cdrom",   "e.iso,bus=sata"};
  const auto options = ParseRun(words);
  ASSERT_TRUE(options) << options.error().message;
  const auto& disks = options->machine.disks;
  ASSERT_EQ(disks.size(), 5u);
  EXPECT_EQ(disks[0].bus, DiskBus::kVirtio);
  EXPECT_EQ(disks[1].bus, DiskBus::kIde);
  EXPECT_EQ(disks[2].bus, DiskBus::kSata);
  EXPECT_FALSE(disks[2].cdrom);
  EXPECT_TRUE(disks[3].cdrom && disks[3].read_only && disks[3].bus == DiskBus::kIde);
  EXPECT_TRUE(disks[4].cdrom && disks[4].bus == DiskBus::kSata);
  for (const auto& wrong : std::vector<std::vector<std::string_view>>{
           {"--disk", "a,bus=scsi"}, {"--cdrom", "a,bus=virtio"}, {"--cdrom", "a,snapshot"}, {"--cdrom", ""}})
    EXPECT_FALSE(ParseRun(wrong)) << wrong[1];
}

TEST(RunOptions, FirmwareAndWhatItBoots) {
  using machine::BootKind;
  const auto options = Parse({"--firmware", "bios", "--disk", "a", "--boot", "cdrom,net"});
  ASSERT_TRUE(options) << options.error().message;
  EXPECT_FALSE(options->default_guest);
  EXPECT_TRUE(options->machine.has_screen());
  EXPECT_EQ(options->machine.boot, (std::vector{BootKind::kCdrom, BootKind::kNetwork}));
  EXPECT_EQ(ErrorOf({"--boot", "cdrom"}), "--boot needs --firmware: a kernel given with --kernel starts at once");
  EXPECT_EQ(ErrorOf({"--firmware", "bios", "--boot", "hd"}), "--boot hd: choose floppy, disk, cdrom and net");
  EXPECT_EQ(ErrorOf({"--firmware", "bios", "--boot", "net,net"}), "--boot net,net: net is there twice");
}

TEST(RunOptions, Diskettes) {
  const auto options = Parse({"--floppy", "a.img", "--floppy=b.img,readonly"});
  ASSERT_TRUE(options) << options.error().message;
  ASSERT_EQ(options->machine.floppies.size(), 2u);
  EXPECT_EQ(options->machine.floppies[0].path, "a.img");
  EXPECT_FALSE(options->machine.floppies[0].read_only);
  EXPECT_TRUE(options->machine.floppies[1].read_only);
  EXPECT_EQ(ErrorOf({"--floppy", "a", "--floppy", "b", "--floppy", "c"}),
            "--floppy c: there are two drives, A: and B:");
  EXPECT_EQ(ErrorOf({"--floppy", "a,snapshot"}), "--floppy a,snapshot: 'snapshot' is not known (readonly)");
  EXPECT_EQ(ErrorOf({"--floppy", ",readonly"}), "--floppy ,readonly: give a file name first");
}

TEST(RunOptions, Displays) {
  EXPECT_FALSE(ParseRun(std::vector<std::string_view>{})->machine.display.present);
  EXPECT_EQ(ErrorOf({"--gpu", "cga"}), "--gpu cga: choose vga or virtio");
  EXPECT_EQ(ErrorOf({"--input", "usb"}), "--input usb: choose ps2, virtio or virtio-mouse");
  EXPECT_EQ(ParseRun(std::vector<std::string_view>{"--input", "ps2", "--display", "offscreen"})->machine.display.input,
            machine::InputKind::kPs2);
  EXPECT_FALSE(ParseRun(std::vector<std::string_view>{})->machine.display.clipboard);
  EXPECT_TRUE(ParseRun(std::vector<std::string_view>{"--clipboard", "on"})->machine.display.clipboard);
  EXPECT_EQ(ErrorOf({"--clipboard", "yes"}), "--clipboard yes: choose on or off");
  const auto offscreen = ParseRun(std::vector<std::string_view>{"--display", "offscreen"});
  ASSERT_TRUE(offscreen);
  EXPECT_TRUE(offscreen->machine.display.present);
  EXPECT_FALSE(offscreen->machine.display.vnc);
  const auto vnc = ParseRun(std::vector<std::string_view>{"--display", "vnc:127.0.0.1:5900"});
  ASSERT_TRUE(vnc) << vnc.error().message;
  EXPECT_EQ(vnc->machine.display.vnc->port, 5900);
  EXPECT_EQ(ErrorOf({"--display", "sdl"}), "--display sdl: choose none, offscreen or vnc:ADDRESS:PORT");
  EXPECT_FALSE(ParseRun(std::vector<std::string_view>{"--display", "vnc:0.0.0.0:5900"}));
}

TEST(RunOptions, WhatIsNotThereYetSaysSo) {
  for (const auto& words : std::vector<std::vector<std::string_view>>{{"--net", "switch:a"}, {"--net", "tap:tap0"}}) {
    const auto options = ParseRun(words);
    ASSERT_FALSE(options) << words[0];
    EXPECT_NE(options.error().message.find("not there yet"), std::string::npos) << options.error().message;
  }
}

TEST(RunOptions, ARunOfAVmTakesWhatIsOfOneRun) {
  const auto over = [](std::vector<std::string_view> words) {
    auto given = ParseRun(words);
    EXPECT_TRUE(given) << given.error().message;
    machine::MachineConfig vm;
    vm.memory_bytes = 64 * kMiB;
    vm.kernel = "k";
    vm.cpu_count = 2;
    return OverVm(std::move(*given), vm);
  };
  const auto run = over({"web", "--engine", "interp", "--timeout", "5", "--engine-stats"});
  ASSERT_TRUE(run) << run.error().message;
  EXPECT_EQ(run->names, std::vector<std::string>{"web"});
  EXPECT_EQ(run->machine.memory_bytes, 64 * kMiB);
  EXPECT_EQ(run->machine.engine, machine::EngineKind::kInterp);
  EXPECT_EQ(run->machine.timeout_ms, 5000u);
  EXPECT_TRUE(run->machine.networks.empty());
  EXPECT_TRUE(run->engine_stats);
  EXPECT_FALSE(run->default_guest);
  for (const auto& words : std::vector<std::vector<std::string_view>>{{"web", "--memory", "1G"},
                                                                      {"web", "--disk", "a"},
                                                                      {"web", "--net", "none"},
                                                                      {"web", "--cpu", "x86-64-v2"}}) {
    const auto refused = over(words);
    ASSERT_FALSE(refused) << words[1];
    EXPECT_NE(refused.error().message.find(words[1]), std::string::npos) << refused.error().message;
    EXPECT_NE(refused.error().message.find("vm.toml"), std::string::npos) << refused.error().message;
  }
  EXPECT_FALSE(over({"web", "--lockstep"}));  // two CPUs
}

TEST(RunOptions, ControlSocket) {
  EXPECT_EQ(Parse({"--control", "vm.sock"})->control, "vm.sock");
  EXPECT_EQ(Parse({})->control, "");
  EXPECT_EQ(ErrorOf({"--control="}), "--control needs a value");
  EXPECT_EQ(VmNameOf("/tmp/vm.sock"), "vm");
  EXPECT_EQ(VmNameOf("/srv/vms/web.1/run/control"), "web.1");
  EXPECT_EQ(VmNameOf("run/control"), "control");
}

TEST(RunOptions, SeveralCpus) {
  EXPECT_EQ(Parse({"--engine", "interp", "--cpus", "4"})->machine.cpu_count, 4u);
  EXPECT_EQ(Parse({"--engine", "jit", "--cpus", "4"})->machine.cpu_count, 4u);
  EXPECT_EQ(ErrorOf({"--engine", "jit", "--cpus", "4", "--lockstep"}),
            "--lockstep compares one CPU with the interpreter: use --cpus 1");
}

TEST(RunOptions, MistakesAreNamed) {
  EXPECT_EQ(ErrorOf({"--kernal", "x"}), "unknown option --kernal; did you mean --kernel?");
  EXPECT_EQ(ErrorOf({"--kernel"}), "--kernel needs a value: --kernel FILE");
  EXPECT_EQ(ErrorOf({"--debug-exit=1"}), "--debug-exit takes no value");
  for (const char* size : {"0", "x", "12X", "99999999999T", "-1M", "1.5G", "3M", "2T", ""})
    EXPECT_FALSE(Parse({"--memory", size})) << size;
  for (const char* count : {"0", "x", "1x", "-1", "1000000"}) EXPECT_FALSE(Parse({"--cpus", count})) << count;
  for (const char* time : {"0", "-1", "x", "1y", "inf", "nan"}) EXPECT_FALSE(Parse({"--timeout", time})) << time;
  EXPECT_FALSE(Parse({"--initrd", "x"}));
  EXPECT_FALSE(Parse({"--kernel", "k", "--", "ls"}));
  EXPECT_FALSE(Parse({"--"}));
  EXPECT_FALSE(Parse({"--net", "user,forward=tcp:1-2:3:4"}));
}

TEST(RunOptions, GuestCommandFollowsTwoDashes) {
  const auto options = Parse({"--engine", "interp", "--", "uname", "-a"});
  ASSERT_TRUE(options);
  EXPECT_EQ(options->guest_command, (std::vector<std::string>{"uname", "-a"}));
}

TEST(Sizes, TakeBinaryUnits) {
  EXPECT_EQ(*ParseSize("4096"), 4096u);
  EXPECT_EQ(*ParseSize("1k"), 1024u);
  EXPECT_EQ(*ParseSize("3MiB"), 3 * kMiB);
  EXPECT_EQ(*ParseSize("2G"), 2 * kGiB);
  EXPECT_EQ(*ParseSize("1T"), 1024 * kGiB);
}

TEST(Durations, AreMilliseconds) {
  EXPECT_EQ(*ParseDurationMs("30"), 30000u);
  EXPECT_EQ(*ParseDurationMs("1.5"), 1500u);
  EXPECT_EQ(*ParseDurationMs("500ms"), 500u);
  EXPECT_EQ(*ParseDurationMs("2h"), 7200000u);
}

TEST(RunHelp, NamesEveryOption) {
  for (const char* name : {"--kernel", "--disk", "--console", "--timeout", "--engine-stats", "124"})
    EXPECT_NE(RunHelp().find(name), std::string::npos) << name;
}

TEST(RunOptions, StressOfTheTranslator) {
  const auto options = Parse({"--jit-stress", "flush=20,tlb,interrupt", "--jit-stress=cache"});
  ASSERT_TRUE(options) << options.error().message;
  const engine::jit::JitStress& stress = options->machine.jit_debug.stress;
  EXPECT_EQ(stress.flush, 20u);
  EXPECT_EQ(stress.interrupt, 1u);
  EXPECT_EQ(stress.invalidate, 0u);
  EXPECT_TRUE(stress.tiny_tlb);
  EXPECT_EQ(stress.cache_mib, 1u);
  EXPECT_EQ(Parse({"--jit-stress", "cache=4"})->machine.jit_debug.stress.cache_mib, 4u);
  EXPECT_NE(ErrorOf({"--jit-stress", "flush=0"}).find("above 0"), std::string::npos);
  EXPECT_NE(ErrorOf({"--jit-stress", "tlb=4"}).find("choose"), std::string::npos);
  EXPECT_NE(ErrorOf({"--jit-stress", "tlb", "--engine", "interp"}).find("--engine jit"), std::string::npos);
  EXPECT_NE(ErrorOf({"--perf-symbols", "System.map"}).find("--perf-map"), std::string::npos);
}

TEST(RunOptions, DumpOfTranslations) {
  const auto options = Parse({"--dump-block", "0xffffffff81000000,1f,to=blocks.txt"});
  ASSERT_TRUE(options) << options.error().message;
  const engine::jit::JitDebugOptions& debug = options->machine.jit_debug;
  EXPECT_EQ(debug.dump_rips, (std::vector<uint64_t>{0xffffffff81000000, 0x1f}));
  EXPECT_EQ(debug.dump_file, "blocks.txt");
  EXPECT_TRUE(Parse({"--dump-block", "all"})->machine.jit_debug.dump_all);
  EXPECT_NE(ErrorOf({"--dump-block", "to=x"}).find("give an address"), std::string::npos);
  EXPECT_NE(ErrorOf({"--dump-block", "12q"}).find("hexadecimal"), std::string::npos);
  EXPECT_NE(ErrorOf({"--dump-block", "1", "--engine", "interp"}).find("--engine jit"), std::string::npos);
}

}  // namespace
}  // namespace nacre::cli
