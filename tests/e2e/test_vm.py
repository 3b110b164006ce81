"""VMs that are directories (docs/vm-directory.md), on guests of a few instructions."""
import json
import os
import pathlib
import pty
import signal
import socket
import subprocess
import threading
import time

import bare
from harness import CRASHES, Folder, LEAVE, NACRE, Nacre, main

PATIENCE = 120


class Vms(Folder):
    def setUp(self):
        super().setUp()
        self.home = pathlib.Path(self.folder.name) / "home"
        self.environment = {**os.environ, "NACRE_HOME": str(self.home)}
        os.environ["NACRE_HOME"] = str(self.home)  # for Nacre()
        self.addCleanup(os.environ.pop, "NACRE_HOME")
        self.addCleanup(self.kill_all)
        self.kernel = bare.build(pathlib.Path(self.folder.name) / "echo", bare.ECHO)

    def kill_all(self):
        for vm in json.loads(self.nacre("ls", "--json")):
            if "pid" in vm:
                os.kill(vm["pid"], signal.SIGKILL)

    def nacre(self, *arguments, expected=0, given=""):
        """What it prints; with a status other than 0 its messages."""
        done = subprocess.run([str(NACRE), *map(str, arguments)], capture_output=True, text=True, input=given,
                              timeout=PATIENCE, check=False, env=self.environment)
        self.assertNotIn(done.returncode, CRASHES, done.stderr)
        self.assertEqual(done.returncode, expected, f"{arguments}: {done.stdout}{done.stderr}")
        return done.stdout if expected == 0 else done.stderr

    def vm(self, name="web", *options):
        """Makes it of the echo guest."""
        return self.nacre("create", name, "--kernel", self.kernel, "--net", "none", "--engine", "jit", "--memory", "16M",
                          *options)

    def of(self, name="web"):
        return json.loads(self.nacre("inspect", name, "--json"))

    def until(self, what, seconds=PATIENCE):
        deadline = time.monotonic() + seconds
        while not (seen := what()):
            self.assertLess(time.monotonic(), deadline, "waited too long")
            time.sleep(0.02)
        return seen

    def until_ended(self, name="web"):
        return self.until(lambda: (seen := self.of(name))["state"] == "stopped" and seen)

    def console(self, name="web"):
        """A socket at the console."""
        watcher = socket.socket(socket.AF_UNIX)
        self.addCleanup(watcher.close)
        folder = os.open(self.home / "vms" / name / "run", os.O_PATH)
        self.addCleanup(os.close, folder)
        watcher.connect(f"/proc/self/fd/{folder}/console")
        watcher.settimeout(PATIENCE)
        return watcher

    def read_until(self, watcher, text, got=b""):
        while text not in got:
            more = watcher.recv(4096)
            self.assertTrue(more, f"the console ended before {text}: {got}")
            got += more
        return got

    def type(self, text, name="web"):
        self.console(name).sendall(text)


