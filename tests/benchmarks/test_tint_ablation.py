"""The ablation of TINT: rows that exist, cells that are shared and refused, figures by hand, a tiny whole."""

import dataclasses
import json
import math

import pytest
import torch
from benchmarks.tint import theorem1
from benchmarks.tint.cells import asked, cell_name, wanted_cells
from benchmarks.tint.images import to_supports
from benchmarks.tint.making import made, synthesis
from benchmarks.tint.models import base_folder, check_base, pipe_of, prepared_folder
from benchmarks.tint.questions import GROUPS, TABLES
from benchmarks.tint.settings import DATA, DEFAULT, IMAGES, Row, Settings, of_row
from benchmarks.tint.tables import provenance, render
from benchmarks.tint.tasks import images_of, task_of
from benchmarks.tint.theorem1 import theorem_figures
from benchmarks.tint_ablation import MARKERS, chosen_tables, main, without_tasks

from benchmarks import tint_ablation
from fewgen.config.schema import from_dict
from fewgen.data.imageset import ImageSet
from fewgen.diffusion.settings import SpecialiseConfig
from fewgen.distillation.competitors import COMPETITORS
from fewgen.distillation.knowledge import DistillConfig
from fewgen.distillation.protocol import Prepared, Question, run_protocol, some_base
from fewgen.distillation.summary import PARTS
from fewgen.distillation.synthesis import KINDS
from fewgen.errors import ConfigError

USUAL = Settings(out="nowhere")
USUAL_QUICK = Settings(out="nowhere", quick=True)
QUICK = ("--quick", "--jobs", "1")
ROWS = [(table, row) for table in TABLES for row in table.rows]


