"""The grid: cells are computed once, alike in one process and in several, and failures are told."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.comparison.stand_in import evaluate, evaluate_badly, evaluate_blindly

import fewgen
from fewgen.comparison.benchmarking import BenchmarkRequest, benchmark_request, plan_benchmark, run_benchmark
from fewgen.comparison.candidates import DEFAULT_METHODS, check_spec, folder_name, takes_time
from fewgen.comparison.cells import Settings
from fewgen.comparison.cells import _load_real as load_real_cached
from fewgen.comparison.grid import Grid, plan_grid
from fewgen.comparison.plot import quality_against_copying
from fewgen.comparison.sets import load_real
from fewgen.comparison.summary import HEADINGS, HELD_OUT, markdown, summarise, table_rows
from fewgen.config.call import unwrapped
from fewgen.data import ImageSet, save_images
from fewgen.data.registry import Reading
from fewgen.encoders.classifier import ClassifierFeatures, ClassifierSettings
from fewgen.errors import ConfigError, DataError, FewgenError, OutputError
from fewgen.files import read_json
from fewgen.runs.environment import environment

METHODS = ["copies", "class_pca_gaussian", "fake:default"]


@pytest.fixture(autouse=True)
def _quick_judge(monkeypatch):
    """A judge of two steps: what it sees does not matter here."""
    real = ClassifierFeatures.of.__func__

    def quick(cls, train, test=None, settings=None, **options):
        return real(cls, train, test, ClassifierSettings(steps=2, width=8, dim=4), use_cache=False)

    monkeypatch.setattr(ClassifierFeatures, "of", classmethod(quick))
    # The digits are read once for all tests; a benchmark forgets its images at the end.
    monkeypatch.setattr("fewgen.comparison.cells.forget", lambda: None)


def ask(out, **keywords):
    """Run a small benchmark with the stand-in evaluation."""
    function = keywords.pop("evaluate", evaluate)
    given = {
        "data": "digits", "shots": 5, "methods": METHODS, "budget_minutes": 0.1, "seeds": 2, "n": 30,
        "useful_draws": 0, "size": 8, "progress": False, "out": out,
    }  # fmt: skip
    return run_benchmark(benchmark_request(**given | keywords), function)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A benchmark computed in one process."""
    out = tmp_path_factory.mktemp("benchmark") / "one"
    quick = ClassifierSettings(steps=2, width=8, dim=4)
    real = load_real("digits", Reading(size=8))
    out.mkdir()
    ClassifierFeatures.of(real.training, settings=quick, use_cache=False).save(out / "judge.safetensors")
    result = ask(out)
    assert result.failed == []
    return out


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copied")


def stamps(out):
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in sorted(out.glob("cells/**/*.*"))}


# ---------------------------------------------------------------------------------------------- the grid


def test_every_cell_gets_its_own_training_images_and_all_generators_the_same(finished):
    record = read_json(finished / "benchmark.json")
    assert len(record["cells"]) == 6
    prints = {}
    for cell in record["cells"]:
        prints.setdefault(cell["seed"], set()).add(cell["made"]["train_fingerprint"])
        assert cell["evaluation"]["figures"]["n"] == {
            "value": 30.0, "train": 50, "held_out": 355, "pool": 1442 - 50,
        }  # fmt: skip
    assert [len(own) for own in prints.values()] == [1, 1]
    assert prints[0] != prints[1]
    shares = {name: own["figures"]["copy_share"]["mean"] for name, own in record["summary"].items()}
    assert shares["copies"] == 1.0
    assert shares["class_pca_gaussian"] == shares["fake:default"] == 0.0


def test_the_folder_holds_what_is_promised(finished):
    for spec in METHODS:
        for seed in (0, 1):
            cell = finished / "cells" / folder_name(spec) / f"seed{seed}"
            assert {"images.npz", "made.json", "evaluation.json", "grid.png"} <= set(os.listdir(cell))
    record = read_json(finished / "benchmark.json")
    assert {"command", "commit", "versions", "processor"} <= set(record["environment"])
    assert record["settings"]["shots"] == 5
    assert record["seeds"] == [0, 1]
    table = (finished / "table.md").read_text()
    assert table.splitlines()[0].endswith("| usefulness: gain in points |")
    assert "| copies | 2 |" in table
    assert Image.open(finished / "plot.png").size[0] > 500
    page = (finished / "benchmark.html").read_text()
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("data:image/png") >= 4
    # Fewgen methods are trained on the very images of their seed, at most as long as all others.
    config = (finished / "cells" / "fake-default" / "seed1" / "run" / "config.yaml").read_text()
    assert "data: digits" in config
    assert "seed: 1" in config
    assert "minutes: 0.1" in config


