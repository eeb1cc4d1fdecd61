"""Which images come when.

The order is one endless stream of indices that depends on the labels and the seed alone. A global batch
is the next `batch_size * n_processes` indices; process r takes the r-th part of it. So the order is the
same for any number of processes with the same global batch, and the position in the stream is all there is
to save.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from fewgen.config.checks import one_of
from fewgen.errors import ConfigError, DataError
from fewgen.fitting.seeds import derive_seed

_BLOCK = 1024
"""Indices prepared at a time: long enough that a step only slices."""


class Sampler(Protocol):
    """Hands out batches of indices and can be put back to any position."""

    position: int

    def next(self) -> Tensor:
        """Return this process's part of the next batch, int64 (batch_size,)."""
        ...


class _Stream:
    """Endless indices in blocks of one length, of which one is held; block k is made from k alone."""

    def __init__(self, make_block: Callable[[int], Tensor]) -> None:
        self._make_block = make_block
        self._index = -1
        self._block = torch.empty(0, dtype=torch.int64)

    def read(self, start: int, stop: int) -> Tensor:
        """Return entries start..stop of the stream."""
        if self._index < 0:
            self._index, self._block = 0, self._make_block(0)
        parts = []
        while start < stop:
            index, offset = divmod(start, len(self._block))
            if index != self._index:
                self._index, self._block = index, self._make_block(index)
            part = self._block[offset : offset + stop - start]
            parts.append(part)
            start += len(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class _StreamSampler:
    """Cuts batches out of a stream; subclasses make its blocks."""

    def __init__(self, labels: Tensor, batch_size: int, seed: int, rank: int, n_processes: int) -> None:
        if len(labels) == 0:
            raise DataError("There are no training images to draw from.")
        self.labels = labels.cpu()
        self.batch_size = batch_size
        self.global_batch = batch_size * n_processes
        self.seed = seed
        self.rank = rank
        self.position = 0
        self._stream = _Stream(self.make_block)

    def make_block(self, index: int) -> Tensor:
        """Return block `index` of the stream; all blocks have the same length."""
        raise NotImplementedError

    def next(self) -> Tensor:
        """Return this process's part of the next batch, int64 (batch_size,)."""
        start = self.position + self.rank * self.batch_size
        self.position += self.global_batch
        return self._stream.read(start, start + self.batch_size)

    def _shuffles(self, n_passes: int, n: int, *parts: object) -> Tensor:
        """Return independent shuffles of 0..n-1, int64 (n_passes, n), all from one seed."""
        rng = torch.Generator().manual_seed(derive_seed(self.seed, *parts))
        keys = torch.rand((n_passes, n), generator=rng, dtype=torch.float64)
        return keys.argsort(dim=1, stable=True)


class ShuffledSampler(_StreamSampler):
    """Every image once, shuffled; then again in a new order. Batches run across the seam."""

    def make_block(self, index: int) -> Tensor:
        """Return some whole passes over the images."""
        n = len(self.labels)
        return self._shuffles(max(1, _BLOCK // n), n, "passes", index).flatten()


class _ClassSampler(_StreamSampler):
    """Shared by the samplers that visit classes in rounds; classes without images are left out."""

    def __init__(self, labels: Tensor, batch_size: int, seed: int, rank: int, n_processes: int) -> None:
        super().__init__(labels, batch_size, seed, rank, n_processes)
        self.members = [torch.nonzero(self.labels == c).flatten() for c in self.labels.unique().tolist()]
        self.of_class = [_Stream(partial(self._class_block, c)) for c in range(len(self.members))]

    def _class_block(self, c: int, index: int) -> Tensor:
        """Return some whole shuffled passes over the images of one class."""
        members = self.members[c]
        n_passes = max(1, _BLOCK // len(members))
        return members[self._shuffles(n_passes, len(members), "class", c, index).flatten()]


class BalancedSampler(_ClassSampler):
    """Every class once per round, in shuffled order; the images of a class in shuffled passes."""

    def make_block(self, index: int) -> Tensor:
        """Return some whole rounds."""
        n_classes = len(self.members)
        rounds = max(1, _BLOCK // n_classes)
        first = index * rounds
        columns = [stream.read(first, first + rounds) for stream in self.of_class]
        table = torch.stack(columns, dim=1)
        order = self._shuffles(rounds, n_classes, "rounds", index)
        return table.gather(1, order).flatten()


class SingleClassSampler(_ClassSampler):
    """Each global batch from one class; every class once per round of batches, in shuffled order."""

    def make_block(self, index: int) -> Tensor:
        """Return one round: a batch of each class."""
        order = self._shuffles(1, len(self.members), "order", index)[0].tolist()
        first = index * self.global_batch
        return torch.cat([self.of_class[c].read(first, first + self.global_batch) for c in order])


class GroupedSampler(_ClassSampler):
    """Batches of groups of one class: images i, i + B / G, i + 2 B / G, ... of a batch of B are a group of G.

    So groups are what minibatch deviation compares.

    Classes come in shuffled rounds, so each equally often; the images of a class in shuffled passes.

    Args:
        labels: of the training images, int64 (N,).
        batch_size: B, images per process, a multiple of the group.
        seed: of the order.
        rank: number of this process.
        n_processes: how many processes share each global batch.
        group_size: G, images of one class in a group.

    Raises:
        ConfigError: if the group does not divide the batch.
    """

    def __init__(
        self,
        labels: Tensor,
        batch_size: int,
        seed: int,
        rank: int = 0,
        n_processes: int = 1,
        *,
        group_size: int,
    ) -> None:
        super().__init__(labels, batch_size, seed, rank, n_processes)
        if group_size < 1 or batch_size % group_size:
            raise ConfigError(f"A batch of {batch_size} images is no multiple of groups of {group_size}.")
        self.group_size = group_size

    def make_block(self, index: int) -> Tensor:
        """Return as many batches as there are classes, in which every class fills equally many groups."""
        n_classes, group = len(self.members), self.group_size
        rounds = self.batch_size // group
        start, stop = index * rounds * group, (index + 1) * rounds * group
        columns = [stream.read(start, stop).view(rounds, group) for stream in self.of_class]
        table = torch.stack(columns, dim=1)  # (rounds, n_classes, group)
        order = self._shuffles(rounds, n_classes, "rounds", index)
        slots = table.gather(1, order[:, :, None].expand_as(table)).reshape(n_classes, rounds, group)
        return slots.transpose(1, 2).flatten()


SAMPLERS: dict[str, type[_StreamSampler]] = {
    "shuffled": ShuffledSampler,
    "balanced": BalancedSampler,
    "single_class": SingleClassSampler,
}


def make_sampler(
    kind: str, labels: Tensor, batch_size: int, seed: int, rank: int = 0, n_processes: int = 1
) -> Sampler:
    """Return the sampler of that name.

    Args:
        kind: "shuffled", "balanced" or "single_class".
        labels: of the training images, int64 (N,).
        batch_size: images per process.
        seed: of the order.
        rank: number of this process.
        n_processes: how many processes share each global batch.

    Raises:
        ConfigError: if the name is unknown.
        DataError: if there are no images.
    """
    one_of("sampler", kind, SAMPLERS)
    return SAMPLERS[kind](labels, batch_size, seed, rank, n_processes)
