#pragma once
// Where the differential test puts things, and what host_enter.S and C++ share. The addresses are linear addresses that
// mean the same on the bare host, where they are mapped at these fixed places, and in the guest, whose page tables map
// them. All lie below 4 GiB, so that 32-bit code reaches them. Plain numbers: the assembler reads this file too.

#define NACRE_DIFF_TRAMPOLINE 0x10000000 /* host only: entry and exit code */
#define NACRE_DIFF_SAVE 0x10002000       /* host only: registers in and out */
#define NACRE_DIFF_CODE 0x10010000       /* two pages, read, write, execute */
#define NACRE_DIFF_DATA 0x10020000       /* two pages, read, write; unmapped on both sides */
#define NACRE_DIFF_READONLY 0x10030000   /* one page, read; unmapped on both sides */

#define NACRE_DIFF_CODE_BYTES 0x2000
#define NACRE_DIFF_DATA_BYTES 0x2000

/* Offsets in the save area. */
#define NACRE_DIFF_GPR 0
#define NACRE_DIFF_RFLAGS 128
#define NACRE_DIFF_TARGET 136 /* where to enter: offset, for 32-bit code followed by the selector */
#define NACRE_DIFF_HOST_RSP 152
#define NACRE_DIFF_COMPAT 160 /* nonzero: 32-bit code */
#define NACRE_DIFF_GS_BASE 168
#define NACRE_DIFF_HOST_GS 176
#define NACRE_DIFF_USE_GS 184 /* nonzero: the host lets user code set GS's base */
#define NACRE_DIFF_XSAVE_MASK 192
#define NACRE_DIFF_OUT_GPR 256
#define NACRE_DIFF_OUT_RFLAGS 384
#define NACRE_DIFF_OUT_ES 392
#define NACRE_DIFF_OUT_SS 396
#define NACRE_DIFF_OUT_DS 400
#define NACRE_DIFF_XSAVE_IN 1024
#define NACRE_DIFF_XSAVE_OUT 4096

/* Linux' selectors for user code (arch/x86/include/asm/segment.h), which the guest has too. */
#define NACRE_DIFF_CS64 0x33
#define NACRE_DIFF_CS32 0x23
#define NACRE_DIFF_SS 0x2b