def named(key):
    return next(table for table in TABLES if table.key == key)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Every group of tables, a few tiny cells of each: (folder, what was printed, page)."""
    folder = tmp_path_factory.mktemp("whole")
    out, page = folder / "out", folder / "tint.md"
    page.write_text(f"# Mine\n\nBefore.\n\n{MARKERS[0]}\nold\n{MARKERS[1]}\n\nAfter.\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWGEN_CACHE_DIR", str(folder / "cache"))
        # One row of each table is enough here, and the default, to which students are compared.
        patch.setattr(tint_ablation, "TABLES", tuple(few(table) for table in TABLES))
        assert main([*QUICK, "--episodes", "2", "--out", str(out), "--docs", str(page)]) == 0
        yield out, page


def few(table):
    """What shares most with the other tables."""
    return (
        table
        if table.key in ("images", "students", "many_supports")
        else dataclasses.replace(table, rows=table.rows[-1:])
    )


def cells_in(out):
    return {path: json.loads(path.read_text()) for path in sorted((out / "cells").rglob("*.json"))}


# ------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize(("table", "row"), ROWS, ids=[f"{t.key}-{r.name}" for t, r in ROWS])
def test_each_row_has_settings_that_exist(table, row):
    assert table.group in GROUPS
    assert table.shows.endswith(".")
    if table.group == "theorem1":
        return
    for data in table.data:
        own = of_row(data, row, USUAL)
        tint, training = from_dict(SpecialiseConfig, own["tint"]), from_dict(DistillConfig, own["training"])
        assert training.flip == (data not in ("omniglot", "digits"))
        if row.name.startswith("w = "):
            assert row.name.split(",")[0] == f"w = {tint.guidance_scale:g}"
    if table.group == "students":
        assert row.what in COMPETITORS
    if table.group == "images":
        assert row.what in {*KINDS, "object", "real"}


def test_names_are_different_and_the_questions_are_those_of_the_method():
    for table in TABLES:
        assert len({row.name for row in table.rows}) == len(table.rows)
    assert len({table.key for table in TABLES}) == len(TABLES)
    assert GROUPS == ("inversion", "images", "students", "theorem1", "cost")
    full_t = of_row("omniglot", named("students").rows[4], USUAL)["tint"]["textual"]["t_min"]
    assert (full_t, of_row("omniglot", DEFAULT, USUAL)["tint"]["textual"]["t_min"]) == (0, 250)


def test_equal_settings_are_one_cell_and_others_are_not():
    def folder(key, name, data="omniglot", settings=USUAL):
        table = named(key)
        row = next(row for row in table.rows if row.name == name)
        return cell_name(data, table.work, row, settings)

    default = folder("students", "tint")
    same = [("student_alpha", "alpha = 1"), ("amount", "200"), ("labels", "strong teacher")]
    assert {folder(key, name) for key, name in [*same, ("student_steps", "TINT, 1000 steps")]} == {default}
    assert folder("students", "none (no synthetic images)") == folder("amount", "0")
    assert folder("null_text", "w = 7.5, 10 x 0.03") == folder("dequant", "dequant_t = 0")
    assert folder("images", "TINT (with null texts)") == folder("alpha", "alpha = 1")
    for table in TABLES:
        names = {cell_name("omniglot", table.work, row, USUAL) for row in table.rows}
        assert len(names) == len(table.rows)
    assert folder("students", "tint", "digits") != default
    assert folder("students", "tint", settings=Settings(out="nowhere", part="novel")) != default
    # What all rows share does not choose the folder: it is refused there.
    changed = Settings(out="nowhere", changes='{"training": {"steps": 7}}')
    assert folder("students", "tint", settings=changed) == default
    assert asked("omniglot", "students", DEFAULT, changed)["training.steps"] == 7


def test_every_row_comes_once_before_any_row_comes_twice():
    wanted = wanted_cells(TABLES, 2, 3, USUAL)
    seeds = [cell.seed for cell in wanted.values()]
    assert seeds == sorted(seeds)
    counted = {}
    for cell in wanted.values():
        counted.setdefault((cell.data, cell.group, cell.row.name), []).append(cell.seed)
    assert counted["omniglot", "students", "tint"] == [0, 1, 2]
    assert counted["omniglot", "images", "DA-Fusion"] == [0, 1]
    assert counted["omniglot", "memory", "25 supports"] == [0]
    assert counted["simulation", "theorem1", "a = 0.6, s = 0.1, P = 10, Q = 1"] == [0]


# ------------------------------------------------------------------------------------------------ figures


@pytest.mark.parametrize(("a", "s", "p", "q"), [(0.87, 0.05, 20, 75), (0.6, 0.1, 5, 1), (0.6, 0.1, 10, 600)])
def test_theorem_1_agrees_with_its_simulation(a, s, p, q):
    row = Row("", settings={"a": a, "s": s, "p": p, "q": q})
    found = theorem_figures(row, 0, 3000)
    assert found["predicted"] == pytest.approx((a * (1 - a) / q + (1 - 1 / q) * s**2) / p)
    assert abs(found["deviation"]) < 3.5
    assert found["ratio"] == pytest.approx(1, abs=0.12)
    if q == 1:
        assert found["predicted"] == pytest.approx(a * (1 - a) / p)
        assert found["s2_estimate"] is None
    else:
        assert found["s2_estimate"] == pytest.approx(s**2, rel=0.25)
    assert theorem_figures(row, 0, 3000) == found
    assert theorem_figures(row, 1, 3000)["simulated"] != found["simulated"]


def test_a_wrong_theorem_would_be_seen(monkeypatch):
    """Without the differences between episodes the prediction is far outside the simulation's error."""
    monkeypatch.setattr(theorem1, "variance_of_mean", lambda a, s, p, q: a * (1 - a) / q / p)
    row = Row("", settings={"a": 0.87, "s": 0.05, "p": 20, "q": 75})
    assert theorem_figures(row, 0, 3000)["deviation"] > 10


def test_published_anchors():
    for q, variance in ((75, 6.62e-6), (25, 1.154e-5)):
        row = Row("", settings={"a": 0.87, "s": 0.05, "p": 600, "q": q})
        assert theorem_figures(row, 0, 50)["predicted"] == pytest.approx(variance, rel=1e-3)


