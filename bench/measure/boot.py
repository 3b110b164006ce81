"""Tables `guest-boot` and `guest-cost`: from the start of the process to init and to the login prompt; memory, idle time,
translation cost."""
import os
import pathlib
import re
import tempfile
import time

from measure import micro
from measure.common import GUESTS, Guest, Process, circumstances, markdown, median, progress

KIND = "debian12"
LOGIN = "debian12 login: "
SETTLE_SECONDS = 20  # what systemd still does after the prompt
IDLE_SECONDS = 30


def debian():
    folder = GUESTS / KIND
    return Guest(folder / "vmlinuz", folder / "initrd.img", (folder / "cmdline").read_text().strip(), 512, 1,
                 folder / "disk.img")


def measure_boot(options):
    engines = [engine for engine in options.engines.split(",") if engine != "native"]
    seconds = {what: {engine: [] for engine in engines} for what in ("init", "login")}
    with tempfile.TemporaryDirectory() as name:
        initrd = micro.make_initrd(options, pathlib.Path(name))
        for number in range(options.rounds):
            for engine in engines:
                seconds["init"][engine].append(micro.run_once(engine, initrd, options, 1, "syscall")["boot"])
                with Process(debian().command(engine, options), options.timeout, engine) as process:
                    seconds["login"][engine].append(process.wait_for(LOGIN))
                progress(f"boot: round {number + 1} {engine}: init {seconds['init'][engine][-1]:.2f} s, "
                         f"login {seconds['login'][engine][-1]:.2f} s")
    ours = [e for e in engines if e != "tcg" and "tcg" in engines]
    rows = []
    for what, label in (("init", "cloud kernel to init"), ("login", "Debian with systemd to the login prompt")):
        medians = {e: median(seconds[what][e]) for e in engines}
        rows.append([label] + [f"{medians[e]:.2f} s" for e in engines] + [f"{medians['tcg'] / medians[e]:.2f}" for e in ours])
    head = ["from the start of the process"] + engines + [f"{e}: times as fast as TCG" for e in ours]
    return f"{circumstances(options, options.rounds, KIND)}\n\n{markdown(head, rows)}", seconds


def memory_mib(pid):
    """(this process's share of guest RAM, of all else that it holds), by the names of its mappings."""
    ram, other, name = 0, 0, ""
    for line in pathlib.Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"^[0-9a-f]+-[0-9a-f]+ ", line):
            name = line.split(None, 5)[5] if len(line.split(None, 5)) > 5 else ""
        elif line.startswith("Pss:"):
            if "nacre-guest-ram" in name:
                ram += int(line.split()[1])
            else:
                other += int(line.split()[1])
    return ram / 1024, other / 1024


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def idle_percent(process):
    before, start = cpu_seconds(process.process.pid), time.monotonic()
    time.sleep(IDLE_SECONDS)
    return 100 * (cpu_seconds(process.process.pid) - before) / (time.monotonic() - start)


def counter(text, name):
    """The sum over the CPUs of one counter of --engine-stats."""
    return sum(int(value) for value in re.findall(rf"^\s*{re.escape(name)}\s+(\d+)$", text, re.M))


def measure_cost(options):
    engines = [engine for engine in options.engines.split(",") if engine in ("jit", "tcg")]
    found = {key: {engine: [] for engine in engines} for key in ("idle", "over RAM", "translation")}
    keep, options.engine_stats = options.engine_stats, True
    try:
        for number in range(max(1, options.rounds // 5)):
            for engine in engines:
                with Process(debian().command(engine, options), options.timeout, engine) as process:
                    process.wait_for(LOGIN)
                    time.sleep(SETTLE_SECONDS)
                    if engine == "jit":
                        found["over RAM"][engine].append(memory_mib(process.process.pid)[1])
                    found["idle"][engine].append(idle_percent(process))
                    process.process.terminate()
                    process.process.wait(30)
                    text = process.error_text()
                    if engine == "jit" and counter(text, "translated instructions"):
                        found["translation"][engine].append(counter(text, "translation time, ns")
                                                            / counter(text, "translated instructions"))
                progress(f"cost: round {number + 1} {engine}: idle {found['idle'][engine][-1]:.2f} %")
    finally:
        options.engine_stats = keep

    def cell(key, engine, form):
        return form % median(found[key][engine]) if found[key][engine] else ""

    rows = [["resident memory over guest RAM (share of each page, PSS), MiB"] + [cell("over RAM", e, "%.0f") for e in engines],
            [f"an idle guest's CPU time over {IDLE_SECONDS} s, % of a core"] + [cell("idle", e, "%.2f") for e in engines],
            ["translation, ns per guest instruction"] + [cell("translation", e, "%.0f") for e in engines]]
    text = (f"{circumstances(options, max(1, options.rounds // 5), KIND)} Debian with systemd, 512 MiB, {SETTLE_SECONDS} s after "
            f"the login prompt.\n\n{markdown(['cost'] + engines, rows)}")
    return text, found
