"""The settings file behind every command and function: defaults < file < what was given."""

from __future__ import annotations

import pytest

from fewgen.config import accepts_config
from fewgen.errors import ConfigError


@accepts_config
def example(method, *, data, seed=0, model=None, config=None):
    """Return what arrived."""
    return method, data, seed, model


def test_precedence(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("method: a\ndata: digits\nseed: 3\nmodel: {size: 1, loss: {kl: 2}}\n", encoding="utf-8")
    assert example(config=path) == ("a", "digits", 3, {"size": 1, "loss": {"kl": 2}})
    assert example("b", seed=0, config=path)[:3] == ("b", "digits", 0)
    assert example(model={"loss.kl": 5, "size": 7}, config=path)[3] == {"size": 7, "loss": {"kl": 5}}
    assert example("a", data="d") == ("a", "d", 0, None)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ConfigError, match='"data" is missing'):
        example("a")
    with pytest.raises(ConfigError, match='unknown key "sed".*Did you mean "seed"'):
        example("a", data="d", config={"sed": 1})
    with pytest.raises(ConfigError, match='unknown key "sead".*Did you mean "seed"'):
        example("a", data="d", sead=1)
    with pytest.raises(ConfigError, match="section of keys"):
        example("a", data="d", model=3)
    path = tmp_path / "c.yaml"
    path.write_text("dta: 1", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"c\.yaml\.dta"):
        example("a", data="d", config=path)
