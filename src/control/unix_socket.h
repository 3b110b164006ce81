#pragma once
// Unix stream sockets with a name in the file system: the listening end, which appears at once with its rights and
// replaces what a dead process left, and the connecting end. Any thread.

#include <sys/types.h>

#include <string>

#include "base/fd.h"
#include "base/result.h"

namespace nacre::control {

/// A listening socket, non-blocking, mode 0600. The name is removed with it, unless another has taken its place.
class ListeningSocket {
 public:
  /// A socket nobody listens on is replaced; one in use or a file of another kind is an error.
  static Result<ListeningSocket> Create(const std::string& path);
  ListeningSocket(ListeningSocket&&) = default;
  ListeningSocket& operator=(ListeningSocket&&) = delete;
  ~ListeningSocket();

  int fd() const { return fd_.get(); }

 private:
  ListeningSocket(Fd fd, Fd folder, std::string name)
      : fd_(std::move(fd)), folder_(std::move(folder)), name_(std::move(name)) {}
  Status Publish(const std::string& path);

  Fd fd_, folder_;
  std::string name_;  ///< in folder_
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

/// Errors: code ENOENT (no such name), ECONNREFUSED (nobody listens), others.
Result<Fd> ConnectSocket(const std::string& path);

/// Of the process at the other end when it connected.
Result<uid_t> PeerUser(int fd);

/// The next client that is of this process's user or root; others are sent away. Neither blocks nor is inherited.
/// Error: EAGAIN, no more; others: see AcceptsLater().
Result<Fd> AcceptOwnUser(const ListeningSocket& socket);

/// Whether `error` of AcceptOwnUser() leaves a client waiting, which poll() would report at once again.
bool AcceptsLater(const Error& error);

}  // namespace nacre::control
