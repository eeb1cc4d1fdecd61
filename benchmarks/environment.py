"""What every result file records; it lives in the package, where `fewgen benchmark` needs it too."""

from fewgen.runs.environment import command_line, environment

__all__ = ["command_line", "environment"]
