# 16-bit and 32-bit protected mode and back, segment limits with their error codes; virtual-8086 mode with a monitor that
# reflects interrupts.
#include "dos.h"
#define CODE16 0x08
#define DATA16 0x10
#define CODE32 0x18
#define DATA32 0x20
#define SMALL 0x28
#define TSS 0x30
    .code16
    .text
    .globl protected_checks, v86_checks
protected_checks:
    call protect
    movw $DATA16, %ax                   # base 0x10000, 64 KiB
    movw %ax, %es
    movl %es:known, %ebx
    call unprotect
    cmpl $0x600dda7a, %ebx
    check e, "16-bit protected mode"
    call protect
    ljmp $CODE32, $1f
    .code32
1:  movl $DATA32, %eax
    movl %eax, %es
    movl $0xcafe0000, %es:0x250000
    movl $0x1234, %eax
    pushl %eax                          # SS is still the 16-bit one
    addl (%esp), %eax
    popl %edx
    addl %eax, %es:0x250000
    movl %es:0x250000, %ebx
    lea (%ebx, %edx, 4), %ecx
    ljmp $CODE16, $1f
    .code16
1:  call unprotect
    cmpl $0xcafe2468, %ebx
    check e, "32-bit protected mode: 4 GiB"
    cmpl $0xcafe6d38, %ecx
    check e, "32-bit addressing"
    call protect
    movw $0, pm_count
    movw $1f, pm_resume
    movw $SMALL, %ax                    # 0x100 bytes
    movw %ax, %es
    movb %es:0xff, %al
    movw $0xff, %si
    movw %es:(%si), %ax
1:  movl pm_error, %ebx
    shll $16, %ebx
    movw pm_count, %bx
    call unprotect
    cmpl $1, %ebx
    check e, "a limit is #GP(0), once"
    call protect
    movw $0, pm_count
    movw $1f, pm_resume
    movw $0x1234, %ax
    movw %ax, %es                       # outside the GDT
1:  movl pm_error, %ebx
    call unprotect
    cmpl $0x1234, %ebx
    check e, "a selector outside the GDT is #GP(selector)"
    call protect
    movw $0, pm_count
    movw $1f, pm_resume
    movw $CODE16, %ax
    movw %ax, %es
    movb $0, %es:0                      # code cannot be written
1:  movzwl pm_count, %ebx
    call unprotect
    cmpl $1, %ebx
    check e, "code segments are not written"
    movw $1000, %cx
    xorl %ebx, %ebx
1:  call protect
    smsww %ax
    andw $1, %ax
    addw %ax, %bx
    call unprotect
    smsww %ax
    andw $1, %ax
    addw %ax, %bx
    loop 1b
    cmpw $1000, %bx
    check e, "there and back a thousand times"
    # A big limit in DS itself, with the BIOS' interrupts on.
    call unreal
    pushw $0
    popw %fs
    movl $0x280000, %esi
    movl $0x5eaf00d, %fs:(%esi)
    xorl %eax, %eax
    movl %fs:(%esi), %ebx
    cmpl $0x5eaf00d, %ebx
    check e, "unreal mode keeps its limit across loads of FS"
    ret

# Into 16-bit protected mode, interrupts off; SS, DS: DATA16, CS: CODE16. Keeps all but AX.
protect:
    cli
    lgdtl gdtr
    lidtl idtr
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    ljmp $CODE16, $1f
1:  movw $DATA16, %ax
    movw %ax, %ds
    movw %ax, %ss
    ret
# Back to real mode. Keeps all but AX; flags too.
unprotect:
    pushfw
    movw $DATA16, %ax
    movw %ax, %es
    movw %ax, %fs
    movw %ax, %gs
    movl %cr0, %eax
    andb $0xfe, %al
    movl %eax, %cr0
    ljmp $SEGMENT, $1f
1:  movw $SEGMENT, %ax
    movw %ax, %ds
    movw %ax, %ss
    movw %ax, %es
    lidtl real_idtr
    popfw
    sti
    ret
