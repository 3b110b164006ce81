"""The tour of README.md with a small guest in the place of Debian; test_long_tour.py takes it as it stands."""
import gzip
import pathlib

from guest_agent import agent_initrd
from harness import Folder, ROOT, guest_file, main
from tour import Tour, matches, steps

# What is in /root stands on the disk between two starts.
POWER_OFF, SAVE = "/bin/sh\\npoweroff -f", "/bin/sh\\ntar -c -C / root >/dev/vda; sync; poweroff -f"
START_AGENT = r"""
for word in $cmdline; do
  case "$word" in systemd.hostname=*) hostname "${word#*=}" ;; esac
done
tar -x -C / </dev/vda 2>/dev/null
qemu-ga -m virtio-serial -p /dev/vport*p1 -f /tmp/qga.pid -t /tmp -d
cd /root
"""


def archive(path, mode, content):
    """One file as a newc archive."""
    def entry(name, mode, content):
        fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        out = b"070701" + b"".join(b"%08X" % field for field in fields) + name + b"\0"
        out += bytes(-len(out) % 4) + content
        return out + bytes(-len(out) % 4)
    return entry(path.encode(), mode, content) + entry(b"TRAILER!!!", 0, b"")


class SmallTour(Folder):
    def make_image(self, tour):
        """The default guest with the agent, which its first process starts, and with the host name that it is given."""
        boot = pathlib.Path(self.folder.name) / "root/boot"
        boot.mkdir(parents=True)
        (boot / "vmlinuz-6.1").symlink_to(guest_file("cloud-amd64", "vmlinuz"))
        init = (ROOT / "src/guest-init/init").read_text(encoding="utf-8")
        for old, new in (("\ncd /root\n", START_AGENT), (POWER_OFF, SAVE)):
            self.assertIn(old, init)
            init = init.replace(old, new, 1)
        (boot / "initrd.img-6.1").write_bytes(guest_file("cloud-amd64", "initrd.img").read_bytes() +
                                              agent_initrd().read_bytes() +
                                              gzip.compress(archive("init", 0o100755, init.encode())))
        done = tour.run(f"nacre image build --from {boot.parent} --name debian --size 64M --memory 128M")
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_as_it_stands_in_readme(self):
        tour = Tour(self.folder.name)
        self.addCleanup(tour.clear)
        self.make_image(tour)
        tour.take(self, skipped=["nacre image build debian"])
        self.assertEqual(list((tour.home / "vms").iterdir()), [])

    def test_what_it_compares(self):
        self.assertIn(("nacre image build debian", ["..."]), steps())
        self.assertTrue(matches(["a", "...", "b"], "a\nx\ny\nb\n"))
        self.assertTrue(matches(["NAME  ST..."], "NAME  STATE\n"))
        self.assertTrue(matches([], "anything"))
        self.assertFalse(matches(["web"], "webs\n"))
        self.assertFalse(matches(["a.c"], "abc\n"))
        self.assertFalse(matches(["a", "...", "b"], "a\nx\n"))


if __name__ == "__main__":
    main()
