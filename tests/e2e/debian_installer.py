"""The Debian installer as its packages bring it (kernel, initrd), and a second initrd with answers for every question.

The installer fetches its components (udebs) from the mirror. A mirror that was thinned out lacks some. The newest
installer whose components it has is taken; of what is still missing, an earlier build that the mirror has is put into the
second initrd, and what this installation makes no use of is entered there as present. So is what the first initrd has
in an older build than the mirror's index names, when the mirror lacks the newer one: each call of anna would want it.
"""
import concurrent.futures
import lzma
import os
import pathlib
import re
import subprocess
import urllib.error
import urllib.request

from harness import GUESTS

MIRROR = os.environ.get("NACRE_DEBIAN_MIRROR", "http://deb.debian.org/debian").rstrip("/") + "/"
RELEASES = (("bookworm", 12), ("trixie", 13))
OLDER_IMAGES = 3  # so many point releases back
# Other file systems, drives that can eject: never used on one empty disk with ext4.
DISPENSABLE = {"btrfs-progs-udeb", "eject-udeb", "jfsutils-udeb", "libmount1-udeb", "ntfs-3g-udeb", "open-iscsi-udeb",
               "xfsprogs-udeb"}
ISOLINUX = "/usr/lib/ISOLINUX/isolinux.bin"
PRIORITIES = {"required", "important", "standard"}

PRESEED = """\
d-i debian-installer/locale string en_US.UTF-8
d-i keyboard-configuration/xkb-keymap select us
d-i netcfg/choose_interface select auto
d-i netcfg/get_hostname string installed
d-i netcfg/get_domain string test
d-i hw-detect/load_firmware boolean false
d-i mirror/country string manual
d-i mirror/protocol string http
d-i mirror/http/hostname string {host}
d-i mirror/http/directory string {directory}
d-i mirror/http/proxy string
d-i mirror/suite string {suite}
d-i apt-setup/services-select multiselect
d-i apt-setup/enable-source-repositories boolean false
d-i passwd/root-login boolean true
d-i passwd/root-password password {password}
d-i passwd/root-password-again password {password}
d-i passwd/make-user boolean false
d-i clock-setup/utc boolean true
d-i clock-setup/ntp boolean false
d-i time/zone string Etc/UTC
d-i partman-auto/disk string {disk}
d-i partman-auto/method string regular
d-i partman-auto/expert_recipe string root :: 500 500 -1 ext4 $primary{{ }} $bootable{{ }} method{{ format }} \
format{{ }} use_filesystem{{ }} filesystem{{ ext4 }} mountpoint{{ / }} .
d-i partman-basicfilesystems/no_swap boolean false
d-i partman-partitioning/confirm_write_new_label boolean true
d-i partman/choose_partition select finish
d-i partman/confirm boolean true
d-i partman/confirm_nooverwrite boolean true
d-i base-installer/install-recommends boolean false
tasksel tasksel/first multiselect
d-i pkgsel/run_tasksel boolean false
d-i pkgsel/upgrade select none
d-i pkgsel/update-policy select none
popularity-contest popularity-contest/participate boolean false
d-i grub-installer/only_debian boolean true
d-i grub-installer/bootdev string {disk}
d-i finish-install/reboot_in_progress note
d-i debian-installer/exit/poweroff boolean true
"""


class Unavailable(Exception):
    """The mirror has no installer that could work; the text says what it lacks."""


def fetch(path):
    with urllib.request.urlopen(MIRROR + path, timeout=300) as answer:
        return answer.read()


def has(path):
    request = urllib.request.Request(MIRROR + path, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=300):
            return True
    except urllib.error.HTTPError:
        return False


def paragraphs(text):
    for paragraph in text.split("\n\n"):
        fields = {}
        for line in paragraph.splitlines():
            if line[:1] not in " \t" and ":" in line:
                key, value = line.split(":", 1)
                fields[key] = value.strip()
        if fields:
            yield fields


def names(field):
    """Of a Depends or Provides field."""
    return [name.strip().split(" ")[0] for name in field.split(",") if name.strip()]


def older_builds(filename):
    """The same version in its earlier builds for the architecture, the newest first."""
    match = re.fullmatch(r"(.*)\+b(\d+)(_[a-z0-9]+\.udeb)", filename)
    if match:
        for number in range(int(match[2]) - 1, -1, -1):
            yield match[1] + (f"+b{number}" if number else "") + match[3]


