"""What each part of SQ-GAN contributes: one setting changed at a time, a few hundred images, equal steps.

Examples:
    python -m benchmarks sqgan_ablation --jobs 2 --out runs/sqgan_ablation
    python -m benchmarks sqgan_ablation --only parts --data fashion_mnist --seeds 1 --docs ""
    python -m benchmarks sqgan_ablation --only foundation --data cifar10 --cpu-seconds 120 --docs ""
    python -m benchmarks sqgan_ablation --table-only

With --cpu-seconds each training, the start of its codes included, gets these processor seconds, and so as
many steps as fit; otherwise all rows of a table make equal steps.

Every cell (data set, variant and seed) is one JSON file under --out; a cell that is there is not computed
again, so a stopped benchmark continues with the same command. Rows with equal settings are one cell, whatever
they are called. Seed s means: training images `shots(k, s)`, training and generation with seed s; so all
variants of a seed see the same images, and changes are taken seed by seed.

Distances, coverage, agreement and diversity are in the features of a classifier that was trained on the whole
data set; for Omniglot, on all characters but those that are generated. The tables are also written into
--docs, between two markers; text outside them stays.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import ablation
from benchmarks.ablation import (
    Grid,
    add_places,
    add_rows,
    cell_folder,
    command_parser,
    figure_texts,
    finish_cell,
    flat,
    known,
    made_by,
    markdown,
    merged,
    paired_change,
    publish,
    refuse,
    shown_columns,
    spread,
)
from benchmarks.memory import forget_peak, peak_megabytes
from fewgen.clock import n_cores
from fewgen.comparison.sets import load_real
from fewgen.config import load_preset, resolve, to_dict
from fewgen.data import load_images
from fewgen.data.imageset import ImageSet
from fewgen.data.registry import Reading
from fewgen.encoders.named import make_joint_encoder
from fewgen.errors import FewgenError
from fewgen.evaluation import (
    ClassifierFeatures,
    ClassifierSettings,
    RealSide,
    clear_copies,
    frechet_distance,
    kernel_distance,
    label_agreement,
    neighbour_scores,
    within_class_distance,
)
from fewgen.evaluation.side import Side, matched
from fewgen.evaluation.verdicts import attempt, decide, run_controls
from fewgen.methods.sq_gan.config import SqGanConfig
from fewgen.runs.environment import environment

BASE: dict[str, Any] = {
    "network": {"width": 8},
    "steps": 1000,
    "consistency": "qcr",
    "consistency_weights": {"latent": 5.0, "sigma": 0.1},
}
"""Settings of the full method, on top of its default preset; every row changes these."""

TRAINING: dict[str, Any] = {
    "ema_decay": 0.995,
    "validate_every": 0,
    "preview_every": 0,
    "checkpoint_every": 0,
    "device": "cpu",
    "threads": 1,
}

QUICK: dict[str, Any] = {
    "steps": 3,
    "network": {"w_dim": 16, "z_dim": 16, "width": 8, "max_width": 8},
    "quantizer": {"codebook_size": 16},
    "init": {"steps": 2, "foundation_steps": 2, "batch_size": 8, "blocks": 2},
}

QUICK_JUDGE = ClassifierSettings(steps=20, batch_size=32, width=8, dim=8)

N_GENERATED = 2000
"""Images of a cell, equally many of each class."""

REAL_PER_CLASS = 200
"""Held-out images of each class."""

SHOTS = {"fashion_mnist": 30, "cifar10": 30, "omniglot": 15, "digits": 30}
"""Training images of each class."""

OMNIGLOT_CLASSES, OMNIGLOT_HELD_OUT = 50, 5
"""Characters that are generated, and drawings of each that are held out; a character has 20."""

STEPS_PER_SECOND = 40
"""Steps that are planned for each processor second of a limit: more than fit."""

SIGMA = 0.1
"""Perturbation under which every row's discriminator is asked for its consistency."""

MARKERS = ("<!-- sqgan ablation: begin -->", "<!-- sqgan ablation: end -->")

