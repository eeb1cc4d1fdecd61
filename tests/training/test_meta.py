"""Inner loops and outer gradients against closed forms, finite differences and torch's own optimisers."""

from __future__ import annotations

import math
import weakref

import numpy as np
import pytest
import torch
from tests.reference import naive_meta as naive
from torch import nn
from torch.func import functional_call

from fewgen.errors import ConfigError, TrainingError
from fewgen.training.meta.gradients import Part, Task, maml_gradient, reptile_gradient
from fewgen.training.meta.inner import SGD, Adam, inner_loop, make_inner_optimizer, parameters_of
from fewgen.training.meta.settings import MetaConfig, check_algorithm


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------ a quadratic: every answer is a formula

D = 5


def quadratic_loss(parameters, part, rng=None):
    """(t - c)' H (t - c) / 2, averaged over the rows of the part, whose matrix travels as its vectors."""
    away = parameters["t"] - part.images
    return 0.5 * torch.einsum("bi,ij,bj->b", away, part.vectors, away).mean()


def quadratic_task(seed=0):
    """Support and query with different curvature and centres; the gradient depends on both."""
    rng = np.random.default_rng(seed)
    parts = []
    for n in (3, 4):
        root = rng.normal(size=(D, D))
        centres = rng.normal(size=(n, D))
        parts.append((root @ root.T / D + np.eye(D), centres))
    task = Task(*(Part(torch.tensor(c), torch.zeros(len(c)), torch.tensor(h)) for h, c in parts))
    (h_s, c_s), (h_q, c_q) = parts
    return task, (h_s, c_s.mean(0)), (h_q, c_q.mean(0)), rng.normal(size=D)


def check_quadratic(gradient, steps, decay=1.0, lr=0.2):
    """The exact gradient of Finn et al.'s objective; fails for everything else, FOMAML included."""
    task, support, query, theta = quadratic_task()
    rates = [lr] if steps == 1 else list(np.linspace(lr, decay * lr, steps))
    exact, _ = naive.quadratic_maml(theta, support, query, rates)
    found = gradient(
        quadratic_loss, {"t": torch.tensor(theta)}, task, SGD(lr), steps, seeded(), decay=decay
    ).gradient
    np.testing.assert_allclose(found["t"].numpy(), exact, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("decay", [1.0, 0.25])
@pytest.mark.parametrize("steps", [1, 3])
def test_maml_on_a_quadratic_is_the_product_of_i_minus_a_h_times_g(steps, decay):
    check_quadratic(maml_gradient, steps, decay)


@pytest.mark.parametrize("steps", [1, 3])
def test_fomaml_passed_off_as_maml_is_caught(steps):
    def first_order(*args, **keywords):
        return maml_gradient(*args, **keywords, first_order=True)

    with pytest.raises(AssertionError):
        check_quadratic(first_order, steps)


@pytest.mark.parametrize("steps", [1, 3])
def test_fomaml_on_a_quadratic_is_g_at_the_adapted_point(steps):
    task, support, query, theta = quadratic_task()
    _, g = naive.quadratic_maml(theta, support, query, [0.2] * steps)
    found = maml_gradient(
        quadratic_loss, {"t": torch.tensor(theta)}, task, SGD(0.2), steps, seeded(), first_order=True
    )
    np.testing.assert_allclose(found.gradient["t"].numpy(), g, rtol=1e-12)


def test_losses_are_those_before_and_after_adapting():
    task, support, query, theta = quadratic_task()
    start = {"t": torch.tensor(theta)}
    before = float(quadratic_loss(start, task.support))
    for first_order in (False, True):
        found = maml_gradient(quadratic_loss, start, task, SGD(0.2), 3, seeded(), first_order=first_order)
        end = theta.copy()
        for _ in range(3):
            end = end - 0.2 * support[0] @ (end - support[1])
        after = float(quadratic_loss({"t": torch.tensor(end)}, task.query))
        assert found.support_loss == pytest.approx(before, rel=1e-12)
        assert found.query_loss == pytest.approx(after, rel=1e-12)


def meta_loss(start, tasks, lr=0.2, steps=3):
    """What every algorithm is after: the mean query loss after adapting on the support."""
    total = 0.0
    for task in tasks:

        def support_loss(parameters, _, task=task):
            return quadratic_loss(parameters, task.support)

        end = inner_loop(support_loss, start, SGD(lr), steps)
        total += float(quadratic_loss(end, task.query)) / len(tasks)
    return total


@pytest.mark.parametrize("algorithm", ["maml", "fomaml", "reptile"])
def test_the_way_down_is_against_the_gradient(algorithm):
    """And a wrong sign goes up: the negative control of the same measurement."""
    tasks = [quadratic_task(seed)[0] for seed in range(6)]
    start = {"t": torch.full((D,), 2.0, dtype=torch.float64)}
    gradients = []
    for task in tasks:
        if algorithm == "reptile":
            found = reptile_gradient(quadratic_loss, start, task, SGD(0.2), 3, seeded())
        else:
            found = maml_gradient(
                quadratic_loss, start, task, SGD(0.2), 3, seeded(), first_order=algorithm == "fomaml"
            )
        gradients.append(found.gradient["t"])
    g = torch.stack(gradients).mean(0)
    now = meta_loss(start, tasks)
    assert meta_loss({"t": start["t"] - 0.2 * g}, tasks) < 0.97 * now
    assert meta_loss({"t": start["t"] + 0.2 * g}, tasks) > 1.03 * now


# ------------------------------------------------------------------ a small net: copies and finite differences


class Net(nn.Module):
    """tanh(x A + a) B + b, as in the reference, with a parameter that no loss uses and a buffer."""

    def __init__(self, seed=0, dtype=torch.float64):
        super().__init__()
        rng = seeded(seed)
        for name, shape in {"A": (3, 4), "a": (4,), "B": (4, 2), "b": (2,)}.items():
            self.register_parameter(
                name, nn.Parameter(torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype))
            )
        self.register_buffer("n", torch.zeros(()))

    def forward(self, x):
        return torch.tanh(x @ self.A + self.a) @ self.B + self.b

    def weights(self):
        return {name: value.detach().numpy().astype(float) for name, value in self.named_parameters()}


