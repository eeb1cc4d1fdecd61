"""Features of a small classifier trained on the data at hand."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewgen.config.checks import Count
from fewgen.config.records import parse_record
from fewgen.config.schema import from_dict
from fewgen.data.augment import shift_images
from fewgen.data.identity import fingerprint, mixed_content_order
from fewgen.data.imageset import ImageSet
from fewgen.encoders.base import Described, check_shape, in_batches
from fewgen.errors import CheckpointError, DataError, ShapeError
from fewgen.fitting.fit import Shuffled, fit
from fewgen.nn.building import shapes_of
from fewgen.tensor_files import check_content, read_tensor_header, write_tensors

# Raise when training or network change in a way that settings do not show: old cache files are then ignored.
_FORMAT = 2

# Larger images are shrunk before the small classifier sees them, which bounds its cost.
_LARGEST_SIDE = 64

# Below this many training images `ClassifierSettings.for_images` guards against overfitting.
_FEW_IMAGES = 2000


@dataclass(frozen=True)
class ClassifierSettings:
    """How the evaluation classifier is trained.

    steps: optimiser steps.
    batch_size: images per step.
    lr: highest learning rate of the one-cycle schedule.
    weight_decay: of AdamW.
    width: channels of the later convolutions; the first has half of them.
    dim: length of the feature vector.
    seed: of initialisation, batch order and shifts.
    max_shift: every training image is moved by up to so many pixels in each direction; 0 for none.
    pool_first: max-pooling before batch norm and ReLU, which then cost a quarter.
    """

    steps: int = 1500
    batch_size: int = 128
    lr: float = 2e-3
    weight_decay: float = 0.01
    width: int = 64
    dim: int = 64
    seed: int = 0
    max_shift: int = 0
    pool_first: bool = False

    @classmethod
    def for_images(cls, n_images: int, side: int = 28, *, seed: int = 0) -> ClassifierSettings:
        """Return settings fit for so many training images.

        Below 2,000 images: 400 steps of 32 images, each shifted by up to a sixteenth of its side.
        Chosen among a dozen by cross-validation inside draws of 30 training images per class of
        Fashion-MNIST (20 to train on, 10 to test). On two fresh draws it is right for 79.0 % of the images,
        against 75.7 % with 32 channels, batches of 64 and shifts by one pixel.

        Args:
            n_images: of all classes together.
            side: the shorter side of the images in pixels.
            seed: of initialisation, batch order and shifts.
        """
        if n_images >= _FEW_IMAGES:
            return cls(seed=seed)
        return cls(
            steps=400,
            batch_size=32,
            lr=2e-3,
            weight_decay=0.05,
            width=48,
            max_shift=max(1, round(min(side, _LARGEST_SIDE) / 16)),
            pool_first=True,
            seed=seed,
        )

    def varied(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """Return training images (B, C, H, W) in [-1, 1], each with its own small change."""
        return shift_images(x, self.max_shift, rng)


class ConvNet(nn.Module):
    """A network that returns features and logits, and whose last layer alone makes the logits."""

    body: nn.Sequential
    head: nn.Linear


class SmallConvNet(ConvNet):
    """Convolution, batch norm, ReLU, max-pooling until the short side is at most 4 pixels; a feature layer.

    About 95,000 parameters at 28 px and 125,000 at 32 and 64 px with the default width.

    Args:
        channels: of the input images.
        height: pixels, at least 4.
        width_px: pixels, at least 4.
        n_classes: outputs.
        width: channels of the later convolutions.
        dim: length of the feature vector.
        pool_first: max-pooling right after each convolution.

    Raises:
        ShapeError: an image smaller than 4 pixels.
    """

    def __init__(
        self,
        channels: int,
        height: int,
        width_px: int,
        n_classes: int,
        *,
        width: int = 64,
        dim: int = 64,
        pool_first: bool = False,
    ) -> None:
        super().__init__()
        if min(height, width_px) < 4:
            raise ShapeError(
                f"images of {height} x {width_px} pixels are too small; at least 4 x 4 are needed."
            )
        blocks: list[nn.Module] = []
        inputs, outputs = channels, width // 2
        while not blocks or min(height, width_px) > 4:
            blocks.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
            rest: list[nn.Module] = [nn.BatchNorm2d(outputs), nn.ReLU()]
            # ReLU and max-pooling commute, and ReLU is cheaper after it.
            rest.insert(0 if pool_first else 1, nn.MaxPool2d(2))
            blocks += rest
            height, width_px = height // 2, width_px // 2
            inputs, outputs = outputs, width
        self.body = nn.Sequential(*blocks, nn.Flatten())
        self.feature = nn.Sequential(
            nn.Linear(inputs * height * width_px, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU()
        )
        self.head = nn.Linear(dim, n_classes)
        # On processors, convolutions with few channels train almost twice as fast in this layout.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, dim) and logits (B, n_classes) of images (B, C, H, W) in [-1, 1]."""
        features = self.feature(self.body(x.contiguous(memory_format=torch.channels_last)))
        return features, self.head(features)


