# Programs of real-address mode, at 0x8000. Before: number of the program at 0x7e00, how often at 0x7e04. After: ticks of
# the time stamp counter at 0x7e08, a checksum at 0x7e10. run_real goes there and back (SDM 3A 9.9).
#define AT(label) ((label) - blob + 0x8000)
#define TIMES 0x7e04
    .text
    .code32
    .globl run_real
run_real:                               # void run_real(void)
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

    .data
saved_sp: .long 0
real_idt: .word 0x3ff
    .long 0

    .text
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
    movw $AT(on_int), 0x60 * 4
    movw %ax, 0x60 * 4 + 2
    cld
    rdtsc
    movl %eax, 0x7e08
    movl %edx, 0x7e0c
    movl $0, 0x7e10
    movw 0x7e00, %bx
    addw %bx, %bx
    call *AT(programs)(%bx)
    addl %eax, 0x7e10
    rdtsc
    subl 0x7e08, %eax
    sbbl 0x7e0c, %edx
    movl %eax, 0x7e08
    movl %edx, 0x7e0c
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x08, $back

programs:
    .word AT(arithmetic), AT(sieve), AT(fib), AT(table), AT(far_calls), AT(segments), AT(pointers), AT(interrupts)
    .word AT(flags), AT(frames), AT(big_data), AT(copy_words), AT(copy_rep), AT(lodstos)

# Registers only.
arithmetic:
    xorl %eax, %eax
    movw $1, %bx
    movw $7, %dx
1:  movw $1000, %cx
2:  addw %bx, %ax
    xorw %cx, %ax
    rolw $3, %ax
    imulw $13, %bx, %bx
    addw %dx, %bx
    subw %ax, %dx
    movw %dx, %si
    shrw $2, %si
    orw $1, %si
    addw %si, %ax
    loop 2b
    decl TIMES
    jnz 1b
    ret

# Of 8192 numbers, in a segment of its own.
sieve:
    movw $0x2000, %ax
    movw %ax, %ds
1:  xorw %bx, %bx
2:  movb $1, (%bx)
    incw %bx
    cmpw $8192, %bx
    jb 2b
    xorw %ax, %ax
    movw $2, %si
3:  cmpb $0, (%si)
    je 5f
    incw %ax
    movw %si, %di
    addw %si, %di
4:  cmpw $8192, %di
    jae 5f
    movb $0, (%di)
    addw %si, %di
    jmp 4b
5:  incw %si
    cmpw $8192, %si
    jb 3b
    decl %ss:TIMES
    jnz 1b
    xorw %dx, %dx
    movw %dx, %ds
    movzwl %ax, %eax
    ret

# Near calls and the stack.
fib:
1:  movw $15, %ax
    pushw %ax
    call 2f
    addw $2, %sp
    decl TIMES
    jnz 1b
    movzwl %ax, %eax
    ret
2:  pushw %bp
    movw %sp, %bp
    movw 4(%bp), %ax
    cmpw $2, %ax
    jb 3f
    decw %ax
    pushw %ax
    call 2b
    addw $2, %sp
    pushw %ax
    movw 4(%bp), %ax
    subw $2, %ax
    pushw %ax
    call 2b
    addw $2, %sp
    popw %cx
    addw %cx, %ax
3:  popw %bp
    ret

# Words by index from a table, sums to memory.
table:
    movw $0x3000, %ax
    movw %ax, %es
    xorl %eax, %eax
1:  movw $500, %cx
    xorw %si, %si
2:  movw %si, %bx
    andw $0x1fe, %bx
    addw %es:0x100(%bx,%si), %ax
    addw %ax, %es:0x80
    movw %ax, %es:(%bx)
    addw $2, %si
    loop 2b
    decl TIMES
    jnz 1b
    ret

far_calls:
    xorl %eax, %eax
1:  movw $100, %cx
2:  lcall $0x700, $(AT(far_away) - 0x7000)
    loop 2b
    decl TIMES
    jnz 1b
    ret
