"""Meta-training as a stage of the common loop, and adaptation curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fewgen.episodes import EpisodeSampler
from fewgen.errors import ConfigError, TrainingError
from fewgen.fitting.seeds import derive_seed, make_rng
from fewgen.losses.terms import LossTerms
from fewgen.nn.modes import evaluating
from fewgen.training.meta.gradients import (
    BatchLoss,
    Part,
    Task,
    TaskGradient,
    accumulate,
    maml_gradient,
    method_loss,
    parameters_detached,
    reptile_gradient,
)
from fewgen.training.meta.inner import ADVICE, inner_loop, make_inner_optimizer, parameters_of
from fewgen.training.meta.novelty import new_words, symmetries, turned
from fewgen.training.meta.settings import MetaConfig, check_algorithm
from fewgen.training.phases import Batch, Context, Phase, Stage
from fewgen.training.watch import RUNAWAY

if TYPE_CHECKING:
    from fewgen.data.imageset import ImageSet

LIMITS = (1e-3, 1e2)
"""Smallest and largest learned factor on an inner rate."""


@dataclass(frozen=True)
class OtherClasses:
    """Classes that are not learned from, to measure adaptation on.

    Attributes:
        name: "val" or "novel", the prefix in the log.
        images: all of their images.
        vectors: standardised text vectors, (n_classes, D), or None.
    """

    name: str
    images: ImageSet
    vectors: Tensor | None


class InnerRates(nn.Module):
    """One factor on the inner learning rate for each parameter tensor, learned with the parameters.

    It travels as the `weighting` of the outer phase, so the loop moves, saves and logs it. The factors are
    exp(speed * log_rates): the outer rate suits weights, and these numbers have further to go.

    Args:
        names: of the parameters that adapt.
        speed: how much faster than a weight the logarithm of a factor moves.
    """

    def __init__(self, names: Sequence[str], speed: float = 30.0) -> None:
        super().__init__()
        self.names = list(names)
        self.speed = speed
        self.log_rates = nn.Parameter(torch.zeros(len(self.names)))

    def forward(self, terms: LossTerms) -> Tensor:
        """Return the sum of the terms: the rates are not part of it."""
        return terms.total()

    def factors(self) -> Tensor:
        """Return the factors, (n,), without gradients, in `LIMITS`."""
        return (self.speed * self.log_rates.detach()).exp().clamp(*LIMITS)

    def weights(self) -> dict[str, float]:
        """Return the factors by name, for the log."""
        return dict(zip(self.names, self.factors().tolist(), strict=True))

    def write_gradient(self, of_logs: Mapping[str, Tensor]) -> None:
        """Set the gradient from those of the logarithms of the factors."""
        # Back to the limits, if the last step went beyond: otherwise a factor would be pushed ever further
        # where nothing depends on it any more, and need as many steps to come back.
        with torch.no_grad():
            self.log_rates.clamp_(*(math.log(limit) / self.speed for limit in LIMITS))
        gradient = torch.zeros_like(self.log_rates)
        for i, name in enumerate(self.names):
            if name in of_logs:
                gradient[i] = self.speed * of_logs[name]
        self.log_rates.grad = gradient


class TaskSampler:
    """Hands the loop the images of the next tasks, as one batch.

    A batch holds `tasks_per_step` tasks one after the other, each class by class with its support images
    first. Of several processes each takes its part of the tasks of a step, so a step has the same tasks
    whatever their number.
    """

    def __init__(
        self, labels: Tensor, config: MetaConfig, seed: int, rank: int = 0, n_processes: int = 1
    ) -> None:
        if config.tasks_per_step % n_processes:
            raise ConfigError(
                f"{config.tasks_per_step} tasks per step cannot be split over {n_processes} processes. "
                f"Set --tasks.tasks_per_step to a multiple of {n_processes}."
            )
        self.episodes = EpisodeSampler(labels, config.n_way, config.n_shot, config.n_query, seed)
        self.tasks_per_step = config.tasks_per_step
        self.own = config.tasks_per_step // n_processes
        self.rank = rank
        self.position = 0

    def next(self) -> Tensor:
        """Return the images of this process's tasks, int64 (tasks * n_way * (n_shot + n_query),)."""
        first = self.position + self.rank * self.own
        self.position += self.tasks_per_step
        return torch.cat([self.episodes.indices(first + i).flatten() for i in range(self.own)])


