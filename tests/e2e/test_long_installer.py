"""The Debian installer itself installs onto an empty disk on virtio, IDE or SATA, without anybody at the keyboard: packages
from the mirror through the user-mode network. Then the disk boots by SeaBIOS, GRUB and its own kernel to a login. Each
installation is a case: test_long_installer.py Installer.test_onto_an_ide_disk

And its disc starts by SeaBIOS: the menu on the screen, an entry changed at the keyboard, the installer's first question."""
import collections
import functools
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import time

import debian_installer
import png
import screen_text
from harness import ENGINE, NACRE, GuestCase, Nacre, main

DISK_BYTES = 4 << 30
INSTALL_SECONDS, BOOT_SECONDS = 5400, 900
PASSWORD = "nacre"


class Syslog:
    """Takes what the installer's syslogd sends by UDP to the host."""

    def __init__(self, file):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.file = file
        self.file.touch()
        self.thread = threading.Thread(target=self.take, daemon=True)
        self.thread.start()

    def take(self):
        with self.file.open("ab", buffering=0) as out:
            while message := self.socket.recv(65536):
                out.write(message.rstrip() + b"\n")

    def close(self):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
            end.sendto(b"", ("127.0.0.1", self.port))
        self.thread.join()
        self.socket.close()

    def end_of_text(self):
        return b"\n".join(self.file.read_bytes().splitlines()[-80:]).decode(errors="replace")


@functools.cache
def find():
    try:
        installer = debian_installer.find()
    except debian_installer.Unavailable as error:
        raise AssertionError(f"no installer can be had from {debian_installer.MIRROR}:\n{error}") from None
    print(f"{installer.folder.name}, kernel {installer.kernel_version}; from earlier builds: {installer.additions}; "
          f"left out, for the mirror lacks them: {installer.dispensed}; "
          f"in the initrd's build, for the mirror lacks the newest: {installer.kept}", flush=True)
    return installer


class InstallerCase(GuestCase):
    def setUp(self):
        self.installer = find()
        folder = tempfile.TemporaryDirectory(prefix="nacre-installer-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)


class Installer(InstallerCase):
    def setUp(self):
        super().setUp()
        self.disk = self.folder / "disk.img"
        self.disk.touch()
        os.truncate(self.disk, DISK_BYTES)

    def install_and_boot(self, bus, device):
        answers = self.installer.extra_initrd(self.folder, device, PASSWORD)
        syslog = Syslog(self.folder / "syslog")
        self.addCleanup(syslog.close)
        try:
            self.install(bus, answers, syslog.port)
        except AssertionError:
            print(syslog.end_of_text(), file=sys.stderr)
            raise
        self.boot(bus, device)

    def install(self, bus, answers, syslog_port):
        start = time.monotonic()
        with Nacre("run", "--engine", ENGINE, "--memory", "1G", "--cpus", "2",
                   "--kernel", self.installer.kernel, "--initrd", self.installer.initrd, "--initrd", answers,
                   "--append", "auto=true priority=critical DEBIAN_FRONTEND=text TERM=dumb console=ttyS0"
                               f" log_host=10.0.2.2 log_port={syslog_port} --- console=ttyS0",
                   "--disk", f"{self.disk},bus={bus}") as guest:
            guest.expect("Loading additional components", BOOT_SECONDS)
            self.check_exit(guest, 0, INSTALL_SECONDS)
            self.assertIn("Installing GRUB", guest.text())
        print(f"installed onto {bus} in {time.monotonic() - start:.0f} s", flush=True)

    def boot(self, bus, device):
        start = time.monotonic()
        with Nacre("run", "--engine", ENGINE, "--memory", "1G", "--cpus", "2", "--firmware", "bios",
                   "--disk", f"{self.disk},bus={bus}") as guest:
            guest.expect("installed login: ", BOOT_SECONDS)
            print(f"its login after {time.monotonic() - start:.0f} s", flush=True)
            guest.send("root\n")
            guest.expect("Password: ", BOOT_SECONDS)
            guest.send(f"{PASSWORD}\n")
            guest.expect("root@installed", BOOT_SECONDS)
            guest.send("findmnt -n -o SOURCE /; cat /sys/class/dmi/id/bios_vendor /proc/cmdline; "
                       "systemctl is-system-running --wait; poweroff\n")
            guest.expect(f"{device}1", BOOT_SECONDS)
            guest.expect("SeaBIOS", BOOT_SECONDS)
            print(guest.expect("BOOT_IMAGE=/boot/vmlinuz-", BOOT_SECONDS), end="", flush=True)
            print(guest.expect("running", BOOT_SECONDS), flush=True)
            self.check_exit(guest, 0, BOOT_SECONDS)

    def test_onto_a_virtio_disk(self):
        self.install_and_boot("virtio", "/dev/vda")

    def test_onto_an_ide_disk(self):
        self.install_and_boot("ide", "/dev/sda")

    def test_onto_a_sata_disk(self):
        self.install_and_boot("sata", "/dev/sda")


class Disc(InstallerCase):
    def call(self, command, *words):
        subprocess.run([NACRE, command, self.folder / "vm.sock", *words], check=True, capture_output=True, timeout=120)

    def text(self):
        """Of ISOLINUX's graphical menu, on its picture; its rows start below half a margin."""
        self.call("screenshot", self.folder / "screen.png")
        return screen_text.read(self.folder / "screen.png", screen_text.Font(screen_text.VGA_BIOS), top=8, bright=150)

    def wait_for(self, wanted):
        """Until what the screen shows is as wanted."""
        deadline = time.monotonic() + BOOT_SECONDS
        while not wanted(text := self.text()):
            self.assertLess(time.monotonic(), deadline, f"the screen showed {text}")
            time.sleep(0.5)

    def start(self, *options):
        return Nacre("run", "--engine", ENGINE, "--memory", "1G", "--net", "none", "--firmware", "bios", "--cdrom",
                     self.installer.disc(self.folder), "--display", "offscreen", "--control", self.folder / "vm.sock", *options)

    def choose(self, guest, words):
        """The menu's first entry, with these words after those of its command line."""
        guest.expect("ISOLINUX", BOOT_SECONDS)
        self.wait_for(lambda text: "Debian GNU/Linux installer menu (BIOS mode)" in text)
        self.call("key", "tab")
        self.wait_for(lambda text: "initrd=" in text)
        self.call("type", f" {words}")
        self.wait_for(lambda text: words in text)
        self.call("key", "enter")

    def test_menu_and_first_question(self):
        with self.start() as guest:
            self.choose(guest, "console=ttyS0 DEBIAN_FRONTEND=text")
            guest.expect("Choose the language to be used for the installation process.", BOOT_SECONDS)

    def test_virtio_gpu_takes_over_the_screen(self):
        """The menu is on the VGA, which no driver takes; the first question on virtio-gpu, which a VGA in text mode leaves
        the screen to: black letters of the installer's own font on grey."""
        def question(_):
            width, height, pixels = png.read(self.folder / "screen.png")
            colours = collections.Counter(pixel for row in pixels for pixel in row)
            return (width, height) == (1024, 768) and len(colours) == 2 and colours[(0, 0, 0)] > 1000 \
                and colours[(170, 170, 170)] > width * height * 0.9

        with self.start("--gpu", "virtio") as guest:
            self.choose(guest, "vga=normal modprobe.blacklist=bochs DEBIAN_FRONTEND=text")
            self.wait_for(question)


if __name__ == "__main__":
    main()
