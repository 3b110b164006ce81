"""Images with GRUB for BIOS and for UEFI, made by grub-mkrescue of Debian's packages: each is CD and disk in one."""
import pathlib
import shutil
import subprocess

from harness import PROMPT, guest_file

# OVMF reads the serial port too, and would take some of the bytes: there GRUB gets them through it.
CONFIG = """if [ "$grub_platform" = pc ]; then
  serial --unit=0 --speed=115200
  terminal_input serial console
  terminal_output serial console
fi
set timeout=-1
menuentry "First entry" {{
  echo never started
}}
menuentry "Linux from the disk" {{
  linux /boot/vmlinuz {line}
  initrd /boot/initrd.img
}}
"""
TITLE = "GNU GRUB  version"
ENTRY = "Linux from the disk"


def make_image(folder):
    root = pathlib.Path(folder, "root")
    (root / "boot/grub").mkdir(parents=True)
    for name in ("vmlinuz", "initrd.img"):
        shutil.copyfile(guest_file("cloud-amd64", name), root / "boot" / name)
    line = guest_file("cloud-amd64", "cmdline").read_text().strip()
    (root / "boot/grub/grub.cfg").write_text(CONFIG.format(line=line))
    image = pathlib.Path(folder, "grub.img")
    subprocess.run(["grub-mkrescue", "-o", image, root], check=True, capture_output=True)
    shutil.rmtree(root)
    return image


def start_linux(guest, seconds):
    """By the serial port, to the shell."""
    guest.expect(ENTRY, seconds)
    guest.send("\x1b[B\r")  # cursor down, enter
    guest.expect(PROMPT, seconds)
