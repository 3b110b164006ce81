#pragma once
// `nacre image build|ls|inspect|verify|rm`: what VMs are made of. docs/images.md.

#include <span>
#include <string_view>

namespace nacre::cli {

/// `words`: what follows `nacre image`.
int ImageCommand(std::span<const std::string_view> words);

}  // namespace nacre::cli
