"""`fewgen plan` on the command line."""

import json

import pytest

from fewgen.cli.main import main


def run(capsys, *words):
    capsys.readouterr()
    code = main(["plan", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_plan_is_a_table_with_what_it_assumes(capsys):
    words = ["--accuracy", 0.87, "--between-sd", 0.05, "--queries", 75, "--half-width", 0.01]
    code, out, _ = run(capsys, *words)
    assert code == 0
    assert "episodes                 156" in out
    assert "sd between episodes      0.05" in out
    code, out, _ = run(capsys, *words, "--json")
    assert code == 0
    assert json.loads(out)["answer"] == {"episodes": 156}


def test_draws_for_a_gain(capsys):
    code, out, _ = run(capsys, "--gain", 0.01, "--sd", 0.01)
    assert code == 0
    assert "gain of 1 point " in out
    assert "draws           10" in out
    assert "5 draws would see only 1.68 points" in out


def test_accuracies_from_a_file(capsys, tmp_path):
    file = tmp_path / "r.json"
    for content in ([0.7, 0.8, 0.9, 0.8], {"accuracies": [0.7, 0.8, 0.9, 0.8], "seed": 1}):
        file.write_text(json.dumps(content))
        code, out, _ = run(capsys, "--accuracies", file, "--queries", 75, "--half-width", "0.02", "--json")
        assert code == 0
        found = json.loads(out)
        assert found["answer"]["mean accuracy"] == pytest.approx(0.8)
        assert found["assumed"]["accuracies"] == "4 measured, 75 queries each"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "JSON"),
        ("3", "must hold a list"),
        ('{"accuracy": [0.5]}', 'no key "accuracies"'),
        ('{"accuracies": {"a": 1}}', "must hold a list"),
        ("[0.5]", "at least two"),
        ("[]", "at least two"),
        ("[0.5, true]", "entry 2 is True"),
        ('[0.5, "0.6"]', "entry 2 is '0.6'"),
        ("[0.5, null]", "entry 2 is None"),
        ("[81.5, 79.0]", "divide percentages by 100"),
        ("[0.5, NaN]", "nan"),
    ],
)
def test_bad_files_of_accuracies(capsys, tmp_path, content, message):
    file = tmp_path / "r.json"
    file.write_text(content)
    code, _, err = run(capsys, "--accuracies", file, "--queries", 75, "--half-width", "0.02")
    assert code == 2
    assert err.startswith("error: ")
    assert message in err


def test_a_target_out_of_reach_names_what_limits_it(capsys):
    words = ["--accuracy", 0.87, "--between-sd", 0.05, "--episodes", 50, "--half-width", 0.01]
    code, _, err = run(capsys, *words)
    assert code == 2
    assert "the differences between episodes alone give 1.42 points. Take at least 99 episodes" in err
    code, _, err = run(capsys, "--accuracies", "no.json", "--queries", 3)
    assert code == 2
    assert '"no.json" does not exist' in err
