import math

import pytest
import torch
from tests.fake_method import Fake
from tests.training.toys import toy_images

import fewgen
from fewgen.clock import Limit, TimeIsUp
from fewgen.errors import ConfigError
from fewgen.runs import timing
from fewgen.runs.timing import RunTrial, Share, limit_in_words
from fewgen.training.phases import Phase, Stage
from fewgen.training.trial import StageTrial

SMALL = {"data": "digits", "size": 8, "shots": 12, "text": "onehot", "progress": False}


def stages(*shares):
    phase = Phase("a", torch.nn.Linear(1, 1), loss=lambda batch, context: None)
    return [Stage(f"s{i}", [phase], steps=9, time_share=share) for i, share in enumerate(shares)]


ONE = [StageTrial(2500, 1.0, 2.2, 3.0)]
TWO = [StageTrial(1000, 0.0, 0.01, 0.0), StageTrial(500, 10.0, 0.1, 0.0)]


@pytest.mark.parametrize(
    ("trials", "minutes", "size", "expected"),
    [
        (ONE, None, (64, 64), "It takes about 1.6 h at 64 px here: 1.5 h for 2,500 steps and 2 min for measuring"),
        (ONE, 3, (64, 64), "3 minutes allow about 49 of 2,500 steps at 64 px here: not enough for pictures; take "
                           "--size 32, or --minutes 94."),
        (ONE, 60, (32, 32), "60 minutes allow about 1,591 of 2,500 steps at 32 px here; all of them take "
                            "--minutes 94."),
        (TWO, 3, (28, 28), "3 minutes are enough for all 1,500 steps at 28 px here: about 3 min in all."),
        # Of 34 s the first stage needs 10; the second has 24, of which 10 pass before its first step.
        (TWO, 1, (28, 20), "1 minute allows about 1,140 of 1,500 steps at 28x20 px here; all of them take"),
        ([None, *ONE], 3, (28, 28), "How long it takes cannot be said before the first stages have run."),
    ],
)  # fmt: skip
def test_what_a_limit_buys_in_a_sentence(trials, minutes, size, expected):
    found = RunTrial(trials, draw=0.1, report=90.0)
    said = limit_in_words(stages(*[None] * len(trials)), found, minutes, size, before=5.0)
    assert said.startswith(expected), said


def test_measuring_gets_a_share_of_the_limit_at_most():
    assert RunTrial([], 0.0, 20.0).reserved(300.0) == 20.0
    assert RunTrial([], 0.0, 90.0).reserved(60.0) == pytest.approx(21.0)


@pytest.fixture
def costs(monkeypatch):
    """Evaluations that take 10 s and a tenth of a second per image; drawing takes nothing."""

    def seconds(n, train, n_held_out, draw=0.0, **_):
        return {"judge": 10.0, "rest": 0.1 * n}

    monkeypatch.setattr(timing, "evaluation_seconds", seconds)
    monkeypatch.setattr(timing, "draw_seconds", lambda *_: 0.01)


@pytest.mark.parametrize(
    ("left", "expected"), [(math.inf, 100), (60.0, 100), (30.0, 52), (16.5, 7), (14.0, None), (-1.0, None)]
)
def test_as_many_images_are_measured_as_there_is_time_for(costs, left, expected):
    limit = Limit(None if left == math.inf else 1.0)
    limit.before = 60.0 - left if left < math.inf else 0.0
    share = Share(limit, None, toy_images(), None)
    if expected is None:
        with pytest.raises(TimeIsUp, match=r"Not measured: the time limit of 1 minute\."):
            share.measured()
    else:
        assert share.measured() in (expected - 1, expected)
    assert share.shown() == (8 if left > 2 else 1)


