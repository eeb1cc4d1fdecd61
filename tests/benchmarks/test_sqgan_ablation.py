"""The ablation of SQ-GAN: rows that exist, cells that are shared, images nobody has seen, figures by hand."""

import json
from types import SimpleNamespace

import pytest
import torch
from benchmarks.sqgan_ablation import (
    COLUMNS,
    CR,
    FULL,
    PLAIN,
    QUESTIONS,
    SHOTS,
    SQ_CR,
    Settings,
    Variant,
    asked,
    cell_name,
    changes,
    compute,
    config_of,
    copying,
    main,
    pool_of,
    real_of,
    settings_of,
    table,
    wanted_cells,
)

from benchmarks import sqgan_ablation
from fewgen.config import load_preset, resolve
from fewgen.data import load_images
from fewgen.data.imageset import ImageSet
from fewgen.evaluation import PixelFeatures, RealSide
from fewgen.methods.base import DataSpec
from fewgen.methods.sq_gan.config import SqGanConfig
from fewgen.methods.sq_gan.model import SqGan
from fewgen.training.phases import Pixels

ROWS = [(question, row) for question in QUESTIONS for row in question.rows]
USUAL = Settings()


def configured(variant, settings=USUAL):
    preset = load_preset("sq_gan", "default")["model"]
    return resolve(SqGanConfig, preset, settings_of(variant, settings), where="model")


@pytest.mark.parametrize(("question", "row"), ROWS, ids=[f"{q.key}-{r.name}" for q, r in ROWS])
def test_each_row_is_a_method_that_can_be_built_and_has_stages(question, row):
    images = ImageSet(
        torch.zeros(40, 1, 28, 28, dtype=torch.uint8), torch.arange(40) % 10, tuple("abcdefghij")
    )
    config = configured(row)
    with torch.device("meta"):
        method = SqGan(config, DataSpec.of(images, None))
    names = [stage.name for stage in method.stages(images, None)]
    assert names[-1] == "adversarial"
    assert (len(names) == 2) == (config.quantizer is not None and config.init.kind == "transport")


def test_the_rows_are_what_they_are_called():
    plain, cr, sq, full = (configured(row) for row in (PLAIN, CR, SQ_CR, FULL))
    assert plain.quantizer is None
    assert plain.pairs.latent == 0
    assert cr.quantizer is None
    assert cr.pairs == full.pairs
    assert full.pairs.latent > 0
    assert (sq.init.kind, full.init.kind) == ("random", "transport")
    assert sq.pairs == full.pairs
    by_name = {row.name: configured(row) for row in QUESTIONS[0].rows}
    assert by_name["zCR"].pairs.diversity > 0
    assert by_name["bCR"].pairs.fake > 0
    assert by_name["SQ without CR"].pairs == plain.pairs
    assert by_name["SQ without CR"].quantizer == full.quantizer
    # Equal networks and rates everywhere, and equal steps within a table.
    for _, row in ROWS:
        config = configured(row)
        assert (config.network, config.lr) == (full.network, full.lr)
        assert config.steps == round(row.scale * full.steps)
    for question in QUESTIONS:
        assert len({row.scale for row in question.rows}) == 1


def test_equal_settings_are_one_cell_and_others_are_not():
    by_key = {q.key: {row.name: cell_name("fashion_mnist", row, USUAL) for row in q.rows} for q in QUESTIONS}
    for question in QUESTIONS:
        assert len(set(by_key[question.key].values())) == len(question.rows)
    base = by_key["parts"]["SQ + CR + CBI"]
    assert base.startswith("fashion_mnist/base-")
    assert by_key["size"]["SQ + CR + CBI, 30 per class"] == base
    assert by_key["size"]["plain GAN, 30 per class"] == by_key["parts"]["plain GAN"]
    # Half the steps are another cell, and one for all tables that have it.
    short = by_key["init"]["random"]
    assert short != by_key["parts"]["SQ + CR"]
    assert short == by_key["space"]["w"] == by_key["code_dim"]["4"] == by_key["sigma"]["sigma = 0.1"]
    assert by_key["init"]["transport"] not in (base, short)
    assert cell_name("cifar10", FULL, USUAL) != base
    assert cell_name("fashion_mnist", Variant("another name"), USUAL) == base


def test_cells_of_another_number_of_steps_lie_in_the_same_place_and_are_refused(tmp_path, capsys):
    few = Settings(steps=7)
    assert cell_name("digits", FULL, few) == cell_name("digits", FULL, USUAL)
    assert asked("digits", FULL, few)["model.steps"] == 7
    path = tmp_path / cell_name("digits", FULL, USUAL) / "seed0.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"seed": 0, "asked": asked("digits", FULL, few)}))
    command = ["--only", "parts", "--data", "digits", "--seeds", "1", "--out", str(tmp_path), "--docs", ""]
    assert main(command) == 2
    assert f"model.steps 7 there, {config_of(FULL, USUAL)['steps']} now" in capsys.readouterr().err


