"""The prior looks back only, and draws what it says."""

import pytest
import torch
from scipy.stats import chisquare
from torch.nn import functional

from fewgen.errors import ConfigError, ShapeError
from fewgen.fitting.optimizers import AdamW
from fewgen.nn.prior import CausalBlock, CodePrior

P, G, K, D, W = 6, 2, 5, 3, 16


def make(groups=G, positions=P, size=K, layers=2, seed=0, spread=1.0):
    """A prior in evaluation mode whose logits differ clearly, with its code vectors."""
    torch.manual_seed(seed)
    prior = CodePrior(positions, size, D, groups, width=W, n_layers=layers, n_heads=4)
    with torch.no_grad():
        for parameter in prior.parameters():
            # At the start the logits are nearly equal, and nothing could be told from them.
            parameter.add_(spread * 0.3 * torch.randn(parameter.shape))
    return prior.eval(), torch.randn(groups, size, D)


def draws(n, positions=P, groups=G, size=K, seed=1):
    rng = torch.Generator().manual_seed(seed)
    indices = torch.randint(size, (n, positions, groups), generator=rng)
    return indices, torch.randn(n, positions, W, generator=rng)


def leaks(prior, tables):
    """(p, g, q, h) for which the logits of position p, group g change with the code at q, h not before it."""
    indices, condition = draws(3)
    with torch.no_grad():
        before = prior(indices, condition, tables)
        found, reached = [], 0
        for q in range(P):
            for h in range(G):
                changed = indices.clone()
                changed[:, q, h] = (changed[:, q, h] + 1) % K
                difference = (prior(changed, condition, tables) - before).abs().amax((0, 3))
                for p in range(P):
                    for g in range(G):
                        if (q, h) >= (p, g):
                            if difference[p, g] > 0:
                                found.append((p, g, q, h))
                        else:
                            reached += int(difference[p, g] > 1e-6)
    n_earlier = sum((q, h) < (p, g) for p in range(P) for g in range(G) for q in range(P) for h in range(G))
    return found, reached, n_earlier


def test_logits_depend_on_all_earlier_codes_and_on_no_later_one():
    found, reached, n_earlier = leaks(*make())
    assert found == []
    assert reached == n_earlier


def test_the_leak_check_catches_attention_without_a_mask(monkeypatch):
    def unmasked(self, x):
        q, k, v = self._heads(x)
        return self._finish(x, functional.scaled_dot_product_attention(q, k, v))

    monkeypatch.setattr(CausalBlock, "forward", unmasked)
    found, _, _ = leaks(*make())
    assert any(q > p for p, _, q, _ in found)


def test_the_leak_check_catches_a_position_that_reads_itself(monkeypatch):
    # Without the shift, position p would be told its own codes.
    monkeypatch.setattr("fewgen.nn.prior.functional.pad", lambda x, _: torch.cat([x, x[:, -1:]], 1))
    found, _, _ = leaks(*make())
    assert found


def test_the_whole_condition_reaches_every_later_position():
    prior, tables = make()
    indices, condition = draws(2)
    before = prior(indices, condition, tables)
    condition[:, 2] = draws(2, seed=9)[1][:, 2]
    difference = (prior(indices, condition, tables) - before).abs().amax((0, 2, 3))
    assert (difference[2:] > 1e-6).all()
    assert (difference[:2] == 0).all()


@pytest.mark.parametrize(("groups", "layers"), [(1, 1), (2, 2), (3, 0)])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.0])
def test_cached_steps_give_the_logits_of_the_whole_pass(groups, layers, temperature, monkeypatch):
    prior, tables = make(groups, layers=layers)
    _, condition = draws(4, groups=groups)
    uniforms = torch.rand(4, P, groups, generator=torch.Generator().manual_seed(3))
    seen = []
    logits_of = prior._logits

    def recorded(group, h, features):
        seen.append(logits_of(group, h, features))
        return seen[-1]

    monkeypatch.setattr(prior, "_logits", recorded)
    indices = prior.sample(condition, tables, uniforms, temperature)
    stepwise = torch.stack(seen, 1).unflatten(1, (P, groups))
    monkeypatch.undo()
    with torch.no_grad():
        whole = prior(indices, condition, tables)
    torch.testing.assert_close(stepwise, whole, atol=1e-5, rtol=1e-5)
    if temperature == 0:
        assert torch.equal(indices, whole.argmax(-1))
    else:
        # The drawn code is where the cumulative distribution passes the number.
        p = torch.softmax(whole.double() / temperature, -1)
        upper = p.cumsum(-1).gather(-1, indices[..., None])[..., 0]
        lower = upper - p.gather(-1, indices[..., None])[..., 0]
        assert ((lower <= uniforms + 1e-5) & (uniforms <= upper + 1e-5)).all()


