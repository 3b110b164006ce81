#include "display/keys.h"

#include <linux/input-event-codes.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <span>
#include <string>

namespace nacre::display {
namespace {

/// Up to this number Linux's codes are the scan codes themselves, but for a few holes.
constexpr uint16_t kLastPlain = KEY_F12;

struct Extended {
  uint16_t key;
  ScanCode code;
};
constexpr Extended kExtended[] = {
    {KEY_RO, {0x73, false}},       {KEY_HENKAN, {0x79, false}},  {KEY_KATAKANAHIRAGANA, {0x70, false}},
    {KEY_MUHENKAN, {0x7b, false}}, {KEY_KPENTER, {0x1c, true}},  {KEY_RIGHTCTRL, {0x1d, true}},
    {KEY_KPSLASH, {0x35, true}},   {KEY_SYSRQ, {0x37, true}},    {KEY_RIGHTALT, {0x38, true}},
    {KEY_HOME, {0x47, true}},      {KEY_UP, {0x48, true}},       {KEY_PAGEUP, {0x49, true}},
    {KEY_LEFT, {0x4b, true}},      {KEY_RIGHT, {0x4d, true}},    {KEY_END, {0x4f, true}},
    {KEY_DOWN, {0x50, true}},      {KEY_PAGEDOWN, {0x51, true}}, {KEY_INSERT, {0x52, true}},
    {KEY_DELETE, {0x53, true}},    {KEY_MUTE, {0x20, true}},     {KEY_VOLUMEDOWN, {0x2e, true}},
    {KEY_VOLUMEUP, {0x30, true}},  {KEY_POWER, {0x5e, true}},    {KEY_KPEQUAL, {0x59, false}},
    {KEY_KPCOMMA, {0x7e, false}},  {KEY_YEN, {0x7d, false}},     {KEY_LEFTMETA, {0x5b, true}},
    {KEY_RIGHTMETA, {0x5c, true}}, {KEY_COMPOSE, {0x5d, true}},
};

bool IsPlain(unsigned key) { return key >= 1 && key <= kLastPlain && key != 84 && key != KEY_ZENKAKUHANKAKU; }

/// Keys of printable ASCII without and with Shift, by US layout.
struct Printable {
  uint16_t key;
  char plain, shifted;
};
constexpr Printable kPrintable[] = {
    {KEY_GRAVE, '`', '~'},      {KEY_1, '1', '!'},   {KEY_2, '2', '@'},         {KEY_3, '3', '#'},
    {KEY_4, '4', '$'},          {KEY_5, '5', '%'},   {KEY_6, '6', '^'},         {KEY_7, '7', '&'},
    {KEY_8, '8', '*'},          {KEY_9, '9', '('},   {KEY_0, '0', ')'},         {KEY_MINUS, '-', '_'},
    {KEY_EQUAL, '=', '+'},      {KEY_Q, 'q', 'Q'},   {KEY_W, 'w', 'W'},         {KEY_E, 'e', 'E'},
    {KEY_R, 'r', 'R'},          {KEY_T, 't', 'T'},   {KEY_Y, 'y', 'Y'},         {KEY_U, 'u', 'U'},
    {KEY_I, 'i', 'I'},          {KEY_O, 'o', 'O'},   {KEY_P, 'p', 'P'},         {KEY_LEFTBRACE, '[', '{'},
    {KEY_RIGHTBRACE, ']', '}'}, {KEY_A, 'a', 'A'},   {KEY_S, 's', 'S'},         {KEY_D, 'd', 'D'},
    {KEY_F, 'f', 'F'},          {KEY_G, 'g', 'G'},   {KEY_H, 'h', 'H'},         {KEY_J, 'j', 'J'},
    {KEY_K, 'k', 'K'},          {KEY_L, 'l', 'L'},   {KEY_SEMICOLON, ';', ':'}, {KEY_APOSTROPHE, '\'', '"'},
    {KEY_BACKSLASH, '\\', '|'}, {KEY_Z, 'z', 'Z'},   {KEY_X, 'x', 'X'},         {KEY_C, 'c', 'C'},
    {KEY_V, 'v', 'V'},          {KEY_B, 'b', 'B'},   {KEY_N, 'n', 'N'},         {KEY_M, 'm', 'M'},
    {KEY_COMMA, ',', '<'},      {KEY_DOT, '.', '>'}, {KEY_SLASH, '/', '?'},     {KEY_SPACE, ' ', ' '},
};

/// Keys with a name: the X11 symbol and the words for PressKeys (the first is the usual one; empty: none).
struct Named {
  uint16_t key;
  uint32_t symbol;
  std::string_view names[3];
};
constexpr Named kNamed[] = {
    {KEY_BACKSPACE, 0xff08, {"backspace", "bs"}},
    {KEY_TAB, 0xff09, {"tab"}},
    {KEY_TAB, 0xfe20, {}},  // ISO_Left_Tab: Shift and Tab
    {KEY_ENTER, 0xff0d, {"enter", "return", "ret"}},
    {KEY_ENTER, 0xff0a, {}},
    {KEY_PAUSE, 0xff13, {"pause"}},
    {KEY_PAUSE, 0xff6b, {"break"}},
    {KEY_SCROLLLOCK, 0xff14, {"scrolllock"}},
    {KEY_SYSRQ, 0xff15, {"sysrq"}},
    {KEY_SYSRQ, 0xff61, {"print"}},
    {KEY_ESC, 0xff1b, {"esc", "escape"}},
    {KEY_HOME, 0xff50, {"home"}},
    {KEY_LEFT, 0xff51, {"left"}},
    {KEY_UP, 0xff52, {"up"}},
    {KEY_RIGHT, 0xff53, {"right"}},
    {KEY_DOWN, 0xff54, {"down"}},
    {KEY_PAGEUP, 0xff55, {"pageup", "pgup"}},
    {KEY_PAGEDOWN, 0xff56, {"pagedown", "pgdn"}},
    {KEY_END, 0xff57, {"end"}},
    {KEY_INSERT, 0xff63, {"insert", "ins"}},
    {KEY_COMPOSE, 0xff67, {"menu"}},
    {KEY_NUMLOCK, 0xff7f, {"numlock"}},
    {KEY_KPENTER, 0xff8d, {"kpenter"}},
    {KEY_KP7, 0xff95, {}},
    {KEY_KP4, 0xff96, {}},
    {KEY_KP8, 0xff97, {}},
    {KEY_KP6, 0xff98, {}},
    {KEY_KP2, 0xff99, {}},
    {KEY_KP9, 0xff9a, {}},
    {KEY_KP3, 0xff9b, {}},
    {KEY_KP1, 0xff9c, {}},
    {KEY_KP5, 0xff9d, {}},
    {KEY_KP0, 0xff9e, {}},
    {KEY_KPDOT, 0xff9f, {}},
    {KEY_KPASTERISK, 0xffaa, {}},
    {KEY_KPPLUS, 0xffab, {}},
    {KEY_KPCOMMA, 0xffac, {}},
    {KEY_KPMINUS, 0xffad, {}},
    {KEY_KPDOT, 0xffae, {}},
    {KEY_KPSLASH, 0xffaf, {}},
    {KEY_KP0, 0xffb0, {}},
    {KEY_KP1, 0xffb1, {}},
    {KEY_KP2, 0xffb2, {}},
    {KEY_KP3, 0xffb3, {}},
    {KEY_KP4, 0xffb4, {}},
    {KEY_KP5, 0xffb5, {}},
    {KEY_KP6, 0xffb6, {}},
    {KEY_KP7, 0xffb7, {}},
    {KEY_KP8, 0xffb8, {}},
    {KEY_KP9, 0xffb9, {}},
    {KEY_KPEQUAL, 0xffbd, {}},
    {KEY_F1, 0xffbe, {"f1"}},
    {KEY_F2, 0xffbf, {"f2"}},
    {KEY_F3, 0xffc0, {"f3"}},
    {KEY_F4, 0xffc1, {"f4"}},
    {KEY_F5, 0xffc2, {"f5"}},
    {KEY_F6, 0xffc3, {"f6"}},
    {KEY_F7, 0xffc4, {"f7"}},
    {KEY_F8, 0xffc5, {"f8"}},
    {KEY_F9, 0xffc6, {"f9"}},
    {KEY_F10, 0xffc7, {"f10"}},
    {KEY_F11, 0xffc8, {"f11"}},
    {KEY_F12, 0xffc9, {"f12"}},
    {KEY_LEFTSHIFT, 0xffe1, {"shift"}},
    {KEY_RIGHTSHIFT, 0xffe2, {"rightshift"}},
    {KEY_LEFTCTRL, 0xffe3, {"ctrl", "control"}},
    {KEY_RIGHTCTRL, 0xffe4, {"rightctrl"}},
    {KEY_CAPSLOCK, 0xffe5, {"capslock"}},
    {KEY_LEFTALT, 0xffe9, {"alt"}},
    {KEY_RIGHTALT, 0xffea, {"rightalt"}},
    {KEY_LEFTALT, 0xffe7, {}},
    {KEY_RIGHTALT, 0xffe8, {}},  // Meta
    {KEY_RIGHTALT, 0xfe03, {"altgr"}},
    {KEY_RIGHTALT, 0xff7e, {}},
    {KEY_LEFTMETA, 0xffeb, {"super", "meta", "win"}},
    {KEY_RIGHTMETA, 0xffec, {}},
    {KEY_DELETE, 0xffff, {"del", "delete"}},
    {KEY_SPACE, 0, {"space"}},
    {KEY_102ND, 0, {"less"}},
    {KEY_MINUS, 0, {"minus"}},
};

const Printable* FindPrintable(char character) {
  const auto found = std::ranges::find_if(
      kPrintable, [&](const Printable& p) { return p.plain == character || p.shifted == character; });
  return found == std::end(kPrintable) ? nullptr : &*found;
}

/// The first character of a text that is not empty; "byte 0xff" where it is no UTF-8.
std::string Describe(std::string_view text) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<uint8_t>(text[i]) : 0u; };
  const unsigned length = byte(0) >= 0xf0 ? 4 : byte(0) >= 0xe0 ? 3 : byte(0) >= 0xc2 ? 2 : 1;
  bool valid = byte(0) < 0x80 || (length > 1 && byte(0) < 0xf5);
  uint32_t code = length == 1 ? byte(0) : byte(0) & (0x7f >> length);
  for (unsigned i = 1; i < length; ++i) {
    valid = valid && (byte(i) & 0xc0) == 0x80;
    code = code << 6 | (byte(i) & 0x3f);
  }
  if (!valid) return fmt::format("byte {:#04x}", byte(0));
  const bool prints = code >= 0xa0;
  return prints ? fmt::format("'{}' (U+{:04X})", text.substr(0, length), code) : fmt::format("U+{:04X}", code);
}

