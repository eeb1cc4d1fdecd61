"""Weights of StyleGAN2 in the names of its public code, from a safetensors file into our networks.

The public code saves pickles, which can run code when they are opened; convert one with a tool you trust and
write `G_ema.state_dict()` and `D.state_dict()` to one safetensors file, with "G_ema." (or "G.") and "D."
before the names, or one of the two without a prefix. The file's header tells which networks to build.
Generators in the names of rosinality's code are read, too, as pSp's checkpoints have them after "decoder.".

Source: Karras et al. 2020, arXiv:2006.06676 (tensor names of its public code, stylegan2-ada-pytorch); tensor
    names of github.com/rosinality/stylegan2-pytorch and github.com/eladrich/pixel2style2pixel (MIT licences).
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
from fewgen.nn.converted import Converted, Fields, Shape, pattern_of, renamed
from fewgen.nn.stylegan import Discriminator, MappingNetwork, SynthesisNetwork
from fewgen.tensor_files import read_tensor_header

T = TypeVar("T")

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

ROSINALITY_NAMES: tuple[tuple[str, str, Shape], ...] = (
    ("mapping.layers.{n}.{p}", "style.{m}.{p}", ()),
    ("w_avg", "latent_avg", ()),
    ("synthesis.blocks.0.const", "input.input", (0,)),
    ("synthesis.blocks.0.conv1.conv.weight", "conv1.conv.weight", (0,)),
    ("synthesis.blocks.0.conv1.conv.affine.{p}", "conv1.conv.modulation.{p}", ()),
    ("synthesis.blocks.0.conv1.noise_strength", "conv1.noise.weight", (0,)),
    ("synthesis.blocks.0.conv1.bias", "conv1.activate.bias", ()),
    ("synthesis.blocks.0.to_image.conv.weight", "to_rgb1.conv.weight", (0,)),
    ("synthesis.blocks.0.to_image.conv.affine.{p}", "to_rgb1.conv.modulation.{p}", ()),
    ("synthesis.blocks.0.to_image.bias", "to_rgb1.bias", (0, 2, 3)),
    ("synthesis.blocks.{a}.conv{k}.conv.weight", "convs.{c}.conv.weight", (0,)),
    ("synthesis.blocks.{a}.conv{k}.conv.affine.{p}", "convs.{c}.conv.modulation.{p}", ()),
    ("synthesis.blocks.{a}.conv{k}.noise_strength", "convs.{c}.noise.weight", (0,)),
    ("synthesis.blocks.{a}.conv{k}.bias", "convs.{c}.activate.bias", ()),
    ("synthesis.blocks.{a}.to_image.conv.weight", "to_rgbs.{t}.conv.weight", (0,)),
    ("synthesis.blocks.{a}.to_image.conv.affine.{p}", "to_rgbs.{t}.conv.modulation.{p}", ()),
    ("synthesis.blocks.{a}.to_image.bias", "to_rgbs.{t}.bias", (0, 2, 3)),
    ("synthesis.blocks.{b}.conv{k}.noise_const", "noises.noise_{i}", (0, 1)),
)
"""Every tensor of a generator, again: our name, that of StyleGAN2's other public code (rosinality, in pSp's
files after "decoder."), and the sides of 1 that it has and we lack.

`{a}` is a block from 1. Layers are counted there from the smallest map on: c = 2 (a - 1) + k, t = a - 1,
i = 2 b - 1 + k, m = n + 1. `latent_avg` may be repeated for each layer.
"""

_WANTED = (
    "Name a safetensors file with the tensors of stylegan2-ada-pytorch (G_ema.state_dict(), D.state_dict()), "
    "or of pSp's decoder."
)
_FIELDS = {"p": "weight|bias", "n": r"\d{1,3}", "k": "[01]", "b": r"\d{1,2}", "d": r"\d{1,2}"}
_LAYERS = {
    **_FIELDS,
    "a": r"[1-9]\d?",
    "m": r"[1-9]\d{0,2}",
    "c": r"\d{1,2}",
    "t": r"\d{1,2}",
    "i": r"\d{1,2}",
}
_PREFIXES = ("decoder.", "g_ema.", "")
"""What may stand before rosinality's names."""


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


_OURS = [(pattern_of(ours, _FIELDS), theirs) for ours, theirs in STYLEGAN2_NAMES]
_THEIRS = [(pattern_of(theirs, _FIELDS), ours) for ours, theirs in STYLEGAN2_NAMES]
_OURS_BY_LAYERS = [(pattern_of(ours, _LAYERS), theirs) for ours, theirs, _ in ROSINALITY_NAMES]
_BY_LAYERS = [(pattern_of(theirs, _LAYERS), ours) for ours, theirs, _ in ROSINALITY_NAMES]
_DROPPED = [(pattern_of(ours, _LAYERS), dropped) for ours, _, dropped in ROSINALITY_NAMES]


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

    return renamed(names, _THEIRS, complete)


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

    return renamed(names, _OURS, complete)


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


