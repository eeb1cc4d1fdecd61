import math

import numpy as np
import pytest
import torch
from tests.reference import naive_gan as naive
from torch import nn

from fewgen.errors import ConfigError, DataError, ShapeError
from fewgen.losses.adversarial import (
    LOSSES,
    PathLength,
    discriminator_loss,
    discriminator_terms,
    generator_loss,
    generator_term,
    hinge_discriminator_loss,
    hinge_generator_loss,
    mismatch_term,
    r1_penalty,
    relativistic_loss,
)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def discriminator(seed=0, channels=2):
    """A smooth one for 4 x 4 images, float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(channels, 3, 3, padding=1),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(48, 4),
            nn.Softplus(),
            nn.Linear(4, 1),
        )
    return net.double()


def images(n=3, seed=1):
    return torch.randn(n, 2, 4, 4, generator=rng(seed), dtype=torch.float64)


def test_losses_equal_the_cross_entropy_of_the_paper():
    real, fake = (torch.randn(n, generator=rng(n), dtype=torch.float64) * 3 for n in (5, 7))
    real_term, fake_term = discriminator_loss(real, fake)
    assert real_term.item() == pytest.approx(naive.cross_entropy_of_sigmoid(real.numpy(), real=True))
    assert fake_term.item() == pytest.approx(naive.cross_entropy_of_sigmoid(fake.numpy(), real=False))
    assert generator_loss(fake).item() == pytest.approx(
        naive.cross_entropy_of_sigmoid(fake.numpy(), real=True)
    )
    # The saturating form of the generator is another number.
    assert generator_loss(fake).item() != pytest.approx(-fake_term.item(), abs=0.1)


def test_losses_at_zero_and_at_extreme_logits():
    zero = torch.zeros(4)
    assert generator_loss(zero).item() == pytest.approx(math.log(2))
    assert [t.item() for t in discriminator_loss(zero, zero)] == pytest.approx([math.log(2)] * 2)
    far = torch.tensor([-500.0, 500.0], requires_grad=True)
    loss = generator_loss(far)
    loss.backward()
    assert loss.item() == pytest.approx(250.0)
    # It does not saturate: a generated image that is surely recognised keeps the full slope.
    torch.testing.assert_close(far.grad, torch.tensor([-0.5, 0.0]))


def test_losses_of_an_empty_batch_are_errors():
    for call in (
        lambda: generator_loss(torch.zeros(0)),
        lambda: discriminator_loss(torch.zeros(0), torch.zeros(1)),
        lambda: discriminator_loss(torch.zeros(1), torch.zeros(0)),
    ):
        with pytest.raises(ShapeError, match="at least one image"):
            call()


def test_r1_equals_finite_differences():
    net, x = discriminator(), images()
    slopes = naive.finite_differences(lambda v: net(torch.from_numpy(v)).sum().item(), x.numpy())
    expected = (slopes**2).sum() / len(x)
    x.requires_grad_()
    assert r1_penalty(net(x), x).item() == pytest.approx(expected, rel=1e-6)
    assert r1_penalty(net(x)[:, 0], x).item() == pytest.approx(expected, rel=1e-6)


def test_hinge_by_hand():
    real, fake = torch.tensor([[2.0, 0.5], [-1.0, 1.0]]), torch.tensor([[-3.0], [0.25], [1.0]])
    real.requires_grad_(True)
    fake.requires_grad_(True)
    on_real, on_fake = hinge_discriminator_loss(real, fake)
    assert on_real.item() == pytest.approx((0 + 0.5 + 2 + 0) / 4)
    assert on_fake.item() == pytest.approx((0 + 1.25 + 2) / 3)
    slopes = torch.autograd.grad(on_real + on_fake, [real, fake])
    # Beyond the margin nothing is learned; within, every place counts alike.
    assert slopes[0].tolist() == [[0, -0.25], [-0.25, 0]]
    torch.testing.assert_close(slopes[1], torch.tensor([[0.0], [1 / 3], [1 / 3]]))
    assert hinge_generator_loss(fake).item() == pytest.approx(1.75 / 3)


def test_the_relativistic_loss_by_hand():
    real, fake = torch.tensor([1.0, -2.0], requires_grad=True), torch.tensor([0.0, 1.0], requires_grad=True)
    loss = relativistic_loss(real, fake)
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-1)) + math.log(1 + math.exp(3))) / 2)
    assert relativistic_loss(fake, real).item() == pytest.approx(loss.item() - (-1 + 3) / 2)
    slopes = torch.autograd.grad(loss, [real, fake])
    wanted = torch.tensor([1 / (1 + math.exp(1)), 1 / (1 + math.exp(-3))]) / 2
    torch.testing.assert_close(slopes[1], wanted)
    torch.testing.assert_close(slopes[0], -wanted)
    # Each image is measured against its own partner: what moves both alike does not count.
    moved = torch.tensor([5.0, -7.0])
    assert relativistic_loss(real + moved, fake + moved).item() == pytest.approx(loss.item())
    assert relativistic_loss(real, real).item() == pytest.approx(math.log(2))
    with pytest.raises(ShapeError, match="pairs"):
        relativistic_loss(real, fake[:1])
    with pytest.raises(ShapeError):
        relativistic_loss(real[:0], fake[:0])


@pytest.mark.parametrize("kind", LOSSES)
def test_losses_are_sums_over_heads(kind):
    real = [torch.randn(4, n, generator=rng(n)) for n in (16, 4)]
    fake = [torch.randn(4, n, generator=rng(n + 1)) for n in (16, 4)]
    terms, one = discriminator_terms(kind, real, fake), generator_term(kind, fake, real)
    single = [discriminator_terms(kind, [a], [b]) for a, b in zip(real, fake, strict=True)]
    for name, value in terms.items():
        assert value.item() == pytest.approx(sum(part[name].item() for part in single))
    alone = sum(generator_term(kind, [b], [a]).item() for a, b in zip(real, fake, strict=True))
    assert one.item() == pytest.approx(alone)
    a, b = real[0], fake[0]
    expected = {
        "logistic": lambda: (*discriminator_loss(a, b), generator_loss(b)),
        "hinge": lambda: (*hinge_discriminator_loss(a, b), hinge_generator_loss(b)),
        "relativistic": lambda: (relativistic_loss(a, b), relativistic_loss(b, a)),
    }[kind]()
    assert (*single[0].values(), generator_term(kind, [b], [a])) == expected
    # Under another class, real images count as generated ones; never as real ones twice.
    wrong = mismatch_term(kind, [a], [b])
    assert wrong == (expected[0] if kind == "relativistic" else expected[1])


def test_an_unknown_loss_and_one_without_its_partners_are_refused():
    x = [torch.zeros(2)]
    for call in (lambda: discriminator_terms("wgan", x, x), lambda: generator_term("wgan", x)):
        with pytest.raises(ConfigError, match="wgan"):
            call()
    with pytest.raises(ConfigError, match="real images"):
        generator_term("relativistic", x)


def test_r1_of_a_linear_discriminator_is_its_squared_weight():
    weight = torch.tensor([3.0, -4.0], requires_grad=True)
    x = torch.randn(6, 2, generator=rng()).requires_grad_()
    penalty = r1_penalty(x @ weight, x)
    penalty.backward()
    assert penalty.item() == pytest.approx(25.0)
    torch.testing.assert_close(weight.grad, torch.tensor([6.0, -8.0]))


def test_r1_gradient_in_the_parameters_equals_finite_differences():
    net, x = discriminator(), images().requires_grad_()
    weight = net[3].weight

    def penalty_at(values):
        with torch.no_grad():
            kept = weight.clone()
            weight.copy_(torch.from_numpy(values))
        value = r1_penalty(net(x), x).item()
        with torch.no_grad():
            weight.copy_(kept)
        return value

    start = weight.detach().numpy().copy()
    expected = naive.finite_differences(penalty_at, start)
    r1_penalty(net(x), x).backward()
    assert np.abs(expected).max() > 1e-4
    np.testing.assert_allclose(weight.grad.numpy(), expected, atol=1e-8)


def test_lazy_r1_times_the_interval_gives_the_same_gradient_over_an_interval():
    net, interval, gamma = discriminator(), 4, 0.1
    x = images().requires_grad_()

    def gradient(steps, factor):
        net.zero_grad()
        for _ in range(steps):
            (gamma / 2 * factor * r1_penalty(net(x), x)).backward()
        return net[0].weight.grad.clone()

    each = gradient(interval, 1)
    torch.testing.assert_close(gradient(1, interval), each)
    assert (gradient(1, 1) - each).abs().max() > 0.5 * each.abs().max()


def test_r1_says_what_is_missing():
    net, x = discriminator(), images()
    with pytest.raises(DataError, match="requires_grad_"):
        r1_penalty(net(x), x)
    x.requires_grad_()
    with torch.no_grad():
        logits = net(x)
    with pytest.raises(DataError, match="no_grad"):
        r1_penalty(logits, x)
    with pytest.raises(DataError, match="do not depend"):
        r1_penalty(net(images()), x)
    with pytest.raises(ShapeError, match="one logit per image"):
        r1_penalty(net(x)[:2], x)
    with pytest.raises(ShapeError):
        r1_penalty(net(x[:0]), x[:0])


def generator(seed=0, layers=2, width=5):
    """Smooth images of three channels, 4 x 4, from styles (B, layers, width), float64."""
    weight = torch.randn(layers * width, 48, generator=rng(seed), dtype=torch.float64) * 0.3
    weight.requires_grad_()
    return weight, lambda styles: torch.tanh(styles.flatten(1) @ weight).view(-1, 3, 4, 4)


@pytest.mark.parametrize("per_layer", [True, False])
def test_path_length_equals_finite_differences(per_layer):
    layers = 2 if per_layer else 1
    weight, g = generator(layers=layers)
    styles = torch.randn(3, layers, 5, generator=rng(3), dtype=torch.float64)
    styles = styles if per_layer else styles[:, 0]
    noise = torch.randn(3, 3, 4, 4, generator=rng(9), dtype=torch.float64) / 4.0
    slopes = naive.finite_differences(
        lambda w: float((g(torch.from_numpy(w)) * noise).sum().detach()), styles.numpy()
    )
    lengths = [
        math.sqrt(np.mean([(slopes[i].reshape(layers, 5)[k] ** 2).sum() for k in range(layers)]))
        for i in range(3)
    ]
    penalty = PathLength(decay=0.25)
    mean = 0.0
    styles.requires_grad_()
    for _ in range(3):
        mean += 0.25 * (np.mean(lengths) - mean)
        value = penalty(g(styles), styles, rng(9))
        assert penalty.mean.item() == pytest.approx(mean, rel=1e-6)
        assert value.item() == pytest.approx(np.mean((np.array(lengths) - mean) ** 2), rel=1e-5)
    value.backward()
    assert weight.grad.abs().max() > 0


def test_path_length_gradient_treats_the_mean_as_a_constant():
    weight, g = generator()
    styles = torch.randn(3, 2, 5, generator=rng(3), dtype=torch.float64, requires_grad=True)
    penalty = PathLength().double().eval()
    penalty.mean.fill_(0.7)

    def at(values):
        kept = weight.detach().clone()
        weight.data.copy_(torch.from_numpy(values))
        value = penalty(g(styles), styles, rng(9)).item()
        weight.data.copy_(kept)
        return value

    expected = naive.finite_differences(at, weight.detach().numpy().copy())
    penalty(g(styles), styles, rng(9)).backward()
    np.testing.assert_allclose(weight.grad.numpy(), expected, atol=1e-7)


def test_path_length_is_zero_for_an_isometry_and_moves_only_in_training():
    # Every style moves its own pixel by the same amount, so with one pixel all lengths are |y|.
    styles = torch.randn(64, 1, generator=rng(), requires_grad=True)
    penalty = PathLength(decay=1.0)
    value = penalty(styles.view(-1, 1, 1, 1), styles, rng(2))
    y = torch.randn(64, 1, 1, 1, generator=rng(2)).abs().flatten()
    assert penalty.mean.item() == pytest.approx(y.mean().item(), rel=1e-6)
    assert value.item() == pytest.approx(y.var(correction=0).item(), rel=1e-5)
    penalty.eval()
    kept = penalty.mean.clone()
    penalty(100 * styles.view(-1, 1, 1, 1), styles, rng(3))
    assert torch.equal(penalty.mean, kept)
    assert penalty.state_dict().keys() == {"mean"}


def test_path_length_two_forwards_before_one_backward():
    weight, g = generator()
    styles = torch.randn(3, 2, 5, generator=rng(3), dtype=torch.float64, requires_grad=True)
    penalty = PathLength()
    (penalty(g(styles), styles, rng(1)) + penalty(g(styles), styles, rng(2))).backward()
    assert torch.isfinite(weight.grad).all()


def test_path_length_of_a_constant_generator_has_no_nan():
    weight = torch.zeros(5, 48, requires_grad=True)
    styles = torch.randn(3, 5, generator=rng(), requires_grad=True)
    value = PathLength()((styles @ weight).view(3, 3, 4, 4), styles, rng())
    value.backward()
    assert value.item() == 0
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_path_length_says_what_is_wrong():
    _, g = generator()
    styles = torch.randn(3, 2, 5, generator=rng(3), dtype=torch.float64)
    with pytest.raises(DataError, match="styles.requires_grad_"):
        PathLength()(g(styles), styles, rng())
    with pytest.raises(DataError, match="do not depend"):
        PathLength()(g(styles), styles.clone().requires_grad_(), rng())
    with pytest.raises(ShapeError):
        PathLength()(g(styles)[:2], styles.requires_grad_(), rng())
    for decay in (0.0, 1.5, math.nan):
        with pytest.raises(ConfigError, match="must be in"):
            PathLength(decay)


def test_logits_and_styles_of_half_precision_are_summed_in_float32():
    logits = torch.randn(200, generator=rng()).to(torch.bfloat16)
    assert generator_loss(logits).dtype == torch.float32
    torch.testing.assert_close(generator_loss(logits), generator_loss(logits.float()))
    assert {t.dtype for t in discriminator_loss(logits, logits)} == {torch.float32}
    styles = torch.randn(8, 48, generator=rng()).to(torch.bfloat16).requires_grad_()
    full = styles.detach().float().requires_grad_()
    half = PathLength()(styles.view(8, 3, 4, 4), styles, rng(1))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, PathLength()(full.view(8, 3, 4, 4), full, rng(1)), rtol=1e-2, atol=0)