const Named* FindNamed(std::string_view name) {
  for (const Named& named : kNamed)
    if (std::ranges::find(named.names, name) != std::end(named.names)) return &named;
  return nullptr;
}

Result<std::vector<uint16_t>> KeysOfChord(std::string_view names) {
  std::vector<uint16_t> keys;
  for (size_t at = 0; at <= names.size();) {
    const size_t end = std::min(names.find('-', at), names.size());
    std::string name(names.substr(at, end - at));
    std::ranges::transform(name, name.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    const Printable* printable = name.size() == 1 ? FindPrintable(name[0]) : nullptr;
    if (const Named* named = name.empty() ? nullptr : FindNamed(name))
      keys.push_back(named->key);
    else if (printable && printable->plain == name[0])
      keys.push_back(printable->key);
    else
      return Fail("'{}': there is no key '{}'; give for example ctrl-alt-del, f1, shift-a, minus", names, name);
    at = end + 1;
  }
  return keys;
}

}  // namespace

std::optional<ScanCode> ScanCodeOf(uint16_t key) {
  if (IsPlain(key)) return ScanCode{static_cast<uint8_t>(key), false};
  const auto found = std::ranges::find(kExtended, key, &Extended::key);
  return found == std::end(kExtended) ? std::nullopt : std::optional(found->code);
}

