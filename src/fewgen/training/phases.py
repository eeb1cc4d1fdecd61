"""What a method hands to the loop: stages, each with phases.

A stage is one part of training with its own length and data order. In every step of a stage, each phase
whose `every` divides the step gets a batch and moves its own parameters. A variational autoencoder has
one phase; a GAN has a discriminator, a generator and a lazy regularisation phase; a meta-learner has a
phase that writes gradients itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from fewgen.config.checks import above_zero, at_least, choose
from fewgen.errors import ConfigError
from fewgen.fitting.schedules import Schedule, make_schedule

if TYPE_CHECKING:
    from fewgen.data.imageset import ImageSet
    from fewgen.losses.terms import LossTerms
    from fewgen.training.sampler import Sampler

Movable = nn.Module | nn.Parameter
LossFunction = Callable[["Batch", "Context"], "LossTerms"]


@dataclass(frozen=True)
class Batch:
    """Images that a phase learns from in one step.

    Attributes:
        images: float32 (B, C, H, W) in [-1, 1], after the stage's augmentation.
        labels: int64 (B,).
        indices: int64 (B,), positions in the training images: look up what was prepared per image.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor

    def __len__(self) -> int:
        return len(self.labels)


class Pixels:
    """An image set on the training device, converted to floats once if it is small.

    Args:
        images: the image set.
        device: where batches shall lie.
        limit_bytes: sets whose floats are larger stay uint8 on the host and are converted per batch.
    """

    def __init__(self, images: ImageSet, device: torch.device, limit_bytes: int = 1 << 29) -> None:
        self.source = images
        self.device = device
        self.labels = images.labels.to(device)
        n_bytes = 4 * images.images.numel()
        self._floats = images.floats().to(device) if n_bytes <= limit_bytes else None

    def __len__(self) -> int:
        return len(self.source)

    def at(self, indices: Tensor) -> Batch:
        """Return the batch of the images at `indices`, int64 (B,) on any device."""
        there = indices.to(self.device, non_blocking=True)
        if self._floats is None:
            pixels = self.source.floats(indices.cpu()).to(self.device, non_blocking=True)
        else:
            pixels = self._floats.index_select(0, there)
        return Batch(pixels, self.labels.index_select(0, there), there)

    def spread(self, most: int) -> Batch:
        """Return up to `most` images, spread evenly over all."""
        return self.at(torch.linspace(0, len(self) - 1, min(most, len(self))).long())

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield all images once, in order, as they are."""
        for start in range(0, len(self), batch_size):
            yield self.at(torch.arange(start, min(start + batch_size, len(self))))


def _no_time() -> float:
    """Return 0 seconds: the default of `Stage.end_seconds`."""
    return 0.0


T = TypeVar("T")


def _whole(steps: int, fit: Callable[[int], T]) -> T:
    """Return what `fit` makes in all steps: the default of `Context.shortened`."""
    return fit(steps)


def _say_nothing(text: str) -> None:
    """Show nothing: the default of `Context.note`."""


FEW = 9
"""Steps of a training within a hook that say how long one takes."""


def tried(steps: int, fit: Callable[[int], T], now: Callable[[], float]) -> tuple[T, float]:
    """Return what `fit` makes in `FEW` steps, and the seconds of one more step; 0 if there are no more.

    Args:
        steps: of the whole training.
        fit: number of steps -> what it makes.
        now: seconds of the clock that counts.
    """
    if steps <= FEW:
        return fit(steps), 0.0
    begun = now()
    fit(1)
    first = now()
    found = fit(FEW)
    both = now() - first
    # What comes around the steps counts once; the first time it warms up, too.
    around = min(first - begun, both / FEW)
    return found, (both - around) / (FEW - 1)


class Trial:
    """Shortens trainings within hooks, and counts what they would take longer.

    Args:
        now: seconds of the clock that counts.

    Attributes:
        left_out: seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.left_out = 0.0

    def shortened(self, steps: int, fit: Callable[[int], T]) -> T:
        """Return what `fit` makes in a few of the steps; `left_out` grows by the others."""
        found, seconds = tried(steps, fit, self.now)
        self.left_out += max(0, steps - FEW) * seconds
        return found


@dataclass
class Context:
    """Where training stands, and what a loss or a hook may use.

    Attributes:
        step: steps of this stage that are complete, so 0 in the first one.
        steps: length of the stage.
        stage: the stage itself.
        rng: the only source of random numbers for losses and hooks, on `device`. In a step it is the
            training's own stream; in `validate`, `preview`, `diagnose`, `on_start` and `on_end` it starts
            from the same seed at each call and never shifts the training's stream.
        train: training images. `train.batches(n)` and `train.at(indices)` give float batches.
        held_out: images set aside, or None.
        device: where batches lie.
        seed: of the run.
        rank: number of this process, from 0.
        n_processes: how many processes train together.
        training: False in hooks.
        note: shows a line to who watches; for hooks that take long.
        shortened: (steps, fit) -> `fit(steps)`, or `fit` of fewer steps in a trial or where a time limit
            comes first; for trainings within hooks.
    """

    step: int
    steps: int
    stage: Stage
    rng: torch.Generator
    train: Pixels
    held_out: Pixels | None
    device: torch.device
    seed: int = 0
    rank: int = 0
    n_processes: int = 1
    training: bool = True
    note: Callable[[str], None] = _say_nothing
    shortened: Callable[[int, Callable[[int], Any]], Any] = _whole

    @property
    def progress(self) -> float:
        """Share of the stage that is complete, in [0, 1]; drives warm-up of loss weights."""
        return min(1.0, self.step / max(1, self.steps))

    def ramp(self, share: float) -> float:
        """Return a weight that rises linearly from 0 to 1 over the first `share` of the stage."""
        return 1.0 if share <= 0 else min(1.0, self.progress / share)


