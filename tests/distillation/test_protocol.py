"""The comparison over episodes, whole, on a model that is known exactly."""

import copy
import dataclasses
import json
import shutil

import pytest
import torch
from tests.distillation.toy import BASE, NOVEL, Toy, data
from tests.fake_method import Fake

import fewgen
from fewgen.config.schema import from_dict
from fewgen.data.identity import fingerprint, without
from fewgen.data.imageset import ClassSplit, ImageSet
from fewgen.data.npz import load_npz
from fewgen.data.registry import save_images
from fewgen.diffusion.settings import SpecialiseConfig
from fewgen.distillation import competitors, generated, protocol
from fewgen.distillation.comparison_work import ComparisonWork
from fewgen.distillation.competitors import COMPETITORS, NEED_POOL, Task
from fewgen.distillation.distilling import plan_distillation
from fewgen.distillation.encoder_teacher import EncoderTeacher
from fewgen.distillation.knowledge import DistillConfig, three_parts
from fewgen.distillation.pool import joint_encoder, mined, unlabelled
from fewgen.distillation.protocol import (
    Prepared,
    Question,
    check_competitors,
    episode_folder,
    missing,
    run_protocol,
    some_base,
    summary,
)
from fewgen.distillation.storing import load_student, save_student
from fewgen.distillation.students import make_student
from fewgen.distillation.summary import interval, paired
from fewgen.distillation.synthesis import KINDS, PartClock, Synthesis
from fewgen.distillation.teacher import ProtoNet
from fewgen.encoders.base import FrozenEncoder
from fewgen.encoders.named import ENCODERS, NamedEncoder, make_joint_encoder
from fewgen.encoders.pixels import PixelFeatures
from fewgen.errors import CheckpointError, ConfigError, DataError, MissingDependencyError, OutputError
from fewgen.fitting.seeds import derive_seed

assert Fake.name == "fake"
TINT = {
    "steps": 4,
    "guidance_scale": 2.0,
    "textual": {"steps": 15, "lr": 0.05},
    "null_text": {"inner_steps": 1, "lr": 0.01},
}
TRAINING = {"steps": 12, "batch_size": 24, "flip": False, "padding": 1}
SMALL = {
    "n_way": 3,
    "n_shot": 2,
    "episodes": 2,
    "per_class": 6,
    "teacher_net": "conv4",
    "teacher_channels": 4,
    "teacher_pretrain_steps": 5,
    "teacher_episodes": 30,
    "student_channels": 4,
    "pretrain_steps": 15,
    # Turned classes, of which so few steps learn nothing, are tried in test_preparing.
    "turns": "no",
    "training": TRAINING,
    "tint": TINT,
    "device": "cpu",
    "progress": False,
}


@pytest.fixture(scope="module")
def images():
    return data(10)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    path = tmp_path_factory.mktemp("split") / "split.json"
    ClassSplit(BASE, (), NOVEL).to_json(path)
    return str(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, images, split):
    """Every competitor on two episodes."""
    out = tmp_path_factory.mktemp("whole") / "distill.json"
    made = fewgen.distill(
        data=images, class_split=split, generator=Toy(), compare=True, save_images=True, out=out, **SMALL
    )
    return out, made.record


@pytest.fixture(scope="module")
def prepared(whole, images):
    """What all episodes share, as `distill` prepared it."""
    cells = whole[0].with_suffix(".cells")
    base, novel = images.select_classes(BASE), images.select_classes(NOVEL)
    teacher, student = str(cells / "teacher.safetensors"), str(cells / "student.safetensors")
    return Prepared(base, novel, teacher, student, Toy())


OF_BASE = (
    *("teacher_net", "teacher_channels", "teacher_pretrain_steps", "teacher_episodes"),
    *("pretrain_steps", "turns"),
)


def question(**more):
    settings = {"n_way": 3, "n_shot": 2, "per_class": 6}
    return Question(**{**settings, **more}, tint=specialised(), training=DistillConfig(**TRAINING))


def specialised(**more):
    return from_dict(SpecialiseConfig, {**TINT, **more})


def without_times(record):
    """A record without what differs from run to run."""
    kept = copy.deepcopy(record)
    for key in ("seconds", "environment"):
        kept.pop(key, None)
    return kept


# ------------------------------------------------------------------------------------------- the whole


def test_a_cell_that_cannot_be_read_is_missing(whole, tmp_path):
    cells = shutil.copytree(whole[0].with_suffix(".cells"), tmp_path / "cells")
    assert missing(cells, 0, ("tint", "none")) == ()
    cell = episode_folder(cells, 0) / "none.json"
    for text in (cell.read_text()[:-9], "[]", ""):
        cell.write_text(text)
        assert missing(cells, 0, ("tint", "none")) == ("none",)


