"""Image encoders by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fewgen.data.imageset import ImageSet
from fewgen.encoders.base import FeatureExtractor
from fewgen.encoders.classifier import ClassifierFeatures, ClassifierSettings
from fewgen.encoders.pixels import PixelFeatures
from fewgen.errors import ConfigError, suggest

EXTRACTORS = ("classifier", "pixels", "dino", "clip", "inception")
"""Names that `make_extractor` knows; the last three are followed by `:` and a path."""


def make_extractor(
    name: str,
    train: ImageSet,
    test: ImageSet | None = None,
    *,
    settings: ClassifierSettings | None = None,
    cache_dir: str | Path | None = None,
    use_cache: bool = True,
    progress: Callable[[int, int, float], None] | None = None,
) -> FeatureExtractor:
    """Return an extractor by name.

    Args:
        name: "classifier" (trained on `train`, cached), "pixels", "dino:PATH" or "clip:PATH" (a local folder
            or a hub name), or "inception:WEIGHTS" with, if wished, "#sha256=DIGEST" at its end.
        train: labelled images at hand.
        test: other images of the same classes, on which the classifier is measured.
        settings: of the classifier; None for `ClassifierSettings.for_images`.
        cache_dir: of the classifier; None for `FEWGEN_CACHE_DIR`, or else ~/.cache/fewgen.
        use_cache: False trains the classifier anew and writes nothing.
        progress: of the classifier's training.

    Raises:
        ConfigError: an unknown name, a path that is missing, or one that the name does not take.
        CheckpointError: weights that cannot be read or are of another kind.
        MissingDependencyError: "dino" or "clip" without transformers.
    """
    kind, colon, path = name.partition(":")
    if kind not in EXTRACTORS:
        raise ConfigError(f'There are no features "{kind}".{suggest(kind, EXTRACTORS)} Choose {_FORMS}.')
    if kind in ("classifier", "pixels"):
        if colon:
            raise ConfigError(f'The features "{kind}" take no path, but got "{name}". Choose {_FORMS}.')
        if kind == "pixels":
            return PixelFeatures(train.channels, *train.size)
        return ClassifierFeatures.of(
            train, test, settings, cache_dir=cache_dir, use_cache=use_cache, progress=progress
        )
    path, _, sha256 = path.partition("#sha256=")
    if not path:
        raise ConfigError(f'The features "{kind}" need a path. Choose {_FORMS}.')
    if kind == "inception":
        from fewgen.encoders.inception import InceptionFeatures

        return InceptionFeatures(path, sha256=sha256 or None)
    if sha256:
        raise ConfigError(f'A checksum goes with "inception" only, but the features are "{kind}".')
    from fewgen.encoders.image_transformer import TransformerFeatures

    return TransformerFeatures("dino" if kind == "dino" else "clip", path)


_FORMS = "classifier, pixels, dino:PATH, clip:PATH or inception:WEIGHTS[#sha256=DIGEST]"
