"""Text encoders by name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fewgen.encoders.base import TextEncoder
from fewgen.errors import ConfigError, suggest

ENCODER_NAMES = ("glove", "minilm", "clip", "onehot")


def make_text_encoder(
    name: str, path: str | Path | None = None, vocabulary: Iterable[str] | None = None
) -> TextEncoder:
    """Build a text encoder.

    Args:
        name: "glove", "minilm", "clip" or "onehot".
        path: the GloVe file, or the folder or hub name of a model; None: what is at hand (see the classes).
        vocabulary: the class names; only onehot uses them.

    Raises:
        ConfigError: for an unknown name.
        TextError: if files are missing or damaged.
        MissingDependencyError: if the extra `text` is needed.

    >>> make_text_encoder("onehot", vocabulary=["cat", "dog"]).encode(["dog"])
    tensor([[0., 1.]])
    """
    if name == "glove":
        from fewgen.encoders.glove import GloveEncoder

        return GloveEncoder(path)
    if name == "minilm":
        from fewgen.encoders.text_transformer import MiniLMEncoder

        return MiniLMEncoder(path)
    if name == "clip":
        from fewgen.encoders.text_transformer import CLIPTextEncoder

        return CLIPTextEncoder(path)
    if name == "onehot":
        from fewgen.encoders.onehot import OneHotEncoder

        return OneHotEncoder(vocabulary)
    raise ConfigError(
        f'There is no text encoder "{name}"; there are {", ".join(ENCODER_NAMES)}.'
        + suggest(name, ENCODER_NAMES)
    )
