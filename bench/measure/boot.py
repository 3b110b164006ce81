"""Tables `guest-boot` and `guest-cost`: from the start of the process to init and to the login prompt; memory, idle time,
translation cost."""
import os
import pathlib
import re
import tempfile
import time

from measure import goals, micro, programs
from measure.common import GUESTS, Failed, Guest, NotAvailable, Process, circumstances, markdown
from measure.sheet import Sheet, measure

KIND = "debian12"
LOGIN = "debian12 login: "
SETTLE_SECONDS = 15  # what systemd still does after the prompt
IDLE_SECONDS = 20
HEAVY = ["gcc", "java"]  # after these the code caches are full
SMALL_CACHE = "16M"


def debian():
    folder = GUESTS / KIND
    return Guest(folder / "vmlinuz", folder / "initrd.img", (folder / "cmdline").read_text().strip(), 512, 1,
                 folder / "disk.img")


def new_boot(options):
    return Sheet("boot", programs.engines_of(options), ["init", "login"])


def fill_boot(sheet, options, save):
    with tempfile.TemporaryDirectory() as name:
        initrd = micro.make_initrd(options, pathlib.Path(name))

        def run(engine, rows, record, _):
            if not rows or "init" in rows:
                with Process(micro.command(engine, initrd, options, 1, "syscall"), options.timeout, engine) as process:
                    record("init", process.wait_for("guest-bench: start"))
            if not rows or "login" in rows:
                with Process(debian().command(engine, options), options.timeout, engine) as process:
                    record("login", process.wait_for(LOGIN))

        measure(sheet, options, KIND, run, save)


def render_boot(sheet, _):
    ours = [engine for engine in sheet.cases if engine != "tcg" and "tcg" in sheet.cases]
    labels = {"init": "cloud kernel to init", "login": "Debian with systemd to the login prompt"}
    rows = [[label] + [sheet.cell(engine, row, "{:.2f} s") for engine in sheet.cases]
            + [f"{ratio:.2f}" if (ratio := sheet.ratio(row, "tcg", engine)) else "" for engine in ours]
            for row, label in labels.items()]
    head = ["from the start of the process", *sheet.cases] + [f"{engine}: times as fast as TCG" for engine in ours]
    return f"{circumstances(sheet)}\n\n{markdown(head, rows)}{goals.boot(sheet)}{sheet.notes()}"


def memory_over_ram(pid, ram):
    """MiB of this process's share of all that it holds but guest RAM (PSS: what two mappings share counts once). RAM is the
    one mapping of `ram` MiB."""
    sizes, shares = [], []
    for line in pathlib.Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if match := re.match(r"(Size|Pss): +(\d+) kB$", line):
            (sizes if match[1] == "Size" else shares).append(int(match[2]))
    rams = [share for size, share in zip(sizes, shares, strict=True) if size == ram * 1024]
    if len(rams) != 1:
        raise Failed(f"process {pid} has {len(rams)} mappings of {ram} MiB: which is guest RAM?")
    return (sum(shares) - rams[0]) / 1024


def idle_percent(process):
    before, start = process.cpu_seconds(), time.monotonic()
    time.sleep(IDLE_SECONDS)
    return 100 * (process.cpu_seconds() - before) / (time.monotonic() - start)


def counter(text, name):
    """The sum over the CPUs of one counter of --engine-stats."""
    return sum(int(value) for value in re.findall(rf"^\s*{re.escape(name)}\s+(\d+)$", text, re.M))


def new_cost(options):
    return Sheet("cost", [engine for engine in options.engines.split(",") if engine in ("jit", "tcg")],
                 ["over RAM", "idle", "translation", "over RAM, gcc and java", "over RAM, small cache"])


def run_idle(engine, options, record):
    machine = debian()
    words = machine.command(engine, options) + (["--engine-stats"] if engine == "jit" else [])
    with Process(words, options.timeout, engine) as process:
        process.wait_for(LOGIN)
        time.sleep(SETTLE_SECONDS)
        if engine == "jit":
            record("over RAM", memory_over_ram(process.process.pid, machine.memory))
        record("idle", idle_percent(process))
        if engine == "jit":
            process.process.terminate()
            process.process.wait(30)
            text = process.error_text()
            if counter(text, "translated instructions"):
                record("translation", counter(text, "translation time, ns") / counter(text, "translated instructions"))


def memory_when_full(initrd, options, more=()):
    """MiB over guest RAM after programs whose code fills any code cache."""
    machine = programs.guest(initrd, "programs", 1, 0, HEAVY)
    with Process(machine.command("jit", options) + list(more), options.timeout, "jit") as process:
        for _, line in process.lines():
            match = programs.LINE.match(line)
            if match and match[6] != "0":
                process.fail(f"{match[1]} ended with status {match[6]}")
            if match and match[1] == HEAVY[-1]:
                return memory_over_ram(process.process.pid, machine.memory)
        process.end()
        return process.fail("the guest ended early")


def fill_cost(sheet, options, save):
    with tempfile.TemporaryDirectory() as name:
        initrd = programs.make_initrd(options, pathlib.Path(name))

        def run(engine, rows, record, lose):
            if not rows or "idle" in rows:
                run_idle(engine, options, record)
            if engine != "jit":  # its numbers mean other things
                for row in sheet.rows:
                    if row != "idle":
                        record(row, None)
                return
            record("over RAM, gcc and java", memory_when_full(initrd, options))
            try:
                record("over RAM, small cache", memory_when_full(initrd, options, ["--code-cache", SMALL_CACHE]))
            except NotAvailable as reason:
                lose("over RAM, small cache", str(reason).splitlines()[0])

        measure(sheet, options, KIND, run, save)


def render_cost(sheet, _):
    labels = [("over RAM", "resident memory over guest RAM (share of each page, PSS), MiB", "{:.0f}"),
              ("over RAM, gcc and java", f"the same in another guest, 1 GiB, after {' and '.join(HEAVY)}, MiB", "{:.0f}"),
              ("over RAM, small cache", f"the same with `--code-cache {SMALL_CACHE}`, MiB", "{:.0f}"),
              ("idle", f"an idle guest's CPU time over {IDLE_SECONDS} s, % of a core", "{:.2f}"),
              ("translation", "translation, ns per guest instruction", "{:.0f}")]
    rows = [[label] + [sheet.cell(engine, row, form) for engine in sheet.cases] for row, label, form in labels]
    return (f"{circumstances(sheet)} Debian with systemd, 512 MiB, {SETTLE_SECONDS} s after the login prompt, unless said "
            f"otherwise.\n\n{markdown(['cost', *sheet.cases], rows)}{goals.cost(sheet)}{sheet.notes()}")
