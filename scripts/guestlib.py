"""Shared by scripts/prepare-guest and scripts/make-rootfs: Debian packages without root rights, kernel modules."""
import fcntl
import hashlib
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
GUESTS = ROOT / "build/guests"
RELEASE = "bookworm"
OWN_SOURCES = "".join(
    f"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/{archive} {suite} main\n"
    for archive, suite in (("debian", RELEASE), ("debian-security", f"{RELEASE}-security")))


def fail(text):
    sys.exit(f"{pathlib.Path(sys.argv[0]).name}: {text}")


def run(*command, **options):
    """Runs a command; its output is shown only when it fails."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, stdin=subprocess.DEVNULL,
                          check=False, **options)
    if done.returncode:
        fail(f"{' '.join(str(c) for c in command)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def host_release():
    try:
        text = pathlib.Path("/etc/os-release").read_text()
    except OSError:
        return ""
    match = re.search(r"^VERSION_CODENAME=(\S+)", text, re.M)
    return match.group(1) if match else ""


class Apt:
    """apt for one architecture with lists, cache and status of its own: the host's package state is never touched."""

    def __init__(self, architecture):
        self.folder = GUESTS / f"apt-{architecture}"
        for name in ("lists/partial", "cache/archives/partial", "empty"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").touch()
        options = {
            "APT::Architecture": architecture, "APT::Architectures::": architecture, "APT::Sandbox::User": "root",
            "Dir::State": self.folder, "Dir::State::Lists": self.folder / "lists", "Dir::Cache": self.folder / "cache",
            "Dir::State::status": self.folder / "status", "Acquire::Languages": "none", "Acquire::Retries": "3",
        }
        if host_release() != RELEASE:  # else the host's own sources are right, and perhaps nearer
            (self.folder / "sources.list").write_text(OWN_SOURCES)
            options |= {"Dir::Etc::SourceList": self.folder / "sources.list", "Dir::Etc::SourceParts": self.folder / "empty"}
        self.options = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        # A mirror in the middle of its own update fails for one list; what matters is that the package is found.
        self.update = subprocess.run(["apt-get", *self.options, "-q", "update"], capture_output=True, text=True,
                                     stdin=subprocess.DEVNULL, check=False)

    def concrete(self, package):
        """The package that a metapackage such as linux-image-amd64 stands for."""
        done = subprocess.run(["apt-cache", *self.options, "depends", package], capture_output=True, text=True, check=False)
        match = re.search(r"^\s*Depends: (linux-image-\S+)", done.stdout, re.M)
        if not match:
            fail(f"Debian's package {package} was not found. Is the network there?\n{self.update.stdout}{self.update.stderr}")
        return match.group(1)

    def unpack(self, package, target):
        """Fetches a package, checks it (apt does) and unpacks it into target."""
        work = self.folder / "download"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        run("apt-get", *self.options, "-q", "download", package, cwd=work)
        debs = list(work.glob("*.deb"))
        if len(debs) != 1:
            fail(f"{package}: expected one package, got {debs}")
        target.mkdir(parents=True, exist_ok=True)
        run("dpkg-deb", "-x", debs[0], target)
        shutil.rmtree(work)
        return debs[0].name


class Modules:
    """The modules of an unpacked kernel package: found by name, with their dependencies in the order of loading."""

    def __init__(self, tree):
        self.folder = next((tree / "lib/modules").iterdir())
        self.release = self.folder.name
        self.files = {p.name[:-3].replace("-", "_"): p for p in self.folder.rglob("*.ko")}
        self.builtin = {pathlib.Path(line).name[:-3].replace("-", "_")
                        for line in (self.folder / "modules.builtin").read_text().splitlines()}

    def info(self, name, key):
        """The values of one key in the module's .modinfo (NUL-separated key=value strings)."""
        data = self.files[name].read_bytes()
        return [m.decode() for m in re.findall(rb"\0" + key.encode() + rb"=([^\0]*)", data)]

    def depends(self, name):
        return [d.replace("-", "_") for value in self.info(name, "depends") for d in value.split(",") if d]

    def in_order(self, names):
        """names and all they depend on, dependencies first; what is built into the kernel falls out."""
        order = []

        def visit(name):
            if name in order or name in self.builtin:
                return
            if name not in self.files:
                fail(f"kernel {self.release} has no module {name}")
            for below in self.depends(name):
                visit(below)
            order.append(name)

        for name in names:
            visit(name.replace("-", "_"))
        return order


def stamp_of(*paths, extra=""):
    """A digest of the inputs: an unchanged stamp means that nothing must be prepared."""
    digest = hashlib.sha256(extra.encode())
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


class Locked:
    """Holds a folder's lock, so that two calls at once do not prepare it twice."""

    def __init__(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        self.file = open(folder / "lock", "w", encoding="ascii")

    def __enter__(self):
        fcntl.flock(self.file, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_):
        self.file.close()


def cpio_tool():
    tool = ROOT / "build/release/nacre-cpio"
    if not tool.exists():
        run(ROOT / "scripts/build", "nacre-cpio")
    return tool
