import dataclasses

import numpy as np
import pytest
import torch
from tests.reference import naive_distill as naive

from fewgen.data.imageset import ImageSet
from fewgen.distillation import knowledge
from fewgen.distillation.knowledge import (
    SOURCES,
    DistillConfig,
    accuracy,
    distill,
    distillation_loss,
    kd_loss,
    predict_logits,
    three_parts,
    vary,
)
from fewgen.distillation.students import make_student
from fewgen.distillation.teacher import ProtoNet
from fewgen.errors import ConfigError, DataError, ShapeError, TrainingError
from fewgen.fitting.fit import Shuffled
from fewgen.fitting.optimizers import SGD

QUIET = {"padding": 0, "jitter": 0.0, "flip": False}


def logits(n: int, c: int, seed: int, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(n, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images_of(n_classes: int, each: int, seed: int = 0, noise: float = 60.0, offset: int = 0) -> ImageSet:
    """Each class is noise around its own picture."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.rand(50, 1, 16, 16, generator=torch.Generator().manual_seed(99)) * 255
    labels = torch.arange(n_classes).repeat_interleave(each)
    x = centres[labels + offset] + noise * torch.randn(len(labels), 1, 16, 16, generator=rng)
    return ImageSet(
        x.clamp(0, 255).to(torch.uint8), labels, tuple(f"c{i + offset}" for i in range(n_classes))
    )


def student_of(n_classes: int = 3, seed: int = 0):
    return make_student("conv4", (1, 16, 16), n_classes, channels=8, seed=seed)


def teacher_of() -> ProtoNet:
    return ProtoNet(make_student("conv4", (1, 16, 16), 0, channels=8, seed=5))


# ------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_kd_loss_is_that_of_the_loops(temperature) -> None:
    student, teacher = logits(6, 5, 0), logits(6, 5, 1)
    wanted = np.mean(
        [naive.kd_row(s, t, temperature) for s, t in zip(student.numpy(), teacher.numpy(), strict=True)]
    )
    assert float(kd_loss(student, teacher, temperature)) == pytest.approx(wanted, rel=1e-10)


def test_kd_loss_is_zero_only_for_equal_probabilities() -> None:
    x = logits(4, 5, 0)
    assert float(kd_loss(x, x, 4.0)) == 0.0
    assert float(kd_loss(x + 3.0, x, 4.0)) == pytest.approx(0.0, abs=1e-12)
    assert float(kd_loss(x, x.flip(1), 4.0)) > 0.01


def gradient_norms(loss, temperatures) -> list[float]:
    found = []
    for temperature in temperatures:
        student = logits(8, 5, 0, 0.1).requires_grad_()
        loss(student, logits(8, 5, 1, 0.1), temperature).backward()
        found.append(float(student.grad.norm()))
    return found


def test_the_size_of_the_gradient_does_not_depend_on_the_temperature() -> None:
    small, large = gradient_norms(kd_loss, (4.0, 40.0))
    assert large == pytest.approx(small, rel=0.02)


def test_negative_control_without_the_factor_the_gradient_vanishes() -> None:
    small, large = gradient_norms(lambda s, t, temp: kd_loss(s, t, temp) / temp**2, (4.0, 40.0))
    assert large == pytest.approx(small / 100, rel=0.02)


def test_the_limit_of_high_temperature_is_the_squared_distance_of_centred_logits() -> None:
    student, teacher = logits(8, 5, 0), logits(8, 5, 1)
    a, b = (x - x.mean(dim=1, keepdim=True) for x in (student, teacher))
    wanted = float((a - b).square().sum(dim=1).mean()) / (2 * 5)
    assert float(kd_loss(student, teacher, 1e4)) == pytest.approx(wanted, rel=1e-3)


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = logits(4, 3, 0).requires_grad_(), logits(4, 3, 1).requires_grad_()
    kd_loss(student, teacher, 2.0).backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("hard_labels", [False, True])
@pytest.mark.parametrize(
    "parts",
    [
        {"support": 4, "synthetic": 5, "base": 6},
        {"support": 4, "synthetic": 5},
        {"support": 4, "base": 6},
        {"support": 4},
        {"synthetic": 2, "base": 3},
    ],
)
def test_distillation_loss_is_that_of_the_loops(parts, hard_labels) -> None:
    n = sum(parts.values())
    student, teacher = logits(n, 3, 0), logits(n, 3, 1)
    labels = torch.randint(0, 3, (n,), generator=torch.Generator().manual_seed(2))
    sources = [name for name, count in parts.items() for _ in range(count)]
    found = distillation_loss(student, parts, labels, teacher, 4.0, hard_labels)
    wanted = naive.distillation_loss(
        student.numpy(), teacher.numpy(), labels.tolist(), sources, 4.0, hard_labels
    )
    assert float(found.total) == pytest.approx(wanted, rel=1e-10)
    assert (found.hard is None) == ("support" not in parts)
    assert (found.soft is None) == (list(parts) == ["support"])


def test_labels_of_base_images_and_soft_labels_of_supports_are_not_looked_at() -> None:
    parts = {"support": 2, "base": 2}
    student, teacher, labels = logits(4, 3, 0), logits(4, 3, 1), torch.tensor([0, 1, 0, 0])
    first = float(distillation_loss(student, parts, labels, teacher, 4.0).total)
    teacher[:2] = torch.nan
    labels[2:] = -1
    assert float(distillation_loss(student, parts, labels, teacher, 4.0).total) == first


def test_losses_refuse_what_does_not_fit() -> None:
    x = logits(4, 3, 0)
    with pytest.raises(ShapeError, match=r"\(4, 3\) and \(3, 3\)"):
        kd_loss(x, x[:3], 4.0)
    with pytest.raises(ShapeError, match="B >= 1"):
        kd_loss(x[:0], x[:0], 4.0)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="temperature must be a positive number"):
            kd_loss(x, x, wrong)
    with pytest.raises(ShapeError, match="add up to its rows"):
        distillation_loss(x, {"support": 3}, torch.zeros(4, dtype=torch.int64), x, 4.0)
    with pytest.raises(ShapeError, match="3 labels"):
        distillation_loss(x, {"support": 4}, torch.zeros(3, dtype=torch.int64), x, 4.0)


# ------------------------------------------------------------------------------------------- batches


def test_a_batch_has_equal_parts_of_the_sources_that_are_there() -> None:
    assert three_parts(150, ("support", "synthetic", "base")) == {"support": 50, "synthetic": 50, "base": 50}
    assert three_parts(150, SOURCES) == dict.fromkeys(SOURCES, 30)
    assert three_parts(150, ("base", "support")) == {"support": 75, "base": 75}
    assert three_parts(150, ("support",)) == {"support": 150}
    assert list(three_parts(8, ("base", "synthetic", "support")).values()) == [3, 3, 2]
    with pytest.raises(ConfigError, match="A batch of 2 images cannot hold 5 sources"):
        three_parts(2, SOURCES)
    with pytest.raises(ConfigError, match="cannot hold 0 sources"):
        three_parts(150, ())
    with pytest.raises(ConfigError, match=r"Unknown sources \['novel'\]"):
        three_parts(150, ("novel",))


def test_augmentation_keeps_range_and_repeats_itself() -> None:
    x = torch.rand(64, 3, 20, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1
    one, two = (vary(x, 4, 0.4, True, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, two)
    assert one.shape == x.shape
    assert float(one.min()) >= -1.0
    assert float(one.max()) <= 1.0
    assert torch.equal(vary(x, 0, 0.0, False, torch.Generator()), x)


def test_flip_mirrors_half_of_the_images_and_off_none() -> None:
    x = torch.arange(5.0).expand(400, 1, 5, 5) / 5
    found = vary(x, 0, 0.0, True, torch.Generator().manual_seed(0))
    turned = (found == x.flip(3)).flatten(1).all(dim=1)
    kept = (found == x).flatten(1).all(dim=1)
    assert bool((turned ^ kept).all())
    assert 150 < int(turned.sum()) < 250


def test_brightness_multiplies_from_black_within_its_share() -> None:
    x = torch.zeros(500, 1, 4, 4)  # mid-grey; one colour has no contrast and no saturation to change
    found = (vary(x, 0, 0.4, False, torch.Generator().manual_seed(0)) + 1)[:, 0, 0, 0]
    assert 0.6 <= float(found.min()) < 0.65
    assert 1.35 < float(found.max()) <= 1.4
    black = vary(x - 1.0, 0, 0.4, False, torch.Generator().manual_seed(0))
    torch.testing.assert_close(black, x - 1.0)


def test_crops_move_by_up_to_the_padding() -> None:
    x = torch.zeros(300, 1, 16, 16)
    x[:, 0, 8, 8] = 1.0
    place = vary(x, 3, 0.0, False, torch.Generator().manual_seed(0)).flatten(1).argmax(dim=1)
    assert set((place // 16).tolist()) == set(range(5, 12))
    assert set((place % 16).tolist()) == set(range(5, 12))


# ----------------------------------------------------------------------------------------- training


def test_rates_fall_tenfold_at_half() -> None:
    config = DistillConfig(steps=100, lr=0.02)
    assert [config.rate(step) for step in (0, 49)] == [0.02, 0.02]
    assert [config.rate(step) for step in (50, 99)] == pytest.approx([0.002, 0.002])


def test_the_head_learns_at_twice_the_rate_less_where_it_sees_more(monkeypatch) -> None:
    rates = []
    step = SGD.step
    monkeypatch.setattr(
        SGD, "step", lambda self: (rates.append([g["lr"] for g in self.param_groups]), step(self))
    )
    student = student_of()
    distill(student, images_of(3, 2), config=DistillConfig(steps=2, batch_size=4))
    assert rates == [[0.02, 0.04], [0.002, 0.004]]
    rates.clear()
    larger = make_student("conv4", (1, 64, 64), 3)
    x = torch.zeros(6, 1, 64, 64, dtype=torch.uint8)
    few = ImageSet(x, torch.arange(3).repeat(2), tuple("abc"))
    distill(larger, few, config=DistillConfig(steps=2, batch_size=4))
    assert rates == [[0.02, 0.01], [0.002, 0.001]]


@pytest.mark.parametrize("name", ["conv4", "resnet12"])
def test_a_larger_image_means_a_slower_head_only_where_it_sees_more_numbers(name) -> None:
    rates = [make_student(name, (3, side, side), 3, channels=64).head_rate for side in (16, 32, 64, 84)]
    assert rates == ([1.0, 1.0, 0.25, 0.16] if name == "conv4" else [1.0] * 4)


@pytest.mark.parametrize(("head_rate", "learns"), [(None, True), (1.0, False)])
def test_students_of_64_pixels_do_not_diverge(head_rate, learns, monkeypatch) -> None:
    if head_rate is not None:
        monkeypatch.setattr(type(make_student("conv4", (3, 64, 64), 4)), "head_rate", head_rate)
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat(6)
    x = torch.rand(4, 3, 8, 8, generator=rng)[labels] + 0.3 * torch.randn(24, 3, 8, 8, generator=rng)
    x = torch.nn.functional.interpolate(x, (64, 64), mode="bilinear").clamp(0, 1)
    supports = ImageSet((x * 255).to(torch.uint8), labels, tuple("abcd"))
    student = make_student("conv4", (3, 64, 64), 4)
    history = distill(student, supports, config=DistillConfig(steps=10, batch_size=12))
    # Far off at first in either case; beyond, each step overshoots.
    assert (history.rows[-1]["loss"] < 4.0) is learns


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_student_learns_a_few_images_by_heart(precision) -> None:
    supports, student = images_of(3, 4, noise=90.0), student_of()
    before = accuracy(student, supports)
    seen = []
    history = distill(
        student,
        supports,
        config=DistillConfig(steps=80, batch_size=12, precision=precision, **QUIET),
        progress=lambda *call: seen.append(call[:2]),
    )
    assert before < 0.8
    assert accuracy(student, supports) == 1.0
    assert history.parts == {"support": 12}
    assert [row["step"] for row in history.rows] == [50, 80]
    assert seen == [(50, 80), (80, 80)]
    assert history.rows[-1]["loss"] < 0.2
    assert "soft" not in history.rows[-1]
    assert not student.training
    assert {p.dtype for p in student.parameters()} == {torch.float32}


def test_precision_changes_the_weights() -> None:
    supports = images_of(3, 4, noise=90.0)
    weights = {}
    for precision in ("float32", "bfloat16"):
        student = student_of()
        distill(student, supports, config=DistillConfig(steps=3, batch_size=12, precision=precision, **QUIET))
        weights[precision] = torch.cat([p.detach().flatten() for p in student.parameters()])
    difference = (weights["bfloat16"] - weights["float32"]).abs().max()
    assert 1e-6 < difference < 0.05


def test_a_student_takes_over_what_only_the_teacher_knows() -> None:
    """Base images are like no support; how the teacher sees them is learnt from its soft labels alone."""
    supports, base = images_of(3, 1, noise=20.0), images_of(6, 20, seed=1, noise=60.0, offset=10)
    teacher = teacher_of()
    teacher.scale.data.fill_(300.0)  # the features of random weights are nearly parallel
    wanted = teacher.predict(base, teacher.fit(supports))
    config = DistillConfig(steps=50, batch_size=40, **QUIET)
    agreed = {}
    for name, given in (("with", base), ("without", None)):
        student = student_of()
        distill(student, supports, None, given, teacher, config)
        agreed[name] = float((predict_logits(student, base).argmax(dim=1) == wanted).double().mean())
    assert agreed["with"] > 0.8
    assert agreed["with"] > agreed["without"] + 0.2


def test_the_same_seed_gives_the_same_student_and_another_a_different_one() -> None:
    supports, synthetic, base = images_of(3, 2), images_of(3, 5, seed=1), images_of(4, 5, seed=2, offset=9)
    config = DistillConfig(steps=3, batch_size=9)

    def trained(seed: int):
        student = student_of()
        history = distill(student, supports, synthetic, base, teacher_of(), config, seed=seed)
        return list(student.parameters()), history

    (a, history), (b, again), (c, _) = trained(0), trained(0), trained(1)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(a, c, strict=True))
    assert history == again
    assert history.parts == {"support": 3, "synthetic": 3, "base": 3}
    assert set(history.rows[-1]) == {"step", "lr", "loss", "hard", "soft"}
    assert set(history.teacher) == {"support", "synthetic"}


class Counting(ProtoNet):
    calls = 0

    def logits(self, images, prototypes):
        Counting.calls += 1
        return super().logits(images, prototypes)


@pytest.mark.parametrize(("relabel", "calls"), [(False, 2 + 1), (True, 2 + 1 + 4)])
def test_soft_labels_are_made_once_unless_asked(relabel, calls) -> None:
    teacher = Counting(make_student("conv4", (1, 16, 16), 0, channels=4))
    Counting.calls = 0
    config = DistillConfig(steps=4, batch_size=9, relabel=relabel)
    distill(student_of(), images_of(3, 2), images_of(3, 4), images_of(4, 4, offset=9), teacher, config)
    # One for each source, and one to tell how often the teacher is right on the supports.
    assert Counting.calls == calls


def test_soft_labels_belong_to_their_images() -> None:
    supports, base = images_of(3, 2), images_of(4, 5, seed=2, offset=9)
    teacher = teacher_of()
    prototypes = teacher.fit(supports)
    given, parts = {"support": supports, "base": base}, {"support": 4, "base": 6}
    draws = {name: Shuffled(len(x), torch.Generator().manual_seed(0)) for name, x in given.items()}
    x, labels, taught = knowledge._batch(given, parts, draws, {"base": teacher.logits(base, prototypes)}, 3)
    torch.testing.assert_close(taught[4:], teacher.logits(x[4:], prototypes), rtol=1e-5, atol=1e-5)
    drawn = (x[:4, None] == supports.floats()[None]).flatten(2).all(dim=2).double().argmax(dim=1)
    assert labels[:4].tolist() == supports.labels[drawn].tolist()


def test_hard_labels_need_no_teacher() -> None:
    supports, synthetic = images_of(3, 1), images_of(3, 10, seed=1)
    student = student_of()
    config = DistillConfig(steps=60, batch_size=16, hard_labels=True, **QUIET)
    history = distill(student, supports, synthetic, config=config)
    assert history.teacher == {}
    assert accuracy(student, images_of(3, 20, seed=2)) > 0.9


def test_what_cannot_be_distilled_is_refused() -> None:
    supports, student = images_of(3, 2), student_of()
    with pytest.raises(
        ConfigError, match="Soft labels of synthetic and base images need a teacher. Give one"
    ):
        distill(student, supports, images_of(3, 2), images_of(4, 2))
    with pytest.raises(ConfigError, match="synthetic images need a teacher. Give one, or set hard_labels"):
        distill(student, supports, images_of(3, 2))
    with pytest.raises(ConfigError, match="base images need a teacher"):
        distill(student, supports, base=images_of(3, 2), config=DistillConfig(hard_labels=True))
    with pytest.raises(DataError, match='1 of 3 classes have no support image: "c1"'):
        distill(student, supports.subset([0, 1, 4, 5]))
    large = ImageSet(torch.zeros(3, 1, 20, 20, dtype=torch.uint8), torch.arange(3), ("x", "y", "z"))
    with pytest.raises(DataError, match=r"3 problems(.|\n)*4 outputs(.|\n)*synthetic images have(.|\n)*x"):
        distill(student_of(4), supports, large)
    with pytest.raises(ConfigError, match="A batch of 2 images cannot hold 3"):
        distill(
            student,
            supports,
            images_of(3, 2),
            images_of(4, 2),
            teacher_of(),
            DistillConfig(steps=1, batch_size=2),
        )
    student.head.bias.data.fill_(torch.nan)
    with pytest.raises(TrainingError, match="became nan at step 1"):
        distill(student, supports, config=DistillConfig(steps=1, batch_size=4))
    with pytest.raises(DataError, match="logits of 6 of 6 images hold NaN"):
        accuracy(student, supports)
    with pytest.raises(DataError, match="at least one image"):
        accuracy(student, supports.subset([]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"batch_size": 1},
        {"temperature": 0.0},
        {"lr": float("nan")},
        {"head_lr": 0.0},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"drop_at": 1.5},
        {"drop": -0.1},
        {"jitter": 2.0},
        {"padding": -2},
    ],
)
def test_settings_out_of_range_are_refused(wrong) -> None:
    with pytest.raises(ConfigError, match=f"distill.{next(iter(wrong))}"):
        DistillConfig(**wrong)


def test_the_defaults_are_the_published_ones() -> None:
    found = dataclasses.asdict(DistillConfig())
    assert found["steps"] == 10_000
    assert found["batch_size"] == 150
    assert (found["temperature"], found["lr"], found["momentum"], found["weight_decay"]) == (
        4.0,
        0.02,
        0.9,
        5e-4,
    )
