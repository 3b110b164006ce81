// Self-modifying code: in the block that runs, in its page, across a page boundary, through another mapping, by string
// instructions and by user mode.
#include "guest.h"

extern uint64_t pml4[512];
static uint64_t t3[512] __attribute__((aligned(4096))), t2[512] __attribute__((aligned(4096))),
    t1[512] __attribute__((aligned(4096)));
static uint8_t code[3 * 4096] __attribute__((aligned(4096)));
static uint8_t spare[4096] __attribute__((aligned(4096)));

#define ALIAS 0x8000000000ull
typedef int (*function)(void);

// mov eax, value; ret
static void emit(volatile uint8_t* at, int32_t value) {
  at[0] = 0xb8;
  *(volatile int32_t*)(at + 1) = value;
  at[5] = 0xc3;
}

static int run(const volatile uint8_t* at) { return ((function)(reg)at)(); }

static void map_alias(void) {
  pml4[1] = (reg)t3 | 7;
  t3[0] = (reg)t2 | 7;
  t2[0] = (reg)t1 | 7;
  for (unsigned i = 0; i < 3; ++i) t1[i] = ((reg)code + 4096 * i) | 7;
}

static void rewritten(void) {
  section("rewritten function");
  for (int i = 0; i < 200; ++i) {
    emit(code, i);
    CHECK_EQ(run(code), i);
  }
  // Only one byte of it.
  for (int i = 0; i < 100; ++i) {
    code[1] = (uint8_t)i;
    CHECK_EQ(run(code) & 0xff, i);
  }
  // Data in the page of code: many writes that change no instruction.
  emit(code, 7);
  for (int i = 0; i < 1000; ++i) {
    ((volatile uint32_t*)code)[512] = (uint32_t)i;
    if (run(code) != 7) CHECK_EQ(i, -1);
  }
}

static void same_block(void) {
  section("the next instruction of the same block");
  // movb $value, target+1(%rip); target: mov $0, %al; movzx %al, %eax; ret
  for (int i = 1; i < 100; ++i) {
    static const uint8_t bytes[] = {0xc6, 0x05, 1, 0, 0, 0, 0, 0xb0, 0, 0x0f, 0xb6, 0xc0, 0xc3};
    memcpy(code + 64, bytes, sizeof(bytes));
    code[64 + 6] = (uint8_t)i;
    CHECK_EQ(run(code + 64), i);
  }
  // A loop whose body changes itself each time round: mov $10, %ecx; xor %eax, %eax;
  // 1: add $1, %eax (its immediate is incremented); incb 1b+2(%rip); dec %ecx; jnz 1b; ret
  static const uint8_t loop[] = {0xb9, 10, 0, 0, 0, 0x31, 0xc0, 0x83, 0xc0, 1, 0xfe, 0x05, 0xf9, 0xff, 0xff, 0xff,
                                 0xff, 0xc9, 0x75, 0xf3, 0xc3};
  for (int i = 0; i < 20; ++i) {
    memcpy(code + 128, loop, sizeof(loop));
    CHECK_EQ(run(code + 128), 55);
  }
}

static void across_pages(void) {
  section("an instruction across two pages");
  volatile uint8_t* at = code + 4096 - 2;  // the immediate of MOV lies in the second page but for one byte
  for (int i = 0; i < 100; ++i) {
    emit(at, 0x01010101 * i);
    CHECK_EQ(run(at), 0x01010101 * i);
    code[4096] = (uint8_t)(i + 1);
    CHECK_EQ(run(at) >> 8 & 0xff, i + 1);
    code[4095] = (uint8_t)(i + 2);
    CHECK_EQ(run(at) & 0xff, i + 2);
  }
  // A block that goes from one page into the next.
  memset(code + 4096 - 16, 0x90, 16);
  for (int i = 0; i < 50; ++i) {
    emit(code + 4096, i);
    CHECK_EQ(run(code + 4096 - 16), i);
  }
}

