#include "boot/elf_image.h"

#include <elf.h>

#include <algorithm>

#include "boot/boot_layout.h"

namespace nacre::boot {

namespace {

constexpr unsigned kMaxProgramHeaders = 128;

/// The `count` bytes at `offset`, if the file has them.
std::optional<std::span<const uint8_t>> Slice(std::span<const uint8_t> file, uint64_t offset, uint64_t count) {
  if (offset > file.size() || count > file.size() - offset) return std::nullopt;
  return file.subspan(offset, count);
}

template <typename T>
std::optional<T> ReadAt(std::span<const uint8_t> file, uint64_t offset) {
  const auto bytes = Slice(file, offset, sizeof(T));
  if (!bytes) return std::nullopt;
  T value;
  std::memcpy(&value, bytes->data(), sizeof(T));
  return value;
}

template <typename Header, typename ProgramHeader>
Status ReadSegments(std::span<const uint8_t> file, uint64_t& entry, std::vector<ElfSegment>& segments) {
  const auto header = ReadAt<Header>(file, 0);
  if (!header) return Fail("the ELF header is cut off");
  if (header->e_machine != EM_X86_64 && header->e_machine != EM_386)
    return Fail("an ELF file for another machine (e_machine {})", header->e_machine);
  if (header->e_type != ET_EXEC && header->e_type != ET_DYN)
    return Fail("not an ELF executable (e_type {})", header->e_type);
  if (header->e_phnum == 0) return Fail("the ELF file has no program headers");
  if (header->e_phnum > kMaxProgramHeaders) return Fail("the ELF file has {} program headers", header->e_phnum);
  if (header->e_phentsize < sizeof(ProgramHeader)) return Fail("ELF program headers of {} bytes", header->e_phentsize);
  entry = header->e_entry;
  for (uint64_t i = 0; i < header->e_phnum; ++i) {
    // e_phoff may be anything: the sum must not wrap.
    if (header->e_phoff > file.size()) return Fail("the ELF program headers lie outside the file");
    const auto program = ReadAt<ProgramHeader>(file, header->e_phoff + i * header->e_phentsize);
    if (!program) return Fail("the ELF program headers lie outside the file");
    if ((program->p_type == PT_LOAD || program->p_type == PT_NOTE) &&
        !Slice(file, program->p_offset, program->p_filesz))
      return Fail("ELF segment {} lies outside the file ({} bytes at {:#x}; the file has {})", i,
                  uint64_t{program->p_filesz}, uint64_t{program->p_offset}, file.size());
    segments.push_back(
        {program->p_type, program->p_offset, program->p_filesz, program->p_vaddr, program->p_paddr, program->p_memsz});
  }
  return {};
}

}  // namespace

bool ElfImage::HasMagic(std::span<const uint8_t> file) {
  return file.size() >= SELFMAG && std::memcmp(file.data(), ELFMAG, SELFMAG) == 0;
}

Result<ElfImage> ElfImage::Parse(std::span<const uint8_t> file) {
  if (!HasMagic(file)) return Fail("not an ELF file");
  if (file.size() < EI_NIDENT) return Fail("the ELF header is cut off");
  if (file[EI_DATA] != ELFDATA2LSB) return Fail("a big-endian ELF file");
  ElfImage image;
  image.file_ = file;
  image.is64_ = file[EI_CLASS] == ELFCLASS64;
  if (image.is64_)
    NACRE_TRY_STATUS((ReadSegments<Elf64_Ehdr, Elf64_Phdr>(file, image.entry_, image.segments_)));
  else
    NACRE_TRY_STATUS((ReadSegments<Elf32_Ehdr, Elf32_Phdr>(file, image.entry_, image.segments_)));
  return image;
}

uint64_t ElfImage::PhysicalEntry() const {
  for (const ElfSegment& segment : segments_) {
    if (segment.type == kLoad && entry_ >= segment.virtual_address &&
        entry_ - segment.virtual_address < segment.memory_bytes)
      return segment.physical_address + (entry_ - segment.virtual_address);
  }
  return entry_;
}

std::optional<uint64_t> ElfImage::NoteValue(std::string_view owner, uint32_t type) const {
  for (const ElfSegment& segment : segments_) {
    if (segment.type != kNote) continue;
    const auto notes = *Slice(file_, segment.file_offset, segment.file_bytes);
    uint64_t at = 0;
    while (const auto note = ReadAt<Elf64_Nhdr>(notes, at)) {  // the same for both classes
      const uint64_t name_at = at + sizeof(*note);
      const uint64_t value_at = name_at + AlignUp(note->n_namesz, 4);
      at = value_at + AlignUp(note->n_descsz, 4);
      const auto name = Slice(notes, name_at, note->n_namesz);
      if (!name || note->n_type != type || name->size() != owner.size() + 1 ||
          !std::equal(owner.begin(), owner.end(), name->begin()))
        continue;
      if (note->n_descsz == 8) return ReadAt<uint64_t>(notes, value_at);
      if (note->n_descsz == 4) return ReadAt<uint32_t>(notes, value_at);
    }
  }
  return std::nullopt;
}

Result<GuestPhys> ElfImage::Load(memory::GuestMemory& memory) const {
  GuestPhys end = kHighMemory;
  bool loaded = false;
  for (const ElfSegment& segment : segments_) {
    if (segment.type != kLoad || segment.memory_bytes == 0) continue;
    if (segment.file_bytes > segment.memory_bytes)
      return Fail("an ELF segment is larger in the file ({} bytes) than in memory ({})", segment.file_bytes,
                  segment.memory_bytes);
    const GuestPhys address(segment.physical_address);
    NACRE_TRY_STATUS(
        LoadBytes(memory, address, file_.subspan(segment.file_offset, segment.file_bytes), segment.memory_bytes));
    end = std::max(end, address + segment.memory_bytes);
    loaded = true;
  }
  if (!loaded) return Fail("the ELF file has nothing to load");
  return end;
}

Status LoadBytes(memory::GuestMemory& memory, GuestPhys address, std::span<const uint8_t> from, uint64_t memory_bytes) {
  if (address < kHighMemory)
    return Fail("it wants to be loaded at {:#x}; Nacre loads kernels at 1 MiB and above", address.value);
  uint8_t* to = memory.HostPointer(address, memory_bytes);
  if (!to)
    return Fail("it needs memory from {:#x} to {:#x}, but the guest's ends at {:#x}: give more with --memory",
                address.value, address.value + memory_bytes,
                memory.regions().back().start.value + memory.regions().back().size_bytes);
  if (!from.empty()) std::memcpy(to, from.data(), from.size());
  memory.MarkWritten(address, from.size());
  // Whole pages are given back (they read as zero), so that only the edges are written.
  const GuestPhys rest = address + from.size(), end = address + memory_bytes;
  const GuestPhys first_page(std::min(AlignUp(rest.value, kPageSize), end.value));
  const GuestPhys last_page(std::max(AlignDown(end.value, kPageSize), first_page.value));
  const auto zero = [&](GuestPhys start, uint64_t count) {
    if (count == 0) return;
    std::memset(to + (start - address), 0, count);
    memory.MarkWritten(start, count);
  };
  if (last_page > first_page && !memory.Discard(first_page, last_page - first_page))
    zero(first_page, last_page - first_page);
  zero(rest, first_page - rest);
  zero(last_page, end - last_page);
  return {};
}

}  // namespace nacre::boot
