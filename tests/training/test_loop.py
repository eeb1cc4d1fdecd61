from __future__ import annotations

import dataclasses
import io
import json
import math

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.training.toys import Toy, ToyConfig, ToyGan, make, quiet, toy_images, trainer
from torch import nn

from fewgen.config import read_config
from fewgen.errors import ConfigError, DataError, TrainingError
from fewgen.files import read_json
from fewgen.fitting.seeds import derive_seed
from fewgen.losses.terms import LossTerms
from fewgen.methods.store import load_method
from fewgen.nn.ema import EMA
from fewgen.progress import Display
from fewgen.training import Phase, Stage, Trainer, make_sampler
from fewgen.training.checkpoint import read_state
from fewgen.training.selection import Drawn


def lines(run_dir, kind=None):
    found = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if kind in (None, line["kind"])]


def test_the_loop_equals_a_loop_written_by_hand(tmp_path):
    """Same order, same AdamW, same clipping, same average as plain PyTorch."""
    train = toy_images()

    def loss(net, x):
        return (net(x) - 1).square().sum(1).mean()

    def net():
        torch.manual_seed(3)
        return make(seed=3)

    method = net()
    part = method.encoder
    stage = Stage(
        "one",
        [
            Phase(
                "p",
                part,
                lambda b, c: LossTerms({"x": loss(part, b.images)}),
                lr=0.01,
                weight_decay=0.1,
                clip=0.5,
            )
        ],
        steps=12,
        batch_size=7,
    )
    Trainer(method, [stage], train, None, quiet(ema_decay=0.8), tmp_path).run()

    other = net().encoder
    decay = [p for p in other.parameters() if p.ndim >= 2]
    rest = [p for p in other.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, fused=True)
    ema = EMA(other, 0.8)
    sampler = make_sampler("shuffled", train.labels, 7, derive_seed(0, "order", 0))
    for _ in range(12):
        optimizer.zero_grad()
        loss(other, train.floats(sampler.next())).backward()
        nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        optimizer.step()
        ema.update(other)
    ema.copy_to(other)
    for a, b in zip(part.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_gan_phases_take_turns_and_keep_to_their_parameters(tmp_path):
    method = make(cls=ToyGan)
    seen = []
    stages = method.stages(toy_images(), None)
    for phase in stages[0].phases:
        loss = phase.loss

        def spy(batch, context, loss=loss, name=phase.name):
            terms = loss(batch, context)
            grads = [p.grad is None for p in method.parameters()]
            seen.append((context.step, name, all(grads)))
            return terms

        phase.loss = spy
    Trainer(method, stages, toy_images(), None, quiet(), tmp_path).run()
    order = [(step, name) for step, name, _ in seen]
    expected = [(s, n) for s in range(24) for n in (("d", "r1", "g") if s % 4 == 0 else ("d", "g"))]
    assert order == expected
    # The generator's phase leaves nothing behind in the discriminator, nor anywhere else.
    assert all(clean for _, _, clean in seen)
    assert {"d/real", "d/fake", "r1/r1", "g/fool", "g/lr"} <= set(lines(tmp_path, "train")[0])


def test_every_trainable_parameter_moves(tmp_path):
    method = make()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    trainer(method, tmp_path, quiet(ema_decay=0.0), held_out=False).run()
    for name, value in method.state_dict().items():
        assert not torch.equal(before[name], value), name


def test_frozen_parts_stay_and_keep_evaluation_mode(tmp_path):
    method = make()
    train = toy_images()
    stages = method.stages(train, None)
    modes = []
    second = stages[1].phases[0].loss

    def spy(batch, context):
        modes.append((method.head.training, method.decoder.training, method.encoder.training))
        return second(batch, context)

    stages[1].phases[0].loss = spy
    held = {}
    stages[1].on_end = lambda context: held.update(mode=method.training, at=context.step)
    encoder = {}
    prepare = stages[1].on_start

    def remember(context):
        encoder.update({name: value.clone() for name, value in method.encoder.state_dict().items()})
        prepare(context)

    stages[1].on_start = remember
    Trainer(method, stages, train, None, quiet(), tmp_path).run()
    assert set(modes) == {(True, False, False)}
    assert held == {"mode": False, "at": 20}
    for name, value in method.encoder.state_dict().items():
        assert torch.equal(encoder[name], value)
    assert not method.training


def test_a_phase_that_writes_gradients_itself(tmp_path):
    """Reptile: the pseudo-gradient is the way back from the adapted weights."""
    method = make(ToyConfig(second_steps=0))
    net = method.encoder
    start = [p.detach().clone() for p in net.parameters()]

    def reptile(batch, context):
        assert all(p.grad is None for p in net.parameters())
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        return LossTerms({"inner": torch.tensor(1.0)})

    phase = Phase(
        "meta",
        net,
        step=reptile,
        lr=0.5,
        optimizer=lambda groups: torch.optim.SGD(groups),
        schedule="constant",
    )
    stage = Stage("meta", [phase], steps=4, sampler="single_class", batch_size=3, ema_decay=0.0)
    result = Trainer(method, [stage], toy_images(), None, quiet(), tmp_path).run()
    assert result.finished
    for a, b in zip(start, net.parameters(), strict=True):
        torch.testing.assert_close(a - 4 * 0.5, b)


def test_files_of_a_run(tmp_path):
    record = {"method": "toy", "training": {"seed": 0}}
    split = {"train": [1, 2], "held_out": [3]}
    result = trainer(
        make(), tmp_path, quiet(preview_every=10), record=record, split=split, extra={"note": "hello"}
    ).run()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        ".fewgen-run",
        "config.yaml",
        "split.json",
        "model.safetensors",
        "metrics.jsonl",
        "previews",
        "state",
    }
    assert read_json(tmp_path / "split.json") == split
    pictures = sorted(path.name for path in (tmp_path / "previews").iterdir())
    assert pictures == [
        "1_autoencoder_0000010.png",
        "1_autoencoder_0000020.png",
        "1_autoencoder_final.png",
    ]
    with Image.open(tmp_path / "previews" / pictures[0]) as picture:
        assert picture.size == (12, 12)
        assert picture.mode == "L"
    assert result.best == {
        "autoencoder": pytest.approx(min(line["image"] for line in lines(tmp_path, "held_out")))
    }
    assert [stage.name for stage in result.stages] == ["autoencoder", "classifier"]
    assert result.steps == 50
    assert not result.warnings
    logged = lines(tmp_path, "train")
    assert [line["step"] for line in logged] == [4, 8, 12, 16, 20, 24, 28, 30, 4, 8, 12, 16, 20]
    assert {
        "image/total",
        "image/image",
        "image/size",
        "image/mean_code",
        "image/grad_norm",
        "image/lr",
    } <= set(logged[0])
    # A model file carries what was added, and generates.
    method = load_method(tmp_path)
    assert isinstance(method, Toy)


