#pragma once
// Small kernels of every kind that the loaders know, for tests.

#include <elf.h>
#include <gtest/gtest.h>

#include <cstring>

#include "boot/loader.h"

namespace nacre::boot {

template <typename T>
void Put(KernelFile& file, size_t at, T value) {
  ASSERT_LE(at + sizeof(T), file.size());
  std::memcpy(file.data() + at, &value, sizeof(T));
}

/// One setup sector and 4 KiB of payload filled with 0x90.
inline KernelFile BzImage(bool has_64bit_entry) {
  KernelFile file(1024 + 4096, 0x90);
  std::fill(file.begin(), file.begin() + 1024, 0);
  file[0x1f1] = 1;
  Put<uint32_t>(file, 0x1f4, 4096 / 16);
  Put<uint16_t>(file, 0x1fe, 0xaa55);
  file[0x201] = 0x66;
  Put<uint32_t>(file, 0x202, 0x53726448);
  Put<uint16_t>(file, 0x206, 0x20f);
  file[0x211] = 1;
  Put<uint32_t>(file, 0x22c, 0x7fffffff);
  Put<uint16_t>(file, 0x236, has_64bit_entry ? 1 : 0);
  Put<uint32_t>(file, 0x238, 2047);
  Put<uint64_t>(file, 0x258, 16 * kMiB);
  Put<uint32_t>(file, 0x260, 8 * kMiB);
  return file;
}

/// A 32- or 64-bit ELF with one segment of 256 bytes at 1 MiB, 8 KiB in memory, and a PVH note if `entry` is not 0.
template <typename Header, typename Program>
KernelFile Elf(uint32_t pvh_entry) {
  KernelFile file(0x400, 0);
  Header header{};
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_ident[EI_CLASS] = sizeof(Header) == sizeof(Elf64_Ehdr) ? ELFCLASS64 : ELFCLASS32;
  header.e_ident[EI_DATA] = ELFDATA2LSB;
  header.e_type = ET_EXEC;
  header.e_machine = sizeof(Header) == sizeof(Elf64_Ehdr) ? EM_X86_64 : EM_386;
  header.e_entry = 0xc0000010;  // virtual: 1 MiB + 0x10 physical
  header.e_phoff = 0x40;
  header.e_phentsize = sizeof(Program);
  header.e_phnum = 2;
  std::memcpy(file.data(), &header, sizeof(header));
  Program load{};
  load.p_type = PT_LOAD;
  load.p_offset = 0x200;
  load.p_filesz = 0x100;
  load.p_memsz = 0x2000;
  load.p_vaddr = 0xc0000000;
  load.p_paddr = kMiB;
  std::memcpy(file.data() + 0x40, &load, sizeof(load));
  Program note{};
  note.p_type = pvh_entry ? PT_NOTE : PT_NULL;
  note.p_offset = 0x300;
  note.p_filesz = 20;
  std::memcpy(file.data() + 0x40 + sizeof(load), &note, sizeof(note));
  const uint32_t words[] = {4, 4, 18, 0x006e6558, pvh_entry};
  std::memcpy(file.data() + 0x300, words, sizeof(words));
  std::fill(file.begin() + 0x200, file.begin() + 0x300, 0xf4);
  return file;
}

inline KernelFile Multiboot(uint32_t flags) {
  KernelFile file(0x1000, 0xf4);
  const uint32_t header[] = {0x1badb002, flags,        0u - 0x1badb002 - flags, kMiB + 0x100,
                             kMiB,       kMiB + 0x800, kMiB + 0x3000,           kMiB + 0x200};
  std::memcpy(file.data() + 0x300, header, sizeof(header));
  return file;
}

}  // namespace nacre::boot
