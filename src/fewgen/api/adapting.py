"""`adapt`: teach a trained run new classes from a few images, in seconds, and keep the old ones.

The run that is adapted from is only read. Everything is made and measured in memory and then put in place as
one folder, so that a mistake or an interruption leaves nothing behind.
"""

from __future__ import annotations

import dataclasses
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.api.prepare import SPLIT_NAME, check_apart, check_phrases, check_run_dir, class_list
from fewgen.api.run import CONFIG_NAME, MODEL_NAME, Run, load_run
from fewgen.api.using import IMAGE_SUFFIXES, _tidy, _whole
from fewgen.config.call import accepts_config
from fewgen.errors import ConfigError, DataError, OutputError, TrainingError

if TYPE_CHECKING:
    from torch import Tensor

    from fewgen.data import ImageSet
    from fewgen.methods.base import Method
    from fewgen.report.adaptation import Adaptation
    from fewgen.text import ClassText
    from fewgen.training.meta.inner import InnerOptimizer

    Progress = Callable[[str, float], None]

ADDED_NAME = "new_images.npz"
GRID_NAME = "grid.png"
REPORT_NAME = "report.html"
CARD_NAME = "README.md"

STEPS = 50
LR = 1e-3
MAX_NEW = 64
"""New images of one update; more are taken in shuffled turns."""

MIN_REPLAY, MAX_REPLAY = 10, 32
"""Images of old classes in one update, if it is not said how many."""

BLANK = 2.0
"""Standard deviation over the pixels of an image, in grey levels of 255, below which it shows nothing."""

POOL = 64
"""Draws of old classes that updates choose from. Ten, shown again and again, become much of what a class has:
on six classes of Fashion-MNIST, 50 updates at 0.003 leave 0.36 of the pixel variance within a class, against
0.51 with 64 and 0.53 with 256. The learning rate matters more (0.001 leaves 0.78)."""

MAX_HELD_OUT = 200
"""Images of a new class that are kept to measure on, of those that are not learned from."""

