"""From SeaBIOS by GRUB to Linux, all from one disk image. Long, because GRUB copies byte by byte."""
import pathlib
import shutil
import subprocess
import tempfile

from harness import ENGINE, GuestCase, Nacre, PROMPT, guest_file, main

GRUB_CONFIG = """serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
set timeout=60
menuentry "First entry" {{
  echo never started
}}
menuentry "Linux from the disk" {{
  linux /boot/vmlinuz {line}
  initrd /boot/initrd.img
}}
"""


class Grub(GuestCase):
    """One image, which is CD and disk."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        root = pathlib.Path(cls.folder.name, "root")
        (root / "boot/grub").mkdir(parents=True)
        for name in ("vmlinuz", "initrd.img"):
            shutil.copyfile(guest_file("cloud-amd64", name), root / "boot" / name)
        line = guest_file("cloud-amd64", "cmdline").read_text().strip()
        (root / "boot/grub/grub.cfg").write_text(GRUB_CONFIG.format(line=line))
        cls.image = pathlib.Path(cls.folder.name, "grub.img")
        subprocess.run(["grub-mkrescue", "-o", cls.image, root], check=True, capture_output=True)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def check(self, *options, seconds=600):
        with Nacre("run", "--engine", ENGINE, "--disk", f"{self.image},readonly,format=raw", *options) as guest:
            guest.expect("Linux from the disk", seconds)
            guest.send("\x1b[B\r")  # cursor down, enter
            guest.expect(PROMPT, seconds)
            self.assertIn("Linux nacre 6.1.0", guest.command_output("uname -a"))
            self.assertIn("virtio", guest.command_output("cat /proc/interrupts"))
            guest.send("poweroff -f\n")
            self.check_exit(guest, 0)

    def test_bios(self):
        self.check("--firmware", "bios")


if __name__ == "__main__":
    main()