def test_a_finished_benchmark_computes_nothing_and_a_longer_one_only_what_is_new(copied):
    before = stamps(copied)
    again = ask(copied)
    assert stamps(copied) == before
    assert len(again.cells) == 6
    shutil.rmtree(copied / "cells" / "copies" / "seed1")
    more = ask(copied, methods=["copies", "augmented_copies"], seeds=2)
    after = stamps(copied)
    changed = {
        name.split("/")[1] + "/" + name.split("/")[2] for name in after if after[name] != before.get(name)
    }
    assert changed == {"copies/seed1", "augmented_copies/seed0", "augmented_copies/seed1"}
    # What was not asked for now is in the table too, after what was asked for.
    assert [row[0] for row in table_rows(more.summary)] == ["copies", "augmented_copies", "class_pca_gaussian", "fake:default", HELD_OUT]  # fmt: skip


def test_several_processes_compute_the_same(finished, tmp_path):
    out = tmp_path / "two"
    out.mkdir()
    shutil.copy(finished / "judge.safetensors", out)
    result = ask(out, jobs=2)
    assert result.failed == []
    for path in finished.glob("cells/*/seed*/images.npz"):
        with np.load(path) as one, np.load(out / path.relative_to(finished)) as two:
            assert all(np.array_equal(one[key], two[key]) for key in ("images", "labels", "class_names"))
    assert [row[:2] for row in table_rows(result.summary)] == [[name, "2"] for name in [*METHODS, HELD_OUT]]


def test_joblib_chooses_where_cells_run(finished, tmp_path):
    from joblib import parallel_config

    out = tmp_path / "threads"
    out.mkdir()
    shutil.copy(finished / "judge.safetensors", out)
    with parallel_config(backend="threading", n_jobs=2):
        assert plan_benchmark(data="digits", shots=5, methods=METHODS, out=out, size=8).jobs == 2
        assert ask(out, methods=["copies"]).failed == []


def test_a_stopped_cell_goes_on_where_it_was(copied):
    cell = copied / "cells" / "copies" / "seed0"
    (cell / "evaluation.json").unlink()
    before = stamps(copied)
    assert ask(copied).failed == []
    after = stamps(copied)
    assert {name for name in after if after[name] != before.get(name)} == {
        "cells/copies/seed0/evaluation.json"
    }
    # Images without made.json are of a kill in the middle, and are made again.
    (cell / "made.json").unlink()
    (cell / "images.npz").write_bytes(b"half of it")
    assert ask(copied).failed == []


@pytest.mark.parametrize(
    "harm", [lambda data: data[: len(data) // 2], lambda data: data[:300] + b"x" + data[301:]]
)
@pytest.mark.parametrize("finished_cell", [True, False])
def test_damaged_images_of_a_cell_are_made_again(copied, finished, capfd, harm, finished_cell):
    name = Path("cells") / "class_pca_gaussian" / "seed1"
    images = copied / name / "images.npz"
    images.write_bytes(harm(images.read_bytes()))
    if not finished_cell:
        (copied / name / "evaluation.json").unlink()
    else:
        (failed,) = ask(copied, table_only=True).failed
        assert failed["error"] == "images.npz is damaged; without --table-only it is computed again"
        left = ask(copied, methods=["copies"], seeds=1)  # the cell is not asked for, but in the folder
        assert [cell["error"] for cell in left.failed] == ["images.npz is damaged"]
    before = stamps(copied)
    assert ask(copied, progress=True).failed == []
    assert "seed 1] images.npz is damaged; the cell is computed again" in capfd.readouterr().err
    after = stamps(copied)
    assert {Path(path).parent for path in after if after[path] != before.get(path)} == {name}
    with np.load(copied / name / "images.npz") as new, np.load(finished / name / "images.npz") as old:
        assert np.array_equal(new["images"], old["images"])


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("made.json", "Delete its folder to compute it again"),
        ("evaluation.json", "Delete it to measure again"),
    ],
)
def test_a_record_of_a_cell_that_is_cut_says_what_to_do(copied, name, advice):
    file = copied / "cells" / "copies" / "seed1" / name
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2])
    for more in ({}, {"table_only": True}):
        with pytest.raises(DataError, match=rf"copies/seed1/{name}\" is not valid JSON: .* {advice}\."):
            ask(copied, **more)


