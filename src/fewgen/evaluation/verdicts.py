"""Verdicts: each question is answered by tests that first had to prove themselves on control images.

A test names the controls that it must pass (real images) and those that it must catch (copies, noise, one
image per class, shuffled labels). On the data at hand it is run on these first. Bad news ("no", "partly")
counts only from a test that let the real images pass; good news ("yes", and "partly" where it is praise) only
from one that caught what it has to catch. Otherwise the test says "cannot tell", and which control it failed
on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

from fewgen.config.checks import Count, Whole
from fewgen.config.records import read_record
from fewgen.errors import DataError
from fewgen.evaluation.failed import FAILED
from fewgen.evaluation.gains import Gain
from fewgen.evaluation.outcome import ANSWERS as TEST_ANSWERS
from fewgen.evaluation.outcome import Outcome, VerdictTest
from fewgen.evaluation.side import Side
from fewgen.evaluation.usefulness import UsefulnessResult
from fewgen.evaluation.verdict_tests import named

QUESTIONS = ("real", "diverse", "new", "useful", "aligned")
ANSWERS = (*TEST_ANSWERS, "not measured", "not meaningful")

OFFER = (
    "there are no held-out real images to compare with. Set 6 to 10 of each class aside (fewgen train "
    "--holdout 8 respects them), or name some: fewgen evaluate --holdout FOLDER"
)


@dataclass
class Verdict:
    """Answer to one question, one of `ANSWERS`, and a sentence why.

    "cannot tell": it was tried, and the images at hand do not show it. "not measured": it was not tried. "not
    meaningful": a yes or partly of images that do not look real.

    why: with the statistics.
    tests: what each test says of the generated images and of its controls; JSON-ready.
    plain: a sentence for people who know no statistics; as `why` where nothing plainer is known.
    """

    question: str
    answer: str
    why: str
    tests: list[dict[str, Any]] = field(default_factory=list)
    plain: str = ""

    def __post_init__(self) -> None:
        self.plain = sentence(self.plain or self.why)

    def to_dict(self) -> dict[str, Any]:
        """Return answer, both sentences and tests."""
        return {"answer": self.answer, "plain": self.plain, "why": self.why, "tests": self.tests}


# --------------------------------------------------------------------------------------------- verdicts


def attempt(test: VerdictTest, side: Side, held_out: Side) -> Outcome:
    """Return what a test says, or "cannot tell" with the reason where it cannot be run."""
    try:
        return test.run(side, held_out)
    except DataError as reason:
        return Outcome("cannot tell", str(reason))


def run_controls(
    tests: Sequence[VerdictTest], controls: Mapping[str, tuple[Side, Side]]
) -> dict[str, dict[str, Outcome]]:
    """Return what each test says of the controls it is bound to: test name -> control -> outcome.

    Args:
        tests: to prove.
        controls: control -> (its images, the held-out images it is judged by).
    """
    return {
        test.name: {
            name: attempt(test, *controls[name])
            for name in dict.fromkeys((*test.must_pass, *test.must_catch))
            if name in controls
        }
        for test in tests
    }


def _weigh(test: VerdictTest, outcome: Outcome, controls: Mapping[str, Outcome], n_held_out: int) -> Outcome:
    """Return what a test says after its controls have been heard."""

    def unsure(why: str, plain: str) -> Outcome:
        return Outcome("cannot tell", why, outcome.numbers, plain)

    answers = {name: found.answer for name, found in controls.items()}
    if outcome.answer in ("no", "partly"):
        accused = [name for name in test.must_pass if answers.get(name) != "yes"]
        if accused:
            names = _control_names(accused)
            return unsure(
                f"the test would say {outcome.answer}, but it does not let {names} pass on this data either.",
                f"This cannot be told here: {names} would fare no better.",
            )
    if outcome.answer == "yes" or (test.rates and outcome.answer == "partly"):
        caught = ("no",) if test.rates else ("no", "partly")
        missed = [name for name in test.must_catch if answers.get(name) not in caught]
        if missed:
            names = _control_names(missed)
            if outcome.answer == "partly":
                return unsure(
                    f"the test would say partly, but with {n_held_out} held-out images it says so of {names} "
                    "as well.",
                    f"This cannot be told here: by {n_held_out} held-out images, {names} would fare as well.",
                )
            return unsure(
                f"the test found nothing wrong, but on this data it does not catch {names} either.",
                f"Nothing wrong was found, but {names} would not have been noticed either.",
            )
    if outcome.answer == "yes":
        if outcome.doubt:
            return unsure(outcome.doubt, "")
        if n_held_out < test.fewest_held_out:
            return unsure(
                f"the test found nothing wrong, but with {n_held_out} held-out images it would find little; "
                f"hold out at least {test.fewest_held_out}.",
                f"Nothing wrong was found, but {n_held_out} held-out images are too few to be sure; hold out "
                f"at least {test.fewest_held_out}.",
            )
    return outcome


_NAMES = {
    "held_out": "held-out real images",
    "copies": "exact copies",
    "augmented_copies": "augmented copies",
    "noise": "noise",
    **{name: words for name, (words, _) in FAILED.items()},
    "one_per_class": "one image per class repeated",
    "shuffled_labels": "shuffled labels",
}


def _control_names(names: Sequence[str]) -> str:
    *first, last = [_NAMES.get(name, name) for name in names]
    return f"{', '.join(first)} and {last}" if first else last


def _record(
    name: str,
    outcome: Outcome,
    controls: Mapping[str, str],
    must_pass: Sequence[str],
    must_catch: Sequence[str],
) -> dict[str, Any]:
    """Return what a test says of images and controls, JSON-ready."""
    bound = {"must_pass": list(must_pass), "must_catch": list(must_catch)}
    said = {"answer": outcome.answer, "plain": outcome.plain, "why": outcome.why, "numbers": outcome.numbers}
    return {"name": name, **said, "controls": dict(controls), **bound}


def decide(
    tests: Sequence[VerdictTest],
    outcomes: Mapping[str, Outcome],
    controls: Mapping[str, Mapping[str, Outcome]],
    n_held_out: int,
) -> dict[str, Verdict]:
    """Return the verdict of each question that has tests.

    The worst answer that its tests can stand for; "yes" only if every primary test says so.

    Args:
        tests: all tests.
        outcomes: test name -> what it says of the generated images.
        controls: test name -> control -> what it says of that.
        n_held_out: images that the generated ones were judged by.
    """
    verdicts = {}
    for question in dict.fromkeys(test.question for test in tests):
        heard, records = [], []
        for test in tests:
            if test.question != question:
                continue
            outcome, own = outcomes[test.name], controls.get(test.name, {})
            weighed = _weigh(test, outcome, own, n_held_out)
            heard.append((test, weighed))
            controls_said = {name: found.answer for name, found in own.items()}
            records.append(_record(test.name, weighed, controls_said, test.must_pass, test.must_catch))
        verdicts[question] = _combine(question, heard, records)
    return verdicts


def _combine(
    question: str, heard: Sequence[tuple[VerdictTest, Outcome]], records: list[dict[str, Any]]
) -> Verdict:
    def verdict(found: Outcome) -> Verdict:
        return Verdict(question, found.answer, sentence(found.why), records, found.plain)

    primary = [found for test, found in heard if test.primary]
    silent = all(found.answer == "cannot tell" for found in primary)
    unrated = any(test.rates and found.answer == "cannot tell" for test, found in heard)
    for bad in ("no",) if unrated else ("no", "partly"):
        for test, found in heard:
            if found.answer == bad and (test.primary or test.alone or not silent):
                return verdict(found)
    for answer in ("cannot tell", "yes"):
        for found in primary:
            if found.answer == answer:
                return verdict(found)
    return Verdict(question, "cannot tell", "No test could be run.", records)


def sentence(text: str) -> str:
    """Return the text with a capital at its start."""
    return text[:1].upper() + text[1:]


# ------------------------------------------------------------------------------------------ useful

SMALL_GAIN = 0.02
"""Gain in accuracy; images whose interval of the gain reaches 0 and lies below this count as not useful."""


def useful_verdict(result: UsefulnessResult, controls: Mapping[str, Gain]) -> Verdict:
    """Return the verdict "useful" from a measurement and its controls.

    Yes if the interval of the gain lies above 0, no if it lies below a gain of 2 points and reaches 0;
    otherwise it cannot be told. Classes that lose make a "yes" a "partly".

    Args:
        result: of `measure_usefulness`.
        controls: "more_real_images", the gain of twice as many real images, which must be seen; "copies", the
            gain of copies, which must not.
    """
    gain = result.gain
    numbers = f"{100 * gain.mean:+.1f} points"
    if gain.low is not None and gain.high is not None:
        numbers += f" ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
    what = (
        f"generated images change a small classifier's accuracy by {numbers}, from "
        f"{result.arms['real'].mean:.1%} with the training images and tuned augmentation alone; "
        f"{result.power()}. The interval speaks of {result.speaks_of}."
    )
    if result.worth is not None:
        what += f" {result.worth.text}."
    heard = {
        name: "yes" if value.low is not None and value.low > 0 else "no" for name, value in controls.items()
    }
    if gain.low is None or gain.high is None:
        answer, why = "cannot tell", what
    elif gain.low > 0:
        answer, why = ("partly" if result.losing_classes else "yes"), what
        if result.losing_classes:
            why += f" It lowers the accuracy of: {named(result.losing_classes)}."
        if heard.get("copies") == "yes":
            why = f"the test would say {answer}, but plain copies seem useful to it as well. {what}"
            answer = "cannot tell"
    elif gain.high < SMALL_GAIN:
        answer, why = "no", f"{what} A gain of {100 * SMALL_GAIN:.0f} points or more is ruled out."
    else:
        answer, why = "cannot tell", f"{what} More draws or more held-out images would tell."
    if answer == "no" and heard.get("more_real_images") != "yes":
        answer = "cannot tell"
        why = f"on this data not even twice as many real images are seen to help. {what}"
    before = result.arms["real"].mean
    changed = f"{before + gain.mean:.0%} instead of {before:.0%} of real images"
    plain = {
        "yes": f"They teach a small classifier: with them it is right on {changed}.",
        "partly": f"They teach a small classifier some classes: with them it is right on {changed}, but it "
        "gets worse on others.",
        "no": f"They do not help a small classifier: with them it is right on {changed}.",
    }.get(answer, f"Whether they help a small classifier is not sure: with them it is right on {changed}.")
    found = Outcome(answer, why, {name: dataclasses.asdict(value) for name, value in controls.items()}, plain)
    record = _record("accuracy of a small classifier", found, heard, ["more_real_images"], ["copies"])
    return Verdict("useful", answer, sentence(why), [record], plain)


# ---------------------------------------------------------------------------------- not meaningful

UNDERTRAINED = 0.1
"""Share of a preset's steps below which a run counts as cut far short. Quickstart makes a fifth of them, and
digits that can be read."""


def without_meaning(
    verdicts: Mapping[str, Verdict], steps: tuple[int, int] | None = None
) -> dict[str, Verdict]:
    """Return the verdicts, a yes or partly of images that do not look real as "not meaningful".

    These are images whose "real" is no, or, from a run that was cut far below its preset's steps, not yes. A
    no stays a no: copies are never hidden.

    Args:
        verdicts: question -> verdict.
        steps: (made, of the preset), of the run that drew the images.
    """
    real = verdicts["real"].answer
    if real == "no":
        reason = "the images do not look real"
    elif undertrained(steps) and real != "yes":
        reason = "the run was stopped far too early, and its images are not known to look real"
    else:
        return dict(verdicts)
    found = {}
    for question, own in verdicts.items():
        if question == "real" or own.answer not in ("yes", "partly"):
            found[question] = own
            continue
        plain = f"{sentence(reason)}, so this question has no answer yet."
        why = f"{sentence(reason)}, so an answer means nothing. The tests would say {own.answer}: {own.why}"
        found[question] = Verdict(question, "not meaningful", why, own.tests, plain)
    return found


def undertrained(steps: tuple[int, int] | None) -> str:
    """Return the sentence on a run that was cut far below its preset's steps, or nothing.

    >>> undertrained((25, 2500)), undertrained((2000, 2500)), undertrained(None)
    ('Undertrained: 25 of 2,500 steps.', '', '')
    """
    if steps is None or steps[0] >= UNDERTRAINED * steps[1]:
        return ""
    return f"Undertrained: {steps[0]:,} of {steps[1]:,} steps."


# ------------------------------------------------------------------------------------------- in words


class _Verdict(TypedDict, total=False):
    answer: str
    plain: str
    why: str


class _Steps(TypedDict):
    made: Whole
    of: Count


class _Images(TypedDict):
    n: Whole
    size: tuple[Count, Count]
    formats: dict[str, Whole]


class _ImagesOfFiles(_Images, total=False):
    """As `evaluation.sources.describe` says; what is known only of images from files stands together."""

    jpeg_quality: tuple[Whole, Whole]
    resized: Literal["no", "shrunk", "enlarged", "partly"]
    converted: Whole


_Side = TypedDict("_Side", {"from": tuple[tuple[Count, Count], tuple[Count, Count]]}, total=False)


class _Origin(_ImagesOfFiles, _Side):
    pass


class _Judge(TypedDict, total=False):
    about: str
    why: str
    better: str
    relative: str


class _Accuracy(TypedDict, total=False):
    test_accuracy: float | None
    n_test: Whole | None


class _Protocol(TypedDict, total=False):
    steps: _Steps | None
    judge: _Judge | None
    linear_probe: _Accuracy | None
    extractor: _Accuracy | None
    images: dict[str, _Origin] | None


class _Verdicts(TypedDict):
    verdicts: dict[str, _Verdict]
    protocol: _Protocol


def read_verdicts(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the verdicts and the protocol of an evaluation.json, for `verdict_lines`.

    Raises:
        DataError: it is missing or damaged.
    """
    found = read_record(path, _Verdicts)
    return found["verdicts"], found["protocol"]