GRID_CLASSES, GRID_COLUMNS = 10, 8


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model is adapted; equal recipes on equal images give equal models.

    Attributes:
        optimizer: of the updates.
        steps: number of updates.
        part: which parameters move, as `Method.adaptable` names them.
        replay: images of old classes in each update; None: as many as new images, within limits.
        seed: of all draws.
    """

    optimizer: InnerOptimizer
    steps: int
    part: str
    replay: int | None
    seed: int

    def n_replay(self, n_new: int) -> int:
        """Return how many images of old classes stand beside `n_new` new ones in an update."""
        return min(max(n_new, MIN_REPLAY), MAX_REPLAY) if self.replay is None else self.replay


@accepts_config
@_tidy
def adapt(
    run: str | Path | Run,
    *,
    images: str | Path | ImageSet | Sequence[str | Path | ImageSet],
    class_names: str | Sequence[str] | None = None,
    out: str | Path | None = None,
    shots: int | None = None,
    steps: int | None = None,
    lr: float | None = None,
    part: str | None = None,
    phrases: Mapping[str, Any] | str | Path | None = None,
    text_path: str | None = None,
    replay: int | str = "auto",
    seed: int = 0,
    curve: bool = False,
    judge: bool = False,
    split: str = "train",
    fit: str = "crop",
    alpha: str = "error",
    convert: bool = False,
    data_dir: str | Path | None = None,
    download: bool = False,
    device: str = "auto",
    report: bool = True,
    progress: bool = True,
    config: str | Path | Mapping[str, Any] | None = None,
) -> Run:
    """Teach a trained run new classes from a few images each, in seconds.

    The run itself stays as it is; the new folder holds a copy that draws old and new classes. Images that
    the run draws of its old classes are mixed in, so that these are kept without their training images.

    Args:
        run: a run folder, or a model file.
        images: a folder with images of one new class, or a single image file, each with its --class-name;
            or a folder with one subfolder per new class; or a data set or .npz, of which --class-name
            chooses classes. Repeatable, in pairs with --class-name.
        class_names: names of the new classes, one for each --images, in the same order.
        out: the folder of the adapted run: new or empty.
        shots: images per new class to learn from, drawn by the seed; all of them if left out. The report
            measures on the others.
        steps: updates; 50, or what the run was meta-trained for, if left out.
        lr: learning rate of the updates; 0.001, or what the run was meta-trained for, if left out.
        part: which parameters move: all, decoder or heads; all, or what the run was meta-trained for, if
            left out.
        phrases: other words for a new class, such as {"croc": ["sandal", "clog"]}, or a YAML file.
        text_path: where the text encoder's file or folder is now, if it was moved.
        replay: images of old classes in each update, drawn by the run itself; auto takes as many as there
            are new images, 10 to 32. 0 turns it off: the old classes are then forgotten sooner.
        seed: of every draw.
        curve: also adapt with 1, 3, 5, 10 and 30 of the images, for a figure and a table in the report.
        judge: judge the draws by a classifier that is trained on the run's training images and the given
            ones of the new classes, and not by the models' own readers; takes longer, and needs these images.
        split: train or test, the part of a data set.
        fit: how other shapes become square: crop, pad or stretch.
        alpha: transparent images: error, or put them on white or black.
        convert: accept 16-bit and CMYK images and convert them.
        data_dir: folder of the named data sets; the environment variable FEWGEN_DATA_DIR if left out.
        download: fetch a missing data set from its official address.
        device: auto (CUDA where there is one), cpu or cuda.
        report: measure what was won and lost, and write report.html.
        progress: say what is being done.
        config: YAML file (or dictionary) with any of these keywords; what is given directly wins.

    Returns:
        The adapted run. Without `out` it lives in memory only.
    """
    from fewgen.api.evaluating import ShownProgress

    recipe_given = _checked(steps, lr, replay, seed)
    sources = _sources(images)
    names = [class_names] if isinstance(class_names, str) else list(class_names or [])
    original = load_run(run, device)
    if out is not None:
        _check_out(Path(out), original, sources)
    original.method.require("adapt")
    refuse_known(names, original.class_names)
    spec = original.method.spec
    reading = {
        "split": split,
        "fit": fit,
        "alpha": alpha,
        "convert": convert,
        "data_dir": data_dir,
        "download": download,
    }
    found = new_images(sources, names, spec.shape, **reading)
    refuse_known(found.class_names, original.class_names)
    used, rest = _drawn(found, shots, seed)
    recipe = recipe_of(original, recipe_given, part)
    original.method.adaptable(recipe.part)  # an unknown part is better known before words are encoded
    start_model, notes = extended(original, found.class_names, phrases, text_path, data_dir)
    notes += notes_on(original, used)
    shown = ShownProgress(progress)
    try:
        began = time.perf_counter()
        old = replayed(original.method, recipe.seed)
        method = adapted(start_model, used, old, recipe, shown)
        seconds = time.perf_counter() - began
        refuse_blank(start_model, method, used, recipe.optimizer.lr)
        measured: Adaptation | None = None
        if report:
            from fewgen.report.adaptation import measure

            def again(part_of_images: ImageSet) -> Method:
                return adapted(start_model, part_of_images, old, recipe, None)

            measured = measure(
                original,
                start_model,
                method,
                used,
                rest,
                seconds=seconds,
                again=again if curve else None,
                judge=_judge(original, used, rest, data_dir, download) if judge else None,
                progress=shown,
            )
    finally:
        shown.close()
    record = {
        "from": original.path.name,
        "classes": list(found.class_names),
        "n_images": used.counts().tolist(),
        "steps": recipe.steps,
        "lr": recipe.optimizer.lr,
        "part": recipe.part,
        "replay": recipe.n_replay(min(len(used), MAX_NEW)),
        "seed": recipe.seed,
        "seconds": round(seconds, 3),
        "earlier": _earlier(original.info.extra),
    }
    if measured is not None:
        record["figures"] = measured.figures()
        notes += measured.warnings()
    return _finished(original, method, used, rest, record, measured, out, notes)


# ------------------------------------------------------------------------------------------ what was asked


@dataclasses.dataclass(frozen=True)
class Given:
    """What the caller spelled out of a `Recipe`; None for what was left out."""

    steps: int | None = None
    lr: float | None = None
    replay: int | None = None
    seed: int = 0


def _checked(steps: int | None, lr: float | None, replay: int | str, seed: int) -> Given:
    if steps is not None:
        steps = _whole("steps", steps, 1)
    fits = isinstance(lr, (int, float)) and not isinstance(lr, bool) and math.isfinite(lr) and lr > 0
    if lr is not None and not fits:
        raise ConfigError(f"lr must be a number above 0, got {lr!r}.")
    if isinstance(replay, str):
        if replay != "auto":
            raise ConfigError(f'replay must be "auto" or a whole number of 0 or more, got "{replay}".')
        return Given(steps, lr, None, _whole("seed", seed))
    return Given(steps, lr, _whole("replay", replay, 0), _whole("seed", seed))


def recipe_of(run: Run, given: Given, part: str | None = None) -> Recipe:
    """Return how to adapt: what is given, else what the run was meta-trained for, else the defaults."""
    from fewgen.training.meta.inner import Adam, make_inner_optimizer

    meta = run.info.extra.get("meta") or {}
    lr = next((float(x) for x in (given.lr, meta.get("adapt_lr"), meta.get("inner_lr")) if x is not None), LR)
    name = meta.get("inner_optimizer")
    # Here are enough updates for a momentum; a meta-trained start expects the optimiser of its tasks.
    optimizer = Adam(lr, betas=(0.9, 0.999)) if name is None else make_inner_optimizer(str(name), lr)
    return Recipe(
        optimizer,
        int(meta.get("adapt_steps", STEPS)) if given.steps is None else given.steps,
        str(meta.get("adapt", "all")) if part is None else part,
        given.replay,
        given.seed,
    )


def refuse_known(names: Sequence[str], known: Sequence[str]) -> None:
    """Refuse a new class whose name the run has already, in any case."""
    from fewgen.data.imageset import name_key

    there = {name_key(name): name for name in known}
    for name in names:
        if not name.strip():
            raise ConfigError("A class name is empty. Give the new class a name with --class-name.")
        if name_key(name) in there:
            raise ConfigError(
                f'The run has a class "{there[name_key(name)]}" already, so "{name}" cannot be added. Give '
                "the new class another name with --class-name, or choose other classes of the data."
            )


def notes_on(run: Run, images: ImageSet) -> list[str]:
    """Return what lets little be expected of an adaptation: an unfinished run, or copies of one image."""
    notes = []
    extra = run.info.extra
    if extra.get("training", {}).get("finished") is False and not extra.get("adapted"):
        notes.append(
            f'the training of "{run.path.name}" is not finished. Continue it first, by repeating its fewgen '
            "train command, and then adapt: what it cannot draw yet, no new class will show."
        )
    for label, name in enumerate(images.class_names):
        of_class = images.images[images.labels == label]
        if len(of_class) > 1 and bool((of_class == of_class[0]).all()):
            notes.append(
                f'all {len(of_class)} images of "{name}" are the same, pixel by pixel: more copies teach no '
                "more than one."
            )
    return notes


def _check_out(out: Path, run: Run, sources: Sequence[Any]) -> None:
    """Refuse a folder that is not new or empty, or that lies among the images; creates nothing."""
    for source in sources:
        check_apart(out, Path(source).parent if _is_image(source) else source)
    check_run_dir(out)
    if out.is_dir() and any(not entry.name.startswith(".") for entry in out.iterdir()):
        which = "the run that is adapted" if out.resolve() == run.path.resolve() else "a run already"
        raise OutputError(
            f'The folder "{out}" holds {which}. Nothing was changed. Choose a new or empty folder for --out.'
        )


# ------------------------------------------------------------------------------------------ the images


def _sources(images: Any) -> list[Any]:
    from fewgen.data import ImageSet

    sources = [images] if isinstance(images, (str, Path, ImageSet)) else list(images)
    if not sources:
        raise ConfigError("No images are given. Name a folder of images with --images.")
    return sources


def _is_image(source: Any) -> bool:
    return isinstance(source, (str, Path)) and Path(source).suffix.lower() in IMAGE_SUFFIXES


def new_images(
    sources: Sequence[str | Path | ImageSet],
    names: Sequence[str],
    shape: tuple[int, int, int],
    **reading: Any,
) -> ImageSet:
    """Return the images of the new classes, as the model needs them.

    Args:
        sources: folders of one class, image files, or anything with classes of its own.
        names: one per source, in the same order; with a single source that has classes, which of them; or
            none, where every source has classes.
        shape: (C, H, W) of the model's images.
        reading: split, fit, alpha, convert, data_dir and download.

    Raises:
        ConfigError: sources and names do not pair.
        DataError: there are no images, or they cannot be used.
    """
    import torch

    from fewgen.data import ImageSet

    loaded = [_load(source, shape, **reading) for source in sources]
    if len(sources) == 1 and isinstance(loaded[0], ImageSet):
        chosen = [_choose(loaded[0], names)]
    elif len(names) != len(sources):
        nameless = next((s for s, x in zip(sources, loaded, strict=True) if not isinstance(x, ImageSet)), "")
        if names or nameless:
            what = f' ("{nameless}" holds images without a class)' if nameless else ""
            raise ConfigError(
                f"There are {len(sources)} --images and {len(names)} --class-name{what}. Give one "
                "--class-name for each --images, in the same order."
            )
        chosen = [x for x in loaded if isinstance(x, ImageSet)]
    else:
        chosen = [
            _choose(x, [name])
            if isinstance(x, ImageSet)
            else ImageSet(x, torch.zeros(len(x), dtype=torch.int64), (name,))
            for x, name in zip(loaded, names, strict=True)
        ]
    # Several sources of one name are one class.
    every = tuple(dict.fromkeys(name for part in chosen for name in part.class_names))
    labels = [torch.tensor([every.index(n) for n in part.class_names])[part.labels] for part in chosen]
    joined = ImageSet(
        torch.cat([part.images for part in chosen]),
        torch.cat(labels),
        every,
        name=", ".join(x.name if isinstance(x, ImageSet) else str(x) for x in sources),
    )
    for name, count in zip(joined.class_names, joined.counts().tolist(), strict=True):
        if count == 0:
            raise DataError(f'There is no image of the class "{name}". Add some, or choose other classes.')
    return joined


def _choose(images: ImageSet, names: Sequence[str]) -> ImageSet:
    """Return the named classes of a set; the one class of a set may be given another name."""
    if not names:
        return images
    if images.n_classes == 1 and len(names) == 1:
        return dataclasses.replace(images, class_names=(names[0],))
    return images.select_classes(class_list(names, images.class_names))


def _load(
    source: str | Path | ImageSet,
    shape: tuple[int, int, int],
    *,
    split: str,
    fit: str,
    alpha: str,
    convert: bool,
    data_dir: str | Path | None,
    download: bool,
) -> ImageSet | Tensor:
    """Return a set with classes, or uint8 images (N, C, H, W) that have none."""
    import torch

    from fewgen.data import ImageSet, load_images
    from fewgen.data.folder import _decode, _Problem, is_flat_folder, load_flat_folder
    from fewgen.data.registry import _with_pixels, is_named

    channels, height, width = shape
    if isinstance(source, ImageSet):
        if source.size == (height, width):
            return _with_pixels(source, None, channels, fit)
        if height == width:
            return _with_pixels(source, height, channels, fit)
    if height != width:
        raise DataError(
            f"The model draws oblong images of {height}x{width}; give new ones of that size as an ImageSet."
        )
    assert not isinstance(source, ImageSet)
    path = Path(source).expanduser()
    if _is_image(source):
        if not path.is_file():
            raise DataError(f'There is no image file "{source}".')
        try:
            return torch.tensor(_decode(path, height, fit, channels, alpha, convert).array).unsqueeze(0)
        except _Problem as problem:
            raise DataError(f'"{source}" {problem}.') from None
    kind: dict[str, Any] = {
        "size": height,
        "channels": channels,
        "fit": fit,
        "alpha": alpha,
        "convert": convert,
    }
    if not is_named(source) and path.is_dir():
        if not any(not entry.name.startswith(".") for entry in path.iterdir()):
            raise DataError(f'The folder "{source}" is empty: put images of the new class into it.')
        if is_flat_folder(path) and any(_is_image(entry) for entry in path.iterdir()):
            return load_flat_folder(path, **kind)
    return load_images(source, split=split, data_dir=data_dir, download=download, **kind)


def _drawn(images: ImageSet, shots: int | None, seed: int) -> tuple[ImageSet, ImageSet]:
    """Return the images to learn from, and the others (at most `MAX_HELD_OUT` of a class)."""
    import torch

    if shots is None:
        return images, images.subset([])
    k = _whole("shots", shots, 1)
    keyed = dataclasses.replace(images, captions=tuple(str(i) for i in range(len(images))))
    used = [int(caption) for caption in keyed.shots(k, seed).captions or ()]
    free = torch.ones(len(images), dtype=torch.bool)
    free[used] = False
    kept = [
        (free & (images.labels == label)).nonzero().flatten()[:MAX_HELD_OUT]
        for label in range(images.n_classes)
    ]
    return images.subset(used), images.subset(torch.cat(kept))


# ------------------------------------------------------------------------------------------ the model


def extended(
    run: Run,
    names: Sequence[str],
    phrases: Mapping[str, Any] | str | Path | None = None,
    text_path: str | None = None,
    data_dir: str | Path | None = None,
) -> tuple[Method, list[str]]:
    """Return a copy of a run's model that has the new classes but has seen no image of them, and notes.

    Raises:
        ConfigError: the method's tensors depend on the number of classes.
        TextError: a new class gets no vector of its own.
    """
    from fewgen.training.seeds import global_seed

    original = run.method
    spec = original.spec
    notes: list[str] = []
    table = spec.text
    encoder: Any = None
    if table is not None:
        table, encoder, notes = _extended_table(run, table, names, phrases, text_path, data_dir)
    elif phrases:
        raise ConfigError(f'The method "{original.name}" was trained without words, so phrases do nothing.')
    wider = dataclasses.replace(spec, class_names=(*spec.class_names, *names), text=table)
    with global_seed(original.device, 0, "weights"):  # they are replaced; the caller's draws stay his
        method = type(original)(original.config, wider)
    state = original.state_dict()
    differ = [name for name, value in method.state_dict().items() if state[name].shape != value.shape]
    if differ:
        raise ConfigError(
            f'The size of "{differ[0]}" in the method "{original.name}" depends on the number of classes, so '
            "no class can be added afterwards. Train again with all classes."
        )
    method.load_state_dict({name: value.detach().clone() for name, value in state.items()})
    method.to(original.device).eval()
    if encoder is not None:
        method.use_encoder(encoder)
    return method, notes


def _extended_table(
    run: Run,
    table: ClassText,
    names: Sequence[str],
    phrases: Mapping[str, Any] | str | Path | None,
    text_path: str | None,
    data_dir: str | Path | None,
) -> tuple[ClassText, Any, list[str]]:
    from fewgen.api.prepare import _glove_path
    from fewgen.config import read_config
    from fewgen.text import make_text_encoder

    if isinstance(phrases, (str, Path)):
        phrases = read_config(phrases)
    check_phrases(phrases, names)
    if not table.has_meaning:
        note = (
            f"the run's class vectors ({table.encoder_name}) carry no meaning: a new class gets an arbitrary "
            "one, and what is drawn before the first image means nothing."
        )
        return table.extend(names, None, phrases), None, [note]
    encoder = run.method._encoder if text_path is None else None
    if encoder is None:
        path = text_path or table.encoder_path
        if table.encoder_name == "glove" and path is None:
            path = _glove_path(path, data_dir)
        encoder = make_text_encoder(table.encoder_name, path=path)
    return table.extend(names, encoder, phrases), encoder, []


def replayed(method: Method, seed: int) -> ImageSet:
    """Return images that a model draws of its own classes, to be mixed in while it learns new ones.

    About `POOL` of them, in whole groups of `method.rows`. Classes take turns, so each is shown equally
    often up to one image; those beyond that number are left out by a seeded draw.
    """
    import torch

    from fewgen.data import ImageSet
    from fewgen.generate import GenerationRequest
    from fewgen.training.seeds import derive_seed, make_rng

    n_classes = method.spec.n_classes
    n = max(1, POOL // method.rows) * method.rows  # a group costs as much as a single image
    order = torch.randperm(n_classes, generator=make_rng("cpu", seed, "replay"))
    labels = order.repeat(-(-n // n_classes))[:n]
    # Far from the seeds that a user draws with, so that what is measured later was not learned from.
    seeds = (derive_seed(seed, "replayed images") >> 1) + torch.arange(n)
    drawn = method.generate(GenerationRequest(labels=labels, seeds=seeds))
    return ImageSet(drawn.images, labels, method.spec.class_names, name="replayed")


class _Turns:
    """Endless shuffled passes over n indices."""

    def __init__(self, n: int, rng: Any) -> None:
        self.n, self.rng = n, rng
        self.ahead: list[int] = []

    def take(self, k: int) -> list[int]:
        """Return the next k indices."""
        import torch

        while len(self.ahead) < k:
            self.ahead += torch.randperm(self.n, generator=self.rng).tolist()
        taken, self.ahead = self.ahead[:k], self.ahead[k:]
        return taken


def adapted(
    start: Method, images: ImageSet, old: ImageSet, recipe: Recipe, progress: Progress | None
) -> Method:
    """Return a copy of a model that has learned from images of its last classes.

    Args:
        start: has the new classes already; stays as it is.
        images: of the new classes; its class i is the i-th of the new ones.
        old: images of the old classes to mix in.
        recipe: how.
        progress: told the name of the part and the share that is done.

    Raises:
        TrainingError: a loss is not finite, during the updates or after the last one.

    Source: Finn et al. 2017, arXiv:1703.03400, Algorithm 2 (the inner loop); generative replay: Shin et al.
        2017, arXiv:1705.08690, Sec. 3.
    Differs: the model replays its own draws, made once before the first update.
    """
    import torch
    from torch.func import functional_call

    from fewgen.data.augment import Augment
    from fewgen.training.meta.inner import inner_loop, parameters_of
    from fewgen.training.seeds import global_seed, make_rng

    device = start.device
    n_old = start.spec.n_classes - images.n_classes
    x, labels = images.floats().to(device), (images.labels + n_old).to(device)
    per_step = min(len(images), MAX_NEW)
    n_replay = recipe.n_replay(per_step)
    new_turns = _Turns(len(images), make_rng("cpu", recipe.seed, "adapt", "new images"))
    old_turns = _Turns(len(old), make_rng("cpu", recipe.seed, "adapt", "old images"))
    augment = Augment("light")
    moves = make_rng(device, recipe.seed, "adapt", "augmentation")
    rng = make_rng(device, recipe.seed, "adapt", "noise")

    def loss(parameters: Mapping[str, Tensor], k: int) -> Tensor:
        rows = torch.tensor(new_turns.take(per_step), device=device)
        batch, target = augment(x[rows], moves), labels[rows]
        if n_replay:
            others = old_turns.take(n_replay)
            batch = torch.cat([batch, old.floats(others).to(device)])
            target = torch.cat([target, old.labels[others].to(device)])
        total: Tensor = functional_call(start, dict(parameters), (batch, target, None, rng)).total()
        return total

    def visit(k: int, parameters: Mapping[str, Tensor]) -> None:
        if progress is not None:
            progress("adapting", k / max(1, recipe.steps))

    end = inner_loop(
        loss,
        parameters_of(start),
        recipe.optimizer,
        recipe.steps,
        adapted=start.adaptable(recipe.part),
        rates=start.rates_by_name(),
        visit=visit,
        advice="Nothing was written. Lower --lr.",
    )
    with torch.no_grad():
        last = float(loss(end, recipe.steps))
    if not math.isfinite(last):
        raise TrainingError(
            f"The loss is {last} after update {recipe.steps}, with the learning rate "
            f"{recipe.optimizer.lr:g}. Nothing was written. Lower --lr."
        )
    with global_seed(device, 0, "weights"):
        method = type(start)(start.config, start.spec)
    method.load_state_dict({**start.state_dict(), **{name: v.clone() for name, v in end.items()}})
    method.to(device).eval()
    if start._encoder is not None:
        method.use_encoder(start._encoder)
    return method


def refuse_blank(start: Method, method: Method, images: ImageSet, lr: float) -> None:
    """Refuse a model all of whose draws of some class became blank.

    Looks at one group of draws, new classes first. Classes whose draws were blank before count as little as
    new ones whose images are.

    Args:
        start: the model before the first update.
        method: after the last one.
        images: of the new classes, that it learned from.
        lr: of the updates, for the message.

    Raises:
        TrainingError: names the class and the learning rate.
    """
    import torch

    from fewgen.generate import GenerationRequest

    n = method.spec.n_classes
    labels = torch.arange(n - 1, -1, -1).repeat(-(-method.rows // n))[: max(method.rows, images.n_classes)]
    request = GenerationRequest(labels=labels, seeds=torch.arange(len(labels)))

    def blank(images: Tensor) -> Tensor:
        return images.to(torch.float64).flatten(1).std(1, correction=0) < BLANK

    try:
        after = blank(method.generate(request).images)
    except DataError as error:  # NaN
        raise TrainingError(
            f"After adapting with --lr {lr:g} no image can be drawn: {error} Nothing was written. Use a "
            "lower --lr."
        ) from None
    if not bool(after.any()):
        return
    before, given = blank(start.generate(request).images), blank(images.images)
    for label in labels.unique().tolist():
        at = labels == label
        new = label - (n - images.n_classes)
        meant = bool(before[at].all()) or (new >= 0 and bool(given[images.labels == new].all()))
        if bool(after[at].all()) and not meant:
            raise TrainingError(
                f'The drawn images are blank after adapting with --lr {lr:g} (all of "'
                f'{method.spec.class_names[label]}"). Nothing was written. Use a lower --lr.'
            )


def _judge(
    run: Run, used: ImageSet, rest: ImageSet, data_dir: Any, download: bool
) -> Callable[[Tensor], Tensor]:
    """Return a function from images to classes, of a classifier that the model has nothing to do with.

    It learns the old classes from the run's training images, and the new ones from all given images.
    """
    from fewgen.data import ImageSet
    from fewgen.evaluate.features import ClassifierFeatures

    train, _ = run.images(data_dir, download)
    classifier = ClassifierFeatures.of(judged_by(train, used, rest))

    def read(images: Tensor) -> Tensor:
        import torch

        labels = torch.zeros(len(images), dtype=torch.int64)
        shown = ImageSet(images, labels, classifier.class_names)
        return classifier.classes_of(classifier.features(shown))

    return read


def judged_by(train: ImageSet, used: ImageSet, rest: ImageSet) -> ImageSet:
    """Return what the judge learns from: images of the old classes, then all given ones of the new.

    A few images among thousands would never be the answer, so those of a new class are repeated until they
    are as many as an old class has on average.
    """
    import torch

    from fewgen.data import ImageSet

    wanted = len(train) // train.n_classes
    images, labels = [train.images], [train.labels]
    for label in range(used.n_classes):
        given = torch.cat([part.images[part.labels == label] for part in (used, rest)])
        rows = torch.arange(max(wanted, len(given))) % len(given)
        images.append(given[rows])
        labels.append(torch.full((len(rows),), train.n_classes + label))
    names = (*train.class_names, *used.class_names)
    return ImageSet(torch.cat(images), torch.cat(labels), names)


# ------------------------------------------------------------------------------------------ the new run


def _earlier(extra: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the adaptations that a run has behind it, oldest first."""
    last = extra.get("adapted")
    if not last:
        return []
    return [*last.get("earlier", []), {key: value for key, value in last.items() if key != "earlier"}]


