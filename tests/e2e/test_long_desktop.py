"""An X11 desktop in Debian (scripts/make-rootfs debian12-desktop) on VGA and on virtio-gpu, by direct boot and by firmware,
seen, typed at and clicked by a VNC client of Debian's (Net::VNC for Perl, package libnet-vnc-perl)."""
import os
import pathlib
import subprocess
import tempfile
import time

from harness import ENGINE, GuestCase, Nacre, boot_arguments, free_port, guest_file, main

# One connection; each order is carried out before the next: "look X Y" prints the screen's size and the pixel's colour,
# "type TEXT" ends with Enter, "click X Y", "copy TEXT" is the viewer's clipboard, "copied" prints "ready" and the next text
# that the server tells of, "still SECONDS" waits for changes as viewers do and prints how many bytes came, "size WIDTH HEIGHT"
# (SetDesktopSize) prints the server's answer.
CLIENT = r"""
use Net::VNC;
$SIG{__WARN__} = sub {};  # the module prints each key
my ($port, $password, @orders) = @ARGV;
my $vnc = Net::VNC->new({hostname => "127.0.0.1", port => $port, password => $password});
$vnc->depth(24);
$vnc->hide_cursor(1);
$vnc->login;
my $socket = $vnc->socket;
sub bytes { $socket->read(my $data, $_[0]) == $_[0] or die "the server has hung up"; $data }
$| = 1;
sub want_changes { $socket->print(pack "CCnnnn", 3, 1, 0, 0, $vnc->width, $vnc->height) }
for (@orders) {
  my ($order, $rest) = split / /, $_, 2;
  my ($x, $y) = split / /, $rest;
  if ($order eq "look") {
    my ($r, $g, $b) = $vnc->capture->query_pixel($x, $y);
    printf "%dx%d %02x%02x%02x\n", $vnc->width, $vnc->height, $r, $g, $b;
  } elsif ($order eq "type") {
    $vnc->send_key_event_string($rest);
    $vnc->send_key_event(0xff0d);
  } elsif ($order eq "click") {
    $vnc->send_pointer_event(@$_, $x, $y) for [0], [1], [0];
  } elsif ($order eq "copy") {
    utf8::decode($rest);
    $socket->print(pack("CxxxN", 6, length $rest) . $rest);
  } elsif ($order eq "copied") {
    print "ready\n";
    my ($type, $size) = unpack "CxxxN", bytes(8);
    die "message $type" if $type != 3;
    my $text = bytes($size);
    utf8::encode($text);
    print "$text\n";
  } elsif ($order eq "still") {
    $vnc->capture;
    want_changes;
    my ($end, $count) = (time + $x, 0);
    while ((my $left = $end - time) > 0) {
      vec(my $ready = "", fileno $socket, 1) = 1;
      next unless select $ready, undef, undef, $left;
      sysread($socket, my $data, 1 << 20) or die "the server has hung up";
      $count += length $data;
      want_changes;
    }
    print "$count\n";
  } elsif ($order eq "size") {
    $socket->print(pack "CCnl>l>", 2, 0, 2, 0, -308);                   # SetEncodings: raw, ExtendedDesktopSize
    $socket->print(pack "CCnnCCNnnnnN", 251, 0, $x, $y, 1, 0, 1, 0, 0, $x, $y, 0);
    my $answer;
    until (defined $answer) {
      want_changes;
      my ($type, $count) = unpack "Cxn", bytes(4);
      die "message $type" if $type != 0;
      for (1 .. $count) {
        my ($reason, $status, $width, $height, $encoding) = unpack "nnnnl>", bytes(12);
        die "encoding $encoding" unless $encoding == 0 || $encoding == -308;
        my $size = $encoding == 0 ? $width * $height * 4 : 3 + 16 * unpack "C", bytes(1);
        bytes($size) if $size;
        $answer = $status if $encoding == -308 && $reason == 1;  # 1: this client has asked
      }
    }
    print "$answer\n";
  }
}
"""
ROOT_PROMPT = "~# "
PASSWORD = "seashell"
BOOT_SECONDS, WAIT_SECONDS = 600, 300
# Of the session in scripts/make-rootfs: the root window's colour, the terminal's, and places in both.
ROOT_WINDOW, TERMINAL = "204060", "102010"
BESIDE, INSIDE, CLICK = (40, 700), (700, 560), (600, 500)
STILL_SECONDS = 30


