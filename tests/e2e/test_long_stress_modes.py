"""The translator with what is rare made frequent (docs/cli.md, --jit-stress): Debian 12 with systemd to its login in every
mode. The smallest code memory and invalidations at most block boundaries are for the cloud kernel; they would take Debian
an hour. On a host that is busy otherwise the slowest modes can exceed the 90 s that systemd waits for the terminal's device,
which no option on the kernel's command line lengthens."""
from harness import GuestCase, Nacre, boot_arguments, guest_file, main

SECONDS = 3600
PATIENCE = "systemd.default_timeout_start_sec=1800"  # services; 90 s otherwise


class Stress(GuestCase):
    def login(self, mode):
        disk = f"{guest_file('debian12', 'disk.img')},snapshot"
        with Nacre("run", "--engine", "jit", "--jit-stress", mode, "--memory", "512M", "--disk", disk,
                   *boot_arguments("debian12", PATIENCE)) as guest:
            guest.expect("debian12 login: ", SECONDS)
            self.assertNotIn("Kernel panic", guest.text())

    def cloud(self, mode):
        text = self.run_lines(["uname -a", "poweroff -f"], "--engine", "jit", "--jit-stress", mode,
                              *boot_arguments("cloud-amd64"), seconds=SECONDS)
        self.assertRegex(text, r"Debian 6\.1\.\S+ \([0-9-]+\) x86_64 GNU/Linux")
        self.assertNotIn("Kernel panic", text)

    def test_debian_cache(self):
        self.login("cache=4")

    def test_debian_tlb(self):
        self.login("tlb")

    def test_debian_interrupt(self):
        self.login("interrupt")

    def test_debian_flush(self):
        self.login("flush")

    def test_debian_invalidate(self):
        self.login("invalidate=64")

    def test_debian_compact(self):
        self.login("compact")

    def test_debian_sample(self):
        self.login("compact,sample")

    def test_debian_together(self):
        self.login("compact,sample=16,tlb,flush=8")

    def test_cloud_cache(self):
        self.cloud("cache")

    def test_cloud_interrupt(self):
        self.cloud("interrupt")

    def test_cloud_flush(self):
        self.cloud("flush")

    def test_cloud_invalidate(self):
        self.cloud("invalidate=16")


if __name__ == "__main__":
    main()
