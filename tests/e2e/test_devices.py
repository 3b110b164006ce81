"""Disks and the small devices, seen from a Linux guest."""
import hashlib
import os
import pathlib
import random
import tempfile
import time

from harness import ENGINE, GuestCase, Nacre, PROMPT, boot_arguments, main


class Disks(GuestCase):
    SIZE = 8 << 20

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = pathlib.Path(folder.name) / "disk.img"
        self.content = random.Random(3).randbytes(self.SIZE)
        self.path.write_bytes(self.content)

    def guest(self, options=""):
        return Nacre("run", "--engine", ENGINE, "--net", "none", "--disk", f"{self.path}{options}", *boot_arguments("cloud-amd64"))

    def write_and_leave(self, guest):
        output = guest.command_output("yes nacre | head -c 65536 | dd of=/dev/vda bs=4096 seek=100 conv=fsync 2>&1; sync")
        guest.send("poweroff -f\n")
        self.check_exit(guest, 0)
        return output

    def test_reads_every_byte(self):
        with self.guest() as guest:
            guest.expect(PROMPT)
            self.assertEqual(guest.command_output("sha256sum </dev/vda").split()[0], hashlib.sha256(self.content).hexdigest())
            self.assertEqual(guest.command_output("cat /sys/block/vda/size").strip(), str(self.SIZE // 512))
            guest.send("poweroff -f\n")
            self.check_exit(guest, 0)
        self.assertEqual(self.path.read_bytes(), self.content)

    def test_writes_reach_the_file(self):
        with self.guest() as guest:
            guest.expect(PROMPT)
            self.write_and_leave(guest)
        expected = bytearray(self.content)
        expected[409600:409600 + 65536] = (b"nacre\n" * 11000)[:65536]
        self.assertTrue(self.path.read_bytes() == bytes(expected))

    def test_snapshot_is_thrown_away(self):
        with self.guest(",snapshot") as guest:
            guest.expect(PROMPT)
            self.write_and_leave(guest)
        self.assertTrue(self.path.read_bytes() == self.content)

    def test_readonly_refuses(self):
        with self.guest(",readonly") as guest:
            guest.expect(PROMPT)
            self.assertEqual(guest.command_output("cat /sys/block/vda/ro").strip(), "1")
            self.write_and_leave(guest)
        self.assertTrue(self.path.read_bytes() == self.content)

    def test_file_system_lives_on(self):
        for command, seen in (("mke2fs -q /dev/vda; mount /dev/vda /mnt && echo pearl >/mnt/f; umount /mnt", ""),
                              ("mount /dev/vda /mnt; cat /mnt/f; umount /mnt", "pearl")):
            with self.guest() as guest:
                guest.expect(PROMPT)
                self.assertIn(seen, guest.command_output(command))
                guest.send("poweroff -f\n")
                self.check_exit(guest, 0)


class SmallDevices(GuestCase):
    def test_random_numbers(self):
        with Nacre("run", "--engine", ENGINE, *boot_arguments("cloud-amd64")) as guest:
            guest.expect(PROMPT)
            self.assertIn("virtio_rng", guest.command_output("cat /sys/class/misc/hw_random/rng_available"))
            digests = {guest.command_output("head -c 4096 /dev/hwrng | sha256sum").split()[0] for _ in range(3)}
            self.assertEqual(len(digests), 3)
            guest.send("poweroff -f\n")
            self.check_exit(guest, 0)

    def test_freed_memory_goes_back_to_the_host(self):
        """The guest reports its free pages through the balloon device (about every two seconds)."""
        with Nacre("run", "--engine", ENGINE, "--memory", "512M", "--net", "none", *boot_arguments("cloud-amd64")) as guest:
            guest.expect(PROMPT)
            guest.command_output("mount -t tmpfs -o size=200m big /mnt; head -c 100000000 /dev/zero | tr '\\0' x >/mnt/f")
            self.assertEqual(guest.command_output("stat -c %s /mnt/f").strip(), "100000000")
            full = guest.memory_mib()
            self.assertGreater(full, 100)
            guest.command_output("rm /mnt/f")
            for _ in range(30):
                if guest.memory_mib() < full - 70:
                    break
                time.sleep(1)
            self.assertLess(guest.memory_mib(), full - 70)
            guest.send("poweroff -f\n")
            self.check_exit(guest, 0)

    def test_reboot_starts_again(self):
        with Nacre("run", "--engine", ENGINE, *boot_arguments("cloud-amd64")) as guest:
            guest.expect(PROMPT)
            guest.send("reboot -f\n")
            guest.expect("Leave with Ctrl-]")
            guest.expect(PROMPT)
            guest.send("poweroff -f\n")
            self.check_exit(guest, 0)


class Benchmark(GuestCase):
    """The guest benchmark's checksums are those of the bare host: one program, many instructions and system calls."""

    def test_checksums(self):
        import subprocess
        from harness import GUESTS, NACRE
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        bench = NACRE.parent / "guest-bench"
        self.assertTrue(bench.exists(), f"{bench} is missing: run scripts/build")
        manifest = pathlib.Path(folder.name) / "manifest"
        os.symlink(bench, manifest.parent / "guest-bench")
        manifest.write_text("node dev/console 600 c 5 1\nfile guest-bench init 755\n")
        initrd = manifest.parent / "initrd.img"
        subprocess.run([NACRE.parent / "nacre-cpio", manifest, initrd], check=True)

        def sums(text):
            return [line.split()[1:3] for line in text.replace("\r", "").splitlines() if line.startswith("bench ")]

        native = subprocess.run([bench, "5"], capture_output=True, text=True, check=True).stdout
        arguments = boot_arguments("cloud-amd64", "bench_percent=5")
        arguments[3] = initrd
        with Nacre("run", "--engine", ENGINE, "--net", "none", *arguments) as guest:
            self.check_exit(guest, 0)
            self.assertEqual(sums(guest.text()), sums(native))
            self.assertGreater(len(sums(native)), 20)


if __name__ == "__main__":
    main()
