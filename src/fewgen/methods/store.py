"""Model files: read one, check it, and build the method that it holds.

A model file is a safetensors file: tensors `model.*` (weights and buffers) and `text.*` (the class text
table), and in its metadata the method's name, its settings, what the data looked like, and anything the
trainer adds, all as JSON. It is enough to generate. Reading one runs no code from the file, and a foreign
or damaged file is refused before any network is built.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewgen.config.schema import from_dict, with_current_names
from fewgen.errors import CheckpointError, ConfigError, FewgenError, MissingDependencyError
from fewgen.methods.base import FORMAT, FORMAT_VERSION, DataSpec, Method
from fewgen.methods.registry import get_method
from fewgen.tensor_files import check_content, read_tensor_header

if TYPE_CHECKING:
    from fewgen.text.table import ClassText


@dataclass(frozen=True)
class ModelInfo:
    """What a model file says about itself.

    Attributes:
        method: name of the method.
        config: its settings, plain values.
        spec: channels, height, width, class_names.
        extra: what the trainer added.
        text: plain values of the class text table, or None.
        shapes: tensor name -> shape.
    """

    method: str
    config: dict[str, Any]
    spec: dict[str, Any]
    extra: dict[str, Any]
    text: dict[str, Any] | None
    shapes: dict[str, tuple[int, ...]]


def _model_path(path: str | os.PathLike[str]) -> Path:
    file = Path(path)
    if file.is_dir():
        file = file / "model.safetensors"
        if not file.exists():
            raise CheckpointError(
                f'The folder "{path}" holds no model.safetensors. Name a run folder of `fewgen train`, '
                "or wait for the run's first checkpoint."
            )
    if not file.exists():
        raise CheckpointError(f'There is no model file "{path}". Check the path, or train one first.')
    return file


def read_method_info(path: str | os.PathLike[str]) -> ModelInfo:
    """Return what a model file says about itself, without building the model.

    Args:
        path: a model file, or a run folder.

    Raises:
        CheckpointError: if it is missing, damaged, of another kind, or from a newer version.
    """
    file = _model_path(path)
    header = read_tensor_header(file)
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise CheckpointError(
            f'"{file}" is a safetensors file, but not a fewgen model. Name a model.safetensors of a run '
            "folder."
        )
    version = str(metadata.get("format_version"))
    if not version.isdecimal() or int(version[:9]) > FORMAT_VERSION:
        raise CheckpointError(
            f'"{file}" has model format {version[:20]}, but this fewgen reads up to {FORMAT_VERSION}. '
            "Update fewgen."
        )
    try:
        parsed = {key: json.loads(metadata[key]) for key in ("config", "spec", "extra")}
        text = json.loads(metadata["text"]) if "text" in metadata else None
        if not all(isinstance(value, dict) for value in parsed.values()):
            raise ValueError("not objects")
        method = metadata["method"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f'The metadata of the model file "{file}" are damaged ({error}). Use another checkpoint.'
        ) from error
    shapes = {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    return ModelInfo(method, parsed["config"], parsed["spec"], parsed["extra"], text, shapes)


def _read_spec(file: Path, info: ModelInfo, text_tensors: dict[str, Tensor]) -> DataSpec:
    spec = info.spec
    numbers = [spec.get(key) for key in ("channels", "height", "width")]
    names = spec.get("class_names")
    good = all(type(n) is int and 0 < n <= 65536 for n in numbers)
    if not good or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(
            f'The data description in the model file "{file}" is damaged. Use another checkpoint.'
        )
    text = None
    if info.text is not None:
        from fewgen.text.table import ClassText

        try:
            text = ClassText.from_state(text_tensors, info.text)
        except (FewgenError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f'The class text table in the model file "{file}" is damaged ({error}).'
            ) from error
    channels, height, width = numbers
    return DataSpec(channels, height, width, tuple(names), text)  # type: ignore[arg-type]


def read_class_text(path: str | os.PathLike[str]) -> ClassText | None:
    """Return the class text table of a model file; None if it has none.

    Raises:
        CheckpointError: as `read_method_info`; or the table is damaged.
    """
    from safetensors import SafetensorError, safe_open

    file, info = _model_path(path), read_method_info(path)
    try:
        with safe_open(file, framework="pt") as stream:
            names = [name for name in info.shapes if name.startswith("text.")]
            return _read_spec(file, info, {name[5:]: stream.get_tensor(name) for name in names}).text
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f'The model file "{file}" is damaged ({error}). Use another checkpoint.'
        ) from error


def load_method(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Method:
    """Return the model in a file, ready to generate (in evaluation mode).

    Args:
        path: a model file, or a run folder.
        device: where to put it.

    Raises:
        CheckpointError: if the file is missing, damaged, of another kind, from a newer version, or does
            not fit the method it names.
    """
    from safetensors import SafetensorError, safe_open

    file = _model_path(path)
    info = read_method_info(file)
    try:
        cls = get_method(info.method)
    except ConfigError as error:
        raise CheckpointError(f'"{file}" was made by a method this fewgen does not have. {error}') from error
    try:
        stored = with_current_names(cls.Config, info.config, warn=False)
        config: Any = from_dict(cls.Config, stored, where="config")
    except ConfigError as error:
        raise CheckpointError(f'The settings in the model file "{file}" do not fit: {error}') from error
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(file, framework="pt") as stream:
            for name in info.shapes:
                if name.startswith("text."):
                    tensors[name] = stream.get_tensor(name)
            spec = _read_spec(file, info, {name[5:]: tensor for name, tensor in tensors.items()})
            expected = _expected_shapes(file, cls, config, spec)
            found = {name[6:]: shape for name, shape in info.shapes.items() if name.startswith("model.")}
            _compare(file, info.method, expected, found)
            weights = {name: stream.get_tensor(f"model.{name}") for name in found}
            tensors.update({f"model.{name}": tensor for name, tensor in weights.items()})
            check_content(file, tensors, stream.metadata())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f'The model file "{file}" is damaged ({error}). Use another checkpoint.'
        ) from error
    method = cls(config, spec)
    method.path = file
    if "inner_rates" in method.state_dict():
        weights.setdefault("inner_rates", method.inner_rates)
    method.load_state_dict(weights)
    method.eval()
    return method.to(device)


def _expected_shapes(
    file: Path, cls: type[Method], config: Any, spec: DataSpec
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the method's tensors, without allocating them.

    A hostile file may ask for a network of any size; on the meta device it costs nothing to find out.
    """
    try:
        with torch.device("meta"):
            model = cls(config, spec)
    except MissingDependencyError:
        raise  # the file is well
    except (FewgenError, RuntimeError, ValueError, TypeError, MemoryError, OverflowError) as error:
        raise CheckpointError(f'The settings in the model file "{file}" do not fit: {error}') from error
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _compare(
    file: Path, method: str, expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]
) -> None:
    # Models of before meta-learning lack the rates; theirs are ones.
    problems = [f"{name} is missing" for name in expected if name not in found and name != "inner_rates"]
    problems += [f"{name} is unknown" for name in found if name not in expected]
    problems += [
        f"{name} has shape {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise CheckpointError(
            f'The tensors in the model file "{file}" do not fit the method "{method}" with its settings: '
            f"{shown}. "
            "It may come from another version of fewgen."
        )
