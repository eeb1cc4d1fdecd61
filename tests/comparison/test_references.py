"""The reference generators learn, draw what they are asked for, and keep to their budget."""

import json
import subprocess
import sys
import time

import pytest
import torch

from fewgen.comparison.budget import Budget
from fewgen.comparison.references import REFERENCES, TAKES_TIME, make_reference
from fewgen.data.imageset import ImageSet
from fewgen.errors import ConfigError, DataError, MissingDependencyError


def bars(n_per_class=4, channels=1, size=(16, 16)):
    """Two classes that differ in orientation."""
    images = torch.zeros(2 * n_per_class, channels, *size, dtype=torch.uint8)
    for i in range(n_per_class):
        images[i, :, 3 + i : 6 + i] = 220
        images[n_per_class + i, :, :, 3 + i : 6 + i] = 220
    labels = torch.arange(2).repeat_interleave(n_per_class)
    return ImageSet(images, labels, ("rows", "columns"), name="bars")


@pytest.mark.parametrize("name", sorted(REFERENCES))
@pytest.mark.parametrize(("channels", "size"), [(1, (16, 16)), (3, (14, 18))])
def test_reference_learns_and_draws(name, channels, size):
    train = bars(channels=channels, size=size)
    reference = make_reference(name)
    assert reference.name == name
    before = torch.get_rng_state()
    about = reference.fit(train, Budget(1, max_steps=2), seed=0)
    assert torch.equal(torch.get_rng_state(), before)  # a caller's random numbers are not disturbed
    json.dumps(about, allow_nan=False)
    labels = torch.tensor([1, 0, 1])
    if name == "diffusion":
        reference.sample_steps = 2
    images = reference.sample(labels, seed=3)
    assert images.shape == (3, channels, *size)
    assert images.dtype == torch.uint8
    assert torch.equal(images, reference.sample(labels, seed=3))
    if name != "copies":
        assert not torch.equal(images, reference.sample(labels, seed=4))


@pytest.mark.parametrize("name", ["conditional_vae", "spatial_codebook"])
def test_the_same_seed_learns_the_same_and_another_seed_something_else(name):
    drawn = []
    for seed in (0, 0, 1):
        torch.rand(seed + 1)  # whatever was drawn before does not matter
        reference = make_reference(name)
        reference.fit(bars(), Budget(1, max_steps=3), seed=seed)
        drawn.append(reference.sample(torch.tensor([0, 1]), seed=0))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_conditional_vae_tells_the_classes_apart():
    torch.set_num_threads(1)
    train = bars(8, size=(16, 16))
    reference = make_reference("conditional_vae")
    reference.fit(train, Budget(1, max_steps=150), seed=0)
    drawn = reference.sample(torch.tensor([0] * 8 + [1] * 8), seed=0).float()
    # Rows vary down the image, columns across it.
    down, across = drawn.mean(3).var(2).flatten(), drawn.mean(2).var(2).flatten()
    assert (down[:8] > across[:8]).all()
    assert (down[8:] < across[8:]).all()


def test_copies_are_copies_and_pca_is_not():
    train = bars()
    labels = torch.tensor([0] * 6 + [1] * 6)
    copies, gaussian = make_reference("copies"), make_reference("class_pca_gaussian")
    for reference in (copies, gaussian):
        reference.fit(train, Budget(1), seed=0)
    assert torch.equal(copies.sample(labels, 0)[4:6], train.images[:2])
    drawn = gaussian.sample(labels, 0).float()
    assert len({tuple(image.flatten().tolist()) for image in drawn}) == 12
    # Rows vary down the image and not across it.
    assert drawn[:6].var(dim=3).mean() < 0.01 * drawn[:6].var(dim=2).mean()


def test_gaussians_refuse_one_image_per_class():
    for name in ("pca_gaussian", "class_pca_gaussian"):
        with pytest.raises(DataError, match='at least 2 images per class.*"rows" has 1'):
            make_reference(name).fit(bars(1), Budget(1), seed=0)


def test_budget_ends_training():
    started = time.perf_counter()
    about = make_reference("conditional_vae").fit(bars(), Budget(1 / 60), seed=0)
    assert about["steps"] > 0
    assert time.perf_counter() - started < 15
    budget = Budget(1, clock="cpu", cores=2)
    time.sleep(0.2)
    assert budget.used() < 0.2 / 60  # waiting is not computing
    for wrong in ({"clock": "sun"}, {"minutes": 0}, {"minutes": float("nan")}, {"cores": 0}):
        with pytest.raises(ConfigError):
            Budget(**{"minutes": 1, **wrong})


def test_unknown_reference_is_refused_with_a_suggestion():
    assert set(TAKES_TIME) < set(REFERENCES)
    with pytest.raises(ConfigError, match='Did you mean "diffusion"'):
        make_reference("difusion")


def test_without_diffusers_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingDependencyError, match=r"fewgen\[benchmark\]"):
        make_reference("diffusion").fit(bars(), Budget(1), seed=0)


def test_the_list_of_references_costs_no_torch():
    code = "import sys, fewgen.comparison.references, fewgen.comparison.candidates; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
