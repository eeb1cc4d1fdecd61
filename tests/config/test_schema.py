"""Dataclass and dictionary, there and back; mistakes are named with the key and a suggestion."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewgen.config import check_keys, from_dict, merge, resolve, to_dict
from fewgen.config.checks import Checked, Count, Share, check_fields
from fewgen.errors import ConfigError, ProblemList


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    name: Literal["mmd", "w2"] = "mmd"


@dataclass(frozen=True)
class Outer:
    steps: int = 10
    flag: bool = False
    sizes: tuple[int, ...] = (400, 200)
    pair: tuple[float, float] = (0.0, 0.99)
    inner: Inner = field(default_factory=Inner)
    minutes: float | None = None
    holdout: int | str = "auto"
    weights: dict[str, float] = field(default_factory=dict)
    extra: Any = None
    path: Path | None = None

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps must be 0 or more, got {self.steps}")


@given(
    st.builds(
        Outer,
        steps=st.integers(0, 10**9),
        flag=st.booleans(),
        sizes=st.lists(st.integers()).map(tuple),
        pair=st.tuples(st.floats(allow_nan=False), st.floats(allow_nan=False)),
        inner=st.builds(Inner, rate=st.floats(allow_nan=False), name=st.sampled_from(["mmd", "w2"])),
        minutes=st.none() | st.floats(allow_nan=False),
        holdout=st.integers() | st.text(),
        weights=st.dictionaries(st.text(), st.floats(allow_nan=False)),
        extra=st.none() | st.text(),
        path=st.none() | st.just(Path("a/b")),
    )
)
def test_round_trip(config):
    assert from_dict(Outer, to_dict(config)) == config


def test_unknown_keys_are_errors_with_suggestions():
    with pytest.raises(ConfigError, match='unknown key "model.inner.rat".*Did you mean "rate"'):
        from_dict(Outer, {"inner": {"rat": 1}}, "model")
    with pytest.raises(ConfigError, match="Known: .*steps"):
        from_dict(Outer, {"zzzzzz": 1})
    with pytest.raises(ConfigError, match="Did you mean"):
        check_keys({"step": 1}, ["steps"])


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        from_dict(Outer, {"steps": "many", "flag": 1, "inner": {"name": "kl"}, "minutes": "x"})
    message = str(caught.value)
    assert "4 problems" in message
    assert "\"steps\" must be a whole number, got 'many'" in message
    assert '"flag" must be true or false, got 1' in message
    assert "\"inner.name\" must be one of 'mmd', 'w2', got 'kl'" in message
    assert '"minutes" must be a number or null' in message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": True}, "whole number"),
        ({"steps": 1.5}, "whole number"),
        ({"sizes": [1, "b"]}, r'"sizes\[1\]" must be a whole number'),
        ({"sizes": "abc"}, "a list of values"),
        ({"pair": [1]}, "a list of 2 values"),
        ({"inner": 3}, "a section of keys"),
        ({"weights": {"kl": "x"}}, '"weights.kl" must be a number'),
        ({"steps": -1}, "steps must be 0 or more"),
        ({"pair": [float("nan"), 1]}, "a number"),
    ],
)
def test_wrong_types_name_the_key(values, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(Outer, values)


def test_whole_floats_are_counts_and_whole_numbers_are_floats():
    config = from_dict(Outer, {"steps": 1e3, "inner": {"rate": 1}})
    assert config.steps == 1000
    assert isinstance(config.steps, int)
    assert isinstance(config.inner.rate, float)


def test_precedence_defaults_preset_file_flags():
    config = resolve(
        Outer,
        {"steps": 1, "flag": True, "inner": {"rate": 0.1}},
        {"steps": 2, "inner": {"name": "w2"}},
        {"steps": 3},
    )
    assert (config.steps, config.flag, config.inner) == (3, True, Inner(0.1, "w2"))
    assert config.sizes == (400, 200)
    with pytest.raises(ConfigError, match="unknown key"):
        resolve(Outer, {"stepps": 1}, {"steps": 2})


def test_merge_leaves_its_inputs_alone():
    below, above = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert merge(below, above) == {"a": {"b": 1, "c": 2}}
    assert below == {"a": {"b": 1}}
    assert above == {"a": {"c": 2}}


def test_what_cannot_be_written_is_an_error():
    with pytest.raises(ConfigError, match="cannot be written"):
        to_dict({"a": object()})


def test_fields_are_checked_by_their_types():
    @dataclass(frozen=True)
    class Settings(Checked):
        section = "part"
        kind: Literal["ema", "gradient"] = "ema"
        count: Count = 1
        share: Share | None = None

    assert Settings("gradient", 3, 0.5) == Settings(kind="gradient", count=3, share=0.5)
    with pytest.raises(
        ConfigError, match=r'part\.kind is "em"\. Did you mean "ema"\? Choose one of: ema, gra'
    ):
        Settings(kind="em")
    with pytest.raises(ConfigError, match=r"part\.count must be 1 or more, got 0"):
        Settings(count=0)
    with pytest.raises(ConfigError, match=r"part\.share must be in \[0, 1\], got 2"):
        Settings(share=2)
    with pytest.raises(ConfigError, match=r'model: part\.kind is "em"\. Did you mean "ema"'):
        from_dict(Settings, {"kind": "em"}, "model")
    problems = ProblemList("Settings", ConfigError)
    wrong = Settings()
    object.__setattr__(wrong, "kind", "x")
    object.__setattr__(wrong, "count", -1)
    check_fields(wrong, "part", problems)
    assert len(problems.problems) == 2


def test_a_setting_by_its_former_name_counts_for_one_release():
    from fewgen.config.call import current_names
    from fewgen.diffusion.settings import SpecialiseConfig
    from fewgen.errors import RenamedWarning

    with pytest.warns(RenamedWarning, match=r"model\.scale is called model\.guidance_scale now"):
        assert resolve(SpecialiseConfig, {"scale": 2.0}, where="model").guidance_scale == 2.0
    with pytest.warns(RenamedWarning), pytest.raises(ConfigError, match="must be a number"):
        resolve(SpecialiseConfig, {"scale": "much"}, where="model")
    with pytest.raises(ConfigError, match="scale is the former name of guidance_scale: give one of them"):
        resolve(SpecialiseConfig, {"scale": 2.0, "guidance_scale": 3.0})
    stored = {"method": "tint", "model": {"scale": 2.0, "steps": 3}}
    assert current_names(stored)["model"] == {"guidance_scale": 2.0, "steps": 3}
