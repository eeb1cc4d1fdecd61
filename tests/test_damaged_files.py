"""Files that were edited by hand, cut or flipped, and hostile flags: a sentence and 2, never a traceback."""

import json

import pytest

from benchmarks import fuzz

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
        name: problem
        for name, data in fuzz.damages(work.folder / subject.file, PER_FILE)
        if (problem := work.try_file(subject, data))
    }
    assert found == {}


def test_drawn_damages_and_flags_get_a_sentence(work):
    assert fuzz.search(work, QUICK, 300) == ""


# ------------------------------------------------------------------------------- the helper itself


def test_damages_reach_every_key_with_every_value(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"a": {"b": [1, 2]}, "c": None}))
    found = dict(fuzz.damages(file))
    assert len(found) == 5 * (len(fuzz.VALUES) + 1) + 4
    assert json.loads(found["a.b.0 is null"]) == {"a": {"b": [None, 2]}, "c": None}
    assert json.loads(found["a.b is gone"]) == {"a": {}, "c": None}
    assert len(found["c is 5,000 digits"]) > 5000
    assert len(list(fuzz.damages(file, 7))) == 7


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
