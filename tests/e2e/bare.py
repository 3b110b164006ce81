"""Tiny multiboot kernels from assembly text: 32-bit code at 1 MiB, protected mode, no paging (Multiboot 0.6.96, 3.2)."""
import pathlib
import subprocess

HEADER = """
  .text
  .globl _start
  .align 4
  .long 0x1badb002, 0, -0x1badb002
_start:
"""

# Without an IDT #BP cannot be delivered, nor the #GP of that, nor the #DF of that.
TRIPLE_FAULT = "lidt none\n int3\n none: .long 0, 0\n"
# Physical memory that is neither RAM nor a device; whatever is fetched there ends in a fault without an IDT.
JUMP_NOWHERE = "lidt none\n mov $0xd0000000, %eax\n jmp *%eax\n none: .long 0, 0\n"
# Pseudo-random values in all widths to every port, with reads between, four times over, upwards (STEP 1) or downwards
# (-1). Left out: debug-exit (0xf4) and its neighbours, and what would end the test early with a reset: 0x64, 0x92, 0xcf9.
PORT_GARBAGE = """
  mov $SEED, %ebx
  mov $4, %esi
round:
  xor %edx, %edx
next:
  imul $1664525, %ebx
  add $1013904223, %ebx
  mov %ebx, %eax
  rol $13, %eax
  mov $ports, %edi
check:
  mov (%edi), %ecx
  add $4, %edi
  jecxz write
  cmp %cx, %dx
  jb check
  shr $16, %ecx
  cmp %cx, %dx
  ja check
  jmp skip
write:
  out %al, %dx
  out %ax, %dx
  out %eax, %dx
  in %dx, %al
  in %dx, %ax
  in %dx, %eax
skip:
  add $STEP, %dx
  jnz next
  dec %esi
  jnz round
  mov $0x21, %al
  out %al, $0xf4
  hlt
ports:
  .word 0x61, 0x64, 0x8f, 0x92, 0xf1, 0xf4, 0xcf6, 0xcf9, 0, 0
"""


# Answers each byte at its serial port with the next letter, from a on, which it keeps in memory.
LETTERS = """
  mov $0x3f8, %dx
  mov $'>', %al
  out %al, %dx
again:
  mov $0x3fd, %dx
  in %dx, %al
  test $1, %al
  jz again
  mov $0x3f8, %dx
  in %dx, %al
  mov letter, %al
  out %al, %dx
  incb letter
  jmp again
letter: .byte 'a'
"""


# Writes to every page from 16 MiB to 116 MiB, says so on the serial port and waits for ever.
TOUCH_100_MIB = """
  mov $0x1000000, %edi
touch:
  movl $1, (%edi)
  add $4096, %edi
  cmp $0x7400000, %edi
  jb touch
  mov $0x3f8, %dx
  mov $'!', %al
  out %al, %dx
  mov $10, %al
  out %al, %dx
forever:
  hlt
  jmp forever
"""


# Says "up", echoes its serial port and powers off when its power button is pressed (ACPI 6.4, 4.8.3.1) or at a Q; at an
# X it crashes, at a D it ignores the button from then on.
ECHO = """
  mov $text, %esi
  mov $1, %bl
say:
  lodsb
  test %al, %al
  jz look
  call put
  jmp say
look:
  mov $0x3fd, %dx
  in %dx, %al
  test $1, %al
  jz button
  mov $0x3f8, %dx
  in %dx, %al
  call put
  cmp $'Q', %al
  je off
  cmp $'X', %al
  je crash
  cmp $'D', %al
  jne button
  xor %bl, %bl
button:
  test %bl, %bl
  jz look
  mov $0x600, %dx
  in %dx, %ax
  test $0x100, %ax
  jz look
off:
  mov $0x604, %dx
  mov $0x2000, %ax
  out %ax, %dx
  hlt
put:
  mov %al, %cl
  mov $0x3fd, %dx
full:
  in %dx, %al
  test $0x20, %al
  jz full
  mov $0x3f8, %dx
  mov %cl, %al
  out %al, %dx
  ret
crash:
  lidt none
  int3
none: .long 0, 0
text: .asciz "up\\n"
"""


def debug_exit(value):
    return f"mov ${value}, %al\n out %al, $0xf4\n hlt\n"


def build(path, assembly):
    """Assembles and links a kernel into path."""
    path = pathlib.Path(path)
    object_file = path.with_suffix(".o")
    subprocess.run(["as", "--32", "-o", object_file, "-"], input=HEADER + assembly, text=True, check=True)
    subprocess.run(["ld", "-m", "elf_i386", "--no-warn-rwx-segments", "-N", "-Ttext", "0x100000", "-o", path, object_file],
                   check=True)
    return path
