#pragma once
// What every device behind an ATA or Serial ATA controller does alike (ATA/ATAPI-7 vol. 2, ch. 5 and 9): takes a
// command from its registers, moves its data by programmed I/O or DMA between the controller and a buffer or the disk
// image, and ends it. AtaDisk and AtapiDrive say what the commands mean; controllers implement AtaHost.
//
// Data of DMA commands moves straight between guest RAM and the image; programmed I/O goes through a buffer of fixed
// size. At most one request of the back end is on its way for the command in the registers.
//
// Threads: under the device lock (bus/device.h).

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "devices/ata/scatter_list.h"
#include "devices/ata/task_file.h"
#include "state/archive.h"
#include "storage/disk.h"

namespace nacre::devices {

/// What a drive sees of its controller. Any of these may be called from inside a call into the drive.
class AtaHost {
 public:
  virtual ~AtaHost() = default;
  /// Programmed I/O: AtaDrive::block() is to be read, or filled; then BlockDone. Whether an interrupt tells the guest.
  virtual void OnBlock(bool interrupt) = 0;
  /// DMA: RunDma is to be called, now or when the guest allows it.
  virtual void OnDmaRequest() = 0;
  /// RunDma came to the end of the list, or to what is not RAM, before the command was done. It may be called again
  /// with another list.
  virtual void OnDmaStopped() = 0;
  /// The command is done; the registers hold its result.
  virtual void OnCommandEnd(bool interrupt) = 0;
  /// A queued command is done (Serial ATA).
  virtual void OnQueuedEnd([[maybe_unused]] unsigned tag, [[maybe_unused]] bool ok) {}
};

class AtaDrive {
 public:
  /// The most that is moved by programmed I/O at a time.
  static constexpr uint32_t kBufferSize = 64 * 1024;
  /// The most that one request of the back end moves.
  static constexpr uint64_t kMaxRequest = 1 << 20;

  virtual ~AtaDrive();
  AtaDrive(const AtaDrive&) = delete;
  AtaDrive& operator=(const AtaDrive&) = delete;

  void SetHost(AtaHost* host) { host_ = host; }
  TaskFile& registers() { return regs_; }
  const TaskFile& registers() const { return regs_; }
  bool busy() const { return (regs_.status & (ata::kBusy | ata::kDataRequest)) != 0; }

  /// The command register was written. Not while the back end works for the command before (see Waiting).
  void Execute();
  /// The back end works for the command in the registers.
  bool waiting() const { return request_running_; }
  std::span<uint8_t> block() { return std::span(buffer_).subspan(position_, block_end_ - position_); }
  /// The direction of the data phase.
  bool to_host() const { return !write_; }
  void BlockDone();
  bool dma_requested() const { return phase_ == Phase::kDmaWait; }
  /// `list` must stay until the command ends or OnDmaStopped.
  void RunDma(ScatterList& list);
  /// Ends the command with ABRT, as a link that broke off its data phase does. Not while waiting().
  void Abort();

  /// Ends every command without telling.
  void AbortAll() { DropAll(); }

  /// SRST, or DEVICE RESET: ends what runs, keeps settings.
  void SoftReset();
  /// Power-on, or COMRESET.
  void HardReset();
  /// EXECUTE DEVICE DIAGNOSTIC: the signature, and the code in the error register.
  void Diagnose();
  /// Finishes what the back end has for the drive.
  virtual void Quiesce();
  virtual void Serialize(state::Archive& archive);
  /// The command set is the packet command set.
  virtual bool packet() const = 0;

 protected:
  enum class Phase : uint8_t {
    kIdle,
    kBlockIn,   ///< block() waits to be read
    kBlockOut,  ///< block() waits to be filled
    kDmaWait,
    kBackEnd,  ///< a request is on its way
  };
  struct Transfer {
    uint64_t offset = 0;  ///< in the image
    uint64_t size_bytes = 0;
    bool write = false;
    bool dma = false;
    uint32_t fill_bytes = ata::kSectorSize;  ///< programmed I/O: what the buffer takes at a time
    uint32_t block_limit = kBufferSize;      ///< and what the guest takes of that at a time
    bool flush_after = false;
  };