COLUMNS = (
    # heading, key, factor, decimals
    ("Fréchet", "frechet", 1, 2),
    ("KID x1000", "kid", 1000, 2),
    ("coverage %", "coverage", 100, 1),
    ("class agreement %", "agreement", 100, 1),
    ("diversity (1 = real)", "diversity", 1, 2),
    ("clear copies %", "clear_copies", 100, 2),
    ("near copies %", "near_copies", 100, 2),
    ("perplexity of codes", "perplexity", 1, 1),
    ("codes used %", "codes_used", 100, 0),
    ("codes changed %", "changed_codes", 100, 1),
    ("D gap of neighbours", "consistency_gap", 1, 3),
    ("D accuracy, train - held out", "accuracy_gap", 100, 1),
    ("steps", "steps", 1, 0),
    ("CPU s", "cpu_seconds", 1, 0),
    ("MB", "peak_megabytes", 1, 0),
)


@dataclass(frozen=True)
class Variant(ablation.Variant):
    """A row, whose settings are on top of `BASE`.

    Attributes:
        scale: factor on the steps.
    """

    scale: float = 1.0


@dataclass(frozen=True)
class Question(ablation.Question):
    """A table.

    Attributes:
        data: the data sets on which it is asked.
        against: names of rows against which changes are shown as well.
    """

    data: tuple[str, ...] = ("fashion_mnist", "digits")
    against: tuple[str, ...] = ()


OFF: dict[str, Any] = {"consistency": "none", "consistency_weights": None}
RANDOM: dict[str, Any] = {"init": {"kind": "random"}}
PLAIN = Variant("plain GAN", {"quantizer": None, **OFF})
CR = Variant("CR on latents", {"quantizer": None})
SQ_CR = Variant("SQ + CR", RANDOM)
FULL = Variant("SQ + CR + CBI")


def _codes(**changes: Any) -> dict[str, Any]:
    return {"quantizer": changes}


def _random(name: str, model: Mapping[str, Any]) -> Variant:
    """A row on top of SQ + CR with random first codes, whose start costs nothing."""
    return Variant(name, merged(RANDOM, model))


def _scaled(scale: float, *rows: Variant) -> tuple[Variant, ...]:
    """The rows at another number of steps."""
    return tuple(replace(row, scale=scale) for row in rows)


def _short(*rows: Variant) -> tuple[Variant, ...]:
    """The rows at half the steps: there are many of them."""
    return _scaled(0.5, *rows)


def _published(kind: str) -> dict[str, Any]:
    """Settings of a published consistency at its own weights, on continuous styles."""
    return {"quantizer": None, "consistency": kind, "consistency_weights": None}


QUESTIONS = (
    Question(
        "parts",
        "Parts of the method",
        (
            PLAIN,
            CR,
            Variant("zCR", _published("zcr")),
            Variant("bCR", _published("bcr")),
            Variant("SQ without CR", {**RANDOM, **OFF}),
            SQ_CR,
            FULL,
        ),
        ("fashion_mnist", "cifar10", "omniglot", "digits"),
        against=(PLAIN.name, CR.name),
    ),
    Question(
        "long",
        "Parts of the method, trained longer",
        _scaled(3, PLAIN, CR, SQ_CR, FULL),
        against=(PLAIN.name, CR.name),
    ),
    Question(
        "size",
        "Training images per class",
        tuple(
            Variant(f"{row.name}, {k} per class", row.model, k)
            for k in (10, 30, 100)
            for row in (PLAIN, CR, FULL)
        ),
    ),
    Question(
        "init",
        "Start of the codebook",
        _short(
            *(Variant(kind, {"init": {"kind": kind}}) for kind in ("random", "kmeans", "features")),
            Variant("transport", {"init": {"kind": "transport"}}),
            Variant("transport, not centred", {"init": {"kind": "transport", "center": False}}),
        ),
    ),
    Question(
        "foundation",
        "What the codebook starts from",
        (
            Variant("random", {"init": {"kind": "random"}}),
            Variant("kmeans", {"init": {"kind": "kmeans"}}),
            *(
                Variant(f"{kind}, {name}", {"init": {"kind": kind, "foundation": name}})
                for kind, name in (("transport", "small"), ("features", "lite"), ("transport", "lite"))
            ),
        ),
        ("fashion_mnist", "cifar10", "digits"),
        against=("random", "transport, small"),
    ),
    Question(
        "weight",
        "Weight of the consistency",
        _short(*(_random(f"{w:g}", {"consistency_weights": {"latent": w}}) for w in (0.0, 0.01, 1.0, 5.0))),
    ),
    Question(
        "uniformity",
        "Uniformity of the codes",
        _short(
            _random("off", _codes(uniformity=0.0)),
            *(_random(f"t = {t:g}", _codes(uniformity_t=t)) for t in (2.0, 8.0)),
        ),
    ),
    Question(
        "space",
        "What is quantised",
        _short(*(_random(space, _codes(space=space)) for space in ("z", "w", "w+"))),
    ),
    Question(
        "sigma",
        "Perturbation of the latents",
        _short(*(_random(f"sigma = {s:g}", {"consistency_weights": {"sigma": s}}) for s in (0.01, 0.1, 0.3))),
    ),
    Question(
        "code_dim",
        "Numbers per code",
        _short(*(_random(f"{d}", _codes(code_dim=d)) for d in (1, 4, 16))),
    ),
    Question(
        "codebook_size",
        "Codes",
        _short(*(_random(f"{k}", _codes(codebook_size=k)) for k in (16, 128, 1024))),
    ),
    Question(
        "augment",
        "What the discriminator sees",
        _short(
            *(
                Variant(f"{row.name}, {words}", {**row.model, "adversarial_augment": kind})
                for row in (PLAIN, SQ_CR)
                for words, kind in (("as it is", "none"), ("DiffAugment", "diffaugment"))
            )
        ),
    ),
)


