# A 16-bit system as DOS was one: real mode, the BIOS and the PC's own chips. It checks both, and tells each result on the
# screen and on COM1. The boot sector starts it at 1000:0 with DL = its drive.
#include "dos.h"
    .code16
    .section .start, "ax"
    .globl _start
_start:
    cli
    movw %cs, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $0xfff0, %esp
    sti
    cld
    movb %dl, boot_drive
    call video_checks
    call cpu_checks
    call fault_checks
    call memory_checks
    call a20_checks
    call protected_checks
    call v86_checks
    call chip_checks
    movb $0, %dl
    movw $floppy_name, %di
    call disk_checks
    movb $0x80, %dl
    movw $hard_disk_name, %di
    call disk_checks
    call keyboard_checks
    cmpw $0, failures
    check e, "all of them"
    movw $done, %si
    call put_line
1:  hlt
    jmp 1b

    .text
# AL: it went well. The name's offset follows the call.
    .globl report
report:
    pushfl
    pushal
    pushw %ds
    pushw %es
    movw %cs, %cx
    movw %cx, %ds
    movw %cx, %es
    cld
    movw %sp, %bp
    movw 40(%bp), %si                   # the return address, behind ES, DS, 32 bytes and 4
    movw (%si), %si
    addw $2, 40(%bp)
    movw $line, %di
    testb %al, %al
    movw $good, %dx
    jnz 1f
    incw failures
    movw $bad, %dx
1:  xchgw %dx, %si
    call append
    movw %dx, %si
    call append
    testb %al, %al
    jnz 2f
    movb $' ', %al
    stosb
    movl 16+4(%bp), %ebx                # EBX of PUSHAD
    call append_hex
2:  movw $tail, %si
    call append
    movb $0, (%di)
    movw $line, %si
    call put_line
    popw %es
    popw %ds
    popal
    popfl
    ret

# From SI to DI, without the zero.
append:
    pushw %ax
1:  lodsb
    testb %al, %al
    jz 2f
    stosb
    jmp 1b
2:  popw %ax
    ret

append_hex:                             # EBX
    movw $8, %cx
1:  roll $4, %ebx
    movb %bl, %al
    andb $15, %al
    addb $'0', %al
    cmpb $'9', %al
    jbe 2f
    addb $39, %al
2:  stosb
    loop 1b
    ret

# SI: a text of this segment, to COM1 in one piece and to the screen.
    .globl put_line
put_line:
    pushal
    pushw %si
    pushfw
    cli                                 # the BIOS may write its screen to COM1 too
1:  movw $0x3fd, %dx
2:  inb %dx, %al
    testb $0x20, %al
    jz 2b
    movb (%si), %al
    incw %si
    testb %al, %al
    jz 3f
    movw $0x3f8, %dx
    outb %al, %dx
    jmp 1b
3:  popfw
    popw %si
4:  movb (%si), %al
    incw %si
    testb %al, %al
    jz 5f
    movb $0x0e, %ah
    movw $7, %bx
    int $0x10
    jmp 4b
5:  popal
    ret

# INT BL goes to AX in this segment; EAX: where it went. hook_back: INT BL goes to EAX.
    .globl hook
hook:
    pushw %bx
    pushw %es
    xorb %bh, %bh
    shlw $2, %bx
    pushw $0
    popw %es
    pushfw
    cli
    pushl %es:(%bx)
    movw %ax, %es:(%bx)
    movw %cs, %es:2(%bx)
    popl %eax
    popfw
    popw %es
    popw %bx
    ret
    .globl hook_back
hook_back:
    pushw %bx
    pushw %es
    xorb %bh, %bh
    shlw $2, %bx
    pushw $0
    popw %es
    movl %eax, %es:(%bx)
    popw %es
    popw %bx
    ret

    .data
    .globl boot_drive
boot_drive: .byte 0
failures: .word 0
good: .asciz "[ok "
bad: .asciz "[FAIL "
tail: .asciz "]\r\n"
done: .asciz "[done]\r\n"
floppy_name: .asciz "floppy"
hard_disk_name: .asciz "hard disk"
    .bss
line: .space 128
