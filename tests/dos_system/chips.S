# The interrupt controllers, the timer, the speaker port and the clock.
#include "dos.h"
    .code16
    .text
    .globl chip_checks
chip_checks:
    xorb %ah, %ah                       # ticks since midnight
    int $0x1a
    movw %dx, %bp
    movw $0xffff, %bx
1:  hlt
    xorb %ah, %ah
    int $0x1a
    cmpw %bp, %dx
    jne 2f
    decw %bx
    jnz 1b
2:  movzwl %bx, %ebx
    testw %bx, %bx
    check nz, "int 1Ah: the ticks go on"
    movb $0x02, %ah
    int $0x1a
    jc 3f
    movb %ch, %al                       # BCD: hours 0 to 23, minutes 0 to 59
    cmpb $0x24, %al
    jae 4f
    cmpb $0x60, %cl
3:  cmc
4:  cmc
    check c, "int 1Ah: the time of the RTC"
    movb $0x04, %ah
    int $0x1a
    movzwl %cx, %ebx
    jc 5f
    cmpw $0x2020, %cx                   # BCD year
5:  check nc, "int 1Ah: the date of the RTC"

    movb $0x08, %bl
    movw $irq0, %ax
    call hook
    movl %eax, old_irq0
    movb $0x1c, %bl
    movw $user_tick, %ax
    call hook
    movl %eax, old_tick
    movw $0, irqs
    movw $0, user_ticks
    movw $5, %ax
    call wait_irqs
    movl irqs, %ebx
    cmpw $5, irqs
    check ae, "int 8: the timer interrupts"
    cmpw $0, user_ticks
    check ne, "int 1Ch: the BIOS calls it"
    cmpb $1, in_service
    check e, "the 8259 has IRQ 0 in service then"

    movb $0x34, %al                     # mode 2, about 1 kHz
    outb %al, $0x43
    movb $(1193 & 0xff), %al
    outb %al, $0x40
    movb $(1193 >> 8), %al
    outb %al, $0x40
    movw $0, irqs
    movw $20, %ax
    call wait_irqs
    movl irqs, %ebx
    cmpw $20, irqs
    check ae, "the timer at 1 kHz"
    movb $0xe2, %al                     # read back: status of counter 0
    outb %al, $0x43
    inb $0x40, %al
    movzbl %al, %ebx
    andb $0x3f, %al
    cmpb $0x34, %al
    check e, "the timer's status: mode 2, both bytes"
    movw $1000, %cx
    xorl %ebx, %ebx
6:  xorb %al, %al                       # latch
    outb %al, $0x43
    inb $0x40, %al
    movb %al, %ah
    inb $0x40, %al
    xchgb %al, %ah
    decw %ax
    cmpw $1193, %ax
    adcl $0, %ebx
    loop 6b
    cmpl $1000, %ebx
    check e, "its count stays within 1 and its start"

    inb $0x21, %al                      # masked, the request stays pending
    movb %al, old_mask
    orb $1, %al
    outb %al, $0x21
    movw $0, irqs
    movw $2000, %cx
    call wait_refresh                   # 30 ms
    movl irqs, %ebx
    cmpw $0, irqs
    check e, "a masked interrupt does not come"
    movb $0x0a, %al                     # IRR
    outb %al, $0x20
    movl $0x1000000, %ecx
9:  inb $0x20, %al
    testb $1, %al
    jnz 9f
    addr32 loop 9b
9:  testb $1, %al
    check nz, "it is pending"
    movb old_mask, %al
    outb %al, $0x21
    nop
    movl irqs, %ebx
    cmpw $1, irqs
    check ae, "unmasked it comes at once"

    cli                                 # not ended, it holds the others back; a specific EOI ends it
    movw $0, irqs
    movb $1, keep_in_service
    movw $1, %ax
    call wait_irqs
    movw $2000, %cx
    call wait_refresh
    movl irqs, %ebx
    cmpw $1, irqs
    check e, "an interrupt in service holds the next one back"
    movb $0, keep_in_service
    movb $0x60, %al
    outb %al, $0x20
    movw $3, %ax
    call wait_irqs
    movl irqs, %ebx
    cmpw $3, irqs
    check ae, "a specific end of interrupt"
    movb $0x36, %al                     # as the BIOS has it
    outb %al, $0x43
    xorb %al, %al
    outb %al, $0x40
    outb %al, $0x40
    movl old_irq0, %eax
    movb $0x08, %bl
    call hook_back
    movl old_tick, %eax
    movb $0x1c, %bl
    call hook_back

    inb $0x61, %al                      # counter 2: gate on, speaker off
    movb %al, old_port
    andb $0xfc, %al
    outb %al, $0x61
    movb $0xb0, %al                     # mode 0: OUT is low until the count ends
    outb %al, $0x43
    movb $0, %al
    outb %al, $0x42
    movb $0x08, %al
    outb %al, $0x42
    inb $0x61, %al
    testb $0x20, %al
    check z, "mode 0: OUT2 is low without the gate"
    inb $0x61, %al
    orb $1, %al
    outb %al, $0x61
    call wait_out_high
    check nz, "mode 0: OUT2 goes high at the end"
    movb $0xb6, %al                     # mode 3
    outb %al, $0x43
    movb $0, %al
    outb %al, $0x42
    movb $0x02, %al
    outb %al, $0x42
    inb $0x61, %al
    orb $3, %al
    outb %al, $0x61
    movw $10, %cx
7:  call wait_out_high
    jz 8f
    call wait_out_low
    jz 8f
    loop 7b
8:  movzwl %cx, %ebx
    testw %cx, %cx
    check z, "mode 3: a square wave through the speaker port"
    movb old_port, %al
    outb %al, $0x61
    ret

# NZ: it came.
wait_out_high:
    movl $0x1000000, %edx
1:  inb $0x61, %al
    testb $0x20, %al
    jnz 2f
    decl %edx
    jnz 1b
2:  ret
wait_out_low:
    movl $0x1000000, %edx
1:  inb $0x61, %al
    testb $0x20, %al
    jz 2f
    decl %edx
    jnz 1b
2:  testl %edx, %edx
    ret
# CX changes of the refresh bit, 15 us each.
wait_refresh:
    inb $0x61, %al
    andb $0x10, %al
    movb %al, %ah
1:  inb $0x61, %al
    andb $0x10, %al
    cmpb %ah, %al
    je 1b
    movb %al, %ah
    loop 1b
    ret
# AX interrupts 0, or so many turns that something is wrong.
wait_irqs:
    movl $0x10000, %ecx
1:  cli
    cmpw %ax, irqs
    jae 2f
    sti                                 # none is lost between this and HLT
    hlt
    decl %ecx
    jnz 1b
2:  sti
    ret

irq0:
    pushw %ax
    incw %cs:irqs
    movb $0x0b, %al                     # ISR
    outb %al, $0x20
    inb $0x20, %al
    andb $1, %al
    movb %al, %cs:in_service
    cmpb $0, %cs:keep_in_service
    popw %ax
    jne 1f
    ljmp *%cs:old_irq0
1:  iretw
user_tick:
    incw %cs:user_ticks
    iretw

    .data
    .balign 4
old_irq0: .long 0
old_tick: .long 0
irqs: .word 0, 0
user_ticks: .word 0
in_service: .byte 0
keep_in_service: .byte 0
old_mask: .byte 0
old_port: .byte 0
