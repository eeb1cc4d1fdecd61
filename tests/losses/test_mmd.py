import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.reference import naive_losses as naive

from fewgen.errors import ConfigError, ShapeError
from fewgen.losses.mmd import RBF, MixtureRBF, mmd2, mmd2_per_class

MULTIPLIERS = (0.25, 0.5, 1.0, 2.0, 4.0)


def sets(seed=0, n=9, m=7, dim=4, shift=0.7, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    a = torch.randn(n, dim, generator=rng, dtype=dtype)
    return a, torch.randn(m, dim, generator=rng, dtype=dtype) + shift


def gammas_of(kernel, pooled, labels=None):
    if isinstance(kernel, RBF):
        return [kernel.gamma]
    median = naive.median_sq_distance(pooled.numpy(), labels)
    scales = kernel.multipliers
    return [1 / (2 * scale * median) for scale in scales]


KERNELS = [RBF(0.3), MixtureRBF((1.0,)), MixtureRBF((2.0,)), MixtureRBF()]


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_mmd_equals_the_naive_loops(kernel, unbiased, dtype, tolerance):
    a, b = sets(dtype=dtype)
    expected = naive.mmd2(
        a.double().numpy(), b.double().numpy(), gammas_of(kernel, torch.cat([a, b]).double()), unbiased
    )
    assert mmd2(a, b, kernel, unbiased).item() == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_mmd_per_class_equals_the_naive_loops(kernel, unbiased):
    a, b = sets(n=11, m=9)
    # Class 3 is missing in b, class 4 in a, class 2 has one sample in b.
    labels_a = torch.tensor([0, 1, 2, 0, 1, 2, 0, 3, 3, 1, 0])
    labels_b = torch.tensor([0, 0, 1, 1, 1, 2, 4, 0, 4])
    labels = torch.cat([labels_a, labels_b]).numpy()
    counts = 2 if unbiased else 1
    usable = [k for k in range(5) if min((labels_a == k).sum(), (labels_b == k).sum()) >= counts]
    used = np.isin(labels, usable)
    pooled = torch.cat([a, b])[torch.from_numpy(used)]
    expected = naive.mmd2_per_class(
        a.numpy(),
        b.numpy(),
        labels_a.numpy(),
        labels_b.numpy(),
        gammas_of(kernel, pooled, labels[used]),
        unbiased,
    )
    got = mmd2_per_class(a, b, labels_a, labels_b, kernel, unbiased)
    assert got.item() == pytest.approx(expected, abs=1e-10)


samples = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.just(3)),
    elements=st.floats(-5, 5, width=32).map(lambda v: round(v, 3)),
)


@settings(max_examples=40, deadline=None)
@given(samples, samples, st.sampled_from(KERNELS))
def test_mmd_is_non_negative_symmetric_and_ignores_order(a, b, kernel):
    a, b = torch.from_numpy(a), torch.from_numpy(b)
    value = mmd2(a, b, kernel)
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert -1e-6 <= value <= 2 + 1e-6
    torch.testing.assert_close(value, mmd2(b, a, kernel), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(value, mmd2(a.flip(0), b.flip(0), kernel), atol=1e-5, rtol=1e-5)
    assert mmd2(a, a, kernel).abs() < 1e-6


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_mmd_grows_with_a_shift_of_the_mean(kernel):
    values = [mmd2(*sets(n=60, m=60, shift=shift), kernel).item() for shift in (0.0, 0.5, 1.0, 2.0)]
    assert values == sorted(values)


def test_fixed_gamma_has_no_gradient_in_20_dimensions_but_the_median_kernel_has():
    rng = torch.Generator().manual_seed(0)
    a = torch.randn(1, 20, generator=rng, dtype=torch.float64)
    b = a + (40.0 / 20) ** 0.5  # squared distance 40
    norms = {}
    for name, kernel in {"fixed": RBF(1.0), "median": MixtureRBF((1.0,)), "mixture": MixtureRBF()}.items():
        leaf = a.clone().requires_grad_()
        mmd2(leaf, b, kernel).backward()
        norms[name] = leaf.grad.norm().item()
    assert norms["fixed"] < 1e-10
    assert norms["median"] > 1e-2
    assert norms["mixture"] > 1e-2


def test_batch_mmd_is_blind_to_swapped_classes_and_the_per_class_one_is_not():
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 2
    centres = torch.tensor([[3.0, 0.0], [-3.0, 0.0]])
    a = centres[labels] + 0.1 * torch.randn(40, 2, generator=rng)
    b = centres[1 - labels] + 0.1 * torch.randn(40, 2, generator=rng)
    assert mmd2(a, b) < 0.02
    assert mmd2_per_class(a, b, labels, labels) > 0.5


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_duplicating_the_batch_changes_nothing(kernel):
    a, b = sets()
    torch.testing.assert_close(mmd2(a.repeat(2, 1), b.repeat(2, 1), kernel), mmd2(a, b, kernel))
    la, lb = torch.arange(9) % 3, torch.arange(7) % 3
    torch.testing.assert_close(
        mmd2_per_class(a.repeat(2, 1), b.repeat(2, 1), la.repeat(2), lb.repeat(2), kernel),
        mmd2_per_class(a, b, la, lb, kernel),
    )


@pytest.mark.parametrize("unbiased", [False, True])
def test_gradients_are_right(unbiased):
    a, b = (t.requires_grad_() for t in sets(n=5, m=4))
    labels = torch.tensor([0, 1, 0, 1, 1]), torch.tensor([0, 0, 1, 1])
    # Fixed gamma: a fitted bandwidth is detached on purpose, which finite differences cannot know.
    assert torch.autograd.gradcheck(lambda a, b: mmd2_per_class(a, b, *labels, RBF(0.2), unbiased), (a, b))


def test_equal_words_give_a_finite_bandwidth():
    word = torch.ones(6, 3)
    assert mmd2(word, word) == 0
    a, _ = sets(n=6, dim=3, dtype=torch.float32)
    leaf = a.requires_grad_()
    value = mmd2(leaf, word)
    value.backward()
    assert value.isfinite()
    assert leaf.grad.isfinite().all()


def test_no_class_in_common_gives_zero_with_a_gradient():
    a, b = (t.requires_grad_() for t in sets())
    value = mmd2_per_class(a, b, torch.zeros(9, dtype=torch.long), torch.ones(7, dtype=torch.long))
    value.backward()
    assert value == 0
    assert (a.grad == 0).all()


def test_bad_input_is_named():
    a, b = sets()
    with pytest.raises(ShapeError, match=r"\(9, 4\) and \(7, 3\)"):
        mmd2(a, b[:, :3])
    with pytest.raises(ShapeError, match="at least 2"):
        mmd2(a[:1], b, unbiased=True)
    with pytest.raises(ShapeError, match="labels_b"):
        mmd2_per_class(a, b, torch.zeros(9), torch.zeros(8))
    for wrong in (lambda: RBF(0.0), lambda: MixtureRBF((-1.0,)), lambda: MixtureRBF(())):
        with pytest.raises(ConfigError):
            wrong()