def meta_stage(
    method: Any,
    algorithm: str,
    config: MetaConfig,
    *,
    weight_decay: float = 0.0,
    others: Sequence[OtherClasses] = (),
    template: Stage | None = None,
) -> Stage:
    """Return the stage that meta-trains a method on the classes of its training images.

    Args:
        method: a `Method` with the capability "adapt".
        algorithm: "maml", "fomaml" or "reptile".
        config: tasks and inner loop.
        weight_decay: of the outer AdamW (fomaml, maml).
        others: classes on which the adaptation curve is measured.
        template: the ordinary stage; its augmentation, preview and diagnosis are kept.

    Raises:
        ConfigError: if the method has no differentiable objective, the algorithm is unknown, or nothing
            would be learned.
    """
    method.require("adapt")
    if check_algorithm(algorithm) == "none":
        raise ConfigError("Training without meta-learning has no stage of its own.")
    if algorithm == "reptile" and config.inner_steps == 0:
        raise ConfigError(
            "Reptile goes towards adapted parameters, and with --tasks.inner_steps 0 there are none. "
            "Set it to 1 or more."
        )
    loss = method_loss(method)
    modules = [method] if template is None else template.trained_modules()
    moved = {id(parameter) for module in modules for parameter in module.parameters()}
    trained = [name for name, parameter in method.named_parameters() if id(parameter) in moved]
    adapted = [name for name in method.adaptable(config.adapt) if name in set(trained)]
    learns = config.learn_rates and algorithm != "reptile"
    rates = InnerRates(adapted) if learns else None
    learner = _Learner(method, loss, algorithm, config, trained, adapted, rates)
    phase = Phase(
        "outer",
        modules,
        step=learner.step,
        weighting=rates,
        lr=config.outer_step if algorithm == "reptile" else config.outer_lr,
        weight_decay=0.0 if algorithm == "reptile" else weight_decay,
        schedule=_falling if algorithm == "reptile" else "cosine",
        optimizer=(lambda groups: torch.optim.SGD(groups, lr=1.0)) if algorithm == "reptile" else None,
        advice=f"Lower --tasks.{'outer_step' if algorithm == 'reptile' else 'outer_lr'} or --tasks.inner_lr.",
    )

    def sampler(labels: Tensor, batch_size: int, seed: int, rank: int, n_processes: int) -> TaskSampler:
        return TaskSampler(labels, config, seed, rank, n_processes)

    def start(context: Context) -> None:
        if template is not None and template.on_start is not None:
            template.on_start(context)
        if config.pretrain == 0:
            # One pass in training mode, for layers that start from data, such as codebooks.
            batch = context.train.at(torch.linspace(0, len(context.train) - 1, 64).round().long())
            method.train()
            with torch.no_grad():
                method.task_terms(batch.images, batch.labels, None, context.rng)
            method.eval()

    def validate(context: Context) -> dict[str, float]:
        # Novel classes are looked at once, at the end; nothing is chosen by them.
        at_end = context.step >= context.steps
        measured = [classes for classes in others if at_end or classes.name != "novel"]
        return _curves(method, config, measured, context)

    return Stage(
        "meta",
        [phase],
        steps=config.steps,
        batch_size=config.tasks_per_step * config.n_way * (config.n_shot + config.n_query),
        sampler=sampler,
        augment=None if template is None else template.augment,
        modules=modules,
        validate=validate if others else None,
        draws=template is not None and template.draws,
        keep_last="images of known classes do not say how well new ones are learned",
        preview=None if template is None else template.preview,
        diagnose=None if template is None else template.diagnose,
        on_start=start,
        on_end=None if rates is None else lambda _: method.set_inner_rates(rates.weights()),
        ema_decay=None,
        summary=f"{algorithm}: parameters from which {config.n_shot} images of a new class are enough",
    )


