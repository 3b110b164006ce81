"""stress-ng with --verify on a Debian guest with two CPUs: no stressor fails, the kernel complains about nothing.
NACRE_STRESS_MINUTES: another time than 30; NACRE_STRESS_OPTIONS: more options for nacre, such as --jit-stress cache."""
import os

from harness import ENGINE, GuestCase, Nacre, boot_arguments, guest_file, main

MINUTES = float(os.environ.get("NACRE_STRESS_MINUTES", "30"))
OPTIONS = os.environ.get("NACRE_STRESS_OPTIONS", "").split()
STRESSORS = ("cpu", "vm", "fork", "signal", "sigsegv", "sigfpe", "sigq", "futex", "mutex", "sem", "mmap", "cache", "switch")
LIMITS = ("--vm-bytes", "96M", "--mmap-bytes", "64M", "--verify", "--metrics-brief", "--timestamp")
COMPLAINTS = ("BUG:", "WARNING:", "Call Trace", "rcu_sched", "rcu_preempt", "soft lockup", "general protection",
              "segfault", "Oops", "invalid opcode")
PROMPT = "~# "


class Stress(GuestCase):
    def command(self, guest, line, seconds):
        """Runs a line with a mark after it; the mark is written so that the echo of the line does not hold it."""
        guest.send(f"{line}; echo end\\\"\\\"mark\n")
        return guest.expect('end""mark', seconds).rsplit("end", 1)[0].replace("\r", "")

    def test_stress_ng(self):
        disk = f"{guest_file('debian12-bench', 'disk.img')},snapshot"
        with Nacre("run", "--engine", ENGINE, "--cpus", 2, "--memory", "1G", "--disk", disk, *OPTIONS,
                   *boot_arguments("debian12-bench", "nacre.autologin")) as guest:
            guest.expect(PROMPT, 900)
            self.command(guest, "bind 'set enable-bracketed-paste off'; stty -echo", 300)
            stressors = " ".join(f"--{name} 1" for name in STRESSORS)
            output = self.command(guest, f"cd /tmp; stress-ng {stressors} {' '.join(LIMITS)} --timeout {MINUTES * 60:.0f}s "
                                  "2>&1; echo status $?", MINUTES * 60 + 900)
            print(output)
            self.assertIn("status 0", output)
            self.assertNotIn("fail:", output)
            log = self.command(guest, "dmesg", 300)
            # The stressors of faults are logged by the kernel as any program's.
            lines = [line for line in log.splitlines() if any(word in line for word in COMPLAINTS)]
            lines = [line for line in lines if "stress-ng" not in line]
            self.assertEqual(lines, [])
            guest.send("poweroff\n")
            self.check_exit(guest, 0, 600)


if __name__ == "__main__":
    main()
