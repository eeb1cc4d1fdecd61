"""`load_images`: one door to every source of images, and the list of the data sets that have a name."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fewgen import plugins
from fewgen.config.call import renamed
from fewgen.config.surroundings import own_surroundings
from fewgen.data import cifar_binary, digits, idx, npz, omniglot
from fewgen.data import download as downloads
from fewgen.data.counts import Shots
from fewgen.data.folder import load_folder, save_folder
from fewgen.data.imageset import ImageSet
from fewgen.data.kinds import kind_of
from fewgen.data.origin import Origin
from fewgen.data.transforms import Form
from fewgen.data.value_range import ValueRange, in_range
from fewgen.errors import ConfigError, DataError, OutputError, suggest
from fewgen.files import prepare_output_file

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

DATA_DIR_VARIABLE = "FEWGEN_DATA_DIR"
SPLITS = ("train", "test")
GROUP = "fewgen.datasets"

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@dataclass(frozen=True)
class DatasetInfo:
    """What `fewgen datasets` shows of a data set.

    Attributes:
        name: what to pass as `source`.
        classes: number of classes.
        n_train: number of training images.
        n_test: number of test images.
        size: side of its images in pixels, when no other size is asked for.
        channels: 1 for grey, 3 for colour.
        where: the file or folder that is used, or the one that is missing.
        licence: terms of use, in short.
        available: whether it can be loaded without a download.
        downloadable: whether `download=True` can fetch it.
        origin: the package that offers it, with its version; "" for fewgen's own.
    """

    name: str
    classes: int
    n_train: int
    n_test: int
    size: int
    channels: int
    where: str
    licence: str
    available: bool
    downloadable: bool
    origin: str = ""


@dataclass(frozen=True)
class NamedSet:
    """A data set that has a name; packages offer theirs as entry points of `GROUP`.

    Attributes:
        classes: number of classes.
        n_train: number of training images.
        n_test: number of test images.
        size: side of its images in pixels, when no other size is asked for.
        channels: 1 for grey, 3 for colour.
        licence: terms of use, in short.
        places: where it may lie, below the folder of data sets; none for images that need no file.
        load: (folder of data sets, split, size asked for) -> images, or None if they are not there.
    """

    classes: int
    n_train: int
    n_test: int
    size: int
    channels: int
    licence: str
    places: tuple[str, ...]
    load: Callable[[Path, str, int | None], ImageSet | None]


def _load_idx(folder: str, name: str, class_names: tuple[str, ...]) -> Callable[..., ImageSet | None]:
    def load(root: Path, split: str, size: int | None) -> ImageSet | None:
        for place in (root / folder / "raw", root / folder):
            found = idx.find_idx(place, split)
            if found:
                return idx.load_idx(*found, class_names=class_names, name=f"{name} ({split})")
        return None

    return load


def _load_cifar10(root: Path, split: str, size: int | None) -> ImageSet | None:
    # The original pixels come first; the JPEG form has lost some of them.
    for place in (root / "CIFAR10" / "cifar-10-batches-bin", root / "CIFAR10", root / "cifar-10-batches-bin"):
        if cifar_binary.find_cifar(place, split):
            return cifar_binary.load_cifar_binary(place, split, f"cifar10 ({split})")
    file = root / "CIFAR10" / "cifar10_jpeg_full.npz"
    return npz.load_npz(file, split, f"cifar10 ({split}, from JPEG)") if file.is_file() else None


def _load_npz(place: str, name: str) -> Callable[..., ImageSet | None]:
    def load(root: Path, split: str, size: int | None) -> ImageSet | None:
        file = root / place
        return npz.load_npz(file, split, f"{name} ({split}, from JPEG)") if file.is_file() else None

    return load


def _load_omniglot(root: Path, split: str, size: int | None) -> ImageSet | None:
    file = root / "Omniglot" / "omniglot_background_small.npz"
    if not file.is_file():
        return None
    return omniglot.load_omniglot(file, split, small=size in (None, 28))


def _load_digits(root: Path, split: str, size: int | None) -> ImageSet:
    images = digits.load_digits(split)
    return images if size is not None else in_form(images, Form(28, fit="stretch"))


_IMAGENETTE = "Imagenette64/imagenette_64_subset.npz"
_TINY_IMAGENET = "TinyImageNet32/tinyimagenet32_180classes_jpeg.npz"
_IMAGENET_TERMS = "ImageNet terms; non-commercial research"

_NAMED: dict[str, NamedSet] = {
    "digits": NamedSet(10, 1442, 355, 28, 1, "CC BY 4.0", (), _load_digits),
    "mnist": NamedSet(
        10,
        60000,
        10000,
        28,
        1,
        "CC BY-SA 3.0",
        ("MNIST/raw",),
        _load_idx("MNIST", "mnist", digits.CLASS_NAMES),
    ),
    "fashion_mnist": NamedSet(
        10,
        60000,
        10000,
        28,
        1,
        "MIT",
        ("FashionMNIST/raw",),
        _load_idx("FashionMNIST", "fashion_mnist", FASHION_CLASSES),
    ),
    "cifar10": NamedSet(
        10,
        50000,
        10000,
        32,
        3,
        "none stated; research use",
        ("CIFAR10/cifar-10-batches-bin", "CIFAR10/cifar10_jpeg_full.npz"),
        _load_cifar10,
    ),
    "omniglot": NamedSet(
        242, 3388, 1452, 28, 1, "MIT", ("Omniglot/omniglot_background_small.npz",), _load_omniglot
    ),
    "tiny_imagenet32": NamedSet(
        180,
        90000,
        9000,
        32,
        3,
        _IMAGENET_TERMS,
        (_TINY_IMAGENET,),
        _load_npz(_TINY_IMAGENET, "tiny_imagenet32"),
    ),
    "imagenette64": NamedSet(
        10, 600, 300, 64, 3, _IMAGENET_TERMS, (_IMAGENETTE,), _load_npz(_IMAGENETTE, "imagenette64")
    ),
}


def data_root(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of data sets: the argument, else FEWGEN_DATA_DIR, else the user's cache."""
    if data_dir is not None:
        return Path(data_dir).expanduser()
    if os.environ.get(DATA_DIR_VARIABLE):
        return Path(os.environ[DATA_DIR_VARIABLE]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fewgen" / "data"


def _offers() -> dict[str, EntryPoint]:
    return plugins.find(GROUP, _NAMED)


def _named(name: str) -> NamedSet:
    """Return a data set by name, importing the package that offers it if it is not ours."""
    if name in _NAMED:
        return _NAMED[name]
    found = plugins.load(_offers()[name])
    if not isinstance(found, NamedSet):
        raise ConfigError(f'{_offers()[name].value} is no NamedSet, so "{name}" is no data set.')
    return found


def datasets(data_dir: str | os.PathLike[str] | None = None) -> list[DatasetInfo]:
    """Return the data sets that have a name, and whether each is there.

    One of another package that cannot be loaded is left out, with a warning.
    """
    root = data_root(data_dir)
    infos = []
    origins = {name: plugins.package(point) for name, point in _offers().items()}
    for name in (*_NAMED, *origins):
        try:
            named = _named(name)
        except ConfigError as error:
            warnings.warn(str(error), stacklevel=2)
            continue
        places = [root / place for place in named.places]
        found = next((place for place in places if place.is_file() or _has_files(name, place)), None)
        bundled = f"bundled with {origins.get(name, 'scikit-learn')}"
        where = bundled if not places else str(found or places[0])
        infos.append(
            DatasetInfo(
                name,
                named.classes,
                named.n_train,
                named.n_test,
                named.size,
                named.channels,
                where,
                named.licence,
                not places or found is not None,
                name in downloads.REMOTE,
                origins.get(name, ""),
            )
        )
    return infos


def is_named(source: Any) -> bool:
    """Tell whether `load_images` would take a source for the name of a data set."""
    return isinstance(source, str) and (_plain(source) in _NAMED or _plain(source) in _offers())


def _plain(source: str) -> str:
    return source.strip().lower().replace("-", "_")


def _has_files(name: str, place: Path) -> bool:
    if name == "cifar10":
        return all(cifar_binary.find_cifar(place, split) for split in SPLITS)
    return place.is_dir() and (name not in _NAMED or all(idx.find_idx(place, split) for split in SPLITS))


def in_form(images: ImageSet, form: Form) -> ImageSet:
    """Return a set with its images in another form; the set itself if they have it."""
    pixels = form.of(images.images)
    if pixels is images.images:
        return images
    return dataclasses.replace(images, images=pixels, origins=_converted(images, pixels))


def _converted(images: ImageSet, pixels: torch.Tensor) -> tuple[Origin, ...] | None:
    """Return the origins of images that are in another form now."""
    if images.origins is None or pixels.shape[1] == images.channels:
        return images.origins
    return tuple(dataclasses.replace(origin, converted=True) for origin in images.origins)


def _load_named(
    name: str, split: str, size: int | None, data_dir: str | os.PathLike[str] | None, fetch: bool
) -> ImageSet:
    root, named = data_root(data_dir), _named(name)
    images = named.load(root, split, size)
    if images is None and fetch:
        downloads.download(name, root)
        images = named.load(root, split, size)
    if images is not None:
        return images
    for place in named.places:
        _refuse_parts(root / place, split)
    looked = " or ".join(f'"{root / place}"' for place in named.places)
    how = (
        "fetch it with --download (download=True)"
        if name in downloads.REMOTE
        else "it has no download, so put the file there by hand"
    )
    raise DataError(
        f'The data set "{name}" is not there: looked for {looked}. Set the environment variable '
        f"{DATA_DIR_VARIABLE} to the folder that holds the data sets, or {how}."
    )


def _spread(images: ImageSet, value_range: ValueRange | None) -> ImageSet:
    """Return a set with its values spread over a range, or noted if they use little of theirs."""
    pixels = in_range(images.images.numpy(), value_range, f'the images of "{images.name}"')
    return images if value_range is None else dataclasses.replace(images, images=torch.from_numpy(pixels))


def _load_path(path: Path, split: str, value_range: ValueRange | None) -> ImageSet | None:
    """Load a path whose form is known by its content; None for a folder of classes."""
    if path.is_file():
        if path.suffix.lower() != ".npz":
            kind = kind_of(path) or "is neither an .npz file nor a folder with one subfolder per class"
            raise DataError(f'"{path}" {kind}.')
        return npz.load_npz(path, split, value_range=value_range)
    pair = idx.find_idx(path, split)
    if pair:
        return _spread(idx.load_idx(*pair, name=f"{path.resolve().name} ({split})"), value_range)
    if cifar_binary.find_cifar(path, split):
        return _spread(cifar_binary.load_cifar_binary(path, split), value_range)
    _refuse_parts(path, split)
    return None


def _refuse_parts(folder: Path, split: str) -> None:
    """Name the files that a folder of idx files or CIFAR-10 batches lacks, if it is one.

    Raises:
        DataError: it holds some of the files of such a data set, and not those of the split.
    """
    for kind, of_split in (("idx", idx.FILES), ("CIFAR-10", cifar_binary.FILES)):
        there = {n for names in of_split.values() for n in names if idx.plain_or_zipped(folder, n)}
        missing = [f'"{name}"' for name in of_split[split] if name not in there]
        if there and missing:
            raise DataError(
                f'The folder "{folder}" holds {kind} files, but the {split} part lacks {", ".join(missing)}. '
                "Copy or download what is missing into it."
            )


@dataclass(frozen=True)
class Reading:
    """How images are read from a source.

    Attributes:
        split: "train" or "test", the part of the data set.
        size: side of the square images in pixels; None keeps the size.
        channels: 1 for grey, 3 for colour, None to keep.
        fit: how other shapes become square: "crop", "pad" or "stretch".
        background: transparent images: "error", or put on "white" or "black".
        convert: whether 16-bit and CMYK images may be converted.
        data_dir: folder of the named data sets; None reads FEWGEN_DATA_DIR.
        download: whether a missing data set may be fetched.
        value_range: the values that become black and white, two numbers; `load_images` says more.
    """

    split: str = "train"
    size: int | None = None
    channels: int | None = None
    fit: str = "crop"
    background: str = "error"
    convert: bool = False
    data_dir: str | os.PathLike[str] | None = None
    download: bool = False
    value_range: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.value_range, list):  # hashable, since images are kept by their reading
            object.__setattr__(self, "value_range", tuple(self.value_range))

    def form(self) -> Form:
        """Return what the images are made into.

        Raises:
            ConfigError: if a value has no meaning.
        """
        value_range: Any = self.value_range  # checked there
        return Form(self.size, self.channels, self.fit, self.background, self.convert, value_range)

    def load(
        self,
        source: str | os.PathLike[str],
        min_classes: int = 1,
        asked: Shots | None = None,
        otherwise: str = "",
    ) -> ImageSet:
        """Return the images of a source; `load_images` says which there are and what may be wrong.

        Args:
            source: as for `load_images`.
            min_classes: as for `load_images`.
            asked: the images that each class must have; too few are among the problems of a folder. Of other
                sources only their draw tells.
            otherwise: what else can be done about too few classes, after "or".
        """
        if self.split not in SPLITS:
            hint = suggest(self.split, SPLITS)
            raise ConfigError(f'Unknown split "{self.split}".{hint} Choose "train" or "test".')
        form = self.form()
        if isinstance(source, str) and is_named(source):
            found = _load_named(_plain(source), self.split, self.size, self.data_dir, self.download)
            images = _spread(found, form.value_range)
        else:
            path = Path(source).expanduser()
            if not path.exists():
                names = [*_NAMED, *_offers()]
                raise DataError(
                    f'"{source}" is neither a data set nor a file or folder.{suggest(str(source), names)} '
                    f"Data sets: {', '.join(names)}."
                )
            loaded = _load_path(path, self.split, form.value_range)
            if loaded is None:
                return load_folder(
                    path,
                    form,
                    split=self.split,
                    min_classes=min_classes,
                    asked=asked,
                    otherwise=otherwise,
                )
            images = loaded
        if problem := images.too_few_classes(min_classes, otherwise):
            raise DataError(f'"{source}": {problem}.')
        if images.origins is None:
            array = Origin("array", *images.size, converted=form.value_range is not None)
            images = dataclasses.replace(images, origins=(array,) * len(images))
        return in_form(images, form)


