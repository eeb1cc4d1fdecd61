"""Noising a support and denoising it: reproducible by seed, near the support from late steps, new from early ones."""

import pytest
import torch
from tests.diffusion.toy import Toy, supports

from fewgen.diffusion.noising import noise_and_denoise, start_steps
from fewgen.diffusion.settings import SpecialiseConfig, TextualConfig
from fewgen.diffusion.specialisation import choose_supports, specialise
from fewgen.errors import CheckpointError, ConfigError, DataError, ShapeError
from fewgen.generation.noise import noise

STEPS = 10


@pytest.fixture(scope="module")
def made():
    pipe = Toy()
    images = supports(3).float().clamp(-1, 1)
    (found,) = specialise(
        pipe,
        [images],
        ["cat"],
        SpecialiseConfig(
            guidance_scale=1.5, steps=STEPS, textual=TextualConfig(steps=20, lr=0.05, batch_size=8)
        ),
        rng=torch.Generator().manual_seed(0),
    )
    return pipe, images, found


def test_starts_are_uniform_over_the_steps():
    counts = torch.bincount(start_steps(torch.arange(20_000), STEPS), minlength=STEPS)
    assert len(counts) == STEPS
    assert float((counts / 2000 - 1).abs().max()) < 0.1


def test_an_image_is_a_function_of_its_seed_alone(made):
    pipe, images, word = made
    together = noise_and_denoise(pipe, word, images, torch.arange(12), batch=5)
    assert together.shape == (12, 1, 4, 4)
    assert float(together.abs().max()) <= 1
    alone = noise_and_denoise(pipe, word, images, torch.tensor([7, 3]), batch=1)
    torch.testing.assert_close(alone, together[[7, 3]], rtol=0, atol=1e-6)
    other = noise_and_denoise(pipe, word, images, torch.arange(12) + 100)
    assert float((other - together).abs().max()) > 0.1
    assert len(noise_and_denoise(pipe, word, images, 0)) == 0


def test_it_is_the_loop_over_single_images(made):
    """Each image alone, by the formulas of noising and of deterministic sampling."""
    pipe, images, word = made
    seeds = torch.arange(6)
    found = noise_and_denoise(pipe, word, images, seeds)
    times, bars = pipe.schedule.timesteps(STEPS), pipe.schedule.alphas_cumprod
    cond, null = word.context(pipe), pipe.embed([""])
    for row, start in enumerate(start_steps(seeds, STEPS).tolist()):
        which = int(choose_supports(seeds[row : row + 1], 3))
        z = pipe.encode(images[which : which + 1].double())
        eps = noise(seeds[row : row + 1], (1, 4, 4)).double()
        z = bars[times[start]].sqrt() * z + (1 - bars[times[start]]).sqrt() * eps
        for i in range(start, STEPS):
            t = torch.tensor([times[i]])
            e = pipe.guided(z, t, cond, null, word.guidance_scale)
            after = times[i + 1] if i + 1 < STEPS else None
            z = pipe.schedule.move(z, e, times[i], after)
        torch.testing.assert_close(found[row : row + 1], pipe.decode(z).float(), rtol=0, atol=1e-5)


def test_late_starts_stay_near_their_support_and_early_ones_leave_it(made):
    pipe, images, word = made
    seeds = torch.arange(300)
    found = noise_and_denoise(pipe, word, images, seeds, batch=64)
    away = (found - images[choose_supports(seeds, 3)]).square().flatten(1).mean(1)
    starts = start_steps(seeds, STEPS)
    assert float(away[starts == STEPS - 1].mean()) < 0.5 * float(away[starts == 0].mean())


def test_mistakes(made):
    pipe, images, word = made
    with pytest.raises(ConfigError, match="batch must be 1 or more"):
        noise_and_denoise(pipe, word, images, 3, batch=0)
    with pytest.raises(ShapeError, match="Images must be"):
        noise_and_denoise(pipe, word, images.repeat(1, 3, 1, 1), 3)
    with pytest.raises(DataError, match="finite"):
        noise_and_denoise(pipe, word, images * float("nan"), 3)
    with pytest.raises(ConfigError, match="0 or more"):
        noise_and_denoise(pipe, word, images, -3)
    with pytest.raises(CheckpointError, match="was made with the model"):
        noise_and_denoise(Toy(seed=1), word, images, 3)
