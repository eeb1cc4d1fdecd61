"""Runs of released versions draw the images, and are judged, as on the day they were stored.

Verdicts may change with their rules: `evaluation.json` holds what the version of the run said, with the figures that
every later version must find again, and `evaluation-NEXT.json` beside it all that the next version says
(FEWGEN_UPDATE_GOLDEN=1 writes it anew, until that version is released).

The runs lie in tests/golden/runs/VERSION/NAME; tests/golden/make_runs.py says what is in them and makes those
of a new release. With FEWGEN_GOLDEN_EXACT=1 images must be equal bit for bit, which holds on one machine with
one version of torch.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.golden import make_runs
from tests.golden.make_runs import EVALUATION, EXPECTED, GOLDEN, IMAGES, REQUESTS, RUNS, digest

import fewgen
from fewgen.cli.main import main

FOLDERS = sorted(folder for folder in RUNS.glob("*/*") if folder.is_dir())
SHARE = 0.001
"""Of all pixels of a run, those that may differ by one grey level: rounding, on another processor."""

RELATIVE, ABSOLUTE = 1e-6, 1e-8
LATEST = "evaluation-0.2.0.json"
"""Beside what the version of the run said of it, `EVALUATION`: what the next version says."""

SEARCHED = ("copy_share", "copy_test_p_value", "c_t", "authenticity")
"""Figures that the wider search for copies of 0.2.0 changed: turns by 90 degrees and scales."""

VOLATILE = {("fewgen",), ("protocol", "extractor", "torch"), ("protocol", "extractor", "train_seconds")}
"""Entries of an evaluation that say with what and how fast it was made."""


def image_problem(found: Mapping[str, np.ndarray], stored: Mapping[str, np.ndarray]) -> str:
    """Return how images differ from the stored ones by more than rounding; "" if they do not."""
    if found.keys() != stored.keys():
        return f"answered {sorted(found)}, stored {sorted(stored)}"
    pixels = off = 0
    for key, images in stored.items():
        if found[key].shape != images.shape or found[key].dtype != images.dtype:
            return f"{key}: {found[key].dtype} {found[key].shape}, stored {images.dtype} {images.shape}"
        distance = np.abs(found[key].astype(int) - images.astype(int))
        if distance.max(initial=0) > 1:
            return f"{key}: {int((distance > 1).sum())} pixels are off by up to {distance.max()} grey levels"
        pixels, off = pixels + distance.size, off + int(distance.sum())
    return f"{off} of {pixels} pixels are off by one grey level" if off > SHARE * pixels else ""


def json_problem(found: Any, stored: Any, where: tuple[str, ...] = ()) -> str:
    """Return the first place where two JSON values differ by more than rounding; "" if there is none."""
    if where in VOLATILE:
        return ""
    shown = ".".join(where) or "the whole"
    if isinstance(stored, dict) and isinstance(found, dict):
        if found.keys() != stored.keys():
            return f"{shown}: keys {sorted(found.keys() ^ stored.keys())} are in one of them only"
        pairs = ((json_problem(found[key], stored[key], (*where, key))) for key in stored)
        return next(filter(None, pairs), "")
    if isinstance(stored, list) and isinstance(found, list):
        if len(found) != len(stored):
            return f"{shown}: {len(found)} entries, stored {len(stored)}"
        pairs = (
            json_problem(a, b, (*where, str(i))) for i, (a, b) in enumerate(zip(found, stored, strict=True))
        )
        return next(filter(None, pairs), "")
    if isinstance(stored, float) and isinstance(found, float):
        near = math.isclose(found, stored, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
        return "" if near else f"{shown}: {found!r}, stored {stored!r}"
    same = type(found) is type(stored) and found == stored
    return "" if same else f"{shown}: {found!r}, stored {stored!r}"


@pytest.fixture
def among_runs(request, monkeypatch, tmp_path):
    """Return a folder, with its version's folder as the current one and the words of training at hand."""
    folder = request.param
    monkeypatch.setenv("FEWGEN_DATA_DIR", str(GOLDEN))
    monkeypatch.setenv("FEWGEN_CACHE_DIR", str(tmp_path / "cache"))  # no judge of an older version
    monkeypatch.chdir(folder.parent)
    return folder


def folders(needed: str) -> Any:
    found = [folder for folder in FOLDERS if (folder / EXPECTED / needed).is_file()]
    ids = [f"{folder.parent.name}-{folder.name}" for folder in found]
    return pytest.mark.parametrize("among_runs", found, ids=ids, indirect=True)


def asked_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / EXPECTED / REQUESTS).read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------------ the runs


def test_no_folder_is_missing_or_incomplete():
    assert FOLDERS  # without folders, the tests below would be skipped
    assert len([folder for folder in FOLDERS if folder.parent.name == "0.1.0"]) == 13
    for folder in FOLDERS:
        asked = asked_of(folder)
        assert asked["requests"].keys() == asked["sha256"].keys(), folder
        assert asked["requests"] or asked["evaluate"], folder
        assert (folder / EXPECTED / IMAGES).is_file() == bool(asked["requests"]), folder
        assert (folder / EXPECTED / EVALUATION).is_file() == bool(asked["evaluate"]), folder


