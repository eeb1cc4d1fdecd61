"""What each part of CADA-VQ-VAE contributes: one setting changed at a time, small networks, few images.

Examples:
    python -m benchmarks.cada_vqvae_ablation --data fashion_mnist --shots 30 --seeds 3 --out runs/ablation
    python -m benchmarks.cada_vqvae_ablation --only alignment codebook --seeds 1 --docs ""
    python -m benchmarks.cada_vqvae_ablation --table-only

Every cell (variant and seed) is one JSON file under --out; a cell that is there is not computed again, so a
stopped benchmark continues with the same command. Seed s means: training images `shots(k, s)`, training and
generation with seed s. Networks are the published fully connected ones, a thousand steps of 64 images:
enough to see what matters, far from the best that the method can do. The table is also written into --docs,
between two markers; text outside them stays.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import ablation
from benchmarks.ablation import (
    Grid,
    add_places,
    command_parser,
    finish_cell,
    made_by,
    markdown,
    mean_and_spread,
    merged,
    publish,
    refuse,
    spread,
)
from benchmarks.reconstruction import figures as reconstruction_figures
from fewgen.comparison.sets import load_real
from fewgen.config import to_dict
from fewgen.data.imageset import ImageSet, to_uint8
from fewgen.data.registry import Reading
from fewgen.errors import FewgenError
from fewgen.evaluation import ClassifierFeatures, label_agreement, within_class_distance
from fewgen.runs.environment import environment

BASE: dict[str, Any] = {"image": {"backbone": "mlp"}, "steps": 1000, "batch_size": 64}
TRAINING = {"ema_decay": 0.99, "preview_every": 0, "checkpoint_every": 0, "device": "cpu"}
PER_CLASS = 100
"""Generated images, and test images that are measured, per class."""

MARKERS = ("<!-- ablation: begin -->", "<!-- ablation: end -->")

COLUMNS = (
    # heading, key, factor, decimals
    ("class agreement %", "agreement", 100, 1),
    ("diversity (1 = real)", "diversity", 1, 2),
    ("kNN of image means %", "knn", 100, 1),
    ("word error / variance", "word_error", 1, 3),
    ("perplexity of words", "perplexity", 1, 2),
    ("image to word %", "retrieval", 100, 1),
    ("held-out MSE x1000", "mse", 1000, 2),
    ("held-out SSIM", "ssim", 1, 3),
)


@dataclass(frozen=True)
class Variant(ablation.Variant):
    """A row, whose settings are on top of those of a preset.

    Attributes:
        preset: of cada_vqvae.
    """

    preset: str = "default"


@dataclass(frozen=True)
class Question(ablation.Question):
    """A table, with the base first where it is one of the answers.

    Attributes:
        extra: names of `EXTRA` figures that only it shows.
    """

    extra: tuple[str, ...] = ()


def _fault(name: str, **changes: Any) -> Variant:
    """A row on top of the preset `paper`: a rate that learns in so few steps, and what is mended."""
    return Variant(name, {"steps": 4000, "lr": 1e-3, **changes}, preset="paper")


def _standard(**changes: Any) -> dict[str, Any]:
    return {"prior": "standard", **changes}


BASE_ROW = Variant("base: everything mended")
UNTRAINED = {
    "cross_terms": "self",
    "semantic_stats_from": "z_e",
    "align_on": "means",
    "prior": "standard",
    "weights": {"kl_text": 0.0},
}
ONE_GROUP = {"groups": 1, "codebook_size": 512}

QUESTIONS = (
    Question(
        "cross",
        "Cross terms, and the words' mean and variance",
        (
            BASE_ROW,
            Variant("cross terms repeat the self terms", {"cross_terms": "self"}),
            Variant("and nothing trains the words' mean and variance", UNTRAINED),
            Variant("word to image from a draw", {"cross_source": "sample"}),
            Variant("word to image from the mean", {"cross_source": "mean"}),
        ),
    ),
    Question(
        "text_output",
        "Output of the semantic decoder",
        (BASE_ROW, Variant("sigmoid", {"text": {"output": "sigmoid"}})),
    ),
    Question(
        "alignment",
        "Alignment, with the standard prior: a conditional one aligns by itself",
        (
            BASE_ROW,
            Variant("none", _standard(alignment="none")),
            Variant("MMD of the batch, gamma 1", _standard(alignment="mmd", kernel="rbf")),
            Variant("MMD of the batch, median", _standard(alignment="mmd", kernel="median")),
            Variant("MMD per class, mixture", _standard(alignment="mmd_class", kernel="mixture")),
            Variant("2-Wasserstein", _standard(alignment="w2")),
            Variant("none, conditional prior", {"alignment": "none", "prior": "conditional"}),
        ),
    ),
    Question(
        "codebook",
        "Codebook (base: 5 groups of 32, from data, running means)",
        (
            BASE_ROW,
            Variant("5 groups, from data, gradient", {"text": {"update": "gradient"}}),
            Variant("5 groups, uniform, gradient", {"text": {"update": "gradient", "init": "uniform"}}),
            Variant("1 group of 512, from data, gradient", {"text": {"update": "gradient", **ONE_GROUP}}),
            Variant(
                "1 group of 512, uniform, gradient",
                {"text": {"update": "gradient", "init": "uniform", **ONE_GROUP}},
            ),
        ),
    ),
    Question(
        "contrastive",
        "Weight of the contrastive term (base: as in the preset)",
        (
            BASE_ROW,
            Variant("0", {"weights": {"contrastive": 0.0}}),
            Variant("0.5", {"weights": {"contrastive": 0.5}}),
            Variant("1", {"weights": {"contrastive": 1.0}}),
            # A weight of 1 is 1/784 of a squared error: what the term can do shows only well above it.
            Variant("30", {"weights": {"contrastive": 30.0}}),
        ),
        extra=("contrastive",),
    ),
    Question(
        "batches",
        "Classes in a batch",
        (BASE_ROW, Variant("one class per batch", {"sampler": "single_class"})),
        extra=("contrastive", "alignment"),
    ),
    Question(
        "reduction",
        "Reduction of the terms, and each term's share of the gradient",
        (
            BASE_ROW,
            Variant("published sums and means, base weights", {"reduction": "source"}),
            Variant(
                "published sums, means and weights",
                {
                    "reduction": "source",
                    "weights": {
                        "text": 1.0,
                        "cross_image": 2.0,
                        "cross_text": 2.0,
                        "kl": 2.0,
                        "kl_text": 0.0,
                        "alignment": 1.0,
                        "contrastive": 0.5,
                    },
                },
            ),
        ),
        extra=("gradient",),
    ),
    Question(
        "weighting",
        "Weighting of the terms",
        (
            BASE_ROW,
            Variant("uncertainty", {"weighting": "uncertainty"}),
            Variant("gradient norms", {"weighting": "gradnorm"}),
        ),
    ),
    Question(
        "prior",
        "Prior of the image posterior",
        (
            BASE_ROW,
            Variant("standard", {"prior": "standard"}),
            Variant("conditional on the word", {"prior": "conditional"}),
            Variant("standard, full weight", {"prior": "standard", "weights": {"kl": 1.0}}),
            Variant("conditional, full weight", {"prior": "conditional", "weights": {"kl": 1.0}}),
        ),
    ),
    Question(
        "shots",
        "Images per class (base: 30 unless --shots says otherwise)",
        (*(Variant(f"{k}", shots=k) for k in (1, 3, 5, 10)), BASE_ROW),
    ),
    Question(
        "paper",
        "The published settings, and each fault mended alone",
        (
            Variant("paper, its rate 1e-5", {"steps": 4000}, preset="paper"),
            _fault("paper, rate 1e-3"),
            _fault("+ real cross terms", cross_terms="real"),
            _fault("+ mean and variance from the quantised code", semantic_stats_from="z_q"),
            _fault("+ linear text output", text={"output": "linear"}),
            _fault("+ sigmoid image output", image={"output": "sigmoid"}),
            _fault("+ codes from data", text={"init": "data"}),
            _fault("+ median bandwidth", kernel="median"),
            _fault("+ alignment of draws", align_on="samples"),
            _fault("+ mixed batches of 64", sampler="shuffled", batch_size=64, steps=1000),
            _fault("+ terms reduced alike", reduction="sample"),
            BASE_ROW,
        ),
    ),
)


def settings_of(variant: Variant) -> dict[str, Any]:
    """Return the model settings of a variant on top of its preset."""
    return merged(BASE, variant.model) if variant.preset == "default" else dict(variant.model)


def cell_name(variant: Variant) -> str:
    """Return a folder name that differs whenever the settings do; the base is one cell for all tables."""
    content = json.dumps([variant.preset, settings_of(variant), variant.shots], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    words = re.sub(r"[^a-z0-9]+", "-", f"{variant.preset} {variant.name}".lower()).strip("-")
    return f"{words[:60]}-{digest}"


# ------------------------------------------------------------------------------------------- figures


def nearest_neighbours(train: Tensor, labels: Tensor, test: Tensor, k: int) -> Tensor:
    """Return the classes, int64 (M,), that the k nearest of `train` (N, L) give `test` (M, L)."""
    distances, nearest = torch.cdist(test, train).topk(k, largest=False)
    # A tie goes to the class of the nearer ones.
    votes = 1.0 + 1e-3 / (1.0 + torch.arange(k))
    counts = torch.zeros(len(test), int(labels.max()) + 1)
    counts.scatter_add_(1, labels[nearest], votes.expand_as(distances))
    return counts.argmax(1)


def gradient_shares(method: Any, train: ImageSet, seed: int) -> dict[str, float]:
    """Return each weighted term's share of the summed gradient norms, on one batch of 64 training images."""
    batch = train.subset(torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:64])
    terms = method.objective(batch.floats(), batch.labels, torch.Generator().manual_seed(seed))
    parameters = [p for p in method.parameters() if p.requires_grad]
    norms = {}
    for name, value in terms.values.items():
        if not value.requires_grad or terms.weight(name) == 0:
            norms[name] = 0.0
            continue
        found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        squares = sum(float(g.square().sum()) for g in found if g is not None)
        norms[name] = terms.weight(name) * math.sqrt(squares)
    total = math.fsum(norms.values()) or 1.0
    return {name: norm / total for name, norm in norms.items()}


