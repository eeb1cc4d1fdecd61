"""What is left after kills: `python -m benchmarks kills [--kills 200] [--out docs/results/reliability.md]`.

Each command that writes a folder or a file works on tiny data and is killed at random moments, up to three
times in a row; three of four kills are SIGKILL, the others SIGTERM. What lies there after a kill must be
readable. Then the same command runs once more, and everything must equal what an unbroken one leaves. Pairs
of processes start the same command on the same output, one shortly after the other.

Commands are forked from a process that has imported everything, so that a kill meets their work and not their
imports. Trials are kept in a file as they end; those that are there are not repeated.

Examples:
    python -m benchmarks kills
    python -m benchmarks kills --kills 1000 --jobs 2 --work /tmp/kills
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import importlib
import itertools
import json
import multiprocessing
import os
import pkgutil
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.environment import environment
from fewgen.files import is_leftover, read_json, write_text

PATIENCE = 300.0
"""Seconds after which a command that does not end counts as hanging."""

MOMENTS = 0.95
"""Kills come within this share of the time that an unbroken command takes."""

MOST_KILLS, TERM_SHARE, PAIRS = 3, 0.25, 4
"""Kills of a trial at most; share of SIGTERM; pairs of each command."""

REFUSED = re.compile(r"^error: .*(is being written by|exists already|is not empty)")
"""What a second process on an output may be told."""

BASE = """cada_vqvae --data digits --class-name zero --class-name one --class-name two --size 16 --shots 8
--holdout 4 --text onehot --no-report --model.image.width 4 --model.image.hidden 16 --model.text.hidden 16
--model.text.codebook_size 4 --model.steps 40 --model.batch_size 12 --training.device cpu"""
"""Keywords of `fewgen train`: the run that other commands start from."""


@dataclass(frozen=True)
class Case:
    """A command and what it leaves.

    words: of the command, in the folder of what all cases share.
    out: name of the output.
    resumes: the same command goes on after a kill; otherwise it leaves nothing or the whole.
    results: what must equal what an unbroken command leaves; reads all of it, so that damage is noticed.
    """

    words: str
    out: str
    resumes: bool
    results: Callable[[Path], dict[str, Any]]


# ------------------------------------------------------------------------------------------ what is left


VOLATILE = ("second", "minutes", "environment", "spent", "fewgen", "torch")
"""Parts of the names of values that differ from run to run."""


def plain(value: Any) -> Any:
    """Return JSON values without times and versions."""
    if isinstance(value, dict):
        return {k: plain(inner) for k, inner in value.items() if not any(word in str(k) for word in VOLATILE)}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def tensors(file: Path) -> str:
    """Return a digest of the tensors in a file, which also has to be as its own digest says."""
    from safetensors.torch import load_file

    from fewgen.tensor_files import check_tensor_file, content_digest

    check_tensor_file(file)
    return content_digest(load_file(file), {})


def arrays(file: Path) -> str:
    """Return a digest of the arrays in an .npz."""
    import numpy as np

    with np.load(file, allow_pickle=False) as found:
        parts = [(name, hashlib.sha256(found[name].tobytes()).hexdigest()) for name in sorted(found.files)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def state_problem(out: Path) -> str:
    """Return what is wrong with the training state of a folder; "" if nothing is, or there is none."""
    from fewgen.training.checkpoint import read_state

    state = read_state(out / "state") if (out / "state").is_dir() else None
    return "" if state is None else " ".join(state.warnings)


def a_run(out: Path) -> dict[str, Any]:
    """Return what a run folder holds; its model must load."""
    from fewgen.methods.store import load_method

    load_method(out)
    file = out / "metrics.jsonl"  # an adapted run has none
    rows = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return {
        "model": tensors(out / "model.safetensors"),
        "metrics": [plain(json.loads(row)) for row in rows],
        "split": read_json(out / "split.json"),
        "config": plain(yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))),
        "state": state_problem(out),
    }


def a_distillation(out: Path) -> dict[str, Any]:
    """Return what `distill` leaves."""
    names = ("student.safetensors", "student.onnx", "classes.txt", "synthetic.png")
    found = {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names}
    return {**found, "record": plain(read_json(out / "distill.json"))}


def a_benchmark(out: Path) -> dict[str, Any]:
    """Return what `benchmark` leaves."""
    record = plain(read_json(out / "benchmark.json"))
    found = {key: record[key] for key in ("summary", "failed")} | {
        "judge": tensors(out / "judge.safetensors")
    }
    for cell in (path.parent for path in out.glob("cells/*/seed*/made.json")):
        measured = plain(read_json(cell / "evaluation.json"))
        found[str(cell.relative_to(out))] = [arrays(cell / "images.npz"), measured]
    return found


def an_evaluation(out: Path) -> dict[str, Any]:
    """Return what `evaluate` leaves, a page beside it."""
    page = out.with_suffix(".html").read_text(encoding="utf-8")
    return {"record": plain(read_json(out)), "page": page.rstrip().endswith("</html>")}


CASES: dict[str, Case] = {
    "train": Case(
        f"train {BASE} --training.checkpoint_every 4 --training.preview_every 20", "run", True, a_run
    ),
    "adapt": Case(
        "adapt base --images digits --split test --class-name seven --class-name nine --shots 5 --steps 20"
        " --device cpu --no-report",
        "adapted",
        False,
        a_run,
    ),
    "distill": Case(
        "distill --novel photos --data digits --generator base --shots 4 --size 16 --per-class 6"
        " --teacher-net conv4 --teacher-channels 4 --teacher-pretrain-steps 5 --teacher-episodes 10"
        " --student-channels 4 --pretrain-steps 5 --training.steps 20 --training.batch_size 24 --device cpu",
        "tiny",
        True,
        a_distillation,
    ),
    "benchmark": Case(
        "benchmark --data photos --size 8 --shots 5 --n 12 --seeds 1 --useful-draws 0 --budget-minutes 0.02"
        " --methods copies class_pca_gaussian",
        "grid",
        True,
        a_benchmark,
    ),
    "evaluate": Case(
        "evaluate base --n 12 --useful-draws 0 --features pixels --pool none --device cpu",
        "judged.json",
        False,
        an_evaluation,
    ),
}


def unreadable(case: Case, out: Path) -> str:
    """Return what a kill left that cannot be read; "" if all can. Files not there yet are fine."""
    # The last line of metrics may be half a one, which is removed when training goes on.
    readers: dict[str, Callable[[Path], object]] = {
        ".safetensors": tensors,
        ".npz": arrays,
        ".json": read_json,
    }
    for file in sorted(out.rglob("*")) if out.is_dir() else [out]:
        inside = file.relative_to(out.parent).parts
        skipped = "state" in inside[:-1] or any(is_leftover(part) for part in inside)
        if file.is_file() and file.suffix in readers and not skipped:
            try:
                readers[file.suffix](file)
            except Exception as error:
                return f"{file.relative_to(out.parent)}: {error}"
    others = sorted(path.name for path in out.parent.iterdir() if not is_leftover(path.name))
    others = [name for name in others if not name.endswith(".log")]
    if others and not case.resumes and not out.exists():
        return f"half of it: {', '.join(others)}"
    return state_problem(out)


def difference(case: Case, out: Path, wanted: dict[str, Any]) -> str:
    """Return how an output differs from that of an unbroken command; "" if it does not."""
    try:
        found = json.loads(json.dumps(case.results(out)))
    except Exception as error:
        return f"cannot be read: {type(error).__name__}: {error}"
    different = [key for key in {**wanted, **found} if wanted.get(key) != found.get(key)]
    return f"other {', '.join(different)}" if different else ""


# ------------------------------------------------------------------------------------------ processes


def import_everything() -> None:
    """Import all of fewgen and what it imports late, so that forked commands need not."""
    import fewgen

    for module in pkgutil.walk_packages(fewgen.__path__, "fewgen."):
        if "__main__" not in module.name:
            importlib.import_module(module.name)
    for name in (
        "joblib",
        "matplotlib.figure",
        "onnx",
        "onnxruntime",
        "safetensors.torch",
        "sklearn.datasets",
    ):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    import torch

    torch.set_num_threads(1)  # a process with threads of its own cannot be forked safely


def start(words: list[str], folder: Path, log: Path) -> int:
    """Start a command as a process of its own; return its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.chdir(folder)
        sys.stdout = sys.stderr = open(log, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        from fewgen.cli.main import main as fewgen

        code = fewgen(words)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)


