# The loop whose speed the probe compares (kvm_probe.h): once as the probe's guest, once as a function of the host.
# RDI: the data page (probe_layout.h). Changes RAX, RCX, RDX and the flags.
#include "engine/kvm/probe_layout.h"

    .intel_syntax noprefix

    .macro PROBE_LOOP
    mov rax, [rdi + NACRE_PROBE_VALUE]
    mov rcx, [rdi + NACRE_PROBE_ROUNDS]
    .balign 64, 0x90 # NOPs also where the section holds no code
.Lround\@:
    mov edx, eax
    and edx, 0x7f8
    add rax, [rdi + rdx + NACRE_PROBE_TABLE]
    rol rax, 7
    xor rax, rcx
    mov [rdi + rdx + NACRE_PROBE_TABLE], rax
    test cl, 3
    jz .Lskip\@
    lea rax, [rax + rcx + 3]
.Lskip\@:
    dec rcx
    jnz .Lround\@
    mov [rdi + NACRE_PROBE_VALUE], rax
    .endm

    .section .rodata
    .balign 64
    .globl NacreProbeGuest
    .globl NacreProbeGuestEnd
NacreProbeGuest:
    PROBE_LOOP
    out NACRE_PROBE_PORT, al
    jmp NacreProbeGuest
NacreProbeGuestEnd:

    .text
    .balign 64
    .globl NacreProbeNative
    .type NacreProbeNative, @function
NacreProbeNative:
    .cfi_startproc
    PROBE_LOOP
    ret
    .cfi_endproc
    .size NacreProbeNative, . - NacreProbeNative

    .section .note.GNU-stack, "", @progbits
