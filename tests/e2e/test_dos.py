"""A 16-bit system as DOS was one (tests/dos_system), from a diskette and from a disk, started by SeaBIOS: its checks of the
BIOS, the chips and the CPU, and keys that are typed from outside."""
import os
import pathlib
import re
import tempfile
import unittest

from control import ControlSocket
from harness import GuestCase, NACRE, Nacre, main

SYSTEM = NACRE.parent / "dos_system"
FLOPPY_BYTES, DISK_BYTES = 1440 << 10, 8 << 20
CHECKS = 157
KEYS = [("[press n]", "n"), ("[press f5]", "f5"), ("[press shift-a]", "shift-a"), ("[press x]", "x")]


def pattern(seed):
    words = [(seed + 0x907 * i) & 0xffff for i in range(768)]
    return b"".join(word.to_bytes(2, "little") for word in words)


class Dos(GuestCase):
    def check(self, engine, boot="floppy", options=(), seconds=120, known=()):
        with tempfile.TemporaryDirectory() as folder:
            system = b"".join((SYSTEM / name).read_bytes() for name in ("boot.bin", "dos.bin"))
            floppy, disk, socket = (pathlib.Path(folder, name) for name in ("floppy.img", "disk.img", "vm.sock"))
            floppy.write_bytes(system.ljust(FLOPPY_BYTES, b"\0"))
            disk.write_bytes(system.ljust(DISK_BYTES, b"\0"))
            with Nacre("run", "--firmware", "bios", "--floppy", floppy, "--disk", f"{disk},bus=ide", "--boot", boot,
                       "--engine", engine, "--memory", "64M", "--net", "none", "--display", "offscreen", "--control",
                       socket, *options) as guest:
                with ControlSocket(socket) as control:
                    for prompt, keys in KEYS:
                        guest.expect(prompt, seconds)
                        control.call("keyboard.press", keys=keys)
                    guest.expect("[done]", seconds)
            output = guest.output.decode(errors="replace")
            # The firmware shows what is on the screen on the serial port too; lines of our own come whole.
            results = set(re.findall(r"\[((?:ok|FAIL) [^][\r\n]*)\]", output))
            failed = {line.split(maxsplit=1)[1] for line in results if not line.startswith("ok ")}
            self.assertFalse({line for line in failed if not line.startswith(known)}, guest.command)
            self.assertEqual(len(results), CHECKS)
            # The last three sectors, by CHS and by the extensions.
            self.assertEqual(floppy.read_bytes()[-1536:], pattern(0x3d00))
            self.assertIn(pattern(0x3d80)[1:], disk.read_bytes())

    def test_interp(self):
        self.check("interp")

    def test_jit(self):
        self.check("jit")

    @unittest.skipUnless(os.access("/dev/kvm", os.R_OK | os.W_OK), "no /dev/kvm here")
    def test_kvm(self):
        # Where KVM runs the kernel, A20 is a matter of the first two megabytes (docs/firmware.md).
        self.check("kvm", known=("the fourth megabyte", "all of them"), seconds=300)

    def test_jit_from_the_disk(self):
        self.check("jit", boot="disk")

    def test_jit_under_stress(self):
        for stress in ("flush", "interrupt=3", "invalidate=7", "tlb", "cache,compact"):
            with self.subTest(stress=stress):
                self.check("jit", options=("--jit-stress", stress))


if __name__ == "__main__":
    main()
