"""Table `guest-bench`: one static program as /init of the cloud kernel under each engine, and as a process of the host."""
import pathlib
import re
import tempfile
import time

from measure.common import (GUESTS, Failed, Guest, Process, built, circumstances, geometric_mean, markdown, median, pinned,
                            progress, write_cpio)

GUEST = GUESTS / "cloud-amd64"
APPEND = "console=ttyS0 quiet panic=-1"
SYSTEM = {"syscall", "page-fault", "mmap-munmap", "fork", "exec", "pipe-round-trip", "context-switch-8", "pipe-bulk", "yield",
          "signal", "thread-create", "futex", "file"}
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
    return Guest(GUEST / "vmlinuz", initrd, append).command(engine, options)


def run_once(engine, initrd, options, percent, only):
    """One run: {"boot": seconds to init, "benches": {name: (checksum, nanoseconds)}}."""
    boot, end, benches, guest_seconds = None, None, {}, 0.0
    with Process(command(engine, initrd, options, percent, only), options.timeout, engine) as process:
        for seconds, line in process.lines():
            if line.endswith("guest-bench: start"):
                boot = seconds
            match = LINE.match(line)
            if match:
                benches[match[1]] = (match[2], float(match[3]))
                guest_seconds += float(match[3]) * int(match[4]) / 1e9
            if "guest-bench: end" in line:
                end = (line.strip(), seconds)
        process.end()
        if boot is None or end is None or not end[0].endswith("end 0"):
            process.fail("no good end")
        # The guest's clock counts the time: it must agree with the host's, or the numbers mean nothing.
        host_seconds = end[1] - boot
        if engine != "native" and abs(guest_seconds - host_seconds) > 0.05 * host_seconds + 0.5:
            process.fail(f"the guest's clock counted {guest_seconds:.2f} s, the host's {host_seconds:.2f} s")
        if options.engine_stats:
            progress(process.error_text())
    return {"boot": boot, "benches": benches}


def check_sums(runs):
    """The names of the benchmarks; an engine that computed something else is an error."""
    expected = {}
    for engine, rounds in runs.items():
        for one in rounds:
            for name, (checksum, _) in one["benches"].items():
                if expected.setdefault(name, checksum) != checksum:
                    raise Failed(f"{engine}: {name} computed {checksum}, others {expected[name]}")
    for engine, rounds in runs.items():
        for one in rounds:
            if set(one["benches"]) != set(expected):
                raise Failed(f"{engine}: not every benchmark gave a number")
    if not expected:
        raise Failed(f"no such benchmark; system benchmarks are {', '.join(sorted(SYSTEM))}")
    return list(expected)


def table(runs, names):
    engines = list(runs)
    medians = {e: {n: median([one["benches"][n][1] for one in rounds]) for n in names} for e, rounds in runs.items()}
    beside_native = [e for e in engines if e != "native" and "native" in runs]
    beside_tcg = [e for e in engines if e not in ("native", "tcg") and "tcg" in runs]
    head = (["benchmark"] + [f"{e} ns" for e in engines] + [f"{e} ÷ native" for e in beside_native]
            + [f"{e}: times as fast as TCG" for e in beside_tcg])

    def ratios(which):
        return ([f"{geometric_mean([medians[e][n] / medians['native'][n] for n in which]):.2f}" for e in beside_native]
                + [f"{geometric_mean([medians['tcg'][n] / medians[e][n] for n in which]):.2f}" for e in beside_tcg])

    rows = [[name] + [f"{medians[e][name]:,.1f}" for e in engines] + ratios([name]) for name in names]
    for label, which in (("CPU", [n for n in names if n not in SYSTEM]), ("system", [n for n in names if n in SYSTEM]),
                         ("all", names)):
        if which:
            rows.append([f"**geometric mean, {label}** ({len(which)})"] + [""] * len(engines)
                        + [f"**{cell}**" for cell in ratios(which)])
    return markdown(head, rows)


def measure(options):
    """The table's text and every measurement."""
    runs = {engine: [] for engine in options.engines.split(",")}
    with tempfile.TemporaryDirectory() as name:
        initrd = make_initrd(options, pathlib.Path(name))
        for number in range(options.rounds):
            for engine, rounds in runs.items():
                started = time.monotonic()
                rounds.append(run_once(engine, initrd, options, options.percent, options.only))
                progress(f"micro: round {number + 1} {engine}: {time.monotonic() - started:.1f} s")
    text = (f"{circumstances(options, options.rounds, 'cloud-amd64')} Nanoseconds per iteration by the guest's clock, checked "
            f"against the host's; smaller is better.\n\n{table(runs, check_sums(runs))}")
    return text, runs
