"""`nacre image`: images of disks and folders, whole or not there, verified, listed and removed."""
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import time

from harness import Folder, NACRE, main


class Image(Folder):
    def setUp(self):
        super().setUp()
        self.path = pathlib.Path(self.folder.name)
        self.home = self.path / "home"
        self.images = self.home / "images"

    def image(self, *arguments, expected=0, **environment):
        done = subprocess.run([str(NACRE), "image", *map(str, arguments)], capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, timeout=300, check=False,
                              env={**os.environ, "NACRE_HOME": str(self.home), **environment})
        self.assertEqual(done.returncode, expected, f"{arguments}: {done.stdout}{done.stderr}")
        return done.stdout if expected == 0 else done.stderr

    def test_a_disk_becomes_an_image(self):
        disk = self.write("disk.img", bytes(range(256)) * 4096)
        name, identity = self.image("build", "--from", disk, "--name", "old", "--memory", "256M").split()
        self.assertEqual((name, len(identity)), ("old", 64))
        found = json.loads(self.image("inspect", "old", "--json"))
        self.assertEqual((found["id"], found["firmware"], found["disk_format"]), (identity, "bios", "raw"))
        self.assertEqual(found["memory_bytes"], 256 << 20)
        self.assertEqual(found["files"][0]["sha256"], hashlib.sha256(disk.read_bytes()).hexdigest())
        self.assertEqual(json.loads(self.image("ls", "--json")), [found])
        self.assertIn(identity[:12], self.image("ls"))
        self.assertIn("--replace", self.image("build", "--from", disk, "--name", "old", expected=1))
        self.image("verify", "old")
        kept = self.images / "old/disk.raw"
        kept.chmod(0o644)
        kept.write_bytes(b"x" + kept.read_bytes()[1:])
        self.assertIn("disk.raw changed", self.image("verify", "old", expected=1))
        self.image("build", "--from", disk, "--name", "old", "--replace")
        environment = {**os.environ, "NACRE_HOME": str(self.home)}
        subprocess.run([NACRE, "create", "web", "--image", "old"], env=environment, check=True, timeout=300)
        self.assertIn("web", self.image("rm", "old", expected=1))
        self.assertIn("web", self.image("build", "--from", disk, "--name", "old", "--replace", expected=1))
        subprocess.run([NACRE, "rm", "web"], env=environment, check=True, timeout=300)
        self.image("verify", "old")
        self.image("rm", "old")
        self.assertEqual(list(self.images.iterdir()), [])
        self.image("rm", "old", expected=1)

    def test_formats(self):
        disk = self.write("disk.img", bytes(range(256)) * 4096)
        below, above, vmdk = (self.path / name for name in ("below.qcow2", "above.qcow2", "disk.vmdk"))
        subprocess.run([NACRE, "disk", "convert", disk, below], check=True, timeout=300)
        subprocess.run([NACRE, "disk", "create", above, "--backing", below], check=True, timeout=300)
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "vmdk", disk, vmdk], check=True, timeout=300)
        for name, source in (("a", below), ("b", above), ("c", vmdk)):
            self.image("build", "--from", source, "--name", name, "--firmware", "uefi")
            found = json.loads(self.image("inspect", name, "--json"))
            self.assertEqual((found["disk_format"], found["firmware"]), ("qcow2", "uefi"))
            kept = self.images / name / "disk.qcow2"
            info = json.loads(subprocess.run([NACRE, "disk", "info", kept, "--json"], check=True, timeout=300,
                                             capture_output=True).stdout)
            self.assertNotIn("below.qcow2", json.dumps(info))
            subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", disk, kept], check=True, timeout=300,
                           capture_output=True)
        for broken in (b"QFI\xfb" + bytes(600), b"KDMV" + bytes(600)):
            self.image("build", "--from", self.write("broken", broken), "--name", "d", expected=1)
        self.assertEqual({entry.name for entry in self.images.iterdir()}, {"a", "b", "c"})

    def test_a_folder_becomes_an_image(self):
        if shutil.which("mke2fs") is None:
            raise AssertionError("mke2fs is missing: scripts/install-packages test")
        root = self.path / "root"
        (root / "boot").mkdir(parents=True)
        (root / "etc").mkdir()
        (root / "etc/hostname").write_text("made\n")
        for release in ("6.1.0-9", "6.1.0-10"):
            (root / f"boot/vmlinuz-{release}").write_text(f"kernel {release}")
        (root / "boot/initrd.img-6.1.0-10").write_text("initrd")
        self.image("build", "--from", root, "--name", "made", "--size", "16M")
        folder = self.images / "made"
        self.assertEqual((folder / "kernel").read_text(), "kernel 6.1.0-10")
        self.assertEqual((folder / "initrd").read_text(), "initrd")
        self.assertEqual((folder / "disk.raw").stat().st_size, 16 << 20)
        shown = subprocess.run(["debugfs", "-R", "cat /etc/hostname", folder / "disk.raw"], capture_output=True, text=True,
                               check=True).stdout
        self.assertEqual(shown, "made\n")
        self.assertIn("vmlinuz", self.image("build", "--from", self.path, "--name", "none", expected=1))

    def test_a_killed_build_leaves_nothing_for_long(self):
        tools = self.path / "tools"
        tools.mkdir()
        (tools / "mke2fs").write_text(f"#!/bin/sh\necho $$ >{self.path}/pid.new\nmv {self.path}/pid.new {self.path}/pid\n"
                                      "exec sleep 1000\n")
        (tools / "mke2fs").chmod(0o755)
        root = self.path / "root"
        (root / "boot").mkdir(parents=True)
        (root / "boot/vmlinuz-1").write_text("kernel")
        path = {"PATH": f"{tools}:{os.environ['PATH']}"}
        for kill in (signal.SIGKILL, signal.SIGTERM):
            with subprocess.Popen([str(NACRE), "image", "build", "--from", str(root), "--name", "x"],
                                  stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                  env={**os.environ, **path, "NACRE_HOME": str(self.home)}) as build:
                deadline = time.monotonic() + 120
                while not (self.path / "pid").exists():
                    self.assertLess(time.monotonic(), deadline)
                    time.sleep(0.02)
                helper = int((self.path / "pid").read_text())
                (self.path / "pid").unlink()
                self.assertEqual(json.loads(self.image("ls", "--json")), [])
                build.send_signal(kill)
                build.wait(120)
                if kill == signal.SIGKILL:
                    os.kill(helper, signal.SIGKILL)
                    self.assertEqual(len(list(self.images.iterdir())), 1)
                else:
                    self.assertEqual(build.returncode, 1)
                    self.assertEqual(list(self.images.iterdir()), [])
        disk = self.write("disk.img", bytes(512))
        self.image("build", "--from", disk, "--name", "x")
        self.assertEqual([entry.name for entry in self.images.iterdir()], ["x"])

    def test_wrong_words(self):
        for words in ([], ["fly"], ["build"], ["build", "windows"], ["build", "debian", "--from", "x"],
                      ["build", "--from", "x"], ["build", "debian", "--size", "big"], ["build", "debian", "--package", "a b"],
                      ["build", "debian", "--user", "a b"], ["build", "--from", "x", "--name", "y", "--user", "z"],
                      ["build", "--from", "x", "--name", "y", "--size", "big"], ["ls", "x"], ["inspect"], ["rm"],
                      ["rm", "a", "b"], ["ls", "--size", "1G"], ["build", "--from", "x", "--name", "y", "--firmware", "z"]):
            with self.subTest(words=words):
                self.assertIn("--help", self.image(*words, expected=2))
        self.image("build", "--from", self.path / "none", "--name", "x", expected=1)
        self.image("build", "--from", self.path, "--name", "../x", expected=1)
        self.assertIn("Usage: nacre image", self.image("--help"))


if __name__ == "__main__":
    main()
