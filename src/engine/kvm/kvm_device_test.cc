#include "engine/kvm/kvm_device.h"

#include <gtest/gtest.h>

#include "engine/kvm/kvm_api.h"

namespace nacre::engine::kvm {
namespace {

TEST(KvmDevice, OpenFailuresSayWhatToDo) {
  const auto text = [](int error, CpuVirtualization cpu = CpuVirtualization::kIntel) {
    return DescribeOpenFailure("/dev/kvm", error, cpu);
  };
  EXPECT_NE(text(ENOENT).find("modprobe kvm_intel"), std::string::npos);
  EXPECT_NE(text(ENOENT).find("--device /dev/kvm"), std::string::npos);
  EXPECT_NE(text(ENOENT, CpuVirtualization::kAmd).find("modprobe kvm_amd"), std::string::npos);
  EXPECT_NE(text(ENOENT, CpuVirtualization::kNone).find("nested virtualization"), std::string::npos);
  EXPECT_NE(text(ENODEV).find("no driver"), std::string::npos);
  EXPECT_NE(text(EACCES).find("usermod -aG kvm"), std::string::npos);
  EXPECT_NE(text(EPERM).find("--device /dev/kvm"), std::string::npos);
  EXPECT_NE(text(EBUSY).find("other hypervisor"), std::string::npos);
  EXPECT_NE(text(EMFILE).find("Too many open files"), std::string::npos);
  for (const int error : {ENOENT, ENODEV, EACCES, EPERM, EBUSY, EMFILE})
    EXPECT_TRUE(text(error).starts_with("/dev/kvm ")) << text(error);
}

TEST(KvmDevice, CreateVmFailuresSayWhatToDo) {
  EXPECT_NE(DescribeCreateVmFailure(EBUSY).find("another hypervisor"), std::string::npos);
  EXPECT_NE(DescribeCreateVmFailure(EIO).find("firmware"), std::string::npos);
  EXPECT_NE(DescribeCreateVmFailure(ENOMEM).find("Cannot allocate memory"), std::string::npos);
}

TEST(KvmDevice, MissingCapabilitiesAreNamed) {
  EXPECT_EQ(MissingCapabilities([](int) { return 1; }), "");
  EXPECT_EQ(MissingCapabilities(
                [](int number) { return number != KVM_CAP_X86_MSR_FILTER && number != KVM_CAP_SPLIT_IRQCHIP ? 1 : 0; }),
            "KVM_CAP_SPLIT_IRQCHIP KVM_CAP_X86_MSR_FILTER");
}

TEST(KvmDevice, OtherFilesAreNotKvm) {
  const auto null = KvmDevice::Open("/dev/null");
  ASSERT_FALSE(null);
  EXPECT_NE(null.error().message.find("not KVM's device"), std::string::npos);
  const auto missing = KvmDevice::Open("/no/such/device");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, ENOENT);
  EXPECT_TRUE(missing.error().message.starts_with("/no/such/device is not there"));
}

TEST(KvmDevice, MakesAVm) {
  const auto device = KvmDevice::Open();
  if (!device) GTEST_SKIP() << device.error().message;
  EXPECT_GE(device->vcpu_mmap_bytes(), sizeof(kvm_run));
  const auto vm = device->CreateVm();
  ASSERT_TRUE(vm) << vm.error().message;
  EXPECT_TRUE(vm->valid());
}

}  // namespace
}  // namespace nacre::engine::kvm
