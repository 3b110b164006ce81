// What a machine's screen and keyboard are asked for from outside.

#include "display/png.h"
#include "machine/machine.h"

namespace nacre::machine {
namespace {

constexpr std::string_view kNoScreen =
    "this VM has no screen and no keyboard: start it with --display offscreen or --display vnc:ADDRESS:PORT";

}  // namespace

Result<Machine::ScreenSize> Machine::Screenshot(const std::string& path) {
  if (!board_->screen()) return Fail("{}", kNoScreen);
  // Where the VM's process happens to stand is nobody's business.
  if (!path.starts_with('/') || path.find('\0') != std::string::npos)
    return Fail("screenshot '{}': give an absolute path", path);
  std::unique_ptr<display::Frame> frame;
  {
    const std::lock_guard lock(device_lock_);
    frame = board_->screen()->Capture();
  }
  display::Surface surface;
  frame->Draw(surface);
  NACRE_TRY_STATUS(display::WritePng(surface, path));
  return ScreenSize{surface.width(), surface.height()};
}

void Machine::RequestScreenshot(std::string path, Done<ScreenSize> done) {
  const auto carry_out = [this, path = std::move(path), done] { done(Screenshot(path)); };
  Enqueue({carry_out, [done](const Error& error) { done(std::unexpected(error)); }});
}

void Machine::RequestKeys(std::vector<display::KeyStroke> strokes, Done<void> done) {
  const auto carry_out = [this, strokes = std::move(strokes), done] {
    if (!board_->screen()) return done(Fail("{}", kNoScreen));
    const std::lock_guard lock(device_lock_);
    board_->typist().Type(strokes, done);
  };
  Enqueue({carry_out, [done](const Error& error) { done(std::unexpected(error)); }});
}

}  // namespace nacre::machine
