import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from fewgen.errors import DataError, ShapeError
from fewgen.evaluation.smoothness import interpolation_smoothness


def naive_walk(walk):
    steps = [math.dist(a, b) for a, b in zip(walk[:-1], walk[1:], strict=True)]
    shares = [s / sum(steps) for s in steps]
    return {
        "length": sum(steps),
        "detour": sum(steps) / math.dist(walk[0], walk[-1]),
        "largest_step": max(shares),
        "evenness": -sum(p * math.log(p) for p in shares if p > 0) / math.log(len(steps)),
        "variation": float(np.std(steps) / np.mean(steps)),
    }


def test_smoothness_equals_loops_and_summarises():
    rng = torch.Generator().manual_seed(13)
    walks = torch.randn(6, 9, 4, generator=rng, dtype=torch.float64)
    found = interpolation_smoothness(walks)
    naive = [naive_walk(walk) for walk in walks.tolist()]
    for name in naive[0]:
        values = [n[name] for n in naive]
        assert getattr(found, name) == pytest.approx(values, abs=1e-9)
        assert found.summary()[name]["mean"] == pytest.approx(np.mean(values))
        assert found.summary()[name]["spread"] == pytest.approx(np.std(values, ddof=1))
    alone = interpolation_smoothness(walks[2])
    assert alone.detour[0] == pytest.approx(found.detour[2], abs=1e-12)
    assert alone.summary()["detour"]["spread"] is None
    steps = (walks[:, 1:] - walks[:, :-1]).norm(dim=2)
    for w in range(6):  # the relation to the mean squared step, that of the perceptual path length
        expected = (found.length[w] / 8) ** 2 * (1 + found.variation[w] ** 2)
        assert float(steps[w].square().mean()) == pytest.approx(expected)
    assert found.n_steps == 8


def test_straight_even_walk_and_jump():
    start, end = torch.zeros(3), torch.tensor([1.0, 2.0, 2.0])
    even = interpolation_smoothness(torch.stack([start + (end - start) * t / 10 for t in range(11)]))
    assert (even.detour[0], even.largest_step[0], even.evenness[0]) == pytest.approx((1, 0.1, 1))
    assert even.variation[0] == pytest.approx(0, abs=1e-6)
    assert even.jump == (False,)
    leap = interpolation_smoothness(torch.stack([start] * 5 + [end] * 6))
    assert (leap.detour[0], leap.largest_step[0], leap.evenness[0]) == pytest.approx((1, 1, 0))
    assert leap.jump == (True,)
    there = torch.stack([start, end])[torch.tensor([0, 1, 0, 1, 0, 1])]
    assert interpolation_smoothness(there).detour[0] == pytest.approx(5)


def test_still_and_closed_walks_are_named_and_not_nan():
    walk = torch.arange(5.0)[:, None] * torch.ones(5, 2)
    still = torch.full((5, 2), 1e4) + 1e-9 * torch.arange(5)[:, None]
    closed = torch.stack([walk[0], walk[1], walk[2], walk[1], walk[0]])
    found = interpolation_smoothness(torch.stack([walk, still, closed]))
    assert found.n_still == 1
    assert found.detour[1:] == (None, None)
    assert (found.largest_step[1], found.evenness[1], found.jump[1]) == (None, None, False)
    assert found.largest_step[2] == pytest.approx(0.25)
    assert found.summary()["detour"] == {"mean": 1.0, "spread": None, "n": 1}
    nothing = interpolation_smoothness(torch.zeros(2, 4, 3))
    assert nothing.n_still == 2
    assert set(nothing.summary()) == {"length"}
    json.dumps(dataclasses.asdict(nothing), allow_nan=False)


def test_smoothness_refuses_bad_input():
    with pytest.raises(DataError, match="1 walks of 3 images"):
        interpolation_smoothness(torch.zeros(3, 2))
    with pytest.raises(ShapeError):
        interpolation_smoothness(torch.zeros(3))
    with pytest.raises(DataError, match="NaN"):
        interpolation_smoothness(torch.full((4, 2), math.inf))
