import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from benchmarks.kills import (
    CASES,
    Bench,
    Case,
    difference,
    ended,
    page,
    plain,
    run_trials,
    table,
    tensors,
    unreadable,
)

from fewgen.cli.main import main as fewgen
from fewgen.tensor_files import write_tensors

ROOT = Path(__file__).parents[2]
LINES = [
    {"command": "train", "trial": 0, "kind": "kill", "signal": "SIGTERM", "problem": ""},
    {"command": "train", "trial": 0, "kind": "kill", "signal": "SIGKILL", "problem": "a.json: half"},
    {"command": "train", "trial": 0, "kind": "end", "problem": ""},
    {"command": "adapt", "trial": 3, "kind": "pair", "problem": "ended with [0, 1]"},
]


def test_the_table_counts_what_went_well():
    rows = table(LINES).splitlines()
    assert rows[2] == "| `train` | 2 (1) | 1 of 2 | 1 of 1 | 0 of 0 |"
    assert rows[3] == "| `adapt` | 0 (0) | 0 of 0 | 0 of 0 | 0 of 1 |"
    assert rows[4] == "| all | 2 (1) | 1 of 2 | 1 of 1 | 0 of 1 |"


def test_the_page_names_command_problems_and_costs(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.kills.costs", lambda work: [("a model", 2_000_000, 0.1, 0.002)])
    found = page(LINES, tmp_path, "python -m benchmarks kills")
    assert "Command: `python -m benchmarks kills` (commit " in found
    assert "- `train`, trial 0, kill: a.json: half" in found
    assert "- `adapt`, trial 3, pair: ended with [0, 1]" in found
    assert "| a model | 2.0 | 100.0 | 2.00 | 2.0% |" in found
    assert "Nothing went wrong." in page(LINES[:1], tmp_path, "x")


def test_pairs_come_first_then_commands_in_turn_and_what_is_there_is_not_repeated(tmp_path, monkeypatch):
    asked = []

    def attempt(bench, kind, name, number):
        asked.append((kind, name, number))
        lines = [{"kind": kind, "command": name, "trial": number, "problem": ""}]
        return lines if kind == "pair" else [*lines, {**lines[0], "kind": "end"}]

    monkeypatch.setattr("benchmarks.kills._attempt", attempt)
    bench, record = Bench(tmp_path, {"a": {}, "b": {}}, {}, 0), tmp_path / "kills.jsonl"
    first = run_trials(bench, 3, 1, record)
    assert asked == [("pair", "a", 0), ("pair", "b", 0), ("kill", "a", 0), ("kill", "b", 0), ("kill", "a", 1)]
    asked.clear()
    assert run_trials(bench, 4, 1, record)[: len(first)] == first
    assert asked == [("kill", "b", 1)]


def test_times_and_versions_do_not_count():
    assert plain({"seconds": 1, "a": [{"train_minutes": 2, "b": 3}], "torch": "2"}) == {"a": [{"b": 3}]}


def test_damage_and_differences_are_found(tmp_path):
    case = Case("train", "run", True, lambda out: {"model": tensors(out / "model.safetensors")})
    out = tmp_path / "run"
    write_tensors(out / "model.safetensors", {"x": torch.arange(4.0)}, {})
    (out / "a.json").write_text("{}")
    (out / ".a.0123456789ab.tmp.json").write_text("{ half")
    wanted = case.results(out)
    assert unreadable(case, out) == difference(case, out, wanted) == ""
    assert difference(case, out, {"model": "0"}) == "other model"
    data = bytearray((out / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (out / "model.safetensors").write_bytes(data)
    assert "is damaged" in unreadable(case, out)
    assert "cannot be read: CheckpointError" in difference(case, out, wanted)
    (out / "model.safetensors").unlink()
    (out / "a.json").write_text("{")
    assert unreadable(case, out).startswith("run/a.json: ")
    once = Case("evaluate", "judged.json", False, case.results)
    assert unreadable(once, tmp_path / "judged.json") == "half of it: run"


def test_a_process_that_hangs_is_ended():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert ended(process.pid, 0.1) is None
    with pytest.raises(ChildProcessError):
        os.waitpid(process.pid, 0)


@pytest.mark.parametrize("name", CASES)
def test_every_case_is_a_command_that_resolves(name, tmp_path, capsys):
    words = CASES[name].words.split()
    assert words[0] == name
    assert fewgen([*words, "--out", str(tmp_path / CASES[name].out), "--print_config"]) == 0
    assert isinstance(yaml.safe_load(capsys.readouterr().out), dict)


@pytest.mark.slow
def test_a_few_kills_and_pairs_leave_everything_whole(tmp_path):
    words = ["kills", "--kills", "4", "--only", "train", "adapt", "--seed", "1", "--work", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *words], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(row) for row in (tmp_path / "kills.jsonl").read_text().splitlines()]
    assert sum(line["kind"] == "kill" for line in lines) >= 4
    assert {line["command"] for line in lines if line["kind"] == "pair"} == {"train", "adapt"}
    assert done.stdout == table(lines) + "\n"
