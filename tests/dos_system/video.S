# INT 10h: text, planar and 256-colour graphics, VBE with a linear frame buffer.
#include "dos.h"
    .code16
    .text
    .globl video_checks
video_checks:
    movw $0x0003, %ax
    int $0x10
    movb $0x0f, %ah
    int $0x10
    movzwl %ax, %ebx
    cmpw $0x5003, %ax
    check e, "int 10h sets and tells mode 3"
    movb $0x02, %ah                     # cursor
    xorw %bx, %bx
    movw $0x050a, %dx
    int $0x10
    movw $0x0941, %ax
    movw $0x001e, %bx
    movw $3, %cx
    int $0x10
    movb $0x08, %ah
    xorw %bx, %bx
    int $0x10
    movw %ax, %bp
    movb $0x02, %ah                     # results go elsewhere
    xorw %bx, %bx
    movw $0x0c00, %dx
    int $0x10
    movzwl %bp, %ebx
    cmpw $0x1e41, %bp
    check e, "int 10h writes and reads a character"
    movw $0xb800, %ax
    movw %ax, %es
    movl %es:5*160+20, %ebx
    cmpl $0x1e411e41, %ebx
    check e, "text memory shows it"
    movb $0x02, %ah
    xorw %bx, %bx
    movw $0x0600, %dx
    int $0x10
    movw $0x0e5a, %ax
    movw $7, %bx
    int $0x10
    movb $0x03, %ah
    xorw %bx, %bx
    int $0x10
    movw %dx, %bp
    movb $0x02, %ah
    xorw %bx, %bx
    movw $0x0e00, %dx
    int $0x10
    movzwl %bp, %ebx
    cmpw $0x0601, %bp
    check e, "teletype moves the cursor"
    movw $0x0601, %ax                   # scroll lines 4 to 24 by one
    movb $0x07, %bh
    movw $0x0400, %cx
    movw $0x184f, %dx
    int $0x10
    movzwl %es:4*160+20, %ebx
    cmpw $0x1e41, %bx
    check e, "scrolling up"
    movw $0x3d4, %dx                    # where the cursor is, by the CRTC
    movw $0x0e, %ax
    outb %al, %dx
    incw %dx
    inb %dx, %al
    movb %al, %bh
    decw %dx
    movb $0x0f, %al
    outb %al, %dx
    incw %dx
    inb %dx, %al
    movb %al, %bl
    movzwl %bx, %ebx
    pushl %ebx
    movb $0x03, %ah
    xorw %bx, %bx
    int $0x10
    movzbw %dh, %ax
    imulw $80, %ax
    xorb %dh, %dh
    addw %dx, %ax
    popl %ebx
    cmpw %ax, %bx
    check e, "the CRTC has the cursor of the BIOS"

    movw $0x0012, %ax
    int $0x10
    movw $0x0c0b, %ax
    xorw %bx, %bx
    movw $100, %cx
    movw $50, %dx
    int $0x10
    movb $0x0d, %ah
    xorw %bx, %bx
    int $0x10
    movzbl %al, %ebx
    cmpb $0x0b, %al
    check e, "mode 12h: a pixel by int 10h"
    movw $0xa000, %ax
    movw %ax, %es
    xorl %ebx, %ebx
    movw $0x3ce, %dx
    movw $0x0304, %ax                   # read map select, from plane 3 to 0
1:  outw %ax, %dx
    movb %es:50*80+12, %cl
    shrb $4, %cl                        # x = 100: bit 3
    rcll $1, %ebx
    decb %ah
    jns 1b
    cmpb $0x0b, %bl
    check e, "mode 12h: its planes"
    movw $0x0f00, %ax                   # set/reset 15 on all planes, bit mask 0x81: a latched write
    outw %ax, %dx
    movw $0x0f01, %ax
    outw %ax, %dx
    movw $0x8108, %ax
    outw %ax, %dx
    movb %es:1000, %al
    movb $0, %es:1000
    movw $0x0805, %ax                   # read mode 1: compares with a colour
    outw %ax, %dx
    movw $0x0f02, %ax
    outw %ax, %dx
    movzbl %es:1000, %ebx
    cmpb $0x81, %bl
    check e, "mode 12h: set/reset, bit mask, colour compare"

    movw $0x0013, %ax
    int $0x10
    xorw %di, %di
    movw $64000, %cx
    xorb %al, %al
