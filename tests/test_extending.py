"""docs/extending.md is true: its package is found, listed and used; its other examples run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from fewgen import plugins
from fewgen.data import ImageSet
from fewgen.errors import ConfigError
from fewgen.methods import registry

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

TEXT = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, flags=re.DOTALL)
RUN = """
import shlex, sys, warnings
from fewgen.cli.main import main
assert not [name for name in sys.modules if name.startswith("fewgen_")]
for line in sys.argv[1:]:
    print("code of", line, "is", main(shlex.split(line)[1:]), flush=True)
"""


def named_blocks() -> dict[str, str]:
    """Return file name -> text of the blocks that begin with a file name."""
    found = {}
    for _, text in BLOCKS:
        first = re.match(r"# (\S+\.\w+)\n", text)
        if first:
            found[first[1]] = text
    return found


def example(words: str) -> dict[str, object]:
    """Run the Python block that holds some words, and return what it defines."""
    (text,) = (text for kind, text in BLOCKS if kind == "python" and words in text)
    names: dict[str, object] = {"__name__": "example"}
    code = compile(text, "docs/extending.md", "exec", dont_inherit=True)
    exec(code, names)
    return names


def install(folder: Path, name: str, points: dict[str, dict[str, str]]) -> None:
    """Write the metadata of a package as pip would."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [
        line
        for group, offers in points.items()
        for line in (f"[{group}]", *(f"{key} = {value}" for key, value in offers.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def run(folder: Path, *lines: str) -> subprocess.CompletedProcess[str]:
    """Run commands in one process that sees the packages of a folder."""
    src = Path(plugins.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(src)])}
    command = [sys.executable, "-c", RUN, *lines]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Return a folder with the package of the page, as installed."""
    folder = tmp_path_factory.mktemp("site")
    files = named_blocks()
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    project = tomllib.loads(files["pyproject.toml"])["project"]
    install(folder, project["name"], project["entry-points"])
    return folder


def test_the_package_trains_generates_and_is_evaluated(toy):
    (commands,) = (text for kind, text in BLOCKS if kind == "bash")
    done = run(toy, "fewgen methods", *commands.strip().splitlines())
    assert re.findall("^code of .* is (.*)", done.stdout, re.M) == ["0"] * 6, done.stderr
    assert "class_means  (from fewgen-toy 1.0)\n  --preset default" in done.stdout
    assert "  --preset quick      Few steps, for a first look." in done.stdout
    assert "steps: 30" in done.stdout
    assert "stripes is from fewgen-toy 1.0." in done.stdout
    assert re.search(r"^stripes +2 +60\+40 +8 px grey +yes +CC0 +bundled with fewgen-toy", done.stdout, re.M)
    assert "Trained 30 steps" in done.stdout
    assert (toy / "lying.png").is_file()
    figures = json.loads((toy / "stripes.json").read_text())["figures"]
    assert figures["kernel_distance"]["value"] > 0
    assert "warning: " not in done.stderr


def test_each_example_is_short():
    for kind, text in BLOCKS:
        assert len(text.splitlines()) < 40, (kind, text)


def test_broken_and_clashing_packages_cost_one_sentence_each(tmp_path):
    install(
        tmp_path,
        "bad-one",
        {
            "fewgen.methods": {
                "gone": "fewgen_bad.gone",
                "empty": "fewgen_bad",
                "tint": "fewgen_bad",
                "twice": "fewgen_bad",
                "thief": "fewgen_bad.thief",
            },
            "fewgen.datasets": {"lost": "fewgen_bad:LOST", "number": "fewgen_bad:NUMBER"},
        },
    )
    install(tmp_path, "bad-two", {"fewgen.methods": {"twice": "fewgen_bad"}})
    (tmp_path / "fewgen_bad").mkdir()
    (tmp_path / "fewgen_bad" / "__init__.py").write_text("NUMBER = 3\n")
    thief = named_blocks()["fewgen_toy/method.py"].replace('"class_means"', '"sq_gan"')
    (tmp_path / "fewgen_bad" / "thief.py").write_text(thief)

    names = ("gone", "empty", "twice", "thief")
    commands = [f"fewgen train {name} --data digits --out x" for name in names]
    commands += ["fewgen train sq_gan --data lost --out x", "fewgen methods tint"]
    done = run(tmp_path, "fewgen methods", "fewgen datasets", *commands)
    assert re.findall("^code of .* is (.*)", done.stdout, re.M) == [*"0022222", "0"], done.stderr
    assert "gone  (from bad-one 1.0)" in done.stdout
    assert "twice  (from" not in done.stdout
    assert 'warning: The method name "tint" is offered by fewgen and by bad-one 1.0; only' in done.stderr
    assert re.search(r'"twice" is offered by bad-\w+ 1.0 and by bad-\w+ 1.0; neither is used', done.stderr)
    assert 'warning: The data set "lost" of the package bad-one 1.0 cannot be loaded' in done.stderr
    assert 'warning: fewgen_bad:NUMBER is no NamedSet, so "number" is no data set.' in done.stderr
    gone, empty, twice, thief, lost = re.findall("^error: (.*)", done.stderr, re.M)
    assert gone == (
        'The method "gone" of the package bad-one 1.0 cannot be loaded from fewgen_bad.gone: '
        "ModuleNotFoundError: No module named 'fewgen_bad.gone'. Mend or uninstall that package."
    )
    assert empty == 'fewgen_bad holds no class with @register("empty").'
    assert 'There is no method "twice".' in twice
    assert 'The method name "sq_gan" belongs to fewgen.methods.sq_gan;' in thief
    assert 'The data set "lost" of the package bad-one 1.0 cannot be loaded' in lost
    assert "Traceback" not in done.stderr


def test_without_packages_nothing_is_offered(monkeypatch):
    monkeypatch.setattr(plugins, "_installed", lambda group: ())
    assert plugins.find("fewgen.methods", ()) == {}
    assert plugins.presets_of("class_means") is None
    with pytest.raises(ConfigError, match='no method "class_mean"'):
        registry.get_method("class_mean")
    point = metadata.EntryPoint("x", "no_such_module:x", "fewgen.datasets")
    with pytest.raises(ConfigError, match="no_such_module cannot be loaded"):
        plugins.load(point)


def test_a_figure_is_one_entry(monkeypatch):
    from fewgen.evaluation import evaluate_images, figures

    figure = example("brightness_gap")["FIGURE"]
    monkeypatch.setattr(figures, "FIGURES", (*figures.FIGURES, figure))
    monkeypatch.setitem(figures._BY_NAME, figure.name, figure)
    rng = torch.Generator().manual_seed(0)
    sets = [
        ImageSet(
            torch.randint(0, 256, (20, 1, 8, 8), generator=rng, dtype=torch.uint8),
            torch.arange(20) % 2,
            ("a", "b"),
        )
        for _ in range(3)
    ]
    found = evaluate_images(*sets, useful_draws=0).figures["brightness_gap"]
    wanted = float(sets[0].images.double().mean() - sets[2].images.double().mean())
    assert found["value"] == pytest.approx(wanted)
    assert found["question"] == "real"


def test_a_package_gives_its_bibtex_itself():
    from fewgen.report.citations import bibtex

    text = bibtex(["@article{toy}", "no_such_key", "fewgen"])
    assert text.startswith("@article{toy}\n\n@")
    assert "no_such_key" not in text


def test_a_text_encoder_fills_a_class_table():
    from fewgen.text import ClassText

    toy = example("class Letters")["TOY"]
    table = ClassText.build(toy.text("", None), ("cat", "dog", "bird"))
    assert table.vectors.shape == (3, 26)
    assert toy.kinds == ("image", "text")


def test_a_command_is_one_file(capsys):
    command = example("fewgen size")["COMMAND"]
    assert command.main(["digits", "--split", "test"]) == 0
    assert "355 grey images of 28x28" in capsys.readouterr().out
    assert "  # the bundled digits\n  fewgen size digits\n" in command.help()
    assert command.flags() == ["--split", "--help"]
