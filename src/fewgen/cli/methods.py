"""`fewgen methods`: which methods there are, their presets and their settings.

Examples:
    # what there is
    fewgen methods
    # every setting of a preset, ready for --config
    fewgen methods cada_vqvae --preset paper
"""

from __future__ import annotations

import textwrap

from fewgen.cli.command import Command
from fewgen.config.keywords import refuse_ignored


def methods(method: str | None = None, *, preset: str | None = None) -> int:
    """List the methods and their presets; with a method, print all its settings as YAML.

    Args:
        method: show the settings of this one.
        preset: which of its presets.
    """
    from fewgen.config import list_presets, load_preset
    from fewgen.methods.registry import method_names, method_origin

    if method is None:
        refuse_ignored("without a method", {"preset": preset}, {"preset": None}, "preset")
        for name in method_names():
            origin = method_origin(name)
            print(f"{name}  (from {origin})" if origin else name)
            for other in list_presets(name):
                description = load_preset(name, other)["description"]
                print(f"  --preset {other:<10} {' '.join(description.split())}".rstrip())
        print("\nSettings of one: fewgen methods METHOD --preset NAME")
        return 0
    return _one(method, preset or "default")


def _one(name: str, preset: str) -> int:
    from fewgen.config import dump_yaml, load_preset, resolve
    from fewgen.methods import get_method
    from fewgen.training import TrainConfig

    method = get_method(name)
    values = load_preset(name, preset)
    print(f"# {name}, preset {preset}")
    for key in ("description", "expected"):
        if values[key]:
            for line in textwrap.wrap(f"{key}: {' '.join(values[key].split())}", 94):
                print(f"# {line}")
    print(f"# can: {', '.join(sorted(method.capabilities))}")
    settings = {
        "method": name,
        "preset": preset,
        "model": resolve(method.Config, values["model"], where="model"),
        "training": resolve(TrainConfig, values["training"], where="training"),
    }
    print(dump_yaml(settings), end="")
    return 0


COMMAND = Command(methods, __doc__, run=lambda given: methods(**given))
