"""Trials shorten what hooks train, and count what was left out."""

from __future__ import annotations

import time

import pytest
from tests.training.toys import make, trainer

import fewgen
from fewgen.clock import Limit
from fewgen.encoders.joint import SmallJointEncoder
from fewgen.errors import ConfigError
from fewgen.runs.timing import RunTrial, check_limit
from fewgen.training.phases import FEW, Trial
from fewgen.training.trial import StageTrial


@pytest.mark.parametrize(("steps", "made"), [(9, [9]), (300, [1, 9])])
def test_a_training_in_a_hook_is_estimated_from_a_few_steps(steps, made):
    clock, asked = [0.0], []

    def fit(n):
        asked.append(n)
        # 3 s around the steps, half a second each, and 20 s of warming up.
        clock[0] += 3.0 + 0.5 * n + (20.0 if len(asked) == 1 else 0.0)
        return n

    trial = Trial(lambda: clock[0])
    assert trial.shortened(steps, fit) == made[-1]
    assert asked == made
    if steps == 9:
        assert trial.left_out == 0
    else:  # 9 steps took 7.5 s; less than a step of these can be around them
        assert trial.left_out == pytest.approx(291 * (7.5 - 7.5 / 9) / 8)
        assert 0.5 * 291 < trial.left_out < 2 * 0.5 * 291


def test_the_dry_run_of_codes_trains_no_encoders_to_the_end(monkeypatch, tmp_path):
    real, asked = SmallJointEncoder.fit.__func__, []

    def fit(cls, images, steps=300, *more, **others):
        asked.append(steps)
        time.sleep(0.02 * steps)
        return real(cls, images, min(steps, 2), *more, **others)

    monkeypatch.setattr(SmallJointEncoder, "fit", classmethod(fit))
    plan = fewgen.plan_training(
        method="sq_gan", data="digits", size=8, shots=12, out=tmp_path / "a", report=False,
        model={"init": {"foundation_steps": 1000}},
    )  # fmt: skip
    assert asked == [1, 9]
    codes = plan.stages[0]
    assert codes["name"] == "codes"
    rest = codes["seconds"] - codes["steps"] * codes["seconds_per_step"]
    assert rest > 1000 * 0.02 * 0.8, "the seconds of all steps are there"


def preparing(tmp_path, minutes):
    """Train the toy with a preparation of 200 steps of 10 ms; return what was asked of it, and the time."""
    asked = []

    def fit(steps):
        asked.append(steps)
        time.sleep(0.01 * steps)
        return steps

    given = {} if minutes is None else {"limit": Limit(minutes)}
    made = trainer(make(), tmp_path, **given)
    made.stages[0].on_start = lambda context: context.shortened(200, fit)
    begun = time.monotonic()
    assert made.run().finished
    return asked, time.monotonic() - begun


def test_a_limit_shortens_what_prepares_a_stage(tmp_path, capsys):
    asked, seconds = preparing(tmp_path / "short", 0.03)  # 1.8 s for 2 s of preparing
    assert asked[:2] == [1, FEW]
    assert FEW < asked[2] < 120
    assert seconds < 1.8 + 1.0  # another program may have the machine for a moment
    assert preparing(tmp_path / "long", 10)[0] == [1, FEW, 200]
    assert preparing(tmp_path / "none", None)[0] == [200]


def test_a_limit_that_is_gone_before_the_first_step_is_refused():
    found = RunTrial([StageTrial(10, 0.5, 0.5, 0.0)], draw=0.0, report=9.0)
    check_limit(found, 1, left=2.0)
    with pytest.raises(
        ConfigError, match=r"takes 1 s here, and finding that out took 59 s.* --minutes 1\.1 or"
    ):
        check_limit(found, 1, left=0.9)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cada_vqvae", "sq_gan"])
def test_the_dry_run_of_a_minute_is_short(method, tmp_path):
    begun = time.process_time()  # another program may have the machine
    limit = {"minutes": 1, "clock": "cpu"}
    plan = fewgen.plan_training(method=method, data="digits", shots=30, out=tmp_path / "a", **limit)
    assert time.process_time() - begun < 15
    assert plan.sentence.startswith("1 minute ")