def test_a_failing_cell_does_not_stop_the_others(finished, tmp_path):
    out = tmp_path / "fails"
    out.mkdir()
    shutil.copy(finished / "judge.safetensors", out)
    methods = ["class_pca_gaussian", "augmented_copies", "copies"]
    result = ask(out, methods=methods, seeds=1, evaluate=evaluate_badly)
    assert [cell["generator"] for cell in result.cells] == ["copies"]
    assert {cell["generator"]: cell["error"] for cell in result.failed} == {
        "class_pca_gaussian": "RuntimeError: a fault nobody thought of",
        "augmented_copies": "too few images for this",
    }
    assert "Failed: augmented_copies, seed 0: too few images for this" in result.table
    reason = out / "cells" / "class_pca_gaussian" / "seed0" / "error.txt"
    assert "evaluate_badly" in reason.read_text()
    only = ask(out, methods=methods, seeds=1, table_only=True)
    assert len(only.failed) == 2
    mended = ask(out, methods=methods, seeds=1)
    assert mended.failed == []
    assert not reason.exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"shots": 6}, "copies, seed0: shots 5 there, 6 now"),
        ({"n": 40}, "n 30 there, 40 now"),
        ({"budget_minutes": 0.5}, "minutes 0.1 there, 0.5 now"),
        ({"useful_draws": 3}, "useful_draws 0 there, 3 now.*--remeasure"),
    ],
)
def test_cells_of_another_question_are_refused(finished, changed, message):
    before = stamps(finished)
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        ask(finished, **changed)
    assert stamps(finished) == before


def test_cells_of_other_judges_are_not_mixed(copied):
    mixed = "(?s)copies, seed0: features classifier there, pixels now.*stay with --features classifier, or .*--remeasure"
    before = stamps(copied)
    with pytest.raises(ConfigError, match=mixed):
        ask(copied, features="pixels")
    # "auto" stays with the judge that is there: nothing is measured.
    assert stamps(copied) == before
    with pytest.raises(ConfigError, match="class_pca_gaussian, seed0: features classifier there, pixels now"):
        ask(copied, features="pixels", remeasure=True, methods=["copies"])
    assert stamps(copied) == before
    result = ask(copied, features="pixels", remeasure=True, evaluate=evaluate_blindly)
    protocols = [cell["evaluation"]["protocol"] for cell in result.cells]
    assert {own["extractor"]["name"] for own in protocols} == {"pixels"}
    assert {own["judge"]["asked"] for own in protocols} == {"pixels"}
    assert "Judge: pixels, 64 features" in result.table
    # A table of what is there does not care which, as long as it is one.
    ask(copied, table_only=True)
    other = copied / "cells" / "copies" / "seed1" / "evaluation.json"
    record = read_json(other)
    record["benchmark"]["settings"]["features"] = "lite0"
    other.write_text(json.dumps(record))
    for more in ({}, {"table_only": True}):
        with pytest.raises(ConfigError, match="(?s)copies, seed1: features lite0 there, pixels now"):
            ask(copied, **more)


def test_cells_of_an_earlier_version_were_measured_by_their_extractor(copied):
    for file in copied.glob("cells/*/seed*/evaluation.json"):
        record = read_json(file)
        del record["benchmark"]["settings"]["features"]
        file.write_text(json.dumps(record))
    assert len(ask(copied).cells) == 6
    with pytest.raises(ConfigError, match="features classifier there, lite0 now"):
        ask(copied, features="lite0")


