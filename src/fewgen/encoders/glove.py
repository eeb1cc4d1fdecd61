"""GloVe word vectors, read from a text file line by line: `word v1 ... vN`."""

from __future__ import annotations

import difflib
import math
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from fewgen.encoders.base import UnknownWordError
from fewgen.errors import TextError

DEFAULT_FILE = "glove.840B.300d.subset.txt"
_PUNCTUATION = ".,;:!?\"'()[]"
# Lines longer than this are not word vectors (a zip archive has hardly any line ends).
_LONGEST_LINE = 1 << 17


def word_variants(word: str) -> list[str]:
    """Spellings under which a word is looked up, best first.

    As written; then in lower case, capitalised and in upper case: the word, the word without hyphens, its
    singular and its plural by the simplest English rules. No synonyms: "automobile" is not "car".

    >>> word_variants("T-shirt")[:5]
    ['T-shirt', 't-shirt', 'T-SHIRT', 'tshirt', 'Tshirt']
    >>> "sandal" in word_variants("sandals")
    True
    """
    lower = word.lower()
    joined = lower.replace("-", "")
    forms = [lower, joined]
    for base in dict.fromkeys(forms):
        if base.endswith("ies"):
            forms.append(base[:-3] + "y")
        if base.endswith(("ses", "xes", "zes", "ches", "shes", "oes")):
            forms.append(base[:-2])
        if base.endswith("s") and not base.endswith("ss"):
            forms.append(base[:-1])
        if base.endswith("y"):
            forms.append(base[:-1] + "ies")
        forms += [base + "s", base + "es"]
    cased = [variant for form in forms for variant in (form, form.capitalize(), form.upper())]
    return list(dict.fromkeys(variant for variant in (word, *cased) if variant))


class GloveEncoder:
    """Word vectors of a GloVe file; a phrase is the mean of its words.

    Only the words that are asked for are kept, so a file of any size can be used.

    Args:
        path: the file, a folder with one, or the name of a file in the folder `glove` of the data folder.
            None: the first of `glove_files` there.
        data_dir: the data folder; None: the environment variable FEWGEN_DATA_DIR.

    Raises:
        TextError: if there is no such file, or it is not in GloVe format.

    Source: Pennington, Socher & Manning 2014, "GloVe: Global Vectors for Word Representation".
    Differs: the mean of words for a phrase, and the variants of spelling, are our choices.
    """

    name = "glove"
    has_meaning = True

    def __init__(self, path: str | Path | None = None, data_dir: str | Path | None = None) -> None:
        self.file = glove_files(path, data_dir)[0]
        # Within the data folder the bare name is enough, and stays right on another machine.
        self.path: str | None = str(path) if path is not None else self.file.name
        self._known: dict[str, Tensor | None] = {}
        with self.file.open("rb") as stream:
            self.dim = _width(stream.readline(_LONGEST_LINE), stream.readline(_LONGEST_LINE), self.file)

    @classmethod
    def of_each_file(cls, path: str | Path | None = None) -> Iterator[GloveEncoder]:
        """Give an encoder for each file that `path` may stand for, the preferred one first.

        Raises:
            TextError: if there is no file, or one is not in GloVe format.
        """
        yield cls(path)
        for file in glove_files(path)[1:]:
            encoder = cls(file)
            if path is None:
                encoder.path = file.name
            yield encoder

    def encode(self, texts: list[str]) -> Tensor:
        """Mean word vector of each text, float32 (len(texts), dim).

        Words of a phrase that the file lacks are left out with a warning that names them.

        Raises:
            UnknownWordError: if no word of a text is known; it names the words, the file and similar words.
        """
        words = [_words(text) for text in texts]
        self._load(word for row in words for word in row)
        rows: list[Tensor] = []
        unknown: list[str] = []
        unknown_texts: list[str] = []
        for text, row in zip(texts, words, strict=True):
            found = [(word, self._vector(word)) for word in row]
            vectors = [vector for _, vector in found if vector is not None]
            missing = [word for word, vector in found if vector is None]
            if not vectors:
                unknown += missing
                unknown_texts.append(text)
                continue
            if missing:
                warnings.warn(
                    f'Of "{text}" only part is used: {self.file.name} has no vector for {_quoted(missing)}.',
                    UserWarning,
                    stacklevel=2,
                )
            rows.append(torch.stack(vectors).mean(0))
        if unknown:
            raise UnknownWordError(self._explain(list(dict.fromkeys(unknown))), unknown_texts)
        return torch.stack(rows) if rows else torch.zeros(0, self.dim)

    def _vector(self, word: str) -> Tensor | None:
        for variant in word_variants(word):
            vector = self._known.get(variant)
            if vector is not None:
                return vector
        return None

    def _load(self, words: Iterable[str]) -> None:
        """Read the file once for all spellings that have not been looked for yet."""
        wanted = {variant for word in words for variant in word_variants(word)} - self._known.keys()
        if not wanted:
            return
        targets = {variant.encode() for variant in wanted}
        found: dict[str, Tensor] = {}
        for number, word, line in _lines(self.file, self.dim):
            if word in targets:
                targets.remove(word)  # the first line of a word counts
                found[word.decode()] = _values(line, self.dim, self.file, number)
                if not targets:
                    break
        self._known.update({variant: found.get(variant) for variant in wanted})

    def _explain(self, words: list[str]) -> str:
        every = [word.decode(errors="replace") for _, word, _ in _lines(self.file, self.dim)]
        close: list[str] = []
        for word in words:
            lower = word.lower()
            # Comparing with millions of words takes minutes: only those that start alike are candidates.
            start = lower[: 1 if len(every) < 50_000 else 2]
            near = [known for known in every if known.lower().startswith(start)][:20_000]
            matches = difflib.get_close_matches(lower, {known.lower() for known in near}, n=3, cutoff=0.6)
            close += [match for match in matches if match not in close]
        hint = ""
        if close:
            hint = f" Similar words in it: {', '.join(close)}."
        elif len(every) <= 100:
            distinct = list(dict.fromkeys(known.lower() for known in every))
            hint = f" It has {', '.join(distinct)}."
        return f"{self.file.name} has no vector for {_quoted(words)}.{hint}"