def test_log_lines_are_means_over_their_steps(tmp_path):
    method = make(ToyConfig(steps=8, second_steps=0))
    stages = method.stages(toy_images(), None)
    totals = []
    loss = stages[0].phases[0].loss

    def spy(batch, context):
        terms = loss(batch, context)
        totals.append(terms.total().item())
        return terms

    stages[0].phases[0].loss = spy
    Trainer(method, stages, toy_images(), None, quiet(), tmp_path).run()
    first, second = lines(tmp_path, "train")
    assert first["image/total"] == pytest.approx(sum(totals[:4]) / 4)
    assert second["image/total"] == pytest.approx(sum(totals[4:]) / 4)


# ---------------------------------------------------------------------- best, early stop


def with_figures(method, figures, **stage_settings):
    """Stages whose validation returns these figures, one after another."""
    stages = method.stages(toy_images(), toy_images(12, seed=5))[:1]
    seen = []

    def validate(context):
        assert not torch.is_grad_enabled()
        assert not method.training
        assert not context.training
        seen.append({name: value.clone() for name, value in method.state_dict().items()})
        return {"image": figures[len(seen) - 1]}

    stages[0].validate = validate
    for key, value in stage_settings.items():
        setattr(stages[0], key, value)
    return stages, seen


@pytest.mark.parametrize("mode", ["min", "max"])
def test_early_stopping_restores_the_best_weights(tmp_path, mode):
    method = make(ToyConfig(steps=100))
    figures = [9.0, 5.0, 7.0, 4.0, 8.0, 6.0, 4.5, 1.0]
    if mode == "max":
        figures = [-f for f in figures]
    stages, seen = with_figures(method, figures, patience=3, monitor_mode=mode)
    held = toy_images(12, seed=5)
    result = Trainer(method, stages, toy_images(), held, quiet(), tmp_path).run()
    assert result.stopped_early
    assert len(seen) == 7
    assert result.steps == 35
    assert result.stages[0].best_step == 20
    assert abs(result.best["autoencoder"]) == 4.0
    parts = [name for name in seen[3] if name.startswith(("encoder", "decoder"))]
    for name in parts:
        assert torch.equal(method.state_dict()[name], seen[3][name])
        assert torch.equal(load_file(tmp_path / "model.safetensors")[f"model.{name}"], seen[3][name])
    assert not torch.equal(seen[3][parts[0]], seen[6][parts[0]])


