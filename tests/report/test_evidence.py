"""The page of the evidence: verdicts, controls and pairs are on it, and nothing from outside gets in."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image
from tests.fake_evaluation import fake_evaluation

from fewgen.data import ImageSet
from fewgen.evaluation.verdicts import summary, verdict_lines
from fewgen.report.evidence import EvidenceView, number, render_evaluation
from fewgen.report.page import environment

EVIL = "<script>alert('1')</script>&amp;\"`"


class _Page(HTMLParser):
    VOID = ("meta", "img", "br")

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.open, self.text = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def _set(n, names=("cat", "dog"), name="toy", seed=0):
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, 1, 8, 8), generator=rng, dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(n) % len(names), names, name=name)


def _parts():
    return environment().get_template("evidence.html.jinja").module


@pytest.fixture
def evaluation():
    return fake_evaluation(_set(20, name="made"), _set(6, seed=1), _set(4, seed=2))


def test_the_page_holds_everything(evaluation):
    html = render_evaluation(evaluation)
    text = " ".join(_Page(html).text)
    assert "could not be made" not in html
    for title in (
        "Verdicts",
        "Nearest pairs",
        "What real images are worth",
        "Figures between their controls",
        "Classes",
        "Left out",
        "Protocol",
    ):
        assert f"<h2>{title}</h2>" in html
    for question, answer in (("Real", "partly"), ("New", "no"), ("Useful", "cannot tell")):
        assert f'<strong>{question}?</strong> <span class="answer">{answer}</span>' in html
    for control in ("held-out real images", "exact copies", "augmented copies", "noise"):
        assert text.count(control) >= 6, "in the table of figures and beside each test"
    assert "0.9 (0.85 to 0.95)" in text
    assert "too few samples" in text
    assert "made: 20 images, 2 classes, 10 per class" in text
    assert "private" not in html.lower()


def test_the_page_needs_nothing_from_outside(evaluation):
    page = _Page(render_evaluation(evaluation))
    assert not {"script", "link", "iframe", "object", "a"} & set(page.tags)
    sources = [value for name, value in page.attributes if name in ("src", "href", "srcset", "data")]
    assert len(sources) == 2
    for source in sources:
        assert source.startswith("data:image/png;base64,")
        Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).verify()


def test_texts_are_text_and_nothing_else():
    names = (f"cat {EVIL}", "<b>dog</b>")
    bad = fake_evaluation(_set(20, names, f"<i>{EVIL}"), _set(6, names, seed=1), evil=EVIL)
    html = render_evaluation(bad)
    page = _Page(html)
    assert "could not be made" not in html
    assert not {"script", "b", "i"} & set(page.tags)
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert EVIL.split("&")[0] in "".join(page.text)


def test_the_pairs_are_the_ten_worst_with_their_training_images(evaluation, monkeypatch):
    seen = {}

    def pairs(originals, others, **keywords):
        seen.update(originals=originals, others=others)
        return Image.new("RGB", (4, 4))

    monkeypatch.setattr("fewgen.generation.pictures.pairs", pairs)
    html = _parts().pairs(EvidenceView(evaluation))
    assert torch.equal(seen["originals"], evaluation.generated.images[:10])
    assert torch.equal(seen["others"], evaluation.train.images[[i % 6 for i in range(10)]])
    assert html.count("<tr>") == 11
    text = "".join(_Page(html).text)
    assert "mirrored" in text
    assert "11 / 5" not in text


def test_without_pairs_the_page_says_why(evaluation):
    evaluation.worst = []
    evaluation.omitted["copy_share"] = "one training image."
    assert "one training image." in _parts().pairs(EvidenceView(evaluation))


def test_the_section_inside_a_report_has_no_pairs_where_they_are_shown_already(evaluation):
    view = EvidenceView(evaluation)
    with_pairs = _parts().verdicts(view) + _parts().rest(view, 3, True)
    without = _parts().verdicts(view) + _parts().rest(view, 3, False)
    _Page(with_pairs)
    _Page(without)
    assert "<h3>Nearest pairs</h3>" in with_pairs
    assert "Nearest pairs" not in without
    assert "<h2>" not in with_pairs
    assert 'class="card no"' in without


def test_a_fault_in_one_section_does_not_cost_the_others(evaluation):
    evaluation.worst = [None]
    html = render_evaluation(evaluation)
    _Page(html)
    assert html.count("could not be made") == 1
    assert "<h2>Protocol</h2>" in html


def test_empty_parts_are_left_out(evaluation):
    evaluation.figures, evaluation.controls, evaluation.omitted, evaluation.protocol = {}, {}, {}, {}
    for verdict in evaluation.verdicts.values():
        verdict.tests = []
    html = render_evaluation(evaluation)
    _Page(html)
    for title in ("What real images", "Figures between", "Classes", "Left out", "Protocol"):
        assert f"<h2>{title}" not in html
    assert "<details><summary>1 test" not in html


def test_lines_for_a_terminal_from_objects_and_from_json(evaluation):
    lines = verdict_lines(evaluation.verdicts)
    assert [line[:10].strip() for line in lines] == ["Real?", "Diverse?", "New?", "Useful?", "Aligned?"]
    assert lines[3].split("  ")[-1].strip() == "in words: why useful"
    assert verdict_lines(evaluation.to_dict()["verdicts"]) == lines
    two = {"new": {"answer": "no", "why": "a\nb"}, "odd": {"answer": "yes", "why": "c"}}
    assert verdict_lines(two) == ["New?      no              a b", "Odd?      yes             c"]
    assert summary(evaluation.verdicts).startswith("real: partly, diverse: yes, new: no")


def test_a_learning_curve_is_shown_only_if_there_is_one(evaluation):
    def learning_curve(worth):
        evaluation.figures["worth_images"] = worth
        return EvidenceView(evaluation).learning_curve()

    points = [{"images_per_class": 30, "accuracy": 0.8}, {"images_per_class": 10.0, "accuracy": 0.6}]
    assert learning_curve({"curve": points}) == [(10, 0.6), (30, 0.8)]
    for worth in ({}, {"curve": None}, {"curve": points[:1]}):
        assert learning_curve(worth) == []


def test_numbers_are_short_and_never_false():
    assert [number(v) for v in (2.8e-17, 0.0004567, 1e6, 12, True, "x", None)] == [
        "0", "0.000457", "1,000,000", "12", "True", "x", "-",
    ]  # fmt: skip


def test_it_shows_what_the_real_evaluation_returns():
    """The stand-in of the other tests has the form of the real one; here measuring is real, on noise."""
    from fewgen.encoders.pixels import PixelFeatures
    from fewgen.evaluation.evaluation import Evaluation, evaluate_images

    sets = [_set(n, seed=n) for n in (40, 24, 26)]
    evaluation = evaluate_images(*sets, extractor=PixelFeatures(1, 8, 8), useful_draws=0)
    stand_in = fake_evaluation(*sets)
    own = set(Evaluation.__dataclass_fields__)
    assert set(type(stand_in).__dataclass_fields__) <= own
    html = render_evaluation(evaluation)
    text = " ".join(_Page(html).text)
    assert "could not be made" not in html
    assert 'class="card' in html
    assert len(verdict_lines(evaluation.verdicts)) == 5
    assert evaluation.lines() == verdict_lines(evaluation.to_dict()["verdicts"])
    assert "nan" not in text.lower().split()
