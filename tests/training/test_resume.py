"""A stop at any step changes nothing; a kill at any moment leaves a whole state."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.training.toys import Toy, ToyConfig, ToyGan, make, quiet, toy_images, trainer

from fewgen.errors import CheckpointError, ConfigError, OutputError
from fewgen.losses.weighting import GradNormWeights, UncertaintyWeights
from fewgen.training import Trainer, checkpoint
from fewgen.training.checkpoint import read_state, write_state

ROOT = Path(__file__).parents[2]


def metrics(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"]
    return lines


def stop_at(trainer_, total_step):
    """Ask for a stop in the middle of the step before `total_step` is complete."""
    update = trainer_._between_steps

    def between(run):
        if trainer_._position.total_steps == total_step:
            trainer_.stop()
        return update(run)

    trainer_._between_steps = between
    return trainer_


def assert_equal_runs(a, b):
    """Model, states (all tensors and counters but times) and metrics are equal, bit for bit."""
    assert metrics(a) == metrics(b)
    x, y = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    assert x.keys() == y.keys()
    for name in x:
        assert torch.equal(x[name], y[name]), name
    s, t = read_state(a / "state"), read_state(b / "state")
    assert s.tensors.keys() == t.tensors.keys()
    for name in s.tensors:
        assert torch.equal(s.tensors[name], t.tensors[name]), name
    for values in (s.values, t.values):
        del values["seconds"], values["metrics_bytes"]
        del values["limit"]["spent"]
        for result in values["results"]:
            del result["seconds"]
        if values["stage"]:
            del values["stage"]["seconds"], values["stage"]["seconds_before"]
    assert s.values == t.values


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of the toy: 30 + 20 steps, 30 images in batches of 7."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    trainer(make(), run_dir).run()
    return run_dir


@pytest.mark.parametrize("steps", [(1,), (4, 9), (13, 14, 15), (29,), (30,), (31, 44), (22, 37, 49)])
def test_stop_and_resume_equals_no_stop(tmp_path, whole, steps):
    for step in steps:
        result = stop_at(trainer(make(seed=step), tmp_path), step).run() if step != steps[0] else None
        if result is None:
            result = stop_at(trainer(make(), tmp_path), step).run()
        assert result.interrupted
        assert result.steps == step
    result = trainer(make(seed=77), tmp_path).run()
    assert result.finished
    assert not result.interrupted
    assert_equal_runs(tmp_path, whole)


@pytest.mark.parametrize("seed", range(3))
def test_gan_with_lazy_phase_resumes_at_random_steps(tmp_path, seed):
    trainer(make(cls=ToyGan), tmp_path / "whole").run()
    for step in sorted(random.Random(seed).sample(range(1, 24), 2)):
        assert stop_at(trainer(make(cls=ToyGan), tmp_path / "parts"), step).run().interrupted
    trainer(make(cls=ToyGan), tmp_path / "parts").run()
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("kind", ["uncertainty", "gradnorm", "sgd"])
def test_weightings_and_other_optimisers_resume(tmp_path, kind):
    def build():
        method = make(ToyConfig(second_steps=0))
        train, held = toy_images(), toy_images(12, seed=5)
        stages = method.stages(train, held)
        phase = stages[0].phases[0]
        if kind == "uncertainty":
            phase.weighting = UncertaintyWeights(["image", "size"])
        elif kind == "gradnorm":
            phase.weighting = GradNormWeights(["image", "size"], list(method.encoder.parameters()))
        else:
            phase.optimizer = lambda groups: torch.optim.SGD(groups, momentum=0.9)
            phase.lr = 1e-4
        return method, stages, train, held, quiet()

    Trainer(*build(), tmp_path / "whole").run()
    stop_at(Trainer(*build(), tmp_path / "parts"), 11).run()
    Trainer(*build(), tmp_path / "parts").run()
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


def test_how_often_things_are_saved_or_measured_does_not_change_training(tmp_path, whole):
    config = quiet(checkpoint_every=3, preview_every=4, validate_every=2, log_every=1)
    trainer(make(ToyConfig()), tmp_path / "a", config, held_out=False).run()
    trainer(make(ToyConfig()), tmp_path / "b", held_out=False).run()
    x, y = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    for name in x:
        assert torch.equal(x[name], y[name])


def test_the_callers_random_state_and_threads_are_left_alone(tmp_path):
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    method = make()
    torch.set_rng_state(before)
    trainer(method, tmp_path, quiet(threads=1)).run()
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads


def test_a_kill_in_the_hook_at_the_end_of_a_stage_costs_no_step(tmp_path):
    """What the hook returns is logged; it starts again from the state saved before it."""
    draws = []

    def build(kill):
        method = make()
        train = toy_images()
        stages = method.stages(train, None)

        def on_end(context):
            draws.append(float(torch.rand((), generator=context.rng)))
            if kill:
                raise KeyboardInterrupt
            context.note("done")
            return {"draw": draws[-1]}

        stages[0].on_end = on_end
        return Trainer(method, stages, train, None, quiet(checkpoint_every=0), tmp_path)

    with pytest.raises(KeyboardInterrupt):
        build(kill=True).run()
    state = read_state(tmp_path / "state")
    first = build(kill=False)
    steps = first.stages[0].steps
    assert state.values["stage"]["step"] == steps
    first.stages[0].phases[0].loss = None  # would fail if it were called again
    first.run()
    assert draws[0] == draws[1]
    (result,) = [line for line in metrics(tmp_path) if line["kind"] == "result"]
    assert result["draw"] == draws[0]


def test_a_finished_run_returns_at_once(whole):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    method = make(seed=5)
    first = trainer(method, whole).run()
    assert first.finished
    assert first.steps == 50
    assert first.stages[0].best_step is not None
    saved = load_file(whole / "model.safetensors")
    assert torch.equal(method.head.weight, saved["model.head.weight"])
    for path, time_ns in before.items():
        assert path.name == ".fewgen-run" or path.stat().st_mtime_ns == time_ns


def test_a_state_of_before_checkpoints_were_compared_goes_on(tmp_path, whole):
    stop_at(trainer(make(), tmp_path), 6).run()
    state = read_state(tmp_path / "state")
    del state.values["settings"]["training"]["checkpoint"]
    for name in ("selection", "first"):
        del state.values["stage"][name]
    write_state(tmp_path / "state", state.tensors, state.values)
    assert trainer(make(), tmp_path).run().finished
    assert_equal_runs(tmp_path, whole)


def test_other_settings_are_refused_and_named(tmp_path):
    stop_at(trainer(make(), tmp_path), 6).run()
    for config, method, word in (
        (quiet(seed=1), make(), "training.seed was 0, now 1"),
        (quiet(), make(ToyConfig(lr=1.0)), "lr was 0.003, now 1.0"),
        (quiet(), make(ToyConfig(steps=31)), "steps was 30, now 31"),
    ):
        with pytest.raises(ConfigError, match=word):
            trainer(method, tmp_path, config).run()
    other = toy_images(30, seed=3)
    method = make()
    held = toy_images(12, seed=5)
    with pytest.raises(ConfigError, match=r"data\.train"):
        Trainer(method, method.stages(other, held), other, held, quiet(), tmp_path).run()
    with pytest.raises(ConfigError, match=r"settings\.model\.width was None, now 3"):
        trainer(make(), tmp_path, record={"model": {"width": 3}}).run()
    # What only changes the display is no other run.
    assert trainer(make(), tmp_path, quiet(log_every=7, checkpoint_every=5)).run().finished


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(OutputError, match="not a fewgen run"):
        trainer(make(), tmp_path).run()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


# ---------------------------------------------------------------------- states on disk


def test_state_round_trip_and_spare(tmp_path):
    for i in range(4):
        write_state(tmp_path, {"a": torch.full((3,), float(i)), "b": torch.tensor(i)}, {"step": i})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000003", "00000004", "current.json"]
    state = read_state(tmp_path)
    assert state.values == {"step": 3}
    assert state.tensors["a"].tolist() == [3.0] * 3
    assert read_state(tmp_path / "none") is None


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "empty"])
def test_a_damaged_state_falls_back_to_the_one_before(tmp_path, name, damage):
    for i in range(2):
        write_state(tmp_path, {"a": torch.full((300,), float(i))}, {"step": i})
    file = tmp_path / "00000002" / name
    data = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[-3] ^= 1
        file.write_bytes(data)
    elif damage == "empty":
        file.write_bytes(b"")
    else:
        file.unlink()
    state = read_state(tmp_path)
    assert state.values == {"step": 0}
    assert "older state" in state.warnings[0]
    (tmp_path / "00000001" / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="train from the start"):
        read_state(tmp_path)


def test_a_lost_pointer_is_no_harm(tmp_path):
    for i in range(2):
        write_state(tmp_path, {"a": torch.zeros(1)}, {"step": i})
    (tmp_path / "current.json").write_text("{")
    assert read_state(tmp_path).values == {"step": 1}


def test_a_newer_format_says_so(tmp_path):
    write_state(tmp_path, {}, {"step": 0})
    file = tmp_path / "00000001" / "state.json"
    document = json.loads(file.read_text())
    document["format_version"] = 99
    file.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="Update fewgen"):
        read_state(tmp_path)


def test_a_resumed_run_tells_of_a_damaged_state(tmp_path, whole):
    stop_at(trainer(make(), tmp_path, quiet(checkpoint_every=5)), 12).run()
    newest = sorted((tmp_path / "state").glob("0*"))[-1]
    (newest / "tensors.safetensors").write_bytes(b"12345678")
    result = trainer(make(), tmp_path, quiet(checkpoint_every=5)).run()
    assert result.finished
    assert any("truncated" in text for text in result.warnings)
    x, y = load_file(tmp_path / "model.safetensors"), load_file(whole / "model.safetensors")
    assert all(torch.equal(x[name], y[name]) for name in x)


class FullDisk:
    """Fails the n-th call of each kind of write with ENOSPC."""

    def __init__(self, monkeypatch, fail_at):
        self.calls, self.fail_at = 0, fail_at
        for module, name in ((os, "fsync"), (os, "replace")):
            monkeypatch.setattr(module, name, self.wrap(getattr(module, name)))
        monkeypatch.setattr(checkpoint, "_write_file", self.wrap(checkpoint._write_file, half=True))

    def wrap(self, real, half=False):
        def call(*args, **keywords):
            self.calls += 1
            if self.calls >= self.fail_at:
                if half:
                    args[0].write_bytes(args[1][: len(args[1]) // 2])
                raise OSError(28, "No space left on device")
            return real(*args, **keywords)

        return call


def test_full_disk_at_every_write_keeps_the_old_state(tmp_path):
    write_state(tmp_path, {"a": torch.zeros(9)}, {"step": 0})
    fail_at, failures = 1, 0
    while True:
        with pytest.MonkeyPatch.context() as patch:
            disk = FullDisk(patch, fail_at)
            message = ""
            try:
                write_state(tmp_path, {"a": torch.ones(9)}, {"step": 1})
            except OutputError as error:
                message = str(error)
                failures += 1
        done = not message
        assert done or "No space left" in message or "disk is full" in message
        assert done or "intact" in message
        assert disk.calls >= fail_at or done
        state = read_state(tmp_path)
        if done:
            break
        assert state.warnings == []
        assert state.values["step"] == 0
        fail_at += 1
    assert state.values["step"] == 1
    assert failures >= 5


def test_full_disk_while_training_keeps_the_checkpoint(tmp_path, whole):
    stop_at(trainer(make(), tmp_path), 9).run()
    before = load_file(tmp_path / "model.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        FullDisk(patch, 4)
        with pytest.raises(OutputError, match="full|space"):
            trainer(make(), tmp_path, quiet(checkpoint_every=5)).run()
    after = load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    assert read_state(tmp_path / "state").values["total_steps"] == 9
    assert trainer(make(), tmp_path).run().finished
    assert_equal_runs(tmp_path, whole)


# ---------------------------------------------------------------------- signals and kills

SCRIPT = """
import sys, time
import torch
torch.set_num_threads(1)
from tests.training.toys import ToyConfig, make, quiet, trainer
run = trainer(make(ToyConfig(steps=100000)), sys.argv[1], quiet(checkpoint_every=int(sys.argv[2]), log_every=1))
print("ready", flush=True)
result = run.run()
print("steps", result.steps, "interrupted", result.interrupted, flush=True)
"""


def start(run_dir, checkpoint_every):
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(run_dir), str(checkpoint_every)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
    )
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


def wait_for_lines(run_dir, n):
    deadline = time.monotonic() + 30
    path = run_dir / "metrics.jsonl"
    while time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") >= n:
            return
        time.sleep(0.01)
    raise AssertionError("no metrics")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits(tmp_path, number):
    process = start(tmp_path, 0)
    wait_for_lines(tmp_path, 5)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    words = out.split()
    assert words[-1] == "True"
    state = read_state(tmp_path / "state")
    assert state.values["total_steps"] == int(words[1])
    assert state.values["stage"]["step"] == int(words[1])
    steps = [line["step"] for line in metrics(tmp_path) if line["kind"] == "train"]
    assert steps == list(range(1, int(words[1]) + 1))


# A process that has torch loaded and forks a child per line: starting torch costs seconds.
FORKS = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from tests.training.toys import ToyConfig, make, quiet, trainer

def kill_before(name, run, counter, limit):
    real = getattr(os, name)
    def call(*args, **keywords):
        if run._guards.saved_at == 3:  # the limit lies beyond the second save
            os.kill(os.getpid(), signal.SIGKILL)
        if run._guards.saved_at == 1:  # the calls of the second save
            counter[0] += 1
            if counter[0] == limit:
                os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **keywords)
    setattr(os, name, call)

for line in sys.stdin:
    limit, run_dir = line.rstrip().split(" ", 1)
    child = os.fork()
    if child == 0:
        run = trainer(make(ToyConfig(steps=100000)), run_dir, quiet(checkpoint_every=1, log_every=1))
        counter = [0]
        for name in ("open", "fsync", "replace", "mkdir", "rmdir", "unlink") if int(limit) else ():
            kill_before(name, run, counter, int(limit))
        run.run()
        os._exit(0)
    print(child, flush=True)
    if int(limit):
        os.waitpid(child, 0)
        print("dead", flush=True)
"""


