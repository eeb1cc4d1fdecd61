"""End to end on real images: a diffusion model of base characters helps a student of novel ones."""

import pytest
import torch

import fewgen
from fewgen.config.schema import from_dict
from fewgen.data import load_images
from fewgen.diffusion.settings import SpecialiseConfig
from fewgen.diffusion.specialisation import draw, specialise
from fewgen.distillation.knowledge import DistillConfig, accuracy, distill
from fewgen.distillation.students import make_student
from fewgen.distillation.summary import interval, paired
from fewgen.distillation.synthesis import Synthesis
from fewgen.episodes import EpisodeSampler, class_split
from fewgen.runs.pipeline import load_pipeline

SIDE = 16
EPISODES = 5
TINT = {
    "guidance_scale": 2.0,
    "steps": 10,
    "batch": 64,
    "textual": {"steps": 40},
    "null_text": {"inner_steps": 2},
}
TRAINING = DistillConfig(steps=200, batch_size=60, flip=False, padding=2, jitter=0.2, hard_labels=True)


CHECKED = {"steps": 25, "textual": {"steps": 20, "batch_size": 4, "lr": 0.01}, "batch": 64}


def check_null_texts(pipe, novel):
    """Null texts at the published guidance bring real characters back ten times better than none."""
    drawings = EpisodeSampler(novel.labels, 3, 2, None, 1).episode(0, novel).support.floats()
    errors = {}
    for inner in (0, 10):
        learned = specialise(
            pipe,
            [drawings],
            ["characters"],
            from_dict(SpecialiseConfig, {**CHECKED, "null_text": {"inner_steps": inner, "lr": 0.03}}),
            rng=torch.Generator().manual_seed(0),
        )[0]
        back = draw(
            pipe,
            learned.context(pipe),
            learned.z_T,
            learned.u,
            torch.zeros(len(drawings), dtype=torch.int64),
            torch.zeros(len(drawings)),
            guidance_scale=7.5,
            steps=25,
        )
        errors[inner] = float((back - drawings).square().mean())
    assert errors[10] < errors[0] / 10, errors


@pytest.mark.slow
def test_synthetic_images_help_a_student_of_three_novel_characters(data_dir, tmp_path):
    """One drawing each of three characters of unseen alphabets; judged by all others of these characters.

    Both students have the same first weights, steps and augmentation; no base image and no teacher.
    """
    fewgen.train(
        "diffusion",
        data="omniglot",
        size=SIDE,
        class_split="auto",
        holdout=0,
        model={"steps": 450},
        training={"preview_every": 0, "validate_every": 0},
        data_dir=data_dir,
        out=tmp_path / "base",
        report=False,
        progress=False,
    )
    pipe = load_pipeline(tmp_path / "base")
    images = load_images("omniglot", size=SIDE, data_dir=data_dir)
    split = class_split(images, "auto", 0)
    # No novel alphabet among the characters that the model has learned from.
    known = {name.split("/")[0] for name in fewgen.load_run(tmp_path / "base").class_names}
    assert not known & {name.split("/")[0] for name in split.novel}
    novel = images.select_classes(split.novel)
    check_null_texts(pipe, novel)
    sampler = EpisodeSampler(novel.labels, 3, 1, None, 0)
    without, with_synthetic = [], []
    for i in range(EPISODES):
        episode = sampler.episode(i, novel)
        made = Synthesis(
            lambda: pipe,
            episode.support,
            from_dict(SpecialiseConfig, TINT),
            tmp_path / f"episode{i}",
            per_class=40,
            alpha=0.6,
            first=i,
        ).images("tint")
        for found, synthetic in ((without, None), (with_synthetic, made)):
            student = make_student("conv4", (1, SIDE, SIDE), 3, channels=16, seed=1)
            distill(student, episode.support, synthetic, config=TRAINING, seed=i)
            found.append(accuracy(student, episode.query))
    gain = paired(with_synthetic, without)
    assert interval(without)["mean"] > 0.4, "the student without synthetic images is better than chance"
    assert gain["mean"] > 0, (with_synthetic, without)
