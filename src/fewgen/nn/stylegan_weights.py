"""Weights of StyleGAN2 in the names of its public code, from a safetensors file into our networks.

The public code saves pickles, which can run code when they are opened; convert one with a tool you trust and
write `G_ema.state_dict()` and `D.state_dict()` to one safetensors file, with "G_ema." (or "G.") and "D."
before the names, or one of the two without a prefix. The file's header tells which networks to build.

Source: Karras et al. 2020, arXiv:2006.06676 (tensor names of its public code, stylegan2-ada-pytorch).
Differs: activations are not clamped to +-256, which the public code does for half precision; the generator is
    the one with output skips; `resample_filter` is not read, because the filter is always [1, 3, 3, 1].
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from fewgen.errors import CheckpointError, FewgenError, ProblemList
from fewgen.nn.stylegan import Discriminator, MappingNetwork, SynthesisNetwork
from fewgen.tensor_files import read_tensor_header

T = TypeVar("T")
Shape = tuple[int, ...]

STYLEGAN2_NAMES: tuple[tuple[str, str], ...] = (
    # the generator
    ("mapping.embed.{p}", "G_ema.mapping.embed.{p}"),
    ("mapping.layers.{n}.{p}", "G_ema.mapping.fc{n}.{p}"),
    ("w_avg", "G_ema.mapping.w_avg"),
    ("synthesis.blocks.{b}.const", "G_ema.synthesis.b{r}.const"),
    ("synthesis.blocks.{b}.conv{k}.conv.weight", "G_ema.synthesis.b{r}.conv{k}.weight"),
    ("synthesis.blocks.{b}.conv{k}.conv.affine.{p}", "G_ema.synthesis.b{r}.conv{k}.affine.{p}"),
    ("synthesis.blocks.{b}.conv{k}.noise_const", "G_ema.synthesis.b{r}.conv{k}.noise_const"),
    ("synthesis.blocks.{b}.conv{k}.noise_strength", "G_ema.synthesis.b{r}.conv{k}.noise_strength"),
    ("synthesis.blocks.{b}.conv{k}.bias", "G_ema.synthesis.b{r}.conv{k}.bias"),
    ("synthesis.blocks.{b}.to_image.conv.weight", "G_ema.synthesis.b{r}.torgb.weight"),
    ("synthesis.blocks.{b}.to_image.conv.affine.{p}", "G_ema.synthesis.b{r}.torgb.affine.{p}"),
    ("synthesis.blocks.{b}.to_image.bias", "G_ema.synthesis.b{r}.torgb.bias"),
    # the discriminator
    ("discriminator.from_image.{p}", "D.b{R}.fromrgb.{p}"),
    ("discriminator.blocks.{d}.conv{k}.{p}", "D.b{r}.conv{k}.{p}"),
    ("discriminator.blocks.{d}.skip.weight", "D.b{r}.skip.weight"),
    ("discriminator.conv.{p}", "D.b{s}.conv.{p}"),
    ("discriminator.fc.{p}", "D.b{s}.fc.{p}"),
    ("discriminator.out.{p}", "D.b{s}.out.{p}"),
    ("discriminator.mapping.embed.{p}", "D.mapping.embed.{p}"),
    ("discriminator.mapping.layers.{n}.{p}", "D.mapping.fc{n}.{p}"),
)
"""Every tensor: our name (network, then its own `state_dict` name), and that of the public code.

