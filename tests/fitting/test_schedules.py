import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewgen.errors import ConfigError
from fewgen.fitting.schedules import cosine, late_decay, linear_warmup, make_schedule


@given(st.integers(1, 500), st.floats(0, 1), st.floats(0, 1))
def test_cosine_stays_between_floor_and_one(steps, warmup, floor):
    factors = [cosine(warmup, floor)(step, steps) for step in range(steps)]
    assert all(0 <= f <= 1 + 1e-12 for f in factors)
    after = factors[int(warmup * steps) + 1 :]
    assert all(a >= b - 1e-12 for a, b in zip(after, after[1:], strict=False))
    assert all(f >= floor - 1e-12 for f in after)


def test_warmup_rises_to_one():
    factors = [linear_warmup(0.1)(step, 100) for step in range(100)]
    assert factors[:3] == [0.1, 0.2, pytest.approx(0.3)]
    assert factors[9:] == [1.0] * 91
    assert make_schedule("constant")(3, 10) == 1.0
    with pytest.raises(ConfigError, match='Did you mean "cosine"'):
        make_schedule("cosin")


@given(st.integers(1, 500), st.floats(0, 0.99), st.floats(0, 1))
def test_late_decay_is_one_at_first_and_then_falls_in_a_line(steps, start, floor):
    factors = [late_decay(start, floor)(step, steps) for step in range(steps + 1)]
    for step, factor in enumerate(factors):
        if step <= start * steps:
            assert factor == pytest.approx(1.0, abs=1e-9)
        else:
            share = (steps - step) / (steps - start * steps)
            assert factor == pytest.approx(floor + (1 - floor) * share, abs=1e-9)
    assert factors[-1] == pytest.approx(floor, abs=1e-9)


def test_late_decay_by_name_and_out_of_range():
    assert make_schedule("late_decay")(50, 100) == 1.0
    assert make_schedule("late_decay")(75, 100) == pytest.approx(0.525)
    for wrong in ({"start": 1.0}, {"start": -0.1}, {"floor": 1.5}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))} must be"):
            late_decay(**wrong)
