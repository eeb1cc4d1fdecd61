"""The one training loop.

For every stage, every step: draw a batch, let each due phase move its parameters, move the running average.
Between steps: log, validate, keep the best, preview, save, stop. A run that was stopped, or killed, continues
where its last state was saved, with the numbers it would have had without the stop.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewgen.clock import Limit
from fewgen.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    FewgenError,
    ShapeError,
    TrainingError,
    suggest,
)
from fewgen.files import atomic_write, write_json
from fewgen.fitting.seeds import derive_seed, global_seed, make_rng
from fewgen.folders import RUN, locked
from fewgen.nn.ema import EMA
from fewgen.progress import Display
from fewgen.stopping import StopRequest
from fewgen.training import run_state
from fewgen.training.checkpoint import State, read_state, write_state
from fewgen.training.config import TrainConfig
from fewgen.training.guards import Guards
from fewgen.training.logs import MetricsFile, TensorBoard
from fewgen.training.phases import Batch, Context, Pixels, Stage, Trial
from fewgen.training.processes import Processes
from fewgen.training.result import StageResult, TrainResult
from fewgen.training.sampler import make_sampler
from fewgen.training.selection import Drawn
from fewgen.training.stage_run import WARM_STEPS, StageRun
from fewgen.training.time_limit import Rehearsal, TimeLimit
from fewgen.training.updates import PhaseRun, is_finite

if TYPE_CHECKING:
    from fewgen.data.imageset import ImageSet

_AGREE_EVERY = 10
"""Steps between asking the other processes whether one of them was told to stop."""


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
        limit: time of the whole command, of which the training is a part; None: the training is all of it.
        reserved: seconds of the limit that are not the training's.
        draw: draws images of fixed seeds with the method as it is, and compares them; None: no checkpoints
            are compared.

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
        limit: Limit | None = None,
        reserved: float = 0.0,
        draw: Callable[[], Drawn] | None = None,
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
        self._stop = StopRequest(self.display.note)
        self._position = run_state.Position()
        self._guards = Guards(self.run_dir, self.processes.size)
        limit = limit or Limit(config.minutes, config.clock)
        self._time = TimeLimit(limit, reserved, self.stages, self.processes)
        self._draw = draw
        self._metrics: MetricsFile | None = None
        self._board: TensorBoard | None = None
        self._run: StageRun | None = None
        self._new_limit = False
        self.trial: Trial | None = None

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
        with locked(self.run_dir), self.surroundings():
            self._time.start()
            if self.processes.is_main:
                RUN.prepare(self.run_dir)
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
                for log in (self._metrics, self._board):
                    if log is not None:
                        log.close()

    def _train(self, state: State | None) -> TrainResult:
        train, held_out = self.pixels()
        while self._position.stage_index < len(self.stages):
            if self._asked_to_stop(at_once=True) and self._guards.saved_at is not None:
                return self._interrupted()
            try:
                run = self.begin(train, held_out, state)
            except KeyboardInterrupt:
                if not self._stop.asked:  # not by a signal that this loop watches
                    raise
                return self._interrupted()
            state = None
            if not self._run_stage(run):
                return self._interrupted()
            self._end_stage(run)
        self.display.note(
            f"Finished after {self._position.total_steps} steps in {self._time.seconds():.0f} s."
        )
        return self._result(interrupted=False)

    def pixels(self) -> tuple[Pixels, Pixels | None]:
        """Return the training images on the device, and those held out, if there are any."""
        held_out = None
        if self._held_out_images is not None and len(self._held_out_images):
            held_out = Pixels(self._held_out_images, self.device)
        return Pixels(self._train_images, self.device), held_out

    def _run_stage(self, run: StageRun) -> bool:
        """Take the steps that are left; return False when told to stop."""
        context = run.context
        phases = list(run.phases.values())
        on_cpu = self.device.type == "cpu"
        self._train_mode(run)
        autocast = self._autocast()
        several = self.processes.size > 1
        run.clock = time.monotonic()
        self._time.mark(run)
        while run.step < run.steps:
            step = run.step
            context.step, context.steps = step, run.steps
            batch = self._batch(run)
            for phase in phases:
                if step % phase.phase.every == 0:
                    entry = phase.update(batch, context, autocast)
                    run.pending.append(entry)
                    run.unchecked += 1
                    if (on_cpu or several) and not is_finite(entry):
                        self._guards.check_figures(run)
            if several:
                self.processes.agree([run.container, *run.weightings().values()])
            if run.ema is not None:
                run.ema.update(run.container)
            run.step = step + 1
            self._position.total_steps += 1
            if self._time.on and self._time.over(run):
                run.steps = context.steps = run.step
            if self._between_steps(run):
                break
            if self._asked_to_stop() and run.step < run.steps:
                self._save()
                return False
            self.display.update(run.step, run.steps)
        self._tick(run)
        return True

    def _batch(self, run: StageRun) -> Batch:
        """Return the images of the next step."""
        batch, augment = run.context.train.at(run.sampler.next()), run.stage.augment
        if augment is None:
            return batch
        with torch.no_grad():
            return Batch(augment(batch.images, run.context.rng), batch.labels, batch.indices)

    def _between_steps(self, run: StageRun) -> bool:
        """Log, validate, preview and save as due; return True to end the stage early."""
        config, step = self.config, run.step
        last = step >= run.steps
        if step % config.log_every == 0 or last:
            self._log(run)
        if self._time.on and not last:
            if self._time.due(run):
                self._time.fit(
                    run, self._rehearsals(run), self.display.note, lambda text: self._warn(run, [text])
                )
                last = step >= run.steps
            elif step in (1, WARM_STEPS) and not run.measured:
                self._time.mark(run)
        measures = run.stage.validate is not None or run.stage.diagnose is not None
        if measures and (last or _due(step, config.validate_every)):
            self._validate(run)
            patience = None if config.checkpoint == "last" else run.stage.patience
            if patience is not None and run.bad_validations >= patience:
                run.stopped_early = True
                self.display.note(
                    f'Stage "{run.stage.name}" stops early at step {step}: '
                    f"no better {run.stage.monitor} since step {run.best_step}."
                )
                return True
        if self._compares(run.stage) and run.selection.due(step, run.steps, run.stage.draw_steps):
            self._compare(run)
        if not last and _due(step, config.preview_every):
            self._preview(run, f"{step:07d}")
        if not last and _due(step, config.checkpoint_every):
            self._save()
        return False

    # ------------------------------------------------------------------ stages

    def begin(self, train: Pixels, held_out: Pixels | None, state: State | None = None) -> StageRun:
        """Set a stage up, at its start or where `state` left it."""
        index = self._position.stage_index
        stage, config, rank = self.stages[index], self.config, self.processes.rank
        context = Context(
            step=0,
            steps=config.scaled(stage.steps),
            stage=stage,
            rng=make_rng(self.device, config.seed, "train", index, rank),
            train=train,
            held_out=held_out,
            device=self.device,
            seed=config.seed,
            rank=rank,
            n_processes=self.processes.size,
            note=self.display.note,
            shortened=self._time.shortened if self.trial is None else self.trial.shortened,
        )
        seed = derive_seed(config.seed, "order", index)
        build = partial(make_sampler, stage.sampler) if isinstance(stage.sampler, str) else stage.sampler
        sampler = build(self._train_images.labels, stage.batch_size, seed, rank, self.processes.size)
        run = StageRun(stage, index, config.scaled(stage.steps), context, sampler)
        self._time.begin(run, self.display.note)
        self._run = run
        for phase in stage.phases:
            if isinstance(phase.weighting, nn.Module):
                phase.weighting.to(self.device)
        if stage.on_start is not None:
            # It may take long, and is repeated when a run goes on. Several processes must stop together.
            single = self.processes.size == 1
            with self._hook(run, "on_start", gradients=True) as hook, self._stop.at_once(single):
                stage.on_start(hook)
        # From here on the stage's own random numbers; earlier stages cannot shift them.
        torch.manual_seed(derive_seed(config.seed, "global", index, rank))
        if state is not None and state.values["stage"] is not None:
            run_state.restore_method(self.method, state, self.run_dir)
        else:
            self.processes.broadcast_module(self.method)
        for phase in stage.phases:
            run.phases[phase.name] = PhaseRun(phase, run.phases, self.processes)
        decay = config.ema_decay if stage.ema_decay is None else stage.ema_decay
        if decay > 0 and len(run.container):
            run.ema = EMA(run.container, decay)
        if state is not None and state.values["stage"] is not None:
            run_state.restore_stage(run, state, self.processes, self.run_dir)
            if self._new_limit:
                run.plan_anew()
        of_all = f"{index + 1} of {len(self.stages)}: " if len(self.stages) > 1 else ""
        self.display.start_stage(of_all + stage.name, run.step, run.steps, stage.summary)
        return run

    def _end_stage(self, run: StageRun) -> None:
        """Put the kept weights in place, run the last hook, and save the boundary."""
        stage = run.stage
        self._guards.check_figures(run)
        if (
            stage.on_end is not None
            and not run.stopped_early
            and self._guards.saved_at != self._position.total_steps
        ):
            # The hook may take long. A stage that stopped early would go on from such a state.
            self._save()
        if run.best is not None:
            run.container.load_state_dict(run.best)
        elif run.ema is not None:
            run.ema.copy_to(run.container)
        self._guards.check_weights(self.method, self._position.total_steps)
        self.method.eval()
        run.ema = None
        if stage.on_end is not None:
            with self._hook(run, "on_end", gradients=True) as hook:
                figures = stage.on_end(hook)
            if figures:
                self._write_line(run, "result", figures)
        if self._time.leaves("preview"):
            self._preview(run, "final")
        self.method.eval()
        self._tick(run)
        step, value, why = self._kept(run)
        result = StageResult(
            stage.name,
            run.step,
            run.planned,
            round(run.seconds, 3),
            step,
            value,
            run.stopped_early,
            stage.summary,
            why,
        )
        self._position.results.append(dataclasses.asdict(result))
        self._write_line(run, "stage_end", {"best_step": step, "best_value": value, "why": why})
        self._position.stage_index += 1
        self._position.finished = self._position.stage_index == len(self.stages)
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
        started = self._time.limit.spent()
        parts = (self.config.seed, "hook", name, run.index)
        rng = make_rng(self.device, *parts)
        context = dataclasses.replace(run.context, step=run.step, steps=run.steps, rng=rng, training=False)
        self.method.eval()
        run.container.eval()
        try:
            with global_seed(self.device, *parts), torch.set_grad_enabled(gradients):
                yield context
        finally:
            self._train_mode(run)
            took = self._time.limit.spent() - started
            self._time.took[name] = took
            self._time.hooks += took

    @contextmanager
    def _averaged(self, run: StageRun, best: bool = False) -> Iterator[None]:
        """Within the block the stage holds its averaged weights; its best instead, if wanted and known."""
        if best and run.best is not None:
            now = _copied(run.container)
            run.container.load_state_dict(run.best)
            try:
                yield
            finally:
                run.container.load_state_dict(now)
        else:
            with nullcontext() if run.ema is None else run.ema.applied_to(run.container):
                yield

    # ------------------------------------------------------------------ between steps

    def _log(self, run: StageRun) -> None:
        """Write means since the last line, and look for trouble."""
        self._guards.check_figures(run)
        values, totals = run.means()
        for name, total in totals.items():
            phase = run.phases[name].phase
            if phase.watch:
                self._guards.check_runaway(run, name, total)
                self._warn(run, run.watch.train(name, total, phase.advice))
        run.pending.clear()
        self._tick(run)
        self._write_line(run, "train", values)
        self.display.update(run.step, run.steps, totals)

    def _validate(self, run: StageRun) -> None:
        """Measure on held-out images with averaged weights; keep the best and count the others."""
        if run.validated_at == run.step:
            return
        run.validated_at = run.step
        stage = run.stage
        kept = better = measured = False
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
                        message = f'The held-out figure "{stage.monitor}" is not finite.'
                        self._warn(run, run.watch.note([message]))
            kept_, better_, measured_, value = self.processes.from_main([kept, better, measured, value])
            if kept_:
                run.best_step = run.step
                if self._chosen_by(stage) == "loss":
                    run.best = _copied(run.container)
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

    # ------------------------------------------------------------------ which checkpoint is kept

    def _compares(self, stage: Stage) -> bool:
        return stage.draws and self._draw is not None

    def _chosen_by(self, stage: Stage) -> str:
        """Return what chooses the weights of a stage: "loss", "images", or "" for its last step."""
        images = self._compares(stage) and not stage.keep_last
        if self.config.checkpoint == "last":
            return ""
        if stage.monitor is not None and not (images and self.config.checkpoint == "images"):
            return "loss"
        return "images" if images else ""

    def _compare(self, run: StageRun) -> None:
        """Draw images with averaged weights, note how they are, and keep the weights if they are the best."""
        assert self._draw is not None
        figures, reason = [0.0] * 4, "the first process has nothing to compare with"
        with self._averaged(run):
            if self.processes.is_main:
                try:
                    with self._hook(run, "checkpoint"):
                        drawn = self._draw()
                    figures = [1.0, drawn.distance, drawn.error, drawn.copies]
                    self._write_line(run, "checkpoint", drawn.line())
                    self._write_picture(run, f"{run.step:07d}_drawn", drawn.images, columns=len(drawn.images))
                except (DataError, ShapeError) as error:
                    reason = str(error)
            measured, distance, error_, copies = self.processes.from_main(figures)
            if not measured:
                run.selection.reason = reason
            elif run.selection.take(run.step, distance, error_, bool(copies)) and (
                self._chosen_by(run.stage) == "images"
            ):
                run.best = _copied(run.container)

    def _kept(self, run: StageRun) -> tuple[int | None, float | None, str]:
        """Return the step of the weights that a held-out figure has chosen, that figure, and why."""
        stage, by = run.stage, self._chosen_by(run.stage)
        if by == "loss":
            if run.best_step is None or run.best_value is None:
                return None, None, f"no finite held-out {stage.monitor} was measured"
            near = f"within {stage.tolerance:.0%} of the " if stage.tolerance else ""
            end = "lowest" if stage.monitor_mode == "min" else "highest"
            why = f"{near}{end} held-out {stage.monitor}, {run.best_value:.4g}"
            return run.best_step, run.best_value, why
        if by == "images":
            return run.selection.kept, run.selection.distance, run.selection.why()
        if self.config.checkpoint == "last" and (stage.monitor is not None or stage.draws):
            return None, None, "as --checkpoint last asks for"
        return None, None, stage.keep_last if stage.draws else ""

    def _preview(self, run: StageRun, name: str) -> None:
        if run.stage.preview is None or not self.processes.is_main:
            return
        with self._averaged(run), self._hook(run, "preview") as hook:
            picture = run.stage.preview(hook)
        if picture is not None:
            self._write_picture(run, name, picture)

    def _write_picture(self, run: StageRun, name: str, picture: Tensor, columns: int | None = None) -> None:
        from fewgen.data.transforms import to_pillow

        picture = _tiled(picture, columns) if picture.ndim == 4 else picture
        path = self.run_dir / "previews" / f"{run.index + 1}_{run.stage.name}_{name}.png"
        with atomic_write(path) as temporary:
            to_pillow(picture.cpu()).save(temporary, "PNG")

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
            "seconds": round(self._time.seconds(), 3),
        }
        self._metrics.write({**line, **values})
        if self._board is not None:
            self._board.write(self._position.total_steps, f"{run.stage.name}/{kind}", values)

    # ------------------------------------------------------------------ trouble

    def _note_failure(self, error: FewgenError) -> None:
        if self._run is not None and isinstance(error, TrainingError):
            with suppress(FewgenError):  # the first error is the one to tell
                self._write_line(self._run, "error", {"text": str(error)})

    def _asked_to_stop(self, at_once: bool = False) -> bool:
        if self.processes.size == 1:
            return self._stop.asked
        if not at_once and self._position.total_steps % _AGREE_EVERY:
            return False
        return self.processes.any(self._stop.asked)

    def _interrupted(self) -> TrainResult:
        step = self._run.step if self._run is not None else 0
        stage = self.stages[self._position.stage_index].name
        saved = self._guards.saved_at is not None
        where = f'The state is saved in "{self.run_dir}"; run' if saved else "Run"
        self.display.note(
            f'Stopped at step {step} of stage "{stage}", after {self._position.total_steps} steps in all. '
            f"{where} the same command again to continue."
        )
        return self._result(interrupted=True)

    def _result(self, interrupted: bool) -> TrainResult:
        stages = [StageResult(**values) for values in self._position.results]
        return TrainResult(
            run_dir=self.run_dir,
            steps=self._position.total_steps,
            seconds=self._time.seconds(),
            stages=stages,
            best={stage.name: stage.best_value for stage in stages if stage.best_value is not None},
            warnings=list(self._position.warnings),
            stopped_early=any(stage.stopped_early for stage in stages),
            interrupted=interrupted,
            finished=self._position.finished,
        )

    # ------------------------------------------------------------------ time

    def _tick(self, run: StageRun) -> None:
        now = time.monotonic()
        if run.clock is not None:
            run.seconds += now - run.clock
        run.clock = now

    def _rehearsals(self, run: StageRun) -> list[Rehearsal]:
        """What comes between steps and takes long, to be tried once."""
        stage, config = run.stage, self.config

        def rehearse(name: str, hook: Callable[[Context], Any]) -> None:
            with self._averaged(run), self._hook(run, name) as context:
                hook(context)

        found: list[Rehearsal] = []

        def draw(context: Context) -> None:
            if self._draw is not None:
                with suppress(DataError, ShapeError):  # told where it is measured
                    self._draw()

        compared = draw if self._compares(stage) and not run.selection.reason else None
        for name, hook, every in (
            ("validate", stage.validate, config.validate_every),
            ("preview", stage.preview, config.preview_every),
            ("checkpoint", compared, run.selection.interval(run.steps, stage.draw_steps)),
        ):
            if hook is not None and every and self.processes.is_main:
                found.append((name, every, partial(rehearse, name, hook)))
        return found

    # ------------------------------------------------------------------ trials, which write nothing

    def timed_step(self, run: StageRun) -> tuple[float, dict[str, float]]:
        """Take a step with all phases; return the seconds of each phase, and of what is not theirs."""
        self._train_mode(run)
        started, autocast, phases = self.now(), self._autocast(), dict[str, float]()
        batch = self._batch(run)
        for name, phase in run.phases.items():
            begun = self.now()
            phase.update(batch, run.context, autocast)
            phases[name] = self.now() - begun
        if run.ema is not None:
            run.ema.update(run.container)
        return self.now() - started - sum(phases.values()), phases

    def now(self) -> float:
        """Return the seconds of the limit that are spent, with all that the device was asked for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self._time.limit.spent()

    def measuring_seconds(self, run: StageRun, step: float) -> tuple[float, float]:
        """Return the seconds of measuring once, and their share in each step; previews cost little beside.

        Args:
            run: the stage.
            step: seconds of a step.
        """
        once = share = 0.0
        for name, every, hook in self._rehearsals(run):
            seconds = 0.0
            if name == "validate":
                hook()
                seconds = self._time.took[name]
            elif name == "checkpoint" and every < run.steps:
                seconds = run.stage.draw_steps * step  # trying it may take long
            once, share = once + seconds, share + seconds / every
        return once, share

    def heed_stop(self) -> None:
        """Raise KeyboardInterrupt if a stop was asked for: a trial has nothing to save."""
        if self._stop.asked:
            raise KeyboardInterrupt

    def skip_stage(self) -> None:
        """Leave a stage that was only tried."""
        self._position.stage_index += 1
        self._run = None

    # ------------------------------------------------------------------ saving and loading

    def _save(self) -> None:
        """Write the model file and the state; in that order, so a state never lacks its model."""
        run, position, started = self._run, self._position, self._time.limit.spent()
        if run is not None:
            self._guards.check_figures(run)
            self._tick(run)
        self._guards.check_weights(self.method, position.total_steps)
        tensors = run_state.random_states(self.processes, run)
        if self.processes.is_main:
            self._save_model()
            tensors |= run_state.with_prefix("model", self.method.state_dict())
            values: dict[str, Any] = {
                "settings": self._settings,
                **dataclasses.asdict(position),
                "seconds": self._time.seconds(),
                "limit": self._time.record(),
                "metrics_bytes": self._metrics.sync() if self._metrics is not None else 0,
                "stage": None,
                "optimizers": {},
            }
            if run is not None:
                run.settle()
                values["stage"] = run.counters()
                of_stage, values["optimizers"] = run_state.stage_tensors(run)
                tensors |= of_stage
            write_state(self.run_dir / "state", tensors, values)
            if position.finished:
                self._time.total = values["seconds"]
        self._guards.saved_at = position.total_steps
        self._time.took["save"] = self._time.limit.spent() - started

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
        with nullcontext() if run is None else self._averaged(run, best=True):
            self.method.save(self.run_dir / "model.safetensors", extra)  # type: ignore[operator]

    def _open(self) -> State | None:
        """Read the state that is there, check that it is of this run, and open the logs."""
        state = read_state(self.run_dir / "state")
        position = self._position = run_state.Position()
        self._guards.saved_at = self._time.total = self._run = None
        self._time.before, self._time.limit.before, self._new_limit, keep = 0.0, 0.0, False, 0
        if state is not None:
            try:
                run_state.compare_settings(state.values["settings"], self._settings, self.run_dir)
                position = self._position = run_state.Position.of(state)
                keep = state.values["metrics_bytes"]
            except (KeyError, TypeError) as error:
                raise CheckpointError(
                    f'The training state "{state.folder}" lacks {error}. Delete the folder "state" in '
                    f'"{self.run_dir}" to train from the start.'
                ) from error
            for warning in state.warnings:
                self.display.warn(warning)
            run_state.restore_method(self.method, state, self.run_dir)
            self._guards.saved_at = position.total_steps
            self._new_limit = self._time.resume(state.values.get("limit"), position.seconds)
            if position.finished:
                self._time.total = position.seconds
                return state
        self.processes.wait()
        if self.processes.is_main:
            self._metrics = MetricsFile(self.run_dir / "metrics.jsonl", keep)
            if self.config.tensorboard:
                self._board = TensorBoard(self.run_dir / "tensorboard", position.total_steps + 1)
            new = state is None or self._new_limit or self._moved(state)
            if self.record is not None and (new or not (self.run_dir / "config.yaml").exists()):
                from fewgen.config.io import write_yaml

                write_yaml(self.run_dir / "config.yaml", dict(self.record))
            if self.split is not None and (state is None or not (self.run_dir / "split.json").exists()):
                write_json(self.run_dir / "split.json", dict(self.split))
        return state

    def _moved(self, state: State) -> bool:
        """Tell whether the images lie elsewhere now, where later commands will look for them."""
        there = state.values["settings"].get("settings", {}).get("data")
        return (self.record or {}).get("data") not in (None, there)

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """What must be equal for a resumed run to be the same run."""
        images = {"train": self._train_images, "held_out": self._held_out_images}
        return run_state.settings_of(self.config, self.stages, images, self.processes.size, self.record or {})

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
    def surroundings(self) -> Iterator[None]:
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


def _tiled(pictures: Tensor, columns: int | None = None) -> Tensor:
    """Return pictures (N, C, H, W) as one, (C, rows * H, columns * W), white at the end."""
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    missing = -len(pictures) % columns
    filled = functional.pad(pictures, (0, 0, 0, 0, 0, 0, 0, missing), value=255)
    return torch.cat([torch.cat(list(row), dim=2) for row in filled.split(columns)], dim=1)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
