"""Quality of generated images: fewgen beside what a user would take instead.

Examples:
    python -m benchmarks generation --data fashion_mnist --shots 30 --minutes 6 --seeds 3
    python -m benchmarks generation --generators copies cada_vqvae:hybrid --seeds 1
    python -m benchmarks generation --generators run:runs/shoes file:foreign.npz --seeds 1

Every cell (generator and seed) is a folder with its images, a picture and result.json. A cell whose
result.json exists is not computed again, one whose images exist is only measured again (--remeasure), so a
stopped benchmark continues with the same command. Seed s means: training images `shots(k, s)`, training
with seed s, generation with seed s.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.candidates import file_name, make_generator
from benchmarks.environment import environment
from benchmarks.references import REFERENCES, Budget
from fewgen.data.imageset import ImageSet
from fewgen.errors import ConfigError, FewgenError
from fewgen.evaluate import FIGURES, ClassifierFeatures, RealSide, UsefulnessSettings, measure_generated
from fewgen.evaluate.usefulness import ArmResult, train_arm
from fewgen.files import read_json, write_json

COLUMNS = (
    # heading, figure, key, factor, decimals
    ("class agreement %", "class_agreement", "value", 100, 1),
    ("Frechet", "frechet_distance", "value", 1, 2),
    ("KID x1000", "kernel_distance", "value", 1000, 2),
    ("coverage", "coverage", "value", 1, 3),
    ("density", "density", "value", 1, 3),
    ("precision", "precision", "value", 1, 3),
    ("recall", "recall", "value", 1, 3),
    ("near copies %", "copy_share", "value", 100, 1),
    ("near copies % (pixels)", "copy_share_pixels", "value", 100, 1),
    ("diversity (1 = real)", "within_class_distance", "ratio", 1, 2),
    ("real + generated %", "usefulness", "value", 100, 1),
    ("without augmentation %", "usefulness_unaugmented", "value", 100, 1),
)


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks generation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", default="fashion_mnist", help="a named data set with a test part")
    add("--shots", type=int, default=30, help="training images per class")
    add("--minutes", type=float, default=6.0, help="training time of each generator")
    add("--seeds", type=int, default=3, help="number of seeds, from --first-seed on")
    add("--first-seed", type=int, default=0)
    add("--n", type=int, default=3000, help="generated images, equally many per class")
    add("--temperature", type=float, default=1.0, help="of fewgen methods")
    add(
        "--generators",
        nargs="+",
        default=[*REFERENCES, "cada_vqvae:default", "cada_vqvae:hybrid"],
        help=f"any of {', '.join(REFERENCES)}, METHOD:PRESET, run:FOLDER, file:PATH",
    )
    add(
        "--clock", choices=("wall", "cpu"), default="wall", help="what a minute of a reference is: see Budget"
    )
    add("--cores", type=int, default=2, help="cores that --clock cpu stands for")
    add(
        "--out",
        default=None,
        help="folder of the cells; by default runs/benchmark/DATA-SHOTSshots-MINUTESmin",
    )
    add("--data-dir", default=None, help="folder of the data sets; by default FEWGEN_DATA_DIR")
    add("--remeasure", action="store_true", help="measure again what was generated before")
    add("--quick", action="store_true", help="leave usefulness out, the slow half; --remeasure adds it later")
    add("--table-only", action="store_true", help="print the table of the finished cells")
    return parser.parse_args(arguments)


def load_real(data: str, data_dir: str | None) -> tuple[ImageSet, ImageSet]:
    """Return training and test part of a named data set."""
    from fewgen.data import load_images

    return tuple(load_images(data, split=split, data_dir=data_dir) for split in ("train", "test"))  # type: ignore[return-value]


def _real_arms(train: ImageSet, test: ImageSet, path: Path) -> dict[str, ArmResult]:
    """Accuracy with the real images alone; it depends on the seed, not on the generator, so it is kept."""
    arms: dict[str, ArmResult] = {}
    kept: dict[str, Any] = read_json(path) if path.exists() else {}
    augmented = UsefulnessSettings()
    for name, settings in (
        ("usefulness", augmented),
        ("usefulness_unaugmented", dataclasses.replace(augmented, augmentation="none")),
    ):
        wanted = dataclasses.asdict(settings)
        entry = kept.get(name)
        if entry and entry["settings"] == wanted:
            fields = entry["arm"]
            arms[name] = ArmResult(
                fields["arm"], tuple(fields["seeds"]), tuple(fields["accuracy"]), fields["per_class"]
            )
            continue
        arms[name] = train_arm("real", [train], test, settings=settings)
        kept[name] = {"settings": wanted, "arm": dataclasses.asdict(arms[name])}
        write_json(path, kept)
    return arms


def _picture(images: torch.Tensor, labels: torch.Tensor, class_names: tuple[str, ...], path: Path) -> None:
    """Write a grid with the first ten images of each of at most twenty classes."""
    from fewgen.generate.pictures import grid

    shown = range(min(20, len(class_names)))
    rows = [(labels == c).nonzero().flatten()[:10] for c in shown]
    grid(images[torch.cat(rows)], columns=10, labels=[class_names[c] for c in shown]).save(path)


def _generate(
    cell: Path, spec: str, seed: int, train: ImageSet, options: argparse.Namespace
) -> dict[str, Any]:
    """Train and sample one cell; images.npz and made.json are in its folder afterwards."""
    from fewgen.data import save_images

    labels = torch.arange(train.n_classes).repeat_interleave(options.n // train.n_classes)
    generator = make_generator(spec, cell, options.data, options.shots, options.temperature)
    budget = Budget(options.minutes, options.clock, options.cores)
    wall, cpu = time.perf_counter(), time.process_time()
    about = generator.fit(train, budget, seed)
    trained_wall, trained_cpu = time.perf_counter(), time.process_time()
    images = generator.sample(labels, seed)
    made = {
        "training": about,
        "train_seconds": round(trained_wall - wall, 1),
        "train_cpu_seconds": round(trained_cpu - cpu, 1),
        "sample_seconds": round(time.perf_counter() - trained_wall, 1),
        "sample_cpu_seconds": round(time.process_time() - trained_cpu, 1),
        "environment": environment(),
    }
    save_images(ImageSet(images, labels, train.class_names, name=spec), cell / "images.npz")
    _picture(images, labels, train.class_names, cell / "grid.png")
    write_json(cell / "made.json", made)
    return made


def _check_same_question(result: dict[str, Any], options: argparse.Namespace) -> None:
    """Refuse a finished cell that answers another question than the one asked now."""
    asked = {key: getattr(options, key) for key in ("data", "shots", "minutes", "temperature")}
    different = [
        f"{key} {result[key]} there, {value} now" for key, value in asked.items() if result[key] != value
    ]
    if result["measured"]["protocol"]["n_generated"] > options.n:
        different.append(f"n {result['measured']['protocol']['n_generated']} there, {options.n} now")
    if different:
        raise ConfigError(
            f"{result['generator']}, seed {result['seed']}, was computed with other settings "
            f"({'; '.join(different)}). Choose another --out."
        )


def _cell(
    cell: Path,
    spec: str,
    seed: int,
    sets: tuple[ImageSet, ImageSet],
    side: RealSide,
    options: argparse.Namespace,
) -> None:
    from fewgen.data import load_images

    train, test = sets
    cell.mkdir(parents=True, exist_ok=True)
    if (cell / "made.json").exists() and (cell / "images.npz").exists():
        made = read_json(cell / "made.json")
    else:
        print(f"{spec}, seed {seed}: training for {options.minutes:g} minutes ...", flush=True)
        made = _generate(cell, spec, seed, train, options)
    print(f"{spec}, seed {seed}: measuring ...", flush=True)
    loaded = load_images(cell / "images.npz")
    generated = ImageSet(loaded.images, loaded.labels, train.class_names, name=spec)
    figures = [name for name in FIGURES if not (options.quick and name.startswith("usefulness"))]
    arms_path = cell.parent.parent / f"real-alone-seed{seed}.json"
    measured = measure_generated(
        generated,
        train,
        test,
        side.extractor,
        figures=figures,
        real_side=side,
        real_arms=None if options.quick else _real_arms(train, test, arms_path),
    )
    write_json(
        cell / "result.json",
        {
            "generator": spec,
            "seed": seed,
            "data": options.data,
            "shots": options.shots,
            "minutes": options.minutes,
            "clock": options.clock,
            "temperature": options.temperature,
            "made": made,
            "measured": measured,
            "environment": environment(),
        },
    )


def _mean_and_spread(values: list[float], decimals: int) -> str:
    mean = math.fsum(values) / len(values)
    text = f"{mean:.{decimals}f}"
    if len(values) > 1:
        spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
        text += f" ± {spread:.{decimals}f}"
    return text


def table(results: list[dict[str, Any]]) -> str:
    """Return a Markdown table, one row per generator, mean and standard deviation over seeds."""
    headings = ["generator", "seeds", *(column[0] for column in COLUMNS)]
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    for name in dict.fromkeys(result["generator"] for result in results):
        rows = [result for result in results if result["generator"] == name]
        cells = [name, str(len(rows))]
        for _, figure, key, factor, decimals in COLUMNS:
            found = [row["measured"]["figures"].get(figure, {}).get(key) for row in rows]
            values = [factor * value for value in found if value is not None]
            cells.append(_mean_and_spread(values, decimals) if values else "-")
        lines.append("| " + " | ".join(cells) + " |")
    for figure, words in (("usefulness", "with shifts"), ("usefulness_unaugmented", "without augmentation")):
        alone = {
            result["seed"]: 100 * result["measured"]["figures"][figure]["arms"]["real"]["mean"]
            for result in results
            if figure in result["measured"]["figures"]
        }
        if alone:
            lines.append(f"\nReal images alone, {words}: {_mean_and_spread(list(alone.values()), 1)} %.")
    if results:
        protocol = results[0]["measured"]["protocol"]
        extractor = protocol["extractor"]
        lines.append(
            f"\nExtractor: {extractor['name']}, {extractor['dim']} features, "
            f"{100 * extractor['test_accuracy']:.1f} % on {extractor['n_test']} test images; "
            f"{protocol['n_generated']} generated images; no resizing. "
            "Frechet distances of small sets are biased."
        )
    return "\n".join(lines)


def _progress(step: int, steps: int, loss: float) -> None:
    if step % 500 == 0:
        print(f"evaluation classifier: step {step} of {steps}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Compute the missing cells, print the table and write table.md and results.json."""
    options = _arguments(arguments)
    # ASCII names and a fixed form of numbers: the folder says which cells may stand in one table.
    out = Path(options.out or f"runs/benchmark/{options.data}-{options.shots}shots-{options.minutes:g}min")
    cells = {
        (spec, seed): out / file_name(spec) / f"seed{seed}"
        for spec in options.generators
        for seed in range(options.first_seed, options.first_seed + options.seeds)
    }
    failed = 0
    todo = dict(cells)
    for key, cell in cells.items():
        if (cell / "result.json").exists() and not options.remeasure:
            del todo[key]
            try:
                _check_same_question(read_json(cell / "result.json"), options)
            except ConfigError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
    if todo and not options.table_only:
        try:
            pool, test = load_real(options.data, options.data_dir)
            extractor = ClassifierFeatures.of(pool, test, progress=_progress)
        except FewgenError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        for seed in dict.fromkeys(seed for _, seed in todo):
            train = pool.shots(options.shots, seed)
            side = RealSide.of(train, test, extractor)
            for (spec, own), cell in todo.items():
                if own != seed:
                    continue
                try:
                    _cell(cell, spec, seed, (train, test), side, options)
                except (FewgenError, ImportError) as error:
                    # The others are still worth computing.
                    failed += 1
                    print(f"error: {spec}, seed {seed}: {error}", file=sys.stderr, flush=True)
    # What earlier commands put into the same folder belongs into the table too, after what was asked for.
    finished = dict.fromkeys(
        [*(cell / "result.json" for cell in cells.values()), *sorted(out.glob("*/seed*/result.json"))]
    )
    results = [read_json(path) for path in finished if path.exists()]
    text = table(results)
    print("\n" + text)
    if results:
        (out / "table.md").write_text(text + "\n", encoding="utf-8")
        write_json(out / "results.json", {"environment": environment(), "results": results})
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
