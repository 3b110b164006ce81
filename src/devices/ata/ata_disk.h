#pragma once
// An ATA disk (ATA8-ACS, with the CHS commands of ATA-5 for old systems): 28- and 48-bit addresses, programmed I/O,
// DMA, flush, verify, trim, power commands, the little of SMART that operating systems ask for; behind Serial ATA also
// native command queuing (SATA 3.0, 13.6). Under the device lock.

#include <array>
#include <memory>
#include <string>

#include "devices/ata/ata_drive.h"

namespace nacre::devices {

class AtaDisk final : public AtaDrive {
 public:
  static constexpr unsigned kQueueDepth = 32;
  static constexpr uint8_t kMaxMultiple = 16;

  struct Options {
    std::string serial_number = "NACRE-0";  ///< at most 20 characters are shown
    bool serial_ata = false;
  };
  AtaDisk(const Options& options, std::unique_ptr<storage::Disk> disk);
  ~AtaDisk() override;

  bool packet() const override { return false; }
  void Quiesce() override;
  void Serialize(state::Archive& archive) override;

  /// READ and WRITE FPDMA QUEUED, as the registers say; ends by OnQueuedEnd. `list` must stay until then. False: the
  /// command cannot be carried out; the registers hold the error, nothing else is told.
  bool ExecuteQueued(unsigned tag, ScatterList& list);
  /// Some queued command is on its way.
  bool queue_running() const { return running_tags_ != 0; }
  bool queued(unsigned tag) const { return (running_tags_ >> tag & 1) != 0; }
  uint64_t sectors() const { return sectors_; }

 private:
  class Queued final : public storage::DiskRequest {
   public:
    Queued(AtaDisk* owner, unsigned own_tag) : disk(owner), tag(own_tag) {}
    void Done(int error) override { disk->QueuedDone(tag, error); }

    AtaDisk* const disk;
    const unsigned tag;
    ScatterList* list = nullptr;
    std::vector<ScatterPiece> pieces;
    uint64_t next_offset = 0;
    uint64_t left = 0;
    bool write = false;
    bool through = false;
    int result = 0;
  };
  struct Geometry {
    uint16_t cylinders = 1;
    uint8_t heads = 16;
    uint8_t sectors = 63;
  };
  enum class Address : uint8_t { kOld, kLong };

  void Command() override;
  bool MediaCommand(uint8_t command);
  void SettingsCommand(uint8_t command);
  void BufferReceived() override;
  void BackEndDone(int error) override;
  void Signature() override;
  void DiskFailed(int error, uint64_t offset) override;
  void ResetSettings() override;
  void DropQueued() override;

  struct Access {
    bool write = false, dma = false, multiple = false, through = false;
  };
  void ReadOrWrite(Address address, const Access& access);
  bool FindSectors(Address address, uint64_t& lba, uint32_t& count);
  void VerifySectors(Address address);
  void Identify();
  void SetFeatures();
  bool SetTransferMode(uint8_t mode);
  void SetMultiple();
  void SetGeometry();
  void Smart();
  void ReadLog();
  void Trim();
  void TrimNext();

  void QueuedDone(unsigned tag, int error);
  void QueuedStep(unsigned tag);
  void ContinueQueued(unsigned tag);

  const Options options_;
  const uint64_t sectors_;
  const Geometry default_geometry_;

  Geometry geometry_;
  uint8_t multiple_ = 0;  ///< sectors of a block; 0: the MULTIPLE commands are off
  uint8_t mwdma_mode_ = 0, udma_mode_ = 0;
  bool udma_ = false;
  bool write_cache_ = true;
  bool look_ahead_ = true;
  bool smart_ = true;
  uint8_t power_mode_ = 0xff;
  uint8_t failed_tag_ = 0x80;  ///< NCQ error log: bit 7: no queued command
  uint8_t failed_status_ = 0, failed_error_ = 0;
  uint64_t failed_lba_ = 0;
  uint32_t trim_next_ = 0, trim_end_ = 0;  ///< ranges in the buffer

  std::array<std::unique_ptr<Queued>, kQueueDepth> queue_;
  uint32_t running_tags_ = 0;
  uint32_t done_tags_ = 0;
  bool continuing_queue_ = false;
};

}  // namespace nacre::devices