def last_terms(run_dir: Path, n_lines: int = 5) -> dict[str, float]:
    """Return the means of the last logged training terms, unweighted."""
    lines = [
        json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    lines = [line for line in lines if line["kind"] == "train"][-n_lines:]
    names = [name for name in lines[-1] if name.startswith("vae/") and name.count("/") == 1]
    return {name.split("/")[1]: math.fsum(line[name] for line in lines) / len(lines) for name in names}


class Judge:
    """The classifier of the whole data set, and what it says about the test images, computed once."""

    def __init__(self, pool: ImageSet, test: ImageSet) -> None:
        self.extractor = ClassifierFeatures.of(pool, test, progress=_progress)
        self.test = test.shots(min(PER_CLASS, int(test.counts().min())), seed=0)
        features = self.extractor.features(self.test)
        self.real = within_class_distance(features, self.test.labels, test.n_classes).mean

    def measure(self, method: Any, train: ImageSet, shots: int, seed: int) -> dict[str, Any]:
        """Return the figures of a trained model; all of `COLUMNS`."""
        from fewgen.generation import GenerationRequest

        generated = method.generate(
            GenerationRequest.per_class(range(train.n_classes), PER_CLASS, seed)
        ).to_image_set()
        described = self.extractor.describe(generated)
        assert described.predictions is not None  # the judge knows these classes
        spread = within_class_distance(described.features, generated.labels, train.n_classes).mean
        x, k = self.test.floats(), min(5, shots)
        with torch.no_grad():
            found = nearest_neighbours(method.encode(train.floats()), train.labels, method.encode(x), k)
            table = method.text_table
            _, quantized, (mu_c, _) = method.encode_word(table)
            # What the word autoencoder of this variant decodes: as in its objective, without noise.
            source = mu_c if method.config.semantic_stats_from == "z_q" else quantized.codes
            error = (method.semantic_decoder(source) - table).square().mean()
            variance = (table - table.mean(0)).square().mean()
            retrieved = method.retrieve(x).argmax(1)
            back = to_uint8(method.reconstruct(x))
        reconstruction = reconstruction_figures(self.test, back)
        return {
            "agreement": label_agreement(
                described.predictions, generated.labels, train.class_names
            ).overall.value,
            "diversity": spread / self.real,
            "knn": float((found == self.test.labels).double().mean()),
            "knn_k": k,
            "word_error": float(error / variance),
            "perplexity": float(quantized.perplexity),
            "retrieval": float((retrieved == self.test.labels).double().mean()),
            "mse": reconstruction["mse"],
            "ssim": reconstruction["ssim"],
            "gradient": gradient_shares(method, train, seed),
        }


def _progress(step: int, steps: int, loss: float) -> None:
    if step % 500 == 0:
        print(f"evaluation classifier: step {step} of {steps}", flush=True)


# --------------------------------------------------------------------------------------------- cells


def asked(variant: Variant, options: argparse.Namespace) -> dict[str, Any]:
    """Return what a cell is about, to compare with a finished one."""
    return {
        "data": options.data,
        "shots": variant.shots or options.shots,
        "steps_scale": options.steps_scale,
        "text": options.text,
        "preset": variant.preset,
        "model": settings_of(variant),
    }


def compute(
    variant: Variant, seed: int, pool: ImageSet, judge: Judge, options: argparse.Namespace
) -> dict[str, Any]:
    """Train and measure one cell."""
    import fewgen

    shots = variant.shots or options.shots
    train = pool.shots(shots, seed)
    started, cpu = time.perf_counter(), time.process_time()
    # Only figures are kept: a grid of model files would fill a disk.
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        run = fewgen.train(
            "cada_vqvae",
            preset=variant.preset,
            data=pool,
            shots=shots,
            holdout=0,
            seed=seed,
            text=options.text,
            data_dir=options.data_dir,
            out=run_dir,
            steps_scale=options.steps_scale,
            model=settings_of(variant),
            training=TRAINING if variant.preset == "default" else {**TRAINING, "ema_decay": 0.0},
            report=False,
            progress=False,
        )
        trained, trained_cpu = time.perf_counter(), time.process_time()
        figures = judge.measure(run.method, train, shots, seed)
        terms = last_terms(run_dir)
        text = run.method.spec.text
        return {
            "variant": variant.name,
            "seed": seed,
            "asked": asked(variant, options),
            "text": text.encoder_name if text is not None else None,
            "config": to_dict(run.method.config),
            "figures": figures,
            "last_terms": terms,
            "train_seconds": round(trained - started, 1),
            "train_cpu_seconds": round(trained_cpu - cpu, 1),
            "measure_seconds": round(time.perf_counter() - trained, 1),
            "environment": environment(),
        }


def run_cell(
    variant: Variant,
    seed: int,
    pool: ImageSet,
    judge: Judge,
    options: argparse.Namespace,
    path: Path,
    command: tuple[int, str],
) -> str | None:
    """Compute a cell and write its file; return what went wrong, or None."""
    label = f"{variant.name}, seed {seed}"
    return finish_cell(lambda: compute(variant, seed, pool, judge, options), label, path, command)


# --------------------------------------------------------------------------------------------- tables


def table(question: Question, cells: Mapping[tuple[str, int], dict[str, Any]]) -> str:
    """Return the Markdown of one question; rows without a finished cell show a dash."""
    lines = [f"### {question.asks}", ""]
    found = {
        row.name: [cell for (name, _), cell in cells.items() if name == cell_name(row)]
        for row in question.rows
    }
    headings = ["", "seeds", *(column[0] for column in COLUMNS)]
    terms = [name for name in question.extra if name != "gradient"]
    headings += [f"{name} term in training" for name in terms]
    rows = []
    for name, own in found.items():
        row = [name, str(len(own))]
        row += [
            mean_and_spread([factor * c["figures"][key] for c in own], d) for _, key, factor, d in COLUMNS
        ]
        row += [mean_and_spread([c["last_terms"][term] for c in own], 3) for term in terms]
        rows.append(row)
    lines += markdown(headings, rows)
    if "gradient" in question.extra:
        names = list(
            dict.fromkeys(n for own in found.values() for c in own for n in c["figures"]["gradient"])
        )
        shares = [
            [
                name,
                *(
                    mean_and_spread([100 * c["figures"]["gradient"].get(n, 0.0) for c in own], 1)
                    for n in names
                ),
            ]
            for name, own in found.items()
        ]
        lines += ["", "Share of the summed gradient norms of the weighted terms, in %, after training:", ""]
        lines += markdown(["", *names], shares)
    if "contrastive" in terms:
        lines += [
            "",
            f"The contrastive term of 64 images of one class cannot fall below log 63 = {math.log(63):.3f}.",
        ]
    return "\n".join(lines)


def provenance(
    cells: Mapping[tuple[str, int], dict[str, Any]], judge: str, options: argparse.Namespace
) -> str:
    """Return the sentences that say where the numbers come from."""
    return "\n".join(
        [
            f"Data: {options.data}, {options.shots} images per class unless the row says otherwise, words by "
            f"{', '.join(sorted({str(cell['text']) for cell in cells.values()}))}. Seeds: "
            f"{', '.join(str(s) for s in sorted({seed for _, seed in cells}))}; mean ± standard deviation. "
            f"Judge: {judge}. {PER_CLASS} generated images per class at temperature 1; kNN, retrieval, MSE "
            f"and SSIM on {PER_CLASS} test images per class. k is 5, or the images per class "
            "if they are fewer.",
            "",
            made_by(
                [cell["environment"] for cell in cells.values()],
                [cell["train_cpu_seconds"] for cell in cells.values()],
            ),
        ]
    )


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = command_parser("cada_vqvae_ablation", __doc__)
    add = parser.add_argument
    add("--data", default="fashion_mnist", help="a named data set with a test part")
    add("--shots", type=int, default=30, help="training images per class")
    add("--seeds", type=int, default=3, help="number of seeds, from --first-seed on")
    add("--first-seed", type=int, default=0)
    add("--steps-scale", type=float, default=1.0, help="factor on the steps of every cell")
    add("--text", default="auto", help="encoder of the class names")
    add("--only", nargs="+", default=None, choices=[q.key for q in QUESTIONS], help="these tables only")
    add_places(parser, "runs/ablation", "docs/results/cada_vqvae.md")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Compute the missing cells, print the tables and write them into the page."""
    options = _arguments(arguments)
    questions = [q for q in QUESTIONS if options.only is None or q.key in options.only]
    variants = {cell_name(row): row for question in questions for row in question.rows}
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    # Seed by seed, so that a stopped grid has every row once before any row twice.
    wanted = [(name, seed) for seed in seeds for name in variants]
    grid = Grid(
        {key: variants[key[0]].name for key in wanted},
        {(name, seed): Path(options.out) / name / f"seed{seed}.json" for name, seed in wanted},
        lambda key: asked(variants[key[0]], options),
    )
    try:
        grid.check()
        real = load_real(options.data, Reading(data_dir=options.data_dir))
        judge = Judge(real.training, real.held_out)
    except FewgenError as error:
        return refuse(error)
    failed: list[str | None] = []
    todo = [] if options.table_only else grid.missing()
    if todo:
        print(f"{len(todo)} of {len(wanted)} cells to compute", flush=True)
        calls = (
            (variants[name], seed, real.training, judge, options, grid.paths[name, seed])
            for name, seed in todo
        )
        failed = spread(run_cell, calls, 1)
    about = judge.extractor.record()
    described = (
        f"{about['name']}, {100 * float(str(about['test_accuracy'])):.1f} % on {about['n_test']} test images"
    )

    def section(cells: Mapping[tuple[str, int], dict[str, Any]]) -> str:
        return "\n\n".join([*(table(q, cells) for q in questions), provenance(cells, described, options)])

    status = publish(grid, section, options.docs, MARKERS, "CADA-VQ-VAE: results")
    return 2 if any(failed) else status


if __name__ == "__main__":
    sys.exit(main())
