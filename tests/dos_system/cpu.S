# Instructions in real mode, and the exceptions that real mode has.
#include "dos.h"
    .code16
    .text
    .globl cpu_checks
cpu_checks:
    movw %sp, %bp
    pushw %sp
    popw %bx
    movzwl %bx, %ebx
    cmpw %bp, %bx
    check e, "PUSH SP pushes what it was"
    movw $0x1111, %ax
    movw $0x2222, %cx
    movw $0x3333, %dx
    movw $0x4444, %bx
    movw $0x6666, %si
    movw $0x7777, %di
    pushaw
    movw %sp, %bp
    movw (%bp), %ax
    xorw 8(%bp), %ax                    # 7777 ^ 4444
    xorw 14(%bp), %ax                   # ^ 1111
    movw $0x7f00, 6(%bp)                # SP is skipped by POPA
    xorw %cx, %cx
    xorw %si, %si
    movw %ax, 14(%bp)
    popaw
    cmpw $0x2222, %ax
    jne 1f
    cmpw $0x2222, %cx
    jne 1f
    cmpw $0x6666, %si
1:  check e, "PUSHA and POPA"

    movw $0x1234, %bp
    movw %sp, %si
    pushw $0x5555
    movw %sp, %bp
    enterw $10, $2                      # pushes BP, the outer frame, its own
    movw %si, %ax
    subw %sp, %ax                       # 2 + 2 + 2 + 2 + 10
    movzwl %ax, %ebx
    movw (%bp), %cx
    leavew
    cmpw %bp, %cx
    jne 1f
    cmpw $18, %bx
1:  check e, "ENTER with two levels, LEAVE"
    popw %ax
    cmpw %si, %sp
    check e, "the stack is where it was"

    movw $far_pointer, %si
    lesw (%si), %bx
    movw %es, %ax
    shll $16, %ebx
    movw %ax, %bx
    cmpl $0x1234b800, %ebx
    check e, "LES"
    pushw %ds
    ldsw %cs:(%si), %di
    movw %ds, %ax
    popw %ds
    cmpw $0xb800, %ax
    jne 1f
    cmpw $0x1234, %di
1:  check e, "LDS with a segment prefix"

    pushw %ds
    popw %es
    movw $source, %si                   # overlapping, up and down
    movw $source+2, %di
    movw $3, %cx
    movl $0x44332211, source
    movl $0x88776655, source+4
    rep movsw
    movl source+4, %ebx
    cmpl $0x22112211, %ebx
    check e, "REP MOVSW over itself"
    movl $0x44332211, source
    movl $0x88776655, source+4
    movw $source+4, %si
    movw $source+6, %di
    movw $3, %cx
    std
    rep movsw
    cld
    movl source+4, %ebx
    cmpl $0x66554433, %ebx
    check e, "REP MOVSW downwards"
    movw $text, %di
    movw $0xffff, %cx
    xorb %al, %al
    repne scasb
    notw %cx
    movzwl %cx, %ebx
    cmpw $(text_end - text), %cx
    check e, "REPNE SCASB"
    movw $text, %si
    movw $other_text, %di
    movw $100, %cx
    repe cmpsb
    movzwl %cx, %ebx
    cmpw $96, %cx                       # the fourth differs
    jne 1f
    cmpb $'t', -1(%si)
1:  check e, "REPE CMPSB"
    movw $0xfffe, %si
    movw %cs:text, %ax
    pushw %ds
    pushw $0x2000
    popw %ds
    movw $0xa1a2, 0xfffe
    movw $0xa3a4, 0
    movw $0xfffe, %si
    lodsw
    xchgw %ax, %bx
    lodsw
    popw %ds
    shll $16, %ebx
    movw %ax, %bx
    cmpl $0xa1a2a3a4, %ebx
    check e, "LODSW goes around at 64 KiB"
    movl $source, %edi
    movl $0x10002, %ecx
    movl $0x10000, %eax
    movw $2, %cx
    movw $0x5a5a, %ax
    rep stosw                           # CX counts, not ECX
    movl source, %ebx
    cmpl $0x5a5a5a5a, %ebx
    jne 1f
    cmpl $0x10000, %ecx
1:  check e, "REP counts in CX"
    movl $0x10003, %ecx
    xorl %ebx, %ebx
1:  incl %ebx
    loopw 1b
    cmpl $3, %ebx
    check e, "LOOP counts in CX"
    movl $5, %ecx
    xorl %ebx, %ebx
