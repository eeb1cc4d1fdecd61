"""Encoders by name: of images, of texts, and of both in one space; also those of other packages.

A name may be followed by a colon and an option: `dino:FOLDER`, `lite0:160`.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen import plugins
from fewgen.errors import ConfigError, TextError, suggest
from fewgen.files import file_sha256

if TYPE_CHECKING:
    import torch

    from fewgen.data.imageset import ImageSet
    from fewgen.encoders.base import FrozenEncoder, ImageEncoder, JointEncoder, TextEncoder
    from fewgen.encoders.classifier import ClassifierSettings

GROUP = "fewgen.encoders"


@dataclass(frozen=True)
class AtHand:
    """What an encoder may be made of beside its option; each takes what it needs.

    Attributes:
        train: labelled images.
        test: other images of the same classes.
        vocabulary: class names.
        settings: of the small classifier; None: fit for the images.
        cache_dir: for what can be made again; None for `FEWGEN_CACHE_DIR`, or else ~/.cache/fewgen.
        use_cache: False reads and writes nothing there.
        progress: of a training: steps so far, steps, loss.
        steps: of training the small joint encoder.
        seed: of that training.
        device: where a joint encoder computes.
    """

    train: ImageSet | None = None
    test: ImageSet | None = None
    vocabulary: tuple[str, ...] = ()
    settings: ClassifierSettings | None = None
    cache_dir: str | Path | None = None
    use_cache: bool = True
    progress: Callable[[int, int, float], None] | None = None
    steps: int = 300
    seed: int = 0
    device: torch.device | str = "cpu"

    @property
    def images(self) -> ImageSet:
        """The labelled images.

        Raises:
            ConfigError: there are none.
        """
        if self.train is None:
            raise ConfigError("This encoder is made for labelled images, and none are given.")
        return self.train


@dataclass(frozen=True)
class NamedEncoder:
    """An encoder that has a name; packages offer theirs as entry points of `GROUP`.

    Attributes:
        about: what it is, in a few words.
        image: (option, what is at hand) -> image encoder; None: it reads no images on their own.
        text: the same for texts.
        joint: the same for both in one space.
        option: what may follow the colon, in brackets if it may be left out; "": nothing.
        sha256: option -> digest of the weights, which are looked for and not read; None: there are no weights
            but those that are trained on the images at hand.
        maps: the image encoder shows its maps at strides 4, 8, 16 and 32 (`maps`, of images in [-1, 1]), and
            its option is the side of the images.
    """

    about: str
    image: Callable[[str, AtHand], ImageEncoder] | None = None
    text: Callable[[str, AtHand], TextEncoder] | None = None
    joint: Callable[[str, AtHand], JointEncoder] | None = None
    option: str = ""
    sha256: Callable[[str], str] | None = None
    maps: bool = False

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of "image", "text" and "joint", what it is."""
        return tuple(kind for kind in _KINDS if getattr(self, kind) is not None)

    @property
    def needs_option(self) -> bool:
        """Whether the name alone is not enough."""
        return bool(self.option) and not self.option.startswith("[")

    def form(self, name: str) -> str:
        """Return how it is written."""
        option = self.option
        return f"{name}[:{option[1:]}" if option[:1] == "[" else f"{name}:{option}" if option else name


@dataclass(frozen=True)
class _Kind:
    """The words of messages."""

    none: str
    the: str
    takes: str
    needs: str


_KINDS = {
    "image": _Kind("There are no features", "The features", "take", "need"),
    "text": _Kind("There is no text encoder", "The text encoder", "takes", "needs"),
    "joint": _Kind("There is no joint encoder", "The joint encoder", "takes", "needs"),
}


# ------------------------------------------------------------------------------------------ fewgen's own


def _classifier(option: str, at_hand: AtHand) -> ImageEncoder:
    from fewgen.encoders.classifier import ClassifierFeatures

    return ClassifierFeatures.of(
        at_hand.images,
        at_hand.test,
        at_hand.settings,
        cache_dir=at_hand.cache_dir,
        use_cache=at_hand.use_cache,
        progress=at_hand.progress,
    )


