"""How much of an image survives: SSIM, PSNR and squared error of held-out images as they come back.

Examples:
    python -m benchmarks reconstruction --data fashion_mnist --shots 30 --seeds 3
    python -m benchmarks reconstruction --runs runs/shoes --seeds 1

Principal components fitted on the few training images set the scale: 20 numbers and 200 numbers per image.
SSIM: 8-bit images, Gaussian window of 11 pixels and sigma 1.5, borders mirrored (`fewgen.evaluation.ssim`).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fewgen.comparison.budget import Budget
from fewgen.comparison.references.spatial_codebook import SpatialCodebook
from fewgen.comparison.sets import load_real
from fewgen.data.imageset import ImageSet, to_uint8
from fewgen.data.registry import Reading
from fewgen.errors import FewgenError
from fewgen.evaluation import mean_squared_error, psnr, ssim
from fewgen.files import write_json
from fewgen.runs.environment import environment

Reconstruct = Callable[[ImageSet], Tensor]


def pca(train: ImageSet, n_components: int) -> Reconstruct:
    """Return projection onto the leading principal components of the training images."""
    x = train.floats().flatten(1)
    mean = x.mean(dim=0)
    components = torch.linalg.svd(x - mean, full_matrices=False)[2][:n_components]

    def reconstruct(images: ImageSet) -> Tensor:
        flat = images.floats().flatten(1) - mean
        return to_uint8((flat @ components.T @ components + mean).reshape(images.images.shape))

    return reconstruct


def run(run_dir: Path) -> Reconstruct:
    """Return the reconstruction of a fewgen run."""

    def reconstruct(images: ImageSet) -> Tensor:
        import fewgen

        method = fewgen.load_run(run_dir).method
        parts = []
        with torch.no_grad():
            for chosen in torch.arange(len(images)).split(250):
                part = images.subset(chosen)
                parts.append(to_uint8(method.reconstruct(part.floats())))  # type: ignore[operator]
        return torch.cat(parts)

    return reconstruct


def figures(images: ImageSet, back: Tensor) -> dict[str, float]:
    """Return mean SSIM, PSNR in decibels (of 8-bit values) and squared error on the 0-1 scale."""
    return {
        "ssim": float(ssim(images.images, back).mean()),
        "psnr": float(psnr(images.images, back).clamp_max(100).mean()),
        "mse": float(mean_squared_error(images.images, back).mean()) / 255**2,
    }


def _spread(values: list[float]) -> str:
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.3f}"
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return f"{mean:.3f} ± {deviation:.3f}"


def main(arguments: list[str] | None = None) -> int:
    """Print a table and write it as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks reconstruction",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", default="fashion_mnist")
    parser.add_argument("--shots", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--n", type=int, default=2000, help="test images, the first of the data set")
    parser.add_argument("--minutes", type=float, default=6.0, help="training time of each preset")
    parser.add_argument("--presets", nargs="*", default=[], help="METHOD:PRESET, trained here")
    parser.add_argument("--runs", nargs="*", default=[], help="finished run folders (of seed 0)")
    parser.add_argument("--codebook", action="store_true", help="train the plain spatial codebook too")
    parser.add_argument("--out", default="runs/benchmark/reconstruction")
    parser.add_argument("--data-dir", default=None)
    options = parser.parse_args(arguments)

    found: dict[str, list[dict[str, float]]] = {}
    try:
        real = load_real(options.data, Reading(data_dir=options.data_dir))
        pool, test = real.training, real.held_out
        held_out = test.subset(torch.arange(min(options.n, len(test))))
        for seed in range(options.seeds):
            train = pool.shots(options.shots, seed)
            ways: dict[str, Reconstruct] = {"PCA 20": pca(train, 20), "PCA 200": pca(train, 200)}
            if options.codebook:
                codebook = SpatialCodebook()
                codebook.fit(train, Budget(options.minutes), seed)
                ways["plain spatial codebook"] = codebook.reconstruct
            for preset in options.presets:
                import fewgen

                method, _, name = preset.partition(":")
                folder = Path(options.out) / f"{method}-{name}-seed{seed}"
                fewgen.train(
                    method=method,
                    preset=name or "default",
                    data=options.data,
                    shots=options.shots,
                    seed=seed,
                    out=folder,
                    minutes=options.minutes,
                    report=False,
                )
                ways[preset] = run(folder)
            if seed == 0:
                ways |= {f"run {Path(folder).name}": run(Path(folder)) for folder in options.runs}
            for name, way in ways.items():
                found.setdefault(name, []).append(figures(held_out, way(held_out)))
    except FewgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    print("| held-out images through | seeds | SSIM | PSNR dB | squared error (0-1) |\n|---|---|---|---|---|")
    for name, rows in found.items():
        columns = [_spread([row[key] for row in rows]) for key in ("ssim", "psnr", "mse")]
        print(f"| {name} | {len(rows)} | " + " | ".join(columns) + " |")
    write_json(
        Path(options.out) / "reconstruction.json",
        {"environment": environment(), "n_held_out": len(held_out), "shots": options.shots, "results": found},
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
