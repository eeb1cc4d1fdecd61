"""Which classes and images make up episode i: a pure function of labels, settings, seed and i."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fewgen.data import ImageSet
from fewgen.episodes.episode import Episode
from fewgen.errors import ConfigError, DataError, ProblemList, ShapeError
from fewgen.fitting.seeds import make_rng

_SHOWN = 10
"""Classes named in one message."""


class EpisodeSampler:
    """Draws `n_way`-way, `n_shot`-shot episodes, balanced over the classes.

    Episode i depends on nothing but the labels, the settings, the seed and i. So any number of workers, each
    asking for its own numbers in any order, sees the same episodes.

    Classes: `episodes_per_block` consecutive episodes (from a multiple of that number on) have every class
    equally often, and no episode has a class twice. `n_shot` and `n_query` do not enter.

    Images: the images of a class come in an order that depends on the seed, i and the class. Support is
    taken from its beginning, query from its end. So with other settings equal, `n_shot=1` gives the first
    of the support images that `n_shot=5` gives, both are judged by the same queries, and `n_query=5` gives
    the first five of the queries that `n_query=10` gives.

    Source: O. Vinyals et al., "Matching networks for one shot learning", NeurIPS 2016, section 2.2.

    Differs: there, the classes of each episode are drawn independently of all other episodes. Here,
    they are drawn without replacement over a block, which lowers the variance of means over episodes.
    Nothing is ever drawn with replacement to fill up a small class.

    Args:
        labels: int64 (N,), not negative. Labels without images are no classes here.
        n_way: classes per episode.
        n_shot: support images per class.
        n_query: query images per class; None for all images of the class that are not support.
        seed: of all draws.
        class_names: names of the labels, for messages only.

    Attributes:
        present: int64 (C,), the labels that have images, in increasing order.
        episodes_per_block: lcm(C, n_way) / n_way.

    Raises:
        ConfigError: a setting is below 1.
        DataError: fewer classes than `n_way`, or classes with too few images.
        ShapeError: `labels` is not a vector of integers.
    """

    def __init__(
        self,
        labels: Tensor,
        n_way: int,
        n_shot: int,
        n_query: int | None,
        seed: int,
        *,
        class_names: Sequence[str] | None = None,
    ) -> None:
        settings = {"n_way": n_way, "n_shot": n_shot, "n_query": 1 if n_query is None else n_query}
        wrong = ProblemList("Settings of the episodes", ConfigError)
        for key, value in settings.items():
            if value < 1:
                wrong.add(f"--tasks.{key} must be at least 1, got {value}")
        wrong.raise_if_any()
        if labels.dtype != torch.int64 or labels.ndim != 1:
            raise ShapeError(f"labels must be int64 of shape (N,), got {labels.dtype} {tuple(labels.shape)}.")
        self.labels = labels.cpu()
        self.n_way, self.n_shot, self.n_query, self.seed = n_way, n_shot, n_query, seed
        if len(labels) and (
            int(self.labels.min()) < 0
            or (class_names is not None and int(self.labels.max()) >= len(class_names))
        ):
            known = "" if class_names is None else f", but there are {len(class_names)} class names"
            raise DataError(f"labels reach from {int(self.labels.min())} to {int(self.labels.max())}{known}.")
        counts = torch.bincount(self.labels)
        self.present = counts.nonzero().flatten()
        self._check(counts[self.present].tolist(), class_names)
        # The positions of label c are _order[_starts[c] : _starts[c] + _counts[c]].
        self._order = self.labels.argsort(stable=True)
        self._counts: list[int] = counts.tolist()
        self._starts: list[int] = (counts.cumsum(0) - counts).tolist()
        self.episodes_per_block = math.lcm(len(self.present), n_way) // n_way
        self._cached: tuple[int, Tensor] | None = None

    def _check(self, counts: list[int], class_names: Sequence[str] | None) -> None:
        """Raise `DataError` if there are too few classes, or classes with too few images."""
        problems = ProblemList("These episodes cannot be drawn")
        if len(counts) < self.n_way:
            lower = f"lower --tasks.n_way to at most {len(counts)}, or add" if counts else "add"
            problems.add(
                f"n_way = {self.n_way} classes are needed, but only {len(counts)} have images; "
                f"{lower} images of {self.n_way - len(counts)} more classes."
            )
        n_query = self.n_query or 1
        needed = self.n_shot + n_query
        small = [(c, n) for c, n in zip(self.present.tolist(), counts, strict=True) if n < needed]
        if small:
            shown = ", ".join(
                f"{n} of " + (f"class {c}" if class_names is None else f'"{class_names[c]}"')
                for c, n in small[:_SHOWN]
            )
            more = f" and {len(small) - _SHOWN} more classes" if len(small) > _SHOWN else ""
            fewest = min(n for _, n in small)
            if fewest < 2:
                lower = ""
            elif self.n_query is None:
                lower = f"lower --tasks.n_shot to at most {fewest - 1}, "
            else:
                lower = f"lower --tasks.n_shot and --tasks.n_query to at most {fewest} together, "
            problems.add(
                f"n_shot + n_query = {self.n_shot} + {n_query} = {needed} images of each class are needed, "
                f"but there are only {shown}{more}; {lower}add images, or leave these classes out."
            )
        problems.raise_if_any()

    def __repr__(self) -> str:
        query = "all other" if self.n_query is None else self.n_query
        return (
            f"EpisodeSampler({self.n_way} of {len(self.present)} classes, {self.n_shot} support and "
            f"{query} query images each, seed {self.seed})"
        )

    def classes(self, i: int) -> Tensor:
        """Return the classes of episode `i`, int64 (n_way,), all different, in random order."""
        if i < 0:
            raise ConfigError(f"Episodes are numbered from 0, got {i}.")
        block, row = divmod(i, self.episodes_per_block)
        cached = self._cached  # read once: another thread may replace it
        if cached is None or cached[0] != block:
            cached = (block, self._block(block))
            self._cached = cached
        return cached[1][row].clone()

    def _block(self, block: int) -> Tensor:
        """Return the classes of one block of episodes, int64 (episodes_per_block, n_way).

        Each episode takes the classes with the most draws left, ties in random order. All classes start
        with equally many, so this is: pass after pass over all classes, each in random order, where an
        episode that begins in one pass and ends in the next takes no class twice. That always works:
        the r < n_way classes left over from a pass exclude no more than r of the C >= n_way classes, so at
        least the n_way - r that are still needed remain to choose from.
        """
        rng = make_rng("cpu", self.seed, "episodes", "classes", block)
        n_classes = len(self.present)
        n_draws = self.episodes_per_block * self.n_way
        passes: list[Tensor] = []
        for start in range(0, n_draws, n_classes):
            order = torch.randperm(n_classes, generator=rng)
            left_over = start % self.n_way
            if left_over:
                taken = torch.isin(order, passes[-1][n_classes - left_over :])
                first = order[~taken][: self.n_way - left_over]
                order = torch.cat([first, order[~torch.isin(order, first)]])
            passes.append(order)
        return self.present[torch.cat(passes)].view(-1, self.n_way)

    def _members(self, i: int, c: int) -> Tensor:
        """Return the positions of class `c` in the order that episode `i` has for it."""
        n, start = self._counts[c], self._starts[c]
        order = torch.randperm(n, generator=make_rng("cpu", self.seed, "episodes", "images", i, c))
        return self._order[start + order]

    def indices(self, i: int) -> Tensor:
        """Return the images of episode `i` as positions in the labels.

        Returns:
            int64 (n_way, n_shot + n_query); row j is of class `classes(i)[j]`, support columns first.

        Raises:
            ConfigError: if `n_query` is None, as rows may then differ in length; see `support_query`.
        """
        if self.n_query is None:
            raise ConfigError(
                "With n_query = None the classes of an episode may differ in their number of query images; "
                "use support_query(i), or set --tasks.n_query."
            )
        support, query = self.support_query(i)
        return torch.cat([support.view(self.n_way, -1), query.view(self.n_way, -1)], dim=1)

    def support_query(self, i: int) -> tuple[Tensor, Tensor]:
        """Return the support and query images of episode `i` as positions in the labels.

        Returns:
            int64 (n_way * n_shot,) and int64 (Q,), disjoint, both grouped by class in the order of
            `classes(i)`. Q is n_way * n_query, or the number of all other images of these classes.
        """
        orders = [self._members(i, c) for c in self.classes(i).tolist()]
        # Queries from the end: they stay the same whatever n_shot is.
        rest = [order[self.n_shot :].flip(0)[: self.n_query] for order in orders]
        return torch.cat([order[: self.n_shot] for order in orders]), torch.cat(rest)

    def episode(self, i: int, images: ImageSet) -> Episode:
        """Return episode `i` with its images.

        Args:
            i: number of the episode.
            images: the images whose labels the sampler was made with.

        Raises:
            DataError: if the labels of `images` are other ones.
        """
        if len(images) != len(self.labels) or not torch.equal(images.labels.cpu(), self.labels):
            raise DataError(
                f"The sampler was made with {len(self.labels)} labels, and these {len(images)} images have "
                "other ones. Pass the images that the labels are of."
            )
        support, query = self.support_query(i)
        return Episode.of(images, support, query, self.classes(i), i)
