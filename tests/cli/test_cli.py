"""The command line: help, flags, outputs, and one clear message for every mistake."""

from __future__ import annotations

import inspect
import json
import os
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.fake_method import Fake

import fewgen
from fewgen.api import train
from fewgen.cli.command import Argument, Command
from fewgen.cli.main import COMMANDS, load_command, main
from fewgen.config import read_config
from fewgen.data import ImageSet
from fewgen.errors import ConfigError

GOLDEN = Path(__file__).parents[1] / "golden"
assert Fake.name == "fake"


def run_cli(capsys, *words):
    """Return (exit code, standard output, standard error)."""
    capsys.readouterr()
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def mistake(capsys, *words):
    """Return the message of a command that must fail as a user's mistake does."""
    code, out, err = run_cli(capsys, *words)
    assert code == 2, (code, out, err)
    assert err.startswith("error: "), err
    assert "Traceback" not in err
    return err


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "run"
    fewgen.train(
        "fake", data="digits", size=8, shots=12, text="onehot", out=path, report=False, progress=False
    )
    return path


# -------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("name", ["fewgen", *COMMANDS])
def test_help_is_as_stored(name, capsys):
    """To accept a change: FEWGEN_UPDATE_GOLDEN=1 python -m pytest tests/cli; then read the difference."""
    code, out, _ = run_cli(capsys, *([] if name == "fewgen" else [name]), "--help")
    assert code == 0
    path = GOLDEN / f"help_{name}.txt"
    if os.environ.get("FEWGEN_UPDATE_GOLDEN") == "1":
        path.write_text(out, encoding="utf-8")
    assert out == path.read_text(encoding="utf-8")
    assert max(map(len, out.splitlines())) <= 110


def test_no_flag_comes_or_goes_unnoticed():
    flags = {name: load_command(name).flags() for name in COMMANDS}
    path = GOLDEN / "flags.json"
    if os.environ.get("FEWGEN_UPDATE_GOLDEN") == "1":
        path.write_text(json.dumps(flags, indent=2) + "\n", encoding="utf-8")
    assert flags == json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", COMMANDS)
def test_each_flag_is_one_keyword_of_the_function_behind_it(name):
    command = load_command(name)
    assert command.name == name
    parameters = inspect.signature(command.target).parameters
    assert [a.keyword for a in command.arguments] == [k for k in parameters if k != "config"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_parses(name):
    lines = load_command(name).examples
    assert lines
    for purpose, line in zip(lines[::2], lines[1::2], strict=True):
        words = shlex.split(line)
        assert words[:2] == ["fewgen", name]
        assert purpose.startswith("# ")
        load_command(name).parse(words[2:])


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["--version"]])
def test_help_answers_at_once_and_without_torch(words):
    code = (
        "import sys; from fewgen.cli.main import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'numpy', 'matplotlib', 'rich'} & set(sys.modules); "
        "assert code == 0 and not heavy, heavy"
    )
    # Processor time: the promise is about our imports, not about what else the machine is doing.
    best = min(_seconds([sys.executable, "-c", code, *words]) for _ in range(2))
    assert best < 1.0, f"{best:.2f} s"


def _seconds(command):
    before = os.times()
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return used


# ----------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], 'no command "trian". Did you mean "train"'),
        (["train"], "needs METHOD and --data D and --out RUN"),
        (["train", "fake", "--data", "digits"], "needs --out RUN"),
        (["train", "fake", "--shot", "3"], 'no flag --shot. Did you mean "--shots"'),
        (["train", "fake", "--shots", "three"], '--shots must be a whole number or null, got "three"'),
        (["train", "fake", "--holdout", "some"], "--holdout must be a whole number or one of 'auto'"),
        (["train", "fake", "--shots"], "--shots needs a value"),
        (["train", "fake", "one_too_many", "--data", "digits", "--out", "x"], "one_too_many"),
        (["generate"], "needs RUN"),
        (["generate", "no_such_run", "--out", "x.npz"], 'no run "no_such_run"'),
        (["generate", "x", "-x"], "no flag -x"),
        (["methods", "cada_vqva"], 'no method "cada_vqva". Did you mean "cada_vqvae"'),
        (
            ["train", "fake", "--data", "a", "--images", "b", "--out", "x"],
            "--images is another name of --data",
        ),
        (
            ["train", "fake", "--data", "digits", "--out", "x", "--model", "runs/a"],
            'unknown key "model.base"',
        ),
        (["train", "tint", "--images", "digits", "--out", "x"], "needs a model to specialise: --model PATH"),
        (
            ["generate", "x", "--alpha", "often", "--out", "y.npz"],
            "--alpha must be a number or one of 'uniform'",
        ),
    ],
)
def test_mistakes_on_the_command_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in mistake(capsys, *words)
    assert list(tmp_path.iterdir()) == []


