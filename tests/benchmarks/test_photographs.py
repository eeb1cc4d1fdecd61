"""Photographs: known images get the figures that they deserve, rows by hand, cells that continue."""

import json

import pytest
import torch
from benchmarks.photographs import (
    JudgeSettings,
    Settings,
    Training,
    by_row,
    cells_of_runs,
    main,
    measure,
    section,
    yardstick_of,
)

from benchmarks import photographs
from fewgen.cli.main import main as fewgen
from fewgen.clock import n_cores
from fewgen.data import load_images
from fewgen.data.imageset import ImageSet
from fewgen.data.registry import Reading
from fewgen.errors import ConfigError
from fewgen.evaluation import RealSide

QUICK = ("--images", "10", "--probe", "pixels", "--judge-steps", "40", "--judge-width", "8")


@pytest.fixture(scope="module")
def judges(tmp_path_factory):
    return tmp_path_factory.mktemp("judges")


@pytest.fixture(scope="module")
def yard(judges):
    names = load_images("digits").class_names
    return yardstick_of("digits", Reading(), names, Settings(10, "pixels", str(judges), 40, 8))


def test_real_images_reach_the_ceiling_copies_are_named_and_noise_is_far(yard):
    train, other = load_images("digits").split_shots(10, 10, 0)
    side = RealSide(train, yard.test, yard.judge)
    real = measure(other, side, yard)
    assert yard.about["test_accuracy"] > 0.8
    assert yard.real["agreement"] == yard.about["test_accuracy"]
    assert real["agreement"] > yard.about["test_accuracy"] - 0.1
    assert real["probe"] > 0.8
    assert real["new"] != "no"
    assert 0.7 < real["nearest"] < 1.3

    test = measure(yard.test, side, yard)
    assert test["frechet"] == pytest.approx(0, abs=1e-4)
    assert test["kid"] < 0
    assert (test["coverage"], test["recall"], test["nearest"]) == (1, 1, pytest.approx(1))

    copies = measure(train, side, yard)
    assert copies["new"] == "no"
    assert copies["nearest"] == 0

    pixels = torch.randint(0, 256, other.images.shape, generator=torch.Generator().manual_seed(0))
    noise = measure(ImageSet(pixels.to(torch.uint8), other.labels, other.class_names), side, yard)
    assert noise["frechet"] > 5 * real["frechet"]
    assert noise["kid"] > 5 * abs(real["kid"])
    assert noise["coverage"] < 0.2 < 0.5 < real["coverage"]
    assert noise["agreement"] < 0.3
    assert noise["nearest"] > 1


def test_a_judge_is_kept_and_sees_classes_by_their_names(yard, judges):
    (file,) = (judges / "classifiers").iterdir()
    before = file.stat().st_mtime_ns
    photographs.judge_of.cache_clear()
    chosen = yard.test.class_names[7:9]
    some = yardstick_of("digits", Reading(), chosen, Settings(10, "", str(judges), 40, 8))
    assert file.stat().st_mtime_ns == before
    assert some.known.tolist() == [7, 8]
    of_two = yard.test.select_classes(chosen)
    assert some.figures(of_two)["agreement"] > 0.6
    assert some.figures(of_two)["probe"] is None
    assert torch.equal(some.judge.features(of_two), yard.judge.features(of_two))


def test_photographs_are_mirrored_and_drawings_are_not():
    x = torch.arange(2.0).expand(64, 3, 8, 2)
    colour = ImageSet(torch.zeros(8, 3, 32, 32, dtype=torch.uint8), torch.arange(8) % 2, ("a", "b"))
    photo = JudgeSettings.of_images(colour)
    assert photo.flip
    assert photo.max_shift == 4
    assert photo.steps == 1500
    assert not JudgeSettings.of_images(load_images("digits")).flip
    still = JudgeSettings(max_shift=0, flip=True).varied(x, torch.Generator().manual_seed(0))
    mirrored = (still[:, 0, 0, 0] == 1).sum()
    assert 16 < mirrored < 48
    assert (still.sum(3) == 1).all()


def made(row, seed, frechet, seconds, new="yes", **more):
    figures = dict.fromkeys(("kid", "coverage", "recall", "agreement", "probe", "nearest"), 0.5)
    real = {**figures, "frechet": 1.0, "agreement": 0.798}
    judge = {"n_train": 50000, "train_cpu_seconds": 300.0, "test_accuracy": 0.798, "n_test": 10000}
    return {
        "row": row,
        "seed": seed,
        "data": "cifar10",
        "shots": 30,
        "n_test": 2000,
        "trained_with": [],
        "judge": judge,
        "real": real,
        "figures": {**figures, "frechet": frechet, "cpu_seconds": seconds, "new": new},
        "environment": photographs.environment(),
        **more,
    }