# #GP of 16-bit code, by a 16-bit gate: error, IP, CS, FLAGS. Goes on at pm_resume.
general_protection:
    pushw %bp
    movw %sp, %bp
    pushw %ds
    pushw %ax
    movw $DATA16, %ax
    movw %ax, %ds
    incw pm_count
    movzwl 2(%bp), %eax
    movl %eax, pm_error
    movw pm_resume, %ax
    movw %ax, 4(%bp)
    popw %ax
    popw %ds
    popw %bp
    addw $2, %sp
    iretw

# ---- Virtual-8086 mode. The task is 16-bit code of this segment; INT, IRET, PUSHF, POPF, CLI and STI come to the monitor
# as #GP, because IOPL is 0.
v86_checks:
    movw $v86_handler, %ax
    movb $0x60, %bl
    call hook
    movl %eax, v86_old
    movw $monitor, gp_gate
    movw $CODE32, gp_gate+2
    movb $0x8e, gp_gate+5
    call protect
    movw $TSS, %ax
    movb $0x89, gdt+TSS+5               # not busy
    ltr %ax
    movl %esp, v86_esp
    ljmp $CODE32, $1f
    .code32
1:  movl $DATA32, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $LINEAR(monitor_stack_end), %esp
    movl %esp, LINEAR(tss)+4
    movl $DATA32, LINEAR(tss)+8
    movl $0, LINEAR(v86_flags)
    pushl $0                            # GS, FS
    pushl $0
    pushl $SEGMENT                      # DS, ES
    pushl $SEGMENT
    pushl $SEGMENT                      # SS
    pushl $v86_stack_end
    pushl $0x20002                      # VM
    pushl $SEGMENT
    pushl $v86_task
    iretl

# 32-bit #GP: after PUSHAD error, EIP, CS, EFLAGS, ESP, SS, ES, DS.
monitor:
    pushal
    movl $DATA32, %eax
    movl %eax, %ds
    movl %eax, %es
    testb $2, 32+12+2(%esp)
    jz monitor_lost
    movzwl 32+8(%esp), %esi             # the instruction
    shll $4, %esi
    movzwl 32+4(%esp), %edx
    addl %edx, %esi
    movzwl 32+20(%esp), %edi            # the stack
    shll $4, %edi
    movzwl 32+16(%esp), %ebp
    incl LINEAR(v86_exits)
    movzbl (%esi), %eax
    cmpb $0xcd, %al
    je monitor_int
    cmpb $0xcf, %al
    je monitor_iret
    cmpb $0x9c, %al
    je monitor_pushf
    cmpb $0x9d, %al
    je monitor_popf
    cmpb $0xfa, %al
    je monitor_cli
    cmpb $0xfb, %al
    je monitor_sti
monitor_lost:
    movl $0xffffffff, LINEAR(v86_exits)
    jmp monitor_leave
monitor_int:
    movzbl 1(%esi), %ebx
    cmpb $0x61, %bl
    je monitor_leave
    movl 32+12(%esp), %ecx
    andl $~0x200, %ecx
    orl LINEAR(v86_flags), %ecx
    subw $2, %bp
    movw %cx, (%edi, %ebp)
    subw $2, %bp
    movl 32+8(%esp), %ecx
    movw %cx, (%edi, %ebp)
    subw $2, %bp
    leal 2(%edx), %ecx
    movw %cx, (%edi, %ebp)
    movzwl (, %ebx, 4), %ecx
    movl %ecx, 32+4(%esp)
    movzwl 2(, %ebx, 4), %ecx
    movl %ecx, 32+8(%esp)
    movl $0, LINEAR(v86_flags)
    jmp monitor_back
monitor_iret:
    movzwl (%edi, %ebp), %ecx
    movl %ecx, 32+4(%esp)
    movzwl 2(%edi, %ebp), %ecx
    movl %ecx, 32+8(%esp)
    addw $4, %bp
    jmp 1f
monitor_popf:
    incl 32+4(%esp)
