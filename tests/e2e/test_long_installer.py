"""The Debian installer itself installs onto an empty disk on virtio, IDE or SATA, without anybody at the keyboard: packages
from the mirror through the user-mode network. Then the disk boots by SeaBIOS, GRUB and its own kernel to a login. Each
installation is a case: test_long_installer.py Installer.test_onto_an_ide_disk"""
import os
import pathlib
import tempfile

import debian_installer
from harness import ENGINE, GuestCase, Nacre, main

DISK_BYTES = 4 << 30
INSTALL_SECONDS, BOOT_SECONDS = 5400, 900
PASSWORD = "nacre"


class Installer(GuestCase):
    @classmethod
    def setUpClass(cls):
        try:
            cls.installer = debian_installer.find()
        except debian_installer.Unavailable as error:
            raise AssertionError(f"no installer can be had from {debian_installer.MIRROR}:\n{error}") from None
        print(f"{cls.installer.folder.name}, kernel {cls.installer.kernel_version}; from earlier builds: "
              f"{cls.installer.additions}; left out, for the mirror lacks them: {cls.installer.dispensed}", flush=True)

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="nacre-installer-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.disk = self.folder / "disk.img"
        self.disk.touch()
        os.truncate(self.disk, DISK_BYTES)

    def install_and_boot(self, bus, device):
        answers = self.installer.extra_initrd(self.folder, device, PASSWORD)
        with Nacre("run", "--engine", ENGINE, "--memory", "1G", "--cpus", "2",
                   "--kernel", self.installer.kernel, "--initrd", self.installer.initrd, "--initrd", answers,
                   "--append", "auto=true priority=critical DEBIAN_FRONTEND=text TERM=dumb console=ttyS0"
                               " --- console=ttyS0",
                   "--disk", f"{self.disk},bus={bus}") as guest:
            guest.expect("Loading additional components", BOOT_SECONDS)
            self.check_exit(guest, 0, INSTALL_SECONDS)
            self.assertIn("Installing GRUB", guest.text())
        with Nacre("run", "--engine", ENGINE, "--memory", "1G", "--cpus", "2", "--firmware", "bios",
                   "--disk", f"{self.disk},bus={bus}") as guest:
            guest.expect("installed login: ", BOOT_SECONDS)
            guest.send("root\n")
            guest.expect("Password: ", BOOT_SECONDS)
            guest.send(f"{PASSWORD}\n")
            guest.expect("root@installed", BOOT_SECONDS)
            guest.send("findmnt -n -o SOURCE /; cat /sys/class/dmi/id/bios_vendor /etc/debian_version; "
                       "systemctl is-system-running --wait; poweroff\n")
            guest.expect(f"{device}1", BOOT_SECONDS)
            guest.expect("SeaBIOS", BOOT_SECONDS)
            guest.expect("running", BOOT_SECONDS)
            self.check_exit(guest, 0, BOOT_SECONDS)

    def test_onto_a_virtio_disk(self):
        self.install_and_boot("virtio", "/dev/vda")

    def test_onto_an_ide_disk(self):
        self.install_and_boot("ide", "/dev/sda")

    def test_onto_a_sata_disk(self):
        self.install_and_boot("sata", "/dev/sda")


if __name__ == "__main__":
    main()