  /// `serial`: behind Serial ATA, where blocks of programmed I/O have no limit of their own.
  AtaDrive(std::unique_ptr<storage::Disk> disk, bool serial);

  // For commands. Each ends the command or begins its data phase.
  void Succeed(bool interrupt = true);
  void EndWithError(uint8_t error);
  void MoveDisk(const Transfer& transfer);
  /// The buffer's first bytes go to the guest.
  void SendBuffer(uint32_t size_bytes, bool dma, uint32_t block_limit = kBufferSize);
  /// BufferReceived is called when the guest has sent this much.
  void ReceiveBuffer(uint32_t size_bytes, bool dma, bool interrupt, uint32_t block_limit = kBufferSize);
  void Flush();
  void Verify(uint64_t offset, uint64_t size_bytes);
  /// One request of the back end for BackEndDone.
  void StartBackEnd(storage::DiskRequest::Kind kind, uint64_t offset, uint64_t size_bytes);

  virtual void Command() = 0;
  virtual void BufferReceived() { Succeed(); }
  /// Of StartBackEnd.
  virtual void BackEndDone([[maybe_unused]] int error) {}
  virtual void Signature() = 0;
  /// The back end failed at `offset`: ends the command.
  virtual void DiskFailed(int error, uint64_t offset) = 0;
  /// Sets what the registers show with a block, and at the end.
  virtual void ShowBlock() {}
  virtual void ShowEnd() {}
  /// Settings to their power-on values.
  virtual void ResetSettings() = 0;
  virtual void DropQueued() {}
  virtual uint8_t ready_status() const { return ata::kReady | ata::kSeekComplete; }

  storage::Disk& disk() { return *disk_; }
  const storage::Disk& disk() const { return *disk_; }
  AtaHost& host() { return *host_; }
  std::span<uint8_t> buffer() { return buffer_; }
  /// Zeros for the next SendBuffer.
  std::span<uint8_t> ClearedBuffer(size_t size);
  bool serial() const { return serial_; }
  bool dropping() const { return dropping_; }
  /// Waits for what the back end has, and forgets it.
  void DropAll();

 private:
  class Request;
  enum class Work : uint8_t { kNone, kFill, kStore, kDma, kVerify, kFlush, kOther };

  void ClearTransfer();
  void NextBlock();
  void NextPart();
  void DmaStep();
  void DmaBuffer();
  void Begin(Work work, storage::DiskRequest::Kind kind, uint64_t offset, uint64_t size_bytes);
  void BufferVector(uint64_t size_bytes);
  void RequestDone(int error);
  void Continue(int error);
  void EndTransfer();
  void SerializeTransfer(state::Archive& archive);

  std::unique_ptr<storage::Disk> disk_;
  const bool serial_;
  AtaHost* host_ = nullptr;
  TaskFile regs_;

  Phase phase_ = Phase::kIdle;
  bool from_disk_ = false;  ///< the data phase is the image's; else the buffer's
  bool write_ = false;      ///< from the guest
  bool dma_ = false;
  bool flush_after_ = false;
  bool interrupt_next_block_ = false;
  uint64_t offset_ = 0;
  uint64_t left_ = 0;
  uint32_t fill_bytes_ = ata::kSectorSize;
  uint32_t block_limit_ = kBufferSize;
  std::vector<uint8_t> buffer_;
  uint32_t buffer_size_ = 0;  ///< of it, what the data phase uses
  uint32_t position_ = 0;
  uint32_t block_end_ = 0;

  // Of the running machine only: nothing runs when it is saved.
  Work work_ = Work::kNone;
  std::unique_ptr<Request> request_;
  bool request_running_ = false;
  bool request_done_ = false;
  int request_error_ = 0;
  bool continuing_ = false;
  bool dropping_ = false;
  ScatterList* list_ = nullptr;
  std::vector<ScatterPiece> pieces_;
};

}  // namespace nacre::devices
