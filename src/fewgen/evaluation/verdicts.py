"""Verdicts: each question is answered by tests that first had to prove themselves on control images.

A test names the controls that it must pass (real images) and those that it must catch (copies, noise, one
image per class, shuffled labels). On the data at hand it is run on these first. Bad news ("no", "partly")
counts only from a test that let the real images pass; good news ("yes") only from one that caught what it
has to catch. Otherwise the test says "cannot tell", and which control it failed on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fewgen.errors import DataError
from fewgen.evaluation.gains import Gain
from fewgen.evaluation.side import Side
from fewgen.evaluation.usefulness import UsefulnessResult
from fewgen.evaluation.verdict_tests import Outcome, VerdictTest, named

QUESTIONS = ("real", "diverse", "new", "useful", "aligned")
ANSWERS = ("no", "partly", "yes", "cannot tell")

OFFER = (
    "there are no held-out real images to compare with. Set 6 to 10 of each class aside (fewgen train "
    "--holdout 8 respects them), or name some: fewgen evaluate --holdout FOLDER"
)


@dataclass
class Verdict:
    """Answer to one question: "yes", "partly", "no" or "cannot tell", and a sentence why.

    tests: what each test says of the generated images and of its controls; JSON-ready.
    """

    question: str
    answer: str
    why: str
    tests: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return answer, why and tests."""
        return {"answer": self.answer, "why": self.why, "tests": self.tests}


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


def _weigh(
    test: VerdictTest, outcome: Outcome, controls: Mapping[str, Outcome], n_held_out: int
) -> tuple[str, str]:
    """Return answer and sentence of a test after its controls have been heard."""
    answers = {name: found.answer for name, found in controls.items()}
    if outcome.answer in ("no", "partly"):
        accused = [name for name in test.must_pass if answers.get(name) != "yes"]
        if accused:
            return "cannot tell", (
                f"the test would say {outcome.answer}, but it does not let {_control_names(accused)} pass on "
                "this data either."
            )
    if outcome.answer == "yes":
        missed = [name for name in test.must_catch if answers.get(name) not in ("no", "partly")]
        if missed:
            return "cannot tell", (
                f"the test found nothing wrong, but on this data it does not catch {_control_names(missed)} "
                "either."
            )
        if n_held_out < test.fewest_held_out:
            return "cannot tell", (
                f"the test found nothing wrong, but with {n_held_out} held-out images it would find little; "
                f"hold out at least {test.fewest_held_out}."
            )
    return outcome.answer, outcome.why


_NAMES = {
    "held_out": "held-out real images",
    "copies": "exact copies",
    "augmented_copies": "augmented copies",
    "noise": "noise",
    "one_per_class": "one image per class repeated",
    "shuffled_labels": "shuffled labels",
}


def _control_names(names: Sequence[str]) -> str:
    return " and ".join(_NAMES.get(name, name) for name in names)


def _record(
    name: str,
    outcome: Outcome,
    controls: Mapping[str, str],
    must_pass: Sequence[str],
    must_catch: Sequence[str],
) -> dict[str, Any]:
    """Return what a test says of images and controls, JSON-ready."""
    bound = {"must_pass": list(must_pass), "must_catch": list(must_catch)}
    said = {"answer": outcome.answer, "why": outcome.why, "numbers": outcome.numbers}
    return {"name": name, **said, "controls": dict(controls), **bound}


def decide(
    tests: Sequence[VerdictTest],
    outcomes: Mapping[str, Outcome],
    controls: Mapping[str, Mapping[str, Outcome]],
    n_held_out: int,
) -> dict[str, Verdict]:
    """Return the verdict of each question that has tests.

    The worst answer that its tests can stand for; "yes" only if a primary test says so.

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
            answer, why = _weigh(test, outcome, own, n_held_out)
            heard.append((test, answer, why))
            controls_said = {name: found.answer for name, found in own.items()}
            weighed = Outcome(answer, why, outcome.numbers)
            records.append(_record(test.name, weighed, controls_said, test.must_pass, test.must_catch))
        verdicts[question] = _combine(question, heard, records)
    return verdicts


def _combine(
    question: str, heard: Sequence[tuple[VerdictTest, str, str]], records: list[dict[str, Any]]
) -> Verdict:
    for bad in ("no", "partly"):
        reasons = [why for _, answer, why in heard if answer == bad]
        if reasons:
            return Verdict(question, bad, sentence(reasons[0]), records)
    for test, answer, why in heard:
        if test.primary and answer == "yes":
            return Verdict(question, "yes", sentence(why), records)
    primary = [why for test, _, why in heard if test.primary]
    return Verdict(question, "cannot tell", sentence((primary or ["no test could be run."])[0]), records)


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
    found = Outcome(answer, why, {name: dataclasses.asdict(value) for name, value in controls.items()})
    record = _record("accuracy of a small classifier", found, heard, ["more_real_images"], ["copies"])
    return Verdict("useful", answer, sentence(why), [record])


# ------------------------------------------------------------------------------------------- in words


def verdict_lines(verdicts: Mapping[str, Any]) -> list[str]:
    """Return a line per verdict, for a terminal.

    Args:
        verdicts: question -> `Verdict`, or its form in evaluation.json.

    >>> verdict_lines({"new": {"answer": "cannot tell", "why": "no held-out images."}})
    ['New?      cannot tell  no held-out images.']
    """
    return [
        f"{question.capitalize() + '?':<10}{_of(verdicts[question], 'answer'):<13}"
        f"{' '.join(str(_of(verdicts[question], 'why')).split())}"
        for question in (*QUESTIONS, *(name for name in verdicts if name not in QUESTIONS))
        if question in verdicts
    ]


def summary(verdicts: Mapping[str, Any]) -> str:
    """Return the answers in one line.

    >>> summary({"real": {"answer": "yes"}, "new": {"answer": "cannot tell"}})
    'real: yes, new: cannot tell'
    """
    return ", ".join(f"{name}: {_of(verdicts[name], 'answer')}" for name in QUESTIONS if name in verdicts)


def _of(verdict: Any, name: str) -> str:
    return str(verdict[name] if isinstance(verdict, Mapping) else getattr(verdict, name))
