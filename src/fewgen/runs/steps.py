"""How much of its preset a run was trained for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fewgen.errors import FewgenError

if TYPE_CHECKING:
    from fewgen.runs.run import Run


def preset_model(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the method's settings as the preset of a run has them; None if it is not there any more."""
    from fewgen.config import load_preset, resolve, to_dict
    from fewgen.methods.registry import get_method

    try:
        preset = load_preset(str(config["method"]), str(config.get("preset") or "default"))
        return to_dict(resolve(get_method(str(config["method"])).Config, preset["model"]))
    except (FewgenError, KeyError):
        return None


def training_steps(run: Run) -> tuple[int, int] | None:
    """Return the steps that a run made, and those of its preset; None for a run that does not know them.

    A limit of time, `steps_scale` and settings of fewer steps cut a run; a stage that stopped early, because
    held-out images got no better, counts as whole. If a stage was cut far short, the numbers are its own.
    """
    stages = run.info.extra.get("training", {}).get("stages", [])
    if not stages:
        return None
    planned = [int(stage.get("planned_steps") or stage["steps"]) for stage in stages]
    made = [
        whole if stage.get("stopped_early") else int(stage["steps"])
        for stage, whole in zip(stages, planned, strict=True)
    ]
    config = run.config
    longer = 1.0 / float((config.get("training") or {}).get("steps_scale") or 1.0)
    own, usual = _steps_of(config.get("model")), _steps_of(preset_model(config))
    if own and usual and not config.get("meta"):
        longer *= usual / own
    from fewgen.evaluation.verdicts import UNDERTRAINED

    # A first stage that is whole must not hide that the one that draws was cut short.
    shares = [n / max(1.0, longer * whole) for n, whole in zip(made, planned, strict=True)]
    i = shares.index(min(shares))
    if shares[i] < UNDERTRAINED:
        return made[i], max(1, round(longer * planned[i]))
    return sum(made), max(1, round(longer * sum(planned)))


def _steps_of(settings: Any) -> int:
    """Return the sum of all values named `steps` in nested settings."""
    if not isinstance(settings, Mapping):
        return 0
    return sum(
        value if name == "steps" and isinstance(value, int) else _steps_of(value)
        for name, value in settings.items()
    )
