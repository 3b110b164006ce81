"""SeaBIOS from Debian's package: to its last word without a disk, and to a kernel of the command line."""
import pathlib
import tempfile

from control import ControlSocket, another_generation
from harness import ENGINE, GuestCase, Nacre, boot_arguments, main

NO_DISK = "No bootable device"


class Bios(GuestCase):
    def check_no_disk(self, engine, seconds, *options):
        with tempfile.TemporaryDirectory() as folder:
            log = pathlib.Path(folder, "log")
            with Nacre("run", "--firmware", "bios", "--firmware-log", log, "--engine", engine, *options) as guest:
                guest.expect("SeaBIOS (version", seconds)
                guest.expect(NO_DISK, seconds)
                text = log.read_text(errors="replace")
                for line in ("Running on QEMU (i440fx)", "QEMU fw_cfg DMA interface supported", "Moving pm_base to 0x600",
                             "Copying SMBIOS", "ACPI: parse DSDT"):
                    self.assertIn(line, text)
                self.assertNotIn("WARNING", text)
                self.assertIn("Found 1 cpu(s)", text)

    def test_no_disk(self):
        self.check_no_disk("jit", 60)

    def test_no_disk_on_the_interpreter(self):
        self.check_no_disk("interp", 120)


class Kernel(GuestCase):
    """The firmware starts the kernel that the command line names."""

    def check(self, *options):
        text = self.run_lines(["uname -a", "poweroff -f"], "--engine", ENGINE, *options, *boot_arguments("cloud-amd64"))
        self.assertIn("Linux nacre 6.1.0", text)

    def test_bios(self):
        self.check("--firmware", "bios")

    def test_another_generation(self):
        """Firmware chooses the place of the VM generation ID and tells it both sides, before and after a restart."""
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "vm.sock")
            with Nacre("run", "--firmware", "bios", "--control", path, "--engine", ENGINE,
                       *boot_arguments("amd64")) as guest, ControlSocket(path) as control:
                another_generation(guest, control)
                guest.send("reboot -f\n")
                guest.expect("Restarting system", 120)
                guest.wide = False
                another_generation(guest, control)
                guest.send("poweroff -f\n")
                self.check_exit(guest, 0)


class Refused(GuestCase):
    def check_refused(self, status, *options):
        with Nacre("run", *options) as guest:
            self.check_exit(guest, status, 30)
            return guest.errors

    def test_what_cannot_be(self):
        self.assertIn("need --firmware", self.check_refused(2, "--firmware-vars", "x"))
        self.assertIn("no/such", self.check_refused(1, "--firmware", "/no/such/file"))
        with tempfile.TemporaryDirectory() as folder:
            small = pathlib.Path(folder, "vars")
            small.write_bytes(b"x" * 100)
            self.assertIn("100 bytes", self.check_refused(1, "--firmware", "uefi", "--firmware-vars", small))
            self.assertIn("keeps no variables", self.check_refused(1, "--firmware", "bios", "--firmware-vars", small))


if __name__ == "__main__":
    main()
