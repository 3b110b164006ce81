"""Tables `guest-programs` and `guest-cpus`: programs of a Debian guest on a virtio disk, timed inside by bench/programs/runner.c.

guest-programs: one CPU, Nacre beside TCG. guest-cpus: one CPU and two, on Nacre and on TCG with a thread a CPU.
"""
import pathlib
import re
import tempfile
import time

from measure.common import (GUESTS, ROOT, Failed, Guest, NotAvailable, Process, built, circumstances, geometric_mean, markdown,
                            median, overlay_initrd, progress)

KIND = "debian12-bench"
FILES = ROOT / "bench/programs"
LINE = re.compile(r"^program (\S+) ([0-9a-f]{16}) (\d+) (\d+) (\d+) (\d+)$")
END = re.compile(r"programs: end (\d+) (\d+)$")
MEMORY = 1024


def make_initrd(options, folder):
    files = {path.name: path for path in FILES.iterdir() if path.suffix in (".list", ".py", ".pl", ".js", ".sql", ".sh")}
    files |= {name: ROOT / "bench/guest" / name for name in ("bench.h", "cpu_data.c", "cpu_text.c")}
    files |= {"runner": built(options, "program-runner"), "parallel-sort": built(options, "parallel-sort")}
    return overlay_initrd(options, GUESTS / KIND / "initrd.img", files, folder)


def guest(initrd, options, what, cpus):
    append = (f"{(GUESTS / KIND / 'cmdline').read_text().strip()} init=/run/overlay/bench/runner bench_list={what}.list "
              f"bench_repeat={options.repeat}" + (f" bench_only={options.only}" if options.only else ""))
    return Guest(GUESTS / KIND / "vmlinuz", initrd, append, MEMORY, cpus, GUESTS / KIND / "disk.img")


def run_once(engine, machine, options):
    """One boot: {name: [(checksum, seconds), ...]}."""
    start, end, programs = None, None, {}
    with Process(machine.command(engine, options), options.timeout, engine) as process:
        for seconds, line in process.lines():
            if "programs: start" in line:
                start = seconds
                if f"start, {machine.cpus} CPU" not in line:
                    process.fail("another number of CPUs")
            match = LINE.match(line)
            if match:
                if match[6] != "0":
                    process.fail(f"{match[1]} ended with status {match[6]}")
                programs.setdefault(match[1], []).append((match[2], int(match[3]) / 1e9))
            match = END.search(line)
            if match:
                end = (int(match[1]), int(match[2]) / 1e9, seconds)
        process.end()
        if start is None or end is None or end[0] != 0:
            process.fail("no good end")
        if abs(end[1] - (end[2] - start)) > 0.05 * end[1] + 0.5:
            process.fail(f"the guest's clock counted {end[1]:.2f} s, the host's {end[2] - start:.2f} s")
        if options.engine_stats:
            progress(process.error_text())
    return programs


def rounds_of(cases, options, what):
    """{case: {name: [seconds of every run]}} and {case: reason} for what is not available. cases: {case: (engine, cpus)}."""
    seconds, sums, missing = {case: {} for case in cases}, {}, {}
    with tempfile.TemporaryDirectory() as name:
        initrd = make_initrd(options, pathlib.Path(name))
        for number in range(options.rounds):
            for case, (engine, cpus) in cases.items():
                if case in missing:
                    continue
                started = time.monotonic()
                try:
                    programs = run_once(engine, guest(initrd, options, what, cpus), options)
                except NotAvailable as reason:
                    missing[case] = str(reason)
                    progress(f"{what}: {case} is not available: {reason}")
                    continue
                for program, runs in programs.items():
                    for checksum, one in runs:
                        if sums.setdefault(program, checksum) != checksum:
                            raise Failed(f"{case}: the output of {program} has the sum {checksum}, elsewhere {sums[program]}")
                        seconds[case].setdefault(program, []).append(one)
                progress(f"{what}: round {number + 1} {case}: {time.monotonic() - started:.1f} s")
    for case in cases:
        if case not in missing and set(seconds[case]) != set(sums):
            raise Failed(f"{case}: not every program gave a number")
    if not sums:
        raise Failed(f"nothing was measured: no such program, or no engine is available: {missing}")
    return seconds, missing


def notes(missing):
    return "".join(f"\n\nNot available: {case}: {reason}." for case, reason in missing.items())


def measure_programs(options):
    engines = [engine for engine in options.engines.split(",") if engine != "native"]
    seconds, missing = rounds_of({engine: (engine, 1) for engine in engines}, options, "programs")
    engines = [engine for engine in engines if engine not in missing]
    medians = {e: {n: median(runs) for n, runs in seconds[e].items()} for e in engines}
    names = list(medians[engines[0]])
    ours = [e for e in engines if e != "tcg" and "tcg" in engines]
    rows = [[n] + [f"{medians[e][n]:.3f}" for e in engines] + [f"{medians['tcg'][n] / medians[e][n]:.2f}" for e in ours]
            for n in names]
    rows.append([f"**geometric mean** ({len(names)})"] + [""] * len(engines)
                + [f"**{geometric_mean([medians['tcg'][n] / medians[e][n] for n in names]):.2f}**" for e in ours])
    head = ["program"] + [f"{e} s" for e in engines] + [f"{e}: times as fast as TCG" for e in ours]
    text = (f"{circumstances(options, options.rounds, KIND)} Each round boots the guest and runs every program "
            f"{options.repeat} times after one that warms up. Seconds by the guest's clock, checked against the host's.\n\n"
            f"{markdown(head, rows)}{notes(missing)}")
    return text, seconds


def measure_cpus(options):
    engines = [engine for engine in options.engines.split(",") if engine != "native"]
    cases = {f"{engine}, {cpus} CPU{'s' if cpus > 1 else ''}": (engine, cpus) for engine in engines for cpus in (1, 2)}
    seconds, missing = rounds_of(cases, options, "cpus")
    names = list(next(runs for runs in seconds.values() if runs))
    rows = []
    for name in names:
        for engine in engines:
            one, two = (seconds[f"{engine}, {cpus}"].get(name) for cpus in ("1 CPU", "2 CPUs"))
            cells = [f"{median(runs):.3f}" if runs else "not available" for runs in (one, two)]
            rows.append([name, engine] + cells + [f"{median(one) / median(two):.2f}" if one and two else "not available"])
    text = (f"{circumstances(options, options.rounds, KIND)} TCG runs with a thread a CPU (`thread=multi`). Seconds by the "
            f"guest's clock.\n\n{markdown(['program', 'engine', '1 CPU, s', '2 CPUs, s', 'times as fast with 2'], rows)}"
            f"{notes(missing)}")
    return text, seconds
