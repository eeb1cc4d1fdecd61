"""What a run needs to continue: its counters, its settings, and the tensors of the stage under way."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fewgen.config.call import current_names
from fewgen.data.identity import short_fingerprint
from fewgen.errors import CheckpointError, ConfigError
from fewgen.training.checkpoint import State
from fewgen.training.config import HARMLESS, TrainConfig
from fewgen.training.phases import Stage
from fewgen.training.processes import Processes
from fewgen.training.stage_run import StageRun
from fewgen.training.updates import join_optimizer, split_optimizer

if TYPE_CHECKING:
    from fewgen.data.imageset import ImageSet


@dataclass
class Position:
    """Counters of a run; all of it goes into the state as JSON."""

    stage_index: int = 0
    total_steps: int = 0
    seconds: float = 0.0
    finished: bool = False
    warnings: list[str] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, state: State) -> Position:
        """Return the counters of a state, with what was wrong with it among the warnings."""
        found = cls(**{entry.name: state.values[entry.name] for entry in dataclasses.fields(cls)})
        found.warnings = found.warnings + state.warnings
        return found


# ------------------------------------------------------------------------------------------- tensors


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the same tensors with names that begin with `prefix` and a dot."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def of_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that `with_prefix` named so, under their own names."""
    n = len(prefix) + 1
    return {name[n:]: value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def random_states(processes: Processes, run: StageRun | None) -> dict[str, Tensor]:
    """Return the random states of all processes; all of them must call it."""
    own = {"torch": torch.get_rng_state()}
    if processes.device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(processes.device)
    if run is not None:
        own["train"] = run.context.rng.get_state()
    return {
        f"rng.{kind}.{rank}": value
        for kind, state in own.items()
        for rank, value in enumerate(processes.gather(state))
    }


def stage_tensors(run: StageRun) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what a stage has beside the method's weights, and the plain values of its optimisers."""
    tensors: dict[str, Tensor] = {}
    optimizers: dict[str, Any] = {}
    for name, phase in run.phases.items():
        if phase.owner is phase:
            parts, optimizers[name] = split_optimizer(phase.optimizer)
            tensors |= with_prefix(f"optimizer.{name}", parts)
    for name, weighting in run.weightings().items():
        tensors |= with_prefix(f"weighting.{name}", weighting.state_dict())
    if run.ema is not None:
        tensors |= with_prefix("ema", run.ema.state_dict())
    if run.best is not None:
        tensors |= with_prefix("best", run.best)
    return tensors, optimizers


def restore_method(method: nn.Module, state: State, run_dir: Path) -> None:
    """Put the weights of a state into the method.

    Raises:
        CheckpointError: they are of another method.
    """
    found = of_prefix("model", state.tensors)
    own = method.state_dict()
    if "inner_rates" in own:
        # States of before meta-learning lack the rates; theirs are ones.
        found.setdefault("inner_rates", torch.ones_like(own["inner_rates"]))
    try:
        method.load_state_dict(found)
    except RuntimeError as error:
        first = str(error).strip().splitlines()
        raise CheckpointError(
            f'The training state in "{run_dir}" does not fit this method: '
            f"{first[1].strip() if len(first) > 1 else first[0]} Use a new run folder."
        ) from error


def restore_stage(run: StageRun, state: State, processes: Processes, run_dir: Path) -> None:
    """Put back what `stage_tensors`, `StageRun.counters` and `random_states` took.

    Raises:
        CheckpointError: the state is of another stage.
    """
    rank, device, tensors = processes.rank, processes.device, state.tensors
    try:
        run.load_counters(state.values["stage"])
        for name, phase in run.phases.items():
            if phase.owner is phase:
                parts = of_prefix(f"optimizer.{name}", tensors)
                join_optimizer(phase.optimizer, parts, state.values["optimizers"][name])
        for name, weighting in run.weightings().items():
            weighting.load_state_dict(of_prefix(f"weighting.{name}", tensors))
        if run.ema is not None:
            run.ema.load_state_dict(of_prefix("ema", tensors))
        best = of_prefix("best", tensors)
        if best:
            run.best = {name: value.to(device) for name, value in best.items()}
        run.context.rng.set_state(tensors[f"rng.train.{rank}"])
        torch.set_rng_state(tensors[f"rng.torch.{rank}"])
        if device.type == "cuda":
            torch.cuda.set_rng_state(tensors[f"rng.cuda.{rank}"], device)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f'The training state in "{run_dir}" does not fit this run ({error}). Use a new run folder, or '
            'delete its folder "state" to train from the start.'
        ) from error