uint16_t KeyOfScanCode(ScanCode code) {
  if (!code.extended && IsPlain(code.code)) return code.code;
  if (code.extended && code.code == 0x46) return KEY_PAUSE;  // Ctrl and Pause
  for (const Extended& entry : kExtended)
    if (entry.code.code == code.code && entry.code.extended == code.extended) return entry.key;
  return 0;
}

std::optional<KeyOfSymbol> FindSymbol(uint32_t symbol) {
  if (symbol >= 0x20 && symbol < 0x7f) {
    const auto character = static_cast<char>(symbol);
    const Printable* found = FindPrintable(character);
    if (!found) return std::nullopt;
    return KeyOfSymbol{.key = found->key,
                       .shift = found->shifted == character && found->plain != character,
                       .letter = found->plain >= 'a' && found->plain <= 'z',
                       .any_shift = found->plain == found->shifted};
  }
  if (symbol == 0) return std::nullopt;
  const auto named = std::ranges::find(kNamed, symbol, &Named::symbol);
  if (named == std::end(kNamed)) return std::nullopt;
  return KeyOfSymbol{.key = named->key, .any_shift = true};
}

Result<std::vector<KeyStroke>> TypeText(std::string_view text) {
  std::vector<KeyStroke> strokes;
  for (size_t at = 0; at < text.size(); ++at) {
    const char character = text[at];
    uint16_t key = character == '\n' ? KEY_ENTER : character == '\t' ? KEY_TAB : 0;
    bool shift = false;
    if (const Printable* found = FindPrintable(character); key == 0 && found && character != 0) {
      key = found->key;
      shift = found->plain != character;
    }
    if (key == 0)
      return Fail("cannot type {}: the US keyboard's layout has ASCII, newline and tab", Describe(text.substr(at)));
    if (shift) strokes.push_back({KEY_LEFTSHIFT, true});
    strokes.push_back({key, true});
    strokes.push_back({key, false});
    if (shift) strokes.push_back({KEY_LEFTSHIFT, false});
  }
  return strokes;
}

Result<std::vector<KeyStroke>> PressKeys(std::string_view names) {
  std::vector<KeyStroke> strokes;
  for (size_t at = 0; at <= names.size();) {
    const size_t end = std::min(names.find(' ', at), names.size());
    const auto keys = NACRE_TRY(KeysOfChord(names.substr(at, end - at)));
    for (const uint16_t key : keys) strokes.push_back({key, true});
    for (auto key = keys.rbegin(); key != keys.rend(); ++key) strokes.push_back({*key, false});
    at = end + 1;
  }
  return strokes;
}

std::vector<std::string> KeyNames() {
  std::vector<std::string> lines;
  for (const Named& named : kNamed) {
    if (named.names[0].empty()) continue;
    std::string line(named.names[0]);
    for (const std::string_view name : std::span(named.names).subspan(1))
      if (!name.empty()) line += fmt::format(" {}", name);
    lines.push_back(std::move(line));
  }
  return lines;
}

}  // namespace nacre::display
