"""What a command costs before it does any work: seconds of short commands, each as a new process.

Examples:
    python -m benchmarks startup
    python -m benchmarks startup --repeats 9 --only help import

Everything goes through the command line, so that the same file measures versions whose insides differ: copy
it into the other checkout. A round runs every command once, so that other load on the machine hits all of
them; the first round is not counted (it fills caches of files, byte code and judges). Training takes one step
of a tiny network and evaluation reads its judge from the cache, so what is left is mostly the start. CPU
seconds, of all threads, suffer less from other programs than seconds by the clock.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.environment import environment

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "tests" / "golden" / "runs" / "0.1.0"
TINY = "--model.image.width 4 --model.image.hidden 16 --model.text.hidden 16 --model.steps 1"
FEWGEN = [sys.executable, "-m", "fewgen"]


def commands(work: Path) -> dict[str, list[str]]:
    """Return what is timed; `work` takes what the commands write, `{round}` is the number of the round."""
    train = (
        f"train cada_vqvae --data digits --size 8 --shots 3 --text onehot {TINY} --no-report --no-progress"
    )
    judge = "--data digits --class-name zero --class-name one --class-name two --shots 20 --holdout test"
    quick = "--pool none --useful-draws 0 --no-html --no-progress"
    return {
        "python": [sys.executable, "-c", "pass"],
        "import": [sys.executable, "-c", "import fewgen"],
        "help": [*FEWGEN, "--help"],
        "train-help": [*FEWGEN, "train", "--help"],
        "train": [*FEWGEN, *train.split(), "--out", f"{work}/run-{{round}}"],
        "generate": [*FEWGEN, "generate", f"{RUNS}/cada_vqvae", "-n", "1", "--out", f"{work}/{{round}}.npz"],
        "evaluate": [
            *FEWGEN, "evaluate", f"{RUNS}/images/made.npz", *judge.split(), *quick.split(),
            "--out", f"{work}/{{round}}.json",
        ],
    }  # fmt: skip


LABELS = {
    "python": "python -c pass",
    "import": 'python -c "import fewgen"',
    "help": "fewgen --help",
    "train-help": "fewgen train --help",
    "train": "fewgen train cada_vqvae, one step",
    "generate": "fewgen generate RUN -n 1 --out x.npz",
    "evaluate": "fewgen evaluate IMAGES, 60 of 28 px",
}


def timed(command: Sequence[str], variables: Mapping[str, str], timeout: float) -> tuple[float, float]:
    """Return seconds by the clock and CPU seconds of one process.

    Raises:
        RuntimeError: it failed; with the last line of what it said.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=timeout, check=False
    )
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{' '.join(command[1:4])} ended with {done.returncode}: {last}")
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(names: Sequence[str], repeats: int, timeout: float) -> dict[str, list[tuple[float, float]]]:
    """Return the timings of each command, after a round that is not counted."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        # The code beside this file, not what may be installed from elsewhere.
        path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
        variables = {**os.environ, "FEWGEN_CACHE_DIR": f"{folder}/cache", "PYTHONPATH": path}
        asked = commands(Path(folder))
        for turn in range(repeats + 1):
            for name in names:
                words = [word.replace("{round}", str(turn)) for word in asked[name]]
                timing = timed(words, variables, timeout)
                if turn:
                    found[name].append(timing)
            print(f"round {turn} of {repeats} done", file=sys.stderr, flush=True)
    return found


def table(found: Mapping[str, Sequence[tuple[float, float]]]) -> list[str]:
    """Return the Markdown of the timings: median and fastest by the clock, median of the CPU seconds."""
    lines = ["| command | median s | fastest s | CPU s |", "|---|---|---|---|"]
    for name, timings in found.items():
        seconds, cpu = zip(*timings, strict=True)
        figures = (statistics.median(seconds), min(seconds), statistics.median(cpu))
        lines.append(f"| `{LABELS[name]}` | " + " | ".join(f"{value:.2f}" for value in figures) + " |")
    return lines


def made_with() -> str:
    """Return the sentence on commit, versions and hardware."""
    about = environment()
    commit = str(about["commit"])[:12] + ("+" if about["changed_files"] else "")
    versions = about["versions"]
    libraries = ", ".join(f"{name} {versions[name]}" for name in ("fewgen", "torch", "numpy"))  # type: ignore[index]
    return (
        f"Commit {commit}; Python {about['python']}, {libraries}; {about['system']}, {about['processor']}, "
        f"{about['cores']} cores, {about['memory_gb']} GB; load {about['load_1_5_15_minutes']} at the end, "
        f"OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')}; {about['time']}. "
        f"`{about['command']}`"
    )


def main(arguments: list[str] | None = None) -> int:
    """Print the table and what it was made with."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks startup",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repeats", type=int, default=5, help="rounds that are counted")
    parser.add_argument("--only", nargs="+", default=list(LABELS), choices=LABELS, help="only these commands")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds of one command")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        print(f"error: repeats must be at least 1, got {options.repeats}.", file=sys.stderr)
        return 2
    try:
        found = measure(options.only, options.repeats, options.timeout)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(table(found)))
    print(f"\n{made_with()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
