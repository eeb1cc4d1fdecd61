"""Which checkpoint is kept: the rule, the loop that obeys it, and what measuring must not change."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from tests.training.toys import ToyConfig, ToyGan, ToyGanConfig, make, quiet, toy_images
from torch import nn

from fewgen.errors import ConfigError, DataError, TrainingError
from fewgen.losses.terms import LossTerms
from fewgen.training import Phase, Stage, TrainConfig, Trainer
from fewgen.training.selection import N_COMPARED, Drawn, Selection

STEPS = 500
"""Of a stage: five checkpoints."""


def drawn(distance, error=0.01, copies=False):
    return Drawn(distance, error, 0.5 * copies, copies, 0.02, 0.0, torch.zeros(3, 1, 6, 6, dtype=torch.uint8))


def kept(*figures):
    """Keep of checkpoints at steps 1, 2, ...; and what is said of it."""
    selection = Selection()
    for step, figure in enumerate(figures, start=1):
        selection.take(step, figure.distance, figure.error, figure.copies)
    assert Selection.of(json.loads(json.dumps(selection.state()))) == selection
    return selection.kept, selection.why()


# ------------------------------------------------------------------ the rule


def test_the_latest_within_one_standard_error_of_the_lowest_is_kept():
    assert kept(drawn(0.5), drawn(0.1), drawn(0.3))[0] == 2
    assert kept(drawn(0.5), drawn(0.1), drawn(0.109), drawn(0.12))[0] == 3
    assert kept(drawn(0.5), drawn(0.1), drawn(0.1))[0] == 3  # of equal ones the later
    assert kept(drawn(0.5, error=1.0), drawn(0.1), drawn(0.3))[0] == 2  # the error is that of the lowest
    assert kept(drawn(0.5), drawn(float("nan")))[0] == 1
    assert "within one standard error (distance 0.109, lowest 0.1)" in kept(drawn(0.1), drawn(0.109))[1]
    assert kept(drawn(0.1), drawn(0.2))[1].startswith(
        "of 2 checkpoints its images are the nearest to held-out"
    )


def test_a_checkpoint_that_copies_is_not_kept_however_near_it_is():
    step, why = kept(drawn(0.5), drawn(0.3), drawn(0.1, copies=True), drawn(0.05, copies=True))
    assert step == 2
    assert why.endswith("(distance 0.3; 2 that copy training images are left out)")
    assert kept(drawn(0.1, copies=True), drawn(0.2, copies=True)) == (
        None,
        "all 2 checkpoints copy training images",
    )


@pytest.mark.parametrize("steps", [101, 250, 500, 1000, 2501, 60_000])
def test_there_are_about_ten_checkpoints_however_long_a_stage_is(steps):
    selection, measured = Selection(), []
    for step in range(1, steps + 1):
        if selection.due(step, steps):
            selection.take(step, 0.1, 0.01, False)
            measured.append(step)
    assert 2 <= len(measured) <= N_COMPARED + 1
    assert measured[-1] == steps  # what would have been kept without them takes part


def test_drawing_that_takes_long_is_done_more_rarely():
    assert Selection.interval(2500) == 250
    assert Selection.interval(2500, cost=5) == 250
    assert Selection.interval(2500, cost=33) == 825  # 33 of every 825 steps, 4 %


@pytest.mark.parametrize("steps", [1, 40, 99, 100])
def test_short_stages_keep_their_last_weights(steps):
    selection = Selection()
    due = [step for step in range(1, steps + 1) if selection.due(step, steps)]
    assert due in ([], [100])
    assert selection.why() == "too few steps to compare checkpoints"


# ------------------------------------------------------------------ the loop


class Overshoot(ToyGan):
    """A generator that meets the held-out images half way, and goes on."""

    def g_loss(self, batch, context):
        target = 1.6 * context.progress - 0.8
        own = self.fake(len(batch), context.rng)
        return LossTerms({"way": (own.mean() - target).square()})

    def stages(self, train, held_out):
        (stage,) = super().stages(train, held_out)
        phase = Phase("g", self.generator, self.g_loss, lr=2e-2, watch=False)
        return [dataclasses.replace(stage, phases=[phase], draws=True, ema_decay=0.5)]


class Far:
    """How far the draws of a method are from mean grey; counts its calls."""

    def __init__(self, method):
        self.method, self.calls = method, 0

    def __call__(self):
        self.calls += 1
        torch.rand(100)  # measuring may use random numbers as it likes
        labels = torch.zeros(8, dtype=torch.int64)
        images = self.method.sample(None, labels, torch.arange(8), 1.0)
        return drawn(abs(float(images.detach().mean())))


def overshoot(run_dir, measured=True, steps=STEPS, **settings):
    method = make(ToyGanConfig(steps), 0, Overshoot)
    train, held_out = toy_images(), toy_images(12, seed=5)
    draw = Far(method) if measured else None
    stages = method.stages(train, held_out)
    return Trainer(method, stages, train, held_out, quiet(**settings), run_dir, draw=draw), method


def lines(run_dir, kind):
    text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    return [line for line in map(json.loads, text.splitlines()) if line["kind"] == kind]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run of which later steps get worse, at once."""
    run_dir = tmp_path_factory.mktemp("overshoot")
    trainer, method = overshoot(run_dir)
    return run_dir, trainer.run(), method


