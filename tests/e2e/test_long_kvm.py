"""Debian's cloud kernel on the kvm engine, however weak the host's KVM is: from its start to a shell, and a running guest
that goes between kvm and the other engines."""
import os
import re
import time
import unittest

import test_switch
from harness import GuestCase, Nacre, PROMPT, boot_arguments, main

NO_KVM = None if os.access("/dev/kvm", os.R_OK | os.W_OK) else "no /dev/kvm here"
BOOT_SECONDS = 1500  # an emulating KVM beside other load


@unittest.skipIf(NO_KVM, NO_KVM)
class Boot(GuestCase):
    def boot(self, cpus):
        start = time.monotonic()
        with Nacre("run", "--engine", "kvm", "--cpus", cpus, "--net", "none", "--engine-stats",
                   *boot_arguments("cloud-amd64")) as guest:
            guest.expect("Nacre: Linux", BOOT_SECONDS)  # what /init says
            first = time.monotonic() - start
            guest.expect(PROMPT, BOOT_SECONDS)
            self.assertEqual(guest.command_output("grep -c ^processor /proc/cpuinfo", 300), str(cpus))
            self.assertEqual(guest.command_output("echo $((6 * 7)) | md5sum", 300),
                             "50a2fabfdd276f573ff97ace8b11c5f4  -")
            log = guest.command_output("dmesg", 300)
            for word in ("BUG:", "Call Trace", "segfault", "invalid opcode", "general protection"):
                self.assertNotIn(word, log)
            guest.send("poweroff -f\n")
            self.check_exit(guest, 0, 600)
            counted = guest.errors
        self.assertRegex(counted, r"(?m)^engine kvm")
        self.assertRegex(counted, r"(?m)^  KVM_RUN +[1-9]")
        print(f"\n{cpus} CPUs: first output of user space after {first:.0f} s\n" +
              "\n".join(re.findall(r"^  (?:KVM_RUN|exits|assisted|instructions|stays).*", counted, re.M)), flush=True)

    def test_one_cpu(self):
        self.boot(1)

    def test_two_cpus(self):
        self.boot(2)


@unittest.skipIf(NO_KVM, NO_KVM)
class Tour(test_switch.Switch):
    """The loaded guest of test_switch, between all engines."""

    def test_all_engines(self):
        self.tour(1, "kvm,jit,interp,jit", 200)


del test_switch.Switch  # its own cases run there

if __name__ == "__main__":
    main()
