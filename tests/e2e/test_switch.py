"""A running guest goes from engine to engine (--switch-engine): right results, timers that fire, a clock that never runs
backwards, disk and network traffic meanwhile."""
import hashlib
import http.server
import pathlib
import re
import tempfile
import threading

from harness import GuestCase, Nacre, PROMPT, boot_arguments, main

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


if __name__ == "__main__":
    main()