def test_a_limit_shorter_than_a_step_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    real = Fake.loss

    def slow(self, batch, context):
        import time

        time.sleep(0.5)
        return real(self, batch, context)

    monkeypatch.setattr(Fake, "loss", slow)
    with pytest.raises(
        ConfigError, match=r"limit of 0\.002 minutes is too short.* Take --minutes [0-9.]+ or"
    ):
        fewgen.train("fake", out=tmp_path / "a", minutes=0.002, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_what_there_is_no_time_to_measure_is_named_in_the_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fewgen.runs.timing.report_images", lambda n_classes: 4)
    monkeypatch.setattr("fewgen.runs.timing.evaluation_seconds", lambda *_, **__: {"judge": 1e6})
    run = fewgen.train("fake", out=tmp_path / "a", minutes=0.1, **SMALL)
    assert run.result.finished
    page = (run.path / "report.html").read_text()
    assert "Not measured: the time limit of 0.1 minutes." in page
    assert "could not be" not in page
    assert not (run.path / "evaluation.json").exists()


def test_a_trial_changes_nothing_of_a_training(tmp_path, monkeypatch):
    """With a limit that cuts nothing the weights are those of a training without one."""
    a = fewgen.train("fake", out=tmp_path / "a", report=False, **SMALL)
    b = fewgen.train("fake", out=tmp_path / "b", report=False, minutes=5, **SMALL)
    x, y = a.method.state_dict(), b.method.state_dict()
    assert all(torch.equal(x[name], y[name]) for name in x)


def test_several_processes_believe_the_first(monkeypatch):
    class Several:
        size = 2

        def from_main(self, numbers):
            assert len(numbers) == 2 + 4 * 2
            return [0.5, 7.0, 9, 1.0, 2.0, 3.0, -1.0, -1.0, -1.0, -1.0]

    mine = RunTrial([StageTrial(9, 5.0, 5.0, 5.0), None], draw=0.1, report=90.0)
    agreed = mine.agreed(Several())
    assert agreed == RunTrial([StageTrial(9, 1.0, 2.0, 3.0), None], draw=0.5, report=7.0)
    alone = Several()
    alone.size = 1
    assert mine.agreed(alone) is mine

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="A dry run is of one process.* Leave out .*torchrun"):
        fewgen.plan_training(method="fake", out="x", **SMALL)


class Ticks:
    """A clock that goes on by a second whenever it is read."""

    def __init__(self):
        self.time = 0.0

    def __call__(self):
        self.time += 1.0
        return self.time


def test_estimates_go_by_the_clock_of_the_limit(monkeypatch):
    from fewgen.encoders.classifier import ClassifierSettings
    from fewgen.evaluation.cost import judge_seconds

    train = toy_images()
    steps = ClassifierSettings.for_images(300, min(train.size)).steps
    assert judge_seconds(train, 300, Ticks()) == pytest.approx(steps / 7)

    class Method(torch.nn.Module):
        rows, capabilities, spec = 16, frozenset(), type("Spec", (), {"n_classes": 2})
        generate = staticmethod(lambda request: None)

    assert timing.draw_seconds(Method(), Ticks()) == pytest.approx(1 / 4), "a group of 4 takes a tick"
    asked = []
    monkeypatch.setattr(timing, "draw_seconds", lambda method, now: asked.append(now) or 0.01)
    limit = Limit(1.0, "cpu")
    assert Share(limit, None, train, None).draw == 0.01
    assert asked == [limit.clock.now]


def test_learning_new_classes_is_estimated_after_meta_training(tmp_path):
    from fewgen.api.training import train_request
    from fewgen.runs.adaptation import N_NEW
    from fewgen.runs.adapting import POOL
    from fewgen.runs.preparing import prepare

    common = {
        "method": "cada_vqvae",
        "data": "digits",
        "out": tmp_path / "a",
        "text": "onehot",
        "shots": None,
    }
    meta = {"meta": "reptile", "class_split": "6/1/3", "tasks": {"adapt_steps": 10}}
    prepared = prepare(train_request(**common, **meta))
    stages = prepared.stages()
    found = RunTrial([StageTrial(s.steps, 0.0, 2.0, 0.0) for s in stages], draw=0.0, report=0.0)
    updates = timing.new_classes_seconds(prepared, found, lambda: 0.0)
    align = next(s for s in stages if s.name == "align")
    # 1, 3, 5, 10 and 30 images of each of 3 classes, 64 at most, beside as many old ones, from 10 to 32.
    images = (3 + 10) + (9 + 10) + (15 + 15) + (30 + 30) + (64 + 32)
    assert updates == pytest.approx(10 * images * 2.0 / align.batch_size)
    drawn = timing.new_classes_seconds(prepared, RunTrial([None] * len(stages), 1.0, 0.0), lambda: 0.0)
    assert drawn == POOL + 6 * 3 * N_NEW
    plain = prepare(train_request(**common))
    assert timing.new_classes_seconds(plain, found, lambda: 0.0) == 0.0
