"""Teacher: a prototypical network, on a small convolution net or on DINO's image transformer."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewgen.data.imageset import ImageSet
from fewgen.distillation.storing import network_for
from fewgen.distillation.students import STUDENTS, Student
from fewgen.encoders.base import in_batches
from fewgen.encoders.image_transformer import DinoBackbone
from fewgen.episodes import EpisodeSampler
from fewgen.errors import CheckpointError, ConfigError, DataError, ShapeError
from fewgen.fitting.fit import fit
from fewgen.fitting.optimizers import AdamW
from fewgen.fitting.schedules import cosine
from fewgen.tensor_files import TensorFile, write_tensors

_FILE = TensorFile(
    format="fewgen-teacher",
    version=1,
    about="about",
    wanted="Name a teacher written by fewgen.",
    foreign="a teacher written by fewgen.",
    outdated="teacher format {version}, but this fewgen reads 1. Update fewgen, or train the teacher again.",
    damaged='The teacher "{path}" does not fit: {reason}',
)


class Teacher(Protocol):
    """Labels images of a task after a look at its supports; what it learns from these is handed back."""

    def fit(self, supports: ImageSet) -> Any:
        """Return what it learns from the supports of a task, each class of which has one or more."""

    def logits(self, images: ImageSet | Tensor, learned: Any) -> Tensor:
        """Return logits (N, n_classes), float32 on the processor; their softmax is the soft label.

        Args:
            images: an image set, or float (N, C, H, W) in [-1, 1].
            learned: of `fit`.
        """

    def predict(self, images: ImageSet | Tensor, learned: Any) -> Tensor:
        """Return classes, int64 (N,)."""


@dataclass(frozen=True)
class Prototypes:
    """What a teacher knows of one task.

    vectors: (n_classes, dim), float64: the mean feature of the supports of each class.
    counts: int64 (n_classes,), supports of each class.
    """

    vectors: Tensor
    counts: Tensor

    def __len__(self) -> int:
        return len(self.vectors)


class ProtoNet(nn.Module):
    """Prototypical network with cosine logits: scale * (cos(feature, prototype) + bias).

    Args:
        backbone: has `features(x)`: images (B, C, H, W) in [-1, 1] -> (B, dim); a `Student` without head, or
            a `DinoBackbone`.
        batch_size: images per pass outside of training.

    Attributes:
        scale: learnable, 10 at first.
        bias: learnable, 0 at first; the softmax does not see it, a threshold on a logit does.
        centre: what features and prototypes are measured from, (dim,); 0 unless `centre_on` was called.

    Source: Snell et al. 2017, arXiv:1703.05175, Eq. 1 and 2; logits as in Hu et al. 2022, arXiv:2204.07305
        (P>M>F).
    """

    centre: Tensor

    def __init__(self, backbone: Student | DinoBackbone, batch_size: int = 64) -> None:
        super().__init__()
        self.backbone = backbone
        self.batch_size = batch_size
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.bias = nn.Parameter(torch.tensor(0.0))
        self.register_buffer("centre", torch.zeros(backbone.dim))

    # ------------------------------------------------------------------------------------------- using

    @torch.no_grad()
    def embed(self, images: ImageSet | Tensor) -> Tensor:
        """Return features, (N, dim) float32 on the processor, each a function of its image alone.

        Args:
            images: an image set, or float (N, C, H, W) in [-1, 1].

        Raises:
            DataError: features that are not finite.
        """
        training, device = self.training, self.scale.device
        self.eval()
        x = images.images if isinstance(images, ImageSet) else images

        def vectors(batch: Tensor) -> Tensor:
            return self.backbone.features(_floats(batch).to(device)).cpu()

        found = in_batches(x, self.batch_size, vectors)
        self.train(training)
        bad = int((~torch.isfinite(found).all(dim=1)).sum())
        if bad:
            raise DataError(f"The teacher's features of {bad} of {len(found)} images hold NaN or infinity.")
        return found

    def fit(
        self, supports: ImageSet | Tensor, labels: Tensor | None = None, n_classes: int | None = None
    ) -> Prototypes:
        """Return the class means of the supports' features.

        Args:
            supports: an image set, or float (N, C, H, W) in [-1, 1] with `labels`.
            labels: int64 (N,); None for those of the image set.
            n_classes: None for the classes of the image set, or the largest label plus 1.

        Returns:
            `Prototypes`, the same in any order of the supports.

        Raises:
            DataError: a class without supports, or no supports.
            ShapeError: labels that do not fit.
        """
        if isinstance(supports, ImageSet):
            labels = supports.labels if labels is None else labels
            n_classes = supports.n_classes if n_classes is None else n_classes
        if labels is None or labels.dtype != torch.int64 or labels.shape != (len(supports),):
            found = None if labels is None else f"{labels.dtype} {tuple(labels.shape)}"
            raise ShapeError(f"labels must be int64 of shape ({len(supports)},), got {found}.")
        if len(supports) == 0:
            raise DataError("Prototypes need at least one support per class, but there are no supports.")
        n_classes = int(labels.max()) + 1 if n_classes is None else n_classes
        return class_means(self.embed(supports).double(), labels.cpu(), n_classes)

    def logits_of(self, features: Tensor, prototypes: Tensor) -> Tensor:
        """Return scale * (cos + bias), (B, C), of features (B, dim) and prototypes (C, dim)."""
        centre = self.centre.to(features)
        around = functional.normalize(features - centre, dim=1)
        close = around @ functional.normalize(prototypes - centre, dim=1).T
        return self.scale.to(close) * (close + self.bias.to(close))

    def centre_on(self, images: ImageSet | Tensor) -> None:
        """Measure angles from the mean feature of these images from now on.

        Features that are never negative all point the same way; a backbone that has seen few classes tells
        new ones apart much better around the mean of its base images.

        Raises:
            DataError: no images.

        Source: Wang et al. 2019, arXiv:1911.04623 (SimpleShot): centring, CL2N.
        Differs: prototypes are means of features that are not normalised yet, and compared by angle.
        """
        if len(images) == 0:
            raise DataError("A centre needs at least one image, got none.")
        self.centre.copy_(self.embed(images).double().mean(dim=0))

    @torch.no_grad()
    def logits(self, images: ImageSet | Tensor, prototypes: Prototypes) -> Tensor:
        """Return logits (N, n_classes), float32 on the processor; their softmax is the soft label.

        Args:
            images: an image set, or float (N, C, H, W) in [-1, 1].
            prototypes: of `fit`.
        """
        return self.logits_of(self.embed(images).double(), prototypes.vectors).float()

    def predict(self, images: ImageSet | Tensor, prototypes: Prototypes) -> Tensor:
        """Return the classes, int64 (N,), that the prototypes stand for."""
        return self.logits(images, prototypes).argmax(dim=1)

    # ------------------------------------------------------------------------------------------ keeping

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights and what they are of as one safetensors file, atomically.

        Raises:
            OutputError: if it cannot be written; an older file stays as it was.
        """
        about = json.dumps({"backbone": self.backbone.about(), "batch_size": self.batch_size}, sort_keys=True)
        write_tensors(path, self.state_dict(), _FILE.metadata(about))

    @classmethod
    def load(cls, path: str | os.PathLike[str], backbone: DinoBackbone | None = None) -> ProtoNet:
        """Read a saved teacher.

        Args:
            path: the file.
            backbone: for a teacher on DINO: the architecture, whose weights are replaced.

        Raises:
            CheckpointError: a damaged or foreign file, or weights of another architecture.
            ConfigError: a teacher on DINO without `backbone`.
        """
        about, tensors = _FILE.read(path)
        with _FILE.fits(path):
            kind = str(about["backbone"]["name"])
        if kind == "dino" and backbone is None:
            raise ConfigError(
                "This teacher is on DINO. Load that model first: backbone=DinoBackbone(folder or hub name)."
            )
        with _FILE.fits(path):
            teacher = cls(_backbone(about["backbone"], kind, tensors, backbone), int(about["batch_size"]))
            # Files of before teachers had a centre have none.
            teacher.load_state_dict({"centre": teacher.centre, **tensors})
        return teacher.eval()


