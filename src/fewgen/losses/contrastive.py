"""Contrastive objectives on labelled features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fewgen.config.checks import above_zero
from fewgen.errors import ShapeError


def supervised_contrastive(features: Tensor, labels: Tensor, temperature: float = 0.5) -> Tensor:
    """Pull samples of one class together and push all others apart ("L_out").

    With v_i = features_i / |features_i|, s_ij = v_i . v_j / temperature, P(i) the other samples of the
    class of i and A(i) all other samples: the mean over anchors i with |P(i)| > 0 of
    - 1/|P(i)| sum_{p in P(i)} ( s_ip - log sum_{a in A(i)} exp(s_ia) ).

    Args:
        features: (B, D), float, any scale (only directions count).
        labels: (B,), integers.
        temperature: > 0, without unit.

    Returns:
        A scalar in nats. If no sample has a partner of its class the result is 0 with a zero gradient.

    Raises:
        ShapeError: if the shapes do not fit.
        ConfigError: if the temperature is not positive.

    Source: Khosla et al. 2020, arXiv:2004.11362, Eq. 2.
    Differs: the paper sums over anchors; this is the mean over anchors that have a positive. There is no
        second augmented view: positives come from the batch alone.
    """
    if features.dim() != 2 or labels.shape != features.shape[:1]:
        raise ShapeError(
            f"Features and labels have shapes {tuple(features.shape)} and {tuple(labels.shape)}; "
            "they must be (B, D) and (B,)."
        )
    above_zero("Contrastive temperature", temperature)
    n = len(features)
    if n < 2:
        return 0.0 * features.sum()
    v = functional.normalize(features, dim=1)
    similarity = v @ v.T / temperature
    self_pairs = torch.eye(n, dtype=torch.bool, device=features.device)
    # (B, 1) against (1, B): comparing a vector with its own transpose would mark every pair as positive.
    positives = (labels[:, None] == labels[None, :]) & ~self_pairs
    log_normalizer = similarity.masked_fill(self_pairs, -torch.inf).logsumexp(dim=1)
    log_probability = similarity - log_normalizer[:, None]
    n_positives = positives.sum(1)
    per_anchor = -(log_probability * positives).sum(1) / n_positives.clamp_min(1)
    return per_anchor.sum() / (n_positives > 0).sum().clamp_min(1)
