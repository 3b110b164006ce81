"""Shared by the tables of bench/run-guest-bench: starting guests, reading their lines, medians, tables, the document."""
import dataclasses
import hashlib
import os
import pathlib
import platform
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
GUESTS = ROOT / "build/guests"
RELEASE = ROOT / "build/release"


class Failed(Exception):
    """A measurement that must not become a number. whole: nothing else of the same run may become one."""

    def __init__(self, reason, details="", whole=False):
        super().__init__(reason)
        self.details, self.whole = details, whole


class NotAvailable(Exception):
    """An engine that says that it cannot do this: printed as a reason, never as a number."""


@dataclasses.dataclass
class Guest:
    """What both engines are given; memory in MiB."""
    kernel: pathlib.Path
    initrd: pathlib.Path
    append: str
    memory: int = 512
    cpus: int = 1
    disk: pathlib.Path | None = None  # raw; writes are thrown away

    def command(self, engine, options):
        if engine == "tcg":
            words = ["qemu-system-x86_64", "-accel", "tcg" + (",thread=multi" if self.cpus > 1 else ""), "-machine", "q35",
                     "-cpu", options.qemu_cpu, "-smp", self.cpus, "-m", self.memory, "-nodefaults", "-no-user-config",
                     "-display", "none", "-serial", "stdio", "-no-reboot",
                     "-kernel", self.kernel, "-initrd", self.initrd, "-append", self.append]
            if self.disk:
                words += ["-drive", f"file.driver=file,file.filename={self.disk},file.locking=off,format=raw,if=none,id=disk,"
                          "snapshot=on,cache=unsafe",
                          "-device", "virtio-blk-pci,drive=disk"]
            return [str(word) for word in words]
        words = [options.nacre, "run", "--engine", engine, "--memory", f"{self.memory}M", "--cpus", self.cpus, "--net", "none",
                 "--no-reboot", "--kernel", self.kernel, "--initrd", self.initrd, "--append", self.append]
        if self.disk:
            words += ["--disk", f"{self.disk},format=raw,snapshot"]
        if options.engine_stats:
            words += ["--engine-stats"]
        return [str(word) for word in words]


class Process:
    """A guest's or a native process whose lines are read as they come; killed when the block is left. seconds: without a
    line, after which it counts as hung."""

    def __init__(self, words, seconds, label):
        self.label, self.tail = label, []
        self.errors = tempfile.TemporaryFile()  # a pipe that nobody reads could stop the process
        self.start = time.monotonic()
        self.patience, self.deadline = seconds, self.start + seconds
        self.process = subprocess.Popen([str(word) for word in words], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=self.errors)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            stream.close()

    def cpu_seconds(self):
        """What all threads of the process have had of the CPUs."""
        return time.clock_gettime((~self.process.pid << 3) | 2)  # clock_getcpuclockid(3)

    def error_text(self):
        return os.pread(self.errors.fileno(), 1 << 20, 0).decode(errors="replace")

    def fail(self, reason, whole=False):
        raise Failed(reason, "\n".join(["last lines:", *self.tail, self.error_text()[-3000:]]), whole)

    def pieces(self):
        """Yields (seconds since the start, bytes)."""
        while True:
            left = self.deadline - time.monotonic()
            if left <= 0:
                self.fail(f"nothing came for {self.patience:.0f} s")
            if not select.select([self.process.stdout], [], [], left)[0]:
                continue
            data = os.read(self.process.stdout.fileno(), 65536)
            if not data:
                return
            yield time.monotonic() - self.start, data

    def lines(self):
        """Yields (seconds since the start, line)."""
        rest = b""
        for seconds, data in self.pieces():
            *lines, rest = (rest + data).split(b"\n")
            if lines:
                self.deadline = time.monotonic() + self.patience
            for line in lines:
                text = line.decode(errors="replace").strip("\r")
                self.tail = (self.tail + [text])[-15:]
                yield seconds, text

    def wait_for(self, text):
        """Seconds until text appears in the output, at the start of a line or in it."""
        seen = b""
        for seconds, data in self.pieces():
            seen = (seen + data)[-65536:]
            self.tail = seen.decode(errors="replace").splitlines()[-15:]
            if text.encode() in seen:
                return seconds
        return self.fail(f"the output ended before {text!r}")

    def end(self):
        """Waits for the process, which has closed its output."""
        status = self.process.wait()
        if status == 2 and self.label != "native":
            raise NotAvailable(self.error_text().strip() or "exit status 2")
        if status != 0:
            self.fail(f"exit status {status}")


