# From C++ into one guest instruction and back: void NacreThunk...(ThunkContext* rdi, const uint8_t* snippet rsi).
# A snippet is the instruction and a RET. It sees RDI = the bounce buffer, RAX RCX RDX from the context, the guest's
# vector registers and MXCSR, and changes nothing that C++ keeps across calls but what is restored here.
#include "engine/interp/thunk_abi.h"

    .intel_syntax noprefix
    .text

    .macro ENTER
    push rbx
    .cfi_adjust_cfa_offset 8
    .cfi_offset rbx, -16
    mov rbx, rdi
    sub rsp, 16
    .cfi_adjust_cfa_offset 16
    stmxcsr [rsp]
    mov rax, [rbx + NACRE_THUNK_XSAVE]
    .endm

    .macro RUN
    mov rdi, [rbx + NACRE_THUNK_BOUNCE]
    mov rdx, [rbx + NACRE_THUNK_RDX]
    mov rcx, [rbx + NACRE_THUNK_RCX]
    mov rax, [rbx + NACRE_THUNK_RAX]
    call rsi
    mov [rbx + NACRE_THUNK_RAX], rax
    mov [rbx + NACRE_THUNK_RCX], rcx
    mov [rbx + NACRE_THUNK_RDX], rdx
    pushfq
    pop [rbx + NACRE_THUNK_FLAGS]
    mov rax, [rbx + NACRE_THUNK_XSAVE]
    .endm

    .macro LEAVE_THUNK
    ldmxcsr [rsp]
    add rsp, 16
    .cfi_adjust_cfa_offset -16
    pop rbx
    .cfi_adjust_cfa_offset -8
    ret
    .endm

# SSE on a host without AVX: XMM registers only.
    .globl NacreThunkSse
    .type NacreThunkSse, @function
NacreThunkSse:
    .cfi_startproc
    ENTER
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movaps xmm\n, [rax + NACRE_XSAVE_XMM + 16 * \n]
    .endr
    ldmxcsr [rax + NACRE_XSAVE_MXCSR]
    RUN
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movaps [rax + NACRE_XSAVE_XMM + 16 * \n], xmm\n
    .endr
    stmxcsr [rax + NACRE_XSAVE_MXCSR]
    LEAVE_THUNK
    .cfi_endproc
    .size NacreThunkSse, . - NacreThunkSse

# SSE and AVX with whole YMM registers: what an instruction does to upper halves happens by itself.
    .globl NacreThunkAvx
    .type NacreThunkAvx, @function
NacreThunkAvx:
    .cfi_startproc
    ENTER
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vmovaps xmm\n, [rax + NACRE_XSAVE_XMM + 16 * \n]
    vinsertf128 ymm\n, ymm\n, [rax + NACRE_XSAVE_YMM_HIGH + 16 * \n], 1
    .endr
    ldmxcsr [rax + NACRE_XSAVE_MXCSR]
    RUN
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vmovaps [rax + NACRE_XSAVE_XMM + 16 * \n], xmm\n
    vextractf128 [rax + NACRE_XSAVE_YMM_HIGH + 16 * \n], ymm\n, 1
    .endr
    stmxcsr [rax + NACRE_XSAVE_MXCSR]
    vzeroupper
    LEAVE_THUNK
    .cfi_endproc
    .size NacreThunkAvx, . - NacreThunkAvx

# EVEX, opmask instructions, and VEX where AVX-512 is enabled: all of the registers.
    .globl NacreThunkAvx512
    .type NacreThunkAvx512, @function
NacreThunkAvx512:
    .cfi_startproc
    ENTER
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vmovaps xmm\n, [rax + NACRE_XSAVE_XMM + 16 * \n]
    vinsertf128 ymm\n, ymm\n, [rax + NACRE_XSAVE_YMM_HIGH + 16 * \n], 1
    vinserti64x4 zmm\n, zmm\n, [rax + NACRE_XSAVE_ZMM_HIGH + 32 * \n], 1
    .endr
    .irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    vmovaps zmm\n, [rax + NACRE_XSAVE_ZMM16 + 64 * (\n - 16)]
    .endr
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7
    kmovq k\n, [rax + NACRE_XSAVE_OPMASK + 8 * \n]
    .endr
    ldmxcsr [rax + NACRE_XSAVE_MXCSR]
    RUN
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vmovaps [rax + NACRE_XSAVE_XMM + 16 * \n], xmm\n
    vextractf128 [rax + NACRE_XSAVE_YMM_HIGH + 16 * \n], ymm\n, 1
    vextracti64x4 [rax + NACRE_XSAVE_ZMM_HIGH + 32 * \n], zmm\n, 1
    .endr
    .irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    vmovaps [rax + NACRE_XSAVE_ZMM16 + 64 * (\n - 16)], zmm\n
    .endr
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7
    kmovq [rax + NACRE_XSAVE_OPMASK + 8 * \n], k\n
    .endr
    stmxcsr [rax + NACRE_XSAVE_MXCSR]
    vzeroupper
    LEAVE_THUNK
    .cfi_endproc
    .size NacreThunkAvx512, . - NacreThunkAvx512

# x87, MMX and what mixes them with XMM. Loads the guest's FXSAVE image and flags, leaves the new image in
# ThunkContext::fx. No waiting x87 instruction stands after the snippet: an exception that it left pending stays
# in the image.
    .globl NacreThunkX87
    .type NacreThunkX87, @function
NacreThunkX87:
    .cfi_startproc
    ENTER
    fnstcw [rsp + 4]
    fxrstor64 [rax]
    push [rbx + NACRE_THUNK_FLAGS]
    popfq
    RUN
    fxsave64 [rbx + NACRE_THUNK_FX]
    fninit
    fldcw [rsp + 4]
    LEAVE_THUNK
    .cfi_endproc
    .size NacreThunkX87, . - NacreThunkX87

    .section .note.GNU-stack, "", @progbits
