"""A space of images and words without a single captioned image: EfficientNet-Lite2 meets MiniLM.

Shapes: N images, K = 1,000 classes of ImageNet, F numbers of an image feature, D of a sentence vector.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from fewgen.encoders.base import in_batches
from fewgen.encoders.efficientnet import EfficientNetFeatures
from fewgen.encoders.kept import kept_vectors
from fewgen.encoders.text_transformer import MINILM_SHA256, MiniLMEncoder
from fewgen.losses.stable import directions

RIDGE = 5.0
"""Penalty of `fit_map`, chosen on the 180 classes of Tiny ImageNet with a map of the 820 others."""
FAR = 0.35
"""Cosine to the nearest class below which a text is called far from all of them."""


def imagenet_classes() -> list[tuple[str, str, str]]:
    """Return synset, names (with commas, the usual one first) and definition of each class, in order."""
    text = resources.files("fewgen.encoders").joinpath("imagenet.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    return [(synset, names, definition) for synset, names, definition in rows]


def fit_map(prototypes: Tensor, targets: Tensor, ridge: float = RIDGE) -> Tensor:
    """Return the map A of shape (F, D) that takes features of images to vectors of words.

    Minimises sum_k |w_k A - t_k|^2 + ridge |A|^2 over rows w_k of length 1.

    Args:
        prototypes: what images of each class look like, (K, F), of any length.
        targets: vectors of the classes, (K, D).
        ridge: > 0.

    Source: the visual-semantic map of Frome et al. 2013 (DeViSE), by ridge regression.
    Differs: the rows of a classifier stand for the images of a class, of which there are none.
    """
    w = directions(prototypes)
    gram = w @ w.T
    return w.T @ torch.linalg.solve(gram + ridge * torch.eye(len(w), dtype=w.dtype), targets)


class LiteJointEncoder:
    """Images and texts in the space of MiniLM, offline; weaker than CLIP, and no CLIP.

    A text is its sentence vector, alone and as "a photo of a ...", less the mean of the classes. An image is
    the sum of two directions: what a linear map makes of its features (`fit_map`, from the rows of the
    classifier to the vectors of the class names), and the mean of the class vectors, weighted by what the
    classifier sees (ConSE). Of CIFAR-10 at 32 px, 48 % are nearest to their class name, 10 % by chance.

    Args:
        folder: where vectors of the class names are kept; None: nowhere.

    Raises:
        MissingDependencyError: a package of the extra `knowledge` is not installed.
        CheckpointError: its weights have another digest.

    Source: Norouzi et al. 2014, arXiv:1312.5650 (ConSE); Frome et al. 2013 (DeViSE).
    Differs: all that joins the two is ours. It knows what ImageNet shows: photographs of things and
        animals, but neither drawings nor people.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._images = EfficientNetFeatures("lite2")
        self._texts = MiniLMEncoder()
        names = [(row[1].split(",")[0], row[1], row[2]) for row in imagenet_classes()]
        texts = [first for first, *_ in names]
        texts += [_photo(first) for first, *_ in names]
        texts += [f"{every}: {definition}" for _, every, definition in names]
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # short ones need no filling up
        about = {"name": "minilm", "sha256": MINILM_SHA256}
        found = kept_vectors([texts[i] for i in order], about, folder, self._texts.encode)
        vectors = torch.empty_like(found)
        vectors[order] = found
        classes = directions(vectors.view(3, len(names), -1).sum(0))
        self._mean = classes.mean(0)
        self._classes = classes - self._mean
        self._map = fit_map(self._images.network.classifier.weight, self._classes)

    @torch.no_grad()
    def image_features(self, images: Tensor) -> Tensor:
        """Return features (N, 384) of length 1 of float images (N, 1 or 3, H, W) in [-1, 1]."""

        def both(pixels: Tensor) -> Tensor:
            features = self._images.vectors((pixels + 1.0) * 127.5)
            seen = self._images.logits(features).softmax(1) @ self._classes
            return directions(directions(seen) + directions(features @ self._map))

        return in_batches(images.cpu(), self._images.batch_size, both)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return features (len(texts), 384) of length 1; texts far from all classes cost a warning."""
        alone, photo = self._texts.encode(list(texts)), self._texts.encode([_photo(text) for text in texts])
        found = directions(directions(alone + photo) - self._mean)
        nearest = (found @ directions(self._classes).T).amax(1)
        far = [f'"{text}"' for text, cosine in zip(texts, nearest.tolist(), strict=True) if cosine < FAR]
        if far:
            warnings.warn(
                f"The joint encoder lite has seen nothing like {', '.join(far)}: what it finds for these "
                "words may be chance.",
                stacklevel=2,
            )
        return found

    def record(self) -> dict[str, object]:
        """Return both halves, with the digests of their weights, and the ridge."""
        text = {"name": "minilm", "sha256": MINILM_SHA256}
        return {"name": "lite", "image": self._images.record(), "text": text, "ridge": RIDGE}


def _photo(text: str) -> str:
    return text if text.startswith("a photo of") else f"a photo of a {text}"
