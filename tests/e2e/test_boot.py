"""Debian's three kernels to a shell on the translator, fed by a pipe from the first moment."""
import time

from harness import ENGINE, GuestCase, Nacre, PROMPT, boot_arguments, main


class Boot(GuestCase):
    SECONDS = 120

    def check(self, kind, machine):
        text = self.run_lines(["uname -a", "poweroff -f"], "--engine", ENGINE, *boot_arguments(kind),
                              seconds=self.SECONDS)
        self.assertIn("Linux nacre 6.1.0", text)
        self.assertRegex(text, rf"Debian 6\.1\.\S+ \([0-9-]+\) {machine} GNU/Linux")
        self.assertNotIn("Kernel panic", text)
        self.assertNotIn("init: ", text)  # what the guest's init complains with

    def test_cloud_amd64(self):
        self.check("cloud-amd64", "x86_64")

    def test_amd64(self):
        self.check("amd64", "x86_64")

    def test_i386(self):
        self.check("i386", "i686")

    def test_default_guest(self):
        text = self.run_lines(["uname -m", "poweroff -f"])
        self.assertIn("Leave with Ctrl-]", text)
        self.assertRegex(text, r"uname -m\s+x86_64")

    def test_command_by_kernel_parameter(self):
        append = 'nacre.exec="cat /proc/cmdline; exit 5"'
        with Nacre("run", "--engine", ENGINE, *boot_arguments("cloud-amd64", append)) as guest:
            guest.expect("nacre.exec: status 5")
            self.check_exit(guest, 0)

    def test_kernel_log_has_no_complaint(self):
        with Nacre("run", "--engine", ENGINE, *boot_arguments("cloud-amd64")) as guest:
            guest.expect(PROMPT)
            log = guest.command_output("dmesg")
            for word in ("WARNING:", "BUG:", "Call Trace", "unchecked MSR access", "not responding",
                         "clocksource: timekeeping watchdog"):
                self.assertFalse([line for line in log.splitlines() if word in line], word)
            self.assertTrue("Hypervisor detected: KVM" in log, log[:2000])
            # Linux prefers an invariant TSC to kvm-clock; anything else is slow, or wrong.
            clock = guest.command_output("cat /sys/devices/system/clocksource/clocksource0/current_clocksource")
            self.assertIn(clock, ("kvm-clock", "tsc"))
            guest.send("poweroff -f\n")
            self.check_exit(guest, 0)

    def test_clock_and_sleep(self):
        with Nacre("run", "--engine", ENGINE, *boot_arguments("cloud-amd64")) as guest:
            guest.expect(PROMPT)
            clocks = "/sys/devices/system/clocksource/clocksource0"
            first = guest.command_output(f"cat {clocks}/current_clocksource").strip()
            for clock in (first, "hpet", "acpi_pm"):
                self.assertEqual(guest.command_output(f"echo {clock} >{clocks}/current_clocksource; "
                                                      f"cat {clocks}/current_clocksource").strip(), clock)
                times = [float(word) for word in
                         guest.command_output("cut -d' ' -f1 /proc/uptime; sleep 1; cut -d' ' -f1 /proc/uptime").split()]
                # A timer never fires early; how late is no matter of correctness, within reason.
                self.assertGreaterEqual(times[1] - times[0], 0.99, clock)
                self.assertLess(times[1] - times[0], 10, clock)
            self.assertLess(abs(int(guest.command_output("date +%s")) - time.time()), 60)
            guest.send("poweroff -f\n")
            self.check_exit(guest, 0)


if __name__ == "__main__":
    main()