@dataclass
class Phase:
    """One kind of update inside a step.

    Give either `loss` or `step`.

    Attributes:
        name: unique in its stage; the prefix of its terms in the log.
        parameters: modules (or single parameters) that this phase moves, and no others: gradients are
            computed for these alone, so a generator's phase leaves no gradient in the discriminator.
        loss: (batch, context) -> `LossTerms`; the loop differentiates and steps.
        step: (batch, context) -> `LossTerms` for the log; has written `.grad` of its parameters itself
            (Reptile, FOMAML). They are None when it is called. The loop averages them over processes,
            clips and steps.
        every: runs in steps 0, every, 2 * every, ... of the stage.
        lr: learning rate of AdamW.
        betas: of AdamW.
        weight_decay: of AdamW; not applied to biases, normalisation, embeddings, codebooks (see
            `decayed`) and the weighting's parameters.
        clip: largest norm of the gradient over all parameters of the phase; None: no clipping.
        schedule: "constant", "cosine", "linear_warmup" or (step, steps) -> factor.
        weighting: optional object that maps the terms to the objective (see `losses.weighting`).
        shares: name of an earlier phase with the same parameters whose optimiser this phase uses, as lazy
            regularisation does. Its own lr, betas, weight_decay and schedule are then unused.
        optimizer: builds another optimiser from AdamW-style parameter groups, e.g.
            ``lambda groups: torch.optim.SGD(groups, lr=1.0)``. Its state must consist of tensors and
            plain values.
        watch: warn when this phase's total diverges or swings. Turn it off where the total is not
            meant to fall, as in a GAN.
        advice: what to do then, as a sentence.
        limit: size of the total from which training counts as diverged and stops, as it does at one that
            is not finite; None: no limit.
    """

    name: str
    parameters: Movable | Sequence[Movable]
    loss: LossFunction | None = None
    step: LossFunction | None = None
    every: int = 1
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip: float | None = None
    schedule: str | Schedule = "constant"
    weighting: Callable[[LossTerms], Tensor] | None = None
    shares: str | None = None
    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None = None
    watch: bool = True
    advice: str = "Lower the learning rate."
    limit: float | None = None

    def __post_init__(self) -> None:
        if (self.loss is None) == (self.step is None):
            raise ConfigError(f'Phase "{self.name}" needs either `loss` or `step`, and not both.')
        at_least(f'Phase "{self.name}": every', self.every, 1)
        for key in ("lr", "clip", "limit"):
            value = getattr(self, key)
            if value is not None:
                above_zero(f'Phase "{self.name}": {key}', value)
        make_schedule(self.schedule)

    def modules(self) -> list[nn.Module]:
        """The modules among `parameters`."""
        return [part for part in self._parts() if isinstance(part, nn.Module)]

    def _parts(self) -> list[Movable]:
        single = isinstance(self.parameters, (nn.Module, nn.Parameter))
        return [self.parameters] if single else list(self.parameters)  # type: ignore[list-item, arg-type]

    def trainable(self) -> list[tuple[nn.Parameter, bool]]:
        """The parameters to move, each once, with whether weight decay applies.

        Raises:
            ConfigError: if there are none.
        """
        found: dict[int, tuple[nn.Parameter, bool]] = {}
        for part in self._parts():
            if isinstance(part, nn.Parameter):
                pairs = [(part, part.ndim >= 2)]
            else:
                pairs = decayed(part)
            for parameter, decay in pairs:
                if parameter.requires_grad:
                    found.setdefault(id(parameter), (parameter, decay))
        if not found:
            raise ConfigError(f'Phase "{self.name}" has no trainable parameters.')
        return list(found.values())


def decayed(module: nn.Module) -> list[tuple[nn.Parameter, bool]]:
    """Return each parameter of `module` with whether weight decay applies to it.

    It does not apply to vectors and scalars (biases, gains), to embeddings and codebooks, which hold
    points and not maps, and to modules with a true attribute `no_weight_decay`.
    """
    result = []
    for path, child in module.named_modules():
        exempt = (
            isinstance(child, (nn.Embedding, nn.EmbeddingBag))
            or bool(getattr(child, "no_weight_decay", False))
            or "codebook" in type(child).__name__.lower()
            or "codebook" in path.lower()
        )
        for name, parameter in child.named_parameters(recurse=False):
            decay = parameter.ndim >= 2 and not exempt and "codebook" not in name.lower()
            result.append((parameter, decay))
    return result