def headline(protocol: Mapping[str, Any]) -> str:
    """Return what must be known before any verdict, from the protocol of an evaluation; or nothing."""
    steps = protocol.get("steps")
    return undertrained((steps["made"], steps["of"])) if steps else ""


def verdict_lines(verdicts: Mapping[str, Any], protocol: Mapping[str, Any] | None = None) -> list[str]:
    """Return a line per verdict, for a terminal; first, where it holds, that training was cut short.

    Args:
        verdicts: question -> `Verdict`, or its form in evaluation.json.
        protocol: of the evaluation.

    >>> verdict_lines({"new": {"answer": "cannot tell", "why": "no held-out images."}})
    ['New?      cannot tell     no held-out images.']
    """
    first = headline(protocol or {})
    return [
        *([first] if first else []),
        *(
            f"{question.capitalize() + '?':<10}{_of(verdicts[question], 'answer'):<16}"
            f"{' '.join((_of(verdicts[question], 'plain') or _of(verdicts[question], 'why')).split())}"
            for question in (*QUESTIONS, *(name for name in verdicts if name not in QUESTIONS))
            if question in verdicts
        ),
    ]


def summary(verdicts: Mapping[str, Any]) -> str:
    """Return the answers in one line.

    >>> summary({"real": {"answer": "yes"}, "new": {"answer": "cannot tell"}})
    'real: yes, new: cannot tell'
    """
    return ", ".join(f"{name}: {_of(verdicts[name], 'answer')}" for name in QUESTIONS if name in verdicts)


def _of(verdict: Any, name: str) -> str:
    return str(verdict.get(name, "") if isinstance(verdict, Mapping) else getattr(verdict, name, ""))
