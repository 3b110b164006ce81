"""Shared by scripts/prepare-guest and scripts/make-rootfs: Debian packages without root rights, modules, manifests."""
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


def run(*command, stdin_text="", cwd=None):
    """Runs a command; its output is shown only when it fails."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, input=stdin_text, cwd=cwd, check=False)
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


def module_files(modules, root, at_boot, on_demand):
    """Copies the modules into root and returns manifest lines, with the lists that insmod and modprobe read."""
    boot = modules.in_order(at_boot)
    everything = modules.in_order(at_boot + on_demand)
    base = f"lib/modules/{modules.release}"
    lines, dep, alias = [], [], []
    (root / "modules").mkdir()
    for name in everything:
        shutil.copyfile(modules.files[name], root / f"modules/{name}.ko")
        lines.append(f"file root/modules/{name}.ko {base}/{name}.ko 644")
        # modules.dep lists the nearest dependency first, the reverse of the order of loading.
        dep.append(f"{name}.ko: " + " ".join(f"{d}.ko" for d in reversed(modules.in_order([name])[:-1])))
        alias += [f"alias {value} {name}" for value in modules.info(name, "alias")]
    for file, content in (("modules.dep", dep), ("modules.alias", alias)):
        (root / file).write_text("\n".join(content) + "\n")
        lines.append(f"file root/{file} {base}/{file} 644")
    (root / "boot-order").write_text("".join(f"/{base}/{name}.ko\n" for name in boot))
    return lines + ["file root/boot-order lib/modules/boot-order 644"]


def applets(busybox):
    try:
        return subprocess.run([str(busybox), "--list"], capture_output=True, text=True, check=True).stdout.split()
    except OSError:  # a host that does not run 32-bit programs: the guest's init makes the links then
        return ["sh", "mount", "mkdir"]


def busybox_manifest(root, init):
    """Manifest lines of a small root file system around root/busybox, with the script root/INIT as /init."""
    lines = [f"dir {path} 755" for path in ("bin", "dev", "etc", "lib", "mnt", "proc", "root", "sys", "tmp", "usr", "var")]
    lines += ["link bin sbin", "link ../bin usr/bin", "link ../bin usr/sbin", "link ../tmp var/run",
              "node dev/console 600 c 5 1", "node dev/null 666 c 1 3",
              f"file root/{init} init 755", "file root/busybox bin/busybox 755"]
    return lines + [f"link busybox bin/{name}" for name in applets(root / "busybox")
                    if name not in ("busybox", "linuxrc", "init")]


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
