// One segment of 64 KiB at 0x10000 holds code, data and stack; the routines here may be used from everywhere in it.
#pragma once
#define SEGMENT 0x1000
#define LINEAR(label) (0x10000 + (label))

// "[ok NAME]" if the condition holds, else "[FAIL NAME VALUE]" with EBX. Keeps all registers but AL; flags are lost.
.macro check condition, name
    set\condition %al
    call report
    .section .rodata
9999: .asciz "\name"
    .previous
    .word 9999b
.endm
