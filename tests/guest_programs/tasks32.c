// Hardware task switches: by CALL, JMP, IRET, through a task gate and as an interrupt; busy bits, NT, TS, the debug trap,
// what makes #TS.
#include "guest.h"

struct __attribute__((packed)) task {
  uint32_t link, esp0, ss0, esp1, ss1, esp2, ss2, cr3, eip, eflags, eax, ecx, edx, ebx, esp, ebp, esi, edi;
  uint32_t es, cs, ss, ds, fs, gs, ldt;
  uint16_t trap, io_map;
};
struct __attribute__((packed)) task16 {
  uint16_t link, sp0, ss0, sp1, ss1, sp2, ss2, ip, flags, ax, cx, dx, bx, sp, bp, si, di, es, cs, ss, ds, ldt;
};
static struct task other;
static struct task16 narrow;
static uint8_t other_stack[4096] __attribute__((aligned(16)));
volatile uint32_t seen[8];

enum { kMain = 0x38, kOther = 24 * 8, kGate = 25 * 8, kNarrow = 26 * 8 };
#define MAIN ((struct task*)tss)

static bool busy(uint16_t selector) { return gdt[selector / 8] >> 41 & 1; }
static void set_descriptor(void) {
  gdt[kOther / 8] = descriptor((reg)&other, sizeof(other) - 1, 0x89);
  gdt[kNarrow / 8] = descriptor((reg)&narrow, sizeof(narrow) - 1, 0x81);
}

extern char task_entry[], task_again[], narrow_entry[];
__asm__(
    ".text\n"
    // Adds one to its EAX, notes its flags and TR, and goes back; entered again behind the IRET.
    "task_entry: incl %eax\n movl %eax, seen\n pushfl\n popl seen+4\n xorl %ecx, %ecx\n str %cx\n movl %ecx, seen+8\n"
    "movl %cr0, %ecx\n movl %ecx, seen+12\n clts\n"
    "iret\n"
    "task_again: jmp task_entry\n"
    // From a 16-bit TSS.
    "narrow_entry: movl %eax, seen\n movl %esp, seen+4\n iret\n");

static void prepare(void* entry) {
  memset(&other, 0, sizeof(other));
  other.eip = (reg)entry;
  other.eflags = 2;
  other.esp = (reg)other_stack + sizeof(other_stack);
  other.cs = 8;
  other.ss = other.ds = other.es = 0x10;
  other.eax = 41;
  other.io_map = sizeof(other);
  set_descriptor();
}

static void call_and_return(void) {
  section("CALL and IRET");
  prepare(task_entry);
  __asm__ volatile("lcall %0, $0" ::"i"(kOther) : "memory");
  CHECK_EQ(seen[0], 42);
  CHECK_EQ(seen[1] & kFlagNt, kFlagNt);
  CHECK_EQ(seen[2], kOther);
  CHECK_EQ(seen[3] & 8, 8);  // CR0.TS is set by the switch
  CHECK_EQ(other.link, kMain);
  CHECK(!busy(kOther));
  CHECK(busy(kMain));
  CHECK_EQ(read_flags() & kFlagNt, 0);
  CHECK_EQ(other.eax, 42);  // saved when it left
  CHECK_EQ(other.eip, (reg)task_again);
  CHECK_EQ(other.eflags & kFlagNt, 0);
  CHECK_EQ(read_cr0() & 8, 8);
  __asm__ volatile("clts");
  // Again, from where it left.
  __asm__ volatile("lcall %0, $0" ::"i"(kOther) : "memory");
  CHECK_EQ(seen[0], 43);
  // Our own registers went through memory and came back.
  reg b = 0x1234, result;
  __asm__ volatile("lcall %2, $0; movl %%ebx, %0" : "=a"(result) : "b"(b), "i"(kOther) : "memory");
  CHECK_EQ(result, b);
  CHECK_EQ(MAIN->ebx, b);
  __asm__ volatile("clts");
}

static void jump(void) {
  section("JMP");
  prepare(task_entry);
  // It has no way back but IRET with NT, which JMP does not set: make the link and the flag by hand.
  other.link = kMain;
  other.eflags = 2 | kFlagNt;
  CHECK_FAULT(kTS, kMain, __asm__ volatile("ljmp %0, $0" ::"i"(kOther) : "memory"));  // IRET: main is not busy
  CHECK(busy(kOther));
  uint16_t selector;
  __asm__ volatile("str %0" : "=r"(selector));
  CHECK_EQ(selector, kOther);
  CHECK(!busy(kMain));
  __asm__ volatile("clts");
  // Home by LTR.
  other.eflags = 2;
  write_flags(2);
  gdt[kMain / 8] &= ~(1ull << 41);
  __asm__ volatile("ltr %w0" ::"r"(kMain));
  set_descriptor();
}

