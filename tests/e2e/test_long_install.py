"""A guest installs Debian onto an empty disk, with packages from the mirror through the user-mode network; then the disk
boots by SeaBIOS, GRUB and its own kernel to a login, on virtio, IDE and SATA."""
import functools
import http.server
import os
import pathlib
import tempfile
import threading

from harness import ENGINE, GuestCase, Nacre, guest_file, main

SCRIPT = pathlib.Path(__file__).with_name("install.sh")
DISK_BYTES = 3 << 30
INSTALL_SECONDS, BOOT_SECONDS = 3000, 600


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class Install(GuestCase):
    def setUp(self):
        handle, name = tempfile.mkstemp(prefix="nacre-install-", suffix=".img")
        os.ftruncate(handle, DISK_BYTES)
        os.close(handle)
        self.disk = pathlib.Path(name)
        self.addCleanup(self.disk.unlink)
        handler = functools.partial(QuietHandler, directory=str(SCRIPT.parent))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.addCleanup(self.server.shutdown)

    def install(self):
        with Nacre("run", "--engine", ENGINE, "--memory", "1G", "--cpus", "2",
                   "--kernel", guest_file("debian12", "vmlinuz"), "--initrd", guest_file("debian12", "initrd.img"),
                   "--append", guest_file("debian12", "cmdline").read_text().strip() + " nacre.autologin",
                   "--disk", f"{guest_file('debian12', 'disk.img')},snapshot", "--disk", self.disk) as guest:
            guest.expect("root@debian12", BOOT_SECONDS)
            url = f"http://10.0.2.2:{self.server.server_port}/{SCRIPT.name}"
            guest.send(f"until wget -q {url}; do sleep 1; done; sh {SCRIPT.name} /dev/vdb; poweroff\n")
            guest.expect("The installation is complete.", INSTALL_SECONDS)
            self.check_exit(guest, 0, BOOT_SECONDS)

    def boot(self, bus, expected):
        with self.subTest(bus=bus), Nacre("run", "--engine", ENGINE, "--memory", "1G", "--firmware", "bios",
                                          "--disk", f"{self.disk},bus={bus},snapshot") as guest:
            guest.expect("GRUB", BOOT_SECONDS)
            guest.expect("installed login:", BOOT_SECONDS)
            guest.send("root\n")
            guest.expect("root@installed", BOOT_SECONDS)
            guest.send("findmnt -n -o SOURCE /; cat /sys/class/dmi/id/bios_vendor; poweroff\n")
            guest.expect(f"{expected}1", BOOT_SECONDS)
            guest.expect("SeaBIOS", BOOT_SECONDS)
            self.check_exit(guest, 0, BOOT_SECONDS)

    def test_install_and_boot(self):
        self.install()
        for bus, device in (("virtio", "/dev/vda"), ("ide", "/dev/sda"), ("sata", "/dev/sda")):
            self.boot(bus, device)


if __name__ == "__main__":
    main()