def test_distances_to_supports_by_hand():
    def grey(values, labels):
        pixels = torch.tensor(values, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4)
        return ImageSet(pixels.clone(), torch.tensor(labels), ("a", "b"))

    supports = grey([0, 255, 102], [0, 0, 1])
    assert to_supports(supports, supports) == 0.0
    # To black 0.4, to white 0.2; the other class's 102 is nearer to 102, and does not count.
    made = grey([51, 229, 102], [0, 0, 0])
    expected = (51 + 26 + 102) / 127.5 / 3
    assert to_supports(made, supports) == pytest.approx(expected)


# ------------------------------------------------------------------------------------------------- tables


def cell(accuracy, **figures):
    return {"figures": {"accuracy": accuracy, "train_seconds": 2.0, **figures}}


def test_accuracies_and_paired_differences_by_hand():
    table = named("students")
    found = {"tint": [0.8, 0.7, 0.9], "none (no synthetic images)": [0.7, 0.6, 0.7]}
    by_name = {row.name: row for row in table.rows}
    cells = {
        ("omniglot", cell_name("omniglot", "students", by_name[name], USUAL), seed): cell(accuracy)
        for name, values in found.items()
        for seed, accuracy in enumerate(values)
    }
    lines = render(table, "omniglot", cells, USUAL).splitlines()
    assert lines[0] == f"### {table.asks}: omniglot, validation classes"
    assert lines[2] == table.shows
    # t(2) = 4.303: 0.1 / sqrt(3) * 4.303 = 0.2484; differences -0.1, -0.1, -0.2: sd 0.0577, half 0.1434.
    assert next(line for line in lines if line.startswith("| tint |")) == (
        "| tint | 3 | 80.0 ± 24.8 | default | - | 2 ± 0 |"
    )
    assert next(line for line in lines if line.startswith("| none")) == (
        "| none (no synthetic images) | 3 | 66.7 ± 14.3 | -13.3 ± 14.3 | - | 2 ± 0 |"
    )
    assert (
        next(line for line in lines if line.startswith("| DA-Fusion")) == "| DA-Fusion | 0 | - | - | - | - |"
    )


def test_differences_are_taken_over_the_tasks_that_both_have():
    table = named("labels")
    weak = next(row for row in table.rows if row.name == "weak teacher")
    cells = {
        ("digits", cell_name("digits", "students", DEFAULT, USUAL), seed): cell(a)
        for seed, a in ((0, 0.5), (1, 0.9))
    }
    cells["digits", cell_name("digits", "students", weak, USUAL), 1] = cell(0.8)
    lines = render(table, "digits", cells, USUAL).splitlines()
    assert "| weak teacher | 1 | 80.0 | -10.0 | - | 2 |" in lines
    assert any(line.startswith("| strong teacher | 2 | 70.0 ± ") and "| default |" in line for line in lines)


def test_differences_of_steps_are_to_as_many_steps():
    table = named("student_steps")
    accuracies = {
        "TINT, 300 steps": [0.5, 0.6],
        "none, 300 steps": [0.3, 0.5],
        "TINT, 3000 steps": [0.9, 0.9],
        "none, 3000 steps": [0.8, 0.8],
    }
    cells = {
        ("digits", cell_name("digits", "students", row, USUAL), seed): cell(accuracy)
        for row in table.rows
        for seed, accuracy in enumerate(accuracies.get(row.name, []))
    }
    # The default, which has 1000 steps, says nothing about them.
    cells["digits", cell_name("digits", "students", DEFAULT, USUAL), 0] = cell(0.1)
    lines = [line.split(" | ") for line in render(table, "digits", cells, USUAL).splitlines()]
    assert lines[4][3] == "paired difference, points"
    shown = {line[0].removeprefix("| "): line[3] for line in lines[6:]}
    assert shown["TINT, 300 steps"] == shown["TINT, 1000 steps"] == "reference"
    # -0.2 and -0.1: mean -0.15, sd 0.0707, t(1) = 12.706, half width 0.635.
    assert shown["none, 300 steps"] == "-15.0 ± 63.5"
    assert shown["none, 3000 steps"] == "-10.0 ± 0.0"
    assert shown["none, 1000 steps"] == "-"
    assert "TINT after as many steps" in table.shows
    # Without the row that it is compared with, a row has no difference.
    alone = dataclasses.replace(table, rows=table.rows[1:2])
    assert "| none, 300 steps | 2 | 40.0 ± 127.1 | - |" in render(alone, "digits", cells, USUAL)


