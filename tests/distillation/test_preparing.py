from dataclasses import replace

import pytest
import torch
from tests.distillation.test_teacher import images_of

from fewgen.data.imageset import ImageSet
from fewgen.distillation import preparing
from fewgen.distillation.knowledge import DistillConfig
from fewgen.distillation.preparing import (
    FEW_CLASSES,
    pretrained_student,
    trained_teacher,
    wants_turns,
    with_turns,
)
from fewgen.distillation.settings import PrepareConfig
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
    small = replace(SMALL, teacher_pretrain_lr=0.1, turns="no")

    def made(name, **changes):
        return trained_teacher(
            tmp_path / name,
            base,
            replace(small, **changes),
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


def test_turned_images_are_classes_of_their_own():
    base = images_of(3, 4)
    turned = with_turns(base)
    assert len(turned) == 4 * len(base)
    assert turned.n_classes == 12
    assert turned.class_names[:3] == base.class_names
    assert turned.class_names[3 * 2 + 1] == f"{base.class_names[1]} turned 180"
    for k in range(4):
        part = turned.subset(range(k * len(base), (k + 1) * len(base)))
        assert torch.equal(torch.rot90(part.images, -k, (2, 3)), base.images)
        assert torch.equal(part.labels - 3 * k, base.labels)
    # Mirrored, a turn by 270 degrees looks like one by 90: it would be one class under two names.
    assert torch.equal(turned.images[3 * len(base) :].flip(3), torch.rot90(base.images.flip(3), 1, (2, 3)))
    mirrored = with_turns(base, mirrored=True)
    assert mirrored.n_classes == 9
    assert torch.equal(mirrored.images, turned.images[: 3 * len(base)])
    wide = ImageSet(base.images[:, :, :12], base.labels, base.class_names)
    assert with_turns(wide).n_classes == 6
    assert torch.equal(with_turns(wide).images[len(wide) :], wide.images.flip(2, 3))


def test_turns_are_for_few_base_classes(tmp_path):
    few, many = images_of(4, 6), images_of(FEW_CLASSES, 2)
    assert wants_turns(few, "auto")
    assert not wants_turns(many, "auto")
    assert not wants_turns(few, "no")
    assert wants_turns(many, "yes")
    # Classes without images do not count.
    assert wants_turns(many.subset((many.labels < 5).nonzero().flatten()), "auto")
    with pytest.raises(ConfigError, match="turns"):
        replace(SMALL, turns="sometimes")
    short = replace(SMALL, pretrain_steps=1, pretrain_batch=8, student_channels=4)
    for turns, outputs in (("auto", 16), ("no", 4)):
        student = pretrained_student(tmp_path / turns, few, replace(short, turns=turns), VARIED)
        assert student.n_classes == outputs


def test_a_teacher_of_few_classes_measures_from_the_mean_of_base_images(tmp_path):
    base = images_of(4, 10)
    quick = replace(SMALL, teacher_pretrain_steps=2, teacher_episodes=1)
    teacher = trained_teacher(tmp_path / "auto", base, quick, VARIED)
    features = teacher.embed(base).double()
    torch.testing.assert_close(teacher.centre.double(), features.mean(dim=0), rtol=1e-5, atol=1e-6)
    assert torch.equal(trained_teacher(tmp_path / "auto", base, quick, VARIED).centre, teacher.centre)
    assert not trained_teacher(tmp_path / "no", base, replace(quick, turns="no"), VARIED).centre.any()


def test_few_base_classes_are_learned_gently_and_without_tasks(tmp_path):
    plain = PrepareConfig()
    few, many = plain.filled(True), plain.filled(False)
    assert (few.teacher_pretrain_lr, few.teacher_episodes) == (0.02, 0)
    assert (many.teacher_pretrain_lr, many.teacher_episodes) == (0.1, 300)
    # What is given stays; without steps as a classifier there are tasks.
    given = replace(plain, teacher_pretrain_lr=0.3, teacher_episodes=7)
    assert given.filled(True) == given.filled(False) == given
    assert replace(plain, teacher_pretrain_steps=0).filled(True).teacher_episodes == 300

    def told(base, name):
        asked = set()
        quick = replace(SMALL, teacher_episodes=None, teacher_pretrain_steps=1, teacher_query=1)
        trained_teacher(
            tmp_path / name, base, quick, VARIED, n_way=2, n_shot=1, progress=lambda what, _: asked.add(what)
        )
        return {"all at once" in what for what in asked}

    assert told(images_of(4, 4), "few") == {True}
    assert told(images_of(FEW_CLASSES, 2), "many") == {True, False}


@pytest.mark.parametrize(
    ("n_classes", "flip", "classes", "lr"),
    [(4, False, 16, 0.02), (4, True, 12, 0.02), (FEW_CLASSES, True, 20, 0.1)],
)
def test_what_a_teacher_learns_as_a_classifier(n_classes, flip, classes, lr, tmp_path, monkeypatch):
    asked = []
    own = preparing.distill

    def spy(network, images, *, config, **rest):
        asked.append((network.n_classes, images.n_classes, config.lr, config.steps, config.flip))
        return own(network, images, config=config, **rest)

    monkeypatch.setattr(preparing, "distill", spy)
    quick = replace(SMALL, teacher_pretrain_steps=2, teacher_episodes=0)
    trained_teacher(tmp_path / "t", images_of(n_classes, 2), quick, replace(VARIED, flip=flip))
    assert asked == [(classes, classes, lr, 2, flip)]