def _pixels(option: str, at_hand: AtHand) -> ImageEncoder:
    from fewgen.encoders.pixels import PixelFeatures

    return PixelFeatures(at_hand.images.channels, *at_hand.images.size)


def _kept(encoder: FrozenEncoder, at_hand: AtHand) -> ImageEncoder:
    from fewgen.encoders.classifier import cache_folder

    encoder.folder = cache_folder(at_hand.cache_dir) / "features" if at_hand.use_cache else None
    return encoder


def _lite(name: str) -> NamedEncoder:
    def make(option: str, at_hand: AtHand) -> ImageEncoder:
        from fewgen.encoders.efficientnet import SIDE, EfficientNetFeatures

        if option and not option.isdecimal():
            raise ConfigError(
                f'The features "{name}" take a number of pixels, such as {name}:{SIDE}, not "{option}".'
            )
        return _kept(EfficientNetFeatures(name, int(option or SIDE)), at_hand)

    def sha256(option: str) -> str:
        from fewgen.encoders.efficientnet import checked_weights

        return checked_weights(name)[1]

    return NamedEncoder(
        f"EfficientNet-{name.title()} of ImageNet", make, option="[PIXELS]", sha256=sha256, maps=True
    )


def _transformer(kind: str) -> Callable[[str, AtHand], ImageEncoder]:
    def make(option: str, at_hand: AtHand) -> ImageEncoder:
        from fewgen.encoders.image_transformer import TransformerFeatures

        return _kept(TransformerFeatures("dino" if kind == "dino" else "clip", option), at_hand)

    return make


def _folder_sha256(kind: str) -> Callable[[str], str]:
    def sha256(option: str) -> str:
        from fewgen.encoders.image_transformer import weights_of

        files = weights_of(kind, option)
        return hashlib.sha256("".join(file_sha256(file) for file in files).encode()).hexdigest()

    return sha256


def _inception(option: str, at_hand: AtHand) -> ImageEncoder:
    from fewgen.encoders.inception import LAYERS, InceptionFeatures

    path, _, sha256 = option.partition("#sha256=")
    file, _, layer = path.rpartition(":")
    file, layer = (file, layer) if layer in map(str, LAYERS) and file else (path, "")
    return _kept(InceptionFeatures(file, sha256=sha256 or None, layer=int(layer or LAYERS[-1])), at_hand)


def _inception_sha256(option: str) -> str:
    path = option.partition("#sha256=")[0]
    return file_sha256(path if Path(path).is_file() else path.rpartition(":")[0])


def _glove(option: str, at_hand: AtHand) -> TextEncoder:
    from fewgen.encoders.glove import GloveEncoder

    return GloveEncoder(option or None)


def _glove_sha256(option: str) -> str:
    from fewgen.encoders.glove import glove_files

    return file_sha256(glove_files(option or None)[0])


def _minilm(option: str, at_hand: AtHand) -> TextEncoder:
    from fewgen.encoders.text_transformer import MiniLMEncoder

    return MiniLMEncoder(option or None)


def _minilm_sha256(option: str) -> str:
    from fewgen.encoders.text_transformer import MINILM_SHA256, check_digest, minilm_folder

    check_digest(minilm_folder(option or None) / "model.safetensors", MINILM_SHA256)
    return MINILM_SHA256


def _clip_text(option: str, at_hand: AtHand) -> TextEncoder:
    from fewgen.encoders.text_transformer import CLIPTextEncoder

    return CLIPTextEncoder(option)


def _onehot(option: str, at_hand: AtHand) -> TextEncoder:
    from fewgen.encoders.onehot import OneHotEncoder

    return OneHotEncoder(at_hand.vocabulary)


def _small(option: str, at_hand: AtHand) -> JointEncoder:
    from fewgen.encoders.joint import SmallJointEncoder

    return SmallJointEncoder.fit(at_hand.images, at_hand.steps, at_hand.seed, at_hand.device)