class Life(Vms):
    def test_from_create_to_rm(self):
        self.assertEqual(self.vm(), "web\n")
        seen = self.of()
        self.assertEqual((seen["state"], seen["memory_bytes"], seen["cpus"]), ("stopped", 16 << 20, 1))
        self.assertRegex(seen["uuid"], r"^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$")
        self.assertIn("never ran", self.nacre("ls"))
        self.nacre("start", "web")
        seen = self.of()
        self.assertEqual((seen["state"], seen["engine"]), ("running", "jit"))
        self.assertIn("running", self.nacre("ls"))
        self.assertIn("runs already", self.nacre("start", "web", expected=1))
        self.assertIn("runs", self.nacre("rm", "web", expected=1))
        self.assertEqual(self.nacre("pause", "web"), "web: paused\n")
        self.assertEqual(self.of()["state"], "paused")
        self.nacre("resume", "web")
        stats = json.loads(self.nacre("stats", "web", "--json"))
        self.assertGreater(stats[0]["memory_bytes"], 0)
        self.assertEqual(stats[0]["pid"], seen["pid"])
        self.nacre("stop", "web")
        seen = self.of()
        self.assertEqual((seen["state"], seen["end"]["reason"], seen["end"]["status"]), ("stopped", "powered off", 0))
        self.assertNotIn("pid", seen)
        self.nacre("stop", "web")  # it does not run: nothing to do
        self.nacre("start", "web")
        self.nacre("kill", "web")
        self.assertEqual(self.of()["end"]["reason"], "stopped")
        self.nacre("rm", "web")
        self.assertEqual(json.loads(self.nacre("ls", "--json")), [])
        self.assertEqual(list((self.home / "vms").iterdir()), [])

    def test_console_and_logs(self):
        self.vm()
        self.nacre("start", "web")
        first, second = self.console(), self.console()
        self.read_until(first, b"up\n")
        first.sendall(b"hello ")
        self.read_until(second, b"hello ")
        second.sendall(b"there\n")
        self.read_until(first, b"there\n")
        late = self.console()  # is shown what was printed before
        self.assertEqual(self.read_until(late, b"there\n"), b"up\nhello there\n")
        self.assertEqual(self.nacre("logs", "web"), "up\nhello there\n")
        with Nacre("logs", "web", "-f") as logs:
            logs.expect("there\n")
            first.sendall(b"Q")
            logs.expect("Q")
            self.check_exit(logs, 0)
        self.assertEqual(late.recv(100), b"Q")
        self.assertEqual(late.recv(100), b"")  # its end
        self.assertEqual(self.nacre("logs", "web"), "up\nhello there\nQ")
        self.assertIn("powered off", self.nacre("logs", "web", "--messages"))
        self.assertIn("does not run", self.nacre("console", "web", expected=1))
        self.nacre("start", "web")
        self.until(lambda: self.nacre("logs", "web") == "up\nhello there\nQup\n")

    def test_console_on_a_terminal(self):
        self.vm()
        with Nacre("start", "web", "--attach", terminal=True) as console:
            console.expect("up")
            console.send("typed")
            console.expect("typed")
            console.send(LEAVE)
            self.check_exit(console, 0)
            self.assertIn("Ctrl-] leaves", console.errors)
        self.assertEqual(self.of()["state"], "running")
        with Nacre("console", "web", terminal=True) as console:
            console.expect("up\ntyped")
            console.send("Q")
            self.check_exit(console, 0)
            self.assertIn("has ended", console.errors)

    def test_console_by_a_pipe(self):
        self.vm()
        self.nacre("start", "web")
        self.assertEqual(self.nacre("console", "web", given="more Q"), "up\nmore Q")

    def test_a_guest_that_ends_at_once_has_run(self):
        kernel = bare.build(pathlib.Path(self.folder.name) / "end", bare.debug_exit(3))
        self.nacre("create", "short", "--kernel", kernel, "--net", "none", "--debug-exit")
        self.nacre("start", "short")
        end = self.until_ended("short")["end"]
        self.assertEqual((end["reason"], end["status"]), ("debug exit", 7))

    def test_a_crash_is_told(self):
        self.vm()
        self.nacre("start", "web")
        self.type(b"X")
        end = self.until_ended()["end"]
        self.assertEqual((end["reason"], end["status"]), ("crashed", 3))
        self.assertIn("RIP", end["detail"])
        self.assertIn("crashed", self.nacre("ls"))

    def test_a_guest_without_ears(self):
        self.vm()
        self.nacre("start", "web")
        watcher = self.console()
        watcher.sendall(b"D")
        self.read_until(watcher, b"D")
        said = self.nacre("stop", "web", "--timeout", "100ms", expected=1)
        self.assertIn("--force", said)
        self.assertEqual(self.of()["state"], "running")
        self.nacre("stop", "web", "--timeout", "100ms", "--force")
        self.assertEqual(self.of()["end"]["reason"], "stopped")

    def test_a_paused_guest_is_stopped(self):
        self.vm()
        self.nacre("start", "web")
        self.nacre("pause", "web")
        self.nacre("stop", "web")
        self.assertEqual(self.of()["end"]["reason"], "powered off")

    def test_all_and_autostart(self):
        self.vm("one", "--autostart")
        self.vm("two")
        self.vm("three", "--autostart")
        self.nacre("start", "--autostart")
        states = {vm["name"]: vm["state"] for vm in json.loads(self.nacre("ls", "--json"))}
        self.assertEqual(states, {"one": "running", "two": "stopped", "three": "running"})
        self.nacre("start", "--autostart")  # they run: nothing to do
        self.nacre("stop", "--all")
        self.assertEqual({vm["state"] for vm in json.loads(self.nacre("ls", "--json"))}, {"stopped"})

    def test_in_the_foreground(self):
        self.vm()
        with Nacre("run", "web") as guest:
            guest.expect("up")
            self.assertEqual(self.of()["pid"], guest.process.pid)
            self.assertEqual(self.of()["state"], "running")
            self.assertIn("runs already", self.nacre("start", "web", expected=1))
            self.assertIn("runs already", self.nacre("run", "web", expected=1))
            self.assertIn("nacre run", self.nacre("console", "web", expected=1))
            self.nacre("stop", "web")
            self.check_exit(guest, 0)
        self.assertEqual(self.of()["end"]["reason"], "powered off")
        self.assertIn("vm.toml", self.nacre("run", "web", "--memory", "1G", expected=2))
        self.nacre("run", "web", "--engine", "interp", "--timeout", "1ms", expected=124)


