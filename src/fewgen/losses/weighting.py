"""From named terms to the one number that is minimised, balanced while training.

All weightings are modules, so that their state travels with a checkpoint. In each, the weight that a term
already carries (`LossTerms.weights`, with its warm-up) stays a factor on top and means relative
importance: a term with weight 0 does not move an adaptive weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from fewgen.errors import ConfigError
from fewgen.losses.terms import LossTerms


class Weighting(nn.Module):
    """Maps `LossTerms` to a scalar and remembers the weights it used.

    Args:
        names: terms to balance, each with a number of its own; other terms keep their own weight.
    """

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self._last: dict[str, float] = {}
        self.names = tuple(names)
        if not self.names or len(set(self.names)) != len(self.names):
            raise ConfigError(f"Adaptive weighting needs distinct term names; it got {list(self.names)}.")

    def weights(self) -> dict[str, float]:
        """Weight of each term (its own times the adaptive one) in the latest call, for the log."""
        return dict(self._last)


class UncertaintyWeights(Weighting):
    """Weights from learnt noise levels: sum over terms of w ( exp(-s) L / 2 + s / 2 ), s = log sigma^2.

    The minimum over s is at exp(s) = L, so each term ends up contributing about the same whatever its
    unit. The log-variances are parameters: give `parameters()` to the optimiser.

    Args:
        names: terms to balance; other terms keep their own weight.
        limit: s is kept within (-limit, limit) by a smooth bound, so that a term that reaches zero (an
            alignment that is solved) cannot take over.
        speed: how much faster than its optimiser's learning rate s moves. A network's rate would take
            thousands of steps to cross the few units between the scales of the terms.

    Source: Kendall, Gal & Cipolla 2018, arXiv:1705.07115, Sec. 3.2.
    Differs: the bound on s; the configured weight w multiplies both parts, so that warm-up from 0 leaves
        s alone; terms summed over features count as one observation each.
    """

    def __init__(self, names: Iterable[str], limit: float = 6.0, speed: float = 1.0) -> None:
        super().__init__(names)
        self.limit, self.speed = limit, speed
        self.log_variances = nn.Parameter(torch.zeros(len(self.names)))

    def bounded(self) -> Tensor:
        """The log-variances s after the smooth bound, (n_terms,)."""
        return self.limit * torch.tanh(self.speed * self.log_variances / self.limit)

    def forward(self, terms: LossTerms) -> Tensor:
        """The balanced objective, a scalar; it may be negative."""
        s = dict(zip(self.names, self.bounded(), strict=True))
        present = [name for name in self.names if name in terms.values]
        factors = {name: 0.5 * torch.exp(-s[name]) for name in present}
        # Kept as tensors only where the term is on, so that `total` can leave out the others.
        on = {name: factor if terms.weight(name) else 0.0 for name, factor in factors.items()}
        total = terms.total(on)
        for name in present:
            total = total + 0.5 * terms.weight(name) * s[name]
        self._last = {name: terms.weight(name) for name in terms.values}
        self._last.update({name: terms.weight(name) * float(factors[name].detach()) for name in present})
        return total


class GradNormWeights(Weighting):
    """Weights that give every term the same pull on shared parameters.

    The norm of each term's gradient on `shared` is followed by a running mean; the weight is
    proportional to its inverse, raised for terms that learn slowly, and scaled so that the geometric
    mean over the terms is 1.

    Args:
        names: terms to balance; other terms keep their own weight.
        shared: parameters on which gradients are measured, best those that all terms reach (the last shared
            layer is enough). A term's norm is over those that it does reach. They are not owned.
        alpha: how strongly terms that learn slowly are favoured; 0 only equalises norms.
        momentum: of the running mean of the logarithm of the norms, in [0, 1).
        update_every: steps between measurements; each costs one backward pass per term.
        max_ratio: weights stay within [1/max_ratio, max_ratio].

    Source: Chen et al. 2018, arXiv:1711.02257, Eq. 1-2 and Algorithm 1.
    Differs: weights are set from smoothed norms in closed form instead of by gradient descent on the L1
        distance of the norms; geometric instead of arithmetic mean, clipped; a measurement of a term
        whose gradient is zero or not finite is skipped.
    """

    log_norms: Tensor
    initial: Tensor
    latest: Tensor
    measured: Tensor
    factors: Tensor
    steps: Tensor

    def __init__(
        self,
        names: Iterable[str],
        shared: Sequence[nn.Parameter],
        alpha: float = 0.5,
        momentum: float = 0.9,
        update_every: int = 1,
        max_ratio: float = 100.0,
    ) -> None:
        super().__init__(names)
        if not shared:
            raise ConfigError("GradNormWeights needs at least one shared parameter to measure gradients on.")
        self._shared = list(shared)  # a plain list: registering would make them ours
        self.alpha = alpha
        self.momentum = momentum
        self.update_every = update_every
        self.max_ratio = max_ratio
        n = len(self.names)
        self.register_buffer("log_norms", torch.zeros(n))
        self.register_buffer("initial", torch.ones(n))
        self.register_buffer("latest", torch.ones(n))
        self.register_buffer("measured", torch.zeros(n, dtype=torch.long))
        self.register_buffer("factors", torch.ones(n))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, terms: LossTerms) -> Tensor:
        """The balanced objective, a scalar; measures gradients only in training mode."""
        if self.training and torch.is_grad_enabled():
            if int(self.steps) % self.update_every == 0:
                self._measure(terms)
            self.steps += 1
        factors = dict(zip(self.names, self.factors.tolist(), strict=True))
        self._last = {name: terms.weight(name) * factors.get(name, 1.0) for name in terms.values}
        return terms.total(factors)

    def _measure(self, terms: LossTerms) -> None:
        shared = [parameter for parameter in self._shared if parameter.requires_grad]
        for i, name in enumerate(self.names):
            value = terms.values.get(name)
            if value is None or not value.requires_grad or terms.weight(name) == 0 or not shared:
                continue
            gradients = torch.autograd.grad(value, shared, retain_graph=True, allow_unused=True)
            norm = math.sqrt(sum(float(g.detach().square().sum()) for g in gradients if g is not None))
            level = max(abs(float(value.detach())), 1e-12)
            if not (math.isfinite(norm) and norm > 0 and math.isfinite(level)):
                continue
            if int(self.measured[i]) == 0:
                self.log_norms[i] = math.log(norm)
                self.initial[i] = level
            else:
                self.log_norms[i] += (1.0 - self.momentum) * (math.log(norm) - self.log_norms[i])
            self.measured[i] += 1
            self.latest[i] = level
        known = self.measured > 0
        if int(known.sum()) < 2:
            return
        # Inverse training rate: a term that has fallen less than the others gets a larger share.
        rates = self.latest / self.initial
        wanted = self.alpha * rates.clamp(1e-6, 1e6).log() - self.log_norms
        wanted = wanted - wanted[known].mean()
        limit = math.log(self.max_ratio)
        self.factors.copy_(torch.where(known, wanted.clamp(-limit, limit).exp(), torch.ones_like(wanted)))
