"""Run a benchmark by name: `python -m benchmarks speed --run runs/shoes`; see also `fewgen benchmark`."""

from __future__ import annotations

import importlib
import sys

NAMES = {
    "cada_vqvae_ablation": "what each part of CADA-VQ-VAE contributes, one setting at a time",
    "meta_learning": "trainings x shots x steps on classes never seen, and tasks per second",
    "evaluation_cost": "seconds and memory of an evaluation, from 1,000 to 50,000 images",
    "reconstruction": "SSIM of held-out images as they come back",
    "verdicts": "false alarms and misses of the verdicts over repeated draws of seven data sets",
    "photographs": "runs on photographs, judged by a network trained on the whole data set from scratch",
    "sqgan_ablation": "what each part of SQ-GAN contributes, and sizes, weights and starts of it",
    "tage": "classes never seen, from one and three pictures: AGE, nearest codes, predicted codes",
    "tint_ablation": "what each part of TINT contributes: inversion, images, students; Theorem 1; cost",
    "sqgan_speed": "seconds of a training step of SQ-GAN, by size, threads, layout and compilation",
    "startup": "seconds of short commands, each as a new process: help, import, train, generate, evaluate",
    "fuzz": "damaged files and hostile flags: every command ends with a sentence, never with a traceback",
    "time": "ten trainings with limits: whether minutes are kept and dry runs are right",
    "kills": "what is left after kills at random moments, and pairs of processes on one output",
    "lines": "lines of code of src, in total and per folder",
    "speed": "images per second of a run, and the time of `fewgen --help`",
}


def main(arguments: list[str] | None = None) -> int:
    """Hand the arguments to the named benchmark."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] not in NAMES:
        for name, about in NAMES.items():
            print(f"python -m benchmarks {name:20s} {about}")
        return 0 if not arguments or arguments[0] in ("-h", "--help") else 2
    return int(importlib.import_module(f"benchmarks.{arguments[0]}").main(arguments[1:]))


if __name__ == "__main__":
    sys.exit(main())