1:  stosb
    addb $7, %al
    loop 1b
    pushw %ds
    pushw %es
    popw %ds
    xorl %ebx, %ebx
    xorl %eax, %eax
    xorw %si, %si
    movw $64000, %cx
1:  lodsb
    addl %eax, %ebx
    loop 1b
    popw %ds
    cmpl $8160000, %ebx                 # 250 times 0 + 1 + ... + 255
    check e, "mode 13h: all pixels read back"
    movb $0x0d, %ah
    xorw %bx, %bx
    movw $3, %cx
    movw $150, %dx
    int $0x10
    movzbl %al, %ebx
    cmpb $((150*320+3)*7 & 0xff), %al
    check e, "mode 13h: a pixel by int 10h"
    movw $0x3c8, %dx
    movb $200, %al
    outb %al, %dx
    incw %dx
    movb $63, %al
    outb %al, %dx
    movb $17, %al
    outb %al, %dx
    movb $5, %al
    outb %al, %dx
    movw $0x1015, %ax
    movw $200, %bx
    int $0x10
    movl %ecx, %ebx
    cmpw $0x1105, %cx
    check e, "a colour of the DAC by int 10h"

    movw %cs, %ax
    movw %ax, %es
    movl $0x32454256, vbe_block         # "VBE2"
    movw $vbe_block, %di
    movw $0x4f00, %ax
    int $0x10
    movl vbe_block, %ebx
    cmpw $0x004f, %ax
    jne 1f
    cmpl $0x41534556, %ebx              # "VESA"
1:  check e, "VBE is there"
    lgsw vbe_block+14, %si              # the list of modes
2:  movw %gs:(%si), %cx
    addw $2, %si
    movzwl %cx, %ebx
    cmpw $0xffff, %cx
    je 3f
    movw $vbe_mode, %di
    movw $0x4f01, %ax
    int $0x10
    cmpw $0x004f, %ax
    jne 2b
    cmpw $640, vbe_mode+18
    jne 2b
    cmpw $480, vbe_mode+20
    jne 2b
    cmpb $32, vbe_mode+25
    jne 2b
    movb vbe_mode, %al
    andb $0x81, %al
    cmpb $0x81, %al
    jne 2b
    cmpb %al, %al
    jmp 4f
3:  cmpw $0, %cx
4:  check e, "VBE has 640x480 with 32 bits and a linear frame buffer"
    jne 9f
    orw $0x4000, %bx
    movw $0x4f02, %ax
    int $0x10
    movzwl %ax, %ebx
    cmpw $0x004f, %ax
    check e, "VBE sets it"
    movw $0x4f03, %ax
    int $0x10
    movzwl %bx, %ebx
    testw $0x4000, %bx
    check nz, "VBE tells it"
    call unreal
    movl vbe_mode+40, %edi
    movzwl vbe_mode+16, %ecx            # bytes of a line
    imull $479, %ecx
    addl %ecx, %edi
    movl $0x0040c0ff, %fs:639*4(%edi)
    movl %fs:639*4(%edi), %ebx
    cmpl $0x0040c0ff, %ebx
    check e, "the last pixel of the frame buffer, above 1 MiB from real mode"
    call unreal
    movl vbe_mode+40, %edi
    movl $0x12345678, %eax
    movl $5000, %ecx
    addr32 rep stosl
    call unreal
    movl vbe_mode+40, %edi
    movl %fs:4999*4(%edi), %ebx
    addl %fs:5000*4(%edi), %ebx
    cmpl $0x12345678, %ebx
    check e, "a string store into it"
9:  movw $0x0003, %ax
    int $0x10
    ret

# ES, FS and GS, which become 0, reach 4 GiB from real mode, until something loads them in protected mode.
    .globl unreal
unreal:
    pushfw
    pushl %eax
    cli
    lgdtl %cs:unreal_gdtr
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    jmp 1f
1:  pushw $8
    popw %es
    pushw $8
    popw %fs
    pushw $8
    popw %gs
    andb $0xfe, %al
    movl %eax, %cr0
    jmp 2f
2:  xorw %ax, %ax
    movw %ax, %es
    movw %ax, %fs
    movw %ax, %gs
    popl %eax
    popfw
    ret

    .data
    .balign 8
unreal_gdt: .quad 0, 0x00cf93000000ffff
unreal_gdtr: .word 15
    .long LINEAR(unreal_gdt)
    .bss
    .balign 16
vbe_block: .space 512
vbe_mode: .space 256
