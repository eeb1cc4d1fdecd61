"""The one training loop.

For every stage, every step: draw a batch, let each due phase move its parameters, move the running average.
Between steps: log, validate, keep the best, preview, save, stop. A run that was stopped, or killed, continues
where its last state was saved, with the numbers it would have had without the stop.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fewgen.config.call import current_names
from fewgen.data.identity import short_fingerprint
from fewgen.errors import CheckpointError, ConfigError, DataError, FewgenError, TrainingError, suggest
from fewgen.files import atomic_write, prepare_output_dir, write_json
from fewgen.fitting.seeds import derive_seed, global_seed, make_rng
from fewgen.nn.ema import EMA
from fewgen.training.checkpoint import State, read_state, write_state
from fewgen.training.config import HARMLESS, TrainConfig
from fewgen.training.logs import Display, MetricsFile, TensorBoard
from fewgen.training.phases import Batch, Context, Pixels, Stage
from fewgen.training.processes import Processes
from fewgen.training.sampler import make_sampler
from fewgen.training.stage_run import WARM_STEPS, StageRun
from fewgen.training.updates import PhaseRun, is_finite, join_optimizer, split_optimizer, within_limit

if TYPE_CHECKING:
    from fewgen.data.imageset import ImageSet

_AGREE_EVERY = 10
"""Steps between asking the other processes whether one of them was told to stop."""


@dataclass
class StageResult:
    """How a stage ended.

    Attributes:
        name: of the stage.
        steps: taken.
        planned_steps: what was asked for, after `steps_scale`.
        seconds: of wall-clock time, over all sessions.
        best_step: step of the weights that were kept, if the stage monitors a figure.
        best_value: the best of the monitored figure.
        stopped_early: whether patience ran out.
        summary: the stage's own line.
    """

    name: str
    steps: int
    planned_steps: int
    seconds: float
    best_step: int | None = None
    best_value: float | None = None
    stopped_early: bool = False
    summary: str = ""


@dataclass
class TrainResult:
    """What training did.

    Attributes:
        run_dir: where everything lies.
        steps: taken, over all stages and sessions.
        seconds: of wall-clock time, over all sessions.
        stages: how each finished stage ended.
        best: stage name -> best monitored figure.
        warnings: divergence, swings, overfitting, collapse, repaired states.
        stopped_early: whether patience ran out in some stage.
        interrupted: whether it was told to stop; the same call continues.
        finished: whether every stage is done.
    """

    run_dir: Path
    steps: int
    seconds: float
    stages: list[StageResult]
    best: dict[str, float]
    warnings: list[str]
    stopped_early: bool
    interrupted: bool
    finished: bool


@dataclass
class _Position:
    """Counters of a run; all of it goes into the state as JSON."""

    stage: int = 0
    total_steps: int = 0
    seconds: float = 0.0
    finished: bool = False
    warnings: list[str] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)


class _StopRequest:
    """Ctrl-C and SIGTERM ask for a stop at the next step; a second Ctrl-C stops at once."""

    def __init__(self, announce: Callable[[str], None]) -> None:
        self.asked = False
        self._announce = announce
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _StopRequest:
        # Python allows signal handlers in the main thread only; elsewhere `Trainer.stop` does it.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self.asked = False

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        with suppress(RuntimeError):  # the signal may have come in the middle of another print
            self._announce("Stopping after this step and saving; press Ctrl-C again to stop without saving.")


class Trainer:
    """Trains a method's stages in a run folder, or continues what is there.

    Args:
        method: the networks; a `Method`, or any module with `save(path, extra)`.
        stages: what to do, in order; names must differ.
        train: training images.
        held_out: images set aside for validation, or None.
        config: settings of the loop.
        run_dir: run folder; created, or one of ours.
        accelerator: an `accelerate.Accelerator`; made when WORLD_SIZE says there are several processes.
        record: the resolved settings of the whole command, written to `config.yaml`. A folder that was
            started with other settings is refused.
        split: which images were used for what, written to `split.json`.
        extra: JSON values to keep inside the model file.
        display: where progress is shown.

    Raises:
        ConfigError: if settings contradict each other or those the folder was started with.
        DataError: if there are no training images.
        OutputError: if the folder cannot be written or holds something else.
    """

    def __init__(
        self,
        method: nn.Module,
        stages: Sequence[Stage],
        train: ImageSet,
        held_out: ImageSet | None,
        config: TrainConfig,
        run_dir: str | os.PathLike[str],
        accelerator: Any = None,
        *,
        record: Mapping[str, Any] | None = None,
        split: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
        display: Display | None = None,
    ) -> None:
        if not stages:
            raise ConfigError("There is nothing to train: the method returned no stages.")
        names = [stage.name for stage in stages]
        if len(set(names)) != len(names):
            raise ConfigError(f"Stage names must differ, got {', '.join(names)}.")
        if sum(stage.time_share or 0.0 for stage in stages) > 1.0 + 1e-9:
            raise ConfigError("The time_share of the stages add up to more than 1.")
        if len(train) == 0:
            raise DataError("There are no training images.")
        self.method = method
        self.stages = list(stages)
        self.config = config
        self.run_dir = Path(run_dir)
        self.record = record
        self.split = split
        self.extra = dict(extra or {})
        self.processes = Processes(config.device, accelerator)
        self.device = self.processes.device
        self.display = display or Display(config.progress and self.processes.is_main)
        self._train_images, self._held_out_images = train, held_out
        self._stop = _StopRequest(self.display.note)
        self._position = _Position()
        self._metrics: MetricsFile | None = None
        self._board: TensorBoard | None = None
        self._run: StageRun | None = None
        self._saved_at: int | None = None
        self._started = 0.0
        self._total_seconds: float | None = None
        self._hook_seconds = 0.0
        self._speed_mark = (0, 0.0, 0.0)

    # ------------------------------------------------------------------ the run

    def stop(self) -> None:
        """Ask for a stop at the next step boundary, as Ctrl-C does."""
        self._stop.asked = True

    def run(self) -> TrainResult:
        """Train to the end, or until told to stop; continue a run that is there.

        A finished run returns at once, with the method holding its final weights.

        Raises:
            TrainingError: if a loss, a gradient or a weight is no longer finite; the last state stays.
            CheckpointError: if there is a state that cannot be read.
            ConfigError: if the folder was started with other settings.
            OutputError: if something cannot be written; the last state stays.
        """
        with self._surroundings():
            self._started = time.monotonic()
            if self.processes.is_main:
                prepare_output_dir(self.run_dir)
            self.processes.wait()
            self.method.to(self.device)
            state = self._open()
            if self._position.finished:
                if self.processes.is_main and not (self.run_dir / "model.safetensors").exists():
                    self._save_model()
                return self._result(interrupted=False)
            try:
                return self._train(state)
            except FewgenError as error:
                self._note_failure(error)
                raise
            finally:
                self.display.close()
                if self._metrics is not None:
                    self._metrics.close()
                if self._board is not None:
                    self._board.close()

    def _train(self, state: State | None) -> TrainResult:
        train = Pixels(self._train_images, self.device)
        held_out = None
        if self._held_out_images is not None and len(self._held_out_images):
            held_out = Pixels(self._held_out_images, self.device)
        while self._position.stage < len(self.stages):
            if self._asked_to_stop(at_once=True) and self._saved_at is not None:
                return self._interrupted()
            run = self._begin(train, held_out, state)
            state = None
            if not self._run_stage(run):
                return self._interrupted()
            self._end_stage(run)
        self.display.note(f"Finished after {self._position.total_steps} steps in {self._seconds():.0f} s.")
        return self._result(interrupted=False)

    def _run_stage(self, run: StageRun) -> bool:
        """Take the steps that are left; return False when told to stop."""
        stage, context = run.stage, run.context
        phases = list(run.phases.values())
        augment = stage.augment
        on_cpu = self.device.type == "cpu"
        self._train_mode(run)
        autocast = self._autocast()
        several = self.processes.size > 1
        run.clock = time.monotonic()
        self._mark_speed(run)
        while run.step < run.steps:
            step = run.step
            context.step, context.steps = step, run.steps
            batch = context.train.at(run.sampler.next())
            if augment is not None:
                with torch.no_grad():
                    batch = Batch(augment(batch.images, context.rng), batch.labels, batch.indices)
            for phase in phases:
                if step % phase.phase.every == 0:
                    entry = phase.update(batch, context, autocast)
                    run.pending.append(entry)
                    run.unchecked += 1
                    if (on_cpu or several) and not is_finite(entry):
                        self._check(run)
            if several:
                self.processes.agree([run.container, *run.weightings().values()])
            if run.ema is not None:
                run.ema.update(run.container)
            run.step = step + 1
            self._position.total_steps += 1
            if self._between_steps(run):
                break
            if self._asked_to_stop() and run.step < run.steps:
                self._save()
                return False
            self.display.update(run.step, run.steps)
        self._tick(run)
        return True

    def _between_steps(self, run: StageRun) -> bool:
        """Log, validate, preview and save as due; return True to end the stage early."""
        config, step = self.config, run.step
        last = step >= run.steps
        if step % config.log_every == 0 or last:
            self._log(run)
        if config.minutes is not None:
            if step == WARM_STEPS:
                self._mark_speed(run)
            elif step == run.check_at:
                self._fit_to_limit(run)
                last = step >= run.steps
        measures = run.stage.validate is not None or run.stage.diagnose is not None
        if measures and (last or _due(step, config.validate_every)):
            self._validate(run)
            patience = run.stage.patience
            if patience is not None and run.bad_validations >= patience:
                run.stopped_early = True
                self.display.note(
                    f'Stage "{run.stage.name}" stops early at step {step}: '
                    f"no better {run.stage.monitor} since step {run.best_step}."
                )
                return True
        if not last and _due(step, config.preview_every):
            self._preview(run, f"{step:07d}")
        if not last and _due(step, config.checkpoint_every):
            self._save()
        return False

    # ------------------------------------------------------------------ stages

    def _begin(self, train: Pixels, held_out: Pixels | None, state: State | None) -> StageRun:
        """Set a stage up, at its start or where `state` left it."""
        index = self._position.stage
        stage, config, rank = self.stages[index], self.config, self.processes.rank
        context = Context(
            step=0,
            steps=self._planned(stage),
            stage=stage,
            rng=make_rng(self.device, config.seed, "train", index, rank),
            train=train,
            held_out=held_out,
            device=self.device,
            seed=config.seed,
            rank=rank,
            n_processes=self.processes.size,
            note=self.display.note,
        )
        seed = derive_seed(config.seed, "order", index)
        build = make_sampler if isinstance(stage.sampler, str) else None
        labels = self._train_images.labels
        if build is not None:
            assert isinstance(stage.sampler, str)
            sampler = build(stage.sampler, labels, stage.batch_size, seed, rank, self.processes.size)
        else:
            assert callable(stage.sampler)
            sampler = stage.sampler(labels, stage.batch_size, seed, rank, self.processes.size)
        run = StageRun(stage, index, self._planned(stage), context, sampler)
        run.seconds_before = self._seconds()
        self._run = run
        for phase in stage.phases:
            if isinstance(phase.weighting, nn.Module):
                phase.weighting.to(self.device)
        if stage.on_start is not None:
            with self._hook(run, "on_start", gradients=True) as hook:
                stage.on_start(hook)
        # From here on the stage's own random numbers; earlier stages cannot shift them.
        torch.manual_seed(derive_seed(config.seed, "global", index, rank))
        if state is not None and state.values["stage"] is not None:
            self._load_method(state)
        else:
            self.processes.broadcast_module(self.method)
        for phase in stage.phases:
            run.phases[phase.name] = PhaseRun(phase, run.phases, self.processes)
        decay = config.ema_decay if stage.ema_decay is None else stage.ema_decay
        if decay > 0 and len(run.container):
            run.ema = EMA(run.container, decay)
        if state is not None and state.values["stage"] is not None:
            self._load_stage(run, state)
        self.display.start_stage(stage.name, run.step, run.steps, stage.summary)
        return run

    def _planned(self, stage: Stage) -> int:
        return max(1, round(stage.steps * self.config.steps_scale))

    def _end_stage(self, run: StageRun) -> None:
        """Put the kept weights in place, run the last hook, and save the boundary."""
        stage = run.stage
        self._check(run)
        if (
            stage.on_end is not None
            and not run.stopped_early
            and self._saved_at != self._position.total_steps
        ):
            # The hook may take long. A stage that stopped early would go on from such a state.
            self._save()
        if run.best is not None:
            run.container.load_state_dict(run.best)
        elif run.ema is not None:
            run.ema.copy_to(run.container)
        self._check_weights()
        self.method.eval()
        run.ema = None
        if stage.on_end is not None:
            with self._hook(run, "on_end", gradients=True) as hook:
                figures = stage.on_end(hook)
            if figures:
                self._write_line(run, "result", figures)
        self._preview(run, "final")
        self.method.eval()
        self._tick(run)
        result = StageResult(
            stage.name,
            run.step,
            run.planned,
            round(run.seconds, 3),
            run.best_step,
            run.best_value,
            run.stopped_early,
            stage.summary,
        )
        self._position.results.append(dataclasses.asdict(result))
        self._write_line(run, "stage_end", {"best_step": run.best_step, "best_value": run.best_value})
        self._position.stage += 1
        self._position.finished = self._position.stage == len(self.stages)
        run.best = None
        self._run = None
        self._save()

    def _train_mode(self, run: StageRun) -> None:
        """Training mode for what this stage moves; the rest stays fixed, dropout and all."""
        self.method.eval()
        for module in run.stage.trained_modules():
            module.train()
        for phase in run.stage.phases:
            for module in phase.modules():
                module.train()
        for weighting in run.weightings().values():
            weighting.train()

    @contextmanager
    def _hook(self, run: StageRun, name: str, gradients: bool = False) -> Iterator[Context]:
        """Evaluation mode and random numbers of its own, equal at every call."""
        started = time.monotonic()
        parts = (self.config.seed, "hook", name, run.index)
        context = dataclasses.replace(
            run.context,
            step=run.step,
            steps=run.steps,
            rng=make_rng(self.device, *parts),
            training=False,
        )
        self.method.eval()
        run.container.eval()
        try:
            with global_seed(self.device, *parts), torch.set_grad_enabled(gradients):
                yield context
        finally:
            self._train_mode(run)
            self._hook_seconds += time.monotonic() - started

    @contextmanager
    def _averaged(self, run: StageRun) -> Iterator[None]:
        if run.ema is None:
            yield
        else:
            with run.ema.applied_to(run.container):
                yield

    # ------------------------------------------------------------------ between steps

    def _log(self, run: StageRun) -> None:
        """Write means since the last line, and look for trouble."""
        self._check(run)
        values: dict[str, float] = {}
        shown: dict[str, float] = {}
        for name, phase in run.phases.items():
            entries = [entry for entry in run.pending if entry.phase == name]
            if not entries:
                continue
            total = _mean([entry.total for entry in entries])
            values[f"{name}/total"] = shown[name] = total
            for part in ("terms", "stats"):
                keys = dict.fromkeys(key for entry in entries for key in getattr(entry, part))
                for key in keys:
                    series = [getattr(entry, part)[key] for entry in entries if key in getattr(entry, part)]
                    values[f"{name}/{key}"] = _mean(series)
            norms = [entry.norm for entry in entries if entry.norm is not None]
            if norms:
                values[f"{name}/grad_norm"] = _mean(norms)
            values[f"{name}/lr"] = float(phase.optimizer.param_groups[0]["lr"])
            weights = getattr(phase.weighting, "weights", None)
            if callable(weights):
                values.update({f"{name}/weight/{key}": float(value) for key, value in weights().items()})
            if phase.phase.watch:
                self._warn(run, run.watch.train(name, total))
        run.pending.clear()
        self._tick(run)
        self._write_line(run, "train", values)
        self.display.update(run.step, run.steps, shown)

    def _validate(self, run: StageRun) -> None:
        """Measure on held-out images with averaged weights; keep the best and count the others."""
        if run.validated_at == run.step:
            return
        run.validated_at = run.step
        stage = run.stage
        kept, better, measured = False, False, False
        value = 0.0
        with self._averaged(run):
            if self.processes.is_main:
                figures = self._measure(run)
                if stage.monitor is not None and figures:
                    value = figures[stage.monitor]
                    measured = True
                    sign = 1.0 if stage.monitor_mode == "min" else -1.0
                    if math.isfinite(value):
                        better = run.best_value is None or sign * value < sign * run.best_value
                        # Later weights that are as good within the tolerance are preferred.
                        kept = better or (
                            run.best_value is not None
                            and sign * (value - run.best_value) <= stage.tolerance * abs(run.best_value)
                        )
                        self._warn(run, run.watch.held_out(sign * value))
                    else:
                        self._warn(
                            run,
                            run.watch.note([f'The held-out figure "{stage.monitor}" is not finite.']),
                        )
            kept_, better_, measured_, value = self.processes.from_main(
                [float(kept), float(better), float(measured), value]
            )
            if kept_:
                run.best = {
                    name: tensor.detach().clone() for name, tensor in run.container.state_dict().items()
                }
        if kept_:
            run.best_step = run.step
        if better_:
            run.best_value, run.bad_validations = value, 0
        elif measured_:
            run.bad_validations += 1

    def _measure(self, run: StageRun) -> dict[str, float]:
        stage = run.stage
        figures: dict[str, float] = {}
        if stage.validate is not None:
            with self._hook(run, "validate") as hook:
                measured = stage.validate(hook) or {}
                figures = {name: float(value) for name, value in measured.items()}
        if stage.monitor is not None and figures and stage.monitor not in figures:
            raise ConfigError(
                f'Stage "{stage.name}" monitors "{stage.monitor}", but its validation measures '
                f"{', '.join(figures)}.{suggest(stage.monitor, figures)}"
            )
        if figures:
            self._write_line(run, "held_out", figures)
        if stage.diagnose is not None:
            with self._hook(run, "diagnose") as hook:
                self._warn(run, run.watch.note(stage.diagnose(hook)))
        return figures

    def _preview(self, run: StageRun, name: str) -> None:
        if run.stage.preview is None or not self.processes.is_main:
            return
        with self._averaged(run), self._hook(run, "preview") as hook:
            picture = run.stage.preview(hook)
        if picture is not None:
            path = self.run_dir / "previews" / f"{run.index + 1}_{run.stage.name}_{name}.png"
            write_png(path, picture)

    def _warn(self, run: StageRun, messages: Sequence[str]) -> None:
        for message in messages:
            self._position.warnings.append(message)
            if self.processes.is_main:
                self.display.warn(message)
            self._write_line(run, "warning", {"text": message})

    def _write_line(self, run: StageRun, kind: str, values: Mapping[str, Any]) -> None:
        if self._metrics is None:
            return
        line = {
            "kind": kind,
            "stage": run.stage.name,
            "step": run.step,
            "total_step": self._position.total_steps,
            "seconds": round(self._seconds(), 3),
        }
        self._metrics.write({**line, **values})
        if self._board is not None:
            numbers = {name: value for name, value in values.items() if isinstance(value, float)}
            prefix = f"{run.stage.name}/{kind}"
            self._board.write(
                self._position.total_steps, {f"{prefix}/{name}": value for name, value in numbers.items()}
            )

    # ------------------------------------------------------------------ trouble

    def _check(self, run: StageRun) -> None:
        """Raise `TrainingError` if a figure since the last look is not finite; names the first."""
        unchecked, run.unchecked = run.unchecked, 0
        if not unchecked:
            return
        run.settle()
        for entry in run.pending[-unchecked:]:
            phase = f'of phase "{entry.phase}"'
            where = f'is not finite at step {entry.step} of stage "{run.stage.name}"'
            if is_finite(entry):
                continue  # a term that is switched off may be anything
            bad = [name for name, value in entry.terms.items() if not math.isfinite(value)]
            lr = run.phases[entry.phase].owner.phase.lr
            advice = (
                f"Lower the learning rate (now {lr:g}), or lower the weight of "
                f"{'these terms' if len(bad) > 1 else 'this term' if bad else 'the largest term'}; "
                f"{self._where_to_start()}."
            )
            if bad:
                values = ", ".join(f'"{name}" ({entry.terms[name]})' for name in bad)
                if len(bad) > 1:
                    where = where.replace("is not", "are not", 1)
                plural = "s" if len(bad) > 1 else ""
                raise TrainingError(
                    f"The loss term{plural} {values} {phase} {where}. {self._last_good()} {advice}"
                )
            if math.isfinite(entry.total) and not within_limit(entry):
                raise TrainingError(
                    f"Training diverges: the total {phase} is {float(entry.total):.4g} at step {entry.step} "
                    f'of stage "{run.stage.name}", beyond its limit of {entry.limit:g}. '
                    f"{self._last_good()} {advice}"
                )
            if not math.isfinite(entry.total):
                other = " All terms of this process are." if self.processes.size > 1 else ""
                raise TrainingError(
                    f"The weighted total {phase} {where}.{other} {self._last_good()} {advice}"
                )
            raise TrainingError(f"The gradient {phase} {where}. {self._last_good()} {advice}")

    def _check_weights(self) -> None:
        """Raise `TrainingError` if a weight is not finite: such a state must not replace a good one."""
        state = self.method.state_dict()
        floating = {name: value for name, value in state.items() if value.is_floating_point()}
        if not floating:
            return
        # The largest absolute value of each tensor is NaN or infinite if any of its numbers is.
        sizes = torch._foreach_norm([value for value in floating.values() if value.numel()], ord=math.inf)
        finite = torch.isfinite(torch.stack([size.float() for size in sizes]))
        if bool(finite.all()):
            return
        names = [name for name, value in floating.items() if value.numel()]
        name = names[int((~finite).nonzero()[0])]
        raise TrainingError(
            f'The weights "{name}" are not finite after step {self._position.total_steps}. '
            f"{self._last_good()} "
            f"Lower the learning rate; {self._where_to_start()}."
        )

    def _last_good(self) -> str:
        if self._saved_at is None:
            return "Training stopped before the first checkpoint."
        return (
            f'Training stopped; the last good checkpoint, of step {self._saved_at}, is in "{self.run_dir}".'
        )

    def _where_to_start(self) -> str:
        """Say which folder other settings can use: one without a state takes them, another refuses them."""
        if self._saved_at is None:
            return "the same folder can be used again with other settings"
        return "other settings need a new folder"

    def _note_failure(self, error: FewgenError) -> None:
        if self._metrics is not None and self._run is not None and isinstance(error, TrainingError):
            try:
                self._write_line(self._run, "error", {"text": str(error)})
            except FewgenError:
                return  # the first error is the one to tell

    def _asked_to_stop(self, at_once: bool = False) -> bool:
        if self.processes.size == 1:
            return self._stop.asked
        if not at_once and self._position.total_steps % _AGREE_EVERY:
            return False
        return self.processes.any(self._stop.asked)

    def _interrupted(self) -> TrainResult:
        step = self._run.step if self._run is not None else 0
        stage = self.stages[self._position.stage].name
        self.display.note(
            f'Stopped at step {step} of stage "{stage}", after {self._position.total_steps} steps in all. '
            f'The state is saved in "{self.run_dir}"; run the same command again to continue.'
        )
        return self._result(interrupted=True)

    def _result(self, interrupted: bool) -> TrainResult:
        stages = [StageResult(**values) for values in self._position.results]
        return TrainResult(
            run_dir=self.run_dir,
            steps=self._position.total_steps,
            seconds=self._seconds(),
            stages=stages,
            best={stage.name: stage.best_value for stage in stages if stage.best_value is not None},
            warnings=list(self._position.warnings),
            stopped_early=any(stage.stopped_early for stage in stages),
            interrupted=interrupted,
            finished=self._position.finished,
        )

    # ------------------------------------------------------------------ time

    def _seconds(self) -> float:
        """Wall-clock seconds over all sessions."""
        if self._total_seconds is not None:
            return self._total_seconds
        return self._position.seconds + time.monotonic() - self._started

    def _mark_speed(self, run: StageRun) -> None:
        self._synchronize()
        self._speed_mark = (run.step, time.monotonic(), self._hook_seconds)

    def _synchronize(self) -> None:
        if self.device.type == "cuda" and self.config.minutes is not None:
            torch.cuda.synchronize(self.device)

    def _tick(self, run: StageRun) -> None:
        now = time.monotonic()
        if run.clock is not None:
            run.seconds += now - run.clock
        run.clock = now

    def _fit_to_limit(self, run: StageRun) -> None:
        """Lower the stage's steps so that it ends within its share of the `minutes` limit.

        Called after some warm-up and measured steps, and again later, because a shared machine may
        become slower. The new number is saved, so a resumed run keeps it.
        """
        limit = self._stage_limit(run)
        used = self._seconds() - run.seconds_before
        if not run.measured:
            per_step = self._measured_speed(run)
            self._mark_speed(run)
            used = self._seconds() - run.seconds_before
        else:
            # Since the last measurement or the resumption, with everything that comes between steps.
            step, clock, _ = self._speed_mark
            per_step = (time.monotonic() - clock) / max(run.step - step, 1)
        possible = run.step + int(max(0.0, 0.97 * limit - used) / max(per_step, 1e-9))
        # Later looks only correct a clear overrun: every change bends the learning-rate schedule.
        tolerance = 0 if not run.measured else max(1, run.steps // 33)
        steps = run.steps if possible >= run.steps - tolerance else max(possible, run.step)
        (steps_,) = self.processes.from_main([float(steps)])
        steps = int(steps_)
        if steps < run.steps:
            self.display.note(
                f"{run.stage.name}: {per_step * 1e3:.1f} ms per step, so {steps} of {run.planned} steps "
                "fit into "
                f"{limit:.0f} s."
            )
            if not run.measured and steps < run.planned // 10:
                self._warn(
                    run,
                    [
                        f"The limit of {self.config.minutes:g} minutes allows {steps} of {run.planned} "
                        "steps of stage "
                        f'"{run.stage.name}"; expect worse images. Raise minutes, or lower steps or '
                        "batch_size."
                    ],
                )
        run.steps = steps
        run.context.steps = steps
        run.measured = True
        ahead = [
            point for point in (steps // 4, steps // 2, 3 * steps // 4, 9 * steps // 10) if point > run.step
        ]
        run.check_at = ahead[0] if ahead else -1

    def _stage_limit(self, run: StageRun) -> float:
        """Seconds for this stage: its share of what the stages before it have left."""
        assert self.config.minutes is not None
        given = [stage.time_share for stage in self.stages]
        rest = 1.0 - sum(share for share in given if share is not None)
        without = sum(share is None for share in given)
        shares = [rest / without if share is None else share for share in given]
        ahead = sum(shares[run.index :])
        left = 60.0 * self.config.minutes - run.seconds_before
        return max(0.0, left) * (shares[run.index] / ahead if ahead > 0 else 1.0)

    def _measured_speed(self, run: StageRun) -> float:
        """Seconds per step, with its share of validation, preview and saving."""
        config, stage = self.config, run.stage
        self._synchronize()
        step, clock, hooks = self._speed_mark
        elapsed = time.monotonic() - clock - (self._hook_seconds - hooks)
        per_step = max(elapsed, 1e-9) / max(run.step - step, 1)
        occasions: list[tuple[int, Callable[[], None]]] = []
        if stage.validate is not None and config.validate_every and self.processes.is_main:
            occasions.append((config.validate_every, lambda: self._rehearse(run, "validate", stage.validate)))
        if stage.preview is not None and config.preview_every and self.processes.is_main:
            occasions.append((config.preview_every, lambda: self._rehearse(run, "preview", stage.preview)))
        for every, action in occasions:
            started = time.monotonic()
            action()
            per_step += (time.monotonic() - started) / every
        return per_step

    def _rehearse(self, run: StageRun, name: str, hook: Callable[[Context], Any] | None) -> None:
        if hook is not None:
            with self._averaged(run), self._hook(run, name) as context:
                hook(context)

    # ------------------------------------------------------------------ saving and loading

    def _save(self) -> None:
        """Write the model file and the state; in that order, so a state never lacks its model."""
        run = self._run
        if run is not None:
            self._check(run)
            self._tick(run)
        self._check_weights()
        tensors: dict[str, Tensor] = {}
        states = self.processes.gather(torch.get_rng_state())
        tensors.update({f"rng.torch.{rank}": value for rank, value in enumerate(states)})
        if self.device.type == "cuda":
            states = self.processes.gather(torch.cuda.get_rng_state(self.device))
            tensors.update({f"rng.cuda.{rank}": value for rank, value in enumerate(states)})
        if run is not None:
            states = self.processes.gather(run.context.rng.get_state())
            tensors.update({f"rng.train.{rank}": value for rank, value in enumerate(states)})
        if not self.processes.is_main:
            self._saved_at = self._position.total_steps
            return
        self._save_model()
        tensors.update({f"model.{name}": value for name, value in self.method.state_dict().items()})
        values: dict[str, Any] = {
            "settings": self._settings(),
            "stage_index": self._position.stage,
            "total_steps": self._position.total_steps,
            "seconds": self._seconds(),
            "finished": self._position.finished,
            "warnings": self._position.warnings,
            "results": self._position.results,
            "metrics_bytes": self._metrics.sync() if self._metrics is not None else 0,
            "stage": None,
            "optimizers": {},
        }
        if run is not None:
            run.settle()
            values["stage"] = run.counters()
            for name, phase in run.phases.items():
                if phase.owner is phase:
                    parts, plain = split_optimizer(phase.optimizer)
                    tensors.update({f"optimizer.{name}.{key}": value for key, value in parts.items()})
                    values["optimizers"][name] = plain
            for name, weighting in run.weightings().items():
                for key, value in weighting.state_dict().items():
                    tensors[f"weighting.{name}.{key}"] = value
            if run.ema is not None:
                tensors.update({f"ema.{key}": value for key, value in run.ema.state_dict().items()})
            if run.best is not None:
                tensors.update({f"best.{key}": value for key, value in run.best.items()})
        write_state(self.run_dir / "state", tensors, values)
        if self._position.finished:
            self._total_seconds = values["seconds"]
        self._saved_at = self._position.total_steps

    def _save_model(self) -> None:
        """Write `model.safetensors` with the weights that this moment would keep."""
        run = self._run
        extra = {
            **self.extra,
            "training": {
                "finished": self._position.finished,
                "stage": None if run is None else run.stage.name,
                "step": self._position.total_steps,
                "stages": self._position.results,
            },
        }
        path = self.run_dir / "model.safetensors"
        if run is not None and run.best is not None:
            now = {name: value.detach().clone() for name, value in run.container.state_dict().items()}
            run.container.load_state_dict(run.best)
            try:
                self.method.save(path, extra)  # type: ignore[operator]
            finally:
                run.container.load_state_dict(now)
        elif run is not None:
            with self._averaged(run):
                self.method.save(path, extra)  # type: ignore[operator]
        else:
            self.method.save(path, extra)  # type: ignore[operator]

    def _open(self) -> State | None:
        """Read the state that is there, check that it is of this run, and open the logs."""
        state = read_state(self.run_dir / "state")
        position = self._position = _Position()
        self._saved_at = None
        self._total_seconds = None
        self._run = None
        if state is not None:
            values = state.values
            try:
                self._compare_settings(values["settings"])
                position.stage = values["stage_index"]
                position.total_steps = values["total_steps"]
                position.seconds = values["seconds"]
                position.finished = values["finished"]
                position.warnings = values["warnings"] + state.warnings
                position.results = values["results"]
                keep = values["metrics_bytes"]
            except (KeyError, TypeError) as error:
                raise CheckpointError(
                    f'The training state "{state.folder}" lacks {error}. Delete the folder "state" in '
                    f'"{self.run_dir}" to train from the start.'
                ) from error
            for warning in state.warnings:
                self.display.warn(warning)
            self._load_method(state)
            self._saved_at = position.total_steps
            if position.finished:
                self._total_seconds = position.seconds
                return state
        else:
            keep = 0
        self.processes.wait()
        if self.processes.is_main:
            self._metrics = MetricsFile(self.run_dir / "metrics.jsonl", keep)
            if self.config.tensorboard:
                self._board = TensorBoard(self.run_dir / "tensorboard", position.total_steps + 1)
            if self.record is not None and (state is None or not (self.run_dir / "config.yaml").exists()):
                from fewgen.config.io import write_yaml

                write_yaml(self.run_dir / "config.yaml", dict(self.record))
            if self.split is not None and (state is None or not (self.run_dir / "split.json").exists()):
                write_json(self.run_dir / "split.json", dict(self.split))
        return state

    def _load_method(self, state: State) -> None:
        found = {name[6:]: value for name, value in state.tensors.items() if name.startswith("model.")}
        own = self.method.state_dict()
        if "inner_rates" in own:
            # States of before meta-learning lack the rates; theirs are ones.
            found.setdefault("inner_rates", torch.ones_like(own["inner_rates"]))
        try:
            self.method.load_state_dict(found)
        except RuntimeError as error:
            first = str(error).strip().splitlines()
            raise CheckpointError(
                f'The training state in "{self.run_dir}" does not fit this method: '
                f"{first[1].strip() if len(first) > 1 else first[0]} Use a new run folder."
            ) from error

    def _load_stage(self, run: StageRun, state: State) -> None:
        def group(prefix: str) -> dict[str, Tensor]:
            n = len(prefix)
            return {name[n:]: value for name, value in state.tensors.items() if name.startswith(prefix)}

        rank = self.processes.rank
        try:
            run.load_counters(state.values["stage"])
            for name, phase in run.phases.items():
                if phase.owner is phase:
                    join_optimizer(
                        phase.optimizer, group(f"optimizer.{name}."), state.values["optimizers"][name]
                    )
            for name, weighting in run.weightings().items():
                weighting.load_state_dict(group(f"weighting.{name}."))
            if run.ema is not None:
                run.ema.load_state_dict(group("ema."))
            best = group("best.")
            if best:
                run.best = {name: value.to(self.device) for name, value in best.items()}
            run.context.rng.set_state(state.tensors[f"rng.train.{rank}"])
            torch.set_rng_state(state.tensors[f"rng.torch.{rank}"])
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(state.tensors[f"rng.cuda.{rank}"], self.device)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f'The training state in "{self.run_dir}" does not fit this run ({error}). Use a new run '
                "folder, or "
                'delete its folder "state" to train from the start.'
            ) from error

    def _settings(self) -> dict[str, Any]:
        """What must be equal for a resumed run to be the same run."""
        if not hasattr(self, "_settings_"):
            config = {key: value for key, value in self.config.to_dict().items() if key not in HARMLESS}
            settings = {
                "training": config,
                "stages": {stage.name: self._stage_settings(stage) for stage in self.stages},
                "data": {
                    "train": short_fingerprint(self._train_images),
                    "held_out": None
                    if self._held_out_images is None
                    else short_fingerprint(self._held_out_images),
                },
                "processes": self.processes.size,
                "settings": _without_harmless(self.record or {}),
            }
            self._settings_ = json.loads(json.dumps(settings, default=str))
        return dict(self._settings_)

    def _stage_settings(self, stage: Stage) -> dict[str, Any]:
        fields = ("lr", "betas", "weight_decay", "clip", "every", "shares")
        return {
            "steps": self._planned(stage),
            "batch_size": stage.batch_size,
            "sampler": stage.sampler if isinstance(stage.sampler, str) else "custom",
            "monitor": stage.monitor,
            "patience": stage.patience,
            "ema_decay": stage.ema_decay,
            "phases": {phase.name: {key: getattr(phase, key) for key in fields} for phase in stage.phases},
        }

    def _compare_settings(self, before: dict[str, Any]) -> None:
        before = {**before, "settings": current_names(before.get("settings", {}))}
        then, now = _flatten(before), _flatten(self._settings())
        changed = [key for key in dict.fromkeys([*then, *now]) if then.get(key) != now.get(key)]
        # What was asked for, before the many numbers that follow from it.
        changed.sort(key=lambda key: not key.startswith("settings."))
        if changed:
            shown = "; ".join(f"{key} was {then.get(key)}, now {now.get(key)}" for key in changed[:5])
            more = f"; and {len(changed) - 5} more" if len(changed) > 5 else ""
            raise ConfigError(
                f'The run in "{self.run_dir}" was started with other settings: {shown}{more}. '
                "Use the same settings to continue it, or a new folder."
            )

    # ------------------------------------------------------------------ surroundings

    def _autocast(self) -> AbstractContextManager[Any]:
        precision = self.config.precision
        if precision == "auto":
            mixed = str(getattr(self.processes.accelerator, "mixed_precision", "no"))
            cuda = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
            precision = "bfloat16" if cuda or mixed == "bf16" else "float32"
        if precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    @contextmanager
    def _surroundings(self) -> Iterator[None]:
        """Set threads, random state, deterministic kernels and signals; put all back afterwards."""
        threads = torch.get_num_threads()
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)
        cuda = self.device.type == "cuda"
        deterministic = torch.are_deterministic_algorithms_enabled()
        memory: Any = torch.utils.deterministic
        fill = memory.fill_uninitialized_memory
        benchmark = torch.backends.cudnn.benchmark
        if cuda and self.config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
            memory.fill_uninitialized_memory = False
            torch.backends.cudnn.benchmark = False
        try:
            with torch.random.fork_rng(devices=[self.device] if cuda else []), self._stop:
                yield
        finally:
            torch.set_num_threads(threads)
            if cuda and self.config.deterministic:
                torch.use_deterministic_algorithms(deterministic)
                memory.fill_uninitialized_memory = fill
                torch.backends.cudnn.benchmark = benchmark


def write_png(path: Path, picture: Tensor) -> None:
    """Write uint8 (C, H, W), or (N, C, H, W) tiled in a near-square, as a PNG, atomically."""
    from PIL import Image

    if picture.ndim == 4:
        n, c, h, w = picture.shape
        columns = math.ceil(math.sqrt(n))
        rows = math.ceil(n / columns)
        filled = picture.new_full((rows * columns, c, h, w), 255)
        filled[:n] = picture
        picture = filled.view(rows, columns, c, h, w).permute(2, 0, 3, 1, 4).reshape(c, rows * h, columns * w)
    pixels = picture.cpu().permute(1, 2, 0).numpy()
    with atomic_write(path) as temporary:
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(temporary, "PNG")


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _mean(values: Sequence[Any]) -> float:
    return sum(float(value) for value in values) / len(values)


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: values}
    result: dict[str, Any] = {}
    for key, value in values.items():
        result.update(_flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return result


def _without_harmless(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_harmless(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if key not in HARMLESS
    }
