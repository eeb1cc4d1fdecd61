"""Weights of pSp's encoder in the names of its public code, from a safetensors file into ours.

The public code saves pickles, which can run code when they are opened; convert one with a tool you trust and
write its `state_dict` and its `latent_avg` to one safetensors file. Names may begin with "encoder."; what
begins with "decoder." is the generator, which `stylegan_weights` reads.

Source: Richardson et al. 2021, arXiv:2008.00951 (tensor names of its public code,
    github.com/eladrich/pixel2style2pixel, MIT licence: GradualStyleEncoder on IR-SE-50).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from torch import Tensor

from fewgen.errors import CheckpointError, ProblemList
from fewgen.nn.converted import Converted, pattern_of, renamed
from fewgen.nn.style_encoder import GradualStyleEncoder
from fewgen.tensor_files import read_tensor_header

T = TypeVar("T")

PSP_NAMES: tuple[tuple[str, str], ...] = (
    ("encoder.input_layer.0.weight", "encoder.input_layer.0.weight"),
    ("encoder.input_layer.1.{q}", "encoder.input_layer.1.{q}"),
    ("encoder.input_layer.2.weight", "encoder.input_layer.2.weight"),
    ("encoder.body.{n}.shortcut_layer.0.weight", "encoder.body.{n}.shortcut_layer.0.weight"),
    ("encoder.body.{n}.shortcut_layer.1.{q}", "encoder.body.{n}.shortcut_layer.1.{q}"),
    ("encoder.body.{n}.res_layer.0.{q}", "encoder.body.{n}.res_layer.0.{q}"),
    ("encoder.body.{n}.res_layer.{i}.weight", "encoder.body.{n}.res_layer.{i}.weight"),
    ("encoder.body.{n}.res_layer.4.{q}", "encoder.body.{n}.res_layer.4.{q}"),
    ("encoder.body.{n}.res_layer.5.fc{f}.weight", "encoder.body.{n}.res_layer.5.fc{f}.weight"),
    ("encoder.latlayer{f}.{p}", "encoder.latlayer{f}.{p}"),
    ("encoder.styles.{n}.convs.{k}.{p}", "encoder.styles.{n}.convs.{k}.{p}"),
    ("encoder.styles.{n}.linear.{p}", "encoder.styles.{n}.linear.{p}"),
    ("w_avg", "latent_avg"),
)
"""Every tensor: our name (the network, then its own `state_dict` name), and that of the public code.

`{p}` is "weight" or "bias", `{q}` also "running_mean" or "running_var" (of batch norm), `{n}` and `{k}`
numbers, `{i}` 1, 2 or 3 (convolution, PReLU, convolution), `{f}` 1 or 2. `latent_avg` may be repeated for
each layer.
"""

_WANTED = "Name a safetensors file with the tensors of pSp's GradualStyleEncoder, and its latent_avg."
_FIELDS = {
    "p": "weight|bias",
    "q": "weight|bias|running_mean|running_var",
    "n": r"\d{1,2}",
    "k": r"\d{1,2}",
    "i": "[123]",
    "f": "[12]",
}
_THEIRS = [(pattern_of(theirs, _FIELDS), ours) for ours, theirs in PSP_NAMES]
_OURS = [(pattern_of(ours, _FIELDS), theirs) for ours, theirs in PSP_NAMES]
_TOP = ("input_layer.", "body.", "styles.", "latlayer")
"""What names begin with where "encoder." is left out."""
_COUNTS = "num_batches_tracked"


@dataclass(frozen=True)
class PspSettings:
    """What a file's encoder was built with.

    Attributes:
        n_layers: L.
        w_dim: D.
        side: at which images are seen.
        width: channels of the first map.
        has_w_avg: whether the average style is there.
    """

    n_layers: int
    w_dim: int
    side: int
    width: int
    has_w_avg: bool


def convert_names(state_dict: Mapping[str, T], to: Literal["fewgen", "psp"] = "fewgen") -> dict[str, T]:
    """Return the same values under the names of the other side of `PSP_NAMES`.

    Args:
        state_dict: to "fewgen": public names with or without "encoder."; those of the decoder and counts of
            batches are left out. To "psp": `state_dict` names after "encoder.", and "w_avg".
        to: whose names to return.

    Raises:
        CheckpointError: if a name fits no pattern; lists them.
    """
    known = _own(state_dict) if to == "fewgen" else {n: n for n in state_dict if not n.endswith(_COUNTS)}
    table, unknown = renamed(known, _THEIRS if to == "fewgen" else _OURS)
    problems = ProblemList("These tensors have names that pSp's encoder does not have", CheckpointError)
    for name in unknown:
        problems.add(f'"{known[name][:80]}"')
    problems.raise_if_any()
    return {new: state_dict[known[old]] for new, old in table.items()}


def shapes_of(path: str | os.PathLike[str]) -> PspSettings:
    """Return what a file's encoder was built with, from its header alone.

    Args:
        path: a safetensors file with tensors in the names of the public code.

    Raises:
        CheckpointError: if it is missing, damaged, a pickle, or holds other tensors.
    """
    found = _look(path)
    halvings = 0
    while found.has(f"encoder.styles.0.convs.{2 * halvings}.weight"):
        halvings += 1
    return PspSettings(
        n_layers=found.count("encoder.styles.{}.linear.weight"),
        w_dim=found.get("encoder.styles.0.linear.weight", 2)[0],
        side=16 << halvings,
        width=found.get("encoder.input_layer.0.weight", 4)[0],
        has_w_avg=found.has("w_avg"),
    )


def load_psp(path: str | os.PathLike[str], encoder: GradualStyleEncoder) -> Tensor | None:
    """Copy converted weights into an encoder, and return the average style (D,) if there is one.

    Nothing is changed if anything does not fit.

    Args:
        path: a safetensors file with tensors in the names of the public code.
        encoder: to fill.

    Raises:
        CheckpointError: if the file is missing, damaged or a pickle; or if tensors are missing, unknown, of
            another shape or not finite (all are listed).
    """
    return _look(path).fill({"encoder": encoder}, encoder.w_dim, lambda name: True)


def _own(names: Mapping[str, object]) -> dict[str, str]:
    """Return name with "encoder." -> name as it is, of the encoder's tensors and the average style."""
    found = {}
    for name in names:
        if name.startswith("decoder.") or name.endswith(_COUNTS):
            continue
        found[f"encoder.{name}" if name.startswith(_TOP) else name] = name
    return found


def _look(path: str | os.PathLike[str]) -> Converted:
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f'There is no file "{file}". {_WANTED}')
    header = read_tensor_header(file, _WANTED)
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    known = _own(entries)
    table, unknown = renamed(known, _THEIRS)
    names = {ours: known[theirs] for ours, theirs in table.items()}
    if not any(name.startswith("encoder.") for name in names):
        raise CheckpointError(f'"{file}" holds no tensor of pSp\'s encoder. {_WANTED}')

    def public(name: str) -> str:
        return next(iter(renamed([name], _OURS)[0]), name)

    others = {name: known[name] for name in unknown}
    return Converted.of(file, "pSp", _WANTED, entries, names, others, public)