1:  incl %ebx
    addr32 loop 1b
    cmpl $5, %ebx
    check e, "LOOP counts in ECX with a prefix"

    movb $0x38, %al
    addb $0x45, %al
    daa
    movzbl %al, %ebx
    cmpb $0x83, %al
    check e, "DAA"
    movb $0x83, %al
    subb $0x45, %al
    das
    movzbl %al, %ebx
    cmpb $0x38, %al
    check e, "DAS"
    movw $0x0009, %ax
    addb $6, %al
    aaa
    movzwl %ax, %ebx
    cmpw $0x0105, %ax
    check e, "AAA"
    movw $0x0203, %ax
    subb $8, %al
    aas
    movzwl %ax, %ebx
    cmpw $0x0105, %ax
    check e, "AAS"
    movb $63, %al
    aam
    movzwl %ax, %ebx
    cmpw $0x0603, %ax
    check e, "AAM"
    movw $0x0603, %ax
    aad
    movzwl %ax, %ebx
    cmpw $63, %ax
    check e, "AAD"
    movw $table, %bx
    movb $2, %al
    xlatb
    movzbl %al, %ebx
    cmpb $0x77, %al
    check e, "XLAT"

    movw $0x8001, %ax
    stc
    rclw $1, %ax
    jnc 1f
    movzwl %ax, %ebx
    cmpw $3, %ax
1:  check e, "RCL through the carry"
    movb $0x81, %al
    movb $33, %cl                       # counts modulo 32
    rolb %cl, %al
    movzbl %al, %ebx
    cmpb $3, %al
    check e, "shift counts modulo 32"
    movw $0x1234, %ax
    movw $0xabcd, %dx
    shldw $4, %dx, %ax
    movzwl %ax, %ebx
    cmpw $0x234a, %ax
    check e, "SHLD"
    shrdw $8, %dx, %ax
    movzwl %ax, %ebx
    cmpw $0xcd23, %ax
    check e, "SHRD"
    movw $-300, %ax
    imulw $7, %ax, %bx
    movswl %bx, %ebx
    cmpl $-2100, %ebx
    check e, "IMUL by a constant"
    imulw $1000, %bx, %bx
    check o, "IMUL overflows"
    movl $0x12345678, %eax
    movl $0x9abcdef0, %ecx
    mull %ecx
    movl %edx, %ebx
    cmpl $0x0b00ea4e, %edx
    check e, "32-bit MUL in real mode"
    movl $0x00100000, %eax
    bsfl %eax, %ebx
    cmpl $20, %ebx
    check e, "BSF"
    movl $0, source
    movw $-3, %ax
    btsw %ax, source+2                  # a bit before the operand
    movl source, %ebx
    cmpl $0x2000, %ebx
    check e, "BTS reaches before its operand"
    movsbw table+1, %ax
    movzwl %ax, %ebx
    cmpw $0xff99, %ax
    check e, "MOVSX"
    pushfl
    popl %ebx
    xorl $0x240000, %ebx                # ID and AC
    pushl %ebx
    popfl
    pushfl
    popl %eax
    xorl %ebx, %eax
    testl $0x240000, %eax
    check z, "a CPU that has CPUID"
    xorl $0x240000, %ebx
    pushl %ebx
    popfl

    # Code that changes itself: ahead, behind, and the instruction that runs.
    movb $0x11, patch+1
    jmp patch
patch:
    movb $0, %al
    movzbl %al, %ebx
    cmpb $0x11, %al
    check e, "code changed ahead of itself"
    xorl %ebx, %ebx
    movw $1000, %cx
1:  movw %cx, patched+2
    movw $patched, %ax
    call *%ax
    addl %eax, %ebx
    loopw 1b
    cmpl $500500, %ebx
    check e, "code changed a thousand times"
    movw $0x9090, %ax
    movw $overwritten, %di
    jmp 2f
2:  stosw                               # over the INC behind it
overwritten:
    incw %ax
    nop
    movzwl %ax, %ebx
    cmpw $0x9090, %ax
    check e, "the next instruction changed"
    movb $0x40, overwritten
    movb $0x90, overwritten+1
    movw $far_code, %si                 # a routine copied elsewhere, under another segment
    pushw $0x3000
    popw %es
    movw $0x80, %di
    movw $8, %cx
    rep movsb
    lcall $0x3000, $0x80
    movzwl %ax, %ebx
    cmpw $0x3000, %ax
    check e, "far call to copied code"
    lcall $0x2ff0, $0x180
    movzwl %ax, %ebx
    cmpw $0x2ff0, %ax
    check e, "and under another segment"
    pushw $7
    pushw $8
    call clean
    movzwl %ax, %ebx
    cmpw $15, %ax
    check e, "RET n"
    ret

patched:
    movl $0, %eax                       # 66 b8: its immediate begins at 2
    ret
far_code:
    movw %cs, %ax
    lret
    .byte 0, 0, 0, 0, 0
clean:
    movw %sp, %bp
    movw 2(%bp), %ax
    addw 4(%bp), %ax
    ret $4

# ---- Exceptions. Each is caught by a handler that counts, keeps the pushed address and goes on at `resume`.
    .globl fault_checks