`{p}` is "weight" or "bias", `{n}` and `{k}` a number that is the same on both sides, `{r}` the height of a
map, `{s}` that of the smallest and `{R}` that of the largest. Blocks are counted from the smallest map in
the generator (`{b}`: r = s * 2^b) and from the largest in the discriminator (`{d}`: r = R / 2^d). Read from
the left, the table writes public names; from the right, it reads them.
"""

_WANTED = (
    "Name a safetensors file with the tensors of stylegan2-ada-pytorch (G_ema.state_dict(), D.state_dict())."
)
_FIELDS = {"p": "weight|bias", "n": r"\d{1,3}", "k": "[01]", "b": r"\d{1,2}", "d": r"\d{1,2}"}
_HEIGHT = r"\d{1,5}"
_FLOATS = ("F16", "BF16", "F32", "F64")
_MOST = 1 << 16
"""Largest side of a tensor: a tensor without elements may claim any other sides in a tiny file."""


@dataclass(frozen=True)
class GeneratorSettings:
    """What a file's generator was built with.

    Attributes:
        shape: (C, H, W) of an image.
        z_dim: Z.
        w_dim: D.
        c_dim: numbers of the condition; 0: none.
        mapping_layers: fully connected layers of the mapping network.
        width: channels of each map from the smallest.
    """

    shape: tuple[int, int, int]
    z_dim: int
    w_dim: int
    c_dim: int
    mapping_layers: int
    width: tuple[int, ...]


@dataclass(frozen=True)
class DiscriminatorSettings:
    """What a file's discriminator was built with.

    Attributes:
        shape: (C, H, W) of an image.
        width: channels of each map from the smallest.
        c_dim: numbers of the condition; 0: none.
        architecture: "residual" if there are weights of shortcuts.
        minibatch_deviation: whether the last convolution takes a channel of it. The size of its groups is
            not in the weights.
        mapping_layers: of the condition's mapping network; 0 without a condition.
        condition_dim: numbers of the projection; None without a condition.
    """

    shape: tuple[int, int, int]
    width: tuple[int, ...]
    c_dim: int
    architecture: Literal["residual", "plain"]
    minibatch_deviation: bool
    mapping_layers: int
    condition_dim: int | None


@dataclass(frozen=True)
class StyleGAN2Settings:
    """What a file holds: a generator, a discriminator, or both; None: not in it.

    Attributes:
        generator: its settings.
        discriminator: its settings.
        has_w_avg: whether the average style, for truncation, is there.
    """

    generator: GeneratorSettings | None
    discriminator: DiscriminatorSettings | None
    has_w_avg: bool


# --- Names -------------------------------------------------------------------------------------------------


def _compile(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w)\}", pattern)
    text = "".join(
        f"(?P<{part}>{_FIELDS.get(part, _HEIGHT)})" if i % 2 else re.escape(part)
        for i, part in enumerate(parts)
    )
    return re.compile(text + r"\Z")


_OURS = [(_compile(ours), theirs) for ours, theirs in STYLEGAN2_NAMES]
_THEIRS = [(_compile(theirs), ours) for ours, theirs in STYLEGAN2_NAMES]


def _with_prefixes(names: Iterable[str]) -> dict[str, str]:
    """Return name with prefix "G_ema." or "D." -> name as it is, without filters and without a second G.

    Raises:
        CheckpointError: if both networks are there without prefixes: both have a "mapping.".
    """
    kept = [name for name in names if not name.endswith("resample_filter")]
    average = any(name.startswith("G_ema.") for name in kept)
    bare = [name for name in kept if not name.startswith(("G_ema.", "G.", "D."))]
    is_generator = any(name.startswith("synthesis.") for name in bare)
    is_discriminator = any(re.match(r"b\d+\.", name) for name in bare)
    if is_generator and is_discriminator:
        raise CheckpointError(
            "The tensors of generator and discriminator are mixed without prefixes. "
            'Put "G_ema." and "D." before their names.'
        )
    result = {}
    for name in kept:
        if name.startswith("G."):
            if not average:
                result[f"G_ema.{name[2:]}"] = name
        elif name.startswith(("G_ema.", "D.")):
            result[name] = name
        else:
            result[f"{'D' if is_discriminator else 'G_ema'}.{name}"] = name
    return result


def _heights(names: Iterable[str], prefix: str) -> list[int]:
    found = {
        int(match[1]) for name in names if (match := re.match(re.escape(prefix) + r"b(\d{1,5})\.", name))
    }
    return sorted(found)


def _rename(
    names: list[str],
    patterns: list[tuple[re.Pattern[str], str]],
    complete: Callable[[str, dict[str, Any]], bool],
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
        fields: dict[str, Any] = match.groupdict() if match else {}
        new = template.format(**fields) if match and complete(name, fields) else None
        if new is None or new in result:
            unknown.append(name)
        else:
            result[new] = name
    return result, unknown


def _to_ours(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Return (our name -> prefixed public name, names that no pattern fits)."""
    names = list(names)
    heights = {"G": _heights(names, "G_ema.synthesis."), "D": _heights(names, "D.")}

    def complete(name: str, fields: dict[str, Any]) -> bool:
        maps = heights[name[0]]
        if not maps:
            return True
        if fields.get("s") not in (None, str(maps[0])) or fields.get("R") not in (None, str(maps[-1])):
            return False
        if "r" not in fields:
            return True
        n = maps.index(int(fields["r"]))
        fields["b"], fields["d"] = n, len(maps) - 1 - n
        return maps[n] == maps[0] << n

    return _rename(names, _THEIRS, complete)


