"""Train the method of a request into its run folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from fewgen.clock import Limit, shown_minutes
from fewgen.progress import shown_seconds
from fewgen.runs.checkpoints import checkpoint_images
from fewgen.runs.preparing import (
    Prepared,
    TrainRequest,
    checked,
    configs,
)
from fewgen.runs.run import Run


def train_run(request: TrainRequest, *, whole: bool = True) -> tuple[Run, Prepared]:
    """Train, or resume what is in the folder; return the run and the images it learned from.

    Args:
        request: what `train` is asked for.
        whole: the limit of time is that of the whole command; False: of its training alone.
    """
    from fewgen.training import Trainer
    from fewgen.version import __version__

    out = Path(request.out)
    config = configs(request)[1]
    limit = Limit(config.minutes, config.clock)
    prepared, finished = checked(request)
    reserved = 0.0
    if config.minutes is not None and not finished:
        reserved = _split(prepared, request.report, limit, out)
        if not whole:
            limit = Limit(config.minutes, config.clock)
    for note in prepared.notes:
        # Where progress goes, so that standard output stays free for results.
        print(f"note: {note}", file=sys.stderr, flush=True)
    extra: dict[str, Any] = {
        "fewgen": __version__,
        "data": prepared.split["data"],
        "n_train": len(prepared.train),
        "n_held_out": 0 if prepared.held_out is None else len(prepared.held_out),
        "shots": request.shots,
        "preset": prepared.settings["preset"],
        "minutes": prepared.train_config.minutes,
        "clock": prepared.train_config.clock,
    }
    if prepared.meta is not None:
        extra["meta"] = {"algorithm": prepared.meta, **prepared.tasks.to_dict()}
    trainer = Trainer(
        prepared.method,
        prepared.stages(),
        prepared.train,
        prepared.held_out,
        prepared.train_config,
        out,
        record=prepared.settings,
        split=prepared.split,
        extra=extra,
        limit=limit,
        reserved=reserved,
        draw=checkpoint_images(prepared),
    )
    run = Run(out, notes=prepared.notes)
    run.result = trainer.run()
    run.is_main = trainer.processes.is_main
    run.was_finished = finished
    run.limit = limit
    if run.result.finished:
        run.hand_on(prepared.method)  # what the file holds need not be read again
    return run, prepared


def _split(prepared: Prepared, report: bool, limit: Limit, out: Path) -> float:
    """Return the seconds of a limit that measuring and the report get, and say how it is split.

    Raises:
        ConfigError: the limit is shorter than the first steps.
    """
    from fewgen.runs.timing import check_limit, try_run

    assert limit.minutes is not None
    found = try_run(prepared, report)
    if not (out / "state").is_dir():
        check_limit(found, limit.minutes, limit.left())
    reserved = found.reserved(max(0.0, limit.left()))
    if reserved and prepared.train_config.progress:
        print(
            f"The limit of {shown_minutes(limit.minutes)}: {shown_seconds(limit.left() - reserved)} for "
            f"training, {shown_seconds(reserved)} for measuring and the report.",
            file=sys.stderr,
            flush=True,
        )
    return reserved