def _backbone(
    about: dict[str, Any], kind: str, tensors: dict[str, Tensor], given: DinoBackbone | None
) -> Student | DinoBackbone:
    """Return the network that a saved teacher's weights go into."""
    if kind in STUDENTS:
        return network_for({**about, "n_classes": 0}, tensors, "backbone.")
    if kind != "dino" or given is None:
        raise CheckpointError(f'The teacher has a backbone "{kind[:40]}" that this fewgen does not know.')
    return given


def _floats(images: Tensor) -> Tensor:
    """Return uint8 or float images as float32 in [-1, 1]."""
    if images.dtype == torch.uint8:
        return images.to(torch.float32).div_(127.5).sub_(1.0)
    return images.to(torch.float32)


def class_means(features: Tensor, labels: Tensor, n_classes: int) -> Prototypes:
    """Return the mean feature of each class.

    Args:
        features: (N, dim); differentiable.
        labels: int64 (N,), in [0, n_classes).
        n_classes: rows of the result.

    Raises:
        DataError: a class without features, or a label out of range.
    """
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < n_classes:
        raise DataError(
            f"labels reach from {int(labels.min())} to {int(labels.max())}, but there are {n_classes} "
            "classes."
        )
    counts = torch.bincount(labels, minlength=n_classes)
    empty = (counts == 0).nonzero().flatten().tolist()
    if empty:
        raise DataError(
            f"A prototype needs at least one support, but {len(empty)} of {n_classes} classes have none: "
            f"{empty[:10]}."
        )
    members = functional.one_hot(labels, n_classes).to(features)
    return Prototypes(members.T @ features / counts.to(features)[:, None], counts)


