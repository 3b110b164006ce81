# INT 13h on the drive DL, named by DI: CHS calls, and the extensions where it has them.
#include "dos.h"
    .code16
    .text
# The checks of both drives have the drive's name in front.
.macro check_drive condition, name
    set\condition %al
    call report_drive
    .section .rodata
9999: .asciz "\name"
    .previous
    .word 9999b
.endm
    .globl disk_checks
disk_checks:
    movb %dl, drive
    movw %di, drive_name
    xorb %ah, %ah
    int $0x13
    check_drive nc, "reset"
    movb drive, %dl
    movb $0x08, %ah
    xorw %di, %di
    movw %di, %es
    int $0x13
    pushw %ds
    popw %es
    setc %al
    movw %cx, %bx
    shll $16, %ebx
    movw %dx, %bx
    movb %cl, %ah
    andb $0x3f, %ah
    movb %ah, sectors
    movb %dh, last_head
    movb %ch, last_cylinder
    shrb $6, %cl
    movb %cl, last_cylinder+1
    orb %al, %al
    jnz 1f
    cmpb $0x80, drive
    je 1f
    cmpl $0x4f120102, %ebx              # 80 cylinders, 18 sectors, 2 heads, 2 drives
    je 1f
    cmpl $0x4f120101, %ebx
1:  check_drive e, "its geometry"
    movb drive, %dl
    movb $0x15, %ah
    int $0x13
    movzbl %ah, %ebx
    check_drive nc, "its type"
    movw $0x0201, %ax
    movw $0x0001, %cx
    call call13
    check_drive nc, "reads a sector"
    movzwl buffer+510, %ebx
    cmpw $0xaa55, %bx
    check_drive e, "its first sector"

    movw $buffer, %di                   # three sectors at the end of the last cylinder
    movw $768, %cx
    movb drive, %al
    movb $0x3d, %ah
1:  stosw
    addw $0x0907, %ax
    loop 1b
    movw $0x0303, %ax
    call last_place
    call call13
    check_drive nc, "writes three sectors"
    movw $0x0403, %ax
    call last_place
    call call13
    check_drive nc, "verifies them"
    movw $other_buffer, %di
    movw $768, %cx
    xorw %ax, %ax
    rep stosw
    movw $0x0203, %ax
    call last_place
    movw $other_buffer, %bx
    call call13_at
    check_drive nc, "reads them"
    movw $buffer, %si
    movw $other_buffer, %di
    movw $768, %cx
    repe cmpsw
    check_drive e, "they are the same"
    movw $0x0201, %ax                   # no such sector
    call last_place
    incw %cx
    incw %cx
    incw %cx
    call call13
    movzbl %ah, %ebx
    cmc
    check_drive nc, "refuses a sector behind the last"
    movb $0x01, %ah
    movb drive, %dl
    int $0x13
    movzbl %ah, %ebx
    testb %ah, %ah
    check_drive nz, "tells the error again"
    xorb %ah, %ah
    movb drive, %dl
    int $0x13

    movb $0x41, %ah
    movw $0x55aa, %bx
    movb drive, %dl
    int $0x13
    movzwl %bx, %ebx
    jc 9f
    cmpw $0xaa55, %bx
    check_drive e, "has extensions"
    movw $0x1a, extended
    movb $0x48, %ah
    movw $extended, %si
    call call_extended
    movl extended+16, %ebx              # sectors
    check_drive nc, "tells its size"
    subl $3, %ebx
    movl %ebx, packet+8
    movw $buffer, packet+4
    movb $0x80, buffer
    movb $0x43, %ah
    xorb %al, %al
    movw $packet, %si
    call call_extended
    check_drive nc, "extended write to its last sectors"
    movw $other_buffer, packet+4
    movb $0x42, %ah
    movw $packet, %si
    call call_extended
    check_drive nc, "extended read"
    movw $buffer, %si
    movw $other_buffer, %di
    movw $768, %cx
    repe cmpsw
    check_drive e, "they are the same again"
    addl $2, packet+8
    movb $0x42, %ah
    movw $packet, %si
    call call_extended
    cmc
    check_drive nc, "refuses a range across its end"
    ret
9:  cmpb $0x80, drive                   # a diskette may lack them, a disk not
    check_drive ne, "has no extensions"
    ret

# CH, CL, DH for the last three sectors of the last cylinder that CHS reaches.
last_place:
    movb last_cylinder, %ch
    movb last_cylinder+1, %cl
    shlb $6, %cl
    orb sectors, %cl
    subb $2, %cl
    ret
call13:
    movw $buffer, %bx
call13_at:
    movb drive, %dl
    movb last_head, %dh
    cmpw $0x0001, %cx
    jne 1f
    xorb %dh, %dh
1:  pushw %ds
    popw %es
    int $0x13
    ret
call_extended:
    movb drive, %dl
    int $0x13
    ret

report_drive:
    pushal
    movw %sp, %bp
    movb %al, %dl
    movw 32(%bp), %si
    addw $2, 32(%bp)
    movw (%si), %bp
    movw $name, %di
    movw drive_name, %si
1:  call 3f
    movb $':', (%di)
    movb $' ', 1(%di)
    addw $2, %di
    movw %bp, %si
    call 3f
    movb $0, (%di)
    movb %dl, %al
    call report
    .word name
    popal
    ret
3:  movb (%si), %al
    testb %al, %al
    jz 4f
    movb %al, (%di)
    incw %si
    incw %di
    jmp 3b
4:  ret

    .data
    .balign 4
packet: .byte 16, 0
    .word 3, 0, SEGMENT
    .quad 0
drive_name: .word 0
last_cylinder: .word 0
drive: .byte 0
sectors: .byte 0
last_head: .byte 0
    .bss
    .balign 4
extended: .space 32
name: .space 64
