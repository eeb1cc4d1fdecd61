from __future__ import annotations

import json
import math

import numpy as np
import pytest

from fewgen.training.watch import Watch


def warnings_of(series, held_out=()):
    watch = Watch()
    found = []
    for i, value in enumerate(series):
        found += watch.train("vae", float(value))
        if i < len(held_out):
            found += watch.held_out(float(held_out[i]))
    return found


t = np.arange(60)
noise = np.random.default_rng(0).normal(size=60)
GOOD = {
    "falling": 100 * np.exp(-t / 10) + 20,
    "noisy fall": 100 * np.exp(-t / 10) + 20 + 2 * noise,
    "flat": np.full(60, 3.0),
    "rises while a weight warms up": 100 * np.exp(-t / 5) + 40 + 25 * np.minimum(t / 20, 1),
    "negative": -50 + 30 * np.exp(-t / 10),
    "steep": 1e6 * np.exp(-t / 2) + 1,
    "tiny": 1e-8 * np.ones(60),
}
BAD = {
    "blows up": np.where(t < 30, 50 * np.exp(-t / 10) + 5, 5 * np.exp((t - 30) / 5)),
    "jumps back": np.where(t < 40, 100 * np.exp(-t / 10), 120.0),
}


@pytest.mark.parametrize("name", GOOD)
def test_silent_on_healthy_series(name):
    assert warnings_of(GOOD[name]) == []


@pytest.mark.parametrize("name", BAD)
def test_divergence_is_told_once(name):
    found = warnings_of(BAD[name])
    assert sum("diverges" in text for text in found) == 1


def test_swings_are_told_once():
    found = warnings_of(50 + 30 * np.where(t % 2, 1, -1) + noise)
    assert sum("swings" in text for text in found) == 1


def test_overfitting():
    train = 100 * np.exp(-t / 20)
    rising = np.where(t < 10, 50 - 3 * t, 20 + (t - 10))
    found = warnings_of(train, rising)
    assert len(found) == 1
    assert "Overfitting" in found[0]
    assert warnings_of(train, 20 + 30 * np.exp(-t / 10)) == []
    # A held-out figure that only trembles about its best is no overfitting.
    assert warnings_of(train, 20 + 0.1 * noise) == []
    # If the training loss rises too, it is something else.
    assert not any("Overfit" in text for text in warnings_of(20 + 0.1 * t, rising))


def test_a_methods_own_warnings_are_told_once_whatever_their_numbers():
    watch = Watch()
    assert watch.note(["12 of 64 codes are used", "collapse"]) == ["12 of 64 codes are used", "collapse"]
    assert watch.note(["13 of 64 codes are used"]) == []


def test_state_survives_json():
    watch, whole = Watch(), Watch()
    series = BAD["blows up"]
    found = []
    expected = [w for i, value in enumerate(series) for w in whole.train("a", value) + whole.held_out(i % 7)]
    for i, value in enumerate(series):
        found += watch.train("a", value) + watch.held_out(i % 7)
        fresh = Watch()
        fresh.load(json.loads(json.dumps(watch.state(), allow_nan=False)))
        watch = fresh
    assert found == expected
    assert not any(math.isnan(value) for value in series)
