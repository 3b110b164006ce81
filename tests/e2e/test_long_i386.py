"""Debian for i386 with its 686-pae kernel and systemd, from an IDE disk by SeaBIOS and GRUB: login, settled, a file that is
there after the next start, power-off."""
import pathlib
import subprocess
import tempfile

from harness import ENGINE, GuestCase, Nacre, guest_file, main

PROMPT = "~# "
BOOT_SECONDS, COMMAND_SECONDS = 600, 300


class DebianI386(GuestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.disk = pathlib.Path(folder.name) / "disk.img"
        subprocess.run(["cp", "--sparse=always", guest_file("debian12-i386", "disk.img"), self.disk], check=True)

    def start(self, cpus):
        return Nacre("run", "--engine", ENGINE, "--memory", "512M", "--cpus", cpus, "--firmware", "bios",
                     "--net", "user,model=e1000", "--disk", f"{self.disk},bus=ide")

    def log_in(self, guest):
        guest.expect("GRUB", BOOT_SECONDS)
        guest.expect("debian12 login: ", BOOT_SECONDS)
        guest.send("root\n")
        guest.expect(PROMPT, COMMAND_SECONDS)
        self.command(guest, "bind 'set enable-bracketed-paste off'; stty -echo")

    def command(self, guest, line):
        """Runs a line with a mark after it; the mark is written so that the echo of the line does not hold it."""
        guest.send(f"{line}; echo end\\\"\\\"mark\n")
        return guest.expect('end""mark', COMMAND_SECONDS).rsplit("end", 1)[0].replace("\r", "")

    def power_off(self, guest):
        guest.send("poweroff\n")
        self.check_exit(guest, 0, COMMAND_SECONDS)

    def test_login_from_an_ide_disk(self):
        with self.start(1) as guest:
            self.log_in(guest)
            self.assertIn("686-pae", self.command(guest, "uname -r"))
            self.assertIn("i386", self.command(guest, "dpkg --print-architecture"))
            self.assertIn("/dev/sda1", self.command(guest, "findmnt -n -o SOURCE /"))
            self.assertIn("ata_piix", self.command(guest, "cat /sys/block/sda/device/../../../*/scsi_host/*/proc_name"))
            self.assertEqual(self.command(guest, "systemctl is-system-running --wait").split()[-1], "running")
            self.assertIn("10.0.2.", self.command(guest, "ip -4 -br addr show up scope global"))
            self.command(guest, "sha256sum /usr/bin/* >/root/sums; echo kept >/root/file; sync")
            self.power_off(guest)
        with self.start(2) as guest:
            self.log_in(guest)
            self.assertIn("cpus 2", self.command(guest, "echo cpus $(nproc)"))
            self.assertIn("kept", self.command(guest, "cat /root/file"))
            self.assertIn("status 0", self.command(guest, "sha256sum --quiet -c /root/sums; echo status $?"))
            self.power_off(guest)


if __name__ == "__main__":
    main()
