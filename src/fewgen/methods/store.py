"""Model files: read one, check it, and build the method that it holds.

A model file is a safetensors file: tensors `model.*` (weights and buffers) and `text.*` (the class text
table), and in its metadata the method's name, its settings, what the data looked like, and anything the
trainer adds, all as JSON. It is enough to generate. Reading one runs no code from the file, and a foreign
or damaged file is refused before any network is built.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import torch
from torch import Tensor

from fewgen.config.checks import Whole, between, not_empty
from fewgen.config.records import checked, parse_record
from fewgen.config.schema import from_dict, with_current_names
from fewgen.errors import CheckpointError, ConfigError, FewgenError, MissingDependencyError
from fewgen.methods.base import FORMAT, FORMAT_VERSION, DataSpec, Method
from fewgen.methods.registry import get_method
from fewgen.nn.building import shapes_of
from fewgen.tensor_files import check_content, read_tensor_header

if TYPE_CHECKING:
    from fewgen.text.table import ClassText

_Side = Annotated[int, partial(between, least=1, most=65536)]


class _Texts(TypedDict):
    method: str
    config: str
    spec: str
    extra: str


class _Spec(TypedDict):
    channels: _Side
    height: _Side
    width: _Side
    class_names: Annotated[list[str], not_empty]


class _Stage(TypedDict, total=False):
    name: str
    steps: Whole
    planned_steps: Whole | None
    best_step: Whole | None
    seconds: float


class _Training(TypedDict, total=False):
    finished: bool
    stage: str | None
    stages: list[_Stage]


class _Meta(TypedDict, total=False):
    algorithm: str
    adapt: str
    adapt_steps: Whole
    adapt_lr: float | None
    inner_lr: float | None
    inner_optimizer: str | None


class _Adapted(TypedDict, total=False):
    classes: list[str]
    earlier: list[dict[str, Any]]


class _Extra(TypedDict, total=False):
    """What readers of the trainer's notes rely on."""

    training: _Training
    minutes: float | None
    shots: Whole | None
    meta: _Meta | None
    adapted: _Adapted | None


_SHAPES: dict[str, Any] = {
    "config": dict[str, Any],
    "spec": _Spec,
    "extra": _Extra,
    "text": dict[str, Any] | None,
}


_WORDS = {"spec": "data description", "text": "class text table"}


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
        texts = checked(metadata, _Texts, "the header")
        parsed = {
            key: parse_record(str(texts.get(key, "null")), shape, _WORDS.get(key, key))
            for key, shape in _SHAPES.items()
        }
    except ValueError as error:
        raise CheckpointError(
            f'The metadata of the model file "{file}" are damaged ({error}). Use another checkpoint.'
        ) from error
    shapes = {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    return ModelInfo(texts["method"], shapes=shapes, **parsed)


def _read_spec(file: Path, info: ModelInfo, text_tensors: dict[str, Tensor]) -> DataSpec:
    text, spec = None, info.spec
    if info.text is not None:
        from fewgen.text.table import ClassText

        try:
            text = ClassText.from_state(text_tensors, info.text)
        except FewgenError as error:
            raise CheckpointError(
                f'The class text table in the model file "{file}" is damaged ({error}).'
            ) from error
    return DataSpec(spec["channels"], spec["height"], spec["width"], tuple(spec["class_names"]), text)


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
            expected = _expected_shapes(file, cls, config, spec, len(info.shapes))
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
    file: Path, cls: type[Method], config: Any, spec: DataSpec, n_tensors: int
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the method's tensors, without allocating them.

    A hostile file may ask for a network of any size; on the meta device it costs nothing to find out.
    """
    try:
        return shapes_of(lambda: cls(config, spec), n_tensors)
    except MissingDependencyError:
        raise  # the file is well
    except (FewgenError, RuntimeError, ValueError, TypeError, MemoryError, OverflowError) as error:
        raise CheckpointError(f'The settings in the model file "{file}" do not fit: {error}') from error


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