# --------------------------------------------------------------------------------------------- settings


@dataclass(frozen=True)
class Settings:
    """What all cells of a run have in common; plain values only.

    Attributes:
        n: generated images of a cell.
        steps: of training instead of those of `BASE`.
        cpu_seconds: limit of each training; None: none.
        quick: whether everything is tiny, to try the benchmark itself.
        data_dir: folder of the data sets.
    """

    n: int = N_GENERATED
    steps: int | None = None
    cpu_seconds: float | None = None
    quick: bool = False
    data_dir: str | None = None


def settings_of(variant: Variant, settings: Settings) -> dict[str, Any]:
    """Return the model settings of a variant on top of the default preset."""
    base = merged(BASE, QUICK) if settings.quick else BASE
    steps = settings.steps
    if steps is None and settings.cpu_seconds is not None:
        steps = round(STEPS_PER_SECOND * settings.cpu_seconds)
    if steps is not None:
        base = merged(base, {"steps": steps})
    if variant.scale != 1:
        base = merged(base, {"steps": max(1, round(variant.scale * base["steps"]))})
    model = merged(base, variant.model)
    kind = model.get("init", {}).get("kind", "transport")
    if settings.quick and (model["quantizer"] is None or kind != "transport"):
        # Only the transport has steps that could be few; others refuse the settings of a part that is off.
        keep = ("foundation_steps",) if kind == "features" else ()
        model["init"] = {k: v for k, v in model["init"].items() if k == "kind" or k in keep}
    return model


def config_of(variant: Variant, settings: Settings) -> dict[str, Any]:
    """Return every model setting of a variant."""
    preset = load_preset("sq_gan", "default")["model"]
    return to_dict(resolve(SqGanConfig, preset, settings_of(variant, settings), where="model"))


def asked(data: str, variant: Variant, settings: Settings) -> dict[str, Any]:
    """Return what a cell is about, to compare with a finished one."""
    return {
        "data": data,
        "shots": variant.shots or SHOTS[data],
        "generated": settings.n,
        "training": json.dumps(TRAINING, sort_keys=True),
        **({} if settings.cpu_seconds is None else {"cpu_seconds": settings.cpu_seconds}),
        **{f"model.{key}": value for key, value in flat(config_of(variant, settings)).items()},
    }


def cell_name(data: str, variant: Variant, settings: Settings) -> str:
    """Return the folder of a cell: how it differs from the base in words, and a digest of it all.

    The number of steps is left out: cells of another one are refused, not kept beside.
    """
    about = {key: value for key, value in asked(data, variant, settings).items() if key != "model.steps"}
    base = asked(data, FULL, settings)
    if variant.scale != 1:
        about["steps"] = f"x{variant.scale:g}"
    return f"{data}/{cell_folder(about, base)}"