def test_auto_is_the_rule_of_evaluate(tmp_path, monkeypatch):
    rng = torch.Generator().manual_seed(0)
    coarse = 255 * torch.rand(40, 3, 5, 5, generator=rng)
    pixels = torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 255)
    save_images(ImageSet(pixels.to(torch.uint8), torch.arange(40) % 2, ("a", "b")), tmp_path / "photos.npz")
    monkeypatch.setattr(
        "fewgen.comparison.grid.evaluation_seconds", lambda *_, extractor, **__: {"": extractor.dim}
    )
    plan = plan_benchmark(
        data=tmp_path / "photos.npz", out=tmp_path / "b", shots=4, n=8, seeds=1, methods=["copies"]
    )
    assert plan.grid.settings.features == plan.cells[0].settings.features == "lite0"
    assert "judge       EfficientNet-Lite0 of ImageNet, since these are photographs" in str(plan)
    assert (plan.judge, plan.seconds) == (0, 1280)


def test_other_draws_are_measured_on_the_same_images_if_asked_for(copied):
    before = stamps(copied)
    result = ask(copied, useful_draws=2, remeasure=True)
    after = stamps(copied)
    assert {name.rsplit("/", 1)[1] for name in after if after[name] != before[name]} == {"evaluation.json"}
    assert result.summary["copies"]["usefulness"]["mean"] == pytest.approx(0.015)
    assert (
        result.table.splitlines()[2].split("|")[-2].strip().startswith("+1.5 (-4.9 to +7.9); works like 11")
    )


def test_images_of_other_data_are_noticed(copied):
    made = read_json(copied / "cells" / "copies" / "seed0" / "made.json")
    made["train_fingerprint"] = "0" * 64
    (copied / "cells" / "copies" / "seed0" / "made.json").write_text(json.dumps(made))
    result = ask(copied, useful_draws=0, remeasure=True)
    (failed,) = result.failed
    assert "made from other training images" in failed["error"]


def test_finished_cells_of_a_file_that_has_changed_are_refused(tmp_path):
    def save(seed):
        (tmp_path / "own.npz").unlink(missing_ok=True)
        rng = torch.Generator().manual_seed(seed)
        pixels = torch.randint(0, 256, (24, 1, 8, 8), generator=rng).to(torch.uint8)
        save_images(ImageSet(pixels, torch.arange(24) % 2, ("a", "b")), tmp_path / "own.npz")

    keywords = {"data": tmp_path / "own.npz", "methods": ["copies"], "seeds": 1, "size": None}
    save(0)
    assert ask(tmp_path / "out", **keywords).failed == []
    assert ask(tmp_path / "out", **keywords).failed == []
    shutil.copy(tmp_path / "own.npz", tmp_path / "moved.npz")
    before = stamps(tmp_path / "out")
    assert ask(tmp_path / "out", **{**keywords, "data": tmp_path / "." / "moved.npz"}).failed == []
    assert stamps(tmp_path / "out") == before  # the same images, elsewhere
    with pytest.raises(ConfigError, match=r"(?s)other training images.*copies, seed 0"):
        ask(tmp_path / "out", **{**keywords, "data": "digits", "size": None})
    save(1)
    load_real_cached.cache_clear()
    with pytest.raises(ConfigError, match=r"(?s)other training images.*copies, seed 0"):
        ask(tmp_path / "out", **keywords)
    # Without cells the judge alone tells.
    shutil.rmtree(tmp_path / "out" / "cells")
    with pytest.raises(ConfigError, match="The judge in .* learned from other images"):
        ask(tmp_path / "out", **keywords)


