#include "engine/vcpu_group.h"

#include <time.h>

#include <algorithm>

#include "base/check.h"

namespace nacre::engine {

namespace {

/// A vCPU that the host runs answers within a few blocks of guest code; one that it does not run needs the core. Not by
/// sched_yield, which on a busy host gives away a whole turn of CPU time for each call.
void Relax(unsigned round) {
  constexpr unsigned kSpins = 200;
  if (round < kSpins) {
    __builtin_ia32_pause();
  } else {
    const timespec shortly{.tv_sec = 0, .tv_nsec = 50'000};
    nanosleep(&shortly, nullptr);
  }
}

}  // namespace

VcpuGroupMember::VcpuGroupMember(VcpuGroup& group, Vcpu& vcpu, SafepointWork* work)
    : group_(group), vcpu_(vcpu), work_(work), index_(group.size()) {
  NACRE_CHECK(index_ < VcpuGroup::kMaxMembers);
  group_.members_.push_back(this);
}

VcpuGroupMember::~VcpuGroupMember() { std::erase(group_.members_, this); }

void VcpuGroupMember::DoWork() {
  std::vector<uint64_t> mail;
  uint64_t posted;
  {
    std::lock_guard lock(mail_mutex_);
    mail.swap(mail_);
    posted = posted_;
  }
  if (work_)
    for (const uint64_t argument : mail) work_->OnSafepointWork(argument);
  done_.store(posted, std::memory_order_release);
}

void VcpuGroupMember::Safepoint() {
  DoWork();
  // Who wants an exclusive section holds the mutex while it collects the gates.
  if (group_.exclusive_mutex_.try_lock()) {
    group_.exclusive_mutex_.unlock();
    return;
  }
  gate_.unlock();
  { std::lock_guard wait(group_.exclusive_mutex_); }
  gate_.lock();
}

void VcpuGroupMember::AskOthers(uint64_t mask, uint64_t argument) {
  mask &= ~(uint64_t{1} << index_);
  if (mask == 0) return;
  uint64_t wanted[VcpuGroup::kMaxMembers] = {};
  for (VcpuGroupMember* other : group_.members_) {
    if (!(mask >> other->index_ & 1)) continue;
    {
      std::lock_guard lock(other->mail_mutex_);
      other->mail_.push_back(argument);
      wanted[other->index_] = ++other->posted_;
    }
    other->vcpu_.Request(kRequestEngine);
  }
  gate_.unlock();  // they may be asking us
  for (VcpuGroupMember* other : group_.members_) {
    if (!(mask >> other->index_ & 1)) continue;
    for (unsigned round = 0; other->done_.load(std::memory_order_acquire) < wanted[other->index_]; ++round) {
      if (other->gate_.try_lock()) {
        other->DoWork();
        other->gate_.unlock();
        break;
      }
      Relax(round);
    }
  }
  gate_.lock();
}

void VcpuGroupMember::BeginExclusive() {
  gate_.unlock();
  group_.exclusive_mutex_.lock();
  for (VcpuGroupMember* member : group_.members_) {
    if (member != this) member->vcpu_.Request(kRequestEngine);
    member->gate_.lock();
  }
}

void VcpuGroupMember::EndExclusive() {
  for (VcpuGroupMember* member : group_.members_)
    if (member != this) member->gate_.unlock();
  group_.exclusive_mutex_.unlock();
}

}  // namespace nacre::engine
