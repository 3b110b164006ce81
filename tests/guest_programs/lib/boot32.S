# From the loader's 32-bit entry to guest_main: flat segments of our own, paging off. Interrupt stubs, and the jump back
# of TRY.
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
    movl %cr0, %eax
    orl $0x30, %eax                     # NE ET
    movl %eax, %cr0
    lgdt gdt_pointer
    ljmp $0x08, $1f
1:  movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    # The TSS's descriptor, at 0x38.
    movl $tss, %eax
    movw $0x67, gdt + 0x38
    movw %ax, gdt + 0x3a
    shrl $16, %eax
    movb %al, gdt + 0x3c
    movb $0x89, gdt + 0x3d
    movb %ah, gdt + 0x3f
    movl $kernel_stack_top, tss + 4
    movl $0x10, tss + 8
    movw $0x38, %ax
    ltr %ax
    movl $idt, %edi
    movl $stubs, %eax
    movl $256, %ecx
1:  movw %ax, (%edi)
    movw $0x08, 2(%edi)
    movw $0x8e00, 4(%edi)
    movl %eax, %edx
    shrl $16, %edx
    movw %dx, 6(%edi)
    addl $8, %edi
    addl $16, %eax
    loop 1b
    movb $0xee, idt + 0x80 * 8 + 5
    lidt idt_pointer
    call guest_start
1:  hlt
    jmp 1b

    .balign 16
stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if (vector != 8) && (vector != 10) && (vector != 11) && (vector != 12) && (vector != 13) && (vector != 14) && (vector != 17) && (vector != 21)
    pushl $0
    .endif
    pushl $vector
    jmp interrupt_common
    .set vector, vector + 1
    .endr

    .globl interrupt_common
interrupt_common:
    cld
    pushal
    pushl %ds
    pushl %es
    pushl %fs
    pushl %gs
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %esp, %eax
    pushl %eax
    call guest_interrupt
    addl $4, %esp
    popl %gs
    popl %fs
    popl %es
    popl %ds
    popal
    addl $8, %esp
    iret

# int guest_setjmp(reg environment[8]); returns 0, then 1 through guest_longjmp.
    .globl guest_setjmp, guest_longjmp, guest_enter_user
guest_setjmp:
    movl 4(%esp), %edx
    movl %ebx, (%edx)
    movl %ebp, 4(%edx)
    movl %esi, 8(%edx)
    movl %edi, 12(%edx)
    leal 4(%esp), %eax
    movl %eax, 16(%edx)
    movl (%esp), %eax
    movl %eax, 20(%edx)
    xorl %eax, %eax
    ret
guest_longjmp:
    movl 4(%esp), %edx
    movl $0x10, %eax
    movl %eax, %ss
    movl %eax, %ds
    movl %eax, %es
    movl 16(%edx), %esp
    pushl $2
    popfl
    movl (%edx), %ebx
    movl 4(%edx), %ebp
    movl 8(%edx), %esi
    movl 12(%edx), %edi
    movl $1, %eax
    jmp *20(%edx)

# void guest_enter_user(reg ip, reg sp, reg flags, reg cs, reg ss, reg argument): IRET to another privilege; the argument
# arrives in EAX.
guest_enter_user:
    movl %esp, %edx
    movl 24(%edx), %eax
    movl 20(%edx), %ecx
    movl %ecx, %ds
    movl %ecx, %es
    pushl %ss:20(%edx)
    pushl %ss:8(%edx)
    pushl %ss:12(%edx)
    pushl %ss:16(%edx)
    pushl %ss:4(%edx)
    iret

    .data
    .globl gdt, gdt_pointer, idt, idt_pointer, tss, guest_magic, guest_info
    .balign 16
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff            # 08 code
    .quad 0x00cf93000000ffff            # 10 data
    .quad 0x00009b000000ffff            # 18 code, 16-bit
    .quad 0x00cffb000000ffff            # 20 user code
    .quad 0x00cff3000000ffff            # 28 user data
    .quad 0x000093000000ffff            # 30 data, 16-bit
    .quad 0                             # 38 TSS
    .fill 56, 8, 0                      # 40... for tests
gdt_pointer:
    .word . - gdt - 1
    .long gdt
idt_pointer:
    .word 2047
    .long idt
guest_magic: .long 0
guest_info: .long 0
    .balign 16
tss:
    .fill 25, 4, 0
    .word 0, 104
    .fill 8192, 1, 0                    # room for an I/O permission map
    .byte 0xff

    .bss
    .balign 4096
idt: .skip 4096
    .skip 16384
    .globl stack_top, kernel_stack_top
stack_top:
    .skip 16384
kernel_stack_top:
    .section .note.GNU-stack, "", @progbits
