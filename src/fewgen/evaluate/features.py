"""Features in which images are compared: a small classifier trained on the data at hand, or raw pixels.

A feature extractor decides what every figure means, so each has a `record()` that goes into the
evaluation: its name, how it was made and how good it is. Extractors take an `ImageSet` and never resize:
sizes and channels that differ from what an extractor was made for are an error.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewgen.data.imageset import ImageSet
from fewgen.errors import CheckpointError, ConfigError, DataError, ShapeError

# Raise when training or network change in a way that settings do not show: old cache files are then ignored.
_FORMAT = 1


class FeatureExtractor(Protocol):
    """Turns images into vectors whose Euclidean distances are meaningful."""

    @property
    def name(self) -> str:
        """Short name for tables and records."""
        ...

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        ...

    def features(self, images: ImageSet) -> Tensor:
        """Return one vector per image, (N, dim), float32, in the order of the images."""
        ...

    def record(self) -> dict[str, object]:
        """Return what a reader must know to judge figures in these features; JSON-ready."""
        ...


class PixelFeatures:
    """Pixels in [-1, 1], flattened, divided by the root of their number.

    The distance of two images is then their root mean squared difference, whatever their size.

    Args:
        channels: 1 or 3.
        height: pixels.
        width: pixels.
    """

    name = "pixels"

    def __init__(self, channels: int, height: int, width: int) -> None:
        self.shape = (channels, height, width)

    @property
    def dim(self) -> int:
        """Number of values of an image."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    def features(self, images: ImageSet) -> Tensor:
        """Return flattened pixels, (N, dim), float32. Raises ShapeError for another image shape."""
        _check_shape(images, self.shape, "PixelFeatures")
        return images.floats().flatten(1) / self.dim**0.5

    def record(self) -> dict[str, object]:
        """Return name and image shape."""
        return {"name": self.name, "dim": self.dim, "image_shape": list(self.shape), "resize": "none"}


def _check_shape(images: ImageSet, wanted: tuple[int, int, int], who: str) -> None:
    found = tuple(images.images.shape[1:])
    if found != wanted:
        raise ShapeError(
            f"{who} was made for images of (channels, height, width) {wanted}, but these are {found}. "
            "Load both with the same size and channels."
        )


# ---------------------------------------------------------------------------------------- the classifier


@dataclass(frozen=True)
class ClassifierSettings:
    """How the evaluation classifier is trained.

    steps: optimiser steps.
    batch_size: images per step.
    lr: highest learning rate of the one-cycle schedule.
    weight_decay: of AdamW.
    width: channels of the later convolutions; the first has half of them.
    dim: length of the feature vector.
    seed: of initialisation and batch order.
    """

    steps: int = 1500
    batch_size: int = 128
    lr: float = 2e-3
    weight_decay: float = 0.01
    width: int = 64
    dim: int = 64
    seed: int = 0


