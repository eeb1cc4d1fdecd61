"""Which checkpoint was kept, from the command to the page."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from tests.training.toys import ToyGan, ToyGanConfig, toy_images

import fewgen
from fewgen.cli.main import main
from fewgen.data.imageset import ImageSet
from fewgen.methods.registry import register


@register("toy_drawing")
class ToyDrawing(ToyGan):
    """The toy GAN, whose stage says that it draws; or that it has learned its images by heart."""

    Config = ToyGanConfig

    def stages(self, train, held_out):
        self.train_images = train
        (stage,) = super().stages(train, held_out)
        return [dataclasses.replace(stage, draws=True)]


@register("toy_memory")
class ToyMemory(ToyDrawing):
    """Draws training images from the 150th step on."""

    def g_loss(self, batch, context):
        self.late = context.step >= 149
        return super().g_loss(batch, context)

    def sample(self, class_vectors, labels, seeds, temperature, **options):
        if not getattr(self, "late", True) or not hasattr(self, "train_images"):
            return super().sample(class_vectors, labels, seeds, temperature)
        images = self.train_images.floats()
        return images[(labels + 3 * seeds) % len(images)]


def bars(n):
    """Larger noisy bars, so that images have look-alikes only if they are copied."""
    small = toy_images(n)
    rng = torch.Generator().manual_seed(1)
    images = small.images.repeat(1, 1, 2, 2).float() + 60 * torch.rand((n, 1, 12, 12), generator=rng)
    return ImageSet(images.clamp(0, 255).to(torch.uint8), small.labels, small.class_names, name="bars")


def train(out, method="toy_drawing", holdout=5, steps=250, **keywords):
    settings = {"log_every": 50, "validate_every": 0, "preview_every": 0, "ema_decay": 0.0, "threads": 1}
    return fewgen.train(
        method,
        data=bars(60),
        out=out,
        text="onehot",
        shots=12,
        holdout=holdout,
        model={"steps": steps},
        training={**settings, "device": "cpu"},
        progress=False,
        **keywords,
    )


def checkpoints(run):
    text = (run.path / "metrics.jsonl").read_text(encoding="utf-8")
    return [line for line in map(json.loads, text.splitlines()) if line["kind"] == "checkpoint"]


def test_the_page_shows_the_checkpoints_and_says_which_is_kept(tmp_path):
    run = train(tmp_path / "run")
    rows = checkpoints(run)
    assert [row["step"] for row in rows] == [100, 200, 250]
    assert set(rows[0]) >= {"distance", "error", "copy_share", "copies", "real_distance", "real_copy_share"}
    page = (run.path / "report.html").read_text(encoding="utf-8")
    (stage,) = run.info.extra["training"]["stages"]
    assert f"weights of step {stage['best_step']} kept: {stage['why']}" in page
    assert 'alt="checkpoints of stage gan"' in page
    assert 'alt="images of the checkpoints of stage gan"' in page
    assert "those images decided which weights were kept" in (run.path / "README.md").read_text(
        encoding="utf-8"
    )


def test_a_generator_that_learns_by_heart_is_stopped_before(tmp_path):
    run = train(tmp_path / "run", "toy_memory", report=False)
    assert [row["copies"] for row in checkpoints(run)] == [False, True, True]
    assert checkpoints(run)[-1]["copy_share"] == 1.0
    (stage,) = run.info.extra["training"]["stages"]
    assert stage["best_step"] == 100
    assert "2 that copy training images are left out" in stage["why"]


@pytest.mark.parametrize(
    ("keywords", "why"),
    [
        ({"holdout": 0}, "no images are held out to compare checkpoints with"),
        ({"steps": 40}, "too few steps to compare checkpoints"),
        ({"checkpoint": "last"}, "as --checkpoint last asks for"),
    ],
)
def test_where_the_last_is_kept_the_reason_is_told(tmp_path, keywords, why):
    run = train(tmp_path / "run", **keywords)
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert f"last weights kept: {why}" in page
    assert ("--checkpoint last" in page) == ("checkpoint" in keywords)


def test_a_method_that_keeps_its_last_step_anyway_refuses_the_choice(tmp_path, capsys):
    words = ["--data", "digits", "--shots", "3", "--model", str(tmp_path), "--checkpoint", "images"]
    assert main(["train", "tint", *words, "--out", str(tmp_path / "run")]) == 2
    assert "--checkpoint images has no effect with this method. Leave it out." in capsys.readouterr().err


def test_an_unknown_choice_is_told_before_anything_is_written(tmp_path, capsys):
    out = tmp_path / "run"
    words = ["--data", "digits", "--shots", "3", "--checkpoint", "lsat", "--out", str(out)]
    assert main(["train", "sq_gan", *words]) == 2
    assert 'checkpoint must be best, images or last, got "lsat"' in capsys.readouterr().err
    assert not out.exists()