def cpio(files):
    """The newc archive of (name, mode, content)."""
    out = bytearray()
    for number, (name, mode, content) in enumerate([*files, ("TRAILER!!!", 0, b"")], 1):
        name = name.encode() + b"\0"
        numbers = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
        out += b"070701" + b"".join(b"%08X" % value for value in numbers) + name
        out += b"\0" * (-len(out) % 4) + content
        out += b"\0" * (-len(out) % 4)
    return bytes(out)


def cpio_file(archive, wanted):
    """The content of one file of a newc archive."""
    at = 0
    while archive[at:at + 6] == b"070701":
        fields = [int(archive[at + 6 + 8 * i:at + 14 + 8 * i], 16) for i in range(13)]
        size, name_size = fields[6], fields[11]
        name = archive[at + 110:at + 109 + name_size].decode()
        start = (at + 110 + name_size + 3) // 4 * 4
        if name.removeprefix("./") == wanted:
            return archive[start:start + size]
        at = (start + size + 3) // 4 * 4
        while archive[at:at + 4] == b"\0\0\0\0":
            at += 4
    raise AssertionError(f"the installer's initrd has no {wanted}")


def files_below(folder):
    for path in sorted(folder.rglob("*")):
        mode, name = path.lstat().st_mode, str(path.relative_to(folder))
        if path.is_symlink():
            yield name, mode, os.readlink(path).encode()
        else:
            yield name, mode, b"" if path.is_dir() else path.read_bytes()


