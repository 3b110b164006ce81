"""`nacre image build debian`: a VM of the image sets itself up at its first start and is reached by its guest agent."""
import json
import os
import pathlib
import socket
import subprocess
import tempfile
import unittest

from control import FORK
from guest_agent import nacre
from harness import ENGINE, NACRE, main

PATIENCE = 1200


class DebianImage(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.home = pathlib.Path(scratch.name) / "home"
        self.key = pathlib.Path(scratch.name) / "key"

    def run_nacre(self, *arguments, seconds=PATIENCE, **options):
        return nacre(*arguments, home=self.home, seconds=seconds, **options).stdout.decode()

    def in_guest(self, *words, vm="web", **options):
        return self.run_nacre("exec", "--wait", "900", vm, "--", *words, **options)

    def test_built_started_and_reached(self):
        run = self.run_nacre
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", self.key], check=True, timeout=300)
        public = pathlib.Path(f"{self.key}.pub")
        run("image", "build", "debian", "--size", "3G", "--user", "me", "--ssh-key", public, "--memory", "768M", seconds=3000)
        run("image", "verify", "debian")
        self.assertEqual([image["name"] for image in json.loads(run("image", "ls", "--json"))], ["debian"])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        run("create", "web", "--image", "debian", "--engine", ENGINE, "--disk-size", "6G", "--net",
            f"user,forward=tcp:127.0.0.1:{port}-:22")
        self.assertIn(b"web", nacre("image", "rm", "debian", home=self.home, expected=1).stderr)
        self.addCleanup(subprocess.run, [str(NACRE), "kill", "web"], env={**os.environ, "NACRE_HOME": str(self.home)},
                        capture_output=True, check=False, timeout=300)
        run("start", "web")
        self.in_guest("systemctl", "is-system-running", "--wait", expected=0)
        self.assertEqual(self.in_guest("hostname"), "web\n")
        self.assertEqual(self.in_guest("systemctl", "--failed", "--quiet", "--no-legend"), "")
        self.assertIn("(me)", self.in_guest("id", "me"))
        self.assertEqual(self.in_guest("cat", "/home/me/.ssh/authorized_keys"), public.read_text())
        self.assertGreater(int(self.in_guest("df", "--output=size", "-B1M", "/").split()[1]), 5000)
        self.ssh(port)
        run("cp", NACRE, "web:/root/nacre")
        here = subprocess.run(["sha256sum", NACRE], capture_output=True, text=True, check=True).stdout.split()[0]
        self.assertEqual(self.in_guest("sha256sum", "/root/nacre").split()[0], here)
        frozen = json.loads(run("control", "web", "agent.call", '{"command": "guest-fsfreeze-freeze"}'))
        self.assertGreaterEqual(frozen["value"], 1)
        thawed = json.loads(run("control", "web", "agent.call", '{"command": "guest-fsfreeze-thaw"}'))
        self.assertEqual(thawed, frozen)
        self.assertNotIn(FORK, self.in_guest("dmesg"))
        run("control", "web", "vm.new_generation")
        self.in_guest("sh", "-c", f"until dmesg | grep -q '{FORK}'; do sleep 0.1; done")
        run("stop", "web", "--timeout", "600")
        self.assertIn("powered off", run("inspect", "web", "--json"))

    def ssh(self, port):
        """The user comes in by the key and becomes root by sudo; nobody comes in without."""
        def log_in(*options):
            return subprocess.run(["ssh", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o",
                                   "BatchMode=yes", "-p", str(port), *options, "me@127.0.0.1", "sudo id -u"],
                                  capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600, check=False)
        done = log_in("-i", str(self.key), "-o", "IdentitiesOnly=yes")
        self.assertEqual((done.returncode, done.stdout), (0, "0\n"), done.stderr)
        self.assertEqual(log_in("-o", "IdentityFile=/dev/null", "-o", "IdentitiesOnly=yes").returncode, 255)


if __name__ == "__main__":
    main()