def _clip_joint(option: str, at_hand: AtHand) -> JointEncoder:
    from fewgen.encoders.joint import ClipJointEncoder

    return ClipJointEncoder(option, at_hand.device)


def _lite_joint(option: str, at_hand: AtHand) -> JointEncoder:
    from fewgen.encoders.classifier import cache_folder
    from fewgen.encoders.joint_lite import LiteJointEncoder

    return LiteJointEncoder(cache_folder(at_hand.cache_dir) / "features" if at_hand.use_cache else None)


def _lite_joint_sha256(option: str) -> str:
    parts = ENCODERS["lite2"], ENCODERS["minilm"]
    return hashlib.sha256("".join(part.sha256("") for part in parts if part.sha256).encode()).hexdigest()


ENCODERS: dict[str, NamedEncoder] = {
    "classifier": NamedEncoder("a small network trained on the images at hand", _classifier),
    "pixels": NamedEncoder("the pixels themselves", _pixels),
    "lite0": _lite("lite0"),
    "lite1": _lite("lite1"),
    "lite2": _lite("lite2"),
    "dino": NamedEncoder(
        "DINO or DINOv2", _transformer("dino"), option="FOLDER", sha256=_folder_sha256("dino")
    ),
    "clip": NamedEncoder(
        "CLIP", _transformer("clip"), _clip_text, _clip_joint, "FOLDER", _folder_sha256("clip")
    ),
    "inception": NamedEncoder(
        "Inception-V3",
        _inception,
        option="FILE[:64|192|768|2048][#sha256=DIGEST]",
        sha256=_inception_sha256,
    ),
    "glove": NamedEncoder("GloVe word vectors", text=_glove, option="[FILE]", sha256=_glove_sha256),
    "minilm": NamedEncoder(
        "sentence vectors of all-MiniLM-L6-v2", text=_minilm, option="[FOLDER]", sha256=_minilm_sha256
    ),
    "onehot": NamedEncoder("class names without meaning", text=_onehot),
    "lite": NamedEncoder(
        "images by EfficientNet-Lite2 and words by MiniLM", joint=_lite_joint, sha256=_lite_joint_sha256
    ),
    "small": NamedEncoder("two small networks trained on the captions at hand", joint=_small),
}

ENCODER_NAMES = tuple(name for name, entry in ENCODERS.items() if entry.text is not None)
"""Text encoders of fewgen."""


# ----------------------------------------------------------------------------------------------- by name


def encoders() -> dict[str, NamedEncoder]:
    """Return all encoders by name; one of a package that cannot be loaded is left out, with a warning."""
    found = dict(ENCODERS)
    for name in _offers():
        try:
            found[name] = _named(name)
        except ConfigError as error:
            warnings.warn(str(error), stacklevel=2)
    return found


def origin(name: str) -> str:
    """Return the package that offers an encoder, with its version; "" for fewgen's own."""
    point = _offers().get(name)
    return plugins.package(point) if point else ""


def _offers() -> dict[str, Any]:
    return plugins.find(GROUP, ENCODERS)


def _named(name: str) -> NamedEncoder:
    if name in ENCODERS:
        return ENCODERS[name]
    point = _offers()[name]
    found = plugins.load(point)
    if not isinstance(found, NamedEncoder):
        raise ConfigError(f'{point.value} is no NamedEncoder, so "{name}" is no encoder.')
    return found


def names_encoder(kind: str, spec: str) -> bool:
    """Return whether the name before the colon is an encoder of a kind: "image", "text" or "joint"."""
    entry = encoders().get(spec.partition(":")[0])
    return entry is not None and kind in entry.kinds


