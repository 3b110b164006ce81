# Where an application processor starts after its SIPI: real mode, copied to SMP_TRAMPOLINE; from there straight to 64-bit
# mode with the boot processor's page tables, to smp_enter on a stack of its own (by APIC ID).
    .text
    .code16
    .globl smp_trampoline, smp_trampoline_end
smp_trampoline:
    cli
    cld
    movw %cs, %ax
    movw %ax, %ds
    movl %cr4, %eax
    orl $(1 << 5), %eax                 # PAE
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x901, %eax                    # SCE, LME, NXE
    wrmsr
    lgdtl (trampoline_gdt - smp_trampoline)
    movl $0x80010033, %eax              # PG WP NE ET MP PE
    movl %eax, %cr0
    ljmpl $0x08, $application64
    .balign 4
trampoline_gdt:
    .word 511
    .long gdt
smp_trampoline_end:

    .code64
application64:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movl $1, %eax
    cpuid
    shrl $24, %ebx                      # the APIC ID
    movl %ebx, %edi
    incl %ebx
    shll $14, %ebx
    leaq smp_stacks(%rip), %rsp
    addq %rbx, %rsp
    lidt idt_pointer(%rip)
    call smp_enter
1:  hlt
    jmp 1b
    .section .note.GNU-stack, "", @progbits