def glove_files(path: str | Path | None = None, data_dir: str | Path | None = None) -> list[Path]:
    """The GloVe files that a path may stand for, one at least, in the order in which they are tried.

    A file stands for itself; a folder, or None for that of the data sets, for `glove.840B.300d.subset.txt`,
    then its other `glove*.txt`, or, without any, its first `.txt`.

    Raises:
        TextError: if there is none; it says where it was looked for.
    """
    root = data_dir if data_dir is not None else os.environ.get("FEWGEN_DATA_DIR")
    shelf = Path(root) / "glove" if root else None
    if path is not None:
        given = Path(path).expanduser()
        if given.is_dir():
            return _files_of(given)
        candidates = [given] + ([shelf / given] if shelf is not None and not given.is_absolute() else [])
        for candidate in candidates:
            if candidate.is_file():
                return [candidate]
        places = " or ".join(str(candidate) for candidate in candidates)
        raise TextError(f"There is no GloVe file {places}. {_HOW_TO_GET}")
    if shelf is None:
        raise TextError(f"No GloVe file is given, and FEWGEN_DATA_DIR is not set. {_HOW_TO_GET}")
    if not shelf.is_dir():
        raise TextError(f"No GloVe file is given, and there is no folder {shelf}. {_HOW_TO_GET}")
    return _files_of(shelf)


_HOW_TO_GET = (
    "Set FEWGEN_DATA_DIR to a folder that contains glove/*.txt (lines of a word and its numbers); train and "
    "adapt also take such a file with --text-path."
)


def _files_of(folder: Path) -> list[Path]:
    files = sorted(folder.glob("glove*.txt"), key=lambda file: (file.name != DEFAULT_FILE, file.name))
    files = files or sorted(folder.glob("*.txt"))[:1]
    if not files:
        raise TextError(f"The folder {folder} holds no .txt file. {_HOW_TO_GET}")
    return files


def _words(text: str) -> list[str]:
    words = [word.strip(_PUNCTUATION) for word in text.replace("_", " ").replace("/", " ").split()]
    words = [word for word in words if word.strip("-")]
    if not words:
        raise TextError(f'The text "{text}" contains no word. Give a word or a phrase.')
    return words


def _quoted(words: Iterable[str]) -> str:
    return ", ".join(f'"{word}"' for word in words)


def _is_header(line: bytes) -> bool:
    """Whether the line is the `count width` header that the word2vec text format adds."""
    parts = line.split()
    return len(parts) == 2 and all(part.isdigit() for part in parts)


def _width(first: bytes, second: bytes, file: Path) -> int:
    line = second if _is_header(first) else first
    problem = f"{file} is not a text file in GloVe format (each line: a word and its numbers, with spaces)."
    if not line.strip():
        raise TextError(f"{file} holds no word vectors: it is empty.")
    if b"\0" in line or len(line) >= _LONGEST_LINE:
        raise TextError(f"{problem} It looks like a binary file; if it is an archive, unpack it first.")
    n = len(line.split()) - 1
    if n < 1:
        raise TextError(problem)
    _values(line, n, file, 2 if line is second else 1)
    return n


def _lines(file: Path, dim: int) -> Iterator[tuple[int, bytes, bytes]]:
    """Line number, word and whole line; words of more than one token keep their first token only."""
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if number == 1 and _is_header(line):
                continue
            if line.count(b" ") < dim:
                if not line.strip():
                    continue
                n = max(len(line.split()) - 1, 0)
                raise TextError(
                    f"Line {number} of {file} has {n} numbers, but the first has {dim}. "
                    "The file is damaged or cut off: get it again, or delete that line."
                )
            yield number, line[: line.index(b" ")], line


def _values(line: bytes, dim: int, file: Path, number: int) -> Tensor:
    """The numbers of a line, float32 (dim,)."""
    parts = line.split()
    try:
        values = [float(part) for part in parts[1:]]
    except ValueError:
        values = []
    if len(values) != dim or not all(math.isfinite(value) for value in values):
        raise TextError(
            f"Line {number} of {file} is not a word followed by {dim} finite numbers. "
            "The file is damaged: get it again, or delete that line."
        )
    return torch.tensor(values, dtype=torch.float32)