def test_the_table_alone_reads_no_data(finished, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("no image is needed")

    monkeypatch.setattr("fewgen.data.load_images", refuse)
    monkeypatch.setattr("fewgen.comparison.cells.load_images", refuse)
    monkeypatch.setattr("fewgen.comparison.sets.load_real", refuse)
    assert len(ask(finished, table_only=True).cells) == 6


# ------------------------------------------------------------------------------------------------ plans


def test_plan_counts_cells_and_time_and_writes_nothing(tmp_path, finished, monkeypatch):
    asked = []
    monkeypatch.setattr("fewgen.comparison.grid.judge_seconds", lambda real: 40.0)

    def seconds(n, train, n_held_out, *, pool, useful_draws, run, classifier, extractor, held_out):
        assert (extractor, len(held_out)) == (None, n_held_out)
        asked.append((n, len(train), useful_draws, run, classifier))
        return {"figures": 20.0, "verdicts": 10.0}

    monkeypatch.setattr("fewgen.comparison.grid.evaluation_seconds", seconds)
    keywords = {"data": "digits", "shots": 5, "budget_minutes": 2.0, "seeds": 2, "size": 8, "useful_draws": 0}
    plan = plan_benchmark(**keywords, methods=["copies", "conditional_vae"], out=tmp_path / "new")
    assert len(plan.cells) == 4
    assert plan.seconds == pytest.approx(40 + 2 * 120 + 4 * 30)
    assert "judge       a classifier of real images, trained once in about 40 s" in str(plan)
    assert asked == [(3000, 50, 0, False, False)]
    assert "generator   copies: seed 0 to compute, seed 1 to compute" in str(plan)
    assert list(tmp_path.iterdir()) == []
    settings = Settings("digits", 5, 0.1, 30, reading=Reading(size=8), useful_draws=0)
    done = plan_grid(Grid(settings, tuple(METHODS), 2, finished))
    assert (done.seconds, done.judge) == (0, 0)
    assert "judge " not in str(done)
    assert "0 of 6 cells" in str(done)


def test_defaults_name_generators_that_exist():
    for spec in DEFAULT_METHODS:
        check_spec(spec)
    assert [spec for spec in DEFAULT_METHODS if takes_time(spec)] == [
        "conditional_vae", "diffusion", "cada_vqvae:default", "cada_vqvae:hybrid",
    ]  # fmt: skip
    plain = plan_benchmark(data="digits", shots=5, out="no/such/folder")
    assert {cell.spec for cell in plain.cells} == set(DEFAULT_METHODS)


def test_function_and_keywords_agree(monkeypatch):
    parameters = set(inspect.signature(unwrapped(fewgen.benchmark)).parameters) - {"config"}
    names = {field.name for kind in (BenchmarkRequest, Reading) for field in dataclasses.fields(kind)}
    assert parameters == names - {"reading", "split"}
    monkeypatch.setattr("fewgen.comparison.benchmarking.run_benchmark", lambda request: request)
    given = {
        "size": 8,
        "channels": 1,
        "fit": "pad",
        "background": "white",
        "convert": True,
        "value_range": (0, 9),
    }
    given |= {"data": "digits", "out": "o", "shots": 2, "data_dir": "d", "download": True, "seeds": 4}
    request = fewgen.benchmark(**given)
    assert request == benchmark_request(**given)
    assert {**vars(request), **vars(request.reading)}.items() >= given.items()
    with pytest.raises(ConfigError, match='"shot".*Did you mean "shots"'):
        fewgen.benchmark(data="digits", shot=3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"methods": ["copis"]}, 'no generator "copis". Did you mean "copies"'),
        ({"methods": ["cada_vqvae"]}, 'Did you mean "cada_vqvae:default"'),
        ({"methods": ["cada_vqva:default"]}, 'Did you mean "cada_vqvae"'),
        ({"methods": ["cada_vqvae:hybird"]}, 'Did you mean "hybrid"'),
        ({"methods": ["copies", "copies"]}, "names copies twice"),
        ({"methods": []}, "at least one generator"),
        ({"methods": ["run:no/such"]}, 'no run "no/such"'),
        ({"methods": ["file:no.npz"]}, 'no file or folder "no.npz"'),
        ({"methods": ["run:."], "seeds": 2}, "run:.-{seed}"),
        ({"seeds": 0}, "--seeds must be a whole number of at least 1, got 0"),
        ({"seeds": 10**9}, "--seeds 1000000000 of 3 generators make more than 100000 trainings"),
        ({"shots": 0}, "--shots must be"),
        ({"shots": 500}, "500 shots are needed"),
        ({"n": 9}, "at least 1 image for each of 10 classes"),
        ({"budget_minutes": 0}, "--budget-minutes must be above 0"),
        ({"budget_minutes": math.nan}, "--budget-minutes must be above 0"),
        ({"temperature": -1}, "--temperature must be above 0"),
        ({"useful_draws": -1}, "--useful-draws must be"),
        ({"jobs": 0}, "--jobs must be"),
        ({"clock": "walls"}, 'Did you mean "wall"'),
        ({"holdout": 0}, "holdout must be"),
        ({"data": "digit"}, 'Did you mean "digits"'),
    ],
)
def test_mistakes_are_told_before_anything_is_written(wrong, message, tmp_path):
    with pytest.raises(FewgenError) as error:
        ask(tmp_path / "out", **wrong)
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_several_mistakes_are_told_at_once(tmp_path):
    with pytest.raises(ConfigError) as error:
        ask(tmp_path / "out", seeds=0, methods=["copis"], budget_minutes=-1)
    assert "3 problems" in str(error.value)


