import sys

import pytest
from benchmarks.__main__ import NAMES
from benchmarks.time import CASES, Row, children_seconds, first_line, main, page, table

from benchmarks import time
from fewgen.cli.main import main as fewgen


def row(**more):
    given = {"case": "fake", "minutes": 1.0, "first_line": 4.0, "promised": 100, "steps": 80, "seconds": 81.0}
    return Row(**{**given, "said": "1 minute allows about 100 of 900 steps.", **more})


def test_a_limit_is_kept_within_a_tenth_and_15_seconds():
    assert row().kept
    assert not row(seconds=81.1).kept
    assert not row(error="error: oh").kept


def test_a_dry_run_is_right_within_half_and_15_seconds():
    assert row().right
    for wrong in ({"steps": 66}, {"steps": 151}, {"first_line": 15.1}, {"promised": None}, {"steps": 0}):
        assert not row(**wrong).right


def test_the_page_names_command_rows_and_counts():
    found = page([row(), row(seconds=100.0, steps=10)], "python -m benchmarks time")
    assert "Command: `python -m benchmarks time` (commit " in found
    assert "1 of 2 commands ended within 110%" in found
    assert "1 of 2 dry runs" in found
    assert "| `fake` | 1 | 4 | 100 | 80 | 81 of 60 | yes | yes |" in found
    assert "- `fake`: 1 minute allows about 100 of 900 steps." in found
    assert table([row()]).splitlines()[0].count("|") == 9


def test_a_process_is_timed_to_its_first_line_and_by_its_computing():
    words = [sys.executable, "-c", "print('one', flush=True); sum(range(10**6)); print('two')"]
    before = children_seconds()
    seconds, line = first_line(words)
    assert line == "one"
    assert seconds > 0
    assert children_seconds() > before


@pytest.mark.parametrize("case", [case for case, _ in CASES])
def test_every_case_is_a_command_that_resolves(case, tmp_path, capsys):
    words = [word for word in case.split() if word != "--meta" or "cada" in case]
    assert fewgen(["train", *words, "--minutes", "1", "--out", str(tmp_path / "a"), "--print_config"]) == 0
    assert "minutes: 1" in capsys.readouterr().out


def test_a_case_is_measured_from_the_dry_run_to_the_page(tmp_path, monkeypatch, capsys):
    """The command is a stand-in that answers as `fewgen train` does."""
    script = tmp_path / "train.py"
    script.write_text(
        "import sys\n"
        "if 'none' in sys.argv: sys.exit('error: there is none')\n"
        "dry = '--dry-run' in sys.argv\n"
        "print('0.6 minutes allow about 1,200 of 2,500 steps' if dry else 'Trained 1,000 steps in 0 min 9 s')\n"
    )
    monkeypatch.setattr(time, "COMMAND", (sys.executable, str(script)))
    monkeypatch.setattr(time, "CASES", (("good", 1.0), ("good --clock cpu", 2.0), ("none", 1.0)))
    assert main(["--scale", "0.6", "--only", "0", "1", "--out", str(tmp_path / "time.md")]) == 0
    written, out = (tmp_path / "time.md").read_text(), capsys.readouterr().out
    assert out.strip() in written
    assert "| `good` | 0.6 | 0 | 1,200 | 1,000 | 0 of 36 | yes | yes |" in out
    assert "| `good --clock cpu` | 1.2 |" in out
    assert main(["--only", "2"]) == 1
    assert "error: there is none | no |" in capsys.readouterr().out
    assert "time" in NAMES