def ended(process: int, patience: float = PATIENCE) -> int | None:
    """Wait for a process; return its exit code, or minus its signal; None if it had to be killed."""
    limit = time.monotonic() + patience
    while time.monotonic() < limit:
        number, status = os.waitpid(process, os.WNOHANG)
        if number:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


# ------------------------------------------------------------------------------------------ trials


@dataclass(frozen=True)
class Bench:
    """What all trials share.

    work: folder of inputs (`shared`), trials and their record.
    wanted: command -> what an unbroken one leaves.
    seconds: command -> how long an unbroken one takes.
    seed: of moments and signals.
    """

    work: Path
    wanted: dict[str, dict[str, Any]]
    seconds: dict[str, float]
    seed: int

    def run(self, name: str, folder: Path, log: Path) -> int:
        """Start a command that writes into a folder."""
        out = folder / CASES[name].out
        words = [*CASES[name].words.split(), "--no-progress", "--out", str(out)]
        return start(words, self.work / "shared", log)


def prepare(work: Path, seed: int, names: Sequence[str] = tuple(CASES)) -> Bench:
    """Make what the commands start from, and run each of them twice without a kill.

    Raises:
        RuntimeError: a command fails, or leaves something else the second time.
    """
    shared = work / "shared"
    shared.mkdir(parents=True, exist_ok=True)
    os.environ["FEWGEN_CACHE_DIR"] = str(work / "cache")
    if not (shared / "photos").is_dir():
        from fewgen.data import load_images, save_images

        digits = load_images("digits", size=16).select_classes(["zero", "one", "two"]).shots(10, 0)
        save_images(digits, shared / "photos")
    log = work / "prepare.log"
    code = ended(start(["train", *BASE.split(), "--no-progress", "--out", "base"], shared, log))
    if code != 0:
        raise RuntimeError(f"The run to start from was not trained: see {log}.")
    wanted: dict[str, dict[str, Any]] = {}
    seconds: dict[str, float] = {}
    for name in names:
        case = CASES[name]
        for attempt in ("first", "second"):  # the first fills caches
            folder = work / "whole" / f"{name} {attempt}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            started = time.monotonic()
            code = ended(Bench(work, {}, {}, seed).run(name, folder, log))
            seconds[name] = time.monotonic() - started
            if code != 0:
                raise RuntimeError(f"{name} ended with {code}: see {log}.")
            found = json.loads(json.dumps(case.results(folder / case.out)))
            if wanted.setdefault(name, found) != found:
                raise RuntimeError(
                    f"{name} does not repeat itself: {difference(case, folder / case.out, wanted[name])}."
                )
    return Bench(work, wanted, seconds, seed)


