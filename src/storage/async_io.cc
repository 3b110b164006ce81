#include "storage/async_io.h"

namespace nacre::storage {

Result<std::unique_ptr<AsyncIo>> AsyncIo::Create(Engine engine) {
  if (engine == Engine::kThreads) return internal::CreateThreadIo();
  auto uring = internal::CreateUringIo();
  if (uring || engine == Engine::kIoUring) return uring;
  return internal::CreateThreadIo();  // containers often forbid io_uring (EPERM, ENOSYS), old hosts lock
                                      // memory
}

}  // namespace nacre::storage
