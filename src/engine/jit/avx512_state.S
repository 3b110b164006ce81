# For code that may use general registers only (*_nosimd.cc).
# What XSAVE's AVX-512 components hold, between the host's registers and an x86::XsaveArea (its address in RDI): by plain
# moves, for the layout of the host's own XSAVE may differ from ours (x86/cpu_state.h). Called with YMM0 to YMM15 loaded.
    .intel_syntax noprefix
    .text

#define OPMASK 1088
#define ZMM_HI256 1152
#define HI16_ZMM 1664

# void NacreLoadAvx512(const uint8_t* area)
    .globl NacreLoadAvx512
    .type NacreLoadAvx512, @function
NacreLoadAvx512:
    .cfi_startproc
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vinserti64x4 zmm\n, zmm\n, [rdi + ZMM_HI256 + 32 * \n], 1
    .endr
    .irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    vmovaps zmm\n, [rdi + HI16_ZMM + 64 * (\n - 16)]
    .endr
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7
    kmovq k\n, [rdi + OPMASK + 8 * \n]
    .endr
    ret
    .cfi_endproc
    .size NacreLoadAvx512, . - NacreLoadAvx512

# void NacreSaveAvx512(uint8_t* area)
    .globl NacreSaveAvx512
    .type NacreSaveAvx512, @function
NacreSaveAvx512:
    .cfi_startproc
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vextracti64x4 [rdi + ZMM_HI256 + 32 * \n], zmm\n, 1
    .endr
    .irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    vmovaps [rdi + HI16_ZMM + 64 * (\n - 16)], zmm\n
    .endr
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7
    kmovq [rdi + OPMASK + 8 * \n], k\n
    .endr
    ret
    .cfi_endproc
    .size NacreSaveAvx512, . - NacreSaveAvx512

# uint64_t NacreReadElementMask(unsigned which): see ElementMask in reemit.h
    .globl NacreReadElementMask
    .type NacreReadElementMask, @function
NacreReadElementMask:
    .cfi_startproc
    .irp n, 1, 2, 3, 4, 5, 6, 7
    cmp edi, \n
    jne 1f
    kmovq rax, k\n
    ret
1:
    .endr
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    cmp edi, 0x10 + \n
    jne 1f
    vmovmskps eax, ymm\n
    ret
1:
    cmp edi, 0x20 + \n
    jne 1f
    vmovmskpd eax, ymm\n
    ret
1:
    .endr
    ud2
    .cfi_endproc
    .size NacreReadElementMask, . - NacreReadElementMask

    .section .note.GNU-stack, "", @progbits
