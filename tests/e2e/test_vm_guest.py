"""A VM that is a directory, with the default guest: Linux, its disk and its power button; one made of an image."""
import shutil

from harness import Nacre, PROMPT, guest_file, main
from test_vm import Vms


class Guest(Vms):
    def shell(self, watcher, line):
        """Runs a line in the guest's shell; what it prints."""
        watcher.sendall(line.encode() + b"\n")
        got = self.read_until(watcher, b"\n")  # the echo
        return self.read_until(watcher, PROMPT.encode(), got.partition(b"\n")[2]).decode().rpartition("\n")[0]

    def test_a_disk_from_start_to_start(self):
        self.nacre("create", "web", "--engine", "jit", "--memory", "128M", "--disk-size", "16M")
        for run in ("first", "second"):
            self.nacre("start", "web")
            watcher = self.console()
            self.read_until(watcher, PROMPT.encode())
            if run == "first":
                self.assertIn("16777216", self.shell(watcher, "blockdev --getsize64 /dev/vda"))
                self.shell(watcher, "echo kept here >/dev/vda; sync")
            else:
                self.assertIn("kept here", self.shell(watcher, "head -n 1 /dev/vda"))
            # Who listens to the button does so.
            self.shell(watcher, "until ls -l /proc/$(pidof acpid)/fd | grep -q input/event; do sleep 1; done")
            self.nacre("stop", "web", "--timeout", "120")
            self.assertEqual(self.of()["end"]["reason"], "powered off")
            self.assertIn("Power down", self.nacre("logs", "web"))

    def test_stopped_while_it_starts(self):
        """It does not see its button yet, which is pressed again."""
        self.nacre("create", "web", "--engine", "jit", "--memory", "128M")
        self.nacre("start", "web")
        self.nacre("stop", "web", "--timeout", "100")
        self.assertEqual(self.of()["end"]["reason"], "powered off")

    def test_of_an_image(self):
        """A folder becomes an image, and that machines which do not write to it and know their own names."""
        boot = self.home / "root/boot"
        boot.mkdir(parents=True)
        shutil.copy(guest_file("cloud-amd64", "vmlinuz"), boot / "vmlinuz-6.1")
        shutil.copy(guest_file("cloud-amd64", "initrd.img"), boot / "initrd.img-6.1")
        self.nacre("image", "build", "--from", self.home / "root", "--name", "small", "--size", "64M", "--memory", "128M")
        show, write = "head -c 4 /dev/vda | tr '\\0' .; echo", "echo kept >/dev/vda; sync"
        for _ in range(2):  # the second finds nothing of the first
            with Nacre("run", "small", "--engine", "jit") as guest:
                guest.expect(PROMPT)
                self.assertIn("systemd.hostname=small", guest.command_output("cat /proc/cmdline"))
                self.assertEqual(guest.command_output(show), "....")
                guest.command_output(write)
                guest.send("poweroff -f\n")
                self.check_exit(guest, 0)
        self.nacre("create", "web", "--image", "small", "--engine", "jit", "--disk-size", "128M")
        self.assertEqual(self.of()["memory_bytes"], 128 << 20)
        for name, found in (("web", "...."), ("copy", "kept")):
            if name == "copy":
                self.nacre("clone", "web", "copy")
            self.nacre("start", name)
            watcher = self.console(name)
            self.read_until(watcher, PROMPT.encode())
            self.assertIn(f"systemd.hostname={name}", self.shell(watcher, "cat /proc/cmdline"))
            self.assertIn("134217728", self.shell(watcher, "blockdev --getsize64 /dev/vda"))
            self.assertIn(found, self.shell(watcher, show))
            self.shell(watcher, write)
            self.shell(watcher, "until ls -l /proc/$(pidof acpid)/fd | grep -q input/event; do sleep 1; done")
            self.nacre("stop", name, "--timeout", "120")
        self.nacre("image", "verify", "small")
        said = self.nacre("image", "rm", "small", expected=1)
        for user in ("web", "copy", "layer"):
            self.assertIn(user, said)
        self.nacre("rm", "web", "copy")
        self.nacre("image", "rm", "small")


if __name__ == "__main__":
    main()
