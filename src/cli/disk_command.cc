#include "cli/disk_command.h"

#include <fmt/core.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <ctime>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/nearest.h"
#include "base/size_text.h"
#include "cli/commands.h"
#include "cli/watched.h"
#include "storage/foreign_image.h"
#include "storage/image_tools.h"
#include "storage/qcow2_check.h"

namespace nacre::cli {
namespace {

using storage::ImageFormat;
using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

constexpr std::string_view kHelp =
    R"(Disk images: raw files and qcow2.

  nacre disk create FILE [SIZE]     make an image
      --format qcow2|raw            qcow2, or by the name (.raw, .img)
      --backing FILE                a qcow2 overlay: what is not in it is read from FILE, a name from FILE's folder
      --backing-format raw|qcow2    FILE's format; has to be said unless the name and the content agree
      --cluster-size BYTES          512 to 2M, 64K unless said
      --extended-l2                 clusters have 32 parts: less to copy when an overlay is written
      --lazy-refcounts              allow programs to write reference counts late
      --refcount-bits N             1 to 64, 16 unless said
      --preallocation HOW           off, metadata, falloc or full
      --compat 2|3                  qcow2's version
  nacre disk info FILE [--json]     sizes, format, what it stands on, internal snapshots
  nacre disk check FILE [--repair] [--json]
                                    look every table of a qcow2 image over; repair mends reference counts
  nacre disk resize FILE [+]SIZE [--shrink]
  nacre disk convert FROM TO [--format qcow2|raw] [--from-format FORMAT] [--cluster-size BYTES] ...
                                    copy with everything below it; zeros take no space. qemu-img reads other formats
  nacre disk commit OVERLAY         write what an overlay holds into its backing file

--format F goes for FILE everywhere. Exit status: 0 done, 1 failed, 2 wrong usage; check: 3 leaks only, 4 corrupt.
A disk of a running VM can only be described.
)";

constexpr int kExitLeaks = 3, kExitCorrupt = 4;

struct Words {
  std::vector<std::string> plain;
  std::map<std::string, std::string, std::less<>> values;
  bool has(std::string_view option) const { return values.contains(option); }
  std::string Value(std::string_view option) const {
    const auto found = values.find(option);
    return found == values.end() ? "" : found->second;
  }
};

struct Action {
  std::string_view name;
  size_t least, most;  ///< plain words
  std::vector<std::string_view> valued, flags;
  int (*run)(const Words&);
};

int Failed(const Error& error) {
  fmt::print(stderr, "nacre: {}\n", error.message);
  return kExitFailed;
}

int WrongUsage(std::string_view what) {
  fmt::print(stderr, "nacre disk: {}\nTry `nacre disk --help`.\n", what);
  return kExitUsage;
}

Result<std::optional<ImageFormat>> FormatOf(const Words& words, std::string_view option = "--format") {
  if (!words.has(option)) return std::nullopt;
  const auto format = storage::FormatNamed(words.Value(option));
  if (!format) return Fail("{} {}: choose raw or qcow2", option, words.Value(option));
  return format;
}

Result<storage::ImageOptions> ImageOf(const Words& words) {
  return storage::ImageOptions{.path = words.plain[0], .format = NACRE_TRY(FormatOf(words)), .read_only = false};
}

ImageFormat FormatByName(const std::string& path) {
  const std::string suffix = fs::path(path).extension().string();
  return suffix == ".raw" || suffix == ".img" ? ImageFormat::kRaw : ImageFormat::kQcow2;
}

Result<storage::Qcow2Options> Qcow2Of(const Words& words) {
  storage::Qcow2Options options;
  if (words.has("--cluster-size")) options.cluster_size = NACRE_TRY(ParseSize(words.Value("--cluster-size")));
  const auto number = [&](std::string_view option, unsigned fallback) -> Result<unsigned> {
    const std::string text = words.Value(option);
    if (!words.has(option)) return fallback;
    if (text.empty() || text.size() > 3 || text.find_first_not_of("0123456789") != std::string::npos)
      return Fail("{} {}: give a number", option, text);
    return static_cast<unsigned>(std::stoul(text));
  };
  options.refcount_bits = NACRE_TRY(number("--refcount-bits", 16));
  options.version = NACRE_TRY(number("--compat", 3));
  options.extended_l2 = words.has("--extended-l2");
  options.lazy_refcounts = words.has("--lazy-refcounts");
  const std::string how = words.has("--preallocation") ? words.Value("--preallocation") : "off";
  constexpr std::array kHow{"off", "metadata", "falloc", "full"};
  const auto found = std::ranges::find(kHow, how);
  if (found == kHow.end()) return Fail("--preallocation {}: choose off, metadata, falloc or full", how);
  options.preallocation = static_cast<storage::Preallocation>(found - kHow.begin());
  return options;
}

/// The user names the backing file: its name has to agree with what it looks like, or the format has to be said.
Result<ImageFormat> BackingFormat(const Words& words, const std::string& path) {
  if (const auto said = NACRE_TRY(FormatOf(words, "--backing-format"))) return *said;
  const ImageFormat looks = NACRE_TRY(storage::ProbeFormat(path));
  const std::string suffix = fs::path(path).extension().string();
  if (looks == ImageFormat::kRaw || suffix == ".qcow2") return looks;
  return Fail(
      "{}: looks like qcow2, but its name does not say so, and a guest could have written that; say "
      "--backing-format qcow2 or raw",
      path);
}

Status CreateRaw(const std::string& path, uint64_t size_bytes, const Words& words) {
  for (const auto& [option, value] : words.values)
    if (option != "--format" && option != "--preallocation") return Fail("{}: {} is for qcow2", path, option);
  const storage::Qcow2Options options = NACRE_TRY(Qcow2Of(words));
  return storage::CreateRaw(path, size_bytes, options.preallocation);
}

int Create(const Words& words) {
  const std::string& path = words.plain[0];
  const auto create = [&]() -> Status {
    const auto said = NACRE_TRY(FormatOf(words));
    const bool overlay = words.has("--backing");
    uint64_t size_bytes = 0;
    if (words.plain.size() > 1) size_bytes = NACRE_TRY(ParseSize(words.plain[1]));
    if (size_bytes == 0 && !overlay) return Fail("{}: say how large it is to be, as in 10G", path);
    if ((said ? *said : overlay ? ImageFormat::kQcow2 : FormatByName(path)) == ImageFormat::kRaw)
      return CreateRaw(path, size_bytes, words);
    storage::Qcow2Options options = NACRE_TRY(Qcow2Of(words));
    options.size_bytes = size_bytes;
    if (overlay) {
      options.backing = words.Value("--backing");
      options.backing_format =
          NACRE_TRY(BackingFormat(words, (fs::path(path).parent_path() / options.backing).string()));
    }
    return storage::CreateQcow2(path, options);
  };
  const Status created = create();
  return created ? kExitDone : Failed(created.error());
}

Json JsonOf(const storage::ImageInfo& info) {
  Json json{{"file", info.layer.path},
            {"format", storage::FormatName(info.layer.format)},
            {"size_bytes", info.size_bytes},
            {"file_bytes", info.file_bytes},
            {"allocated_bytes", info.allocated_bytes}};
  if (info.layer.format == ImageFormat::kRaw) return json;
  json["version"] = info.version;
  json["cluster_size"] = info.cluster_size;
  json["refcount_bits"] = info.refcount_bits;
  json["extended_l2"] = info.extended_l2;
  json["lazy_refcounts"] = info.lazy_refcounts;
  json["dirty"] = info.dirty;
  json["corrupt"] = info.corrupt;
  json["compression"] = info.compression;
  if (!info.encryption.empty()) json["encryption"] = info.encryption;
  if (!info.backing.empty()) {
    json["backing"] = info.backing;
    json["backing_format"] = info.backing_format;
  }
  json["snapshots"] = Json::array();
  for (const auto& s : info.snapshots)
    json["snapshots"].push_back(
        {{"id", s.id}, {"name", s.name}, {"seconds", s.seconds}, {"vm_state_bytes", s.vm_state_bytes}});
  return json;
}

void Print(const storage::ImageInfo& info) {
  fmt::print("{}\n  format     {}", info.layer.path, storage::FormatName(info.layer.format));
  if (info.layer.format == ImageFormat::kQcow2)
    fmt::print(", version {}, clusters of {}, refcounts of {} bits{}{}", info.version, SizeText(info.cluster_size),
               info.refcount_bits, info.extended_l2 ? ", extended L2 entries" : "",
               info.lazy_refcounts ? ", lazy refcounts" : "");
  fmt::print("\n  size       {} ({} bytes)\n  on disk    {:.1f} MiB\n", SizeText(info.size_bytes), info.size_bytes,
             static_cast<double>(info.allocated_bytes) / (1 << 20));
  if (!info.encryption.empty()) fmt::print("  encrypted  {}, which Nacre does not read\n", info.encryption);
  if (info.dirty) fmt::print("  dirty      not closed; it is mended when it is opened for writing\n");
  if (info.corrupt) fmt::print("  corrupt    `nacre disk check --repair` may mend it\n");
  if (!info.backing.empty())
    fmt::print("  over       {} ({})\n", info.backing,
               info.backing_format.empty() ? "format not said" : info.backing_format);
  for (const auto& s : info.snapshots) {
    const auto when = static_cast<time_t>(s.seconds);
    std::tm parts{};
    gmtime_r(&when, &parts);
    fmt::print("  snapshot   {} '{}', {:04}-{:02}-{:02} {:02}:{:02} UTC, VM state {}\n", s.id, s.name,
               parts.tm_year + 1900, parts.tm_mon + 1, parts.tm_mday, parts.tm_hour, parts.tm_min,
               SizeText(s.vm_state_bytes));
  }
}

void PrintJson(const Json& json) { fmt::print("{}\n", json.dump(2, ' ', false, Json::error_handler_t::replace)); }

int Info(const Words& words) {
  const auto image = ImageOf(words);
  if (!image) return Failed(image.error());
  const auto infos = storage::DescribeImage(*image);
  if (!infos) return Failed(infos.error());
  if (words.has("--json")) {
    Json all = Json::array();
    for (const auto& info : *infos) all.push_back(JsonOf(info));
    PrintJson(all);
    return kExitDone;
  }
  for (const auto& info : *infos) Print(info);
  return kExitDone;
}

int Check(const Words& words) {
  const auto image = ImageOf(words);
  if (!image) return Failed(image.error());
  const auto format = image->format ? Result<ImageFormat>(*image->format) : storage::ProbeFormat(image->path);
  if (!format) return Failed(format.error());
  if (*format == ImageFormat::kRaw) {
    if (words.has("--json"))
      PrintJson({{"file", image->path}, {"format", "raw"}, {"corruptions", 0}, {"leaks", 0}});
    else
      fmt::print("{}: raw: there are no tables to check\n", image->path);
    return kExitDone;
  }
  const auto report = storage::CheckQcow2(image->path, words.has("--repair"));
  if (!report) return Failed(report.error());
  if (words.has("--json")) {
    PrintJson({{"file", image->path},
               {"format", "qcow2"},
               {"corruptions", report->corruptions},
               {"leaks", report->leaks},
               {"repaired", report->repaired},
               {"allocated_clusters", report->allocated_clusters},
               {"total_clusters", report->total_clusters},
               {"compressed_clusters", report->compressed_clusters},
               {"fragmented_clusters", report->fragmented_clusters},
               {"image_end", report->image_end},
               {"faults", report->faults}});
  } else {
    for (const std::string& fault : report->faults) fmt::print("  {}\n", fault);
    if (report->repaired > 0) fmt::print("{}: {} faults mended\n", image->path, report->repaired);
    if (report->corruptions + report->leaks == 0)
      fmt::print("{}: clean; {} of {} clusters in use\n", image->path, report->allocated_clusters,
                 report->total_clusters);
    else
      fmt::print("{}: {} corruptions, {} leaked clusters{}\n", image->path, report->corruptions, report->leaks,
                 words.has("--repair") ? " that cannot be mended" : "; --repair mends what can be");
  }
  if (report->corruptions > 0) return kExitCorrupt;
  return report->leaks > 0 ? kExitLeaks : kExitDone;
}

int Resize(const Words& words) {
  const auto resize = [&]() -> Status {
    const storage::ImageOptions image = NACRE_TRY(ImageOf(words));
    std::string_view text = words.plain[1];
    uint64_t base = 0;
    if (text.starts_with('+')) {
      text.remove_prefix(1);
      base = NACRE_TRY(storage::DescribeImage(image, false)).front().size_bytes;
    }
    return storage::ResizeImage(image, base + NACRE_TRY(ParseSize(text)), words.has("--shrink"));
  };
  const Status resized = resize();
  return resized ? kExitDone : Failed(resized.error());
}

int Convert(const Words& words) {
  const auto convert = [&]() -> Status {
    const std::string& to = words.plain[1];
    storage::ConvertOptions options;
    const auto said = NACRE_TRY(FormatOf(words));
    options.format = said ? *said : FormatByName(to);
    options.qcow2 = NACRE_TRY(Qcow2Of(words));
    storage::ImageOptions from{.path = words.plain[0]};
    std::string other = words.Value("--from-format");
    if (const auto known = storage::FormatNamed(other)) {
      from.format = *known;
      other.clear();
    } else if (other.empty()) {
      other = storage::ForeignFormat(from.path);
    }
    Watched watched(to);
    if (other.empty()) return storage::ConvertImage(from, to, options, watched.progress());
    if (fs::exists(fs::symlink_status(to))) return Fail("{}: is there already; choose another name", to);
    std::string folder = to + ".XXXXXX";
    if (!mkdtemp(folder.data())) return FailErrno("{}", to);
    const std::string between = folder + "/image";
    Status done = storage::ConvertForeign(other, from.path, between);
    if (done)
      done = storage::ConvertImage({.path = between, .format = ImageFormat::kQcow2}, to, options, watched.progress());
    std::error_code ignored;
    fs::remove_all(folder, ignored);
    return done;
  };
  const Status converted = convert();
  return converted ? kExitDone : Failed(converted.error());
}

int Commit(const Words& words) {
  Watched watched(words.plain[0]);
  const Status committed = storage::CommitImage(words.plain[0], watched.progress());
  return committed ? kExitDone : Failed(committed.error());
}

const std::vector<Action>& Actions() {
  static const std::vector<Action> actions{
      {"create",
       1,
       2,
       {"--format", "--backing", "--backing-format", "--cluster-size", "--refcount-bits", "--preallocation",
        "--compat"},
       {"--extended-l2", "--lazy-refcounts"},
       Create},
      {"info", 1, 1, {"--format"}, {"--json"}, Info},
      {"check", 1, 1, {"--format"}, {"--repair", "--json"}, Check},
      {"resize", 2, 2, {"--format"}, {"--shrink"}, Resize},
      {"convert",
       2,
       2,
       {"--format", "--from-format", "--cluster-size", "--refcount-bits", "--preallocation", "--compat"},
       {"--extended-l2", "--lazy-refcounts"},
       Convert},
      {"commit", 1, 1, {}, {}, Commit},
  };
  return actions;
}

}  // namespace

