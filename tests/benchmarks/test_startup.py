import sys

import pytest
from benchmarks.__main__ import NAMES
from benchmarks.startup import LABELS, RUNS, commands, main, table, timed

from benchmarks import startup


def test_table_has_medians_and_the_fastest():
    lines = table({"help": [(3.0, 2.5), (1.0, 0.5), (2.0, 1.5)]})
    assert lines[-1] == "| `fewgen --help` | 2.00 | 1.00 | 1.50 |"


def test_every_command_has_a_label_and_its_inputs_exist(tmp_path):
    assert commands(tmp_path).keys() == LABELS.keys()
    for words in commands(tmp_path).values():
        for word in words:
            if word.startswith(str(RUNS)):
                assert startup.Path(word).exists()
    assert "startup" in NAMES


def test_a_command_that_fails_is_an_error(monkeypatch, capsys, tmp_path):
    with pytest.raises(RuntimeError, match="ended with 3: oh"):
        timed([sys.executable, "-c", "import sys; print('oh', file=sys.stderr); sys.exit(3)"], {}, 60)
    seconds, cpu = timed([sys.executable, "-c", "sum(range(10**6))"], {}, 60)
    assert seconds > 0
    assert cpu > 0
    monkeypatch.setattr(startup, "commands", lambda work: {"help": [sys.executable, "-c", "1 / 0"]})
    assert main(["--only", "help", "--repeats", "1"]) == 2
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert main(["--repeats", "0"]) == 2


def test_a_short_run_names_commit_and_hardware(capsys):
    assert main(["--only", "python", "--repeats", "1"]) == 0
    out = capsys.readouterr().out
    assert "| `python -c pass` |" in out
    assert "Commit " in out
    assert "cores" in out