class SmallConvNet(nn.Module):
    """Convolution, batch norm, ReLU, max-pooling until the short side is at most 4 pixels; a feature layer.

    About 95,000 parameters at 28 px and 125,000 at 32 and 64 px with the default width.

    Args:
        channels: of the input images.
        height: pixels, at least 4.
        width_px: pixels, at least 4.
        n_classes: outputs.
        width: channels of the later convolutions.
        dim: length of the feature vector.

    Raises:
        ShapeError: an image smaller than 4 pixels.
    """

    def __init__(
        self, channels: int, height: int, width_px: int, n_classes: int, *, width: int = 64, dim: int = 64
    ) -> None:
        super().__init__()
        if min(height, width_px) < 4:
            raise ShapeError(
                f"images of {height} x {width_px} pixels are too small; at least 4 x 4 are needed."
            )
        blocks: list[nn.Module] = []
        inputs, outputs = channels, width // 2
        while not blocks or min(height, width_px) > 4:
            blocks += [
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
            height, width_px = height // 2, width_px // 2
            inputs, outputs = outputs, width
        self.body = nn.Sequential(*blocks, nn.Flatten())
        self.feature = nn.Sequential(
            nn.Linear(inputs * height * width_px, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU()
        )
        self.head = nn.Linear(dim, n_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, dim) and logits (B, n_classes) of images (B, C, H, W) in [-1, 1]."""
        features = self.feature(self.body(x))
        return features, self.head(features)


def fit_classifier(
    network: nn.Module,
    batches: Callable[[int, torch.Generator], tuple[Tensor, Tensor]],
    *,
    steps: int,
    lr: float,
    weight_decay: float,
    seed: int,
    progress: Callable[[int, int, float], None] | None = None,
) -> None:
    """Train a network that returns (features, logits) by cross-entropy, AdamW and one-cycle rates.

    Args:
        network: moved to training mode, and to evaluation mode at the end.
        batches: (step, rng) -> images (B, C, H, W) in [-1, 1] and labels (B,).
        steps: optimiser steps.
        lr: highest learning rate.
        weight_decay: of AdamW.
        seed: of the random stream given to `batches`.
        progress: called every 50 steps with step, steps and loss.
    """
    rng = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=lr, total_steps=max(steps, 2))
    network.train()
    for step in range(steps):
        x, labels = batches(step, rng)
        loss = functional.cross_entropy(network(x)[1], labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        if progress is not None and (step + 1) % 50 == 0:
            progress(step + 1, steps, float(loss.detach()))
    network.eval()


@dataclass(frozen=True)
class Described:
    """What the classifier says of images: features (N, dim) float32 and predictions int64 (N,)."""

    features: Tensor
    predictions: Tensor


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

    def __init__(
        self,
        network: SmallConvNet,
        image_shape: tuple[int, int, int],
        class_names: Sequence[str],
        settings: ClassifierSettings,
        about: dict[str, object],
        batch_size: int = 250,
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
            settings: None for the defaults.
            cache_dir: None for `FEWGEN_CACHE_DIR`, or else ~/.cache/fewgen.
            use_cache: False trains anew and writes nothing.
            progress: called every 50 steps with step, steps and loss.

        Returns:
            The extractor. The same data, settings and seed give the same weights on the same machine and
            number of threads.

        Raises:
            DataError: fewer than two classes or two images, or a test set with other classes.
        """
        settings = settings or ClassifierSettings()
        if train.n_classes < 2 or len(train) < 2:
            raise DataError(
                f"a classifier needs at least two classes and two images, but the training images hold "
                f"{train.n_classes} classes and {len(train)} images."
            )
        key = _data_key(train, settings)
        path = cache_folder(cache_dir) / "classifiers" / f"{key}.safetensors"
        extractor = _read(path) if use_cache and path.exists() else None
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
        shape = _image_shape(train)
        # Layers initialise from the global random state; leave the caller's as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            network = SmallConvNet(*shape, train.n_classes, width=settings.width, dim=settings.dim)
        # Batch norm cannot train on one image, so the last, smaller batch of an epoch is left out.
        batch_size = min(settings.batch_size, len(train))
        order = torch.empty(0, dtype=torch.int64)

        def batches(step: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
            nonlocal order
            if len(order) < batch_size:
                order = torch.randperm(len(train), generator=rng)
            chosen, order = order[:batch_size], order[batch_size:]
            return train.floats(chosen), train.labels[chosen]

        fit_classifier(
            network,
            batches,
            steps=settings.steps,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            seed=settings.seed,
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

    # ------------------------------------------------------------------------------------------- using

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        return self.settings.dim

    def describe(self, images: ImageSet) -> Described:
        """Return features and predicted classes of images in one pass.

        Raises: ShapeError for another image shape than the classifier was trained on.
        """
        _check_shape(images, self.image_shape, "this classifier")
        features = torch.empty(len(images), self.dim)
        predictions = torch.empty(len(images), dtype=torch.int64)
        with torch.no_grad():
            for start in range(0, len(images), self.batch_size):
                chosen = torch.arange(start, min(start + self.batch_size, len(images)))
                batch_features, logits = self.network(images.floats(chosen))
                features[chosen], predictions[chosen] = batch_features, logits.argmax(dim=1)
        return Described(features, predictions)

    def features(self, images: ImageSet) -> Tensor:
        """Return activations before the last layer, (N, dim), float32."""
        return self.describe(images).features

    def predict(self, images: ImageSet) -> Tensor:
        """Return predicted classes, int64 (N,)."""
        return self.describe(images).predictions

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

    def record(self) -> dict[str, object]:
        """Return name, settings, training data, accuracy on the last measured test set, parameters."""
        return {
            "name": self.name,
            "dim": self.dim,
            "image_shape": list(self.image_shape),
            "resize": "none",
            "n_parameters": sum(p.numel() for p in self.network.parameters()),
            "settings": dataclasses.asdict(self.settings),
            **self._about,
        }

    # ------------------------------------------------------------------------------------------ keeping

    def save(self, path: str | Path) -> None:
        """Write weights, settings and class names as one safetensors file, atomically."""
        from safetensors.torch import save_file

        from fewgen.files import atomic_write

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        header = {
            "format": _FORMAT,
            "image_shape": self.image_shape,
            "class_names": self.class_names,
            "settings": dataclasses.asdict(self.settings),
            "about": {
                k: v for k, v in self._about.items() if k not in ("test_accuracy", "n_test", "tested_on")
            },
        }
        with atomic_write(path) as temporary:
            save_file(
                self.network.state_dict(), temporary, metadata={"fewgen_classifier": json.dumps(header)}
            )

    @classmethod
    def load(cls, path: str | Path) -> ClassifierFeatures:
        """Read a saved classifier. Raises CheckpointError for a damaged or foreign file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                header = json.loads((file.metadata() or {})["fewgen_classifier"])
                # The file object offers keys() but cannot be iterated.
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if header["format"] != _FORMAT:
                raise CheckpointError(f"{path} has classifier format {header['format']}, not {_FORMAT}.")
            settings = ClassifierSettings(**header["settings"])
            channels, height, width = header["image_shape"]
            network = SmallConvNet(
                channels, height, width, len(header["class_names"]), width=settings.width, dim=settings.dim
            )
            network.load_state_dict(weights)
            return cls(network, (channels, height, width), header["class_names"], settings, header["about"])
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{path} is not a readable fewgen classifier: {error}") from error


def _read(path: Path) -> ClassifierFeatures | None:
    """Return the cached classifier, or None where the file is damaged and must be made again."""
    try:
        return ClassifierFeatures.load(path)
    except CheckpointError:
        return None


def _image_shape(images: ImageSet) -> tuple[int, int, int]:
    channels, height, width = images.images.shape[1:]
    return int(channels), int(height), int(width)


def _data_key(train: ImageSet, settings: ClassifierSettings) -> str:
    """Return a hash of images, labels, class names and settings, 24 hexadecimal digits."""
    digest = hashlib.sha256()
    header = [_FORMAT, list(train.images.shape), list(train.class_names), dataclasses.asdict(settings)]
    digest.update(json.dumps(header).encode())
    digest.update(train.images.contiguous().numpy().tobytes())
    digest.update(train.labels.contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Return the folder for what can be made again: the argument, `FEWGEN_CACHE_DIR` or ~/.cache/fewgen."""
    if cache_dir is not None:
        return Path(cache_dir)
    named = os.environ.get("FEWGEN_CACHE_DIR")
    return Path(named) if named else Path.home() / ".cache" / "fewgen"


def make_extractor(
    name: str, train: ImageSet, test: ImageSet | None = None, **options: object
) -> FeatureExtractor:
    """Return an extractor by name: "classifier" (trained on `train`, cached) or "pixels".

    Raises: ConfigError for an unknown name.
    """
    if name == "classifier":
        return ClassifierFeatures.of(train, test, **options)  # type: ignore[arg-type]
    if name == "pixels":
        return PixelFeatures(*_image_shape(train))
    from fewgen.errors import suggest

    raise ConfigError(
        f'unknown features "{name}"; known: classifier, pixels.{suggest(name, ["classifier", "pixels"])}'
    )