def test_tables_that_take_hours_are_asked_for_by_name():
    many = named("many_supports")
    assert many.by_name

    def keys(*arguments):
        return {table.key for table in chosen_tables(tint_ablation._arguments(list(arguments)))}

    assert keys() == {table.key for table in TABLES} - {"many_supports"}
    assert keys("--only", "students") == {t.key for t in TABLES if t.group == "students"} - {"many_supports"}
    assert keys("--only", "many_supports", "memory") == {"many_supports", "memory"}
    assert keys("--only", "many_supports", "--data", "omniglot") == set()
    rows = {row.name: asked("digits", "students", row, USUAL) for row in many.rows}
    assert {about["shots"] for about in rows.values()} == {100}
    assert asked("digits", "students", DEFAULT, USUAL)["shots"] == 5


def test_more_supports_leave_classes_and_queries_as_they_are():
    few, many = task_of("digits", 1, USUAL_QUICK), task_of("digits", 1, USUAL_QUICK, 4)
    assert (few.shots, many.shots) == (2, 4)
    assert many.episode.class_names == few.episode.class_names
    assert torch.equal(many.episode.query.images, few.episode.query.images)
    assert len(many.episode.support) == 2 * len(few.episode.support)


def test_a_class_alone_makes_no_students(monkeypatch):
    options = tint_ablation._arguments(["--data", "digits", "--only", "students", "images"])
    monkeypatch.setitem(DATA["digits"], "class_split", "6/1/3")
    images_of.cache_clear()
    tables, notes = without_tasks(chosen_tables(options), USUAL)
    images_of.cache_clear()
    assert {table.group for table in tables} == {"images"}
    assert len(notes) == 1
    assert "--part novel" in notes[0]


def test_bases_are_named_by_data_set(capsys):
    assert tint_ablation._arguments(["--data", "digits", "--base", "x/y"]).base == {"digits": "x/y"}
    both = ["--base", "omniglot=a", "fashion_mnist=b=c"]
    assert tint_ablation._arguments(both).base == {"omniglot": "a", "fashion_mnist": "b=c"}
    with pytest.raises(SystemExit):
        tint_ablation._arguments(["--base", "runs/x"])
    assert "DATA=RUN" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------- whole


def test_a_quick_run_answers_every_question(whole):
    out, page = whole
    found = cells_in(out)
    groups = {one["asked"]["question"] for one in found.values()}
    assert groups == {"inversion", "images", "students", "theorem1", "cost", "memory"}
    for path, one in found.items():
        if one["row"] == "other real images":
            assert one["figures"]["images"] > 0
        for key, value in one["figures"].items():
            assert value is None or math.isfinite(value), (path, key)
        assert one["environment"]["threads"] == 1
        if one["asked"]["question"] == "memory":
            assert one["cpu_seconds"] > 0.5  # of its own process, libraries included
            assert "cpu_seconds" not in one["figures"]
    by_row = {(one["asked"]["question"], one["row"]): one["figures"] for one in found.values()}
    assert (
        by_row["inversion", "w = 7.5, 30 x 0.03"]["error"]
        < by_row["inversion", "w = 7.5, 30 x 0.03"]["plain_error"]
    )
    assert 0 <= by_row["students", "tint"]["accuracy"] <= 1
    cost = by_row["cost", "5 supports of each class"]
    assert cost["images"] == 3 * 6
    assert cost["total"] == pytest.approx(sum(cost[part] for part in PARTS))
    assert cost["total"] * cost["images"] == pytest.approx(60 * cost["minutes"], rel=0.2, abs=0.5)
    assert by_row["images", "other real images"]["frechet"] < by_row["images", "alpha = 1"]["frechet"]
    text = page.read_text()
    assert text.startswith("# Mine\n\nBefore.\n\n" + MARKERS[0])
    assert text.endswith(MARKERS[1] + "\n\nAfter.\n")
    assert "old" not in text.split()
    for table in TABLES:
        assert (f"### {table.asks}" in text) != table.by_name
        assert (table.shows in text) != table.by_name
    assert "Commit " in text
    assert str(out) not in text


