# The boot sector: loads what follows it on its drive to 0x10000 by INT 13h, track geometry as the BIOS says, and goes
# there with DL = the drive.
    .code16
    .text
    .globl _start
_start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $0x7c00, %sp
    sti
    cld
    movb %dl, drive
    movb $0x08, %ah
    int $0x13                           # CL 5:0: sectors, DH: last head
    jc failed
    andw $0x3f, %cx
    movw %cx, sectors
    movzbw %dh, %dx
    incw %dx
    movw %dx, heads
    movw $0x1000, %ax
    movw %ax, %es
    movw $1, %si                        # sector on the drive
next:
    movw %si, %ax
    xorw %dx, %dx
    divw sectors
    movw %dx, %cx
    incw %cx                            # CL: sector
    xorw %dx, %dx
    divw heads
    movb %al, %ch
    movb %dl, %dh
    movb drive, %dl
    xorw %bx, %bx
    movw $0x0201, %ax
    int $0x13
    jc failed
    movw %es, %ax
    addw $0x20, %ax
    movw %ax, %es
    incw %si
    cmpw $(LOAD_SECTORS + 1), %si
    jb next
    movb drive, %dl
    ljmp $0x1000, $0
failed:
    movw $message, %si
1:  lodsb
    testb %al, %al
    jz 2f
    movb $0x0e, %ah
    movw $7, %bx
    int $0x10
    jmp 1b
2:  hlt
    jmp 2b
message: .asciz "[FAIL boot sector cannot read its drive]\r\n"
drive: .byte 0
sectors: .word 0
heads: .word 0
    .org 510
    .word 0xaa55
