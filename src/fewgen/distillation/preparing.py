"""Teacher and student before any task: prepared on base classes once, then read from their files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from fewgen.data.imageset import ImageSet, evenly
from fewgen.diffusion.pipeline import content_hash
from fewgen.distillation.encoder_teacher import EncoderTeacher
from fewgen.distillation.knowledge import DistillConfig, distill
from fewgen.distillation.settings import PrepareConfig
from fewgen.distillation.storing import load_student, save_student
from fewgen.distillation.students import Student, make_student
from fewgen.distillation.teacher import ProtoNet, meta_train
from fewgen.encoders.image_transformer import DinoBackbone
from fewgen.encoders.named import encoders, make_image_encoder, names_encoder
from fewgen.errors import CheckpointError, ConfigError, DataError, suggest
from fewgen.fitting.seeds import derive_seed
from fewgen.progress import Progress

FEW_CLASSES = 20
"""Features of fewer base classes than this suit new classes badly; they are prepared in another way."""

CENTRE_IMAGES = 2000
"""Base images whose mean feature is the centre of a teacher."""

DINO = "dino:"
"""Before the folder or hub name of a DINO model that serves as the teacher."""


def with_turns(images: ImageSet, mirrored: bool = False) -> ImageSet:
    """Return images beside themselves turned by 90, 180 and 270 degrees, each turn of a class a class.

    Args:
        images: (N, C, H, W); those that are not square are turned by 180 degrees alone.
        mirrored: whether training mirrors images. Then there is no turn by 270 degrees, which mirrored looks
            like one by 90.

    Returns:
        As many times the images and the classes, those that were given first.

    Source: turned characters as classes: Snell et al. 2017, arXiv:1703.05175, Sec. 3.1; turns of a class as
        classes for any images: Lee et al. 2020, arXiv:1910.05872.
    """
    turns = [0, 2] if images.size[0] != images.size[1] else [0, 1, 2] if mirrored else [0, 1, 2, 3]
    labels = [images.labels + i * images.n_classes for i in range(len(turns))]
    names = [f"{name} turned {90 * k}" if k else name for k in turns for name in images.class_names]
    turned = [torch.rot90(images.images, k, (2, 3)) for k in turns]
    return ImageSet(torch.cat(turned), torch.cat(labels), tuple(names), name=images.name)


def has_few_classes(base: ImageSet) -> bool:
    """Return whether there are fewer than `FEW_CLASSES` classes with images."""
    return int((base.counts() > 0).sum()) < FEW_CLASSES


def wants_turns(base: ImageSet, turns: str) -> bool:
    """Return what "auto", "yes" or "no" means for these base images."""
    return has_few_classes(base) if turns == "auto" else turns == "yes"


def pretrained_student(
    file: Path,
    base: ImageSet,
    config: PrepareConfig,
    varied: DistillConfig,
    *,
    seed: int = 0,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> Student:
    """Return a student that learned to tell base classes apart, without a use for its head any more.

    Args:
        file: where it is kept; read if it is there.
        base: images of base classes.
        config: of the student and of this training.
        varied: its augmentation is used here, too.
        seed: of the first weights, batches and augmentation.
        device: to train on; None: the processor.
        progress: told what is done, and the share of it.

    Raises:
        DataError: fewer than two base classes.
        CheckpointError: the file is damaged.
    """
    if file.is_file():
        return load_student(file)[0]
    present = int((base.counts() > 0).sum())
    if present < 2:
        raise DataError(f"A student is prepared on 2 base classes or more, got {present}.")
    if wants_turns(base, config.turns):
        base = with_turns(base, varied.flip)
    training = {"steps": config.pretrain_steps, "batch_size": config.pretrain_batch}
    student = _classifier(
        config.student,
        config.student_channels,
        base,
        training,
        varied,
        seeds=(derive_seed(seed, "student"), derive_seed(seed, "pretraining")),
        device=device,
        progress=_share(progress, "preparing the student on base classes"),
    ).cpu()
    save_student(student, file, base.class_names)
    return student


def _classifier(
    name: str,
    channels: int,
    base: ImageSet,
    training: Mapping[str, Any],
    varied: DistillConfig,
    *,
    seeds: tuple[int, int],
    device: torch.device | None,
    progress: Callable[[int, int, float], None] | None,
) -> Student:
    """Return a network that learned to tell base classes apart, on the device; 0 steps leave it as drawn.

    Args:
        name: of the network.
        channels: its width.
        base: images of base classes.
        training: settings of `DistillConfig`.
        varied: its augmentation is used.
        seeds: of the first weights, and of batches and augmentation.
        device: to train on; None: the processor.
        progress: of `distill`.
    """
    network = make_student(name, base.shape, base.n_classes, channels=channels, seed=seeds[0])
    network.to(device or torch.device("cpu"))
    if training["steps"]:
        config = DistillConfig(**training, **varied.looks)
        distill(network, base, config=config, seed=seeds[1], progress=progress)
    return network


def trained_teacher(
    file: Path,
    base: ImageSet,
    config: PrepareConfig,
    varied: DistillConfig | None = None,
    *,
    n_way: int = 5,
    n_shot: int = 5,
    seed: int = 0,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> ProtoNet:
    """Return a prototypical network that learned base classes, first all at once, then as tasks of a few.

    Args:
        file: where it is kept; read if it is there.
        base: images of base classes.
        config: network and training.
        varied: its augmentation is used for the steps as a classifier; None for the default one.
        n_way: classes of a task; fewer where there are fewer base classes.
        n_shot: supports of each class; fewer where base classes have fewer images.
        seed: of the first weights and of the tasks.
        device: to train on; None: the processor.
        progress: told what is done, and the share of it.

    Raises:
        DataError: fewer than two base classes, or too few images in one.
        CheckpointError: the file is damaged.

    Source: Hu et al. 2022, arXiv:2204.07305: first pre-training, then tasks. Labels of the base classes for
        pre-training: Chen et al. 2021, arXiv:2003.04390 (Meta-Baseline).
    Differs: Hu et al. pre-train without labels, on many more images (DINO).
    """
    if file.is_file():
        return ProtoNet.load(file)
    varied = varied or DistillConfig()
    config = config.filled(has_few_classes(base))
    turned, plain = wants_turns(base, config.turns), base
    if turned:
        base = with_turns(base, varied.flip)
    n_way, n_shot, n_query = teacher_tasks(base, n_way, n_shot, config.teacher_query)
    training = {
        "steps": config.teacher_pretrain_steps,
        "batch_size": config.teacher_pretrain_batch,
        "lr": config.teacher_pretrain_lr,
        "drop_at": 2 / 3,
    }
    backbone = _classifier(
        config.teacher,
        config.teacher_channels,
        base,
        training,
        varied,
        seeds=(derive_seed(seed, "teacher"), derive_seed(seed, "teacher pretraining")),
        device=device,
        progress=_share(progress, "training the teacher on base classes, all at once"),
    )
    backbone.drop_head()
    teacher = ProtoNet(backbone).to(device or torch.device("cpu"))
    if config.teacher_episodes:
        meta_train(
            teacher,
            base,
            n_way=n_way,
            n_shot=n_shot,
            n_query=n_query,
            episodes=config.teacher_episodes,
            lr=config.teacher_lr,
            seed=derive_seed(seed, "teacher tasks"),
            progress=_share(progress, "training the teacher on tasks of base classes"),
        )
    # The layout of its training would make features that differ in the last digit from those of the file.
    teacher.cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    if turned:
        teacher.centre_on(plain.subset(evenly(plain.labels.tolist(), CENTRE_IMAGES)))
    teacher.save(file)
    return teacher


def teacher_tasks(base: ImageSet, n_way: int, n_shot: int, n_query: int) -> tuple[int, int, int]:
    """Return classes, supports and queries of a task that these base images can fill, at most as asked.

    Raises:
        DataError: fewer than two base classes, or a single image in one.
    """
    counts = {name: int(n) for name, n in zip(base.class_names, base.counts(), strict=True) if n}
    if len(counts) < 2:
        raise DataError(f"A teacher is trained on 2 base classes or more, got {len(counts)}.")
    name, fewest = min(counts.items(), key=lambda item: item[1])
    if fewest < 2:
        raise DataError(
            f'A teacher needs 2 images or more of each base class, but "{name}" has {fewest}. Add images, or '
            "leave the class out with --class-split."
        )
    n_shot = min(n_shot, fewest - 1)
    return min(n_way, len(counts)), n_shot, min(n_query, fewest - n_shot)


def load_teacher(
    name: str | Path, images: ImageSet, training: DistillConfig | None = None, seed: int = 0
) -> ProtoNet | EncoderTeacher:
    """Return a teacher by name.

    Args:
        name: a file of `ProtoNet.save`; "dino:" with a folder or hub name after it, for a prototypical
            network on DINO; or a pretrained image encoder.
        images: that it is to look at.
        training: of students; its augmentation makes the views that a pretrained encoder learns from.
        seed: of these views.

    Raises:
        ConfigError: a teacher for images of another shape.
        CheckpointError: the file or folder is missing or damaged.
        MissingDependencyError: transformers is not installed.
    """
    text = str(name)
    if text.startswith(DINO):
        return ProtoNet(DinoBackbone(text[len(DINO) :])).eval()
    if names_encoder("image", text):
        looks = (training or DistillConfig()).looks
        return EncoderTeacher(
            make_image_encoder(text, images), **looks, seed=derive_seed(seed, "teacher views")
        )
    if not Path(text).expanduser().is_file():
        known = [name for name, entry in encoders().items() if "image" in entry.kinds]
        raise CheckpointError(
            f'There is no teacher "{text}": it is neither a pretrained encoder, such as lite2 or '
            f"dino:FOLDER, nor a file.{suggest(text, known)}"
        )
    teacher = ProtoNet.load(text)
    own = getattr(teacher.backbone, "image_shape", None)
    if own is not None and tuple(own) != images.shape:
        raise ConfigError(
            f'The teacher "{text}" takes images of {_shown(own)}, but these are of {_shown(images.shape)} '
            "(channels x height x width). Choose another --teacher, or resize with --size."
        )
    return teacher


def teacher_id(teacher: ProtoNet | EncoderTeacher) -> str:
    """Return a hash of a teacher's weights."""
    if isinstance(teacher, EncoderTeacher):
        return teacher.id
    return content_hash(teacher.state_dict().items())[:16]


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape)


def _share(progress: Progress | None, what: str) -> Callable[[int, int, float], None] | None:
    if progress is None:
        return None
    return lambda done, total, _: progress(what, done / total)