# ------------------------------------------------------------------------------------------- training


def meta_train(
    teacher: ProtoNet,
    images: ImageSet,
    *,
    n_way: int = 5,
    n_shot: int = 5,
    n_query: int = 15,
    episodes: int = 40_000,
    lr: float = 5e-5,
    weight_decay: float = 1e-6,
    seed: int = 0,
    progress: Callable[[int, int, float], None] | None = None,
) -> list[dict[str, float]]:
    """Teach a prototypical network to tell classes apart from a few images, on tasks of base classes.

    Args:
        teacher: changed in place, on its device; left in evaluation mode.
        images: of base classes only.
        n_way: classes of a task.
        n_shot: supports of each class.
        n_query: queries of each class.
        episodes: tasks, one optimiser step each; the published 100 epochs of 400.
        lr: highest rate; falls along half a cosine to 0. A small net from random weights wants 1e-3 or more.
        weight_decay: decoupled.
        seed: of the tasks.
        progress: called every 50 tasks with tasks so far, tasks and loss.

    Returns:
        One row for each 50 tasks (and the last): `episode`, and means over them of `loss` and `accuracy` on
        the queries before the step.

    Raises:
        ConfigError: a setting that is not positive.
        DataError: fewer classes or images than a task needs.
        TrainingError: a loss that is not finite.

    Source: Snell et al. 2017, arXiv:1703.05175, Alg. 1; schedule of Hu et al. 2022, arXiv:2204.07305.
    Differs: AdamW for Adam with weight decay, the same to first order at 1e-6; a rate of 5e-5 instead of
        3e-3, which is high for a transformer; supports and queries pass the backbone together.
    """
    if episodes < 1 or not lr > 0 or not weight_decay >= 0:
        raise ConfigError(
            f"meta_train needs episodes >= 1, lr > 0 and weight_decay >= 0, got {episodes}, {lr} and "
            f"{weight_decay}."
        )
    sampler = EpisodeSampler(images.labels, n_way, n_shot, n_query, seed, class_names=images.class_names)
    device = teacher.scale.device
    group = {"params": list(teacher.parameters()), "lr": lr, "weight_decay": weight_decay}
    schedule = cosine()
    # Rows are grouped by class, supports first.
    support_labels = torch.arange(n_way, device=device).repeat_interleave(n_shot)
    query_labels = torch.arange(n_way, device=device).repeat_interleave(n_query)

    def figures(episode: int) -> dict[str, Tensor]:
        support, query = sampler.support_query(episode)
        features = teacher.backbone.features(images.floats(torch.cat([support, query])).to(device))
        prototypes = class_means(features[: len(support)], support_labels, n_way).vectors
        logits = teacher.logits_of(features[len(support) :], prototypes)
        right = (logits.detach().argmax(dim=1) == query_labels).double().mean()
        return {"loss": functional.cross_entropy(logits, query_labels), "accuracy": right}

    rows = fit(
        teacher,
        figures,
        AdamW([group]),
        ([lr * schedule(episode, episodes)] for episode in range(episodes)),
        failure=f"The teacher's loss became {{value}} at episode {{step}}. Lower lr (now {lr:g}).",
        report=None if progress is None else lambda done, loss: progress(done, episodes, loss),
    )
    return [{"episode": r["step"], "loss": r["loss"], "accuracy": r["accuracy"]} for r in rows]
