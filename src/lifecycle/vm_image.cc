#include "lifecycle/vm_image.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>

#include "base/nearest.h"
#include "base/size_text.h"
#include "lifecycle/toml_value.h"

namespace nacre::lifecycle {

namespace fs = std::filesystem;

namespace {

constexpr std::array<std::string_view, 9> kKeys{"name", "created",  "kernel", "initrd",     "append",
                                                "disk", "firmware", "memory", "disk-format"};
/// For those who make and check images.
constexpr std::array<std::string_view, 8> kOtherKeys{"sha256", "version",  "format",  "description",
                                                     "source", "packages", "release", "size"};

class ImageReader {
 public:
  ImageReader(const TomlValue& root, std::string file, fs::path folder)
      : root_(root), file_(std::move(file)), folder_(std::move(folder)) {}

  Result<Image> Read() {
    for (const auto& [key, value] : root_.entries)
      if (std::ranges::find(kKeys, key) == kKeys.end() && std::ranges::find(kOtherKeys, key) == kOtherKeys.end())
        return At(value.line, fmt::format("there is no key '{}'; there are {}", key, fmt::join(kKeys, ", ")));
    Image image;
    image.name = folder_.filename().string();
    image.folder = folder_;
    image.kernel = NACRE_TRY(File("kernel"));
    image.disk = NACRE_TRY(File("disk"));
    image.append = NACRE_TRY(Text("append"));
    image.firmware = NACRE_TRY(Text("firmware"));
    if (const std::string format = NACRE_TRY(Text("disk-format")); !format.empty()) image.disk_format = format;
    if (image.disk_format != "qcow2" && image.disk_format != "raw")
      return At(LineOf("disk-format"), "disk-format: give \"qcow2\" or \"raw\"");
    if (!image.firmware.empty() && image.firmware != "bios" && image.firmware != "uefi")
      return At(LineOf("firmware"), "firmware: give \"bios\" or \"uefi\"");
    NACRE_TRY_STATUS(ReadInitrds(image));
    if (const std::string memory = NACRE_TRY(Text("memory")); !memory.empty()) {
      const auto size = ParseSize(memory);
      if (!size) return At(LineOf("memory"), fmt::format("memory: {}", size.error().message));
      image.memory_bytes = *size;
    }
    if (image.kernel.empty() && image.firmware.empty())
      return At(1, "nothing to start: it needs a kernel, or firmware that starts its disk");
    return image;
  }

 private:
  std::unexpected<Error> At(unsigned line, std::string_view what) const { return Fail("{}:{}: {}", file_, line, what); }
  unsigned LineOf(std::string_view key) const {
    const TomlValue* value = root_.Find(key);
    return value ? value->line : 1;
  }
  Result<std::string> Text(std::string_view key) const {
    const TomlValue* value = root_.Find(key);
    if (!value) return "";
    if (value->kind != TomlValue::Kind::kText) return At(value->line, fmt::format("{}: give a text", key));
    return value->text;
  }
  Result<fs::path> Named(std::string_view key, const std::string& name, unsigned line) const {
    if (name.empty() || name.find('/') != std::string::npos || name.starts_with('.'))
      return At(line, fmt::format("{} = {} is not allowed; give the name of a file beside image.toml", key,
                                  TomlQuoted(name)));
    std::error_code error;
    if (!fs::is_regular_file(folder_ / name, error))
      return At(line, fmt::format("{} = {}: there is no such file beside it", key, TomlQuoted(name)));
    return folder_ / name;
  }
  Result<fs::path> File(std::string_view key) const {
    if (!root_.Find(key)) return fs::path();
    return Named(key, NACRE_TRY(Text(key)), LineOf(key));
  }
  Status ReadInitrds(Image& image) const {
    const TomlValue* value = root_.Find("initrd");
    if (!value) return {};
    if (value->kind != TomlValue::Kind::kArray) {
      image.initrds.push_back(NACRE_TRY(File("initrd")));
      return {};
    }
    for (const TomlValue& item : value->items) {
      if (item.kind != TomlValue::Kind::kText) return At(value->line, "initrd: give file names");
      image.initrds.push_back(NACRE_TRY(Named("initrd", item.text, item.line)));
    }
    return {};
  }

  const TomlValue& root_;
  const std::string file_;
  const fs::path folder_;
};

}  // namespace

Result<Image> ReadImage(const Home& home, std::string_view name) {
  NACRE_TRY_STATUS(CheckName(name));
  const fs::path folder = home.images() / name, file = folder / "image.toml";
  std::error_code error;
  if (!fs::exists(file, error)) {
    const std::vector<std::string> names = home.ImageNames();
    if (names.empty())
      return Fail("{}: there is no image of this name, and none at all in {}", name, home.images().string());
    const std::vector<std::string_view> words(names.begin(), names.end());
    const std::string_view near = Nearest(name, words);
    if (!near.empty()) return Fail("{}: there is no image of this name; did you mean {}?", name, near);
    return Fail("{}: there is no image of this name; there are {}", name, fmt::join(names, ", "));
  }
  const TomlValue root = NACRE_TRY(ReadToml(file.string()));
  return ImageReader(root, file.string(), folder).Read();
}

}  // namespace nacre::lifecycle