def joint_probabilities(prior, tables, condition):
    """Probability of each of the K^(P G) maps, from the whole pass."""
    n = prior.n_positions * prior.groups
    maps = torch.cartesian_prod(*[torch.arange(prior.codebook_size)] * n)
    maps = maps.reshape(-1, prior.n_positions, prior.groups)
    with torch.no_grad():
        logits = prior(maps, condition.expand(len(maps), -1, -1), tables)
    each = torch.log_softmax(logits.double(), -1).gather(-1, maps[..., None])[..., 0]
    return each.sum((1, 2)).exp()


def test_maps_are_drawn_as_often_as_the_likelihood_says():
    prior, tables = make(positions=2, size=3, spread=0.5)
    condition = torch.randn(1, 2, W, generator=torch.Generator().manual_seed(4))
    expected = joint_probabilities(prior, tables, condition)
    assert abs(float(expected.sum()) - 1) < 1e-6
    n = 20_000
    uniforms = torch.rand(n, 2, G, generator=torch.Generator().manual_seed(5))
    drawn = prior.sample(condition.expand(n, -1, -1), tables, uniforms)
    powers = 3 ** torch.arange(3, -1, -1)
    counts = torch.bincount((drawn.flatten(1) * powers).sum(1), minlength=81).double()
    # Rare maps together, as the test needs about five expected counts in each cell.
    rare = expected * n < 5
    observed, wanted = counts[~rare], n * expected[~rare]
    if bool(rare.any()):
        observed = torch.cat([observed, counts[rare].sum()[None]])
        wanted = torch.cat([wanted, n * expected[rare].sum()[None]])
    assert len(observed) > 20
    assert chisquare(observed.numpy(), (wanted * observed.sum() / wanted.sum()).numpy()).pvalue > 1e-3
    # Negative control: the draws do not follow the same probabilities with the two groups exchanged.
    swapped = expected.reshape(3, 3, 3, 3).permute(1, 0, 3, 2).reshape(-1) * n
    assert chisquare(counts.numpy(), (swapped * counts.sum() / swapped.sum()).numpy()).pvalue < 1e-6


def test_the_map_of_an_image_depends_on_its_own_row():
    prior, tables = make()
    _, condition = draws(8)
    uniforms = torch.rand(8, P, G, generator=torch.Generator().manual_seed(6))
    whole = prior.sample(condition, tables, uniforms)
    order = torch.tensor([5, 0, 7, 2, 1, 6, 3, 4])
    assert torch.equal(prior.sample(condition[order], tables, uniforms[order]), whole[order])
    uniforms[0] = 1 - uniforms[0]
    assert torch.equal(prior.sample(condition, tables, uniforms)[1:], whole[1:])


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2**-24])
def test_the_ends_of_the_unit_interval_are_codes(uniform):
    prior, tables = make()
    _, condition = draws(2)
    drawn = prior.sample(condition, tables, torch.full((2, P, G), uniform))
    assert bool(((drawn >= 0) & (drawn < K)).all())


def test_loss_is_the_mean_negative_log_likelihood_and_learns_a_pattern():
    prior, tables = make(spread=0.0)
    indices, condition = draws(4)
    logits = prior(indices, condition, tables)
    by_hand = -torch.log_softmax(logits, -1).gather(-1, indices[..., None]).mean()
    torch.testing.assert_close(prior.loss(indices, condition, tables), by_hand)
    assert prior.loss(indices, condition, tables, smoothing=0.1) != by_hand
    optimizer = AdamW([{"params": list(prior.parameters()), "lr": 1e-2, "weight_decay": 0.0}])
    for _ in range(80):
        prior.zero_grad()
        loss = prior.loss(indices, condition, tables)
        loss.backward()
        optimizer.step()
    assert all(p.grad is not None and bool(p.grad.any()) for p in prior.parameters())
    assert loss.item() < 0.1
    assert torch.equal(prior.sample(condition, tables, torch.zeros(4, P, G), temperature=0), indices)


def test_errors_name_what_was_needed():
    prior, tables = make()
    indices, condition = draws(2)
    with pytest.raises(ShapeError, match=r"indices must be \(B, 6, 2\)"):
        prior(indices[:, :5], condition, tables)
    with pytest.raises(ShapeError, match=r"\(B, 6, 2\)"):
        prior(indices[:, :, :1], condition, tables)
    with pytest.raises(ConfigError, match=r"width 10 .* 4 heads"):
        CodePrior(P, K, D, G, width=10, n_heads=4)
