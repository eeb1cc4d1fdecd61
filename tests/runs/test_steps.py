"""How much of its preset a run was trained for."""

from types import SimpleNamespace

import pytest

from fewgen.config import load_preset
from fewgen.runs.steps import training_steps

WHOLE = load_preset("cada_vqvae")["model"].get("steps", 2500)


def run_of(stages, **config):
    extra = {"training": {"stages": stages}} if stages else {}
    return SimpleNamespace(info=SimpleNamespace(extra=extra), config={"method": "cada_vqvae", **config})


def stage(steps, planned, early=False):
    return {"steps": steps, "planned_steps": planned, "stopped_early": early}


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (run_of([]), None),
        (run_of([stage(25, 2500)]), (25, 2500)),  # a limit of time
        (run_of([stage(25, 25)], training={"steps_scale": 0.01}), (25, 2500)),
        (run_of([stage(900, 2500, early=True)]), (2500, 2500)),  # nothing was cut
        (run_of([stage(40, 40)], model={"steps": 40}), (40, WHOLE)),
        (run_of([stage(5000, 5000)], model={"steps": 2 * WHOLE}), (5000, 2500)),
        (run_of([stage(40, 40)], model={"steps": 40}, preset="gone"), (40, 40)),
        (run_of([stage(40, 40)], model={"steps": 40}, meta="reptile"), (40, 40)),
        (run_of([stage(300, 300), stage(1250, 2500)]), (1550, 2800)),
        (run_of([stage(300, 300), stage(129, 2500)]), (129, 2500)),  # the stage that was cut far short
    ],
)
def test_steps(run, expected):
    assert training_steps(run) == expected