def test_a_limit_of_processor_seconds_is_another_cell_and_gets_the_steps_that_fit(monkeypatch):
    limited = Settings(cpu_seconds=120.0)
    assert asked("cifar10", SQ_CR, limited)["cpu_seconds"] == 120
    assert "cpu_seconds" not in asked("cifar10", SQ_CR, USUAL)
    assert cell_name("cifar10", SQ_CR, limited) != cell_name("cifar10", SQ_CR, USUAL)
    assert settings_of(SQ_CR, limited)["steps"] == 120 * sqgan_ablation.STEPS_PER_SECOND
    assert settings_of(SQ_CR, Settings(steps=7, cpu_seconds=120.0))["steps"] == 7

    # All cores together have so many seconds by the clock of the limit.
    calls, stages = [], [{"steps": 5}, {"steps": 31}]
    run = SimpleNamespace(method=None, info=SimpleNamespace(extra={"training": {"stages": stages}}))
    monkeypatch.setattr(sqgan_ablation, "n_cores", lambda: 4)
    monkeypatch.setattr("fewgen.train", lambda *_, **keywords: calls.append(keywords) or run)
    monkeypatch.setattr(sqgan_ablation, "pool_of", lambda *_: SimpleNamespace(judge=None, about={}))
    monkeypatch.setattr(sqgan_ablation, "real_of", lambda *_: SimpleNamespace(train=[], held_out=[]))
    monkeypatch.setattr(sqgan_ablation, "measure", lambda *_: {"frechet": 1.0})
    found = [compute("cifar10", SQ_CR, 0, settings) for settings in (limited, USUAL)]
    assert (calls[0]["minutes"], calls[0]["clock"]) == (0.5, "cpu")
    assert calls[0]["preset"] == "default"  # which the rows change, whatever is usual for the images
    assert "minutes" not in calls[1]
    assert [cell["figures"].get("steps") for cell in found] == [31, None]


def test_codes_start_from_the_pretrained_encoder_too():
    question = next(question for question in QUESTIONS if question.key == "foundation")
    rows = {row.name: configured(row).init for row in question.rows}
    assert [(init.kind, init.foundation) for init in rows.values()] == [
        *(("random", "small"), ("kmeans", "small"), ("transport", "small")),
        *(("features", "lite"), ("transport", "lite")),
    ]
    assert {"cifar10", "fashion_mnist"} <= set(question.data)
    assert set(question.against) <= set(rows)
    name, base = (cell_name("digits", row, USUAL) for row in (question.rows[-1], question.rows[0]))
    cells = {
        ("digits", name, 0): made({"frechet": 9.0, "steps": 4.0}, asked={"cpu_seconds": 120.0}),
        ("digits", base, 0): made({"frechet": 10.0, "steps": 8.0}, asked={"cpu_seconds": 120.0}),
    }
    text = table(question, "digits", cells, USUAL)
    assert text.startswith("### What the codebook starts from: digits, 300 images, 120 processor seconds\n")
    assert "| change | Fréchet against random | KID against random | Fréchet against transport, small" in text
    assert "| transport, lite | -10 % (1 of 1) | n/a | - | - |" in text


def test_every_row_comes_once_before_any_row_comes_twice():
    wanted = list(wanted_cells(QUESTIONS, [4, 5], USUAL))
    seeds = [seed for _, _, seed in wanted]
    assert seeds == sorted(seeds)
    assert len(wanted) == 2 * len({key[:2] for key in wanted})
    assert {data for data, _, _ in wanted} == set(SHOTS)


def made(figures, **more):
    values = {key: 0.0 for _, key, _, _ in COLUMNS} | {"new": "yes"} | figures
    return {"figures": values, "n_train": 300, "asked": {"model.steps": 1000}, **more}


def test_the_table_and_its_changes_by_hand():
    question = QUESTIONS[0]
    names = {row.name: cell_name("omniglot", row, USUAL) for row in question.rows}
    found = {
        "plain GAN": [(10.0, 0.002), (30.0, 0.004)],
        "CR on latents": [(9.0, -0.001), (27.0, 0.004)],
        "SQ + CR + CBI": [(5.0, 0.001), (24.0, 0.003)],
    }
    cells = {
        ("omniglot", names[name], seed): made({"frechet": frechet, "kid": kid, "agreement": None})
        for name, pairs in found.items()
        for seed, (frechet, kid) in enumerate(pairs)
    }
    cells["omniglot", names["SQ + CR + CBI"], 1]["figures"]["new"] = "partly"
    lines = table(question, "omniglot", cells, USUAL).splitlines()
    assert lines[0] == "### Parts of the method: omniglot, 300 images, 1000 steps"
    assert "class agreement" not in lines[2]
    shown = {
        line.split(" | ")[0].removeprefix("| "): line
        for line in changes(question, "omniglot", cells, USUAL)[2:]
    }
    full = next(line for line in lines if line.startswith("| SQ + CR + CBI | 2 |"))
    assert full.split(" | ")[2:4] == ["14.50 ± 13.44", "2.00 ± 1.41"]
    assert full.endswith("| yes 1, partly 1 |")
    assert any(line.startswith("| zCR | 0 | - |") for line in lines)
    # -50 % and -20 %; -50 % and -25 %; -44.4 % and -11.1 %; a seed of CR has no positive KID.
    assert (
        shown["SQ + CR + CBI"] == "| SQ + CR + CBI | -35 % (2 of 2) | -38 % (2 of 2) | -28 % (2 of 2) | n/a |"
    )
    assert shown["bCR"] == "| bCR | - | - | - | - |"