1:  movzwl (%edi, %ebp), %ecx
    addw $2, %bp
    movl %ecx, %eax
    andl $0x200, %eax
    movl %eax, LINEAR(v86_flags)
    andl $0xcd5, %ecx
    orl $0x20202, %ecx
    movl %ecx, 32+12(%esp)
    jmp monitor_back
monitor_pushf:
    incl 32+4(%esp)
    movl 32+12(%esp), %ecx
    andl $~0x200, %ecx
    orl LINEAR(v86_flags), %ecx
    subw $2, %bp
    movw %cx, (%edi, %ebp)
    jmp monitor_back
monitor_cli:
    incl 32+4(%esp)
    movl $0, LINEAR(v86_flags)
    jmp monitor_back
monitor_sti:
    incl 32+4(%esp)
    movl $0x200, LINEAR(v86_flags)
monitor_back:
    movl %ebp, 32+16(%esp)
    andl $~0x200, 32+12(%esp)           # the machine's interrupts stay off
    popal
    addl $4, %esp
    iretl
monitor_leave:
    movw $DATA16, %ax
    movw %ax, %ds
    movw %ax, %ss
    movl v86_esp, %esp
    ljmp $CODE16, $1f
    .code16
1:  call unprotect
    movw $general_protection, gp_gate
    movw $CODE16, gp_gate+2
    movb $0x86, gp_gate+5
    movl v86_old, %eax
    movb $0x60, %bl
    call hook_back
    movl v86_result, %ebx
    cmpl $0xbee50060, %ebx
    check e, "v86: INT is reflected and comes back"
    movl v86_segments, %ebx
    cmpl $0x00101000, %ebx
    check e, "v86: segments are paragraphs"
    movl v86_exits, %ebx
    cmpl $(1 + 1 + 100 * 2 + 4 + 1), %ebx
    check e, "v86: every sensitive instruction, once"
    movzwl v86_if, %ebx
    cmpw $0x0200, v86_if
    check e, "v86: the virtual interrupt flag"
    ret

v86_task:
    movw %cs, %ax                       # its own CS, and 1 paragraph in real-mode fashion
    movw %ax, v86_segments
    pushw $1
    popw %es
    movb %es:0, %bl
    xorb %bl, %bl
    movw $0x10, v86_segments+2
    sti                                 # 1
    pushfw                              # 1
    popw %ax
    andw $0x200, %ax
    movw %ax, v86_if
    xorl %ebx, %ebx
    movw $100, %cx
1:  int $0x60                           # 2 each
    loop 1b
    cli
    pushfw
    popw %ax
    pushw %ax
    popfw
    sti
    movl %ebx, v86_result
    int $0x61
v86_handler:
    incb %cs:v86_calls
    movl $0xbee50060, %ebx
    iretw

    .data
    .balign 8
gdt: .quad 0
    .quad 0x00009a010000ffff            # CODE16: base 0x10000
    .quad 0x000092010000ffff            # DATA16
    .quad 0x00cf9a010000ffff            # CODE32: base 0x10000, 4 GiB
    .quad 0x00cf92000000ffff            # DATA32
    .quad 0x00009201000000ff            # SMALL
    .word 103, tss                      # TSS
    .byte 1, 0x89, 0, 0
gdtr: .word gdtr - gdt - 1
    .long LINEAR(gdt)
    .balign 8
idt: .fill 13, 8, 0
gp_gate: .word general_protection, CODE16
    .byte 0, 0x86
    .word 0
idt_end:
idtr: .word idt_end - idt - 1
    .long LINEAR(idt)
real_idtr: .word 0x3ff
    .long 0
known: .long 0x600dda7a
pm_error: .long 0
pm_count: .word 0
pm_resume: .word 0
v86_esp: .long 0
v86_old: .long 0
v86_flags: .long 0
v86_exits: .long 0
v86_result: .long 0
v86_segments: .word 0, 0
v86_if: .word 0
v86_calls: .byte 0
    .bss
    .balign 16
tss: .space 104
    .space 512
monitor_stack_end:
    .space 512
v86_stack_end:
