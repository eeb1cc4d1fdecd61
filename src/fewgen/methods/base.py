"""The interface of every method."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from fewgen.config.schema import to_dict
from fewgen.errors import ConfigError, ShapeError
from fewgen.nn.modes import evaluating
from fewgen.tensor_files import write_tensors

if TYPE_CHECKING:
    from fewgen.data.imageset import ImageSet
    from fewgen.generation.request import GeneratedImages, GenerationRequest
    from fewgen.losses.terms import LossTerms
    from fewgen.text.table import ClassText
    from fewgen.training.phases import Stage

CAPABILITIES = {
    "reconstruct": "reconstruct images",
    "encode": "find the latent of an image",
    "text": "draw free texts",
    "interpolate": "interpolate",
    "retrieve": "find images and words that lie near",
    "adapt": "adapt to new classes",
    "blend": "blend a real image with noise (generate --alpha)",
    "edit": "exchange attributes by codes (generate --mode, --strength)",
    "encode_classes": "take in new classes from a few pictures, without training (adapt)",
}
"""What a method may be able to do, in words that follow "can"; commands offer exactly what it declares."""

FORMAT = "fewgen-model"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class DataSpec:
    """What a method must know of the data before it sees any.

    Attributes:
        channels: 1 or 3.
        height: of an image, in pixels.
        width: of an image, in pixels.
        class_names: in the order of the labels.
        text: the classes' vectors, or None for a method that uses labels alone.
    """

    channels: int
    height: int
    width: int
    class_names: tuple[str, ...]
    text: ClassText | None = None

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.channels, self.height, self.width

    @classmethod
    def of(cls, images: ImageSet, text: ClassText | None = None) -> DataSpec:
        """Return the description of an image set."""
        height, width = images.size
        return cls(images.channels, height, width, tuple(images.class_names), text)


class Method(nn.Module, ABC):
    """A published system: its networks, how it is trained, and how it makes images.

    Subclasses set `Config` (a dataclass that checks its own values) and `capabilities`, are decorated
    with ``@register("name")``, build their networks in `__init__` and implement `stages` and `sample`.
    Everything that generation needs must be a parameter or a persistent buffer, and the constructor must
    work under ``torch.device("meta")``, which is how a file is checked before memory is spent on it.

    Attributes:
        name: set by `register`.
        Config: dataclass of the method's settings.
        capabilities: subset of `CAPABILITIES`.
        min_classes: fewest classes that it can learn from.
        reads_text: whether it wants the classes' text vectors; without, `spec.text` is None.
        rows: images computed together by `generate`. Always exactly so many, with short groups filled up,
            because the last bits of a matrix product depend on its size: this keeps image i the same
            for every batch size.
        adapts_stage: name of the stage whose objective `task_terms` is, which meta-training follows or
            replaces; for methods that can "adapt".
        meta_settings: settings that meta-training needs, in place of a preset's.
        config: the settings in use.
        spec: the data it was built for.
        notes: what a reader of the results should know of how it was built for these data.
        path: the model file that it was read from, or None.
    """

    name: ClassVar[str] = ""
    Config: ClassVar[type]
    capabilities: ClassVar[frozenset[str]] = frozenset()
    min_classes: ClassVar[int] = 2
    reads_text: ClassVar[bool] = True
    rows: ClassVar[int] = 64
    adapts_stage: ClassVar[str] = ""
    meta_settings: ClassVar[Mapping[str, Any]] = {}
    inner_rates: Tensor

    def __init__(self, config: Any, spec: DataSpec) -> None:
        super().__init__()
        if not isinstance(config, self.Config):
            raise ConfigError(
                f"{type(self).__name__} needs a {self.Config.__qualname__}, got {type(config).__qualname__}."
            )
        self.config = config
        self.spec = spec
        self.notes: list[str] = []
        self.path: Path | None = None
        self._encoder: Any = None

    def _register_inner_rates(self) -> None:
        """Make the buffer of `set_inner_rates`, at the end of the constructor of a method that adapts."""
        self.register_buffer("inner_rates", torch.ones(len(self.adaptable("all"))))

    @classmethod
    def usual_preset(cls, images: ImageSet) -> tuple[str, str]:
        """Return the preset that "auto" stands for with these images, and what to say of it, if anything."""
        return "default", ""

    @property
    def knows_classes(self) -> bool:
        """Whether images depend on the class that is asked for."""
        return True

    @property
    def walk_has_noise(self) -> bool:
        """Whether a walk between two latents has noise of its own above temperature 0."""
        return True

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next((tensor.device for tensor in self.state_dict().values()), torch.device("cpu"))

    @abstractmethod
    def stages(self, train: ImageSet, held_out: ImageSet | None) -> list[Stage]:
        """Return how to train on these images; without held-out images nothing is validated."""

    @abstractmethod
    def sample(
        self,
        class_vectors: Tensor | None,
        labels: Tensor,
        seeds: Tensor,
        temperature: float,
        **options: Any,
    ) -> Tensor:
        """Return images, float (N, C, H, W) in [-1, 1], image i a function of row i alone.

        Args:
            class_vectors: (N, D) standardised text vectors on the model's device, None without a table.
            labels: int64 (N,) on the model's device, -1 for a free text.
            seeds: int64 (N,) on the host, for `generate.noise`, `uniform` or `image_rngs`.
            temperature: 0 or more, scale of the noise.
            options: of the method.
        """

    def sample_coded(
        self,
        class_vectors: Tensor | None,
        labels: Tensor,
        seeds: Tensor,
        temperature: float,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the images of `sample`, and the codes int64 (N, E) they were made of, or None."""
        return self.sample(class_vectors, labels, seeds, temperature, **options), None

    def task_terms(
        self, images: Tensor, labels: Tensor, vectors: Tensor | None, rng: torch.Generator
    ) -> LossTerms:
        """Return the objective of a few images, differentiable in every parameter that `adaptable` names.

        A pure function of its arguments and the parameters: no buffer changes, no dropout in evaluation
        mode, all noise from `rng`. What meta-training and `adapt` do rests on it.

        Args:
            images: (B, C, H, W) in [-1, 1].
            labels: int64 (B,), rows of `vectors`.
            vectors: standardised text vectors, (n_classes, D); None: those of the model's own classes.
            rng: of the noise.
        """
        raise ConfigError(f'The method "{self.name}" has no objective to adapt with.')

    def forward(
        self, images: Tensor, labels: Tensor, vectors: Tensor | None, rng: torch.Generator
    ) -> LossTerms:
        """Return `task_terms`, so that `torch.func.functional_call` can put other parameters in."""
        return self.task_terms(images, labels, vectors, rng)

    def adaptable(self, part: str = "all") -> list[str]:
        """Return the names of the parameters that adapt to a new class.

        Args:
            part: "all"; "decoder": what turns a latent into an image, and what turns a text into a
                latent's distribution; "heads": the layers that write or read the latent.
        """
        raise ConfigError(f'The method "{self.name}" cannot adapt to new classes.')

    def set_inner_rates(self, factors: Mapping[str, float]) -> None:
        """Keep factors on the learning rate of `adapt`, by parameter name; the others stay.

        They lie in the buffer `inner_rates`, and so in the model file: ones, unless meta-training learned
        others.
        """
        names = self.adaptable("all")
        for i, name in enumerate(names):
            if name in factors:
                self.inner_rates[i] = factors[name]

    def rates_by_name(self) -> dict[str, float]:
        """Return the factors on the learning rate of `adapt` by parameter name."""
        return dict(zip(self.adaptable("all"), self.inner_rates.tolist(), strict=True))

    def require(self, capability: str) -> None:
        """Raise `ConfigError` if the method cannot do `capability`."""
        if capability not in self.capabilities:
            can = ", ".join(what for name, what in CAPABILITIES.items() if name in self.capabilities)
            raise ConfigError(
                f'The method "{self.name}" cannot {CAPABILITIES[capability]}. Beside generating by class it '
                f"can {can or 'do nothing more'}."
            )

    @property
    def encoders(self) -> Mapping[str, tuple[str, str]]:
        """Encoders that its training needs, as settings name them: use -> kind and name."""
        return {}

    @property
    def weight_files(self) -> Mapping[str, tuple[str, str]]:
        """Files of weights that its training starts from: use -> kind and path."""
        return {}

    def read_weights(self) -> None:
        """Take over what `weight_files` hold.

        Called once, before a training begins. One that resumes has them in its state.

        Raises:
            FewgenError: a file is missing or does not fit.
        """

    def use_encoder(self, encoder: Any) -> None:
        """Use this text encoder for free texts, instead of the one named in the class text table."""
        self._encoder = encoder

    def text_vectors(self, texts: Sequence[str]) -> Tensor:
        """Return the standardised vectors of free texts, (N, D), on the model's device.

        Raises:
            ConfigError: if the method does not take texts, or was trained without a text table.
        """
        self.require("text")
        text = self.spec.text
        if text is None:
            raise ConfigError("This model was trained without text vectors; generate by class name instead.")
        if self._encoder is None:
            from fewgen.text import make_text_encoder

            self._encoder = make_text_encoder(text.encoder_name, path=text.encoder_path)
        vectors: Tensor = text.encode(list(texts), self._encoder)
        return vectors.to(self.device)

    def class_vectors(self, labels: Tensor) -> Tensor | None:
        """Return the vectors of classes, (N, D), on the model's device; None without a text table."""
        if self.spec.text is None:
            return None
        vectors: Tensor = self.spec.text.vectors
        return vectors[labels.cpu()].to(self.device)

    @torch.no_grad()
    def generate(self, request: GenerationRequest) -> GeneratedImages:
        """Make the requested images; image i depends on its own seed and class or text alone.

        Raises:
            ConfigError: if a label is not a class of the model, or the method takes no texts.
        """
        from fewgen.data.imageset import to_uint8
        from fewgen.generation.request import GeneratedImages

        n = len(request)
        if request.texts is not None:
            labels = torch.full((n,), -1, dtype=torch.int64)
            unique = list(dict.fromkeys(request.texts))
            row = {text: i for i, text in enumerate(unique)}
            vectors: Tensor | None = None
            if unique:
                which = torch.tensor([row[text] for text in request.texts], device=self.device)
                vectors = self.text_vectors(unique)[which]
        else:
            assert request.labels is not None
            labels = request.labels
            wrong = labels[(labels < 0) | (labels >= self.spec.n_classes)]
            if len(wrong):
                raise ConfigError(
                    f"Label {int(wrong[0])} is not a class of this model, which has {self.spec.n_classes} "
                    f"(0 to {self.spec.n_classes - 1})."
                )
            vectors = self.class_vectors(labels)
        parts, coded = [], []
        with evaluating(self):
            for start in range(0, n, self.rows):
                stop = min(start + self.rows, n)
                # Repeating the last row fills the group; what is computed for it is thrown away.
                rows = torch.arange(start, start + self.rows).clamp(max=stop - 1)
                images, codes = self.sample_coded(
                    None if vectors is None else vectors[rows.to(vectors.device)],
                    labels[rows].to(self.device),
                    request.seeds[rows],
                    request.temperature,
                    **request.options,
                )
                if tuple(images.shape) != (len(rows), *self.spec.shape):
                    raise ShapeError(
                        f"{self.name}.sample gave {tuple(images.shape)} instead of "
                        f"{(len(rows), *self.spec.shape)}."
                    )
                parts.append(to_uint8(images[: stop - start]).cpu())
                if codes is not None:
                    coded.append(codes[: stop - start].cpu())
        return GeneratedImages(
            images=torch.cat(parts) if parts else torch.empty((0, *self.spec.shape), dtype=torch.uint8),
            labels=labels,
            class_names=self.spec.class_names,
            seeds=request.seeds,
            provenance={
                "method": self.name,
                "temperature": request.temperature,
                "options": dict(request.options),
                "torch": torch.__version__,
            },
            texts=None if request.texts is None else tuple(request.texts),
            codes=torch.cat(coded) if coded else None,
        )

    def save(self, path: str | os.PathLike[str], extra: Mapping[str, Any] | None = None) -> None:
        """Write the model file, atomically.

        Args:
            path: the file to write, usually `model.safetensors` in a run folder.
            extra: JSON values to keep in it (run settings, versions, figures).

        Raises:
            OutputError: if it cannot be written; an older file stays as it was.
        """
        metadata = {
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "method": self.name,
            "config": _dump(to_dict(self.config)),
            "spec": _dump(
                {
                    "channels": self.spec.channels,
                    "height": self.spec.height,
                    "width": self.spec.width,
                    "class_names": list(self.spec.class_names),
                }
            ),
            "extra": _dump(dict(extra or {})),
        }
        tensors = {f"model.{name}": tensor for name, tensor in self.state_dict().items()}
        if self.spec.text is not None:
            text_tensors, text_meta = self.spec.text.to_state()
            tensors.update({f"text.{name}": tensor for name, tensor in text_tensors.items()})
            metadata["text"] = _dump(text_meta)
        write_tensors(path, tensors, metadata)


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
