#include "cli/image_command.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/size_text.h"
#include "cli/commands.h"
#include "cli/image_build.h"
#include "lifecycle/image_store.h"

namespace nacre::cli {

namespace {

using Json = nlohmann::ordered_json;
using lifecycle::Home;
using lifecycle::ImageReport;

constexpr std::string_view kHelp =
    "Usage: nacre image build debian [options]\n"
    "       nacre image build --from DISK|FOLDER|ISO --name NAME [options]\n"
    "       nacre image ls [--json]\n"
    "       nacre image inspect NAME [--json]\n"
    "       nacre image verify NAME\n"
    "       nacre image rm NAME\n\n"
    "Images are what `nacre create` makes VMs of. `build debian` installs Debian 12 with systemd, SSH and the guest "
    "agent;\n"
    "--from takes a disk (raw, qcow2, VMDK, VDI, VHDX), a folder with a root file system and its kernel in boot/, or "
    "an\n"
    "installer's disc, which runs until the machine powers off or restarts.\n\n"
    "  --name NAME        the image's name (debian)\n"
    "  --replace          in place of an image of this name\n"
    "  --size SIZE        of the disk (8G; 16G for a disc)\n"
    "  --memory SIZE      what VMs get where nothing is said\n"
    "  --package NAME     debian: one package more (repeatable)\n"
    "  --user NAME        debian: a user who may become root (sudo), made at a VM's first start\n"
    "  --ssh-key FILE     debian: the public key with which the user, or root, logs in\n"
    "  --firmware KIND    a disk or a disc: bios or uefi (bios)\n"
    "  --display WHERE    a disc: where its screen is, as for `nacre run`\n";

int WrongUsage(std::string_view what) {
  fmt::print(stderr, "nacre: `nacre image`: {}\nTry `nacre image --help`.\n", what);
  return kExitUsage;
}

int Failed(const Error& error) {
  fmt::print(stderr, "nacre: {}\n", error.message);
  return kExitFailed;
}

std::string Megabytes(uint64_t bytes) { return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / 1048576); }

/// On a terminal only.
lifecycle::ImageProgress ShowProgress(std::string_view what) {
  if (!isatty(STDERR_FILENO)) return {};
  return [what, next = std::chrono::steady_clock::time_point()](uint64_t done, uint64_t total) mutable {
    const auto now = std::chrono::steady_clock::now();
    if (now < next && done != total) return;
    next = now + std::chrono::milliseconds(200);
    fmt::print(stderr, "\r\x1b[K{} {} of {}{}", what, Megabytes(done), Megabytes(total),
               done == total ? "\r\x1b[K" : "");
  };
}

Json JsonOf(const ImageReport& report) {
  const lifecycle::Image& image = report.image;
  Json files = Json::array();
  for (const auto& file : report.files)
    files.push_back({{"name", file.name},
                     {"size_bytes", file.size_bytes},
                     {"disk_bytes", file.disk_bytes},
                     {"sha256", file.sha256}});
  return {{"name", image.name},
          {"id", report.id},
          {"created", report.created},
          {"source", report.source},
          {"append", image.append},
          {"firmware", image.firmware},
          {"disk_format", image.disk.empty() ? Json() : Json(image.disk_format)},
          {"memory_bytes", image.memory_bytes ? Json(*image.memory_bytes) : Json()},
          {"files", std::move(files)}};
}

std::string Text(const Json& json) { return json.dump(2, ' ', false, Json::error_handler_t::replace); }

int List(const Home& home, bool json) {
  Json list = Json::array();
  int status = kExitDone;
  if (!json) fmt::print("{:<24} {:<12} {:<20} {:>12} {:>12}\n", "NAME", "ID", "CREATED", "SIZE", "ON DISK");
  for (const std::string& name : home.ImageNames()) {
    const auto report = lifecycle::InspectImage(home, name);
    if (!report) {
      status = Failed(report.error());
      continue;
    }
    if (json) {
      list.push_back(JsonOf(*report));
      continue;
    }
    uint64_t size = 0, on_disk = 0;
    for (const auto& file : report->files) size += file.size_bytes, on_disk += file.disk_bytes;
    fmt::print("{:<24} {:<12} {:<20} {:>12} {:>12}\n", name, report->id.substr(0, 12), report->created, Megabytes(size),
               Megabytes(on_disk));
  }
  if (json) fmt::print("{}\n", Text(list));
  return status;
}

int Inspect(const Home& home, const std::string& name, bool json) {
  const auto report = lifecycle::InspectImage(home, name);
  if (!report) return Failed(report.error());
  if (json) {
    fmt::print("{}\n", Text(JsonOf(*report)));
    return kExitDone;
  }
  const lifecycle::Image& image = report->image;
  const auto line = [](std::string_view key, const std::string& value) {
    if (!value.empty()) fmt::print("{:<10} {}\n", key, value);
  };
  line("name", image.name);
  line("id", report->id);
  line("created", report->created);
  line("source", report->source);
  line("append", image.append);
  line("firmware", image.firmware);
  if (image.memory_bytes) line("memory", SizeText(*image.memory_bytes));
  for (const auto& file : report->files)
    fmt::print("{:<10} {}, {} on disk, {}\n", file.name, Megabytes(file.size_bytes), Megabytes(file.disk_bytes),
               file.sha256);
  return kExitDone;
}

struct Words {
  std::vector<std::string> plain;
  ImageBuildOptions build;
  bool json = false, help = false, builds = false;
};

Result<Words> Parse(std::span<const std::string_view> words) {
  Words out;
  const std::array<std::pair<std::string_view, std::string*>, 8> texts{{{"--name", &out.build.name},
                                                                        {"--from", &out.build.from},
                                                                        {"--size", &out.build.size},
                                                                        {"--memory", &out.build.memory},
                                                                        {"--firmware", &out.build.firmware},
                                                                        {"--display", &out.build.display},
                                                                        {"--user", &out.build.user},
                                                                        {"--ssh-key", &out.build.ssh_key}}};
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string_view word = words[i];
    const auto* text = std::ranges::find(texts, word, [](const auto& entry) { return entry.first; });
    if (!word.starts_with("-")) {
      out.plain.emplace_back(word);
    } else if (word == "--json") {
      out.json = true;
    } else if (word == "--help" || word == "-h") {
      out.help = true;
    } else if (word == "--replace") {
      out.build.replace = out.builds = true;
    } else if (text == texts.end() && word != "--package") {
      return Fail("unknown option {}", word);
    } else if (i + 1 == words.size() || words[i + 1].empty()) {
      return Fail("{} needs a value", word);
    } else {
      out.builds = true;
      if (text == texts.end())
        out.build.packages.emplace_back(words[++i]);
      else
        *text->second = words[++i];
    }
  }
  return out;
}