def test_the_record_holds_what_was_promised(whole):
    out, record = whole
    assert json.loads(out.read_text()) == record
    names = ["tint", "none", "augmentation", "textual_inversion", "da_fusion", "hard_labels", "teacher"]
    assert (
        set(names) | {"augmentation_pretrained", "mixtures"}
        == set(record["accuracy"])
        == set(record["competitors"])
    )
    for name in names:
        found = record["accuracy"][name]
        assert found == interval(found["episodes"])
        assert len(found["episodes"]) == 2
        assert all(0 <= a <= 1 for a in found["episodes"])
        if name != "tint":
            difference = paired(record["accuracy"]["tint"]["episodes"], found["episodes"])
            assert record["differences"][f"tint - {name}"] == difference
    # All that is left of 3 classes with 10 images: 8 each.
    assert record["queries"] == [24, 24]
    assert record["classes"]["base"] == list(BASE)
    assert all(set(classes) <= set(NOVEL) for classes in record["episode_classes"])
    parts = record["seconds"]["per_image"]
    assert parts["total"] == pytest.approx(sum(v for k, v in parts.items() if k != "total"))
    assert min(parts.values()) > 0
    assert set(record["seconds"]["generation_per_image"]) == set(KINDS)
    assert set(record["seconds"]["distillation"]) == set(record["accuracy"]) - {"teacher"}


def test_cells_hold_what_each_learned_from(whole):
    cells = whole[0].with_suffix(".cells")
    parts = {}
    for name in set(COMPETITORS) - {*NEED_POOL, "generated"}:  # every image that is left is a query
        cell = json.loads((cells / "episode0000" / f"{name}.json").read_text())
        assert (cell["competitor"], cell["episode"], cell["queries"]) == (name, 0, 24)
        parts[name] = cell["about"].get("parts")
    thirds = {"support": 8, "synthetic": 8, "base": 8}
    for name in ("tint", "textual_inversion", "da_fusion", "hard_labels"):
        assert parts[name] == thirds == three_parts(24, thirds)
    assert parts["none"] == {"support": 12, "base": 12}
    assert parts["augmentation"] == parts["augmentation_pretrained"] == {"support": 24}
    assert parts["mixtures"] == {"support": 8, "mixtures": 8, "base": 8}
    assert parts["teacher"] is None
    assert (cells / "images.png").is_file()
    # What a large model learned would fill the disk.
    assert not list(cells.rglob("specialisation*"))


def test_the_teacher_row_is_the_accuracy_of_prototypes(whole, prepared):
    episode = question().sampler(prepared.novel).episode(1, prepared.novel)
    teacher = ProtoNet.load(prepared.teacher)
    features = teacher.embed(episode.support).double()
    centres = torch.stack([features[episode.support.labels == c].mean(0) for c in range(3)])
    middle = teacher.centre.double()
    close = torch.nn.functional.cosine_similarity(
        teacher.embed(episode.query).double()[:, None] - middle, centres[None] - middle, dim=2
    )
    wanted = float((close.argmax(1) == episode.query.labels).double().mean())
    assert whole[1]["accuracy"]["teacher"]["episodes"][1] == pytest.approx(wanted, abs=1e-12)


def test_the_same_command_computes_nothing_again(whole, images, split, monkeypatch):
    out, record = whole
    monkeypatch.setattr(protocol, "run_episode", lambda job: pytest.fail("computed again"))
    again = fewgen.distill(data=images, class_split=split, generator=Toy(), compare=True, out=out, **SMALL)
    assert again.was_finished
    assert without_times(again.record) == without_times(record)
    assert again.record["seconds"] == record["seconds"]


def test_a_killed_comparison_resumes_to_the_same_record(whole, images, split, tmp_path, monkeypatch):
    out, record = whole
    there = tmp_path / "distill.json"
    calls = []

    def dies(name, function):
        def run(task):
            calls.append(name)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return function(task)

        return run

    keywords = {
        "data": images,
        "class_split": split,
        "generator": Toy(),
        "out": there,
        **SMALL,
        "save_images": True,
    }
    keywords["competitors"] = names = ("tint", "none", "da_fusion")
    with monkeypatch.context() as patch:
        for name in names:
            patch.setitem(competitors.COMPETITORS, name, dies(name, COMPETITORS[name]))
        with pytest.raises(KeyboardInterrupt):
            fewgen.distill(**keywords)
    cells = there.with_suffix(".cells")
    finished = sorted(p.name for p in (cells / "episode0000").glob("*.json") if p.stem in names)
    assert finished == ["none.json", "tint.json"]
    made = (cells / "episode0000" / "tint.npz").stat().st_mtime_ns
    resumed = fewgen.distill(**keywords).record
    assert (cells / "images.png").is_file(), "also of images that were made before the interruption"
    assert (cells / "episode0000" / "tint.npz").stat().st_mtime_ns == made
    for name in names:
        assert resumed["accuracy"][name] == record["accuracy"][name]
    assert resumed["differences"] == {k: record["differences"][k] for k in resumed["differences"]}


