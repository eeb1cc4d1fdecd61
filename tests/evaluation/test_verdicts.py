"""Verdicts: no answer counts which was not proved first."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.evaluation.test_verdict_tests import labelled, side_of

from fewgen.errors import DataError
from fewgen.evaluation.failed import FAILED
from fewgen.evaluation.gains import Gain
from fewgen.evaluation.outcome import ANSWERS, Outcome, VerdictTest
from fewgen.evaluation.verdict_tests import standard_tests
from fewgen.evaluation.verdicts import (
    SMALL_GAIN,
    Verdict,
    decide,
    run_controls,
    useful_verdict,
    verdict_lines,
    without_meaning,
)

# ------------------------------------------------------------------------------- the weight of a test


def saying(answer, *, name="test", must_pass=("held_out",), must_catch=("copies",), primary=True):
    return VerdictTest(
        name, "new", lambda side, held_out: Outcome(answer, answer), must_catch, must_pass, primary
    )


def heard(**answers):
    return {name: Outcome(answer, "") for name, answer in answers.items() if answer is not None}


@pytest.mark.parametrize("real", [*ANSWERS, None])
@pytest.mark.parametrize("copies", [*ANSWERS, None])
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_test_is_believed_only_if_its_controls_bear_it_out(answer, copies, real):
    test = saying(answer)
    controls = {"test": heard(held_out=real, copies=copies)}
    found = decide([test], {"test": Outcome(answer, "the reason")}, controls, 60)["new"]
    bad_news, good_news = answer in ("no", "partly"), answer == "yes"
    believed = (real == "yes") if bad_news else (copies in ("no", "partly")) if good_news else False
    assert found.answer == (answer if believed else "cannot tell")
    assert found.question == "new"
    if believed:
        assert found.why == "The reason"
    elif answer != "cannot tell":
        assert ("held-out real images" if bad_news else "copies") in found.why
    record = found.tests[0]
    assert record["answer"] == found.answer
    assert record["controls"] == {k: v for k, v in (("held_out", real), ("copies", copies)) if v is not None}
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize("blurred", ANSWERS)
@pytest.mark.parametrize("answer", ["yes", "partly"])
def test_praise_needs_a_no_for_every_failed_generator(answer, blurred):
    """Where a failed generator gets "partly", being called partly real says nothing: few held-out images."""
    rating = VerdictTest("rating", "real", lambda *_: Outcome("yes", ""), ("blurred",), rates=True)
    other = VerdictTest("distance", "real", lambda *_: Outcome("yes", ""), ("noise",))
    controls = {
        "rating": heard(held_out="yes", blurred=blurred),
        "distance": heard(held_out="yes", noise="no"),
    }
    for of_other in ("yes", "partly"):
        said = {"rating": Outcome(answer, ""), "distance": Outcome(of_other, "")}
        found = decide([rating, other], said, controls, 8)["real"]
        worst = "partly" if "partly" in (answer, of_other) else "yes"
        assert found.answer == (worst if blurred == "no" else "cannot tell")
        assert blurred == "no" or "blurred" in found.plain
    said["distance"] = Outcome("no", "")
    assert decide([rating, other], said, controls, 8)["real"].answer == "no"  # bad news is never hidden


def test_every_control_has_to_be_caught_and_every_one_to_pass():
    test = saying("yes", must_pass=("held_out", "noise"), must_catch=("copies", "augmented_copies"))
    controls = {"test": heard(held_out="yes", noise="no", copies="no", augmented_copies="yes")}
    found = decide([test], {"test": Outcome("yes", "")}, controls, 60)["new"]
    assert found.answer == "cannot tell"
    assert "augmented copies" in found.why
    assert "exact copies" not in found.why
    found = decide([test], {"test": Outcome("no", "")}, controls, 60)["new"]
    assert found.answer == "cannot tell"
    assert "noise" in found.why


@pytest.mark.parametrize("always", ANSWERS)
def test_a_broken_test_ends_in_cannot_tell(always):
    """Negative control: a test that always says the same says nothing."""
    test = saying(always)
    images = side_of(labelled(6))
    controls = run_controls([test], {"held_out": (images, images), "copies": (images, images)})
    outcomes = {test.name: test.run(images, images)}
    assert decide([test], outcomes, controls, 60)["new"].answer == "cannot tell"


def test_a_working_test_is_believed():
    def run(side, held_out):
        return Outcome("no" if float(side.feature_scores.min()) < 0.5 else "yes", "")

    test = VerdictTest("test", "new", run, ("copies",))
    real, copies = side_of(labelled(6)), side_of(labelled(6), scores=torch.zeros(6))
    controls = run_controls([test], {"held_out": (real, real), "copies": (copies, real)})
    for images, answer in ((real, "yes"), (copies, "no")):
        assert decide([test], {"test": run(images, real)}, controls, 60)["new"].answer == answer


def test_a_control_that_cannot_be_judged_is_not_passed_and_not_caught():
    def run(side, held_out):
        raise DataError("too few images")

    test = VerdictTest("test", "new", run, ("copies",))
    images = side_of(labelled(6))
    controls = run_controls([test], {"held_out": (images, images), "copies": (images, images)})
    assert {name: found.answer for name, found in controls["test"].items()} == {
        "held_out": "cannot tell",
        "copies": "cannot tell",
    }
    assert controls["test"]["copies"].why == "too few images"
    for answer in ANSWERS:
        assert decide([test], {"test": Outcome(answer, "")}, controls, 60)["new"].answer == "cannot tell"


def test_a_fault_of_the_program_is_not_taken_for_too_few_images():
    def run(side, held_out):
        raise RuntimeError("bug")

    test = VerdictTest("test", "new", run, ())
    images = side_of(labelled(6))
    with pytest.raises(RuntimeError, match="bug"):
        run_controls([test], {"held_out": (images, images)})


def test_controls_run_once_each_and_only_where_they_are_bound():
    seen = []

    def run(side, held_out):
        seen.append(side)
        return Outcome("yes", "")

    test = VerdictTest("test", "new", run, ("copies", "noise"), ("held_out", "copies"))
    images = {name: side_of(labelled(3)) for name in ("held_out", "copies", "shuffled_labels")}
    found = run_controls([test], {name: (side, side) for name, side in images.items()})
    assert list(found["test"]) == ["held_out", "copies"]
    assert len(seen) == 2
    assert seen[0] is images["held_out"]
    assert seen[1] is images["copies"]


# ----------------------------------------------------------------------------------- several tests


def decided(*answers, proved=True):
    """The answer to one question, from (answer, primary) of tests whose controls bear them out."""
    tests = [saying(answer, name=str(i), primary=primary) for i, (answer, primary) in enumerate(answers)]
    controls = {test.name: heard(held_out="yes", copies="no") if proved else {} for test in tests}
    return decide(tests, {test.name: test.run(None, None) for test in tests}, controls, 60)["new"].answer


@pytest.mark.parametrize("first", ANSWERS)
@pytest.mark.parametrize("second", ANSWERS)
def test_further_tests_can_only_lower_a_verdict(first, second):
    rank = {"no": 0, "partly": 1, "yes": 2}
    alone, both = decided((first, True)), decided((first, True), (second, False))
    assert alone == first
    if second in ("no", "partly"):
        expected = second if first == "cannot tell" or rank[second] < rank[first] else first
    else:
        expected = first  # neither "yes" nor "cannot tell" of a further test changes anything
    assert both == expected


def test_further_tests_that_were_not_proved_lower_nothing():
    tests = [saying("yes", name="first"), saying("no", name="second", primary=False)]
    controls = {"first": heard(held_out="yes", copies="no"), "second": heard(held_out="partly", copies="no")}
    found = decide(tests, {test.name: test.run(None, None) for test in tests}, controls, 60)["new"]
    assert found.answer == "yes"
    assert [record["answer"] for record in found.tests] == ["yes", "cannot tell"]


@given(
    st.permutations([("no", False), ("partly", True), ("yes", True), ("cannot tell", False)]),
    st.integers(1, 4),
)
def test_the_order_of_the_tests_changes_no_answer(answers, n):
    assert decided(*answers[:n]) == decided(*reversed(answers[:n]))


def test_questions_are_apart():
    tests = [saying("no", name="a"), VerdictTest("b", "real", lambda s, h: Outcome("yes", ""), (), ())]
    found = decide(tests, {"a": Outcome("no", ""), "b": Outcome("yes", "")}, {"a": heard(held_out="yes")}, 60)
    assert {question: verdict.answer for question, verdict in found.items()} == {"new": "no", "real": "yes"}


def test_the_standard_tests_name_known_controls_and_a_primary_test_per_question():
    tests = standard_tests(side_of(labelled(12)), None, failed=lambda side, held_out: Outcome("yes", ""))
    assert len({test.name for test in tests}) == len(tests)
    for question, n_primary in (("real", 2), ("diverse", 1), ("new", 1), ("aligned", 1)):
        own = [test for test in tests if test.question == question]
        assert [test.primary for test in own].count(True) == n_primary
        for test in own:
            assert test.must_catch, test.name
            # Only a fact needs no real images that it lets pass.
            assert ("held_out" in test.must_pass) == (test.name != "training images"), test.name
    assert set(FAILED) < set(next(test for test in tests if test.name == "failed generators").must_catch)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (("yes", "yes"), "yes"),
        (("yes", "cannot tell"), "cannot tell"),
        (("cannot tell", "yes"), "cannot tell"),
        (("yes", "partly"), "partly"),
        (("cannot tell", "no"), "no"),
    ],
)
def test_yes_needs_every_primary_test(answers, expected):
    assert decided(*((answer, True) for answer in answers)) == expected


def test_a_doubtful_yes_is_none_but_a_control_may_get_one():
    test = saying("yes")
    doubtful = dataclasses.replace(Outcome("yes", "fine"), doubt="the interval is wide")
    controls = {"test": {"held_out": doubtful, "copies": Outcome("no", "")}}
    found = decide([test], {"test": doubtful}, controls, 60)["new"]
    assert (found.answer, found.plain) == ("cannot tell", "The interval is wide")
    accused = decide([test], {"test": Outcome("no", "bad")}, controls, 60)["new"]
    assert accused.answer == "no"


@pytest.mark.parametrize(("first", "expected"), [("cannot tell", "cannot tell"), ("yes", "partly")])
def test_a_test_that_may_not_stand_alone_needs_a_primary_one_with_an_answer(first, expected):
    average = dataclasses.replace(saying("partly", name="average", primary=False), alone=False)
    tests = [saying(first, name="near-copies"), average]
    controls = {test.name: heard(held_out="yes", copies="no") for test in tests}
    found = decide(tests, {test.name: test.run(None, None) for test in tests}, controls, 60)["new"]
    assert found.answer == expected


# -------------------------------------------------------------------------------------------- useful

SEEN = {"more_real_images": Gain(0.1, 0.05, 0.15, 5), "copies": Gain(0.0, -0.02, 0.02, 5)}


def measured(mean, low, high, losing=()):
    return SimpleNamespace(
        gain=Gain(mean, low, high, 10),
        arms={"real": SimpleNamespace(mean=0.7)},
        losing_classes=tuple(losing),
        worth=None,
        smallest_gain=0.05,
        speaks_of="these images",
        power=lambda: "10 draws see a gain of 5 points",
    )


USEFUL = {
    "gain": (measured(0.05, 0.01, 0.09), SEEN, "yes", "+5.0 points (+1.0 to +9.0)"),
    "gain with a class that loses": (measured(0.05, 0.01, 0.09, ["b"]), SEEN, "partly", '"b"'),
    "loss": (measured(-0.05, -0.09, -0.01), SEEN, "no", "-5.0 points"),
    "too small a gain": (measured(0.0, -0.01, SMALL_GAIN - 1e-3), SEEN, "no", "ruled out"),
    "unsure": (measured(0.0, -0.05, 0.05), SEEN, "cannot tell", "More draws"),
    "one draw": (measured(0.3, None, None), SEEN, "cannot tell", "+30.0 points"),
    "copies seem useful": (
        measured(0.05, 0.01, 0.09),
        SEEN | {"copies": Gain(0.1, 0.05, 0.15, 5)},
        "cannot tell",
        "would say yes",
    ),
    "copies seem useful, a class loses": (
        measured(0.05, 0.01, 0.09, ["b"]),
        SEEN | {"copies": Gain(0.1, 0.05, 0.15, 5)},
        "cannot tell",
        "would say partly",
    ),
    "real images do not seem useful": (
        measured(-0.05, -0.09, -0.01),
        SEEN | {"more_real_images": Gain(0.0, -0.01, 0.01, 5)},
        "cannot tell",
        "twice as many real images",
    ),
    "controls of one draw": (
        measured(-0.05, -0.09, -0.01),
        {name: Gain(0.1, None, None, 1) for name in SEEN},
        "cannot tell",
        "twice as many real images",
    ),
    "real images do not seem useful, but these do": (
        measured(0.05, 0.01, 0.09),
        SEEN | {"more_real_images": Gain(0.0, -0.01, 0.01, 5)},
        "yes",
        "+5.0 points",
    ),
}


@pytest.mark.parametrize("case", USEFUL)
def test_useful(case):
    result, controls, answer, words = USEFUL[case]
    found = useful_verdict(result, controls)
    assert (found.question, found.answer) == ("useful", answer)
    assert words in found.why
    assert found.why[0].isupper()
    assert found.tests[0]["answer"] == answer
    assert set(found.tests[0]["controls"]) == set(SEEN)
    json.dumps(found.to_dict(), allow_nan=False)


def test_useful_names_what_the_images_are_worth():
    result = measured(0.05, 0.01, 0.09)
    result.worth = SimpleNamespace(text="Worth 12 real images per class")
    assert "Worth 12 real images" in useful_verdict(result, SEEN).why


# ------------------------------------------------------------------------------------ not meaningful

FLATTERED = {"diverse": "yes", "new": "partly", "useful": "not measured", "aligned": "cannot tell"}


@pytest.mark.parametrize(
    ("real", "steps", "taken"),
    [
        ("no", None, True),
        ("no", (2500, 2500), True),
        ("cannot tell", (25, 2500), True),
        ("partly", (25, 2500), True),
        ("yes", (25, 2500), False),
        ("partly", (2000, 2500), False),
        ("cannot tell", None, False),
    ],
)
def test_good_news_of_images_that_do_not_look_real_means_nothing(real, steps, taken):
    given = {"real": real, **FLATTERED}
    found = without_meaning({q: Verdict(q, answer, f"why {q}") for q, answer in given.items()}, steps)
    assert list(found) == list(given)
    for question, verdict in found.items():
        flattered = taken and question != "real" and given[question] in ("yes", "partly")
        assert verdict.answer == ("not meaningful" if flattered else given[question])
        assert verdict.why.endswith(f"why {question}")


def test_copies_are_never_hidden():
    given = {
        "real": Verdict("real", "no", "fog"),
        "new": Verdict("new", "no", "44 of 44 are training images"),
    }
    assert without_meaning(given, (25, 2500)) == given


def test_the_first_line_says_that_training_was_cut():
    lines = verdict_lines({"new": Verdict("new", "yes", "why")}, {"steps": {"made": 25, "of": 2500}})
    assert lines == ["Undertrained: 25 of 2,500 steps.", "New?      yes             Why"]
    assert (
        len(verdict_lines({"new": Verdict("new", "yes", "why")}, {"steps": {"made": 2500, "of": 2500}})) == 1
    )
