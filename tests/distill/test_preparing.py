from dataclasses import replace

import pytest
import torch
from tests.distill.test_teacher import images_of

from fewgen.distill.knowledge import DistillConfig
from fewgen.distill.preparing import trained_teacher
from fewgen.distill.settings import PrepareConfig
from fewgen.errors import ConfigError

VARIED = DistillConfig(flip=False, padding=0, jitter=0.0)
SMALL = PrepareConfig(
    teacher="conv4",
    teacher_channels=8,
    teacher_pretrain_steps=60,
    teacher_pretrain_batch=30,
    teacher_episodes=5,
    teacher_query=5,
)


def share_right(teacher, fresh):
    """Five supports of each of four classes; all others are asked."""
    each = len(fresh) // 4
    order = torch.arange(len(fresh)).reshape(4, each)
    supports, queries = fresh.subset(order[:, :5].flatten()), fresh.subset(order[:, 5:].flatten())
    return float((teacher.predict(queries, teacher.fit(supports)) == queries.labels).double().mean())


def test_a_teacher_learns_base_classes_all_at_once_and_then_as_tasks(tmp_path):
    base = images_of(8, 20, noise=120.0)
    whole = images_of(8, 25, seed=1, noise=120.0)
    fresh = whole.select_classes(whole.class_names[:4])
    asked = []

    def made(name, **changes):
        return trained_teacher(
            tmp_path / name,
            base,
            replace(SMALL, **changes),
            VARIED,
            progress=lambda what, share: asked.append(what),
        )

    both = made("both")
    assert {what.split(", ")[-1] for what in asked} == {
        "all at once",
        "training the teacher on tasks of base classes",
    }
    assert both.backbone.n_classes == 0
    read = made("both")
    assert all(torch.equal(a, b) for a, b in zip(both.parameters(), read.parameters(), strict=True))
    # Negative control: hardly any training knows less of other images of the base classes.
    hardly = made("hardly", teacher_pretrain_steps=1, teacher_episodes=0, teacher_pretrain_lr=1e-6)
    assert share_right(both, fresh) > share_right(hardly, fresh) + 0.1


def test_either_stage_can_be_left_out(tmp_path):
    base = images_of(4, 10)
    asked: list[str] = []
    for name, changes in (
        ("first", {"teacher_episodes": 0, "teacher_pretrain_steps": 2}),
        ("second", {"teacher_pretrain_steps": 0}),
    ):
        trained_teacher(
            tmp_path / name,
            base,
            replace(SMALL, teacher="resnet12", teacher_channels=2, **changes),
            progress=lambda what, share: asked.append(what),
        )
    assert ["all at once" in what for what in asked] == [True, False]
    for wrong, words in (
        ({"teacher_episodes": 0, "teacher_pretrain_steps": 0}, "teacher_episodes"),
        ({"teacher_pretrain_lr": 0.0}, "teacher_pretrain_lr"),
        ({"teacher_pretrain_batch": 1}, "teacher_pretrain_batch"),
    ):
        with pytest.raises(ConfigError, match=words):
            replace(SMALL, **wrong)