def find_encoder(kind: str, spec: str) -> tuple[NamedEncoder, str]:
    """Return what a name stands for, and its option; nothing is built.

    Args:
        kind: "image", "text" or "joint".
        spec: the name, with its option after a colon.

    Raises:
        ConfigError: there is no such encoder of that kind, or its option is missing or one too many.
        TextError: the same of the option of a text encoder.
    """
    words = _KINDS[kind]
    name, colon, option = spec.partition(":")
    named = _named(name) if name in ENCODERS or name in _offers() else None
    if named is None or kind not in named.kinds:
        known = {known: entry.form(known) for known, entry in encoders().items() if kind in entry.kinds}
        raise ConfigError(f'{words.none} "{name}".{suggest(name, known)} Choose {_listed(known.values())}.')
    error = TextError if kind == "text" else ConfigError
    form = named.form(name)
    if colon and not named.option:
        raise error(f'{words.the} "{name}" {words.takes} no path, but got "{spec}". Write {form}.')
    if "#sha256=" in option and "#sha256=" not in named.option:
        raise error(f'A checksum goes with "inception" only, but got "{spec}". Write {form}.')
    if named.needs_option and not option.partition("#sha256=")[0]:
        raise error(f'{words.the} "{name}" {words.needs} a path: {form}.')
    return named, option


def short_name(spec: str) -> str:
    """Return the name of an encoder without a path.

    >>> short_name("lite2:160"), short_name("clip:models/clip")
    ('lite2:160', 'clip')
    """
    kind, colon, option = spec.partition(":")
    return spec if colon and option.isdecimal() else kind


def _listed(forms: Iterable[str]) -> str:
    *first, last = forms
    return f"{', '.join(first)} or {last}" if first else last


def encoder_record(kind: str, spec: str) -> dict[str, str]:
    """Return the name of an encoder, and the digest of its weights if it has any that are read from files.

    Raises:
        FewgenError: there is no such encoder, or its weights are not there.
    """
    named, option = find_encoder(kind, spec)
    return {"name": spec} | ({} if named.sha256 is None else {"sha256": named.sha256(option)})


def make_image_encoder(
    name: str, train: ImageSet | None = None, test: ImageSet | None = None, **others: Any
) -> ImageEncoder:
    """Return an image encoder by name.

    Args:
        name: "classifier" (trained on `train`, cached), "pixels", "lite0", "lite1" or "lite2" (":160" behind
            it: at so many pixels), "dino:FOLDER" or "clip:FOLDER" (also a hub name), or "inception:FILE"
            with, if wished, a layer such as ":64" and "#sha256=DIGEST" at its end.
        train: labelled images at hand.
        test: other images of the same classes, on which the classifier is measured.
        **others: further fields of `AtHand`.

    Raises:
        ConfigError: an unknown name, a path that is missing, or one that the name does not take.
        CheckpointError: weights that cannot be read or are of another kind.
        MissingDependencyError: a package is not installed; the message says how to get it.
    """
    named, option = find_encoder("image", name)
    assert named.image is not None
    return named.image(option, AtHand(train, test, **others))


def make_text_encoder(
    name: str, path: str | Path | None = None, vocabulary: Iterable[str] | None = None
) -> TextEncoder:
    """Return a text encoder by name.

    Args:
        name: "glove", "minilm", "clip" or "onehot"; "clip:FOLDER" is "clip" with its path.
        path: the GloVe file, or the folder or hub name of a model; None: what is at hand (see the classes).
        vocabulary: the class names; only onehot uses them.

    Raises:
        ConfigError: for an unknown name.
        TextError: if files are missing or damaged.
        MissingDependencyError: if the extra `text` is needed.

    >>> make_text_encoder("onehot", vocabulary=["cat", "dog"]).encode(["dog"])
    tensor([[0., 1.]])
    """
    named, option = find_encoder("text", name if path is None else f"{name}:{path}")
    assert named.text is not None
    return named.text(option, AtHand(vocabulary=tuple(vocabulary or ())))


def make_joint_encoder(
    spec: str,
    train: ImageSet | None = None,
    steps: int = 300,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> JointEncoder:
    """Return encoders of images and texts in one space: "lite", "clip:FOLDER" or "small" (of `train`).

    Raises:
        ConfigError: an unknown name.
    """
    named, option = find_encoder("joint", spec)
    assert named.joint is not None
    return named.joint(option, AtHand(train, steps=steps, seed=seed, device=device))
