"""GRUB from a CD, by SeaBIOS and by OVMF: its menu on the serial port and on the screen, and the PS/2 keyboard."""
import pathlib
import subprocess
import tempfile
import time

import grub
import png
import screen_text
from harness import ENGINE, GuestCase, NACRE, Nacre, PROMPT, main


class Menu(GuestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.image = grub.make_image(cls.folder.name)
        cls.socket = pathlib.Path(cls.folder.name, "vm.sock")
        cls.picture = pathlib.Path(cls.folder.name, "screen.png")

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def call(self, command, *words):
        subprocess.run([NACRE, command, self.socket, *words], check=True, capture_output=True, timeout=120)

    def wait_for(self, look, wanted):
        """Until what `look` makes of the screen is as wanted."""
        deadline = time.monotonic() + 120
        while True:
            self.call("screenshot", self.picture)
            seen = look()
            if wanted(seen):
                return seen
            self.assertLess(time.monotonic(), deadline, f"the screen showed {seen}")
            time.sleep(0.2)

    def text(self):
        return screen_text.read(self.picture, screen_text.Font(screen_text.VGA_BIOS), cell_width=9)

    def bar(self):
        """First and last line of the highlighted entry: OVMF has a font of its own, which is not read here."""
        width, height, pixels = png.read(self.picture)
        lit = [y for y in range(height) if sum(pixel != (0, 0, 0) for pixel in pixels[y]) > width / 3]
        inside = [y for y in lit if y - 1 in lit or y + 1 in lit]  # not the frame
        return (inside[0], inside[-1]) if inside else None

    def run_menu(self, firmware, bus):
        return Nacre("run", "--engine", ENGINE, "--firmware", firmware, "--cdrom", f"{self.image},bus={bus}", "--net", "none",
                     "--control", self.socket)

    def start(self, guest):
        self.call("key", "enter")
        guest.expect(PROMPT, 300)
        self.assertIn("Linux nacre 6.1.0", guest.command_output("uname -a"))
        guest.send("poweroff -f\n")
        self.check_exit(guest, 0)

    def test_bios(self):
        with self.run_menu("bios", "ide") as guest:
            guest.expect(grub.TITLE, 300)
            guest.expect(grub.ENTRY, 300)
            text = self.wait_for(self.text, lambda text: f"*First entry\n   {grub.ENTRY}" in text)
            self.assertIn(grub.TITLE, text)
            self.call("key", "down")
            self.wait_for(self.text, lambda text: f"   First entry\n  *{grub.ENTRY}" in text)
            self.start(guest)

    def test_uefi(self):
        with self.run_menu("uefi", "sata") as guest:
            guest.expect(grub.TITLE, 300)
            guest.expect(grub.ENTRY, 300)
            first, last = self.wait_for(self.bar, lambda bar: bar is not None and bar[1] - bar[0] == 18)
            self.call("key", "down")
            self.wait_for(self.bar, lambda bar: bar == (first + 19, last + 19))
            self.start(guest)


if __name__ == "__main__":
    main()