def fit_classifier(
    network: nn.Module,
    batches: Callable[[], tuple[Tensor, Tensor]],
    *,
    steps: int,
    lr: float,
    weight_decay: float,
    progress: Callable[[int, int, float], None] | None = None,
) -> None:
    """Train a network that returns (features, logits) by cross-entropy, AdamW and one-cycle rates.

    Args:
        network: left in evaluation mode.
        batches: returns images (B, C, H, W) in [-1, 1] and labels (B,) for the next step.
        steps: optimiser steps.
        lr: highest learning rate.
        weight_decay: of AdamW.
        progress: called every 50 steps with steps so far, steps and mean loss.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=weight_decay)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=max(steps, 2))

    def rates() -> Iterator[list[float]]:
        for _ in range(steps):
            # The cycle also moves the momentum, in the optimiser itself.
            yield [group["lr"] for group in optimizer.param_groups]
            cycle.step()

    def figures(_: int) -> dict[str, Tensor]:
        x, labels = batches()
        return {"loss": functional.cross_entropy(network(x)[1], labels)}

    report = None if progress is None else lambda step, loss: progress(step, steps, loss)
    fit(network, figures, optimizer, rates(), report=report)


class _Header(TypedDict):
    format: int
    image_shape: tuple[Count, Count, Count]
    class_names: list[str]
    settings: dict[str, Any]
    about: dict[str, Any]


class ClassifierFeatures:
    """The feature layer of a small classifier trained on labelled images of the same kind.

    Make one with `ClassifierFeatures.of(train, test)`: it is trained once and then read from the cache.
    Features are the activations before the last layer (after ReLU). It also predicts classes, for
    `label_agreement`.

    Source: the practice of domain classifiers in place of Inception, e.g. Binkowski et al. 2018,
    arXiv:1801.01401, Sec. 5, who use LeNet features for MNIST.
    Differs: the network above, so absolute figures are comparable only under the same `record()`.
    """

    name = "classifier"
    Settings: type[ClassifierSettings] = ClassifierSettings

    def __init__(
        self,
        network: ConvNet,
        image_shape: tuple[int, int, int],
        class_names: Sequence[str],
        settings: ClassifierSettings,
        about: dict[str, object],
        batch_size: int = 128,
    ) -> None:
        self.network = network.eval()
        self.image_shape = image_shape
        self.class_names = tuple(class_names)
        self.settings = settings
        self.batch_size = batch_size
        self._about = dict(about)

    # ------------------------------------------------------------------------------------------ making

    @classmethod
    def of(
        cls,
        train: ImageSet,
        test: ImageSet | None = None,
        settings: ClassifierSettings | None = None,
        *,
        cache_dir: str | Path | None = None,
        use_cache: bool = True,
        progress: Callable[[int, int, float], None] | None = None,
    ) -> ClassifierFeatures:
        """Return the classifier for this data: from the cache, or trained now and then cached.

        Args:
            train: all labelled images at hand (not only the few shots), at least two classes.
            test: other images of the same classes; gives the accuracy in `record()`.
            settings: None for `ClassifierSettings.for_images`.
            cache_dir: None for `FEWGEN_CACHE_DIR`, or else ~/.cache/fewgen.
            use_cache: False trains anew and writes nothing.
            progress: called every 50 steps with step, steps and loss.

        Returns:
            The extractor. The same data, in any order, settings and seed give the same weights on the same
            machine and number of threads.

        Raises:
            DataError: fewer than two classes or two images, or a test set with other classes.
        """
        settings = settings or ClassifierSettings.for_images(len(train), min(working_size(*train.size)))
        if train.n_classes < 2 or len(train) < 2:
            raise DataError(
                f"a classifier needs at least two classes and two images, but the training images hold "
                f"{train.n_classes} classes and {len(train)} images."
            )
        train = train.subset(mixed_content_order(train))
        key = _data_key(train, settings)
        path = cache_folder(cache_dir) / "classifiers" / f"{key}.safetensors"
        extractor = None
        if use_cache and path.exists():
            # Damaged, or of an earlier release, which kept no digest: it is made again.
            with contextlib.suppress(CheckpointError, UserWarning), warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                extractor = cls.load(path)
        if extractor is None:
            extractor = cls._train(train, settings, key, progress)
            if use_cache:
                extractor.save(path)
        if test is not None:
            extractor.measure(test)
        return extractor

    @classmethod
    def _train(
        cls,
        train: ImageSet,
        settings: ClassifierSettings,
        key: str,
        progress: Callable[[int, int, float], None] | None,
    ) -> ClassifierFeatures:
        started = time.perf_counter()
        shape = (train.channels, *train.size)
        size = working_size(*shape[1:])
        shrunk = ImageSet(_shrink(train.images, size), train.labels, train.class_names)
        # Layers initialise from the global random state; leave the caller's as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            network = cls.build(shape, train.n_classes, settings)
        # Batch norm cannot train on one image, so the last, smaller batch of an epoch is left out.
        batch_size = min(settings.batch_size, len(train))
        rng = torch.Generator().manual_seed(settings.seed)
        order = Shuffled(len(train), rng, drop_rest=True)

        def batches() -> tuple[Tensor, Tensor]:
            chosen = order.draw(batch_size)
            return settings.varied(shrunk.floats(chosen), rng), shrunk.labels[chosen]

        fit_classifier(
            network,
            batches,
            steps=settings.steps,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            progress=progress,
        )
        about: dict[str, object] = {
            "key": key,
            "trained_on": train.name,
            "n_train": len(train),
            "train_seconds": round(time.perf_counter() - started, 1),
            "torch": torch.__version__,
        }
        return cls(network, shape, train.class_names, settings, about)

    @classmethod
    def build(cls, shape: tuple[int, int, int], n_classes: int, settings: ClassifierSettings) -> ConvNet:
        """Return an untrained network for images of (channels, height, width)."""
        return SmallConvNet(
            shape[0],
            *working_size(*shape[1:]),
            n_classes,
            width=settings.width,
            dim=settings.dim,
            pool_first=settings.pool_first,
        )

    # ------------------------------------------------------------------------------------------- using

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        return self.settings.dim

    def describe(self, images: ImageSet) -> Described:
        """Return features and predicted classes of images in one pass.

        Raises: ShapeError for another image shape than the classifier was trained on.
        """
        check_shape(images, self.image_shape, "this classifier")
        size = working_size(*self.image_shape[1:])

        def both(batch: Tensor) -> Tensor:
            return torch.cat(self.network(_to_floats(_shrink(batch, size))), dim=1)

        with torch.no_grad():
            found = in_batches(images.images, self.batch_size, both)
        return Described(found[:, : self.dim], found[:, self.dim :].argmax(dim=1))

    def shrink(self, x: Tensor) -> Tensor:
        """Return float images (N, C, H, W) in [-1, 1] at the size at which the network sees them."""
        size = working_size(*self.image_shape[1:])
        if tuple(x.shape[2:]) == size:
            return x
        return functional.interpolate(x, size, mode="bicubic", antialias=True).clamp_(-1.0, 1.0)

    def features(self, images: ImageSet) -> Tensor:
        """Return activations before the last layer, (N, dim), float32."""
        return self.describe(images).features

    def predict(self, images: ImageSet) -> Tensor:
        """Return predicted classes, int64 (N,)."""
        return self.classes_of(self.features(images))

    @torch.no_grad()
    def classes_of(self, features: Tensor) -> Tensor:
        """Return the classes, int64 (N,), that the last layer sees in features (N, dim)."""
        return in_batches(features.to(torch.float32), self.batch_size, self.network.head).argmax(dim=1)

    def measure(self, test: ImageSet) -> float:
        """Return the accuracy (0 to 1) on a test set and remember it for `record()`.

        Raises: DataError if the test set is empty or has other classes.
        """
        if test.class_names != self.class_names:
            raise DataError(
                f"the classifier knows the classes {list(self.class_names)}, the test images have "
                f"{list(test.class_names)}. Use test images of the same classes in the same order."
            )
        if len(test) == 0:
            raise DataError("the test set of the classifier is empty.")
        accuracy = float((self.predict(test) == test.labels).double().mean())
        self._about |= {"test_accuracy": accuracy, "n_test": len(test), "tested_on": test.name}
        return accuracy

    def learned_from(self, train: ImageSet) -> bool:
        """Tell whether it was trained on exactly these images, in whatever order."""
        return self._about.get("key") == _data_key(train.subset(mixed_content_order(train)), self.settings)

    def record(self) -> dict[str, object]:
        """Return name, settings, training data, accuracy on the last measured test set, parameters."""
        return {
            "name": self.name,
            "dim": self.dim,
            "image_shape": list(self.image_shape),
            "resize": _resize_record(self.image_shape[1:]),
            "n_parameters": sum(p.numel() for p in self.network.parameters()),
            "settings": dataclasses.asdict(self.settings),
            **self._about,
        }

    # ------------------------------------------------------------------------------------------ keeping

    def save(self, path: str | Path) -> None:
        """Write weights, settings and class names as one safetensors file, atomically."""
        unkept = ("test_accuracy", "n_test", "tested_on")
        header = {
            "format": _FORMAT,
            "image_shape": self.image_shape,
            "class_names": self.class_names,
            "settings": dataclasses.asdict(self.settings),
            "about": {key: value for key, value in self._about.items() if key not in unkept},
        }
        write_tensors(path, self.network.state_dict(), {"fewgen_classifier": json.dumps(header)})

    @classmethod
    def load(cls, path: str | Path) -> ClassifierFeatures:
        """Read a saved classifier. Raises CheckpointError for a damaged or foreign file."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            metadata = read_tensor_header(path, "Name a classifier of fewgen.").get("__metadata__")
            header = parse_record((metadata or {})["fewgen_classifier"], _Header)
            weights = load_file(path)
            check_content(path, weights, metadata)
            if header["format"] != _FORMAT:
                raise CheckpointError(f"{path} has classifier format {header['format']}, not {_FORMAT}.")
            settings = from_dict(cls.Settings, header["settings"])
            channels, height, width = header["image_shape"]
            build = functools.partial(
                cls.build, (channels, height, width), len(header["class_names"]), settings
            )
            if shapes_of(build, len(weights)) != {
                name: tuple(value.shape) for name, value in weights.items()
            }:
                raise ValueError("its tensors are not those of its settings")
            network = build()
            network.load_state_dict(weights)
            return cls(network, (channels, height, width), header["class_names"], settings, header["about"])
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"{path} is not a readable fewgen classifier: {error}") from error


