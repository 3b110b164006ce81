"""The same three kernels on the reference interpreter."""
from harness import GuestCase, boot_arguments, main


class BootInterp(GuestCase):
    def check(self, kind, machine):
        text = self.run_lines(["uname -a", "poweroff -f"], "--engine", "interp", *boot_arguments(kind), seconds=1500)
        self.assertRegex(text, rf"Debian 6\.1\.\S+ \([0-9-]+\) {machine} GNU/Linux")
        self.assertNotIn("Kernel panic", text)

    def test_cloud_amd64(self):
        self.check("cloud-amd64", "x86_64")

    def test_amd64(self):
        self.check("amd64", "x86_64")

    def test_i386(self):
        self.check("i386", "i686")

    def test_two_cpus(self):
        text = self.run_lines(["nproc; poweroff -f"], "--engine", "interp", "--cpus", "2", *boot_arguments("cloud-amd64"),
                              seconds=1500)
        self.assertRegex(text, r"\n2\r?\n")


if __name__ == "__main__":
    main()
