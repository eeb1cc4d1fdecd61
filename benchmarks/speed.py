"""Speed: images per second of a run, the time of `fewgen --help`, and of the measuring protocol.

Examples:
    python -m benchmarks speed --run runs/shoes
    python -m benchmarks speed --measure 1000 3000 10000

Each timing is repeated after a warm-up; the median and the fastest are printed, because other programs on
the machine can only make a run slower.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fewgen.errors import FewgenError
from fewgen.files import write_json
from fewgen.runs.environment import environment


def timed(action: Callable[[], object], repeats: int) -> dict[str, float]:
    """Return median and fastest wall-clock seconds after one warm-up."""
    action()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return {"median_s": statistics.median(seconds), "fastest_s": min(seconds), "repeats": repeats}


def help_time(repeats: int) -> dict[str, float]:
    """Time `fewgen --help` as a new process."""

    def action() -> None:
        subprocess.run(
            [sys.executable, "-m", "fewgen.cli.main", "--help"],
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=60,
        )

    return timed(action, repeats)


def generation_speed(run_dir: Path, n: int, repeats: int) -> dict[str, float]:
    """Time the generation of n images, equally many per class, without writing files."""
    import fewgen
    from fewgen.generation import GenerationRequest, image_seeds

    run = fewgen.load_run(run_dir)
    method = run.method
    labels = torch.arange(n) % len(run.class_names)
    request = GenerationRequest(labels=labels, seeds=image_seeds(0, n))
    found = timed(lambda: method.generate(request), repeats)
    return found | {"n": n, "images_per_second": n / found["median_s"], "best": n / found["fastest_s"]}


def main(arguments: list[str] | None = None) -> int:
    """Print the timings as lines of JSON and write them to a file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", nargs="*", default=[], help="run folders whose generation is timed")
    parser.add_argument("--n", type=int, default=10_000, help="images per timing")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default="runs/benchmark/speed.json")
    options = parser.parse_args(arguments)
    results: dict[str, object] = {}
    try:
        results["fewgen --help"] = help_time(options.repeats)
        for folder in options.run:
            results[f"generate, {Path(folder).name}"] = generation_speed(
                Path(folder), options.n, options.repeats
            )
    except (FewgenError, subprocess.SubprocessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # Kilobytes on Linux; the largest memory that this process has held.
    results["peak_memory_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    for name, found in results.items():
        print(f"{name}: {json.dumps(found)}")
    write_json(Path(options.out), {"environment": environment(), "results": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