def test_the_best_is_kept_where_later_steps_get_worse(whole, tmp_path):
    run_dir, result, method = whole
    rows = lines(run_dir, "checkpoint")
    assert [row["step"] for row in rows] == [100, 200, 300, 400, 500]
    best = min(rows, key=lambda row: row["distance"])
    assert best["step"] == 300 or best["step"] == 200
    (stage,) = result.stages
    assert stage.best_step == best["step"]
    assert stage.best_value == pytest.approx(best["distance"])
    assert stage.why.startswith("of 5 checkpoints its images are the nearest to held-out images")
    assert Far(method)().distance == pytest.approx(best["distance"])
    trainer, last = overshoot(tmp_path, checkpoint="last")
    assert trainer.run().stages[0].why == "as --checkpoint last asks for"
    assert Far(last)().distance > 4 * best["distance"]
    saved = {
        name: load_file(folder / "model.safetensors")
        for name, folder in (("best", run_dir), ("last", tmp_path))
    }
    assert not torch.equal(
        saved["best"]["model.generator.0.weight"], saved["last"]["model.generator.0.weight"]
    )
    assert (run_dir / "previews" / "1_gan_0000300_drawn.png").is_file()


def test_measuring_changes_nothing_that_is_learnt(tmp_path):
    """Neither do its random numbers: the last weights, which are kept here, are the same without it."""
    a, measured = overshoot(tmp_path / "a", checkpoint="last")
    b, without = overshoot(tmp_path / "b", measured=False)
    a.run(), b.run()
    assert len(lines(tmp_path / "a", "checkpoint")) == 5
    assert lines(tmp_path / "b", "checkpoint") == []
    for name, value in measured.state_dict().items():
        assert torch.equal(value, without.state_dict()[name]), name
    assert [{k: v for k, v in line.items() if k != "seconds"} for line in lines(tmp_path / "a", "train")] == [
        {k: v for k, v in line.items() if k != "seconds"} for line in lines(tmp_path / "b", "train")
    ]


@pytest.mark.parametrize("stops", [(250, 301), (299, 450)])
def test_a_stopped_run_keeps_the_same_checkpoint(whole, tmp_path, stops):
    """Also while an earlier checkpoint is the best; the file on disk holds it all the time."""
    for stop in (*stops, None):
        trainer, method = overshoot(tmp_path)
        if stop is not None:

            def stopping(batch, context, stop=stop, trainer=trainer, method=method):
                if context.step + 1 == stop:
                    trainer.stop()
                return Overshoot.g_loss(method, batch, context)

            trainer.stages[0].phases[0].loss = stopping
        result = trainer.run()
        assert result.interrupted == (stop is not None)
    run_dir, at_once, _ = whole
    assert result.stages[0] == dataclasses.replace(at_once.stages[0], seconds=result.stages[0].seconds)
    for name, value in load_file(run_dir / "model.safetensors").items():
        assert torch.equal(value, load_file(tmp_path / "model.safetensors")[name]), name
    own = [{k: v for k, v in row.items() if k != "seconds"} for row in lines(tmp_path, "checkpoint")]
    assert own == [{k: v for k, v in row.items() if k != "seconds"} for row in lines(run_dir, "checkpoint")]


