"""`fewgen`: finds the command, runs it, and turns the user's mistakes into one clear message.

Exit codes: 0 done, 2 a mistake that the user can mend, 130 interrupted (the same command resumes),
1 a fault of ours, with its traceback. `FEWGEN_DEBUG=1` shows the traceback of every error.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from fewgen.cli.command import Command, tell
from fewgen.errors import ConfigError, FewgenError, RenamedWarning, is_out_of_memory, suggest
from fewgen.stopping import signals_interrupt

COMMANDS: dict[str, str] = {
    "quickstart": "learn to draw digits from bundled images, with a picture and a report",
    "train": "learn a generator from your images",
    "adapt": "teach a trained run new classes from a few images",
    "generate": "make new images of a class or a text",
    "edit": "show what single codes do to an image",
    "interpolate": "walk from one word or image to another",
    "reconstruct": "send images through the model and back",
    "retrieve": "find the nearest word of an image",
    "distill": "make a tiny classifier from a few images per class",
    "evaluate": "say whether images are real, diverse, new, useful and of the wanted class",
    "benchmark": "compare generators on the same images, time and judge",
    "plan": "say how many episodes, queries or draws a result needs",
    "methods": "list the methods and their presets",
    "datasets": "list the data sets that have a name, and which are there",
    "doctor": "check this machine: Python, torch, memory, optional parts, data",
}
"""Command -> its line in the overview, in the order of a first visit. Nothing is imported for these."""

_IMAGES = "--size or the number of images"
_LOWER = {
    "quickstart": "--shots",
    "train": "--size, --model.batch_size or the widths of the network",
    "adapt": "--shots or --size",
    "generate": "-n",
    "edit": "the number of codes",
    "interpolate": "--steps",
    "reconstruct": "-n",
    "distill": "--per-class, --training.batch_size or --size",
    "evaluate": "-n or --size",
    "benchmark": "-n, --size or --jobs",
}
"""Command -> the settings that decide how much memory it takes."""

OVERVIEW = """\
usage: fewgen COMMAND [flags]

Learn an image generator from a few images per class, and draw new images from words.

commands:
{commands}

examples:
  # try it without any data
  fewgen quickstart

  # your own images: one subfolder per class
  fewgen train cada_vqvae --data photos --shots 30 --out runs/photos

  # 64 new images of one class, with labels and seeds
  fewgen generate runs/photos --class-name "ankle boot" -n 64 --out boots.npz

Each command explains itself: fewgen COMMAND --help
"""


def load_command(name: str) -> Command:
    """Return a command, importing its file.

    Raises:
        ConfigError: there is no such command.
    """
    if name not in COMMANDS:
        raise ConfigError(
            f'There is no command "{name}".{suggest(name, COMMANDS)} Commands: {", ".join(COMMANDS)}.'
        )
    command: Command = importlib.import_module(f"fewgen.cli.{name}").COMMAND
    return command


def overview() -> str:
    """Return what `fewgen --help` prints."""
    lines = [f"  {name:<14}{text}" for name, text in COMMANDS.items()]
    return OVERVIEW.format(commands="\n".join(lines))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    warnings.showwarning = _show_warning
    try:
        if not words or words[0] in ("-h", "--help"):
            print(overview(), end="")
            return 0
        if words[0] in ("-V", "--version", "version"):
            from fewgen.version import __version__

            print(f"fewgen {__version__}")
            return 0
        if words[0] == "help":
            print(load_command(words[1]).help() if len(words) > 1 else overview(), end="")
            return 0
        with signals_interrupt():
            return load_command(words[0]).main(words[1:])
    except FewgenError as error:
        if os.environ.get("FEWGEN_DEBUG") == "1":
            raise
        tell("error", str(error))
        return 2
    except KeyboardInterrupt:
        resumes = words[:1] in (["train"], ["quickstart"], ["benchmark"], ["distill"])
        resume = " Run the same command again to resume." if resumes else ""
        if words[:1] == ["distill"]:
            resume += " Images and finished students are kept; a student in training starts anew."
        print(f"\nInterrupted.{resume}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe (head, less) has gone; that is not an error worth a traceback.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # Asking whether such a file exists fails already, wherever a command looks for one.
        if error.errno != errno.ENAMETOOLONG or os.environ.get("FEWGEN_DEBUG") == "1":
            raise
        tell("error", f'The name of a file is too long: "{str(error.filename)[:40]}...".')
        return 2
    except (MemoryError, RuntimeError, ValueError) as error:
        if not is_out_of_memory(error) or os.environ.get("FEWGEN_DEBUG") == "1":
            raise
        tell("error", f"Out of memory. Lower {_LOWER.get(words[0], _IMAGES)}, or close other programs.")
        return 2


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    hidden = (DeprecationWarning, FutureWarning, PendingDeprecationWarning)
    if issubclass(category, hidden) and not issubclass(category, RenamedWarning):
        return  # for programmers, not for users of commands
    tell("warning", str(message))


if __name__ == "__main__":
    sys.exit(main())