def test_folders_that_are_not_ours_are_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("mine")
    with pytest.raises(OutputError, match='not a benchmark .it holds "cat.png"'):
        ask(tmp_path / "photos")
    with pytest.raises(OutputError, match="is a file"):
        ask(tmp_path / "photos" / "cat.png")
    with pytest.raises(DataError, match="no finished cell"):
        ask(tmp_path / "new", table_only=True)
    assert (tmp_path / "photos" / "cat.png").read_text() == "mine"


# ------------------------------------------------------------------------------------- images from elsewhere


def stripes(n_per_class, seed=0, size=8):
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (2 * n_per_class, 1, size, size), generator=rng, dtype=torch.uint8)
    return ImageSet(images, torch.arange(2).repeat_interleave(n_per_class), ("a", "b"))


def test_a_file_without_test_part_is_split_the_same_way_for_every_seed(tmp_path):
    save_images(stripes(20), tmp_path / "all.npz")
    fifth, two = load_real(tmp_path / "all.npz"), load_real(tmp_path / "all.npz", holdout=2)
    assert (fifth.held_out.counts().tolist(), fifth.training.counts().tolist()) == ([4, 4], [16, 16])
    assert (two.held_out.counts().tolist(), two.training.counts().tolist()) == ([2, 2], [18, 18])
    for seed in (0, 1):
        train, rest = two.draw(5, seed)
        assert torch.equal(train.images, two.training.shots(5, seed).images)
        assert len(train) + len(rest) == len(two.training)
    assert two.draw(18, 0)[1] is None
    with pytest.raises(DataError, match="needed"):
        two.draw(19, 0)


def test_a_twin_of_a_training_image_is_not_held_out(tmp_path):
    images = stripes(20)
    images.images[1:10] = images.images[0]
    save_images(images, tmp_path / "all.npz")
    real = load_real(tmp_path / "all.npz", holdout=5)
    known = {image.numpy().tobytes() for image in real.training.images}
    assert not any(image.numpy().tobytes() in known for image in real.held_out.images)


def test_a_folder_brings_its_test_part(tmp_path):
    for part, n in (("train", 6), ("test", 3)):
        save_images(stripes(n, seed=n), tmp_path / "data" / part)
    real = load_real(tmp_path / "data")
    assert real.how == "test part"
    assert (len(real.training), len(real.held_out)) == (12, 6)