@pytest.fixture(scope="module")
def forks():
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", FORKS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
    )

    def train(run_dir, limit=0):
        process.stdin.write(f"{limit} {run_dir}\n")
        process.stdin.flush()
        child = int(process.stdout.readline())
        if limit:
            assert process.stdout.readline() == "dead\n"
        return child

    yield train
    process.stdin.close()
    process.wait(timeout=30)


def assert_continues(run_dir, last):
    """The state is whole, and training goes on from it without a gap or a double line."""
    stop_at(trainer(make(ToyConfig(steps=100000)), run_dir, quiet(log_every=1)), last + 3).run()
    steps = [line["step"] for line in metrics(run_dir) if line["kind"] == "train"]
    assert steps == list(range(1, last + 4))


def test_kill_at_random_moments_leaves_a_loadable_state(tmp_path, forks):
    rng = random.Random(0)
    last = 0
    for _ in range(6):
        child = forks(tmp_path)
        wait_for_lines(tmp_path, last + 2)
        time.sleep(rng.random() * 0.1)
        os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
        state = read_state(tmp_path / "state")
        if state is None:
            assert last == 0
            continue
        assert state.warnings == []
        assert state.values["total_steps"] >= last
        last = state.values["total_steps"]
        load_file(tmp_path / "model.safetensors")
    assert last > 0
    assert_continues(tmp_path, last)


