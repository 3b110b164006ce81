"""The control socket and the commands that use it, on guests of a few instructions."""
import json
import os
import pathlib
import re
import signal
import socket
import stat
import subprocess
import time

import bare
from harness import Folder, NACRE, Nacre, main

COUNT = "count: inc %eax\n jmp count\n"


class Control(Folder):
    def setUp(self):
        super().setUp()
        self.kernel = bare.build(pathlib.Path(self.folder.name) / "count", COUNT)
        self.socket = pathlib.Path(self.folder.name) / "vm.sock"

    def call(self, *arguments, expected=0, home=None):
        environment = {**os.environ, "NACRE_HOME": str(home or self.folder.name)}
        done = subprocess.run([str(NACRE), *map(str, arguments)], capture_output=True, text=True, stdin=subprocess.DEVNULL,
                              timeout=120, check=False, env=environment)
        self.assertEqual(done.returncode, expected, f"{arguments}: {done.stdout}{done.stderr}")
        return done.stdout.strip() if expected == 0 else done.stderr.strip()

    def vm(self, path=None, engine="jit"):
        path = path or self.socket
        guest = Nacre("run", "--kernel", self.kernel, "--net", "none", "--serial", "none", "--engine", engine, "--timeout",
                      "120", "--control", path)
        guest.end_input()
        deadline = time.monotonic() + 60
        while not path.exists() and guest.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        return guest

    def test_engine_pause_resume_stop(self):
        with self.vm() as guest:
            self.assertEqual(stat.S_IMODE(self.socket.stat().st_mode), 0o600)
            self.assertEqual(self.call("engine", self.socket), "jit")
            said = self.call("engine", self.socket, "interp")
            self.assertTrue(re.fullmatch(r"jit -> interp, the guest stood still for \d+\.\d ms", said), said)
            self.assertEqual(self.call("engine", self.socket), "interp")
            self.assertEqual(self.call("pause", self.socket), f"{self.socket}: paused")
            self.assertEqual(json.loads(self.call("engine", self.socket, "jit", "--json")),
                             {"from": "interp", "engine": "jit", "pause_us": 0})
            first = json.loads(self.call("control", self.socket, "vm.info"))
            time.sleep(0.3)
            second = json.loads(self.call("control", self.socket, "vm.info"))
            self.assertEqual(first, second)  # its time stands still
            self.assertEqual((first["name"], first["state"], first["engine"]), ("vm", "paused", "jit"))
            self.assertEqual((first["cpus"], first["memory_bytes"], first["pid"]), (1, 512 << 20, guest.process.pid))
            self.assertEqual(json.loads(self.call("resume", self.socket, "--json")), {"state": "running"})
            registers = json.loads(self.call("control", self.socket, "cpu.registers"))["cpus"]
            self.assertRegex(registers[0], r"CPU 0: RIP [0-9a-f]{4}:[0-9a-f]{16}  RFLAGS")
            statistics = json.loads(self.call("control", self.socket, "engine.info"))
            self.assertEqual(statistics["sections"][0]["title"], "engine jit")
            self.assertGreater(json.loads(self.call("control", self.socket, "vm.info"))["uptime_ms"], first["uptime_ms"])
            self.assertEqual(self.call("control", self.socket, "vm.stop", "{}"), "{}")
            self.check_exit(guest, 0)
            self.assertFalse(self.socket.exists())
        self.assertIn("no control socket", self.call("engine", self.socket, expected=1))

    def test_refusals_say_what_is_wrong(self):
        with self.vm():
            self.assertIn("vm.fly", self.call("control", self.socket, "vm.fly", expected=1))
            said = self.call("control", self.socket, "engine.switch", '{"engine": "tcg"}', expected=1)
            self.assertIn('parameter "engine" is not one of jit, kvm, interp', said)
            if not os.access("/dev/kvm", os.R_OK | os.W_OK):
                self.assertIn("/dev/kvm", self.call("engine", self.socket, "kvm", expected=1))
                self.assertEqual(self.call("engine", self.socket), "jit")
            for arguments in (["engine"], ["engine", self.socket, "tcg"], ["engine", self.socket, "auto"],
                              ["engine", self.socket, "jit", "more"], ["pause"], ["resume", "--fast", self.socket],
                              ["control", self.socket], ["control", self.socket, "vm.info", "[1]"],
                              ["control", self.socket, "vm.info", "{"], ["screenshot", self.socket],
                              ["type", self.socket], ["type", self.socket, "-n"], ["type", self.socket, "größer"],
                              ["key", self.socket], ["key", self.socket, "any"], ["pause", self.socket, "--list"]):
                with self.subTest(arguments=arguments):
                    self.assertIn("--help", self.call(*arguments, expected=2))

    def test_no_screen_and_no_keyboard(self):
        picture = pathlib.Path(self.folder.name) / "picture.png"
        with self.vm():
            for arguments in (["screenshot", self.socket, picture], ["type", self.socket, "text"], ["key", self.socket, "f1"]):
                self.assertIn("--display", self.call(*arguments, expected=1))
        self.assertFalse(picture.exists())
        self.assertIn("\nenter return ret\n", self.call("key", "--list"))

    def test_a_vm_by_its_name(self):
        folder = pathlib.Path(self.folder.name) / "vms/web/run"
        folder.mkdir(parents=True)
        with self.vm(folder / "control"):
            self.assertEqual(self.call("engine", "web"), "jit")
            self.assertEqual(json.loads(self.call("control", "web", "vm.info"))["name"], "web")
        said = self.call("engine", "db", expected=1)
        self.assertIn(f"{self.folder.name}/vms/db/run/control", said)
        self.call("engine", "..", expected=1)

    def test_a_dead_socket_is_replaced_and_one_in_use_is_not(self):
        with self.vm() as killed:
            self.assertEqual(self.call("engine", self.socket), "jit")
            killed.process.send_signal(signal.SIGKILL)
            killed.process.wait()
        self.assertTrue(self.socket.exists())
        self.assertIn("no VM listens", self.call("engine", self.socket, expected=1))
        with self.vm() as guest:
            deadline = time.monotonic() + 60
            while subprocess.run([NACRE, "engine", self.socket], capture_output=True, check=False).returncode != 0:
                self.assertLess(time.monotonic(), deadline, guest.errors)
                time.sleep(0.05)
            for path, what in ((self.socket, "another process listens"), (self.kernel, "no socket"),
                               (f"{self.folder.name}/{'x' * 120}", "107 bytes"), (f"{self.folder.name}/none/s", "none/s")):
                status, errors = self.run_status("--kernel", self.kernel, "--control", path)
                self.assertEqual(status, 1)
                self.assertIn(what, errors)
            self.assertEqual(self.call("engine", self.socket), "jit")
            guest.process.send_signal(signal.SIGTERM)
            self.check_exit(guest, 128 + signal.SIGTERM)
        self.assertFalse(self.socket.exists())

    def test_clients_that_do_not_behave(self):
        with self.vm() as guest:
            clients = []
            for i in range(40):
                client = socket.socket(socket.AF_UNIX)
                client.connect(str(self.socket))
                client.setblocking(False)
                clients.append(client)
                try:
                    client.send([b"{" * 70000, b'{"jsonrpc":"2.0","method":"vm.info","id":1}\n' * 5000, b"\0\xff\n" * 9000,
                                 b""][i % 4])
                except (BlockingIOError, BrokenPipeError):
                    pass
                if i % 3 == 0:
                    client.close()
            for client in clients[1:]:
                client.close()
            deadline = time.monotonic() + 60
            while subprocess.run([NACRE, "pause", self.socket], capture_output=True, check=False).returncode != 0:
                self.assertLess(time.monotonic(), deadline, guest.errors)
                time.sleep(0.05)
            self.assertEqual(json.loads(self.call("control", self.socket, "vm.info"))["state"], "paused")

    def test_help(self):
        for command in ("engine", "pause", "resume", "screenshot", "type", "key", "control"):
            self.assertIn(f"Usage: nacre {command} VM", self.call(command, "--help"))
        self.assertIn('engine.switch {"engine": "jit|kvm|interp"}', self.call("control", "--help"))


if __name__ == "__main__":
    main()
