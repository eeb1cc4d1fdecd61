"""Trials shorten what hooks train, and count what was left out."""

from __future__ import annotations

import time

import pytest

import fewgen
from fewgen.encoders.joint import SmallJointEncoder
from fewgen.training.phases import Trial


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


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cada_vqvae", "sq_gan"])
def test_the_dry_run_of_a_minute_is_short(method, tmp_path):
    begun = time.process_time()  # another program may have the machine
    limit = {"minutes": 1, "clock": "cpu"}
    plan = fewgen.plan_training(method=method, data="digits", shots=30, out=tmp_path / "a", **limit)
    assert time.process_time() - begun < 15
    assert plan.sentence.startswith("1 minute ")
