"""Weights of other programs, from safetensors files in their names into our networks.

What tensors are called there, and which networks they belong to, say `stylegan_weights` and `psp_weights`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewgen.errors import CheckpointError, ProblemList

Shape = tuple[int, ...]
Fields = dict[str, Any]
Pairs = list[tuple[re.Pattern[str], str]]

W_AVG = "w_avg"
"""Our name of the average style, which belongs to no network."""

_FLOATS = ("F16", "BF16", "F32", "F64")
_MOST = 1 << 16
"""Largest side of a tensor: a tensor without elements may claim any other sides in a tiny file."""


# --- Names -------------------------------------------------------------------------------------------------


def pattern_of(template: str, fields: Mapping[str, str], other: str = r"\d{1,5}") -> re.Pattern[str]:
    """Return what a name with fields such as `{n}` looks like.

    Args:
        template: of the name.
        fields: of one letter each -> what they look like.
        other: what fields that are not among these look like.
    """
    parts = re.split(r"\{(\w)\}", template)
    text = "".join(
        f"(?P<{part}>{fields.get(part, other)})" if i % 2 else re.escape(part) for i, part in enumerate(parts)
    )
    return re.compile(text + r"\Z")


def _as_they_are(name: str, fields: Fields) -> bool:
    """Keep the fields of a name: the default of `renamed`."""
    return True


def renamed(
    names: Iterable[str], patterns: Pairs, complete: Callable[[str, Fields], bool] = _as_they_are
) -> tuple[dict[str, str], list[str]]:
    """Return (new name -> name, names without a new one).

    Args:
        names: to be renamed.
        patterns: what a name looks like, and the new name with the same fields; no two fit one name.
        complete: adds fields of the new name to those found in a name; False where these do not fit.
    """
    result: dict[str, str] = {}
    unknown = []
    for name in names:
        found = ((pattern.match(name), template) for pattern, template in patterns)
        match, template = next((pair for pair in found if pair[0]), (None, ""))
        fields: Fields = match.groupdict() if match else {}
        new = template.format(**fields) if match and complete(name, fields) else None
        if new is None or new in result:
            unknown.append(name)
        else:
            result[new] = name
    return result, unknown


# --- Files -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Converted:
    """Tensors of a file; one that is looked for and missing, or has another number of sides, is an error.

    Attributes:
        file: where it lies.
        kind: what it should hold, a name.
        wanted: what to name instead, a sentence.
        names: our name -> its name there.
        shapes: our name -> shape, without sides that we lack.
        formats: our name -> number format, as safetensors calls it.
        unknown: name that no pattern fits, with the prefix of its network -> its name there.
        public: our name -> what the other program calls it.
        dropped: our name -> sides of 1 that we lack.
    """

    file: Path
    kind: str
    wanted: str
    names: dict[str, str]
    shapes: dict[str, Shape]
    formats: dict[str, str]
    unknown: dict[str, str]
    public: Callable[[str], str]
    dropped: dict[str, Shape] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        file: Path,
        kind: str,
        wanted: str,
        entries: Mapping[str, Any],
        names: dict[str, str],
        unknown: dict[str, str],
        public: Callable[[str], str],
        dropped: dict[str, Shape] | None = None,
    ) -> Converted:
        """Return what the entries of a header say; the other arguments are the attributes."""
        if not names:
            raise CheckpointError(f'"{file}" holds no tensor of {kind}. {wanted}')
        dropped = dropped or {}
        shapes, formats = {}, {}
        for ours, name in names.items():
            sides = tuple(entries[name]["shape"])
            gone = dropped.get(ours, ())
            if gone and len(sides) > max(gone) and all(sides[i] == 1 for i in gone):
                sides = tuple(side for i, side in enumerate(sides) if i not in gone)
            shapes[ours], formats[ours] = sides, entries[name]["dtype"]
        return cls(file, kind, wanted, names, shapes, formats, unknown, public, dropped)

    def get(self, name: str, sides: int) -> Shape:
        """Return the shape of tensor `name`."""
        shape = self.shapes.get(name)
        if shape is None:
            raise CheckpointError(
                f'"{self.file}" is no complete {self.kind} file: "{self.public(name)}" is missing. '
                f"{self.wanted}"
            )
        if len(shape) != sides or not all(1 <= side <= _MOST for side in shape):
            raise CheckpointError(
                f'"{self.file}" is no {self.kind} file: "{self.names[name]}" has shape {shape}, '
                f"expected {sides} sides from 1 to {_MOST}. {self.wanted}"
            )
        return shape

    def has(self, name: str) -> bool:
        """Tell whether there is such a tensor."""
        return name in self.shapes

    def count(self, pattern: str) -> int:
        """Return how many of `pattern` with 0, 1, 2, ... put in are there, without a gap."""
        n = 0
        while pattern.format(n) in self.shapes:
            n += 1
        return n

    def check(
        self, networks: Mapping[str, nn.Module], w_dim: int | None, theirs: Callable[[str], bool]
    ) -> dict[str, Shape]:
        """Return our names and shapes of all that is read.

        Counts of batches (`num_batches_tracked`) are not: what is trained further counts anew.

        Args:
            networks: prefix of our names -> network.
            w_dim: D; None: no average style is wanted.
            theirs: unknown name -> whether it belongs to one of the networks, and so is an error.

        Raises:
            CheckpointError: it lists what is missing, unknown, or of another shape.
        """
        wanted = {name: tuple(tensor.shape) for name, tensor in _targets(networks).items()}
        prefixes = set(networks)
        if w_dim is not None and self.has(W_AVG):
            shape = self.shapes[W_AVG]
            repeated = len(shape) == 2 and 1 <= shape[0] <= _MOST and shape[1] == w_dim  # for each layer
            wanted[W_AVG] = shape if repeated else (w_dim,)
            prefixes.add(W_AVG)
        names = {name for name in self.names if name.partition(".")[0] in prefixes}
        problems = ProblemList(f'The tensors in "{self.file}" do not fit the networks', CheckpointError)
        for name in wanted:
            if name not in names:
                problems.add(f'"{self.public(name)}" ({name}) is missing')
        for name in self.names:
            if name in names and name not in wanted:
                problems.add(f'"{self.names[name]}" ({name}) is not in the network')
        for name, shown in self.unknown.items():
            if theirs(name):
                problems.add(f'"{shown[:80]}" is unknown')
        for name, shape in wanted.items():
            if name in names and self.shapes[name] != shape:
                found = self.shapes[name]
                problems.add(f'"{self.names[name]}" ({name}) has shape {found} instead of {shape}')
            elif name in names and self.formats[name] not in _FLOATS:
                problems.add(f'"{self.names[name]}" holds {self.formats[name]}, not floating-point numbers')
        problems.raise_if_any()
        return wanted

    def fill(
        self, networks: Mapping[str, nn.Module], w_dim: int | None, theirs: Callable[[str], bool]
    ) -> Tensor | None:
        """Copy tensors into networks, if all of them fit, and return the average style (D,) if it is there.

        The arguments are those of `check`.

        Raises:
            CheckpointError: as `check`; or numbers are not finite. Nothing was changed then.
        """
        tensors = self._read(self.check(networks, w_dim, theirs))
        w_avg = tensors.pop(W_AVG, None)
        if w_avg is not None and w_avg.ndim == 2:
            if not (w_avg == w_avg[:1]).all():
                raise CheckpointError(
                    f'The rows of "{self.names[W_AVG]}" in "{self.file}" differ, but all layers have one '
                    "average style."
                )
            w_avg = w_avg[0]
        with torch.no_grad():
            for name, target in _targets(networks).items():
                target.copy_(tensors[name].reshape(target.shape))
        return None if w_avg is None else w_avg.float()

    def _read(self, wanted: Iterable[str]) -> dict[str, Tensor]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.file, framework="pt") as stream:
                tensors = {name: stream.get_tensor(self.names[name]) for name in wanted}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f'"{self.file}" is damaged ({error}). Convert it again.') from error
        problems = ProblemList(f'"{self.file}" is damaged', CheckpointError)
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                problems.add(f'"{self.names[name]}" holds numbers that are not finite')
        problems.raise_if_any()
        return tensors


def _targets(networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {
        f"{prefix}.{name}": tensor
        for prefix, network in networks.items()
        for name, tensor in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