def _toy_folder(root, **files):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 256, (9, 9), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def _train(root, out, *more):
    return ["train", "fake", "--data", root, "--out", out, "--text", "onehot", "--no-report", *more]


def test_all_problems_of_a_folder_in_one_message(tmp_path, capsys):
    root = _toy_folder(tmp_path / "photos")
    whole = (root / "cat" / "0.png").read_bytes()
    (root / "cat" / "broken.png").write_bytes(whole[: len(whole) // 2])
    (root / "cat" / "text.jpg").write_text("not an image")
    Image.new("RGBA", (9, 9), (1, 2, 3, 4)).save(root / "dog" / "glass.png")
    Image.new("CMYK", (9, 9)).save(root / "dog" / "print.jpg")
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(root / "dog" / "deep.png")
    frames = [Image.new("L", (9, 9), i) for i in (0, 200)]
    frames[0].save(root / "dog" / "film.gif", save_all=True, append_images=frames[1:])
    (root / "empty").mkdir()
    err = mistake(capsys, *_train(root, tmp_path / "run"))
    for name in ("broken.png", "text.jpg", "glass.png", "print.jpg", "deep.png", "film.gif", "empty"):
        assert name in err
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_other_bad_folders(tmp_path, capsys):
    root = _toy_folder(tmp_path / "mixed")
    Image.new("L", (5, 7)).save(root / "cat" / "small.png")
    assert "size" in mistake(capsys, *_train(root, tmp_path / "run"))
    root = _toy_folder(tmp_path / "case")
    (root / "Cat").mkdir()
    Image.new("L", (9, 9)).save(root / "Cat" / "a.png")
    assert "case" in mistake(capsys, *_train(root, tmp_path / "run"))
    root = _toy_folder(tmp_path / "one")
    for file in (root / "dog").iterdir():
        file.unlink()
    (root / "dog").rmdir()
    assert "classes are needed" in mistake(capsys, *_train(root, tmp_path / "run"))
    root = _toy_folder(tmp_path / "few")
    err = mistake(capsys, *_train(root, tmp_path / "run", "--shots", 9))
    assert "cat" in err
    assert "dog" in err


def test_bad_words(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FEWGEN_DATA_DIR", str(tmp_path))
    root = _toy_folder(tmp_path / "photos")
    words = _train(root, tmp_path / "run")
    words[words.index("onehot")] = "glove"
    assert "glove" in mistake(capsys, *words).lower()
    (tmp_path / "g.txt").write_text("cat 1 0 2\nbird 0 1 1\n", encoding="utf-8")
    assert '"dog"' in mistake(capsys, *words, "--text-path", tmp_path / "g.txt")
    (tmp_path / "g.txt").write_text("cat 1 0 2\ndog 1 0 2\n", encoding="utf-8")
    err = mistake(capsys, *words, "--text-path", tmp_path / "g.txt")
    assert '"cat"' in err
    assert '"dog"' in err


def test_bad_outputs(tmp_path, capsys, run):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    root = _toy_folder(tmp_path / "photos")
    assert "not a fewgen run" in mistake(capsys, *_train(root, tmp_path / "full"))
    assert "file" in mistake(capsys, *_train(root, tmp_path / "full" / "thesis.txt"))
    err = mistake(capsys, *_train(root, tmp_path / "full" / "thesis.txt" / "deeper"))
    assert "thesis.txt" in err
    assert "not empty" in mistake(capsys, "generate", run, "--out", tmp_path / "full")
    assert ".npz" in mistake(capsys, "generate", run, "--out", tmp_path / "o.jpg")
    assert "needs --out" in mistake(capsys, "generate", run)
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_run_folder_and_its_images_stay_apart(tmp_path, capsys, monkeypatch, dry):
    root = _toy_folder(tmp_path / "photos")
    before = sorted(root.rglob("*"))
    assert "inside the folder of the images" in mistake(capsys, *_train(root, root / "run"), *dry)
    assert "is the folder of the images" in mistake(capsys, *_train(root, root / "cat" / ".."), *dry)
    assert "lie inside the run folder" in mistake(capsys, *_train(root, tmp_path), *dry)
    (tmp_path / "link").symlink_to(root)
    assert "inside the folder" in mistake(capsys, *_train(tmp_path / "link", root / "runs" / "a"), *dry)
    assert sorted(root.rglob("*")) == before
    # A beginning in common is no folder in common, and a named data set is no folder.
    assert run_cli(capsys, *_train(root, tmp_path / "photos2"), "--dry-run")[0] == 0
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    words = _train("digits", Path("digits") / "run", "--size", 8, "--shots", 3, "--dry-run")
    assert run_cli(capsys, *words)[0] == 0


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="needs a user")
def test_an_unwritable_folder(tmp_path, capsys):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert "permitted" in mistake(capsys, *_train(_toy_folder(tmp_path / "photos"), locked / "run"))


def test_a_truncated_model_and_an_unknown_class(tmp_path, capsys, run):
    data = (run / "model.safetensors").read_bytes()
    (tmp_path / "m.safetensors").write_bytes(data[: len(data) // 2])
    assert "truncated" in mistake(capsys, "generate", tmp_path / "m.safetensors", "--out", tmp_path / "o.npz")
    err = mistake(capsys, "generate", run, "--class-name", "sevn", "--out", tmp_path / "o.npz")
    assert 'no class "sevn". Did you mean "seven"' in err
    assert not (tmp_path / "o.npz").exists()


def test_a_bad_settings_file(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("shotz: 3\n", encoding="utf-8")
    err = mistake(capsys, "train", "fake", "--config", tmp_path / "c.yaml", "--data", "digits", "--out", "x")
    assert 'Did you mean "shots"' in err
    assert "does not exist" in mistake(capsys, "train", "--config", tmp_path / "none.yaml")


def test_debug_shows_the_traceback(monkeypatch, capsys):
    from fewgen.errors import ConfigError

    monkeypatch.setenv("FEWGEN_DEBUG", "1")
    with pytest.raises(ConfigError):
        main(["trian"])


def test_interrupting_says_how_to_resume(monkeypatch, capsys):
    def interrupt(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fewgen, "train", interrupt)
    # `fewgen.train` is also where the flags come from, so its signature is needed as it was.
    interrupt.__wrapped__ = train
    code, _, err = run_cli(capsys, "train", "fake", "--data", "digits", "--out", "x")
    assert code == 130
    assert "same command" in err


def test_ctrl_c_stops_at_a_step_and_the_same_command_finishes(tmp_path):
    out = tmp_path / "run"
    code = (
        "import os, sys, signal, threading; import tests.fake_method; from fewgen.cli.main import main\n"
        "def later():\n"
        "    import time, pathlib\n"
        f"    path = pathlib.Path({str(out / 'metrics.jsonl')!r})\n"
        "    while not (path.exists() and path.stat().st_size): time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "if sys.argv[1] == 'stop': threading.Thread(target=later, daemon=True).start()\n"
        "sys.exit(main(sys.argv[2:]))"
    )
    words = [
        "train",
        "fake",
        "--data",
        "digits",
        "--size",
        "8",
        "--shots",
        "12",
        "--text",
        "onehot",
        "--no-report",
        "--no-progress",
    ]
    words += ["--out", str(out), "--model.steps", "300", "--training.log_every", "2"]
    root = Path(__file__).parents[2]

    def start(how):
        return subprocess.run(
            [sys.executable, "-c", code, how, *words],
            cwd=root,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )

    stopped = start("stop")
    assert stopped.returncode == 130, stopped.stderr
    assert "same command again" in stopped.stderr
    finished = start("go")
    assert finished.returncode == 0, finished.stderr
    assert "Trained 300 steps" in finished.stdout


# ----------------------------------------------------------------------------------------- commands


def test_settings_of_several_sections_inside_a_section_keep_their_types():
    words = ["sq_gan", "--data", "digits", "--out", "x", "--model.network.width", "4", "--model.lr", "1e-3"]
    words += [
        "--model.network.z_dim=8",
        "--model.quantizer.code_dim",
        "2",
        "--model.quantizer.project",
        "true",
    ]
    expected = {
        "network": {"width": 4, "z_dim": 8},
        "lr": 0.001,
        "quantizer": {"code_dim": 2, "project": True},
    }
    assert load_command("train").parse(words)["model"] == expected


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ("train M --shots 0x10 --seed 1_000", {"method": "M", "shots": 16, "seed": 1000}),
        ("train --shots 3 M --shots 4 --minutes null", {"method": "M", "shots": 4}),
        (
            "train M --report yes --no-progress --convert",
            {"report": True, "progress": False, "convert": True},
        ),
        ("train M --text_path a_b --text-path=c", {"text_path": "c"}),
        (
            "train M --training.lr.x 1e-3 --training.lr.y=[1,2]",
            {"training": {"lr": {"x": 0.001, "y": [1, 2]}}},
        ),
        ("train M --training.lr 1 --training.lr 2", {"training": {"lr": 2}}),
        ("train M --model '{a: 1}' --model.b.c d", {"model": {"a": 1, "b": {"c": "d"}}}),
        ("adapt R --phrases '{cat: feline}'", {"phrases": {"cat": "feline"}}),
        ("adapt R --phrases words.json --replay 3", {"phrases": "words.json", "replay": 3}),
        ("generate R --seeds 3 4 --temperature -.5", {"seeds": [3, 4], "temperature": -0.5}),
        ("generate R -n4 --text 3 --text [1]", {"n": 4, "texts": ["3", "[1]"]}),
        ("evaluate R --holdout 3", {"holdout": 3}),
        ("evaluate R --holdout true", {"holdout": "true"}),
        ("retrieve R a b --top 2", {"images": ["a", "b"], "top": 2}),
        ("distill --competitors a b --seed 7", {"competitors": ["a", "b"], "seed": 7}),
    ],
)
def test_words_become_values_of_the_type_that_the_function_wants(words, given):
    words = shlex.split(words)
    parsed = load_command(words[0]).parse(words[1:])
    assert {key: parsed.get(key) for key in given} == given
    assert "minutes" not in parsed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train M --seed x", '--seed must be a whole number, got "x".'),
        ("train M --report", "--report needs a value"),
        ("train M --report maybe", '--report must be true or false, got "maybe".'),
        ("train M --training 3", '--training must be a section of keys and values, got "3".'),
        ("train M --training.lr", "--training needs a value"),
        ("train M --training.lr *x", "not valid YAML"),
        ("train M --shots *x", "--shots must be a whole number or null"),
        ("generate R --seeds 1 a", '--seeds must be a whole number, got "a".'),
        ("generate R -n", "--n needs a value"),
        ("generate R --temperature nan", "--temperature must be a number"),
    ],
)
def test_words_that_do_not_fit(words, message):
    words = shlex.split(words)
    with pytest.raises(ConfigError) as caught:
        load_command(words[0]).parse(words[1:])
    assert message in str(caught.value)


def test_a_former_flag_works_with_a_warning_and_is_not_in_the_help(capsys, monkeypatch):
    def paint(*, background: str = "error") -> int:
        """Paint."""
        return print({"background": background}) or 0

    command = Command(
        paint,
        page="""`fewgen paint`.\n\nExamples:\n    # once\n    fewgen paint\n""",
        run=lambda given: paint(**given),
        special=(Argument("background", former="--paper"),),
    )
    monkeypatch.setattr("fewgen.cli.main.load_command", lambda name: command)
    warnings.simplefilter("always")
    for words in (("--paper", "white"), ("--paper=white",)):
        code, out, err = run_cli(capsys, "paint", *words)
        assert (code, out) == (0, "{'background': 'white'}\n")
        assert (
            err == "warning: --paper is called --background now; the old name works until the next release.\n"
        )
    assert "former name of --background" in mistake(
        capsys, "paint", "--paper", "white", "--background", "black"
    )
    assert "--paper" not in command.help()
    assert "--paper" not in command.flags()


def test_a_model_and_images_have_plain_names():
    parse = load_command("train").parse
    wanted = {"method": "tint", "model": {"base": "runs/a b"}, "data": "photos"}
    assert parse(["tint", "--model", "runs/a b", "--images", "photos"]) == wanted
    assert parse(["tint", "--model=runs/a b", "--images=photos"]) == wanted
    with_key = parse(["tint", "--model", "runs/a", "--model.textual.steps", "3", "--model.alpha", "uniform"])
    assert with_key["model"] == {"base": "runs/a", "textual": {"steps": 3}, "alpha": "uniform"}
    words = ["tint", "--model", "a #1", "--model.prompt", "a photo of an #object"]
    assert parse(words)["model"] == {"base": "a #1", "prompt": "a photo of an #object"}
    with pytest.raises(ConfigError, match="--model needs a value|--model must be"):
        parse(["tint", "--model", "--images", "photos"])


def test_alpha_is_refused_where_it_means_nothing(tmp_path, capsys, run):
    for flag in (("--alpha", 0.5), ("--alphas", 0, 1)):
        err = mistake(capsys, "generate", run, *flag, "--out", tmp_path / "x.png")
        assert "is a run of fake. Leave alpha out." in err
    assert not (tmp_path / "x.png").exists()


def test_train_dry_run_and_print_config_write_nothing(tmp_path, capsys):
    words = ["train", "fake", "--data", "digits", "--size", 8, "--shots", 12, "--text", "onehot", "--out"]
    code, out, _ = run_cli(capsys, *words, tmp_path / "run", "--dry-run")
    assert code == 0
    assert "108 to learn from" in out or "110 to learn from" in out
    assert "minutes" in out
    assert "parameters" in out
    code, out, _ = run_cli(capsys, *words, tmp_path / "run", "--model.lr", "1e-3", "--print_config")
    assert code == 0
    assert not (tmp_path / "run").exists()
    (tmp_path / "c.yaml").write_text(out, encoding="utf-8")
    settings = read_config(tmp_path / "c.yaml")
    assert settings["model"] == {"latent_size": 4, "steps": 20, "lr": 0.001}
    code, again, _ = run_cli(
        capsys, "train", "--config", tmp_path / "c.yaml", "--out", tmp_path / "run", "--print_config"
    )
    assert again == out


def test_train_then_use_it(tmp_path, capsys):
    run = tmp_path / "run"
    words = ["train", "fake", "--data", "digits", "--size", 8, "--shots", 12, "--text", "onehot"]
    code, out, err = run_cli(capsys, *words, "--out", run, "--no-report")
    assert code == 0, err
    assert "Trained 20 steps" in out
    assert "fewgen generate" in out
    code, out, err = run_cli(
        capsys,
        "generate",
        run,
        "--class-name",
        "seven",
        "--class_name",
        "one",
        "-n",
        3,
        "--out",
        tmp_path / "o.npz",
    )
    assert code == 0, err
    assert "Wrote 6 images, seeds 0 to 5" in out
    with np.load(tmp_path / "o.npz") as file:
        assert file["labels"].tolist() == [7, 7, 7, 1, 1, 1]
    code, out, err = run_cli(
        capsys, "generate", run, "--class-name", "one", "--seeds", 4, 3, "--out", tmp_path / "p.npz"
    )
    assert code == 0, err
    with np.load(tmp_path / "p.npz") as again, np.load(tmp_path / "o.npz") as file:
        assert (again["images"] == file["images"][[4, 3]]).all()
    assert run_cli(capsys, "interpolate", run, "one", "seven", "--out", tmp_path / "s.png")[0] == 0
    assert run_cli(capsys, "reconstruct", run, "--out", tmp_path / "r.png")[0] == 0
    code, out, _ = run_cli(capsys, "retrieve", run, "digits", "--split", "test")
    assert code == 0
    assert "of 355 images" in out
    Image.open(tmp_path / "s.png").verify()


def test_a_finished_run_is_not_trained_again(tmp_path, capsys, monkeypatch):
    made = []
    monkeypatch.setattr("fewgen.runs.findings.measure_run", lambda run, *_: run)
    monkeypatch.setattr("fewgen.report.write_report", lambda findings: made.append(findings.path))
    run = tmp_path / "run"
    words = ["train", "fake", "--data", "digits", "--size", 8, "--shots", 12, "--text", "onehot"]
    words += ["--out", run, "--no-progress"]
    code, out, _ = run_cli(capsys, *words, "--minutes", "0.5")
    assert code == 0
    assert "Report:" not in out
    model = (run / "model.safetensors").read_bytes()
    (run / "report.html").write_text("mine")
    code, out, _ = run_cli(capsys, *words, "--minutes", "0.5")
    assert code == 0
    assert "already finished; nothing trained" in out
    assert "Trained" not in out
    assert made == [run]
    for more in (["--minutes", "0.75"], []):
        err = mistake(capsys, *words, *more)
        assert "finished with 0.5 minutes" in err
        assert "choose a new --out" in err
    assert (run / "model.safetensors").read_bytes() == model
    (run / "report.html").unlink()
    code, out, _ = run_cli(capsys, *words, "--minutes", "0.5")
    assert made == [run, run]
    assert "Report:" not in out


def test_overwrite_is_needed_and_works(tmp_path, capsys, run):
    words = ["generate", run, "-n", 1, "--out", tmp_path / "o.png"]
    assert run_cli(capsys, *words)[0] == 0
    before = (tmp_path / "o.png").read_bytes()
    assert "--overwrite" in mistake(capsys, *words)
    assert (tmp_path / "o.png").read_bytes() == before
    assert run_cli(capsys, *words, "--seed", 1, "--overwrite")[0] == 0
    assert (tmp_path / "o.png").read_bytes() != before


def test_generate_from_a_settings_file(tmp_path, capsys, run):
    (tmp_path / "g.yaml").write_text("n: 2\nclass_names: [one]\ntemperature: 0\n", encoding="utf-8")
    out = tmp_path / "o.npz"
    code, _, err = run_cli(capsys, "generate", run, "--config", tmp_path / "g.yaml", "--out", out, "-n", 3)
    assert code == 0, err
    with np.load(out) as file:
        assert file["labels"].tolist() == [1, 1, 1]
        assert (file["images"] == file["images"][0]).all()


def test_methods_and_datasets(capsys):
    code, out, _ = run_cli(capsys, "methods")
    assert code == 0
    assert "cada_vqvae" in out
    code, out, _ = run_cli(capsys, "methods", "fake")
    assert code == 0
    assert "latent_size: 4" in out
    code, out, _ = run_cli(capsys, "datasets")
    assert code == 0
    assert "fashion_mnist" in out
    assert "digits" in out


def test_doctor_reports_what_is_there_and_what_is_broken(capsys, monkeypatch, tmp_path):
    import fewgen.cli.doctor as doctor

    code, out, _ = run_cli(capsys, "doctor")
    assert code == 0, out
    assert torch.__version__ in out
    broken = tmp_path / "torchvision"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    state, _, finding = doctor._torchvision()
    assert state == doctor.BAD
    assert "nms does not exist" in finding
    monkeypatch.setenv("FEWGEN_DATA_DIR", str(tmp_path / "none"))
    code, out, _ = run_cli(capsys, "doctor")
    assert code == 2
    assert "PROBLEM" in out


def test_doctor_says_which_encoders_are_there(monkeypatch, tmp_path):
    import importlib.metadata

    import fewgen.cli.doctor as doctor
    from fewgen.encoders import efficientnet

    monkeypatch.setenv("FEWGEN_DATA_DIR", str(tmp_path))
    rows = {subject: (state, finding) for state, subject, finding in doctor._encoders()}
    assert rows["encoder lite0"] == (doctor.OK, "EfficientNet-Lite0 of ImageNet (--features)")
    assert rows["encoder minilm"][0] == rows["encoder pixels"][0] == doctor.OK
    assert rows["encoder dino"][1].endswith("write dino:FOLDER")
    assert rows["encoder glove"][0] == doctor.NOTE
    assert "no folder" in rows["encoder glove"][1]
    (tmp_path / "changed.pth").write_bytes(b"other weights")
    monkeypatch.setattr(efficientnet, "weight_file", lambda name: tmp_path / "changed.pth")
    rows = {subject: (state, finding) for state, subject, finding in doctor._encoders()}
    assert rows["encoder lite1"][0] == doctor.BAD
    assert "--force-reinstall" in rows["encoder lite1"][1]
    monkeypatch.undo()
    monkeypatch.setattr(importlib.metadata, "files", lambda name: None)
    rows = {subject: (state, finding) for state, subject, finding in doctor._encoders()}
    assert rows["encoder lite2"][0] == doctor.NOTE
    assert 'pip install "fewgen[knowledge]"' in rows["encoder lite2"][1]


def test_doctor_tries_a_joint_encoder(capsys, monkeypatch):
    class Right:
        """Knows every class: images and words of one class are one direction, and the words of three forms alike."""

        def encode_texts(self, texts):
            names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
            return torch.eye(10)[[names.index(text.split()[-1]) for text in texts]]

        def image_features(self, images):
            return torch.eye(10)[torch.arange(len(images)) % 10]

    monkeypatch.setattr("fewgen.encoders.named.make_joint_encoder", lambda name, images: Right())
    code, out, _ = run_cli(capsys, "doctor", "--encoder", "small", "--data", "digits")
    assert code == 0
    assert "small on 1000 images of" in out
    ones, zeros = f"|{' ' * 23}#|", f"|#{' ' * 23}|"
    assert f"image and its word      {ones}  1.00, 90 % between 1.00 and 1.00" in out
    assert f"two texts of one class  {ones}  1.00, 90 % between 1.00 and 1.00" in out
    assert f"image and another word  {zeros}  0.00, 90 % between 0.00 and 0.00" in out
    assert "100% of the images are nearest to their own word, by chance 10%." in out
    for words, message in (
        (("--encoder", "small"), "needs both: --encoder NAME --data D"),
        (("--encoder", "lite0", "--data", "digits"), 'no joint encoder "lite0"'),
    ):
        code, _, err = run_cli(capsys, "doctor", *words)
        assert code == 2
        assert message in err


def test_broken_pipe_is_quiet():
    process = subprocess.run(
        f'"{sys.executable}" -m fewgen train --help | head -1',
        shell=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in process.stderr


def test_a_set_with_a_single_image(tmp_path, capsys, run):
    """Labels that the model does not know give no accuracy."""
    from fewgen.data import save_images

    images = ImageSet(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), ("x", "y"))
    save_images(images, tmp_path / "d.npz")
    code, out, _ = run_cli(capsys, "retrieve", run, tmp_path / "d.npz")
    assert code == 0
    assert "class for" not in out


def test_train_ends_with_the_verdicts(tmp_path, capsys):
    words = ["train", "fake", "--data", "digits", "--size", "8", "--shots", "10", "--text", "onehot"]
    words += ["--out", tmp_path / "r", "--no-progress"]
    for _ in range(2):  # a finished run says it again
        code, out, _ = run_cli(capsys, *words)
        assert code == 0
        first = [line.split("?")[0] for line in out.splitlines() if "?" in line[:9]]
        assert first == ["Real", "Diverse", "New", "Useful", "Aligned"]
    (tmp_path / "r" / "evaluation.json").write_text("{}", encoding="utf-8")
    code, out, _ = run_cli(capsys, *words)
    assert code == 0
    assert "Real?" not in out


DISTILL = "distill --novel x --teacher lite2 --out {out}"
BENCHMARK = "benchmark --data digits --out {out}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("generate {run} --seeds 1 -n 3 --out {out}.npz", "--n has no effect with --seeds"),
        ("generate {run} --seeds 1 --seed 3 --out {out}.npz", "--seed has no effect with --seeds"),
        ("reconstruct {run} --fit pad --out {out}.npz", "--fit has no effect without --data"),
        ("evaluate digits --data digits -n 4", "--n has no effect with images: only a run draws"),
        (
            "evaluate {run} --useful-draws 0 --other-run {run}",
            "--other-run has no effect with --useful-draws 0",
        ),
        ("evaluate {run} --fit pad", "fit has no meaning here"),
        (
            "adapt {run} --images digits --class-name one --out {out} --no-report --curve",
            "--curve has no effect without",
        ),
        ("methods --preset paper", "--preset has no effect without a method"),
        ("benchmark --data digits --out {out} --table-only --remeasure", "--remeasure has no effect with"),
        (
            "distill --novel x --teacher lite2 --out {out} --episodes 5",
            "--episodes has no effect with --novel",
        ),
        (
            "distill --novel x --teacher lite2 --out {out} --alpha 0.5",
            "--alpha has no effect without --generator",
        ),
        (f"{DISTILL} --per-class 50", "--per-class has no effect without --generator"),
        (f"{DISTILL} --tint.steps 3", "--tint has no effect without --generator"),
        (f"{DISTILL} --generator-minutes 3", "--generator-minutes has no effect without --generator"),
        (
            f"{DISTILL} --training.hard_labels true",
            "--training.hard_labels has no effect without --generator",
        ),
        (f"{DISTILL} --pretrain-steps 9", "--pretrain-steps has no effect without --data, images of other"),
        (f"{DISTILL} --base-images 9", "--base-images has no effect without --data"),
        (f"{DISTILL} --turns yes", "--turns has no effect without --data"),
        (f"{DISTILL} --class-split all", "--class-split has no effect without --data"),
        *(
            (f"{DISTILL} --data y --{name} {value}", f"--{name} has no effect with --teacher lite2, which is")
            for name, value in (
                ("teacher-net", "conv4"),
                ("teacher-channels", 8),
                ("teacher-pretrain-steps", 9),
                ("teacher-episodes", 9),
            )
        ),
        (f"{DISTILL} --data y --pretrain-steps 0 --turns no", "--turns has no effect with --teacher and"),
        (
            "generate {run} --temperature 0 --seed 3 --out {out}.npz",
            "--seed has no effect with --temperature 0",
        ),
        ("interpolate {run} one two --seed 3 --out {out}.npz", "--seed has no effect with --temperature 0"),
        ("retrieve {run} {image} --split test", "--split has no effect with the image file"),
        (
            "reconstruct {run} --data {image} --split test --out {out}.npz",
            "--split has no effect with the im",
        ),
        ("evaluate {run}/model.safetensors --data digits --size 9", "--size has no effect with a model file"),
        (
            "evaluate {flat} --data digits --size 8 --useful-draws 5",
            "--useful-draws has no effect with images th",
        ),
        (f"{BENCHMARK} --table-only --jobs 2", "--jobs has no effect with --table-only"),
        (
            "plan --accuracy .9 --between-sd .1 --queries 75 --half-width .01 --power .9",
            "--power has no effect",
        ),
        ("plan --gain .01 --draws 5 --sd .01 --power .9", "--power has no effect with --gain and --draws"),
        ("doctor --data-dir x", "--data-dir has no effect without --encoder"),
        (
            "distill --data digits --generator g --out {out}.json --generator-minutes 5",
            "minutes has no effect with",
        ),
    ],
)
def test_flags_that_would_be_ignored_are_refused(capsys, run, tmp_path, words, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image, flat = tmp_path / "x.png", tmp_path / "flat"
    flat.mkdir()
    for i, path in enumerate((image, flat / "a.png", flat / "b.png")):
        Image.new("L", (8, 8), 40 * i).save(path)
    places = {"run": run, "out": tmp_path / "out", "image": image, "flat": flat}
    code, _, error = run_cli(capsys, *words.format(**places).split())
    assert code == 2
    assert said in error


def test_a_message_of_any_length_is_shown_in_short(capsys, monkeypatch):
    def runs(words):
        warnings.warn("w" * 9000 + "\nsecond line", UserWarning, stacklevel=1)
        raise ConfigError("e" * 9000)

    class Long:
        main = staticmethod(runs)

    monkeypatch.setattr("fewgen.cli.main.load_command", lambda name: Long)
    code, _, err = run_cli(capsys, "train")
    assert code == 2
    shown = err.splitlines()
    assert [line[:9] for line in shown] == ["warning: ", "second li", "error: ee"]
    assert all(len(line) < 2100 and line.endswith(" ...") for line in (shown[0], shown[2]))


@pytest.mark.parametrize(
    "line", ["evaluate x --config {}", "retrieve {} x", "generate {} --out a.npz", "evaluate {}"]
)
def test_a_name_that_no_system_takes_is_told(line, capsys):
    code, _, err = run_cli(capsys, *line.format("9" * 5000).split())
    assert code == 2
    assert err.startswith("error: ")
    assert len(err) < 3000