def with_meta(
    method: Any,
    stages: Sequence[Stage],
    algorithm: str,
    config: MetaConfig,
    others: Sequence[OtherClasses] = (),
) -> list[Stage]:
    """Return a method's stages with meta-training after, or in place of, the stage that tasks repeat.

    With `config.pretrain` p > 0 the ordinary stage takes the share p of its steps first. With "none" it
    takes all of them and the adaptation curves are measured: the control.
    """
    method.require("adapt")
    result: list[Stage] = []
    for stage in stages:
        if stage.name != method.adapts_stage:
            result.append(stage)
            continue
        if check_algorithm(algorithm) == "none":
            # To its end: only there the curves are measured. The best weights are kept all the same.
            result.append(
                replace(stage, validate=_also(stage.validate, method, config, others), patience=None)
            )
            continue
        if config.pretrain > 0:
            result.append(replace(stage, steps=max(1, round(config.pretrain * stage.steps)), time_share=None))
        weight_decay = stage.phases[0].weight_decay
        result.append(
            meta_stage(method, algorithm, config, weight_decay=weight_decay, others=others, template=stage)
        )
    return result


def _also(
    validate: Callable[[Context], dict[str, float] | None] | None,
    method: Any,
    config: MetaConfig,
    others: Sequence[OtherClasses],
) -> Callable[[Context], dict[str, float] | None] | None:
    """Return a validation that measures the adaptation curves as well, at the end of the stage."""
    if not others:
        return validate

    def both(context: Context) -> dict[str, float] | None:
        figures = dict((validate(context) if validate is not None else None) or {})
        if context.step >= context.steps:
            figures |= _curves(method, config, others, context)
        return figures

    return both


def _curves(
    method: Any, config: MetaConfig, others: Sequence[OtherClasses], context: Context
) -> dict[str, float]:
    found = [curve_figures(method, config, classes, seed=context.seed) for classes in others]
    return {name: value for figures in found for name, value in figures.items()}


def _falling(step: int, steps: int) -> float:
    return 1.0 - step / max(1, steps)


@dataclass(frozen=True)
class _Learner:
    """Turns a batch of tasks into the gradient of one outer step.

    Attributes:
        method: whose parameters are the start of every task.
        loss: of a part of a task.
        algorithm: "maml", "fomaml" or "reptile".
        config: tasks and inner loop.
        trained: names of the parameters that the outer step moves.
        adapted: names of those that a task moves.
        rates: learned factors on the inner rate, or None.
    """

    method: Any
    loss: BatchLoss
    algorithm: str
    config: MetaConfig
    trained: list[str]
    adapted: list[str]
    rates: InnerRates | None

    def step(self, batch: Batch, context: Context) -> LossTerms:
        """Write the mean gradient of the tasks of this batch into `.grad`."""
        config, method = self.config, self.method
        n_tasks = len(batch) // (config.n_way * (config.n_shot + config.n_query))
        first = context.step * config.tasks_per_step + context.rank * n_tasks
        # The share of early query losses falls to 0, as the last step is what counts in use.
        early = config.multi_step * (1.0 - context.progress)
        # Without dropout, and with a codebook that keeps still: a task must leave nothing behind.
        with evaluating(method):
            everything = parameters_of(method)
            start = {name: everything[name] for name in self.trained}
            text = method.spec.text
            table = None if text is None else text.vectors.to(context.device, torch.float32)
            results, total, of_rates = list[TaskGradient](), dict[str, Tensor](), dict[str, Tensor]()
            if self.rates is not None:
                method.set_inner_rates(self.rates.weights())
            for t in range(n_tasks):
                # Named by the task's number, so the noise does not depend on the number of processes.
                rng = make_rng(context.device, context.seed, "task", first + t)
                try:
                    found = self._gradient(start, make_task(batch, t, config, table, rng), rng, early)
                    clip = 1.0 if self.algorithm == "reptile" else _clip_factor(found, config.task_clip)
                    _check_adapted([*results, found], n_tasks, config)
                except TrainingError:
                    if context.n_processes == 1:
                        raise
                    # The other processes wait for this one's gradient: a total that is not finite reaches
                    # them with it, and the loop stops all at the same step.
                    return self._failed()
                scale = clip / n_tasks
                accumulate(total, found.gradient, scale)
                accumulate(of_rates, found.rates, scale)
                results.append(found)
        for name, parameter in method.named_parameters():
            parameter.grad = total.get(name)
        if self.rates is not None:
            self.rates.write_gradient(of_rates)
        query = torch.tensor([found.query_loss for found in results])
        support = torch.tensor([found.support_loss for found in results])
        stats = {"support": support.mean(), "spread": query.std(correction=0)}
        return LossTerms({"query": query.mean()}, stats=stats)

    def _failed(self) -> LossTerms:
        """Return what a step reports of which a task failed; leaves no gradient behind."""
        parameters = [*self.method.parameters(), *(self.rates.parameters() if self.rates is not None else ())]
        for parameter in parameters:
            parameter.grad = None
        nothing = torch.tensor(torch.nan)
        return LossTerms({"query": nothing}, stats={"support": nothing, "spread": nothing})

    def _gradient(
        self, start: Mapping[str, Tensor], task: Task, rng: torch.Generator, early: float
    ) -> TaskGradient:
        config = self.config
        optimizer = make_inner_optimizer(config.inner_optimizer, config.inner_lr)
        what = (self.loss, start, task, optimizer, config.inner_steps, rng)
        if self.algorithm == "reptile":
            return reptile_gradient(
                *what, adapted=self.adapted, decay=config.inner_decay, batch=config.inner_batch
            )
        return maml_gradient(
            *what,
            adapted=self.adapted,
            rates=None if self.rates is None else self._factors(),
            decay=config.inner_decay,
            multi_step=early,
            first_order=self.algorithm == "fomaml",
        )

    def _factors(self) -> dict[str, Tensor]:
        assert self.rates is not None
        return dict(zip(self.rates.names, self.rates.factors().unbind(), strict=True))