def test_kill_before_every_write_of_a_save_leaves_the_old_or_the_new_state(tmp_path, forks):
    steps = []
    for limit in range(1, 80):
        run_dir = tmp_path / str(limit)
        forks(run_dir, limit)
        state = read_state(run_dir / "state")
        assert state.warnings == []
        load_file(run_dir / "model.safetensors")
        steps.append(state.values["total_steps"])
        if limit % 8 == 1:
            assert_continues(run_dir, steps[-1])
        if steps[-1] == 3:
            break
    # Every place inside the second save, before and after the switch.
    assert steps == sorted(steps)
    assert steps.count(1) >= 8
    assert steps.count(2) >= 1
    assert steps[-1] == 3


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    run = trainer(make(), tmp_path)
    stages = run.stages
    augment = stages[0].augment

    def impatient(x, rng):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return augment(x, rng)

    stages[0].augment = impatient
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert signal.getsignal(signal.SIGINT) is before


def test_toy_is_not_trivial(whole):
    """The runs compared above use dropout, noise, augmentation, EMA and a best checkpoint."""
    lines = metrics(whole)
    assert {line["kind"] for line in lines} >= {"train", "held_out", "stage_end"}
    start_, end = (Toy, lines[-1])
    assert start_.name == "toy"
    assert end["total_step"] == 50
