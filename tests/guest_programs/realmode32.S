# Code that runs in real mode at 0x8000, results at 0x9000; call_real goes there and back (SDM 3A 9.9).
#define AT(label) ((label) - blob + 0x8000)
    .text
    .code32
    .globl call_real
call_real:                              # void call_real(void)
    pushl %ebp
    pushl %ebx
    pushl %esi
    pushl %edi
    movl $blob, %esi
    movl $0x8000, %edi
    movl $(blob_end - blob), %ecx
    rep movsb
    movl %esp, saved_sp
    lidt real_idt
    ljmp $0x18, $AT(narrow)             # 16-bit code; its base is 0

    .globl back_in_protected_mode
back_in_protected_mode:
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

    .data
saved_sp: .long 0
real_idt: .word 0x3ff
    .long 0

    .text
    .code16
blob:
narrow:
    movw $0x30, %ax                     # 16-bit data: limit 64 KiB
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw %ax, %fs
    movw %ax, %gs
    movl %cr0, %eax
    andl $~1, %eax
    movl %eax, %cr0
    ljmp $0, $AT(real)
real:
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $0x7c00, %sp
    # The vectors: each counts in 0x9100 + 2 * n and notes the IP of the interrupted code.
    movw $AT(on_divide), 0x00
    movw %ax, 0x02
    movw $AT(on_opcode), 6 * 4
    movw %ax, 6 * 4 + 2
    movw $AT(on_protection), 13 * 4
    movw %ax, 13 * 4 + 2
    movw $AT(on_protection), 12 * 4
    movw %ax, 12 * 4 + 2
    movw $AT(on_int), 0x40 * 4
    movw %ax, 0x40 * 4 + 2

    # 0x9000: flags as PUSHF shows them, CS, what SMSW says.
    pushfw
    popw 0x9000
    movw %cs, 0x9002
    smsw 0x9004

    # 0x9006: segment arithmetic; 0x9008: FFFF:0010 with A20 on is 1 MiB.
    movw $0x1234, %ax
    movw %ax, 0x9500
    movw $0x950, %bx
    movw %bx, %ds
    movw 0, %cx
    xorw %bx, %bx
    movw %bx, %ds
    movw %cx, 0x9006
    movw $0xffff, %bx
    movw %bx, %es
    movl %es:0x10, %eax
    movl %eax, 0x9008
    xorw %bx, %bx
    movw %bx, %es

    # INT n: pushes flags, CS and IP; IRET restores.
    stc
    int $0x40
    setc 0x900c

    # Exceptions push no error code. Each handler moves on by the length of what faulted.
    xorw %cx, %cx
    divw %cx
    .byte 0x0f, 0x0b
    movb $1, 0x900d
    movl %ds:0x0ffff, %eax              # 4 bytes at 0xffff: beyond the limit
    movb $1, 0x900e
    .byte 0x0f, 0x00, 0xc0              # SLDT: not in this mode
    movb $1, 0x900f

    # Far call and return, with 16-bit offsets.
    lcall $0x700, $(AT(far_away) - 0x7000)
    movw %ax, 0x9010

    # String instructions at the end of a segment: DI wraps from 0xfffe to 0.
    movw $0x2000, %ax
    movw %ax, %es
    movw $0xfffe, %di
    movw $0xbeef, %ax
    movw $2, %cx
    cld
    rep stosw
    movw %di, 0x9012
    movw %es:0, %ax
    movw %ax, 0x9014
    xorw %ax, %ax
    movw %ax, %es

    # Hidden limits stay: with a 4 GiB limit loaded in protected mode, real mode reaches above 1 MiB.
    cli
    lgdt AT(low_gdt)
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    jmp 1f
1:  movw $0x10, %bx
    movw %bx, %fs
    andl $~1, %eax
    movl %eax, %cr0
    jmp 1f
1:  movl $0x100000, %ebx
    movl %fs:(%ebx), %eax
    movl %eax, 0x9018
    xorw %bx, %bx
    movw %bx, %fs                       # a load in real mode changes the base only
    movl $0x100000, %ebx
    movl %fs:(%ebx), %eax
    movl %eax, 0x901c

    # Another interrupt table.
    movl 0x40 * 4, %eax
    movl %eax, 0xa000 + 0x10 * 4
    lidt AT(other_idt)
    stc
    int $0x10
after_int:
    movw 0x9180, %ax
    movw %ax, 0x9020

    # BCD and string compare, as boot code of old uses them.
    movw $0x0905, %ax
    aad
    movw %ax, 0x9022
    movb $0x15, %al
    addb $0x27, %al
    daa
    movb %al, 0x9024

    # CPUID and 32-bit registers work.
    xorl %eax, %eax
    cpuid
    movl %ebx, 0x9028

    # Back.
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x08, $back_in_protected_mode

far_away:
    movw %cs, %ax
    lretw

on_divide:
    incw 0x9100
    pushw %bp
    movw %sp, %bp
    addw $2, 2(%bp)                     # over DIV CX
    popw %bp
    iretw
on_opcode:
    incw 0x9100 + 12
    pushw %bp
    pushw %bx
    movw %sp, %bp
    movw 4(%bp), %bx
    addw $2, 4(%bp)                     # UD2
    cmpb $0x00, %cs:1(%bx)
    jne 1f
    incw 4(%bp)                         # SLDT is of 3
1:  popw %bx
    popw %bp
    iretw
on_protection:
    incw 0x9100 + 26
    pushw %bp
    movw %sp, %bp
    addw $4, 2(%bp)                     # 66 a1 off16, by prefix 3e or not
    popw %bp
    iretw
on_int:
    incw 0x9180
    pushw %bp
    movw %sp, %bp
    pushw %ax
    movw 2(%bp), %ax
    movw %ax, 0x9182
    movw 6(%bp), %ax
    movw %ax, 0x9184
    pushfw
    popw 0x9186
    popw %ax
    popw %bp
    iretw

    .balign 8
low_gdt:
    .word 0x1ff
    .long gdt
other_idt:
    .word 0x3ff
    .long 0xa000
blob_end:
    .globl after_int_offset
    .set after_int_offset, AT(after_int)
    .section .note.GNU-stack, "", @progbits
