"""The virtio console: the guest's hvc0 on a pipe, a terminal (with its size) or a file, with and without the serial port."""
import fcntl
import hashlib
import struct
import termios

from harness import ENGINE, Folder, GuestCase, LEAVE, Nacre, PROMPT, boot_arguments, guest_file, main


def on_hvc0(kind, words="console=hvc0 quiet panic=-1 nacre.net=off"):
    """Arguments for a prepared guest that has no console but hvc0."""
    return ["--engine", ENGINE, "--net", "none", "--kernel", guest_file(kind, "vmlinuz"), "--initrd",
            guest_file(kind, "initrd.img"), "--append", words]


class Console(GuestCase):
    def check(self, kind, machine):
        text = self.run_lines(["uname -a; tty", "poweroff -f"], *on_hvc0(kind), "--console", "stdio")
        self.assertRegex(text, rf"Debian 6\.1\.\S+ \([0-9-]+\) {machine} GNU/Linux\s+/dev/hvc0\s")
        self.assertNotIn("Kernel panic", text)
        self.assertNotIn("init: ", text)

    def test_cloud_amd64(self):
        self.check("cloud-amd64", "x86_64")

    def test_i386(self):
        self.check("i386", "i686")

    def test_default_guest(self):
        text = self.run_lines(["tty", "poweroff -f"], "--console", "stdio")
        self.assertRegex(text, r"tty\s+/dev/hvc0\s")

    def test_much_input_and_output(self):
        # Input far above what the device and the guest's terminal hold at once, while the guest is busy answering.
        numbers = range(3000)
        text = "".join(f"line {number}\n" for number in numbers)
        with Nacre("run", *on_hvc0("cloud-amd64"), "--console", "stdio") as guest:
            guest.expect(PROMPT)
            guest.command_output("")  # wide lines from here on
            guest.send("stty -echo; sleep 1; head -n 3000 | sha256sum; seq 20000; stty echo\n")
            guest.expect("stty echo\r\n")
            guest.send(text)
            guest.expect("\r\n20000\r\n")
            answer = guest.text().replace("\r", "")
            guest.send("poweroff -f\n")
            self.check_exit(guest, 0)
        expected = hashlib.sha256(text.encode()).hexdigest()
        self.assertIn(expected, answer)
        self.assertIn("\n".join(str(number) for number in range(1, 20001)), answer)


class ConsoleTerminal(GuestCase):
    def resize(self, guest, rows, columns):
        fcntl.ioctl(guest.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def wait_for_size(self, guest, rows, columns):
        # The size arrives as a message of its own, after the key that follows it perhaps.
        for _ in range(50):
            size = guest.command_output("usleep 100000; stty size")
            if size == f"{rows} {columns}":
                return
        self.fail(f"the guest's terminal is {size}, not {rows} {columns}")

    def test_size_and_leave_key(self):
        with Nacre("run", *on_hvc0("cloud-amd64"), "--console", "stdio", terminal=True) as guest:
            guest.wide = True  # the size is what is tested
            self.resize(guest, 50, 132)
            guest.expect(PROMPT)
            self.wait_for_size(guest, 50, 132)
            self.resize(guest, 31, 97)
            self.wait_for_size(guest, 31, 97)
            guest.send(LEAVE)
            self.check_exit(guest, 0, 20)
            self.assertEqual(termios.tcgetattr(guest.slave), guest.before)


class ConsoleFile(Folder):
    def test_file_beside_the_serial_port(self):
        path = self.write("hvc0", b"what was there before")
        text = self.run_lines(["tty", "echo to the file >/dev/hvc0", "poweroff -f"], "--engine", ENGINE, "--console",
                              f"file:{path}", *boot_arguments("cloud-amd64", "nacre.net=off"))
        self.assertRegex(text, r"tty\s+/dev/ttyS0\s")
        self.assertEqual(path.read_bytes(), b"to the file\r\n")

    def test_a_guest_that_looks_for_a_console_it_does_not_have(self):
        # No hvc0: the shell goes on with what there is.
        with Nacre("run", *on_hvc0("cloud-amd64", "console=ttyS0 console=hvc0 quiet nacre.net=off")) as guest:
            guest.expect(PROMPT)
            self.assertEqual(guest.command_output("tty"), "/dev/ttyS0")
            guest.send("poweroff -f\n")
            self.check_exit(guest, 0)


class ConsoleOptions(Folder):
    def test_both_on_standard_input(self):
        with Nacre("run", "--serial", "stdio", "--console", "stdio") as guest:
            self.check_exit(guest, 2)
            self.assertIn("--serial stdio and --console stdio", guest.errors)

    def test_file_that_cannot_be_made(self):
        status, errors = self.run_status(*on_hvc0("cloud-amd64"), "--console", f"file:{self.folder.name}/no/such/folder")
        self.assertEqual(status, 1)
        self.assertRegex(errors, "--console file:.*No such file")


if __name__ == "__main__":
    main()
