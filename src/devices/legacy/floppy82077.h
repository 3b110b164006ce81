#pragma once
// A floppy disk controller, Intel 82077AA in PC/AT mode (data sheet 290166), with up to two drives that hold a diskette
// each. Data moves through channel 2 of the DMA controllers or, as SPECIFY says, by the processor. An image is the
// diskette's sectors in order, 512 bytes each: 160, 180, 320, 360 or 720 KiB, 1.2, 1.44 or 2.88 MB. Sectors have no
// deleted data marks, and other formats than the image's cannot be written. There are no SCAN commands. A command takes
// the time that the back end takes; seeks take none. Under the device lock.

#include <array>
#include <memory>
#include <string_view>

#include "base/result.h"
#include "bus/device.h"
#include "devices/legacy/dma8237.h"
#include "storage/disk.h"

namespace nacre::devices {

/// What a diskette's size says of it.
struct FloppyGeometry {
  uint8_t cylinders = 0, heads = 0, sectors = 0;
  uint8_t drive_type = 0;  ///< as CMOS byte 0x10 counts them: 1 to 5
  uint8_t rate = 0;        ///< data rate select of DSR and CCR that reads it
  uint64_t size_bytes() const { return uint64_t{cylinders} * heads * sectors * storage::kSectorSize; }
  /// Null: no diskette has so many bytes.
  static const FloppyGeometry* Find(uint64_t size_bytes);
};

class Floppy82077 final : public bus::Device {
 public:
  static constexpr uint16_t kPort = 0x3f0, kInputPort = 0x3f7;  ///< kSize ports, and one (0x3f6 is IDE's)
  static constexpr unsigned kSize = 6, kIrq = 6, kDmaChannel = 2, kDrives = 2;

  Floppy82077(bus::IrqLine& irq, Dma8237& dma);
  ~Floppy82077() override;
  /// An error unless a diskette has so many bytes; `name` is for the error.
  static Status CheckSize(std::string_view name, uint64_t size_bytes);
  /// A drive with a diskette; `name` is for the error. Before the machine runs.
  Status Plug(unsigned drive, std::string_view name, std::unique_ptr<storage::Disk> disk);
  /// What the CMOS byte 0x10 says of a drive: 1 to 5; 0: there is none.
  uint8_t drive_type(unsigned drive) const;

  bus::IoHandler& io() { return io_; }
  bus::IoHandler& input_io() { return input_; }
  /// Waits until the back end has done what it has; more of the command under way may follow.
  void Quiesce();

  std::string_view name() const override { return "floppy"; }
  void Reset() override;
  void Serialize(state::Archive& archive) override;

 private:
  static constexpr unsigned kUnits = 4;  ///< that commands can name
  struct Drive {
    std::unique_ptr<storage::Disk> disk;  ///< null: no drive
    FloppyGeometry geometry;
    bool changed = true;  ///< the disk change line
  };
  enum class Phase : uint8_t { kCommand, kExecution, kResult };
  enum class Work : uint8_t { kNone, kRead, kReadDeleted, kReadTrack, kVerify, kWrite, kFormat };
  struct CommandForm {
    uint8_t mask, code;
    uint8_t size;  ///< bytes, the first one too
    void (Floppy82077::*run)();
  };
  class Request;
  struct Io final : bus::IoHandler {
    explicit Io(Floppy82077& owner) : device(owner) {}
    uint64_t Read(uint64_t offset, unsigned size) override;
    void Write(uint64_t offset, unsigned size, uint64_t value) override;
    Floppy82077& device;
  };
  struct Input final : bus::IoHandler {
    explicit Input(Floppy82077& owner) : device(owner) {}
    uint64_t Read(uint64_t offset, unsigned size) override;
    void Write(uint64_t offset, unsigned size, uint64_t value) override;
    Floppy82077& device;
  };

