"""A VM that is a directory, with the default guest: Linux, its disk and its power button."""
from harness import PROMPT, main
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


if __name__ == "__main__":
    main()
