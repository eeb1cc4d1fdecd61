"""The reference generators learn, draw what they are asked for, and keep to their budget."""

import json
import time

import pytest
import torch
from benchmarks.candidates import file_name, make_generator
from benchmarks.environment import environment
from benchmarks.generation import table
from benchmarks.references import REFERENCES, Budget, moved

from benchmarks import __main__ as command
from fewgen.data.imageset import ImageSet
from fewgen.errors import ConfigError


def bars(n_per_class=4, channels=1, size=16):
    """Two classes that differ in orientation."""
    images = torch.zeros(2 * n_per_class, channels, size, size, dtype=torch.uint8)
    for i in range(n_per_class):
        images[i, :, 3 + i : 6 + i] = 220
        images[n_per_class + i, :, :, 3 + i : 6 + i] = 220
    labels = torch.arange(2).repeat_interleave(n_per_class)
    return ImageSet(images, labels, ("rows", "columns"), name="bars")


@pytest.mark.parametrize("name", sorted(REFERENCES))
@pytest.mark.parametrize("channels", [1, 3])
def test_reference_learns_and_draws(name, channels):
    train = bars(channels=channels)
    reference = REFERENCES[name]()
    about = reference.fit(train, Budget(1, max_steps=2), seed=0)
    json.dumps(about)
    labels = torch.tensor([1, 0, 1])
    if name == "diffusion":
        reference.sample_steps = 2
    images = reference.sample(labels, seed=3)
    assert images.shape == (3, channels, 16, 16)
    assert images.dtype == torch.uint8
    assert torch.equal(images, reference.sample(labels, seed=3))


def test_copies_are_copies_and_pca_is_not():
    train = bars()
    labels = torch.tensor([0] * 6 + [1] * 6)
    copies, gaussian = REFERENCES["copies"](), REFERENCES["class_pca_gaussian"]()
    for reference in (copies, gaussian):
        reference.fit(train, Budget(1), seed=0)
    assert torch.equal(copies.sample(labels, 0)[4:6], train.images[:2])
    drawn = gaussian.sample(labels, 0).float()
    assert len({tuple(image.flatten().tolist()) for image in drawn}) == 12
    # Rows vary down the image and not across it.
    assert drawn[:6].var(dim=3).mean() < 0.01 * drawn[:6].var(dim=2).mean()


def test_budget_ends_training():
    started = time.perf_counter()
    about = REFERENCES["conditional_vae"]().fit(bars(), Budget(1 / 60), seed=0)
    assert about["steps"] > 0
    assert time.perf_counter() - started < 15
    budget = Budget(1, clock="cpu", cores=2)
    time.sleep(0.2)
    assert budget.used() < 0.2 / 60  # waiting is not computing
    with pytest.raises(ValueError, match="wall"):
        Budget(1, clock="sun")


def test_moving_by_nothing_changes_nothing():
    x = bars(size=16).floats()
    still = moved(x, torch.Generator().manual_seed(0), flip=False, degrees=0, scale=0, shift=0)
    assert torch.allclose(still, x, atol=1e-5)
    shifted = moved(x, torch.Generator().manual_seed(0), flip=False, degrees=0, scale=0, shift=0.2)
    assert not torch.allclose(shifted, x, atol=0.1)


def test_generators_are_found_by_name(tmp_path):
    made = make_generator("cada_vqvae:hybrid", tmp_path, "digits", 5, 1.0)
    assert made.name == "cada_vqvae:hybrid"
    assert file_name(made.name) == "cada_vqvae-hybrid"
    assert make_generator("run:some/shoes", tmp_path, "digits", 5, 1.0).name == "run:shoes"
    with pytest.raises(ConfigError, match="diffusion"):
        make_generator("difusion", tmp_path, "digits", 5, 1.0)


def test_environment_is_complete_and_json():
    found = environment()
    json.dumps(found)
    assert {"command", "commit", "versions", "processor", "threads"} <= set(found)
    assert found["versions"]["torch"]


def test_table_shows_mean_and_spread():
    def result(seed, value):
        protocol = {
            "extractor": {"name": "classifier", "dim": 64, "test_accuracy": 0.9, "n_test": 10},
            "n_generated": 30,
        }
        figures = {"coverage": {"value": value}, "class_agreement": {"value": 0.5}}
        return {"generator": "copies", "seed": seed, "measured": {"protocol": protocol, "figures": figures}}

    text = table([result(0, 0.2), result(1, 0.4)])
    assert "0.300 ± 0.141" in text
    assert "50.0 ± 0.0" in text


def test_command_lists_benchmarks(capsys):
    assert command.main([]) == 0
    assert "generation" in capsys.readouterr().out
    assert command.main(["generaton"]) == 2