@dataclass
class Stage:
    """One part of training.

    Hooks get a `Context`. `on_start` runs before the first step and again when a run is resumed in the
    middle of the stage: with the weights of that moment, the same random numbers as the first time, and
    with the modules in evaluation mode. It may prepare tensors (encode all images with a part that this
    stage leaves alone) and may initialise weights: on resume the saved weights are put back afterwards.
    `on_end` runs with the final weights, from a state saved before it, and may return figures for
    metrics.jsonl. State that changes during a stage belongs into buffers of the
    method or of a phase's weighting; nothing else is saved.

    Attributes:
        name: unique in its method.
        phases: run in this order in every step.
        steps: length, before `steps_scale` and `minutes`.
        batch_size: images per step and process.
        sampler: "shuffled" (every image equally often), "balanced" (every class equally often),
            "single_class" (each batch from one class), or (labels, batch_size, seed, rank,
            n_processes) -> `Sampler`.
        augment: (images, rng) -> images, on float images in [-1, 1].
        modules: what is averaged (EMA), put in training mode, and restored to its best; default: the
            modules of the phases.
        validate: context -> figures on held-out images, with averaged weights, without gradients.
            Runs in the first process only.
        monitor: key of `validate`'s figures that decides which weights are best; None: the last are.
        monitor_mode: "min" or "max".
        patience: measurements without a new best before the stage ends early; None: never.
        tolerance: share of the best figure by which a later one may be worse and its weights still be
            kept instead. With few held-out images the best measurement is partly luck.
        draws: what it moves draws images, so that its checkpoints can be compared by them.
        draw_steps: steps that drawing the images of a checkpoint takes as long as, about.
        keep_last: why the last weights are kept all the same, as a part of a sentence; "": they need not be.
        preview: context -> picture, uint8 (C, H, W), or pictures (N, C, H, W) that are tiled; or None.
        diagnose: context -> warnings (collapse of the posterior, unused codes), as often as `validate` and
            also without held-out images.
        on_start: see above.
        on_end: see above.
        summary: one line for the log and the report.
        ema_decay: instead of the run's; 0 turns averaging off in this stage.
        time_share: share of the `minutes` limit; stages without one divide the rest equally.
        end_seconds: returns an estimate of the time of an `on_end` that takes long; not needed for others.
    """

    name: str
    phases: Sequence[Phase]
    steps: int
    batch_size: int = 64
    sampler: str | Callable[[Tensor, int, int, int, int], Sampler] = "shuffled"
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    modules: Sequence[nn.Module] = ()
    validate: Callable[[Context], dict[str, float] | None] | None = None
    monitor: str | None = None
    monitor_mode: str = "min"
    patience: int | None = None
    tolerance: float = 0.0
    draws: bool = False
    draw_steps: float = 1.0
    keep_last: str = ""
    preview: Callable[[Context], Tensor | None] | None = None
    diagnose: Callable[[Context], list[str]] | None = None
    on_start: Callable[[Context], None] | None = None
    on_end: Callable[[Context], Mapping[str, float] | None] | None = None
    summary: str = ""
    ema_decay: float | None = None
    time_share: float | None = None
    end_seconds: Callable[[], float] = _no_time

    def __post_init__(self) -> None:
        at_least(f'Stage "{self.name}": steps', self.steps, 1)
        at_least(f'Stage "{self.name}": batch_size', self.batch_size, 1)
        at_least(f'Stage "{self.name}": tolerance', self.tolerance, 0)
        if not self.phases:
            raise ConfigError(f'Stage "{self.name}" has no phases.')
        names = [phase.name for phase in self.phases]
        if len(set(names)) != len(names):
            raise ConfigError(f'Stage "{self.name}": phase names must differ, got {", ".join(names)}.')
        for i, phase in enumerate(self.phases):
            if phase.shares is not None and phase.shares not in names[:i]:
                raise ConfigError(
                    f'Phase "{phase.name}" shares the optimiser of "{phase.shares}", '
                    f'which is not an earlier phase of stage "{self.name}".'
                )
        if self.monitor is not None and self.validate is None:
            raise ConfigError(f'Stage "{self.name}" monitors "{self.monitor}" but has no `validate`.')
        choose("monitor_mode", self.monitor_mode, ("min", "max"))
        if self.patience is not None and (self.monitor is None or self.patience < 1):
            raise ConfigError(f'Stage "{self.name}": patience must be 1 or more and needs `monitor`.')
        if self.time_share is not None and not 0 < self.time_share <= 1:
            raise ConfigError(
                f'Stage "{self.name}": time_share must be above 0 and at most 1, got {self.time_share}.'
            )

    def trained_modules(self) -> list[nn.Module]:
        """`modules`, or else the modules of the phases, each once."""
        if self.modules:
            return list(self.modules)
        found = {id(module): module for phase in self.phases for module in phase.modules()}
        return list(found.values())
