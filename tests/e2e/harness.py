"""Drives `nacre run` as a user does: arguments, standard input, console output, exit status. Standard library only.

NACRE names the binary (ctest sets it). Nothing is skipped here: a missing binary or guest is a failure that says what
to call.
"""
import fcntl
import os
import pathlib
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
GUESTS = ROOT / "build/guests"
NACRE = pathlib.Path(os.environ.get("NACRE", ROOT / "build/release/nacre"))
ENGINE = os.environ.get("NACRE_ENGINE", "jit")  # by hand: the same tests on another engine
PROMPT = "/root# "
LEAVE = b"\x1d"  # Ctrl-]
CRASHES = {-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGILL, -signal.SIGFPE}


def guest_file(kind, name):
    path = GUESTS / kind / name
    if not path.exists():
        how = f"scripts/make-rootfs {kind}" if kind.startswith("debian12") else f"scripts/prepare-guest {kind}"
        raise AssertionError(f"{path} is missing: run {how}")
    return path


def boot_arguments(kind, append=""):
    """--kernel, --initrd and --append for one of the prepared guests."""
    cmdline = guest_file(kind, "cmdline").read_text().strip()
    return ["--kernel", guest_file(kind, "vmlinuz"), "--initrd", guest_file(kind, "initrd.img"),
            "--append", f"{cmdline} {append}".strip()]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


CURSOR_MOVE = re.compile(rb"\r?\x1b\[\d+;\d+H")


class Nacre:
    """One `nacre` process on pipes, or on a pseudo-terminal."""

    def __init__(self, *arguments, terminal=False):
        if not NACRE.exists():
            raise AssertionError(f"{NACRE} is missing: run scripts/build")
        command = [str(a) for a in (NACRE, *arguments)]
        self.command = " ".join(command)
        self.output = b""
        self.position = 0
        # The BIOS shows what is written onto the screen on the serial port too, and may come back to a line that it
        # has begun ("b", a return, a move of the cursor, "oot:").
        self.screen = "--firmware" in command
        self.wide = False
        self.master = None
        self.messages = tempfile.TemporaryFile()  # a pipe that nobody reads could stop the process
        if terminal:
            self.master, slave = pty.openpty()
            self.before = termios.tcgetattr(slave)
            self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=self.messages,
                                            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
            self.slave = slave
            self.source = self.master
        else:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=self.messages, start_new_session=True)
            self.source = self.process.stdout.fileno()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.messages):
            if stream:
                stream.close()
        for fd in (self.master, getattr(self, "slave", None)):
            if fd is not None:
                os.close(fd)

    def send(self, text):
        data = text.encode() if isinstance(text, str) else text
        if self.master is not None:
            os.write(self.master, data)
        else:
            self.process.stdin.write(data)
            self.process.stdin.flush()

    def end_input(self):
        self.process.stdin.close()
        self.process.stdin = None

    def read_some(self, seconds):
        """False at the end of the output."""
        if not select.select([self.source], [], [], max(0.0, seconds))[0]:
            return True
        try:
            data = os.read(self.source, 65536)
        except OSError:  # EIO: the last writer closed the terminal
            data = b""
        self.output += data
        if self.screen:
            self.output = self.output[:self.position] + CURSOR_MOVE.sub(b"", self.output[self.position:])
        return bool(data)

    def seen(self, text, seconds):
        """Whether text comes within these seconds; it stays to be expected."""
        deadline = time.monotonic() + seconds
        while text.encode() not in self.output[self.position:]:
            if time.monotonic() > deadline or not self.read_some(min(1, seconds)):
                return False
        return True

    def expect(self, text, seconds=120):
        """Waits for text after what was expected before; returns what came until then."""
        deadline = time.monotonic() + seconds
        needle = text.encode()
        while needle not in self.output[self.position:]:
            if time.monotonic() > deadline:
                self.give_up(f"no {text!r} within {seconds} s")
            if not self.read_some(1):
                self.give_up(f"the output ended before {text!r}")
        end = self.output.index(needle, self.position) + len(needle)
        passed = self.output[self.position:end]
        self.position = end
        return passed.decode(errors="replace")

    def command_output(self, line, seconds=120):
        """Runs one command in the guest's shell and returns its output (the prompt must have been seen)."""
        if not self.wide:  # else the echo of a long line is wrapped
            self.wide = True
            self.command_output("stty cols 2000")
        self.send(line + "\n")
        self.expect("\n", seconds)  # the echo of the line
        return self.expect(PROMPT, seconds).rpartition("\n")[0].replace("\r", "")

    def wait(self, seconds=120):
        """The exit status; output is drained meanwhile."""
        deadline = time.monotonic() + seconds
        ended = False
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                self.give_up(f"still running after {seconds} s")
            if ended:
                time.sleep(0.02)
            elif not self.read_some(0.2):
                ended = True
        if self.master is None:
            while not ended and self.read_some(0.2):
                ended = not select.select([self.source], [], [], 0)[0]
        return self.process.returncode

    @property
    def errors(self):
        """What it has said on standard error so far."""
        return os.pread(self.messages.fileno(), 1 << 20, 0).decode(errors="replace")

    def memory_mib(self):
        """What the process costs the host: its share of every page (a page that it maps twice counts once)."""
        lines = pathlib.Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024

    def text(self):
        return self.output.decode(errors="replace")

    def give_up(self, reason):
        raise AssertionError(f"{self.command}\n{reason}\n--- output:\n{self.text()[-4000:]}\n"
                             f"--- errors:\n{self.errors[-4000:]}")


class GuestCase(unittest.TestCase):
    maxDiff = None

    def check_exit(self, guest, expected, seconds=120):
        status = guest.wait(seconds)
        self.assertEqual(status, expected, f"{guest.command}\n{guest.text()[-4000:]}\n{guest.errors[-4000:]}")

    def run_lines(self, lines, *arguments, seconds=120, expected=0):
        """Feeds lines by a pipe from the start, as `printf ... | nacre run` does; returns the output."""
        with Nacre("run", *arguments) as guest:
            guest.send("".join(line + "\n" for line in lines))
            guest.end_input()
            self.check_exit(guest, expected, seconds)
            return guest.text()


class Folder(GuestCase):
    """Cases that need files of their own, and runs where only the status and the messages matter."""

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def write(self, name, content):
        path = pathlib.Path(self.folder.name) / name
        path.write_bytes(content)
        return path

    def run_status(self, *arguments, seconds=60):
        with Nacre("run", "--net", "none", "--serial", "none", *arguments) as guest:
            guest.end_input()
            status = guest.wait(seconds)
            self.assertNotIn(status, CRASHES, f"{guest.command}\n{guest.errors[-4000:]}")
            self.assertNotIn("Sanitizer", guest.errors)
            self.assertNotIn("CHECK", guest.errors)
            return status, guest.errors


def main():
    unittest.main(module="__main__", argv=[sys.argv[0], "-v", *sys.argv[1:]])
