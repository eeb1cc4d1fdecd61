"""Train the method of a request into its run folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from fewgen.runs.folder import is_finished
from fewgen.runs.preparing import Prepared, TrainRequest, check_same_images, prepare
from fewgen.runs.run import Run


def train_run(request: TrainRequest) -> tuple[Run, Prepared]:
    """Train, or resume what is in the folder; return the run and the images it learned from."""
    from fewgen.training import Trainer
    from fewgen.version import __version__

    out = Path(request.out)
    request.check_out()  # before anything slow: the folder is ours, or the command was wrong
    prepared = prepare(request)
    check_same_images(out, prepared)
    finished = is_finished(out, prepared.train_config.minutes)
    for note in prepared.notes:
        # Where progress goes, so that standard output stays free for results.
        print(f"note: {note}", file=sys.stderr, flush=True)
    extra: dict[str, Any] = {
        "fewgen": __version__,
        "data": prepared.split["data"],
        "n_train": len(prepared.train),
        "n_held_out": 0 if prepared.held_out is None else len(prepared.held_out),
        "shots": request.shots,
        "preset": request.preset,
        "minutes": prepared.train_config.minutes,
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
    )
    run = Run(out, notes=prepared.notes)
    run.result = trainer.run()
    run.is_main = trainer.processes.is_main
    run.was_finished = finished
    if run.result.finished:
        run.hand_on(prepared.method)  # what the file holds need not be read again
    return run, prepared