def test_processes_give_the_same_as_one(whole, prepared, tmp_path):
    names = ("tint", "augmentation")
    two = run_protocol(question(), prepared, tmp_path, names, 2, workers=2, progress=False)
    for name in names:
        wanted = whole[1]["accuracy"][name]["episodes"]
        assert summary(two, names)["accuracy"][name]["episodes"] == wanted


# ------------------------------------------------------------------------------------------- what is equal


def test_competitors_share_first_weights_seeds_and_steps(prepared, tmp_path, monkeypatch):
    seen = {}

    def spy(student, supports, synthetic, base, teacher, config, *, seed, progress, **more):
        weights = copy.deepcopy(student.state_dict())
        assert set(more) == {"mixtures", "pool"}
        found = real(
            student, supports, synthetic, base, teacher, config, seed=seed, progress=progress, **more
        )
        seen[len(seen)] = (weights, seed, config.steps, config.batch_size, supports, synthetic, base)
        return found

    real = competitors.distill
    monkeypatch.setattr(competitors, "distill", spy)
    names = ("tint", "none", "augmentation", "textual_inversion", "hard_labels")
    run_protocol(question(), prepared, tmp_path, names, 1, progress=False)
    found = dict(zip(names, seen.values(), strict=True))
    for name in names:
        assert found[name][1:4] == found["tint"][1:4]
        assert torch.equal(found[name][4].images, found["tint"][4].images)
        assert torch.equal(found[name][0]["head.weight"], found["tint"][0]["head.weight"])
        same = torch.equal(found[name][0]["body.0.weight"], found["tint"][0]["body.0.weight"])
        assert same is (name != "augmentation")
    counts = {name: None if found[name][5] is None else len(found[name][5]) for name in names}
    assert counts == {
        "tint": 18,
        "none": None,
        "augmentation": None,
        "textual_inversion": 18,
        "hard_labels": 18,
    }
    assert torch.equal(found["tint"][5].images, found["hard_labels"][5].images)
    assert not torch.equal(found["tint"][5].images, found["textual_inversion"][5].images)
    assert found["augmentation"][6] is None
    assert torch.equal(found["none"][6].images, found["tint"][6].images)


def test_supports_queries_and_base_images_are_disjoint(prepared):
    """All images of the drawn classes that are no supports are queries, and none is a base image."""
    novel = prepared.novel
    sampler = question().sampler(novel)
    for i in range(6):
        support, query = sampler.support_query(i)
        assert not set(support.tolist()) & set(query.tolist())
        members = torch.isin(novel.labels, sampler.classes(i)).nonzero().flatten()
        assert sorted([*support.tolist(), *query.tolist()]) == members.tolist()
    assert not set(prepared.base.class_names) & set(novel.class_names)


def test_some_base_images_are_even_and_always_the_same(prepared):
    some = some_base(prepared.base, 12, seed=0)
    assert sorted(some.counts().tolist()) == [2, 2, 2, 3, 3]
    assert torch.equal(some.images, some_base(prepared.base, 12, seed=0).images)
    assert not torch.equal(some.images, some_base(prepared.base, 12, seed=1).images)
    assert some_base(prepared.base, 0, seed=0) is prepared.base


def test_an_episode_does_not_depend_on_how_many_there_are(whole, prepared, tmp_path):
    (first,) = run_protocol(question(), prepared, tmp_path, ("augmentation",), 1, progress=False)
    assert first["accuracy"]["augmentation"] == whole[1]["accuracy"]["augmentation"]["episodes"][0]


