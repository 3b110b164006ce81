"""What a table is made from: for each case (an engine, or an engine with a number of CPUs) and row the value of every run,
or the reason why there is none. A sheet is kept in a file, so that rounds can be measured in several sittings."""
import os
import resource
import time

from measure.common import Failed, NotAvailable, context, median, progress


class Sheet:
    """cases and rows are names, in the order of the table."""

    def __init__(self, name, cases, rows):
        self.name, self.cases, self.rows = name, cases, rows
        self.values = {case: {} for case in cases}
        self.reasons = {case: {} for case in cases}
        self.sums = {}
        self.sittings = []  # what stands above the table: context() and rounds, date, load of each sitting

    def record(self, case, row, value, checksum=""):
        """A value of a round. Another checksum than before: the row of this case is lost."""
        if row not in self.rows:
            self.rows.append(row)
        expected = self.sums.setdefault(row, checksum)
        if expected != checksum:
            self.lose(case, row, f"computed {checksum}, not {expected} as the others did")
        elif value is not None and row not in self.reasons[case]:
            self.values[case].setdefault(row, []).append(value)

    def lose(self, case, row, reason):
        reason = reason.splitlines()[0]
        self.values[case].pop(row, None)
        self.reasons[case].setdefault(row, reason)
        progress(f"{self.name}: {case}, {row} is not available: {reason}")

    def median(self, case, row):
        """None where there is no value."""
        values = self.values.get(case, {}).get(row)
        return median(values) if values else None

    def ratio(self, row, numerator, denominator):
        values = self.median(numerator, row), self.median(denominator, row)
        return values[0] / values[1] if all(values) else None

    def runs(self):
        """(fewest, most) values of a row."""
        counts = [len(values) for rows in self.values.values() for values in rows.values()] or [0]
        return min(counts), max(counts)

    def cell(self, case, row, form):
        value = self.median(case, row)
        return form.format(value) if value is not None else "not available" if row in self.reasons[case] else ""

    def notes(self):
        """Why rows are missing, for the end of the table."""
        lines = []
        for case, reasons in self.reasons.items():
            for reason in dict.fromkeys(reasons.values()):
                rows = [row for row in reasons if reasons[row] == reason]
                lines.append(f"- {case}, {', '.join(rows) if set(rows) != set(self.rows) else 'every row'}: {reason}")
        return "\n\nNot available:\n\n" + "\n".join(lines) if lines else ""

    def to_json(self):
        return vars(self)

    @classmethod
    def from_json(cls, fields):
        sheet = cls(fields["name"], fields["cases"], fields["rows"])
        vars(sheet).update(fields)
        return sheet


def busy_seconds():
    """CPU time of the whole host, and of this script with the processes that it has ended; steal counts as the others'."""
    with open("/proc/stat", encoding="ascii") as file:
        fields = [int(field) for field in file.readline().split()[1:9]]
    user, nice, system, _, _, interrupts, soft, steal = fields
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return ((user + nice + system + interrupts + soft + steal) / os.sysconf("SC_CLK_TCK"),
            sum(usage.ru_utime + usage.ru_stime for usage in own))


class Sitting:
    """Rounds measured one after the other; written into the sheet after each, with what else the host did meanwhile."""

    def __init__(self, sheet, options, kind):
        self.busy, self.start = busy_seconds(), time.monotonic()
        self.facts = context(options, kind) | {"rounds": 0, "date": time.strftime("%Y-%m-%d")}
        before = next((sitting for sitting in sheet.sittings), None)
        for key in context(options, kind):
            if before and before[key] != self.facts[key]:
                raise Failed(f"{sheet.name}: the earlier rounds were measured with another {key}: {before[key]}, not {self.facts[key]}; "
                             "begin anew without --add")
        sheet.sittings.append(self.facts)

    def end_round(self):
        self.facts["rounds"] += 1
        total, own = (after - before for after, before in zip(busy_seconds(), self.busy))
        seconds = (time.monotonic() - self.start) * os.cpu_count()
        self.facts["others percent"] = round(100 * max(0.0, total - own) / seconds, 1)


def measure(sheet, options, kind, run, save):
    """run(case, rows or None for all, record(row, value, checksum), lose(row, reason)): one boot or process, which takes the
    rows in their order. One that ends early loses the row that it was at; the rows behind are measured by a further run, and
    given up when that measures nothing either."""
    sitting = Sitting(sheet, options, kind)
    for number in range(options.rounds):
        for case in sheet.cases:
            started = time.monotonic()
            progress(f"{sheet.name}: round {number + 1} of {options.rounds}: {case} ...")
            one_round(sheet, case, run)
            progress(f"{sheet.name}: round {number + 1} of {options.rounds}: {case}: {time.monotonic() - started:.1f} s "
                     f"({time.monotonic() - sitting.start:.0f} s since the table's start)")
        sitting.end_round()
        save()


def one_round(sheet, case, run):
    left, in_vain = [row for row in sheet.rows if row not in sheet.reasons[case]], False
    while left:
        done = {}

        def record(row, value, checksum="", seen=done):
            seen.setdefault(row, []).append((value, checksum))

        def lose(row, reason, seen=done):
            seen.setdefault(row, [])
            sheet.lose(case, row, reason)

        reason = "gave no number"
        try:
            run(case, left if len(left) < len(sheet.rows) else None, record, lose)
            broken = [row for row in left if row not in done]
        except NotAvailable as error:
            broken, reason = left, str(error)
        except Failed as error:
            progress(f"{sheet.name}: {case}: {error}\n{error.details}")
            broken = [row for row in left if row not in done]
            reason = str(error)
            if error.whole:
                broken, done = left, {}
            elif done or not in_vain:
                broken, in_vain = broken[:1], not done
        for row, values in done.items():
            for value, checksum in values:
                sheet.record(case, row, value, checksum)
        for row in broken:
            sheet.lose(case, row, reason)
        if not broken:
            return
        left = left[left.index(broken[-1]) + 1:]
