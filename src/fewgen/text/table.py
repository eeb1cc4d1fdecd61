"""The table of class vectors that a method is trained with."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor

from fewgen.config.records import checked
from fewgen.data.names import name_key, name_labels
from fewgen.encoders.base import TextEncoder, UnknownWordError
from fewgen.errors import CheckpointError, ConfigError, ProblemList, TextError, suggest
from fewgen.text.phrases import split_phrases
from fewgen.text.standardize import Standardizer

Phrases = Mapping[str, str | Sequence[str]]


class _Saved(TypedDict):
    class_names: list[str]
    phrases: list[list[str]]
    scale: float
    encoder_name: str
    encoder_path: str | None
    has_meaning: bool


@dataclass(frozen=True, eq=False)
class ClassText:
    """Class names, the phrases that stand for them, and their vectors; saved inside the model.

    Attributes:
        class_names: in label order.
        phrases: for each class the phrases whose vectors were averaged.
        vectors: standardised, float32 (n_classes, D).
        standardizer: what was done to the vectors of the encoder.
        encoder_name: for `make_text_encoder`.
        encoder_path: for `make_text_encoder`.
        has_meaning: whether texts other than the class names can be encoded.
    """

    class_names: tuple[str, ...]
    phrases: tuple[tuple[str, ...], ...]
    vectors: Tensor
    standardizer: Standardizer
    encoder_name: str
    encoder_path: str | None = None
    has_meaning: bool = True

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return int(self.vectors.shape[1])

    @classmethod
    def build(
        cls, encoder: TextEncoder, class_names: Sequence[str], phrases: Phrases | None = None
    ) -> ClassText:
        """Encode and standardise the classes.

        Args:
            encoder: where vectors come from.
            class_names: in label order. A name such as "T-shirt/top" stands for the mean of its phrases.
            phrases: class name -> what to encode instead: a text, taken apart like a name, or a list of
                phrases that are used as they are. Of several phrases those without a vector are left out
                with a warning; one must remain.

        Raises:
            TextError: if a word is unknown, a class of `phrases` does not exist, or two classes get the
                same vector (all such pairs are named).
        """
        if not class_names:
            raise TextError("There are no class names to encode.")
        given = fitting_phrases(phrases, class_names)
        if given and not encoder.has_meaning:
            raise TextError(
                f"Phrases are given, but the encoder {encoder.name} carries no meaning and cannot use them. "
                "Leave them out, or choose glove, minilm or clip."
            )
        wanted = [tuple(_phrases_of(given.get(name, name), encoder)) for name in class_names]
        try:
            raw, used = _encode_phrases(encoder, wanted)
        except UnknownWordError as error:
            raise UnknownWordError(
                f"{error} Give other words for the class (--phrases), another GloVe file (--text-path), or "
                "another encoder (--text).",
                error.texts,
            ) from None
        _refuse_equal(raw, class_names, used)
        standardizer = Standardizer.fit(raw)
        return cls(
            class_names=tuple(class_names),
            phrases=used,
            vectors=standardizer(raw),
            standardizer=standardizer,
            encoder_name=encoder.name,
            encoder_path=encoder.path,
            has_meaning=encoder.has_meaning,
        )

    def extend(
        self, class_names: Sequence[str], encoder: TextEncoder | None, phrases: Phrases | None = None
    ) -> ClassText:
        """Return a table with further classes below; the rows that are there stay bit for bit.

        New vectors go through the standardizer of this table, so that they lie where the model would look
        for these words. Without meaning (onehot) there is no dimension left for a new class: it gets a
        normal vector drawn from its name alone, as long as the others are on average.

        Args:
            class_names: of the new classes.
            encoder: the one that the table was built with; not used, and None allowed, without meaning.
            phrases: new class -> what to encode instead, as in `build`.

        Raises:
            TextError: if a name exists already (in any case), a word is unknown, phrases are given for
                another class or without meaning, the encoder is another one, or two classes get the same
                vector.
        """
        names = tuple(class_names)
        if not names:
            raise TextError("There are no class names to add.")
        self._refuse_known(names)
        given = fitting_phrases(phrases, names, "new ")
        if not self.has_meaning:
            if given:
                raise TextError(
                    f"Phrases are given, but the encoder {self.encoder_name} carries no meaning and cannot "
                    "use them. Leave them out."
                )
            used: tuple[tuple[str, ...], ...] = tuple((name,) for name in names)
            length = float(self.vectors.norm(dim=1).mean())
            new = torch.stack([_drawn_vector(name, self.dim, length) for name in names])
        else:
            if encoder is None:
                raise TextError(f"Adding a class needs the encoder of training, {self.encoder_name}.")
            self._check_encoder(encoder)
            wanted = [tuple(_phrases_of(given.get(name, name), encoder)) for name in names]
            try:
                raw, used = _encode_phrases(encoder, wanted)
            except UnknownWordError as error:
                unknown = set(error.texts)
                name = next((n for n, row in zip(names, wanted, strict=True) if unknown & set(row)), names[0])
                raise UnknownWordError(
                    f'{error} Give other words for the class, such as phrases={{"{name}": "known words"}}; '
                    "--phrases takes a file of such lines.",
                    error.texts,
                ) from None
            new = self.standardizer(raw)
        table = dataclasses.replace(
            self,
            class_names=(*self.class_names, *names),
            phrases=(*self.phrases, *used),
            vectors=torch.cat([self.vectors, new.to(self.vectors)]),
        )
        _refuse_equal(table.vectors, table.class_names, table.phrases)
        return table

    def _refuse_known(self, names: Sequence[str]) -> None:
        seen = {name_key(name): f'the class "{name}" of the model' for name in self.class_names}
        problems = ProblemList("The new classes cannot be added", TextError)
        for name in names:
            if not name.strip():
                problems.add("a class name is empty")
            elif name_key(name) in seen:
                problems.add(
                    f'the new class "{name}" is already there, as {seen[name_key(name)]}. Give another name '
                    "(--class-name)."
                )
            seen.setdefault(name_key(name), f'another new class "{name}"')
        problems.raise_if_any()

    def encode(self, texts: Sequence[str], encoder: TextEncoder) -> Tensor:
        """Standardised vectors of any texts, float32 (len(texts), D).

        A class name gives the row of the table, also when the class was trained with phrases of its own.

        Args:
            texts: class names, words or phrases.
            encoder: the encoder that the table was built with (name and path are in the table).

        Raises:
            TextError: for an unknown word, or if the encoder is not the one of training.
        """
        labels = name_labels(self.class_names)
        rows = [labels.get(name_key(text)) for text in texts]
        vectors = torch.empty(len(texts), self.dim)
        free = [i for i, row in enumerate(rows) if row is None]
        for i, row in enumerate(rows):
            if row is not None:
                vectors[i] = self.vectors[row]
        if free:
            self._check_encoder(encoder)
            try:
                raw, _ = _encode_phrases(encoder, [tuple(_phrases_of(texts[i], encoder)) for i in free])
            except UnknownWordError as error:
                raise UnknownWordError(f"{error} Use other words.", error.texts) from None
            vectors[free] = self.standardizer(raw)
        return vectors

    def _check_encoder(self, encoder: TextEncoder) -> None:
        """Another GloVe file of the same width would give vectors that mean nothing to the model."""
        problem = ""
        if encoder.name != self.encoder_name or encoder.dim != self.dim:
            problem = f"{encoder.name} with {encoder.dim} numbers"
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what was left out was said when the table was built
                again = self.standardizer(_encode_phrases(encoder, self.phrases[:1])[0])[0]
            if not torch.allclose(again, self.vectors[0], rtol=1e-2, atol=1e-2):
                problem = f'other vectors (they differ for "{self.class_names[0]}")'
        if problem:
            raise TextError(
                f"The model was trained with text vectors of {self.encoder_name} "
                f"({self.encoder_path or 'its default'}, {self.dim} numbers), "
                f"but the encoder given is {problem}. Use the encoder of training."
            )

    def to_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors (for safetensors) and metadata (for JSON) from which `from_state` rebuilds the table."""
        tensors = {"vectors": self.vectors.clone(), "mean": self.standardizer.mean.clone()}
        metadata = {
            "class_names": list(self.class_names),
            "phrases": [list(row) for row in self.phrases],
            "scale": self.standardizer.scale,
            "encoder_name": self.encoder_name,
            "encoder_path": self.encoder_path,
            "has_meaning": self.has_meaning,
        }
        return tensors, metadata

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> ClassText:
        """The table that `to_state` described.

        Raises:
            CheckpointError: if something is missing or does not fit together.
        """
        found = checked(metadata, _Saved, "The saved table of class texts", CheckpointError)
        n, shapes = len(found["class_names"]), {name: tuple(value.shape) for name, value in tensors.items()}
        fits = shapes.keys() >= {"vectors", "mean"} and shapes["vectors"] == (n, *shapes["mean"])
        if not fits or len(found["phrases"]) != n or not found["scale"] > 0:
            raise CheckpointError(
                f"The saved class texts are damaged: {n} class names, {len(found['phrases'])} phrase lists "
                f"and tensors of shape {shapes} do not fit together."
            )
        return cls(
            class_names=tuple(found["class_names"]),
            phrases=tuple(tuple(row) for row in found["phrases"]),
            vectors=tensors["vectors"],
            standardizer=Standardizer(tensors["mean"], float(found["scale"])),
            encoder_name=found["encoder_name"],
            encoder_path=found["encoder_path"],
            has_meaning=found["has_meaning"],
        )