def test_planned_episodes_stop_when_the_interval_is_narrow(prepared, tmp_path, monkeypatch):
    """Accuracies that hardly differ need no more than the first five; others need what the theorem says."""
    values = {}

    def stand_in(task):
        return competitors.Outcome(values[len(values)] if False else next(stream), 0.0, {})

    monkeypatch.setitem(competitors.COMPETITORS, "teacher", stand_in)
    stream = iter([0.5] * 5)
    found = run_protocol(
        question(), prepared, tmp_path / "a", ("teacher",), None, half_width=0.2, progress=False
    )
    assert len(found) == 5
    stream = iter([0.4, 0.6] * 40)
    found = run_protocol(
        question(), prepared, tmp_path / "b", ("teacher",), None, half_width=0.05, progress=False
    )
    reached = interval([e["accuracy"]["teacher"] for e in found])["half_width"]
    assert 8 < len(found) < 40
    assert reached < 0.06
    stream = iter([0.1, 0.9] * 40)
    with pytest.raises(ConfigError, match="would take .* episodes, more than 1000"):
        run_protocol(
            question(), prepared, tmp_path / "c", ("teacher",), None, half_width=0.001, progress=False
        )


# ------------------------------------------------------------------------------------------- images


def test_images_of_the_learned_word_are_of_the_class(prepared, tmp_path):
    """By the toy's own nearest picture; and a generator of rubbish is not."""
    episode = question().sampler(prepared.novel).episode(0, prepared.novel)
    pipe = Toy()
    with torch.no_grad():
        centres = pipe.mean(pipe.embed([f"a photo of an {name}" for name in episode.class_names]))
    shares = {}
    config = specialised(textual={"steps": 80, "lr": 0.05})
    for blind in (False, True):
        made = Synthesis(
            lambda blind=blind: Toy(blind), episode.support, config, tmp_path / str(blind), per_class=30
        )
        for kind in KINDS:
            images = made.images(kind)
            assert images.counts().tolist() == [30, 30, 30]
            near = torch.cdist(images.floats().flatten(1), centres.flatten(1)).argmin(1)
            shares[kind, blind] = float((near == images.labels).double().mean())
    assert min(shares[kind, False] for kind in KINDS) > 0.9
    # Negative control: supports that are noised and left so keep something of theirs.
    assert max(shares["tint", True], shares["textual_inversion", True]) < 0.6


def test_alpha_zero_gives_supports_back_and_one_does_not(prepared, tmp_path):
    episode = question().sampler(prepared.novel).episode(0, prepared.novel)
    config = specialised(steps=20, null_text={"inner_steps": 10})
    found = {}
    for alpha in (0.0, 1.0):
        made = Synthesis(
            Toy, episode.support, config, tmp_path / str(alpha), per_class=8, alpha=alpha
        ).images("tint")
        away = torch.cdist(made.floats().flatten(1), episode.support.floats().flatten(1)).min(1).values
        found[alpha] = float(away.mean())
    assert found[0.0] < 0.3 * found[1.0]


def test_other_episodes_get_other_noise(prepared, tmp_path):
    episode = question().sampler(prepared.novel).episode(0, prepared.novel)
    config = specialised()
    first, second = (
        Synthesis(Toy, episode.support, config, tmp_path / str(i), per_class=4, first=i).images("tint")
        for i in range(2)
    )
    assert not set(map(bytes, first.images.numpy())) & set(map(bytes, second.images.numpy()))


def test_the_clock_gives_each_part_its_time():
    ticks = iter([0.0, 1.0, 3.0, 7.0, 7.5])
    told = []
    clock = PartClock(lambda part, share: told.append(part), lambda: next(ticks))
    for part in ("textual inversion", "textual inversion", "DDIM inversion", "DDIM inversion: RMS of z_T 1"):
        clock(part, 0.5)
    assert clock.seconds == {"textual inversion": 3.0, "DDIM inversion": 4.5}
    assert told[-1] == "DDIM inversion: RMS of z_T 1"


def test_negative_control_a_generator_of_noise_does_not_help(prepared, tmp_path):
    """True images of the classes help beyond chance in the same setting, black and white noise does not."""
    settings = question(n_way=4, n_shot=1, per_class=20)
    settings = dataclasses.replace(settings, training=DistillConfig(**{**TRAINING, "steps": 40}))
    names, gains = ("hard_labels", "none"), {}
    for blind in (False, True):
        given = dataclasses.replace(prepared, generator=Toy(blind))
        found = run_protocol(settings, given, tmp_path / str(blind), names, 10, progress=False)
        gains[blind] = summary(found, names)["differences"]["hard_labels - none"]
    assert gains[False]["low"] > 0
    assert gains[True]["low"] <= 0
    assert gains[False]["mean"] > gains[True]["mean"] + 0.05


# ------------------------------------------------------------------------------------------- students on disk


