"""The tour of README.md: its commands as they stand there, and what they are to print."""
import os
import pathlib
import re
import subprocess

from harness import NACRE, ROOT

SECTION = "## Five minutes with it\n"


def steps():
    """Each command with the lines that README shows below it."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition(SECTION)[2].partition("\n## ")[0]
    found = []
    for block in re.findall(r"^```console\n(.*?)^```", section, re.S | re.M):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


def matches(shown, printed):
    """`...`: anything, within a line or as lines. Nothing shown: whatever it prints."""
    pattern = "\n".join(shown)
    if not shown:
        return True
    translated = "".join(".*" if part == "..." else re.escape(part) for part in re.split(r"(\.\.\.)", pattern))
    return re.fullmatch(translated, printed.rstrip("\n"), re.S) is not None


class Tour:
    def __init__(self, folder):
        tools = pathlib.Path(folder) / "bin"
        tools.mkdir()
        (tools / "nacre").symlink_to(NACRE)
        self.home = pathlib.Path(folder) / "home"
        self.environment = {**os.environ, "NACRE_HOME": str(self.home), "PATH": f"{tools}:{os.environ['PATH']}"}

    def run(self, command, seconds=3600):
        return subprocess.run(["bash", "-e", "-c", command], capture_output=True, text=True, stdin=subprocess.DEVNULL,
                              env=self.environment, timeout=seconds, check=False)

    def take(self, case, skipped=()):
        """Every step of it; those that begin as one of `skipped` are the caller's."""
        taken = 0
        for command, shown in steps():
            if command.startswith(tuple(skipped) or ("\0",)):
                continue
            print(f"\n  $ {command}", end="", flush=True)
            done = self.run(command)
            case.assertEqual(done.returncode, 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
            case.assertTrue(matches(shown, done.stdout), f"{command}: printed\n{done.stdout}\nREADME shows\n" + "\n".join(shown))
            taken += 1
        print()
        case.assertGreater(taken, 10)

    def clear(self):
        """Nothing of it goes on when a step failed."""
        self.run("for vm in $(ls $NACRE_HOME/vms 2>/dev/null); do nacre kill $vm; done; true", 300)
