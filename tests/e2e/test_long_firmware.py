"""From SeaBIOS and from OVMF by GRUB to Linux, from every kind of disk and with several CPUs."""
import pathlib
import tempfile

import grub
from control import ControlSocket, another_generation
from harness import ENGINE, GuestCase, Nacre, PROMPT, boot_arguments, main

TEMPLATE = pathlib.Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
VARIABLE = "/sys/firmware/efi/efivars/Pearl-4e616372-652d-5465-7374-000000000001"
MOUNT = "modprobe efivarfs && mount -t efivarfs none /sys/firmware/efi/efivars"


class Grub(GuestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.image = grub.make_image(cls.folder.name)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def check(self, firmware, *options, disk=None, engine=ENGINE, cpus=1, seconds=300):
        disk = disk or ["--disk", f"{self.image},readonly,format=raw"]
        with Nacre("run", "--engine", engine, "--firmware", firmware, "--cpus", cpus, *disk, *options) as guest:
            grub.start_linux(guest, seconds)
            self.assertIn("Linux nacre 6.1.0", guest.command_output("uname -a"))
            self.assertEqual(guest.command_output("grep -c ^processor /proc/cpuinfo"), str(cpus))
            self.assertEqual(guest.command_output("ls -d /sys/firmware/efi"),
                             "/sys/firmware/efi" if firmware == "uefi" else "ls: /sys/firmware/efi: No such file or directory")
            guest.send("poweroff -f\n")
            self.check_exit(guest, 0)

    def check_buses(self, firmware):
        for bus in ("virtio", "ide", "sata"):
            with self.subTest(disk=bus):
                self.check(firmware, disk=["--disk", f"{self.image},snapshot,format=raw,bus={bus}"])
        for bus in ("ide", "sata"):
            with self.subTest(cdrom=bus):
                self.check(firmware, disk=["--cdrom", f"{self.image},bus={bus}"])

    def check_cpus(self, firmware, engine, counts, seconds):
        for cpus in counts:
            with self.subTest(cpus=cpus):
                self.check(firmware, engine=engine, cpus=cpus, seconds=seconds)

    def test_bios_from_every_bus(self):
        self.check_buses("bios")

    def test_uefi_from_every_bus(self):
        self.check_buses("uefi")

    def test_bios_with_cpus(self):
        self.check_cpus("bios", "jit", (2, 4), 300)

    def test_uefi_with_cpus(self):
        self.check_cpus("uefi", "jit", (2, 4), 300)

    def test_boot_order(self):
        """An empty disk is first; --boot puts the CD-ROM drive before it, and what boots is the same."""
        with tempfile.NamedTemporaryFile() as empty:
            empty.truncate(1 << 20)
            disks = ["--disk", f"{empty.name},bus=ide", "--cdrom", self.image]
            for firmware in ("bios", "uefi"):
                for order in ([], ["--boot", "cdrom"]):
                    with self.subTest(firmware=firmware, order=order):
                        self.check(firmware, *order, disk=disks)


class Devices(GuestCase):
    """An e1000 and a virtio-gpu, which the firmware finds too: Linux starts and uses the card."""

    def test_e1000_and_virtio_gpu(self):
        for firmware in ("bios", "uefi"):
            with self.subTest(firmware=firmware), Nacre(
                    "run", "--engine", ENGINE, "--firmware", firmware, "--net", "user,model=e1000", "--display", "offscreen",
                    "--gpu", "virtio", *boot_arguments("amd64", "nacre.net=off")) as guest:
                guest.expect(PROMPT, 300)
                ids = guest.command_output("cat /sys/bus/pci/devices/*/uevent | grep PCI_ID")
                for device in ("8086:100E", "1AF4:1050"):
                    self.assertIn(device, ids)
                guest.command_output("modprobe e1000; until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done; "
                                     "ip link set eth0 up; udhcpc -i eth0 -q -n -t 20 -T 3 -s /etc/udhcpc.script")
                self.assertIn("1 packets received", guest.command_output("ping -c 1 10.0.2.2 | grep received"))
                guest.send("poweroff -f\n")
                self.check_exit(guest, 0)


class Generation(GuestCase):
    def test_uefi(self):
        """As test_firmware.py has it with SeaBIOS."""
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "vm.sock")
            with Nacre("run", "--firmware", "uefi", "--control", path, "--engine", ENGINE,
                       *boot_arguments("amd64")) as guest, ControlSocket(path) as control:
                another_generation(guest, control)
                guest.send("poweroff -f\n")
                self.check_exit(guest, 0)


class Variables(GuestCase):
    """OVMF starts a kernel of the command line by its EFI stub; what Linux writes is there after a restart of the machine."""

    def test_kept(self):
        with tempfile.TemporaryDirectory() as folder:
            kept = pathlib.Path(folder, "vars")
            # Attributes: kept, for boot services and at run time.
            self.run_guest(kept, f"printf '\\007\\000\\000\\000pearl' >{VARIABLE}")
            content = kept.read_bytes()
            self.assertEqual(len(content), TEMPLATE.stat().st_size)
            self.assertIn("BootOrder".encode("utf-16-le"), content)
            self.assertEqual(self.run_guest(kept, f"tail -c +5 {VARIABLE}; echo"), "pearl")
            self.assertIn("No such file", self.run_guest(None, f"cat {VARIABLE}"))

    def run_guest(self, kept, line):
        variables = ["--firmware-vars", kept] if kept else []
        with Nacre("run", "--engine", ENGINE, "--firmware", "uefi", *variables, *boot_arguments("amd64")) as guest:
            guest.expect(PROMPT, 300)
            for table in ("FACP", "APIC", "DSDT", "BGRT"):
                self.assertIn(table, guest.command_output("dmesg | grep ACPI:"))
            self.assertEqual(guest.command_output(MOUNT), "")
            text = guest.command_output(line)
            guest.send("poweroff -f\n")
            self.check_exit(guest, 0)
            return text


if __name__ == "__main__":
    main()