def test_images_are_read_as_other_commands_read_them(tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(8):
            values = rng.integers(0, 4096, (8, 12)).astype(np.uint16)  # of a camera of 12 bits
            Image.fromarray(values).save(tmp_path / "data" / name / f"{i}.png")
    keywords = {
        "data": tmp_path / "data", "methods": ["copies", "fake:default"], "shots": 4, "n": 8, "seeds": 1, "size": None,
        "holdout": 2,
    }  # fmt: skip
    with pytest.raises(DataError, match="16 bits per channel"):
        ask(tmp_path / "out", **keywords)
    reading = {"value_range": [0, 4095], "fit": "stretch", "size": 8}
    found = ask(tmp_path / "out", **keywords | reading)
    assert found.failed == []
    settings = found.cells[0]["made"]["settings"]
    assert {key: settings[key] for key in ("value_range", "fit", "size")} == reading
    assert not {"convert", "background"} & set(settings)  # as usual, so cells of earlier releases fit
    want = fewgen.load_images(tmp_path / "data", **reading)
    made = fewgen.load_images(found.path / "cells" / "copies" / "seed0" / "images.npz")
    known = {image.numpy().tobytes() for image in want.images}
    assert {image.numpy().tobytes() for image in made.images} <= known
    before = stamps(found.path)
    assert ask(found.path, **keywords | reading | {"value_range": (0.0, 4095.0)}).failed == []
    assert stamps(found.path) == before
    with pytest.raises(ConfigError, match=r"value_range \[0.0, 4095.0\] there, \[0.0, 2000.0\] now"):
        ask(found.path, **keywords | reading | {"value_range": (0, 2000)})
    with pytest.raises(ConfigError, match="value_range must be two numbers"):
        ask(found.path, **keywords | reading | {"value_range": (5, 0)})


def test_methods_learn_without_the_images_set_aside(tmp_path, finished):
    save_images(stripes(20), tmp_path / "all.npz")
    result = ask(tmp_path / "out", data=tmp_path / "all.npz", methods=["fake:default"], holdout=4, size=None)
    assert result.failed == []
    split = read_json(tmp_path / "out" / "cells" / "fake-default" / "seed0" / "run" / "split.json")
    assert max(split["train"]) < 32


def test_images_of_another_program_and_finished_runs(tmp_path):
    save_images(stripes(20), tmp_path / "all.npz")
    swapped = stripes(8, seed=5)
    save_images(ImageSet(swapped.images, swapped.labels, ("b", "a")), tmp_path / "other.npz")
    save_images(ImageSet(swapped.images, swapped.labels, ("a", "c")), tmp_path / "wrong.npz")
    save_images(stripes(8, size=10), tmp_path / "large.npz")
    save_images(stripes(2), tmp_path / "few.npz")
    for seed in (0, 1):
        fewgen.train(
            "fake", data=tmp_path / "all.npz", shots=5, seed=seed, text="onehot", out=tmp_path / f"run-{seed}",
            report=False, progress=False,
        )  # fmt: skip
    methods = [f"file:{tmp_path}/{name}.npz" for name in ("other", "wrong", "large", "few")]
    runs = [f"run:{tmp_path}/run-0", f"run:{tmp_path}/run-1"]
    result = ask(
        tmp_path / "out", data=tmp_path / "all.npz", methods=methods + runs, n=16, seeds=1, size=None
    )
    assert [cell["generator"] for cell in result.cells] == [methods[0], runs[0]]
    errors = {cell["generator"]: cell["error"] for cell in result.failed}
    assert "the classes a, c" in errors[methods[1]]
    assert "(1, 10, 10)" in errors[methods[2]]
    assert "Set --n to at most 4" in errors[methods[3]]
    assert "seed 1 there, 0 here" in errors[runs[1]]
    (images,) = (tmp_path / "out" / "cells").glob("file*other*/seed0/images.npz")
    with np.load(images) as found:
        # The labels of the file say b first, so its first eight images are of the class b.
        assert np.array_equal(found["images"][8:, ...].reshape(8, 8, 8), swapped.images[:8, 0].numpy())


def test_folder_names_are_safe_and_apart():
    names = ["copies", "cada_vqvae:hybrid", "run:a/b", "run:a-b", "file:../x.npz", "run:a b"]
    folders = [folder_name(name) for name in names]
    assert len(set(folders)) == len(names)
    assert folders[:2] == ["copies", "cada_vqvae-hybrid"]
    assert all("/" not in name and not name.startswith(".") for name in folders)


# ------------------------------------------------------------------------------------------- the table


def cell(name, seed, **figures):
    return {
        "generator": name,
        "seed": seed,
        "made": {"train_seconds": 60.0, "n_images": 30},
        "evaluation": {
            "figures": {
                key: value if isinstance(value, dict) else {"value": value} for key, value in figures.items()
            },
            "verdicts": {"new": {"answer": "no" if seed else "partly"}},
        },
    }


def test_summary_has_mean_spread_and_what_seeds_say():
    cells = [cell("copies", s, coverage=0.2 + 0.2 * s, kernel_distance=0.001) for s in (0, 1)]
    summary = summarise([*cells, {"generator": "diffusion", "seed": 0, "error": "no"}])
    assert list(summary) == ["copies"]
    row = dict(zip(HEADINGS, table_rows(summary)[0], strict=True))
    assert row["coverage"] == "0.300 ± 0.141"
    assert row["KID x1000"] == "1.00 ± 0.00"
    assert row["new?"] == "partly 1, no 1"
    assert row["diverse?"] == row["Frechet"] == "-"
    assert row["train minutes"] == "1.0 ± 0.0"
    assert HEADINGS[-1].startswith("usefulness")


def test_usefulness_is_paired_over_seeds():
    gains = [0.01, 0.02, 0.03]
    cells = [
        cell(
            "x",
            s,
            usefulness={"value": g, "low": 0.0, "high": 0.9},
            worth_images={"value": 30.0 * 2**s, "k": 30},
        )
        for s, g in enumerate(gains)
    ]
    own = summarise(cells)["x"]
    # mean 0.02, standard deviation 0.01, t(0.975, 2) = 4.30265
    assert own["usefulness"]["low"] == pytest.approx(0.02 - 4.30265 * 0.01 / math.sqrt(3), rel=1e-5)
    assert own["worth_images"]["mean"] == pytest.approx(60.0)
    assert own["worth_images"]["low"] == pytest.approx(60 * 2 ** (-4.30265 / math.sqrt(3)), rel=1e-5)
    alone = summarise(cells[:1])["x"]["usefulness"]
    assert (alone["low"], alone["high"]) == (0.0, 0.9)
    beyond = cell(
        "x", 0, usefulness={"value": 0.1}, worth_images={"value": 300.0, "k": 30, "outside_curve": True}
    )
    assert table_rows(summarise([beyond]))[0][-1] == "+10.0; works like 300 images or so, beyond the curve"


def test_a_name_with_a_bar_does_not_break_the_table():
    assert "run:a\\|b" in markdown(summarise([cell("run:a|b", 0, coverage=1.0)]))
    table = markdown(summarise([cell("run:<script>`a`\n| b", 0, coverage=1.0)]), ["Failed: <script>"])
    assert "run:\\<script\\>\\`a\\` \\| b" in table
    assert "Failed: \\<script\\>" in table
    assert len(table.splitlines()) == 5


def test_plot_needs_both_figures():
    assert quality_against_copying(summarise([cell("x", 0, coverage=1.0)])) is None
    drawn = quality_against_copying(summarise([cell("x", 0, copy_share=0.5, frechet_distance=3.0)]))
    assert drawn is not None
    assert drawn[:4] == b"\x89PNG"


# ----------------------------------------------------------------------------------- environment, command


def test_environment_is_complete_and_json():
    found = environment()
    json.dumps(found)
    assert {"command", "commit", "versions", "processor", "threads"} <= set(found)
    assert found["versions"]["torch"]
    assert found["versions"]["joblib"]


def test_commit_is_of_this_package_or_none(monkeypatch):
    import fewgen.runs.environment as module

    # An installed copy inside somebody else's checkout: git knows the folder, but not this file.
    for tracked, commit in ((None, None), ("__init__.py", "0" * 40)):
        module._checkout.cache_clear()
        monkeypatch.setattr(module, "_git", lambda *a, t=tracked: t if a[0] == "ls-files" else "0" * 40)
        assert module.environment()["commit"] == commit
    module._checkout.cache_clear()


def test_command_prints_the_table_and_tells_failures(capsys, monkeypatch, copied):
    from fewgen.cli.main import main

    words = [
        "benchmark",
        "--data",
        "digits",
        "--shots",
        "5",
        "--methods",
        *METHODS,
        "--budget-minutes",
        "0.1",
    ]
    words += ["--seeds", "2", "-n", "30", "--useful-draws", "0", "--size", "8", "--out", str(copied)]
    assert main([*words, "--no-progress"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("| generator |")
    assert "table.md" in out
    assert err == ""
    assert main([*words, "--dry-run"]) == 0
    assert "0 of 6 cells" in capsys.readouterr().out
    shutil.rmtree(copied / "cells" / "copies" / "seed1")
    (copied / "cells" / "copies" / "seed1").write_text("a file in the way")
    assert main([*words, "--no-progress"]) == 2
    assert "error: copies, seed 1: " in capsys.readouterr().err
