"""What several evaluations share must fit each of them; held-out images that were learned from prove nothing."""

from __future__ import annotations

import pytest
import torch

from fewgen.data import ImageSet
from fewgen.encoders.pixels import PixelFeatures
from fewgen.errors import ConfigError
from fewgen.evaluation.arms import UsefulnessSettings
from fewgen.evaluation.evaluation import RealSide, evaluate_images

NAMES = ("a", "b", "c")
QUICK = {
    "settings": UsefulnessSettings(width=4, dim=4, steps=2, batch_size=8),
    "augmentation": "none",
    "curve": (1,),
}


def images(seed, per_class=8):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(NAMES)).repeat_interleave(per_class)
    pixels = torch.randint(0, 100, (len(labels), 1, 8, 8), generator=rng)
    pixels[:, 0, 2:5, 2:5] += 50 * labels[:, None, None]
    return ImageSet(pixels.to(torch.uint8), labels, NAMES)


@pytest.fixture(scope="module")
def real():
    return RealSide(images(0), images(1), PixelFeatures(1, 8, 8))


def test_a_real_side_of_other_images_is_refused(real):
    made = images(2)
    with pytest.raises(ConfigError, match="other training images"):
        evaluate_images(made, images(3), images(1), real_side=real, useful_draws=0)
    with pytest.raises(ConfigError, match="other held-out images"):
        evaluate_images(made, images(0), images(3), real_side=real, useful_draws=0)
    with pytest.raises(ConfigError, match="other held-out images"):
        evaluate_images(made, images(0), real_side=real, useful_draws=0)
    # The same images in another order are the same images.
    back = torch.arange(len(made)).flip(0)
    evaluate_images(
        made, images(0).subset(back), images(1).subset(back), real_side=real, useful_draws=0, labelled=False
    )


def test_controls_are_as_many_as_the_images_without_classes(real):
    none = torch.full((5,), -1)
    assert len(real.controls(none).sides["noise"][0].labels) == 5
    assert len(real.controls(none.repeat(2)).sides["noise"][0].labels) == 10


def test_a_classifier_tested_on_what_it_learned_tells_nothing(real):
    leaked = evaluate_images(
        images(1), images(0), images(1), real_side=real, useful_draws=2, usefulness_options=QUICK
    )
    assert leaked.figures["usefulness"]["n_seen"] == 24
    assert leaked.verdicts["useful"].answer == "cannot tell"
    assert "24 of 24 held-out images are" in leaked.verdicts["useful"].why
    clean = evaluate_images(
        images(2), images(0), images(1), real_side=real, useful_draws=2, usefulness_options=QUICK
    )
    assert clean.figures["usefulness"]["n_seen"] == 0
    assert "pixel by pixel" not in clean.verdicts["useful"].why
