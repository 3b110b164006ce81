#pragma once
// Changes to files that are there whole or not at all, also after a crash. Any thread.

#include <cstdint>
#include <filesystem>
#include <string_view>

#include "base/result.h"

namespace nacre::lifecycle {

/// Makes or replaces `path`: a temporary file beside it is written, synced and renamed.
Status WriteAtomically(const std::filesystem::path& path, std::string_view content, unsigned mode = 0600);
/// A new file with the same content, sharing its blocks where the file system can, and with its holes. Synced.
Status CopyFile(const std::filesystem::path& from, const std::filesystem::path& to);
/// The folder's own entries survive a loss of power.
Status SyncFolder(const std::filesystem::path& folder);
/// Renames a folder; error code EEXIST where there is something at `to`.
Status RenameNew(const std::filesystem::path& from, const std::filesystem::path& to);
/// Makes a folder and those above it, for this user only.
Status MakeFolders(const std::filesystem::path& folder);
Status RemoveTree(const std::filesystem::path& folder);

}  // namespace nacre::lifecycle
