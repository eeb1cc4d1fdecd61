"""Which images are learned from: the draws of earlier releases, kept as values."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from fewgen.data import ImageSet
from fewgen.data.split import split_indices

LABELS = "1222220111210200002212221121022212112002221212"


def _set(times: int = 1) -> ImageSet:
    labels = torch.tensor([int(digit) for digit in LABELS * times])
    return ImageSet(torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8), labels, ("cat", "dog", "bird"))


def _digest(indices: object) -> str:
    return hashlib.sha256(json.dumps(indices).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("shots", "holdout", "seed", "train", "held_out"),
    [
        (4, 2, 0, [12, 17, 15, 14, 24, 9, 20, 44, 45, 4, 31, 21], [6, 28, 0, 27, 13, 10]),
        (3, "auto", 7, [17, 16, 14, 24, 7, 32, 22, 19, 40], []),
        (None, "auto", 0, "ca7f4339c52f8380", [38, 16, 25, 7, 11, 29, 18, 1, 36, 23]),
        (None, 3, 1, "aa2a471e9a75d704", [12, 15, 16, 25, 27, 35, 45, 5, 22]),
        (None, 0, 2, "5f3caf12b6ffc405", []),
    ],
)
def test_draws_are_those_of_earlier_releases(shots, holdout, seed, train, held_out):
    found, aside = split_indices(_set(), shots, holdout, seed)
    assert (found if isinstance(train, list) else _digest(found)) == train
    assert aside == held_out


def test_held_out_images_within_the_shots_are_those_of_earlier_releases():
    parts = split_indices(_set(10), 40, "auto", 5)
    assert _digest(list(parts)) == "b26af63dad06100b"
    assert [len(part) for part in parts] == [108, 12]
