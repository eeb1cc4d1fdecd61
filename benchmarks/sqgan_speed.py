"""Seconds of a full training step of SQ-GAN: discriminator, generator, quantised consistency, R1's share.

Examples:
    python -m benchmarks sqgan_speed
    python -m benchmarks sqgan_speed --sizes 32 --threads 2 --ways "as it is" "channels last"

Each row is a process of its own that trains in the real loop, with optimisers, running average and log. A
step lasts from one discriminator update to the next; the median over blocks of as many steps as lie between
two R1 penalties is printed, so that every block holds one. Other programs on the machine can only make it
slower, so the fastest block is printed as well, and the processor seconds, which they hardly change.
`--profile` prints the time of each operator in the first step, which holds an R1 penalty, instead.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.ablation import markdown
from benchmarks.memory import forget_peak, peak_megabytes
from fewgen.config import load_preset, resolve
from fewgen.data.imageset import ImageSet
from fewgen.errors import FewgenError, TrainingError
from fewgen.files import make_dir, write_json
from fewgen.methods.base import DataSpec
from fewgen.methods.sq_gan.config import SqGanConfig
from fewgen.methods.sq_gan.model import SqGan, _Drawn
from fewgen.runs.environment import environment
from fewgen.training import Stage, TrainConfig, Trainer

LAYOUTS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}

WAYS = ("as it is", *LAYOUTS, "compiled", "separate draw", "no consistency", "plain GAN")
"""The default preset; its networks in one memory layout or the other; compiled; with images of its own for
the generator's update instead of those that the discriminator's has drawn; and with parts left out."""

N_IMAGES = 300


def images_of(size: int, seed: int = 0) -> ImageSet:
    """Return random images in ten classes, grey at 28 pixels and below, in colour above."""
    rng = torch.Generator().manual_seed(seed)
    shape = (N_IMAGES, 1 if size <= 28 else 3, size, size)
    pixels = torch.randint(0, 256, shape, generator=rng).to(torch.uint8)
    return ImageSet(pixels, torch.arange(N_IMAGES) % 10, tuple(f"class {i}" for i in range(10)))


def block_means(times: list[float], every: int, warm_up: int) -> list[float]:
    """Return the mean length of the steps of each block of `every`.

    Args:
        times: seconds at which steps began.
        every: steps of a block.
        warm_up: first steps, which are left out.

    >>> block_means([0.0, 9.0, 10.0, 12.0, 13.0, 17.0, 18.0], every=2, warm_up=1)
    [1.5, 2.5]
    """
    starts = times[warm_up::every]
    return [(b - a) / every for a, b in zip(starts, starts[1:], strict=False)]


def settings_of(way: str, batch_size: int, steps: int) -> dict[str, Any]:
    """Return the model settings of a way, on top of the default preset."""
    settings: dict[str, Any] = {"batch_size": batch_size, "steps": steps, "init": {"kind": "random"}}
    if way in ("no consistency", "plain GAN"):
        settings |= {"consistency": "none", "consistency_weights": None}
    if way == "plain GAN":
        settings["quantizer"] = None
    return settings


def change(way: str, method: SqGan, stage: Stage) -> None:
    """Make networks and phases those of a way."""
    if way in LAYOUTS:
        method.to(memory_format=LAYOUTS[way])  # type: ignore[call-overload]
    elif way == "compiled":
        method.synthesis.compile()
        method.discriminator.compile()
        for phase in stage.phases:
            if phase.name == "r1" and phase.loss is not None:
                # Its gradient is differentiated again, which compiled graphs cannot do.
                phase.loss = torch.compiler.disable(phase.loss)
    elif way == "separate draw":
        for phase in stage.phases:
            if phase.name == "generator" and phase.loss is not None:
                phase.loss = drawing_again(method, phase.loss)


def drawing_again(method: SqGan, loss: Callable[..., Any]) -> Callable[..., Any]:
    """Return a generator's loss that draws images of its own first: one more forward pass."""

    def with_own_images(batch: Any, context: Any) -> Any:
        z = method._latents(len(batch), context.rng)
        styles, codes = method.quantized(z, method.condition(batch.labels))
        images = method.synthesis(styles, method._noise(len(batch), context.rng))
        method._drawn = _Drawn(context.step, images, codes)
        return loss(batch, context)

    return with_own_images


