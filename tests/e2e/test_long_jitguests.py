"""Guests that make code on a Debian disk: OpenJDK, Node.js, and a kernel that patches itself, with right output.

Each program prints its times: what is slow while code is made beside what is steady. The limits are ratios of such times
of one run, wide enough for any host: they catch what falls off a cliff, and nothing else.
"""
import pathlib
import re
import subprocess
import tempfile

from harness import ENGINE, ROOT, GuestCase, NACRE, Nacre, boot_arguments, guest_file, main

FILES = ROOT / "tests/e2e/jitguests"
# What OpenJDK 17 and Node.js print on bare hardware.
JAVA = "java 1678878665283723201 70390 59955832 -893553119118412942 100926992 743898000"
NODE = ("node [-1606250432,[171799101153750,29800],1760031,749811294,[-1696988266,30],"
        "[30000,45000,60000,75000,0,0,0,3,0,0,0,0,0,0,0,0]]")


# How many times as long work may take with a tracer in every function as without, after it as before it, and a round of a
# program as its first one. Typical on a quiet host: 2 to 4, 1, and under 1.
WITH_LIMIT, AFTER_LIMIT, ROUND_LIMIT = 25, 6, 5


class JitGuests(GuestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.overlay = pathlib.Path(cls.folder.name) / "overlay.img"
        lines = ["dir overlay 755", "dir overlay/jitguests 755"]
        for path in sorted(FILES.iterdir()):
            (pathlib.Path(cls.folder.name) / path.name).write_bytes(path.read_bytes())
            lines.append(f"file {path.name} overlay/jitguests/{path.name} 755")
        manifest = pathlib.Path(cls.folder.name) / "manifest"
        manifest.write_text("\n".join(lines) + "\n")
        subprocess.run([NACRE.parent / "nacre-cpio", manifest, cls.overlay], check=True)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def run_guest(self, command, seconds, *options):
        """The output of a command in the guest, which must end with status 0, leave no complaint and power off."""
        kind = "debian12-bench"
        append = f"init=/run/overlay/jitguests/init jitguest={command.replace(' ', ',')}"
        with Nacre("run", "--engine", ENGINE, "--memory", "1G", "--net", "none", "--no-reboot", *options, "--disk",
                   f"{guest_file(kind, 'disk.img')},format=raw,snapshot", *boot_arguments(kind, append),
                   "--initrd", self.overlay) as guest:
            guest.end_input()
            guest.expect("jitguest: begin", 120)
            self.check_exit(guest, 0, seconds)
            text = guest.text().replace("\r", "")
        for line in re.findall(r"^time .*$", text, re.M):
            print(f"{ENGINE}: {line}", flush=True)
        self.assertIn("jitguest: status 0", text, text[-6000:])
        self.assertNotIn("the kernel complained", text, text[-6000:])
        return text

    def check_rounds(self, text, program):
        """Later rounds do what the first one did, on code that is there: none may take many times as long."""
        times = [int(ms) for ms in re.findall(rf"^time {program} round \d+ (\d+) ms$", text, re.M)]
        self.assertLess(max(times), ROUND_LIMIT * times[0] + 1000, times)

    def check_lines(self, text, word, expected, count):
        found = re.findall(rf"^{word} .*$", text, re.M)
        self.assertEqual(found, [expected] * count, text[-4000:])

    def java(self, *flags):
        text = self.run_guest(f"sh java.sh {' '.join(flags)}", 900)
        self.check_lines(text, "java", JAVA, 6)
        self.check_rounds(text, "java")

    def test_java(self):
        self.java("-Xmx200m")

    def test_java_g1(self):
        self.java("-Xmx200m", "-XX:+UseG1GC")

    def test_java_first_compiler_only(self):
        self.java("-XX:TieredStopAtLevel=1")

    def test_node(self):
        text = self.run_guest("node jit.js", 900)
        self.check_lines(text, "node", NODE, 5)
        self.check_rounds(text, "node")

    def test_node_optimizing_at_once(self):
        self.check_lines(self.run_guest("node --always-turbofan jit.js 2 || node --always-opt jit.js 2", 1500), "node", NODE, 2)

    def check_kernel(self, steps, *options):
        text = self.run_guest("sh kernel.sh", 900, *options)
        self.assertEqual([line.split()[1] for line in re.findall(r"^ok .*$", text, re.M)], steps, text[-4000:])
        times = re.findall(r"^time kernel (.*): before (\d+) ms, with (\d+) ms, after (\d+) ms$", text, re.M)
        self.assertGreaterEqual(len(times), 4, text[-4000:])
        for name, before, during, after in times:
            self.assertLess(int(during), WITH_LIMIT * int(before) + 1000, name)
            self.assertLess(int(after), AFTER_LIMIT * int(before) + 1000, name)

    def test_kernel_patches_itself(self):
        self.check_kernel(["static-keys", "tracepoints", "ftrace", "ftrace-graph", "kprobes", "modules", "kernel"])

    def test_kernel_patches_itself_on_two_cpus(self):
        self.check_kernel(["static-keys", "tracepoints", "ftrace", "ftrace-graph", "kprobes", "modules", "cpu-hotplug", "kernel"],
                          "--cpus", "2")

    def test_bpf(self):
        text = self.run_guest("python3 bpf.py", 600)
        self.assertEqual(re.findall(r"^ok bpf (.*)$", text, re.M), ["compiled", "hardened", "interpreted", "compiled again"])


if __name__ == "__main__":
    main()