Status CheckBuild(const Words& words) {
  const ImageBuildOptions& build = words.build;
  const bool debian = words.plain.size() == 2 && words.plain[1] == "debian";
  if (debian == !build.from.empty() || words.plain.size() > 2)
    return Fail("give `nacre image build debian`, or `nacre image build --from FILE --name NAME`");
  if (!debian && build.name.empty()) return Fail("--from needs --name NAME");
  if (!debian && !(build.packages.empty() && build.user.empty() && build.ssh_key.empty()))
    return Fail("--package, --user and --ssh-key are for `nacre image build debian`");
  if (debian && !(build.firmware.empty() && build.display.empty())) return Fail("--firmware and --display need --from");
  if (!build.firmware.empty() && build.firmware != "bios" && build.firmware != "uefi")
    return Fail("--firmware {}: choose bios or uefi", build.firmware);
  for (const auto& [name, size] : {std::pair("--size", &build.size), std::pair("--memory", &build.memory)})
    if (const auto bytes = ParseSize(*size); !size->empty() && !bytes)
      return Fail("{} {}: {}", name, *size, bytes.error().message);
  const auto plain = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.';
  };
  if (!std::ranges::all_of(build.user, plain)) return Fail("--user {}: not a name", build.user);
  for (const std::string& name : build.packages)
    if (!std::ranges::all_of(name, [&](char c) { return plain(c) || c == '+' || c == ':'; }))
      return Fail("--package {}: not the name of a package", name);
  return {};
}

int Build(const Home& home, ImageBuildOptions options) {
  if (options.name.empty()) options.name = "debian";
  const auto image = lifecycle::NewImage::Begin(home, options.name, options.replace);
  if (!image) return Failed(image.error());
  const auto parts = BuildImage(options, **image);
  if (!parts) return Failed(parts.error());
  const auto id = (*image)->Commit(*parts, ShowProgress("checksums:"));
  if (!id) return Failed(id.error());
  fmt::print("{} {}\n", options.name, *id);
  return kExitDone;
}

}  // namespace

int ImageCommand(std::span<const std::string_view> given) {
  const auto words = Parse(given);
  if (!words) return WrongUsage(words.error().message);
  if (words->help) {
    fmt::print("{}", kHelp);
    return kExitDone;
  }
  if (words->plain.empty()) return WrongUsage("say build, ls, inspect, verify or rm");
  const std::string& verb = words->plain[0];
  const bool named = words->plain.size() == 2;
  const auto home = Home::Find();
  if (!home) return Failed(home.error());
  if (verb == "build") {
    if (words->json) return WrongUsage("build takes no --json");
    if (const Status status = CheckBuild(*words); !status) return WrongUsage(status.error().message);
    return Build(*home, words->build);
  }
  if (words->builds) return WrongUsage(fmt::format("{} takes none of the options of build", verb));
  if (verb == "ls" && words->plain.size() == 1) return List(*home, words->json);
  if (verb == "inspect" && named) return Inspect(*home, words->plain[1], words->json);
  if ((verb == "verify" || verb == "rm") && named && !words->json) {
    const Status status = verb == "rm" ? lifecycle::RemoveImage(*home, words->plain[1])
                                       : lifecycle::VerifyImage(*home, words->plain[1], ShowProgress("verify:"));
    return status ? kExitDone : Failed(status.error());
  }
  if (verb == "ls" || verb == "inspect" || verb == "verify" || verb == "rm")
    return WrongUsage(verb == "ls" ? "ls takes no name" : fmt::format("{} takes the name of one image", verb));
  return WrongUsage(fmt::format("there is no '{}'; say build, ls, inspect, verify or rm", verb));
}

}  // namespace nacre::cli