def measure(way: str, size: int, threads: int, batch_size: int, blocks: int) -> dict[str, Any]:
    """Train for some blocks of steps in this process and return their seconds and the memory."""
    torch.set_num_threads(threads)
    preset = load_preset("sq_gan", "default")
    defaults = resolve(SqGanConfig, preset["model"], where="model")
    every = defaults.r1_every
    steps = every * (blocks + 1) + 1
    config = resolve(SqGanConfig, preset["model"], settings_of(way, batch_size, steps), where="model")
    images = images_of(size)
    torch.manual_seed(0)
    method = SqGan(config, DataSpec.of(images, None))
    stage = method.stages(images, None)[-1]
    change(way, method, stage)
    times: list[float] = []
    cpu: list[float] = []
    first = stage.phases[0]
    loss = first.loss
    assert loss is not None

    def timed(batch: Any, context: Any) -> Any:
        times.append(time.perf_counter())
        cpu.append(time.process_time())
        return loss(batch, context)

    first.loss = timed
    forget_peak()
    with tempfile.TemporaryDirectory() as folder:
        training = {**preset["training"], "validate_every": 0, "preview_every": 0, "checkpoint_every": 0}
        train_config = TrainConfig(**training, device="cpu", threads=threads, progress=False)
        Trainer(method, [stage], images, None, train_config, make_dir(Path(folder) / "run")).run()
    seconds = block_means(times, every, warm_up=every)
    if len(seconds) < blocks:
        raise TrainingError(f"Training was stopped after {len(times)} of {steps} steps: nothing was timed.")
    return {
        "median_s": statistics.median(seconds),
        "fastest_s": min(seconds),
        "cpu_s": statistics.median(block_means(cpu, every, warm_up=every)),
        "blocks": len(seconds),
        "peak_megabytes": peak_megabytes(),
        "parameters": sum(p.numel() for p in method.parameters()),
    }


def profiled(way: str, size: int, threads: int, batch_size: int, rows: int = 15) -> str:
    """Return the operators that take most of the first step, which holds an R1 penalty, as a table."""
    torch.set_num_threads(threads)
    preset = load_preset("sq_gan", "default")
    config = resolve(SqGanConfig, preset["model"], settings_of(way, batch_size, 1), where="model")
    images = images_of(size)
    torch.manual_seed(0)
    method = SqGan(config, DataSpec.of(images, None))
    stage = method.stages(images, None)[-1]
    change(way, method, stage)
    # What comes after the last step would be counted with it.
    stage.validate = stage.diagnose = stage.preview = None
    with tempfile.TemporaryDirectory() as folder:
        off: dict[str, Any] = {"validate_every": 0, "preview_every": 0, "checkpoint_every": 0}
        train_config = TrainConfig(**off, device="cpu", threads=threads, progress=False)
        trainer = Trainer(method, [stage], images, None, train_config, make_dir(Path(folder) / "run"))
        with profile(activities=[ProfilerActivity.CPU]) as found:
            trainer.run()
    return str(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=rows))


def in_a_process(asked: dict[str, Any], timeout: float) -> dict[str, Any]:
    """Return what `measure` says in a new process; {"error": ...} if it fails or takes too long."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.sqgan_speed", "--one", json.dumps(asked)],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"more than {timeout:.0f} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"error": last[:200]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the Markdown of the measurements."""
    shown = []
    for row in rows:
        about = [f"{row['size']} px", str(row["batch_size"]), str(row["threads"]), row["way"]]
        if "error" in row:
            shown.append([*about, row["error"].replace("|", "/"), *[""] * 4])
        else:
            shown.append(
                [
                    *about,
                    f"{row['median_s']:.3f}",
                    f"{row['fastest_s']:.3f}",
                    f"{row['cpu_s']:.3f}",
                    f"{row['batch_size'] / row['median_s']:.0f}",
                    f"{row['peak_megabytes']:.0f}",
                ]
            )
    headings = [
        "images",
        "batch",
        "threads",
        "way",
        "median s",
        "fastest s",
        "CPU s",
        "images per second",
        "MB",
    ]
    return markdown(headings, shown)


def main(arguments: list[str] | None = None) -> int:
    """Print the table and the environment, and write both to a file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks sqgan_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=[28, 32])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=4, help="blocks of 16 steps that are timed")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds of a row, compilation included")
    parser.add_argument("--out", default="runs/benchmark/sqgan_speed.json")
    parser.add_argument("--profile", action="store_true", help="operators of a step instead of its seconds")
    parser.add_argument("--one", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        if options.one is not None:
            print(json.dumps(measure(**json.loads(options.one))))
            return 0
        if options.profile:
            for size in options.sizes:
                for way in options.ways:
                    print(f"{size} px, {way}")
                    print(profiled(way, size, options.threads[0], options.batch_size))
            return 0
        rows = []
        for size in options.sizes:
            for threads in options.threads:
                for way in options.ways:
                    asked = {
                        "way": way,
                        "size": size,
                        "threads": threads,
                        "batch_size": options.batch_size,
                        "blocks": options.blocks,
                    }
                    rows.append({**asked, **in_a_process(asked, options.timeout)})
                    print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        about = environment()
        print("\n".join(table(rows)))
        print(f"\n{json.dumps(about)}")
        make_dir(Path(options.out).parent)
        write_json(Path(options.out), {"environment": about, "results": rows})
    except FewgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 2 if all("error" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
