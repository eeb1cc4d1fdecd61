"""An evaluation with every kind of content, made without measuring: for tests of what shows it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from fewgen.files import write_json


@dataclass
class Verdict:
    question: str
    answer: str
    why: str
    tests: list[dict[str, Any]]
    plain: str = ""

    def __post_init__(self):
        self.plain = self.plain or f"in words: {self.why}"


@dataclass
class WorstPair:
    generated: int
    train: int
    score: float
    distance: float
    transform: str
    class_name: str
    suspicious: bool


@dataclass
class Evaluation:
    protocol: dict[str, Any]
    figures: dict[str, dict[str, Any]]
    controls: dict[str, dict[str, dict[str, Any]]]
    verdicts: dict[str, Verdict]
    omitted: dict[str, str]
    worst: list[WorstPair]
    generated: Any
    train: Any

    def to_dict(self):
        return {
            "format": "fewgen-evaluation",
            "format_version": 1,
            "protocol": self.protocol,
            "figures": self.figures,
            "controls": self.controls,
            "verdicts": {
                name: {"answer": v.answer, "plain": v.plain, "why": v.why, "tests": v.tests}
                for name, v in self.verdicts.items()
            },
            "omitted": self.omitted,
            "worst_pairs": [asdict(pair) for pair in self.worst],
        }

    def lines(self):
        return [f"{name} {verdict.answer}" for name, verdict in self.verdicts.items()]

    def save(self, path):
        write_json(path, self.to_dict())


CONTROLS = ("held_out", "copies", "augmented_copies", "noise")


def fake_evaluation(generated, train, held_out=None, *, evil="", **changes):
    """Return an evaluation; `evil` is put into every text that could come from outside."""
    names = generated.class_names
    answers = dict(
        zip(
            ("real", "diverse", "new", "useful", "aligned"),
            ("partly", "yes", "no", "cannot tell", "yes"),
            strict=True,
        )
    )
    if held_out is None:
        answers["new"] = "cannot tell"
    verdicts = {
        question: Verdict(
            question,
            answer,
            f"why {question} {evil}",
            [
                {
                    "name": "copy_share",
                    "answer": answer,
                    "why": f"because {evil}",
                    "controls": dict.fromkeys(CONTROLS, "yes") | {"noise": "no"},
                }
            ],
        )
        for question, answer in answers.items()
    }
    curve = [{"images_per_class": n, "accuracy": 0.5 + i / 10} for i, n in enumerate((3, 6, 12))]
    figures = {
        "frechet_distance": {"value": 12.5, "question": "real", "note": f"biased {evil}"},
        "class_agreement": {
            "value": 0.9,
            "low": 0.85,
            "high": 0.95,
            "question": "aligned",
            "per_class": {name: None if i == 0 else 0.5 for i, name in enumerate(names)},
        },
        "usefulness": {"value": 0.62, "low": 0.6, "high": 0.64, "question": "useful"},
        "worth_images": {
            "value": 7.0,
            "low": 5.0,
            "high": 9.0,
            "question": "useful",
            "accuracy": 0.62,
            "curve": curve,
        },
    }
    worst = [
        WorstPair(i, i % len(train), 0.1 * i, 0.2, f"mirrored {evil}", names[0], i < 2)
        for i in range(min(12, len(generated)))
    ]
    given = {
        "protocol": {"extractor": {"name": f"classifier {evil}"}, "seed": 0},
        "figures": figures,
        "controls": {control: {"frechet_distance": {"value": 1.0 + i}} for i, control in enumerate(CONTROLS)},
        "verdicts": verdicts,
        "omitted": {"vendi": f"too few samples {evil}"},
        "worst": worst,
        "generated": generated,
        "train": train,
    }
    return Evaluation(**{**given, **changes})