def fitting_phrases(
    phrases: Phrases | None, class_names: Sequence[str], new: str = ""
) -> dict[str, str | Sequence[str]]:
    """Return phrases by the class names as the data spells them.

    Raises:
        ConfigError: no mapping.
        TextError: phrases of classes that are not there, given twice, or that are no texts; all at once.
    """
    if phrases is not None and not isinstance(phrases, Mapping):
        raise ConfigError("phrases must give words for class names, such as {sandal: [sandal, open shoe]}.")
    labels = name_labels(class_names)
    given: dict[str, str | Sequence[str]] = {}
    problems = ProblemList(f"The phrases do not fit the {new}classes", TextError)
    for name, words in (phrases or {}).items():
        label = labels.get(name_key(str(name)))
        listed = isinstance(words, Sequence) and all(isinstance(word, str) for word in words)
        if label is None:
            problems.add(f'there is no {new}class "{name}".{suggest(str(name), class_names)}')
        elif class_names[label] in given:
            problems.add(f'the class "{class_names[label]}" is given twice')
        elif not listed:
            problems.add(f'those of "{name}" must be a text or a list of texts, got {words!r:.60}')
        else:
            given[class_names[label]] = words
    problems.raise_if_any()
    return given


def _drawn_vector(name: str, dim: int, length: float) -> Tensor:
    """A normal vector of a name alone, (dim,), scaled to `length`; the same on every machine."""
    digest = hashlib.sha256(f"fewgen/class vector/{name_key(name)}".encode()).digest()
    rng = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    vector = torch.randn(dim, generator=rng)
    return vector * (length / float(vector.norm()))


