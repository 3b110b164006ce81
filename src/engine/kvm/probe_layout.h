#pragma once
// Where the probe's guest has its things. Shared by probe_guest.S and kvm_probe.cc, hence macros.

#define NACRE_PROBE_PORT 0x10   // the guest's OUT here ends a step
#define NACRE_PROBE_VALUE 0     // in the data page: what the loop computes, 8 bytes
#define NACRE_PROBE_ROUNDS 8    // rounds of the next step, 8 bytes, not 0
#define NACRE_PROBE_TABLE 1024  // 256 words that the loop reads and writes