def make_task(
    batch: Batch, number: int, config: MetaConfig, table: Tensor | None, rng: torch.Generator
) -> Task:
    """Cut a task out of a batch of `TaskSampler`, and make some of its classes new.

    Args:
        batch: images of some tasks.
        number: which of them.
        config: what a task is.
        table: text vectors of all classes, (n_classes, D); None for a method without texts.
        rng: of what is made new.

    Returns:
        A task whose labels count its own classes, from 0.
    """
    n_each = config.n_shot + config.n_query
    start = number * config.n_way * n_each
    images = batch.images[start : start + config.n_way * n_each].unflatten(0, (config.n_way, n_each))
    if table is None:
        labels = batch.labels[start : start + config.n_way * n_each].unflatten(0, (config.n_way, n_each))
        vectors = None
    else:
        own = batch.labels[start : start + config.n_way * n_each : n_each]
        labels = torch.arange(config.n_way, device=own.device)[:, None].expand(-1, n_each)
        new = torch.rand(config.n_way, generator=rng, device=rng.device) < config.novelty
        ways = torch.randint(
            symmetries(*images.shape[-2:]), (config.n_way,), generator=rng, device=rng.device
        )
        vectors = torch.where(new[:, None], new_words(table, config.n_way, rng), table[own])
        chosen = torch.where(new, ways, torch.zeros_like(ways)).tolist()
        images = torch.stack([turned(of_class, k) for of_class, k in zip(images, chosen, strict=True)])

    def part(columns: slice) -> Part:
        return Part(images[:, columns].flatten(0, 1), labels[:, columns].flatten(), vectors)

    return Task(part(slice(None, config.n_shot)), part(slice(config.n_shot, None)))


def _check_adapted(results: Sequence[TaskGradient], n_tasks: int, config: MetaConfig) -> None:
    """Raise `TrainingError` if adapting makes the loss of most tasks of a step far larger.

    One task alone may be far away: its gradient is clipped.
    """
    worse = [r for r in results if r.query_loss > RUNAWAY * max(1.0, abs(r.support_loss))]
    if 2 * len(worse) > n_tasks:
        raise TrainingError(
            f"Meta-training diverges: {config.inner_steps} inner updates with the learning rate "
            f"{config.inner_lr:g} take the loss of a task from {worse[-1].support_loss:.4g} to "
            f"{worse[-1].query_loss:.4g}, beyond its limit of {RUNAWAY:g} times that. {ADVICE}"
        )


