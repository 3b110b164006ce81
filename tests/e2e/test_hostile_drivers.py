"""Linux guests that mean harm, or that were given a broken initrd: Nacre survives."""
import gzip
import re

from harness import ENGINE, CRASHES, Folder, Nacre, boot_arguments, guest_file, main


class HostileDrivers(Folder):
    """A Linux guest that writes garbage into every PCI device's registers, past its drivers."""

    SCRIPT = ("for d in /sys/bus/pci/devices/*; do while read a e f; do s=$((e-a+1)); "
              "case $((f & 0x200)) in 512) i=0; while [ $i -lt 60 ]; do i=$((i+1)); r=$(od -An -N8 -tu4 /dev/urandom); set -- $r; "
              "w=8; case $(($2 % 3)) in 0) w=16;; 1) w=32;; esac; o=$(($1 % s / 4 * 4)); "
              "devmem $((a+o)) $w $(($2 % 256)) 2>/dev/null; done;; esac; done <$d/resource; done; echo garbage-end")

    def test_garbage_to_every_register(self):
        disk = self.write("disk", bytes(1 << 20))
        append = f'iomem=relaxed nacre.exec="{self.SCRIPT}; poweroff -f"'
        with Nacre("run", "--engine", ENGINE, "--disk", disk, "--timeout", "100",
                   *boot_arguments("cloud-amd64", append)) as guest:
            status = guest.wait(120)
            self.assertNotIn(status, CRASHES, guest.errors)
            self.assertIn(status, (0, 3, 124), guest.errors)  # the guest may well hang itself
            self.assertNotIn("CHECK", guest.errors)


class Truncation(Folder):
    def test_cut_initrd_is_the_guests_affair(self):
        whole = guest_file("cloud-amd64", "initrd.img").read_bytes()
        path = self.write("initrd", gzip.compress(whole[: len(whole) // 2])[:1000])
        arguments = boot_arguments("cloud-amd64")
        arguments[3] = path
        with Nacre("run", "--engine", ENGINE, "--no-reboot", *arguments) as guest:
            status = guest.wait(120)
            self.assertNotIn(status, CRASHES, guest.errors)
            self.assertTrue(re.search("panic|not syncing", guest.text()), guest.text()[-2000:])


if __name__ == "__main__":
    main()
