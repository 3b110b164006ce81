#pragma once
// An ATAPI CD-ROM or DVD-ROM drive: the packet command set of ATA/ATAPI-7 vol. 2 with the commands of MMC-5 (SPC-3,
// SBC-2) that firmware and operating systems use to read data discs. One track of 2048-byte sectors. Under the device
// lock.

#include <array>
#include <memory>
#include <string>

#include "base/result.h"
#include "devices/ata/ata_drive.h"

namespace nacre::devices {

class AtapiDrive final : public AtaDrive {
 public:
  static constexpr uint32_t kSector = 2048;
  static constexpr uint32_t kCdbSize = 12;

  struct Options {
    std::string name = "cdrom";  ///< for errors
    std::string serial_number = "NACRE-CD0";
    bool serial_ata = false;
  };
  /// Fails unless the image is a whole number of 2048-byte sectors, at most 2^32 - 1.
  static Result<std::unique_ptr<AtapiDrive>> Create(const Options& options, std::unique_ptr<storage::Disk> disk);
  ~AtapiDrive() override { DropAll(); }

  bool packet() const override { return true; }
  void Serialize(state::Archive& archive) override;
  /// The disc lies in the drive and the tray is closed.
  bool loaded() const { return loaded_; }
  /// The data phase under way is that of the command packet itself.
  bool wants_packet() const { return cdb_phase_; }

 private:
  struct Sense {
    uint8_t key = 0, code = 0, qualifier = 0;
  };

  AtapiDrive(const Options& options, std::unique_ptr<storage::Disk> disk);
  void Command() override;
  void BufferReceived() override;
  void Signature() override;
  void DiskFailed(int error, uint64_t offset) override;
  void ShowBlock() override;
  void ShowEnd() override;
  void ResetSettings() override;

  void IdentifyPacket();
  void SetFeatures();
  void Packet();
  void PacketCommand();
  bool MediumCommand(uint8_t command);
  bool OtherCommand(uint8_t command);
  /// Answers with what lies in the buffer, up to what the guest allows.
  void Answer(uint32_t size_bytes, uint32_t allowed);
  void Check(const Sense& sense);
  void Read(uint32_t lba, uint32_t count);
  void ReadCd();
  void RequestSense();
  void Inquiry();
  void ReadCapacity();
  void ReadToc();
  void ReadDiscInformation();
  void ReadTrackInformation();
  void ModeSense();
  void GetConfiguration();
  void GetEventStatus();
  void MechanismStatus();
  void StartStop();
  bool is_dvd() const { return sectors_ > 450'000; }
  uint16_t Word(unsigned at) const { return static_cast<uint16_t>(cdb_[at] << 8 | cdb_[at + 1]); }
  uint32_t Long(unsigned at) const { return uint32_t{Word(at)} << 16 | Word(at + 2); }

  const Options options_;
  const uint32_t sectors_;

  std::array<uint8_t, kCdbSize> cdb_{};
  bool cdb_phase_ = false;
  bool packet_dma_ = false;
  uint16_t block_limit_ = 0xfffe;
  Sense sense_;
  bool attention_ = true;  ///< the next command learns of the reset, or of a new disc
  Sense attention_sense_;
  uint8_t event_ = 0;  ///< MMC-5 table 302: 2 new media, 3 media removal; 0 none
  bool loaded_ = true;
  bool locked_ = false;
  uint8_t transfer_mode_ = 0x22;
};

}  // namespace nacre::devices