def _to_theirs(names: Iterable[str], start: int) -> tuple[dict[str, str], list[str]]:
    """Return (public name -> our name, names that no pattern fits)."""
    names = list(names)
    blocks = [
        int(match[1]) for name in names if (match := re.match(r"discriminator\.blocks\.(\d{1,2})\.", name))
    ]
    largest = start << (max(blocks) + 1 if blocks else 0)

    def complete(name: str, fields: dict[str, Any]) -> bool:
        fields["s"], fields["R"] = start, largest
        if "b" in fields:
            fields["r"] = start << int(fields["b"])
        if "d" in fields:
            fields["r"] = largest >> int(fields["d"])
        return True

    return _rename(names, _OURS, complete)


def convert_names(
    state_dict: Mapping[str, T], to: Literal["fewgen", "stylegan2"] = "fewgen", start: int = 4
) -> dict[str, T]:
    """Return the same values under the names of the other side of `STYLEGAN2_NAMES`.

    Args:
        state_dict: to "fewgen": public names with or without the prefixes "G_ema.", "G.", "D."; filters are
            left out, and "G." too where there is "G_ema.". To "stylegan2": `state_dict` names after
            "mapping.", "synthesis." or "discriminator.", and "w_avg".
        to: whose names to return.
        start: height of the smallest map, for `to="stylegan2"`: our names count blocks, theirs name heights.

    Raises:
        CheckpointError: if a name fits no pattern; lists them.
    """
    if to == "fewgen":
        known = _with_prefixes(state_dict)
        table, unknown = _to_ours(known)
        sources = {new: known[old] for new, old in table.items()}
        unknown = [known[name] for name in unknown]
    else:
        sources, unknown = _to_theirs(state_dict, start)
    problems = ProblemList("These tensors have names that StyleGAN2 does not have", CheckpointError)
    for name in unknown:
        problems.add(f'"{name[:80]}"')
    problems.raise_if_any()
    return {new: state_dict[old] for new, old in sources.items()}


