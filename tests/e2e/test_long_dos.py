"""The 16-bit system of test_dos.py on the kvm engine, however weak the host's KVM is."""
import os
import unittest

from harness import main
from test_dos import System


@unittest.skipUnless(os.access("/dev/kvm", os.R_OK | os.W_OK), "no /dev/kvm here")
class Kvm(System):
    def test_kvm(self):
        # Where KVM runs the kernel, A20 is a matter of the first two megabytes (docs/firmware.md).
        self.check("kvm", known=("the fourth megabyte", "all of them"), seconds=1500)


if __name__ == "__main__":
    main()
