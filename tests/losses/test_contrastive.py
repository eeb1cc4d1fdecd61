import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.losses import SupConLoss
from tests.reference import naive_losses as naive

from fewgen.errors import ConfigError, ShapeError
from fewgen.losses.contrastive import supervised_contrastive


def batch(n=12, dim=5, classes=3, seed=0, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=rng, dtype=dtype), torch.arange(n) % classes


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_equals_the_naive_loop_and_pytorch_metric_learning(dtype, tolerance, temperature):
    features, labels = batch(dtype=dtype)
    labels[0] = 99  # a sample without a partner
    value = supervised_contrastive(features, labels, temperature)
    expected = naive.supervised_contrastive(features.double().numpy(), labels.numpy(), temperature)
    assert value.item() == pytest.approx(expected, abs=tolerance)
    rival = SupConLoss(temperature=temperature)(features, labels)
    assert value.item() == pytest.approx(rival.item(), abs=10 * tolerance)


def test_the_wrong_mask_is_caught():
    features, labels = batch()
    wrong = naive.supervised_contrastive_wrong_mask(features.numpy(), labels.numpy(), 0.5)
    assert abs(supervised_contrastive(features, labels, 0.5).item() - wrong) > 1e-2
    # What the wrong mask computes from 1-D labels: every pair is a positive.
    assert torch.eq(labels, labels).all()


def test_two_per_class_is_two_view_nt_xent():
    features, _ = batch(n=8)
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    expected = naive.nt_xent(features.numpy(), [4, 5, 6, 7, 0, 1, 2, 3], 0.5)
    assert supervised_contrastive(features, labels, 0.5).item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_one_class_with_equal_similarities_gives_log_of_n_minus_1(n):
    value = supervised_contrastive(torch.ones(n, 4), torch.zeros(n, dtype=torch.long), 0.5)
    assert value.item() == pytest.approx(math.log(n - 1), abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=8),
    st.floats(1e-3, 1e3),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_is_a_finite_scalar_whatever_the_classes_and_the_scale(labels, scale, dtype):
    labels = torch.tensor(labels)
    features, _ = batch(n=len(labels), dtype=dtype)
    leaf = (features * scale).requires_grad_()
    value = supervised_contrastive(leaf, labels, 0.5)
    value.backward()
    assert value.shape == ()
    assert value.dtype == dtype
    assert value.isfinite()
    assert leaf.grad.isfinite().all()
    torch.testing.assert_close(value, supervised_contrastive(features, labels, 0.5), rtol=1e-4, atol=1e-4)


def test_large_logits_stay_finite():
    features, labels = batch(dtype=torch.float32)
    leaf = (1e4 * features).requires_grad_()
    value = supervised_contrastive(leaf, labels, temperature=1e-4)
    value.backward()
    assert value.isfinite()
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("labels", [[0], [0, 1, 2]])
def test_without_partners_the_loss_is_zero_with_a_gradient(labels):
    leaf = batch(n=len(labels))[0].requires_grad_()
    value = supervised_contrastive(leaf, torch.tensor(labels), 0.5)
    value.backward()
    assert value == 0
    assert (leaf.grad == 0).all()


def test_gradient_is_right():
    features, labels = batch(n=6)
    assert torch.autograd.gradcheck(lambda f: supervised_contrastive(f, labels), features.requires_grad_())


def test_bad_input_is_named():
    features, labels = batch()
    with pytest.raises(ShapeError, match=r"\(12, 1\)"):
        supervised_contrastive(features, labels[:, None])
    with pytest.raises(ConfigError, match="temperature"):
        supervised_contrastive(features, labels, 0.0)