static void gates(void) {
  section("task gates");
  prepare(task_entry);
  gdt[kGate / 8] = (uint64_t)kOther << 16 | 0x85ull << 40;
  __asm__ volatile("lcall %0, $0" ::"i"(kGate) : "memory");
  CHECK_EQ(seen[0], 42);
  CHECK_EQ(other.link, kMain);
  __asm__ volatile("clts");
  // As an interrupt.
  set_gate(0x46, 0, kOther, 0x85);
  prepare(task_entry);
  __asm__ volatile("int $0x46" ::: "memory");
  CHECK_EQ(seen[0], 42);
  CHECK_EQ(seen[1] & kFlagNt, kFlagNt);
  __asm__ volatile("clts");
}

extern char behind_fault[];
static void error_code(void) {
  section("an error code on the new task's stack");
  // #GP through a task gate; the handler finds the error code on its stack. Main resumes where its TSS says: the handler's
  // task moves it on.
  static uint8_t code[64] __attribute__((aligned(16)));
  // popl seen; movl $behind_fault, MAIN->eip; iret
  uint8_t* at = code;
  *at++ = 0x8f, *at++ = 0x05, *(uint32_t*)at = (reg)&seen[0], at += 4;
  *at++ = 0xc7, *at++ = 0x05, *(uint32_t*)at = (reg)&MAIN->eip, at += 4, *(uint32_t*)at = (reg)behind_fault, at += 4;
  *at++ = 0xcf;
  prepare(code);
  const uint64_t saved = *(uint64_t*)(idt + 13 * 8);
  set_gate(kGP, 0, kOther, 0x85);
  seen[0] = 0;
  __asm__ volatile("movw %w0, %%fs\n behind_fault:" ::"r"(0x200) : "memory");
  CHECK_EQ(seen[0], 0x200);
  *(uint64_t*)(idt + 13 * 8) = saved;
  __asm__ volatile("clts");
}

static void invalid(void) {
  section("invalid tasks");
  prepare(task_entry);
  gdt[kOther / 8] = descriptor((reg)&other, 0x66, 0x89);  // too small
  CHECK_FAULT(kTS, kOther, __asm__ volatile("lcall %0, $0" ::"i"(kOther)));
  gdt[kOther / 8] = descriptor((reg)&other, sizeof(other) - 1, 0x09);
  CHECK_FAULT(kNP, kOther, __asm__ volatile("lcall %0, $0" ::"i"(kOther)));
  gdt[kOther / 8] = descriptor((reg)&other, sizeof(other) - 1, 0x8b);  // busy
  CHECK_FAULT(kGP, kOther, __asm__ volatile("lcall %0, $0" ::"i"(kOther)));
  CHECK_FAULT(kGP, kMain, __asm__ volatile("lcall %0, $0" ::"i"(kMain)));
  CHECK_EQ(read_flags() & kFlagNt, 0);
  // IRET with NT to what is no busy TSS.
  MAIN->link = 0x10;
  CHECK_FAULT(kTS, 0x10, __asm__ volatile("pushfl; orl $0x4000, (%%esp); popfl; iret" ::: "memory"));
  write_flags(2);
}

static void note_trap(struct frame* frame) {
  seen[5] = frame->ip;
  seen[6] = read_dr6();
  write_dr6(0xffff0ff0);
  __asm__ volatile("clts");
}

static void debug_trap(void) {
  section("the T bit");
  prepare(task_entry);
  other.trap = 1;
  guest_handlers[kDB] = note_trap;
  __asm__ volatile("lcall %0, $0" ::"i"(kOther) : "memory");
  STRICT(CHECK_EQ(seen[5], (reg)task_entry));
  STRICT(CHECK_EQ(seen[6] & 1 << 15, 1 << 15));
  CHECK_EQ(seen[0], 42);
  guest_handlers[kDB] = 0;
  __asm__ volatile("clts");
}

static void sixteen_bits(void) {
  section("a 16-bit TSS");
  memset(&narrow, 0, sizeof(narrow));
  static uint16_t stack[64];
  // Its registers are 16 bits wide, so its code and stack are reached by base.
  gdt[27] = descriptor((reg)narrow_entry, 0xffff, 0x409b);
  gdt[28] = descriptor((reg)stack, 0xffff, 0x0093);
  narrow.ip = 0;
  narrow.flags = 2;
  narrow.ax = 0x4321;
  narrow.sp = sizeof(stack);
  narrow.cs = 27 * 8;
  narrow.ss = 28 * 8;
  narrow.ds = narrow.es = 0x10;
  set_descriptor();
  __asm__ volatile("lcall %0, $0" ::"i"(kNarrow) : "memory");
  CHECK_EQ(seen[0] & 0xffff, 0x4321);
  CHECK_EQ(seen[1] & 0xffff, sizeof(stack));
  CHECK_EQ(narrow.link, kMain);
  __asm__ volatile("clts; movw %w0, %%fs; movw %w0, %%gs" ::"r"(0));
}

void guest_main(void) {
  call_and_return();
  jump();
  gates();
  error_code();
  invalid();
  debug_trap();
  sixteen_bits();
}