def test_a_state_on_the_way_holds_the_best_so_far(tmp_path):
    trainer, method = overshoot(tmp_path, checkpoint_every=450)
    saved = {}
    write = Trainer._save_model

    def noted(self):
        write(self)
        saved.setdefault(self._position.total_steps, load_file(tmp_path / "model.safetensors"))

    trainer._save_model = noted.__get__(trainer)
    result = trainer.run()
    assert result.stages[0].best_step < 450
    for name, value in load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(saved[450][name], value), name


def test_a_stage_with_a_held_out_loss_keeps_to_it_unless_told_otherwise(tmp_path):
    """Its images are measured all the same."""
    results = {}
    for choice in ("best", "images", "last"):
        method = make(ToyConfig(steps=201, second_steps=0, patience=None))
        train, held_out = toy_images(), toy_images(12, seed=5)
        (stage,) = method.stages(train, held_out)
        figures = iter([0.5, 0.1, 0.9])
        trainer = Trainer(
            method,
            [dataclasses.replace(stage, draws=True)],
            train,
            held_out,
            quiet(checkpoint=choice, validate_every=20),
            tmp_path / choice,
            draw=lambda figures=figures: drawn(next(figures)),
        )
        results[choice] = trainer.run().stages[0]
        assert len(lines(tmp_path / choice, "checkpoint")) == 3
    assert results["images"].best_step == 200
    assert results["images"].steps == 201
    assert results["images"].best_value == 0.1
    assert results["best"].why.startswith("lowest held-out image, ")
    assert results["best"].best_step not in (None, 100, 200)
    assert results["last"].best_step is None


def test_without_anything_to_compare_with_the_last_is_kept_and_that_is_said(tmp_path):
    trainer, method = overshoot(tmp_path, steps=250)

    def nothing():
        raise DataError("no images are held out to compare checkpoints with")

    trainer._draw = nothing
    (stage,) = trainer.run().stages
    assert (stage.best_step, stage.why) == (None, "no images are held out to compare checkpoints with")
    assert lines(tmp_path, "checkpoint") == []


def test_stages_that_draw_nothing_and_stages_that_keep_their_last_are_left_alone(tmp_path):
    trainer, method = overshoot(tmp_path / "a")
    trainer.stages[0] = dataclasses.replace(trainer.stages[0], draws=False)
    assert trainer.run().stages[0].why == ""
    assert lines(tmp_path / "a", "checkpoint") == []
    trainer, method = overshoot(tmp_path / "b")
    trainer.stages[0] = dataclasses.replace(trainer.stages[0], keep_last="they are a start")
    (stage,) = trainer.run().stages
    assert (stage.best_step, stage.why) == (None, "they are a start")
    assert len(lines(tmp_path / "b", "checkpoint")) == 5


def test_an_unknown_choice_is_refused():
    with pytest.raises(ConfigError, match=r'checkpoint must be best, images or last, got "lsat".*last'):
        TrainConfig(checkpoint="lsat")


# ------------------------------------------------------------------ divergence


@pytest.mark.parametrize("size", [90.0, 150.0])
def test_a_loss_far_above_that_of_the_first_step_stops(tmp_path, size):
    method = make()
    part = nn.Linear(1, 1)

    def loss(batch, context):
        return LossTerms({"x": part.weight.sum() * 0.0 + (1.0 if context.step < 8 else size)})

    stage = Stage("a", [Phase("p", [part], loss, advice="Lower model.lr.")], steps=20)
    trainer = Trainer(method, [stage], toy_images(), None, quiet(checkpoint_every=4), tmp_path)
    if size < 100:
        assert trainer.run().finished
        return
    with pytest.raises(TrainingError) as caught:
        trainer.run()
    assert 'the total of phase "p" is 150 at step 12 of stage "a", and was 1 at its first step.' in str(
        caught.value
    )
    assert "the last good checkpoint, of step 8" in str(caught.value)
    assert "Lower model.lr;" in str(caught.value)