def _finished(
    original: Run,
    method: Method,
    used: ImageSet,
    rest: ImageSet,
    record: dict[str, Any],
    measured: Adaptation | None,
    out: str | Path | None,
    notes: list[str],
) -> Run:
    from fewgen.methods.base import ModelInfo

    extra = {**original.info.extra, "adapted": record}
    settings = _settings(original, record)
    if out is None:
        run = Run(original.path.with_name(f"{original.path.name} (adapted, in memory)"), original.device)
        run.__dict__["config"] = settings
        run.__dict__["info"] = ModelInfo(
            original.info.method,
            original.info.config,
            {**original.info.spec, "class_names": list(method.spec.class_names)},
            extra,
            None if method.spec.text is None else method.spec.text.to_state()[1],
            original.info.shapes,
        )
    else:
        _write(Path(out), original, method, used, rest, extra, settings, measured, notes)
        run = Run(out, original.device)
    run.__dict__["method"] = method
    run.notes = notes
    return run


def _settings(original: Run, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what config.yaml says: the run's settings, and what was done to it."""
    settings = dict(original.config)
    if not settings:  # a model file on its own
        text = original.info.text or {}
        settings = {
            "method": original.info.method,
            "data": None,
            "text": text.get("encoder_name"),
            "text_path": text.get("encoder_path"),
            "model": original.info.config,
        }
    return {**settings, "adapted": {k: v for k, v in record.items() if k not in ("figures", "earlier")}}


def _write(
    out: Path,
    original: Run,
    method: Method,
    used: ImageSet,
    rest: ImageSet,
    extra: Mapping[str, Any],
    settings: Mapping[str, Any],
    measured: Adaptation | None,
    notes: Sequence[str],
) -> None:
    """Write the folder beside its place, then move it there."""
    from fewgen.config import dump_yaml
    from fewgen.files import make_dir, no_empty_folders, prepare_output_dir, write_text
    from fewgen.generate.writers import write_picture
    from fewgen.report.card import render_adapted_card
    from fewgen.report.citations import citation_keys

    with no_empty_folders(out.parent):
        make_dir(out.parent)
        folder = out.parent / f".{out.name[:100]}.{secrets.token_hex(6)}.tmp"
        try:
            prepare_output_dir(folder)
            _write_images(folder, original, method, used, rest)
            picture = _grid(method, used.n_classes)
            write_picture(folder / GRID_NAME, picture, {"run": out.name, "method": method.name})
            citations = citation_keys(method, settings)
            card = render_adapted_card(method, extra["adapted"], out, notes, citations)
            write_text(folder / CARD_NAME, card)
            if measured is not None:
                from fewgen.report.adaptation import render_adaptation

                page = render_adaptation(measured, extra["adapted"], out, notes, citations)
                write_text(folder / REPORT_NAME, page)
            write_text(folder / CONFIG_NAME, dump_yaml(dict(settings)))
            method.save(folder / MODEL_NAME, extra)
            if out.is_dir():  # empty, or with what desktops leave
                for entry in sorted(folder.iterdir()):
                    os.replace(entry, out / entry.name)
            else:
                os.replace(folder, out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _write_images(folder: Path, original: Run, method: Method, used: ImageSet, rest: ImageSet) -> None:
    """Write the new images, and which of them were learned from, so that the run knows its images."""
    import torch

    from fewgen.data.npz import load_npz
    from fewgen.files import read_json, write_json
    from fewgen.generate.writers import write_npz

    names = method.spec.class_names
    n_old = len(names) - used.n_classes
    parts, labels = [used.images, rest.images], [used.labels + n_old, rest.labels + n_old]
    train, held_out = list(range(len(used))), list(range(len(used), len(used) + len(rest)))
    split: dict[str, Any] = {}
    if original.path.is_dir() and (original.path / SPLIT_NAME).is_file():
        split = read_json(original.path / SPLIT_NAME)
    before = original.path / ADDED_NAME
    if original.path.is_dir() and before.is_file() and "added" in split:
        earlier = load_npz(before)
        row = torch.tensor([names.index(name) for name in earlier.class_names])
        parts, labels = [earlier.images, *parts], [row[earlier.labels], *labels]
        shift = len(earlier)
        train = [*split["added"]["train"], *(i + shift for i in train)]
        held_out = [*split["added"]["held_out"], *(i + shift for i in held_out)]
    write_npz(folder / ADDED_NAME, torch.cat(parts), torch.cat(labels), names)
    if split:
        added = {"file": ADDED_NAME, "train": train, "held_out": held_out}
        write_json(folder / SPLIT_NAME, {**split, "added": added})


def _grid(method: Method, n_new: int) -> Any:
    """Return a row of new images for each of the first old classes and for each new one."""
    import torch

    from fewgen.generate import GenerationRequest
    from fewgen.generate.pictures import class_grid

    n = method.spec.n_classes
    labels = torch.cat([torch.arange(min(GRID_CLASSES, n - n_new)), torch.arange(n - n_new, n)])
    request = GenerationRequest.per_class(labels.tolist(), GRID_COLUMNS, seed=0)
    drawn = method.generate(request)
    return class_grid(drawn.images, drawn.labels, method.spec.class_names, GRID_COLUMNS)