@folders(IMAGES)
def test_images_are_as_stored(among_runs):
    run, asked = fewgen.load_run(among_runs.name, device="cpu"), asked_of(among_runs)
    found = {key: make_runs.answer(run, request) for key, request in asked["requests"].items()}
    with np.load(among_runs / EXPECTED / IMAGES, allow_pickle=False) as file:
        stored = {key: file[key] for key in file.files}
    assert {key: digest(images) for key, images in stored.items()} == asked["sha256"]
    assert image_problem(found, stored) == ""
    if os.environ.get("FEWGEN_GOLDEN_EXACT"):
        assert {key: digest(images) for key, images in found.items()} == asked["sha256"]


@folders(EVALUATION)
def test_evaluation_is_as_stored(among_runs, tmp_path):
    expected = among_runs / EXPECTED
    stored = json.loads((expected / EVALUATION).read_text(encoding="utf-8"))
    found = make_runs.judge(among_runs.name, asked_of(among_runs)["evaluate"], tmp_path / "found.json")
    if os.environ.get("FEWGEN_UPDATE_GOLDEN"):
        (expected / LATEST).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    latest = json.loads((expected / LATEST).read_text(encoding="utf-8"))
    # First what a reader meets: of a changed figure, this says at once whether it matters.
    said = {name: (verdict["answer"], verdict["why"]) for name, verdict in found["verdicts"].items()}
    assert said == {name: (verdict["answer"], verdict["why"]) for name, verdict in latest["verdicts"].items()}
    assert json_problem(found, latest) == ""
    # What a rule makes of them may change, not the figures themselves.
    assert json_problem(kept(found, stored), kept(stored, stored)) == ""


def kept(record: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an evaluation of a newer version must have in common with a stored one."""
    return {
        "figures": {name: figure for name, figure in record["figures"].items() if name not in SEARCHED},
        "controls": {
            control: {name: record["controls"][control].get(name) for name in figures if name not in SEARCHED}
            for control, figures in stored["controls"].items()
        },
        "protocol": {name: record["protocol"].get(name) for name in stored["protocol"] if name != "copying"},
        "answered": sorted(record["verdicts"]),
    }


@pytest.mark.parametrize("name", ["cada_vqvae", "tint"])
def test_one_line_says_that_a_run_of_0_1_0_has_no_digest(name, capsys, tmp_path):
    run, out = str(RUNS / "0.1.0" / name), tmp_path / "images.npz"
    assert main(["generate", run, "-n", "2", "--out", str(out)]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "digest" in line]
    model = Path(run) / "model.safetensors"
    assert said == [
        f'warning: An earlier release wrote "{model}" without a digest: damage to it cannot be noticed.'
    ]
    assert out.is_file()


def test_no_path_of_a_machine_is_stored():
    for file in [*RUNS.rglob("*"), *(GOLDEN / "glove").iterdir()]:
        if file.is_file():
            content = file.read_bytes()
            for place in (b"/tmp/", b"/home/", b"/root/", b"/Users/", b"/work/", str(GOLDEN).encode()):
                assert place not in content, (file, place)


# ------------------------------------------------------------------- negative controls of the comparison


def image_of(levels: int, share: float, n_pixels: int = 10_000) -> dict[str, np.ndarray]:
    pixels = np.full(n_pixels, 100, np.uint8)
    pixels[: round(share * n_pixels)] += levels
    return {"a": pixels.reshape(-1, 1, 10, 10)}


@pytest.mark.parametrize(
    ("levels", "share", "passes"),
    [(0, 0.0, True), (1, 0.001, True), (1, 0.002, False), (2, 0.0001, False), (-2 % 256, 0.0001, False)],
)
def test_images_may_differ_by_rounding_only(levels, share, passes):
    assert (image_problem(image_of(levels, share), image_of(0, 0.0)) == "") is passes


def test_other_shapes_types_and_answers_are_found():
    stored = image_of(0, 0.0)
    assert "stored" in image_problem({"a": stored["a"][:-1]}, stored)
    assert "stored" in image_problem({"a": stored["a"].astype(np.int16)}, stored)
    assert "stored" in image_problem({}, stored)
    assert "stored" in image_problem({**stored, "b": stored["a"]}, stored)


STORED = {"a": [1.0, {"b": "no", "c": None}], "n": 3, "protocol": {"extractor": {"torch": "2.0"}}}


@pytest.mark.parametrize(
    ("found", "where"),
    [
        (STORED, ""),
        ({**STORED, "a": [1.0 + 1e-8, {"b": "no", "c": None}]}, ""),
        ({**STORED, "protocol": {"extractor": {"torch": "2.1"}}}, ""),
        ({**STORED, "a": [1.0 + 1e-5, {"b": "no", "c": None}]}, "a.0: "),
        ({**STORED, "a": [1.0, {"b": "yes", "c": None}]}, "a.1.b: "),
        ({**STORED, "a": [1.0, {"b": "no"}]}, "a.1: keys ['c']"),
        ({**STORED, "a": [1.0, {"b": "no", "c": None, "d": 1}]}, "a.1: keys ['d']"),
        ({**STORED, "a": [1.0]}, "a: 1 entries"),
        ({**STORED, "n": 3.0}, "n: "),
        ({**STORED, "n": True}, "n: "),
        ({**STORED, "protocol": {"extractor": {}}}, "protocol.extractor: keys ['torch']"),
    ],
)
def test_evaluations_may_differ_by_rounding_and_version_only(found, where):
    problem = json_problem(found, STORED)
    assert problem.startswith(where)
    assert bool(problem) is bool(where)