def trial(bench: Bench, name: str, number: int) -> list[dict[str, Any]]:
    """Kill a command up to three times, let it end, and return a line for each kill and one for the end."""
    case, rng = CASES[name], random.Random(f"{bench.seed} {name} {number}")
    folder, log = _fresh(bench, f"{name} {number}")
    out, lines = folder / case.out, []
    about = {"command": name, "trial": number}
    whole = False
    for _ in range(rng.randint(1, MOST_KILLS)):
        moment = rng.uniform(0, MOMENTS * bench.seconds[name])
        kind = signal.SIGTERM if rng.random() < TERM_SHARE else signal.SIGKILL
        process = bench.run(name, folder, log)
        time.sleep(moment)
        os.kill(process, kind)
        code = ended(process)
        whole = not case.resumes and out.exists()
        if code == 0:
            break  # it was faster
        problem = "" if code in (-kind, 130) else f"ended with {code}"
        problem = problem or unreadable(case, out)
        left = sum(is_leftover(path.name) for path in folder.rglob("*"))
        line = {"kind": "kill", "signal": kind.name, "moment": round(moment, 3), "code": code, "left": left}
        lines.append({**about, **line, "problem": problem})
        if whole:
            break  # the kill came after everything was in place
    code = 0 if whole else ended(bench.run(name, folder, log))
    problem = "" if code == 0 else f"ended with {code}: {_last_line(log)}"
    problem = problem or _at_the_end(case, out, bench.wanted[name], log)
    lines.append({**about, "kind": "end", "problem": problem})
    _tidy(folder, lines)
    return lines


