import math

import pytest
import torch
from torch import nn

from fewgen.errors import ConfigError, ShapeError
from fewgen.losses.reconstruction import squared_error
from fewgen.losses.terms import LossTerms
from fewgen.losses.weighting import GradNormWeights, UncertaintyWeights


def terms_of(weights=None, **values):
    return LossTerms({name: torch.tensor(float(v)) for name, v in values.items()}, weights or {})


def test_total_weights_the_terms_and_reports_them():
    terms = LossTerms({"a": torch.tensor(2.0), "b": torch.tensor(3.0)}, {"b": 0.5, "absent": 7.0}, {"p": 1.0})
    assert terms.total() == 3.5
    assert terms.floats() == {"a": 2.0, "b": 3.0}


def test_a_term_that_is_off_cannot_spoil_the_sum():
    assert terms_of({"b": 0.0}, a=1.0, b=float("inf")).total() == 1.0
    leaf = torch.tensor(2.0, requires_grad=True)
    LossTerms({"a": leaf**2}, {"a": 0.0}).total().backward()
    assert leaf.grad == 0


def test_terms_must_be_scalars_and_present():
    with pytest.raises(ShapeError, match=r'"a" has shape \(3,\)'):
        LossTerms({"a": torch.zeros(3)})
    with pytest.raises(ShapeError, match="no term"):
        LossTerms({}).total()


def test_uncertainty_matches_the_formula_and_settles_where_terms_are_equal():
    weighting = UncertaintyWeights(["a", "b"], limit=1e4)
    with torch.no_grad():
        weighting.log_variances.copy_(torch.tensor([0.3, -1.0]))
    value = weighting(terms_of(a=2.0, b=5.0, other=1.5))
    expected = 0.5 * (math.exp(-0.3) * 2 + 0.3) + 0.5 * (math.exp(1.0) * 5 - 1.0) + 1.5
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert weighting.weights()["a"] == pytest.approx(0.5 * math.exp(-0.3), rel=1e-5)
    assert weighting.weights()["other"] == 1.0

    weighting = UncertaintyWeights(["a", "b"], limit=20.0)
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.1)
    for _ in range(600):
        optimizer.zero_grad()
        weighting(terms_of(a=20.0, b=0.2)).backward()
        optimizer.step()
    weights = weighting.weights()
    assert weights["a"] * 20.0 == pytest.approx(0.5, rel=0.02)
    assert weights["b"] * 0.2 == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize(("speed", "balanced"), [(20.0, True), (1.0, False)])
def test_uncertainty_balances_at_a_networks_rate_and_length_only_with_speed(speed, balanced):
    weighting = UncertaintyWeights(["a", "b"], speed=speed)
    optimizer = torch.optim.Adam(weighting.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    for _ in range(1500):
        optimizer.zero_grad()
        weighting(terms_of(a=40.0, b=0.02)).backward()
        optimizer.step()
        schedule.step()
    shares = [weighting.weights()["a"] * 40.0, weighting.weights()["b"] * 0.02]
    assert all(0.4 < share < 0.6 for share in shares) == balanced


def test_uncertainty_stays_bounded_for_a_solved_term_and_waits_for_warm_up():
    weighting = UncertaintyWeights(["a", "b"], limit=3.0)
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.2)
    for _ in range(200):
        optimizer.zero_grad()
        weighting(terms_of({"b": 0.0}, a=0.0, b=100.0)).backward()
        optimizer.step()
    assert weighting.weights()["a"] <= 0.5 * math.exp(3.0) * 1.001
    assert weighting.log_variances[1] == 0
    assert weighting.weights()["b"] == 0


def shared_net():
    torch.manual_seed(0)
    return nn.Linear(4, 3), torch.randn(8, 4)


def gradient_norm(value, parameters):
    gradients = torch.autograd.grad(value, parameters, retain_graph=True)
    return torch.sqrt(sum(g.square().sum() for g in gradients)).item()


def test_gradnorm_makes_the_pulls_equal():
    net, x = shared_net()
    weighting = GradNormWeights(["big", "small"], list(net.parameters()), alpha=0.0, max_ratio=1e6)
    y = net(x)
    values = {"big": 1000.0 * squared_error(y, torch.ones_like(y)), "small": y.square().mean()}
    total = weighting(LossTerms(values))
    weights = weighting.weights()
    pulls = [weights[name] * gradient_norm(values[name], list(net.parameters())) for name in values]
    assert pulls[0] == pytest.approx(pulls[1], rel=1e-4)
    assert weights["big"] * weights["small"] == pytest.approx(1.0, rel=1e-4)
    total.backward()
    assert net.weight.grad is not None


def test_gradnorm_favours_the_term_that_learns_slowly():
    net, x = shared_net()
    weighting = GradNormWeights(["fast", "slow"], list(net.parameters()), alpha=1.0)
    for level in (1.0, 0.1):
        y = net(x)
        gradient = (y - y.detach()).sum()  # value 0, the same gradient for both
        weighting(LossTerms({"fast": gradient + level, "slow": gradient + 1.0}))
    assert weighting.weights()["slow"] > 3 * weighting.weights()["fast"]


def test_gradnorm_is_stable_and_does_nothing_in_evaluation_mode():
    net, x = shared_net()
    weighting = GradNormWeights(["a", "b", "c"], list(net.parameters()), max_ratio=10.0)
    for _ in range(5):
        y = net(x)
        constant = torch.tensor(1.0, requires_grad=True) * 1.0  # reaches no shared parameter
        weighting(LossTerms({"a": 1e8 * y.sum(), "b": 1e-8 * y.square().sum(), "c": constant}))
    weights = weighting.weights()
    assert weights["a"] == pytest.approx(0.1, rel=1e-4)
    assert weights["b"] == pytest.approx(10.0, rel=1e-4)
    assert weights["c"] == 1.0
    state = {k: v.clone() for k, v in weighting.state_dict().items()}
    weighting.eval()
    weighting(LossTerms({"a": net(x).sum(), "b": net(x).sum()}))
    with torch.no_grad():
        weighting.train()(LossTerms({"a": net(x).sum(), "b": net(x).sum()}))
    assert all(torch.equal(state[k], v) for k, v in weighting.state_dict().items())


def test_gradnorm_resumes_from_its_state():
    net, x = shared_net()

    def step(weighting, scale):
        y = net(x)
        return weighting(LossTerms({"a": scale * y.square().sum(), "b": y.abs().sum()})).item()

    whole = GradNormWeights(["a", "b"], list(net.parameters()), update_every=2)
    expected = [step(whole, s) for s in (1.0, 2.0, 5.0, 7.0)]
    first = GradNormWeights(["a", "b"], list(net.parameters()), update_every=2)
    got = [step(first, s) for s in (1.0, 2.0)]
    second = GradNormWeights(["a", "b"], list(net.parameters()), update_every=2)
    second.load_state_dict(first.state_dict())
    assert got + [step(second, s) for s in (5.0, 7.0)] == expected
    assert list(second.parameters()) == []


def test_adaptive_weightings_need_names_and_parameters():
    with pytest.raises(ConfigError, match="distinct"):
        UncertaintyWeights(["a", "a"])
    with pytest.raises(ConfigError, match="shared"):
        GradNormWeights(["a"], [])
