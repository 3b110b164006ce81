"""Table `guest-bench`: one static program as /init of the cloud kernel under each engine, and as a process of the host."""
import pathlib
import re
import subprocess
import tempfile

from measure import goals
from measure.common import (GUESTS, Failed, Guest, Process, built, circumstances, clock_text, markdown, pinned, progress, write_cpio)
from measure.sheet import Sheet, measure

KIND = "cloud-amd64"
APPEND = "console=ttyS0 quiet panic=-1"
LINE = re.compile(r"^bench (\S+) ([0-9a-f]{16}) ([0-9.]+) (\d+)$")


def make_initrd(options, folder):
    program = folder / "init"
    program.write_bytes(built(options, "guest-bench").read_bytes())
    write_cpio(options, folder, ["dir dev 755", "node dev/console 600 c 5 1", "file init init 755"], folder / "initrd.img")
    return folder / "initrd.img"


def command(engine, initrd, options, percent, only):
    if engine == "native":
        return pinned([built(options, "guest-bench"), percent, *([only] if only else [])])
    append = f"{APPEND} bench_percent={percent}" + (f" bench_only={only}" if only else "")
    return Guest(GUESTS / KIND / "vmlinuz", initrd, append).command(engine, options)


def kinds(options):
    """{row: "cpu" or "system"}, of the program itself."""
    text = subprocess.run([built(options, "guest-bench"), "--list"], capture_output=True, text=True, check=True).stdout
    found = dict(line.split() for line in text.splitlines())
    wanted = options.only.split(",") if options.only else list(found)
    if set(wanted) - set(found):
        raise Failed(f"no such benchmark; there are {', '.join(found)}")
    return {row: kind for row, kind in found.items() if row in wanted}


def run_once(engine, initrd, options, rows, record):
    """One run of these rows."""
    start, before, ended, cpu, guest_seconds = None, None, False, 0.0, 0.0
    with Process(command(engine, initrd, options, options.percent, ",".join(rows)), options.timeout, engine) as process:
        for seconds, line in process.lines():
            if line.endswith("guest-bench: start"):
                start, before, cpu = seconds, seconds, process.cpu_seconds()
            match = LINE.match(line)
            if match:
                row, checksum, nanoseconds, iterations = match[1], match[2], float(match[3]), int(match[4])
                taken = nanoseconds * iterations / 1e9
                # The guest's clock counts the time: it must agree with the host's, or the numbers mean nothing.
                if engine != "native" and abs(taken - (seconds - before)) > 0.05 * taken + 0.5:
                    process.fail(f"the guest's clock counted {taken:.2f} s, the host's {seconds - before:.2f} s")
                guest_seconds, before = guest_seconds + taken, seconds
                if options.clock == "cpu" and engine != "native":
                    last, cpu = cpu, process.cpu_seconds()
                    nanoseconds = (cpu - last) * 1e9 / iterations
                record(row, nanoseconds, checksum)
            if "guest-bench: end" in line:
                if not line.strip().endswith("end 0"):
                    process.fail("guest-bench ended with an error: " + "; ".join(process.tail[-2:]))
                ended = True
        process.end()
        if not ended or start is None:
            process.fail("the guest ended early", whole=start is None)
        if engine != "native" and abs(guest_seconds - (before - start)) > 0.05 * guest_seconds + 0.5:
            process.fail(f"the guest's clock counted {guest_seconds:.2f} s, the host's {before - start:.2f} s", whole=True)
        if options.engine_stats:
            progress(process.error_text())


def table(sheet, groups):
    engines = sheet.cases
    beside_native = [e for e in engines if e != "native" and "native" in engines]
    beside_tcg = [e for e in engines if e not in ("native", "tcg") and "tcg" in engines]
    pairs = [(e, "native") for e in beside_native] + [("tcg", e) for e in beside_tcg]
    head = (["benchmark"] + [f"{e} ns" for e in engines] + [f"{e} ÷ native" for e in beside_native]
            + [f"{e}: times as fast as TCG" for e in beside_tcg])
    rows = []
    for row in sheet.rows:
        ratios = [sheet.ratio(row, *pair) for pair in pairs]
        rows.append([row] + [sheet.cell(e, row, "{:,.1f}") for e in engines] + [f"{r:.2f}" if r else "" for r in ratios])
    for label, which in (*groups.items(), ("all", sheet.rows)):
        means = [goals.mean_ratio(sheet, which, *pair) for pair in pairs]
        if which:
            rows.append([goals.label(f"geometric mean, {label}", sheet, which, pairs)] + [""] * len(engines)
                        + [f"**{mean:.2f}**" if mean else "" for mean in means])
    return markdown(head, rows)


def render(sheet, options):
    kind = kinds(options)
    groups = {label: [row for row in sheet.rows if kind.get(row) == word] for label, word in (("CPU", "cpu"), ("system", "system"))}
    return (f"{circumstances(sheet)} Nanoseconds per iteration {clock_text(sheet)}; smaller is better.\n\n"
            f"{table(sheet, groups)}{goals.micro(sheet, groups['CPU'], groups['system'])}{sheet.notes()}")


def new(options):
    return Sheet("micro", options.engines.split(","), list(kinds(options)))


def fill(sheet, options, save):
    with tempfile.TemporaryDirectory() as name:
        initrd = make_initrd(options, pathlib.Path(name))

        def run(engine, rows, record, _):
            run_once(engine, initrd, options, rows or (sheet.rows if options.only else []), record)

        measure(sheet, options, KIND, run, save)
