"""Files that were edited by hand, cut or flipped, and hostile flags: a sentence and 2, never a traceback."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import fuzz
from fewgen.cli.main import load_command

PER_FILE = 8
"""Damages of each file within the suite; `python -m benchmarks fuzz` takes all."""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    with fuzz.Work(tmp_path_factory.mktemp("fuzz")) as found:
        yield found


QUICK = [subject for subject in fuzz.SUBJECTS if subject.quick]


@pytest.mark.parametrize("subject", fuzz.SUBJECTS, ids=lambda subject: subject.file)
def test_an_undamaged_file_is_read(work, subject):
    assert work.try_file(subject, (work.folder / subject.file).read_bytes()) == ""


@pytest.mark.parametrize("subject", QUICK, ids=lambda subject: subject.file)
def test_a_file_that_was_edited_by_hand_gets_a_sentence(work, subject):
    found = {
        damage.name: problem
        for damage in fuzz.damages(work.folder / subject.file, PER_FILE)
        if (problem := work.try_file(subject, damage.make()))
    }
    assert found == {}


def test_drawn_damages_and_flags_get_a_sentence(work):
    assert fuzz.search(work, QUICK, 300) == ""


READERS = [
    name for name in fuzz.BASES if any(a.keyword == "value_range" for a in load_command(name).arguments)
]


@pytest.mark.parametrize("command", READERS)
def test_a_range_of_values_is_taken_by_every_command_that_reads_images(work, command):
    more = ["--data", "data.npz"] if command == "reconstruct" else []
    assert work.try_flags([command, *fuzz.BASES[command].split(), *more, "--value-range", "0", "200"]) == ""
    assert work.said[0] == 0, work.said


def test_a_run_whose_images_had_a_range_is_evaluated(work):
    train = fuzz.TRAIN.replace("--shots 6", "--shots 6 --value-range 0 200") + " --out ranged"
    assert work.try_flags(train.split()) == ""
    for line in (train, fuzz.IMAGES_OF.format("ranged")):
        assert (fuzz.problem_of(line.split(), said=(said := [])), said[0]) == ("", 0)


# ------------------------------------------------------------------------------- the helper itself


def test_damages_reach_every_key_with_every_value(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"a": {"b": [1, 2]}, "c": None}))
    found = {damage.name: damage.make() for damage in fuzz.damages(file)}
    assert len(found) == 5 * (len(fuzz.VALUES) - len(fuzz.NEVER_READ)) + 2 * len(fuzz.NEVER_READ) + 4
    assert json.loads(found["a.b.0 is null"]) == {"a": {"b": [None, 2]}, "c": None}
    assert json.loads(found["a.b is gone"]) == {"a": {}, "c": None}
    assert len(found["a is 5,000 digits"]) > 5000
    assert b"\\ud800" in found["a.b.0 is half of a character"]
    assert len(fuzz.damages(file, 7)) == 7


def test_entries_that_are_alike_share_the_values():
    one, two = {"x": 1, "y": {"z": [2]}}, {"x": 5, "y": {"z": [6, 7]}}
    found = list(fuzz.values_at({"a": one, "b": two, "c": {"x": 1.5}, "d": two}))
    for place in [("x",), ("y",), ("y", "z"), ("y", "z", 0)]:
        names = [{name for way, name, _ in found if way == (key, *place)} for key in "abd"]
        assert names[0] >= set(fuzz.VALUES) - set(fuzz.NEVER_READ)
        assert len(names[1]) == len(names[2]) == fuzz.PER_TWIN
    shared = {name for way, name, _ in found if way[:1] in [("b",), ("d",)]}
    assert shared == set(fuzz.VALUES) - set(fuzz.NEVER_READ)
    assert sum(way == ("c", "x") for way, _, _ in found) == len(fuzz.VALUES) - len(fuzz.NEVER_READ)


def test_what_nobody_reads_is_not_gone_through(tmp_path, monkeypatch):
    def reads_a(argv):
        value = json.loads(Path("f.json").read_text())
        if not isinstance(value, dict) or value.get("a") != {"b": [1]}:
            print("error: a", file=sys.stderr)
            return 2
        return 0

    def make(folder):
        (folder / "f.json").write_text(json.dumps({"a": {"b": [1]}, "c": {"d": {"e": 1}}}))

    monkeypatch.setattr(fuzz, "fewgen", reads_a)
    monkeypatch.setattr(fuzz, "make_work", make)
    with fuzz.Work(tmp_path) as work:
        names = [name for name, problem in work.sweep(fuzz.Subject("f.json", ("x",))) if not problem]
    tried = {name.split(" is ")[0] for name in names if " is " in name}
    assert tried == {"the whole", "a", "a.b", "a.b.0", "c"}
    assert sum(name.startswith("c is") for name in names) == fuzz.PROBES
    assert sum(name.startswith("a.b is") for name in names) > fuzz.PROBES


def test_what_is_no_sentence_is_found(monkeypatch):
    def fails(argv):
        raise KeyError("x")

    monkeypatch.setattr(fuzz, "fewgen", fails)
    assert "KeyError" in fuzz.problem_of(["train"])
    monkeypatch.setattr(fuzz, "fewgen", lambda argv: 1)
    assert "exit code 1" in fuzz.problem_of(["train"])
    monkeypatch.setattr(fuzz, "fewgen", lambda argv: 2)
    assert "no error line" in fuzz.problem_of(["train"])
    monkeypatch.setattr(fuzz, "fewgen", lambda argv: 0)
    assert fuzz.problem_of(["train"]) == ""
