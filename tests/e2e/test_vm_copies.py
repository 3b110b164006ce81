"""Snapshots and clones of a running VM with the default guest: memory, disk and devices go on from one instant."""
import json
import time

from guest_agent import agent_initrd
from harness import PROMPT, boot_arguments, main
from test_vm import PATIENCE, Vms


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

    def identity(self, name):
        seen = self.of(name)
        self.assertEqual(seen["state"], "running")
        return seen["uuid"], *[network["mac"] for network in seen["networks"]]

    def test_live_clones(self):
        """They go on from one instant, with memory and disk of their own; the first one goes on beside them."""
        self.nacre("create", "web", "--engine", "jit", "--memory", "128M", "--disk-size", "64M")
        self.assertIn("does not run", self.nacre("clone", "web", "early", "--live", expected=1))
        self.nacre("start", "web")
        watcher = self.console()
        self.read_until(watcher, PROMPT.encode())
        self.shell(watcher, "mke2fs /dev/vda >/dev/null 2>&1; mount /dev/vda /mnt; echo common >/mnt/word; NAME=kept")
        begin = time.monotonic()
        self.assertEqual(sorted(self.nacre("clone", "web", "copy", "--live", "--count", "3").split()),
                         ["copy-1", "copy-2", "copy-3"])
        print(f"\n  three live clones in {1000 * (time.monotonic() - begin):.0f} ms", flush=True)
        vms = ["copy-1", "copy-2", "web", "copy-3"]
        begin = time.monotonic()
        for name in vms:
            self.assertEqual(self.on_console("echo $NAME; cat /mnt/word; nproc", name).split(), ["kept", "common", "1"])
        print(f"  four consoles answered in {1000 * (time.monotonic() - begin):.0f} ms", flush=True)
        self.assertEqual(len({part for name in vms for part in self.identity(name)}), 2 * len(vms))
        for name in vms:
            self.on_console(f"NAME={name}; echo {name} >/mnt/word; sync; echo 3 >/proc/sys/vm/drop_caches", name)
        for name in vms:
            self.assertEqual(self.on_console("echo $NAME; cat /mnt/word", name).split(), [name, name])
        # Nothing is left of how they were made; a clone is a VM like others, and can be cloned itself.
        self.assertEqual([path.name for path in (self.home / "vms").iterdir() if path.name.startswith(".")], [])
        self.nacre("clone", "copy-2", "second", "--live")
        self.assertEqual(self.on_console("echo $NAME; cat /mnt/word", "second").split(), ["copy-2", "copy-2"])
        self.nacre("rm", "--force", "web", "copy-2")
        self.assertEqual(self.on_console("sync; echo 3 >/proc/sys/vm/drop_caches; cat /mnt/word", "second"), "copy-2")
        self.nacre("kill", "copy-1")
        self.nacre("start", "copy-1")
        self.read_until(self.console("copy-1"), PROMPT.encode())
        self.assertEqual(self.on_console("mount /dev/vda /mnt; cat /mnt/word", "copy-1").split(), ["copy-1"])
        for name in ("copy-1", "copy-3", "second"):
            self.nacre("kill", name)
        self.check_images()

    def test_a_clones_guest_is_told(self):
        """By the agent: its name and its card's address; or by a program of its own."""
        self.nacre("create", "web", "--engine", "jit", "--memory", "256M",
                   *boot_arguments("cloud-amd64", "nacre.net=off"), "--initrd", agent_initrd())
        self.nacre("start", "web")
        watcher = self.console()
        self.read_until(watcher, PROMPT.encode())
        self.shell(watcher, "qemu-ga -m virtio-serial -p /dev/vport*p1 -f /tmp/qga.pid -t /tmp -d; echo")
        self.nacre("exec", "--wait", PATIENCE, "web", "true")
        self.nacre("clone", "web", "other", "--live")
        told = self.nacre("exec", "other", "sh", "-c", "hostname; cat /sys/class/net/*/address")
        self.assertEqual(told.split()[0], "other")
        self.assertIn(self.of("other")["networks"][0]["mac"], told.split())
        self.assertNotIn("other", self.nacre("exec", "web", "hostname"))
        self.nacre("exec", "web", "sh", "-c", "mkdir -p /etc/nacre; echo 'echo $# $1 >/tmp/told' >/etc/nacre/clone-hook; "
                   "sed -i 1i#!/bin/sh /etc/nacre/clone-hook; chmod +x /etc/nacre/clone-hook")
        self.nacre("clone", "web", "third", "--live")
        self.assertEqual(self.nacre("exec", "third", "cat", "/tmp/told"), "3 third\n")

    def test_live_clones_that_cannot_be(self):
        self.nacre("create", "web", "--engine", "jit", "--memory", "128M", "--disk-size", "16M")
        self.nacre("start", "web")
        self.assertIn("there is such a VM", self.nacre("clone", "web", "web", "--live", expected=1))
        before = sorted(self.images())
        (self.home / "layers").write_text("no folder")
        self.nacre("clone", "web", "copy", "--live", expected=1)
        (self.home / "layers").unlink()
        self.assertEqual(sorted(self.images()), before)
        self.assertEqual(self.of()["state"], "running")
        self.assertEqual([path.name for path in (self.home / "vms").iterdir()], ["web"])
        self.nacre("clone", "web", "copy", "--live")


if __name__ == "__main__":
    main()
