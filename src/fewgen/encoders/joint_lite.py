"""A space of images and words without a single captioned image: EfficientNet-Lite2 meets MiniLM.

Shapes: N images or texts, K = 1,000 classes of ImageNet, F numbers of an image feature, D of a sentence
vector.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from fewgen.data.imageset import ImageSet, to_uint8
from fewgen.encoders.efficientnet import EfficientNetFeatures
from fewgen.encoders.joint import check_tokens
from fewgen.encoders.kept import kept_vectors
from fewgen.encoders.text_transformer import MINILM_SHA256, MiniLMEncoder
from fewgen.losses.stable import directions

TEMPERATURE = 0.15
"""Of the weights of `prototypes`, chosen on the 180 classes of Tiny ImageNet with the 820 others as K."""
FAR = 0.35
"""Cosine to the nearest class below which a text is called far from all of them."""


def imagenet_classes() -> list[tuple[str, str, str]]:
    """Return synset, names (with commas, the usual one first) and definition of each class, in order."""
    text = resources.files("fewgen.encoders").joinpath("imagenet.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    return [(synset, names, definition) for synset, names, definition in rows]


def prototypes(texts: Tensor, classes: Tensor, rows: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Return what images of texts would look like, (N, F): a mean of classes, weighted by likeness in words.

    Weights are the softmax over classes of cosine / temperature.

    Args:
        texts: sentence vectors (N, D), less the mean of those of the classes.
        classes: those of the classes, (K, D), less their mean.
        rows: what images of each class look like, (K, F).
        temperature: > 0.
    """
    likeness = directions(texts) @ directions(classes).T
    return (likeness / temperature).softmax(1) @ rows


class LiteJointEncoder:
    """Images and texts in the space of EfficientNet-Lite2, offline; weaker than CLIP, and no CLIP.

    An image is its feature. A text is what images of it would look like: the mean of the rows of the
    classifier, one for each class of ImageNet, weighted by how near the text is to the class in the space of
    MiniLM. There a text is its sentence vector, alone and as "a photo of a ...", and a class its name, the
    same as a photo, and its definition. Of CIFAR-10 at 32 px, 57 % are nearest to their class name, 10 % by
    chance. Vectors made elsewhere can stand in a text in place of words (`TokenReader`).

    Args:
        folder: where vectors of the class names and features of images are kept; None: nowhere.

    Raises:
        MissingDependencyError: a package of the extra `knowledge` is not installed.
        CheckpointError: its weights have another digest.

    Source: Norouzi et al. 2014, arXiv:1312.5650 (ConSE), turned round.
    Differs: ConSE takes an image to the mean of the words that it may be; here a text goes to the mean of
        the images that it may be, with temperature, templates and definitions of our own. It knows what
        ImageNet shows: photographs of things and animals, but neither drawings nor people.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._images = EfficientNetFeatures("lite2")
        self._images.folder = folder
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
        rows = directions(self._images.network.classifier.weight.detach())
        self._rows = rows - rows.mean(0)
        self.token_width, self.token_rms = self._texts.dim, self._texts.token_rms
        self.max_blocks = self._texts.room(_photo(""))

    @torch.no_grad()
    def image_features(self, images: Tensor) -> Tensor:
        """Return features (N, 1280) of length 1 of float images (N, 1 or 3, H, W) in [-1, 1].

        They are seen in 256 levels, as files hold them, so that features of stored images are kept.
        """
        stored = ImageSet(to_uint8(images.cpu()), torch.zeros(len(images), dtype=torch.int64), ("any",))
        return directions(self._images.features(stored))

    def encode_images(self, images: Tensor) -> Tensor:
        """Return the same with gradient, in as many levels as the images have."""
        network = self._images.network.to(images.device)
        return directions(network(self._images.prepare((images + 1.0) * 127.5)))

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return features (len(texts), 1280) of length 1; texts far from all classes cost a warning."""
        alone, photo = self._texts.encode(list(texts)), self._texts.encode([_photo(text) for text in texts])
        vectors = self._vectors(alone, photo)
        nearest = (directions(vectors) @ directions(self._classes).T).amax(1)
        far = [f'"{text}"' for text, cosine in zip(texts, nearest.tolist(), strict=True) if cosine < FAR]
        if far:
            warnings.warn(
                f"The joint encoder lite has seen nothing like {', '.join(far)}: what it finds for these "
                "words may be chance.",
                stacklevel=2,
            )
        return self._features(vectors)

    def text_features(self, tokens: Tensor) -> Tensor:
        """Return features (B, 1280) of length 1 of tokens (B, m, 384) read as words; differentiable in them.

        Raises:
            ShapeError: if the tokens are not (B, m, 384).
            ConfigError: if they do not fit.
        """
        check_tokens(tokens, self)
        alone, photo = self._texts.read(tokens), self._texts.read(tokens, _photo(""))
        return self._features(self._vectors(alone, photo)).to(tokens)

    def _vectors(self, alone: Tensor, photo: Tensor) -> Tensor:
        """Texts (N, D) less the mean of the classes, of sentence vectors alone and as a photo."""
        return directions(alone + photo) - self._mean

    def _features(self, vectors: Tensor) -> Tensor:
        return directions(prototypes(vectors, self._classes, self._rows))

    def record(self) -> dict[str, object]:
        """Return both halves, with the digests of their weights, and the temperature."""
        text = {"name": "minilm", "sha256": MINILM_SHA256}
        return {"name": "lite", "image": self._images.record(), "text": text, "temperature": TEMPERATURE}


def _photo(text: str) -> str:
    return text if text.startswith("a photo of") else f"a photo of a {text}"