def test_rows_are_runs_of_all_seeds_with_mean_and_spread():
    cells = {
        1: made("plain", 0, 20.0, 900.0),
        2: made("plain", 1, 26.0, 910.0, new="no"),
        3: made("projected", 0, 10.0, None, trained_with=["lite0"]),
    }
    settings = Settings()
    lines = section(cells, settings).splitlines()
    assert lines[0] == "### cifar10, 30 images per class"
    real, plain, projected = (line.split(" | ") for line in lines[4:7])
    assert real[:3] == ["| real images", "", "1.00"]
    assert real[6] == "79.8"
    # 23 and the root of (9 + 9) / 1; 905 and the root of 50.
    assert plain[:3] == ["| plain", "2", "23.00 ± 4.24"]
    assert plain[9:] == ["905 ± 7", "yes 1, no 1", "- |"]
    assert projected[:3] == ["| projected", "1", "10.00"]
    assert projected[9:] == ["-", "yes 1", "lite0 |"]
    (first, second) = photographs.record(cells, settings)
    assert first["figures"]["frechet"] == {
        "mean": 23.0,
        "spread": pytest.approx(18**0.5),
        "values": [20.0, 26.0],
    }
    assert second["figures"]["frechet"]["spread"] is None
    assert "cpu_seconds" not in second["figures"]
    assert [len(own) for own in by_row(cells).values()] == [2, 1]


def test_the_minutes_of_a_training_are_those_of_one_processor(tmp_path):
    training = Training("sq_gan:projected model.mismatch=1.0", "cifar10", 30, 15, 2)
    arguments = training.arguments(tmp_path, None)
    pairs = dict(zip(arguments[2:], arguments[3:], strict=False))
    assert arguments[:2] == ["train", "sq_gan"]
    assert (pairs["--preset"], pairs["--model.mismatch"], pairs["--seed"]) == ("projected", "1.0", "2")
    assert float(pairs["--minutes"]) == pytest.approx(15 / n_cores(), rel=1e-4)
    with pytest.raises(ConfigError, match=r'"model.mismatch" in --train .* KEY=VALUE'):
        Training("sq_gan model.mismatch", "cifar10", 30, 15, 2).arguments(tmp_path, None)


def test_a_stopped_benchmark_continues_and_run_folders_are_grouped(tmp_path, judges, monkeypatch, capsys):
    called = []

    def call(arguments):
        called.append(arguments[arguments.index("--out") + 1])
        if len(called) == 2:
            raise KeyboardInterrupt
        # By steps and not by time, and without the time that a process of its own takes to start.
        at = arguments.index("--minutes")
        few = ("--training.steps_scale", "0.001")
        assert fewgen([*arguments[:at], *arguments[at + 4 :], "--text", "onehot", *few]) == 0

    monkeypatch.setattr(photographs, "call_fewgen", call)
    # The verdict on copies has its own test.
    monkeypatch.setattr(photographs, "measure", lambda images, real, of: {**of.figures(images), "new": "yes"})
    command = ["--train", "cada_vqvae", "--data", "digits", "--shots", "5", "--seeds", "0", "1", *QUICK]
    command += ["--out", str(tmp_path), "--judges", str(judges)]
    with pytest.raises(KeyboardInterrupt):
        main(command)
    (cell,) = (tmp_path / "cells").glob("*.json")
    before = cell.stat().st_mtime_ns
    assert cell.with_suffix(".png").is_file()
    assert main(command) == 0
    assert cell.stat().st_mtime_ns == before
    assert len(called) == 3
    assert called[1] == called[2] != called[0]
    (row,) = json.loads((tmp_path / "photographs.json").read_text())
    assert [own["seed"] for own in row["cells"]] == [0, 1]
    assert "| cada_vqvae | 2 |" in (tmp_path / "table.md").read_text()

    # The same runs by their folders: one row, and named ones as they are named.
    (alike,) = {own.row for own in cells_of_runs([called[0], called[1]])}
    assert alike == "cada_vqvae:default"
    named = cells_of_runs([f"a={called[0]}", f"b={called[1]}"])
    assert [(own.row, own.number) for own in named] == [("a", 0), ("b", 0)]
    assert main(["--runs", *called[:2], *QUICK, "--out", str(tmp_path), "--judges", str(judges)]) == 0
    (again,) = json.loads((tmp_path / "photographs.json").read_text())
    assert again["row"] == alike
    assert [own["figures"] for own in again["cells"]] == [own["figures"] for own in row["cells"]]
    assert main(["--runs", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "error:" in capsys.readouterr().err
