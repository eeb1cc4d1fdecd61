"""Cells that refuse other settings, and changes that are taken seed by seed."""

import json
import os

import pytest
from benchmarks.ablation import (
    Grid,
    check_same,
    different,
    flat,
    mean_and_spread,
    paired_change,
    publish,
    spread,
    write_between,
)
from benchmarks.memory import forget_peak, peak_megabytes, resident_megabytes

from fewgen.errors import ConfigError


def test_the_change_is_the_mean_of_each_seeds_own_ratio():
    # The ratio of the means would be 202 / 110 - 1 = +84 %.
    assert paired_change({0: 200.0, 1: 5.0, 2: 1.0}, {0: 100.0, 1: 10.0, 7: 1.0}) == "+25 % (1 of 2)"
    assert paired_change({0: 50.0, 1: 90.0, 2: 40.0}, {0: 100.0, 1: 100.0, 2: 100.0}) == "-40 % (3 of 3)"


def test_no_change_is_told_without_pairs_or_against_nothing():
    assert paired_change({0: 1.0}, {1: 1.0}) == "-"
    assert paired_change({0: 1.0, 1: 1.0}, {0: 1.0, 1: -0.01}) == "n/a"
    assert paired_change({0: 2.0}, {0: 2.0}) == "+0 % (0 of 1)"


def test_the_spread_is_that_of_a_sample():
    assert mean_and_spread([1.0, 3.0, 5.0], 2) == "3.00 ± 2.00"
    assert mean_and_spread([1.0], 1) == "1.0"
    assert mean_and_spread([], 1) == "-"


def test_another_setting_is_refused_by_name_and_new_keys_count():
    there = {"steps": 5, "old": 1}
    assert different(there, {"steps": 5}) == []
    assert different(there, {"steps": 6, "new": 2}) == ["steps 5 there, 6 now", "new None there, 2 now"]
    check_same(there, {"steps": 5}, "row", 0)
    with pytest.raises(ConfigError, match=r'"row", seed 3, was computed with other settings \(steps 5 there'):
        check_same(there, {"steps": 6}, "row", 3)


def test_nested_settings_get_one_key_each():
    assert flat({"a": {"b": {"c": 1}, "d": None}, "e": [2]}) == {"a.b.c": 1, "a.d": None, "e": [2]}


def test_two_tables_share_a_page(tmp_path):
    page = tmp_path / "page.md"
    write_between(page, "one", ("<!-- a -->", "<!-- /a -->"), "Title")
    write_between(page, "two", ("<!-- b -->", "<!-- /b -->"), "Other title", "More")
    write_between(page, "three", ("<!-- a -->", "<!-- /a -->"), "Title")
    text = page.read_text()
    assert text.startswith("# Title\n")
    assert "Other title" not in text
    assert [text.count(word) for word in ("one", "two", "three", "## Ablations", "## More")] == [
        0,
        1,
        1,
        1,
        1,
    ]


def test_the_peak_is_counted_anew():
    block = bytearray(200 * 2**20)
    high = peak_megabytes()
    assert high > 200
    del block
    forget_peak()
    assert peak_megabytes() < high - 150
    assert resident_megabytes() <= peak_megabytes()
    block = bytearray(200 * 2**20)
    held = resident_megabytes()
    del block
    assert resident_megabytes() < held - 150


def grid_in(folder):
    """Two rows, of which the second has a cell of seed 0."""
    names = {("a", 0): "first", ("b", 0): "second", ("a", 1): "first"}
    paths = {(name, seed): folder / name / f"seed{seed}.json" for name, seed in names}
    paths["b", 0].parent.mkdir()
    paths["b", 0].write_text(json.dumps({"asked": {"data": "digits", "rates": [1, 2]}, "value": 3}))
    return Grid(names, paths, lambda key: {"data": "digits", "rates": (1, 2)} if key[0] == "b" else {})


def test_a_grid_knows_what_is_there_and_what_is_missing(tmp_path):
    grid = grid_in(tmp_path)
    assert grid.missing() == [("a", 0), ("a", 1)]
    assert grid.missing(["second"]) == []
    assert grid.missing(["first"]) == [("a", 0), ("a", 1)]
    assert grid.finished() == {("b", 0): {"asked": {"data": "digits", "rates": [1, 2]}, "value": 3}}
    grid.check()
    other = Grid(grid.names, grid.paths, lambda key: {"data": "mnist"})
    with pytest.raises(ConfigError, match=r'"second", seed 0, .* \(data digits there, mnist now\)'):
        other.check()


def told(number, command):
    return number, command, os.getpid()


def test_work_is_told_who_started_it():
    here = spread(told, [(1,), (2,)], 1)
    assert [number for number, _, _ in here] == [1, 2]
    assert {started for _, (started, _), _ in here} == {os.getpid()}
    assert {ran for _, _, ran in here} == {os.getpid()}


def test_tables_are_printed_and_kept_and_a_broken_page_is_an_error(tmp_path, capsys):
    grid, page = grid_in(tmp_path), tmp_path / "page.md"
    markers = ("<!-- a -->", "<!-- /a -->")
    assert publish(grid, lambda cells: f"{len(cells)} cell", str(page), markers, "Title") == 0
    assert capsys.readouterr().out == "\n1 cell\n"
    assert "<!-- a -->\n1 cell\n<!-- /a -->\n" in page.read_text()
    page.write_text("<!-- a -->")
    assert publish(grid, lambda cells: "text", str(page), markers, "Title") == 2
    assert "error: " in capsys.readouterr().err
    assert publish(grid, lambda cells: "text", "", markers, "Title") == 0
    grid.paths["b", 0].unlink()
    assert publish(grid, lambda cells: "text", "", markers, "Title") == 2
    assert "no finished cells" in capsys.readouterr().err
