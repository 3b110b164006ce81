"""Suspend to RAM (ACPI S3) in a Linux guest: it comes back with its memory, its disk and its CPUs, woken by the clock's
alarm, the power button or the keyboard; asleep it can be paused and given another engine."""
import os
import pathlib
import tempfile
import time

from control import ControlSocket
from harness import ENGINE, PROMPT, GuestCase, Nacre, boot_arguments, main

DISK_BYTES = 8 << 20
WAIT_SECONDS = 120
FILL = ("head -c 4000000 /dev/urandom >/tmp/file; cat /tmp/file >/dev/vda; sync; "
        "md5sum </tmp/file >/tmp/sum; head -c 4000000 /dev/vda | md5sum -c /tmp/sum")
CHECK = "echo 3 >/proc/sys/vm/drop_caches; md5sum -c /tmp/sum </tmp/file; head -c 4000000 /dev/vda | md5sum -c /tmp/sum"


class Sleep(GuestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.disk = self.folder / "disk.img"
        self.disk.touch()
        os.truncate(self.disk, DISK_BYTES)
        self.socket = self.folder / "socket"

    def start(self, cpus, *options):
        return Nacre("run", "--engine", ENGINE, "--memory", "256M", "--cpus", cpus, "--disk", self.disk,
                     "--control", self.socket, *boot_arguments("cloud-amd64"), *options)

    def prepare(self, guest):
        guest.expect(PROMPT)
        self.assertIn("[deep]", guest.command_output("cat /sys/power/mem_sleep"))
        self.assertIn("-: OK", guest.command_output(FILL))

    def wait_for(self, vm, state):
        deadline = time.monotonic() + WAIT_SECONDS
        while vm.call("vm.info")["state"] != state:
            self.assertLess(time.monotonic(), deadline, f"never {state}")
            time.sleep(0.05)

    def fall_asleep(self, guest, vm):
        guest.send("echo mem >/sys/power/state; echo back \\n again\n")
        self.wait_for(vm, "asleep")

    def check(self, guest, cpus):
        """Awake."""
        guest.expect("back n again", WAIT_SECONDS)
        guest.expect(PROMPT)
        self.assertEqual(guest.command_output(CHECK).split("\n"), ["-: OK", "-: OK"])
        self.assertEqual(guest.command_output("nproc"), str(cpus))
        self.assertIn("1 packets received", guest.command_output("ping -c 1 10.0.2.2 | grep received"))

    def end(self, guest):
        guest.send("poweroff -f\n")
        self.check_exit(guest, 0)

    def sleep_until_the_alarm(self, guest, vm):
        """An alarm that comes before the machine sleeps does not wake it: then a later one is tried."""
        for seconds in (2, 4, 8, 16, 32):
            alarm = "/sys/class/rtc/rtc0/wakealarm"
            guest.command_output(f"echo 0 >{alarm}; echo +{seconds} >{alarm}")
            guest.send("echo mem >/sys/power/state; echo back \\n again\n")
            if guest.seen("back n again", seconds + 20):
                return
            vm.call("vm.power")
            guest.expect("back n again", WAIT_SECONDS)
            guest.expect(PROMPT)
        self.fail("no alarm woke it")

    def test_the_clock_wakes_it(self):
        for cpus in (1, 2):
            with self.subTest(cpus=cpus), self.start(cpus) as guest, ControlSocket(self.socket) as vm:
                self.prepare(guest)
                self.sleep_until_the_alarm(guest, vm)
                self.check(guest, cpus)
                self.assertGreaterEqual(int(guest.command_output("cat /sys/power/suspend_stats/success")), 1)
                self.end(guest)

    def test_button_and_keyboard_wake_it_also_after_other_things(self):
        with self.start(2, "--display", "offscreen") as guest, ControlSocket(self.socket) as vm:
            self.prepare(guest)
            self.fall_asleep(guest, vm)
            vm.call("vm.power")
            self.check(guest, 2)
            self.fall_asleep(guest, vm)
            vm.call("keyboard.press", keys="shift")
            self.check(guest, 2)
            self.fall_asleep(guest, vm)
            vm.call("vm.pause")
            vm.call("vm.resume")
            vm.call("engine.switch", engine="interp")
            vm.call("engine.switch", engine=ENGINE)
            self.assertEqual(vm.call("vm.info")["state"], "asleep")
            vm.call("vm.pause")
            vm.call("vm.power")
            self.assertEqual(vm.call("vm.info")["state"], "paused")
            vm.call("vm.resume")
            self.check(guest, 2)
            self.assertEqual(guest.command_output("cat /sys/power/suspend_stats/success"), "3")
            self.end(guest)


if __name__ == "__main__":
    main()
