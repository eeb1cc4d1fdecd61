"""What a trained run is for: generate, interpolate, reconstruct, retrieve."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fewgen.config.call import accepts_config
from fewgen.config.keywords import checked_temperature, tidy_out, whole
from fewgen.data.one_image import is_image_file, single_image
from fewgen.data.split import class_list
from fewgen.errors import ConfigError, DataError, OutputError, TextError, suggest
from fewgen.runs.run import Run, load_run

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from fewgen.data import ImageSet
    from fewgen.generation import GeneratedImages

T = TypeVar("T")


MAX_SEED = 2**63 - 1
"""Of one image: seeds are stored in 64 bits with a sign."""


@accepts_config
@tidy_out
def generate(
    run: str | Path | Run,
    *,
    class_names: Sequence[str] | str | None = None,
    texts: Sequence[str] | str | None = None,
    n: int | None = None,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    temperature: float = 1.0,
    alpha: float | str | None = None,
    alphas: Sequence[float] | None = None,
    sharpen: float = 0.0,
    options: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    config: str | Path | Mapping[str, Any] | None = None,
) -> GeneratedImages:
    """Make new images of classes or of free texts; image i depends on its own seed alone.

    Args:
        run: a run folder, or a model file.
        class_names: classes to draw; every class if neither classes nor texts are given.
        texts: free texts to draw, for a model with word vectors that carry meaning.
        n: images per class and text; 16 if left out, and 3 with alphas.
        seed: start of the image seeds; another seed gives other images.
        seeds: the image seeds themselves, for example to get one image again: these images are made of
            each class and text, and n and seed do not count.
        temperature: scale of the noise; 0 gives the central image of a class, 1 the learned spread.
        alpha: for a method that starts from real images (tint): 0 gives them back, 1 only shares their class,
            uniform draws a number for each image.
        alphas: each image at each of these, side by side; in a picture after the real image that it starts
            from.
        sharpen: strength of a sharpening filter for the eye, such as 0.25; 0 is off. Marked in the file;
            do not measure sharpened images.
        options: further settings of the method, such as --options.top_p 0.95.
        out: an .npz (with labels and seeds), a .png (one picture), or a folder (a subfolder per class).
        overwrite: replace an existing output.
        device: auto (CUDA where there is one), cpu or cuda.
        config: YAML file (or dictionary) with any of these keywords; what is given directly wins.

    Returns:
        Images, labels, seeds and their provenance.
    """
    import torch

    from fewgen.generation import GenerationRequest, check_output, image_seeds, sharpened
    from fewgen.generation.sharpen import check_strength

    check_strength(sharpen)
    n = whole("n", (16 if alphas is None else 3) if n is None else n, 1)
    temperature = checked_temperature(temperature)
    options = dict(options or {})
    columns = _alphas(alpha, alphas, options)
    if class_names is not None and not class_names:
        raise ConfigError(
            "class_names is empty: name at least one class, or leave it out to draw every class."
        )
    loaded = load_run(run, device)
    chosen = class_list(class_names, loaded.class_names) if class_names else []
    free = [texts] if isinstance(texts, str) else list(texts or [])
    if chosen or free:
        _check_classes(loaded, [*chosen, *free][0])
    if not chosen and not free:
        chosen = list(loaded.class_names)
    if columns or "alpha" in options:
        _check_blends(loaded, free)
    if free:
        _check_meaning(loaded, free)
    if out is not None:
        check_output(out, overwrite)
    if seeds is not None:
        own = torch.tensor([whole("seeds", s, 0, MAX_SEED) for s in seeds], dtype=torch.int64)
        if len(own) == 0:
            raise ConfigError("seeds is empty: give at least one, or leave it out.")
        n = len(own)
        every = own.repeat(len(chosen) + len(free))
    else:
        every = image_seeds(whole("seed", seed), n * (len(chosen) + len(free)))
    common: dict[str, Any] = {"temperature": float(temperature), "options": options}
    if columns:
        labels = torch.tensor([loaded.class_names.index(name) for name in chosen]).repeat_interleave(n)
        return _strips(loaded, labels, every, columns, common, sharpen, out, overwrite)
    parts = []
    if chosen:
        labels = torch.tensor([loaded.class_names.index(name) for name in chosen]).repeat_interleave(n)
        parts.append(
            loaded.method.generate(GenerationRequest(labels=labels, seeds=every[: len(labels)], **common))
        )
    if free:
        request = GenerationRequest(
            texts=[t for t in free for _ in range(n)], seeds=every[n * len(chosen) :], **common
        )
        parts.append(loaded.method.generate(request))
    generated = _joined(parts)
    generated.provenance["run"] = loaded.path.name
    if sharpen:
        generated = sharpened(generated, sharpen)
    if out is not None:
        generated.save(out, overwrite=overwrite)
    return generated


def _check_classes(run: Run, asked: str) -> None:
    """Refuse a class or text where images do not depend on it."""
    if not run.method.knows_classes and len(run.class_names) > 1:
        raise ConfigError(
            f'"{run.path}" learned all its classes as one, so it cannot draw "{asked}". Leave the class or '
            "text out, or train without --model.network.condition none."
        )


def _alphas(
    alpha: float | str | None, alphas: Sequence[float] | None, options: dict[str, Any]
) -> list[float]:
    """Return the columns that `alphas` asks for, and put `alpha` among the options."""
    if alpha is not None and (alphas is not None or "alpha" in options):
        raise ConfigError(f"alpha is given twice; choose one of alpha, {'alphas' if alphas else 'options'}.")
    if alpha is not None:
        options["alpha"] = alpha
    if alphas is None:
        return []
    columns = list(alphas)
    wrong = [a for a in columns if isinstance(a, (bool, str)) or not 0 <= a <= 1]
    if wrong or not columns:
        raise ConfigError(f"alphas must be numbers in [0, 1], got {wrong[0] if wrong else 'none'}.")
    return [float(a) for a in columns]


def _check_blends(run: Run, texts: Sequence[str]) -> None:
    """Refuse alpha for a method that starts from noise alone."""
    if "blend" not in run.method.capabilities:
        raise ConfigError(
            f'alpha is for methods that start from real images, such as tint; "{run.path}" is a run of '
            f"{run.info.method}. Leave alpha out."
        )
    if texts:
        raise ConfigError("alpha is for classes, not for free texts.")


def _strips(
    run: Run,
    labels: Tensor,
    seeds: Tensor,
    alphas: list[float],
    common: dict[str, Any],
    sharpen: float,
    out: str | Path | None,
    overwrite: bool,
) -> GeneratedImages:
    """Return each image at each alpha, the alphas of an image one after the other."""
    import torch

    from fewgen.generation import GeneratedImages, GenerationRequest, grid, sharpened, write_picture
    from fewgen.generation.writers import output_kind

    method, options = run.method, common["options"]
    parts = [
        method.generate(
            GenerationRequest(labels=labels, seeds=seeds, **{**common, "options": {**options, "alpha": a}})
        )
        for a in alphas
    ]
    provenance = {**parts[0].provenance, "run": run.path.name, "alphas": alphas, "options": options}
    made = GeneratedImages(
        torch.stack([part.images for part in parts], 1).flatten(0, 1),
        labels.repeat_interleave(len(alphas)),
        run.class_names,
        seeds.repeat_interleave(len(alphas)),
        provenance,
    )
    if sharpen:
        made = sharpened(made, sharpen)
    if out is None:
        return made
    if output_kind(out) != "png":
        made.save(out, overwrite=overwrite)
        return made
    shown, names = [made.images.unflatten(0, (len(labels), -1))], [f"{a:g}" for a in alphas]
    from fewgen.methods.abilities import Blends, able

    blends = able(method, Blends)
    if blends.has_latents:
        shown.insert(0, blends.starts(labels, seeds)[:, None])
        names.insert(0, "real")
    cells = torch.cat(shown, 1)
    rows = [run.class_names[label] for label in labels.tolist()]
    rows = ["" if i and rows[i - 1] == name else name for i, name in enumerate(rows)]
    write_picture(out, grid(cells.flatten(0, 1), cells.shape[1], rows, heads=names), made.provenance)
    return made


def _joined(parts: list[GeneratedImages]) -> GeneratedImages:
    import torch

    from fewgen.generation import GeneratedImages

    if len(parts) == 1:
        return parts[0]
    texts: list[str] = []
    for part in parts:
        texts += part.texts or [""] * len(part)
    return GeneratedImages(
        torch.cat([part.images for part in parts]),
        torch.cat([part.labels for part in parts]),
        parts[0].class_names,
        torch.cat([part.seeds for part in parts]),
        parts[0].provenance,
        tuple(texts),
    )


@accepts_config
@tidy_out
def interpolate(
    run: str | Path | Run,
    a: str | Path,
    b: str | Path,
    *,
    steps: int = 8,
    seed: int = 0,
    temperature: float = 0.0,
    sharpen: float = 0.0,
    out: str | Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    config: str | Path | Mapping[str, Any] | None = None,
) -> GeneratedImages:
    """Walk through the latent space from one word or image to another.

    Args:
        run: a run folder, or a model file.
        a: where to start: a class, a free text, or an image file.
        b: where to end: a class, a free text, or an image file.
        steps: images, both ends included.
        seed: of the noise, which all images of the walk share.
        temperature: scale of the noise around the walk; 0 shows the walk itself.
        sharpen: strength of a sharpening filter for the eye; 0 is off.
        out: a .png (one strip), an .npz, or a folder.
        overwrite: replace an existing output.
        device: auto (CUDA where there is one), cpu or cuda.
        config: YAML file (or dictionary) with any of these keywords; what is given directly wins.

    Returns:
        One image per step; `provenance["positions"]` holds 0 to 1.
    """
    import torch

    from fewgen.generation import GeneratedImages, check_output, image_seeds, sharpened, strip, write_picture
    from fewgen.generation.sharpen import check_strength
    from fewgen.generation.writers import output_kind
    from fewgen.methods.abilities import walk

    check_strength(sharpen)
    if whole("steps", steps) < 2:
        raise ConfigError(f"steps must be 2 or more (both ends count), got {steps}.")
    temperature = checked_temperature(temperature)
    loaded = load_run(run, device)
    loaded.method.require("interpolate")
    _check_classes(loaded, str(a))
    if out is not None:
        check_output(out, overwrite)
    first, second = _latent(loaded, a), _latent(loaded, b)
    positions = torch.linspace(0, 1, steps)
    seeds = image_seeds(whole("seed", seed), 1).repeat(steps)
    ends = (_shown(a), _shown(b))
    walked = GeneratedImages(
        walk(loaded.method, first, second, seeds, temperature),
        torch.full((steps,), -1),
        loaded.class_names,
        seeds,
        {
            "method": loaded.info.method,
            "run": loaded.path.name,
            "from": ends[0],
            "to": ends[1],
            "positions": [round(float(t), 4) for t in positions],
            "temperature": float(temperature),
        },
        tuple(f"{ends[0]} to {ends[1]}" for _ in range(steps)),
    )
    if sharpen:
        walked = sharpened(walked, sharpen)
    if out is not None:
        if output_kind(out) == "png":
            write_picture(out, strip(walked.images, ends), walked.provenance)
        else:
            walked.save(out, overwrite=overwrite)
    return walked


@dataclasses.dataclass
class Reconstructions:
    """Images and how they come back from the model.

    Attributes:
        originals: as the model sees them (its size and channels).
        images: uint8 (N, C, H, W), in the same order.
    """

    originals: ImageSet
    images: Tensor

    def picture(self, columns: int = 10) -> Image:
        """Return originals with their reconstructions below."""
        from fewgen.generation import pairs

        return pairs(self.originals.images, self.images, columns)


@accepts_config
@tidy_out
def reconstruct(
    run: str | Path | Run,
    *,
    data: str | Path | ImageSet | None = None,
    split: str = "train",
    n: int | None = None,
    fit: str = "crop",
    out: str | Path | None = None,
    overwrite: bool = False,
    data_dir: str | Path | None = None,
    download: bool = False,
    device: str = "auto",
    config: str | Path | Mapping[str, Any] | None = None,
) -> Reconstructions:
    """Send images through the model and back: what it can show at all.

    Args:
        run: a run folder, or a model file.
        data: a data set, folder, .npz or single image file; the run's held-out images if left out.
        split: train or test, the part of a data set.
        n: only so many images, evenly over the classes; all if left out (40 in a picture).
        fit: how other shapes become square: crop, pad or stretch.
        out: a .png (originals above, reconstructions below), or an .npz (in the order of the data).
        overwrite: replace an existing output.
        data_dir: folder of the named data sets; the environment variable FEWGEN_DATA_DIR if left out.
        download: fetch a missing data set from its official address.
        device: auto (CUDA where there is one), cpu or cuda.
        config: YAML file (or dictionary) with any of these keywords; what is given directly wins.

    Returns:
        Originals and reconstructions.
    """
    from fewgen.data.imageset import evenly
    from fewgen.generation import check_output, write_npz, write_picture
    from fewgen.generation.writers import output_kind
    from fewgen.methods.abilities import reconstructed

    loaded = load_run(run, device)
    loaded.method.require("reconstruct")
    if out is not None:
        if output_kind(out) == "folder":
            raise OutputError(
                f'"{out}": reconstructions are written as .png (pairs to look at) or .npz (in order).'
            )
        check_output(out, overwrite)
    images = _images_for(loaded, data, split, fit, data_dir, download)
    unknown = [name for name in images.class_names if name not in loaded.class_names]
    if unknown and not is_image_file(data):
        warnings.warn(
            f'The data have classes that the model did not learn, such as "{unknown[0]}" ({len(unknown)} of '
            f"{images.n_classes}): their images come back as the model's own classes allow.",
            stacklevel=4,
        )
    if n is not None:
        images = images.subset(sorted(evenly(images.labels.tolist(), whole("n", n, 1))))
    elif out is not None and output_kind(out) == "png":
        images = images.subset(sorted(evenly(images.labels.tolist(), 40)))
    result = Reconstructions(images, reconstructed(loaded.method, images))
    if out is not None:
        provenance = {"method": loaded.info.method, "run": loaded.path.name, "reconstructed": images.name}
        if output_kind(out) == "png":
            write_picture(out, result.picture(), provenance)
        else:
            write_npz(out, result.images, images.labels, images.class_names, None, provenance)
    return result


@dataclasses.dataclass
class Retrieved:
    """The nearest words of images.

    Attributes:
        names: a name per image: its file, or its place in the data.
        words: for each image the nearest words with their scores (higher is nearer), best first.
        labels: the true class of each image, where the data have labels that the model knows.
        accuracy: share of images whose nearest word is their class; None without labels.
    """

    names: list[str]
    words: list[list[tuple[str, float]]]
    labels: list[str] | None = None
    accuracy: float | None = None


@accepts_config
def retrieve(
    run: str | Path | Run,
    images: str | Path | Sequence[str | Path] | ImageSet,
    *,
    top: int = 3,
    split: str = "train",
    fit: str = "crop",
    data_dir: str | Path | None = None,
    download: bool = False,
    device: str = "auto",
    config: str | Path | Mapping[str, Any] | None = None,
) -> Retrieved:
    """Find the nearest class names of images.

    Args:
        run: a run folder, or a model file.
        images: image files, or one data set, folder or .npz.
        top: words per image.
        split: train or test, the part of a data set.
        fit: how other shapes become square: crop, pad or stretch.
        data_dir: folder of the named data sets; the environment variable FEWGEN_DATA_DIR if left out.
        download: fetch a missing data set from its official address.
        device: auto (CUDA where there is one), cpu or cuda.
        config: YAML file (or dictionary) with any of these keywords; what is given directly wins.

    Returns:
        The words of each image, and how often the first one is right if the images have labels.
    """
    from fewgen.data import ImageSet
    from fewgen.methods.abilities import class_scores

    if top < 1:
        raise ConfigError(f"top must be 1 or more, got {top}.")
    loaded = load_run(run, device)
    loaded.method.require("retrieve")
    sources: list[Any] = [images] if isinstance(images, (str, Path, ImageSet)) else list(images)
    if not sources:
        raise ConfigError("No images are given.")
    sets = [_images_for(loaded, source, split, fit, data_dir, download) for source in sources]
    names: list[str] = []
    words: list[list[tuple[str, float]]] = []
    labels: list[str] = []
    for source, part in zip(sources, sets, strict=True):
        single = is_image_file(source)
        best = class_scores(loaded.method, part.images).topk(min(top, len(loaded.class_names)), dim=1)
        for i, (values, places) in enumerate(zip(best.values, best.indices, strict=True)):
            names.append(str(source) if single else f"{part.name or 'image'} {i}")
            words.append(
                [(loaded.class_names[int(p)], float(v)) for p, v in zip(places, values, strict=True)]
            )
            if not single:
                labels.append(part.class_names[int(part.labels[i])])
    known = len(labels) == len(words) and set(labels) <= set(loaded.class_names)
    accuracy = (
        sum(found[0][0] == label for found, label in zip(words, labels, strict=True)) / len(words)
        if known and words
        else None
    )
    return Retrieved(names, words, labels if known else None, accuracy)


def _shown(end: str | Path) -> str:
    return Path(end).name if is_image_file(end) else str(end)


def _images_for(
    run: Run,
    data: str | Path | ImageSet | None,
    split: str,
    fit: str,
    data_dir: str | Path | None,
    download: bool,
) -> ImageSet:
    """Return images as the run's model needs them."""
    from fewgen.data import ImageSet, load_images

    spec = run.method.spec
    if isinstance(data, ImageSet):
        if (data.channels, *data.size) != spec.shape:
            raise DataError(
                f"The images are {data.channels}x{data.size[0]}x{data.size[1]}, but the model needs "
                f"{spec.channels}x{spec.height}x{spec.width} (channels x height x width)."
            )
        return data
    if data is None:
        train, held_out = run.images(data_dir, download)
        return train if held_out is None else held_out
    if spec.height != spec.width:
        raise DataError("Images for a model of oblong images must be given as an ImageSet.")
    if is_image_file(data):
        return single_image(Path(data), spec.height, spec.channels, fit)
    return load_images(
        data,
        split=split,
        size=spec.height,
        channels=spec.channels,
        fit=fit,
        data_dir=data_dir,
        download=download,
    )


