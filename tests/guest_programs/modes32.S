# One program in real-address and in virtual-8086 mode, at 0x8000 with CS 0; and 16-bit code of protected mode with
# segments of its own.
#define AT(label) ((label) - blob + 0x8000)
#define SUM 0x7e00
    .text
    .code32
    .globl run_real
run_real:                               # void run_real(void)
    pushl %ebp
    pushl %ebx
    pushl %esi
    pushl %edi
    movl %esp, saved_sp
    lidt real_idt
    ljmp $0x18, $AT(narrow)
back:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movl saved_sp, %esp
    lidt idt_pointer
    popl %edi
    popl %esi
    popl %ebx
    popl %ebp
    ret

# void call16(reg offset): far, to 16-bit code of selector 0x40.
    .globl call16
call16:
    pushl %ebx
    pushl %esi
    pushl %edi
    pushl %ebp
    movl 20(%esp), %eax
    movl %eax, target16
    lcall *target16
    popl %ebp
    popl %edi
    popl %esi
    popl %ebx
    ret

# void enter_v86(void): to the program, with the stack and segments that it has in real-address mode. IOPL 0.
    .globl enter_v86
enter_v86:
    xorl %eax, %eax
    pushl %eax                          # GS FS DS ES
    pushl %eax
    pushl %eax
    pushl %eax
    pushl %eax                          # SS ESP
    pushl $0x7c00
    pushl $0x20202                      # VM IF
    pushl %eax
    pushl $AT(v86_start)
    iret

    .data
saved_sp: .long 0
real_idt: .word 0x3ff
    .long 0
target16: .long 0
    .word 0x40

    .text
    .globl blob, blob_end, on_int_offset, on_timer_offset
    .set on_int_offset, AT(on_int)
    .set on_timer_offset, AT(on_timer)
    .code16
blob:
narrow:
    movw $0x30, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw %ax, %gs
    movw $0x10, %ax                     # FS keeps a limit of 4 GiB
    movw %ax, %fs
    movl %cr0, %eax
    andl $~1, %eax
    movl %eax, %cr0
    ljmp $0, $AT(real)
real:
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw %ax, %fs
    movw %ax, %gs
    movw $0x7c00, %sp
    sti
    call program
    # Above 1 MiB, while interrupts come.
    movw $1000, %cx
    movl $0x180000, %esi
    xorl %eax, %eax
1:  movl %esi, %fs:(%esi)
    addl %fs:(%esi), %eax
    addl $4, %esi
    loop 1b
    movl %eax, SUM + 8
    cli
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x08, $back
v86_start:
    call program
    hlt

on_int:                                 # CX flags of the caller to BX
    incw SUM + 4
    pushw %bp
    movw %sp, %bp
    movw 6(%bp), %bx
    xorb $1, 6(%bp)                     # its carry
    popw %bp
    iretw
on_timer:
    pushw %ax
    incw %cs:SUM + 6
    movb $0x20, %al
    outb %al, $0x20
    popw %ax
    iretw

# SUM = what all that follows computes.
program:
    cld
    xorl %ebp, %ebp
    # A table in a segment, by words and bytes; indices that wrap.
    movw $0x2000, %ax
    movw %ax, %es
    movw $0xfff0, %di
    xorw %ax, %ax
1:  movb %al, %es:(%di)
    addw $0x9d, %ax
    incw %di
    cmpw $0x2000, %di
    jne 1b
    movw $0x1000, %cx
    xorw %si, %si
2:  movw %es:0xfff0(%si), %ax
    addw %ax, %bp
    rolw $1, %bp
    addw $6, %si                        # never a word at 0xffff
    cmpw $0x1ff8, %si
    jb 3f
    movw $2, %si
3:  loop 2b
    # The same bytes by another segment.
    movw $0x20ff, %ax
    movw %ax, %ds
    movw $0x0010, %si
    movw $0x100, %cx
4:  lodsw
    xorw %ax, %bp
    addw %cx, %bp
    loop 4b
    # Strings from segment to segment, over the end.
    movw $0x3000, %ax
    movw %ax, %es
    movw $0x2000, %ax
    movw %ax, %ds
    movw $0xff00, %si
    movw $0xff80, %di
    movw $0x200, %cx
    rep movsw
    addw %si, %bp
    addw %di, %bp
    movw $0xff00, %si
    movw $0xff80, %di
    incb %es:0x0123
    movw $0x400, %cx
    repe cmpsb
    pushfw
    popw %ax
    andw $0x8d5, %ax
    addw %ax, %bp
    addw %cx, %bp
    movb %es:0x0140, %al
    xorw %di, %di
    movw $0x300, %cx
    repne scasb
    addw %di, %bp
    std
    movw $0x0fff, %di
    movw $0x80, %cx
    rep stosb
    cld
    addw %di, %bp
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    # Near and far calls, the latter to the same code at another CS:IP.
    movw $10, %ax
    call fib
    addw %ax, %bp
    movw $50, %cx
