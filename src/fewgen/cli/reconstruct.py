"""`fewgen reconstruct`: images through the model and back.

Examples:
    # the run's held-out images, above their copies
    fewgen reconstruct runs/digits --out pairs.png
    # a whole data set, in its order
    fewgen reconstruct runs/digits --data digits --split test --out recon.npz
"""

from __future__ import annotations

from typing import Any

from fewgen.cli.command import Command


def _run(given: dict[str, Any]) -> int:
    import fewgen

    result = fewgen.reconstruct(**given)
    error = (result.images.float() - result.originals.images.float()).div(255).square().mean()
    print(
        f"Wrote {len(result.images)} reconstructions, mean squared error {float(error):.4f}: {given['out']}"
    )
    return 0


COMMAND = Command(
    function="reconstruct",
    page=__doc__,
    run=_run,
    needs_out=", for example --out pairs.png",
)
