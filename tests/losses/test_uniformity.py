import itertools
import math

import pytest
import torch
from tests.reference import naive_gan as naive

from fewgen.errors import ConfigError, ShapeError
from fewgen.losses.uniformity import uniformity


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def random_codes(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=rng(seed), dtype=dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("t", [0.5, 2.0, 8.0])
def test_equals_the_loop_over_pairs(t, dtype, tolerance):
    codes = random_codes(17, 4)
    value = uniformity(codes.to(dtype), t)
    assert value.item() == pytest.approx(naive.uniformity(codes.numpy(), t), abs=tolerance)


def test_tables_are_averaged():
    tables = random_codes(3, 9, 4)
    expected = sum(naive.uniformity(table.numpy()) for table in tables) / 3
    assert uniformity(tables).item() == pytest.approx(expected, abs=1e-12)
    # Codes of different positions are no pairs.
    assert abs(uniformity(tables.flatten(0, 1)).item() - expected) > 1e-3


def test_all_equal_codes_give_zero_and_antipodes_the_least():
    assert uniformity(torch.ones(8, 4, dtype=torch.float64)).item() == pytest.approx(0, abs=1e-12)
    assert uniformity(random_codes(1, 4).float() * torch.rand(8, 1, generator=rng())).item() == pytest.approx(
        0, abs=1e-5
    )
    assert uniformity(torch.tensor([[1.0], [-1.0]]), t=3.0).item() == pytest.approx(-12.0)


def test_ignores_lengths_order_and_rotation():
    codes = random_codes(20, 4)
    value = uniformity(codes)
    lengths = torch.rand(20, 1, generator=rng(1), dtype=torch.float64) * 9 + 0.1
    torch.testing.assert_close(uniformity(codes * lengths), value)
    torch.testing.assert_close(uniformity(codes.flip(0)), value)
    rotation = torch.linalg.qr(random_codes(4, 4, seed=2))[0]
    torch.testing.assert_close(uniformity(codes @ rotation), value)


def test_falls_when_equal_codes_separate_and_is_lower_for_the_cube_than_for_a_cluster():
    codes = random_codes(10, 4)
    codes[1] = codes[0]
    together = uniformity(codes).item()
    codes[1] = -codes[0]
    assert uniformity(codes).item() < together
    cube = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4)))
    cluster = torch.ones(16, 4) + 0.3 * random_codes(16, 4, dtype=torch.float32)
    assert uniformity(cube).item() < uniformity(cluster).item() - 1


def test_gradient_is_right_and_descent_spreads_a_cluster():
    codes = random_codes(2, 6, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda c: uniformity(c), (codes,))
    cluster = (torch.ones(16, 4) + 0.05 * random_codes(16, 4, dtype=torch.float32)).requires_grad_()
    start = uniformity(cluster).item()
    optimizer = torch.optim.Adam([cluster], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        uniformity(cluster).backward()
        optimizer.step()
    cube = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4)))
    assert start > -0.2
    assert uniformity(cluster).item() < uniformity(cube).item() + 0.1


@pytest.mark.parametrize("length", [0.0, 1e-20, 1e-9])
def test_a_code_of_length_zero_has_no_gradient_and_no_nan(length):
    codes = random_codes(5, 4, dtype=torch.float32)
    codes[2] = length * torch.tensor([1.0, 0.0, 0.0, 0.0])
    codes.requires_grad_()
    value = uniformity(codes)
    value.backward()
    assert math.isfinite(value.item())
    assert torch.equal(codes.grad[2], torch.zeros(4))
    assert codes.grad[[0, 1, 3, 4]].abs().min(1).values.min() > 0
    assert codes.grad.abs().max() < 10


def test_nan_is_not_hidden():
    codes = random_codes(5, 4)
    codes[0, 0] = torch.nan
    assert math.isnan(uniformity(codes).item())


def test_many_codes_are_drawn_reproducibly():
    codes = random_codes(300, 4)
    whole = uniformity(codes).item()
    drawn = [uniformity(codes, most=100, rng=rng(seed)).item() for seed in range(30)]
    assert drawn[0] == uniformity(codes, most=100, rng=rng(0)).item()
    assert len(set(drawn)) == 30
    assert sum(drawn) / 30 == pytest.approx(whole, abs=0.02)
    assert uniformity(codes, most=300).item() == whole
    rows = torch.randperm(300, generator=rng(4))[:100]
    assert uniformity(codes, most=100, rng=rng(4)).item() == pytest.approx(
        naive.uniformity(codes[rows].numpy()), abs=1e-12
    )
    tables = torch.stack([codes, -codes])
    assert uniformity(tables, most=100, rng=rng(0)).item() == pytest.approx(drawn[0], abs=1e-12)


def test_bad_input_is_an_error():
    codes = random_codes(5, 4)
    for bad in (codes[:1], codes[0], codes[:0], codes[None, :1], codes[:, :0]):
        with pytest.raises(ShapeError, match="K >= 2"):
            uniformity(bad)
    for t in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="above 0"):
            uniformity(codes, t)
    with pytest.raises(ConfigError, match="most=5"):
        uniformity(codes, most=4)
    with pytest.raises(ConfigError, match="2 or more"):
        uniformity(codes, most=1, rng=rng())


def test_mixed_precision_changes_nothing():
    codes = random_codes(50, 4, dtype=torch.float32).requires_grad_()
    uniformity(codes).backward()
    value, gradient = uniformity(codes).item(), codes.grad
    codes.grad = None
    with torch.autocast("cpu", torch.bfloat16):
        mixed = uniformity(codes)
    mixed.backward()
    assert mixed.item() == value
    assert torch.equal(codes.grad, gradient)