@renamed(alpha="background")
@own_surroundings()
def load_images(
    source: str | os.PathLike[str],
    *,
    split: str = "train",
    size: int | None = None,
    channels: int | None = None,
    fit: str = "crop",
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    background: str = "error",
    convert: bool = False,
    min_classes: int = 1,
    value_range: Sequence[float] | None = None,
) -> ImageSet:
    """Load labelled images from a named data set, a folder or a file.

    Args:
        source: "digits", "mnist", "fashion_mnist", "cifar10", "omniglot", "tiny_imagenet32",
            "imagenette64"; or a folder with one subfolder per class, idx files or CIFAR-10 batches; or an
            `.npz` file. A name wins over a folder of the same name; write "./mnist" for the folder.
        split: "train" or "test". "digits": the last fifth of each class; "omniglot": drawers 15 to 20;
            "tiny_imagenet32" and "imagenette64": validation images; a folder: its subfolder `test` or `val`.
        size: side of square images in pixels; None keeps the size ("digits": 28), which must then be the
            same for all.
        channels: 1 for grey, 3 for colour, None to keep.
        fit: how other shapes become square: "crop", "pad" or "stretch"; always antialiased.
        data_dir: folder of the named data sets; None reads FEWGEN_DATA_DIR.
        download: whether a missing data set may be fetched from its official address.
        background: transparent images of a folder: "error", or put on "white" or "black".
        convert: whether 16-bit and CMYK images of a folder may be converted.
        min_classes: fewer classes with images are an error; training needs 2.
        value_range: the values that become black and white, such as (0, 4095) or (0, 1), the same for the
            whole set, so that the order of brightness between images is kept; values outside are cut, with
            a warning. With it, 16-bit and float images and arrays of any number type are read. If left out,
            arrays must be uint8, and a set whose values use less than a quarter of their type is not
            changed in silence: 8-bit ones stay as they are, with a warning; 16-bit ones are an error.

    Returns:
        The images in the order of the source.

    Raises:
        DataError: if the source is missing or not usable; all problems of a folder at once.
        ConfigError: if an argument has no meaning.

    >>> load_images("digits")
    ImageSet(digits (train): 1442 grey images of 28x28, 10 classes)
    """
    reading = Reading(split, size, channels, fit, background, convert, data_dir, download, value_range)
    return reading.load(source, min_classes)


def save_images(images: ImageSet, path: str | os.PathLike[str], seeds: torch.Tensor | None = None) -> Path:
    """Write an image set as one `.npz`, or as a folder with one subfolder per class.

    Args:
        images: what to write.
        path: a name that ends in `.npz`, or a new or empty folder.
        seeds: int64, (N,), the seed behind each image; kept in the `.npz`, or in the file names.

    Returns:
        The path.

    Raises:
        OutputError: if something is there already, or the place cannot be written.
    """
    target = Path(path)
    if seeds is not None and len(seeds) != len(images):
        raise DataError(f"{len(images)} images but {len(seeds)} seeds.")
    if target.suffix.lower() == ".npz":
        prepare_output_file(target)
        npz.save_npz(target, images.images, images.labels, images.class_names, seeds, images.captions)
        return target
    if target.suffix:
        raise OutputError(f'"{target}" must end in .npz, or be a folder name without an ending.')
    return save_folder(target, images.images, images.labels, images.class_names, seeds)
