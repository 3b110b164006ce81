#pragma once
// Offsets into ThunkContext (thunk.h), shared with thunk_enter.S; thunk.cc checks them.

#define NACRE_THUNK_XSAVE 0
#define NACRE_THUNK_RAX 8
#define NACRE_THUNK_RCX 16
#define NACRE_THUNK_RDX 24
#define NACRE_THUNK_BOUNCE 32
#define NACRE_THUNK_FLAGS 40
#define NACRE_THUNK_FX 64

// Offsets into the XSAVE area (SDM 1 13.4).
#define NACRE_XSAVE_MXCSR 24
#define NACRE_XSAVE_XMM 160
#define NACRE_XSAVE_YMM_HIGH 576
#define NACRE_XSAVE_OPMASK 1088
#define NACRE_XSAVE_ZMM_HIGH 1152
#define NACRE_XSAVE_ZMM16 1664
