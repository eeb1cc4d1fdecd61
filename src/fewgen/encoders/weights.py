"""Weight files of the user: safetensors, or .pth without pickled code.

No weights come with fewgen. A file's checksum is compared if one is given, and its names and shapes are
checked against the network.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fewgen.errors import CheckpointError, ConfigError
from fewgen.files import file_sha256


def read_weights(path: str | Path, sha256: str | None = None) -> tuple[dict[str, Tensor], str]:
    """Read a file of named tensors, without running anything in it.

    Args:
        path: .safetensors, or a PyTorch file (.pth, .pt, .bin) that holds tensors only.
        sha256: digest that the file must have, 64 hexadecimal digits; None for any.

    Returns:
        Tensors by name, and the digest that was found.

    Raises:
        ConfigError: no such file, another ending, or a digest that is not one.
        CheckpointError: another digest, or a file that is damaged or holds more than tensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ConfigError(f"There is no weight file {path}. Give the path of a .safetensors or .pth file.")
    if sha256 is not None and (len(sha256) != 64 or not set(sha256.lower()) <= set("0123456789abcdef")):
        raise ConfigError(f'A sha256 digest has 64 hexadecimal digits, got "{sha256}".')
    found = file_sha256(path)
    if sha256 is not None and found != sha256.lower():
        raise CheckpointError(
            f"{path} has sha256 {found}, but {sha256.lower()} was asked for. "
            "The file is damaged or another one: get it again, or correct the checksum."
        )
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path), found
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    if path.suffix not in (".pth", ".pt", ".bin"):
        raise ConfigError(f"{path} must end in .safetensors, .pth, .pt or .bin.")
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler has many exceptions of its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} is not a readable file of tensors: {reason}") from error
    if not isinstance(value, dict) or not all(isinstance(v, Tensor) for v in value.values()):
        raise CheckpointError(f"{path} must hold a dictionary of named tensors and nothing else.")
    return {str(name): tensor for name, tensor in value.items()}, found


def load_weights(
    network: nn.Module, weights: dict[str, Tensor], what: str, ignore: Sequence[str] = ()
) -> None:
    """Copy named tensors into a network, if every name and shape fits.

    Args:
        network: to fill.
        weights: tensors by name. Counters of batch norm (`num_batches_tracked`) may be missing: old files
            lack them, and nothing here uses them.
        what: name of the network and where the weights came from, for the message.
        ignore: beginnings of names that the file may hold besides.

    Raises:
        CheckpointError: names that are missing or too many, other shapes, or values that are not finite.
    """
    wanted = network.state_dict()
    given = {name: value for name, value in weights.items() if not name.startswith(tuple(ignore))}
    missing = [n for n in wanted if n not in given and not n.endswith("num_batches_tracked")]
    extra = [n for n in given if n not in wanted]
    problems = []
    if missing:
        problems.append(f"{len(missing)} of {len(wanted)} tensors are missing ({_some(missing)})")
    if extra:
        problems.append(f"{len(extra)} do not belong to it ({_some(extra)})")
    for name, value in given.items():
        if name in wanted and value.shape != wanted[name].shape:
            problems.append(f"{name} has shape {tuple(value.shape)} and not {tuple(wanted[name].shape)}")
        elif name in wanted and not torch.isfinite(value).all():
            problems.append(f"{name} holds NaN or infinity")
    if problems:
        raise CheckpointError(
            f"These are not the weights of {what}: {_some(problems, '; ')}. Give the file of this network."
        )
    counters = {
        n: torch.zeros_like(v, device="cpu") for n, v in wanted.items() if n.endswith("num_batches_tracked")
    }
    network.load_state_dict(counters | given)


def _some(names: Iterable[str], join: str = ", ", limit: int = 3) -> str:
    names = list(names)
    return join.join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