int DiskCommand(std::span<const std::string_view> words) {
  if (words.empty() || words[0] == "--help" || words[0] == "-h" || words[0] == "help") {
    fmt::print(words.empty() ? stderr : stdout, "{}", kHelp);
    return words.empty() ? kExitUsage : kExitDone;
  }
  const auto action = std::ranges::find(Actions(), words[0], &Action::name);
  if (action == Actions().end()) {
    std::vector<std::string_view> names;
    for (const Action& known : Actions()) names.push_back(known.name);
    const std::string_view near = Nearest(words[0], names);
    return WrongUsage(
        fmt::format("unknown command '{}'{}", words[0], near.empty() ? "" : fmt::format("; did you mean '{}'?", near)));
  }
  Words given;
  for (size_t i = 1; i < words.size(); ++i) {
    const std::string_view word = words[i];
    if (word == "--help" || word == "-h") {
      fmt::print("{}", kHelp);
      return kExitDone;
    }
    if (!word.starts_with("--")) {
      given.plain.emplace_back(word);
    } else if (std::ranges::find(action->flags, word) != action->flags.end()) {
      given.values[std::string(word)] = "";
    } else if (std::ranges::find(action->valued, word) != action->valued.end()) {
      if (i + 1 == words.size()) return WrongUsage(fmt::format("{} needs a value", word));
      given.values[std::string(word)] = words[++i];
    } else {
      return WrongUsage(fmt::format("{}: option '{}' is not known", words[0], word));
    }
  }
  if (given.plain.size() < action->least || given.plain.size() > action->most)
    return WrongUsage(fmt::format("{}: {} file names and sizes given", words[0], given.plain.size()));
  return action->run(given);
}

}  // namespace nacre::cli