class Desktop(GuestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.disk = pathlib.Path(folder.name) / "disk.img"
        self.password = pathlib.Path(folder.name) / "password"
        self.password.write_text(PASSWORD + "\n")
        subprocess.run(["cp", "--sparse=always", guest_file("debian12-desktop", "disk.img"), self.disk], check=True)
        self.port = free_port()

    def client(self, *orders):
        result = subprocess.run(["perl", "-e", CLIENT, str(self.port), PASSWORD, *orders], capture_output=True, text=True,
                                timeout=WAIT_SECONDS, check=False)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout.split("\n")[:-1]

    def copied_in_guest(self, copy):
        """What a client is told after copy()."""
        with subprocess.Popen(["perl", "-e", CLIENT, str(self.port), PASSWORD, "copied"], stdout=subprocess.PIPE,
                              text=True) as client:
            try:
                self.assertEqual(client.stdout.readline(), "ready\n")
                copy()
                return client.communicate(timeout=WAIT_SECONDS)[0]
            finally:
                client.kill()

    def wait_for(self, place, colour, size=None, seconds=WAIT_SECONDS):
        """Until the screen has this colour there."""
        size = size or self.size
        deadline = time.monotonic() + seconds
        seen = None
        while seen != f"{size} {colour}":
            self.assertLess(time.monotonic(), deadline, f"{place} is {seen}, not {size} {colour}\n{self.guest.text()[-3000:]}")
            time.sleep(1)
            seen = self.client(f"look {place[0]} {place[1]}")[0]

    def command(self, line):
        self.guest.send(f"{line}; echo end\\\"\\\"mark\n")
        return self.guest.expect('end""mark', WAIT_SECONDS).rsplit("end", 1)[0].replace("\r", "")

    def cpu_seconds(self, thread=None):
        """User and system time of the process, or of its threads of that name."""
        seconds = 0
        for task in pathlib.Path(f"/proc/{self.guest.process.pid}/task").iterdir():
            if thread in (None, (task / "comm").read_text().strip()):
                fields = (task / "stat").read_text().rpartition(")")[2].split()
                seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return seconds

    def use(self, *arguments, append="", drivers, size="1024x768", exact=True, more=lambda: None):
        """`drivers`: of the kernel and of Xorg, as they name themselves. `exact`: the pointer is where the client's is."""
        self.size = size
        with Nacre("run", "--engine", ENGINE, "--memory", "1G", "--cpus", "2", "--net", "none", "--disk", self.disk,
                   "--display", f"vnc:127.0.0.1:{self.port},password={self.password}", *arguments,
                   *boot_arguments("debian12-desktop", f"nacre.autologin {append}")) as self.guest:
            self.guest.expect(ROOT_PROMPT, BOOT_SECONDS)
            self.command("bind 'set enable-bracketed-paste off'; stty -echo; export DISPLAY=:0")
            self.wait_for(INSIDE, TERMINAL, seconds=BOOT_SECONDS)
            self.wait_for(BESIDE, ROOT_WINDOW)
            self.assertIn(drivers[0], self.command("cat /proc/fb"))
            self.assertIn(drivers[1], self.command("cat /var/log/Xorg.0.log"))
            # Typed: the terminal's background becomes another one.
            self.client(r"type printf '\033]11;#800040\007'")
            self.wait_for(INSIDE, "800040")
            # Clicked: where, in characters of the terminal.
            self.client(r"type clear; printf '\033[?1000h\033]11;#008040\007'; read -rsn6 where; "
                        r"printf %q $where >/root/where; printf '\033]11;#a08000\007'")
            self.wait_for(INSIDE, "008040")
            self.client(f"click {CLICK[0]} {CLICK[1]}")
            self.wait_for(INSIDE, "a08000")
            where = self.command("cat /root/where")
            if exact:
                self.check_cell(where)
            more()
            self.guest.send("poweroff\n")
            self.check_exit(self.guest, 0, WAIT_SECONDS)

    def check_cell(self, where):
        """Characters are 10 x 20 pixels from 103, 122 on; the report counts them from '!'."""
        column, row = ord("!") + (CLICK[0] - 103) // 10, ord("!") + (CLICK[1] - 122) // 20
        self.assertIn(f"{chr(column)}{chr(row)}", where.replace("\\", ""))

    def keep_still(self):
        """What a viewer of a screen on which nothing moves costs: a percent or two of a core, 5 at most."""
        begin, vnc, process = time.monotonic(), self.cpu_seconds("vnc"), self.cpu_seconds()
        count = self.client(f"still {STILL_SECONDS}")[0]
        seconds, vnc, process = time.monotonic() - begin, self.cpu_seconds("vnc") - vnc, self.cpu_seconds() - process
        print(f"\nstill screen, {seconds:.0f} s: VNC {100 * vnc / seconds:.2f} % of a core, "
              f"the process {100 * process / seconds:.1f} %, {count} bytes sent")
        self.assertLess(vnc / seconds, 0.05)

    def resize(self):
        """The client asks for another size; the driver hears of it (4: forwarded) and prefers it, and Xorg takes it."""
        self.assertEqual(self.client("size 1280 800"), ["4"])
        deadline = time.monotonic() + WAIT_SECONDS
        while "1280x800" not in self.command("xrandr | grep +"):
            self.assertLess(time.monotonic(), deadline, self.guest.text()[-3000:])
            time.sleep(1)
        self.command("xrandr --output Virtual-1 --preferred")
        self.wait_for((1270, 790), ROOT_WINDOW, size="1280x800")

    def share_clipboard(self):
        """Debian's spice-vdagent has started with the session."""
        self.client("copy from the viewer: \u00e9")
        deadline = time.monotonic() + WAIT_SECONDS
        while "from the viewer: \u00e9" not in self.command("timeout 20 xclip -o -selection clipboard -t UTF8_STRING"):
            self.assertLess(time.monotonic(), deadline, self.guest.text()[-3000:])
            time.sleep(1)
        told = self.copied_in_guest(lambda: self.command(r"printf 'from the\nguest: \303\251' | xclip -selection clipboard"))
        self.assertEqual(told, "from the\nguest: \u00e9\n")

    def refuse_size(self):
        """1: prohibited."""
        self.assertEqual(self.client("size 1280 800"), ["1"])

    def test_virtio_gpu_and_tablet(self):
        self.use("--gpu", "virtio", drivers=("virtio_gpudrmfb", "modeset(0): "), more=lambda: (self.keep_still(), self.resize()))

    def test_clipboard(self):
        self.use("--gpu", "virtio", "--clipboard", "on", drivers=("virtio_gpudrmfb", "modeset(0): "), more=self.share_clipboard)

    def test_virtio_gpu_by_uefi(self):
        self.use("--gpu", "virtio", "--firmware", "uefi", drivers=("virtio_gpudrmfb", "modeset(0): "))

    def test_vga_by_its_own_driver_and_tablet(self):
        self.use("--gpu", "vga", drivers=("bochs-drmdrmfb", "modeset(0): "),
                 more=lambda: (self.keep_still(), self.refuse_size()))

    def test_vga_by_bios(self):
        self.use("--gpu", "vga", "--firmware", "bios", drivers=("bochs-drmdrmfb", "modeset(0): "))

    # PS/2 knows moves only: the click is somewhere in the terminal, where Xorg's pointer is at first.

    def test_vga_by_vbe_calls_and_ps2_mouse(self):
        # A kernel that firmware starts has text on the screen; Xorg calls the VGA's BIOS.
        self.use("--gpu", "vga", "--input", "ps2", "--firmware", "bios", append="modprobe.blacklist=bochs",
                 drivers=("", "VESA(0): "), size="1280x720", exact=False)

    def test_vga_as_a_plain_frame_buffer_and_ps2_mouse(self):
        self.use("--gpu", "vga", "--input", "ps2", append="modprobe.blacklist=bochs", drivers=("VGA", "FBDEV(0): "),
                 exact=False)


if __name__ == "__main__":
    main()
