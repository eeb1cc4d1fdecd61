"""Seconds and memory of an evaluation (everything but usefulness) as the number of images grows.

Examples:
    python -m benchmarks evaluation_cost
    python -m benchmarks evaluation_cost --sizes 1000 10000 --figures

A size n means n generated against n held-out images of 28 px, with 300 training images in ten classes; the
judge, a small classifier trained on those 300, is part of the time. Every size runs in a process of its
own, whose peak memory is that of the whole process, libraries included; what it held before, with
libraries and images loaded, is printed beside it. `--figures` adds the figures on features one by one.

The images are drawn here (ten smooth shapes, changed from image to image), because time and memory depend
on their number and size, not on what they show.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.memory import peak_megabytes

SIZES = (1_000, 2_000, 5_000, 10_000, 20_000, 50_000)
N_TRAIN = 300
N_CLASSES = 10


def make_images(n: int, seed: int, name: str) -> Any:
    """Return n images of 28 px in ten classes: a smooth shape per class, varied smoothly, with some noise."""
    import torch
    from torch.nn.functional import interpolate

    from fewgen.data.imageset import ImageSet

    shapes = torch.randn(N_CLASSES, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % N_CLASSES
    parts = []
    for part in labels.split(5000):
        coarse = shapes[part] + 0.6 * torch.randn(len(part), 1, 6, 6, generator=rng)
        smooth = interpolate(coarse, size=(28, 28), mode="bicubic")
        smooth += 0.05 * torch.randn(smooth.shape, generator=rng)
        parts.append((255 * torch.sigmoid(2 * smooth)).round().to(torch.uint8))
    return ImageSet(torch.cat(parts), labels, tuple("0123456789"), name=name)


class Parts:
    """Adds up the time between the reports of progress, by the name of the part.

    seconds: by the clock; cpu_seconds: of all threads, which other programs on the machine affect less.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}
        self._name: str | None = None
        self._since = time.perf_counter(), time.process_time()

    def __call__(self, name: str, share: float) -> None:
        """Count what ran before this report, and what runs after it for the part that it names."""
        self.end()
        self._name = name

    def end(self) -> None:
        """Count the time since the last report."""
        now = time.perf_counter(), time.process_time()
        if self._name is not None:
            for total, start, stop in zip((self.seconds, self.cpu_seconds), self._since, now, strict=True):
                total[self._name] = total.get(self._name, 0.0) + stop - start
        self._since = now

    def to_dict(self) -> dict[str, Any]:
        """Return totals and parts, and the peak memory so far; JSON-ready."""
        return {
            "seconds": math.fsum(self.seconds.values()),
            "cpu_seconds": math.fsum(self.cpu_seconds.values()),
            "parts": self.seconds,
            "parts_cpu": self.cpu_seconds,
            "peak_memory_gb": peak_megabytes() / 2**10,
        }


def measure_evaluation(n: int) -> dict[str, Any]:
    """Run one evaluation in this process; seconds in all and by part, and peak memory."""
    from fewgen.encoders.classifier import ClassifierFeatures
    from fewgen.evaluation.evaluation import evaluate_images

    train, held_out, generated = (
        make_images(count, seed, name)
        for count, seed, name in ((N_TRAIN, 1, "training"), (n, 2, "held out"), (n, 3, "generated"))
    )
    before = peak_megabytes() / 2**10
    parts = Parts()
    parts("judge", 0.0)
    # Trained here, so that a cache from an earlier run saves nothing.
    judge = ClassifierFeatures.of(train, use_cache=False)
    found = evaluate_images(generated, train, held_out, extractor=judge, useful_draws=0, progress=parts)
    parts.end()
    return {"n": n, **parts.to_dict(), "memory_before_gb": before, "omitted": found.omitted}