def working_size(height: int, width: int) -> tuple[int, int]:
    """Return the size at which the small classifier sees images: the long side at most 64 pixels.

    >>> working_size(28, 28), working_size(256, 192), working_size(1000, 10)
    ((28, 28), (64, 48), (64, 4))
    """
    scale = min(1.0, _LARGEST_SIDE / max(height, width))
    return (height, width) if scale == 1.0 else (max(4, round(height * scale)), max(4, round(width * scale)))


def _to_floats(images: Tensor) -> Tensor:
    """Return uint8 images as float32 in [-1, 1]."""
    return images.to(torch.float32).div_(127.5).sub_(1.0)


def _shrink(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return uint8 images (N, C, H, W) at `size`, rounded, antialiased; as they are if they have it."""
    if tuple(images.shape[2:]) == size:
        return images
    parts = []
    for part in images.split(256):
        x = functional.interpolate(part.to(torch.float32), size, mode="bicubic", antialias=True)
        parts.append(x.round_().clamp_(0, 255).to(torch.uint8))
    return torch.cat(parts)


def _resize_record(size: tuple[int, int]) -> str:
    working = working_size(*size)
    if working == tuple(size):
        return "none"
    return f"antialiased bicubic, {size[0]} x {size[1]} -> {working[0]} x {working[1]}"


def _data_key(train: ImageSet, settings: ClassifierSettings) -> str:
    """Return a hash of images, labels, class names and settings, 24 hexadecimal digits."""
    header = [_FORMAT, list(train.images.shape), list(train.class_names), dataclasses.asdict(settings)]
    return fingerprint(train, json.dumps(header))[:24]


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Return the folder for what can be made again: the argument, `FEWGEN_CACHE_DIR` or ~/.cache/fewgen."""
    if cache_dir is not None:
        return Path(cache_dir)
    named = os.environ.get("FEWGEN_CACHE_DIR")
    return Path(named) if named else Path.home() / ".cache" / "fewgen"
