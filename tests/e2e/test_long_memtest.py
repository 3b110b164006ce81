"""memtest86+ of Debian's package from its CD, by SeaBIOS and by OVMF: one pass over a small memory, seen on the screen."""
import pathlib
import re
import subprocess
import tempfile
import time

import png
import screen_text
from harness import ENGINE, GuestCase, NACRE, Nacre, main

DISC = pathlib.Path("/usr/lib/memtest86+/memtest86+x64.iso")
COLUMNS, LINES = 80, 25


class Memtest(GuestCase):
    def screen(self, socket, picture):
        subprocess.run([NACRE, "screenshot", socket, picture], check=True, capture_output=True, timeout=120)
        width, height, _ = png.read(picture)
        if (width, height) == (720, 400):  # text mode
            return screen_text.read(picture, screen_text.Font(screen_text.VGA_BIOS), cell_width=9)
        # By UEFI it draws characters itself, with a font of its own, in the middle.
        font = screen_text.Font("/boot/memtest86+x64.efi")
        left, top = (width - 8 * COLUMNS) // 2, (height - screen_text.CELL_HEIGHT * LINES) // 2
        return screen_text.read(picture, font, left=left, top=top)

    def check(self, firmware, seconds=1500):
        with tempfile.TemporaryDirectory() as folder:
            socket, picture = pathlib.Path(folder, "vm.sock"), pathlib.Path(folder, "screen.png")
            with Nacre("run", "--engine", ENGINE, "--firmware", firmware, "--cdrom", DISC, "--memory", "64M", "--net", "none",
                       "--control", socket) as guest:
                guest.expect("\x1b", 120)  # the firmware's first word: the socket is there
                deadline = time.monotonic() + seconds
                tests, text = set(), ""
                while not re.search(r"Pass: +[1-9]", text):
                    self.assertLess(time.monotonic(), deadline, f"no pass within {seconds} s:\n{text}")
                    time.sleep(1)
                    text = self.screen(socket, picture)
                    tests.update(re.findall(r"Test #(\d+)", text))
                    self.assertNotRegex(text, r"Errors: +[1-9]")
                for line in (r"Memtest86\+ v6", r"Nacre Virtual CPU", r"Memory  : +\d+MB", r"Status: \w+", r"Errors: +0\b"):
                    self.assertRegex(text, line)
                self.assertIn("10", tests)  # the last one; it waits longest

    def test_bios(self):
        self.check("bios")

    def test_uefi(self):
        self.check("uefi")


if __name__ == "__main__":
    main()
