"""The screen by VNC, seen and typed at by a client of Debian's (Net::VNC for Perl, package libnet-vnc-perl), and by the
commands for running VMs."""
import pathlib
import subprocess
import tempfile
import time

import png
from harness import ENGINE, Folder, GuestCase, NACRE, Nacre, PROMPT, boot_arguments, free_port, main

# Logs in, types $3, prints the size of the screen and the colour of the middle of it.
CLIENT = r"""
use Net::VNC;
my ($port, $password, $text) = @ARGV;
my $vnc = Net::VNC->new({hostname => "127.0.0.1", port => $port, password => $password});
$vnc->depth(24);
$vnc->login;
$vnc->send_key_event_string($text) if length $text;
$vnc->send_key_event(0xff0d) if length $text;
my $image = $vnc->capture;
my ($r, $g, $b) = $image->query_pixel($vnc->width / 2, $vnc->height / 2);
printf "%dx%d %02x%02x%02x\n", $vnc->width, $vnc->height, $r, $g, $b;
"""


class Vnc(GuestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.password = pathlib.Path(folder.name) / "password"
        self.password.write_text("seashell\n")
        self.port = free_port()

    def client(self, password, text=""):
        result = subprocess.run(["perl", "-e", CLIENT, str(self.port), password, text], capture_output=True, text=True,
                                timeout=60)
        return result.stdout.strip() if result.returncode == 0 else None

    def test_linux_on_a_linear_frame_buffer(self):
        with Nacre("run", "--engine", ENGINE, "--net", "none", "--display", f"vnc:127.0.0.1:{self.port},password={self.password}",
                   *boot_arguments("amd64")) as guest:
            guest.expect(PROMPT)
            self.assertIsNone(self.client("mussel"))
            self.assertEqual(guest.command_output(r"printf '\033[41m\033[2J' >/dev/tty1").strip(), "")
            self.assertEqual(self.client("seashell"), "1024x768 aa0000")
            guest.send("read line </dev/tty1; echo typed: $line\n")
            self.assertEqual(self.client("seashell", "Nacre of pearl!"), "1024x768 aa0000")
            guest.expect("typed: Nacre of pearl!")
            guest.expect(PROMPT)
            guest.send("poweroff -f\n")
            self.check_exit(guest, 0)


class Commands(Folder):
    def call(self, command, *words, expected=0):
        done = subprocess.run([NACRE, command, self.socket, *words], capture_output=True, text=True, timeout=120, check=False)
        self.assertEqual(done.returncode, expected, f"{command} {words}: {done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def test_screenshot_type_and_key(self):
        self.socket = pathlib.Path(self.folder.name) / "vm.sock"
        picture = pathlib.Path(self.folder.name) / "screen.png"
        text = "Nacre: ~!@#$%^&*() 'of' \"pearl\" {a|b} <c> d-e_f=g?"
        with Nacre("run", "--engine", ENGINE, "--net", "none", "--display", "offscreen", "--control", self.socket, "--no-reboot",
                   *boot_arguments("amd64")) as guest:
            guest.expect(PROMPT)
            guest.command_output(r"printf '\033[44m\033[2J' >/dev/tty1")
            self.assertEqual(self.call("screenshot", picture), f"{picture}: 1024 x 768\n")
            width, height, pixels = png.read(picture)
            self.assertEqual((width, height, pixels[height // 2][width // 2]), (1024, 768, (0, 0, 0xaa)))
            # The order of strokes, Shift's among them, over the bounds of what one call takes; the pace of the guest.
            guest.send("for i in 1 2; do read -r line </dev/tty1; echo typed: $line; done\n")
            self.call("type", text)
            self.call("key", "enter")
            guest.expect(f"typed: {text}")
            long = "pearl " * 50 + "end"
            self.call("type", long + "\n")
            guest.expect(f"typed: {long}")
            guest.expect(PROMPT)
            self.assertIn("'ß' (U+00DF)", self.call("type", "groß", expected=2))
            self.assertIn("absolute", self.call("control", "display.screenshot", '{"path": "screen.png"}', expected=1))
            self.assertIn("/none/", self.call("screenshot", "/none/screen.png", expected=1))
            # A still guest can be looked at; what is typed meanwhile waits for it.
            self.call("pause")
            self.call("screenshot", picture)
            typing = subprocess.Popen([NACRE, "type", self.socket, "later\n"])
            time.sleep(0.2)
            self.assertIsNone(typing.poll())
            self.call("resume")
            self.assertEqual(typing.wait(60), 0)
            guest.command_output("echo 1 >/proc/sys/kernel/ctrl-alt-del")
            # The guest may be gone before the keys are released.
            subprocess.run([NACRE, "key", self.socket, "ctrl-alt-del"], capture_output=True, timeout=120, check=False)
            self.check_exit(guest, 0)


main()