def _phrases_of(text: str | Sequence[str], encoder: TextEncoder) -> list[str]:
    if isinstance(text, str):
        # Without meaning there are no parts: the whole name is the word.
        return split_phrases(text) if encoder.has_meaning else [text]
    phrases = [phrase.strip() for phrase in text]
    if not phrases or not all(phrases):
        raise TextError(f"The list of phrases {list(text)} is empty or holds an empty phrase.")
    return phrases


def _encode_phrases(
    encoder: TextEncoder, phrases: Sequence[Sequence[str]]
) -> tuple[Tensor, tuple[tuple[str, ...], ...]]:
    """Mean vector of the known phrases of each row, (len(phrases), D), and which these are."""
    flat = list(dict.fromkeys(phrase for row in phrases for phrase in row))
    try:
        encoded = encoder.encode(flat)
    except UnknownWordError as error:
        unknown = set(error.texts)
        hopeless = [row for row in phrases if unknown.issuperset(row)]
        if hopeless:
            # Ask again for these alone, so that the message names nothing that does not matter.
            encoder.encode([phrase for row in hopeless for phrase in row])
            raise
        flat = [phrase for phrase in flat if phrase not in unknown]
        left_out = ", ".join(f'"{phrase}"' for phrase in error.texts)
        warnings.warn(
            f"The encoder {encoder.name} has no vector for {left_out}; "
            "the other phrases of the same class are used alone.",
            UserWarning,
            stacklevel=3,
        )
        encoded = encoder.encode(flat)
    vectors = dict(zip(flat, encoded, strict=True))
    used = tuple(tuple(phrase for phrase in row if phrase in vectors) for row in phrases)
    return torch.stack([torch.stack([vectors[phrase] for phrase in row]).mean(0) for row in used]), used


def _refuse_equal(raw: Tensor, class_names: Sequence[str], phrases: Sequence[Sequence[str]]) -> None:
    tolerance = 1e-5 * max(float(raw.abs().max()), 1e-12)
    problems = ProblemList("Two classes have the same text vector, so no text can tell them apart", TextError)
    for i, first in enumerate(class_names):
        equal = ((raw[i + 1 :] - raw[i]).abs().amax(1) <= tolerance).nonzero()[:, 0].tolist()
        for j in equal:
            second = class_names[i + 1 + j]
            problems.add(
                f'"{first}" (as {", ".join(phrases[i])}) and '
                f'"{second}" (as {", ".join(phrases[i + 1 + j])}). '
                f'Give other phrases for one of them, such as phrases={{"{second}": "another word"}}.'
            )
    problems.raise_if_any()
