"""The benchmark of TAGE: its cells are finished once, its table has all rows, its figures are what they say."""

import json

import pytest
import torch
from PIL import Image
from tests.methods.sq_gan_tools import shapes

import fewgen
from benchmarks import tage
from fewgen.encoders.classifier import ClassifierFeatures, ClassifierSettings


@pytest.fixture(scope="module")
def judge():
    settings = ClassifierSettings(steps=20, batch_size=16, width=8, dim=8)
    return ClassifierFeatures.of(shapes(n_per_class=20), settings=settings, use_cache=False)


def test_diversity_is_zero_for_one_image_and_does_not_depend_on_the_order(judge):
    images = shapes(n_per_class=5)
    one = images.images[:1].expand(6, -1, -1, -1)
    assert tage.diversity(one, torch.tensor([0, 0, 0, 1, 1, 1]), judge) == 0.0
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    before = tage.diversity(images.images, images.labels, judge)
    after = tage.diversity(images.images[order], images.labels[order], judge)
    assert before == pytest.approx(after)
    assert before > 0.1


def test_figures_of_real_images_beside_themselves_are_those_of_equal_sets(judge):
    real = shapes(n_per_class=30, seed=1)
    found = tage.figures(real, real, judge)
    assert found["frechet"] == pytest.approx(0.0, abs=1e-6)
    assert found["kid"] < 0.01
    assert found["retention"] == float((judge.predict(real) == real.labels).double().mean())


def test_a_cell_is_computed_once_and_the_table_has_a_row_for_each_mode(tmp_path, monkeypatch, capsys):
    from tests.methods.tage_tools import SMALL

    train = fewgen.train

    def small(*words, **keywords):
        del keywords["data"], keywords["data_dir"]
        return train(*words, **keywords, data=shapes(n_per_class=40), model=SMALL, holdout=0)

    monkeypatch.setattr(fewgen, "train", small)
    data = shapes(n_per_class=40)
    monkeypatch.setattr(
        fewgen.Run,
        "other_images",
        lambda run, *_, with_base=False: (
            {"novel": data.select_classes(["spots"])} | ({"base": data} if with_base else {})
        ),
    )
    monkeypatch.setenv("FEWGEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(
        ClassifierSettings, "for_images", lambda *_, **__: ClassifierSettings(steps=5, batch_size=8)
    )
    for function in (tage.trained, tage.judge_of):
        function.cache_clear()
    words = ["--data", "shapes", "--seeds", "1", "--shots", "3", "--n", "20"]
    words += ["--out", str(tmp_path / "out"), "--docs", str(tmp_path / "page.md")]
    assert tage.main(words) == 0
    said = capsys.readouterr().out
    for row in tage.ROWS.values():
        assert f"| {row} | 1 |" in said
    cells = sorted((tmp_path / "out" / "shapes").glob("*.json"))
    assert [cell.name for cell in cells] == [
        "3-age-0.json",
        "3-back-0.json",
        "3-cpm-0.json",
        "3-nn-0.json",
        "3-real-0.json",
    ]
    assert set(json.loads(cells[2].read_text())["figures"]) >= {"ssim", "ssim_quantised", "frechet", "kid"}
    before = [cell.stat().st_mtime_ns for cell in cells]
    assert tage.main([*words, "--table-only", "--picture", str(tmp_path / "new.png")]) == 0
    with Image.open(tmp_path / "new.png") as shown:  # three pictures and nine that are drawn, of one class
        assert shown.width > 8 * shown.height / 2
    assert [cell.stat().st_mtime_ns for cell in cells] == before
    assert tage.main([*words[:-2], "--docs", "", "--n", "30"]) == 2
    assert "n 20 there, 30 now" in capsys.readouterr().err