far_away:
    incw %ax
    lretw

segments:
    xorl %eax, %eax
    xorl %ebx, %ebx
1:  movw $0x2000, %dx
    movw $100, %cx
2:  movw %dx, %es
    addw %es:4, %ax
    pushw %ds
    popw %es
    addw %es:0x7e00, %ax
    incw %dx
    loop 2b
    decl TIMES
    jnz 1b
    movzwl %ax, %eax
    ret

# A list by far pointers.
pointers:
    movw $0x100, 0x7e20
    movw $0x2000, 0x7e22
    movw $0x2000, %ax
    movw %ax, %es
    movw $0x200, %es:0x100
    movw $0x2010, %es:0x102
    movw $0x2010, %ax
    movw %ax, %es
    movw $0x100, %es:0x200
    movw $0x2000, %es:0x202
1:  movw $100, %cx
    lesw 0x7e20, %di
2:  lesw %es:(%di), %di
    loop 2b
    decl TIMES
    jnz 1b
    movzwl %di, %eax
    ret

interrupts:
    xorl %eax, %eax
1:  movw $100, %cx
2:  int $0x60
    loop 2b
    decl TIMES
    jnz 1b
    ret
on_int:
    incw %ax
    iretw

flags:
    xorl %eax, %eax
1:  movw $100, %cx
2:  pushfw
    cli
    incw %ax
    popfw
    loop 2b
    decl TIMES
    jnz 1b
    ret

# As compilers make code with 32-bit addresses.
frames:
    movl $0x7c00, %ebp
    xorl %eax, %eax
    movl %esp, %edx
    andl $0xffff, %edx
    movl %edx, %esp
1:  movl $300, -20(%ebp)
2:  movl -16(%ebp), %edx
    leal 3(%edx,%eax,2), %eax
    movl %eax, -16(%ebp)
    pushl %eax
    pushl -20(%ebp)
    movl 4(%esp), %edx
    addl (%esp), %edx
    addl $8, %esp
    addl %edx, %eax
    decl -20(%ebp)
    jnz 2b
    decl TIMES
    jnz 1b
    xorl %eax, %eax
    ret

# Above 1 MiB, through a segment with a limit of 4 GiB.
big_data:
    xorl %eax, %eax
1:  movl $0x180000, %esi
    movw $500, %cx
2:  movl %fs:(%esi), %edx
    addl %edx, %eax
    movl %eax, %fs:0x8000(%esi)
    addl $4, %esi
    loop 2b
    decl TIMES
    jnz 1b
    xorl %eax, %eax
    ret

# From segment to segment.
copy_words:
    movw $0x2000, %ax
    movw %ax, %es
    movw $0x3000, %ax
    movw %ax, %ds
1:  movw $1000, %cx
    xorw %si, %si
2:  movw (%si), %ax
    movw %ax, %es:(%si)
    addw $2, %si
    loop 2b
    decl %ss:TIMES
    jnz 1b
    xorw %ax, %ax
    movw %ax, %ds
    movzwl %si, %eax
    ret
copy_rep:
    movw $0x2000, %ax
    movw %ax, %es
    movw $0x3000, %ax
    movw %ax, %ds
1:  xorw %si, %si
    xorw %di, %di
    movw $4000, %cx
    rep movsw
    decl %ss:TIMES
    jnz 1b
    xorw %ax, %ax
    movw %ax, %ds
    movzwl %si, %eax
    ret
lodstos:
    movw $0x2000, %ax
    movw %ax, %es
    movw $0x3000, %ax
    movw %ax, %ds
1:  xorw %si, %si
    xorw %di, %di
    movw $500, %cx
2:  lodsw
    incw %ax
    stosw
    loop 2b
    decl %ss:TIMES
    jnz 1b
    xorw %ax, %ax
    movw %ax, %ds
    movzwl %di, %eax
    ret
blob_end:
    .section .note.GNU-stack, "", @progbits
