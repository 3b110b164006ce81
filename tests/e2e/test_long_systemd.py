"""Debian 12 with systemd from a virtio disk: login, settled, a file that is there after the next start, power-off."""
import shutil
import subprocess
import tempfile
import pathlib

from harness import ENGINE, GuestCase, Nacre, boot_arguments, guest_file, main

ROOT_PROMPT = "~# "
BOOT_SECONDS = 300


class Systemd(GuestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.disk = pathlib.Path(folder.name) / "disk.img"
        subprocess.run(["cp", "--sparse=always", guest_file("debian12", "disk.img"), self.disk], check=True)

    def boot(self, append=""):
        return Nacre("run", "--engine", ENGINE, "--memory", "512M", "--disk", self.disk, *boot_arguments("debian12", append))

    def log_in(self, guest):
        guest.expect("debian12 login: ", BOOT_SECONDS)
        guest.send("root\n")
        guest.expect(ROOT_PROMPT)
        self.command(guest, "bind 'set enable-bracketed-paste off'; stty -echo")

    def command(self, guest, line):
        """Runs a line with a mark after it; the mark is written so that the echo of the line does not hold it."""
        guest.send(f"{line}; echo end\\\"\\\"mark\n")
        return guest.expect('end""mark', 200).rsplit("end", 1)[0].replace("\r", "")

    def power_off(self, guest):
        guest.send("poweroff\n")
        self.check_exit(guest, 0, 200)

    def test_login_settles_and_keeps_a_file(self):
        with self.boot() as guest:
            self.log_in(guest)
            self.assertEqual(self.command(guest, "systemctl is-system-running --wait").split()[-1], "running")
            self.assertIn("10.0.2.", self.command(guest, "ip -4 -br addr show up scope global"))
            self.command(guest, "sha256sum /usr/bin/* >/root/sums; echo kept >/root/file; sync")
            self.power_off(guest)
        with self.boot() as guest:
            self.log_in(guest)
            self.assertIn("kept", self.command(guest, "cat /root/file"))
            self.assertIn("status 0", self.command(guest, "sha256sum --quiet -c /root/sums; echo status $?"))
            self.power_off(guest)
        # What the guest left is a sound file system.
        check = subprocess.run(["e2fsck", "-f", "-n", self.disk], capture_output=True, text=True, check=False)
        self.assertEqual(check.returncode, 0, check.stdout + check.stderr)

    def test_autologin(self):
        with self.boot("nacre.autologin") as guest:
            guest.expect(ROOT_PROMPT, BOOT_SECONDS)
            self.power_off(guest)


if __name__ == "__main__":
    assert shutil.which("e2fsck"), "e2fsprogs is needed: scripts/install-packages test"
    main()
