"""Public functions leave torch, numpy and Python as they were, and compute the same whatever is set there."""

from __future__ import annotations

import contextlib
import functools
import inspect
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.distillation.toy import BASE, NOVEL, Toy, data
from tests.fake_method import Fake
from tests.methods.tage_tools import SMALL as TAGE

import fewgen
from fewgen.api import training
from fewgen.comparison import benchmarking

assert Fake.name == "fake"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
QUIET = {"progress": False, "report": False}
MODEL = {"image": {"backbone": "mlp"}}
DISTILL = {
    "per_class": 4,
    "teacher_net": "conv4",
    "teacher_channels": 4,
    "teacher_pretrain_steps": 2,
    "teacher_episodes": 2,
    "student_channels": 4,
    "pretrain_steps": 2,
    "training": {"steps": 4, "batch_size": 12, "precision": "bfloat16"},
    "tint": {"steps": 2, "textual": {"steps": 2}, "null_text": {"inner_steps": 1}},
    "device": "cpu",
    "progress": False,
}


@contextlib.contextmanager
def strange_surroundings():
    """What a caller's program may have set; each of these used to break a command or change its images."""
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        with torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


def states():
    found = torch.get_rng_state().tolist(), np.random.get_state(), random.getstate()  # noqa: NPY002
    return [hash(str(state)) for state in found]


def settings():
    return [
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
    ]


def draw(*_, **__):
    """Stand for long work: draws from everywhere, and says what was set meanwhile."""
    draws = torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()  # noqa: NPY002
    return SimpleNamespace(settings=settings(), draws=draws, result=SimpleNamespace(interrupted=True))


def weights(run):
    return {name: value.tolist() for name, value in run.method.state_dict().items()}


def drawn(made):
    return made.images.tolist()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("surroundings")
    vectors = torch.randn(len(WORDS), 6, generator=torch.Generator().manual_seed(0))
    rows = [f"{word} {' '.join(map(str, v))}" for word, v in zip(WORDS, vectors.tolist(), strict=True)]
    (folder / "words.txt").write_text("\n".join(rows) + "\n")
    return fewgen.train("cada_vqvae", **_cada(folder), out=folder / "run", **QUIET).path


def _cada(folder):
    return {
        "data": "digits",
        "size": 8,
        "class_names": ["zero", "one", "two"],
        "shots": 10,
        "steps_scale": 0.002,
        "text": "glove",
        "text_path": str(folder / "words.txt"),
        "model": MODEL,
    }


@functools.cache
def _given():
    return data(4, NOVEL[:2], seed=5), data(4, BASE), Toy()


def _distilled(_, out):
    novel, base, toy = _given()
    made = fewgen.distill(novel=novel, shots=2, data=base, generator=toy, out=out, **DISTILL)
    return {name: value.tolist() for name, value in load_file(made.path / "student.safetensors").items()}


def _edited(_, out):
    quiet = {"holdout": 0, "training": {"device": "cpu"}, **QUIET}
    run = fewgen.train("tage", data=_given()[1], out=out, model=TAGE, **quiet)
    return fewgen.edit(run, most_used=True)


CASES = {
    # name: (call with a run and a new path, what of its value must be equal)
    "adapt": (
        lambda run, _: fewgen.adapt(run, images="digits", class_names="seven", shots=4, steps=3, **QUIET),
        weights,
    ),
    "benchmark": (lambda _, out: fewgen.benchmark(data="digits", out=out), lambda value: value),
    "distill": (_distilled, lambda weights: weights),
    "edit": (_edited, drawn),
    "evaluate": (
        lambda run, _: fewgen.evaluate(run, features="pixels", useful_draws=0, progress=False),
        lambda value: value.to_dict(),
    ),
    "generate": (lambda run, _: fewgen.generate(run, n=2), drawn),
    "interpolate": (lambda run, _: fewgen.interpolate(run, "zero", "one", steps=3), drawn),
    "load_images": (lambda *_: fewgen.load_images("digits", size=9), drawn),
    "load_run": (lambda run, _: fewgen.load_run(run), weights),
    "plan": (lambda *_: fewgen.plan(accuracy=0.8, between_sd=0.1, queries=75, half_width=0.02), str),
    "plan_training": (
        lambda run, out: fewgen.plan_training(method="cada_vqvae", **_cada(run.parent), out=out),
        lambda plan: [plan.settings["model"], [stage["name"] for stage in plan.stages]],
    ),
    "quickstart": (lambda _, out: fewgen.quickstart(out=out), lambda value: value),
    "reconstruct": (lambda run, _: fewgen.reconstruct(run, n=3), drawn),
    "retrieve": (lambda run, _: fewgen.retrieve(run, "digits"), lambda found: found.words),
    "train": (
        lambda run, out: fewgen.train("cada_vqvae", **_cada(run.parent), out=out, **QUIET),
        weights,
    ),
}


def test_no_public_function_is_missing_here():
    public = {name for name in fewgen.__all__ if not inspect.isclass(getattr(fewgen, name))}
    assert set(CASES) == public - {"__version__"}


@pytest.mark.parametrize("name", CASES)
def test_surroundings_change_nothing_and_are_not_changed(name, run, tmp_path, monkeypatch):
    call, shown = CASES[name]
    if name == "quickstart":  # `train` and `generate` one after the other
        monkeypatch.setattr(training, "train", draw)
    if name == "benchmark":
        monkeypatch.setattr(benchmarking, "run_benchmark", draw)
    before = states()
    plain = shown(call(run, tmp_path / "a"))
    assert states() == before
    with strange_surroundings():
        set_before = settings()
        found = shown(call(run, tmp_path / "b"))
        assert settings() == set_before
        assert torch.is_autocast_cache_enabled()
    assert states() == before
    assert found == plain
