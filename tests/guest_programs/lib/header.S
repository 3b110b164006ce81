# Both ways in: a multiboot 1 header and a PVH note, with one 32-bit entry (flat segments, paging off).
    .section .multiboot, "a"
    .balign 4
    .long 0x1badb002, 3, -(0x1badb002 + 3)

    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 4, 18                      # name size, value size, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long start32
