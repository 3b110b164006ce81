"""Suspend to RAM (ACPI S3) by SeaBIOS's and OVMF's way back, with disks on virtio, IDE and SATA, and on Debian with systemd
for amd64 and i386."""
import pathlib
import subprocess
import tempfile
import time

from control import ControlSocket
from harness import ENGINE, PROMPT, GuestCase, Nacre, boot_arguments, guest_file, main

WAIT_SECONDS, BOOT_SECONDS = 180, 600
BUSES = ("virtio", "ide", "sata")


def wait_until_asleep(case, vm):
    deadline = time.monotonic() + WAIT_SECONDS
    while vm.call("vm.info")["state"] != "asleep":
        case.assertLess(time.monotonic(), deadline, "never asleep")
        time.sleep(0.05)


class LongSleep(GuestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.socket = self.folder / "socket"

    def firmware(self, *options):
        disks = []
        for bus in BUSES:
            disk = self.folder / f"{bus}.img"
            with open(disk, "wb") as file:
                file.truncate(16 << 20)
            disks += ["--disk", f"{disk},bus={bus}"]
        names = "vda sda sdb"
        every = f"for d in {names}; do head -c 9000000 /dev/$d | md5sum; done"
        with Nacre("run", "--engine", ENGINE, "--memory", "512M", "--cpus", "2", "--control", self.socket, *disks,
                   *boot_arguments("amd64"), *options) as guest, ControlSocket(self.socket) as vm:
            guest.expect(PROMPT, WAIT_SECONDS)
            guest.command_output("for m in ata_piix ahci sd_mod; do modprobe $m; done; "
                                 "for i in $(seq 100); do [ -e /dev/sda ] && [ -e /dev/sdb ] && break; usleep 100000; done")
            guest.command_output(f"for d in {names}; do head -c 9000000 /dev/urandom >/dev/$d; done; sync")
            guest.command_output(f"{every} >/tmp/before; head -c 9000000 /dev/urandom >/tmp/file; md5sum /tmp/file >/tmp/sum")
            for _ in range(3):
                guest.send("echo mem >/sys/power/state; echo back \\n again\n")
                wait_until_asleep(self, vm)
                vm.call("vm.power")
                guest.expect("back n again", WAIT_SECONDS)
                guest.expect(PROMPT)
                guest.command_output(f"echo 3 >/proc/sys/vm/drop_caches; {every} >/tmp/after")
                self.assertEqual(guest.command_output("cmp /tmp/before /tmp/after && md5sum -c /tmp/sum"), "/tmp/file: OK")
                self.assertEqual(guest.command_output("nproc"), "2")
                self.assertIn("1 packets received", guest.command_output("ping -c 1 10.0.2.2 | grep received"))
            self.assertEqual(guest.command_output("cat /sys/power/suspend_stats/success"), "3")
            guest.send("poweroff -f\n")
            self.check_exit(guest, 0)

    def test_without_firmware(self):
        self.firmware()

    def test_seabios(self):
        self.firmware("--firmware", "bios")

    def test_ovmf(self):
        self.firmware("--firmware", "uefi")

    def systemd(self, kind, *options):
        disk = self.folder / "disk.img"
        subprocess.run(["cp", "--sparse=always", guest_file(kind, "disk.img"), disk], check=True)
        bus = "ide" if kind == "debian12-i386" else "virtio"
        with Nacre("run", "--engine", ENGINE, "--memory", "512M", "--cpus", "2", "--control", self.socket,
                   "--disk", f"{disk},bus={bus}", *options) as guest, ControlSocket(self.socket) as vm:
            guest.expect("debian12 login: ", BOOT_SECONDS)
            guest.send("root\n")
            guest.expect("~# ", WAIT_SECONDS)
            guest.send("sha256sum /usr/bin/* >sums; systemctl suspend\n")
            wait_until_asleep(self, vm)
            vm.call("vm.power")
            guest.send("echo 3 >/proc/sys/vm/drop_caches; sha256sum --quiet -c sums; echo status \\n $?\n")
            guest.expect("status n 0", WAIT_SECONDS)
            guest.send("poweroff\n")
            self.check_exit(guest, 0, WAIT_SECONDS)
        check = subprocess.run(["e2fsck", "-f", "-n", f"{disk}?offset={1 << 20}" if bus == "ide" else disk],
                               capture_output=True, text=True, check=False)
        self.assertEqual(check.returncode, 0, check.stdout + check.stderr)

    def test_systemd(self):
        self.systemd("debian12", *boot_arguments("debian12"))

    def test_systemd_i386(self):
        self.systemd("debian12-i386", "--firmware", "bios")


if __name__ == "__main__":
    main()