def net_task(seed=3, dtype=torch.float64):
    rng = seeded(seed)
    parts = []
    for n in (6, 8):
        x, y = (torch.randn((n, k), generator=rng, dtype=torch.float64).to(dtype) for k in (3, 2))
        parts.append(Part(x, y))
    return Task(*parts)


def loss_of(net):
    def loss(parameters, part, rng=None):
        return (functional_call(net, dict(parameters), (part.images,)) - part.labels).square().mean()

    return loss


def on(part):
    return lambda module: (module(part.images) - part.labels).square().mean()


def arrays(part):
    return part.images.numpy(), part.labels.numpy()


def same(found, expected, rtol=1e-9, atol=1e-12):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(
            np.asarray(found[name]), np.asarray(expected[name]), rtol=rtol, atol=atol, err_msg=name
        )


def test_the_reference_gradient_is_that_of_autograd():
    net, task = Net(), net_task()
    on(task.support)(net).backward()
    same(
        {name: value.grad for name, value in net.named_parameters()},
        naive.net_gradient(net.weights(), *arrays(task.support)),
    )


@pytest.mark.parametrize("betas", [(0.0, 0.999), (0.9, 0.999), (0.5, 0.9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adam_of_the_inner_loop_is_torchs(betas, dtype):
    net, task = Net(dtype=dtype), net_task(dtype=dtype)
    loss = loss_of(net)
    found = inner_loop(lambda p, k: loss(p, task.support), parameters_of(net), Adam(0.01, betas=betas), 9)
    clone = naive.adapted_copy(
        net, [on(task.support)] * 9, lambda values: torch.optim.Adam(values, lr=0.01, betas=betas)
    )
    same(found, {name: value.detach() for name, value in clone.named_parameters()}, rtol=0, atol=1e-6)
    # Nine updates of about 0.01: the tolerance is far below what was moved.
    assert naive.norm({k: v - dict(net.named_parameters())[k].detach() for k, v in found.items()}) > 0.1


@pytest.mark.parametrize("decay", [1.0, 0.1])
def test_sgd_of_the_inner_loop_is_torchs(decay):
    net, task = Net(), net_task()
    loss = loss_of(net)
    found = inner_loop(lambda p, k: loss(p, task.support), parameters_of(net), SGD(0.05), 5, decay=decay)

    def make(values):
        optimizer = torch.optim.SGD(values, lr=0.05)
        step, rates = optimizer.step, iter(np.linspace(0.05, decay * 0.05, 5).tolist())

        def decaying():
            optimizer.param_groups[0]["lr"] = next(rates)
            step()

        optimizer.step = decaying
        return optimizer

    clone = naive.adapted_copy(net, [on(task.support)] * 5, make)
    same(found, {name: value.detach() for name, value in clone.named_parameters()})


def test_adam_moves_nothing_that_has_no_gradient():
    start = {"used": torch.ones(3), "unused": torch.ones(2), "flat": torch.ones(2)}
    found = inner_loop(lambda p, k: p["used"].square().sum() + (0.0 * p["flat"]).sum(), start, Adam(0.1), 4)
    assert torch.equal(found["unused"], start["unused"])
    assert torch.equal(found["flat"], start["flat"])
    assert not torch.equal(found["used"], start["used"])


@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_fomaml_is_the_gradient_in_an_adapted_copy(rule, steps):
    net, task = Net(), net_task()
    inner, make = {
        "sgd": (SGD(0.05), lambda values: torch.optim.SGD(values, lr=0.05)),
        "adam": (Adam(0.01), lambda values: torch.optim.Adam(values, lr=0.01, betas=(0.0, 0.999))),
    }[rule]
    found = maml_gradient(loss_of(net), parameters_of(net), task, inner, steps, seeded(), first_order=True)
    expected = naive.fomaml_by_copies(net, on(task.support), on(task.query), steps, make)
    same(found.gradient, expected, rtol=1e-6)


@pytest.mark.parametrize("first_order", [True, False])
def test_without_inner_steps_it_is_joint_training_on_the_query(first_order):
    """Two optimiser steps on the mean over tasks equal two on all queries together, bit for bit or nearly."""
    tasks = [net_task(seed) for seed in range(3)]
    meta, joint = Net(), Net()
    outer, plain = (torch.optim.AdamW(net.parameters(), lr=0.01) for net in (meta, joint))
    x, y = (torch.cat([getattr(t.query, name) for t in tasks]) for name in ("images", "labels"))
    for _ in range(2):
        found = [
            maml_gradient(
                loss_of(meta),
                parameters_of(meta),
                task,
                SGD(0.1),
                0,
                seeded(),
                first_order=first_order,
                multi_step=0.5,
            )
            for task in tasks
        ]
        for name, value in meta.named_parameters():
            value.grad = torch.stack([f.gradient[name] for f in found]).mean(0)
        outer.step()
        plain.zero_grad()
        on(Part(x, y))(joint).backward()
        plain.step()
    same(parameters_of(meta), parameters_of(joint), rtol=1e-10)
    assert found[0].support_loss == found[0].query_loss


def test_reptile_with_one_step_of_sgd_is_a_scaled_step_of_sgd():
    net, task, lr, share = Net(), net_task(), 0.05, 0.3
    everything = task.everything()
    found = reptile_gradient(
        loss_of(net), parameters_of(net), task, SGD(lr), 1, seeded(), batch=len(everything)
    )
    clone = naive.adapted_copy(net, [on(everything)], lambda v: torch.optim.SGD(v, lr=share * lr))
    start = parameters_of(net)
    stepped = {name: start[name] - share * g for name, g in found.gradient.items()}
    same(stepped, parameters_of(clone), rtol=1e-12)


@pytest.mark.parametrize("rule", ["sgd", "adam"])
@pytest.mark.parametrize(("batch", "size"), [(0, 6), (5, 5), (99, 14)])
def test_reptile_is_a_copy_trained_on_shuffled_passes(rule, batch, size):
    """Which images came is recorded; that they are whole passes is checked, not assumed."""
    net, task, steps = Net(), net_task(), 7
    loss, seen = loss_of(net), []

    def recording(parameters, part, rng):
        seen.append(part)
        return loss(parameters, part)

    inner, make = {
        "sgd": (SGD(0.05), lambda values: torch.optim.SGD(values, lr=0.05)),
        "adam": (Adam(0.01), lambda values: torch.optim.Adam(values, lr=0.01, betas=(0.0, 0.999))),
    }[rule]
    found = reptile_gradient(recording, parameters_of(net), task, inner, steps, seeded(4), batch=batch)
    batches, query = seen[:steps], seen[steps:]
    assert [len(part) for part in batches] == [size] * steps
    assert [len(part) for part in query] == [8]
    expected = naive.reptile_by_copies(net, [on(part) for part in batches], make)
    same(found.gradient, expected, rtol=1e-6, atol=1e-9)
    all_images = task.everything().images
    stream = torch.cat([part.images for part in batches])
    positions = [int((all_images == row).all(1).nonzero()) for row in stream]
    for first in range(0, len(positions) - 13, 14):
        assert sorted(positions[first : first + 14]) == list(range(14))
    # Two passes in the same order would be no shuffling.
    assert positions[:14] != positions[14:28]
    again = reptile_gradient(loss, parameters_of(net), task, inner, steps, seeded(4), batch=batch)
    assert all(torch.equal(again.gradient[name], g) for name, g in found.gradient.items())


@pytest.mark.parametrize("multi_step", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("rule", "eps"), [("sgd", 0.0), ("adam", 0.05), ("adam", 1e-8)])
def test_maml_is_the_slope_of_the_meta_objective(rule, eps, multi_step):
    """In float64, against differences of a meta-objective without autograd; rates fall from lr to lr / 2."""
    net, task, steps, lr = Net(), net_task(), 3, 0.05
    inner = SGD(lr) if rule == "sgd" else Adam(lr, betas=(0.5, 0.9), eps=eps)
    found = maml_gradient(
        loss_of(net),
        parameters_of(net),
        task,
        inner,
        steps,
        seeded(),
        decay=0.5,
        multi_step=multi_step,
    )

    def objective(weights):
        points = naive.path(
            lambda w: naive.net_gradient(w, *arrays(task.support)),
            weights,
            steps,
            lr,
            rule=rule,
            decay=0.5,
            betas=(0.5, 0.9),
            eps=eps,
        )
        return naive.meta_objective(points, lambda w: naive.net_loss(w, *arrays(task.query)), multi_step)

    expected = naive.differences(objective, net.weights(), h=1e-6)
    same(found.gradient, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("multi_step", [0.3, 1.0])
@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_multi_step_of_fomaml_is_the_mean_of_gradients_along_the_path(rule, multi_step):
    net, task, steps = Net(), net_task(), 4
    inner = SGD(0.05) if rule == "sgd" else Adam(0.05)
    found = maml_gradient(
        loss_of(net),
        parameters_of(net),
        task,
        inner,
        steps,
        seeded(),
        decay=0.2,
        multi_step=multi_step,
        first_order=True,
    )
    points = naive.path(
        lambda w: naive.net_gradient(w, *arrays(task.support)),
        net.weights(),
        steps,
        0.05,
        rule=rule,
        decay=0.2,
    )
    expected = dict.fromkeys(points[0], 0.0)
    for k, point in enumerate(points):
        weight = 1.0 - multi_step if k == steps else multi_step / steps
        for name, g in naive.net_gradient(point, *arrays(task.query)).items():
            expected[name] = expected[name] + weight * g
    same(found.gradient, expected, rtol=1e-6)


@pytest.mark.parametrize("eps", [1e-8, 1e-2])
def test_maml_through_adam_at_gradients_that_are_exactly_zero(eps):
    """sqrt has an infinite slope at 0, and 0 * infinity is NaN: a dead unit, and one at its minimum."""

    def loss(p, part, rng=None):
        # "dead" is behind a rectifier that is shut; "rest" lies exactly at the support's minimum.
        dead = torch.relu(p["dead"] - 5.0).square().sum()
        return (
            (p["live"] - part.images).square().mean()
            + dead
            + part.labels[0] * (p["rest"] - 1.0).square().sum()
        )

    support = Part(torch.tensor([[1.0, -1.0]], dtype=torch.float64), torch.ones(1))
    query = Part(torch.tensor([[2.0, 0.5]], dtype=torch.float64), torch.full((1,), 0.5))
    start = {
        "live": torch.tensor([0.3, 0.4], dtype=torch.float64),
        "dead": torch.tensor([1.0], dtype=torch.float64),
        "rest": torch.tensor([1.0], dtype=torch.float64),
    }
    found = maml_gradient(loss, start, Task(support, query), Adam(0.01, eps=eps), 3, seeded()).gradient
    for name, g in found.items():
        assert bool(torch.isfinite(g).all()), name
    assert float(found["dead"]) == 0.0
    assert float(found["rest"]) == 0.0  # the query's minimum is there as well

    def gradient(w):
        return {
            "live": (w["live"] - np.array([1.0, -1.0])),
            "dead": 2 * np.maximum(w["dead"] - 5.0, 0.0),
            "rest": 2 * (w["rest"] - 1.0),
        }

    def query_loss(w):
        away = ((w["live"] - np.array([2.0, 0.5])) ** 2).mean() + (np.maximum(w["dead"] - 5.0, 0) ** 2).sum()
        return away + 0.5 * ((w["rest"] - 1.0) ** 2).sum()

    def objective(w):
        return naive.meta_objective(naive.path(gradient, w, 3, 0.01, rule="adam", eps=eps), query_loss)

    at = {k: v.numpy() for k, v in start.items()}
    same({"live": found["live"]}, {"live": naive.differences(objective, at)["live"]}, rtol=1e-5)
    if eps > 1e-3:
        # Closer than eps, so that the differences see the bend of Adam at 0 and not its far sides.
        same(found, naive.differences(objective, at, h=1e-3 * eps), rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------ learned rates

RATES = {"A": 0.5, "a": 2.0, "B": 1.5}  # none for "b": 1


def along_rates(net, task, steps, lr, rule, decay, multi_step=0.0):
    """The meta-objective as a function of the logarithms of the factors on the inner rate."""

    def objective(logs):
        points = naive.path(
            lambda w: naive.net_gradient(w, *arrays(task.support)),
            net.weights(),
            steps,
            {name: lr * float(np.exp(logs[name])) if name in logs else lr for name in ("A", "a", "B", "b")},
            rule=rule,
            decay=decay,
            eps=1e-3,
        )
        return naive.meta_objective(points, lambda w: naive.net_loss(w, *arrays(task.query)), multi_step)

    return naive.differences(objective, {name: np.array(math.log(value)) for name, value in RATES.items()})


def with_rates(net, task, inner, steps, **keywords):
    rates = {name: torch.tensor(value, dtype=torch.float64) for name, value in RATES.items()}
    found = maml_gradient(
        loss_of(net), parameters_of(net), task, inner, steps, seeded(), rates=rates, **keywords
    )
    assert {name: float(value) for name, value in rates.items()} == RATES
    return found


@pytest.mark.parametrize("multi_step", [0.0, 0.5])
@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_maml_gives_the_slope_along_the_logarithm_of_each_rate(rule, multi_step):
    net, task = Net(), net_task()
    inner = SGD(0.05) if rule == "sgd" else Adam(0.05, eps=1e-3)
    found = with_rates(net, task, inner, 3, decay=0.5, multi_step=multi_step)
    same(found.rates, along_rates(net, task, 3, 0.05, rule, 0.5, multi_step), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_fomaml_gives_the_slope_along_the_rates_to_first_order(rule):
    """One update has no higher order, so there it is exact; with more it is the way gone times the gradient."""
    net, task = Net(), net_task()
    inner = SGD(0.05) if rule == "sgd" else Adam(0.05, eps=1e-3)
    found = with_rates(net, task, inner, 1, first_order=True)
    same(found.rates, along_rates(net, task, 1, 0.05, rule, 1.0), rtol=1e-5, atol=1e-9)
    exact = with_rates(net, task, inner, 1)
    same(found.rates, exact.rates, rtol=1e-9)
    found = with_rates(net, task, inner, 4, first_order=True)
    loss = loss_of(net)
    end = inner_loop(lambda p, k: loss(p, task.support), parameters_of(net), inner, 4, rates=RATES)
    g = naive.net_gradient({k: v.numpy() for k, v in end.items()}, *arrays(task.query))
    same(
        found.rates, {n: (g[n] * (end[n] - getattr(net, n)).detach().numpy()).sum() for n in RATES}, rtol=1e-9
    )
    same(found.gradient, g, rtol=1e-9)
    assert with_rates(net, task, inner, 0, first_order=True).rates.keys() <= RATES.keys()


def test_a_rate_of_zero_holds_still_and_no_rates_have_no_gradient():
    net, task = Net(), net_task()
    loss = loss_of(net)
    end = inner_loop(
        lambda p, k: loss(p, task.support), parameters_of(net), Adam(0.1), 3, rates={"A": 0.0, "a": 1.0}
    )
    assert torch.equal(end["A"], net.A)
    plain = inner_loop(lambda p, k: loss(p, task.support), parameters_of(net), Adam(0.1), 1)
    half = inner_loop(lambda p, k: loss(p, task.support), parameters_of(net), Adam(0.1), 1, rates={"B": 0.5})
    torch.testing.assert_close(half["B"] - net.B, 0.5 * (plain["B"] - net.B))
    assert torch.equal(half["a"], plain["a"])
    assert maml_gradient(loss, parameters_of(net), task, SGD(0.1), 2, seeded()).rates == {}


# ------------------------------------------------------------------ which parameters


@pytest.mark.parametrize("algorithm", ["maml", "fomaml", "reptile"])
def test_only_the_adapted_move_and_the_others_learn_from_the_query(algorithm):
    net, task, moved = Net(), net_task(), ("B", "b")
    loss, visited = loss_of(net), []
    end = inner_loop(
        lambda p, k: loss(p, task.support),
        parameters_of(net),
        SGD(0.1),
        3,
        adapted=moved,
        visit=lambda k, p: visited.append((k, p)),
    )
    assert [k for k, _ in visited] == [0, 1, 2, 3]
    for point in [*(p for _, p in visited), end]:
        assert point.keys() == parameters_of(net).keys()
        for name in ("A", "a"):
            assert torch.equal(point[name], getattr(net, name))
    assert not torch.equal(end["B"], net.B)
    if algorithm == "reptile":
        found = reptile_gradient(loss, parameters_of(net), task, SGD(0.1), 3, seeded(), adapted=moved)
        assert set(found.gradient) == {"B", "b"}
        return
    found = maml_gradient(
        loss,
        parameters_of(net),
        task,
        SGD(0.1),
        3,
        seeded(),
        adapted=moved,
        first_order=algorithm == "fomaml",
    )
    assert set(found.gradient) == {"A", "a", "B", "b"}
    if algorithm == "fomaml":
        make = lambda values: torch.optim.SGD(values, lr=0.1)  # noqa: E731
        expected = naive.fomaml_by_copies(net, on(task.support), on(task.query), 3, make, set(moved))
        same(found.gradient, expected)
        return

    def objective(weights):
        points = naive.path(
            lambda w: naive.net_gradient(w, *arrays(task.support)), weights, 3, 0.1, moved=moved
        )
        return naive.meta_objective(points, lambda w: naive.net_loss(w, *arrays(task.query)))

    same(found.gradient, naive.differences(objective, net.weights()), rtol=1e-6, atol=1e-9)


def test_a_name_that_is_no_parameter_is_refused():
    with pytest.raises(ConfigError, match='no parameter "decoder.weight"'):
        inner_loop(lambda p, k: p["t"].sum(), {"t": torch.ones(1)}, SGD(0.1), 1, adapted=["decoder.weight"])


# ------------------------------------------------------------------ nothing is left behind


@pytest.mark.parametrize("algorithm", ["maml", "fomaml", "reptile"])
@pytest.mark.parametrize("inner", [SGD(0.1), Adam(0.1)])
def test_the_start_is_untouched(algorithm, inner):
    net, task = Net(), net_task()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    start = dict(net.named_parameters())  # the parameters themselves, not detached ones
    if algorithm == "reptile":
        found = reptile_gradient(loss_of(net), start, task, inner, 4, seeded())
    else:
        found = maml_gradient(
            loss_of(net), start, task, inner, 4, seeded(), first_order=algorithm == "fomaml", multi_step=0.5
        )
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    for name, parameter in net.named_parameters():
        assert parameter.grad is None
        assert parameter.requires_grad
        assert not found.gradient[name].requires_grad, name


def test_the_result_shares_no_memory_with_the_start_that_moved():
    net, task = Net(), net_task()
    loss = loss_of(net)
    end = inner_loop(lambda p, k: loss(p, task.support), parameters_of(net), SGD(0.1), 1)
    before = net.B.detach().clone()
    end["B"].add_(1.0)
    assert torch.equal(net.B, before)
    assert not any(value.requires_grad for value in end.values())


def test_a_loop_without_gradients_around_it_still_adapts():
    net, task = Net(), net_task()
    loss = loss_of(net)
    with torch.no_grad():
        quiet = inner_loop(lambda p, k: loss(p, task.support), parameters_of(net), SGD(0.1), 2)
    loud = inner_loop(lambda p, k: loss(p, task.support), parameters_of(net), SGD(0.1), 2)
    assert all(torch.equal(quiet[name], loud[name]) for name in loud)
    assert not torch.equal(quiet["B"], net.B)


class Kept:
    """What autograd keeps for the way back, in a box that can be watched."""

    def __init__(self, tensor):
        self.tensor = tensor


def most_kept(run):
    """Return the largest number of tensors that autograd held at one time during `run`."""
    alive: weakref.WeakSet = weakref.WeakSet()
    most = 0

    def pack(tensor):
        nonlocal most
        box = Kept(tensor)
        alive.add(box)
        most = max(most, len(alive))
        return box

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
        run()
    return most


@pytest.mark.parametrize("inner", [SGD(0.01), Adam(0.01)])
@pytest.mark.parametrize("multi_step", [0.0, 0.5])
def test_first_order_memory_does_not_grow_with_the_steps(inner, multi_step):
    net, task = Net(), net_task()
    loss, start = loss_of(net), parameters_of(net)

    def of(algorithm, steps):
        if algorithm == "reptile":
            return most_kept(lambda: reptile_gradient(loss, start, task, inner, steps, seeded()))
        return most_kept(
            lambda: maml_gradient(
                loss,
                start,
                task,
                inner,
                steps,
                seeded(),
                first_order=algorithm == "fomaml",
                multi_step=multi_step,
            )
        )

    for algorithm in ("fomaml", "reptile"):
        assert of(algorithm, 2) == of(algorithm, 12) > 0
    # The same count does see a graph that grows.
    assert of("maml", 12) > 3 * of("maml", 2)


@pytest.mark.parametrize("algorithm", ["fomaml", "reptile"])
def test_mixed_precision_keeps_no_parameters_of_updates_that_are_over(algorithm):
    """Inside autocast, parameters live as long as their 16-bit copies: to the end of the outer step."""
    seen = []

    def loss(parameters, part, rng=None):
        seen.append(weakref.ref(parameters["w"]))
        return (part.images @ parameters["w"]).square().mean()

    part = Part(torch.randn(4, 3, generator=seeded()), torch.zeros(4, dtype=torch.int64))
    args = (loss, {"w": torch.randn(3, 2, generator=seeded())}, Task(part, part), SGD(0.01), 9, seeded())
    with torch.autocast("cpu", torch.bfloat16):
        kept = reptile_gradient(*args) if algorithm == "reptile" else maml_gradient(*args, first_order=True)
        assert len(seen) == 10
        assert sum(tensor() is not None for tensor in seen) <= 2
    assert kept.gradient["w"].dtype == torch.float32


# ------------------------------------------------------------------ numbers that run away


def exploding(parameters, part, rng=None):
    return parameters["t"].pow(4).sum() + 0.0 * part.images.sum()


@pytest.mark.parametrize("algorithm", ["maml", "fomaml", "reptile"])
@pytest.mark.parametrize(("steps", "message"), [(9, r"before inner update 4"), (3, r"after 3 inner updates")])
def test_a_loss_that_runs_away_names_the_update_and_the_flag(algorithm, steps, message):
    """t is 1, -39, 2e6, -5e20: at the fourth look its fourth power overflows float32."""
    part = Part(torch.zeros(2, 1), torch.zeros(2))
    task, start = Task(part, part), {"t": torch.ones(2)}
    with pytest.raises(TrainingError, match=message) as caught:
        if algorithm == "reptile":
            reptile_gradient(exploding, start, task, SGD(10.0), steps, seeded())
        else:
            maml_gradient(
                exploding, start, task, SGD(10.0), steps, seeded(), first_order=algorithm == "fomaml"
            )
    assert "--tasks.inner_lr" in str(caught.value)
    assert "10" in str(caught.value)


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, bad) for name in ("n_way", "n_shot", "n_query", "tasks_per_step") for bad in (0, -3)),
        *((name, 0) for name in ("steps", "validation_tasks")),
        *((name, -1) for name in ("inner_steps", "inner_batch", "adapt_steps")),
        *(
            (name, bad)
            for name in ("inner_lr", "outer_lr", "adapt_lr")
            for bad in (0.0, -1e-3, math.nan, math.inf)
        ),
        *((name, bad) for name in ("novelty", "inner_decay", "multi_step") for bad in (-0.1, 1.1, math.nan)),
        *(("outer_step", bad) for bad in (0.0, -0.1, 1.1, math.nan)),
        *((name, bad) for name in ("task_clip", "pretrain") for bad in (-0.5, math.nan, math.inf)),
        *((name, bad) for name in ("adapt", "inner_optimizer") for bad in ("", "al", "SGD")),
        *(("curve", bad) for bad in ((), (-1, 5), (5, 1), (0, 5, 5))),
    ],
)
def test_every_bad_setting_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=rf"tasks\.{name}\b") as caught:
        MetaConfig(**{name: value})
    if value != ():
        assert str(value).strip("()") in str(caught.value).replace("[", "").replace("]", "")


def test_all_bad_settings_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        MetaConfig(n_way=0, inner_lr=-1.0, adapt="decodr", curve=(3, 2))
    for words in ("tasks.n_way", "tasks.inner_lr", 'Did you mean "decoder"', "tasks.curve"):
        assert words in str(caught.value)


def test_settings_at_their_limits_are_accepted():
    config = MetaConfig(
        n_way=1, n_shot=1, n_query=1, inner_steps=0, multi_step=1.0, pretrain=0.0, task_clip=0.0, curve=(0,)
    )
    assert config.final_lr == config.inner_lr
    assert MetaConfig(adapt_lr=0.5).final_lr == 0.5
    assert MetaConfig(**config.to_dict()) == config


def test_names_of_algorithms_and_optimisers():
    for name in ("none", "reptile", "fomaml", "maml"):
        assert check_algorithm(name) == name
    with pytest.raises(ConfigError, match='Did you mean "reptile"'):
        check_algorithm("reptil")
    assert make_inner_optimizer("sgd", 0.1) == SGD(0.1)
    assert make_inner_optimizer("adam", 0.1) == Adam(0.1)
    with pytest.raises(ConfigError, match="adam, sgd"):
        make_inner_optimizer("adamw", 0.1)
