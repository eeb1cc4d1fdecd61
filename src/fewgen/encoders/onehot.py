"""Class names as unit vectors: the control for what word meaning contributes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from fewgen.data.names import name_key, name_labels
from fewgen.encoders.base import UnknownWordError
from fewgen.errors import ConfigError, suggest


class OneHotEncoder:
    """One dimension per class name; all classes are equally far apart.

    Args:
        vocabulary: the class names.

    Raises:
        ConfigError: without class names.
    """

    name = "onehot"
    path: str | None = None
    has_meaning = False

    def __init__(self, vocabulary: Iterable[str] | None) -> None:
        self.vocabulary = tuple(vocabulary or ())
        if not self.vocabulary:
            raise ConfigError(
                "The encoder onehot needs the class names (vocabulary): it has one dimension for each."
            )
        self.dim = len(self.vocabulary)
        self._index = {name: i for i, name in reversed(list(enumerate(self.vocabulary)))}

    def encode(self, texts: list[str]) -> Tensor:
        """Unit vectors, float32 (len(texts), dim).

        Raises:
            UnknownWordError: for a text that is not a class name.
        """
        labels = name_labels(self.vocabulary)
        rows: list[int] = []
        for text in texts:
            row = self._index.get(text, labels.get(name_key(text)))
            if row is None:
                raise UnknownWordError(
                    f'"{text}" is not one of the class names ({", ".join(self.vocabulary)}).'
                    f"{suggest(text, self.vocabulary)} The encoder onehot carries no meaning, so it knows no "
                    "other words; train with glove, minilm or clip to use free text.",
                    [text],
                )
            rows.append(row)
        return functional.one_hot(torch.tensor(rows, dtype=torch.long), self.dim).to(torch.float32)
