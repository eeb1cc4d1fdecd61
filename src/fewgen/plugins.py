"""Methods, data sets and encoders of other packages, found through entry points.

Looking for them reads the metadata of what is installed and imports nothing; `load` imports one.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.errors import ConfigError

if TYPE_CHECKING:
    from importlib import metadata

KINDS = {"fewgen.methods": "method", "fewgen.datasets": "data set", "fewgen.encoders": "encoder"}
"""Group of entry points -> what one of them is."""


def find(group: str, own: Collection[str]) -> dict[str, metadata.EntryPoint]:
    """Return the entry points of a group by name.

    A name that fewgen has itself, or that two packages offer, is left out with a warning that names them.

    Args:
        group: one of `KINDS`.
        own: the names of fewgen.
    """
    offers: dict[str, list[metadata.EntryPoint]] = {}
    for offer in _installed(group):
        offers.setdefault(offer.name, []).append(offer)
    found = {}
    for name, points in sorted(offers.items()):
        owners = (["fewgen"] if name in own else []) + [package(point) for point in points]
        if len(owners) == 1:
            found[name] = points[0]
        else:
            used = "only that of fewgen is used" if name in own else "neither is used"
            warnings.warn(
                f'The {KINDS[group]} name "{name}" is offered by {" and by ".join(owners)}; {used}. '
                "Rename one, or uninstall its package.",
                stacklevel=2,
            )
    return found


@functools.cache
def _installed(group: str) -> tuple[metadata.EntryPoint, ...]:
    from importlib import metadata  # not for `fewgen --help`

    return tuple(metadata.entry_points(group=group))


def package(point: metadata.EntryPoint) -> str:
    """Return the name and version of the package that an entry point is of."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.module


def load(point: metadata.EntryPoint) -> Any:
    """Import what an entry point names.

    Raises:
        ConfigError: that fails, for whatever reason.
    """
    try:
        return point.load()
    except Exception as error:  # foreign code may raise anything
        raise ConfigError(
            f'The {KINDS[point.group]} "{point.name}" of the package {package(point)} cannot be loaded from '
            f"{point.value}: {type(error).__name__}: {error}. Mend or uninstall that package."
        ) from error


def presets_of(method: str) -> Path | None:
    """Return the folder `presets/METHOD` of the package that offers a method, whether it exists or not.

    None if no package, or no single one, does.
    """
    points = [point for point in _installed("fewgen.methods") if point.name == method]
    if len(points) != 1:
        return None
    from importlib.util import find_spec

    spec = find_spec(points[0].module.partition(".")[0])
    folders = (spec.submodule_search_locations if spec is not None else None) or []
    return next((Path(folder) / "presets" / method for folder in folders), None)