def pair(bench: Bench, name: str, number: int) -> list[dict[str, Any]]:
    """Start a command twice on the same output and return a line about both."""
    case, rng = CASES[name], random.Random(f"{bench.seed} {name} pair {number}")
    folder, log = _fresh(bench, f"{name} pair {number}")
    logs = [log, folder / "second.log"]
    moment = rng.uniform(0, MOMENTS * bench.seconds[name])
    first = bench.run(name, folder, logs[0])
    time.sleep(moment)
    second = bench.run(name, folder, logs[1])
    codes = [ended(first), ended(second)]
    # Whoever comes first has the folder; the other is refused in words, or finds it finished.
    refused = [_last_line(log) for log, code in zip(logs, codes, strict=True) if code == 2]
    fine = codes in ([0, 0], [0, 2], [2, 0]) and all(REFUSED.search(line) for line in refused)
    problem = "" if fine else f"ended with {codes}: {' '.join(refused)}"
    problem = problem or _at_the_end(case, folder / case.out, bench.wanted[name], *logs)
    line = {"command": name, "trial": number, "kind": "pair", "moment": round(moment, 3), "codes": codes}
    _tidy(folder, [line | {"problem": problem}])
    return [line | {"problem": problem}]


def _fresh(bench: Bench, name: str) -> tuple[Path, Path]:
    folder = bench.work / "trials" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder, folder / "first.log"


def _tidy(folder: Path, lines: list[dict[str, Any]]) -> None:
    if not any(line["problem"] for line in lines):
        shutil.rmtree(folder)  # what went wrong stays, to be looked at


def _last_line(log: Path) -> str:
    return (log.read_text(encoding="utf-8").strip().splitlines() or ["no output"])[-1]


def _at_the_end(case: Case, out: Path, wanted: dict[str, Any], *logs: Path) -> str:
    for log in logs:
        if "Traceback" in log.read_text(encoding="utf-8"):
            return f"a traceback: {_last_line(log)}"
    return difference(case, out, wanted)


def _attempt(bench: Bench, kind: str, name: str, number: int) -> list[dict[str, Any]]:
    return (pair if kind == "pair" else trial)(bench, name, number)


def run_trials(bench: Bench, kills: int, jobs: int, record: Path) -> list[dict[str, Any]]:
    """Run all pairs, then trials until there are so many kills, commands in turn; return all lines."""
    rows = record.read_text(encoding="utf-8").splitlines() if record.exists() else []
    lines = [json.loads(row) for row in rows]
    done = {(line["kind"].replace("end", "kill"), line["command"], line["trial"]) for line in lines}
    numbers = range(PAIRS if kills >= PAIRS * len(bench.wanted) else 1)
    pairs = [("pair", name, number) for number in numbers for name in bench.wanted]
    todo = [one for one in pairs if one not in done]
    trials = (("kill", name, number) for number in itertools.count() for name in bench.wanted)
    with contextlib.ExitStack() as stack:
        several = jobs > 1
        pool = stack.enter_context(multiprocessing.get_context("fork").Pool(jobs)) if several else None
        work = functools.partial(_attempt, bench)
        while todo or sum(line["kind"] == "kill" for line in lines) < kills:
            if not todo:
                todo = list(itertools.islice((one for one in trials if one not in done), jobs))
            batch, todo = todo[:jobs], todo[jobs:]
            for found in pool.starmap(work, batch) if pool else [work(*one) for one in batch]:
                lines += found
                with record.open("a", encoding="utf-8") as stream:
                    stream.writelines(json.dumps(line) + "\n" for line in found)
                for line in found:
                    if line["problem"]:
                        print(json.dumps(line), file=sys.stderr, flush=True)
    return lines


# ------------------------------------------------------------------------------------------ costs


def best_of(n: int, work: Callable[[], object]) -> float:
    """Return the shortest of `n` times, in seconds."""
    times = []
    for _ in range(n):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def costs(work: Path) -> list[tuple[str, int, float, float]]:
    """Return for some models: what, bytes, seconds of loading, and those of them for the digest."""
    from safetensors.torch import load_file

    from fewgen.config import load_preset, resolve
    from fewgen.methods import get_method
    from fewgen.methods.base import DataSpec
    from fewgen.methods.store import load_method
    from fewgen.tensor_files import content_digest

    files = {"the run of `train` above": work / "shared" / "base" / "model.safetensors"}
    cls = get_method("sq_gan")
    for preset, shape in (("default", (1, 32, 32)), ("paper256", (3, 256, 256))):
        file = files[f"sq_gan, preset {preset}"] = work / f"{preset}.safetensors"
        config: Any = resolve(cls.Config, load_preset("sq_gan", preset)["model"])
        cls(config, DataSpec(*shape, ("a", "b"))).save(file)
    rows = []
    for name, file in files.items():
        digest = best_of(7, functools.partial(content_digest, load_file(file), {}))
        rows.append((name, file.stat().st_size, best_of(7, functools.partial(load_method, file)), digest))
    return rows