def test_a_student_comes_back_from_its_file(tmp_path):
    student = make_student("conv4", (1, 16, 16), 3, channels=4, seed=2).eval()
    save_student(student, tmp_path / "a.safetensors", ("x", "y", "z"))
    again, names = load_student(tmp_path / "a.safetensors")
    x = torch.rand(2, 1, 16, 16)
    assert names == ("x", "y", "z")
    assert torch.equal(again(x), student(x))
    save_student(student, tmp_path / "b.safetensors", ("x", "y", "z"))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_files_that_are_no_students_are_refused(tmp_path, prepared):
    with pytest.raises(CheckpointError, match="but not a student"):
        load_student(prepared.teacher)
    (tmp_path / "x.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="truncated"):
        load_student(tmp_path / "x.safetensors")


# ------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"n_way": 5}, DataError, "5 novel classes with images, but there are 4. Lower --n-way to at most 4"),
        ({"n_way": 1}, ConfigError, "--n-way must be a whole number of 2 or more"),
        ({"n_shot": 10}, DataError, "need 11 images of each class, but there are 10"),
        ({"n_shot": 5, "queries": 6}, DataError, "need 11 images of each class"),
        ({"queries": "some"}, ConfigError, "--queries must be a whole number or all"),
        ({"student": "conv5"}, ConfigError, 'no student "conv5". Did you mean "conv4"'),
        ({"alpha": 1.5}, ConfigError, r"alpha must be in \[0, 1\], got 1.5"),
        ({"competitors": ["tint", "magic"]}, ConfigError, 'no competitor "magic"'),
        ({"episodes": 0}, ConfigError, "--episodes must be a whole number of 1 or more"),
        ({"episodes": "auto"}, ConfigError, "--episodes auto needs --half-width"),
        ({"half_width": 0.1}, ConfigError, "--half-width needs --episodes auto"),
        ({"workers": 0}, ConfigError, "--workers must be"),
        ({"shots": 3}, ConfigError, "--shots has no use here"),
        ({"generator": "no/such/run"}, ConfigError, "There is no run"),
        ({"teacher": "no_such.safetensors"}, CheckpointError, "There is no teacher"),
        ({"training": {"step": 3}}, ConfigError, "steps"),
        ({"tint": {"steps": 0}}, ConfigError, "tint.steps must be 1 or more"),
        ({"class_split": "all"}, DataError, "novel"),
        ({"out": "folder"}, OutputError, "written as .json"),
        ({"data": None}, ConfigError, "needs --novel DIR, your images, or --data D"),
    ],
)
def test_mistakes_are_told_before_any_work(wrong, error, message, images, split, tmp_path):
    keywords = {**SMALL, "data": images, "class_split": split, "generator": Toy(), "out": tmp_path / "x.json"}
    with pytest.raises(error, match=message):
        fewgen.distill(**{**keywords, **wrong})
    assert list(tmp_path.iterdir()) == []


def test_images_that_do_not_fit_are_refused(images, split, tmp_path, prepared):
    big = data(4)
    big = dataclasses.replace(big, images=big.images.repeat(1, 1, 2, 2))
    keywords = {**SMALL, "class_split": split, "out": tmp_path / "x.json"}
    with pytest.raises(
        ConfigError, match="The generator makes images of 1 x 16 x 16, but these are of 1 x 32"
    ):
        fewgen.distill(data=big, generator=Toy(), **keywords)
    with pytest.raises(ConfigError, match="takes images of 1 x 16 x 16, but these are of 1 x 32 x 32"):
        fewgen.distill(data=big, teacher=prepared.teacher, competitors="none", **keywords)


def test_changed_settings_and_foreign_files_are_refused(whole, images, split, tmp_path):
    out, _ = whole
    keywords = {**SMALL, "data": images, "class_split": split, "generator": Toy(), "compare": True}
    with pytest.raises(ConfigError, match="per_class: 6, now 7"):
        fewgen.distill(**{**keywords, "per_class": 7}, out=out)
    with pytest.raises(ConfigError, match="generator"):
        fewgen.distill(**{**keywords, "generator": Toy(blind=True)}, out=out)
    foreign = tmp_path / "mine.json"
    foreign.write_text('{"a": 1}')
    with pytest.raises(OutputError, match="is not a comparison of ours"):
        fewgen.distill(**keywords, out=foreign)
    assert foreign.read_text() == '{"a": 1}'
    (tmp_path / "b.cells").mkdir()
    (tmp_path / "b.cells" / "photo.jpg").write_text("")
    with pytest.raises(OutputError, match="holds no distillation of ours"):
        fewgen.distill(**keywords, out=tmp_path / "b.json")


def test_the_order_of_competitors_is_that_of_the_table():
    assert check_competitors(["teacher", "tint"]) == ("tint", "teacher")
    assert all(len(text) > 20 for text in competitors.about_competitors().values())
    assert isinstance(COMPETITORS["tint"], type(lambda: None))
    assert Task.__dataclass_params__.frozen


