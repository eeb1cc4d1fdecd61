"""Models of transformers (extra `text`) from a folder or the hub: safetensors only, none of their code."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fewgen.errors import CheckpointError, FewgenError, MissingDependencyError


def optional_library(name: str, what: str, extra: str = "text") -> Any:
    """Return a library of an extra; `what` stands for what needs it, in the message.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            f"{what} needs {name}. Install it with: pip install 'fewgen[{extra}]'"
        ) from error


def model_folder(path: str | Path, kind: str, example: str, error: type[FewgenError], *patterns: str) -> Path:
    """Return the local folder of a model, fetched from the hub if `path` is a hub name (owner/model).

    Args:
        path: a folder or a hub name.
        kind: of model, for the message.
        example: a hub name, for the message.
        error: what to raise.
        patterns: files to fetch.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    name = str(path)
    # A hub name is owner/model; everything else was meant as a folder.
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise error(
            f"There is no folder {path} with a {kind} model. Give a folder, or a hub name such as "
            f"{example}, which downloads it."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except Exception as problem:  # every transport of the hub has its own exceptions
        raise error(
            f"There is no folder {path}, and the model could not be fetched from the hub under that name "
            f"({type(problem).__name__}). Check the name and the connection, or give a local folder."
        ) from problem


@contextlib.contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """No progress bars and load reports while a model is read."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def reading(transformers: Any, folder: Path, what: str, error: type[FewgenError]) -> Iterator[None]:
    """Within the block a model is read in silence; what goes wrong is told as one message."""
    with quiet(transformers):
        try:
            yield
        except Exception as problem:  # transformers, tokenizers and safetensors each have their own
            reason = (str(problem).splitlines() or [type(problem).__name__])[0]
            raise error(f"{folder} does not hold a readable {what}: {reason}") from problem


def load_whole(transformers: Any, maker: Any, folder: Path, what: str, **options: Any) -> Any:
    """Return a model with all of its weights, float32, in evaluation mode.

    Args:
        transformers: the library.
        maker: class of the model.
        folder: where it lies.
        what: it is, for messages.
        options: of `from_pretrained`.

    Raises:
        CheckpointError: a folder that cannot be read, or that lacks a part of the model.
    """
    options |= {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    with reading(transformers, folder, what, CheckpointError):
        model, info = maker.from_pretrained(str(folder), **options)
    # transformers fills missing parts at random, with no more than a log line.
    missing = sorted(str(name) for name in [*info["missing_keys"], *info["mismatched_keys"]])
    if missing:
        raise CheckpointError(
            f"{folder} does not hold the whole {what}: {len(missing)} tensors are missing or of another "
            f"shape, among them {missing[0]}."
        )
    return model.float().eval()
