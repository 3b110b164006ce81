"""Tables `guest-programs` and `guest-cpus`: programs of a Debian guest on a virtio disk, timed inside by bench/programs/runner.c.

guest-programs: one CPU, Nacre beside TCG. guest-cpus: one CPU and two, on Nacre and on TCG with a thread a CPU.
"""
import pathlib
import re
import tempfile

from measure import goals
from measure.common import (GUESTS, ROOT, Failed, Guest, Process, built, circumstances, clock_text, markdown, overlay_initrd,
                            progress)
from measure.sheet import Sheet, measure

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


def names(what, options):
    """The programs of a list, in its order."""
    lines = (FILES / f"{what}.list").read_text().splitlines()
    found = [line.split()[0] for line in lines if line and line[0] not in "#-"]
    wanted = options.only.split(",") if options.only else found
    if set(wanted) - set(found):
        raise Failed(f"no such program; there are {', '.join(found)}")
    return [name for name in found if name in wanted]


def guest(initrd, what, cpus, repeat, only):
    append = (f"{(GUESTS / KIND / 'cmdline').read_text().strip()} init=/run/overlay/bench/runner bench_list={what}.list "
              f"bench_repeat={repeat}" + (f" bench_only={','.join(only)}" if only else ""))
    return Guest(GUESTS / KIND / "vmlinuz", initrd, append, MEMORY, cpus, GUESTS / KIND / "disk.img")


def run_once(engine, machine, options, record, lose):
    """One boot, which runs every program of its list."""
    start, end, cpu = None, None, 0.0
    with Process(machine.command(engine, options), options.timeout, engine) as process:
        for seconds, line in process.lines():
            if "programs: start" in line:
                start = seconds
                if f"start, {machine.cpus} CPU" not in line:
                    process.fail("the guest has another number of CPUs", whole=True)
            if line.startswith("warm "):
                cpu = process.cpu_seconds()
            match = LINE.match(line)
            if match:
                before, cpu = cpu, process.cpu_seconds()
                if match[6] != "0":
                    progress("\n".join(process.tail))
                    lose(match[1], f"ended with status {match[6]}")
                else:
                    record(match[1], cpu - before if options.clock == "cpu" else int(match[3]) / 1e9, match[2])
            match = END.search(line)
            if match:
                end = (int(match[1]), int(match[2]) / 1e9, seconds)
        process.end()
        if start is None or end is None or end[0] != 0:
            process.fail("the guest ended early", whole=start is None)
        # The guest's clock counts the time: it must agree with the host's, or the numbers mean nothing.
        if abs(end[1] - (end[2] - start)) > 0.05 * end[1] + 0.5:
            process.fail(f"the guest's clock counted {end[1]:.2f} s, the host's {end[2] - start:.2f} s", whole=True)
        if options.engine_stats:
            progress(process.error_text())


def fill(sheet, options, save):
    with tempfile.TemporaryDirectory() as name:
        initrd = make_initrd(options, pathlib.Path(name))

        def run(case, rows, record, lose):
            engine, _, cpus = case.partition(", ")
            machine = guest(initrd, sheet.name, int(cpus.split()[0]) if cpus else 1, options.repeat,
                            rows or (sheet.rows if options.only else []))
            run_once(engine, machine, options, record, lose)

        measure(sheet, options, KIND, run, save)


def engines_of(options):
    return [engine for engine in options.engines.split(",") if engine != "native"]


def new_programs(options):
    return Sheet("programs", engines_of(options), names("programs", options))


def render_programs(sheet, _):
    ours = [engine for engine in sheet.cases if engine != "tcg" and "tcg" in sheet.cases]
    rows = []
    for row in sheet.rows:
        ratios = [sheet.ratio(row, "tcg", engine) for engine in ours]
        rows.append([row] + [sheet.cell(engine, row, "{:.3f}") for engine in sheet.cases] + [f"{r:.2f}" if r else "" for r in ratios])
    means = [goals.mean_ratio(sheet, sheet.rows, "tcg", engine) for engine in ours]
    rows.append([goals.label("geometric mean", sheet, sheet.rows, [("tcg", engine) for engine in ours])] + [""] * len(sheet.cases) + [f"**{m:.2f}**" if m else "" for m in means])
    head = ["program"] + [f"{engine} s" for engine in sheet.cases] + [f"{engine}: times as fast as TCG" for engine in ours]
    return (f"{circumstances(sheet)} Each round boots the guest and runs every program once to warm up and then as often as is "
            f"measured. Seconds {clock_text(sheet)}.\n\n{markdown(head, rows)}{goals.programs(sheet)}{sheet.notes()}")


def new_cpus(options):
    cases = [f"{engine}, {cpus} CPU{'s' if cpus > 1 else ''}" for engine in engines_of(options) for cpus in (1, 2)]
    return Sheet("cpus", cases, names("cpus", options))


def render_cpus(sheet, _):
    def gain(row, engine):
        return sheet.ratio(row, f"{engine}, 1 CPU", f"{engine}, 2 CPUs")

    rows = []
    for row in sheet.rows:
        for engine in dict.fromkeys(case.split(",")[0] for case in sheet.cases):
            cells = [sheet.cell(f"{engine}, {cpus}", row, "{:.3f}") for cpus in ("1 CPU", "2 CPUs")]
            more = gain(row, engine)
            rows.append([row, engine] + cells + [f"{more:.2f}" if more else "not available"])
    head = ["program", "engine", "1 CPU, s", "2 CPUs, s", "times as fast with 2"]
    return (f"{circumstances(sheet)} TCG with two CPUs runs a thread for each (`thread=multi`). Seconds {clock_text(sheet)}.\n\n"
            f"{markdown(head, rows)}{goals.cpus(sheet, gain)}{sheet.notes()}")
