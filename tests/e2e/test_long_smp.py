"""A hundred boots with four CPUs, one after the other, each with work for all of them: none hangs. NACRE_BOOTS: another
number of boots."""
import os
import time

from harness import ENGINE, GuestCase, boot_arguments, main

BOOTS = int(os.environ.get("NACRE_BOOTS", "100"))
CPUS = 4
LINES = ["for c in 1 2 3 4; do (seq 1 5000 | gzip | gunzip | md5sum >/tmp/sum.$c) & done; wait; sort -u /tmp/sum.*",
         "grep -c ^processor /proc/cpuinfo | sed 's/^/cpus: /'", "dmesg | grep -E 'BUG:|WARNING:|rcu_sched|lockup'",
         "poweroff -f"]
SUM = "a5a208cd26b07cadade3450fe14d1d93"


class Boots(GuestCase):
    def test_boots_in_a_row(self):
        times = []
        for number in range(1, BOOTS + 1):
            start = time.monotonic()
            with self.subTest(boot=number):
                text = self.run_lines(LINES, "--engine", ENGINE, "--cpus", CPUS, *boot_arguments("cloud-amd64"), seconds=300)
                self.assertIn(f"cpus: {CPUS}", text)
                self.assertEqual(text.count(SUM), 1, text[-3000:])
                for word in ("BUG: ", "WARNING: ", "rcu_sched self", "soft lockup -"):
                    self.assertNotIn(word, text)
            times.append(time.monotonic() - start)
        times.sort()
        print(f"{BOOTS} boots: {times[0]:.1f} to {times[-1]:.1f} s, median {times[len(times) // 2]:.1f} s")


if __name__ == "__main__":
    main()
