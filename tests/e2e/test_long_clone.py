"""A hundred live clones of one Linux guest at a time: how long they take, what each costs in memory, and that each is itself.
NACRE_CLONES: another number. NACRE_CLONE_MEMORY: the guest's memory."""
import os
import re
import time

import test_vm_copies
from harness import PROMPT, main

CLONES = int(os.environ.get("NACRE_CLONES", "100"))
MEMORY = os.environ.get("NACRE_CLONE_MEMORY", "1G")
MOST_BYTES = 48 << 20  # the aim is 12 MiB (docs/vm-directory.md says what it is)


def private_bytes(pid):
    """What would be free if the process ended: its pages that no other has, and the page tables."""
    total = 0
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        for line in file:
            if line.startswith(("Private_Clean:", "Private_Dirty:", "Swap:")):
                total += int(line.split()[1])
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        total += int(re.search(r"VmPTE:\s+(\d+)", file.read())[1])
    return total << 10


class Hundred(test_vm_copies.Copies):
    test_snapshots_have_the_disks = test_live_clones = test_live_clones_that_cannot_be = None
    test_a_clones_guest_is_told = None

    def test_a_hundred(self):
        self.nacre("create", "web", "--engine", "jit", "--memory", MEMORY, "--disk-size", "64M")
        self.nacre("start", "web")
        watcher = self.console()
        self.read_until(watcher, PROMPT.encode())
        self.shell(watcher, "mke2fs /dev/vda >/dev/null 2>&1; mount /dev/vda /mnt; echo common >/mnt/word; NAME=kept")
        begin = time.monotonic()
        self.nacre("clone", "web", "one", "--live")
        self.assertEqual(self.on_console("echo $NAME", "one"), "kept")
        print(f"\n  one clone answered {1000 * (time.monotonic() - begin):.0f} ms after the command", flush=True)
        begin = time.monotonic()
        self.nacre("clone", "web", "copy", "--live", "--count", CLONES)
        print(f"  {CLONES} clones in {time.monotonic() - begin:.1f} s", flush=True)
        names = [f"copy-{i + 1}" for i in range(CLONES)]
        for name in names:
            self.assertEqual(self.on_console(f"echo $NAME; cat /mnt/word; echo {name} >/mnt/own", name).split(),
                             ["kept", "common"])
        for name in names:
            self.assertEqual(self.on_console("cat /mnt/own", name), name)
        seen = [self.of(name) for name in names]
        self.assertEqual(len({one["uuid"] for one in seen}), CLONES)
        self.assertEqual(len({net["mac"] for one in seen for net in one["networks"]}), CLONES)
        time.sleep(20)  # idle, for what that costs
        costs = sorted(private_bytes(one["pid"]) for one in seen)
        print(f"  memory of each, beside what they share: median {costs[CLONES // 2] / 2**20:.1f} MiB, "
              f"at most {costs[-1] / 2**20:.1f} MiB; the aim is 12", flush=True)
        self.assertLess(costs[CLONES // 2], MOST_BYTES)
        for name in names:
            self.nacre("kill", name)
        self.nacre("rm", *names)
        self.nacre("kill", "one", "web")
        self.check_images()


if __name__ == "__main__":
    main()
