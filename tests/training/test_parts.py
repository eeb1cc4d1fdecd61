"""Settings, phases, logs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from fewgen.errors import ConfigError, MissingDependencyError
from fewgen.training import Phase, Stage, TrainConfig
from fewgen.training.logs import MetricsFile, TensorBoard
from fewgen.training.phases import decayed


def nothing(batch, context):
    raise AssertionError


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


def test_metrics_are_never_written_through_a_link(tmp_path):
    elsewhere, path = tmp_path / "elsewhere", tmp_path / "metrics.jsonl"
    elsewhere.write_text('{"step": 1}\n{"step": 2}\n')
    path.symlink_to(elsewhere)
    file = MetricsFile(path, len('{"step": 1}\n'))
    file.write({"step": 3})
    file.close()
    assert path.read_text() == '{"step": 1}\n{"step": 3}\n'
    assert elsewhere.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert not path.is_symlink()


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
