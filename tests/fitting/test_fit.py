import math

import pytest
import torch
from torch import nn

from fewgen.errors import TrainingError
from fewgen.fitting.fit import Shuffled, fit
from fewgen.fitting.optimizers import AdamW


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.0), nn.Linear(5, 1))


def batch(step):
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(step))


def fitted(steps, **options):
    net = network()

    def figures(step):
        assert net.training
        error = (net(batch(step)) - 1).square()
        return {"loss": error.mean(), "worst": error.max()}

    groups = [{"params": list(part.parameters()), "weight_decay": 0.1} for part in (net[0], net[2])]
    rates = ([0.1 / (1 + step), 0.01] for step in range(steps))
    return net, fit(net, figures, AdamW(groups), rates, **options)


def test_it_equals_a_loop_written_by_hand():
    seen, reports = [], []
    net, rows = fitted(120, clip=0.5, after=seen.append, report=lambda *found: reports.append(found))
    other = network()
    groups = [{"params": list(part.parameters()), "weight_decay": 0.1} for part in (other[0], other[2])]
    optimizer = AdamW(groups)
    losses, worst = [], []
    for step in range(120):
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = 0.1 / (1 + step), 0.01
        error = (other(batch(step)) - 1).square()
        other.zero_grad()
        error.mean().backward()
        nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        optimizer.step()
        losses.append(float(error.detach().mean()))
        worst.append(float(error.detach().max()))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert seen == losses
    assert [row["step"] for row in rows] == [50, 100, 120]
    assert [row["lr"] for row in rows] == [0.1 / 50, 0.1 / 100, 0.1 / 120]
    for row, start in zip(rows, (0, 50, 100), strict=True):
        stop = int(row["step"])
        assert row["loss"] == pytest.approx(sum(losses[start:stop]) / (stop - start))
        assert row["worst"] == pytest.approx(sum(worst[start:stop]) / (stop - start))
    assert reports == [(int(row["step"]), row["loss"]) for row in rows]
    assert not net.training
    assert all(p.grad is None for p in net.parameters())


def test_no_steps_change_nothing():
    net, rows = fitted(0)
    assert rows == []
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), network().parameters(), strict=True))


def test_a_loss_that_is_not_finite_is_told_if_wanted():
    net = nn.Linear(1, 1)
    groups = [{"params": list(net.parameters()), "weight_decay": 0.0}]

    def figures(step):
        return {"loss": net(torch.ones(1)).sum() * (math.nan if step == 2 else 1.0)}

    with pytest.raises(TrainingError, match="The loss became nan at step 3. Lower lr."):
        fit(
            net,
            figures,
            AdamW(groups),
            [[0.1]] * 5,
            failure="The loss became {value} at step {step}. Lower lr.",
        )
    assert len(fit(net, figures, AdamW(groups), [[0.1]] * 5)) == 1


def test_shuffled_draws_visit_every_index_before_any_twice():
    order = Shuffled(7, torch.Generator().manual_seed(0))
    seen = torch.cat([order.draw(3) for _ in range(14)])
    for start in range(0, 42, 7):
        assert sorted(seen[start : start + 7].tolist()) == list(range(7))
    rng = torch.Generator().manual_seed(0)
    assert torch.equal(seen[:14], torch.cat([torch.randperm(7, generator=rng) for _ in range(2)]))


def test_rests_are_dropped_if_wanted():
    order = Shuffled(7, torch.Generator().manual_seed(0), drop_rest=True)
    rng = torch.Generator().manual_seed(0)
    for _ in range(3):
        fresh = torch.randperm(7, generator=rng)
        assert torch.equal(torch.cat([order.draw(3), order.draw(3)]), fresh[:6])