# --------------------------------------------------------------------------------------------- real images


@dataclass
class Pool:
    """Images of a data set and its judge.

    Attributes:
        source: images from which training images are drawn.
        held_out: real images that nobody trains on; None: they are drawn from `source` as well.
        judge: the classifier, and what the record says of it.
        about: its name, key and accuracy.
    """

    source: ImageSet
    held_out: ImageSet | None
    judge: ClassifierFeatures
    about: dict[str, Any]


def _told(judge: ClassifierFeatures) -> dict[str, Any]:
    record = judge.record()
    return {name: record.get(name) for name in ("name", "key", "test_accuracy", "n_test", "n_train")}


@functools.cache
def pool_of(data: str, settings: Settings) -> Pool:
    """Load a data set and its judge, which is trained at the first use and then read from the cache."""
    how = QUICK_JUDGE if settings.quick else None
    if data != "omniglot":
        real = load_real(data, Reading(data_dir=settings.data_dir))
        judge = ClassifierFeatures.of(real.training, real.held_out, how)
        told = _told(judge)  # before others measure it on fewer images
        held = real.held_out.shots(min(REAL_PER_CLASS, int(real.held_out.counts().min())), seed=0)
        return Pool(real.training, held, judge, told)
    train, test = (load_images(data, split=part, data_dir=settings.data_dir) for part in ("train", "test"))
    chosen, others = train.class_names[:OMNIGLOT_CLASSES], train.class_names[OMNIGLOT_CLASSES:]
    judge = ClassifierFeatures.of(train.select_classes(others), test.select_classes(others), how)
    both = ImageSet(
        torch.cat([train.images, test.images]),
        torch.cat([train.labels, test.labels]),
        train.class_names,
        name=train.name,
    )
    return Pool(both.select_classes(chosen), None, judge, _told(judge))


@dataclass
class Real:
    """Training and held-out images of a seed, and what does not depend on the generator.

    Attributes:
        train: training images.
        held_out: real images that were not trained on.
        side: of `evaluate`, for the verdict on copies.
        features: of the held-out images in the judge, in their order.
        spread: mean distance within a class of the held-out images.
        judge_knows: whether the judge predicts these very classes.
    """

    train: ImageSet
    held_out: ImageSet
    side: RealSide
    features: torch.Tensor
    spread: float
    judge_knows: bool


@functools.lru_cache(maxsize=4)
def real_of(data: str, shots: int, seed: int, settings: Settings) -> Real:
    """Draw the images of a seed."""
    pool = pool_of(data, settings)
    if pool.held_out is None:
        train, held_out = pool.source.split_shots(shots, OMNIGLOT_HELD_OUT, seed)
    else:
        train, held_out = pool.source.shots(shots, seed), pool.held_out
    features = pool.judge.features(held_out)
    return Real(
        train,
        held_out,
        RealSide(train, held_out, pool.judge, seed=seed),
        features,
        within_class_distance(features, held_out.labels, held_out.n_classes).mean,
        pool.judge.class_names == train.class_names,
    )


# ------------------------------------------------------------------------------------------- figures


