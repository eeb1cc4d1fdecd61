"""Sparsity, orthogonality, and what a frozen network sees."""

import math

import pytest
import torch

from fewgen.errors import ShapeError
from fewgen.losses.attributes import (
    alignment_error,
    direction_error,
    feature_error,
    orthogonality,
    sparsity,
)


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


def test_directions_of_images_and_texts_that_coincide_cost_nothing():
    rng = torch.Generator().manual_seed(0)
    source, neutral, change = (torch.randn(4, 6, generator=rng) for _ in range(3))
    found = (source + 0.3 * change).requires_grad_()
    assert float(direction_error(found, source, neutral + 2.0 * change, neutral).detach()) == pytest.approx(
        0.0
    )
    assert float(direction_error(found, source, neutral - change, neutral).detach()) == pytest.approx(2.0)
    cosine = torch.nn.functional.cosine_similarity(0.3 * change, source - neutral)
    assert float(direction_error(found, source, source, neutral).detach()) == pytest.approx(
        1.0 - float(cosine.mean()), abs=1e-5
    )
    still = source.clone().requires_grad_()
    error = direction_error(still, source, neutral + change, neutral)
    error.backward()
    assert float(error) == 1.0
    assert torch.equal(still.grad, torch.zeros_like(still))


def test_alignment_is_zero_for_the_image_itself_without_a_text():
    rng = torch.Generator().manual_seed(0)
    image, text = torch.randn(4, 6, generator=rng), torch.randn(4, 6, generator=rng)
    assert float(alignment_error(image, image, text, 0.0)) == pytest.approx(0.0, abs=1e-6)
    cosine = torch.nn.functional.cosine_similarity(image, text).mean()
    assert float(alignment_error(image, 2.0 * image, text, 0.5)) == pytest.approx(
        0.5 * (1.0 - float(cosine)), abs=1e-5
    )
    with pytest.raises(ShapeError, match="Features"):
        alignment_error(image, image[:2], text, 0.5)
