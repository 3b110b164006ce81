"""Snapshots of a running Linux guest: what it was doing goes on, on every engine; restored twice it is two guests. A
process that is killed while it saves leaves nothing half-made. A guest that checks itself goes on from snapshots."""
import json
import os
import pathlib
import random
import signal
import subprocess
import tempfile
import threading
import time

import bare
from control import FORK, ControlSocket, Refused
from harness import NACRE, GuestCase, Nacre, PROMPT, boot_arguments, main
from test_vm import Vms


class Snapshots(GuestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def boot(self, *arguments):
        return Nacre("run", "--control", self.folder / "vm.sock", *arguments, *boot_arguments("cloud-amd64"))

    def restore(self, name, *arguments):
        return Nacre("run", "--restore", self.folder / name, *arguments)

    def take(self, name):
        with ControlSocket(self.folder / "vm.sock") as control:
            report = control.call("vm.snapshot", path=str(self.folder / name))
        print(f"\n  {name}: the guest stood still for {report['pause_us'] / 1000:.1f} ms, {report['memory_bytes'] >> 10} KiB "
              f"in {report['total_us'] / 1000:.0f} ms", flush=True)
        return report

    def start_work(self, guest):
        guest.expect(PROMPT, 120)
        guest.command_output(
            "NAME=kept; dd if=/dev/urandom of=/tmp/data bs=64k count=4 2>/dev/null; sha256sum /tmp/data >/tmp/data.sum; "
            "exec 7</tmp/data; dd bs=64k count=1 <&7 2>/dev/null | sha256sum; "
            "(i=0; while :; do i=$((i + 1)); echo $i; usleep 20000; done >/tmp/count) & "
            "(while :; do read up idle </proc/uptime; echo $up; usleep 20000; done >/tmp/clock) & sleep 0.2")

    def check_work(self, guest):
        """The shell, its open file, memory, the timer and the counter; the answer of a restored guest's console."""
        begin = time.monotonic()
        guest.send("echo it was $NAME\n")
        guest.expect("it was kept", 60)
        print(f"  the console answered {1000 * (time.monotonic() - begin):.0f} ms after the command", flush=True)
        guest.expect(PROMPT)
        self.assertEqual(guest.command_output("sha256sum -c /tmp/data.sum", 300), "/tmp/data: OK")
        # The shell's open file stands where it was read to.
        self.assertEqual(guest.command_output("dd bs=64k count=1 <&7 2>/dev/null | sha256sum", 300),
                         guest.command_output("dd if=/tmp/data bs=64k skip=1 count=1 2>/dev/null | sha256sum", 300))
        # The counter misses nothing, the clock never goes back.
        guest.command_output("n=$(wc -l </tmp/count); until [ $(wc -l </tmp/count) -gt $((n + 20)) ]; do usleep 50000; done", 300)
        self.assertEqual(guest.command_output("sed '$d' /tmp/count | awk '$1 != NR {bad++} END {print bad + 0}'"), "0")
        self.assertEqual(guest.command_output("sed '$d' /tmp/clock | awk '$1 < last {back++} {last = $1} "
                                              "END {print back + 0}'"), "0")
        log = guest.command_output("dmesg")
        for word in ("WARNING:", "BUG:", "Call Trace", "soft lockup", "timekeeping watchdog"):
            self.assertNotIn(word, log)

    def end(self, guest):
        guest.send("poweroff -f\n")
        self.check_exit(guest, 0)

    def linux(self, engines, *arguments):
        with self.boot("--engine", engines[0], *arguments) as guest:
            self.start_work(guest)
            self.assertEqual(self.take("first")["parent"], "")
            later = self.take("second")
            self.assertEqual(later["parent"], "first")
            whole = os.stat(self.folder / "first/memory.bin").st_blocks * 512
            self.assertLess(later["memory_bytes"], whole / 2)
            # Neither is hurt by what comes after.
            guest.command_output("rm /tmp/data; NAME=lost")
            self.end(guest)
        for engine in engines[1:]:
            with self.restore("second", "--engine", engine) as guest:
                self.check_work(guest)
                self.end(guest)
        # Two guests of one snapshot at a time, and a reset afterwards boots the kernel again.
        with self.restore("first", "--engine", engines[0]) as one, self.restore("first", "--engine", engines[0]) as two:
            for guest in (one, two):
                self.check_work(guest)
            two.send("reboot -f\n")
            two.expect("Restarting system", 120)
            two.expect(PROMPT, 300)
            two.wide = False
            self.assertEqual(two.command_output("echo _$NAME"), "_")
            for guest in (one, two):
                self.end(guest)

    def test_one_cpu(self):
        engines = ["jit", "interp", "jit"]
        if os.access("/dev/kvm", os.R_OK | os.W_OK):
            engines.append("kvm")
        else:
            print("no /dev/kvm here: without kvm")
        self.linux(engines)

    def test_two_cpus(self):
        self.linux(["jit", "jit"], "--cpus", 2)

    def test_screens_and_other_devices(self):
        """A snapshot has every device that there is; they work afterwards."""
        log = self.folder / "hvc0"
        with self.boot("--engine", "jit", "--display", "offscreen", "--console", f"file:{log}", "--net",
                       "user,model=e1000", "--net", "user") as guest:
            self.start_work(guest)
            guest.command_output("echo before >/dev/hvc0")
            self.take("devices")
            self.end(guest)
        with self.restore("devices", "--engine", "jit", "--control", self.folder / "vm.sock") as guest:
            self.check_work(guest)
            guest.command_output("echo after >/dev/hvc0")
            with ControlSocket(self.folder / "vm.sock") as control:
                picture = self.folder / "screen.png"
                self.assertGreater(control.call("display.screenshot", path=str(picture))["width"], 0)
            self.assertIn("10.0.2.15", guest.command_output("ip addr show"))
            self.end(guest)
        self.assertEqual(log.read_text().split(), ["before", "after"])

    def test_another_generation(self):
        """A restored guest knows that it is a copy, and seeds its random numbers anew."""
        with Nacre("run", "--control", self.folder / "vm.sock", "--engine", "jit", *boot_arguments("amd64")) as guest:
            guest.expect(PROMPT, 300)
            self.assertEqual(guest.command_output(f"dmesg | grep -c '{FORK}'"), "0")
            self.take("s")
            self.end(guest)
        with self.restore("s", "--engine", "jit") as guest:
            guest.send(f"until dmesg | grep -q '{FORK}'; do usleep 50000; done\n")
            guest.expect(PROMPT, 300)
            self.end(guest)

    def test_killed_while_saving(self):
        """The parent, at any moment: what has a name is whole, and the process that writes ends too."""
        chance = random.Random(1)
        for attempt in range(6):
            with self.boot("--engine", "jit") as guest:
                guest.expect(PROMPT, 120)
                path = self.folder / f"killed{attempt}"
                asked = threading.Event()

                def ask():
                    try:
                        with ControlSocket(self.folder / "vm.sock") as control:
                            asked.set()
                            control.call("vm.snapshot", path=str(path))
                    except (OSError, ValueError, Refused):
                        pass

                thread = threading.Thread(target=ask)
                thread.start()
                asked.wait(60)
                time.sleep(chance.uniform(0, 0.3))
                os.kill(guest.process.pid, signal.SIGKILL)
                thread.join(60)
            if path.exists():
                with self.restore(path.name, "--engine", "jit") as guest:
                    guest.send("echo it $((1 + 1))s\n")
                    guest.expect("it 2s", 60)
                    self.end(guest)
        for name in os.listdir(self.folder):
            self.assertTrue(name.startswith(("killed", ".new-")) or name == "vm.sock", name)

    def test_wrong_uses(self):
        run = lambda *words: subprocess.run([str(NACRE), "run", *map(str, words)], capture_output=True, text=True, timeout=60)
        missing = run("--restore", self.folder / "none")
        self.assertEqual(missing.returncode, 1)
        self.assertIn("none/state.bin: No such file or directory", missing.stderr)
        (self.folder / "text").mkdir()
        (self.folder / "text/state.bin").write_text("no state at all, but long enough to be one")
        self.assertIn("not a saved state of Nacre", run("--restore", self.folder / "text").stderr)
        with self.boot("--engine", "jit", "--cpu", "x86-64-v1") as guest:
            guest.expect(PROMPT, 120)
            self.take("good")
            self.assertIn("there is such a snapshot already", self.refused("good"))
            self.end(guest)
        decided = run("--restore", self.folder / "good", "--memory", "1G")
        self.assertEqual(decided.returncode, 2)
        self.assertIn("--memory: with --restore the snapshot decides that", decided.stderr)

    def refused(self, name):
        with ControlSocket(self.folder / "vm.sock") as control, self.assertRaises(Refused) as refused:
            control.call("vm.snapshot", path=str(self.folder / name))
        return str(refused.exception)


class Named(Vms):
    """`nacre snapshot` and `nacre restore` of VMs that are directories."""

    def setUp(self):
        super().setUp()
        self.kernel = bare.build(pathlib.Path(self.folder.name) / "letters", bare.LETTERS)

    def letter(self, expected):
        watcher = self.console()
        watcher.sendall(b"x")
        self.read_until(watcher, expected)

    def test_from_snapshot_to_rm(self):
        self.vm()
        self.assertIn("web does not run", self.nacre("snapshot", "web", "early", expected=1))
        self.assertEqual(self.nacre("snapshot", "ls", "web"), "")
        self.nacre("start", "web")
        self.letter(b"a")
        self.letter(b"b")
        self.assertRegex(self.nacre("snapshot", "web", "two"), r"^two: the guest stood still for [\d.]+ ms; [\d.]+ MiB stored\n$")
        self.letter(b"c")
        self.assertIn("the rest is in two", self.nacre("snapshot", "web", "three"))
        self.letter(b"d")
        self.assertIn("there is such a snapshot already", self.nacre("snapshot", "web", "two", expected=1))
        self.assertIn("web runs", self.nacre("restore", "web", "two", expected=1))
        self.nacre("restore", "web", "two", "--force")
        self.letter(b"c")
        self.nacre("kill", "web")
        listed = json.loads(self.nacre("snapshot", "ls", "web", "--json"))
        self.assertEqual([(one["name"], one["parent"], one["problem"]) for one in listed],
                         [("two", "", ""), ("three", "two", "")])
        # What stands on a removed one stays whole.
        self.nacre("snapshot", "rm", "web", "two")
        self.assertEqual(self.nacre("snapshot", "verify", "web", "three"), "three: whole\n")
        self.nacre("restore", "web", "three")
        self.letter(b"d")
        self.nacre("kill", "web")
        self.nacre("snapshot", "rm", "web", "three")
        self.assertEqual(self.nacre("snapshot", "web"), "")
        self.assertIn("no snapshot 'three'", self.nacre("restore", "web", "three", expected=1))
        self.assertIn("no snapshot 'three'", self.nacre("snapshot", "rm", "web", "three", expected=1))

    def test_a_damaged_one_is_refused(self):
        self.vm()
        self.nacre("start", "web")
        self.letter(b"a")
        self.nacre("snapshot", "web", "bad")
        self.nacre("kill", "web")
        state = self.home / "vms/web/snapshots/bad/state.bin"
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
        self.assertRegex(self.nacre("restore", "web", "bad", expected=1), r"bad/state.bin: .*section .*'.*' is damaged")
        self.assertIn("cannot be restored", self.nacre("snapshot", "ls", "web"))
        self.assertIn("stopped", self.nacre("ls"))


class Bare(GuestCase):
    """tests/guest_programs/switch64.c goes on from a snapshot of the one before, many times, then ends by itself."""
    PROGRAM = NACRE.parent / "guest_programs/switch64.elf"
    PASSED = 33

    def tour(self, engines, rounds, *arguments, words="until-power"):
        if not self.PROGRAM.exists():
            raise AssertionError(f"{self.PROGRAM} is missing: build the target guest_programs")
        chance = random.Random(2)
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            sock = folder / "vm.sock"
            start = ["--kernel", self.PROGRAM, "--append", words, "--debug-exit", "--net", "none", "--memory", "64M",
                     *arguments]
            for i in range(rounds):
                with Nacre("run", *start, "--engine", engines[i % len(engines)], "--control", sock) as guest:
                    guest.end_input()
                    if i == 0:
                        guest.expect("a load", 60)
                    with ControlSocket(sock) as control:
                        time.sleep(chance.uniform(0.01, 0.2))
                        control.call("vm.snapshot", path=str(folder / str(i)))
                        control.call("vm.stop")
                    self.check_exit(guest, 0)
                start = ["--restore", folder / str(i)]
            with Nacre("run", *start, "--engine", engines[0], "--control", sock) as guest:
                guest.end_input()
                with ControlSocket(sock) as control:
                    control.call("vm.power")
                self.check_exit(guest, self.PASSED, 300)
                print(f"\n{guest.text()}", flush=True)

    def test_translator_and_interpreter(self):
        self.tour(("jit", "interp"), 12)

    def test_all_engines(self):
        if not os.access("/dev/kvm", os.R_OK | os.W_OK):
            self.skipTest("no /dev/kvm here")
        # What an emulating KVM has, which cannot move the time stamp counter (docs/kvm.md).
        self.tour(("jit", "kvm", "interp", "kvm"), 12, "--cpu", "x86-64-v1", words="until-power counter-jumps")


if __name__ == "__main__":
    main()
