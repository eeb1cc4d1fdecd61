"""What every text encoder offers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor

from fewgen.errors import TextError


class TextEncoder(Protocol):
    """Turns texts into vectors; methods see vectors only, never a particular encoder.

    Attributes:
        name: as given to `make_text_encoder`.
        path: file, folder or hub name that rebuilds this encoder, or None if the name is enough.
        dim: width of the vectors.
        has_meaning: whether similar texts get similar vectors, so that unseen texts can be encoded.
    """

    name: str
    path: str | None
    dim: int
    has_meaning: bool

    def encode(self, texts: list[str]) -> Tensor:
        """Vectors of texts, float32 (len(texts), dim).

        Raises:
            TextError: if a text has no vector.
        """


class UnknownWordError(TextError):
    """No word of some texts has a vector.

    Attributes:
        texts: the texts as they were given to `encode`.
    """

    def __init__(self, message: str, texts: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.texts = tuple(texts)
