"""A 16-bit system as DOS was one (tests/dos_system), from a diskette and from a disk, started by SeaBIOS: its checks of the
BIOS, the chips and the CPU, and keys that are typed from outside. SYSLINUX from FAT: the same system in MEMDISK, whose
INT 13h stands before the BIOS's, and a Linux kernel."""
import gzip
import pathlib
import re
import subprocess
import tempfile

from control import ControlSocket
from harness import GuestCase, NACRE, Nacre, PROMPT, guest_file, main

MEMDISK = pathlib.Path("/usr/lib/syslinux/memdisk")
SYSTEM = NACRE.parent / "dos_system"
FLOPPY_BYTES, DISK_BYTES = 1440 << 10, 8 << 20
CHECKS = 157
KEYS = [("[press n]", "n"), ("[press f5]", "f5"), ("[press shift-a]", "shift-a"), ("[press x]", "x")]


def pattern(seed):
    words = [(seed + 0x907 * i) & 0xffff for i in range(768)]
    return b"".join(word.to_bytes(2, "little") for word in words)


class System(GuestCase):
    """A folder with images, and the checks of the system."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def image(self, name, size_bytes):
        system = b"".join((SYSTEM / part).read_bytes() for part in ("boot.bin", "dos.bin"))
        path = self.folder / name
        path.write_bytes(system.ljust(size_bytes, b"\0"))
        return path

    def run_checks(self, floppy, disk, engine, options=(), seconds=120, known=(), first=None):
        """`first`: a prompt, and what is typed there."""
        socket = self.folder / "vm.sock"
        with Nacre("run", "--firmware", "bios", "--floppy", floppy, "--disk", f"{disk},bus=ide", "--engine", engine,
                   "--memory", "64M", "--net", "none", "--display", "offscreen", "--control", socket, *options) as guest:
            with ControlSocket(socket) as control:
                if first:
                    guest.expect(first[0], seconds)
                    control.call("keyboard.type", text=first[1])
                for prompt, keys in KEYS:
                    guest.expect(prompt, seconds)
                    control.call("keyboard.press", keys=keys)
                guest.expect("[done]", seconds)
        # The firmware shows what is on the screen on the serial port too; lines of our own come whole.
        results = set(re.findall(r"\[((?:ok|FAIL) [^][\r\n]*)\]", guest.output.decode(errors="replace")))
        failed = {line.split(maxsplit=1)[1] for line in results if not line.startswith("ok ")}
        self.assertFalse({line for line in failed if not line.startswith(known)}, guest.command)
        self.assertEqual(len(results), CHECKS)

    def check(self, engine, boot="floppy", options=(), **more):
        floppy, disk = self.image("floppy.img", FLOPPY_BYTES), self.image("disk.img", DISK_BYTES)
        self.run_checks(floppy, disk, engine, ("--boot", boot, *options), **more)
        # The last three sectors, by CHS and by the extensions.
        self.assertEqual(floppy.read_bytes()[-1536:], pattern(0x3d00))
        self.assertIn(pattern(0x3d80)[1:], disk.read_bytes())


class Dos(System):
    def test_interp(self):
        self.check("interp")

    def test_jit(self):
        self.check("jit")

    def test_jit_from_the_disk(self):
        self.check("jit", boot="disk")

    def test_jit_under_stress(self):
        for stress in ("flush", "interrupt=3", "invalidate=7", "tlb", "cache,compact"):
            with self.subTest(stress=stress):
                self.check("jit", options=("--jit-stress", stress))


class Syslinux(System):
    def fat(self, name, size_bytes, geometry, config, files):
        path = self.folder / name
        with open(path, "wb") as file:
            file.truncate(size_bytes)
        subprocess.run(["mformat", "-i", path, *geometry, "::"], check=True)
        (self.folder / "syslinux.cfg").write_text(config)
        subprocess.run(["mcopy", "-i", path, self.folder / "syslinux.cfg", *files, "::"], check=True)
        subprocess.run(["syslinux", "--install", path], check=True)
        return path

    def test_memdisk(self):
        packed = self.folder / "dos.igz"
        packed.write_bytes(gzip.compress(self.image("dos.img", FLOPPY_BYTES).read_bytes()))
        config = "PROMPT 1\nLABEL dos\n KERNEL memdisk\n INITRD dos.igz\n"
        floppy = self.fat("floppy.img", FLOPPY_BYTES, ["-f", "1440"], config, [MEMDISK, packed])
        before = floppy.read_bytes()
        # MEMDISK does not keep the last error.
        self.run_checks(floppy, self.image("disk.img", DISK_BYTES), "jit", first=("boot:", "dos\n"),
                        known=("floppy: tells the error again", "all of them"))
        self.assertEqual(floppy.read_bytes(), before)

    def test_linux(self):
        files = [guest_file("cloud-amd64", name) for name in ("vmlinuz", "initrd.img")]
        config = ("PROMPT 1\nLABEL linux\n KERNEL vmlinuz\n APPEND initrd=initrd.img " +
                  guest_file("cloud-amd64", "cmdline").read_text().strip() + "\n")
        disk = self.fat("disk.img", 130 * 16 * 63 * 512, ["-h", "16", "-s", "63", "-t", "130"], config, files)
        with Nacre("run", "--firmware", "bios", "--disk", f"{disk},bus=ide", "--engine", "jit", "--net", "none") as guest:
            guest.expect("boot:")
            guest.send("linux\n")
            guest.expect(PROMPT, 300)
            self.assertIn("BOOT_IMAGE=vmlinuz", guest.command_output("cat /proc/cmdline"))
            guest.send("poweroff -f\n")
            self.check_exit(guest, 0)


if __name__ == "__main__":
    main()
