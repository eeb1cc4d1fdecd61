"""The settings file behind every command and function: defaults < file < what was given."""

from __future__ import annotations

import inspect
import warnings

import pytest

from fewgen.config import accepts_config, call_settings, renamed
from fewgen.config.call import unwrapped
from fewgen.errors import ConfigError, RenamedWarning


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


@renamed(paper="background", kinds="class_names")
@accepts_config
def painted(*, background="error", class_names=None, config=None):
    """Return what arrived."""
    return background, class_names


def test_former_names_work_with_one_warning_each(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("paper: white", encoding="utf-8")
    for given in ({"paper": "white"}, {"config": {"paper": "white"}}, {"config": path}):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            assert painted(**given) == ("white", None)
        (warning,) = found
        assert warning.category is RenamedWarning
        assert str(warning.message).startswith("paper")
        assert "is called background now" in str(warning.message)
    with pytest.warns(RenamedWarning, match="kinds is called class_names now"):
        assert painted(background="black", kinds=["a"]) == ("black", ["a"])


def test_what_is_given_wins_over_a_former_name_in_a_file():
    with pytest.warns(RenamedWarning):
        assert painted(background="black", config={"paper": "white"})[0] == "black"


def test_a_former_name_beside_the_new_one_is_a_mistake():
    with pytest.raises(ConfigError, match="paper is the former name of background: give one of them"):
        painted(paper="white", background="black")
    with pytest.raises(ConfigError, match="former name"):
        painted(config={"paper": "white", "background": "black"})


def test_former_names_reach_the_function_below_the_decorators():
    with pytest.warns(RenamedWarning):
        assert call_settings(unwrapped(painted), {"paper": "white"})["background"] == "white"
    assert list(inspect.signature(painted).parameters) == ["background", "class_names", "config"]


def test_former_names_of_a_function_without_settings_file():
    @renamed(old="new")
    def plain(new=1):
        return new

    with pytest.warns(RenamedWarning, match="old is called new now"):
        assert plain(old=3) == 3
    assert plain(2) == 2