def _latent(run: Run, end: str | Path) -> Tensor:
    """Return the latent (1, L) of a class, a free text, or an image file."""
    import torch

    from fewgen.methods.abilities import Encodes, ReadsText, able, class_latents

    method = run.method
    with torch.no_grad():
        if is_image_file(end):
            encoder = able(method, Encodes)
            image = _images_for(run, end, "train", "crop", None, False)
            return encoder.encode(image.floats().to(method.device))
        reader = able(method, ReadsText)
        by_key = {name.casefold(): label for label, name in enumerate(run.class_names)}
        label = by_key.get(str(end).casefold())
        if label is not None:
            return class_latents(method, torch.tensor([label]))
        _check_meaning(run, [str(end)])
        return reader.encode_text(method.text_vectors([str(end)]))


def _check_meaning(run: Run, texts: Sequence[str]) -> None:
    """Refuse free texts where words carry no meaning, and say which words do work."""
    text = run.method.spec.text
    if text is not None and not text.has_meaning:
        shown = ", ".join(f'"{name}"' for name in run.class_names[:12])
        raise TextError(
            f'"{texts[0]}" is not a class of this model, and its words carry no meaning '
            f"({text.encoder_name}), so no other text can be drawn.{suggest(texts[0], run.class_names)} "
            f"Classes: {shown}."
        )
