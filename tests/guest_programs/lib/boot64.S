# From the loader's 32-bit entry to guest_main in 64-bit mode: 4 GiB identity-mapped by 2 MiB pages, supervisor only but
# for the page at 4 MiB, which user mode may use. Interrupt stubs, and the jump back of TRY.
#include "header.S"

    .text
    .code32
    .globl start32
start32:
    cli
    cld
    movl $stack_top, %esp
    movl %eax, guest_magic
    movl %ebx, guest_info
    # Page tables.
    movl $(pdpt + 7), pml4
    movl $pdpt, %edi
    movl $(pd + 7), %eax
    movl $4, %ecx
1:  movl %eax, (%edi)
    addl $8, %edi
    addl $4096, %eax
    loop 1b
    movl $pd, %edi
    movl $0x83, %eax
    movl $2048, %ecx
1:  movl %eax, (%edi)
    movl $0, 4(%edi)
    addl $8, %edi
    addl $0x200000, %eax
    loop 1b
    orl $4, pd + 16                     # 4 MiB: user
    movl %cr4, %eax
    orl $(1 << 5), %eax                 # PAE
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x901, %eax                    # SCE, LME, NXE
    wrmsr
    movl $0x80010033, %eax              # PG WP NE ET MP PE
    movl %eax, %cr0
    lgdt gdt_pointer
    ljmp $0x08, $start64

    .code64
start64:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    leaq stack_top(%rip), %rsp
    # The TSS's descriptor, at 0x38.
    leaq tss(%rip), %rax
    leaq gdt + 0x38(%rip), %rdi
    movw $0x67, (%rdi)
    movw %ax, 2(%rdi)
    shrq $16, %rax
    movb %al, 4(%rdi)
    movb $0x89, 5(%rdi)
    movb %ah, 7(%rdi)
    leaq kernel_stack_top(%rip), %rax
    movq %rax, tss + 4(%rip)
    leaq ist_stack_top(%rip), %rax
    movq %rax, tss + 36(%rip)
    movw $0x38, %ax
    ltr %ax
    # The IDT: interrupt gates to the stubs; 0x80 for user mode; a double fault has a stack of its own.
    leaq idt(%rip), %rdi
    leaq stubs(%rip), %rax
    movl $256, %ecx
1:  movw %ax, (%rdi)
    movw $0x08, 2(%rdi)
    movw $0x8e00, 4(%rdi)
    movq %rax, %rdx
    shrq $16, %rdx
    movw %dx, 6(%rdi)
    movq $0, 8(%rdi)
    addq $16, %rdi
    addq $16, %rax
    loop 1b
    movb $0xee, idt + 0x80 * 16 + 5(%rip)
    movb $1, idt + 8 * 16 + 4(%rip)
    lidt idt_pointer(%rip)
    call guest_start
1:  hlt
    jmp 1b

    .balign 16
stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if (vector != 8) && (vector != 10) && (vector != 11) && (vector != 12) && (vector != 13) && (vector != 14) && (vector != 17) && (vector != 21)
    pushq $0
    .endif
    pushq $vector
    jmp interrupt_common
    .set vector, vector + 1
    .endr

interrupt_common:
    cld
    pushq %rax
    pushq %rbx
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %rbp
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, %rdi
    call guest_interrupt
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rbp
    popq %rdi
    popq %rsi
    popq %rdx
    popq %rcx
    popq %rbx
    popq %rax
    addq $16, %rsp
    iretq

# int guest_setjmp(reg environment[8]); returns 0, then 1 through guest_longjmp.
    .globl guest_setjmp, guest_longjmp, guest_enter_user
guest_setjmp:
    movq %rbx, (%rdi)
    movq %rbp, 8(%rdi)
    movq %r12, 16(%rdi)
    movq %r13, 24(%rdi)
    movq %r14, 32(%rdi)
    movq %r15, 40(%rdi)
    leaq 8(%rsp), %rax
    movq %rax, 48(%rdi)
    movq (%rsp), %rax
    movq %rax, 56(%rdi)
    xorl %eax, %eax
    ret
guest_longjmp:
    movl $0x10, %eax
    movl %eax, %ss
    movl %eax, %ds
    movl %eax, %es
    pushq $2
    popfq
    movq (%rdi), %rbx
    movq 8(%rdi), %rbp
    movq 16(%rdi), %r12
    movq 24(%rdi), %r13
    movq 32(%rdi), %r14
    movq 40(%rdi), %r15
    movq 48(%rdi), %rsp
    movl $1, %eax
    jmp *56(%rdi)

# void guest_enter_user(reg ip, reg sp, reg flags, reg cs, reg ss, reg argument): IRET to another privilege.
guest_enter_user:
    pushq %r8
    pushq %rsi
    pushq %rdx
    pushq %rcx
    pushq %rdi
    movq %r9, %rdi
    iretq

    .data
    .globl gdt, gdt_pointer, idt, idt_pointer, tss, pml4, pdpt, pd, guest_magic, guest_info
    .balign 16
gdt:
    .quad 0
    .quad 0x00af9b000000ffff            # 08 code, 64-bit
    .quad 0x00cf93000000ffff            # 10 data
    .quad 0x00cf9b000000ffff            # 18 code, 32-bit
    .quad 0x00cffb000000ffff            # 20 user code, 32-bit
    .quad 0x00cff3000000ffff            # 28 user data
    .quad 0x00affb000000ffff            # 30 user code, 64-bit
    .quad 0, 0                          # 38 TSS
    .fill 55, 8, 0                      # 48... for tests
gdt_pointer:
    .word . - gdt - 1
    .quad gdt
idt_pointer:
    .word 4095
    .quad idt
guest_magic: .long 0
guest_info: .long 0
    .balign 16
tss:
    .fill 25, 4, 0
    .word 0, 104

    .bss
    .balign 4096
pml4: .skip 4096
pdpt: .skip 4096
pd: .skip 4 * 4096
idt: .skip 4096
    .skip 16384
stack_top:
    .skip 16384
    .globl kernel_stack_top, ist_stack_top
kernel_stack_top:
    .skip 8192
ist_stack_top:
    .section .note.GNU-stack, "", @progbits