def _look(path: str | os.PathLike[str]) -> Converted:
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f'There is no file "{file}". {_WANTED}')
    header = read_tensor_header(file, _WANTED)
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    for prefix in _PREFIXES:
        if any(name.startswith(f"{prefix}to_rgb") for name in entries):
            return _look_by_layers(file, entries, prefix)
    try:
        known = _with_prefixes(entries)
    except CheckpointError as error:
        raise CheckpointError(f'"{file}" cannot be read. {error}') from None
    table, unknown = _to_ours(known)
    names = {ours: known[theirs] for ours, theirs in table.items()}
    start = (_heights(known, "D.") or [4])[0]

    def public(name: str) -> str:
        found, _ = _to_theirs([name, *names], start)
        return next((theirs for theirs, ours in found.items() if ours == name), name)

    others = {name: known[name] for name in unknown}
    return Converted.of(file, "StyleGAN2", _WANTED, entries, names, others, public)


def _look_by_layers(file: Path, entries: Mapping[str, Any], prefix: str) -> Converted:
    """Return what a file with rosinality's names holds; tensors without the prefix are of other networks."""
    own = {name[len(prefix) :]: name for name in entries if name.startswith(prefix)}
    own = {short: name for short, name in own.items() if not short.endswith(".kernel")}
    if "latent_avg" in entries:
        own["latent_avg"] = "latent_avg"
    table, unknown = renamed(own, _BY_LAYERS, _from_layers)
    names = {ours: own[theirs] for ours, theirs in table.items()}
    dropped = {name: next(d for pattern, d in _DROPPED if pattern.match(name)) for name in names}

    def public(name: str) -> str:
        found, _ = renamed([name], _OURS_BY_LAYERS, _to_layers)
        return next((short if short == "latent_avg" else prefix + short for short in found), name)

    others = {f"G_ema.{short}": own[short] for short in unknown}
    return Converted.of(file, "StyleGAN2", _WANTED, entries, names, others, public, dropped)


def _from_layers(name: str, fields: Fields) -> bool:
    """Add our numbers of blocks and layers to those of rosinality's code."""
    if "m" in fields:
        fields["n"] = int(fields["m"]) - 1
    if "c" in fields:
        block, fields["k"] = divmod(int(fields["c"]), 2)
        fields["a"] = block + 1
    if "t" in fields:
        fields["a"] = int(fields["t"]) + 1
    if "i" in fields:
        fields["b"], fields["k"] = divmod(int(fields["i"]) + 1, 2)
    return True


def _to_layers(name: str, fields: Fields) -> bool:
    """Add the numbers of rosinality's code to ours."""
    n, k = int(fields.get("n", 0)), int(fields.get("k", 0))
    a, b = int(fields.get("a", 1)), int(fields.get("b", 0))
    fields |= {"m": n + 1, "c": 2 * (a - 1) + k, "t": a - 1, "i": 2 * b - 1 + k}
    return True


def _generator_settings(found: Converted) -> GeneratorSettings:
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


def _discriminator_settings(found: Converted) -> DiscriminatorSettings:
    top, channels = found.get("discriminator.from_image.weight", 4)[:2]
    n = found.count("discriminator.blocks.{}.conv1.weight")
    width = [top, *(found.get(f"discriminator.blocks.{d}.conv1.weight", 4)[0] for d in range(n))][::-1]
    last, n_in = found.get("discriminator.conv.weight", 4)[:2]
    if not 0 <= n_in - last <= 1:
        raise CheckpointError(
            f'The discriminator in "{found.file}" appends {n_in - last} channels of minibatch '
            "deviation; fewgen has networks with 0 or 1."
        )
    start = _heights([found.names["discriminator.conv.weight"].removeprefix("D.")], "")[0]
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


def _settings(found: Converted) -> StyleGAN2Settings:
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


def _of_file(networks: Mapping[str, nn.Module]) -> tuple[int | None, Callable[[str], bool]]:
    """Return the D of an average style that is wanted beside networks, and which unknown names are theirs."""
    generators = [network for name, network in networks.items() if name in ("mapping", "synthesis")]
    w_dim = int(generators[0].w_dim) if generators else None  # type: ignore[arg-type]

    def theirs(name: str) -> bool:
        return "discriminator" in networks if name.startswith("D.") else bool(generators)

    return w_dim, theirs


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
    return _look(path).fill(networks, *_of_file(networks))


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
    found.check(networks, *_of_file(networks))
    for network in networks.values():
        network.to_empty(device="cpu")
    return mapping, synthesis, discriminator, found.fill(networks, *_of_file(networks))
