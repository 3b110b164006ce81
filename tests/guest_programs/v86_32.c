// Virtual-8086 mode: addressing, interrupts and exceptions to protected mode, IOPL, the I/O permission map.
#include "guest.h"

enum { kVm = 1 << 17, kIopl3 = 3 << 12 };
#define CODE_SEGMENT 0x800
#define CODE ((uint8_t*)0x8000)
#define DATA_SEGMENT 0x900
#define DATA ((volatile uint8_t*)0x9000)
#define STACK_SEGMENT 0xa00

// void enter_v86(reg flags, reg ds, reg es): to CODE_SEGMENT:0.
void enter_v86(reg flags, reg ds, reg es);
__asm__(
    ".text\n"
    "enter_v86: movl 4(%esp), %eax\n movl 8(%esp), %ecx\n movl 12(%esp), %edx\n"
    "pushl $0x1111\n pushl $0x2222\n pushl %ecx\n pushl %edx\n"  // gs fs ds es
    "pushl $0xa00\n pushl $0x1000\n pushl %eax\n pushl $0x800\n pushl $0\n"
    "movl $0x11112222, %eax\n xorl %ebx, %ebx\n xorl %ecx, %ecx\n xorl %edx, %edx\n iret\n");

#define RUN(flags, ...)                                     \
  do {                                                      \
    static const uint8_t bytes[] = {__VA_ARGS__, 0xf4};     \
    memcpy(CODE, bytes, sizeof(bytes));                     \
    TRY(enter_v86((flags) | kVm | 2, DATA_SEGMENT, 0x0));   \
  } while (0)
#define CHECK_END(vector, code, at)                                   \
  do {                                                                \
    check_fault("v86", __LINE__, &guest_last, vector, code);          \
    check_equal("v86 ip", __LINE__, guest_last.frame.ip, at);         \
  } while (0)

static void addressing(void) {
  section("addressing");
  DATA[0x10] = 0x34;
  DATA[0x11] = 0x12;
  RUN(0, 0xa1, 0x10, 0x00,        // mov ax, [0x10]
      0x8c, 0xdb,                 // mov bx, ds
      0x40,                       // inc ax
      0xa3, 0x20, 0x00,           // mov [0x20], ax
      0xbe, 0xff, 0xff);          // mov si, 0xffff; hlt
  CHECK_END(kGP, 0, 12);
  CHECK_EQ(guest_last.frame.ax, 0x11111235);
  CHECK_EQ(guest_last.frame.bx, DATA_SEGMENT);
  CHECK_EQ(DATA[0x20], 0x35);
  // What is on the handler's stack, and what its segment registers are.
  CHECK_EQ(guest_last.frame.v86_ds, DATA_SEGMENT);
  CHECK_EQ(guest_last.frame.v86_gs, 0x1111);
  CHECK_EQ(guest_last.frame.v86_fs, 0x2222);
  CHECK_EQ(guest_last.frame.ss, STACK_SEGMENT);
  CHECK_EQ(guest_last.frame.sp, 0x1000);
  CHECK_EQ(guest_last.frame.cs, CODE_SEGMENT);
  CHECK_EQ(guest_last.frame.fs, 0);
  CHECK_EQ(guest_last.frame.gs, 0);
  CHECK_EQ(guest_last.flags & kVm, kVm);
  // Segment loads shift by four; a far jump too; 32-bit prefixes work; the limit is 64 KiB.
  *(volatile uint32_t*)0x9105 = 0xcafebabe;
  RUN(0, 0xb8, 0x10, 0x09,                    // mov ax, 0x910
      0x8e, 0xc0,                             // mov es, ax
      0x66, 0x26, 0x8b, 0x0e, 0x05, 0x00,     // mov ecx, es:[5]
      0xea, 0x12, 0x00, 0x00, 0x08, 0x90, 0x90);  // jmp 0x800:0x12
  CHECK_EQ(guest_last.vector, kGP);
  CHECK_EQ(guest_last.frame.cx, *(volatile uint32_t*)0x9105);
  STRICT(RUN(0, 0xa1, 0xff, 0xff); CHECK_END(kGP, 0, 0));                // mov ax, [0xffff]: over the limit
  STRICT(RUN(0, 0x67, 0x66, 0xa1, 0, 0, 1, 0); CHECK_END(kGP, 0, 0));    // mov eax, [0x10000]
  // Above 1 MiB: FFFF:0010 is 1 MiB itself.
  RUN(0, 0xb8, 0xff, 0xff, 0x8e, 0xc0, 0x66, 0x26, 0x8b, 0x0e, 0x10, 0x00);
  CHECK_EQ(guest_last.frame.cx, *(uint32_t*)0x100000);
}

