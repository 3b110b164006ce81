#pragma once
// The other side of the differential test: a small guest in which the layout's addresses mean what they mean on the
// host, user code runs at CPL 3 with Linux' selectors, and every exception ends in a handler whose address tells the
// vector. What executes the one instruction is a Subject: the interpreter or any engine. One thread.

#include <memory>
#include <string_view>

#include "base/result.h"
#include "engine/difftest/test_case.h"
#include "engine/engine.h"

namespace nacre::engine::difftest {

/// Executes one instruction (all iterations of a REP may take several calls).
class Subject {
 public:
  virtual ~Subject() = default;
  virtual std::string_view name() const = 0;
  virtual void Step(x86::CpuState& state) = 0;
  virtual Tolerance tolerance() const { return {}; }
};

class Guest {
 public:
  static Result<std::unique_ptr<Guest>> Create(const x86::CpuModel& model);
  ~Guest();

  const VcpuConfig& config() const { return config_; }
  /// Puts everything of `state` that is not a case's own in place: control registers, segments, tables.
  void SetUp(x86::CpuState& state, x86::CodeSize size) const;
  void Run(const TestCase& test, Subject& subject, Outcome& outcome);

 private:
  class Host;
  Guest();
  void BuildTables();
  void TakeException(const x86::CpuState& state, Outcome& outcome);

  std::unique_ptr<memory::GuestMemory> memory_;
  std::unique_ptr<Host> host_;
  VcpuConfig config_;
  const x86::CpuModel* model_ = nullptr;
};

std::unique_ptr<Subject> MakeInterpreterSubject(const Guest& guest);
/// One vCPU of `engine`, which must outlive the subject. `single`: one instruction at a time; otherwise it runs until
/// the guest halts, behind the instruction or in the handler of its exception. An engine can have one of either.
Result<std::unique_ptr<Subject>> MakeEngineSubject(Engine& engine, const Guest& guest, const Tolerance& tolerance,
                                                   bool single = true);

}  // namespace nacre::engine::difftest
