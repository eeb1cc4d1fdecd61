"""Run folders: what a trained run can be asked, adapted to and measured on."""

from fewgen.runs.run import Run, load_run

__all__ = ["Run", "load_run"]
