#pragma once
// Text that people copy, on its way between the viewers of a screen and the guest. Here it is UTF-8 without NULs and
// with lines that end in LF; protocols have other forms. Both sides are hostile: a text is made so before it is used.

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

namespace nacre::display {

/// Of one text; what is longer is not passed on.
inline constexpr size_t kMaxClipboardBytes = 1024 * 1024;

/// The guest's end. All under the device lock.
class Clipboard {
 public:
  virtual ~Clipboard() = default;
  /// A person has copied this, a clean text of at most kMaxClipboardBytes: the guest may fetch it from now on.
  virtual void Offer(std::string text) = 0;
  /// `copied` is called under the device lock with the clean text that a program of the guest has copied, and must not
  /// block. Null: nobody listens.
  virtual void Listen(std::function<void(std::string text)> copied) = 0;
};

/// Bytes that are no UTF-8 become U+FFFD, CR and CR LF become LF, NULs go. Cut to kMaxClipboardBytes between
/// characters.
std::string CleanText(std::string_view bytes);
/// Of ISO 8859-1, clean.
std::string CleanLatin1(std::string_view bytes);
/// A clean text for those who know ISO 8859-1 only: '?' for all other characters.
std::string ToLatin1(std::string_view text);
/// A clean text with lines that end in CR LF.
std::string WithCrLf(std::string_view text);

}  // namespace nacre::display
