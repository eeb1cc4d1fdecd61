"""Signals that ask for a stop: training saves and stops, other commands leave nothing, and `nohup` counts."""

from __future__ import annotations

import functools
import os
import signal

import pytest
import torch
from tests.fake_method import Fake
from tests.training.toys import make, trainer

import fewgen
from fewgen import files
from fewgen.cli.main import main
from fewgen.training.checkpoint import read_state

assert Fake.name == "fake"
ASKING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
TRAIN = "train fake --data digits --size 8 --shots 5 --text onehot --no-report --no-progress --model.steps"


@pytest.fixture(autouse=True)
def _deadly():
    """Where a signal is not caught, the test process would end, as a user's would."""
    # The suite itself may run below `nohup`, which hands on that SIGHUP is ignored.
    before = {number: signal.signal(number, signal.SIG_DFL) for number in ASKING}
    yield
    for number, handler in before.items():
        assert signal.getsignal(number) is signal.SIG_DFL
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("stopping") / "run"
    assert main([*TRAIN.split(), "3", "--out", str(out)]) == 0
    return out


def signalled(run, number, at):
    """Send this process a signal within a step."""
    stage = run.stages[0]
    augment, steps = stage.augment, []

    def sending(x, rng):
        steps.append(len(steps))
        if len(steps) == at:
            os.kill(os.getpid(), number)
        return augment(x, rng)

    stage.augment = sending
    return run


@pytest.mark.parametrize("number", ASKING)
def test_training_saves_and_stops(number, tmp_path):
    result = signalled(trainer(make(), tmp_path), number, 3).run()
    assert result.interrupted
    assert read_state(tmp_path / "state").values["total_steps"] == result.steps == 3


@pytest.mark.parametrize("number", ASKING)
def test_what_prepares_a_stage_is_left_at_once(number, tmp_path, capsys):
    began = []

    def prepares(context):
        began.append(context.step)
        if len(began) == 1:
            os.kill(os.getpid(), number)
            raise AssertionError("it went on")

    def prepared(folder):
        made = trainer(make(), folder)
        made.stages[0].on_start = prepares
        return made

    result = prepared(tmp_path / "run").run()
    assert result.interrupted
    assert result.steps == 0
    assert not (tmp_path / "run" / "state").exists()
    assert "The state is saved" not in capsys.readouterr().err
    resumed, unbroken = prepared(tmp_path / "run"), prepared(tmp_path / "other")
    assert resumed.run().finished
    assert unbroken.run().finished
    for name, wanted in unbroken.method.state_dict().items():
        assert torch.equal(resumed.method.state_dict()[name], wanted), name


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminals here")
def test_what_is_ignored_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` does
    try:
        result = signalled(trainer(make(), tmp_path), signal.SIGHUP, 3).run()
        assert not result.interrupted
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", ASKING)
def test_the_train_command_stops_and_the_same_command_finishes(number, tmp_path, monkeypatch, capsys):
    words = [*TRAIN.split(), "12", "--out", str(tmp_path / "run")]
    loss, steps = Fake.loss, []

    def sending(self, batch, context):
        steps.append(0)
        if len(steps) == 5:
            os.kill(os.getpid(), number)
        return loss(self, batch, context)

    monkeypatch.setattr(Fake, "loss", sending)
    assert main(words) == 130
    assert "same command again" in capsys.readouterr().err
    assert main(words) == 0
    assert "Trained 12 steps" in capsys.readouterr().out
    assert len(steps) == 12


@pytest.mark.parametrize("number", ASKING)
@pytest.mark.parametrize("command", ["generate", "evaluate", "interpolate"])
def test_other_commands_leave_nothing_and_work_again(command, number, run, tmp_path, monkeypatch, capsys):
    words = {
        "generate": ["generate", run, "-n", "2", "--out", tmp_path / "new" / "images"],
        "interpolate": ["interpolate", run, "one", "two", "--out", tmp_path / "new" / "strip.png"],
        "evaluate": ["evaluate", run, "--features", "pixels", "--useful-draws", "0", "--no-progress"]
        + ["--out", tmp_path / "new" / "evaluation.json"],
    }[command]
    words = [str(word) for word in words]
    real, count = files.os.fsync, []

    def sending(descriptor):
        count.append(0)
        if len(count) == (2 if command != "interpolate" else 1):  # in the middle of what is written
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # impatient; the second must not disturb the tidying
        real(descriptor)

    if command == "evaluate":
        monkeypatch.setattr("fewgen.api.evaluating.evaluate_request", lambda *_: _Evaluation())
        monkeypatch.setattr("fewgen.report.evidence.render_evaluation", lambda _: "page")
    monkeypatch.setattr(files.os, "fsync", sending)
    assert main(words) == 130
    assert "Interrupted." in capsys.readouterr().err
    monkeypatch.setattr(files.os, "fsync", real)
    assert list(tmp_path.iterdir()) == []
    assert main(words) == 0


class _Evaluation:
    protocol = {}

    def to_dict(self):
        return {}

    def lines(self):
        return []


def test_signals_are_left_alone_outside_of_commands(run, tmp_path):
    """What a program does with signals is its own matter; only `main` and a training set them."""
    before = [signal.getsignal(number) for number in ASKING]
    fewgen.generate(run, n=1, out=tmp_path / "a.npz")
    main(["generate", str(run), "-n", "1", "--out", str(tmp_path / "b.npz")])
    assert [signal.getsignal(number) for number in ASKING] == before


def test_who_interrupts_a_student_is_told_what_is_kept(monkeypatch, capsys):
    @functools.wraps(fewgen.distill)
    def stop(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fewgen.distill", stop)
    assert main(["distill", "--novel", "photos", "--teacher", "lite2", "--out", "tiny"]) == 130
    assert "a student in training starts anew" in capsys.readouterr().err