5:  lcall $0x700, $(AT(far_away) - 0x7000)
    lcall $0x7ff, $(AT(far_away) - 0x7ff0)
    loop 5b
    addw %ax, %bp
    # By a pointer, and LES.
    movw $AT(far_away) - 0x7000, SUM + 0x20
    movw $0x700, SUM + 0x22
    lcall *(SUM + 0x20)
    lesw SUM + 0x20, %bx
    xorw %es:(%bx), %bp
    # INT, flags.
    movw $20, %cx
6:  cmpw $10, %cx
    int $0x40
    adcw $0, %bp
    andw $0x8d5, %bx
    addw %bx, %bp
    loop 6b
    pushfw
    popw %ax
    orw $0x0c40, %ax
    pushw %ax
    popfw
    pushfw
    popw %ax
    cld
    andw $0x0cd5, %ax
    addw %ax, %bp
    # PUSHA, ENTER, LEAVE, XLAT, LOOPNE, JCXZ.
    movw $0x1234, %ax
    movw $0x77, %dx
    pushaw
    popw %cx
    addw $14, %sp
    addw %cx, %bp
    pushw %bp
    enterw $20, $0
    movw %ax, -4(%bp)
    movw -4(%bp), %si
    leavew
    popw %bp
    addw %si, %bp
    movw $AT(blob), %bx
    movb $9, %al
    xlatb
    addw %ax, %bp
    movw $5, %cx
7:  cmpw $3, %cx
    loopne 7b
    addw %cx, %bp
    xorw %cx, %cx
    jcxz 8f
    incw %bp
8:  # Code that changes itself, by another segment.
    movw $0x0800, %ax
    movw %ax, %es
    movw $8, %cx
9:  movb %cl, %es:(patched - blob + 1)
patched:
    movb $0, %al
    addw %ax, %bp
    loop 9b
    # 32-bit operands and addresses.
    movl $0x7e40, %ebx
    movl $0x89abcdef, (%ebx)
    movl $2, %ecx
    movl -4(%ebx,%ecx,2), %eax
    imull $3, %eax, %eax
    bswapl %eax
    addl %eax, %ebp
    xorw %ax, %ax
    movw %ax, %es
    movl %ebp, SUM
    ret

fib:
    cmpw $2, %ax
    jb 1f
    pushw %ax
    decw %ax
    call fib
    popw %dx
    pushw %ax
    movw %dx, %ax
    subw $2, %ax
    call fib
    popw %dx
    addw %dx, %ax
1:  ret
far_away:
    movw %cs, %dx
    addw %dx, %ax
    lretw
blob_end:

# ---- Protected mode: selector 0x40, base `code16`; 0x48 data, 0x50 stack of 16 bits, 0x58 expand-down.
    .globl code16, code16_end, sum16, over16, stack16, down16
    .set sum16, sum - code16
    .set over16, over - code16
    .set stack16, stack - code16
    .set down16, down - code16
code16:
sum:                                    # of the bytes of 0x48, to EAX
    movw $0x48, %ax
    movw %ax, %ds
    xorl %eax, %eax
    xorw %si, %si
    movw $0x301, %cx
1:  movzbl (%si), %edx
    addl %edx, %eax
    incw %si
    loop 1b
    addb %cs:(sum - code16), %al
    movw $0x10, %cx
    movw %cx, %ds
    lretl
over:                                   # a word at the last byte
    movw $0x48, %ax
    movw %ax, %ds
    movw 0x2ff, %dx
    movw 0x300, %dx                     # at 12: beyond
    hlt
stack:                                  # pushes wrap at 0; EAX: what was popped
    movl %esp, %ebx
    movw $0x50, %ax
    movw %ax, %ss
    movw $2, %sp
    pushw $0x1111
    pushw $0x2222
    pushl $0x33334444
    pushaw
    movw %sp, %dx
    addw $16, %sp
    popl %eax
    popw %cx
    popw %si
    addw %si, %cx
    addw %cx, %ax
    movw $0x10, %cx
    movw %cx, %ss
    movl %ebx, %esp
    lretl
down:                                   # offsets above the limit only
    movw $0x58, %ax
    movw %ax, %ds
    movw 0x1000, %ax
    movw 0xfffe, %dx
    addw %dx, %ax
    movw 0x0ffe, %dx                    # at 14: below
    hlt
code16_end:
    .section .note.GNU-stack, "", @progbits
