"""Small trained runs of a release, what they draw and how they are judged, for tests/test_golden_runs.py.

    python tests/golden/make_runs.py

Run this for a new release only: it writes `tests/golden/runs/VERSION/NAME/` and refuses to overwrite. Folders
of earlier releases stay as they are, because runs that users trained then must draw the same images now. Each
is a run folder with only what is needed to draw and to evaluate, and beside that `expected/`:

- `requests.json`: what is asked of the run, and the sha256 of the bytes of each answer;
- `images.npz`: the answers, uint8 (N, C, H, W);
- `evaluation.json`: of the folders that are evaluated.

Requests are read from the folder, not from the table below, so that the table may change from release to release.
Their words are those of this file; `answer` and `judge` translate them into keywords of fewgen. Where a
keyword is renamed, these two functions change and no stored file does.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.torch import load_file

import fewgen
from fewgen.tensor_files import write_tensors

GOLDEN = Path(__file__).resolve().parent
RUNS = GOLDEN / "runs"
EXPECTED, REQUESTS, IMAGES, EVALUATION = "expected", "requests.json", "images.npz", "evaluation.json"

# All that `load_run` and `evaluate` read. The rest of a run folder is large or says when it was made.
KEPT = ("model.safetensors", "config.yaml", "split.json", ".fewgen-run", "new_images.npz")

THREE = ["zero", "one", "two"]
# A bare name, found in the folder `glove` of FEWGEN_DATA_DIR, which is this one: no path of a machine is stored.
WORDS = {"text": "glove", "text_path": "words.txt"}

_CADA = {
    "image": {"width": 4, "hidden": 16},
    "text": {"hidden": 16, "codebook_size": 4},
    "weights": {"cross_image": 0.1},
    "steps": 40,
    "batch_size": 12,
    "lr": 0.02,
}
_SPATIAL = {
    "codebook_size": 8, "codebook_dim": 4, "width": 8, "steps": 20, "lr": 0.02,
    "prior_width": 16, "prior_layers": 1, "prior_heads": 2, "prior_steps": 20, "prior_lr": 0.01,
}  # fmt: skip
_GAN_SIZES = {"width": 4, "max_width": 8, "z_dim": 16, "w_dim": 16}
_GAN = {"network": _GAN_SIZES, "steps": 20, "batch_size": 12}
_CODES = {"quantizer": {"codebook_size": 8}, "init": {"steps": 5, "foundation_steps": 5, "batch_size": 12}}
_DENOISER = {
    "channels": [8], "attention_levels": 1, "heads": 2, "text_width": 8, "text_layers": 1, "times": 100,
}  # fmt: skip
_DIFFUSION = {"network": _DENOISER, "steps": 20, "batch_size": 12, "sampling_steps": 5, "lr": 0.01}
_AUTOENCODER = {"latent": {"channels": [8, 8], "latent_channels": 2}}

_DRAW = {
    "every class": {"kind": "generate", "n": 3, "seed": 0},
    "two classes, another seed": {"kind": "generate", "classes": ["two", "zero"], "n": 2, "seed": 5},
    "own seeds": {"kind": "generate", "classes": ["one"], "seeds": [7, 123456]},
    "temperature 0": {"kind": "generate", "classes": ["one"], "n": 1, "temperature": 0.0},
    "temperature 0.5": {"kind": "generate", "classes": ["one"], "n": 2, "temperature": 0.5},
}
_SHARPEN = {"sharpened": {"kind": "generate", "classes": ["zero"], "n": 2, "sharpen": 0.25}}
_TEXT = {"free text": {"kind": "generate", "texts": ["many", "seven even"], "n": 2}}
_CAPTION = {"free text": {"kind": "generate", "texts": ["a photo of a two"], "n": 2}}
_WALK = {"walk": {"kind": "interpolate", "a": "zero", "b": "two", "steps": 5, "seed": 1}}
_WALK_TEXT = {"walk to a free text": {"kind": "interpolate", "a": "one", "b": "odd", "steps": 3, "seed": 0}}
_BACK = {"back": {"kind": "reconstruct", "n": 6}}
_OPTIONS = {
    "options": {
        "kind": "generate", "classes": ["two"], "n": 2, "options": {"candidates": 2, "trust_noise": 0.3}
    }
}  # fmt: skip
# So little training hardly connects captions with images; strong guidance shows which caption was read.
_GUIDED = {"guidance": {"kind": "generate", "seeds": [3, 4], "options": {"scale": 100.0}}}
_BLENDS = {
    "alpha 0": {"kind": "generate", "n": 2, "alpha": 0.0},
    "alpha 0.5": {"kind": "generate", "n": 2, "alpha": 0.5},
    "alpha uniform": {"kind": "generate", "n": 2, "alpha": "uniform"},
    "alphas": {"kind": "generate", "classes": ["one"], "n": 2, "alphas": [0.0, 0.5, 1.0]},
}
_FULL = _DRAW | _TEXT | _WALK | _WALK_TEXT | _BACK

TABLE: dict[str, dict[str, Any]] = {
    "cada_vqvae": {
        "train": {"method": "cada_vqvae", "model": _CADA, **WORDS},
        "requests": _FULL | _SHARPEN,
        "evaluate": {"n": 40, "useful_draws": 0},
    },
    "cada_vqvae_hybrid": {
        "train": {
            "method": "cada_vqvae", "preset": "hybrid", "model": {**_CADA, "spatial": _SPATIAL}, **WORDS,
        },
        "requests": _FULL | _OPTIONS,
    },
    # The published image network alone has 3 MB whatever the settings, so this one is convolutional.
    "cada_vqvae_paper": {
        "train": {
            "method": "cada_vqvae", "preset": "paper", "size": 8, **WORDS,
            "model": {
                "image": {"backbone": "conv", "width": 4, "hidden": 16},
                "text": {"hidden": 16, "codebook_size": 8},
                "steps": 20,
                "lr": 0.01,
            },
        },
        "requests": _FULL,
    },
    "cada_vqvae_reptile": {
        "train": {
            "method": "cada_vqvae", "model": _CADA, **WORDS, "meta": "reptile", "class_names": None,
            "class_split": "6/2/2", "size": 12,
            "tasks": {
                "n_way": 2, "n_shot": 2, "n_query": 2, "tasks_per_step": 2, "inner_steps": 2, "steps": 5,
                "curve": [0, 1], "validation_tasks": 1, "adapt_steps": 5,
            },
        },
        "requests": _BACK | {"every class": _DRAW["every class"]},
    },
    "cada_vqvae_adapted": {
        "adapt": {
            "run": "cada_vqvae", "images": "digits", "split": "test", "class_names": ["seven", "nine"],
            "shots": 5, "steps": 20,
        },
        "requests": _FULL | {"new class": {"kind": "generate", "classes": ["seven"], "n": 3, "seed": 2}},
    },
    "sq_gan": {
        "train": {"method": "sq_gan", "model": {**_GAN, **_CODES}, "text": "onehot"},
        "requests": _DRAW,
    },
    "sq_gan_plain": {
        "train": {"method": "sq_gan", "preset": "plain", "model": _GAN, "text": "onehot"},
        "requests": _DRAW,
    },
    "sq_gan_text": {
        "train": {
            "method": "sq_gan", **WORDS,
            "model": {**_GAN, **_CODES, "network": {**_GAN_SIZES, "condition": "text"}},
        },
        "requests": _DRAW | _TEXT | _WALK | _WALK_TEXT,
    },
    "diffusion": {
        "train": {"method": "diffusion", "model": _DIFFUSION, "size": 12},
        "requests": _DRAW | _CAPTION | _WALK | _GUIDED,
    },
    "diffusion_pixel": {
        "train": {"method": "diffusion", "preset": "pixel", "model": _DIFFUSION, "size": 8},
        "requests": _DRAW | _CAPTION | _GUIDED,
    },
    "diffusion_latent": {
        "train": {
            "method": "diffusion", "preset": "latent", "size": 16,
            "model": {
                **_DIFFUSION,
                "network": {**_DENOISER, **_AUTOENCODER},
                "autoencoder": {"steps": 20, "batch_size": 12, "lr": 0.01},
            },
        },
        "requests": _DRAW | _CAPTION | _GUIDED,
    },
    "tint": {
        "train": {
            "method": "tint", "size": 12, "shots": 2, "holdout": 0,
            "model": {
                "base": "diffusion", "steps": 4, "scale": 30.0,
                "textual": {"steps": 10, "batch_size": 2, "t_min": 25},
            },
        },
        "requests": _DRAW | _BLENDS,
    },
    # Images without a run, as another program would hand them over.
    "images": {
        "draw": {"run": "cada_vqvae", "n": 20, "seed": 3},
        "requests": {},
        "evaluate": {
            "file": "made.npz", "data": "digits", "classes": THREE, "shots": 20, "holdout": "test",
            "pool": "none", "features": "pixels", "useful_draws": 0,
        },
    },
}  # fmt: skip
"""Folder -> how it is made ("train", "adapt" or "draw") and what is asked of it."""

_FREE = (
    "n", "seed", "seeds", "temperature", "alpha", "alphas", "sharpen", "options", "texts", "a", "b", "steps",
)  # fmt: skip
"""Words of a request that are keywords of fewgen by the same name."""


def answer(run: Any, request: Mapping[str, Any]) -> np.ndarray:
    """Return the images that a run gives for a request, uint8 (N, C, H, W)."""
    keywords = {name: request[name] for name in _FREE if name in request}
    if "classes" in request:
        keywords["class_names"] = request["classes"]
    if request["kind"] == "interpolate":
        keywords.pop("seed")  # of noise that a walk at temperature 0 lacks: refused since, and ignored before
    function = getattr(fewgen, request["kind"])
    return np.asarray(function(run, device="cpu", **keywords).images)


def judge(subject: str, request: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Evaluate a run, or a file in a folder, both named from the current folder; return what was written."""
    keywords = dict(request)
    if "classes" in keywords:
        keywords["class_names"] = keywords.pop("classes")
    file = keywords.pop("file", None)
    # A name from here, so that the stored evaluation holds no path of a machine.
    images = subject if file is None else f"{subject}/{file}"
    fewgen.evaluate(images, out=out, html=False, progress=False, device="cpu", **keywords)
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def digest(images: np.ndarray) -> str:
    """Return the sha256 of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()


def without_place(file: Path, place: Path) -> None:
    """Make the paths in the header of a model file relative to a folder: tint stores where its base was."""
    with safe_open(file, framework="pt") as stream:
        metadata = {key: text.replace(f"{place}{os.sep}", "") for key, text in stream.metadata().items()}
    write_tensors(file, load_file(file), metadata)


def make(name: str) -> None:
    """Make one folder inside the current one."""
    row = TABLE[name]
    folder, work = Path(name), Path(f"{name}.work")
    folder.mkdir()
    if "train" in row:
        settings = {
            "data": "digits", "class_names": THREE, "shots": 8, "holdout": 4,
            "training": {"device": "cpu", "threads": 1, "ema_decay": 0.5, "precision": "float32"},
        } | row["train"]  # fmt: skip
        fewgen.train(out=work, report=False, progress=False, **settings)
    elif "adapt" in row:
        fewgen.adapt(out=work, report=False, progress=False, device="cpu", **row["adapt"])
    else:
        asked = dict(row["draw"])
        out = folder / row["evaluate"]["file"]
        fewgen.generate(asked.pop("run"), out=out, device="cpu", **asked)
    for kept in KEPT:
        if (work / kept).is_file():
            shutil.copy2(work / kept, folder / kept)
    if (folder / "model.safetensors").is_file():
        without_place(folder / "model.safetensors", Path.cwd())
    if work.exists():
        shutil.rmtree(work)
    expected = folder / EXPECTED
    expected.mkdir()
    answers: dict[str, np.ndarray] = {}
    if row["requests"]:
        run = fewgen.load_run(folder, device="cpu")
        answers = {key: answer(run, request) for key, request in row["requests"].items()}
        np.savez_compressed(expected / IMAGES, **answers)
    asked = {
        "requests": row["requests"],
        "sha256": {key: digest(images) for key, images in answers.items()},
        "evaluate": row.get("evaluate"),
    }
    (expected / REQUESTS).write_text(json.dumps(asked, indent=1) + "\n", encoding="utf-8")
    if row.get("evaluate"):
        judge(name, row["evaluate"], expected / EVALUATION)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    spread = {key: round(float(images.std(axis=0).mean()), 1) for key, images in answers.items()}
    print(f"{name}: {size // 1000} kB; grey levels between images: {spread}", flush=True)


def main() -> int:
    """Make all folders of this version; return the exit code."""
    target = RUNS / fewgen.__version__
    if target.exists():
        print(f"error: {target} is there already, and stored runs are never made anew.", file=sys.stderr)
        return 2
    target.mkdir(parents=True)
    os.environ["FEWGEN_DATA_DIR"] = str(GOLDEN)
    os.chdir(target)
    with tempfile.TemporaryDirectory() as cache:
        # A judge that an older version trained and kept would stand in for the one of this version.
        os.environ["FEWGEN_CACHE_DIR"] = cache
        for name in TABLE:
            make(name)
    return 0


if __name__ == "__main__":
    # Sums depend on the number of threads in their last bits; the tests use one, too.
    if os.environ.get("OMP_NUM_THREADS") != "1":
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "OMP_NUM_THREADS": "1"})
    sys.exit(main())