@pytest.mark.parametrize("mode", ["min", "max"])
def test_later_weights_are_kept_if_they_are_as_good_within_the_tolerance(tmp_path, mode):
    method = make(ToyConfig(steps=30))
    figures = [9.0, 5.0, 5.4, 5.6, 5.2, 5.4 + 0.2]
    if mode == "max":
        figures = [-f for f in figures]
    stages, seen = with_figures(method, figures, tolerance=0.1, monitor_mode=mode)
    result = Trainer(method, stages, toy_images(), toy_images(12, seed=5), quiet(), tmp_path).run()
    # 5.6 is out of reach of the best, 5.0, and the bar does not rise with what was kept.
    assert result.stages[0].best_step == 25
    assert abs(result.best["autoencoder"]) == 5.0
    name = next(name for name in seen[4] if name.startswith("encoder"))
    assert torch.equal(method.state_dict()[name], seen[4][name])


def test_diagnosis_does_not_need_held_out_images(tmp_path):
    method = make(ToyConfig(steps=10))
    stages = method.stages(toy_images(), None)[:1]
    assert stages[0].validate is None
    stages[0].diagnose = lambda context: ["The posterior collapsed."]
    result = Trainer(method, stages, toy_images(), None, quiet(), tmp_path).run()
    assert result.warnings == ["The posterior collapsed."]


def test_a_model_saved_on_the_way_holds_the_best_weights(tmp_path):
    method = make(ToyConfig(steps=100))
    stages, seen = with_figures(method, [3.0, 1.0, 2.0, 5.0])
    run = Trainer(method, stages, toy_images(), toy_images(12, seed=5), quiet(), tmp_path)
    validate = stages[0].validate

    def stop_at_third(context):
        if len(seen) == 2:
            run.stop()
        return validate(context)

    stages[0].validate = stop_at_third
    assert run.run().interrupted
    saved = load_file(tmp_path / "model.safetensors")
    live = read_state(tmp_path / "state").tensors
    name = "encoder.1.weight"
    assert torch.equal(saved[f"model.{name}"], seen[1][name])
    assert not torch.equal(live[f"model.{name}"], saved[f"model.{name}"])


def test_a_held_out_figure_that_is_not_finite_is_never_the_best(tmp_path):
    method = make(ToyConfig(steps=20))
    stages, _ = with_figures(method, [math.nan, 2.0, math.inf, 3.0])
    result = Trainer(method, stages, toy_images(), toy_images(12, seed=5), quiet(), tmp_path).run()
    assert result.best == {"autoencoder": 2.0}
    assert sum("not finite" in text for text in result.warnings) == 1


def test_an_unknown_monitor_names_the_figures(tmp_path):
    method = make()
    stages, _ = with_figures(method, [1.0] * 9, monitor="imgae")
    with pytest.raises(ConfigError, match='Did you mean "image"'):
        Trainer(method, stages, toy_images(), toy_images(12, seed=5), quiet(), tmp_path).run()


def test_warnings_reach_the_result_the_log_and_the_display(tmp_path):
    method = make(ToyConfig(steps=40))
    stages, _ = with_figures(method, [5.0, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 9.0])
    stages[0].diagnose = lambda context: [f"The posterior collapsed in {context.step} dimensions"]
    stream = io.StringIO()
    held = toy_images(12, seed=5)
    result = Trainer(
        method, stages, toy_images(), held, quiet(), tmp_path, display=Display(False, stream)
    ).run()
    assert len(result.warnings) == 2
    assert any("Overfitting" in text for text in result.warnings)
    assert any("posterior collapsed in 5" in text for text in result.warnings)
    assert [line["text"] for line in lines(tmp_path, "warning")] == result.warnings
    assert stream.getvalue().count("warning:") == 2


# ---------------------------------------------------------------------- numbers that are not finite


