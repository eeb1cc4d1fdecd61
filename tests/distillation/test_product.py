"""One student from a few images per class: files, held-out images, resuming, and what is refused."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tests.distillation.toy import BASE, NOVEL, Toy, data
from tests.fake_method import Fake

import fewgen
from fewgen.cli import distill as distill_command
from fewgen.cli.main import main
from fewgen.data.imageset import ImageSet
from fewgen.distillation import knowledge, product
from fewgen.distillation.distilling import plan_distillation
from fewgen.distillation.knowledge import accuracy
from fewgen.distillation.product import supports_and_rest
from fewgen.distillation.storing import load_student
from fewgen.encoders.named import ENCODERS, NamedEncoder
from fewgen.encoders.pixels import PixelFeatures
from fewgen.errors import CheckpointError, ConfigError, DataError, OutputError, RenamedWarning

assert Fake.name == "fake"
SMALL = {
    "per_class": 6,
    "teacher_net": "conv4",
    "teacher_channels": 4,
    "teacher_pretrain_steps": 5,
    "teacher_episodes": 20,
    "student_channels": 4,
    "pretrain_steps": 10,
    "training": {"steps": 40, "batch_size": 24, "flip": False, "padding": 1},
    "tint": {
        "steps": 4,
        "guidance_scale": 2.0,
        "textual": {"steps": 15, "lr": 0.05},
        "null_text": {"inner_steps": 1},
    },
    "device": "cpu",
    "progress": False,
}
OF_BASE = ("teacher_net", "teacher_channels", "teacher_pretrain_steps", "teacher_episodes", "pretrain_steps")
OWN = {key: value for key, value in SMALL.items() if key not in OF_BASE}
"""Without base images."""
BY_RUN = {key: value for key, value in OWN.items() if key != "tint"}
"""And with a run that knows the classes."""
TAUGHT = {key: value for key, value in BY_RUN.items() if key != "per_class"} | {"teacher": "pixels"}
"""And with a pretrained teacher instead of a generator."""


def written(root, images):
    """A folder with one subfolder per class."""
    for i, (x, label) in enumerate(zip(images.images.numpy(), images.labels.tolist(), strict=True)):
        folder = root / images.class_names[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[0]).save(folder / f"{i:03d}.png")
    return root


@pytest.fixture(scope="module")
def novel(tmp_path_factory):
    return written(tmp_path_factory.mktemp("novel") / "photos", data(10, NOVEL[:3], seed=5))


@pytest.fixture(scope="module")
def base():
    return data(8, BASE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, novel, base):
    out = tmp_path_factory.mktemp("whole") / "tiny"
    return fewgen.distill(novel=novel, shots=4, data=base, generator=Toy(), out=out, **SMALL)


def test_the_folder_holds_a_student_that_was_measured_and_checked(whole, novel):
    out, record = whole.path, whole.record
    names = {path.name for path in out.iterdir()}
    wanted = {"student.safetensors", "student.onnx", "classes.txt", "synthetic.png", "distill.json", "parts"}
    assert names == wanted | {".fewgen-distill"}
    assert json.loads((out / "distill.json").read_text()) == record
    assert (out / "classes.txt").read_text().split() == list(record["classes"]) == sorted(NOVEL[:3])
    assert record["images"] == {
        "support": 12, "synthetic": 18, "mixtures": 0, "pool": 0, "base": 40, "held_out": 18
    }  # fmt: skip
    assert record["training"]["parts"] == {"support": 8, "synthetic": 8, "base": 8}
    student, names = load_student(out / "student.safetensors")
    assert names == tuple(record["classes"])
    images = fewgen.load_images(novel, channels=1)
    _, rest = supports_and_rest(images, 4, seed=0)
    found = record["accuracy"]
    assert found["student"] == accuracy(student, rest)
    assert found["low"] <= found["student"] <= found["high"]
    assert found["n"] == 18
    per_class = [found["per_class"][name] for name in names]
    assert sum(per_class) / 3 == pytest.approx(found["student"])
    assert Image.open(out / "synthetic.png").size[0] > 10 * 16
    assert whole.notes == []


def test_onnx_gives_the_same_classes_as_torch(whole, novel):
    import onnxruntime

    student, names = load_student(whole.path / "student.safetensors")
    images = fewgen.load_images(novel, channels=1)
    session = onnxruntime.InferenceSession(
        str(whole.path / "student.onnx"), providers=["CPUExecutionProvider"]
    )
    found = session.run(["logits"], {"image": images.floats().numpy()})[0]
    with torch.no_grad():
        wanted = student(images.floats()).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    # What the record tells other programs: shapes, and pixels from bytes.
    told = whole.record["student"]["onnx"]
    assert (
        told["input"] == f"image: float32 (N, {', '.join(map(str, student.image_shape))}), pixel / 127.5 - 1"
    )
    assert told["output"] == "logits: float32 (N, 3), in the order of classes.txt"
    np.testing.assert_allclose(
        images.images.numpy() / np.float32(127.5) - 1, images.floats().numpy(), atol=1e-6
    )
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["class_names"]) == list(names)


def test_the_same_command_trains_nothing_again_and_other_settings_are_refused(
    whole, novel, base, monkeypatch
):
    keywords = {"novel": novel, "shots": 4, "data": base, "generator": Toy(), "out": whole.path, **SMALL}
    monkeypatch.setattr(product, "distill", lambda *a, **k: pytest.fail("trained again"))
    again = fewgen.distill(**keywords)
    assert again.was_finished
    assert again.record == whole.record
    with pytest.raises(ConfigError, match="per_class: 6, now 9"):
        fewgen.distill(**{**keywords, "per_class": 9})
    with pytest.raises(ConfigError, match="supports"):
        fewgen.distill(**{**keywords, "shots": 5})


def test_parts_of_a_release_that_said_scale_go_on(whole, novel, base, tmp_path):
    out = tmp_path / "old"
    shutil.copytree(whole.path, out)
    for name in ("distill.json", "student.safetensors", "classes.txt", "student.onnx", "synthetic.png"):
        (out / name).unlink()
    settings = json.loads((out / "parts" / "settings.json").read_text())
    tint = settings["settings"]["tint"]
    tint["scale"] = tint.pop("guidance_scale")
    (out / "parts" / "settings.json").write_text(json.dumps(settings))
    keywords = {"novel": novel, "shots": 4, "data": base, "generator": Toy(), "out": out}
    with pytest.warns(RenamedWarning, match="tint.scale is called tint.guidance_scale now"):
        again = fewgen.distill(**keywords, **{**SMALL, "tint": tint})
    assert again.record["accuracy"] == whole.record["accuracy"]


def test_what_was_interrupted_goes_on_and_gives_the_same_student(whole, novel, base, tmp_path, monkeypatch):
    keywords = {"novel": novel, "shots": 4, "data": base, "generator": Toy(), "out": tmp_path / "x", **SMALL}
    with monkeypatch.context() as patch:
        patch.setattr(product, "distill", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            fewgen.distill(**keywords)
    parts = tmp_path / "x" / "parts"
    kept = {p.name: p.stat().st_mtime_ns for p in parts.iterdir()}
    assert {"teacher.safetensors", "start.safetensors", "tint.npz", "settings.json"} <= set(kept)
    assert not (tmp_path / "x" / "distill.json").exists()
    resumed = fewgen.distill(**keywords)
    assert {name: (parts / name).stat().st_mtime_ns for name in kept} == kept
    assert resumed.record["accuracy"] == whole.record["accuracy"]
    name = "student.safetensors"
    assert (tmp_path / "x" / name).read_bytes() == (whole.path / name).read_bytes()


@pytest.mark.parametrize(
    "teacher", [None, "text", [], {"synthetic": []}, {"synthetic": "0.5"}, {"synthetic": 2}]
)
def test_a_damaged_history_is_told(whole, novel, base, tmp_path, teacher):
    """It is read when a stopped command goes on, and shown at its end."""
    out = tmp_path / "x"
    shutil.copytree(whole.path, out)
    (out / "distill.json").unlink()
    history = out / "parts" / "training.json"
    history.parent.mkdir(exist_ok=True)
    shutil.copy(out / "student.safetensors", history.parent)
    history.write_text(json.dumps({"seconds": 1.0, "teacher": teacher}))
    with pytest.raises(DataError, match=r"training\.json.*teacher"):
        fewgen.distill(novel=novel, shots=4, data=base, generator=Toy(), out=out, **SMALL)


PRODUCTS = ("student.safetensors", "student.onnx", "classes.txt", "synthetic.png", "distill.json")
HARMS = [(name, harm) for name in PRODUCTS for harm in ("missing", "truncated", "changed", "link")]
HARMS.remove(("distill.json", "changed"))  # a text of people, which they may change


@pytest.mark.parametrize(("name", "harm"), HARMS)
def test_products_that_are_not_whole_are_written_again(
    whole, novel, base, tmp_path, monkeypatch, capsys, name, harm
):
    out, elsewhere = tmp_path / "x", tmp_path / "of somebody"
    shutil.copytree(whole.path, out)
    elsewhere.write_text("not ours")
    content = (out / name).read_bytes()
    (out / name).unlink()
    middle = len(content) // 2
    if harm == "link":
        (out / name).symlink_to(elsewhere)
    elif harm != "missing":
        cut = content[:middle]
        changed = cut + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        (out / name).write_bytes(cut if harm == "truncated" else changed)
    monkeypatch.setattr(product, "distill", lambda *a, **k: pytest.fail("trained again"))
    made = fewgen.distill(novel=novel, shots=4, data=base, generator=Toy(), out=out, **SMALL)
    assert not made.was_finished
    said = "are missing or damaged; they are written again" in capsys.readouterr().err
    assert said == ((name, harm) != ("distill.json", "missing"))
    assert {**made.record, "seconds": 0} == {**whole.record, "seconds": 0}
    if name != "distill.json":
        assert (out / name).read_bytes() == content
    assert not (out / name).is_symlink()
    assert elsewhere.read_text() == "not ours"


def test_a_product_is_made_of_what_was_kept(whole, novel, base, tmp_path, monkeypatch):
    """Weights that were just trained may lie otherwise in memory than those of a file, with other last bits."""
    used = []
    monkeypatch.setattr(product, "measured", lambda student, *_: used.append(student))
    trained = []
    real = product._trained
    monkeypatch.setattr(product, "_trained", lambda *a: trained.append(real(*a)) or trained[0])
    fewgen.distill(novel=novel, shots=4, data=base, generator=Toy(), out=tmp_path / "x", **SMALL)
    assert used[0] is not trained[0][0]
    found, kept = used[0].state_dict(), load_student(tmp_path / "x" / "parts" / "student.safetensors")[0]
    assert all(torch.equal(found[name], value) for name, value in kept.state_dict().items())


def test_finished_folders_without_digests_are_taken_if_their_files_can_be_read(whole, tmp_path):
    shutil.copytree(whole.path, tmp_path / "x")
    record = {key: value for key, value in whole.record.items() if key != "files"}
    (tmp_path / "x" / "distill.json").write_text(json.dumps(record))
    assert product.finished(tmp_path / "x") == record
    onnx = tmp_path / "x" / "student.onnx"
    onnx.write_bytes(onnx.read_bytes()[:-1])
    assert product.finished(tmp_path / "x") is None


def test_damaged_images_of_a_part_are_made_again(whole, novel, base, tmp_path):
    out = tmp_path / "x"
    shutil.copytree(whole.path, out)
    (out / "distill.json").unlink()
    images = out / "parts" / "tint.npz"
    with np.load(images) as file:
        wanted = file["images"]
    images.write_bytes(images.read_bytes()[:-100])
    fewgen.distill(novel=novel, shots=4, data=base, generator=Toy(), out=out, **SMALL)
    with np.load(images) as file:
        assert np.array_equal(file["images"], wanted)


def test_without_base_images_synthetic_ones_keep_their_class(novel, tmp_path, monkeypatch):
    seen = []
    real = knowledge.distill

    def spy(*args, **keywords):
        seen.append((args[3], args[4], args[5].hard_labels))
        return real(*args, **keywords)

    monkeypatch.setattr(product, "distill", spy)
    made = fewgen.distill(novel=novel, generator=Toy(), out=tmp_path / "x", **OWN)
    assert seen == [(None, None, True)]
    assert made.record["accuracy"] is None
    assert made.record["training"]["parts"] == {"support": 12, "synthetic": 12}
    notes = " ".join(made.notes)
    assert "none is left to measure the accuracy on. --shots 5" in notes
    assert "no base images (--data) and no --teacher" in notes


def test_a_teacher_of_an_earlier_command_is_taken(whole, novel, tmp_path):
    teacher = whole.path / "parts" / "teacher.safetensors"
    made = fewgen.distill(novel=novel, shots=4, generator=Toy(), teacher=teacher, out=tmp_path / "x", **OWN)
    assert made.record["accuracy"]["teacher"] == whole.record["accuracy"]["teacher"]
    assert "starts from random weights" in " ".join(made.notes)
    assert made.record["training"]["teacher"]["synthetic"] > 0


# ------------------------------------------------------------------------------------------- runs that know the classes


@pytest.fixture(scope="module")
def run(tmp_path_factory, novel):
    """A run that learned from four images of each class, and the folder whose other images it did not see."""
    out = tmp_path_factory.mktemp("run") / "run"
    fewgen.train("fake", data=novel, shots=4, text="onehot", out=out, report=False, progress=False)
    return out


def test_a_run_generates_by_class_and_what_it_saw_measures_nothing(run, novel, tmp_path):
    made = fewgen.distill(novel=novel, shots=4, generator=run, out=tmp_path / "a", **BY_RUN)
    assert made.record["images"]["held_out"] == 18
    images = fewgen.generate(run, class_names=list(made.record["classes"]), n=6)
    kept = fewgen.load_images(tmp_path / "a" / "parts" / "generated.npz")
    assert torch.equal(kept.images, images.images)
    # Other supports than those of the run: it has seen some of the rest.
    made = fewgen.distill(novel=novel, shots=4, generator=run, seed=1, out=tmp_path / "b", **BY_RUN)
    assert made.record["images"]["held_out"] < 18
    assert "The generator learned from" in " ".join(made.notes)


def test_a_run_of_other_classes_or_sizes_is_refused(run, tmp_path, base):
    other = written(tmp_path / "other", data(3, ("cat", "tree")))
    with pytest.raises(ConfigError, match="has no class 'tree'"):
        fewgen.distill(novel=other, generator=run, out=tmp_path / "x", **BY_RUN)
    given = data(3, NOVEL[:3])
    given = ImageSet(given.images[:, :, :, :].repeat(1, 1, 2, 2), given.labels, given.class_names)
    with pytest.raises(ConfigError, match="makes images of 1 x 16 x 16, but these are of 1 x 32 x 32"):
        fewgen.distill(novel=given, generator=run, out=tmp_path / "x", **BY_RUN)
    with pytest.raises(ConfigError, match="is a run of fake. Name a run of diffusion"):
        fewgen.distill(data=data(4), generator=run, n_way=2, n_shot=2, out=tmp_path / "x.json", **SMALL)
    assert {path.name for path in tmp_path.iterdir()} == {"other"}


# ------------------------------------------------------------------------------------------- images


def test_supports_are_those_of_training_and_copies_of_them_measure_nothing():
    images = data(6, NOVEL)
    supports, rest = supports_and_rest(images, 4, seed=3)
    assert torch.equal(supports.images, images.shots(4, 3).images)
    assert len(rest) == 8
    twins = images.images.clone()
    twins[images.labels == 1] = twins[images.labels == 1][0]
    _, rest = supports_and_rest(ImageSet(twins, images.labels, images.class_names), 4, seed=3)
    assert len(rest) == 6
    assert supports_and_rest(images, None, 0)[1] is None
    assert supports_and_rest(images, 6, 0)[1] is None


def test_base_classes_of_the_users_names_are_left_out(novel, tmp_path):
    both = data(8)
    keywords = {
        **SMALL,
        "training": {"steps": 2, "batch_size": 12},
        "pretrain_steps": 1,
        "teacher_episodes": 1,
    }
    made = fewgen.distill(novel=novel, shots=4, data=both, generator=Toy(), out=tmp_path / "x", **keywords)
    assert made.record["images"]["base"] == 8 * (len(BASE) + 1)
    assert "cat, dog, bird of the base images are your classes" in " ".join(made.notes)


def test_base_images_of_the_users_classes_alone_teach_nothing(novel, tmp_path):
    with pytest.raises(DataError, match="Without your own classes the base images have 0 classes"):
        fewgen.distill(novel=novel, shots=4, data=novel, generator=Toy(), out=tmp_path / "x", **SMALL)
    assert not (tmp_path / "x").exists()


# ------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"generator": None}, ConfigError, "--novel needs something to learn from"),
        ({"generator": "runs/no/run"}, ConfigError, "There is no run"),
        ({"shots": 11}, DataError, "has 10 images, but 11 shots are needed"),
        ({"shots": 0}, ConfigError, "--shots must be a whole number of 1 or more"),
        ({"student": "resnet18"}, ConfigError, 'no student "resnet18"'),
        ({"novel": "no/photos"}, DataError, "neither a data set nor a file or folder"),
        ({"out": "x.json"}, OutputError, "a student needs a folder"),
        ({"compare": True}, ConfigError, "--compare has no effect with --novel"),
        ({"alpha": -0.1}, ConfigError, "alpha must be in"),
        ({"teacher": "t.safetensors"}, Exception, "There is no teacher"),
    ],
)
def test_mistakes_are_told_before_any_work(wrong, error, message, novel, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keywords = {"novel": novel, "generator": Toy(), "out": tmp_path / "x", **OWN}
    with pytest.raises(error, match=message):
        fewgen.distill(**{**keywords, **wrong})
    assert list(tmp_path.iterdir()) == []


def test_one_class_and_foreign_folders_are_refused(novel, tmp_path):
    lonely = written(tmp_path / "lonely", data(3, ("cat",)))
    with pytest.raises(DataError, match="needs 2 classes or more, but 1 has images"):
        fewgen.distill(novel=lonely, generator=Toy(), out=tmp_path / "x", **OWN)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("")
    with pytest.raises(OutputError, match='it holds "letter.txt"'):
        fewgen.distill(novel=novel, generator=Toy(), out=tmp_path / "mine", **OWN)
    with pytest.raises(OutputError, match="lies inside the folder of the images"):
        fewgen.distill(novel=novel, generator=Toy(), out=novel / "tiny", **OWN)


def test_a_generator_from_the_hub_but_not_a_mistyped_run(novel, tmp_path, monkeypatch):
    asked = []

    def unreachable(name, *, local_files_only, **_):
        asked.append((name, local_files_only))
        raise ConnectionError("unreachable")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    keywords = {"novel": novel, "out": tmp_path / "x", **OWN}
    with pytest.raises(CheckpointError, match='no folder "nobody/sd", and the model could not be fetched'):
        fewgen.distill(generator="nobody/sd", **keywords)
    # A plan fetches nothing.
    with pytest.raises(CheckpointError, match="could not be found in the cache"):
        plan_distillation(generator="nobody/sd", **keywords)
    with pytest.raises(ConfigError, match="There is no run"):
        plan_distillation(generator="runs/sd", **keywords)
    assert asked == [("nobody/sd", False), ("nobody/sd", True)]


def test_every_image_learned_from_is_noted_with_shots_too(novel, tmp_path):
    keywords = {"novel": novel, "generator": Toy(), "out": tmp_path / "x", **OWN}
    assert "--shots 5 learns from some" in plan_distillation(**keywords)
    assert "A smaller --shots learns from some" in plan_distillation(shots=10, **keywords)
    assert "learned from, so none" not in plan_distillation(shots=9, **keywords)
    # No advice that cannot be followed.
    keywords["novel"] = written(tmp_path / "three", data(3, NOVEL[:3]))
    assert "--shots 2 learns from some" in plan_distillation(**keywords)
    keywords["novel"] = written(tmp_path / "one", data(1, NOVEL[:3]))
    assert "none is left to measure the accuracy on.\n" in plan_distillation(**keywords)


def test_a_dry_run_writes_nothing(novel, base, tmp_path):
    keywords = {"novel": novel, "shots": 4, "data": base, "generator": Toy(), "out": tmp_path / "x", **SMALL}
    text = plan_distillation(**keywords)
    assert " 4 of each class to learn from, 18 to measure on; grey, 16x16" in text
    assert "40 of 5 classes, 40 of them shown to the student; turned images join" in text
    assert re.search(
        r"^time        about .+ \(teacher and student before .+, words .+, null texts at most .+, images .+, "
        r"student .+\)$",
        text,
        re.MULTILINE,
    )
    assert list(tmp_path.iterdir()) == []


def test_the_time_left_is_that_of_what_is_missing(whole, novel, base):
    again = {"novel": novel, "shots": 4, "data": base, "generator": Toy(), "out": whole.path, **SMALL}
    assert "time        none, it is finished" in plan_distillation(**again)


def test_records_say_how_teacher_and_student_were_prepared(whole):
    prepare = whole.record["settings"]["prepare"]
    assert (prepare["teacher_pretrain_lr"], prepare["teacher_episodes"]) == (0.02, 20)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tint": {"steps": 3}}, "--tint has no effect with this --generator: it is specialised already"),
        ({"alpha": 0.5}, "--alpha has no effect with this --generator: its images do not start from yours"),
    ],
)
def test_what_means_nothing_to_a_run_of_ones_own_classes_is_refused(run, novel, tmp_path, given, said):
    keywords = {"novel": novel, "shots": 4, "generator": run, "out": tmp_path / "x", **BY_RUN}
    with pytest.raises(ConfigError, match=said):
        plan_distillation(**keywords, **given)
    assert "6 of each class, by its own words" in plan_distillation(**keywords)


def test_what_an_earlier_release_ignored_goes_on(tmp_path, novel):
    """To go on takes the keywords that it was started with."""
    made = fewgen.distill(novel=novel, shots=4, mixtures=3, out=tmp_path / "x", **TAUGHT)
    keywords = {**TAUGHT, "novel": novel, "shots": 4, "mixtures": 3, "teacher_channels": 8}
    with pytest.raises(ConfigError, match="--teacher-channels has no effect without --data"):
        fewgen.distill(**keywords, out=tmp_path / "new")
    settings = made.path / "parts" / "settings.json"
    settings.write_text(settings.read_text().replace('"teacher_channels": 16', '"teacher_channels": 8'))
    assert fewgen.distill(**keywords, out=made.path).was_finished


# ------------------------------------------------------------------------------------------- command line


def test_the_command_makes_a_student_and_says_how_good_it_is(run, novel, tmp_path, capsys):
    words = ["distill", "--novel", novel, "--shots", "4", "--generator", run, "--out", tmp_path / "tiny"]
    words += ["--student-channels", "4", "--per-class", "6", "--training.steps", "5", "--no-progress"]
    assert main([str(word) for word in words]) == 0
    out, err = capsys.readouterr()
    assert "Learned 3 classes from 12 of your images and 18 synthetic ones" in out
    assert "% of 18 images that nothing learned from (95 % interval" in out
    assert "student.onnx" in out
    assert "note: There are no base images" in err
    assert main([str(word) for word in words]) == 0
    assert "is already finished; nothing trained" in capsys.readouterr().out


def test_the_package_is_the_function(whole):
    with pytest.raises(ConfigError, match="needs --novel DIR"):
        fewgen.distill(out="x")


# ------------------------------------------------------------------------------ a pretrained teacher


def test_a_pretrained_teacher_needs_neither_base_images_nor_a_generator(tmp_path, novel):
    made = fewgen.distill(novel=novel, shots=4, mixtures=30, out=tmp_path / "tiny", **TAUGHT)
    record = made.record
    assert record["images"] == {
        "support": 12, "synthetic": 0, "mixtures": 30, "pool": 0, "base": 0, "held_out": 18
    }  # fmt: skip
    assert record["training"]["parts"] == {"support": 12, "mixtures": 12}
    assert record["accuracy"]["teacher"] > 0.8
    assert {path.name for path in made.path.iterdir()} >= {
        "student.safetensors",
        "student.onnx",
        "classes.txt",
    }
    assert not (made.path / "synthetic.png").exists()
    again = fewgen.distill(novel=novel, shots=4, mixtures=30, out=tmp_path / "tiny", **TAUGHT)
    assert again.was_finished
    with pytest.raises(ConfigError, match="mixtures: 30, now 31"):
        fewgen.distill(novel=novel, shots=4, mixtures=31, out=tmp_path / "tiny", **TAUGHT)


def test_a_pool_joins_without_your_own_images(tmp_path, novel):
    more = data(2, NOVEL[:3], seed=9)
    images = fewgen.load_images(novel, channels=1)
    supports, _ = supports_and_rest(images, 4, seed=0)
    both = ImageSet(
        torch.cat([supports.images, more.images]),
        torch.cat([supports.labels, more.labels]),
        images.class_names,
    )
    made = fewgen.distill(novel=novel, shots=4, mixtures=0, pool=both, out=tmp_path / "tiny", **TAUGHT)
    assert made.record["images"]["pool"] == 6
    assert made.notes == ["12 images of --pool are your own; they are left out of it."]
    with pytest.raises(DataError, match="holds no images beside your own"):
        fewgen.distill(novel=novel, pool=novel, out=tmp_path / "other", **TAUGHT)


@pytest.mark.parametrize("form", ["png", "jpg"])
def test_a_pool_with_an_image_that_measures_is_refused_however_it_was_saved(tmp_path, novel, form, capsys):
    images = fewgen.load_images(novel, channels=1)
    _, queries = supports_and_rest(images, 4, seed=0)
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, x in enumerate([*data(4, NOVEL, seed=9).images.numpy(), queries.images[7].numpy()]):
        Image.fromarray(x[0]).save(flat / f"{i:02d}.{form}", quality=95)
    words = [
        "distill",
        "--novel",
        novel,
        "--shots",
        4,
        "--pool",
        flat,
        "--channels",
        1,
        "--out",
        tmp_path / "t",
    ]
    assert main([str(word) for word in [*words, "--teacher", "pixels", "--no-progress"]]) == 2
    told = capsys.readouterr().err
    assert f'1 of the 17 images of --pool also measure the accuracy ("16.{form}")' in told
    assert not (tmp_path / "t").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match='"[^"]*empty" cannot be used: there is no image'):
        fewgen.distill(novel=novel, pool=tmp_path / "empty", out=tmp_path / "t", **TAUGHT)
    # Without --shots nothing is measured, and it is one of the images to learn from.
    made = fewgen.distill(novel=novel, mixtures=0, pool=flat, channels=1, out=tmp_path / "t", **TAUGHT)
    assert made.record["images"]["pool"] == 16


def test_a_folder_of_generated_images_serves_as_a_generator(tmp_path, novel, capsys):
    made = data(8, NOVEL[:3], seed=9)
    wrong = ImageSet(made.images, made.labels.roll(4), NOVEL[:3])  # half of them
    words = f"distill --novel {novel} --generator {written(tmp_path / 'made', wrong)} --shots 4 --channels 1"
    words += (
        " --teacher pixels --per-class 6 --mixtures 9 --student-channels 4 --training.steps 5 --no-progress"
    )
    assert main([*words.split(), "--training.flip", "false", "--out", str(tmp_path / "tiny")]) == 0
    record = json.loads((tmp_path / "tiny" / "distill.json").read_text())
    assert record["images"]["synthetic"] == 18
    assert record["settings"]["training"]["weigh"] is True
    share = record["training"]["teacher"]["synthetic"]
    assert 0.2 < share < 0.8
    told = capsys.readouterr().out
    assert f"The teacher reads {100 * share:.1f} % of the synthetic images as their class." in told
    assert (tmp_path / "tiny" / "synthetic.png").is_file()
    # A query among them is refused, and so are images of other classes.
    _, queries = supports_and_rest(fewgen.load_images(novel, channels=1), 4, seed=0)
    with pytest.raises(DataError, match="18 of the 18 images of --generator also measure the accuracy"):
        fewgen.distill(novel=novel, shots=4, generator=queries, out=tmp_path / "planted", **TAUGHT)
    with pytest.raises(ConfigError, match="has no class 'cat'"):
        other = data(2, NOVEL[1:])
        fewgen.distill(novel=novel, shots=4, generator=other, out=tmp_path / "other", **TAUGHT)


def test_unlabelled_images_may_lie_flat(tmp_path, novel):
    flat = tmp_path / "flat"
    flat.mkdir()
    more = data(6, NOVEL, seed=9)
    for i, x in enumerate(more.images.numpy()):
        Image.fromarray(x[0]).save(flat / f"{i}.png")
    made = fewgen.distill(novel=novel, shots=4, mixtures=0, pool=flat, out=tmp_path / "tiny", **TAUGHT)
    assert made.record["images"]["pool"] == 24
    assert made.record["training"]["parts"] == {"support": 12, "pool": 12}


def test_photographs_as_they_come_from_a_camera_want_a_size(tmp_path):
    labels = torch.arange(2).repeat(2)
    large = ImageSet(torch.zeros(4, 1, 200, 300, dtype=torch.uint8), labels, ("a", "b"))
    given = {**TAUGHT, "novel": large, "out": tmp_path / "tiny"}
    with pytest.raises(ConfigError, match="of 1 x 200 x 300 .* far too large .* --size 64"):
        fewgen.distill(**given)
    given["novel"] = written(tmp_path / "photos", large)
    with pytest.raises(ConfigError, match="--size 64"):
        fewgen.distill(**given)
    assert "grey, 32x32" in plan_distillation(**given, size=32)


def test_who_taught_is_named(tmp_path, novel, monkeypatch):
    class Other(PixelFeatures):
        def record(self):
            return {"name": "other", "sha256": "0" * 64}

    other = NamedEncoder("other pixels", lambda *_: Other(1, 16, 16), option="[PATH]")
    monkeypatch.setitem(ENCODERS, "other", other)
    given = {**TAUGHT, "novel": novel, "shots": 4, "mixtures": 9, "out": tmp_path / "tiny"}
    given["teacher"] = "other:some/where"
    assert "teacher     other:some/where, other pixels\n" in plan_distillation(**given)
    made = fewgen.distill(**given)
    assert made.record["training"]["taught_by"] == {"name": "other", "sha256": "0" * 64}
    share = made.record["accuracy"]["teacher"]
    assert f"; the teacher {100 * share:.1f} %" in "\n".join(distill_command._student(made))
    # Another one is refused by name, without the path, also where only the parts are there.
    (tmp_path / "tiny" / "distill.json").unlink()
    with pytest.raises(ConfigError, match=r'\(teacher: "other", now "pixels"\)'):
        fewgen.distill(**{**given, "teacher": "pixels"})
    # The same name with other weights has another hash.
    monkeypatch.setattr(Other, "record", lambda own: {"name": "other", "sha256": "1" * 64})
    with pytest.raises(ConfigError, match=r'\(teacher: "[0-9a-f]{16}", now "[0-9a-f]{16}"\)'):
        fewgen.distill(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"teacher": None}, "needs something to learn from beside your images: --teacher lite2"),
        ({"teacher": "lite"}, 'no teacher "lite": it is neither .* nor a file. Did you mean "lite2"'),
        ({"tint": {"steps": 3}}, "--tint has no effect without --generator"),
        ({"teacher": ""}, 'no teacher "": it is neither'),
        (
            {"teacher": "."},
            'no teacher ".": it is neither a pretrained encoder, such as lite2 or dino:FOLDER',
        ),
        ({"mixtures": -1}, "--mixtures must be"),
        ({"mixtures": 0}, "With --mixtures 0 the teacher has nothing to label"),
        ({"training": {"weigh": True}}, "weigh weighs synthetic images"),
    ],
)
def test_what_a_pretrained_teacher_refuses(tmp_path, novel, given, message):
    with pytest.raises((ConfigError, DataError, CheckpointError), match=message):
        fewgen.distill(novel=novel, shots=4, out=tmp_path / "tiny", **{**TAUGHT, "mixtures": 9, **given})
