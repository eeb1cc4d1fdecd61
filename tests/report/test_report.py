"""The page and the card: complete, self-contained, and safe with any class name."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from tests.fake_method import Fake

import fewgen
from fewgen.data import ImageSet
from fewgen.report import bibtex, render_card, render_report, write_report
from fewgen.report.citations import entries
from fewgen.report.plots import curves_of, latent_map, loss_curves, perplexity
from fewgen.runs.findings import collect, measure_run

HOSTILE = ('<script>alert("1")</script>', "a|b `c` $(rm -rf x) \\ 'd'", "# head &amp;", "日本語")
SECTIONS = (
    "New images",
    "Nearest real images",
    "Held-out images and how they come back",
    "From word to word",
    "Figures",
    "Training",
    "Images and words in one space",
    "Codebook",
    "Settings",
    "Do it again",
    "Cite",
    "Verdicts",
)


class _Page(HTMLParser):
    """Collects tags, attributes and text; complains about tags left open."""

    VOID = ("meta", "img", "br")

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.open, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def _parse(html):
    page = _Page()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "run"
    return fewgen.train(
        "fake",
        data="digits",
        size=8,
        shots=20,
        text="onehot",
        out=path,
        progress=False,
        training={"log_every": 4, "validate_every": 5},
    )


def test_train_leaves_a_whole_page(run):
    html = (run.path / "report.html").read_text(encoding="utf-8")
    page = _parse(html)
    text = " ".join(page.text)
    for section in SECTIONS:
        assert f"<h2>{section}</h2>" in html
    assert "could not be made" not in html
    assert "20 per class: 180 trained on, 20 held out" in text
    assert "onehot vectors carry no meaning" in text
    assert "--shots 20" in text
    assert "schonfeld2019cadavae" in text
    assert "latent_size" in text
    # The page shows where the run lies, and what a folder is called is the user's.
    assert "private" not in html.replace(str(run.path), "").lower()
    assert html.index("<h2>Verdicts</h2>") > html.index("<h2>Cite</h2>")
    for question in ("Real", "Diverse", "New", "Useful", "Aligned"):
        assert f"<strong>{question}?</strong>" in html
    record = json.loads((run.path / "evaluation.json").read_text(encoding="utf-8"))
    assert record["verdicts"]["useful"]["answer"] == "not measured"
    assert record["protocol"]["n_generated"] == 300
    assert html.count("most suspicious first") == 1


def test_the_page_needs_nothing_from_outside(run):
    html = (run.path / "report.html").read_text(encoding="utf-8")
    page = _parse(html)
    assert not {"script", "link", "iframe", "object", "a"} & set(page.tags)
    sources = [value for name, value in page.attributes if name in ("src", "href", "srcset", "data")]
    assert len(sources) >= 7
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "default-src 'none'" in html
    assert "url(" not in html
    for source in sources:
        Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).verify()
    assert ("name", "viewport") in page.attributes
    assert "prefers-color-scheme: dark" in html
    assert len(html) < 3_000_000


def test_the_card_says_what_it_is_and_its_limits(run):
    card = (run.path / "README.md").read_text(encoding="utf-8")
    for part in (
        "## Use",
        "## Made from",
        "## Figures",
        "## Limits",
        "## Cite",
        "## Verdicts",
        "fewgen train fake",
        "fewgen train --config config.yaml --out NEW_RUN",
        "180 trained on and 20 held out for the choice of the weights and the figures below",
        "those images decided which weights were kept",
    ):
        assert part in card
    assert "holds the training images themselves" not in card
    assert "private" not in card.replace(str(run.path), "").lower()


@pytest.fixture(autouse=True)
def _quick_map(monkeypatch, request):
    """One real t-SNE, in the fixture `run`, is enough; later pages take the first two numbers."""
    if "test_the_map" not in request.node.name:
        monkeypatch.setattr("fewgen.report.plots._project", lambda points, n: (points[:, :2], "two numbers"))


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory):
    labels = torch.arange(len(HOSTILE)).repeat_interleave(8)
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (len(labels), 3, 10, 10), generator=rng, dtype=torch.uint8)
    images = ImageSet(pixels, labels, HOSTILE, name="<b>data</b>\n# head")
    path = tmp_path_factory.mktemp("hostile") / "<i>run`$(x)"
    return fewgen.train("fake", data=images, text="onehot", out=path, progress=False)


def test_the_commands_can_be_pasted_where_the_training_ran(tmp_path, monkeypatch, capsys):
    import shlex
    from types import SimpleNamespace

    from fewgen.cli.main import main
    from fewgen.cli.train import finish

    monkeypatch.chdir(tmp_path)
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (16, 1, 8, 8), generator=rng, dtype=torch.uint8)
    names = ("cat's $HOME `x`", "dog")
    images = ImageSet(pixels, torch.arange(2).repeat_interleave(8), names)
    path = "runs/my $(first) run"
    run = fewgen.train("fake", data=images, text="onehot", out=path, progress=False)
    card = (run.path / "README.md").read_text(encoding="utf-8")
    (use,) = [line for line in card.splitlines() if line.startswith("fewgen generate")]
    assert shlex.split(use)[2:5] == [path, "--class-name", names[0]]
    assert main(shlex.split(use)[1:]) == 0
    page = " ".join(_parse((run.path / "report.html").read_text(encoding="utf-8")).text)
    assert f"fewgen generate {shlex.quote(path)} -n 8" in page
    assert f"fewgen train --config {shlex.quote(path + '/config.yaml')} --out NEW_RUN" in page
    assert collect(run, images, None).command.endswith("--out NEW_RUN")
    assert shlex.quote(path) in card
    run.result = SimpleNamespace(interrupted=False, steps=1, seconds=1.0)
    capsys.readouterr()
    finish(run, {})
    (following,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Next: ")]
    assert shlex.split(following)[3:6] == [path, "--class-name", names[0]]


def test_class_names_are_text_and_nothing_else(hostile_run):
    html = (hostile_run.path / "report.html").read_text(encoding="utf-8")
    assert "could not be made" not in html
    page = _parse(html)
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert "i" not in page.tags
    assert HOSTILE[0] in "".join(page.text)
    assert not any(name.startswith("on") for name, _ in page.attributes)
    card = (hostile_run.path / "README.md").read_text(encoding="utf-8")
    outside_code = re.sub(r"```.*?```", "", card, flags=re.DOTALL)
    assert "<script>" not in outside_code.replace("\\<", "")
    assert "\n# head" not in card


def test_what_a_method_cannot_do_is_left_out(run, monkeypatch):
    monkeypatch.setattr(Fake, "capabilities", frozenset())
    monkeypatch.delattr(Fake, "codebook_usage")
    monkeypatch.delattr(Fake, "citations")
    train, _ = run.images()
    html = render_report(collect(run, train, None))
    _parse(html)
    for section in ("Held-out images", "From word to word", "Figures", "one space", "Codebook"):
        assert f"{section}</h2>" not in html
    assert "<h2>New images</h2>" in html
    assert "could not be made" not in html


def test_without_held_out_images_the_page_says_so(run):
    train, _ = run.images()
    findings = collect(run, train, None)
    assert findings.figures == []
    assert "No image was held out" in render_report(findings)
    render_card(findings)


def test_a_fault_in_one_section_does_not_cost_the_others(run, monkeypatch):
    def broken(*_):
        raise RuntimeError("<boom>")

    monkeypatch.setattr("fewgen.report.plots.loss_curves", broken)
    html = render_report(collect(run, *run.images()))
    _parse(html)
    assert "RuntimeError: &lt;boom&gt;" in html
    assert "<h2>Cite</h2>" in html


def test_a_fault_in_the_evidence_does_not_cost_the_report(run, tmp_path, monkeypatch):
    path = tmp_path / "copy"
    shutil.copytree(run.path, path)
    (path / "evaluation.json").unlink()
    copy = fewgen.load_run(path)

    def broken(*_, **__):
        raise RuntimeError("<boom>")

    monkeypatch.setattr("fewgen.runs.evaluating.evaluate_sets", broken)
    write_report(measure_run(copy, *copy.images()))
    html = (path / "report.html").read_text(encoding="utf-8")
    _parse(html)
    assert "The evidence could not be measured: RuntimeError: &lt;boom&gt;" in html
    assert "by their pixels" in html, "the nearest images are shown all the same"
    assert "## Verdicts" not in (path / "README.md").read_text(encoding="utf-8")
    assert not (path / "evaluation.json").exists()


def test_damaged_and_missing_logs_are_survived(run, tmp_path):
    path = tmp_path / "copy"
    shutil.copytree(run.path, path)
    with open(path / "metrics.jsonl", "ab") as file:
        file.write(
            b'{"kind": "train", "st\n[1, 2]\n\xff\xfe\n{"kind": "warning", "stage": "x", "text": "<u>"}\n'
        )
    copy = fewgen.load_run(path)
    html = render_report(collect(copy, *copy.images()))
    assert "&lt;u&gt;" in html
    assert "could not be made" not in html
    (path / "metrics.jsonl").unlink()
    copy = fewgen.load_run(path)
    write_report(measure_run(copy, *copy.images()))
    assert "could not be made" not in (path / "report.html").read_text(encoding="utf-8")


def test_curves_join_training_and_held_out_and_skip_what_is_no_loss():
    lines = [
        {"kind": "train", "stage": "a", "step": s, "model/image": 10.0 / s, "model/lr": 1.0, "model/x": None}
        for s in (1, 2, 3)
    ] + [{"kind": "held_out", "stage": "a", "step": 3, "image": 4.0, "accuracy": 0.5}]
    (stage, picture), *rest = loss_curves(lines)
    assert stage == "a"
    assert rest == []
    assert Image.open(io.BytesIO(picture)).size[0] > 100
    assert loss_curves([]) == []


def test_a_held_out_loss_stands_beside_the_training_loss_under_its_name():
    lines = [
        {"kind": "train", "stage": "a", "step": s, "vae/total": 10.0 / s, "vae/image": 3.0, "vae/mse": 1.0}
        for s in (1, 2, 3)
    ]
    held = {"kind": "held_out", "stage": "a", "step": 3, "mse": 1.5}
    for name in ("objective", "loss"):  # of cada_vqvae and diffusion
        panels = curves_of([*lines, {**held, name: 4.0}], "a")
        assert panels["vae/total"] == [
            ("training", [(1, 10.0), (2, 5.0), (3, 10 / 3)]),
            ("held out", [(3, 4.0)]),
        ]
        assert panels["vae/mse"][1] == ("held out", [(3, 1.5)])
        assert list(panels) == ["vae/total", "vae/image", "vae/mse"]


def test_figures_of_both_sides_share_a_panel_and_those_of_neither_are_not_called_held_out():
    """As a discriminator's are, and what a method measures of its own draws beside them."""
    held = {"kind": "held_out", "stage": "a", "step": 3, "accuracy_train": 0.9, "perplexity": 7.0}
    assert curves_of([held], "a")["perplexity"] == [("measured", [(3, 7.0)])]
    panels = curves_of([{**held, "accuracy_held_out": 0.6}], "a")
    assert panels["accuracy"] == [("training", [(3, 0.9)]), ("held out", [(3, 0.6)])]
    ((stage, picture),) = loss_curves([held])
    assert Image.open(io.BytesIO(picture)).size[0] > 100


