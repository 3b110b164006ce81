#pragma once
// Names of keys: Linux's codes, the scan codes of PC keyboards, the key symbols of X11 and VNC, and the words that
// people type. The layout behind symbols and text is that of US keyboards. Any thread.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace nacre::display {

/// A make code of scan code set 1; `extended`: after the prefix 0xe0. Pause has none (code 0x45 after 0xe1 0x1d).
struct ScanCode {
  uint8_t code = 0;
  bool extended = false;
};
/// Nothing for keys that PC keyboards do not have, and for Pause.
std::optional<ScanCode> ScanCodeOf(uint16_t key);
/// 0: there is no such key.
uint16_t KeyOfScanCode(ScanCode code);

/// A key, and whether Shift makes the symbol of it.
struct KeyOfSymbol {
  uint16_t key = 0;
  bool shift = false;
  bool letter = false;  ///< Caps Lock changes what Shift means
  /// A symbol that a key has with and without Shift alike (Return, F1, the modifiers): Shift is none of our business.
  bool any_shift = false;
};
/// Of an X11 key symbol (X11/keysymdef.h), which are the VNC protocol's.
std::optional<KeyOfSymbol> FindSymbol(uint32_t symbol);

struct KeyStroke {
  uint16_t key = 0;
  bool down = false;
  bool operator==(const KeyStroke&) const = default;
};
/// Strokes that type a text (UTF-8): printable ASCII, newline (Return) and tab. Fails for anything else and names it.
Result<std::vector<KeyStroke>> TypeText(std::string_view text);
/// Keys that are pressed in order and released in reverse: "ctrl-alt-del", "f1", "shift-a"; several such, one after
/// another, with spaces between.
Result<std::vector<KeyStroke>> PressKeys(std::string_view names);
/// The words of PressKeys for keys that do not print: a line for each key, its names with spaces between, the usual one
/// first.
std::vector<std::string> KeyNames();

}  // namespace nacre::display
