"""Sparsity, orthogonality, and what a frozen network sees."""

import math

import pytest
import torch

from fewgen.errors import ShapeError
from fewgen.losses.attributes import feature_error, orthogonality, sparsity


def sigmoid(x):
    return 1.0 / (1.0 + math.exp(-x))


def test_sparsity_equals_hand_computed_values_in_both_forms():
    n = torch.tensor([[2.0, -4.0], [0.0, 1.0]])
    code = (sigmoid(0.0) + sigmoid(1.0) + sigmoid(-1.0) + sigmoid(-0.5)) / 2 / 32
    paper = (sigmoid(2.0) + sigmoid(-1.0) + sigmoid(1.0) + sigmoid(1.5)) / 2
    assert float(sparsity(n)) == pytest.approx(code)
    assert float(sparsity(n, "paper")) == pytest.approx(paper)
    assert float(sparsity(n[:, :, None])) == pytest.approx(code)  # groups are summed over


def test_orthogonality_equals_naive_loops_in_both_forms():
    rng = torch.Generator().manual_seed(0)
    means, directions = torch.randn(3, 2, 4, generator=rng), torch.randn(2, 4, 5, generator=rng)
    products = [
        float(means[m, layer] @ directions[layer, :, r])
        for layer in range(2)
        for m in range(3)
        for r in range(5)
    ]
    assert float(orthogonality(means, directions)) == pytest.approx(sum(map(abs, products)) / 30, rel=1e-5)
    assert float(orthogonality(means, directions, "paper")) == pytest.approx(
        sum(p * p for p in products), rel=1e-5
    )


def test_orthogonality_is_zero_for_directions_that_are_projected_away_from_the_means():
    rng = torch.Generator().manual_seed(0)
    means, directions = torch.randn(3, 2, 8, generator=rng), torch.randn(2, 8, 5, generator=rng)
    assert float(orthogonality(means, directions, "paper")) > 1.0
    of_layer = means.transpose(0, 1)
    away = directions - torch.linalg.pinv(of_layer) @ of_layer @ directions
    assert float(orthogonality(means, away, "paper")) == pytest.approx(0.0, abs=1e-8)


def test_other_layers_are_refused():
    with pytest.raises(ShapeError, match="do not fit"):
        orthogonality(torch.zeros(3, 2, 4), torch.zeros(1, 4, 5))


def test_the_feature_error_is_zero_for_equal_maps_and_ignores_their_length():
    rng = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 3, 4, 4, generator=rng), torch.randn(2, 5, 2, 2, generator=rng)]
    assert float(feature_error(maps, [2.0 * m for m in maps])) == pytest.approx(0.0, abs=1e-6)
    assert float(feature_error(maps, [-m for m in maps])) == pytest.approx(4.0, rel=1e-4)
    with pytest.raises(ShapeError, match="Maps of images"):
        feature_error(maps, maps[::-1])
