"""Schedules, settings, phases, the optimiser, logs."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fewgen.errors import ConfigError, MissingDependencyError
from fewgen.fitting.optimizers import AdamW
from fewgen.fitting.schedules import late_decay
from fewgen.fitting.seeds import global_seed
from fewgen.training import Phase, Stage, TrainConfig, cosine, linear_warmup, make_schedule
from fewgen.training.logs import Display, MetricsFile, TensorBoard
from fewgen.training.phases import decayed


def nothing(batch, context):
    raise AssertionError


@given(st.integers(1, 500), st.floats(0, 1), st.floats(0, 1))
def test_cosine_stays_between_floor_and_one(steps, warmup, floor):
    factors = [cosine(warmup, floor)(step, steps) for step in range(steps)]
    assert all(0 <= f <= 1 + 1e-12 for f in factors)
    after = factors[int(warmup * steps) + 1 :]
    assert all(a >= b - 1e-12 for a, b in zip(after, after[1:], strict=False))
    assert all(f >= floor - 1e-12 for f in after)


def test_warmup_rises_to_one():
    factors = [linear_warmup(0.1)(step, 100) for step in range(100)]
    assert factors[:3] == [0.1, 0.2, pytest.approx(0.3)]
    assert factors[9:] == [1.0] * 91
    assert make_schedule("constant")(3, 10) == 1.0
    with pytest.raises(ConfigError, match='Did you mean "cosine"'):
        make_schedule("cosin")


@given(st.integers(1, 500), st.floats(0, 0.99), st.floats(0, 1))
def test_late_decay_is_one_at_first_and_then_falls_in_a_line(steps, start, floor):
    factors = [late_decay(start, floor)(step, steps) for step in range(steps + 1)]
    for step, factor in enumerate(factors):
        if step <= start * steps:
            assert factor == pytest.approx(1.0, abs=1e-9)
        else:
            share = (steps - step) / (steps - start * steps)
            assert factor == pytest.approx(floor + (1 - floor) * share, abs=1e-9)
    assert factors[-1] == pytest.approx(floor, abs=1e-9)


def test_late_decay_by_name_and_out_of_range():
    assert make_schedule("late_decay")(50, 100) == 1.0
    assert make_schedule("late_decay")(75, 100) == pytest.approx(0.525)
    for wrong in ({"start": 1.0}, {"start": -0.1}, {"floor": 1.5}):
        with pytest.raises(ConfigError, match="share below 1"):
            late_decay(**wrong)


def test_config_lists_all_problems():
    with pytest.raises(ConfigError) as caught:
        TrainConfig(ema_decay=1.0, log_every=0, precision="half", minutes=0, steps_scale=-1)
    for word in ("ema_decay", "log_every", "precision", "minutes", "steps_scale"):
        assert word in str(caught.value)


class Codebook(nn.Module):
    def __init__(self):
        super().__init__()
        self.codes = nn.Parameter(torch.randn(4, 2))


def test_weight_decay_spares_biases_norms_embeddings_and_codebooks():
    net = nn.ModuleDict(
        {
            "linear": nn.Linear(2, 3),
            "norm": nn.GroupNorm(1, 3),
            "embed": nn.Embedding(4, 2),
            "vq": Codebook(),
            "conv": nn.Conv2d(1, 2, 3),
        }
    )
    chosen = {id(p): decay for p, decay in decayed(net)}
    names = {name for name, p in net.named_parameters() if chosen[id(p)]}
    assert names == {"linear.weight", "conv.weight"}
    net["linear"].no_weight_decay = True
    assert not any(d for p, d in decayed(net) if p is net["linear"].weight)


def test_phase_and_stage_refuse_contradictions():
    net = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="either `loss` or `step`"):
        Phase("a", net)
    with pytest.raises(ConfigError, match="no trainable parameters"):
        Phase("a", nn.ReLU(), nothing).trainable()
    with pytest.raises(ConfigError, match="names must differ"):
        Stage("s", [Phase("a", net, nothing), Phase("a", net, nothing)], 1)
    with pytest.raises(ConfigError, match="not an earlier phase"):
        Stage("s", [Phase("a", net, nothing, shares="b")], 1)
    with pytest.raises(ConfigError, match="has no `validate`"):
        Stage("s", [Phase("a", net, nothing)], 1, monitor="x")
    with pytest.raises(ConfigError, match="patience"):
        Stage("s", [Phase("a", net, nothing)], 1, patience=2)
    with pytest.raises(ConfigError, match="learning-rate schedule"):
        Phase("a", net, nothing, schedule="spiral")
    for limit in (0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="limit must be above 0"):
            Phase("a", net, nothing, limit=limit)


def test_frozen_and_shared_parameters_count_once():
    net = nn.Linear(2, 2)
    net.bias.requires_grad_(False)
    assert len(Phase("a", [net, net, net.weight], nothing).trainable()) == 1


@pytest.mark.slow  # importing the compiler with torch's own optimiser takes the time
def test_adamw_equals_that_of_torch_bit_for_bit():
    def net():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))

    a, b = net(), net()
    groups = lambda m: [  # noqa: E731
        {"params": [m[0].weight, m[2].weight], "lr": 0.01, "weight_decay": 0.1},
        {"params": [m[0].bias, m[2].bias], "lr": 0.01, "weight_decay": 0.0},
    ]
    ours = AdamW(groups(a), (0.8, 0.95))
    theirs = torch.optim.AdamW(groups(b), betas=(0.8, 0.95), fused=True)
    for step in range(12):
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        for m, optimizer in ((a, ours), (b, theirs)):
            m.zero_grad()
            m(x).square().sum().backward()
            if step == 3:
                m[0].bias.grad = None
            for group in optimizer.param_groups:
                group["lr"] = 0.01 / (1 + step)
            optimizer.step()
        if step == 6:
            fresh = AdamW(groups(a), (0.8, 0.95))
            fresh.load_state_dict(ours.state_dict())
            ours = fresh
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            assert torch.equal(p, q)
    with pytest.raises(ValueError, match="another shape"):
        AdamW([{"params": [nn.Parameter(torch.zeros(2))], "lr": 1, "weight_decay": 0}]).load_state_dict(
            ours.state_dict()
        )


def test_global_seed_leaves_the_state_as_it_was():
    before = torch.get_rng_state()
    with global_seed(torch.device("cpu"), 1, "a"):
        first = torch.rand(3)
    with global_seed(torch.device("cpu"), 1, "a"):
        assert torch.equal(first, torch.rand(3))
    assert torch.equal(before, torch.get_rng_state())


def test_metrics_file_is_cut_back_and_never_holds_nan(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.write({"a": 1.0})
    kept = file.sync()
    file.write({"a": float("nan"), "b": 2})
    file.close()
    assert json.loads(path.read_text().splitlines()[1]) == {"a": None, "b": 2}
    file = MetricsFile(path, kept)
    file.write({"a": 3.0})
    file.close()
    assert [json.loads(line)["a"] for line in path.read_text().splitlines()] == [1.0, 3.0]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_display_shows_progress(stream):
    display = Display(True, stream, seconds_between_lines=0.0)
    display.start_stage("vae", 0, 10, "learns")
    for step in range(1, 11):
        display.update(step, 10, {"image": 1.5} if step % 5 == 0 else None)
    display.warn("take care")
    display.close()
    text = stream.getvalue()
    assert "vae" in text
    assert "10/10" in text
    assert "image 1.5" in text
    assert "take care" in text


def test_display_off_shows_only_warnings():
    stream = io.StringIO()
    display = Display(False, stream)
    display.start_stage("vae", 0, 10)
    display.update(5, 10, {"image": 1.0})
    display.note("hello")
    display.warn("take care")
    display.close()
    assert stream.getvalue() == "warning: take care\n"


def test_tensorboard_missing_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingDependencyError, match=r"fewgen\[tensorboard\]"):
        TensorBoard(tmp_path, 0)


def test_names_of_methods_and_settings_come_without_torch():
    code = (
        "import sys; import fewgen.methods as m; print(m.method_names()); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy')))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "cada_vqvae" in result.stdout