def measure_figures(n: int) -> dict[str, Any]:
    """Time the figures on features (n against n, 64 numbers each) one by one in this process."""
    import torch

    from fewgen.evaluation import distances, diversity

    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 64, generator=rng), torch.randn(n, 64, generator=rng)
    labels = torch.arange(n) % N_CLASSES
    actions: dict[str, Callable[[], object]] = {
        "frechet_distance": lambda: distances.frechet_distance(x, y),
        "kernel_distance": lambda: distances.kernel_distance(x, y),
        "kernel_distance_interval": lambda: distances.kernel_distance_interval(x, y, rng),
        "kernel_test": lambda: distances.kernel_test(x, y, rng=rng, labels_x=labels, labels_y=labels),
        "neighbour_scores": lambda: distances.neighbour_scores(x, y),
        "nearest_distances": lambda: distances.nearest_distances(x, y),
        "vendi_score": lambda: diversity.vendi_score(x),
        "vendi_ratio": lambda: diversity.vendi_ratio(x, y, labels, labels, rng=rng),
        "within_class_distance": lambda: diversity.within_class_distance(x, labels, N_CLASSES),
        "nearest_within": lambda: diversity.nearest_within(x, labels),
        "collapse_share": lambda: diversity.collapse_share(x, labels, y, labels),
    }
    before = peak_megabytes() / 2**10
    parts = Parts()
    for name, action in actions.items():
        parts(name, 0.0)
        action()
    parts.end()
    return {"n": n, **parts.to_dict(), "memory_before_gb": before}


MEASURES = {"evaluation": measure_evaluation, "figures": measure_figures}


def in_child(measure: str, n: int, threads: int, limit: float) -> dict[str, Any]:
    """Run one measurement in a process of its own; its result, or {"n", "error"}."""
    code = (
        "import json, sys; from benchmarks.evaluation_cost import MEASURES; "
        "print(json.dumps(MEASURES[sys.argv[1]](int(sys.argv[2]))))"
    )
    # Torch reads the number of threads from the variable, in the child.
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, measure, str(n)],
            cwd=Path(__file__).parent.parent,
            env=environment,
            capture_output=True,
            text=True,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        return {"n": n, "error": f"not done after {limit:g} seconds"}
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        return {"n": n, "error": lines[-1] if lines else f"ended with {done.returncode}"}
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def growth(results: list[dict[str, Any]], key: str) -> list[str]:
    """Exponents between neighbouring sizes: 1 is in proportion to n, 2 to its square."""
    exponents = [""]
    for a, b in zip(results, results[1:], strict=False):
        known = a.get(key) and b.get(key) and a["n"] != b["n"]
        exponents.append(f"{math.log(b[key] / a[key]) / math.log(b['n'] / a['n']):.2f}" if known else "")
    return exponents


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as lines: a row per size, a column per part (seconds by the clock).

    "growth" is that of the CPU seconds, "before" the memory held with libraries and images loaded.
    """
    names = list(dict.fromkeys(name for found in results for name in found.get("parts", {})))
    head = ["images", "seconds", "CPU s", "growth", "peak GiB", "before", *names]
    rows = [head]
    for found, exponent in zip(results, growth(results, "cpu_seconds"), strict=True):
        if "error" in found:
            rows.append([f"{found['n']:,}", found["error"]])
            continue
        rows.append(
            [
                f"{found['n']:,}",
                f"{found['seconds']:.1f}",
                f"{found['cpu_seconds']:.1f}",
                exponent,
                f"{found['peak_memory_gb']:.2f}",
                f"{found['memory_before_gb']:.2f}",
                *(f"{found['parts'][name]:.1f}" if name in found["parts"] else "" for name in names),
            ]
        )
    widths = [max(len(row[i]) for row in rows if len(row) == len(head)) for i in range(len(head))]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=False)) for row in rows)


def main(arguments: list[str] | None = None) -> int:
    """Print a row per size and write everything to a file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks evaluation_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), help="images per set")
    parser.add_argument("--figures", action="store_true", help="also time the figures on features one by one")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the linear algebra")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds after which a size is given up")
    parser.add_argument("--out", default="runs/benchmark/evaluation_cost.json")
    options = parser.parse_args(arguments)
    if min(options.sizes) < N_CLASSES or options.threads < 1:
        print(f"error: sizes must be at least {N_CLASSES} and threads at least 1.", file=sys.stderr)
        return 2
    wanted = ["evaluation", "figures"] if options.figures else ["evaluation"]
    results: dict[str, list[dict[str, Any]]] = {}
    for measure in wanted:
        results[measure] = []
        for n in sorted(options.sizes):
            results[measure].append(in_child(measure, n, options.threads, options.limit))
            print(f"{measure}: {json.dumps(results[measure][-1])}", file=sys.stderr, flush=True)
        print(f"{measure}, {options.threads} threads\n{table(results[measure])}\n", flush=True)

    from benchmarks.environment import environment
    from fewgen.files import write_json

    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    write_json(
        Path(options.out),
        {"environment": environment(), "threads_of_measurements": options.threads, "results": results},
    )
    return 1 if any("error" in found for part in results.values() for found in part) else 0


if __name__ == "__main__":
    sys.exit(main())
