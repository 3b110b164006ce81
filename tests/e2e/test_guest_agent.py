"""`nacre exec`, `nacre cp` and the agent's methods of the control socket, with Debian's qemu-guest-agent in the guest."""
import json
import os
import pathlib
import signal
import stat
import subprocess
import tempfile
import time
import unittest

from guest_agent import AgentGuest, nacre
from harness import NACRE, main


class Agent(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.scratch = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.scratch.cleanup)
        cls.folder = pathlib.Path(cls.scratch.name)
        cls.socket = cls.folder / "vm.sock"
        cls.guest = AgentGuest(cls.socket, "--memory", "512M")
        cls.addClassCleanup(cls.guest.__exit__)

    def run_in_guest(self, *words, **options):
        return nacre("exec", self.socket, "--", *words, **options)

    def out(self, *words, **options):
        return self.run_in_guest(*words, **options).stdout

    def call(self, command, arguments=None):
        params = json.dumps({"command": command, "arguments": arguments or {}})
        return json.loads(nacre("control", self.socket, "agent.call", params).stdout)["value"]

    # -- exec

    def test_output_and_status_are_passed_on(self):
        done = self.run_in_guest("sh", "-c", "echo out; echo err >&2; printf '\\0\\377'; exit 7", expected=7)
        self.assertEqual((done.stdout, done.stderr), (b"out\n\0\xff", b"err\n"))
        self.assertEqual(self.out("echo", "-n", "a  b", "$HOME", "--json"), b"a  b $HOME --json")
        self.run_in_guest("sh", "-c", "kill -TERM $$", expected=128 + signal.SIGTERM)
        self.assertEqual(nacre("exec", "--env", "A=1", "--env", "B=x y", self.socket, "/bin/env").stdout, b"A=1\nB=x y\n")

    def test_much_output(self):
        text = self.out("sh", "-c", "yes 0123456789abcde | head -c 3000000")
        self.assertEqual(text, (b"0123456789abcde\n" * 200000)[:3000000])

    def test_input(self):
        self.assertEqual(self.out("cat", data=b"a\0b"), b"a\0b")
        self.assertEqual(self.out("cat"), b"")
        data = os.urandom(700_000)
        self.assertEqual(self.out("cat", data=data), data)
        self.assertNotIn(b"tmp.", self.out("ls", "/tmp"))

    def test_what_cannot_run(self):
        self.assertIn(b"guest-exec", self.run_in_guest("/no/such/program", expected=125).stderr)
        self.assertIn(b"--help", nacre("exec", self.socket, expected=2).stderr)
        self.assertIn(b"no control socket", nacre("exec", self.folder / "none", "true", expected=125).stderr)

    def test_a_time_limit_ends_the_program(self):
        done = nacre("exec", "--timeout", "500ms", self.socket, "sleep", "7654", expected=124)
        self.assertIn(b"--timeout", done.stderr)
        self.gone("sleep 7654")

    def test_an_interrupt_ends_the_program(self):
        with subprocess.Popen([NACRE, "exec", self.socket, "sleep", "8765"], stdin=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL) as running:
            self.seen("sleep 8765")
            running.send_signal(signal.SIGINT)
            self.assertEqual(running.wait(120), 128 + signal.SIGINT)
        self.gone("sleep 8765")

    def processes(self):
        return self.out("ps").decode()

    def seen(self, what):
        deadline = time.monotonic() + 120
        while what not in self.processes():
            self.assertLess(time.monotonic(), deadline)

    def gone(self, what):
        deadline = time.monotonic() + 120
        while what in self.processes():
            self.assertLess(time.monotonic(), deadline)

    def test_two_at_once(self):
        running = [subprocess.Popen([NACRE, "exec", self.socket, "sh", "-c", f"sleep 1; echo {i}"],
                                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) for i in range(4)]
        self.assertEqual([one.communicate(timeout=300)[0] for one in running], [b"0\n", b"1\n", b"2\n", b"3\n"])

    # -- other methods

    def test_what_the_agent_tells(self):
        info = json.loads(nacre("control", self.socket, "agent.info").stdout)
        self.assertIn("guest-exec", info["commands"])
        self.assertRegex(info["version"], r"^7\.")
        self.assertEqual(self.call("guest-get-host-name"), {"host-name": "nacre"})
        self.assertEqual([one["name"] for one in self.call("guest-network-get-interfaces")], ["lo", "eth0"])
        self.assertEqual(self.call("guest-fsfreeze-status"), "thawed")
        self.call("guest-set-time", {"time": 1_000_000_000 * 10**9})
        self.assertTrue(self.out("date", "+%s").startswith(b"10000000"))
        said = nacre("control", self.socket, "agent.call", '{"command": "guest-none"}', expected=1).stderr
        self.assertIn(b"guest-none", said)

    # -- cp

    def test_a_file_there_and_back(self):
        data = os.urandom(2_500_000)
        here = self.folder / "here"
        here.write_bytes(data)
        here.chmod(0o640)
        nacre("cp", here, f"{self.socket}:/root/there")
        self.assertEqual(self.out("stat", "-c", "%a %s", "/root/there"), b"640 2500000\n")
        back = self.folder / "back"
        back.mkdir()
        nacre("cp", f"{self.socket}:/root/there", back)
        self.assertEqual((back / "there").read_bytes(), data)
        self.assertEqual(stat.S_IMODE((back / "there").stat().st_mode), 0o640)
        nacre("cp", self.folder / "here", f"{self.socket}:/root")
        self.assertEqual(self.out("ls", "/root").split(), [b"here", b"there"])
        nacre("cp", f"{self.socket}:/dev/null", back, expected=1)
        nacre("cp", here, f"{self.socket}:/dev/null")
        self.assertEqual(self.out("stat", "-c", "%F", "/dev/null"), b"character special file\n")
        self.run_in_guest("rm", "/root/here", "/root/there")

    def test_a_folder_there_and_back(self):
        source = self.folder / "tree"
        (source / "sub/empty").mkdir(parents=True)
        (source / "sub/script").write_text("#!/bin/sh\necho hello\n")
        (source / "sub/script").chmod(0o755)
        (source / ("n" * 150)).write_bytes(bytes(range(256)))
        (source / "link").symlink_to("sub/script")
        nacre("cp", source, f"{self.socket}:/root")
        nacre("cp", source, f"{self.socket}:/root/other")
        self.assertEqual(self.out("/root/tree/link"), b"hello\n")
        self.assertEqual(self.out("sh", "-c", "cd /root; diff -r tree other && ls /tmp | grep -c tmp.", expected=1), b"0\n")
        target = self.folder / "target"
        nacre("cp", f"{self.socket}:/root/other/", target)
        self.assertEqual(subprocess.run(["diff", "-r", source, target], check=False).returncode, 0)
        self.assertEqual(os.readlink(target / "link"), "sub/script")
        self.assertTrue(os.access(target / "sub/script", os.X_OK))
        nacre("cp", f"{self.socket}:/root/tree", target)
        self.assertTrue((target / "tree/sub/empty").is_dir())
        self.run_in_guest("rm", "-r", "/root/tree", "/root/other")

    def test_what_cannot_be_copied(self):
        for source, target, said in ((f"{self.socket}:/none", self.folder, b"not there"),
                                     (self.folder / "none", f"{self.socket}:/root", b"No such file"),
                                     (self.folder, f"{self.socket}:/init", b"a file stands there"),
                                     (self.folder / "vm.sock", f"{self.socket}:/none/x", b"")):
            with self.subTest(source=source):
                self.assertIn(said, nacre("cp", source, target, expected=1).stderr)
        for words in ([], ["a"], ["a", "b"], [f"{self.socket}:/a", f"{self.socket}:/b"], ["-r", "a", f"{self.socket}:/"],
                      [f"{self.socket}:", "a"]):
            self.assertIn(b"--help", nacre("cp", *words, expected=2).stderr)

    # -- an agent that goes and comes

    def test_the_agent_goes_and_comes(self):
        self.guest.command_output("kill $(cat /tmp/qga.pid); while pidof qemu-ga; do usleep 50000; done")
        deadline = time.monotonic() + 120
        while True:
            said = nacre("exec", self.socket, "true", expected=125).stderr
            if b"qemu-guest-agent" in said:
                break
            self.assertLess(time.monotonic(), deadline, said)
        self.guest.start_agent()
        self.assertEqual(nacre("exec", "--wait", "120", self.socket, "echo", "again").stdout, b"again\n")
        nacre("control", self.socket, "engine.switch", '{"engine": "interp"}')
        self.assertEqual(self.out("echo", "interpreted"), b"interpreted\n")
        nacre("control", self.socket, "engine.switch", '{"engine": "jit"}')


class NoAgentPort(unittest.TestCase):
    def test_the_port_can_be_left_out(self):
        with tempfile.TemporaryDirectory() as folder:
            control = pathlib.Path(folder) / "s"
            with AgentGuest(control, "--guest-agent", "off", start=False) as guest:
                self.assertEqual(guest.command_output("ls /dev | grep vport"), "")
                self.assertIn(b"--guest-agent", nacre("exec", control, "true", expected=125).stderr)
                guest.send("poweroff -f\n")
                guest.wait()


if __name__ == "__main__":
    main()
