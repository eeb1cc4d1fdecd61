"""Cells that refuse other settings, and changes that are taken seed by seed."""

import pytest
from benchmarks.ablation import (
    check_same,
    different,
    flat,
    forget_peak,
    mean_and_spread,
    paired_change,
    peak_megabytes,
    write_between,
)

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
