"""A dry run refuses what the command refuses, in the same words, and neither writes anything."""

from __future__ import annotations

import shlex

import numpy as np
import pytest
from PIL import Image
from tests.fake_method import Fake

import fewgen
from fewgen.cli.main import main
from fewgen.data import save_images
from fewgen.data.imageset import ImageSet

assert Fake.name == "fake"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Images of several kinds, and runs."""
    root = tmp_path_factory.mktemp("dry")
    rng = np.random.default_rng(0)

    def photos(name, classes, n=12, size=8):
        for class_name in classes:
            folder = root / name / class_name
            folder.mkdir(parents=True)
            for i in range(n):
                Image.fromarray(rng.integers(0, 256, (size, size), np.uint8)).save(folder / f"{i}.png")

    photos("photos", ["cat", "dog"])
    photos("one", ["cat"])
    photos("large", ["cat", "dog"], size=9)
    images = fewgen.load_images(root / "photos")
    save_images(images, root / "made.npz")
    save_images(fewgen.load_images(root / "large"), root / "large.npz")
    save_images(fewgen.load_images(root / "one"), root / "one.npz")
    other = ImageSet(255 - images.images, images.labels, ("cow", "fox"))
    save_images(other, root / "other.npz")
    (root / "there.json").write_text("{}")
    (root / "stranger").mkdir()
    (root / "stranger" / "thesis.txt").write_text("mine")
    common = {"size": 8, "text": "onehot", "report": False, "progress": False}
    fewgen.train("fake", data=root / "photos", out=root / "run", model={"steps": 4}, **common)
    fewgen.train("fake", data=root / "photos", out=root / "short", minutes=1.0, model={"steps": 4}, **common)
    return root


FAKE = "train fake --text onehot --no-report --no-progress"
EVALUATE = "evaluate made.npz --data photos --useful-draws 0 --out new.json"
BENCHMARK = (
    "benchmark --data photos --shots 3 --seeds 1 --n 8 --budget-minutes 0.01 --methods copies --out new"
)
DISTILL = "distill --novel photos --generator copies --out new"
REFUSED = {
    # train
    "no such data": f"{FAKE} --data nowhere --out new",
    "no such method": "train fak --data photos --out new",
    "no such setting": f"{FAKE} --data photos --out new --model.stepz 3",
    "too many shots": f"{FAKE} --data photos --out new --shots 30",
    "one class": f"{FAKE} --data one --out new",
    "images of this size": "train cada_vqvae --data large --out new",
    "a batch larger than the set": "train sq_gan --data photos --out new --model.batch_size 64",
    "a limit below a step": f"{FAKE} --data photos --out new --minutes 1e-9",
    "a folder of something else": f"{FAKE} --data photos --out stranger",
    "a run on other images": f"{FAKE} --data large --size 8 --out run",
    "a run with other settings": f"{FAKE} --data photos --size 8 --out run --model.steps 5",
    "a run of another method": "train sq_gan --data photos --size 8 --out run",
    "a finished run and another limit": f"{FAKE} --data photos --size 8 --out short --minutes 2",
    "no device": f"{FAKE} --data photos --out new --training.device cuda:99",
    # evaluate
    "no such images": "evaluate nowhere --data photos --out new.json",
    "without the real images": "evaluate made.npz --out new.json",
    "images of another size": "evaluate large.npz --data photos --out new.json",
    "images of other classes": "evaluate other.npz --data photos --out new.json",
    "a class without images": "evaluate one.npz --data photos --out new.json",
    "a single class and a judge of classes": "evaluate one.npz --data one --out new.json",
    "unknown features": f"{EVALUATE} --features pixel",
    "features without their path": f"{EVALUATE} --features inception",
    "features that are not there": f"{EVALUATE} --features inception:nowhere.pth",
    "no test part": f"{EVALUATE} --holdout test",
    "held-out images that were learned from": f"{EVALUATE} --holdout made.npz",
    "more held out than there are": f"{EVALUATE} --holdout 12",
    "held-out images of other classes": f"{EVALUATE} --holdout other.npz",
    "a pool of other classes": f"{EVALUATE} --pool other.npz",
    "a negative number": f"{EVALUATE.replace('draws 0', 'draws -1')}",
    "a negative seed": f"{EVALUATE} --seed -1",
    "an output that is there": "evaluate made.npz --data photos --out there.json",
    "an output of another kind": "evaluate made.npz --data photos --out new.html",
    "shots of a run": "evaluate run --shots 3 --out new.json",
    "other runs of none": f"{EVALUATE} --other-run run",
    "a run without its images": "evaluate run/model.safetensors --out new.json",
    # benchmark
    "no such generator": BENCHMARK.replace("copies", "copiez"),
    "more shots than images": BENCHMARK.replace("shots 3", "shots 30"),
    "a benchmark of one class": BENCHMARK.replace("photos", "one"),
    "no time": BENCHMARK.replace("0.01", "0"),
    "a table of nothing": f"{BENCHMARK} --table-only",
    "a benchmark in a folder of something else": BENCHMARK.replace("out new", "out stranger"),
    "fewer images than classes": BENCHMARK.replace("--n 8", "--n 1"),
    # distill
    "no such model": DISTILL,
    "no images": DISTILL.replace("photos", "nowhere"),
    "no generator": "distill --novel photos --out new",
    "no question": "distill --out new",
    "a run that knows other classes": "distill --novel large --size 8 --generator run --out stranger",
}


@pytest.mark.parametrize("words", REFUSED.values(), ids=REFUSED.keys())
def test_a_dry_run_refuses_what_the_command_refuses(words, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    before = sorted(str(path) for path in place.rglob("*"))
    said = []
    for dry in (["--dry-run"], []):
        assert main([*shlex.split(words), *dry]) == 2, capsys.readouterr()
        said.append(capsys.readouterr().err.split("error: ")[1])
        assert sorted(str(path) for path in place.rglob("*")) == before
    # How long a step took differs; what is said of it does not.
    said = [text.split(" takes ")[0] if "is too short" in text else text for text in said]
    assert said[0] == said[1]