def test_copies_are_seen_and_other_real_images_are_not_accused():
    # Other people wrote the test part, so its halves are as far from the training images as each other.
    train = load_images("digits").shots(10, 0)
    held_out, unseen = load_images("digits", split="test").split_shots(20, 10, 0)
    real = RealSide(train, held_out, PixelFeatures(1, 28, 28))
    copies = copying(real.side(train), real)
    assert copies["clear_copies"] == 1.0
    assert copies["near_copies"] == 1.0
    assert copies["new"] == "no"
    others = copying(real.side(unseen), real)
    assert others["clear_copies"] == 0.0
    assert others["near_copies"] < 0.1
    assert others["new"] != "no"


@pytest.fixture
def characters(monkeypatch):
    """Omniglot of 60 characters with 20 different drawings each, and judges that are only named."""
    names = tuple(f"letter{i:02d}" for i in range(60))
    pixels = torch.arange(60 * 20).view(60, 20)
    judged = []

    def load(data, split="train", data_dir=None):
        part = pixels[:, :14] if split == "train" else pixels[:, 14:]
        labels = torch.arange(60)[:, None].expand_as(part).flatten()
        images = torch.stack([part.flatten() // 256, part.flatten() % 256], 1).to(torch.uint8)
        return ImageSet(images[:, None, None].repeat(1, 1, 8, 4), labels, names, name=split)

    class Judge(PixelFeatures):
        class_names = ()

        def __init__(self):
            super().__init__(1, 8, 8)

    def of(train, test, settings):
        assert settings is None
        judged.append((train, test))
        return Judge()

    monkeypatch.setattr(sqgan_ablation, "load_images", load)
    monkeypatch.setattr(sqgan_ablation.ClassifierFeatures, "of", of)
    monkeypatch.setattr(sqgan_ablation, "RealSide", lambda *images, seed: images)  # its search takes seconds
    pool_of.cache_clear()
    real_of.cache_clear()
    yield judged
    pool_of.cache_clear()
    real_of.cache_clear()


def test_characters_are_judged_by_who_has_never_seen_them(characters):
    drawn = [real_of("omniglot", SHOTS["omniglot"], seed, USUAL) for seed in (0, 1)]
    assert len(characters) == 1
    for real in drawn:
        assert real.train.counts().tolist() == [15] * 50
        assert real.held_out.counts().tolist() == [5] * 50
        seen, held = ({image.numpy().tobytes() for image in s.images} for s in (real.train, real.held_out))
        assert len(seen) == 750
        assert not seen & held
        for images in characters[0]:
            assert not set(images.class_names) & set(real.train.class_names)
        assert not real.judge_knows
    assert not torch.equal(drawn[0].train.images, drawn[1].train.images)


def test_the_discriminator_is_asked_under_any_perturbation():
    images = load_images("digits").shots(8, 0)
    torch.manual_seed(0)
    method = SqGan(configured(FULL, Settings(quick=True)), DataSpec.of(images, None)).eval()
    pixels = Pixels(images, torch.device("cpu"))

    def figures(sigma, held_out=None):
        rng = torch.Generator().manual_seed(3)
        return method.discriminator_figures(pixels, held_out, rng, sigma=sigma, n_batches=2)

    still, moved, far = (figures(sigma, pixels) for sigma in (0.0, 0.1, 10.0))
    assert still["consistency_gap"] == still["changed_codes"] == 0.0
    assert 0 < moved["changed_codes"] < far["changed_codes"] <= 1
    assert moved["accuracy_gap"] == 0.0  # the same images on both sides
    assert figures(None, pixels) == figures(configured(FULL).pairs.sigma, pixels)
    assert "accuracy_gap" not in figures(0.1)


def test_a_quick_run_is_complete_and_not_computed_twice(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FEWGEN_CACHE_DIR", str(tmp_path / "cache"))
    pool_of.cache_clear()
    real_of.cache_clear()
    command = ["--quick", "--jobs", "1", "--out", str(tmp_path / "cells")]
    assert main(command) == 0
    files = sorted((tmp_path / "cells").rglob("*.json"))
    assert len(files) == 3
    for path in files:
        cell = json.loads(path.read_text())
        quantised = cell["asked"].get("model.quantizer.codebook_size") is not None
        missing = {key for key, value in cell["figures"].items() if value is None}
        assert missing == (set() if quantised else {"perplexity", "codes_used", "changed_codes"})
        assert cell["asked"]["model.steps"] == 3
        assert cell["figures"]["cpu_seconds"] > 0
    before = [path.stat().st_mtime_ns for path in files]
    text = capsys.readouterr().out
    assert main([*command, "--table-only"]) == 0
    again = capsys.readouterr().out
    assert again.strip() in text
    assert [path.stat().st_mtime_ns for path in files] == before
    pool_of.cache_clear()
    real_of.cache_clear()
