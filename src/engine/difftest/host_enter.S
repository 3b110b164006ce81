# The way into one instruction on the bare host and out again, with every register the test's. Copied to
# NACRE_DIFF_TRAMPOLINE, so it uses absolute addresses only. See host_cpu.cc.
#include "engine/difftest/layout.h"

#define SAVE(offset) [NACRE_DIFF_SAVE + offset]

    .intel_syntax noprefix
    .section .rodata
    .balign 64

    .globl NacreDiffTrampoline
    .globl NacreDiffExit
    .globl NacreDiffExitFault
    .globl NacreDiffTrampolineEnd

# void enter(): the C calling convention.
NacreDiffTrampoline:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov qword ptr ds:SAVE(NACRE_DIFF_HOST_RSP), rsp
    mov eax, dword ptr ds:SAVE(NACRE_DIFF_XSAVE_MASK)
    xor edx, edx
    xrstor64 ds:SAVE(NACRE_DIFF_XSAVE_IN)
    cmp dword ptr ds:SAVE(NACRE_DIFF_USE_GS), 0
    je 1f
    rdgsbase rax
    mov qword ptr ds:SAVE(NACRE_DIFF_HOST_GS), rax
    mov rax, qword ptr ds:SAVE(NACRE_DIFF_GS_BASE)
    wrgsbase rax
1:
    # As Linux leaves them: null in 64-bit code, flat in 32-bit code.
    xor eax, eax
    cmp dword ptr ds:SAVE(NACRE_DIFF_COMPAT), 0
    je 2f
    mov eax, NACRE_DIFF_SS
2:
    mov ds, eax
    mov es, eax
    push qword ptr ds:SAVE(NACRE_DIFF_RFLAGS)
    popfq
    mov rax, qword ptr ds:SAVE(NACRE_DIFF_GPR + 0)
    mov rcx, qword ptr ds:SAVE(NACRE_DIFF_GPR + 8)
    mov rdx, qword ptr ds:SAVE(NACRE_DIFF_GPR + 16)
    mov rbx, qword ptr ds:SAVE(NACRE_DIFF_GPR + 24)
    mov rsp, qword ptr ds:SAVE(NACRE_DIFF_GPR + 32)
    mov rbp, qword ptr ds:SAVE(NACRE_DIFF_GPR + 40)
    mov rsi, qword ptr ds:SAVE(NACRE_DIFF_GPR + 48)
    mov rdi, qword ptr ds:SAVE(NACRE_DIFF_GPR + 56)
    mov r8, qword ptr ds:SAVE(NACRE_DIFF_GPR + 64)
    mov r9, qword ptr ds:SAVE(NACRE_DIFF_GPR + 72)
    mov r10, qword ptr ds:SAVE(NACRE_DIFF_GPR + 80)
    mov r11, qword ptr ds:SAVE(NACRE_DIFF_GPR + 88)
    mov r12, qword ptr ds:SAVE(NACRE_DIFF_GPR + 96)
    mov r13, qword ptr ds:SAVE(NACRE_DIFF_GPR + 104)
    mov r14, qword ptr ds:SAVE(NACRE_DIFF_GPR + 112)
    mov r15, qword ptr ds:SAVE(NACRE_DIFF_GPR + 120)
    # A far jump in both cases: the selector stands behind the 32-bit offset.
    jmp fword ptr ds:SAVE(NACRE_DIFF_TARGET)

# The instruction went on to the next one, where a jump leads here (64-bit code again).
NacreDiffExit:
    mov qword ptr ds:SAVE(NACRE_DIFF_OUT_GPR + 0), rax
    mov qword ptr ds:SAVE(NACRE_DIFF_OUT_GPR + 8), rcx
    mov qword ptr ds:SAVE(NACRE_DIFF_OUT_GPR + 16), rdx
    mov qword ptr ds:SAVE(NACRE_DIFF_OUT_GPR + 24), rbx
    mov qword ptr ds:SAVE(NACRE_DIFF_OUT_GPR + 32), rsp
    mov qword ptr ds:SAVE(NACRE_DIFF_OUT_GPR + 40), rbp
    mov qword ptr ds:SAVE(NACRE_DIFF_OUT_GPR + 48), rsi
    mov qword ptr ds:SAVE(NACRE_DIFF_OUT_GPR + 56), rdi
    mov qword ptr ds:SAVE(NACRE_DIFF_OUT_GPR + 64), r8
    mov qword ptr ds:SAVE(NACRE_DIFF_OUT_GPR + 72), r9
    mov qword ptr ds:SAVE(NACRE_DIFF_OUT_GPR + 80), r10
    mov qword ptr ds:SAVE(NACRE_DIFF_OUT_GPR + 88), r11
    mov qword ptr ds:SAVE(NACRE_DIFF_OUT_GPR + 96), r12
    mov qword ptr ds:SAVE(NACRE_DIFF_OUT_GPR + 104), r13
    mov qword ptr ds:SAVE(NACRE_DIFF_OUT_GPR + 112), r14
    mov qword ptr ds:SAVE(NACRE_DIFF_OUT_GPR + 120), r15
    mov rsp, qword ptr ds:SAVE(NACRE_DIFF_HOST_RSP)
    pushfq
    pop qword ptr ds:SAVE(NACRE_DIFF_OUT_RFLAGS)

# A signal handler has saved the registers and comes here with vector state and GS as the instruction left them.
NacreDiffExitFault:
    mov rsp, qword ptr ds:SAVE(NACRE_DIFF_HOST_RSP)
    push 2
    popfq
    mov eax, es
    mov dword ptr ds:SAVE(NACRE_DIFF_OUT_ES), eax
    mov eax, ss
    mov dword ptr ds:SAVE(NACRE_DIFF_OUT_SS), eax
    mov eax, ds
    mov dword ptr ds:SAVE(NACRE_DIFF_OUT_DS), eax
    mov eax, dword ptr ds:SAVE(NACRE_DIFF_XSAVE_MASK)
    xor edx, edx
    xsave64 ds:SAVE(NACRE_DIFF_XSAVE_OUT)
    fninit
    push 0x1f80
    ldmxcsr [rsp]
    add rsp, 8
    test dword ptr ds:SAVE(NACRE_DIFF_XSAVE_MASK), 4
    je 3f
    vzeroupper
3:
    cmp dword ptr ds:SAVE(NACRE_DIFF_USE_GS), 0
    je 4f
    rdgsbase rax
    mov qword ptr ds:SAVE(NACRE_DIFF_GS_BASE), rax
    mov rax, qword ptr ds:SAVE(NACRE_DIFF_HOST_GS)
    wrgsbase rax
4:
    xor eax, eax
    mov ds, eax
    mov es, eax
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
NacreDiffTrampolineEnd:

    .section .note.GNU-stack, "", @progbits
