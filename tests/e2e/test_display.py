"""The screen by VNC, seen and typed at by a client of Debian's (Net::VNC for Perl, package libnet-vnc-perl)."""
import pathlib
import subprocess
import tempfile

from harness import ENGINE, GuestCase, Nacre, PROMPT, boot_arguments, free_port, main

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


main()