# --- Files -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """Tensors of a file; one that is looked for and missing, or has another number of sides, is an error.

    Attributes:
        file: where it lies.
        names: our name -> its name there.
        shapes: our name -> shape.
        formats: our name -> number format, as safetensors calls it.
        unknown: prefixed public name that no pattern fits -> its name there.
        start: height of the discriminator's smallest map; 4 without one.
    """

    file: Path
    names: dict[str, str]
    shapes: dict[str, Shape]
    formats: dict[str, str]
    unknown: dict[str, str]
    start: int

    def get(self, name: str, sides: int) -> Shape:
        """Return the shape of tensor `name`."""
        shape = self.shapes.get(name)
        if shape is None:
            raise CheckpointError(
                f'"{self.file}" is no complete StyleGAN2 file: "{self._public(name)}" is missing. {_WANTED}'
            )
        if len(shape) != sides or not all(1 <= side <= _MOST for side in shape):
            raise CheckpointError(
                f'"{self.file}" is no StyleGAN2 file: "{self.names[name]}" has shape {shape}, '
                f"expected {sides} sides from 1 to {_MOST}. {_WANTED}"
            )
        return shape

    def _public(self, name: str) -> str:
        table, _ = _to_theirs([name, *self.names], self.start)
        return next((theirs for theirs, ours in table.items() if ours == name), name)

    def has(self, name: str) -> bool:
        """Tell whether there is such a tensor."""
        return name in self.shapes

    def count(self, pattern: str) -> int:
        """Return how many of `pattern` with 0, 1, 2, ... put in are there, without a gap."""
        n = 0
        while pattern.format(n) in self.shapes:
            n += 1
        return n


def _look(path: str | os.PathLike[str]) -> _Found:
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f'There is no file "{file}". {_WANTED}')
    header = read_tensor_header(file, _WANTED)
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    try:
        known = _with_prefixes(entries)
    except CheckpointError as error:
        raise CheckpointError(f'"{file}" cannot be read. {error}') from None
    table, unknown = _to_ours(known)
    if not table:
        raise CheckpointError(f'"{file}" holds no tensor of StyleGAN2. {_WANTED}')
    names = {ours: known[theirs] for ours, theirs in table.items()}
    shapes = {ours: tuple(entries[name]["shape"]) for ours, name in names.items()}
    formats = {ours: entries[name]["dtype"] for ours, name in names.items()}
    start = (_heights(known, "D.") or [4])[0]
    return _Found(file, names, shapes, formats, {name: known[name] for name in unknown}, start)


def _generator_settings(found: _Found) -> GeneratorSettings:
    const = found.get("synthesis.blocks.0.const", 3)
    n_maps = found.count("synthesis.blocks.{}.conv1.conv.weight")
    width = tuple(found.get(f"synthesis.blocks.{b}.conv1.conv.weight", 4)[0] for b in range(n_maps))
    if not found.has("synthesis.blocks.0.to_image.bias"):
        raise CheckpointError(
            f'The generator in "{found.file}" does not add an image at each size. Only '
            'architecture "skip", the published one, can be read.'
        )
    channels = found.get("synthesis.blocks.0.to_image.bias", 1)[0]
    w_dim = found.get("synthesis.blocks.0.conv1.conv.affine.weight", 2)[1]
    has_condition = found.has("mapping.embed.weight")
    embedded, c_dim = found.get("mapping.embed.weight", 2) if has_condition else (0, 0)
    return GeneratorSettings(
        shape=(channels, const[1] << (n_maps - 1), const[2] << (n_maps - 1)),
        z_dim=found.get("mapping.layers.0.weight", 2)[1] - embedded,
        w_dim=w_dim,
        c_dim=c_dim,
        mapping_layers=found.count("mapping.layers.{}.weight"),
        width=width,
    )


def _discriminator_settings(found: _Found) -> DiscriminatorSettings:
    top, channels = found.get("discriminator.from_image.weight", 4)[:2]
    n = found.count("discriminator.blocks.{}.conv1.weight")
    width = [top, *(found.get(f"discriminator.blocks.{d}.conv1.weight", 4)[0] for d in range(n))][::-1]
    last, n_in = found.get("discriminator.conv.weight", 4)[:2]
    if not 0 <= n_in - last <= 1:
        raise CheckpointError(
            f'The discriminator in "{found.file}" appends {n_in - last} channels of minibatch '
            "deviation; fewgen has networks with 0 or 1."
        )
    start = found.start
    across = found.get("discriminator.fc.weight", 2)[1] // (last * start)
    has_condition = found.has("discriminator.mapping.embed.weight")
    return DiscriminatorSettings(
        shape=(channels, start << n, across << n),
        width=tuple(width),
        c_dim=found.get("discriminator.mapping.embed.weight", 2)[1] if has_condition else 0,
        architecture="residual" if found.has("discriminator.blocks.0.skip.weight") else "plain",
        minibatch_deviation=n_in > last,
        mapping_layers=found.count("discriminator.mapping.layers.{}.weight"),
        condition_dim=found.get("discriminator.out.weight", 2)[0] if has_condition else None,
    )


def _settings(found: _Found) -> StyleGAN2Settings:
    has_discriminator = any(name.startswith("discriminator.") for name in found.names)
    has_generator = any(name.startswith(("mapping.", "synthesis.")) for name in found.names)
    return StyleGAN2Settings(
        generator=_generator_settings(found) if has_generator else None,
        discriminator=_discriminator_settings(found) if has_discriminator else None,
        has_w_avg=found.has("w_avg"),
    )


def shapes_of(path: str | os.PathLike[str]) -> StyleGAN2Settings:
    """Return what a file's networks were built with, from its header alone.

    Args:
        path: a safetensors file with tensors in the names of the public code.

    Raises:
        CheckpointError: if it is missing, damaged, a pickle, or holds other tensors.
    """
    return _settings(_look(path))


def _targets(networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {
        f"{prefix}.{name}": tensor
        for prefix, network in networks.items()
        for name, tensor in network.state_dict().items()
    }


def _check(found: _Found, networks: Mapping[str, nn.Module]) -> None:
    """Raise one error that lists everything in a file that does not fit networks, by our prefix."""
    expected = {name: tuple(tensor.shape) for name, tensor in _targets(networks).items()}
    names = {name for name in found.names if name.partition(".")[0] in networks}
    is_generator = {"mapping", "synthesis"} & set(networks)
    if is_generator and "w_avg" in found.names:
        names.add("w_avg")
        expected["w_avg"] = (int(networks[min(is_generator)].w_dim),)  # type: ignore[arg-type]
    problems = ProblemList(f'The tensors in "{found.file}" do not fit the networks', CheckpointError)
    for name in expected:
        if name not in names:
            problems.add(f"{name} is missing")
    for name in found.names:
        if name in names and name not in expected:
            problems.add(f'"{found.names[name]}" ({name}) is not in the network')
    for name, shown in found.unknown.items():
        if "discriminator" in networks if name.startswith("D.") else is_generator:
            problems.add(f'"{shown[:80]}" is unknown')
    for name, shape in expected.items():
        if name in names and found.shapes[name] != shape:
            problems.add(f'"{found.names[name]}" ({name}) has shape {found.shapes[name]} instead of {shape}')
        elif name in names and found.formats[name] not in _FLOATS:
            problems.add(f'"{found.names[name]}" holds {found.formats[name]}, not floating-point numbers')
    problems.raise_if_any()


def _fill(found: _Found, networks: Mapping[str, nn.Module]) -> Tensor | None:
    """Copy the tensors of a file, checked before, into networks by our prefix; return w_avg."""
    from safetensors import SafetensorError, safe_open

    w_avg = None
    try:
        with safe_open(found.file, framework="pt") as stream, torch.no_grad():
            for name, target in _targets(networks).items():
                target.copy_(stream.get_tensor(found.names[name]))
            if "w_avg" in found.names and {"mapping", "synthesis"} & set(networks):
                w_avg = stream.get_tensor(found.names["w_avg"]).float()
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f'"{found.file}" is damaged ({error}). Convert it again.') from error
    return w_avg


def load_stylegan2(
    path: str | os.PathLike[str],
    mapping: MappingNetwork | None = None,
    synthesis: SynthesisNetwork | None = None,
    discriminator: Discriminator | None = None,
) -> Tensor | None:
    """Copy converted weights into networks, and return the generator's average style (D,) if there is one.

    Networks that are not given may be missing in the file, and the other way round. Nothing is changed if
    anything does not fit. Mapping networks must have the file's `lr_multiplier`, which no file names: the
    published one is 0.01.

    Args:
        path: a safetensors file with tensors in the names of the public code.
        mapping: to fill, from z (and a condition) to styles.
        synthesis: to fill.
        discriminator: to fill.

    Raises:
        CheckpointError: if the file is missing, damaged or a pickle; or if tensors are missing, unknown or of
            another shape (all are listed).
    """
    given = {"mapping": mapping, "synthesis": synthesis, "discriminator": discriminator}
    networks = {name: network for name, network in given.items() if network is not None}
    found = _look(path)
    _check(found, networks)
    return _fill(found, networks)


def build_from_stylegan2(
    path: str | os.PathLike[str], group_size: int = 4, lr_multiplier: float = 0.01
) -> tuple[MappingNetwork, SynthesisNetwork, Discriminator | None, Tensor | None]:
    """Return mapping network, synthesis network, discriminator and average style (D,) of a file.

    The last two are None where the file does not have them. Sizes come from the header, and memory is taken
    only for networks that the file fills.

    Args:
        path: a safetensors file with tensors in the names of the public code.
        group_size: images compared by the minibatch deviation, 2 or more; the weights do not tell it.
        lr_multiplier: of the mapping networks; the weights do not tell it.

    Raises:
        CheckpointError: as `load_stylegan2`; or without a generator, or with a size that fewgen has not.
    """
    found = _look(path)
    settings = _settings(found)
    g, d = settings.generator, settings.discriminator
    if g is None:
        raise CheckpointError(f'"{found.file}" holds a discriminator, but no generator. {_WANTED}')
    networks: dict[str, nn.Module] = {}
    try:
        with torch.device("meta"):
            networks["mapping"] = mapping = MappingNetwork(
                g.z_dim, g.w_dim, g.mapping_layers, g.c_dim, lr_multiplier=lr_multiplier
            )
            networks["synthesis"] = synthesis = SynthesisNetwork(g.shape, g.w_dim, g.width)
            discriminator = None
            if d is not None:
                networks["discriminator"] = discriminator = Discriminator(
                    d.shape,
                    d.width,
                    d.c_dim,
                    max(2, group_size) if d.minibatch_deviation else 0,
                    d.architecture,
                    d.mapping_layers or 1,
                    d.condition_dim,
                    lr_multiplier,
                )
    except (FewgenError, RuntimeError) as error:
        raise CheckpointError(f'The networks in "{found.file}" cannot be built: {error}') from error
    _check(found, networks)
    for network in networks.values():
        network.to_empty(device="cpu")
    return mapping, synthesis, discriminator, _fill(found, networks)
