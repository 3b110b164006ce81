# Memory by INT 12h and INT 15h; the A20 gate by the BIOS, port 92h and the 8042.
#include "dos.h"
    .code16
    .text
    .globl memory_checks, a20_checks
memory_checks:
    int $0x12
    movzwl %ax, %ebx
    cmpw $600, %ax
    check ae, "int 12h: conventional memory"
    movb $0x88, %ah
    int $0x15
    movzwl %ax, %ebx
    cmpw $0x0c00, %ax
    check ae, "int 15h 88h: extended memory"
    xorw %cx, %cx
    xorw %dx, %dx
    movw $0xe801, %ax
    int $0x15
    jc 1f
    movl %eax, %ebx
    cmpw $0x0c00, %ax
    cmc
    jc 1f
    cmpw $0x3c01, %ax
1:  check c, "int 15h E801h"
    xorl %ebx, %ebx                     # E820: from 0 there is RAM, and from 1 MiB
    movw %ds, %ax
    movw %ax, %es
    movw $0, found
2:  movl $0xe820, %eax
    movl $0x534d4150, %edx
    movl $24, %ecx
    movw $buffer, %di
    int $0x15
    jc 4f
    cmpl $0x534d4150, %eax
    jne 4f
    cmpl $1, buffer+16
    jne 3f
    cmpl $0, buffer+4
    jne 3f
    cmpl $0, buffer
    jne 5f
    cmpl $0x9f000, buffer+8
    jb 3f
    orw $1, found
5:  cmpl $0x100000, buffer
    jne 3f
    orw $2, found
3:  testl %ebx, %ebx
    jnz 2b
4:  movzwl found, %ebx
    cmpw $3, found
    check e, "int 15h E820h"
    movw $buffer, %di                   # 87h: from here to 2 MiB, and back to another place
    movw $1024, %cx
    movw $0x0123, %ax
6:  stosw
    addw $0x1357, %ax
    loop 6b
    movl $LINEAR(buffer), block_from
    movl $0x200000, block_to
    call move_block
    check nc, "int 15h 87h: a block to extended memory"
    movl $0x200000, block_from
    movl $LINEAR(other_buffer), block_to
    call move_block
    check nc, "int 15h 87h: and back"
    movw $buffer, %si
    movw $other_buffer, %di
    movw $1024, %cx
    repe cmpsw
    check e, "the block came back"
    ret
move_block:
    movw %ds, %ax
    movw %ax, %es
    movl block_from, %eax
    orl $0x93000000, %eax               # base 23:0 and the access byte
    movl %eax, move_gdt+16+2
    movw $2047, move_gdt+16
    movl block_to, %eax
    orl $0x93000000, %eax
    movl %eax, move_gdt+24+2
    movw $2047, move_gdt+24
    movw $move_gdt, %si
    movw $1024, %cx
    movb $0x87, %ah
    int $0x15
    ret

# ---- A20. ZF: 0xffff:0x0610 is 0000:0x0600.
wraps:
    pushal
    pushw %ds
    pushw %es
    pushw $0
    popw %ds
    pushw $0xffff
    popw %es
    movl $0x11111111, 0x600
    movl $0x22222222, %es:0x610
    cmpl $0x22222222, 0x600
    popw %es
    popw %ds
    popal
    ret
a20_checks:
    call wraps
    check ne, "A20 is on after the BIOS"
    movw $0x2403, %ax
    int $0x15
    movzwl %bx, %ebx
    check nc, "int 15h 2403h: who supports A20"
    movw $0x2400, %ax
    int $0x15
    check nc, "int 15h 2400h: A20 off"
    call wraps
    check e, "memory wraps at 1 MiB"
    movw $0x2402, %ax
    int $0x15
    cmpb $0, %al
    check e, "int 15h 2402h: it is off"
    movw $0x2401, %ax
    int $0x15
    call wraps
    check ne, "int 15h 2401h: A20 on"
    movw $0x2402, %ax
    int $0x15
    cmpb $1, %al
    check e, "int 15h 2402h: it is on"
    call port_off
    call wraps
    check e, "port 92h: A20 off"
    call port_on
    call wraps
    check ne, "port 92h: A20 on"
    movb $0xdd, %al
    call output_port
    call wraps
    check e, "8042 output port: A20 off"
    inb $0x92, %al
    testb $2, %al
    check z, "port 92h shows it"
    movb $0xdf, %al
    call output_port
    call wraps
    check ne, "8042 output port: A20 on"

    # Code beyond 1 MiB, and what lies under it.
    pushw $0
    popw %fs
    pushw $0xffff
    popw %gs
    movl $0x00cb01b0, %fs:0x680         # MOV AL, 1; RETF
    movl $0x00cb02b0, %gs:0x690
    lcall $0xffff, $0x690
    cmpb $2, %al
    check e, "code above 1 MiB"
    call port_off
    lcall $0xffff, $0x690
    movzbl %al, %ebx
    call port_on
    cmpb $1, %bl
    check e, "the same address with A20 off"
    lcall $0xffff, $0x690
    cmpb $2, %al
    check e, "and on again"
    movl $0, %ebx                       # as a memory manager does around its copies
    movw $2000, %cx
    pushw $0
    popw %fs
    pushw $0xffff
    popw %gs
1:  call port_off
    movw %cx, %fs:0x600
    call port_on
    notw %cx
    movw %cx, %gs:0x610
    notw %cx
    call port_off
    cmpw %cx, %gs:0x610
    jne 2f
    incl %ebx
2:  call port_on
    movw %gs:0x610, %ax
    notw %ax
    cmpw %cx, %ax
    jne 3f
    incl %ebx
3:  loop 1b
    cmpl $4000, %ebx
    check e, "A20 switched 8000 times"
    # 32-bit offsets: bit 20 goes everywhere.
    call unreal
    movl $0x300000, %esi
    movl $0x200000, %edi
    movl $0x33333333, %fs:(%esi)
    movl $0x22222222, %fs:(%edi)
    cli
    call port_off
    movl %fs:(%esi), %ebx
    call port_on
    sti
    cmpl $0x22222222, %ebx
    check e, "the fourth megabyte is the third with A20 off"
    ret
port_off:
    inb $0x92, %al
    andb $0xfc, %al
    outb %al, $0x92
    ret
port_on:
    inb $0x92, %al
    andb $0xfe, %al
    orb $2, %al
    outb %al, $0x92
    ret
# AL to the 8042's output port. No interrupt comes between the command and its data.
output_port:
    pushfw
    cli
    pushw %ax
    call 1f
    movb $0xd1, %al
    outb %al, $0x64
    call 1f
    popw %ax
    outb %al, $0x60
    call 1f
    popfw
    ret
1:  inb $0x64, %al
    testb $2, %al
    jnz 1b
    ret

    .data
    .balign 8
move_gdt: .quad 0, 0, 0, 0, 0, 0
block_from: .long 0
block_to: .long 0
found: .word 0
    .bss
    .balign 4
    .globl buffer, other_buffer
buffer: .space 2048
other_buffer: .space 2048
