"""The contract of the command line: exit statuses and messages. No guest runs here."""
import os
import subprocess
import tempfile

from harness import GuestCase, NACRE, main


def call(*arguments):
    return subprocess.run([str(NACRE), *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60,
                          check=False)


class CommandLine(GuestCase):
    def check(self, expected, *arguments):
        done = call(*arguments)
        self.assertEqual(done.returncode, expected, f"{arguments}: {done.stdout}{done.stderr}")
        return done

    def test_help_and_version(self):
        self.assertIn("run", self.check(0, "--help").stdout)
        self.assertIn("--kernel", self.check(0, "run", "--help").stdout)

    def test_doctor_tells_the_engine_and_why(self):
        done = self.check(0, "doctor")
        self.assertIn("kvm", done.stdout.lower())
        self.assertRegex(done.stdout, r"(?m)^Engine +--engine auto takes (jit, the translator|kvm): .")

    def test_kvm_by_name_where_there_is_none_is_2_and_says_what_to_do(self):
        try:
            os.close(os.open("/dev/kvm", os.O_RDWR))
            self.skipTest("/dev/kvm opens here")
        except OSError:
            done = self.check(2, "run", "--engine", "kvm")
            self.assertIn("/dev/kvm", done.stderr)

    def test_wrong_usage_is_2(self):
        for arguments in (["run", "--no-such-option"], ["no-such-command"], ["run", "--engine", "none-such"],
                          ["run", "--memory", "lots"], ["run", "--memory", "-5M"], ["run", "--memory", "0"],
                          ["run", "--cpus", "0"], ["run", "--disk", ""], ["run", "--net", "nonsense"],
                          ["run", "--cpu", "i4004"], ["run", "--net", "user,forward=tcp:1:2:3"]):
            with self.subTest(arguments=arguments):
                done = self.check(2, *arguments)
                self.assertTrue(done.stderr.strip(), "no message")

    def test_not_there_yet_is_2_and_says_so(self):
        run = (["--net", "switch:a"], ["--net", "tap:a"], ["program.wasm"])
        commands = ("migrate", "serve")
        for arguments in [["run", *words] for words in run] + [[command] for command in commands]:
            with self.subTest(arguments=arguments):
                done = self.check(2, *arguments)
                self.assertIn("not there yet", done.stderr)

    def test_missing_files_are_1_and_named(self):
        with tempfile.NamedTemporaryFile() as empty:
            for option in ("--kernel", "--initrd", "--disk"):
                with self.subTest(option=option):
                    kernel = [] if option == "--kernel" else ["--kernel", empty.name]
                    done = self.check(1, "run", *kernel, option, "/no/such/file")
                    self.assertIn("/no/such/file", done.stderr)


if __name__ == "__main__":
    main()
