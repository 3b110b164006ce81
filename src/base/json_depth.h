#pragma once
// JSON from outside is bounded in depth before it is parsed: a parser's value is destroyed by recursion. Any thread.

#include <string_view>

namespace nacre {

/// The deepest nesting of brackets outside strings: what a value parsed from `text` can be nested at most.
int JsonDepth(std::string_view text);

}  // namespace nacre