class Processes(Vms):
    def test_after_sigkill_it_starts_again(self):
        self.vm()
        self.nacre("start", "web")
        for _ in range(3):
            pid = self.of()["pid"]
            os.kill(pid, signal.SIGKILL)
            self.until(lambda: self.of()["state"] == "stopped")
            self.assertTrue((self.home / "vms/web/run/control").exists())  # left behind, in nobody's way
            self.assertIn("killed", self.nacre("ls"))
            self.nacre("start", "web")
            self.assertEqual(self.of()["state"], "running")
            self.assertNotEqual(self.of()["pid"], pid)

    def test_of_many_starts_one_runs(self):
        self.vm()
        statuses = []

        def start():
            done = subprocess.run([str(NACRE), "start", "web"], capture_output=True, text=True, timeout=PATIENCE,
                                  check=False, env=self.environment)
            statuses.append((done.returncode, done.stderr))

        for _ in range(3):
            statuses.clear()
            threads = [threading.Thread(target=start) for _ in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(sorted(status for status, _ in statuses), [0, 1, 1, 1, 1, 1], statuses)
            for status, said in statuses:
                if status == 1:
                    self.assertIn("runs already", said)
            self.assertEqual(self.of()["state"], "running")
            self.nacre("kill", "web")

    def test_the_terminals_end_is_not_the_vms(self):
        self.vm()
        master, slave = pty.openpty()
        # A shell on the terminal starts it and stays; then the terminal goes.
        shell = subprocess.Popen(["setsid", "--ctty", "sh", "-c", f"{NACRE} start web && echo started && cat"], stdin=slave,
                                 stdout=slave, stderr=slave, env=self.environment)
        os.close(slave)
        seen = b""
        while b"started" not in seen:
            seen += os.read(master, 4096)
        pid = self.of()["pid"]
        self.assertEqual(os.getsid(pid), pid)
        os.close(master)
        self.assertNotEqual(shell.wait(PATIENCE), 0)
        self.type(b"still here\n")
        self.until(lambda: "still here" in self.nacre("logs", "web"))
        self.assertEqual(self.of()["pid"], pid)
        for fd in (0, 1, 2):  # nothing of the terminal is held
            self.assertNotIn("/dev/pts", os.readlink(f"/proc/{pid}/fd/{fd}"))

    def test_sigterm_stops_in_order(self):
        self.vm()
        self.nacre("start", "web")
        os.kill(self.of()["pid"], signal.SIGTERM)
        self.assertEqual(self.until_ended()["end"]["reason"], "stopped")

    def test_a_long_home(self):
        self.home = self.home / ("h" * 100) / ("o" * 100)
        self.environment["NACRE_HOME"] = os.environ["NACRE_HOME"] = str(self.home)
        self.vm()
        self.nacre("start", "web")
        self.assertEqual(self.nacre("console", "web", given="Q"), "up\nQ")

    def test_restart(self):
        self.vm("web", "--restart", "on-failure")
        self.nacre("start", "web")
        pid = self.of()["pid"]
        watcher = self.console()
        self.read_until(watcher, b"up\n")
        watcher.sendall(b"X")
        self.read_until(watcher, b"up\n")  # again, with the same console
        self.assertEqual(self.of()["pid"], pid)
        watcher.sendall(b"Q")  # no failure
        self.assertEqual(self.until_ended()["end"]["reason"], "powered off")

    def test_restart_has_a_limit_and_obeys(self):
        crash = bare.build(pathlib.Path(self.folder.name) / "crash", bare.TRIPLE_FAULT)
        self.nacre("create", "bad", "--kernel", crash, "--net", "none", "--restart", "always")
        toml = self.home / "vms/bad/vm.toml"
        toml.write_text(toml.read_text().replace('restart = "always"', 'restart = "always"\nrestart-limit = 1'))
        self.nacre("start", "bad")
        self.assertEqual(self.until_ended("bad")["end"]["reason"], "crashed")
        said = self.nacre("logs", "bad", "--messages")
        self.assertEqual(said.count("ended: crashed"), 2, said)
        self.assertIn("restart-limit", said)
        toml.write_text(toml.read_text().replace("restart-limit = 1", "restart-limit = 0"))
        self.nacre("start", "bad")
        self.until(lambda: self.nacre("logs", "bad", "--messages").count("ended: crashed") >= 4)
        self.nacre("stop", "bad")  # also while it waits for its next start
        self.assertEqual(self.of("bad")["state"], "stopped")


class Refusals(Vms):
    def test_names(self):
        for name in ("../x", "a/b", ".hidden", "-x", "a b", "", "x" * 64, "größe"):
            with self.subTest(name=name):
                self.nacre("create", "--kernel", self.kernel, "--", name, expected=2)
                self.nacre("create", f"./{name}", "--kernel", self.kernel, expected=2)
        self.assertFalse((self.home / "vms").exists())
        self.vm()
        self.assertIn("already", self.nacre("create", "web", "--kernel", self.kernel, expected=1))
        for command in ("start", "stop", "kill", "rm", "inspect", "logs", "console", "stats", "run"):
            with self.subTest(command=command):
                self.assertIn("did you mean web?", self.nacre(command, "wen", expected=1))

    def test_wrong_usage(self):
        self.vm()
        for arguments in (["create"], ["create", "x", "--timeout", "3"], ["create", "x", "--disk-size", "lots"],
                          ["create", "x", "--restart", "maybe"], ["create", "a", "b", "c"], ["start"], ["stop"], ["rm"],
                          ["start", "--autostart", "web"], ["stop", "web", "--timeout", "x"], ["ls", "web"],
                          ["logs", "web", "--fellow"], ["inspect"], ["console", "a", "b"], ["rm", "web", "--force=1"]):
            with self.subTest(arguments=arguments):
                self.assertIn("--help", self.nacre(*arguments, expected=2))
        self.nacre("vm-process", "web", expected=2)

    def test_nothing_is_left_of_a_failed_creation(self):
        for options in (["--kernel", "/no/such/kernel"], ["--kernel", self.kernel, "--disk", "/no/such/disk"],
                        ["--kernel", self.kernel, "--initrd", "/no/such/initrd"],
                        ["--kernel", self.kernel, "--cdrom", "/no/such/disc"]):
            with self.subTest(options=options):
                self.assertIn(options[-1], self.nacre("create", "web", *options, expected=1))
                self.assertEqual(list((self.home / "vms").iterdir()), [])
        self.assertIn("no image", self.nacre("create", "web", "debian", expected=1))

    def test_a_wrong_file(self):
        self.vm()
        toml = self.home / "vms/web/vm.toml"
        good = toml.read_text()
        toml.write_text(good.replace("memory =", "memroy ="))
        for command in (["start"], ["run"]):
            said = self.nacre(*command, "web", expected=1)
            self.assertRegex(said, r"vms/web/vm\.toml:\d+: there is no key 'memroy'; did you mean 'memory'\?")
        self.assertIn("broken", self.nacre("ls"))
        self.assertIn("memroy", json.loads(self.nacre("ls", "--json"))[0]["error"])
        toml.write_text(good.replace("boot/echo", "boot/gone"))
        self.assertIn("boot/gone", self.nacre("start", "web", expected=1))
        self.assertEqual(self.of()["state"], "stopped")
        toml.write_text(good)
        self.nacre("start", "web")

    def test_leftovers_are_removed(self):
        self.vm()
        vms = self.home / "vms"
        for name in (".new-web-1234", ".rm-db-5678"):
            (vms / name / "disks").mkdir(parents=True)
        self.vm("next")
        self.assertEqual(sorted(path.name for path in vms.iterdir()), ["next", "web"])


class Doctor(Vms):
    def test_finds_and_removes_what_a_crash_left(self):
        self.vm()
        self.vm("db")
        self.assertIn("all is well", self.nacre("doctor", "--vms"))
        self.nacre("start", "web", "db")
        self.assertIn("all is well", self.nacre("doctor", "--vms"))
        os.kill(self.of()["pid"], signal.SIGKILL)
        self.until_ended()
        vms = self.home / "vms"
        (vms / ".new-x-1234/disks").mkdir(parents=True)
        (vms / "web/.vm.toml.1.tmp").write_text("half")
        found = json.loads(self.nacre_failing("doctor", "--vms", "--json"))
        self.assertEqual({pathlib.Path(one["where"]).name for one in found},
                         {".new-x-1234", ".vm.toml.1.tmp", "control", "console"})
        self.assertTrue(all(one["repairable"] and not one["repaired"] for one in found), found)
        said = self.nacre("doctor", "--vms", "--repair")
        self.assertEqual(said.count(": mended"), 4, said)
        self.assertIn("all is well", self.nacre("doctor", "--vms"))
        self.assertEqual(self.of("db")["state"], "running")
        self.nacre("start", "web")

    def test_names_what_only_people_can_mend(self):
        for name in ("one", "two", "three", "four"):
            self.nacre("create", name, "--kernel", self.kernel, "--disk-size", "1M")
        vms = self.home / "vms"
        (vms / "one/vm.toml").unlink()
        (vms / "two/disks/disk0.qcow2").unlink()
        (vms / "three/vm.toml").write_text("memory = 3\n")
        (vms / "five").mkdir()
        (vms / "five/vm.toml").write_text((vms / "four/vm.toml").read_text().replace("boot/", "../four/boot/")
                                          .replace("disks/", "../four/disks/"))
        found = {}
        for one in json.loads(self.nacre_failing("doctor", "--vms", "--json", "--repair")):
            self.assertFalse(one["repairable"] or one["repaired"])
            found.setdefault(one["where"], []).append(one["what"])
        self.assertEqual(set(found), {"one", "two", "three", "four"})
        self.assertIn("no vm.toml", found["one"][0])
        self.assertIn("disk.file", found["two"][0])
        self.assertIn("vm.toml:1: memory = 3", found["three"][0])
        self.assertIn("uuid of five", found["four"][0])
        self.assertIn("MAC address", found["four"][1])
        self.nacre("rm", "one")  # also without its vm.toml

    def nacre_failing(self, *arguments):
        """What it prints though its status is 1."""
        done = subprocess.run([str(NACRE), *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False,
                              env=self.environment)
        self.assertEqual(done.returncode, 1, done.stderr)
        return done.stdout


class Clones(Vms):
    def test_of_a_stopped_vm(self):
        self.vm("web", "--disk-size", "8M")
        self.nacre("start", "web")
        self.assertIn("nacre stop web", self.nacre("clone", "web", "copy", expected=1))
        self.nacre("stop", "web")
        self.assertEqual(self.nacre("clone", "web", "copy"), "copy\n")
        self.assertEqual(self.nacre("clone", "web", "many", "--count", "3"), "many-1\nmany-2\nmany-3\n")
        self.nacre("start", "web", "copy", "many-1", "many-2", "many-3")
        self.nacre("rm", "web", "--force")
        self.assertEqual({vm["state"] for vm in json.loads(self.nacre("ls", "--json"))}, {"running"})
        self.nacre("stop", "--all")
        self.assertIn("all is well", self.nacre("doctor", "--vms"))
        self.nacre("rm", "copy", "many-1", "many-2", "many-3")
        self.assertEqual(list((self.home / "layers").iterdir()), [])

    def test_refusals(self):
        self.vm()
        self.vm("db")
        self.assertIn("already", self.nacre("clone", "web", "db", expected=1))
        for arguments in (["web"], ["web", "x", "--count", "0"], ["web", "x", "--count", "many"], ["web", "x", "y"]):
            self.nacre("clone", *arguments, expected=2)
        self.assertIn("cannot be a name", self.nacre("clone", "web", "a/b", expected=1))


class Files(Vms):
    def test_disks_are_the_vms_own(self):
        content = b"content".ljust(1 << 20, b"\0")
        disk = self.write("disk.img", content)
        disc = self.write("disc.iso", bytes(1 << 20))
        self.vm("web", "--disk", disk, "--cdrom", disc, "--disk-size", "8M")
        seen = self.of()
        own, inserted = seen["disks"]
        self.assertTrue(own["file"].startswith(f"{self.home}/vms/web/disks/"))
        self.assertEqual(inserted, {"file": str(disc), "readonly": True, "cdrom": True})
        self.nacre("start", "web")
        self.nacre("kill", "web")
        self.assertEqual(disk.read_bytes(), content)
        self.assertIn("does not shrink",
                      self.nacre("create", "db", "--kernel", self.kernel, "--disk", disk, "--disk-size", "512K", expected=1))
        self.vm("empty", "--disk-size", "10G")
        self.assertLess(self.of("empty")["disk_bytes"], 1 << 20)
        self.nacre("start", "empty")

    def test_a_moved_home(self):
        self.vm()
        before = self.of()
        moved = self.home.with_name("moved")
        self.home.rename(moved)
        self.home = moved
        self.environment["NACRE_HOME"] = os.environ["NACRE_HOME"] = str(moved)
        self.kernel.unlink()  # it has a copy
        self.nacre("start", "web")
        self.assertEqual(self.of()["uuid"], before["uuid"])

    def test_of_an_image(self):
        image = self.home / "images/tiny"
        image.mkdir(parents=True)
        (image / "kernel").write_bytes(self.kernel.read_bytes())
        (image / "disk.raw").write_bytes(bytes(1 << 20))
        (image / "image.toml").write_text('name = "tiny"\nkernel = "kernel"\ndisk = "disk.raw"\ndisk-format = "raw"\n'
                                          'append = "quiet"\nmemory = "32M"\n')
        self.nacre("create", "web", "tiny", "--net", "none", "--append", "more")
        toml = (self.home / "vms/web/vm.toml").read_text()
        self.assertIn('kernel = "../../images/tiny/kernel"', toml)
        self.assertIn('append = "quiet more"', toml)
        self.assertIn('image = "tiny"', toml)
        self.assertEqual(self.of()["memory_bytes"], 32 << 20)
        self.nacre("start", "web")
        self.assertIn("did you mean tiny?", self.nacre("create", "db", "tinny", expected=1))
        (image / "image.toml").write_text('kernel = "../../secret"\n')
        self.assertRegex(self.nacre("create", "db", "tiny", expected=1), r"image\.toml:1: kernel")

    def test_each_has_its_own_address(self):
        for name in ("a", "b"):
            self.nacre("create", name, "--kernel", self.kernel)
        one, other = (self.of(name) for name in ("a", "b"))
        self.assertNotEqual(one["networks"][0]["mac"], other["networks"][0]["mac"])
        self.assertNotEqual(one["uuid"], other["uuid"])
        self.nacre("create", "c", "--kernel", self.kernel, "--net", "user,mac=52:54:00:00:00:07")
        self.assertEqual(self.of("c")["networks"][0]["mac"], "52:54:00:00:00:07")


if __name__ == "__main__":
    main()
