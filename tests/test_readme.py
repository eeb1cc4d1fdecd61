"""Every command of README.md runs, in its order; only the amount of training is reduced, by flags."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

from fewgen.cli.main import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
QUICK = {
    "train": ["--steps-scale", "0.003", "--no-progress"],
    "distill": ["--training.steps", "2", "--mixtures", "20", "--no-progress"],
    "quickstart": ["--steps-scale", "0.003", "--no-progress"],
    "benchmark": ["--n", "40", "--no-progress"],
    "adapt": ["--no-progress"],
    "--generator": ["--per-class", "4"],
    "--data": [
        *(
            "--teacher-episodes",
            "2",
            "--pretrain-steps",
            "2",
            "--base-images",
            "60",
            "--teacher-channels",
            "4",
        ),
        *("--teacher-pretrain-steps", "2"),
    ],
    "evaluate": ["--no-progress", "--useful-draws", "0"],
}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands():
    return [line for block in blocks("bash") for line in block.splitlines() if line.strip()]


def _photos(folder, first=0, count=12):
    """Make a folder that the README speaks of, from bundled images in colour and of another size."""
    from fewgen.data import load_images

    digits = load_images("digits", size=40, channels=3)
    for label, name in enumerate(("ankle boot", "sandal")):
        (folder / name).mkdir(parents=True)
        chosen = digits.subset((digits.labels == label).nonzero().flatten()[first : first + count])
        for i, pixels in enumerate(chosen.images, start=1):
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / name / f"{i}.jpg")


def _five(folder):
    """Make a folder with five images of a class that the others lack."""
    from fewgen.data import load_images

    digits = load_images("digits", size=40, channels=3)
    folder.mkdir()
    chosen = digits.subset((digits.labels == 7).nonzero().flatten()[:5])
    for i, pixels in enumerate(chosen.images, start=1):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{i}.jpg")


def test_it_starts_with_the_two_commands_and_shows_what_the_first_one_makes():
    assert commands()[:2] == ["make quickstart", "make test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "fewgen quickstart" in makefile
    assert re.search(r"^test:", makefile, flags=re.MULTILINE)
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        Image.open(ROOT / path).verify()
    for path in re.findall(r"(?<!!)\[[^\]]*\]\(([^)#:]+)\)", README):
        assert (ROOT / path).exists(), path


@pytest.mark.slow
def test_every_command_and_the_python_code_run(tmp_path, monkeypatch, data_dir, capsys):
    monkeypatch.setenv("FEWGEN_DATA_DIR", str(data_dir))
    monkeypatch.chdir(tmp_path)
    _photos(tmp_path / "photos")
    _photos(tmp_path / "kept", first=12, count=6)
    _photos(tmp_path / "others", first=18, count=6)
    _five(tmp_path / "five")
    ran = []
    for line in commands():
        words = shlex.split(line)
        if words[0] == "make":
            # `make test` is this very run; `make quickstart` installs, and then does what follows.
            words = ["fewgen", "quickstart"] if words[1] == "quickstart" else []
        if not words:
            continue
        assert words[0] == "fewgen", f"this test does not know how to run: {line}"
        quick = QUICK.get(words[1], [])
        if words[1] == "distill":
            quick = [
                *quick,
                *(more for flag in ("--generator", "--data") if flag in words for more in QUICK[flag]),
            ]
        code = main([*words[1:], *quick])
        assert code == 0, (line, capsys.readouterr().err)
        ran.append(words[1])
    assert {"quickstart", "train", "generate", "interpolate", "retrieve", "reconstruct"} <= set(ran)
    assert {"adapt", "evaluate", "benchmark", "plan", "distill"} <= set(ran)
    for name in ("grid.png", "report.html", "README.md", "model.safetensors"):
        assert (tmp_path / "runs" / "quickstart" / name).is_file()
    for name in ("photos.json", "photos.html", "others.json", "others.html"):
        assert (tmp_path / name).is_file()
    for name in ("sandals.npz", "strip.png", "sneakers.png", "fashion.png", "pairs.png", "alphas.png"):
        assert (tmp_path / name).is_file()
    for name in ("student.onnx", "student.safetensors", "distill.json"):
        assert (tmp_path / "tiny" / name).is_file()
        assert (tmp_path / "classifier" / name).is_file()
    (code,) = blocks("python")
    assert "minutes=5" in code
    names = {}
    exec(compile(code.replace("minutes=5", "steps_scale=0.003, progress=False"), "README.md", "exec"), names)
    assert tuple(names["images"].images.shape) == (8, 3, 32, 32)
    assert names["adapted"].class_names == ("ankle boot", "sandal", "sneaker")
    assert names["evaluation"].verdicts["new"].answer in ("yes", "partly", "no", "cannot tell")
    assert (names["again"].images[0] == names["images"].images[3]).all()
    shutil.rmtree(tmp_path / "runs")