def lock_seconds(work: Path) -> float:
    """Return the seconds that it takes to get and to leave a lock."""
    from fewgen.folders import locked

    def once() -> None:
        with locked(work / "locked"):
            pass

    return best_of(20, once)


# ------------------------------------------------------------------------------------------ the page


def markdown(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """Return a table."""
    lines = [head, ("---",) * len(head), *(tuple(map(str, row)) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


HEAD = ("command", "kills (SIGTERM)", "all readable after it", "the same command ends, equal", "pairs, equal")


def table(lines: list[dict[str, Any]]) -> str:
    """Return a row for each command, and their sum."""

    def row(title: str, own: list[dict[str, Any]]) -> tuple[str, ...]:
        of_kind = {kind: [line for line in own if line["kind"] == kind] for kind in ("kill", "end", "pair")}
        terms = sum(line["signal"] == "SIGTERM" for line in of_kind["kill"])
        good = [f"{sum(not x['problem'] for x in group)} of {len(group)}" for group in of_kind.values()]
        return (title, f"{len(of_kind['kill'])} ({terms})", *good)

    names = [name for name in CASES if any(line["command"] == name for line in lines)]
    rows = [row(f"`{name}`", [line for line in lines if line["command"] == name]) for name in names]
    return markdown(HEAD, [*rows, row("all", lines)])


def page(lines: list[dict[str, Any]], work: Path, command: str) -> str:
    """Return `docs/results/reliability.md`."""
    about: dict[str, Any] = environment()
    where = (
        f"commit {about['commit']}, Python {about['python']}, torch {about['versions']['torch']}, "
        f"{about['processor']}, {about['cores']} cores"
    )
    problems = [line for line in lines if line["problem"]]
    told = [f"- `{x['command']}`, trial {x['trial']}, {x['kind']}: {x['problem']}" for x in problems]
    found = "\n".join(["What went wrong:", "", *told]) if told else "Nothing went wrong."
    loads = [
        (name, f"{size / 1e6:.1f}", f"{1e3 * loading:.1f}", f"{1e3 * digest:.2f}", f"{digest / loading:.1%}")
        for name, size, loading, digest in costs(work)
    ]
    head = ("model file", "MB", "loading, ms", "digest, ms", "share")
    return f"""# Kills and pairs

Command: `{command}` ({where}).

Each command works on tiny data and is killed at random moments of its work, up to {MOST_KILLS} times in a
row, by SIGKILL or SIGTERM. After each kill every file that has its final name is read. Then the same command
runs once more, and tensors, images, figures, verdicts and metrics must equal those of an unbroken one;
`adapt` and `evaluate`, which do not resume, must have left nothing or the whole. In a pair, a second process
starts the same command on the same output while the first works: it is refused, or finds the work finished.
Processes are forked from one that has imported everything, so that kills meet work and not imports.

{table(lines)}

{found}

## What it costs

A digest of the content is compared whenever a model is read, the best of 7 times on one thread:

{markdown(head, loads)}

Taking and leaving the lock of an output takes {1e3 * lock_seconds(work):.2f} ms.
"""


def main(arguments: list[str]) -> int:
    """Run the trials, print the table, and write the page if asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks kills", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="how many, over all commands")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="these commands")
    parser.add_argument("--jobs", type=int, default=1, help="trials at the same time")
    parser.add_argument("--seed", type=int, default=0, help="of moments and signals")
    parser.add_argument("--work", help="folder to work in and to go on in; a temporary one if left out")
    parser.add_argument("--out", help="page to write, such as docs/results/reliability.md")
    options = parser.parse_args(arguments)
    with contextlib.ExitStack() as stack:
        work = Path(options.work or stack.enter_context(tempfile.TemporaryDirectory())).absolute()
        import_everything()
        bench = prepare(work, options.seed, options.only)
        lines = run_trials(bench, options.kills, options.jobs, work / "kills.jsonl")
        print(table(lines))
        if options.out:
            command = f"python -m benchmarks kills --kills {options.kills} --seed {options.seed}"
            write_text(options.out, page(lines, work, command))
    return 1 if any(line["problem"] for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