def break_at(method, step, where):
    """Stages of the toy in which something is NaN from a step on."""
    stages = method.stages(toy_images(), None)
    phase = stages[0].phases[0]
    loss = phase.loss

    def broken(batch, context):
        terms = loss(batch, context)
        if context.step + 1 < step:
            return terms
        values = dict(terms.values)
        if where == "term":
            values["size"] = values["size"] * math.inf
        elif where == "off":
            values["extra"] = torch.tensor(math.nan)
            return dataclasses.replace(terms, values=values, weights={**terms.weights, "extra": 0.0})
        elif where == "gradient":
            zero = method.encoder[1].bias.sum() * 0
            values["root"] = zero.abs().sqrt()
        return dataclasses.replace(terms, values=values)

    phase.loss = broken
    return stages


def test_nan_names_term_step_and_checkpoint_which_stays(tmp_path):
    method = make()
    stages = break_at(method, 13, "term")
    with pytest.raises(TrainingError) as caught:
        Trainer(method, stages, toy_images(), None, quiet(checkpoint_every=5), tmp_path).run()
    message = str(caught.value)
    for part in ('"size"', "step 13", 'stage "autoencoder"', 'phase "image"', "of step 10", str(tmp_path)):
        assert part in message
    assert '"image" (' not in message
    state = read_state(tmp_path / "state")
    assert state.values["total_steps"] == 10
    assert all(torch.isfinite(value).all() for value in load_file(tmp_path / "model.safetensors").values())
    assert lines(tmp_path, "error")[0]["text"] == message


@pytest.mark.parametrize("clip", [None, 1.0])
def test_nan_in_the_gradient_never_reaches_a_checkpoint(tmp_path, clip):
    method = make()
    stages = break_at(method, 10, "gradient")
    stages[0].phases[0].clip = clip
    # The poisoned step is itself one that saves.
    with pytest.raises(TrainingError, match="gradient|weights") as caught:
        Trainer(method, stages, toy_images(), None, quiet(checkpoint_every=5), tmp_path).run()
    assert "of step 5" in str(caught.value)
    saved = load_file(tmp_path / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in saved.values())


def test_nan_before_the_first_checkpoint(tmp_path):
    method = make()
    with pytest.raises(TrainingError, match="before the first checkpoint"):
        Trainer(method, break_at(method, 2, "term"), toy_images(), None, quiet(), tmp_path).run()
    assert read_state(tmp_path / "state") is None


@pytest.mark.parametrize("every", [0, 5])
def test_several_terms_are_named_and_the_advice_is_true(tmp_path, every):
    method = make()
    stages = break_at(method, 8, "term")
    phase = stages[0].phases[0]
    inner = phase.loss

    def loss(batch, context):
        terms = inner(batch, context)
        values = dict(terms.values)
        if context.step >= 7:
            values["image"] = values["image"] * math.nan
        return dataclasses.replace(terms, values=values)

    phase.loss = loss
    config = quiet(checkpoint_every=every)
    with pytest.raises(TrainingError) as caught:
        Trainer(method, stages, toy_images(), None, config, tmp_path).run()
    message = str(caught.value)
    assert message.startswith("The loss terms")
    assert "are not finite at step 8" in message
    assert '"image" (nan)' in message
    assert "these terms" in message
    other = dataclasses.replace(config, ema_decay=0.5)
    method = make()
    again = Trainer(method, method.stages(toy_images(), None), toy_images(), None, other, tmp_path)
    if every:
        assert "other settings need a new folder" in message
        with pytest.raises(ConfigError):
            again.run()
    else:
        assert "the same folder can be used again" in message
        assert again.run().finished


@pytest.mark.parametrize("size", [60.0, -60.0])
def test_a_total_beyond_its_limit_stops_before_it_moves_anything(tmp_path, size):
    method = make()
    stages = method.stages(toy_images(), None)
    phase = stages[0].phases[0]
    inner, weights = phase.loss, []
    phase.limit = 50.0

    def loss(batch, context):
        weights.append({name: p.detach().clone() for name, p in method.named_parameters()})
        terms = inner(batch, context)
        values = {name: 0 * value for name, value in terms.values.items()}
        values["image"] = values["image"] + (size if context.step == 6 else 49.0)
        return dataclasses.replace(terms, values=values)

    phase.loss = loss
    with pytest.raises(TrainingError) as caught:
        Trainer(method, stages, toy_images(), None, quiet(checkpoint_every=5), tmp_path).run()
    message = str(caught.value)
    for part in (
        "diverges",
        'phase "image"',
        f"is {size:.4g}",
        "step 7",
        "limit of 50",
        "of step 5",
        str(tmp_path),
    ):
        assert part in message
    assert len(weights) == 7
    assert all(torch.equal(p, weights[-1][name]) for name, p in method.named_parameters())
    assert read_state(tmp_path / "state").values["total_steps"] == 5