  // Registers and commands: floppy82077.cc.
  static const CommandForm* FindForm(uint8_t code);
  uint8_t ReadRegister(unsigned reg);
  void WriteRegister(unsigned reg, uint8_t value);
  void WriteOutput(uint8_t value);
  uint8_t MainStatus() const;
  uint8_t ReadData();
  void WriteData(uint8_t value);
  void SoftReset();
  void PollDrives();
  void DropWork();
  void SetInterrupt(bool level);
  void Results(std::initializer_list<uint8_t> bytes);
  void Finish() { phase_ = Phase::kCommand; }
  void Specify();
  void SenseDrive();
  void SenseInterrupt();
  void Recalibrate();
  void SeekTo();
  void SeekRelative();
  void StepTo(unsigned unit, unsigned cylinder);
  void EndSeek(unsigned unit, uint8_t status);
  void DumpRegisters();
  void Version() { Results({0x90}); }
  void Configure();
  void Perpendicular();
  void Lock();
  void ReadId();
  void SaveWork(state::Archive& archive);
  void CheckLoaded(state::Archive& archive);

  // Data phases: floppy_transfer.cc.
  void StartTransfer();
  void StartFormat();
  uint8_t FindTrack() const;
  void NextSector();
  void SectorDone();
  bool ContinuesOnSide1() const;
  void Advance();
  void IdTaken();
  /// `size` bytes of the buffer are there, or room for them, for the processor or the DMA controller.
  void Offer(unsigned size);
  void MoveData();
  void DataMoved();
  void EndTransfer(uint8_t st1, uint8_t st2);
  void Begin(storage::DiskRequest::Kind kind);
  void RequestDone(int error);
  void Continue(int error);
  void DropRequest();
  bool to_host() const { return work_ != Work::kWrite && work_ != Work::kFormat; }
  bool by_processor() const { return (specify_[1] & 1) != 0; }

  bus::IrqLine& irq_;
  Dma8237& dma_;
  std::array<Drive, kDrives> drives_;

  uint8_t output_ = 0;  ///< DOR
  uint8_t tape_ = 0;
  uint8_t rate_ = 2;
  Phase phase_ = Phase::kCommand;
  std::array<uint8_t, 9> command_{};
  uint8_t command_size_ = 0;
  std::array<uint8_t, 10> result_{};
  uint8_t result_size_ = 0, result_next_ = 0;
  bool interrupt_ = false;
  std::array<uint8_t, kUnits> seek_status_{};  ///< ST0 for SENSE INTERRUPT STATUS, 0: none
  std::array<uint8_t, kUnits> cylinder_{};     ///< PCN
  std::array<uint8_t, 2> specify_{};
  uint8_t configuration_ = kDefaultConfiguration;
  uint8_t precompensation_ = 0;
  uint8_t perpendicular_ = 0;
  bool locked_ = false;
  static constexpr uint8_t kDefaultConfiguration = 0x20;  ///< FIFO off, polling on

  // The command under way.
  Work work_ = Work::kNone;
  uint8_t unit_ = 0, head_ = 0;
  uint8_t c_ = 0, h_ = 0, r_ = 0;
  uint8_t left_ = 0;  ///< sectors of READ TRACK, VERIFY with a count and FORMAT
  uint8_t st1_ = 0, st2_ = 0;
  bool seeked_ = false;    ///< by itself
  bool moving_ = false;    ///< the buffer waits for the processor or the DMA controller
  bool last_ = false;      ///< terminal count came
  uint16_t position_ = 0;  ///< in the buffer
  uint16_t wanted_ = 0;    ///< bytes of the buffer that are to move
  std::array<uint8_t, storage::kSectorSize> sector_{};

  std::unique_ptr<Request> request_;
  bool request_running_ = false, request_done_ = false, continuing_ = false, dropping_ = false;
  int request_error_ = 0;
  Io io_{*this};
  Input input_{*this};
};

}  // namespace nacre::devices
