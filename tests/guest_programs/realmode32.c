// To real mode and back: vectors, exceptions without error codes, segment arithmetic, limits that stay, the moved table.
#include "guest.h"

void call_real(void);
extern char after_int_offset[];
#define WORD(at) (*(volatile uint16_t*)(at))
#define BYTE(at) (*(volatile uint8_t*)(at))
#define LONG(at) (*(volatile uint32_t*)(at))

static void once(void) {
  memset((void*)0x9000, 0, 0x200);
  call_real();
  CHECK_EQ(WORD(0x9000) & 0xf202, 2);  // no interrupts, bits 15:12 clear
  CHECK_EQ(WORD(0x9002), 0);
  CHECK_EQ(WORD(0x9004) & 1, 0);
  CHECK_EQ(WORD(0x9006), 0x1234);
  CHECK_EQ(LONG(0x9008), *(uint32_t*)0x100000);
  CHECK_EQ(WORD(0x9182), (reg)after_int_offset);
  CHECK_EQ(WORD(0x9184) & 1, 1);
  CHECK_EQ(WORD(0x9186) & (kFlagIf | kFlagTf), 0);
  CHECK_EQ(BYTE(0x900c), 1);
  CHECK_EQ(WORD(0x9100), 1);
  CHECK_EQ(WORD(0x9100 + 12), 2);
  STRICT(CHECK_EQ(WORD(0x9100 + 26), 1));
  CHECK_EQ(BYTE(0x900d), 1);
  CHECK_EQ(BYTE(0x900e), 1);
  CHECK_EQ(BYTE(0x900f), 1);
  CHECK_EQ(WORD(0x9010), 0x700);
  CHECK_EQ(WORD(0x9012), 2);
  CHECK_EQ(WORD(0x9014), 0xbeef);
  CHECK_EQ(LONG(0x9018), *(uint32_t*)0x100000);
  CHECK_EQ(LONG(0x901c), *(uint32_t*)0x100000);
  CHECK_EQ(WORD(0x9020), 2);
  CHECK_EQ(WORD(0x9022), 95);
  CHECK_EQ(BYTE(0x9024), 0x42);
  CHECK_EQ(LONG(0x9028), cpuid(0, 0).b);
}

void guest_main(void) {
  section("round trips");
  for (int i = 0; i < 3; ++i) once();
}
