"""Whether minutes are kept and dry runs are right: `python -m benchmarks time [--out docs/results/time.md]`.

Ten trainings of different methods, sizes and limits, each as a new process: a dry run first, then the command
itself with its measuring and its report. A row says how long the dry run took until its first line, the steps
that it promised and those that were taken, and the time of the whole command beside its limit.

Examples:
    python -m benchmarks time
    python -m benchmarks time --only 0 3 --out /tmp/time.md
    python -m benchmarks time --scale 0.2          # every limit a fifth: a quick look
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.environment import environment
from fewgen.clock import n_cores

CASES: tuple[tuple[str, float], ...] = (
    ("cada_vqvae --data digits --shots 30", 0.5),
    ("cada_vqvae --data fashion_mnist --shots 30", 2.0),
    ("cada_vqvae --preset hybrid --data fashion_mnist --shots 30", 3.0),
    ("cada_vqvae --data cifar10 --shots 30 --clock cpu", 1.0),
    ("cada_vqvae --data fashion_mnist --shots 30 --class-split 6/1/3 --meta fomaml", 2.0),
    ("sq_gan --data digits --shots 30 --size 16", 1.0),
    ("sq_gan --data fashion_mnist --shots 30", 5.0),
    ("sq_gan --data cifar10 --shots 30 --size 64", 2.0),
    ("diffusion --data digits --shots 30", 0.5),
    ("diffusion --data fashion_mnist --shots 12", 4.0),
)
"""Keywords of `fewgen train`, and minutes."""

COMMAND = (sys.executable, "-m", "fewgen", "train")

ALLOWED, SLACK = 1.1, 15.0
"""What a whole command may take: so many times its limit, and so many seconds more."""

FIRST_LINE = 15.0
FACTOR = 1.5
"""What a dry run may take until its first line, and how far it may be off."""


@dataclass(frozen=True)
class Row:
    """What one training showed.

    case: its words.
    minutes: its limit.
    first_line: seconds until the first line of the dry run.
    promised: steps that it said would fit; None if it said nothing of them.
    steps: that were taken.
    seconds: of the whole command, by the clock of its limit.
    said: the first line.
    error: what went wrong, or "".
    """

    case: str
    minutes: float
    first_line: float
    promised: int | None
    steps: int
    seconds: float
    said: str
    error: str = ""

    @property
    def kept(self) -> bool:
        """Whether the command ended in time."""
        return not self.error and self.seconds <= ALLOWED * 60 * self.minutes + SLACK

    @property
    def right(self) -> bool:
        """Whether the dry run was in time, and right."""
        if not self.promised or not self.steps:
            return False
        ratio = self.steps / self.promised
        return self.first_line <= FIRST_LINE and 1 / FACTOR <= ratio <= FACTOR

    def cells(self) -> list[str]:
        """Return the row as it is printed."""
        promised = "-" if self.promised is None else f"{self.promised:,}"
        return [
            f"`{self.case}`",
            f"{self.minutes:g}",
            f"{self.first_line:.0f}",
            promised,
            f"{self.steps:,}",
            f"{self.seconds:.0f} of {60 * self.minutes:.0f}",
            self.error or ("yes" if self.kept else "no"),
            "yes" if self.right else "no",
        ]


def promised_steps(said: str) -> int | None:
    """Return the steps that the first line of a dry run promises.

    >>> promised_steps("3 minutes allow about 1,030 of 2,500 steps at 64 px here: not enough ...")
    1030
    >>> promised_steps("3 minutes are enough for all 850 steps at 28 px here: about 90 s in all.")
    850
    """
    found = re.search(r"(?:allows? about|enough for all) ([\d,]+)", said)
    return int(found[1].replace(",", "")) if found else None


def first_line(words: list[str]) -> tuple[float, str]:
    """Return the seconds until the first line of a command's output, and that line."""
    started = time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        seconds = time.perf_counter() - started
        process.communicate()
    return seconds, line


def children_seconds() -> float:
    """Return the seconds that ended child processes have computed, on all cores."""
    times = os.times()
    return (times.children_user + times.children_system) / n_cores()


def measure(case: str, minutes: float, folder: Path) -> Row:
    """Try one case in a new folder."""
    words = [*COMMAND, *case.split(), "--minutes", f"{minutes:g}"]
    words += ["--out", str(folder)]
    waited, said = first_line([*words, "--dry-run"])
    clock = children_seconds if "--clock cpu" in case else time.perf_counter
    started = clock()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    seconds = clock() - started
    trained = re.search(r"Trained ([\d,]+) steps", done.stdout)
    lines = done.stderr.strip().splitlines() or ["no output"]
    return Row(
        case=case,
        minutes=minutes,
        first_line=waited,
        promised=promised_steps(said),
        steps=int(trained[1].replace(",", "")) if trained else 0,
        seconds=seconds,
        said=said,
        error="" if done.returncode == 0 else lines[-1],
    )


HEAD = (
    "`fewgen train`",
    "minutes",
    "dry run: seconds to the first line",
    "steps promised",
    "steps taken",
    "seconds of the whole command",
    "kept",
    "dry run right",
)


def table(rows: list[Row]) -> str:
    """Return the rows as Markdown."""
    lines = [HEAD, ["---"] * len(HEAD), *(row.cells() for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page(rows: list[Row], command: str) -> str:
    """Return `docs/results/time.md`."""
    about: dict[str, Any] = environment()
    where = f"commit {about['commit']}, torch {about['versions']['torch']}, {about['cores']} cores"
    load = about["load_1_5_15_minutes"]
    kept, right = sum(row.kept for row in rows), sum(row.right for row in rows)
    said = "\n".join(f"- `{row.case}`: {row.said}" for row in rows)
    return f"""# Minutes that are kept

Command: `{command}` ({where}; load {load} at the end).

{kept} of {len(rows)} commands ended within {ALLOWED:.0%} of their limit and {SLACK:g} s, training,
measuring and report together; with `--clock cpu` these are seconds of computing on all cores.
{right} of {len(rows)} dry runs said within {FIRST_LINE:g} s how many steps fit, right within a factor of
{FACTOR:g}.

{table(rows)}

What the dry runs said:

{said}
"""


def main(arguments: list[str]) -> int:
    """Try the cases, print the table, and write the page if asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks time", description=__doc__.split("\n")[0])
    parser.add_argument("--only", type=int, nargs="*", metavar="I", help="numbers of cases, from 0")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on every limit")
    parser.add_argument("--out", help="page to write, such as docs/results/time.md")
    options = parser.parse_args(arguments)
    chosen = range(len(CASES)) if options.only is None else options.only
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for i in chosen:
            case, minutes = CASES[i]
            rows.append(measure(case, minutes * options.scale, Path(folder) / f"run{i}"))
            print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    print(table(rows))
    if options.out:
        command = " ".join(["python -m benchmarks time", *arguments])
        Path(options.out).write_text(page(rows, command), encoding="utf-8")
    return 0 if all(row.kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