static void privilege(void) {
  section("IOPL");
  // With IOPL 3 CLI, STI, PUSHF, POPF, INT n and IRET run; without they are #GP(0).
  RUN(kIopl3, 0xfa, 0x9c, 0x58, 0xfb);  // cli; pushf; pop ax; sti; hlt
  CHECK_END(kGP, 0, 4);
  CHECK_EQ(guest_last.frame.ax & kFlagIf, 0);
  CHECK_EQ(guest_last.frame.ax & kIopl3, kIopl3);
  CHECK_EQ(guest_last.flags & kFlagIf, kFlagIf);
  RUN(0, 0xfa);
  CHECK_END(kGP, 0, 0);
  RUN(0, 0xfb);
  CHECK_END(kGP, 0, 0);
  RUN(0, 0x9c);
  CHECK_END(kGP, 0, 0);
  RUN(0, 0x9d);
  CHECK_END(kGP, 0, 0);
  RUN(0, 0xcf);
  CHECK_END(kGP, 0, 0);
  RUN(0, 0xcd, 0x80);
  CHECK_END(kGP, 0, 0);
  RUN(kIopl3, 0xcd, 0x80);
  CHECK_END(0x80, 0, 2);
  RUN(kIopl3, 0xcd, 0x30);  // the gate's DPL is 0
  CHECK_END(kGP, 0x30 * 8 + 2, 0);
  RUN(0, 0xcc);  // INT3 does not ask for IOPL, but for the gate's DPL
  CHECK_END(kGP, 3 * 8 + 2, 0);
  idt[3 * 8 + 5] = 0xee;
  RUN(0, 0xcc);
  CHECK_END(kBP, 0, 1);
  idt[3 * 8 + 5] = 0x8e;
  // POPF changes neither VM nor IOPL.
  RUN(kIopl3, 0x66, 0x6a, 0x02, 0x66, 0x9d, 0x66, 0x9c, 0x66, 0x58);  // push dword 2; popfd; pushfd; pop eax
  CHECK_END(kGP, 0, 9);
  CHECK_EQ(guest_last.frame.ax & (kVm | kIopl3), kIopl3);
  // Privileged instructions.
  RUN(kIopl3, 0x0f, 0x20, 0xc0);
  CHECK_END(kGP, 0, 0);
  RUN(kIopl3, 0x0f, 0x06);
  CHECK_END(kGP, 0, 0);
  // Instructions of protected mode only.
  RUN(kIopl3, 0x0f, 0x00, 0xc0);  // sldt ax
  CHECK_END(kUD, 0, 0);
  RUN(kIopl3, 0x63, 0xc0);  // arpl
  CHECK_END(kUD, 0, 0);
  RUN(kIopl3, 0x0f, 0x02, 0xc0);  // lar
  CHECK_END(kUD, 0, 0);
  // Exceptions.
  RUN(0, 0x31, 0xc9, 0xf7, 0xf1);  // div cx
  CHECK_END(kDE, 0, 2);
}

static void ports(void) {
  section("I/O permission map");
  RUN(kIopl3, 0xba, 0xff, 0x03, 0xec);  // mov dx, 0x3ff; in al, dx: IOPL does not count in this mode
  CHECK_END(kGP, 0, 3);
  *(uint16_t*)(tss + 102) = 104;
  memset(tss + 104, 0xff, 8192);
  gdt[7] = (gdt[7] & ~0xffffull) | (104 + 8192);
  gdt[7] &= ~(1ull << 41);
  __asm__ volatile("ltr %w0" ::"r"(0x38));
  RUN(0, 0xba, 0xff, 0x03, 0xec);
  CHECK_END(kGP, 0, 3);
  tss[104 + 0x3ff / 8] &= (uint8_t)~(1 << (0x3ff & 7));
  outb(0x3ff, 0x77);
  RUN(0, 0xba, 0xff, 0x03, 0xec);
  CHECK_END(kGP, 0, 4);
  CHECK_EQ(guest_last.frame.ax & 0xff, 0x77);
  RUN(0, 0xba, 0xff, 0x03, 0xed);  // two bytes: the second is forbidden
  CHECK_END(kGP, 0, 3);
}

USER_TEXT static void user_in(void) { __asm__ volatile("movl $0x3ff, %%edx; inb %%dx, %%al; int $0x80" ::: "eax", "edx"); }
USER_TEXT static void user_in_other(void) { __asm__ volatile("movl $0x3fe, %%edx; inb %%dx, %%al; int $0x80" ::: "eax", "edx"); }

static void user_ports(void) {
  section("the map in user mode");
  CHECK_FAULT(0x80, 0, run_user(user_in, 2));
  CHECK_FAULT(kGP, 0, run_user(user_in_other, 2));
  CHECK_FAULT(0x80, 0, run_user(user_in_other, 2 | kIopl3));  // there IOPL does count
}

static int ticks;
static void tick(struct frame* frame) {
  CHECK_EQ(frame->flags & kVm, kVm);
  if (++ticks == 3) frame->ip += 2;  // out of the endless loop
  pic_eoi(0);
}

static void interrupted(void) {
  section("interrupted by a timer");
  guest_handlers[0x20] = tick;
  pic_setup(0x20, 1);
  pit_rate(2000);
  RUN(kFlagIf, 0xeb, 0xfe);  // jmp $; hlt
  CHECK_END(kGP, 0, 2);
  CHECK(ticks >= 3);
}

void guest_main(void) {
  addressing();
  privilege();
  ports();
  user_ports();
  interrupted();
}
