# Keys from outside: INT 16h, INT 9 and the 8042 behind them. Who types waits for the lines in brackets.
#include "dos.h"
    .code16
    .text
    .globl keyboard_checks
keyboard_checks:
    movb $0x09, %bl
    movw $irq1, %ax
    call hook
    movl %eax, old_irq1
1:  movb $0x01, %ah                     # nothing is there yet
    int $0x16
    jz 2f
    xorb %ah, %ah
    int $0x16
    jmp 1b
2:  movw $press_n, %si
    call put_line
    xorb %ah, %ah
    int $0x16
    movzwl %ax, %ebx
    cmpw $0x316e, %ax
    check e, "int 16h: a letter"
    movw $press_f5, %si
    call put_line
    movb $0x10, %ah
    int $0x16
    movzwl %ax, %ebx
    cmpw $0x3f00, %ax
    check e, "int 16h: a function key"
    movw $press_shift_a, %si
    call put_line
3:  movb $0x01, %ah
    int $0x16
    jnz 4f
    hlt
    jmp 3b
4:  xorb %ah, %ah
    int $0x16
    movzwl %ax, %ebx
    cmpw $0x1e41, %ax
    check e, "int 16h: a capital"
    movzwl keys, %ebx
    cmpw $3, keys                       # at least the codes of keys pressed
    check ae, "int 9: in the way of the BIOS"
    movw $irq1_alone, %ax               # as games do: without the BIOS
    movb $0x09, %bl
    call hook
    movw $0, keys
    movw $press_x, %si
    call put_line
5:  hlt
    cmpb $0x2d, codes
    jne 5b
    cmpb $0xad, codes+1
    jne 5b
    cmpw $0, keys
    check ne, "int 9: make and break codes from the 8042"
    movl old_irq1, %eax
    movb $0x09, %bl
    call hook_back
    ret
irq1:
    incw %cs:keys
    ljmp *%cs:old_irq1
irq1_alone:                             # the last two codes
    pushw %ax
    inb $0x60, %al
    movb %cs:codes+1, %ah
    movb %ah, %cs:codes
    movb %al, %cs:codes+1
    incw %cs:keys
    movb $0x20, %al
    outb %al, $0x20
    popw %ax
    iretw

    .data
    .balign 4
old_irq1: .long 0
keys: .word 0, 0
codes: .space 16
press_n: .asciz "[press n]\r\n"
press_f5: .asciz "[press f5]\r\n"
press_x: .asciz "[press x]\r\n"
press_shift_a: .asciz "[press shift-a]\r\n"
