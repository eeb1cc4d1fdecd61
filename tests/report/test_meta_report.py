"""The section "New classes" of a meta-trained run: figure, table, curve, card, and what may go wrong."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import shutil
from html import unescape
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import fewgen
from fewgen.data import ImageSet, load_images
from fewgen.errors import DataError
from fewgen.evaluation import wilson_interval
from fewgen.report import render_card, render_report, write_report
from fewgen.report.adaptation import look_table
from fewgen.report.new_classes import NewClassesView, last_curves, shots_picture
from fewgen.report.page import environment
from fewgen.runs import findings as measuring
from fewgen.runs.adaptation import N_NEW, SHOWN, Look
from fewgen.runs.findings import collect, measure_run
from fewgen.runs.new_classes import (
    Judge,
    NewClasses,
    choose_classes,
    judge_images,
    make_judge,
    measure_new_classes,
    split_novel,
)
from fewgen.runs.run import Run

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HOSTILE = tuple(f'<script>"{word}"</script>&|`' for word in WORDS)
TASKS = {
    "steps": 2,
    "n_way": 3,
    "n_shot": 2,
    "n_query": 2,
    "tasks_per_step": 1,
    "adapt_steps": 2,
    "curve": (0, 1, 3),
    "validation_tasks": 2,
}


def _train(out, data, meta="fomaml", **more):
    settings = {"class_split": "6/1/3", "shots": 12, "text": "onehot", "report": False, **more}
    model = {"image": {"backbone": "mlp"}}
    return fewgen.train(
        "cada_vqvae",
        data=data,
        meta=meta,
        tasks=TASKS if meta else None,
        out=out,
        steps_scale=0.002,
        progress=False,
        model=model,
        **settings,
    )


@pytest.fixture(scope="module")
def digits():
    return load_images("digits", size=12)


@pytest.fixture(scope="module")
def hostile(digits):
    return dataclasses.replace(digits, class_names=HOSTILE, name="given")


@pytest.fixture(scope="module", autouse=True)
def _no_evaluation():
    """Leave out the evidence, which has tests of its own and takes longer than all of these."""

    def none(*_):
        raise RuntimeError("left out")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "_evaluated", none)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory, hostile):
    """Return a run of images given in Python, with its report."""
    return _train(tmp_path_factory.mktemp("meta") / "run", hostile, report=True)


@pytest.fixture(scope="module")
def worded(tmp_path_factory):
    """Return a run that can read its images again, with vectors of words; the control of meta-training."""
    folder = tmp_path_factory.mktemp("worded")
    vectors = torch.randn(len(WORDS), 8, generator=torch.Generator().manual_seed(0)).tolist()
    rows = (f"{w} {' '.join(f'{x:.4f}' for x in v)}" for w, v in zip(WORDS, vectors, strict=True))
    (folder / "words.txt").write_text("\n".join(rows) + "\n")
    text = {"text": "glove", "text_path": str(folder / "words.txt")}
    return _train(folder / "run", "digits", "none", size=12, **text)


def _section(run, title="New classes"):
    html = (run.path / "report.html").read_text(encoding="utf-8")
    assert f"<h2>{title}</h2>" in html
    return html.split(f"<h2>{title}</h2>")[1].split("<h2>")[0]


def _rows(html):
    cells = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", html)]
    return [[unescape(cell) for cell in row] for row in cells]


def _copy(run, to):
    shutil.copytree(run.path, to)
    return Run(to)


def _split(run):
    return json.loads((run.path / "split.json").read_text())


def _save_split(run, split):
    (run.path / "split.json").write_text(json.dumps(split))


# ---------------------------------------------------------------------------------------- the whole section


def test_the_report_of_a_meta_trained_run_shows_its_novel_classes(run):
    html = _section(run)
    novel = _split(run)["classes"]["novel"]
    assert len(novel) == 3
    assert 'alt="new classes after more and more images"' in html
    assert 'alt="loss over the number of updates"' in html
    assert "could not be" not in html
    head, *rows = _rows(html.split("<h3>")[0])
    assert head == [
        "after",
        "read right",
        *(f"read as {name}" for name in novel),
        "loss on other images",
        "seconds",
    ]
    assert [row[0] for row in rows] == [
        "the word alone",
        "1 image",
        "3 images",
        "5 images",
        "10 images",
        "30 images",
        "other real images",
    ]
    assert all(len(row) == len(head) for row in rows)
    assert all(re.fullmatch(r"\d+% \(\d+% to \d+%\)", cell) for row in rows for cell in row[1:-2])
    assert int(rows[-1][1].split("%")[0]) >= 90, "the judge reads real images of the new classes"
    assert all(float(row[-2]) > 0 for row in rows[:-1])
    assert "learned together in 2 updates, learning rate 0.003, parameters: all" in html
    assert "come from an arbitrary vector and say nothing about the class" in html


def test_class_names_are_text_in_page_and_card(run):
    html = (run.path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html
    novel = _split(run)["classes"]["novel"]
    assert {f"read as {name}" for name in novel} <= set(_rows(_section(run))[0])
    (line,) = _card_lines(run)
    assert "<script" not in line.replace("\\<", "")
    assert all(name.split('"')[1] in line for name in novel)


def _card_lines(run):
    card = (run.path / "README.md").read_text(encoding="utf-8")
    return [line for line in card.splitlines() if line.startswith("- New classes:")]


def test_the_card_has_one_line(run):
    (line,) = _card_lines(run)
    assert "meta-training fomaml. After 5 images of each of" in line
    share = _rows(_section(run))[4][1]
    assert f"{share} of {3 * N_NEW} draws" in line
    assert "by the words alone" not in line, "arbitrary vectors are not words"


def test_words_with_meaning_and_images_read_again(worded):
    before = {name: value.clone() for name, value in worded.method.state_dict().items()}
    write_report(measure_run(worded, *worded.images()))
    assert all(torch.equal(value, before[name]) for name, value in worded.method.state_dict().items())
    assert worded.method.spec.class_names == worded.class_names
    html = _section(worded)
    assert "could not be" not in html
    assert "30 images" in html
    assert "carry no meaning" not in html
    (line,) = _card_lines(worded)
    assert "meta-training none." in line
    assert "by the words alone" in line


def test_the_same_run_gives_the_same_figures(run, hostile):
    train, held_out = run.images(source=hostile)
    others = functools.partial(run.other_images, source=hostile, with_base=True)
    _ = run.method
    state = torch.get_rng_state()
    found = measure_new_classes(run, train, held_out, others)
    assert torch.equal(torch.get_rng_state(), state)
    rows = _rows(_section(run))[1:]
    assert [look.shots for look in found.looks] == [0, 1, 3, 5, 10, 30]
    assert [f"{look.query_loss:.4g}" for look in found.looks] == [row[-2] for row in rows[:6]]
    assert [f"{look.overall().value:.0%}" for look in found.looks] == [row[1].split()[0] for row in rows[:6]]


# -------------------------------------------------------------------------------------- what may go wrong


def test_a_missing_source_is_told_in_its_place(run, hostile, tmp_path):
    copy = _copy(run, tmp_path / "run")
    write_report(measure_run(copy, *copy.images(source=hostile)))
    html = (copy.path / "report.html").read_text(encoding="utf-8")
    section = _section(copy)
    assert "The new classes could not be measured: &#34;" in section
    assert "DataError" not in section
    assert "was trained on images given in Python" in section
    assert 'alt="loss over the number of updates"' in section, "what the log knows is shown all the same"
    assert html.count("could not be") == 2  # the evidence is left out in these tests
    assert "not measured. " in _card_lines(copy)[0]
    assert "DataError" not in _card_lines(copy)[0]


def test_a_fault_while_adapting_does_not_cost_the_report(run, hostile, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("<boom>")

    copy = _copy(run, tmp_path / "run")
    monkeypatch.setattr("fewgen.runs.adapting.adapted", broken)
    others = copy.other_images(source=hostile, with_base=True)
    write_report(measure_run(copy, *copy.images(source=hostile), None, others))
    assert "RuntimeError: &lt;boom&gt;" in _section(copy)
    assert _section(copy, "New images")


def test_a_run_that_keeps_no_class_says_so_and_reads_no_image(run, hostile, tmp_path):
    copy = _copy(run, tmp_path / "run")
    split = _split(copy)
    split["classes"]["novel"] = []
    _save_split(copy, split)

    def unused():
        raise AssertionError("no image is needed")

    train, held_out = copy.images(source=hostile)
    assert measure_new_classes(copy, train, held_out, unused) is None
    write_report(measure_run(copy, train, held_out, None, unused))
    assert "No class was kept from this run" in _section(copy)
    assert "more and more images" not in _section(copy)
    assert _card_lines(copy) == []


def test_a_run_without_meta_training_has_no_such_section(tmp_path, digits):
    plain = _train(tmp_path / "plain", digits, None, class_split="all", report=True)
    assert "New classes" not in (plain.path / "report.html").read_text(encoding="utf-8")
    assert _card_lines(plain) == []


def test_a_damaged_split_costs_the_section_only(run, hostile, tmp_path):
    copy = _copy(run, tmp_path / "run")
    train, held_out = copy.images(source=hostile)
    _save_split(copy, {**_split(copy), "classes": 3})
    write_report(measure_run(copy, train, held_out, None, {}))
    assert "is damaged" in _section(copy)


# ---------------------------------------------------------------------------------- images of other classes


def test_other_images_are_those_of_the_other_classes(worded, digits):
    split = _split(worded)["classes"]
    found = worded.other_images()
    assert list(found) == ["val", "novel"]
    for group, images in found.items():
        expected = digits.select_classes(split[group])
        assert images.class_names == tuple(split[group])
        assert torch.equal(images.images, expected.images)
        assert torch.equal(images.labels, expected.labels)
    base = worded.other_images(with_base=True)["base"]
    assert base.class_names == worded.class_names
    assert len(base) + sum(map(len, found.values())) == len(digits)
    assert worded.class_groups() == {name: tuple(names) for name, names in split.items()}


def test_other_images_of_another_source_are_refused(run, worded, hostile, digits):
    with pytest.raises(DataError, match="given in Python"):
        run.other_images()
    assert len(run.other_images(source=hostile)["novel"]) > 300
    with pytest.raises(DataError, match="There is no class"):
        run.other_images(source=digits)
    changed = dataclasses.replace(digits, images=255 - digits.images)
    with pytest.raises(DataError, match="are not those"):
        worded.other_images(source=changed)
    with pytest.raises(DataError, match="fewer images now"):
        worded.other_images(source=digits.subset(range(60)))


def test_a_split_of_before_class_splits_has_no_other_classes(run, hostile, tmp_path):
    copy = _copy(run, tmp_path / "run")
    split = _split(copy)
    del split["classes"]
    _save_split(copy, split)
    assert copy.other_images(source=hostile) == {}
    assert list(copy.other_images(source=hostile, with_base=True)) == ["base"]


# ------------------------------------------------------------------------------------------------ the draw


def _numbered(counts, height=4):
    """Return images of which each is its own number, so that they can be told apart."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    pixels = torch.arange(len(labels))[:, None, None, None].expand(-1, 3, height, 4)
    digits = torch.stack([pixels[:, 0] % 256, pixels[:, 1] // 256, 0 * pixels[:, 2]], dim=1)
    return ImageSet(digits.to(torch.uint8), labels, tuple(f"c{i}" for i in range(len(counts))))


def _numbers(images):
    return (images.images[:, 0, 0, 0].int() + 256 * images.images[:, 1, 0, 0].int()).tolist()


@pytest.mark.parametrize(
    ("fewest", "shots", "n_query"),
    [(1, 1, 0), (2, 1, 1), (5, 3, 2), (20, 10, 10), (39, 10, 19), (49, 10, 20), (50, 30, 20), (90, 30, 20)],
)
def test_some_images_are_kept_to_measure(fewest, shots, n_query):
    images = _numbered([fewest, fewest + 7])
    support, query = split_novel(images, 3)
    assert support.counts().tolist() == [shots, shots]
    assert query.counts().tolist() == [n_query, n_query]
    assert not set(_numbers(support)) & set(_numbers(query))
    again = split_novel(images, 3)[0]
    assert _numbers(again) == _numbers(support)


def test_classes_with_enough_images_come_first():
    assert choose_classes(_numbered([60, 70, 80])) == ["c0", "c1", "c2"]
    assert choose_classes(_numbered([50, 1, 60, 60, 60, 60, 90])) == ["c0", "c2", "c3", "c4", "c5"]
    assert choose_classes(_numbered([50, 1, 2, 60, 60])) == ["c0", "c1", "c2", "c3", "c4"]


def test_the_judge_is_tried_on_images_that_it_did_not_learn_from():
    images = _numbered([1, 4, 5, 300, 900])
    learned, tried = judge_images(images)
    assert learned.counts().tolist() == [1, 4, 4, 240, 500]
    assert tried.counts().tolist() == [0, 0, 1, 60, 100]
    assert not set(_numbers(learned)) & set(_numbers(tried))
    assert sorted(_numbers(tried.subset(tried.labels == 4))) != list(range(310, 410)), "drawn, not the first"


def test_the_judge_speaks_of_classes_as_the_model_numbers_them(digits):
    names = ("nine", "two", "seven")
    judge = make_judge(digits, ["two", "seven"], names)
    assert judge.n_classes == 10
    assert judge.overall.value > 0.95
    assert set(judge.shown) == {"two", "seven"}
    read = judge.read(digits.images)
    place = torch.tensor([names.index(n) if n in names else -1 for n in digits.class_names])
    assert float((read == place[digits.labels]).double().mean()) > 0.95
    noise = torch.randint(0, 256, (200, 1, 12, 12), generator=torch.Generator().manual_seed(0))
    shuffled = dataclasses.replace(
        digits, labels=digits.labels[torch.randperm(len(digits), generator=torch.Generator().manual_seed(1))]
    )
    assert len(judge.read(noise.to(torch.uint8))) == 200
    blind = make_judge(shuffled, ["two", "seven"], names)
    assert blind.overall.value < 0.25, "labels without sense make a judge without sense, and it says so"


# --------------------------------------------------------------------------------------------- the pieces


def _found(n=2, shots=(0, 1, 5), value=10):
    """Return a finding whose pictures are plain: class c has grey 10 c + row."""
    support = ImageSet(
        torch.cat([torch.full((5, 1, 8, 8), 100 + 10 * c, dtype=torch.uint8) for c in range(n)]),
        torch.arange(n).repeat_interleave(5),
        tuple(f"class {c}" for c in range(n)),
    )
    looks = []
    for row, k in enumerate(shots):
        drawn = torch.cat(
            [torch.full((SHOWN, 1, 8, 8), value * c + row, dtype=torch.uint8) for c in range(n)]
        )
        read = {name: wilson_interval(16 * row + c, N_NEW) for c, name in enumerate(support.class_names)}
        looks.append(Look(k, drawn, read, 1.5, 0.25))
    judge = Judge(lambda x: torch.zeros(len(x), dtype=torch.int64), 3, 77, None, {})
    recipe = SimpleNamespace(steps=7, part="heads", optimizer=SimpleNamespace(lr=0.5))
    return NewClasses(n, support, 20, looks, judge, recipe, True)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_figure_has_a_row_per_number_of_images_and_the_classes_side_by_side(n):
    found = _found(n)
    pixels = np.asarray(shots_picture(found))[:, :, 0]
    cell, top = 56 + 2, 20
    assert pixels.shape[0] == top + 4 * cell + 2
    left = pixels.shape[1] - 2 - n * 5 * cell
    assert left > 0
    for row in range(4):
        for column in range(5 * n):
            y, x = top + 2 + row * cell, left + 2 + column * cell
            inside = pixels[y : y + 56, x : x + 56]
            c = column // 5
            assert (inside == (100 + 10 * c if row == 0 else 10 * c + row - 1)).all()
    lines = [int((pixels[:, x] < 60).all()) for x in range(left + 1, pixels.shape[1], 1)]
    dark = pixels[:top, left + 2 :] < 128
    assert dark.any(), "names stand above"
    edges = [left + 2 + block * 5 * cell - 1 for block in range(1, n)]
    assert all((pixels[:, x] < 60).all() for x in edges)
    assert sum(lines) == 2 * (n - 1)


def test_shares_of_all_classes_are_pooled():
    found = _found(2)
    look = found.looks[-1]
    assert look.overall() == wilson_interval(32 + 33, 2 * N_NEW)
    more = ("x", "a", "b", "c", "-", "-")
    head, rows = look_table(found.looks, found.support.class_names, True, [more])
    assert head == ("after", "read right", "read as class 0", "read as class 1", *head[-2:])
    assert rows[2][1].startswith("51%")
    assert rows[-1][0] == "x"
    assert "read right" not in look_table(found.looks, found.support.class_names)[0]
    assert "read right" not in look_table(_found(1).looks, ("class 0",), True)[0]


def test_without_meta_training_nothing_is_shown():
    findings = SimpleNamespace(run=SimpleNamespace(info=SimpleNamespace(extra={})), new_classes=None)
    parts = environment().get_template("new_classes.html.jinja").module
    assert parts.content(NewClassesView(findings), "").strip() == ""


def test_the_last_curves_of_the_log_are_taken():
    def line(kind, step, **values):
        return {"kind": kind, "stage": "meta", "step": step, **values}

    lines = [
        line("held_out", 5, novel_loss_after_0=9.0),
        line(
            "held_out",
            9,
            novel_loss_after_10=1.0,
            novel_loss_after_2=2.0,
            novel_loss_after_0=3.0,
            val_loss_after_0=float("nan"),
            val_loss_after_2=4,
            val_loss_after_10=None,
            novel_spread_after_10=0.5,
            novel_loss_after_x=7.0,
        ),
        line("held_out", 12, image=1.0),
        line("train", 13, novel_loss_after_0=8.0),
    ]
    found = last_curves(lines)
    assert (found.stage, found.step) == ("meta", 9)
    assert found.losses == {"val": [(2, 4.0)], "novel": [(0, 3.0), (2, 2.0), (10, 1.0)]}
    assert list(found.losses) == ["val", "novel"]
    assert found.spreads == {"novel": (10, 0.5)}
    assert last_curves(lines[2:]) is None
    assert last_curves([]) is None


def test_the_curve_says_where_it_was_measured(run):
    html = _section(run).split("<h3>Updates and loss</h3>")[1]
    head, *rows = _rows(html)
    assert head == ["loss after", "0", "1", "3", "spread over tasks"]
    assert [row[0] for row in rows] == ["validation classes", "novel classes"]
    lines = [json.loads(text) for text in (run.path / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "held_out" and "novel_loss_after_3" in line][-1]
    assert rows[1][3] == f"{last['novel_loss_after_3']:.4g}"
    assert f"after 3 updates differs by {last['novel_spread_after_3']:.3g}" in html
    assert f"Measured at step {last['step']} of the stage meta" in html


def test_page_and_card_can_be_made_without_measuring(run, hostile):
    findings = collect(run, *run.images(source=hostile))
    html = render_report(findings)
    assert "<h2>New classes</h2>" in html
    assert "more and more images" not in html
    assert "No class was kept" not in html
    assert "- New classes" not in render_card(findings)
