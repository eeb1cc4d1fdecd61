"""`fewgen reconstruct`: images through the model and back."""

from __future__ import annotations

from typing import Any

from fewgen.cli.command import Argument, Command
from fewgen.errors import ConfigError


def _run(given: dict[str, Any]) -> int:
    import fewgen
    from fewgen.config.call import call_settings, unwrapped

    out = call_settings(unwrapped(fewgen.reconstruct), given)["out"]
    if out is None:
        raise ConfigError("fewgen reconstruct needs --out, for example --out pairs.png")
    result = fewgen.reconstruct(**given)
    error = (result.images.float() - result.originals.images.float()).div(255).square().mean()
    print(f"Wrote {len(result.images)} reconstructions, mean squared error {float(error):.4f}: {out}")
    return 0


COMMAND = Command(
    name="reconstruct",
    function="reconstruct",
    summary="send images through the model and back",
    arguments=(
        Argument("run", positional=True, metavar="RUN"),
        Argument("data", metavar="D"),
        Argument("split", metavar="PART"),
        Argument("n", int | None, "N", short="-n"),
        Argument("fit", metavar="HOW"),
        Argument("out", str | None, "OUT"),
        Argument("overwrite", bool),
        Argument("data_dir", metavar="DIR"),
        Argument("download", bool),
        Argument("device", metavar="NAME"),
    ),
    examples=(
        ("fewgen reconstruct runs/digits --out pairs.png", "the run's held-out images, above their copies"),
        (
            "fewgen reconstruct runs/digits --data digits --split test --out recon.npz",
            "a whole data set, in its order",
        ),
    ),
    run=_run,
)