def test_a_dry_run_says_what_is_there_and_writes_nothing(whole, images, split, tmp_path):
    keywords = {**SMALL, "data": images, "class_split": split, "generator": Toy(), "compare": True}
    text = plan_distillation(**keywords, out=tmp_path / "new.json")
    assert "cells       18 of 18 to compute" in text
    assert "5 base, 0 validation (not used), 4 novel" in text
    assert list(tmp_path.iterdir()) == []
    text = plan_distillation(**{**keywords, "episodes": 3}, out=whole[0])
    assert "cells       9 of 27 to compute" in text
    assert "teacher     there" in text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"competitors": "mixtures", "generator": Toy()},
            "--generator has no effect without one of tint, textual_inversion, da_fusion, hard_labels, generated among",
        ),
        (
            {"competitors": "da_fusion", "generator": Toy(), "save_images": True},
            "--save-images has no effect without one of tint, hard_labels among the competitors",
        ),
        (
            {"competitors": "tint", "mixtures": 30},
            "--mixtures has no effect without one of mixtures, generated, pool",
        ),
        ({"competitors": "mixtures", "compare": True}, "--compare has no effect with --competitors"),
        (
            {"teacher": "pixels", "teacher_channels": 4},
            "--teacher-channels has no effect with --teacher pixels, which is trained already",
        ),
        (
            {"teacher": "pixels", "pretrain_steps": 0, "turns": "yes"},
            "--turns has no effect with --teacher and",
        ),
        (
            {"class_split": "none", "teacher": "pixels", "base_images": 5},
            "--base-images has no effect with --class-split none: there are no base classes",
        ),
    ],
)
def test_what_has_no_effect_on_a_comparison_is_refused(given, said, images, split, tmp_path):
    few = {"data": images, "class_split": split, "n_way": 3, "n_shot": 2, "out": tmp_path / "x.json"}
    with pytest.raises(ConfigError, match=said):
        plan_distillation(**{**few, **given})


# ------------------------------------------------------------------------------- without base classes


class Words:
    """A joint encoder of the toy: an image is its pixels, a name the picture that the toy makes of it."""

    def __init__(self):
        self.asked = []

    def image_features(self, images):
        return torch.nn.functional.normalize(images.flatten(1))

    def encode_texts(self, texts):
        self.asked.append(tuple(texts))
        pipe = Toy()
        with torch.no_grad():
            return self.image_features(pipe.mean(pipe.embed([f"a photo of an {text}" for text in texts])))

    def record(self):
        return {"name": "words"}


