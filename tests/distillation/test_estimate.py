"""Estimates: trials are scaled to the whole work, and leave no trace."""

import pytest
import torch
from tests.distillation.toy import NOVEL, Toy, data

from fewgen.config.schema import from_dict
from fewgen.diffusion.settings import SpecialiseConfig
from fewgen.distillation import estimate
from fewgen.distillation.estimate import making_seconds, training_seconds
from fewgen.distillation.knowledge import DistillConfig
from fewgen.distillation.students import make_student
from fewgen.distillation.synthesis import by_class
from fewgen.progress import shown_seconds


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when it is told to."""
    now = [0.0]
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: now[0])
    return now


def test_a_training_takes_its_steps_times_one(clock, monkeypatch):
    asked = []

    def step(student, images, *, config):
        asked.append((config.steps, config.batch_size, student.n_classes, images.n_classes))
        clock[0] += 0.5 * config.steps + (10.0 if len(asked) == 1 else 0.0)  # warming up does not count

    monkeypatch.setattr(estimate, "distill", step)
    images = data(3, NOVEL)
    student = make_student("conv4", (1, *images.size), 0, channels=4)
    seconds = training_seconds(student, images, DistillConfig(steps=300, batch_size=20))
    assert seconds == pytest.approx(1.2 * 0.5 * 300)
    assert asked == [(1, 20, 1, 1), (2, 20, 1, 1)]
    assert student.n_classes == 0


def test_a_trial_leaves_the_student_as_it_was():
    images = data(3, NOVEL)
    student = make_student("conv4", (1, *images.size), 0, channels=4)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    assert training_seconds(student, images, DistillConfig(steps=10, batch_size=8)) > 0
    assert all(torch.equal(before[key], value) for key, value in student.state_dict().items())


def test_making_is_scaled_part_by_part(clock, monkeypatch):
    asked = []

    def learn(pipe, images, names, config, *, rng, progress):
        asked.append(config)
        for part, seconds in (("textual inversion", 2), ("DDIM inversion", 3), ("null-text inversion", 5)):
            clock[0] += seconds
            progress(f"{part}: more", 1.0)
        return ["word"] * len(names)

    def draw(pipe, word, n, alpha, *, batch):
        clock[0] += 0.1 * n

    monkeypatch.setattr(estimate, "specialise", learn)
    monkeypatch.setattr(estimate, "generate", draw)
    config = from_dict(
        SpecialiseConfig,
        {"steps": 20, "batch": 8, "textual": {"steps": 100}, "null_text": {"inner_steps": 7}},
    )
    found = making_seconds(Toy(), by_class(data(3, NOVEL)), config)
    assert found.words == pytest.approx(1.2 * 100 * 2 / 2)
    # Ten times the sampling steps of the trial; its one inner step stands for seven.
    assert found.null_texts == pytest.approx(1.2 * 10 * (3 + 7 * 5))
    assert found.image == pytest.approx(1.2 * 10 * 0.1)
    assert all((one.steps, one.null_text.inner_steps, one.null_text.tol) == (2, 1, 0.0) for one in asked)


def test_a_real_trial_of_every_part_takes_time():
    found = making_seconds(Toy(), by_class(data(3, NOVEL)), from_dict(SpecialiseConfig, {"steps": 4}))
    assert min(found.words, found.null_texts, found.image) > 0
    without = from_dict(SpecialiseConfig, {"steps": 4, "null_text": {"inner_steps": 0}})
    assert making_seconds(Toy(), by_class(data(3, NOVEL)), without).null_texts > 0


def test_times_are_shown_in_the_unit_that_fits():
    assert [shown_seconds(s) for s in (0.4, 89, 91, 5399, 5401)] == [
        "0 s",
        "89 s",
        "2 min",
        "90 min",
        "1.5 h",
    ]