def test_a_term_that_is_switched_off_may_be_nan(tmp_path):
    method = make()
    stages = break_at(method, 10, "off")
    result = Trainer(method, stages, toy_images(), None, quiet(checkpoint_every=3), tmp_path).run()
    assert result.finished
    assert any(line.get("image/extra", 0) is None for line in lines(tmp_path, "train"))


# ---------------------------------------------------------------------- length


def test_steps_scale(tmp_path):
    result = trainer(make(), tmp_path, quiet(steps_scale=0.1)).run()
    assert [stage.steps for stage in result.stages] == [3, 2]


class Clock:
    """Time that passes only when the training asks for it."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        import time

        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def slow_stages(method, clock, seconds, shares=(None, None)):
    stages = method.stages(toy_images(), None)
    for stage, share in zip(stages, shares, strict=True):
        stage.time_share = share
        loss = stage.phases[0].loss

        def slow(batch, context, loss=loss):
            clock.now += seconds(context.step)
            return loss(batch, context)

        stage.phases[0].loss = slow
    return stages


def stop_after(trainer, step):
    between = trainer._between_steps
    trainer._between_steps = lambda run: (trainer.stop() if run.step == step else None, between(run))[1]
    return trainer


def test_minutes_lower_the_steps(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    method = make(ToyConfig(steps=4000, second_steps=4000))
    # Warm-up steps are slow and must not count as the speed.
    stages = slow_stages(method, clock, lambda step: 1.0 if step < 5 else 0.1, shares=(0.75, None))
    progress = []
    monkeypatch.setattr(stages[0].phases[0], "schedule", lambda s, n: progress.append((s, n)) or 1.0)
    result = Trainer(method, stages, toy_images(), None, quiet(minutes=1.0), tmp_path).run()
    assert 55 < result.seconds <= 60.5
    first, second = result.stages
    assert first.planned_steps == 4000
    # 45 s for the first stage, 5 of them warm-up; 15 s for the second.
    assert 370 <= first.steps <= 405
    assert 80 <= second.steps <= 120
    assert progress[-1][1] == first.steps


def test_minutes_follow_a_machine_that_becomes_slower(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    method = make(ToyConfig(steps=4000, second_steps=0))
    stages = slow_stages(method, clock, lambda step: 0.1 if step < 100 else 0.2, shares=(None,))
    result = Trainer(method, stages, toy_images(), None, quiet(minutes=1.0), tmp_path).run()
    assert 45 < result.seconds < 66


def test_minutes_never_raise_the_steps_and_survive_a_stop(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)

    def build(run_dir, minutes):
        method = make(ToyConfig(steps=400, second_steps=0))
        stages = slow_stages(method, clock, lambda step: 0.1, shares=(None,))
        return Trainer(method, stages, toy_images(), None, quiet(minutes=minutes), run_dir)

    assert build(tmp_path / "a", 5).run().steps == 400
    assert stop_after(build(tmp_path / "b", 0.25), 30).run().interrupted
    limit = read_state(tmp_path / "b" / "state").values["stage"]["steps"]
    assert 130 < limit < 150
    clock.now += 1e6  # the time between the sessions does not count
    assert build(tmp_path / "b", 0.25).run().steps == limit


def test_a_tiny_limit_still_ends_well(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    method = make(ToyConfig(steps=4000, second_steps=0))
    stages = slow_stages(method, clock, lambda step: 1.0, shares=(None,))
    result = Trainer(method, stages, toy_images(), None, quiet(minutes=0.1), tmp_path).run()
    assert result.finished
    assert result.steps == 5
    assert result.seconds <= 6
    assert "expect worse images" in result.warnings[0]


def test_slow_steps_and_hooks_keep_the_limit(tmp_path, monkeypatch):
    """It is looked at after every step, also of those that become slow; what follows the steps counts."""
    clock = Clock(monkeypatch)
    for name, seconds in (("slow", lambda step: 13.0), ("jump", lambda step: 0.1 if step < 150 else 9.0)):
        method = make(ToyConfig(steps=4000, second_steps=0))
        stages = slow_stages(method, clock, seconds, shares=(None,))

        def at_end(context):
            clock.now += 10.0

        def preview(context):
            clock.now += 2.0

        def draw():
            clock.now += 3.0
            return Drawn(0.1, 0.0, 0.0, False, 0.0, 0.0, toy_images().images[:2])

        stages[0].on_end, stages[0].end_seconds, stages[0].preview = at_end, lambda: 10.0, preview
        stages[0].draws = True
        config = quiet(minutes=1.0)
        result = Trainer(method, stages, toy_images(), None, config, tmp_path / name, draw=draw).run()
        assert result.finished
        assert 35 < result.seconds <= 62
        assert result.steps < 400


def test_a_resumed_run_obeys_a_new_limit_or_refuses_it(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)

    def build(run_dir, minutes, kind="wall", reserved=0.0):
        method = make(ToyConfig(steps=2000, second_steps=0))
        stages = slow_stages(method, clock, lambda step: 0.1, shares=(None,))
        config = quiet(minutes=minutes, clock=kind)
        record = {"training": config.to_dict()}
        return Trainer(method, stages, toy_images(), None, config, run_dir, record=record, reserved=reserved)

    for name, then, now, expected in (
        ("less", 2.0, 1.0, (560, 600)),
        ("more", 0.5, 1.0, (560, 600)),
        ("none", 0.5, None, (2000, 2000)),
        ("first", None, 1.0, (560, 600)),
    ):
        stop_after(build(tmp_path / name, then), 100).run()
        clock.now += 1e6
        result = build(tmp_path / name, now).run()
        assert expected[0] <= result.steps <= expected[1], name
        assert read_config(tmp_path / name / "config.yaml")["training"]["minutes"] == now
    stop_after(build(tmp_path / "past", 2.0), 400).run()
    before = (tmp_path / "past" / "config.yaml").read_bytes()
    with pytest.raises(
        ConfigError, match=r"taken 0\.7 minutes.* 0\.2 for measuring.* 0\.75 minutes leave no"
    ):
        build(tmp_path / "past", 0.75, reserved=10.0).run()
    assert (tmp_path / "past" / "config.yaml").read_bytes() == before
    assert build(tmp_path / "past", 2.0).run().finished


def test_processor_minutes_count_what_is_computed(tmp_path, monkeypatch):
    import time

    spent = [0.0]
    monkeypatch.setattr(time, "process_time", lambda: spent[0])
    monkeypatch.setattr("fewgen.clock.n_cores", lambda: 2)
    clock = Clock(monkeypatch)

    def seconds(step):
        spent[0] += 0.2
        return 5.0  # others use the machine too

    method = make(ToyConfig(steps=4000, second_steps=0))
    stages = slow_stages(method, clock, seconds, shares=(None,))
    result = Trainer(method, stages, toy_images(), None, quiet(minutes=0.2, clock="cpu"), tmp_path).run()
    assert 110 <= result.steps <= 120
    assert result.seconds == pytest.approx(5.0 * result.steps)


# ---------------------------------------------------------------------- bad input


def test_bad_input(tmp_path):
    method = make()
    stages = method.stages(toy_images(), None)
    with pytest.raises(ConfigError, match="no stages"):
        Trainer(method, [], toy_images(), None, quiet(), tmp_path)
    with pytest.raises(ConfigError, match="names must differ"):
        Trainer(method, [stages[0], stages[0]], toy_images(), None, quiet(), tmp_path)
    empty = toy_images().subset(torch.zeros(0, dtype=torch.long))
    with pytest.raises(DataError, match="no training images"):
        Trainer(method, stages, empty, None, quiet(), tmp_path)
    with pytest.raises(ConfigError, match="no device"):
        Trainer(method, stages, toy_images(), None, quiet(device="abacus"), tmp_path)
    wrong = dataclasses.replace(stages[1], phases=list(stages[1].phases))
    wrong.phases.append(Phase("b", method.encoder, method.loss, shares="class"))
    with pytest.raises(ConfigError, match="moves parameters that the other does not"):
        Trainer(method, [wrong], toy_images(), None, quiet(), tmp_path / "x").run()


def test_no_compiler_is_imported_by_training(tmp_path):
    """Building a torch optimiser imports torch._dynamo, which takes seconds."""
    import subprocess
    import sys

    code = (
        "import sys; from tests.training.toys import *; "
        "trainer(make(ToyConfig(steps=2, second_steps=1)), sys.argv[1]).run(); "
        "print([m for m in ('torch._dynamo', 'accelerate', 'matplotlib', 'rich') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True, check=False
    )
    assert result.stdout.strip() == "[]", result.stderr