static void through_an_alias(void) {
  section("through another mapping");
  volatile uint8_t* alias = (uint8_t*)ALIAS;
  for (int i = 0; i < 100; ++i) {
    emit(alias + 256, i);
    CHECK_EQ(run(code + 256), i);
    CHECK_EQ(run(alias + 256), i);
    emit(code + 256, i + 1000);
    CHECK_EQ(run(alias + 256), i + 1000);
  }
  // The mapping itself changes: the same address, other code.
  emit(spare, 1);
  emit(code, 2);
  for (int i = 0; i < 20; ++i) {
    t1[0] = (reg)spare | 7;
    invlpg(alias);
    CHECK_EQ(run(alias), 1);
    t1[0] = (reg)code | 7;
    invlpg(alias);
    CHECK_EQ(run(alias), 2);
  }
  // Second page of a crossing instruction remapped.
  emit(code + 8192 - 2, 0x22222222);
  memcpy(spare, code + 8192, 16);
  memset(spare, 0x33, 3);
  CHECK_EQ(run(alias + 8192 - 2), 0x22222222);
  t1[2] = (reg)spare | 7;
  invlpg(alias + 8192);
  CHECK_EQ(run(alias + 8192 - 2), 0x33333322);
  t1[2] = ((reg)code + 8192) | 7;
  invlpg(alias + 8192);
  CHECK_EQ(run(alias + 8192 - 2), 0x22222222);
}

static void by_string_instructions(void) {
  section("by string instructions and atomics");
  for (int i = 0; i < 50; ++i) {
    emit(spare, i);
    const void* from = spare;
    void* to = code + 512;
    reg count = 6;
    __asm__ volatile("rep movsb" : "+S"(from), "+D"(to), "+c"(count)::"memory");
    CHECK_EQ(run(code + 512), i);
    __asm__ volatile("lock addl $5, (%0)" ::"r"(code + 513) : "memory");
    CHECK_EQ(run(code + 512), i + 5);
    uint32_t value = 77;
    __asm__ volatile("xchgl %0, (%1)" : "+r"(value) : "r"(code + 513) : "memory");
    CHECK_EQ(run(code + 512), 77);
  }
  // REP STOSB over the instructions behind it: runs to the end of the string, then what was written.
  // mov $0x90, %al; lea target(%rip), %rdi; mov $5, %ecx; rep stosb; target: mov $1, %eax (becomes NOPs); mov ...; ret
  static const uint8_t bytes[] = {0x31, 0xd2, 0xb0, 0x90, 0x48, 0x8d, 0x3d, 7, 0, 0, 0, 0xb9, 5, 0, 0, 0, 0xf3, 0xaa,
                                  0xba, 1, 0, 0, 0, 0x89, 0xd0, 0xc3};
  for (int i = 0; i < 5; ++i) {
    memcpy(code + 1024, bytes, sizeof(bytes));
    CHECK_EQ(run(code + 1024), 0);
  }
}

USER_DATA static uint8_t user_code[64] = {0};
USER_TEXT static void user_writes_code(void) {
  // mov eax, imm; int $0x80, written and run by user mode.
  user_code[0] = 0xb8;
  *(volatile uint32_t*)(user_code + 1) += 3;
  user_code[5] = 0xcd;
  user_code[6] = 0x80;
  ((void (*)(void))user_code)();
}

static void in_user_mode(void) {
  section("in user mode");
  for (unsigned i = 1; i < 50; ++i) {
    CHECK_FAULT(0x80, 0, run_user(user_writes_code, 2));
    CHECK_EQ(guest_last.frame.ax, 3 * i);
  }
}

// A jump out of a page that was emptied meanwhile.
static void chained(void) {
  section("chained blocks");
  static const uint8_t jump[] = {0xe9, 0xfb, 0x0f, 0, 0};  // jmp code + 4096
  memcpy(code, jump, sizeof(jump));
  for (int i = 0; i < 100; ++i) {
    emit(code + 4096, i);
    CHECK_EQ(run(code), i);
    CHECK_EQ(run(code), i);
  }
}

void guest_main(void) {
  map_alias();
  rewritten();
  same_block();
  across_pages();
  through_an_alias();
  by_string_instructions();
  in_user_mode();
  chained();
}