def _clip_factor(found: TaskGradient, limit: float) -> float:
    """Return what brings the norm of a task's gradient down to `limit`; 0 is no limit.

    Raises:
        TrainingError: if the gradient is not finite. Its losses may be: a gradient overflows before them.
    """
    gradients = [*found.gradient.values(), *found.rates.values()]
    if not gradients:
        return 1.0
    norms = torch.stack(torch._foreach_norm(gradients))
    whole = float(torch.linalg.vector_norm(norms))
    if not math.isfinite(whole):
        raise TrainingError(
            f"The outer gradient of a task has norm {whole}, at a query loss of {found.query_loss:g}. "
            f"{ADVICE}"
        )
    norm = float(torch.linalg.vector_norm(norms[: len(found.gradient)]))
    return min(1.0, limit / (norm + 1e-12)) if limit else 1.0


def adaptation_curve(
    method: Any, config: MetaConfig, classes: OtherClasses, n_tasks: int, seed: int = 0
) -> Tensor:
    """Return the query losses of tasks after some numbers of updates, (n_tasks, len(config.curve)).

    Args:
        method: a `Method`; it is left as it is.
        config: tasks and inner loop; with fewer classes than `n_way`, all of them make a task.
        classes: where tasks come from.
        n_tasks: number of tasks.
        seed: of the tasks; the same seed gives every model the same tasks and the same noise.
    """
    advice = "Lower --tasks.adapt_lr."
    with evaluating(method):
        loss = method_loss(method)
        n_way = min(config.n_way, int((classes.images.counts() > 0).sum()))
        episodes = EpisodeSampler(
            classes.images.labels, n_way, config.n_shot, config.n_query, derive_seed(seed, "curve")
        )
        optimizer = make_inner_optimizer(config.inner_optimizer, config.final_lr)
        start, device = parameters_of(method), method.device
        vectors = None if classes.vectors is None else classes.vectors.to(device)
        result = torch.empty(n_tasks, len(config.curve), dtype=torch.float64)
        for i in range(n_tasks):
            support, query = (
                Part(classes.images.floats(rows).to(device), classes.images.labels[rows].to(device), vectors)
                for rows in episodes.support_query(i)
            )
            rng = make_rng(device, seed, "adapt", i)

            def support_loss(parameters: Mapping[str, Tensor], _: int, part: Part = support) -> Tensor:
                return loss(parameters, part, rng)  # noqa: B023 - used before the next task begins

            def visit(k: int, parameters: dict[str, Tensor], row: int = i, part: Part = query) -> None:
                if k in config.curve:
                    with torch.no_grad():
                        noise = make_rng(device, seed, "query", row)
                        value = loss(parameters_detached(parameters), part, noise)
                    result[row, config.curve.index(k)] = float(value)

            inner_loop(
                support_loss,
                start,
                optimizer,
                max(config.curve),
                adapted=method.adaptable(config.adapt),
                rates=method.rates_by_name(),
                visit=visit,
                advice=advice,
            )
    if not bool(torch.isfinite(result).all()):
        raise TrainingError(
            f"A query loss is not finite after adapting, with the learning rate {optimizer.lr:g}. {advice}"
        )
    return result


def curve_figures(method: Any, config: MetaConfig, classes: OtherClasses, seed: int = 0) -> dict[str, float]:
    """Return the adaptation curve for the log: means over tasks, and their spread after the last step."""
    curve = adaptation_curve(method, config, classes, config.validation_tasks, seed)
    figures = {
        f"{classes.name}_loss_after_{k}": float(value)
        for k, value in zip(config.curve, curve.mean(0), strict=True)
    }
    figures[f"{classes.name}_spread_after_{config.curve[-1]}"] = float(curve[:, -1].std(correction=0))
    return figures