@pytest.fixture
def words(monkeypatch, tmp_path):
    """The name of that encoder, and what it was asked for."""
    encoder = Words()
    monkeypatch.setenv("FEWGEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setitem(ENCODERS, "words", NamedEncoder("words", joint=lambda *_: encoder))
    joint_encoder.cache_clear()
    yield "words", encoder.asked
    joint_encoder.cache_clear()


WITHOUT_BASE = {key: value for key, value in SMALL.items() if key not in ("tint", *OF_BASE)}
WITHOUT_BASE |= {"class_split": "none", "teacher": "pixels", "mixtures": 30}


def test_without_base_classes_a_pretrained_teacher_labels_mixtures_and_a_pool(tmp_path, images, words):
    given = {**WITHOUT_BASE, "queries": 4, "compare": True, "joint_encoder": words[0]}
    made = fewgen.distill(data=images, out=tmp_path / "none.json", **given)
    record = made.record
    assert set(record["accuracy"]) == {"augmentation", "mixtures", "pool", "retrieved", "teacher"}
    assert record["teacher"] == PixelFeatures(1, 16, 16).record()
    assert "The teacher was given: whether it has seen novel classes is not known." in record["notes"]
    assert record["classes"]["base"] == []
    assert len(record["classes"]["novel"]) == len(BASE + NOVEL)
    cells = tmp_path / "none.cells" / "episode0000"
    names = ("mixtures", "pool", "retrieved")
    parts = {name: json.loads((cells / f"{name}.json").read_text())["about"] for name in names}
    assert set(parts["mixtures"]["parts"]) == {"support", "mixtures"}
    assert set(parts["pool"]["parts"]) == {"support", "mixtures", "pool"}
    # In place of synthetic images, so the teacher says how many show what was looked for.
    assert set(parts["retrieved"]["parts"]) == {"support", "synthetic", "mixtures"}
    assert words[1] == [tuple(classes) for classes in record["episode_classes"]]
    assert record["teacher_agrees"]["retrieved"] > 0.6
    assert record["accuracy"]["teacher"]["mean"] > 0.6


def test_what_a_teacher_has_seen_is_told_as_far_as_it_is_known():
    class Seen(FrozenEncoder):
        def record(self):
            return {"name": "seen", "trained_on": "ImageNet-1k"}

    told = ComparisonWork._seen_by(EncoderTeacher(Seen("seen", 8)))
    assert told.startswith("The teacher seen has learned from ImageNet-1k: novel classes that are among its")


def test_mined_images_are_the_nearest_of_the_pool_to_the_name_of_their_class(images, words):
    encoder = make_joint_encoder(words[0])
    pool = unlabelled(images)
    found = mined(pool, ("dog, hound", "cat"), encoder, 5)
    assert words[1] == [("dog", "cat")]
    assert found.class_names == ("dog, hound", "cat")
    assert found.labels.tolist() == [0] * 5 + [1] * 5
    scores = encoder.image_features(images.floats()) @ encoder.encode_texts(["dog", "cat"]).T
    for c in range(2):
        best = scores[:, c].argsort(descending=True)[:5]
        assert torch.equal(found.images[found.labels == c], images.images[best])
    # Other pools are told apart on the disk; a small one is taken whole, once for each class.
    two = mined(pool.subset([3, 4]), ("dog", "cat"), encoder, 5)
    assert two.labels.tolist() == [0, 0, 1, 1]


def test_a_comparison_takes_a_pool_of_its_own_but_none_of_its_images(tmp_path, images, words):
    given = {**WITHOUT_BASE, "competitors": ["pool", "retrieved"], "joint_encoder": words[0], "episodes": 1}
    other = data(6, seed=8)  # so queries may be all images
    made = fewgen.distill(data=images, pool=other, out=tmp_path / "own.json", **given)
    assert made.record["settings"]["pool"] == fingerprint(
        protocol.some_of(other, derive_seed(0, "distill", "pool"))
    )
    assert made.record["settings"]["joint_encoder"] == {"name": "words"}
    planted = ImageSet(
        torch.cat([other.images, images.images[33:34]]),
        torch.cat([other.labels, other.labels[:1]]),
        other.class_names,
    )
    with pytest.raises(DataError, match="1 of the 55 images of --pool also measure the accuracy"):
        fewgen.distill(data=images, pool=planted, out=tmp_path / "planted.json", **given)


def test_retrieving_without_the_packages_says_what_to_install(tmp_path, images, monkeypatch):
    def gone(option):
        raise MissingDependencyError('There is no lite. Install it with: pip install "fewgen[knowledge]"')

    entry = dataclasses.replace(ENCODERS["lite"], sha256=gone)
    monkeypatch.setitem(ENCODERS, "lite", entry)
    given = {**WITHOUT_BASE, "queries": 4, "out": tmp_path / "none.json", "data": images}
    with pytest.raises(MissingDependencyError, match=r'pip install "fewgen\[knowledge\]"'):
        fewgen.distill(competitors="retrieved", **given)
    # All competitors are those that can be there.
    assert "competitors augmentation, mixtures, pool, teacher" in plan_distillation(compare=True, **given)


def test_generated_images_of_files_are_weighed_and_their_share_is_told(tmp_path, images, monkeypatch):
    trusted = []
    real = competitors.distill

    def spy(*given, **more):
        trusted.append(given[5].weigh)
        return real(*given, **more)

    monkeypatch.setattr(competitors, "distill", spy)
    made = data(8, seed=7)
    made = ImageSet(made.images, made.labels.roll(8), made.class_names)  # each of the class before its own
    given = {**WITHOUT_BASE, "episodes": 1, "generator": made}
    found = fewgen.distill(data=images, out=tmp_path / "made.json", **given)
    assert list(found.record["accuracy"]) == ["mixtures", "generated"]
    assert trusted == [False, True]
    assert found.record["teacher_agrees"]["generated"] < 0.4
    assert "% of the generated images as their class" in protocol.table(found.record)
    assert found.notes[0] == "What the images of --generator were made from is not known."
    parts = json.loads((tmp_path / "made.cells" / "episode0000" / "generated.json").read_text())["about"][
        "parts"
    ]
    assert set(parts) == {"support", "synthetic", "mixtures"}
    # Others do not join these.
    with pytest.raises(ConfigError, match="made with other settings"):
        fewgen.distill(data=images, out=tmp_path / "made.json", **{**given, "generator": data(8, seed=6)})
    planted = ImageSet(
        torch.cat([made.images, images.images[7:8]]),
        torch.cat([made.labels, images.labels[7:8]]),
        made.class_names,
    )
    with pytest.raises(DataError, match="images of --generator also measure the accuracy"):
        fewgen.distill(
            data=images, out=tmp_path / "planted.json", **{**given, "generator": planted, "per_class": 9}
        )
    with pytest.raises(ConfigError, match="The set of images has no class"):
        few = made.select_classes(made.class_names[1:])
        fewgen.distill(data=images, out=tmp_path / "few.json", **{**given, "generator": few})


def test_what_a_run_learned_from_is_neither_support_nor_query(tmp_path, images):
    file = save_images(images, tmp_path / "images.npz")
    run = fewgen.train(
        "fake", data=file, shots=2, holdout=0, out=tmp_path / "run", report=False, progress=False
    )
    given = {**WITHOUT_BASE, "episodes": 1, "competitors": "generated", "generator": run}
    found = fewgen.distill(data=file, out=tmp_path / "made.json", **given)
    assert "learned from 18 of the novel images: none of them is a support or a query" in found.notes[0]
    assert found.record["queries"] == [3 * (10 - 2 - 2)]
    with pytest.raises(ConfigError, match="is a run of fake. Name a run of diffusion"):
        given = {key: value for key, value in SMALL.items() if key != "tint"} | {"generator": run}
        fewgen.distill(data=images, class_split="5/0/4", competitors="tint", out=tmp_path / "t.json", **given)


def test_a_method_learns_the_supports_of_each_episode_alone(tmp_path, images, monkeypatch):
    learned = []
    real = generated.train

    def spy(method, *, data, **more):
        learned.append(data)
        return real(method, data=data, **more)

    monkeypatch.setattr(generated, "train", spy)
    given = {**WITHOUT_BASE, "generator": "fake", "queries": 4, "competitors": "generated"}
    found = fewgen.distill(data=images, out=tmp_path / "made.json", **given)
    assert len(learned) == 2
    for i, supports in enumerate(learned):
        episode = question(n_query=4).sampler(images).episode(i, images)
        assert torch.equal(supports.images, episode.support.images)
        made = load_npz(tmp_path / "made.cells" / f"episode{i:04d}" / "generated.npz")
        assert made.class_names == episode.class_names
        assert made.counts().tolist() == [6] * 3
    assert found.record["seconds"]["generation_per_image"]["generated"] > 0
    assert found.record["settings"]["generated"] == {"method": "fake", "preset": "default", "minutes": None}
    assert found.record["settings"]["generator"] is None  # none that is trained on base classes
    (tmp_path / "made.cells" / "episode0000" / "generated.json").unlink()
    again = fewgen.distill(data=images, out=tmp_path / "made.json", **given)
    assert again.record["accuracy"] == found.record["accuracy"]
    assert len(learned) == 2
    text = plan_distillation(data=images, out=tmp_path / "new.json", **given)
    assert "fake, trained on the supports of each episode" in text
    assert "training fake in each episode comes on top" in text


def test_the_pool_holds_no_support_and_no_query(images):
    sampler = question(n_query=3).sampler(images)
    episode = sampler.episode(0, images)
    pool = protocol._pool(images, episode, 0)
    assert len(pool) == len(images) - len(episode.support) - len(episode.query)
    assert without(pool, episode.support, episode.query)[1] == 0
    every = question(n_way=images.n_classes, n_query=None).sampler(images).episode(0, images)
    with pytest.raises(DataError, match="Set --queries"):
        protocol._pool(images, every, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"teacher": None}, "Without base classes no teacher can be trained"),
        ({"competitors": ["none", "mixtures"]}, "none: these competitors learn from base classes"),
        ({"pool": "photos", "competitors": "mixtures"}, "--pool has no use here"),
        ({"joint_encoder": "lite9", "competitors": "retrieved", "queries": 2}, 'no joint encoder "lite9"'),
        ({"joint_encoder": "clip:x", "competitors": "mixtures"}, "--joint-encoder has no use here"),
        ({"mixtures": 0}, "--mixtures must be"),
        ({"competitors": "generated"}, "The competitor generated needs --generator: a method"),
        ({"competitors": "mixtures", "generator": "sq_gan"}, "--generator has no use here"),
    ],
)
def test_what_a_comparison_without_base_classes_refuses(tmp_path, images, given, message):
    small = {key: value for key, value in SMALL.items() if key not in ("tint", *OF_BASE)}
    settings = {**small, "class_split": "none", "teacher": "pixels", **given}
    with pytest.raises(ConfigError, match=message):
        fewgen.distill(data=images, out=tmp_path / "none.json", **settings)
