"""Noise schedules and the move between times, against printed formulas and diffusers' own scheduler."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from tests.reference import naive_diffusion

from fewgen.diffusion.schedule import NoiseSchedule
from fewgen.errors import ConfigError, DataError, ShapeError

SD = NoiseSchedule.scaled_linear()


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_schedules_equal_the_printed_formulas():
    np.testing.assert_allclose(SD.alphas_cumprod, naive_diffusion.scaled_linear(), rtol=1e-12)
    np.testing.assert_allclose(NoiseSchedule.cosine().alphas_cumprod, naive_diffusion.cosine(), rtol=1e-9)
    assert len(SD) == 1000
    assert SD.bar(999) == pytest.approx(0.00466, abs=1e-5)  # Stable Diffusion's known last value


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("scaled_linear", SD),
        ("linear", NoiseSchedule.linear()),
        ("squaredcos_cap_v2", NoiseSchedule.cosine()),
    ],
)
def test_schedules_equal_those_of_diffusers(name, ours):
    ends = {"beta_start": 0.00085, "beta_end": 0.012} if name == "scaled_linear" else {}
    theirs = DDIMScheduler(beta_schedule=name, **ends).alphas_cumprod.double()
    torch.testing.assert_close(ours.alphas_cumprod, theirs, rtol=2e-4, atol=1e-6)  # theirs is float32


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 16, 25, 30, 50, 100, 1000])
def test_times_equal_those_of_diffusers(steps):
    theirs = DDIMScheduler(timestep_spacing="trailing")
    theirs.set_timesteps(steps)
    assert SD.timesteps(steps) == theirs.timesteps.tolist()


def test_times_of_the_paper():
    times = SD.timesteps(50)
    assert (times[:2], times[-1], len(times)) == ([999, 979], 19, 50)
    for steps in (0, -1, 1001):
        with pytest.raises(ConfigError, match="between 1 and 1000"):
            SD.timesteps(steps)


@pytest.mark.parametrize(("a", "b"), [(999, 979), (19, None), (500, 20), (0, 999), (None, 19)])
def test_a_move_and_back_is_the_identity(a, b):
    z, eps = normal(3, 2, 4, 4), normal(3, 2, 4, 4, seed=1)
    there = SD.move(z, eps, a, b)
    torch.testing.assert_close(SD.move(there, eps, b, a), z, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(there, z)


@pytest.mark.parametrize(("a", "b"), [(999, 979), (19, -1), (20, 500)])
def test_a_move_is_the_printed_formula(a, b):
    z, eps = normal(2, 3), normal(2, 3, seed=1)
    expected = naive_diffusion.move(z, eps, SD.bar(a), SD.bar(b))
    np.testing.assert_allclose(SD.move(z, eps, a, b), expected, rtol=1e-10)


def test_a_move_equals_the_step_of_diffusers():
    theirs = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
        set_alpha_to_one=False, timestep_spacing="trailing",
    )  # fmt: skip
    theirs.set_timesteps(25)
    times = SD.timesteps(25)
    z, eps = normal(2, 3, 4, 4, dtype=torch.float32), normal(2, 3, 4, 4, seed=1, dtype=torch.float32)
    for i, t in enumerate(times):
        b = times[i + 1] if i + 1 < len(times) else None
        expected = theirs.step(eps, t, z, eta=0.0).prev_sample
        torch.testing.assert_close(SD.move(z, eps, t, b), expected, rtol=1e-5, atol=1e-5)
    # Negative control: the customary end, abar = 1, is another one.
    theirs.final_alpha_cumprod = torch.tensor(1.0)
    assert (SD.move(z, eps, 39, None) - theirs.step(eps, 39, z).prev_sample).abs().max() > 1e-3


def test_noise_and_velocity_take_each_other_back():
    z0, eps, t = normal(4, 2, 3, 3), normal(4, 2, 3, 3, seed=1), torch.tensor([0, 19, 500, 999])
    z = SD.add_noise(z0, eps, t)
    for i in range(4):
        bar = SD.bar(int(t[i]))
        torch.testing.assert_close(z[i], bar**0.5 * z0[i] + (1 - bar) ** 0.5 * eps[i])
        torch.testing.assert_close(SD.clean(z[i : i + 1], eps[i : i + 1], int(t[i])), z0[i : i + 1])
    torch.testing.assert_close(SD.noise_of_velocity(z, SD.velocity(z0, eps, t), t), eps)
    torch.testing.assert_close(SD.add_noise(z0, eps, 500)[2], z[2])
    theirs = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    torch.testing.assert_close(theirs.add_noise(z0, eps, t), z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(theirs.get_velocity(z0, eps, t), SD.velocity(z0, eps, t), rtol=1e-4, atol=1e-4)


def test_precision_is_that_of_the_latents():
    z = normal(2, 3, dtype=torch.float16)
    assert SD.move(z, z, 999, 979).dtype == torch.float16
    assert SD.add_noise(z, z, 3).dtype == torch.float16


def test_a_schedule_can_be_made_under_the_meta_device():
    with torch.device("meta"):
        assert NoiseSchedule.scaled_linear().bar(999) == SD.bar(999)
        assert NoiseSchedule.cosine().bar(0) == NoiseSchedule.cosine().bar(0)
        NoiseSchedule.linear()


def test_bad_schedules_and_times_are_refused():
    for bars in ([0.5, 0.0], [1.0, 0.5], [0.5, 0.6], [0.5, float("nan")]):
        with pytest.raises(ConfigError, match="fall strictly"):
            NoiseSchedule(torch.tensor(bars))
    for shape in ((0,), (2, 2)):
        with pytest.raises(ShapeError):
            NoiseSchedule(torch.full(shape, 0.5))
    z = normal(2, 3)
    for t in (1000, -2):
        with pytest.raises(DataError, match="no time"):
            SD.move(z, z, t, 0)
    with pytest.raises(DataError, match=r"0 \.\.\. 999"):
        SD.add_noise(z, z, torch.tensor([0, 1000]))
    with pytest.raises(DataError, match="int64"):
        SD.add_noise(z, z, torch.tensor([0.0, 1.0]))
    with pytest.raises(ShapeError, match="2 latents"):
        SD.add_noise(z, z, torch.tensor([0, 1, 2]))
