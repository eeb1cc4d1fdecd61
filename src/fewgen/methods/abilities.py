"""What a method may be able to do beside generating by class, and the loops that use it.

A method declares its abilities by name in `Method.capabilities`; commands offer exactly these. `able` checks
the declaration and gives the method's further functions their types.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

import torch
from torch import Tensor

from fewgen.data.imageset import ImageSet, to_floats, to_uint8

if TYPE_CHECKING:
    from fewgen.losses.terms import LossTerms
    from fewgen.methods.base import Method

GROUP = 256
"""Images that are sent through a method together. The last bits of a result depend on it."""


class Reconstructs(Protocol):
    """Sends images through the model and back."""

    def reconstruct(self, images: Tensor) -> Tensor:
        """Return images as they come back, (N, C, H, W) in [-1, 1] like those given."""


class Encodes(Protocol):
    """Finds the latent of an image."""

    def encode(self, images: Tensor) -> Tensor:
        """Return latents (N, L) of images (N, C, H, W) in [-1, 1]."""


class ReadsText(Protocol):
    """Draws free texts; its words have latents."""

    def encode_text(self, vectors: Tensor) -> Tensor:
        """Return latents (N, L) of standardised text vectors (N, D)."""


class Interpolates(Protocol):
    """Draws any latent, also one between two others."""

    def decode(self, latents: Tensor, seeds: Tensor, temperature: float) -> Tensor:
        """Return images (N, C, H, W) in [-1, 1] of latents (N, L); `seeds` int64 (N,), of the noise."""


class Retrieves(Protocol):
    """Says how near an image is to each class name."""

    def retrieve(self, images: Tensor) -> Tensor:
        """Return scores (N, n_classes), higher is nearer, of images (N, C, H, W) in [-1, 1]."""


class Adapts(Protocol):
    """Learns new classes from a few images; see the functions of the same name in `Method`."""

    def task_terms(
        self, images: Tensor, labels: Tensor, vectors: Tensor | None, rng: torch.Generator
    ) -> LossTerms:
        """Return the objective of a few images."""

    def adaptable(self, part: str = "all") -> list[str]:
        """Return the names of the parameters that adapt."""

    def rates_by_name(self) -> dict[str, float]:
        """Return the factors on the learning rate of `adapt`."""

    def set_inner_rates(self, factors: Mapping[str, float]) -> None:
        """Keep factors on the learning rate of `adapt`."""


class Blends(Protocol):
    """Starts from real images, of which the option `alpha` says how much is replaced by noise."""

    @property
    def has_latents(self) -> bool:
        """Whether there are real images to start from."""

    def starts(self, labels: Tensor, seeds: Tensor) -> Tensor:
        """Return the real image that each image starts from, uint8 (N, C, H, W)."""


class Edits(Protocol):
    """Makes images of a class and of codes for what does not make the class.

    `generate` takes the options `mode` and `strength`, and says the codes of its images.

    Attributes:
        code_counts: how many training images have each code in each place, int64 (T, K). Places are layers,
            or parts of layers.
    """

    code_counts: Tensor

    def encode_codes(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return codes int64 (N, T) of images (N, C, H, W) in [-1, 1] of the classes `labels`, int64 (N,)."""

    def from_codes(
        self,
        codes: Tensor,
        labels: Tensor,
        seeds: Tensor,
        strength: float | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Return images (N, C, H, W) in [-1, 1] of codes (N, T); those of a draw give its images again."""

    def with_code(self, image: Tensor | None, layer: int, codes: Tensor, strength: float) -> Tensor:
        """Return an image (1, C, H, W), or the mean one, with each of some codes (N,) in one place."""


class EncodesClasses(Protocol):
    """Takes in new classes from a few pictures of each, without a gradient step."""

    def with_classes(self, images: ImageSet) -> Method:
        """Return a copy that draws the classes of `images`, too."""


A = TypeVar("A")
_NAMES: dict[type, str] = {
    Reconstructs: "reconstruct",
    Encodes: "encode",
    ReadsText: "text",
    Interpolates: "interpolate",
    Retrieves: "retrieve",
    Adapts: "adapt",
    Blends: "blend",
    Edits: "edit",
    EncodesClasses: "encode_classes",
}


def able(method: Method, ability: type[A]) -> A:
    """Return a method as what it declares to be, with the functions of one ability.

    Raises:
        ConfigError: the method does not declare it.
    """
    method.require(_NAMES[ability])
    return cast(A, method)


@torch.no_grad()
def reconstructed(method: Method, images: ImageSet) -> Tensor:
    """Return images as they come back from a method, uint8 (N, C, H, W)."""
    through = able(method, Reconstructs)
    return torch.cat(
        [
            to_uint8(through.reconstruct(to_floats(part).to(method.device))).cpu()
            for part in images.images.split(GROUP)
        ]
    )


@torch.no_grad()
def class_scores(method: Method, images: Tensor) -> Tensor:
    """Return how near images are to each class name, float32 (N, n_classes), higher is nearer.

    Args:
        method: can retrieve.
        images: uint8 (N, C, H, W).
    """
    reader = able(method, Retrieves)
    return torch.cat(
        [reader.retrieve(to_floats(part).to(method.device)).float().cpu() for part in images.split(GROUP)]
    )


@torch.no_grad()
def class_latents(method: Method, labels: Tensor) -> Tensor:
    """Return the latents (N, L) of class names; labels int64 (N,)."""
    vectors = method.class_vectors(labels)
    assert vectors is not None
    return able(method, ReadsText).encode_text(vectors)


@torch.no_grad()
def walk(method: Method, start: Tensor, end: Tensor, seeds: Tensor, temperature: float = 0.0) -> Tensor:
    """Return images along the straight line between two latents, both ends included, uint8 (N, C, H, W).

    Args:
        method: can interpolate.
        start: latent (1, L).
        end: latent (1, L).
        seeds: of the noise, one per image, int64 (N,).
        temperature: scale of the noise around the walk.
    """
    weights = torch.linspace(0, 1, len(seeds)).to(start.device).unsqueeze(1)
    latents = (1 - weights) * start + weights * end
    return to_uint8(able(method, Interpolates).decode(latents, seeds, temperature)).cpu()