def clock_text(sheet):
    """The clock of a table, for the sentence above it."""
    if sheet.sittings[-1]["clock"] == "cpu":
        return "by the CPU time of the engine's process (native: by the clock)"
    return "by the guest's clock, checked against the host's"


def built(options, name):
    """A program of the build: beside the binary that is measured, else in build/release."""
    beside = options.nacre.resolve().parent / name
    return beside if beside.exists() else RELEASE / name


def write_cpio(options, folder, lines, target):
    manifest = folder / "manifest"
    manifest.write_text("\n".join(lines) + "\n")
    subprocess.run([built(options, "nacre-cpio"), manifest, target], check=True)


def overlay_initrd(options, base, files, folder):
    """The guest's initrd with files (name: path) added below /overlay/bench, from where init-disk hands them on."""
    lines = ["dir overlay 755", "dir overlay/bench 755"]
    for name, path in files.items():
        shutil.copyfile(path, folder / name)
        lines.append(f"file {name} overlay/bench/{name} 755")
    write_cpio(options, folder, lines, folder / "overlay.img")
    joined = folder / "initrd.img"
    padding = b"\0" * (-base.stat().st_size % 512)
    joined.write_bytes(base.read_bytes() + padding + (folder / "overlay.img").read_bytes())
    return joined


def pinned(words):
    """On one CPU, as the guest is."""
    return ["taskset", "-c", str(max(os.sched_getaffinity(0))), *words]


def median(values):
    return statistics.median(values)


def progress(text):
    print(text, file=sys.stderr, flush=True)


def markdown(head, rows):
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def first_line(*words):
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def cpu_info(name):
    with open("/proc/cpuinfo", encoding="ascii") as file:
        return next((line.split(":", 1)[1].strip() for line in file if line.startswith(name)), "")


def context(options, kind):
    """What must be the same in all rounds of a table."""
    changed = subprocess.run(["git", "-C", str(ROOT), "diff", "--quiet", "HEAD", "--", "src"], check=False).returncode
    return {
        "host": (cpu_info("model name") or platform.machine()) + f" ({os.cpu_count()} CPUs"
                + (", itself a virtual machine" if "hypervisor" in cpu_info("flags").split() else "")
                + f", Linux {platform.release()})",
        "commit": first_line("git", "-C", str(ROOT), "log", "-1", "--format=%h") + (" with changes" if changed else ""),
        "program": hashlib.sha256(options.nacre.read_bytes()).hexdigest()[:16],
        "QEMU": f"{first_line('qemu-system-x86_64', '--version')} with `-cpu {options.qemu_cpu}`",
        "guest kernel": (GUESTS / kind / "packages").read_text().splitlines()[0],
        "clock": options.clock,
        "amount": f"{options.percent} %, {options.repeat} a boot",
    }


def circumstances(sheet):
    """Host, commit, versions, what else the host did: what stands above each table."""
    facts, (fewest, most) = sheet.sittings[-1], sheet.runs()
    dates = sorted({sitting["date"] for sitting in sheet.sittings})
    rounds = sum(sitting["rounds"] for sitting in sheet.sittings)
    others = max((sitting.get("others percent", 0.0) for sitting in sheet.sittings), default=0.0)
    return (f"Medians of {fewest if fewest == most else f'{fewest} to {most}'} run{'s' if most != 1 else ''} in {rounds} interleaved "
            f"round{'s' if rounds != 1 else ''}{f' of {len(sheet.sittings)} sittings' if len(sheet.sittings) > 1 else ''}, "
            f"{' and '.join(dates)}, on {facts['host']}, where other processes took {others:.1f} % of the CPUs meanwhile; commit "
            f"{facts['commit']}, against {facts['QEMU']}; guest kernel {facts['guest kernel']}.")


def update(path, name, text):
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    old = path.read_text()
    if begin not in old or end not in old:
        raise Failed(f"{path}: no {begin} … {end} to put the table between")
    before, rest = old.split(begin, 1)
    path.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}")


def die_with_signals():
    """SIGTERM ends the script as Ctrl-C does, so that no guest is left behind."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: stopped by a signal"))