@pytest.mark.parametrize("n", [1, 3, 20])
def test_the_map_works_for_any_number_of_points(n):
    rng = np.random.default_rng(0)
    picture, name = latent_map(
        rng.normal(size=(n, 3)), np.zeros(n, int), np.zeros(n, bool), rng.normal(size=(2, 3)), ["$x$", "b"]
    )
    Image.open(io.BytesIO(picture)).verify()
    assert name


def test_perplexity_counts_codes_in_use():
    assert perplexity(torch.tensor([5, 5, 5, 5, 0])) == pytest.approx(4.0)
    assert perplexity(torch.zeros(3)) == pytest.approx(1.0)


def test_citations_name_what_was_used(run):
    findings = collect(run, *run.images())
    assert findings.citations == ["fewgen", "cada_vae", "onehot", "digits"]
    written = re.findall(r"@\w+{(\w+),", bibtex(findings.citations))
    assert written == ["fewgen", "schonfeld2019cadavae", "alpaydin1998digits"], "onehot is nobody's work"
    assert len(entries()) >= 32
    assert "VERSION" not in bibtex(entries())
    for key, entry in entries().items():
        for one in entry.split("\n\n"):
            assert re.match(r"@\w+\{\w+,\n", one), key
            assert one.count("{") == one.count("}"), key


def test_a_run_of_one_class_has_a_page_without_raw_exceptions(tmp_path):
    images = torch.randint(0, 256, (14, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    data = ImageSet(images, torch.zeros(14, dtype=torch.int64), ("cat",))
    model = {"steps": 2, "network": {"w_dim": 8, "z_dim": 8, "width": 4, "max_width": 8}}
    run = fewgen.train(
        "sq_gan", data=data, out=tmp_path / "run", preset="plain", text="onehot", model=model, holdout=4,
        progress=False,
    )  # fmt: skip
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "could not be made" not in page
    assert "could not be measured" not in page
    record = json.loads((run.path / "evaluation.json").read_text(encoding="utf-8"))
    assert record["protocol"]["extractor"]["name"] == "pixels", "a small classifier cannot learn one class"
    assert record["verdicts"]["aligned"]["answer"] == "cannot tell"
    assert record["omitted"]["class_agreement"] == "the judge knows no classes"
