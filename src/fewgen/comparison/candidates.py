"""What a name after --methods stands for: a reference, a fewgen method, a finished run, foreign images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.comparison.references import REFERENCES, TAKES_TIME, make_reference
from fewgen.data.names import name_labels
from fewgen.errors import ConfigError, DataError, suggest

if TYPE_CHECKING:
    from torch import Tensor

    from fewgen.comparison.budget import Budget, Reference
    from fewgen.data.imageset import ImageSet

DEFAULT_METHODS = (
    "copies",
    "augmented_copies",
    "class_pca_gaussian",
    "conditional_vae",
    "diffusion",
    "cada_vqvae:default",
    "cada_vqvae:hybrid",
)


class FewgenGenerator:
    """A fewgen method with a preset, trained through `fewgen.train` for the minutes of the budget.

    Args:
        method: such as "cada_vqvae".
        preset: such as "hybrid".
        run_dir: where the run folder goes; a finished or stopped run there is continued or reused.
        training: keywords of `fewgen.train` that choose the images: data, shots, size and so on.
        temperature: of generation.
    """

    def __init__(
        self, method: str, preset: str, run_dir: Path, training: dict[str, Any], temperature: float = 1.0
    ) -> None:
        self.name = f"{method}:{preset}"
        self.method, self.preset, self.run_dir = method, preset, run_dir
        self.training, self.temperature = training, temperature

    def fit(self, train: ImageSet, budget: Budget, seed: int) -> dict[str, object]:
        """Train on the same images: `train` draws them again from the data, with the same seed."""
        from fewgen.api import train as train_run

        run = train_run(
            self.method,
            preset=self.preset,
            seed=seed,
            out=self.run_dir,
            minutes=budget.seconds / 60,
            report=False,
            progress=False,
            **self.training,
        )
        if run.result.interrupted:
            raise KeyboardInterrupt
        # The clock of the library is the wall's, whatever the budget counts for the references.
        return {"run": self.run_dir.name, "steps": run.result.steps, "seconds": round(run.result.seconds, 1)}

    def sample(self, labels: Tensor, seed: int) -> Tensor:
        """Generate by class, one seed per image."""
        return sample_run(self.run_dir, labels, seed, self.temperature)


def sample_run(run_dir: Path, labels: Tensor, seed: int, temperature: float) -> Tensor:
    """Return one image per label from a run folder, uint8 (N, C, H, W)."""
    from fewgen.generation import GenerationRequest, image_seeds
    from fewgen.runs import load_run

    request = GenerationRequest(labels=labels, seeds=image_seeds(seed, len(labels)), temperature=temperature)
    return load_run(run_dir).method.generate(request).images


class FinishedRun:
    """A run folder that was trained before, on the images of this seed.

    Args:
        run_dir: the run folder.
        shots: images per class of the benchmark.
        temperature: of generation.
    """

    def __init__(self, run_dir: Path, shots: int, temperature: float = 1.0) -> None:
        self.name = f"run:{run_dir.name}"
        self.run_dir, self.shots, self.temperature = run_dir, shots, temperature

    def fit(self, train: ImageSet, budget: Budget, seed: int) -> dict[str, object]:
        """Check that the run learned from these images; nothing is trained.

        Raises:
            ConfigError: it was trained with another seed, other shots or other classes: images that it
                copied could then not be found.
        """
        from fewgen.files import read_json
        from fewgen.runs import load_run
        from fewgen.runs.source import SPLIT_NAME

        run = load_run(self.run_dir)
        split = read_json(Path(run.path) / SPLIT_NAME)
        wanted = {"shots": self.shots, "seed": seed, "class_names": list(train.class_names)}
        different = [
            f"{key} {split.get(key)} there, {value} here"
            for key, value in wanted.items()
            if split.get(key) != value
        ]
        if different:
            raise ConfigError(
                f'The run "{self.run_dir}" learned from other images ({"; ".join(different)}). With several '
                "seeds, write run:FOLDER with {seed} in the name, such as run:runs/shoes-{seed}."
            )
        return {"run": self.run_dir.name}

    def sample(self, labels: Tensor, seed: int) -> Tensor:
        """Generate by class, one seed per image."""
        return sample_run(self.run_dir, labels, seed, self.temperature)


class FileOfImages:
    """Images that another program made, in an .npz or a folder with the classes of the data.

    They are taken as they are: nobody can tell here which images that program learned from.
    """

    def __init__(self, path: Path) -> None:
        self.name = f"file:{path.name}"
        self.path = path

    def fit(self, train: ImageSet, budget: Budget, seed: int) -> dict[str, object]:
        """Read the images.

        Raises:
            DataError: other classes, sizes or channels than the training images.
        """
        from fewgen.data import load_images

        images = load_images(self.path)
        numbers = tuple(str(i) for i in range(images.n_classes))
        if name_labels(images.class_names).keys() == name_labels(train.class_names).keys():
            images = images.select_classes(train.class_names)
        elif not (images.class_names == numbers and images.n_classes == train.n_classes):
            raise DataError(
                f'"{self.path}" has the classes {", ".join(images.class_names[:12])}, but the data have '
                f"{', '.join(train.class_names[:12])}. Use the same class names."
            )
        found, wanted = tuple(images.images.shape[1:]), tuple(train.images.shape[1:])
        if found != wanted:
            raise DataError(
                f'"{self.path}" holds images of (channels, height, width) {found}, but the data have '
                f"{wanted}. Save them in that size, or load the data with --size and --channels."
            )
        self.images = images
        return {"file": self.path.name}

    def sample(self, labels: Tensor, seed: int) -> Tensor:
        """Return the first images of each class; too few of a class is an error."""
        import torch

        chosen = torch.empty_like(labels)
        for c in labels.unique().tolist():
            members = (self.images.labels == c).nonzero().flatten()
            wanted = (labels == c).nonzero().flatten()
            if len(members) < len(wanted):
                raise DataError(
                    f'"{self.path}" holds {len(members)} images of class {c}, but {len(wanted)} are '
                    f"measured. Set --n to at most {len(members) * self.images.n_classes}."
                )
            chosen[wanted] = members[: len(wanted)]
        return self.images.images[chosen]


def folder_name(spec: str) -> str:
    """Return a name that is safe as a folder and different for different names.

    >>> folder_name("cada_vqvae:hybrid"), folder_name("copies")
    ('cada_vqvae-hybrid', 'copies')
    """
    import hashlib

    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", spec).strip("-.")[:80]
    if name == spec.replace(":", "-", 1):
        return name
    # What was replaced could have been anything: run:a/b and run:a-b must not share a folder.
    return f"{name}-{hashlib.blake2b(spec.encode(), digest_size=4).hexdigest()}"


def check_spec(spec: str) -> None:
    """Raise unless a name after --methods means something; reads nothing but the list of presets.

    Raises:
        ConfigError: unknown reference, method or preset, with a suggestion.
        DataError: a run or a file that is not there.
    """
    if spec in REFERENCES:
        return
    kind, separator, rest = spec.partition(":")
    if separator and kind in ("run", "file"):
        path = Path(rest)
        if not rest or ("{seed}" not in rest and not path.exists()):
            raise DataError(f'"{spec}": there is no {"run" if kind == "run" else "file or folder"} "{rest}".')
        return
    if separator and rest:
        from fewgen.config import load_preset
        from fewgen.methods import get_method

        get_method(kind)
        load_preset(kind, rest)
        return
    from fewgen.methods import method_names

    options = [*REFERENCES, *method_names()]
    closest = suggest(spec, options)
    if kind in method_names():
        closest = f' Did you mean "{kind}:default"?'
    raise ConfigError(
        f'There is no generator "{spec}".{closest} Known: {", ".join(REFERENCES)}, METHOD:PRESET such as '
        "cada_vqvae:hybrid, run:FOLDER, file:PATH."
    )


def takes_time(spec: str) -> bool:
    """Tell whether a generator uses the training budget."""
    if spec in REFERENCES:
        return spec in TAKES_TIME
    return spec.partition(":")[0] not in ("run", "file")


def make_generator(
    spec: str, cell: Path, seed: int, training: dict[str, Any], temperature: float = 1.0
) -> Reference:
    """Return the generator that a name after --methods means.

    Args:
        spec: a reference ("diffusion"), METHOD:PRESET ("cada_vqvae:hybrid"), run:FOLDER or file:PATH, where
            {seed} stands for the seed.
        cell: folder of this cell; the run folder of a fewgen method goes into it.
        seed: of this cell.
        training: keywords of `fewgen.train` that choose the images; `shots` among them.
        temperature: of generation with fewgen.

    Raises:
        ConfigError: unknown name.
    """
    check_spec(spec)
    if spec in REFERENCES:
        return make_reference(spec)
    kind, _, rest = spec.partition(":")
    if kind == "run":
        return FinishedRun(Path(rest.replace("{seed}", str(seed))), training["shots"], temperature)
    if kind == "file":
        return FileOfImages(Path(rest.replace("{seed}", str(seed))))
    return FewgenGenerator(kind, rest, cell / "run", training, temperature)
