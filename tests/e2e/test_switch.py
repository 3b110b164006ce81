"""A running guest goes from engine to engine: right results, timers that fire, a clock that never runs backwards, disk and
network traffic meanwhile. Linux guests by --switch-engine and by `nacre engine`, a bare-metal guest that checks itself
(tests/guest_programs/switch64.c) by the control socket, there with kvm too."""
import hashlib
import http.server
import os
import pathlib
import random
import re
import subprocess
import tempfile
import threading

from control import ControlSocket
from harness import NACRE, GuestCase, Nacre, PROMPT, boot_arguments, main

ROUNDS = 40
PAGE = b"nacre\n" * 20000


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *_):
        pass


class Switch(GuestCase):
    def tour(self, cpus, engines, times):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        with tempfile.NamedTemporaryFile(suffix=".img") as disk:
            pathlib.Path(disk.name).write_bytes(bytes(64 << 20))
            with Nacre("run", "--engine", "jit", "--cpus", cpus, "--disk", f"{disk.name},format=raw",
                       "--switch-engine", f"{engines},every=25ms,times={times}", *boot_arguments("cloud-amd64")) as guest:
                guest.expect(PROMPT, 120)
                data = hashlib.sha256(bytes(256 << 10)).hexdigest()
                # Each line runs beside the others; a clock that went backwards, a late timer or a wrong sum is named.
                guest.command_output(
                    f"(for i in $(seq {ROUNDS}); do dd if=/dev/zero bs=256k count=1 2>/dev/null | sha256sum; done "
                    "| sort | uniq -c >/tmp/sums) & "
                    "(last=0; for i in $(seq 500); do read up idle </proc/uptime; echo $up; usleep 2000; done "
                    "| awk '$1 < last {back++} {last = $1} END {print NR, back + 0}' >/tmp/clock) & "
                    f"(for i in $(seq {ROUNDS}); do dd if=/dev/urandom of=/dev/vda bs=64k count=1 seek=$i 2>/dev/null; "
                    "dd if=/dev/vda bs=64k count=1 skip=$i 2>/dev/null | wc -c; done | sort | uniq -c >/tmp/disk) & "
                    f"(for i in $(seq 10); do wget -q -O - http://10.0.2.2:{server.server_port}/ | sha256sum; done "
                    "| sort | uniq -c >/tmp/net) & wait", 300)
                self.assertEqual(guest.command_output("cat /tmp/sums").split(), [str(ROUNDS), data, "-"])
                self.assertEqual(guest.command_output("cat /tmp/clock"), "500 0")
                self.assertEqual(guest.command_output("cat /tmp/disk").split(), [str(ROUNDS), "65536"])
                self.assertEqual(guest.command_output("cat /tmp/net").split(),
                                 ["10", hashlib.sha256(PAGE).hexdigest(), "-"])
                log = guest.command_output("dmesg")
                for word in ("WARNING:", "BUG:", "Call Trace", "soft lockup", "timekeeping watchdog", "I/O error"):
                    self.assertNotIn(word, log)
                guest.send("poweroff -f\n")
                self.check_exit(guest, 0)
                report = guest.errors
        switches = re.search(r"^  switches +(\d+)$", report, re.M)
        self.assertTrue(switches, report)
        self.assertGreater(int(switches[1]), times // 4)
        self.assertNotIn("failed:", report)
        print(" ".join(re.findall(r"(?:switches|pause).*\S", report)))

    def test_translator_to_translator(self):
        self.tour(1, "jit", 200)

    def test_translator_and_interpreter(self):
        self.tour(1, "interp,jit", 200)

    def test_two_cpus(self):
        self.tour(2, "interp,jit", 200)

    def test_nacre_engine(self):
        """By the command, for a guest that reads its disk and its clock."""
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "vm.sock"
            with Nacre("run", "--engine", "jit", "--control", path, *boot_arguments("cloud-amd64")) as guest:
                guest.expect(PROMPT, 120)
                guest.command_output("(while :; do head -c 65536 /bin/busybox | sha256sum; done >/tmp/sums) & "
                                     "(while :; do cat /proc/uptime; usleep 1000; done >/tmp/clock) &")
                for i in range(20):
                    engine = ("interp", "jit")[i % 2]
                    done = subprocess.run([str(NACRE), "engine", str(path), engine], capture_output=True, text=True,
                                          timeout=120, check=True)
                    self.assertRegex(done.stdout, rf"^(jit|interp) -> {engine}, the guest stood still for [\d.]+ ms\n$")
                guest.command_output("until [ $(wc -l </tmp/sums) -gt 9 ]; do usleep 100000; done; kill $(jobs -p); wait")
                # The last line may be half a line.
                self.assertEqual(guest.command_output("sed '$d' /tmp/sums | sort -u | wc -l"), "1")
                self.assertEqual(guest.command_output("sed '$d' /tmp/clock | awk '$1 < last {back++} {last = $1} "
                                                      "END {print back + 0}'"), "0")
                guest.send("poweroff -f\n")
                self.check_exit(guest, 0)


class Bare(GuestCase):
    """A guest that checks itself, until the power button is pressed."""
    PROGRAM = NACRE.parent / "guest_programs/switch64.elf"
    PASSED = 33

    def tour(self, *engines, cpu="default", words="until-power"):
        if not self.PROGRAM.exists():
            raise AssertionError(f"{self.PROGRAM} is missing: build the target guest_programs")
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "vm.sock"
            with Nacre("run", "--kernel", self.PROGRAM, "--append", words, "--debug-exit", "--net", "none", "--engine",
                       "jit", "--memory", "512M", "--cpu", cpu, "--control", path) as guest:
                guest.end_input()
                guest.expect("a load", 60)
                chance = random.Random(1)
                with ControlSocket(path) as control:
                    report, _ = control.tour(engines, 200, lambda _: chance.uniform(0, 0.02))
                    # Half a tour more, each switch while the VM stands still.
                    for engine in engines:
                        control.call("vm.pause")
                        self.assertEqual(control.call("engine.switch", engine=engine)["pause_us"], 0)
                        self.assertEqual(control.call("vm.info")["state"], "paused")
                        control.call("vm.resume")
                    control.call("vm.power")
                self.check_exit(guest, self.PASSED, 300)
                print(f"\n{report}\n{guest.text()}", flush=True)

    def test_translator_and_interpreter(self):
        self.tour("interp", "jit")

    def test_all_engines(self):
        if not os.access("/dev/kvm", os.R_OK | os.W_OK):
            self.skipTest("no /dev/kvm here")
        # What an emulating KVM has, which cannot move the time stamp counter (docs/kvm.md).
        self.tour("kvm", "interp", "jit", "kvm", "jit", "interp", "jit", cpu="x86-64-v1",
                  words="until-power counter-jumps")


if __name__ == "__main__":
    main()
