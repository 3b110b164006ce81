"""Debian's cloud kernel on the kvm engine, however weak the host's KVM is: from its start to a shell."""
import hashlib
import os
import re
import time
import unittest

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
            # Long enough in user mode for KVM to get it where the kernel is interpreted.
            self.assertEqual(guest.command_output("head -c 16777216 /dev/zero | md5sum", 600),
                             hashlib.md5(bytes(16 << 20)).hexdigest() + "  -")
            log = guest.command_output("dmesg", 300)
            for word in ("BUG:", "Call Trace", "segfault", "invalid opcode", "general protection"):
                self.assertNotIn(word, log)
            guest.send("poweroff -f\n")
            self.check_exit(guest, 0, 600)
            counted = guest.errors

        self.assertRegex(counted, r"(?m)^  KVM_RUN +[1-9]")
        print(f"\n{cpus} CPUs: first output of user space after {first:.0f} s\n" +
              "\n".join(re.findall(r"^  (?:KVM_RUN|exits|assisted|instructions|translations).*", counted, re.M)), flush=True)

    def test_one_cpu(self):
        self.boot(1)

    def test_two_cpus(self):
        self.boot(2)


if __name__ == "__main__":
    main()
