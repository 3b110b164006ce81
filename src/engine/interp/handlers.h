#pragma once
// The dispatch table: instruction mnemonic to handler. Each family registers its own; built once. Any thread.

#include <array>

#include "engine/interp/core.h"

namespace nacre::engine::interp {

/// Chooses a handler specialised for one decoded instruction's form.
using Resolver = Handler (*)(const x86::Instruction& insn);

class HandlerTable {
 public:
  HandlerTable();
  static const HandlerTable& Get();
  void Set(ZydisMnemonic mnemonic, Handler handler) { entries_[mnemonic].handler = handler; }
  void Set(ZydisMnemonic mnemonic, Resolver resolver) { entries_[mnemonic].resolver = resolver; }
  /// nullptr: no handler knows the mnemonic.
  Handler Find(const x86::Instruction& insn) const {
    const Entry& entry = entries_[insn.mnemonic];
    return entry.resolver ? entry.resolver(insn) : entry.handler;
  }

 private:
  struct Entry {
    Handler handler = nullptr;
    Resolver resolver = nullptr;
  };
  std::array<Entry, ZYDIS_MNEMONIC_MAX_VALUE + 1> entries_{};
};

void RegisterMove(HandlerTable& table);
void RegisterAlu(HandlerTable& table);
void RegisterShift(HandlerTable& table);
void RegisterMultiply(HandlerTable& table);
void RegisterBits(HandlerTable& table);
void RegisterConditions(HandlerTable& table);
void RegisterFlow(HandlerTable& table);
void RegisterStack(HandlerTable& table);
void RegisterStrings(HandlerTable& table);
void RegisterBcd(HandlerTable& table);
void RegisterIo(HandlerTable& table);
void RegisterFlags(HandlerTable& table);
void RegisterSystem(HandlerTable& table);
void RegisterControl(HandlerTable& table);
void RegisterSegments(HandlerTable& table);
void RegisterFar(HandlerTable& table);
void RegisterInterrupts(HandlerTable& table);
void RegisterMisc(HandlerTable& table);

bool InvalidOpcode(Core& c, const Decoded& d);
bool ExecuteVector(Core& c, const Decoded& d);
bool MovToSegment(Core& c, const Decoded& d);
bool MovFromSegment(Core& c, const Decoded& d);
bool MovToControl(Core& c, const Decoded& d);
bool MovFromControl(Core& c, const Decoded& d);
bool MovToDebug(Core& c, const Decoded& d);
bool MovFromDebug(Core& c, const Decoded& d);

/// Defines ResolveNAME: the instance of the handler template NAME<T> for the first operand's size.
#define INTERP_RESOLVE(NAME)                            \
  Handler Resolve##NAME(const x86::Instruction& insn) { \
    Handler handler = nullptr;                          \
    WithSize(insn.operand[0].size, [&](auto typed) {    \
      handler = NAME<decltype(typed)>;                  \
      return true;                                      \
    });                                                 \
    return handler;                                     \
  }

/// Condition code 0-15 (the low nibble of Jcc, SETcc, CMOVcc) on RFLAGS.
inline bool Condition(uint64_t rflags, unsigned code) {
  using namespace x86::rflags;
  bool result = false;
  switch (code >> 1) {
    case 0:
      result = rflags & kOf;
      break;
    case 1:
      result = rflags & kCf;
      break;
    case 2:
      result = rflags & kZf;
      break;
    case 3:
      result = rflags & (kCf | kZf);
      break;
    case 4:
      result = rflags & kSf;
      break;
    case 5:
      result = rflags & kPf;
      break;
    case 6:
      result = !(rflags & kSf) != !(rflags & kOf);
      break;
    default:
      result = (rflags & kZf) || !(rflags & kSf) != !(rflags & kOf);
      break;
  }
  return result != ((code & 1) != 0);
}

}  // namespace nacre::engine::interp
