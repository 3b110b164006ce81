"""Disks and CD-ROM drives on IDE and SATA, and floppies, seen from a Linux guest, and images that cannot be used."""
import hashlib
import os
import pathlib
import random
import struct
import subprocess
import tempfile

from harness import ENGINE, Folder, GuestCase, Nacre, PROMPT, boot_arguments, main

DRIVERS = "for m in ata_piix ahci sd_mod sr_mod isofs ext4; do modprobe $m || echo missing: $m; done"


class Controllers(GuestCase):
    """One guest with an ext4 disk on each controller and a disc in a drive on each."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.disks = [self.folder / name for name in ("ide.img", "sata.img")]
        for disk in self.disks:
            with open(disk, "wb") as file:
                file.truncate(64 << 20)
            subprocess.run(["/sbin/mke2fs", "-q", "-t", "ext4", disk], check=True)
        self.content = random.Random(5).randbytes(3_000_000)
        (self.folder / "tree").mkdir()
        (self.folder / "tree/blob").write_bytes(self.content)
        self.disc = self.folder / "disc.iso"
        subprocess.run(["xorriso", "-as", "mkisofs", "-quiet", "-R", "-o", self.disc, self.folder / "tree"], check=True,
                       capture_output=True)

    def guest(self):
        return Nacre("run", "--engine", ENGINE, "--net", "none", "--disk", f"{self.disks[0]},bus=ide", "--disk",
                     f"{self.disks[1]},bus=sata", "--cdrom", self.disc, "--cdrom", f"{self.disc},bus=sata",
                     *boot_arguments("amd64"))

    def start(self, guest):
        guest.expect(PROMPT)
        self.assertEqual(guest.command_output(DRIVERS), "", "run scripts/prepare-guest amd64")
        guest.command_output("for i in $(seq 100); do [ -e /dev/sdb ] && [ -e /dev/sr1 ] && break; usleep 100000; done")
        # Which names they got depends on which driver was faster.
        found = guest.command_output("ls -l /sys/class/block | grep -E 'sd|sr' | sed 's/.* \\([^ ]*\\) -> .*\\(ata[0-9]*\\).*/\\1 \\2/'")
        self.assertEqual(len(found.split("\n")), 4, found)
        modes = guest.command_output("cat /sys/class/ata_device/dev*/dma_mode").split()
        self.assertEqual(modes, ["XFER_MW_DMA_2", "XFER_MW_DMA_2", "XFER_UDMA_5", "XFER_UDMA_5"])
        self.assertIn("NCQ (depth 32)", guest.command_output("dmesg | grep NCQ"))

    def end(self, guest):
        trouble = "exception Emask|failed command|I/O error|soft resetting|limiting speed"
        self.assertEqual(guest.command_output(f"dmesg | grep -E '{trouble}'"), "")
        guest.send("poweroff -f\n")
        self.check_exit(guest, 0)

    def test_file_systems_on_disks_and_discs(self):
        sums = {}
        with self.guest() as guest:
            self.start(guest)
            for disk in ("sda", "sdb"):
                guest.command_output(f"mount -t ext4 /dev/{disk} /mnt && dd if=/dev/urandom of=/mnt/file bs=64k count=300")
                before = guest.command_output("sha256sum </mnt/file")
                guest.command_output("sync; umount /mnt; echo 3 >/proc/sys/vm/drop_caches")
                guest.command_output(f"mount -t ext4 /dev/{disk} /mnt")
                self.assertEqual(guest.command_output("sha256sum </mnt/file"), before)
                guest.command_output("cp /proc/sys/kernel/random/boot_id /mnt/id; umount /mnt")
                sums[disk] = before
            for disc in ("sr0", "sr1"):
                self.assertEqual(guest.command_output(f"mount -t iso9660 -o ro /dev/{disc} /mnt; sha256sum </mnt/blob").split()[0],
                                 hashlib.sha256(self.content).hexdigest())
                guest.command_output("umount /mnt")
            self.end(guest)
        self.assertNotEqual(sums["sda"], sums["sdb"])
        for disk in self.disks:  # what the guest left is whole
            subprocess.run(["/sbin/e2fsck", "-fn", disk], check=True, capture_output=True)


class Floppies(GuestCase):
    def test_linux_uses_two_drives(self):
        with tempfile.TemporaryDirectory() as folder:
            first, second = pathlib.Path(folder, "a.img"), pathlib.Path(folder, "b.img")
            with open(first, "wb") as file:
                file.truncate(1440 << 10)
            subprocess.run(["/sbin/mke2fs", "-q", "-t", "ext2", first], check=True)
            content = random.Random(6).randbytes(720 << 10)
            second.write_bytes(content)
            with Nacre("run", "--engine", ENGINE, "--net", "none", "--floppy", first, "--floppy", f"{second},readonly",
                       *boot_arguments("amd64")) as guest:
                guest.expect(PROMPT)
                self.assertEqual(guest.command_output("for m in floppy ext4; do modprobe $m || echo missing: $m; done"),
                                 "", "run scripts/prepare-guest amd64")
                found = guest.command_output("dmesg | grep -iE 'floppy|fdc'")
                self.assertIn("fd0 is 1.44M, fd1 is 720k", found)
                self.assertIn("FDC 0 is a post-1991 82077", found)
                guest.command_output("mount -t ext4 /dev/fd0 /mnt && dd if=/dev/urandom of=/mnt/file bs=1k count=1000")
                before = guest.command_output("sha256sum </mnt/file")
                guest.command_output("umount /mnt; echo 3 >/proc/sys/vm/drop_caches")
                guest.command_output("mount -t ext4 /dev/fd0 /mnt")
                self.assertEqual(guest.command_output("sha256sum </mnt/file"), before)
                guest.command_output("umount /mnt")
                self.assertEqual(guest.command_output("sha256sum </dev/fd1").split()[0],
                                 hashlib.sha256(content).hexdigest())
                self.assertNotEqual(guest.command_output("dd if=/dev/zero of=/dev/fd1 count=1 2>/dev/null; echo $?"), "0")
                self.assertEqual(guest.command_output("dmesg | grep -iE 'I/O error|timeout'"), "")
                guest.send("poweroff -f\n")
                self.check_exit(guest, 0)
            self.assertEqual(second.read_bytes(), content)
            subprocess.run(["/sbin/e2fsck", "-fn", first], check=True, capture_output=True)


class Images(Folder):
    def refused(self, text, *options):
        status, errors = self.run_status("--kernel", "/bin/true", *options)
        self.assertEqual(status, 1, errors)
        self.assertIn(text, errors)

    def test_what_cannot_be_used_is_told(self):
        odd = self.write("odd.img", bytes(1000))
        sectors = self.write("sectors.iso", bytes(2048 + 512))
        empty = self.write("empty.iso", b"")
        good = self.write("good.img", bytes(4096))
        for bus in ("ide", "sata"):
            self.refused("512-byte sectors", "--disk", f"{odd},bus={bus}")
            self.refused("2048-byte sectors", "--cdrom", f"{sectors},bus={bus}")
        self.refused("empty", "--cdrom", str(empty))
        self.refused("no diskette has 1000 bytes", "--floppy", str(odd))
        self.refused("no diskette has 0 bytes", "--floppy", str(empty))
        self.refused("No such file", "--floppy", "/nonexistent.img")
        self.refused("is a directory", "--floppy", "/")
        self.refused("No such file", "--cdrom", "/nonexistent.iso")
        self.refused("room for four", *[word for _ in range(5) for word in ("--disk", f"{good},bus=ide,readonly")])

    def test_what_is_no_file_is_told_on_every_bus(self):
        pipe = self.folder.name + "/pipe"
        os.mkfifo(pipe)
        empty = self.write("empty.img", b"")
        odd = self.write("odd.img", bytes(513))
        places = [("--disk", ",bus=virtio"), ("--disk", ",bus=ide"), ("--disk", ",bus=sata,readonly"),
                  ("--disk", ",bus=ide,snapshot"), ("--cdrom", ",bus=ide"), ("--cdrom", ",bus=sata"), ("--floppy", ""),
                  ("--floppy", ",readonly")]
        for option, words in places:
            with self.subTest(option=option, words=words):
                self.refused("is a directory", option, f"/{words}")
                for path in ("/dev/null", pipe):
                    self.refused("neither a file nor a block device", option, f"{path}{words}")
                self.refused("No such file", option, f"/nonexistent{words}")
                self.refused("no diskette has 0 bytes" if option == "--floppy" else "empty", option, f"{empty}{words}")
                self.refused("513 bytes", option, f"{odd}{words}")
                if os.geteuid() != 0:  # root may read everything
                    odd.chmod(0)
                    self.refused("Permission denied", option, f"{odd}{words}")
                    odd.chmod(0o644)


class Truncated(Folder):
    """Images that lose their second half under a running machine: reads of it are errors of the device, nothing else is."""

    MIB = 4

    def test_a_device_error_on_every_bus(self):
        size = self.MIB << 20
        images = {name: self.write(f"{name}.img", random.Random(name).randbytes(size))
                  for name in ("vda", "ide", "sata", "disc")}
        floppy = self.write("floppy.img", random.Random("floppy").randbytes(1440 << 10))
        with Nacre("run", "--engine", ENGINE, "--net", "none", "--disk", f"{images['vda']},bus=virtio",
                   "--disk", f"{images['ide']},bus=ide", "--disk", f"{images['sata']},bus=sata", "--cdrom", images["disc"],
                   "--floppy", floppy, *boot_arguments("amd64")) as guest:
            guest.expect(PROMPT)
            guest.command_output(f"{DRIVERS}; modprobe floppy")
            guest.command_output("until [ -e /dev/sdb ] && [ -e /dev/sr0 ] && [ -e /dev/fd0 ]; do usleep 100000; done", 300)
            for image in images.values():
                os.truncate(image, size // 2)
            os.truncate(floppy, 720 << 10)
            for device, mib in (("vda", self.MIB), ("sda", self.MIB), ("sdb", self.MIB), ("sr0", self.MIB)):
                with self.subTest(device=device):
                    self.assertIn("yes", guest.command_output(f"dd if=/dev/{device} bs=64k count=4 >/dev/null && echo yes"))
                    self.assertIn("I/O error", guest.command_output(f"dd if=/dev/{device} bs=64k skip={mib * 16 - 4} 2>&1 "
                                                                    ">/dev/null", 300))
            self.assertIn("yes", guest.command_output("dd if=/dev/fd0 bs=18k count=4 >/dev/null && echo yes"))
            self.assertIn("I/O error", guest.command_output("dd if=/dev/fd0 bs=18k skip=79 2>&1 >/dev/null", 300))
            guest.send("poweroff -f\n")
            self.check_exit(guest, 0)


class Unbootable(Folder):
    """Images that a machine cannot start from: SeaBIOS says why, and goes on."""

    SECTOR = 2048

    def disc(self, sectors=24, catalog=18, image=20, image_sectors=4, checksum=0):
        """A disc whose boot catalog (El Torito, 1995) says what it is told; of `sectors` sectors."""
        volume = b"\1CD001\1".ljust(self.SECTOR, b"\0")
        record = struct.pack("<B5sB32s32xI", 0, b"CD001", 1, b"EL TORITO SPECIFICATION", catalog).ljust(self.SECTOR, b"\0")
        validation = bytearray(struct.pack("<BBH24sHBB", 1, 0, 0, b"", 0, 0x55, 0xaa))
        total = sum(struct.unpack("<16H", validation))
        struct.pack_into("<H", validation, 28, (checksum - total) & 0xffff)
        entry = struct.pack("<BBHBBHI20x", 0x88, 0, 0, 0, 0, image_sectors, image)
        content = bytes(16 * self.SECTOR) + volume + record + bytes(validation) + entry
        return content.ljust(sectors * self.SECTOR, b"\0")[:sectors * self.SECTOR]

    def says(self, text, option, image, words=""):
        with self.subTest(text=text, option=option, words=words), Nacre(
                "run", "--engine", ENGINE, "--net", "none", "--firmware", "bios",
                option, f"{self.write('image', image)}{words}") as guest:
            guest.expect(text)
            guest.expect("No bootable device.")
            self.assertIsNone(guest.process.poll())

    def test_discs(self):
        failed = "Boot failed: Could not read from CDROM (code {:04x})"
        beyond = self.disc(image=0x7fffffff)
        for code, image in ((3, self.disc(sectors=1)), (4, b"\xff" * (24 * self.SECTOR)), (5, bytes(24 * self.SECTOR)),
                            (7, self.disc(sectors=18)), (7, self.disc(catalog=0xffffffff)), (8, self.disc(catalog=19)),
                            (12, beyond), (12, self.disc(image_sectors=0xffff))):
            self.says(failed.format(code), "--cdrom", image, ",bus=ide")
        self.says(failed.format(12), "--cdrom", beyond, ",bus=sata")

    def test_disks_and_diskettes(self):
        for words in (",bus=virtio", ",bus=ide", ",bus=sata"):
            self.says("Boot failed: not a bootable disk", "--disk", bytes(1 << 20), words)
        self.says("Boot failed: not a bootable disk", "--floppy", bytes(1440 << 10))


main()