def measure(method: Any, real: Real, judge: ClassifierFeatures, seed: int, n: int) -> dict[str, Any]:
    """Return the figures of a trained model: those of `COLUMNS` but for time and memory, and its verdict.

    A figure that this model or data set does not have is None.
    """
    from fewgen.generation import GenerationRequest
    from fewgen.training.phases import Pixels

    train, names = real.train, real.train.class_names
    generated = method.generate(
        GenerationRequest.per_class(range(train.n_classes), n // train.n_classes, seed)
    ).to_image_set()
    described = judge.describe(generated)
    features = described.features
    device = torch.device("cpu")

    def discriminator(sigma: float | None) -> dict[str, float]:
        rng = torch.Generator().manual_seed(seed)
        pixels = Pixels(train, device), Pixels(real.held_out, device)
        return dict(method.discriminator_figures(*pixels, rng, sigma=sigma, n_batches=32))

    own = discriminator(None)
    agreement = None
    if real.judge_knows:
        assert described.predictions is not None
        agreement = label_agreement(described.predictions, generated.labels, names).overall.value
    return {
        "frechet": frechet_distance(real.features, features),
        "kid": kernel_distance(real.features, features),
        "coverage": neighbour_scores(real.features, features).coverage,
        "agreement": agreement,
        "diversity": within_class_distance(features, generated.labels, train.n_classes).mean / real.spread,
        "perplexity": own.get("perplexity"),
        "codes_used": own.get("codes_used"),
        "changed_codes": own.get("changed_codes"),
        "consistency_gap": discriminator(SIGMA)["consistency_gap"],
        "accuracy_gap": own["accuracy_gap"],
        **copying(real.side.side(generated), real.side),
    }


def copying(side: Side, real: RealSide) -> dict[str, Any]:
    """Return the shares of clear and of near copies, and the verdict that `evaluate` gives under "new".

    Near copies lie nearer to one training image, relative to the next ones, than all but a few held-out
    images; clear copies as much nearer again as these few are than the median. The verdict rests on the
    same tests and controls as an evaluation's.
    """
    assert real.held_out is not None
    held = real.held_out
    judged = real.controls(side.labels)
    tests = [test for test in judged.tests if test.question == "new"]
    outcomes = {test.name: attempt(test, side, held) for test in tests}
    controls = run_controls(tests, judged.sides)
    verdict = decide(tests, outcomes, controls, len(held.labels))["new"]
    _, other = matched(side.labels, held.labels)
    usual = held.nearest.score[other]
    clear = clear_copies(side.nearest.score, usual[usual > 0])
    return {
        "clear_copies": float(clear.which.double().mean()),
        "near_copies": outcomes["near-copies in pixels"].numbers.get("share"),
        "new": verdict.answer,
        "new_why": verdict.why,
    }


# --------------------------------------------------------------------------------------------- cells


def compute(data: str, variant: Variant, seed: int, settings: Settings) -> dict[str, Any]:
    """Train and measure one cell."""
    import fewgen

    torch.set_num_threads(1)
    pool = pool_of(data, settings)
    real = real_of(data, variant.shots or SHOTS[data], seed, settings)
    forget_peak()
    limit: dict[str, Any] = {}
    if settings.cpu_seconds is not None:  # a minute of this clock is one of all cores
        limit = {"minutes": settings.cpu_seconds / 60 / n_cores(), "clock": "cpu"}
    # Only figures are kept: a grid of model files would fill a disk.
    with tempfile.TemporaryDirectory() as folder:
        started, cpu = time.perf_counter(), time.process_time()
        run = fewgen.train(
            "sq_gan",
            preset="default",
            data=real.train,
            holdout=0,
            seed=seed,
            text="onehot",
            out=Path(folder) / "run",
            model=settings_of(variant, settings),
            training=TRAINING,
            report=False,
            progress=False,
            **limit,
        )
        trained, trained_cpu = time.perf_counter(), time.process_time()
        peak = peak_megabytes()
        method = run.method
        figures = measure(method, real, pool.judge, seed, settings.n)
        if limit:
            figures["steps"] = run.info.extra["training"]["stages"][-1]["steps"]
    return {
        "variant": variant.name,
        "seed": seed,
        "asked": asked(data, variant, settings),
        "n_train": len(real.train),
        "n_held_out": len(real.held_out),
        "judge": pool.about,
        "figures": {**figures, "cpu_seconds": trained_cpu - cpu, "peak_megabytes": peak},
        "train_seconds": round(trained - started, 1),
        "measure_seconds": round(time.perf_counter() - trained, 1),
        "environment": environment(),
    }


def run_cell(
    data: str, variant: Variant, seed: int, settings: Settings, path: Path, command: tuple[int, str]
) -> str | None:
    """Compute a cell and write its file; return what went wrong, or None."""
    label = f"{data}, {variant.name}, seed {seed}"
    return finish_cell(lambda: compute(data, variant, seed, settings), label, path, command)


# --------------------------------------------------------------------------------------------- tables

Cells = Mapping[tuple[str, str, int], dict[str, Any]]
"""(data set, cell name, seed) -> cell."""


def cells_of(cells: Cells, data: str, variant: Variant, settings: Settings) -> dict[int, dict[str, Any]]:
    """Return seed -> cell of a row."""
    name = cell_name(data, variant, settings)
    return {seed: cell for (of, own, seed), cell in cells.items() if (of, own) == (data, name)}


def verdicts(cells: Mapping[int, dict[str, Any]]) -> str:
    """Return how often each verdict was given, "yes 2, partly 1"."""
    answers = [cell["figures"]["new"] for cell in cells.values()]
    counted = {answer: answers.count(answer) for answer in ("yes", "partly", "no", "cannot tell")}
    return ", ".join(f"{answer} {n}" for answer, n in counted.items() if n) or "-"


def table(question: Question, data: str, cells: Cells, settings: Settings) -> str:
    """Return the Markdown of one question on one data set; rows without a finished cell show a dash."""
    found = [(row, cells_of(cells, data, row, settings)) for row in question.rows]
    any_cell = next((cell for _, own in found for cell in own.values()), None)
    about = f", {any_cell['n_train']} images" if any_cell is not None and question.key != "size" else ""
    if any_cell is not None:
        asked_ = any_cell["asked"]
        limit = asked_.get("cpu_seconds")
        about += f", {asked_['model.steps']} steps" if limit is None else f", {limit:g} processor seconds"
    columns = shown_columns((own for _, own in found), COLUMNS)
    lines = [f"### {question.asks}: {data}{about}", ""]
    headings = ["", "seeds", *(column[0] for column in columns), "new?"]
    rows = []
    for row, own in found:
        rows.append([row.name, str(len(own)), *figure_texts(own, columns), verdicts(own)])
    lines += markdown(headings, rows)
    if question.against:
        lines += ["", *changes(question, data, cells, settings)]
    return "\n".join(lines)


def changes(question: Question, data: str, cells: Cells, settings: Settings) -> list[str]:
    """Return the table of changes of Frechet and kernel distance against the rows of a question."""
    rows_by_name = {row.name: row for row in question.rows}
    against = [rows_by_name[name] for name in question.against if name in rows_by_name]
    bases = {base.name: cells_of(cells, data, base, settings) for base in against}
    figures = (("Fréchet", "frechet"), ("KID", "kid"))
    rows = []
    for row in question.rows:
        own = cells_of(cells, data, row, settings)
        shown = [
            "" if name == row.name else paired_change(known(own, key), known(base, key))
            for name, base in bases.items()
            for _, key in figures
        ]
        rows.append([row.name, *shown])
    headings = ["change", *(f"{heading} against {name}" for name in bases for heading, _ in figures)]
    return [
        "Mean over seeds of each seed's own change (below 0 is better); in how many seeds it has that sign:",
        "",
        *markdown(headings, rows),
    ]


def provenance(cells: Cells) -> str:
    """Return the sentences that say where the numbers come from."""
    judges = {}
    for (data, _, _), cell in cells.items():
        about = cell["judge"]
        accuracy = about.get("test_accuracy")
        right = "" if accuracy is None else f", right for {100 * float(accuracy):.1f} % of its test images"
        classes = " of other characters" if data == "omniglot" else ""
        judges[data] = (
            f"{data}: classifier trained on {about['n_train']} images{classes}{right}; "
            f"{cell['n_held_out']} held-out images"
        )
    first = next(iter(cells.values()))
    return "\n".join(
        [
            f"Seeds: {', '.join(str(s) for s in sorted({seed for _, _, seed in cells}))}; mean ± standard "
            f"deviation. {first['asked']['generated']} generated images in each cell, as many of each class. "
            f"Judges: {'. '.join(judges[data] for data in sorted(judges))}. Codes changed: by the row's own "
            f"perturbation; D gap: of logits, under a perturbation of {SIGMA:g} for every row. Copies: by "
            "pixels, over mirrors, shifts and turns; new? is the verdict of `fewgen evaluate`.",
            "",
            made_by(
                [cell["environment"] for cell in cells.values()],
                [cell["figures"]["cpu_seconds"] for cell in cells.values()],
            ),
        ]
    )


# --------------------------------------------------------------------------------------------- command


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = command_parser("sqgan_ablation", __doc__)
    add = parser.add_argument
    add("--data", nargs="+", default=None, choices=list(SHOTS), help="by default the three of the tables")
    add_rows(parser, [q.key for q in QUESTIONS])
    add("--seeds", type=int, default=3, help="number of seeds, from --first-seed on")
    add("--first-seed", type=int, default=0)
    add("--jobs", type=int, default=2, help="cells at a time, one thread each")
    add("--steps", type=int, default=None, help="of training, instead of those of the base")
    add("--cpu-seconds", type=float, default=None, help="limit of each training, start of its codes included")
    add_places(parser, "runs/sqgan_ablation", "docs/results/sqgan.md")
    add("--quick", action="store_true", help="digits, three steps, one seed, few rows: tries the benchmark")
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.jobs < 1 or (options.steps is not None and options.steps < 1):
        parser.error("--seeds, --jobs and --steps must be 1 or more")
    if options.cpu_seconds is not None and not 1 <= options.cpu_seconds < float("inf"):
        parser.error("--cpu-seconds must be 1 or more")
    if options.quick:
        options.data = options.data or ["digits"]
        options.seeds, options.docs = 1, ""
        options.only = options.only or ["parts"]
    options.data = options.data or ["fashion_mnist", "cifar10", "omniglot"]
    return options


def chosen_questions(options: argparse.Namespace) -> list[Question]:
    """Return the questions that are asked, each with the data sets that were asked for."""
    found = []
    for question in QUESTIONS:
        data = tuple(name for name in options.data if name in question.data)
        if data and (options.only is None or question.key in options.only):
            rows = question.rows if not options.quick else (PLAIN, CR, FULL)
            found.append(replace(question, rows=rows, data=data))
    return found


def wanted_cells(
    questions: Sequence[Question], seeds: Sequence[int], settings: Settings
) -> dict[tuple[str, str, int], Variant]:
    """Return (data set, cell name, seed) -> variant, seed by seed and question by question.

    So that a stopped grid has every row once before any row twice, and the first tables first.
    """
    return {
        (data, cell_name(data, row, settings), seed): row
        for seed in seeds
        for question in questions
        for data in question.data
        for row in question.rows
    }


def main(arguments: list[str] | None = None) -> int:
    """Compute the missing cells, print the tables and write them into the page."""
    options = _arguments(arguments)
    settings = Settings(
        n=200 if options.quick else N_GENERATED,
        steps=options.steps,
        cpu_seconds=options.cpu_seconds,
        quick=options.quick,
        data_dir=options.data_dir,
    )
    questions = chosen_questions(options)
    if not questions:
        return refuse("none of these tables is about these data sets.")
    try:
        wanted = wanted_cells(
            questions, range(options.first_seed, options.first_seed + options.seeds), settings
        )
        grid = Grid(
            {key: row.name for key, row in wanted.items()},
            {key: Path(options.out) / key[1] / f"seed{key[2]}.json" for key in wanted},
            lambda key: asked(key[0], wanted[key], settings),
        )
        grid.check()
        todo = [] if options.table_only else grid.missing(options.rows)
        for data in dict.fromkeys(key[0] for key in todo):
            print(f"{data}: images and judge ...", flush=True)
            pool_of(data, settings)  # trains the judge once, before several cells need it
        if any(wanted[key].model.get("init", {}).get("foundation") == "lite" for key in todo):
            make_joint_encoder("lite")  # keeps the vectors of its classes, which the first cell would pay for
    except FewgenError as error:
        return refuse(error)
    failed: list[str | None] = []
    if todo:
        print(f"{len(todo)} of {len(wanted)} cells to compute, {options.jobs} at a time", flush=True)
        calls = ((key[0], wanted[key], key[2], settings, grid.paths[key]) for key in todo)
        failed = spread(run_cell, calls, options.jobs)

    def section(cells: Cells) -> str:
        tables = [table(question, data, cells, settings) for question in questions for data in question.data]
        return "\n\n".join([*tables, provenance(cells)])

    status = publish(grid, section, options.docs, MARKERS, "SQ-GAN: results")
    return 2 if any(failed) else status


if __name__ == "__main__":
    sys.exit(main())
