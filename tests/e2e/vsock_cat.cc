// vsock-cat PORT: connects to the host's port, sends standard input there and prints what comes, until both ends are done.
// vsock-cat -l PORT: takes one connection and sends back what comes. For test_vsock.py, inside a guest.
#include <linux/vm_sockets.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

namespace {

int Failed(const char* what) {
  perror(what);
  return 1;
}

bool WriteAll(int fd, const char* bytes, ssize_t count) {
  while (count > 0) {
    const ssize_t done = write(fd, bytes, static_cast<size_t>(count));
    if (done < 0) return false;
    bytes += done;
    count -= done;
  }
  return true;
}

/// From `in` to `peer`, and from `peer` to `out`.
int Copy(int peer, int in, int out) {
  char piece[65536];
  pollfd polled[2] = {{peer, POLLIN, 0}, {in, POLLIN, 0}};
  while (polled[0].fd >= 0) {
    if (poll(polled, 2, -1) < 0) return Failed("poll");
    if (polled[1].fd >= 0 && polled[1].revents != 0) {
      const ssize_t got = read(in, piece, sizeof(piece));
      if (got < 0) return Failed("read");
      if (got == 0) {
        shutdown(peer, SHUT_WR);
        polled[1].fd = -1;
      }
      if (!WriteAll(peer, piece, got)) return Failed("send");
    }
    if (polled[0].revents != 0) {
      const ssize_t got = read(peer, piece, sizeof(piece));
      if (got < 0) return Failed("receive");
      if (got == 0) polled[0].fd = -1;
      if (!WriteAll(out, piece, got)) return Failed("write");
    }
  }
  return 0;
}

}  // namespace

int main(int count, char** words) {
  const bool listens = count == 3 && strcmp(words[1], "-l") == 0;
  if (count != 2 && !listens) return 2;
  sockaddr_vm address{};
  address.svm_family = AF_VSOCK;
  address.svm_port = static_cast<unsigned>(atoi(words[count - 1]));
  address.svm_cid = listens ? VMADDR_CID_ANY : VMADDR_CID_HOST;
  const auto* const where = reinterpret_cast<const sockaddr*>(&address);
  const int peer = socket(AF_VSOCK, SOCK_STREAM, 0);
  if (peer < 0) return Failed("socket");
  if (!listens) return connect(peer, where, sizeof(address)) == 0 ? Copy(peer, 0, 1) : Failed("connect");
  if (bind(peer, where, sizeof(address)) != 0 || listen(peer, 1) != 0) return Failed("listen");
  puts("listens");
  fflush(stdout);
  const int client = accept(peer, nullptr, nullptr);
  if (client < 0) return Failed("accept");
  char piece[65536];
  for (;;) {
    const ssize_t got = read(client, piece, sizeof(piece));
    if (got < 0) return Failed("receive");
    if (got == 0) return 0;
    if (!WriteAll(client, piece, got)) return Failed("send");
  }
}
