"""A Linux guest with 512 MB under a load that checks itself (tests/e2e/switchload/load.c: checksums, a 1000 Hz timer, clocks
in a tight loop, disk and network both ways) goes 200 times from engine to engine by the control socket. By hand between other
engines: NACRE_SWITCH_ENGINES=kvm,jit"""
import os
import pathlib
import random
import re
import socketserver
import statistics
import subprocess
import tempfile
import threading
import unittest

from control import ControlSocket
from harness import ROOT, GuestCase, NACRE, Nacre, PROMPT, boot_arguments, main

SOURCE = ROOT / "tests/e2e/switchload/load.c"
SWITCHES = 200
MEDIAN_LIMIT_MS = 5
ENGINES = os.environ.get("NACRE_SWITCH_ENGINES", "interp,jit").split(",")


class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(65536):
            self.request.sendall(data)


class LongSwitch(GuestCase):
    def load(self, cpus, engines=ENGINES, cpu_model="default"):
        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        here = pathlib.Path(folder.name)
        subprocess.run(["gcc", "-O2", "-static", "-pthread", "-Wall", "-Werror", "-o", here / "load", SOURCE], check=True)
        (here / "manifest").write_text("file load bin/load 755\n")
        subprocess.run([NACRE.parent / "nacre-cpio", here / "manifest", here / "load.img"], check=True)
        (here / "disk.img").write_bytes(bytes(32 << 20))
        with Nacre("run", "--engine", "jit", "--memory", "512M", "--cpus", cpus, "--cpu", cpu_model, "--disk", f"{here}/disk.img,format=raw",
                   "--control", here / "vm.sock", *boot_arguments("cloud-amd64"), "--initrd", here / "load.img") as guest:
            guest.expect(PROMPT, 120)
            guest.command_output("dmesg -c >/tmp/boot")
            guest.command_output(f"load /dev/vda 10.0.2.2 {server.server_address[1]} >/tmp/report 2>&1 &")
            chance = random.Random(1)
            with ControlSocket(here / "vm.sock") as control:
                # The interpreter's turn is long enough to get somewhere, the translator's longer.
                report, pauses = control.tour(engines, SWITCHES, lambda _: chance.uniform(0.02, 0.2))
            guest.command_output("kill %1; wait", 300)
            counted = dict(line.rsplit(" ", 1) for line in guest.command_output("cat /tmp/report").splitlines())
            log = guest.command_output("dmesg")
            guest.send("poweroff -f\n")
            self.check_exit(guest, 0)
        print(f"\n{cpus} CPUs\n{report}\n" + "\n".join(f"  {name:<16} {value:>14}" for name, value in counted.items()),
              flush=True)
        for name, value in counted.items():
            self.assertTrue(value.isdigit(), f"{name} {value}")
            if name.startswith("bad_"):
                self.assertEqual(int(value), 0, name)
            else:
                self.assertGreater(int(value), 0, name)
        self.assertEqual(len([name for name in counted if name.startswith("bad_")]), 6)
        self.assertIsNone(re.search(r"WARNING:|BUG:|Call Trace|soft lockup|clocksource:|I/O error", log),
                          log)
        if os.getloadavg()[0] > (os.cpu_count() or 1):
            print("the host is busy with other things: the pauses are printed and not judged", flush=True)
        else:
            self.assertLess(statistics.median(pauses), MEDIAN_LIMIT_MS)

    def test_one_cpu(self):
        self.load(1)

    def test_two_cpus(self):
        self.load(2)

    @unittest.skipUnless(os.access("/dev/kvm", os.R_OK | os.W_OK), "no /dev/kvm here")
    def test_all_engines(self):
        # A KVM that emulates runs programs only where they see the host's registers, hence the model.
        self.load(1, ["kvm", "jit", "interp", "jit"], "host")


if __name__ == "__main__":
    main()