# ------------------------------------------------------------------------------------------ settings


def settings_of(
    config: TrainConfig,
    stages: Sequence[Stage],
    images: Mapping[str, ImageSet | None],
    n_processes: int,
    record: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what must be equal for a resumed run to be the same run, as JSON values.

    Args:
        config: settings of the loop.
        stages: of the method.
        images: name -> set.
        n_processes: how many processes train together.
        record: settings of the whole command.
    """
    settings = {
        "training": _without_harmless(config.to_dict()),
        "stages": {stage.name: _stage_settings(stage, config) for stage in stages},
        "data": {name: None if found is None else short_fingerprint(found) for name, found in images.items()},
        "processes": n_processes,
        "settings": _without_harmless(record),
    }
    return json.loads(json.dumps(settings, default=str))


def _stage_settings(stage: Stage, config: TrainConfig) -> dict[str, Any]:
    of_phase = ("lr", "betas", "weight_decay", "clip", "every", "shares")
    return {
        "steps": config.scaled(stage.steps),
        "batch_size": stage.batch_size,
        "sampler": stage.sampler if isinstance(stage.sampler, str) else "custom",
        "monitor": stage.monitor,
        "patience": stage.patience,
        "ema_decay": stage.ema_decay,
        "phases": {phase.name: {key: getattr(phase, key) for key in of_phase} for phase in stage.phases},
    }


_PLACES = frozenset({"settings.data", "settings.text_path", "settings.model.base"})
"""Where something lies. What lies there is compared: images, class vectors and the base by their content."""


def _compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as they are compared: flat, and without places."""
    flat = {
        key: value
        for key, value in _flattened(settings)
        if key not in _PLACES and not key.startswith("settings.encoders")  # whoever names them compares them
    }
    foundation, split = (flat.get(f"settings.{key}") for key in ("model.init.foundation", "class_split"))
    if isinstance(foundation, str) and foundation.startswith("clip:"):
        flat["settings.model.init.foundation"] = "clip"  # used once, before the first state
    files = settings.get("settings", {}).get("encoders") or {}
    for use in ("generator", "encoder"):
        if use in files:
            flat[f"settings.model.{use}"] = "a file"  # of weights: its digest is compared
    if isinstance(split, str) and split.endswith(".json"):
        flat["settings.class_split"] = "a file"  # the classes are compared, as split.json names them
    return flat


def compare_settings(before: Mapping[str, Any], now: Mapping[str, Any], run_dir: Path) -> None:
    """Refuse to go on with other settings than a run was started with.

    Raises:
        ConfigError: it names the first of those that differ.
    """
    before = {**before, "settings": current_names(before.get("settings", {}))}
    then, new = _compared(before), _compared(now)
    for key in ("training.checkpoint", "settings.training.checkpoint"):
        if key in new:
            then.setdefault(key, new[key])  # states of before checkpoints were compared
    changed = [key for key in dict.fromkeys([*then, *new]) if then.get(key) != new.get(key)]
    # What was asked for, before the many numbers that follow from it.
    changed.sort(key=lambda key: not key.startswith("settings."))
    if changed:
        shown = "; ".join(f"{key} was {then.get(key)}, now {new.get(key)}" for key in changed[:5])
        more = f"; and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise ConfigError(
            f'The run in "{run_dir}" was started with other settings: {shown}{more}. '
            "Use the same settings to continue it, or a new folder."
        )


def _flattened(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(values, dict):
        yield prefix, values
        return
    for key, value in values.items():
        yield from _flattened(value, f"{prefix}.{key}" if prefix else str(key))


def _without_harmless(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_harmless(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if key not in HARMLESS
    }
