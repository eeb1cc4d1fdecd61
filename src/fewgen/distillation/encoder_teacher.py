"""A teacher without base images: logistic regression on the features of a pretrained encoder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewgen.data.identity import fingerprint
from fewgen.data.imageset import ImageSet, to_uint8
from fewgen.distillation.views import padding_for, vary
from fewgen.encoders.base import ImageEncoder
from fewgen.encoders.probe import LinearProbe, linear_probe
from fewgen.errors import DataError
from fewgen.fitting.seeds import make_rng


@dataclass
class EncoderTeacher:
    """Logistic regression on features of the supports and of augmented views of them.

    What it knows of the world is the encoder's; the task it learns from the supports alone. So no base images
    are needed.

    Attributes:
        encoder: of images.
        views: augmented views of each support that it learns from, beside the support.
        jitter, flip: of the views, as in `vary`.
        padding: likewise; -1 as in `padding_for`.
        seed: of the views.

    Source: linear probes, Alain & Bengio 2016, arXiv:1610.01644.
    Differs: augmented views join; supports are few.
    """

    encoder: ImageEncoder
    views: int = 10
    jitter: float = 0.4
    flip: bool = True
    padding: int = -1
    seed: int = 0
    _known: dict[str, LinearProbe] = field(default_factory=dict, repr=False)

    @property
    def id(self) -> str:
        """A hash of everything that its labels depend on beside the supports, 16 hexadecimal digits."""
        how = [self.encoder.record(), self.views, self.jitter, self.flip, self.padding, self.seed]
        return hashlib.sha256(json.dumps(how, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def to(self, device: torch.device) -> EncoderTeacher:
        """Return itself: encoders stay on the processor."""
        return self

    def fit(self, supports: ImageSet) -> LinearProbe:
        """Return a probe of the supports' classes; the same supports are looked at once.

        Raises:
            DataError: fewer than two classes, or a class without supports.
        """
        empty = (supports.counts() == 0).nonzero().flatten().tolist()
        if empty:
            raise DataError(f"{len(empty)} of {supports.n_classes} classes have no support: {empty[:10]}.")
        key = fingerprint(supports)
        if key not in self._known:
            rng = make_rng("cpu", self.seed, "teacher views")
            moved, x = padding_for(supports.shape, self.padding), supports.floats()
            looks = [supports.images]
            looks += [to_uint8(vary(x, moved, self.jitter, self.flip, rng)) for _ in range(self.views)]
            labels = supports.labels.repeat(len(looks))
            shown = ImageSet(torch.cat(looks), labels, supports.class_names, name="views")
            self._known[key] = linear_probe(self.encoder.features(shown), labels)
        return self._known[key]

    def logits(self, images: ImageSet | Tensor, learned: LinearProbe) -> Tensor:
        """Return logits (N, n_classes), float32; see `Teacher`."""
        if isinstance(images, Tensor):
            labels = torch.zeros(len(images), dtype=torch.int64)
            images = ImageSet(to_uint8(images), labels, ("images",), name="images")
        return learned.logits(self.encoder.features(images)).float()

    def predict(self, images: ImageSet | Tensor, learned: LinearProbe) -> Tensor:
        """Return classes, int64 (N,)."""
        return self.logits(images, learned).argmax(dim=1)
