"""Several CPUs in a Linux guest: all of them come up, KVM's paravirtual interface is in use, parallel work has right
results, a CPU can be taken away and given back."""
import hashlib

from harness import ENGINE, GuestCase, Nacre, PROMPT, boot_arguments, main

COMPLAINTS = ("WARNING:", "BUG:", "Call Trace", "rcu_sched", "not responding", "clocksource: timekeeping watchdog",
              "soft lockup")


class Smp(GuestCase):
    def boot(self, cpus, append="", *arguments):
        return Nacre("run", "--engine", ENGINE, "--cpus", cpus, *arguments, *boot_arguments("cloud-amd64", append))

    def check_cpus(self, guest, cpus, seconds):
        guest.expect(PROMPT, seconds)
        self.assertEqual(guest.command_output("grep -c ^processor /proc/cpuinfo", seconds), str(cpus))
        self.assertEqual(guest.command_output("cat /sys/devices/system/cpu/online"), f"0-{cpus - 1}")

    def check_log(self, guest, wanted=()):
        log = guest.command_output("dmesg")
        for word in COMPLAINTS:
            self.assertFalse([line for line in log.splitlines() if word in line], word)
        for word in wanted:
            self.assertTrue(word in log, word)

    def power_off(self, guest):
        guest.send("poweroff -f\n")
        self.check_exit(guest, 0)

    def check_parallel(self, guest, cpus, rounds):
        """Each CPU hashes and compresses the same data; processes, pipes and pages come and go meanwhile."""
        guest.command_output("seq 1 20000 >/tmp/data")
        wanted = hashlib.sha256("".join(f"{n}\n" for n in range(1, 20001)).encode()).hexdigest()
        work = "cat /tmp/data | gzip | gunzip | sha256sum"
        output = guest.command_output(
            f"for c in $(seq {cpus}); do (for r in $(seq {rounds}); do {work}; done >/tmp/out.$c) & done; wait; "
            "cat /tmp/out.* | sort | uniq -c", 300)
        lines = [line.split() for line in output.splitlines() if wanted in line or " -" in line]
        self.assertEqual(lines, [[str(cpus * rounds), wanted, "-"]], output)

    def test_two(self):
        with self.boot(2) as guest:
            self.check_cpus(guest, 2, 120)
            self.check_parallel(guest, 2, 10)
            self.check_log(guest)
            self.power_off(guest)

    def test_four_with_paravirtual_interface(self):
        with self.boot(4) as guest:
            self.check_cpus(guest, 4, 120)
            self.check_parallel(guest, 4, 5)
            self.check_log(guest, ("Hypervisor detected: KVM", "kvm-guest: setup PV IPIs",
                                   "kvm-guest: KVM setup pv remote TLB flush", "kvm-guest: PV spinlocks enabled",
                                   "kvm-clock: Using msrs"))
            # Stolen time is told: the line of a CPU in /proc/stat has it, and it does not go back.
            steal = [int(guest.command_output("awk '/^cpu /{print $9}' /proc/stat")) for _ in range(2)]
            self.assertLessEqual(steal[0], steal[1])
            self.power_off(guest)

    def test_cpu_goes_and_comes(self):
        with self.boot(3) as guest:
            self.check_cpus(guest, 3, 120)
            for _ in range(3):
                for cpu in (1, 2):
                    switch = f"/sys/devices/system/cpu/cpu{cpu}/online"
                    self.assertEqual(guest.command_output(f"echo 0 >{switch}; cat {switch}"), "0")
                    self.assertEqual(guest.command_output(f"echo 1 >{switch}; cat {switch}"), "1")
            self.check_parallel(guest, 3, 2)
            self.check_log(guest)
            self.power_off(guest)

    def test_thirty_two(self):
        with self.boot(32) as guest:
            self.check_cpus(guest, 32, 300)
            self.check_parallel(guest, 32, 1)
            self.check_log(guest)
            self.power_off(guest)


if __name__ == "__main__":
    main()
