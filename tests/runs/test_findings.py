"""What is measured for a report: complete, and a fault costs nothing but its own part."""

from __future__ import annotations

import json
import shlex
from types import SimpleNamespace

import pytest
import torch
from tests.fake_method import Fake

import fewgen
from fewgen.api import resolved_settings
from fewgen.cli.main import load_command
from fewgen.generation.request import image_seeds
from fewgen.methods.abilities import class_latents
from fewgen.report import render_report
from fewgen.runs.findings import BLENDS, collect, training_command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("findings") / "run"
    return fewgen.train(
        "fake", data="digits", size=8, shots=20, text="onehot", out=path, progress=False, report=False
    )


def test_the_first_picture_is_what_the_command_makes(run):
    findings = collect(run, *run.images())
    again = fewgen.generate(run, n=findings.per_class)
    assert torch.equal(findings.generated.images, again.images)


def test_walks_lead_from_one_class_to_another(run):
    found = collect(run, *run.images())
    names = run.class_names
    assert [ends for ends, _ in found.walks] == [
        (names[0], names[1]),
        (names[5], names[6]),
        (names[9], names[0]),
    ]
    images = found.walks[0][1]
    assert images.shape == (9, 1, 8, 8)
    with torch.no_grad():
        ends = run.method.decode(
            class_latents(run.method, torch.tensor([0, 1])), torch.zeros(2, dtype=torch.int64), 0.0
        )
    expected = ((ends + 1) * 127.5).round().to(torch.uint8)
    assert (images[[0, -1]].int() - expected.int()).abs().max() <= 1


def test_latents_are_those_of_images_and_words(run):
    train, held_out = run.images()
    found = collect(run, train, held_out).latents
    assert len(found.images) == len(found.labels) == len(train) + len(held_out)
    assert int(found.held_out.sum()) == len(held_out)
    assert found.labels.bincount().tolist() == [20] * 10
    with torch.no_grad():
        assert torch.allclose(found.images[0], run.method.encode(train.floats([0]))[0], atol=1e-5)
    assert found.words.shape == (10, 4)


def test_the_nearest_images_are_looked_for_only_where_the_evaluation_has_none(run):
    train, held_out = run.images()
    found = collect(run, train, held_out)
    new, real = found.nearest
    assert new.shape == real.shape == (10, 1, 8, 8)
    distances = (new.float() - real.float()).flatten(1).norm(dim=1)
    every = torch.cdist(found.generated.images.flatten(1).float(), train.images.flatten(1).float()).min(1)[0]
    assert torch.allclose(distances, every.sort()[0][:10], atol=1e-3)
    assert collect(run, train, held_out, evaluation=SimpleNamespace(worst=[1])).nearest is None
    assert collect(run, train, held_out, evaluation=SimpleNamespace(worst=[])).nearest is not None


def test_blends_are_real_images_and_what_becomes_of_them(run, monkeypatch):
    train, held_out = run.images()
    assert collect(run, train, held_out).blends is None

    def starts(self, labels, seeds):
        assert torch.equal(seeds, image_seeds(0, 10))
        return train.images[[train.labels.tolist().index(label) for label in labels.tolist()]]

    def sample(self, class_vectors, labels, seeds, temperature, *, alpha=1.0):
        return torch.full((len(labels), 1, 8, 8), alpha)

    monkeypatch.setattr(Fake, "capabilities", frozenset({"blend"}))
    monkeypatch.setattr(Fake, "has_latents", True, raising=False)
    monkeypatch.setattr(Fake, "starts", starts, raising=False)
    monkeypatch.setattr(Fake, "sample", sample)
    found = collect(run, train, held_out)
    assert found.faults == {}
    assert found.blends.shape == (10, 1 + len(BLENDS), 1, 8, 8)
    assert torch.equal(found.blends[3, 0], train.images[train.labels == 3][0])
    assert found.blends[0, 1:, 0, 0, 0].tolist() == [128, 159, 191, 223, 255]
    assert "<h2>From real images to new ones</h2>" in render_report(found)


@pytest.mark.parametrize(
    ("function", "part", "title"),
    [
        ("codebook_usage", "codebooks", "Codebook"),
        ("encode_text", "walks", "From word to word"),
        ("encode", "latents", "Images and words in one space"),
        ("reconstruct", "reconstructed", "Held-out images and how they come back"),
    ],
)
def test_a_fault_while_measuring_stays_in_its_section(run, monkeypatch, function, part, title):
    def broken(*_):
        raise RuntimeError("<boom>")

    monkeypatch.setattr("fewgen.report.plots._project", lambda points, n: (points[:, :2], "two numbers"))
    monkeypatch.setattr(Fake, function, broken)
    monkeypatch.setattr(Fake, "sample", lambda self, vectors, *_, **__: torch.zeros(len(vectors), 1, 8, 8))
    found = collect(run, *run.images())
    assert found.faults[part] == "RuntimeError: <boom>"
    html = render_report(found)
    said = '<p class="warn">This section could not be made: RuntimeError: &lt;boom&gt;</p>'
    assert f"<h2>{title}</h2>\n{said}" in html
    assert html.count("could not be made") == len(found.faults)
    assert "<h2>Cite</h2>" in html


def test_the_command_repeats_the_training(run):
    words = shlex.split(collect(run, *run.images()).command)
    given = load_command("train").parse(words[2:])
    assert given["shots"] == 20
    assert given["size"] == 8
    settings = resolved_settings(**given)
    assert settings["text"] == "onehot"
    assert json.dumps(settings["model"].__dict__) == json.dumps(run.config["model"])


def test_the_command_repeats_settings_of_the_method_too():
    from fewgen.config import to_dict
    from fewgen.diffusion.settings import TextualConfig
    from fewgen.methods.tint.config import TintConfig

    own = TintConfig(base="runs/base", steps=4, prompt="an icon of #object", textual=TextualConfig(steps=10))
    run = SimpleNamespace(config={"method": "tint", "data": "photos", "model": to_dict(own)})
    words = shlex.split(training_command(run))
    assert [word for word in words if word.startswith("--model.")] == [
        "--model.prompt",
        "--model.steps",
        "--model.textual.steps",
    ]
    given = load_command("train").parse(words[2:])
    assert to_dict(resolved_settings(**given)["model"]) == to_dict(own)
    # A run of a method that is no more still has a command.
    gone = SimpleNamespace(config={"method": "gone", "data": "photos", "model": {"steps": 1}})
    assert training_command(gone) == "fewgen train gone --data photos --out NEW_RUN"