fault_checks:
    movb $0, %bl
    movw $1f, resume
    call catch
    xorw %dx, %dx
    movw $5, %ax
    xorw %cx, %cx
0:  divw %cx
1:  call caught
    cmpw $0b, fault_ip
    check e, "a divide error is INT 0 at the instruction"
    movw $1f, resume
    call catch
    movw $-32768, %ax
    movb $-1, %cl
0:  idivb %cl
1:  call caught
    cmpw $0b, fault_ip
    check e, "IDIV overflows to INT 0"
    movb $6, %bl
    movw $1f, resume
    call catch
0:  ud2
1:  call caught
    cmpw $0b, fault_ip
    check e, "UD2 is INT 6"
    movw $1f, resume
    call catch
0:  .byte 0xf0, 0x89, 0xc0              # LOCK MOV AX, AX
1:  call caught
    cmpw $0b, fault_ip
    check e, "LOCK MOV is INT 6"
    movw $1f, resume
    call catch
0:  .byte 0x8f, 0xc8                    # POP with another extension
1:  call caught
    cmpw $0b, fault_ip
    check e, "8F /1 is INT 6"
    movw $1f, resume
    call catch
0:  sldt %ax
1:  call caught
    cmpw $0b, fault_ip
    check e, "SLDT in real mode is INT 6"
    movb $5, %bl
    movw $1f, resume
    call catch
    movw $10, %ax
    boundw %ax, bounds
    movw $21, %ax
0:  boundw %ax, bounds
1:  call caught
    cmpw $0b, fault_ip
    check e, "BOUND is INT 5, outside only"
    movb $4, %bl
    movw $1f, resume
    call catch
    movb $127, %al
    incb %al
    into
0:
1:  call caught
    cmpw $0b, fault_ip
    check e, "INTO is INT 4 behind it"
    movb $3, %bl
    movw $1f, resume
    call catch
    int3
0:
1:  call caught
    cmpw $0b, fault_ip
    check e, "INT3 is INT 3 behind it"
    movb $13, %bl
    movw $1f, resume
    call catch
    movw $0xffff, %si
0:  movw (%si), %ax
1:  call caught
    cmpw $0b, fault_ip
    check e, "a word across the segment's end is INT 13"
    movw $1f, resume
    call catch
    movl $0x10000, %esi
0:  movb (%esi), %al
1:  call caught
    cmpw $0b, fault_ip
    check e, "an offset above 64 KiB is INT 13"
    movb $12, %bl
    movw $1f, resume
    call catch
    movw $0xffff, %bp
0:  movw (%bp), %ax
1:  call caught
    cmpw $0b, fault_ip
    check e, "a word across the stack segment's end is INT 12"

    movw $step, %ax                     # single steps
    movb $1, %bl
    call hook
    movl %eax, old_vector
    movw $0, steps
    pushfw
    popw %ax
    orb $1, %ah
    pushw %ax
    popfw                               # the trap comes after the instruction behind this
    nop
    movw $3, %cx
    movw $source, %di
    rep stosb                           # a step for each
    movw %ss, %ax
    movw %ax, %ss                       # holds the trap back for one instruction
    nop
    pushfw
    popw %ax
    andb $0xfe, %ah
    pushw %ax
    popfw
    movl old_vector, %eax
    movb $1, %bl
    call hook_back
    movzwl steps, %ebx
    cmpw $(1 + 1 + 1 + 3 + 1 + 1 + 5), steps
    check e, "single steps are INT 1"
    ret

# BL: a vector that is caught from now on. Keeps all registers but AX.
catch:
    movb %bl, caught_vector
    movw $0, caught_count
    movw $0xffff, fault_ip
    movw $fault, %ax
    pushl %eax
    call hook
    movl %eax, old_vector
    popl %eax
    ret
fault:
    pushw %bp
    movw %sp, %bp
    pushw %ax
    movw 2(%bp), %ax
    movw %ax, %cs:fault_ip
    incw %cs:caught_count
    movw %cs:resume, %ax
    movw %ax, 2(%bp)
    popw %ax
    popw %bp
    iret
# The vector is given back; fault_ip stays only if it came once.
caught:
    pushl %eax
    pushw %bx
    movb caught_vector, %bl
    movl old_vector, %eax
    call hook_back
    popw %bx
    popl %eax
    cmpw $1, caught_count
    je 1f
    movw $0xffff, fault_ip
1:  ret
step:
    incw %cs:steps
    iret

    .data
far_pointer: .word 0x1234, 0xb800
text: .asciz "Text of some length"
text_end:
other_text: .asciz "Tex ist anders"
table: .byte 0x55, 0x99, 0x77
bounds: .word 10, 20
    .balign 4
source: .space 16
old_vector: .long 0
resume: .word 0
fault_ip: .word 0
caught_count: .word 0
steps: .word 0
caught_vector: .byte 0