def test_the_same_command_computes_nothing_again_and_a_lost_cell_alone(whole, capsys):
    out, page = whole
    before = {path: path.stat().st_mtime_ns for path in cells_in(out)}
    text = page.read_text()
    command = [*QUICK, "--episodes", "2", "--out", str(out), "--docs", str(page)]
    assert main([*command, "--table-only"]) == 0
    assert page.read_text() == text
    lost = next(
        path
        for path, one in cells_in(out).items()
        if one["row"] == "hard labels" and "accuracy" in one["figures"]
    )
    old = json.loads(lost.read_text())["figures"]
    lost.unlink()
    capsys.readouterr()
    assert main(command) == 0
    assert "1 of " in capsys.readouterr().out
    again = json.loads(lost.read_text())["figures"]
    assert {k: v for k, v in again.items() if "seconds" not in k} == {
        k: v for k, v in old.items() if "seconds" not in k
    }
    assert {path: path.stat().st_mtime_ns for path in before if path != lost} == {
        path: time for path, time in before.items() if path != lost
    }


def test_other_settings_are_refused(whole, capsys):
    out, _ = whole
    command = [*QUICK, "--only", "students", "--out", str(out), "--table-only"]
    assert main([*command, "--student-steps", "4"]) == 2
    assert "training.steps 3 there, 4 now" in capsys.readouterr().err
    assert main([*command, "--per-class", "9"]) == 2
    assert "per_class 6 there, 9 now" in capsys.readouterr().err
    path = next(path for path, one in cells_in(out).items() if one["row"] == "tint" and one["seed"] == 0)
    text = path.read_text()
    path.write_text(text.replace(json.loads(text)["asked"]["base"], "another model"))
    try:
        assert main(command) == 2
        assert "base another model there" in capsys.readouterr().err
    finally:
        path.write_text(text)


def test_a_student_is_that_of_the_comparison(whole, tmp_path):
    """The cell of a competitor equals what `fewgen distill` computes, images and all, from the same models."""
    out, _ = whole
    settings = Settings(out=str(out), quick=True)
    images, own = images_of("digits", settings), of_row("digits", DEFAULT, settings)
    task, models = task_of("digits", 0, settings), prepared_folder("digits", settings)
    question = Question(
        n_way=3,
        n_shot=2,
        n_query=task.n_query,
        per_class=own["per_class"],
        tint=from_dict(SpecialiseConfig, own["tint"]),
        training=from_dict(DistillConfig, own["training"]),
    )
    prepared = Prepared(
        some_base(images.base, own["base_images"], 0),
        images.part,
        str(models / "strong.safetensors"),
        str(models / "student.safetensors"),
        pipe_of("digits", settings),
    )
    names = ("tint", "teacher")
    compared = run_protocol(question, prepared, tmp_path, names, 1, progress=False)[0]
    for what in names:
        row = next(row for row in named("students").rows if row.what == what)
        path = out / "cells" / cell_name("digits", "students", row, settings) / "task0.json"
        one = json.loads(path.read_text())
        assert one["figures"]["accuracy"] == compared["accuracy"][what]
        assert one["classes"] == compared["classes"]


