import pytest
import torch
from torch import nn

from fewgen.fitting.optimizers import SGD, AdamW


def noise(n, c, seed):
    return 2.0 * torch.randn(n, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.slow  # importing the compiler with torch's own optimiser takes the time
def test_adamw_equals_that_of_torch_bit_for_bit():
    def net():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))

    a, b = net(), net()
    groups = lambda m: [  # noqa: E731
        {"params": [m[0].weight, m[2].weight], "lr": 0.01, "weight_decay": 0.1},
        {"params": [m[0].bias, m[2].bias], "lr": 0.01, "weight_decay": 0.0},
    ]
    ours = AdamW(groups(a), (0.8, 0.95))
    theirs = torch.optim.AdamW(groups(b), betas=(0.8, 0.95), fused=True)
    for step in range(12):
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        for m, optimizer in ((a, ours), (b, theirs)):
            m.zero_grad()
            m(x).square().sum().backward()
            if step == 3:
                m[0].bias.grad = None
            for group in optimizer.param_groups:
                group["lr"] = 0.01 / (1 + step)
            optimizer.step()
        if step == 6:
            fresh = AdamW(groups(a), (0.8, 0.95))
            fresh.load_state_dict(ours.state_dict())
            ours = fresh
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            assert torch.equal(p, q)
    with pytest.raises(ValueError, match="another shape"):
        AdamW([{"params": [nn.Parameter(torch.zeros(2))], "lr": 1, "weight_decay": 0}]).load_state_dict(
            ours.state_dict()
        )


def test_sgd_is_that_of_torch():
    from torch.optim.sgd import sgd  # the arithmetic alone; its class takes seconds to import

    start = [noise(3, 4, 0), noise(5, 2, 1)]
    mine, theirs = ([p.clone().requires_grad_() for p in start] for _ in range(2))
    ours = SGD([{"params": [p], "lr": 0.0} for p in mine], 0.9, 0.05)
    buffers = [[None], [None]]
    for step in range(5):
        for i, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            rate = ours.param_groups[i]["lr"] = 0.001 * (i + 1) / (step + 1)
            for p in (a, b):
                p.grad = None
                ((p - step) ** 4).sum().backward()
            with torch.no_grad():
                sgd(
                    [b],
                    [b.grad.clone()],
                    buffers[i],
                    foreach=False,
                    weight_decay=0.05,
                    momentum=0.9,
                    lr=rate,
                    dampening=0.0,
                    nesterov=False,
                    maximize=False,
                )
        ours.step()
    for a, b, first in zip(mine, theirs, start, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        assert float((a.detach() - first).abs().min()) > 0
