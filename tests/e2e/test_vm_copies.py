"""Snapshots and clones of a running VM with the default guest: memory, disk and devices go on from one instant."""
import json

from harness import PROMPT, main
from test_vm import Vms


class Copies(Vms):
    asked = 0

    def shell(self, watcher, line):
        """Runs a line in the guest's shell; what it prints."""
        watcher.sendall(line.encode() + b"\n")
        got = self.read_until(watcher, b"\n")  # the echo
        return self.read_until(watcher, PROMPT.encode(), got.partition(b"\n")[2]).decode().rpartition("\n")[0]

    def on_console(self, line, name="web"):
        """On a new connection, which may show first what was printed before; what the line prints."""
        self.asked += 1
        watcher = self.console(name)
        watcher.sendall(f"echo fro''m {self.asked}; {line}; echo t''o {self.asked}\n".encode())
        got = self.read_until(watcher, f"from {self.asked}\r\n".encode()).partition(f"from {self.asked}\r\n".encode())[2]
        return self.read_until(watcher, f"to {self.asked}\r\n".encode(), got).decode().rpartition("to ")[0].strip()

    def images(self):
        return [path for folder in ("vms", "layers") for path in (self.home / folder).rglob("*.qcow2")]

    def check_images(self):
        self.assertIn("all is well", self.nacre("doctor", "--vms"))
        for image in self.images():
            self.nacre("disk", "check", image)

    def test_snapshots_have_the_disks(self):
        """What the guest breaks after a snapshot is whole again: files on its disk, in its memory and in its cache."""
        self.nacre("create", "web", "--engine", "jit", "--memory", "128M", "--disk-size", "64M")
        self.nacre("start", "web")
        watcher = self.console()
        self.read_until(watcher, PROMPT.encode())
        self.shell(watcher, "mke2fs /dev/vda >/dev/null 2>&1; mount /dev/vda /mnt; dd if=/dev/urandom of=/mnt/data bs=64k "
                            "count=64 2>/dev/null; echo right >/mnt/word; sync")
        # One that is not on the disk yet.
        sums = self.on_console("echo late >/mnt/late; sha256sum /mnt/*a*")
        print("", self.nacre("snapshot", "web", "good").strip(), flush=True)
        self.shell(watcher, "echo wrong >/mnt/word; rm /mnt/data; dd if=/dev/zero of=/mnt/late bs=1M count=8; sync")
        self.nacre("snapshot", "web", "bad")
        self.assertEqual([one["disks"] for one in json.loads(self.nacre("snapshot", "ls", "web", "--json"))], [1, 1])

        def is_good(sync):
            self.assertIn("right", self.on_console("cat /mnt/word"))
            self.assertEqual(self.on_console("sha256sum /mnt/*a*"), sums)
            if sync:  # what was only in the cache reaches the disk
                self.assertEqual(self.on_console("sync; echo 3 >/proc/sys/vm/drop_caches; sha256sum /mnt/*a*"), sums)

        # Onto the running VM, twice, and onto the stopped one.
        self.nacre("restore", "web", "good", "--force")
        is_good(False)
        self.on_console("rm /mnt/data; sync")
        self.nacre("restore", "web", "good", "--force")
        is_good(True)
        self.assertEqual(len(self.of()["disks"][0]["layers"]), 2)
        self.nacre("restore", "web", "bad", "--force")
        self.assertIn("wrong", self.on_console("cat /mnt/word"))
        self.nacre("kill", "web")
        self.check_images()
        self.nacre("restore", "web", "good")
        is_good(True)
        self.nacre("snapshot", "web", "better")
        self.nacre("kill", "web")
        self.check_images()
        # Layers go with the snapshots that need them; what others stand on stays whole.
        self.nacre("snapshot", "rm", "web", "good")
        self.assertEqual(self.nacre("snapshot", "verify", "web", "bad", "better"), "bad: whole\nbetter: whole\n")
        self.nacre("snapshot", "rm", "web", "bad")
        self.assertEqual(len(list((self.home / "layers").iterdir())), 1)
        self.check_images()
        self.nacre("restore", "web", "better")
        is_good(True)
        self.nacre("kill", "web")
        self.nacre("rm", "web")
        self.assertEqual(self.images(), [])


if __name__ == "__main__":
    main()
