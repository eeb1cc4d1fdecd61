"""Teach a trained model new classes from a few images of each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.config.keywords import refuse_ignored, whole
from fewgen.errors import ConfigError, DataError, TrainingError
from fewgen.runs.run import Run
from fewgen.runs.source import encoder_path, read_phrases

if TYPE_CHECKING:
    from torch import Tensor

    from fewgen.data import ImageSet
    from fewgen.methods.base import Method
    from fewgen.progress import Progress
    from fewgen.text import ClassText
    from fewgen.training.meta.inner import InnerOptimizer


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


@dataclasses.dataclass(frozen=True)
class Given:
    """What the caller spelled out of a `Recipe`; None for what was left out."""

    steps: int | None = None
    lr: float | None = None
    replay: int | None = None
    seed: int = 0
    part: str | None = None

    @classmethod
    def of(
        cls, steps: int | None, lr: float | None, replay: int | str, seed: int, part: str | None = None
    ) -> Given:
        """Return what was spelled out, checked; `replay` may be "auto"."""
        if steps is not None:
            steps = whole("steps", steps, 1)
        fits = isinstance(lr, (int, float)) and not isinstance(lr, bool) and math.isfinite(lr) and lr > 0
        if lr is not None and not fits:
            raise ConfigError(f"lr must be a number above 0, got {lr!r}.")
        if isinstance(replay, str):
            if replay != "auto":
                raise ConfigError(f'replay must be "auto" or a whole number of 0 or more, got "{replay}".')
            return cls(steps, lr, None, whole("seed", seed), part)
        return cls(steps, lr, whole("replay", replay, 0), whole("seed", seed), part)


def recipe_of(run: Run, given: Given) -> Recipe:
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
        str(meta.get("adapt", "all")) if given.part is None else given.part,
        given.replay,
        given.seed,
    )


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
    from fewgen.fitting.seeds import global_seed

    original = run.method
    spec = original.spec
    notes: list[str] = []
    table = spec.text
    encoder: Any = None
    if table is not None:
        table, encoder, notes = _extended_table(run, table, names, phrases, text_path, data_dir)
    else:
        given = {"phrases": phrases or None, "text_path": text_path}
        why = f"with a run of {original.name}, which was trained without words"
        refuse_ignored(why, given, dict.fromkeys(given), *given)
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
    from fewgen.text import make_text_encoder
    from fewgen.text.table import fitting_phrases

    phrases = fitting_phrases(read_phrases(phrases), names)
    if not table.has_meaning:
        why = f"with the run's class vectors ({table.encoder_name}), which carry no meaning"
        refuse_ignored(why, {"text_path": text_path}, {"text_path": None}, "text_path")
        note = (
            f"the run's class vectors ({table.encoder_name}) carry no meaning: a new class gets an arbitrary "
            "one, and what is drawn before the first image means nothing."
        )
        return table.extend(names, None, phrases), None, [note]
    encoder = run.method._encoder if text_path is None else None
    if encoder is None:
        path = encoder_path(table.encoder_name, text_path or table.encoder_path, data_dir)
        encoder = make_text_encoder(table.encoder_name, path=path)
    return table.extend(names, encoder, phrases), encoder, []


def replayed(method: Method, seed: int) -> ImageSet:
    """Return images that a model draws of its own classes, to be mixed in while it learns new ones.

    About `POOL` of them, in whole groups of `method.rows`. Classes take turns, so each is shown equally
    often up to one image; those beyond that number are left out by a seeded draw.
    """
    import torch

    from fewgen.data import ImageSet
    from fewgen.fitting.seeds import derive_seed, make_rng
    from fewgen.generation import GenerationRequest

    n_classes = method.spec.n_classes
    n = max(1, POOL // method.rows) * method.rows  # a group costs as much as a single image
    order = torch.randperm(n_classes, generator=make_rng("cpu", seed, "replay"))
    labels = order.repeat(-(-n // n_classes))[:n]
    # Far from the seeds that a user draws with, so that what is measured later was not learned from.
    seeds = (derive_seed(seed, "replayed images") >> 1) + torch.arange(n)
    drawn = method.generate(GenerationRequest(labels=labels, seeds=seeds))
    return ImageSet(drawn.images, labels, method.spec.class_names, name="replayed")


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
    from fewgen.fitting.fit import Shuffled
    from fewgen.fitting.seeds import global_seed, make_rng
    from fewgen.training.meta.inner import inner_loop, parameters_of

    device = start.device
    n_old = start.spec.n_classes - images.n_classes
    x, labels = images.floats().to(device), (images.labels + n_old).to(device)
    per_step = min(len(images), MAX_NEW)
    n_replay = recipe.n_replay(per_step)
    new_order = Shuffled(len(images), make_rng("cpu", recipe.seed, "adapt", "new images"))
    old_order = Shuffled(len(old), make_rng("cpu", recipe.seed, "adapt", "old images"))
    augment = Augment("light")
    moves = make_rng(device, recipe.seed, "adapt", "augmentation")
    rng = make_rng(device, recipe.seed, "adapt", "noise")

    def loss(parameters: Mapping[str, Tensor], k: int) -> Tensor:
        rows = new_order.draw(per_step).to(device)
        batch, target = augment(x[rows], moves), labels[rows]
        if n_replay:
            others = old_order.draw(n_replay)
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

    from fewgen.generation import GenerationRequest

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
