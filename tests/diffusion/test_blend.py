import math
from typing import get_args

import numpy as np
import pytest
import torch
from tests.reference import naive_inversion as naive

from fewgen.diffusion.blend import NormMode, blend
from fewgen.errors import ConfigError, DataError, ShapeError


def ends(n=3, shape=(4, 8, 8), dtype=torch.float64, source_scale=0.3):
    rng = torch.Generator().manual_seed(0)
    return (
        source_scale * torch.randn(n, *shape, generator=rng, dtype=dtype),
        torch.randn(n, *shape, generator=rng, dtype=dtype),
    )


def norms(x):
    return x.double().flatten(1).norm(dim=1)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_equals_the_published_form_with_root_mean_squares(alpha):
    z, n = ends()
    assert np.allclose(blend(z, n, alpha).numpy(), naive.blend(z.numpy(), n.numpy(), alpha), atol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_norm_lies_between_those_of_the_ends(alpha):
    z, n = ends()
    expected = (1 - alpha) * norms(z) + alpha * norms(n)
    assert torch.allclose(norms(blend(z, n, alpha)), expected, rtol=1e-12)
    # the control: without rescaling it does not
    if 0 < alpha < 1:
        assert (norms(blend(z, n, alpha, "none")) < 0.95 * expected).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_both_ends_are_exact(dtype):
    z, n = (x.to(dtype) for x in ends())
    assert torch.equal(blend(z, n, 0.0), z)
    assert torch.equal(blend(z, n, 1.0), n)
    assert torch.equal(blend(z, n, 1.0, "gaussian"), n)
    assert blend(z, n, 0.5).dtype == dtype


def test_linear_blend_of_independent_gaussians_is_too_short():
    z, n = ends(8, (4, 32, 32), source_scale=1.0)
    length = norms(blend(z, n, 0.5, "none")) / norms(n)
    assert torch.allclose(length, torch.full((8,), math.sqrt(0.5), dtype=torch.float64), atol=0.03)
    assert torch.allclose(norms(blend(z, n, 0.5)) / norms(n), torch.ones(8, dtype=torch.float64), atol=0.03)


def test_gaussian_norm_is_that_of_the_noise_and_so_does_not_reproduce():
    z, n = ends()
    for alpha in (0.0, 0.3, 1.0):
        assert torch.allclose(norms(blend(z, n, alpha, "gaussian")), norms(n), rtol=1e-12)
    assert not torch.allclose(blend(z, n, 0.0, "gaussian"), z, atol=0.1)


def test_each_sample_may_have_its_own_alpha_and_its_own_norm():
    z, n = ends()
    alphas = torch.tensor([0.0, 0.4, 1.0])
    together = blend(z, n, alphas)
    for i in range(3):
        alone = blend(z[i : i + 1], n[i : i + 1], float(alphas[i].double()))
        assert torch.allclose(together[i : i + 1], alone, atol=1e-12)


@pytest.mark.parametrize("mode", ["interp", "gaussian"])
def test_a_sum_of_norm_zero_is_refused(mode):
    _, n = ends()
    with pytest.raises(DataError, match="norm 0"):
        blend(-n, n, 0.5, mode)
    with pytest.raises(DataError, match="Blended latent 0"):
        blend(torch.zeros_like(n), n, 0.0, mode)
    near = -n.float() * (1 + 1e-7)
    with pytest.raises(DataError, match="nothing to rescale"):
        blend(near, n.float(), 0.5, mode)
    assert torch.equal(blend(-n, n, 0.5, "none"), torch.zeros_like(n))


@pytest.mark.parametrize("alpha", [-0.01, 1.01, math.nan, math.inf])
def test_alpha_outside_its_range_is_refused(alpha):
    with pytest.raises(ConfigError, match=r"alpha must lie in \[0, 1\]"):
        blend(*ends(), alpha)


def test_other_bad_input_is_refused():
    z, n = ends()
    with pytest.raises(ShapeError, match="one shape"):
        blend(z, n[:1], 0.5)
    with pytest.raises(ShapeError, match="2 values of alpha for 3"):
        blend(z, n, torch.tensor([0.1, 0.2]))
    with pytest.raises(ConfigError, match=", ".join(get_args(NormMode))):
        blend(z, n, 0.5, "rms")
    z[0, 0, 0, 0] = math.nan
    with pytest.raises(DataError, match="not finite"):
        blend(z, n, 0.5)
