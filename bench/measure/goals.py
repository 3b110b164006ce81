"""The goals beside what was measured: lines that stand below the tables. A row without a number counts as not reached."""
import math

MOST_OVER_RAM_MIB = 114  # 120 MB


def geometric_mean(values):
    return math.exp(sum(math.log(value) for value in values) / len(values))


def mean_ratio(sheet, rows, numerator, denominator):
    """None where no row has both."""
    ratios = [ratio for row in rows if (ratio := sheet.ratio(row, numerator, denominator))]
    return geometric_mean(ratios) if ratios else None


def label(name, sheet, rows, pairs):
    """The head of a row of means: how many rows count, where some are missing."""
    counting = sum(all(sheet.ratio(row, *pair) for pair in pairs) for row in rows)
    return f"**{name}** ({len(rows)}" + (f", {counting} of them counted)" if counting < len(rows) else ")")


def line(what, value, goal, at_least=True, form="{:.2f}"):
    if value is None:
        return f"- {what}: not available (goal: {goal}): **not reached**"
    good = value >= goal if at_least else value <= goal
    return (f"- {what}: {form.format(value)} (goal: at {'least' if at_least else 'most'} {goal}): "
            f"{'reached' if good else '**not reached**'}")


def slower_rows(sheet, rows, engine):
    """The rows in which the engine is slower than TCG, the worst first, and those that tell nothing."""
    ratios = {row: sheet.ratio(row, "tcg", engine) for row in rows}
    slower = sorted((row for row, ratio in ratios.items() if ratio and ratio < 1), key=lambda row: ratios[row])
    missing = [row for row, ratio in ratios.items() if not ratio]
    text = ", ".join([f"{row} ({ratios[row]:.2f})" for row in slower] + [f"{row} (not available)" for row in missing])
    return f"- rows slower than TCG (goal: none): {text or 'none'}: {'**not reached**' if text else 'reached'}"


def worst(sheet, rows, engine, count=5):
    """The rows farthest from native."""
    ratios = {row: ratio for row in rows if (ratio := sheet.ratio(row, engine, "native"))}
    return ", ".join(f"{row} {ratios[row]:.2f}" for row in sorted(ratios, key=ratios.get, reverse=True)[:count])


def weakest(sheet, rows, engine, count=5):
    """The rows with the least over TCG."""
    ratios = {row: ratio for row in rows if (ratio := sheet.ratio(row, "tcg", engine))}
    return ", ".join(f"{row} {ratios[row]:.2f}" for row in sorted(ratios, key=ratios.get)[:count])


def block(lines):
    return "\n\nGoals:\n\n" + "\n".join(lines) if lines else ""


def micro(sheet, cpu_rows, system_rows):
    if not {"tcg", "jit"} <= set(sheet.cases):
        return ""
    lines = []
    if cpu_rows:
        lines.append(line("CPU rows, geometric mean over TCG", mean_ratio(sheet, cpu_rows, "tcg", "jit"), 4.0))
        if "native" in sheet.cases:
            lines.append(line("CPU rows, geometric mean of the time over native's", mean_ratio(sheet, cpu_rows, "jit", "native"), 2.0,
                              at_least=False))
            lines.append(f"- farthest from native: {worst(sheet, cpu_rows, 'jit')}")
        lines.append(slower_rows(sheet, cpu_rows, "jit").replace("- rows", "- CPU rows"))
        lines.append(f"- least over TCG: {weakest(sheet, cpu_rows, 'jit')}")
    if system_rows:
        lines.append(line("system rows, geometric mean over TCG", mean_ratio(sheet, system_rows, "tcg", "jit"), 3.0))
        lines.append(slower_rows(sheet, system_rows, "jit").replace("- rows", "- system rows"))
        lines.append(f"- least over TCG: {weakest(sheet, system_rows, 'jit')}")
    return block(lines)


def programs(sheet):
    if not {"tcg", "jit"} <= set(sheet.cases):
        return ""
    return block([line("geometric mean over TCG", mean_ratio(sheet, sheet.rows, "tcg", "jit"), 4.0),
                  slower_rows(sheet, sheet.rows, "jit"), f"- least over TCG: {weakest(sheet, sheet.rows, 'jit')}"])


def boot(sheet):
    if not {"tcg", "jit"} <= set(sheet.cases):
        return ""
    return block([line("cloud kernel to init, times as fast as TCG", sheet.ratio("init", "tcg", "jit"), 2.0),
                  line("Debian to the login prompt, times as fast as TCG", sheet.ratio("login", "tcg", "jit"), 3.0)])


def cpus(sheet, gain):
    """gain(row, engine): how many times as fast two CPUs are as one, or None."""
    lines = [line(f"{row}, two CPUs over one", gain(row, "jit"), 1.7) for row in sheet.rows]
    return block(lines) if any(case.startswith("jit") for case in sheet.cases) else ""


def cost(sheet):
    if "jit" not in sheet.cases:
        return ""
    return block([line("resident memory over guest RAM at the login prompt, MiB", sheet.median("jit", "over RAM"), MOST_OVER_RAM_MIB, False, "{:.0f}"),
                  line("the same after gcc and java, MiB", sheet.median("jit", "over RAM, gcc and java"), MOST_OVER_RAM_MIB, False, "{:.0f}"),
                  line("an idle guest, % of a core", sheet.median("jit", "idle"), 1, False),
                  line("translation, ns per guest instruction", sheet.median("jit", "translation"), 150, False, "{:.0f}")])