def test_no_null_texts_are_searched_where_nobody_reads_them(whole, tmp_path):
    """The word over all times is its row's alone: its images are the same without the search."""
    out, _ = whole
    settings = Settings(
        out=str(tmp_path), quick=True, base=(("digits", str(base_folder("digits", Settings(out=str(out))))),)
    )
    task = task_of("digits", 0, settings)
    row = next(row for row in named("images").rows if row.name == "textual inversion, all t")
    own = of_row("digits", row, settings)
    images, _, folder = made(task, "textual_inversion", own)
    assert "null-text inversion" not in json.loads((folder / "specialised.json").read_text())
    searched = synthesis(task, own["tint"], tmp_path / "whole", own["per_class"], 1.0)
    assert torch.equal(images.images, searched.images("textual_inversion").images)
    assert searched.seconds()["null-text inversion"] > 0
    # Images of the default's words are made beside TINT ones, which read null texts.
    _, _, folder = made(task, "textual_inversion", of_row("digits", DEFAULT, settings))
    assert "null-text inversion" in json.loads((folder / "specialised.json").read_text())


def test_the_table_of_many_supports_is_computed(whole, capsys):
    out, _ = whole
    assert main([*QUICK, "--only", "many_supports", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    rows = [line for line in text.splitlines() if line.startswith(("| alpha = ", "| no synthetic"))]
    assert [line.split(" | ")[1] for line in rows] == ["2", "2", "2"]
    assert rows[-1].split(" | ")[3] == "reference"
    own = [one for one in cells_in(out).values() if one["asked"].get("shots") == 4]
    assert len(own) == 6
    assert {one["row"] for one in own} == {"no synthetic images", "alpha = 0.75", "alpha = 1"}


def test_the_judge_and_the_model_have_not_seen_the_classes_of_a_task(whole, monkeypatch):
    out, _ = whole
    settings = Settings(out=str(out), quick=True)
    images = images_of("digits", settings)
    assert not set(images.part.class_names) & set(images.judge_train.class_names)
    assert len(images.judge_train.class_names) == 7
    check_base("digits", settings)
    task = task_of("digits", 0, settings)
    seen = [
        {x.numpy().tobytes() for x in part.images}
        for part in (task.episode.support, task.episode.query, task.rest)
    ]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    # A model that has learned validation classes of another split.
    monkeypatch.setitem(DATA["digits"], "class_split", "1/6/3")
    images_of.cache_clear()
    try:
        other = Settings(out=str(out), quick=True, base=(("digits", str(base_folder("digits", settings))),))
        with pytest.raises(ConfigError, match="has learned classes of the tasks"):
            check_base("digits", other)
    finally:
        images_of.cache_clear()


def test_provenance_names_seeds_models_and_judges(whole):
    out, _ = whole
    found = {
        ("digits", str(path.parent), one["seed"]): one
        for path, one in cells_in(out).items()
        if "data" in one["asked"]
    }
    text = provenance(found, Settings(out=str(out), quick=True))
    model = next(one["asked"]["base"] for one in found.values() if "base" in one["asked"])
    assert f"digits {model}" in text
    assert "students 0-1" in text
    assert (
        "Unless a row says otherwise: 6 synthetic images of each class; students conv4 of 4 channels, 3 steps "
        "of 12 images; teacher resnet12 of 4 channels, a classifier for 2 steps, then 2 tasks (weak: conv4 of 8 "
        "channels, 30 tasks)." in text
    )
    images_only = {key: one for key, one in found.items() if one["asked"]["question"] == "images"}
    text = provenance(images_only, Settings(out=str(out), quick=True))
    assert "6 synthetic images of each class. Judges" in text
    assert "steps" not in text.split("Command")[0]
    assert "Student interval" not in text
    assert "images of all other classes" in text
    assert set(IMAGES) == set(DATA)
