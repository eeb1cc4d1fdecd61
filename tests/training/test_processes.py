"""Two processes on the processor: equal to each other, and to one process with the double batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.training.toys import ToyConfig, make, quiet, toy_images

from fewgen.training import Trainer
from fewgen.training.checkpoint import read_state
from fewgen.training.selection import Drawn

ROOT = Path(__file__).parents[2]

SCRIPT = """
import json, sys
import torch
torch.set_num_threads(1)
from tests.training.test_processes import build
from fewgen.errors import FewgenError

def train(task):
    run = build(task["run_dir"], task["batch_size"], task.get("dropout", 0.0), task.get("nan", 0), task.get("figures"))
    stop = task.get("stop")
    between = run._between_steps
    def check(stage):
        # Only one process hears the signal.
        if stop and run.processes.rank == 1 and run._position.total_steps == stop:
            run.stop()
        return between(stage)
    run._between_steps = check
    try:
        result = run.run()
        text = f"steps {result.steps} {result.interrupted}"
    except FewgenError as error:
        text = f"{type(error).__name__}: {error}"
    total = sum(float(p.detach().double().sum()) for p in run.method.parameters())
    return [repr(total), text]

found = [train(task) for task in json.loads(sys.argv[1])]
with open(f"{sys.argv[2]}.{torch.distributed.get_rank()}", "w") as file:
    json.dump(found, file)
torch.distributed.destroy_process_group()
"""


def build(run_dir, batch_size, dropout=0.0, nan=0, figures=None):
    """A run without noise unless asked: augmentation and latent noise are off.

    With `figures`, distances of checkpoints by steps, the first stage keeps the best of these.
    """
    steps = 16 if figures is None else 201
    method = make(ToyConfig(dropout=dropout, steps=steps, batch_size=batch_size, second_steps=6))
    train, held = toy_images(), toy_images(12, seed=5)
    stages = method.stages(train, held)
    if not dropout:
        stages[0].augment = None
        stages[0].phases[0].loss = plain(method, nan)
    stages[1].batch_size = batch_size
    if figures is None:
        return Trainer(method, stages, train, held, quiet(), run_dir)
    stages[0].monitor, stages[0].draws = None, True
    distances = iter(figures)

    def draw():
        return Drawn(next(distances), 0.01, 0.0, False, 0.0, 0.0, train.images[:3])

    return Trainer(method, stages, train, held, quiet(), run_dir, draw=draw)


def plain(method, nan):
    from fewgen.losses.terms import LossTerms

    def loss(batch, context):
        z = method.encoder(batch.images)
        error = (method.decode(z) - batch.images).square().flatten(1).sum(1).mean()
        if nan and context.step + 1 == nan and context.rank == 1:
            error = error * float("nan")
        return LossTerms({"image": error, "size": z.square().sum(1).mean()}, {"size": 0.1})

    return loss


def launch(tasks, out, n=2, script=SCRIPT):
    """Train the tasks one after another in `n` processes; return what each process says of each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    processes = []
    for rank in range(n):
        env = {
            **os.environ,
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(n),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
        }
        command = [sys.executable, "-c", script, json.dumps(tasks), str(out)]
        processes.append(
            subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        )
    for process in processes:
        text, _ = process.communicate(timeout=120)
        assert process.returncode == 0, text.decode()
    return [json.loads(Path(f"{out}.{rank}").read_text()) for rank in range(n)]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """All tasks in one launch, because starting processes takes longer than their work."""
    folder = tmp_path_factory.mktemp("processes")
    noisy = {"batch_size": 4, "dropout": 0.2}
    tasks = {
        "plain": {"run_dir": "plain", "batch_size": 4},
        "whole": {"run_dir": "whole", **noisy},
        "stopped": {"run_dir": "parts", **noisy, "stop": 7},
        "resumed": {"run_dir": "parts", **noisy},
        "nan": {"run_dir": "nan", "batch_size": 4, "nan": 9},
        "compared": {"run_dir": "compared", "batch_size": 4, "figures": [0.1, 0.5, 0.4]},
    }
    full = [{**task, "run_dir": str(folder / str(task["run_dir"]))} for task in tasks.values()]
    first, second = launch(full, folder / "found")
    return folder, dict(zip(tasks, zip(first, second, strict=True), strict=True))


def test_two_processes_equal_one_with_the_double_batch(pairs, tmp_path):
    folder, found = pairs
    first, second = found["plain"]
    assert first == second
    assert first[1] == "steps 22 False"
    build(tmp_path / "one", 8).run()
    a, b = (load_file(path / "model.safetensors") for path in (tmp_path / "one", folder / "plain"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)
    n_lines = [
        len((path / "metrics.jsonl").read_text().splitlines())
        for path in (tmp_path / "one", folder / "plain")
    ]
    assert n_lines[0] == n_lines[1]


def test_two_processes_stop_together_and_resume_bit_for_bit(pairs):
    """With dropout, noise and augmentation, which differ between the processes."""
    folder, found = pairs
    first, second = found["whole"]
    assert first == second
    # Processes ask each other every tenth step.
    assert [text for _, text in found["stopped"]] == ["steps 10 True"] * 2
    assert found["resumed"][0] == found["whole"][0]
    a, b = (read_state(folder / name / "state") for name in ("whole", "parts"))
    assert not torch.equal(a.tensors["rng.torch.0"], a.tensors["rng.torch.1"])
    for name in a.tensors:
        assert torch.equal(a.tensors[name], b.tensors[name]), name


def test_only_the_first_process_measures_and_all_keep_the_same_checkpoint(pairs):
    folder, found = pairs
    first, second = found["compared"]
    assert first == second
    assert first[1] == "steps 207 False"
    stages = read_state(folder / "compared" / "state").values["results"]
    assert (stages[0]["best_step"], stages[0]["best_value"]) == (100, 0.1)


def test_nan_in_one_process_stops_all(pairs):
    texts = [text for _, text in pairs[1]["nan"]]
    assert all(text.startswith("TrainingError") and "step 9" in text for text in texts)
    assert '"image"' in texts[1]
