"""From SeaBIOS and from OVMF by GRUB to Linux, all from one disk image."""
import pathlib
import shutil
import subprocess
import tempfile

from harness import ENGINE, GuestCase, Nacre, PROMPT, boot_arguments, guest_file, main

# OVMF reads the serial port too, and would take some of the bytes: there GRUB gets them through it.
GRUB_CONFIG = """if [ "$grub_platform" = pc ]; then
  serial --unit=0 --speed=115200
  terminal_input serial console
  terminal_output serial console
fi
set timeout=-1
menuentry "First entry" {{
  echo never started
}}
menuentry "Linux from the disk" {{
  linux /boot/vmlinuz {line}
  initrd /boot/initrd.img
}}
"""
TEMPLATE = pathlib.Path("/usr/share/OVMF/OVMF_VARS_4M.fd")


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

    def check(self, *options, seconds=300):
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

    def test_bios_with_two_cpus(self):
        self.check("--firmware", "bios", "--cpus", "2")

    def test_uefi_keeps_its_variables(self):
        with tempfile.TemporaryDirectory() as folder:
            kept = pathlib.Path(folder, "vars")
            for _ in range(2):
                self.check("--firmware", "uefi", "--firmware-vars", kept)
                content = kept.read_bytes()
                self.assertEqual(len(content), TEMPLATE.stat().st_size)
                self.assertIn("BootOrder".encode("utf-16-le"), content)


class Kernel(GuestCase):
    """OVMF starts the kernel that the command line names by its EFI stub."""

    def test_uefi(self):
        with Nacre("run", "--engine", ENGINE, "--firmware", "uefi", *boot_arguments("cloud-amd64")) as guest:
            guest.expect(PROMPT, 300)
            self.assertEqual(guest.command_output("ls -d /sys/firmware/efi"), "/sys/firmware/efi")
            for table in ("FACP", "APIC", "DSDT", "BGRT"):
                self.assertIn(table, guest.command_output("dmesg | grep ACPI:"))
            guest.send("poweroff -f\n")
            self.check_exit(guest, 0)


if __name__ == "__main__":
    main()