class Installer:
    """One version of it, unpacked under build/guests/installer-VERSION/."""

    def __init__(self, suite, number, version):
        self.suite, self.version = suite, version
        package = f"debian-installer-{number}-netboot-amd64"
        self.folder = GUESTS / f"installer-{version}"
        images = self.folder / f"usr/lib/debian-installer/images/{number}/amd64/text/debian-installer/amd64"
        self.kernel, self.initrd = images / "linux", images / "initrd.gz"
        if not self.initrd.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            path = f"pool/main/d/debian-installer-netboot-images/{package}_{version}_all.deb"
            (self.folder / "package.deb").write_bytes(fetch(path))
            subprocess.run(["dpkg", "-x", self.folder / "package.deb", self.folder], check=True)
        kernel = self.kernel.read_bytes()
        at = int.from_bytes(kernel[0x20e:0x210], "little") + 0x200
        self.kernel_version = kernel[at:at + 100].split(b"\0")[0].decode().split(" ")[0]
        unpacked = subprocess.run(["zcat", self.initrd], check=True, capture_output=True).stdout
        self.status = cpio_file(unpacked, "var/lib/dpkg/status").decode()
        self.additions, self.dispensed = self.complete()

    def complete(self):
        """(files of earlier builds that the mirror has, names of components that it lacks and nobody needs)."""
        index = {}
        for entry in paragraphs(lzma.decompress(
                fetch(f"dists/{self.suite}/main/debian-installer/binary-amd64/Packages.xz")).decode()):
            if entry.get("Kernel-Version", self.kernel_version) == self.kernel_version:
                index.setdefault(entry["Package"], entry)
        providers = {}
        for name, entry in index.items():
            for provided in names(entry.get("Provides", "")):
                providers.setdefault(provided, name)
        present = {entry["Package"]: entry["Version"] for entry in paragraphs(self.status)}
        wanted, waiting = set(), [name for name, entry in index.items() if entry["Priority"] in PRIORITIES]
        waiting += [f"{kind}-modules-{self.kernel_version}-di" for kind in ("ata", "ext4", "pata", "sata", "scsi")]
        while waiting:
            name = waiting.pop()
            name = name if name in index else providers.get(name, name)
            if name not in wanted and name not in present:
                wanted.add(name)
                waiting += names(index.get(name, {}).get("Depends", ""))
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            absent = [name for name in index if present.get(name) != index[name]["Version"]]
            found = dict(zip(absent, pool.map(lambda name: has(index[name]["Filename"]), absent)))
        self.versions = {name: index[name]["Version"] for name in absent if not found[name]}
        self.kept = sorted(set(present) & set(self.versions))
        additions, dispensed, missing = [], [], []
        for name in sorted(wanted | set(absent)):
            if found.get(name, False) or name in present:
                continue
            # What is not wanted now may be asked for by the partitioner, which offers more than is chosen here.
            if name in DISPENSABLE or name not in wanted:
                dispensed.append(name)
                continue
            older = next(filter(has, older_builds(index.get(name, {}).get("Filename", ""))), None)
            additions.append(older) if older else missing.append(name)
        if missing:
            raise Unavailable(f"Debian {self.suite}, kernel {self.kernel_version}: the mirror lacks {', '.join(missing)}")
        return additions, dispensed

    def disc(self, folder):
        """Its mini.iso, in `folder`. Where the mirror has none, one of the same parts: ISOLINUX, and the package's menu,
        kernel and initrd."""
        file = folder / "mini.iso"
        try:
            file.write_bytes(fetch(f"dists/{self.suite}/main/installer-amd64/{self.version}/images/netboot/mini.iso"))
            return file
        except urllib.error.HTTPError:
            pass
        images = self.kernel.parent
        (folder / "isolinux.cfg").write_bytes((images / "pxelinux.cfg/default").read_bytes())
        parts = (f"/isolinux.bin={ISOLINUX}", f"/isolinux.cfg={folder / 'isolinux.cfg'}",
                 f"/ldlinux.c32={images / 'boot-screens/ldlinux.c32'}", f"/debian-installer={images.parent}")
        subprocess.run(["xorriso", "-as", "mkisofs", "-quiet", "-r", "-J", "-V", "mini", "-o", file, "-b", "isolinux.bin",
                        "-c", "boot.cat", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", "-graft-points", *parts],
                       check=True, capture_output=True)
        return file

    def extra_initrd(self, folder, disk, password):
        """The second initrd's file, in `folder`: answers for an installation onto `disk`."""
        host, _, directory = MIRROR.removeprefix("http://").rstrip("/").partition("/")
        answers = PRESEED.format(host=host, directory="/" + directory, suite=self.suite, disk=disk, password=password)
        files, status = [("preseed.cfg", 0o100644, answers.encode())], self.status.rstrip("\n") + "\n\n"
        for name in self.kept:
            status = re.sub(rf"(?m)^(Package: {re.escape(name)}\n(?:.+\n)*?Version: ).*$",
                            lambda match, name=name: match[1] + self.versions[name], status)
        for path in self.additions:
            udeb, tree = folder / path.rpartition("/")[2], folder / "tree"
            udeb.write_bytes(fetch(path))
            subprocess.run(["dpkg", "-x", udeb, tree], check=True)
            for field in ("Package", "Version", "Depends", "Provides", "Description"):
                value = subprocess.run(["dpkg-deb", "-f", udeb, field], check=True, capture_output=True, text=True)
                value = value.stdout.strip()
                if field == "Package":
                    status += f"Package: {value}\nStatus: install ok unpacked\n"
                    version = self.versions[value]
                elif value:
                    status += f"{field}: {version if field == 'Version' else value}\n"
            status += "\n"
            files += files_below(tree)
        for name in self.dispensed:
            status += (f"Package: {name}\nStatus: install ok installed\nVersion: {self.versions.get(name, 0)}\n"
                       "Description: not on this mirror\n\n")
        files.append(("var/lib/dpkg/status", 0o100644, status.encode()))
        file = folder / "answers.img"
        file.write_bytes(cpio(files))
        return file


def find():
    """The newest installer that the mirror can serve. Unavailable: none."""
    reasons = []
    for suite, number in RELEASES:
        index = lzma.decompress(fetch(f"dists/{suite}/main/binary-amd64/Packages.xz")).decode()
        entry = index[index.index(f"\nPackage: debian-installer-{number}-netboot-amd64\n"):]
        version = re.search(r"^Version: (.*)$", entry, re.M)[1]
        base, _, point = version.partition(f"+deb{number}u")
        versions = [version] + [f"{base}+deb{number}u{older}" for older in
                                range(int(point or 0) - 1, int(point or 0) - 1 - OLDER_IMAGES, -1) if older > 0]
        for candidate in versions:
            try:
                return Installer(suite, number, candidate)
            except Unavailable as error:
                reasons.append(str(error))
            except urllib.error.HTTPError as error:
                reasons.append(f"Debian {suite}, installer {candidate}: {error}")
    raise Unavailable("\n".join(reasons))
